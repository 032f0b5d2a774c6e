// Package breaker keeps one circuit breaker per peer, and limits the requests in flight to each.
//
// A breaker is closed as long as its peer answers. It opens when the peer has been silent for as
// long as a request may take. An open breaker rejects requests except one probe at a time, at
// growing intervals. Retries are exempt, and so are requests with a longer timeout than those that
// expired, and the first one after the peer has registered again. Any answer closes the breaker.
// There is no separate half-open state.
package breaker

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/mimiktech/cluster/internal/membership"
)

// A Set holds the breakers of all peers. Its methods are safe for concurrent use.
type Set struct {
	timeout time.Duration // silence after which a breaker opens
	slots   int           // of requests to all peers together

	mu    sync.Mutex          // guards the fields below
	peers map[string]*breaker // by server id
	sweep int                 // number of breakers at which unused ones are removed
}

// New returns a Set of breakers that open after timeout. All requests share the given number of
// slots.
func New(timeout time.Duration, slots int) *Set {
	return &Set{timeout: timeout, slots: slots, peers: make(map[string]*breaker), sweep: minSweep}
}

// Open returns the number of open breakers among those of the given peers.
func (s *Set) Open(peers []*membership.Peer) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	open := 0
	for _, p := range peers {
		if b := s.peers[p.ServerID]; b != nil && b.isOpen() {
			open++
		}
	}
	return open
}

// State returns whether the breaker of a peer is open, and the number of requests in flight to it.
func (s *Set) State(serverID string) (open bool, inFlight int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.peers[serverID]
	if b == nil {
		return false, 0
	}
	return b.isOpen(), b.inFlight
}

// Allow decides whether a request may be sent to p now. It returns an *OpenError if the breaker is
// open and p is not to be probed now, or if the request has waited and p has been silent for
// r.Timeout. A retry is always allowed. It returns a channel if p has too many requests in flight.
// In that case the caller waits until the channel is closed and calls Allow again, or calls Cancel.
// The end of an allowed request must be reported to Record.
func (s *Set) Allow(p *membership.Peer, r Request) (wait <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.breakerLocked(p, r)
	silent := r.Now.Sub(b.silentSince)
	switch {
	case r.Retry:
	case r.Waited && silent >= r.Timeout:
		b.wake(1) // the next waiter may have a longer timeout
		return nil, &OpenError{silent, b.probeIn(r.Now)}
	// An open breaker applies to the request only if its timeout is not longer than those that
	// expired, because a longer one may suffice. An eighth more does not count as longer: the
	// timeouts of requests that share a deadline differ a little.
	case b.isOpen() && min(r.Timeout, s.timeout) <= b.timeouts.longest+b.timeouts.longest/8:
		isNewer := p.LastUpdate().After(b.timeouts.peer.LastUpdate())
		if isNewer || b.inFlight == 0 && p.ClusterBaseURL != b.timeouts.peer.ClusterBaseURL {
			b.timeouts.probeAt, b.timeouts.peer = r.Now, p
		}
		// Requests in flight may be to a former address, so they do not hold up a newer entry.
		if in := b.probeIn(r.Now); in > 0 || b.inFlight > 0 && !isNewer {
			b.wake(1)
			return nil, &OpenError{silent, in}
		}
	case b.inFlight >= s.limit(r.Peers, silent):
		waiter := make(chan struct{})
		b.waiters = append(b.waiters, waiter)
		return waiter, nil
	}
	b.inFlight++
	return nil, nil
}

// Cancel gives up the wait for a channel that Allow returned.
func (s *Set) Cancel(p *membership.Peer, wait <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.peers[p.ServerID]
	if b == nil {
		return
	}
	i := slices.IndexFunc(b.waiters, func(waiter chan struct{}) bool { return waiter == wait })
	if i < 0 {
		b.wake(1) // this waiter was woken already: wake another one instead
		return
	}
	b.waiters = slices.Delete(b.waiters, i, i+1)
}

// Record reports how an allowed request ended, when it had begun, and what its timeout was. It
// returns whether this has opened or closed the breaker.
func (s *Set) Record(p *membership.Peer, result Result, began time.Time, timeout time.Duration) Change {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.peers[p.ServerID]
	b.inFlight--
	b.wake(1)
	wasOpen := b.isOpen()
	switch {
	case result == Abandoned:
	case result == Answered:
		b.silentSince, b.timeouts = now, nil
	case b.silentSince.After(began): // the peer has answered another request since
	default:
		timeout = min(timeout, s.timeout)
		if b.timeouts == nil {
			b.timeouts = new(timeouts)
		}
		b.timeouts.longest = max(b.timeouts.longest, timeout)
		// An open breaker counts probes, but not requests that were in flight when it opened.
		isProbe := wasOpen && !began.Before(b.timeouts.probeAt)
		if isProbe || !wasOpen && (timeout == s.timeout || now.Sub(b.silentSince) >= s.timeout) {
			b.trip(p, now.Add(min(timeout<<b.timeouts.trips, maxProbeInterval)))
		}
	}
	switch isOpen := b.isOpen(); {
	case isOpen && !wasOpen:
		return Opened
	case wasOpen && !isOpen:
		return Closed
	}
	return Unchanged
}

// OpenError reports that a request was not sent because the peer's breaker is open, or because the
// peer was silent while the request waited.
type OpenError struct {
	Silent time.Duration // how long the peer has been silent
	// RetryIn is the time until the next probe. It is 0 if that is due or in flight, or if the
	// breaker is closed.
	RetryIn time.Duration
}

func (e *OpenError) Error() string {
	return fmt.Sprintf("circuit open (no response for %v)", e.Silent)
}

// A Result is how a request ended.
type Result int

// The results that a breaker distinguishes.
const (
	Answered  Result = iota // with any answer, or a failure other than a timeout
	TimedOut                // without an answer
	Abandoned               // by the caller, which says nothing about the peer
)

// A Change is what Record did to a breaker.
type Change int

// The changes of a breaker.
const (
	Unchanged Change = iota
	Opened
	Closed
)

// A Request describes a request that is about to be sent.
type Request struct {
	Peers   int       // in the view
	Now     time.Time // when the request would begin
	Timeout time.Duration
	Retry   bool // a retry is always allowed
	Waited  bool // Allow has returned a channel for this request before
}

const (
	// A peer is silent if a request is in flight and no answer has come for this long.
	silentAfter = time.Second
	// One peer gets at most 1/maxShare of all slots, or an equal share if there are fewer peers
	// than maxShare. It gets at most 1/maxSilentShare if it is silent.
	maxShare       = 4
	maxSilentShare = 16
	// The longest interval at which an open breaker lets a probe through.
	maxProbeInterval = time.Minute
	// The interval between probes doubles up to this many times.
	maxTrips = 10
	// Fewer breakers than this are never swept.
	minSweep = 64
)

// A breaker is small, because a node keeps one for each peer. So the fields that only a silent peer
// needs are in a struct of their own.
type breaker struct {
	inFlight int
	waiters  []chan struct{} // of requests over the limit; closed when one may try again
	// When the silence began: at the last answer, or when a later request began while no other
	// was in flight. Once a request has timed out, only an answer changes it.
	silentSince time.Time
	timeouts    *timeouts // nil if no request has timed out since silentSince
}

// timeouts describes the requests that timed out since the last answer.
type timeouts struct {
	longest time.Duration // of their timeouts, at most Set.timeout
	trips   int           // 0 while closed, 1 when it opens, 1 more per failed probe, up to maxTrips

	peer    *membership.Peer // the entry that was silent; a newer one is probed at once
	probeAt time.Time        // when the next probe is due
}

func (s *Set) breakerLocked(p *membership.Peer, r Request) *breaker {
	b := s.peers[p.ServerID]
	if b == nil {
		if len(s.peers) >= max(s.sweep, 2*r.Peers) {
			s.sweepLocked(r.Now)
		}
		b = new(breaker)
		s.peers[p.ServerID] = b
	}
	if b.inFlight == 0 && b.timeouts == nil {
		b.silentSince = r.Now
	}
	return b
}

// limit is the number of requests that may be in flight to a peer that has been silent for the
// given time.
func (s *Set) limit(peers int, silent time.Duration) int {
	limit := max(1, s.slots/min(peers, maxShare))
	if silent >= silentAfter {
		limit = min(limit, max(1, s.slots/maxSilentShare))
	}
	return limit
}

// probeIn is the time until the next probe, or 0 if it is due or the breaker is closed.
func (b *breaker) probeIn(now time.Time) time.Duration {
	if !b.isOpen() {
		return 0
	}
	return max(0, b.timeouts.probeAt.Sub(now))
}

func (b *breaker) isOpen() bool { return b.timeouts != nil && b.timeouts.trips > 0 }

func (b *breaker) trip(p *membership.Peer, probeAt time.Time) {
	b.timeouts.trips = min(b.timeouts.trips+1, maxTrips)
	b.timeouts.probeAt = probeAt
	if known := b.timeouts.peer; known == nil || !p.LastUpdate().Before(known.LastUpdate()) {
		b.timeouts.peer = p
	}
	b.wake(len(b.waiters)) // Allow rejects them now
}

func (b *breaker) wake(n int) {
	n = min(n, len(b.waiters))
	for _, w := range b.waiters[:n] {
		close(w)
	}
	b.waiters = slices.Delete(b.waiters, 0, n)
}

// sweepLocked removes breakers that are as good as new. It also removes those of peers that have
// been silent for ten minutes, if their next probe is overdue.
func (s *Set) sweepLocked(now time.Time) {
	for id, b := range s.peers {
		unused := b.inFlight == 0 && len(b.waiters) == 0
		outdated := now.Sub(b.silentSince) > 10*maxProbeInterval
		if unused && (b.timeouts == nil || outdated && now.After(b.timeouts.probeAt)) {
			delete(s.peers, id)
		}
	}
	s.sweep = max(minSweep, 2*len(s.peers))
}
