package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

// A peer that hangs, and is not evicted, costs a timeout now and then, at ever longer intervals, and
// nothing in between. It is asked as before once it answers.
func TestOpenBreakerProbesAtGrowingIntervals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 4, noEviction())
		n, peer := w.Nodes[0], w.Nodes[2]
		w.Network.Fault(n.Host, peer.Host, clustertest.Hang)
		seen := recordRequests(w)
		start := time.Now()
		var paid []time.Duration // when calls began that waited for it
		for time.Since(start) < 5*time.Minute {
			began := time.Since(start)
			switch got := callAndTime(t, n, cluster.Request{}); got {
			case "timeout in 10s":
				paid = append(paid, began)
			case "circuit_open in 0s":
			default:
				t.Fatalf("at %v: %s", began, got)
			}
			time.Sleep(time.Second)
		}
		if want := []time.Duration{0, 20 * time.Second, 50 * time.Second, 100 * time.Second, 170 * time.Second, 240 * time.Second}; !cmp.Equal(paid, want) {
			t.Errorf("calls that waited began after %v, want %v", paid, want)
		}
		if got := len(seen.matching("GET", n.Host, peer.Host)); got != len(paid) {
			t.Errorf("it was asked %d times in %d calls", got, len(paid))
		}
		w.Network.Fault(n.Host, peer.Host, nil)
		if got := callAndTime(t, n, cluster.Request{}); got != "circuit_open in 0s" {
			t.Errorf("before anybody knows that it is back: %s", got)
		}
		time.Sleep(time.Minute)
		for range 3 {
			if got := callAndTime(t, n, cluster.Request{}); got != "all well in 0s" {
				t.Errorf("when it is back: %s", got)
			}
		}
	})
}

// While one call tries a hanging peer, the others do not wait for it.
func TestOneProbeAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 4, noEviction())
		n := w.Nodes[0]
		w.Network.Fault(n.Host, w.Nodes[2].Host, clustertest.Hang)
		callAndTime(t, n, cluster.Request{})
		time.Sleep(10 * time.Second)
		got := map[string]int{}
		var (
			mu sync.Mutex
			wg sync.WaitGroup
		)
		for range 20 {
			wg.Go(func() {
				what := callAndTime(t, n, cluster.Request{})
				mu.Lock()
				got[what]++
				mu.Unlock()
			})
		}
		wg.Wait()
		if diff := cmp.Diff(map[string]int{"timeout in 10s": 1, "circuit_open in 0s": 19}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// What makes a peer hang is that it says nothing for Config.RequestTimeout, whatever it is given.
func TestWhenTheBreakerOpens(t *testing.T) {
	short := cluster.Request{Timeout: time.Second}
	for name, tt := range map[string]struct {
		fault clustertest.Fault
		req   cluster.Request
		pause time.Duration // between calls
		want  []string
	}{
		"silent":                      {clustertest.Hang, cluster.Request{}, 0, []string{"timeout in 10s", "circuit_open in 0s"}},
		"stops half-way":              {clustertest.Stall(3), cluster.Request{}, 0, []string{"timeout in 10s", "circuit_open in 0s"}},
		"slow":                        {clustertest.Delay(9 * time.Second), cluster.Request{}, 0, []string{"all well in 9s", "all well in 9s"}},
		"refuses":                     {clustertest.Refuse, cluster.Request{}, 0, []string{"refused in 10ms", "refused in 10ms"}},
		"breaks":                      {clustertest.Reset, cluster.Request{}, 0, []string{"connection_lost in 10ms", "connection_lost in 10ms"}},
		"silent for less":             {clustertest.Hang, short, 0, []string{"timeout in 1s", "timeout in 1s", "timeout in 1s"}},
		"silent for less, and longer": {clustertest.Hang, short, 2 * time.Second, []string{"timeout in 1s", "timeout in 1s", "timeout in 1s", "timeout in 1s", "circuit_open in 0s"}},
		"silent for more":             {clustertest.Hang, cluster.Request{Timeout: time.Minute}, 0, []string{"timeout in 1m0s", "circuit_open in 0s"}},
		"tried as the policy says":    {clustertest.Hang, cluster.Request{Retry: new(cluster.RetryNPM())}, 0, []string{"timeout in 32s", "circuit_open in 0s"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 4, noEviction())
				n := w.Nodes[0]
				w.Network.Fault(n.Host, w.Nodes[2].Host, tt.fault)
				for i, want := range tt.want {
					if i > 0 && want != "circuit_open in 0s" {
						time.Sleep(tt.pause)
					}
					if got := callAndTime(t, n, tt.req); got != want {
						t.Errorf("call %d: %s, want %s", i, got, want)
					}
				}
			})
		})
	}
}

// A peer that registers anew while it is taken for hanging is asked at once.
func TestRegistrationClosesTheBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 4, noEviction())
		n, peer := w.Nodes[0], w.Nodes[2]
		w.Network.Fault(n.Host, peer.Host, clustertest.Hang)
		for range 5 {
			callAndTime(t, n, cluster.Request{})
			time.Sleep(time.Minute)
		}
		callAndTime(t, n, cluster.Request{})
		if got := callAndTime(t, n, cluster.Request{}); got != "circuit_open in 0s" {
			t.Errorf("before: %s", got)
		}
		w.Network.Fault(n.Host, peer.Host, nil)
		if _, err := peer.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := callAndTime(t, n, cluster.Request{}); got != "all well in 0s" {
			t.Errorf("after it announced itself: %s", got)
		}
	})
}

// Answers that nobody waits for any more are nothing against a peer.
func TestCanceledRequestDoesNotOpenBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 4, noEviction())
		n := w.Nodes[0]
		w.Network.Fault(n.Host, w.Nodes[2].Host, clustertest.Delay(9*time.Second))
		for range 100 {
			if res := rpc(t, n, cluster.Request{Path: "/things", MinResults: 2}); len(res.Results) != 2 {
				t.Fatal(failures(res))
			}
		}
		if got := callAndTime(t, n, cluster.Request{}); got != "all well in 9s" {
			t.Error(got)
		}
	})
}

// A peer that hangs costs one timeout, and nobody but itself; the npm module waits three
// timeouts and two pauses: 32 s.
func TestSilentPeerCostsOneTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 10)
		w.Network.Fault(clustertest.Any, w.Nodes[4].Host, clustertest.Hang)
		start := time.Now()
		arrived := 0
		for o := range w.Nodes[0].Stream(t.Context(), cluster.Request{Path: "/things"}) {
			arrived++
			if at := time.Since(start); o.Err == nil && at != 0 || o.Err != nil && at != 10*time.Second {
				t.Errorf("%s: %v at %v", o.Server.ServerID, o.Err, at)
			}
		}
		if took := time.Since(start); arrived != 9 || took != 10*time.Second {
			t.Errorf("%d outcomes in %v", arrived, took)
		}
	})
}

// A peer that hangs takes a few places, and what the others answer is not held up, however many
// calls there are until it is found to hang; each ends with the first timeout or soon after.
func TestSilentPeerHoldsFewSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 5, noEviction(), clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = 32 }))
		n := w.Nodes[0]
		hanging := w.Nodes[2]
		w.Network.Fault(n.Host, hanging.Host, clustertest.Hang)
		start := time.Now()
		var wg sync.WaitGroup
		for i := range 300 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 30 * time.Millisecond) // for 9 s
				began := time.Now()
				for o := range n.Stream(t.Context(), cluster.Request{Path: "/things"}) {
					switch at := time.Since(began); {
					case o.Server.ServerID == hanging.ID && time.Since(start) > 12*time.Second:
						t.Errorf("call %d was told of the hanging peer after %v", i, at)
					case o.Server.ServerID != hanging.ID && at != 0:
						t.Errorf("call %d: %s took %v", i, o.Server.ServerID, at)
					}
				}
			})
		}
		wg.Wait()
	})
}

// A node that is cut off finds all its peers hanging. As they are tried one by one, it must not take
// the one that is tried for the only one in trouble.
func TestIsolatedNodeEvictsNoPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := startVerified(t, 6)
		n := w.Nodes[0]
		seen := recordRequests(w)
		for _, peer := range w.Nodes[1:] {
			w.Network.Fault(n.Host, peer.Host, clustertest.Hang)
		}
		// So that they are not all tried by the same call.
		for _, peer := range w.Nodes[1:] {
			rpc(t, n, cluster.Request{Path: "/things", Filter: onlyIDs(peer.ID)})
		}
		for range 600 {
			rpc(t, n, cluster.Request{Path: "/things"})
			time.Sleep(time.Second)
		}
		if got := len(seen.matching("DELETE", n.Host, clustertest.RegistryHost)); got != 0 || len(w.Registered()) != 6 {
			t.Errorf("mIT was asked %d times, and lists %d", got, len(w.Registered()))
		}
	})
}

// More requests than one peer may have wait for each other, and get through one after the other, also
// when some are given up.
func TestManyCallsToOnePeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 5, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = 16 }))
		n := w.Nodes[0]
		w.Network.Fault(n.Host, w.Nodes[2].Host, clustertest.Delay(100*time.Millisecond))
		start := time.Now()
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if i%3 == 0 {
					time.AfterFunc(time.Duration(i)*10*time.Millisecond, cancel)
				}
				res, err := n.RPCluster(ctx, cluster.Request{Path: "/things"})
				if err != nil || i%3 > 0 && len(res.Results) != 4 {
					t.Errorf("call %d: %v, %v", i, failures(res), err)
				}
			})
		}
		wg.Wait()
		if took := time.Since(start); took > 2600*time.Millisecond {
			t.Errorf("100 requests of 100 ms, 4 at once, took %v", took)
		}
	})
}

// Requests that were given less time than a peer takes say nothing against it to those with more.
func TestShortTimeoutsDoNotOpenBreakerForLongOnes(t *testing.T) {
	t.Run("two in an hour", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 4)
			n := w.Nodes[0]
			w.Network.Fault(n.Host, w.Nodes[2].Host, clustertest.Delay(2*time.Second))
			for range 2 {
				callAndTime(t, n, cluster.Request{Timeout: 100 * time.Millisecond})
				time.Sleep(time.Hour)
			}
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() {
					if got := callAndTime(t, n, cluster.Request{}); got != "all well in 2s" {
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
			w.Network.Fault(n.Host, w.Nodes[2].Host, clustertest.Delay(200*time.Millisecond))
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
				if got := callAndTime(t, n, cluster.Request{}); got != "all well in 200ms" {
					t.Error(got)
				}
			}
		})
	})
}

// A call does not wait for a turn with a silent peer for longer than it would wait for its answer.
func TestBreakerWaitIsBoundedByTimeout(t *testing.T) {
	for name, tt := range map[string]struct{ others, own time.Duration }{
		"short behind usual": {0, time.Second},
		"short behind short": {time.Second, time.Second},
		"usual behind long":  {time.Minute, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 5, noEviction(), clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = 16 }))
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
func TestSilentPeerWithShortTimeouts(t *testing.T) {
	for name, ask := range map[string]func(*testing.T, *clustertest.Node){
		"by their timeout": func(t *testing.T, n *clustertest.Node) {
			t.Helper()
			rpc(t, n, cluster.Request{Path: "/things", Timeout: time.Second})
		},
		"by their context": func(t *testing.T, n *clustertest.Node) {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if _, err := n.RPCluster(ctx, cluster.Request{Path: "/things"}); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 4, noEviction())
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

// asking makes one call and says what came of the one peer that is in trouble: its kind and how long
// the call took.
func callAndTime(t *testing.T, n *clustertest.Node, req cluster.Request) string {
	t.Helper()
	if req.Path == "" {
		req.Path = "/things"
	}
	start := time.Now()
	res := rpc(t, n, req)
	took := time.Since(start)
	kind := cluster.Kind("all well")
	for _, o := range res.Failures {
		kind = o.Kind
		hanging, ok := errors.AsType[*cluster.CircuitOpenError](o.Err)
		if ok != (o.Kind == cluster.KindCircuitOpen) || ok && (o.Attempts != 0 || hanging.ServerID != o.Server.ServerID || hanging.SilentFor < 0 || o.Evicted || o.EvictionSkipped != nil) {
			t.Errorf("%s: %v after %d attempts, evicted %t, spared %v", o.Kind, o.Err, o.Attempts, o.Evicted, o.EvictionSkipped)
		}
	}
	return fmt.Sprintf("%s in %v", kind, took)
}
