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

func TestBreaker(t *testing.T) {
	const timeout = 10 * time.Second
	peer := func(at string) *membership.Peer {
		return &membership.Peer{Server: wire.Server{ServerID: "node-1", ClusterBaseURL: at}}
	}
	p := peer("http://a")
	request := func(timeout time.Duration) Request { return Request{Peers: 9, Now: time.Now(), Timeout: timeout} }
	requireAllowed := func(t *testing.T, s *Set, p *membership.Peer, r Request) {
		t.Helper()
		if wait, err := s.Allow(p, r); wait != nil || err != nil {
			t.Errorf("not allowed: wait %v, error %v", wait, err)
		}
	}
	// fill sends requests until one would have to wait, and returns the number of those allowed.
	fill := func(s *Set, peers int) (n int) {
		for {
			if wait, err := s.Allow(p, Request{Peers: peers, Now: time.Now(), Timeout: timeout}); wait != nil || err != nil {
				return n
			}
			n++
		}
	}
	for name, check := range map[string]func(t *testing.T, s *Set){
		"one of two peers gets half of the slots": func(t *testing.T, s *Set) {
			if got := fill(s, 2); got != 32 {
				t.Errorf("%d requests in flight", got)
			}
		},
		"one of many gets a quarter, and less once it is silent": func(t *testing.T, s *Set) {
			if got := fill(s, 9); got != 16 {
				t.Errorf("%d requests in flight", got)
			}
			time.Sleep(time.Second)
			for range 12 {
				s.Record(p, Abandoned, time.Now(), timeout)
			}
			if got := fill(s, 9); got != 0 {
				t.Errorf("%d more in flight once it is silent", got)
			}
		},
		"a canceled waiter wakes the next one": func(_ *testing.T, s *Set) {
			fill(s, 9)
			first, _ := s.Allow(p, request(timeout))
			second, _ := s.Allow(p, request(timeout))
			waiting := len(s.peers[p.ServerID].waiters) // with that of fill
			for range waiting - 1 {
				s.Record(p, Answered, time.Now(), timeout)
			}
			<-first
			s.Cancel(p, first)
			<-second
		},
		"a response counts for requests that began before it": func(t *testing.T, s *Set) {
			began := time.Now()
			requireAllowed(t, s, p, request(timeout))
			time.Sleep(time.Second)
			requireAllowed(t, s, p, request(timeout))
			s.Record(p, Answered, time.Now(), timeout)
			time.Sleep(9 * time.Second)
			s.Record(p, TimedOut, began, timeout)
			requireAllowed(t, s, p, request(timeout))
		},
		"the silence begins with a request, not with the last response": func(t *testing.T, s *Set) {
			const short = 100 * time.Millisecond
			requireAllowed(t, s, p, request(short))
			s.Record(p, Answered, time.Now(), short)
			time.Sleep(timeout + 5*time.Second)
			retry := request(short)
			retry.Retry = true
			requireAllowed(t, s, p, retry)
			time.Sleep(short)
			s.Record(p, TimedOut, retry.Now, short)
			requireAllowed(t, s, p, request(short))
		},
		"nor with an abandoned request": func(t *testing.T, s *Set) {
			began := time.Now()
			n := fill(s, 9) // and one waits
			time.Sleep(52 * time.Second)
			for range n {
				s.Record(p, Abandoned, began, time.Minute)
			}
			waited := request(timeout)
			waited.Waited = true
			requireAllowed(t, s, p, waited)
		},
		"a peer with a new address is probed at once": func(t *testing.T, s *Set) {
			began := time.Now()
			requireAllowed(t, s, p, request(timeout))
			time.Sleep(timeout)
			s.Record(p, TimedOut, began, timeout)
			_, err := s.Allow(p, request(timeout))
			if _, open := errors.AsType[*OpenError](err); !open {
				t.Errorf("at its old address: %v", err)
			}
			requireAllowed(t, s, peer("http://b"), request(timeout))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { check(t, New(timeout, 64)) })
		})
	}
}
