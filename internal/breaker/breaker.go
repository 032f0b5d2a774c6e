// Package breaker keeps one circuit breaker per peer. A breaker opens when its peer has been silent
// for as long as a request may take. It then lets one probe request through at growing intervals
// and fails all others at once, until the peer answers.
package breaker

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/mimiktech/cluster/internal/membership"
)

const (
	// A peer that was asked and has not answered for this long is silent.
	silenceAfter = time.Second
	// A responsive peer may hold one in maxShare of all slots, a silent one one in maxSilentShare.
	maxShare       = 4
	maxSilentShare = 16
	// An open breaker is probed at least this often.
	maxProbeInterval = time.Minute
	// Fewer breakers than this are never swept.
	minSweep = 64
)

// A Set holds the breakers of all peers.
type Set struct {
	timeout time.Duration // how long a peer may be silent
	slots   int           // for requests to all peers

	mu    sync.Mutex // guards the fields below
	peers map[string]*breaker
	sweep int // number of breakers at which unused ones are removed
}

type breaker struct {
	inFlight    int
	silentSince time.Time       // when it was first asked what it has not answered
	missed      bool            // a request has timed out since then
	given       time.Duration   // the longest timeout among those, at most Set.timeout
	waiters     []chan struct{} // requests over the limit; closed when one may try again

	trips   int              // consecutive times it opened; 0 while closed
	peer    *membership.Peer // as it was when it opened
	probeAt time.Time
}

// OpenError reports that a request was not sent because the peer's breaker is open.
type OpenError struct {
	Silent  time.Duration // how long the peer has been silent
	RetryIn time.Duration // when the next probe is due; 0 while one is in flight
}

func (e *OpenError) Error() string {
	return fmt.Sprintf("circuit breaker open: silent for %v", e.Silent)
}

// A Result is how a request ended.
type Result int

// The results that a breaker tells apart.
const (
	Answered Result = iota // any answer, and any failure but a timeout
	TimedOut
	Abandoned // the caller gave up: says nothing about the peer
)

// New returns breakers that open after timeout, for requests that share that many slots.
func New(timeout time.Duration, slots int) *Set {
	return &Set{timeout: timeout, slots: slots, peers: make(map[string]*breaker), sweep: minSweep}
}

// A Request describes the request that is to be sent.
type Request struct {
	Peers   int           // how many peers there are
	Now     time.Time     // when it would begin
	Timeout time.Duration // how long it may take
	Retry   bool          // retries are always let through
	Waited  bool          // it has waited before
}

// Allow reports whether a request may be sent to p. It returns an *OpenError if the breaker is open,
// or a channel to wait on before calling Allow again if p has too many requests in flight.
// A caller that stops waiting, or does not call again, must call Cancel.
func (s *Set) Allow(p *membership.Peer, r Request) (wait chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.peers[p.ServerID]
	if b == nil {
		if len(s.peers) >= max(s.sweep, 2*r.Peers) {
			s.sweepLocked(r.Now)
		}
		b = new(breaker)
		s.peers[p.ServerID] = b
	}
	if b.inFlight == 0 && !b.missed {
		b.silentSince = r.Now
	}
	silent := r.Now.Sub(b.silentSince)
	switch {
	case r.Retry:
	case r.Waited && silent >= r.Timeout:
		b.wake(1) // its turn goes to the next one
		return nil, &OpenError{silent, 0}
	case b.trips > 0 && min(r.Timeout, s.timeout) <= b.given+b.given/8: // the rest of a call's time varies a little
		if p.ClusterBaseURL != b.peer.ClusterBaseURL || p.LastUpdate().After(b.peer.LastUpdate()) {
			b.probeAt, b.peer = r.Now, p // it has registered since
		}
		if in := b.probeAt.Sub(r.Now); in > 0 || b.inFlight > 0 {
			b.wake(1) // a waiter may have more time than this one
			return nil, &OpenError{silent, max(0, in)}
		}
	case b.inFlight >= max(1, s.slots/min(r.Peers, maxShare)) || b.inFlight >= max(1, s.slots/maxSilentShare) && silent >= silenceAfter:
		wait = make(chan struct{})
		b.waiters = append(b.waiters, wait)
		return wait, nil
	}
	b.inFlight++
	return nil, nil
}

// Cancel gives up a wait.
func (s *Set) Cancel(p *membership.Peer, wait chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.peers[p.ServerID]
	if b == nil {
		return
	}
	if i := slices.Index(b.waiters, wait); i >= 0 {
		b.waiters = slices.Delete(b.waiters, i, i+1)
	} else {
		b.wake(1)
	}
}

// Record reports how an allowed request ended, when it began and how long it might have taken.
func (s *Set) Record(p *membership.Peer, result Result, began time.Time, timeout time.Duration) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.peers[p.ServerID]
	b.inFlight--
	b.wake(1)
	switch {
	case result == Abandoned:
	case result == Answered:
		b.silentSince, b.missed, b.given, b.trips = now, false, 0, 0
	case b.silentSince.After(began): // it has answered another request since
	default:
		timeout = min(timeout, s.timeout)
		b.missed, b.given = true, max(b.given, timeout)
		if timeout == s.timeout || now.Sub(b.silentSince) >= s.timeout {
			b.trip(p, now.Add(min(timeout<<min(b.trips, 10), maxProbeInterval)))
		}
	}
}

func (b *breaker) trip(p *membership.Peer, probeAt time.Time) {
	b.trips++
	b.peer, b.probeAt = p, probeAt
	b.wake(len(b.waiters)) // to fail
}

func (b *breaker) wake(n int) {
	n = min(n, len(b.waiters))
	for _, w := range b.waiters[:n] {
		close(w)
	}
	b.waiters = slices.Delete(b.waiters, 0, n)
}

// sweepLocked removes breakers that hold no information, and those of peers that have been gone
// for long.
func (s *Set) sweepLocked(now time.Time) {
	for id, b := range s.peers {
		if b.inFlight == 0 && len(b.waiters) == 0 && (!b.missed || now.Sub(b.silentSince) > 10*maxProbeInterval && now.After(b.probeAt)) {
			delete(s.peers, id)
		}
	}
	s.sweep = max(minSweep, 2*len(s.peers))
}
