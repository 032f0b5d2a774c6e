package cluster

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster/internal/roster"
	"github.com/mimiktech/cluster/internal/wire"
)

// Peers that come, time out once and go for good are forgotten, whatever they were given.
func TestBreakersForgetWhoIsGone(t *testing.T) {
	for _, timeout := range []time.Duration{time.Second, 10 * time.Second, time.Minute} {
		t.Run(timeout.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bs := newBreakers(Config{RequestTimeout: 10 * time.Second, MaxInFlight: 16})
				for i := range 1000 {
					p := &roster.Peer{Server: wire.Server{ServerID: fmt.Sprint("node-", i)}}
					began := time.Now()
					if turn, err := bs.ask(p, 5, time.Now(), timeout, false, false); turn != nil || err != nil {
						t.Fatal(turn, err)
					}
					time.Sleep(timeout)
					bs.told(p, &UnreachableError{Err: context.DeadlineExceeded}, false, began, timeout)
					time.Sleep(time.Minute)
				}
				if got := len(bs.of); got > fewBreakers {
					t.Errorf("%d peers are remembered", got)
				}
			})
		})
	}
}

// Those that are asked again and again are remembered, however many.
func TestBreakersStay(t *testing.T) {
	const peers = 4 * fewBreakers
	bs := newBreakers(Config{RequestTimeout: 10 * time.Second, MaxInFlight: 16})
	round := func() {
		for i := range peers {
			p := &roster.Peer{Server: wire.Server{ServerID: fmt.Sprint("node-", i)}}
			now := time.Now()
			if turn, err := bs.ask(p, peers, now, time.Second, false, false); turn != nil || err != nil {
				t.Fatal(turn, err)
			}
			bs.told(p, nil, false, now, time.Second)
		}
	}
	round()
	before := maps.Clone(bs.of)
	round()
	if len(before) != peers || !maps.Equal(before, bs.of) {
		t.Errorf("%d of %d peers are remembered, or not as they were", len(bs.of), peers)
	}
}

func TestBreaker(t *testing.T) {
	const timeout = 10 * time.Second
	noAnswer := &UnreachableError{Err: context.DeadlineExceeded}
	peer := func(at string) *roster.Peer {
		return &roster.Peer{Server: wire.Server{ServerID: "node-1", ClusterBaseURL: at}}
	}
	p := peer("http://a")
	for name, check := range map[string]func(bs *breakers, asks func(int) int){
		"half of the places for one of two": func(_ *breakers, asks func(int) int) {
			if got := asks(2); got != 32 {
				t.Errorf("%d requests at once", got)
			}
		},
		"a quarter for one of many, less once it is silent": func(bs *breakers, asks func(int) int) {
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
		"a turn that is given up goes to the next": func(bs *breakers, asks func(int) int) {
			asks(9)
			first, _ := bs.ask(p, 9, time.Now(), timeout, false, false)
			second, _ := bs.ask(p, 9, time.Now(), timeout, false, false)
			waiting := len(bs.of[p.ServerID].waiting) // the one of asks, too
			for range waiting - 1 {
				bs.told(p, nil, false, time.Now(), timeout)
			}
			<-first
			bs.quit(p, first)
			<-second
		},
		"an answer counts for requests before it": func(bs *breakers, _ func(int) int) {
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
		"silence begins with a request, not with the answer before": func(bs *breakers, _ func(int) int) {
			const short = 100 * time.Millisecond
			_, _ = bs.ask(p, 9, time.Now(), short, false, false)
			bs.told(p, &UnreachableError{Err: errors.New("refused")}, false, time.Now(), short)
			time.Sleep(timeout + 5*time.Second) // as a policy may have it
			began := time.Now()
			_, _ = bs.ask(p, 9, began, short, true, false)
			time.Sleep(short)
			bs.told(p, noAnswer, false, began, short)
			if turn, err := bs.ask(p, 9, time.Now(), short, false, false); turn != nil || err != nil {
				t.Error(turn, err)
			}
		},
		"nor with one that was given up": func(bs *breakers, asks func(int) int) {
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
		"at a new address it is asked at once": func(bs *breakers, _ func(int) int) {
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
				bs := newBreakers(Config{RequestTimeout: timeout, MaxInFlight: 64})
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
