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

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

func only(ids ...string) func(cluster.Server) bool {
	return func(s cluster.Server) bool { return slices.Contains(ids, s.ServerID) }
}

func TestFilter(t *testing.T) {
	for name, tt := range map[string]struct {
		filter func(cluster.Server) bool
		want   []string
	}{
		"none":           {nil, []string{"node-2", "node-3", "node-4", "node-5"}},
		"some":           {only("node-4", "node-2"), []string{"node-2", "node-4"}},
		"not oneself":    {only("node-1", "node-2"), []string{"node-2"}},
		"who is unknown": {only("node-9"), []string{}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 5)
				n := w.Nodes[0]
				seen := keepLedger(w)
				res := rpc(t, n, cluster.Request{Path: "/things", Filter: tt.filter})
				if diff := cmp.Diff(tt.want, idsOfOutcomes(res.Results)); diff != "" || len(res.Failures) != 0 {
					t.Errorf("results (-want +got):\n%s\nfailures: %v", diff, failures(res))
				}
				if got := len(seen.of("GET", n.Host, clustertest.Any)); got != len(tt.want) {
					t.Errorf("%d requests for %d peers", got, len(tt.want))
				}
			})
		})
	}
}

// The filter sees each peer once, and the node itself never.
func TestFilterSeesEachPeerOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 4)
		var saw []string
		rpc(t, w.Nodes[1], cluster.Request{Path: "/things", Filter: func(s cluster.Server) bool {
			saw = append(saw, s.ServerID)
			return true
		}})
		if diff := cmp.Diff([]string{"node-1", "node-3", "node-4"}, saw); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// One or two peers of many that cannot be reached say nothing about whose fault it is. A node that is
// cut off, and asks one after the other, must not evict them all.
func TestFilterEvictsOnlyAmongEnough(t *testing.T) {
	for name, tt := range map[string]struct {
		nodes   int
		filter  func(cluster.Server) bool
		evicted bool
	}{
		"one of four":                 {5, only("node-3"), false},
		"two of four":                 {5, only("node-3", "node-4"), false},
		"three of four":               {5, only("node-2", "node-3", "node-4"), true},
		"all of four":                 {5, func(cluster.Server) bool { return true }, true},
		"one of two":                  {3, only("node-3"), true}, // no call could ask more than two
		"one of one, which is all":    {2, only("node-2"), true},
		"three of four, most of them": {5, only("node-3", "node-4", "node-5"), false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := startRenewed(t, tt.nodes)
				n := w.Nodes[0]
				dead := w.Nodes[min(2, tt.nodes-1)]
				dead.Kill()
				if strings.HasSuffix(name, "most of them") {
					w.Nodes[3].Kill()
				}
				res := rpc(t, n, cluster.Request{Path: "/things", Filter: tt.filter})
				for _, o := range res.Failures {
					if o.Evicted != tt.evicted || (o.EvictionSkipped == nil) != tt.evicted {
						t.Errorf("%s: evicted %t, spared %v", o.Server.ServerID, o.Evicted, o.EvictionSkipped)
					}
				}
				if len(res.Failures) == 0 {
					t.Error("nobody failed")
				}
			})
		})
	}
}

// Enough is enough: the others are given up, and say so.
func TestNeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 7)
		n := w.Nodes[0]
		for i, peer := range w.Nodes[1:] {
			w.Network.Fault(n.Host, peer.Host, clustertest.Delay(time.Duration(i)*time.Second))
		}
		w.Network.Fault(n.Host, w.Nodes[2].Host, clustertest.Status(http.StatusNotFound)) // no result
		w.Network.Fault(n.Host, w.Nodes[6].Host, clustertest.Hang)
		start := time.Now()
		res := rpc(t, n, cluster.Request{Path: "/things", MinResults: 3})
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("took %v", took)
		}
		wantOnce(t, res, w.Nodes[1:])
		if diff := cmp.Diff([]string{"node-2", "node-4", "node-5"}, idsOfOutcomes(res.Results)); diff != "" {
			t.Errorf("results (-want +got):\n%s", diff)
		}
		for _, o := range res.Failures {
			enough := o.Server.ServerID != "node-3"
			if errors.Is(o.Err, cluster.ErrEnoughResults) != enough || (o.Kind == cluster.KindCanceled) != enough || o.Evicted || o.EvictionSkipped != nil {
				t.Errorf("%s: %s, %v, evicted %t, spared %v", o.Server.ServerID, o.Kind, o.Err, o.Evicted, o.EvictionSkipped)
			}
		}
		if len(n.Servers()) != 7 {
			t.Error("peers were evicted that nobody needed")
		}
	})
}

// Peers that have not had their turn by then are not asked at all.
func TestNeedAsksNoMoreThanItMust(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 20, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = 2 }))
		n := w.Nodes[0]
		w.Network.Fault(n.Host, clustertest.Any, clustertest.Delay(time.Second))
		seen := keepLedger(w)
		res := rpc(t, n, cluster.Request{Path: "/things", MinResults: 4})
		wantOnce(t, res, w.Nodes[1:])
		asked := 0
		for _, o := range res.Failures {
			asked += o.Attempts
		}
		if got := len(seen.of("GET", n.Host, clustertest.Any)); len(res.Results) != 4 || got > 4+asked || asked > 2 {
			t.Errorf("%d results of %d requests, %d of them given up", len(res.Results), got, asked)
		}
	})
}

func TestNeedOfMoreThanThereAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := startRenewed(t, 5)
		w.Nodes[2].Kill()
		res := rpc(t, w.Nodes[0], cluster.Request{Path: "/things", MinResults: 4})
		if o := onlyFailure(t, res); len(res.Results) != 3 || !o.Evicted {
			t.Errorf("%d results, evicted %t", len(res.Results), o.Evicted)
		}
	})
}

// What failed before there was enough is not decided on: nobody waits for mIT then.
func TestEnoughDecidesOnNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := startRenewed(t, 5)
		n := w.Nodes[0]
		w.Nodes[2].Kill()
		for _, peer := range []int{1, 3, 4} {
			w.Network.Fault(n.Host, w.Nodes[peer].Host, clustertest.Delay(time.Second))
		}
		seen := keepLedger(w)
		o := onlyFailure(t, rpc(t, n, cluster.Request{Path: "/things", MinResults: 3}))
		if o.Kind != cluster.KindRefused || o.Evicted || !errors.Is(o.EvictionSkipped, cluster.ErrEnoughResults) {
			t.Errorf("%s, evicted %t, spared %v", o.Kind, o.Evicted, o.EvictionSkipped)
		}
		if got := len(seen.of("DELETE", n.Host, clustertest.RegistryHost)); got != 0 {
			t.Errorf("mIT was asked %d times", got)
		}
	})
}

func TestNeedInAStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 6)
		n := w.Nodes[0]
		for _, peer := range w.Nodes[3:] {
			w.Network.Fault(n.Host, peer.Host, clustertest.Hang)
		}
		var results, given int
		for o := range n.Stream(t.Context(), cluster.Request{Path: "/things", MinResults: 2}) {
			switch {
			case o.Err == nil:
				results++
			case errors.Is(o.Err, cluster.ErrEnoughResults):
				given++
			}
		}
		if results != 2 || given != 3 {
			t.Errorf("%d results, %d given up", results, given)
		}
	})
}

// slowOnce makes the first request to each peer so slow.
func slowOnce(d time.Duration) clustertest.Fault { return clustertest.FirstN(1, slowAnswer(d)) }

func TestHedge(t *testing.T) {
	for name, tt := range map[string]struct {
		fault    clustertest.Fault
		inFlight int
		took     time.Duration
		attempts int
		kind     cluster.Kind
	}{
		"fast":                        {nil, 0, 0, 1, cluster.KindOK},
		"slow once":                   {slowOnce(5 * time.Second), 0, time.Second, 2, cluster.KindOK},
		"slow twice, the first first": {slowAnswer(1500 * time.Millisecond), 0, 1500 * time.Millisecond, 2, cluster.KindOK},
		"slow, and no place is free":  {slowOnce(5 * time.Second), 1, 5 * time.Second, 1, cluster.KindOK},
		"hanging":                     {clustertest.Hang, 0, 10 * time.Second, 2, cluster.KindTimeout},
		"hanging once":                {clustertest.FirstN(1, clustertest.Hang), 0, time.Second, 2, cluster.KindOK},
		"an error is an answer":       {clustertest.Chain(slowOnce(1100*time.Millisecond), clustertest.Status(500)), 0, time.Second, 2, cluster.KindStatus},
		"refused: not slow":           {clustertest.Refuse, 0, 10 * time.Millisecond, 2, cluster.KindRefused},
		"slow, then broken":           {clustertest.FirstN(1, clustertest.Chain(clustertest.Delay(2*time.Second), clustertest.Reset)), 0, time.Second, 2, cluster.KindOK},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 2,
					clustertest.WithOptions(cluster.WithEviction(cluster.Eviction{Disabled: true})),
					clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = tt.inFlight }))
				n := w.Nodes[0]
				w.Network.Fault(n.Host, w.Nodes[1].Host, tt.fault)
				start := time.Now()
				res := rpc(t, n, cluster.Request{Path: "/things", HedgeAfter: time.Second})
				took := time.Since(start)
				wantOnce(t, res, w.Nodes[1:])
				o := slices.Concat(res.Results, res.Failures)[0]
				if took != tt.took || o.Attempts != tt.attempts || o.Kind != tt.kind {
					t.Errorf("%q, %v, after %d attempts in %v", o.Kind, o.Err, o.Attempts, took)
				}
				synctest.Wait()
			})
		})
	}
}

// The loser of a race is given up at once, and is nothing against the peer.
func TestHedgeGivesTheSlowerUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		n := w.Nodes[0]
		var ended atomic.Int64
		w.Network.Fault(n.Host, w.Nodes[1].Host, clustertest.FirstN(1, func(next http.RoundTripper) http.RoundTripper {
			return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
				<-req.Context().Done()
				ended.Add(1)
				return nil, context.Cause(req.Context())
			})
		}))
		res := rpc(t, n, cluster.Request{Path: "/things", HedgeAfter: 100 * time.Millisecond})
		if len(res.Results) != 2 || ended.Load() != 1 {
			t.Errorf("%d results, %d requests given up, failures: %v", len(res.Results), ended.Load(), failures(res))
		}
		if res := rpc(t, n, cluster.Request{Path: "/things"}); len(res.Results) != 2 || res.Results[0].Attempts != 1 {
			t.Errorf("then %d results, failures: %v", len(res.Results), failures(res))
		}
	})
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
				rpc(t, n, cluster.Request{Path: "/things", HedgeAfter: 100 * time.Millisecond})
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
		"slow": clustertest.Delay(3 * time.Second), "500": clustertest.Status(500), "403": clustertest.Status(403),
		"once refused": clustertest.FirstN(1, clustertest.Refuse), "once hanging": clustertest.FirstN(1, clustertest.Hang),
		"once 403": clustertest.FirstN(1, clustertest.Status(403)), "stall": clustertest.Stall(9),
		"sometimes slow": clustertest.WithProbability(0.5, 1, clustertest.Delay(time.Second)),
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
				Path:       "/things",
				MinResults: rapid.IntRange(0, 3).Draw(rt, "need"),
				HedgeAfter: rapid.SampledFrom([]time.Duration{0, 5 * time.Millisecond, time.Second, 10 * time.Second}).Draw(rt, "hedge"),
				Timeout:    rapid.SampledFrom([]time.Duration{0, 20 * time.Millisecond, 2 * time.Second, 12 * time.Second}).Draw(rt, "timeout"),
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
			if got := cluster.PlacesTaken(n.Cluster); got != 0 {
				problem("%d places are lost", got)
			}
			if closes > 0 {
				return
			}
			// No turn has been lost.
			time.Sleep(time.Hour)
			w.Network.Fault(n.Host, clustertest.Any, nil)
			for _, peer := range w.Nodes[1:] {
				w.Network.Fault(n.Host, peer.Host, nil)
			}
			for range 2 * inFlight {
				wg.Go(func() {
					if res := rpc(t, n, cluster.Request{Path: "/things"}); len(res.Results) != len(broken) {
						for _, o := range res.Failures {
							if o.Kind != cluster.KindCircuitOpen { // until the first has found it well
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

// Calls that are under way together keep apart, so that no peer has to answer all at once, and there are
// not as many connections to each as there are calls.
func TestCallsKeepApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const peers, calls = 64, 8
		var most atomic.Int64
		w := worldOf(t, &list{servers: someServers(0, peers)}, 0, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = 2 * calls }))
		n := w.Join()
		for _, s := range n.Servers() {
			var now atomic.Int64
			w.Network.Fault(n.Host, s.ServerID+":8080", func(next http.RoundTripper) http.RoundTripper {
				return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
					defer now.Add(-1)
					if at := now.Add(1); at > most.Load() {
						most.Store(at)
					}
					time.Sleep(10 * time.Millisecond)
					return next.RoundTrip(req)
				})
			})
		}
		var wg sync.WaitGroup
		for i := range calls {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * time.Millisecond)
				for range 5 {
					if res := rpc(t, n, cluster.Request{Path: "/things"}); len(res.Results) != peers {
						t.Errorf("failures: %v", failures(res))
					}
				}
			})
		}
		wg.Wait()
		if got := most.Load(); got > 3 {
			t.Errorf("a peer was asked by %d calls at once", got)
		}
	})
}
