package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

// Requests that were given less time than a peer takes say nothing against it to those with more.
func TestShortTimeoutsHarmNobody(t *testing.T) {
	t.Run("two in an hour", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 4)
			n := w.Nodes[0]
			w.Network.Fault(n.Host, w.Nodes[2].Host, clustertest.Slow(2*time.Second))
			for range 2 {
				asking(t, n, cluster.Request{Timeout: 100 * time.Millisecond})
				time.Sleep(time.Hour)
			}
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() {
					if got := asking(t, n, cluster.Request{}); got != "all well in 2s" {
						t.Error(got)
					}
				})
			}
			wg.Wait()
		})
	})
	t.Run("all the time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 4)
			n := w.Nodes[0]
			w.Network.Fault(n.Host, w.Nodes[2].Host, clustertest.Slow(200*time.Millisecond))
			var wg sync.WaitGroup
			defer wg.Wait()
			over := make(chan struct{})
			defer close(over)
			for i := range 4 {
				wg.Go(func() {
					time.Sleep(time.Duration(i) * 30 * time.Millisecond)
					for {
						select {
						case <-over:
							return
						case <-time.After(40 * time.Millisecond):
							rpc(t, n, cluster.Request{Path: "/things", Timeout: 100 * time.Millisecond})
						}
					}
				})
			}
			for range 3 {
				time.Sleep(30 * time.Second)
				if got := asking(t, n, cluster.Request{}); got != "all well in 200ms" {
					t.Error(got)
				}
			}
		})
	})
}

// A call does not wait for a turn with a silent peer for longer than it would wait for its answer.
func TestTurnsAreNotWaitedForBeyondTheTimeout(t *testing.T) {
	for name, tt := range map[string]struct{ others, own time.Duration }{
		"short behind usual": {0, time.Second},
		"short behind short": {time.Second, time.Second},
		"usual behind long":  {time.Minute, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 5, evictNobody(), clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = 16 }))
				n := w.Nodes[0]
				w.Network.Fault(n.Host, w.Nodes[2].Host, clustertest.Hang)
				var wg sync.WaitGroup
				for range 16 {
					wg.Go(func() { rpc(t, n, cluster.Request{Path: "/things", Timeout: tt.others}) })
				}
				time.Sleep(time.Millisecond)
				start := time.Now()
				rpc(t, n, cluster.Request{Path: "/things", Timeout: tt.own})
				if took := time.Since(start); took > tt.own+50*time.Millisecond {
					t.Errorf("took %v, of %v", took, tt.own)
				}
				wg.Wait()
			})
		})
	}
}

// A hanging peer costs short requests a timeout now and then, too.
func TestHangingPeerCostsShortRequestsLittle(t *testing.T) {
	for name, ask := range map[string]func(*testing.T, *clustertest.Node){
		"by their timeout": func(t *testing.T, n *clustertest.Node) {
			t.Helper()
			rpc(t, n, cluster.Request{Path: "/things", Timeout: time.Second})
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 4, evictNobody())
				n := w.Nodes[0]
				w.Network.Fault(n.Host, w.Nodes[2].Host, clustertest.Hang)
				paid := 0
				for range 100 {
					start := time.Now()
					ask(t, n)
					if time.Since(start) > 0 {
						paid++
					}
					time.Sleep(2 * time.Second)
				}
				if paid > 50 {
					t.Errorf("%d of 100 calls waited for it", paid)
				}
			})
		})
	}
}

// A request that lost a race, but has not ended, still counts among those in flight.
func TestMaxInFlightCountsTheLosersOfRaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 16
		w := clustertest.Start(t, 9, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = most }))
		n := w.Nodes[0]
		var now, peak atomic.Int64
		for _, peer := range w.Nodes[1:] {
			var asked atomic.Int64
			w.Network.Fault(n.Host, peer.Host, func(next http.RoundTripper) http.RoundTripper {
				return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
					for at, was := now.Add(1), peak.Load(); at > was && !peak.CompareAndSwap(was, at); was = peak.Load() {
					}
					defer now.Add(-1)
					if asked.Add(1)%2 == 0 {
						time.Sleep(10 * time.Millisecond)
						return next.RoundTrip(req)
					}
					<-req.Context().Done()
					time.Sleep(time.Second) // it takes its time to end
					return nil, context.Cause(req.Context())
				})
			})
		}
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 150 * time.Millisecond)
				rpc(t, n, cluster.Request{Path: "/things", Hedge: 100 * time.Millisecond})
			})
		}
		wg.Wait()
		if got := peak.Load(); got > most {
			t.Errorf("%d requests at once, %d allowed", got, most)
		}
	})
}

// Whatever a call asks for, and whatever happens meanwhile: each peer that it asks stands once, nobody
// waits for longer than one timeout and mIT, and no more requests are under way than allowed.
func TestEveryPeerOnceHoweverChosen(t *testing.T) {
	faults := map[string]clustertest.Fault{
		"none": nil, "refuse": clustertest.Refuse, "hang": clustertest.Hang, "reset": clustertest.Reset,
		"slow": clustertest.Slow(3 * time.Second), "500": clustertest.Status(500), "403": clustertest.Status(403),
		"once refused": clustertest.Times(1, clustertest.Refuse), "once hanging": clustertest.Times(1, clustertest.Hang),
		"once 403": clustertest.Times(1, clustertest.Status(403)), "stall": clustertest.Stall(9),
		"sometimes slow": clustertest.Sometimes(0.5, 1, clustertest.Slow(time.Second)),
	}
	names := slices.Sorted(maps.Keys(faults))
	rapid.Check(t, func(rt *rapid.T) {
		broken := rapid.SliceOfN(rapid.SampledFrom(names), 1, 6).Draw(rt, "faults of the peers")
		inFlight := rapid.IntRange(1, 9).Draw(rt, "in flight")
		type asked struct {
			req     cluster.Request
			at, end time.Duration
			breakAt int // outcomes of a stream to take; -1: no stream
			picked  []bool
		}
		calls := make([]asked, rapid.IntRange(1, 5).Draw(rt, "calls"))
		for i := range calls {
			c := &calls[i]
			c.picked = rapid.SliceOfN(rapid.SampledFrom([]bool{true, true, false}), len(broken), len(broken)).Draw(rt, "picked")
			c.req = cluster.Request{
				Path:    "/things",
				Need:    rapid.IntRange(0, 3).Draw(rt, "need"),
				Hedge:   rapid.SampledFrom([]time.Duration{0, 5 * time.Millisecond, time.Second, 10 * time.Second}).Draw(rt, "hedge"),
				Timeout: rapid.SampledFrom([]time.Duration{0, 20 * time.Millisecond, 2 * time.Second, 12 * time.Second}).Draw(rt, "timeout"),
			}
			c.at = rapid.SampledFrom([]time.Duration{0, time.Second, 11 * time.Second}).Draw(rt, "begin")
			c.end = rapid.SampledFrom([]time.Duration{0, 5 * time.Millisecond, 2 * time.Second, time.Hour, time.Hour}).Draw(rt, "end")
			c.breakAt = rapid.IntRange(-3, 2).Draw(rt, "break off")
		}
		closes := rapid.SampledFrom([]time.Duration{0, 0, 0, 1500 * time.Millisecond}).Draw(rt, "close")
		var (
			mu       sync.Mutex
			problems []string
		)
		problem := func(format string, args ...any) {
			mu.Lock()
			defer mu.Unlock()
			problems = append(problems, fmt.Sprintf(format, args...))
		}
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 1+len(broken), evictNobody(),
				clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = inFlight }))
			n := w.Nodes[0]
			var now atomic.Int64
			for i, name := range broken {
				fault := faults[name]
				w.Network.Fault(n.Host, w.Nodes[1+i].Host, func(next http.RoundTripper) http.RoundTripper {
					if fault != nil {
						next = fault(next)
					}
					return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
						if req.URL.Path == "/things" || strings.HasSuffix(req.URL.Path, "/things") {
							defer now.Add(-1)
							if at := now.Add(1); at > int64(inFlight) && req.Context().Err() == nil {
								problem("%d requests at once", at)
							}
						}
						return next.RoundTrip(req)
					})
				})
			}
			if closes > 0 {
				time.AfterFunc(closes, func() { n.Close() })
			}
			var wg sync.WaitGroup
			for _, c := range calls {
				wg.Go(func() {
					time.Sleep(c.at)
					ctx, cancel := context.WithTimeout(t.Context(), c.end)
					defer cancel()
					var ids []string
					var peers []*clustertest.Node
					for i, picked := range c.picked {
						if picked {
							ids, peers = append(ids, w.Nodes[1+i].ID), append(peers, w.Nodes[1+i])
						}
					}
					c.req.Filter = only(ids...)
					if c.breakAt >= 0 {
						took := 0
						for range n.Stream(ctx, c.req) {
							if took++; took > c.breakAt {
								break
							}
						}
						return
					}
					res, err := n.RPCluster(ctx, c.req)
					if err != nil {
						if !errors.Is(err, cluster.ErrClosed) {
							problem("%v", err)
						}
						return
					}
					for _, p := range once(res, peers) {
						problem("%s", p)
					}
				})
			}
			wg.Wait()
			synctest.Wait()
			if got := now.Load(); got != 0 {
				problem("%d requests are left", got)
			}
			if closes > 0 {
				return
			}
			// No place has been lost, and no turn.
			time.Sleep(time.Hour)
			w.Network.Fault(n.Host, clustertest.Any, nil)
			for _, peer := range w.Nodes[1:] {
				w.Network.Fault(n.Host, peer.Host, nil)
			}
			for range 2 * inFlight {
				wg.Go(func() {
					if res := rpc(t, n, cluster.Request{Path: "/things"}); len(res.Results) != len(broken) {
						for _, o := range res.Failures {
							if o.Kind != cluster.KindHanging { // until the first has found it well
								problem("in the end: %v", o.Err)
							}
						}
					}
				})
			}
			wg.Wait()
			if res := rpc(t, n, cluster.Request{Path: "/things"}); len(res.Results) != len(broken) {
				problem("at last: %v", failures(res))
			}
		})
		if problems != nil {
			rt.Fatal(problems)
		}
	})
}
