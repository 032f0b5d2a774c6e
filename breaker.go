package cluster

import (
	"slices"
	"sync"
	"time"

	"github.com/mimiktech/cluster/internal/roster"
)

// breakers know which peers hang. A peer that was silent for as long as a request may take is
// not asked again for a while; then by one request, and all others go on without it until that is
// answered. So a peer that hangs, and that nobody evicts, costs a timeout now and then
// instead of one with each call.
//
// Before that is known, requests to it must not take all places: beyond some, and beyond a few once
// it is silent, they wait until it says something, or is found to hang.
type breakers struct {
	patience time.Duration // how long a peer may be silent
	places   int           // for requests to peers

	mu    sync.Mutex // guards the fields below
	of    map[string]*breaker
	sweep int // of so many, those are looked for that are of no use
}

const (
	// A peer that has said nothing for so long, though it was asked, is silent. Then one of so many
	// places is for requests to it, and before that one of so many, or of as many as there are peers.
	silence    = time.Second
	silentPart = 16
	part       = 4
	// A peer that hangs is asked again this often at least.
	longestBreak = time.Minute
	// So few peers are remembered without asking whether they are still there.
	fewBreakers = 64
)

// A breaker is about one peer.
type breaker struct {
	underway int
	since    time.Time       // when it was first asked of what it has not answered
	missed   bool            // a request has timed out since then
	given    time.Duration   // the longest that one was given for that, patience at most
	waiting  []chan struct{} // of requests that are too many; closed when one may be tried again

	hangs int          // how often in a row it was found to; 0: it does not
	peer  *roster.Peer // as it was then
	next  time.Time    // when to ask it again
}

func newBreakers(cfg Config) *breakers {
	return &breakers{patience: cfg.RequestTimeout, places: cfg.MaxInFlight, of: make(map[string]*breaker), sweep: fewBreakers}
}

// ask comes before a request to one of so many peers, that may take so long. It gives what to wait for
// before asking again, or an error if the peer hangs; neither, if the request is a repetition, which a
// policy wants. Who does not wait to the end, or does not ask again, must quit.
//
// What has been found with less time says nothing about a request that has more. One that waited, and
// heard nothing for all its time, has none left.
func (bs *breakers) ask(p *roster.Peer, peers int, now time.Time, timeout time.Duration, repeated, waited bool) (turn chan struct{}, err error) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	b := bs.of[p.ServerID]
	if b == nil {
		if len(bs.of) >= max(bs.sweep, 2*peers) {
			bs.sweepLocked(now)
		}
		b = new(breaker)
		bs.of[p.ServerID] = b
	}
	if b.underway == 0 && !b.missed { // it owes nobody an answer
		b.since = now
	}
	switch {
	case repeated:
	case waited && now.Sub(b.since) >= timeout:
		b.wake(1) // its turn goes to whoever is next
		return nil, &HangingError{p.ServerID, now.Sub(b.since), 0}
	case b.hangs > 0 && min(timeout, bs.patience) <= b.given+b.given/8: // what is left of a call's time is never quite the same
		if p.ClusterBaseURL != b.peer.ClusterBaseURL || p.Seen().After(b.peer.Seen()) {
			b.next, b.peer = now, p // it has been alive meanwhile
		}
		if wait := b.next.Sub(now); wait > 0 || b.underway > 0 {
			b.wake(1) // who waits has more time, and may have been behind this one
			return nil, &HangingError{p.ServerID, now.Sub(b.since), max(0, wait)}
		}
	case b.underway >= max(1, bs.places/min(peers, part)) || b.underway >= max(1, bs.places/silentPart) && now.Sub(b.since) >= silence:
		turn = make(chan struct{})
		b.waiting = append(b.waiting, turn)
		return turn, nil
	}
	b.underway++
	return nil, nil
}

// quit gives a turn up, to whoever is next.
func (bs *breakers) quit(p *roster.Peer, turn chan struct{}) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	b := bs.of[p.ServerID]
	if b == nil {
		return
	}
	if i := slices.Index(b.waiting, turn); i >= 0 {
		b.waiting = slices.Delete(b.waiting, i, i+1)
	} else {
		b.wake(1)
	}
}

// told comes after the request: what came of it, when it began and how long it might have taken.
// A request that its caller gave up says nothing of the peer.
func (bs *breakers) told(p *roster.Peer, err error, gaveUp bool, began time.Time, timeout time.Duration) {
	now := time.Now()
	bs.mu.Lock()
	defer bs.mu.Unlock()
	b := bs.of[p.ServerID]
	b.underway--
	b.wake(1)
	switch {
	case err != nil && gaveUp:
	case !timedOut(err):
		b.since, b.missed, b.given, b.hangs = now, false, 0, 0
	case b.since.After(began): // it has said something else meanwhile
	default:
		timeout = min(timeout, bs.patience)
		b.missed, b.given = true, max(b.given, timeout)
		if timeout == bs.patience || now.Sub(b.since) >= bs.patience { // or if not towards one request
			b.trip(p, now.Add(min(timeout<<min(b.hangs, 10), longestBreak)))
		}
	}
}

func (b *breaker) trip(p *roster.Peer, next time.Time) {
	b.hangs++
	b.peer, b.next = p, next
	b.wake(len(b.waiting)) // to be told
}

func (b *breaker) wake(n int) {
	n = min(n, len(b.waiting))
	for _, turn := range b.waiting[:n] {
		close(turn)
	}
	b.waiting = slices.Delete(b.waiting, 0, n)
}

// sweepLocked forgets peers of which there is nothing to remember, and those that have long been silent
// and should have been tried since: they are gone.
func (bs *breakers) sweepLocked(now time.Time) {
	for id, b := range bs.of {
		if b.underway == 0 && len(b.waiting) == 0 && (!b.missed || now.Sub(b.since) > 10*longestBreak && now.After(b.next)) {
			delete(bs.of, id)
		}
	}
	bs.sweep = max(fewBreakers, 2*len(bs.of))
}
