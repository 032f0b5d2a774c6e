package breaker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster/internal/membership"
	"github.com/mimiktech/cluster/internal/wire"
)

// Peers that come, time out once and go for good are forgotten, whatever they were given.
func TestForgetWhoIsGone(t *testing.T) {
	for _, timeout := range []time.Duration{time.Second, 10 * time.Second, time.Minute} {
		t.Run(timeout.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bs := New(10*time.Second, 16)
				for i := range 1000 {
					p := &membership.Peer{Server: wire.Server{ServerID: fmt.Sprint("node-", i)}}
					began := time.Now()
					if turn, err := bs.ask(p, 5, time.Now(), timeout, false, false); turn != nil || err != nil {
						t.Fatal(turn, err)
					}
					time.Sleep(timeout)
					bs.told(p, context.DeadlineExceeded, false, began, timeout)
					time.Sleep(time.Minute)
				}
				if got := len(bs.peers); got > minSweep {
					t.Errorf("%d peers are remembered", got)
				}
			})
		})
	}
}

// Those that are asked again and again are remembered, however many.
func TestStay(t *testing.T) {
	const peers = 4 * minSweep
	bs := New(10*time.Second, 16)
	round := func() {
		for i := range peers {
			p := &membership.Peer{Server: wire.Server{ServerID: fmt.Sprint("node-", i)}}
			now := time.Now()
			if turn, err := bs.ask(p, peers, now, time.Second, false, false); turn != nil || err != nil {
				t.Fatal(turn, err)
			}
			bs.told(p, nil, false, now, time.Second)
		}
	}
	round()
	before := maps.Clone(bs.peers)
	round()
	if len(before) != peers || !maps.Equal(before, bs.peers) {
		t.Errorf("%d of %d peers are remembered, or not as they were", len(bs.peers), peers)
	}
}

func TestBreaker(t *testing.T) {
	const timeout = 10 * time.Second
	noAnswer := context.DeadlineExceeded
	peer := func(at string) *membership.Peer {
		return &membership.Peer{Server: wire.Server{ServerID: "node-1", ClusterBaseURL: at}}
	}
	p := peer("http://a")
	for name, check := range map[string]func(bs *Set, asks func(int) int){
		"half of the places for one of two": func(_ *Set, asks func(int) int) {
			if got := asks(2); got != 32 {
				t.Errorf("%d requests at once", got)
			}
		},
		"a quarter for one of many, less once it is silent": func(bs *Set, asks func(int) int) {
			if got := asks(9); got != 16 {
				t.Errorf("%d requests at once", got)
			}
			time.Sleep(time.Second)
			for range 12 {
				bs.told(p, context.Canceled, true, time.Now(), timeout)
			}
			if got := asks(9); got != 0 {
				t.Errorf("%d more once it is silent", got)
			}
		},
		"a turn that is given up goes to the next": func(bs *Set, asks func(int) int) {
			asks(9)
			first, _ := bs.ask(p, 9, time.Now(), timeout, false, false)
			second, _ := bs.ask(p, 9, time.Now(), timeout, false, false)
			waiting := len(bs.peers[p.ServerID].waiters) // the one of asks, too
			for range waiting - 1 {
				bs.told(p, nil, false, time.Now(), timeout)
			}
			<-first
			bs.Cancel(p, first)
			<-second
		},
		"an answer counts for requests before it": func(bs *Set, _ func(int) int) {
			began := time.Now()
			_, _ = bs.ask(p, 9, time.Now(), timeout, false, false)
			time.Sleep(time.Second)
			_, _ = bs.ask(p, 9, time.Now(), timeout, false, false)
			bs.told(p, nil, false, time.Now(), timeout)
			time.Sleep(9 * time.Second)
			bs.told(p, noAnswer, false, began, timeout)
			if turn, err := bs.ask(p, 9, time.Now(), timeout, false, false); turn != nil || err != nil {
				t.Error(turn, err)
			}
		},
		"silence begins with a request, not with the answer before": func(bs *Set, _ func(int) int) {
			const short = 100 * time.Millisecond
			_, _ = bs.ask(p, 9, time.Now(), short, false, false)
			bs.told(p, errors.New("refused"), false, time.Now(), short)
			time.Sleep(timeout + 5*time.Second) // as a policy may have it
			began := time.Now()
			_, _ = bs.ask(p, 9, began, short, true, false)
			time.Sleep(short)
			bs.told(p, noAnswer, false, began, short)
			if turn, err := bs.ask(p, 9, time.Now(), short, false, false); turn != nil || err != nil {
				t.Error(turn, err)
			}
		},
		"nor with one that was given up": func(bs *Set, asks func(int) int) {
			began := time.Now()
			n := asks(9) // and one waits
			time.Sleep(52 * time.Second)
			for range n {
				bs.told(p, context.Canceled, true, began, time.Minute)
			}
			if turn, err := bs.ask(p, 9, time.Now(), timeout, false, true); turn != nil || err != nil {
				t.Error(turn, err)
			}
		},
		"at a new address it is asked at once": func(bs *Set, _ func(int) int) {
			began := time.Now()
			_, _ = bs.ask(p, 9, time.Now(), timeout, false, false)
			time.Sleep(timeout)
			bs.told(p, noAnswer, false, began, timeout)
			if _, err := bs.ask(p, 9, time.Now(), timeout, false, false); !isHanging(err) {
				t.Errorf("where it hangs: %v", err)
			}
			if turn, err := bs.ask(peer("http://b"), 9, time.Now(), timeout, false, false); turn != nil || err != nil {
				t.Error(turn, err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(*testing.T) {
				bs := New(timeout, 64)
				check(bs, func(peers int) (n int) { // until one would have to wait
					for {
						if turn, err := bs.ask(p, peers, time.Now(), timeout, false, false); turn != nil || err != nil {
							return n
						}
						n++
					}
				})
			})
		})
	}
}

func (s *Set) ask(p *membership.Peer, peers int, now time.Time, timeout time.Duration, retry, waited bool) (<-chan struct{}, error) {
	return s.Allow(p, Request{peers, now, timeout, retry, waited})
}

func (s *Set) told(p *membership.Peer, err error, gaveUp bool, began time.Time, timeout time.Duration) {
	r := Answered
	if err != nil && gaveUp {
		r = Abandoned
	} else if errors.Is(err, context.DeadlineExceeded) {
		r = TimedOut
	}
	s.Record(p, r, began, timeout)
}

func isHanging(err error) bool {
	_, ok := errors.AsType[*OpenError](err)
	return ok
}
