package breaker

import (
	"errors"
	"fmt"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster/internal/membership"
	"github.com/mimiktech/cluster/internal/wire"
)

// Breakers of peers that timed out once and are not called again are removed, whatever the timeout.
func TestUnusedBreakersAreRemoved(t *testing.T) {
	for _, timeout := range []time.Duration{time.Second, 10 * time.Second, time.Minute} {
		t.Run(timeout.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := New(10*time.Second, 16)
				for i := range 1000 {
					p := &membership.Peer{Server: wire.Server{ServerID: fmt.Sprint("node-", i)}}
					began := time.Now()
					if wait, err := s.Allow(p, Request{Peers: 5, Now: time.Now(), Timeout: timeout}); wait != nil || err != nil {
						t.Fatal(wait, err)
					}
					time.Sleep(timeout)
					s.Record(p, TimedOut, began, timeout)
					time.Sleep(time.Minute)
				}
				if got := len(s.peers); got > minSweep {
					t.Errorf("%d breakers are left", got)
				}
			})
		})
	}
}

// Breakers of peers that are called again and again are kept, however many there are.
func TestActiveBreakersAreKept(t *testing.T) {
	const peers = 4 * minSweep
	s := New(10*time.Second, 16)
	round := func() {
		for i := range peers {
			p := &membership.Peer{Server: wire.Server{ServerID: fmt.Sprint("node-", i)}}
			now := time.Now()
			if wait, err := s.Allow(p, Request{Peers: peers, Now: now, Timeout: time.Second}); wait != nil || err != nil {
				t.Fatal(wait, err)
			}
			s.Record(p, Answered, now, time.Second)
		}
	}
	round()
	before := maps.Clone(s.peers)
	round()
	if len(before) != peers || !maps.Equal(before, s.peers) {
		t.Errorf("%d of %d breakers are kept, or others replaced them", len(s.peers), peers)
	}
}

// A scenario is a test of one set of breakers.
type scenario struct {
	*testing.T
	set *Set
}

func TestBreaker(t *testing.T) {
	const timeout = 10 * time.Second
	peer := func(at string) *membership.Peer {
		return &membership.Peer{Server: wire.Server{ServerID: "node-1", ClusterBaseURL: at}}
	}
	p := peer("http://a")
	registered := func(at string, second int) *membership.Peer { // later than p
		newer := peer(at)
		newer.UpdatedAt = time.Unix(int64(second), 0)
		return newer
	}
	request := func(timeout time.Duration) Request { return Request{Peers: 9, Now: time.Now(), Timeout: timeout} }
	requireAllowed := func(t scenario, p *membership.Peer, r Request) {
		t.Helper()
		if wait, err := t.set.Allow(p, r); wait != nil || err != nil {
			t.Errorf("not allowed: wait %v, error %v", wait, err)
		}
	}
	requireOpen := func(t scenario, p *membership.Peer, retryIn time.Duration) {
		t.Helper()
		_, err := t.set.Allow(p, request(timeout))
		if rejected, ok := errors.AsType[*OpenError](err); !ok || rejected.RetryIn != retryIn {
			t.Errorf("%+v, want an open breaker and a probe in %v", err, retryIn)
		}
	}
	// open sends a request that times out.
	open := func(t scenario) {
		t.Helper()
		began := time.Now()
		requireAllowed(t, p, request(timeout))
		time.Sleep(timeout)
		if change := t.set.Record(p, TimedOut, began, timeout); change != Opened {
			t.Errorf("after a timeout: %v", change)
		}
	}
	// fill sends requests until one would have to wait, and returns the number of those allowed.
	fill := func(t scenario, peers int) (n int) {
		for {
			if wait, err := t.set.Allow(p, Request{Peers: peers, Now: time.Now(), Timeout: timeout}); wait != nil || err != nil {
				return n
			}
			n++
		}
	}
	for name, check := range map[string]func(scenario){
		"one of two peers gets half of the slots": func(t scenario) {
			if got := fill(t, 2); got != 32 {
				t.Errorf("%d requests in flight", got)
			}
		},
		"one of many gets a quarter, and less once it is silent": func(t scenario) {
			if got := fill(t, 9); got != 16 {
				t.Errorf("%d requests in flight", got)
			}
			time.Sleep(time.Second)
			for range 12 {
				t.set.Record(p, Abandoned, time.Now(), timeout)
			}
			if got := fill(t, 9); got != 0 {
				t.Errorf("%d more in flight once it is silent", got)
			}
		},
		"a canceled waiter wakes the next one": func(t scenario) {
			fill(t, 9)
			first, _ := t.set.Allow(p, request(timeout))
			second, _ := t.set.Allow(p, request(timeout))
			waiting := len(t.set.peers[p.ServerID].waiters) // with that of fill
			for range waiting - 1 {
				t.set.Record(p, Answered, time.Now(), timeout)
			}
			<-first
			t.set.Cancel(p, first)
			<-second
		},
		"a response counts for requests that began before it": func(t scenario) {
			began := time.Now()
			requireAllowed(t, p, request(timeout))
			time.Sleep(time.Second)
			requireAllowed(t, p, request(timeout))
			t.set.Record(p, Answered, time.Now(), timeout)
			time.Sleep(9 * time.Second)
			t.set.Record(p, TimedOut, began, timeout)
			requireAllowed(t, p, request(timeout))
		},
		"the response to a probe closes the breaker": func(t scenario) {
			began := time.Now()
			requireAllowed(t, p, request(timeout))
			time.Sleep(timeout)
			if change := t.set.Record(p, TimedOut, began, timeout); change != Opened {
				t.Errorf("after a timeout: %v", change)
			}
			time.Sleep(maxProbeInterval)
			requireAllowed(t, p, request(timeout)) // the probe
			if wait, err := t.set.Allow(p, request(timeout)); wait != nil || err == nil {
				t.Errorf("another request during the probe: wait %v, error %v", wait, err)
			}
			if change := t.set.Record(p, Answered, time.Now(), timeout); change != Closed {
				t.Errorf("after a response: %v", change)
			}
			for range 2 {
				requireAllowed(t, p, request(timeout))
			}
			if open, inFlight := t.set.State(p.ServerID); open || inFlight != 2 {
				t.Errorf("open: %v, in flight: %d", open, inFlight)
			}
		},
		"the silence begins with a request, not with the last response": func(t scenario) {
			const short = 100 * time.Millisecond
			requireAllowed(t, p, request(short))
			t.set.Record(p, Answered, time.Now(), short)
			time.Sleep(timeout + 5*time.Second)
			retry := request(short)
			retry.Retry = true
			requireAllowed(t, p, retry)
			time.Sleep(short)
			t.set.Record(p, TimedOut, retry.Now, short)
			requireAllowed(t, p, request(short))
		},
		"nor with an abandoned request": func(t scenario) {
			began := time.Now()
			n := fill(t, 9) // and one waits
			time.Sleep(52 * time.Second)
			for range n {
				t.set.Record(p, Abandoned, began, time.Minute)
			}
			waited := request(timeout)
			waited.Waited = true
			requireAllowed(t, p, waited)
		},
		"requests that time out together are one reason to wait": func(t scenario) {
			began := time.Now()
			for range 6 {
				requireAllowed(t, p, request(timeout))
			}
			time.Sleep(timeout)
			for range 6 {
				t.set.Record(p, TimedOut, began, timeout)
			}
			time.Sleep(timeout)
			requireAllowed(t, p, request(timeout)) // the first probe
			began = time.Now()
			time.Sleep(timeout)
			t.set.Record(p, TimedOut, began, timeout)
			_, err := t.set.Allow(p, request(timeout))
			if open, ok := errors.AsType[*OpenError](err); !ok || open.RetryIn != 2*timeout {
				t.Errorf("after the probe: %+v", err)
			}
		},
		"a long request does not keep a peer that registers again from being called": func(t scenario) {
			requireAllowed(t, p, request(time.Hour))
			open(t)
			requireOpen(t, p, timeout)
			newer := registered("http://b", 1)
			requireAllowed(t, newer, request(timeout))
			for range 3 { // some calls still have the former entry
				requireOpen(t, p, 0)
				requireOpen(t, newer, 0)
			}
		},
		"a retry at the former entry does not make the newer one new again": func(t scenario) {
			open(t)
			newer := registered("http://b", 1)
			requireAllowed(t, newer, request(timeout))
			retry := request(timeout)
			retry.Retry = true
			requireAllowed(t, p, retry)
			time.Sleep(timeout)
			t.set.Record(p, TimedOut, retry.Now, timeout)
			requireOpen(t, newer, 2*timeout)
		},
		"the interval grows although the peer registers again during each probe": func(t scenario) {
			open(t)
			for i, want := range []time.Duration{2 * timeout, 4 * timeout, maxProbeInterval, maxProbeInterval} {
				former, newer := registered("http://b", 2*i+1), registered("http://b", 2*i+2)
				requireAllowed(t, former, request(timeout))
				began := time.Now()
				time.Sleep(time.Second)
				requireAllowed(t, newer, request(timeout))
				newerBegan := time.Now()
				time.Sleep(9 * time.Second)
				t.set.Record(former, TimedOut, began, timeout)
				time.Sleep(time.Second)
				t.set.Record(newer, TimedOut, newerBegan, timeout)
				requireOpen(t, newer, want)
			}
		},
		"a rejected waiter learns of the next probe, if the breaker is open": func(t scenario) {
			const short = 2 * time.Second
			began := time.Now()
			requireAllowed(t, p, request(timeout))
			waited := func() (rejected OpenError) {
				r := request(short)
				r.Waited = true
				_, err := t.set.Allow(p, r)
				if open, ok := errors.AsType[*OpenError](err); ok {
					rejected = *open
				}
				return rejected
			}
			time.Sleep(short)
			if got := waited(); got != (OpenError{Silent: short}) {
				t.Errorf("closed: %+v", got)
			}
			time.Sleep(timeout - short)
			t.set.Record(p, TimedOut, began, timeout)
			if got := waited(); got != (OpenError{Silent: timeout, RetryIn: timeout}) {
				t.Errorf("open: %+v", got)
			}
		},
		"a peer with a new address is probed at once": func(t scenario) {
			began := time.Now()
			requireAllowed(t, p, request(timeout))
			time.Sleep(timeout)
			t.set.Record(p, TimedOut, began, timeout)
			_, err := t.set.Allow(p, request(timeout))
			if _, open := errors.AsType[*OpenError](err); !open {
				t.Errorf("at its old address: %v", err)
			}
			requireAllowed(t, peer("http://b"), request(timeout))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { check(scenario{t, New(timeout, 64)}) })
		})
	}
}
