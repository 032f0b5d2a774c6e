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

// A silent peer that is not evicted costs one timeout per probe. The probes come at growing
// intervals. Once a probe is answered the breaker closes.
func TestOpenBreakerProbesAtGrowingIntervals(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 4, noEviction())
		n, peer := w.Nodes[0], w.Nodes[2]
		w.Network.Fault(n.Host, peer.Host, clustertest.Hang)
		requests := recordRequests(w)
		start := time.Now()
		var probes []time.Duration // when calls began that waited for the peer
		for time.Since(start) < 5*time.Minute {
			began := time.Since(start)
			switch got := callAndTime(t, n, cluster.Request{}); got {
			case "timeout in 10s":
				probes = append(probes, began)
			case "circuit_open in 0s":
			default:
				t.Fatalf("at %v: %s", began, got)
			}
			time.Sleep(time.Second)
		}
		if want := []time.Duration{0, 20 * time.Second, 50 * time.Second, 100 * time.Second, 170 * time.Second, 240 * time.Second}; !cmp.Equal(probes, want) {
			t.Errorf("probes at %v, want %v", probes, want)
		}
		if got := len(requests.matching("GET", n.Host, peer.Host)); got != len(probes) {
			t.Errorf("%d requests to the peer, want %d", got, len(probes))
		}
		w.Network.Fault(n.Host, peer.Host, nil)
		if got := callAndTime(t, n, cluster.Request{}); got != "circuit_open in 0s" {
			t.Errorf("before the next probe: %s", got)
		}
		time.Sleep(time.Minute)
		for range 3 {
			if got := callAndTime(t, n, cluster.Request{}); got != "ok in 0s" {
				t.Errorf("after the probe: %s", got)
			}
		}
	})
}

// While one call probes a silent peer, other calls do not wait for the peer.
func TestOneProbeAtATime(t *testing.T) {
	parallel(t)
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
				outcome := callAndTime(t, n, cluster.Request{})
				mu.Lock()
				got[outcome]++
				mu.Unlock()
			})
		}
		wg.Wait()
		if diff := cmp.Diff(map[string]int{"timeout in 10s": 1, "circuit_open in 0s": 19}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// The breaker opens when a peer is silent for Config.RequestTimeout, whatever the timeouts of
// requests.
func TestWhenTheBreakerOpens(t *testing.T) {
	parallel(t)
	short := cluster.Request{Timeout: time.Second}
	for name, tt := range map[string]struct {
		fault clustertest.Fault
		req   cluster.Request
		pause time.Duration // between calls
		want  []string
	}{
		"silent":                  {clustertest.Hang, cluster.Request{}, 0, []string{"timeout in 10s", "circuit_open in 0s"}},
		"stalls":                  {clustertest.Stall(3), cluster.Request{}, 0, []string{"timeout in 10s", "circuit_open in 0s"}},
		"slow":                    {clustertest.Delay(9 * time.Second), cluster.Request{}, 0, []string{"ok in 9s", "ok in 9s"}},
		"refuses connections":     {clustertest.Refuse, cluster.Request{}, 0, []string{"refused in 10ms", "refused in 10ms"}},
		"resets connections":      {clustertest.Reset, cluster.Request{}, 0, []string{"connection_lost in 10ms", "connection_lost in 10ms"}},
		"short timeouts":          {clustertest.Hang, short, 0, []string{"timeout in 1s", "timeout in 1s", "timeout in 1s"}},
		"short timeouts for 10 s": {clustertest.Hang, short, 2 * time.Second, []string{"timeout in 1s", "timeout in 1s", "timeout in 1s", "timeout in 1s", "circuit_open in 0s"}},
		"long timeout":            {clustertest.Hang, cluster.Request{Timeout: time.Minute}, 0, []string{"timeout in 1m0s", "circuit_open in 0s"}},
		"retries of RetryNPM":     {clustertest.Hang, cluster.Request{Retry: new(cluster.RetryNPM())}, 0, []string{"timeout in 32s", "circuit_open in 0s"}},
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

// A peer that registers again while its breaker is open is called at once.
func TestRegistrationClosesTheBreaker(t *testing.T) {
	parallel(t)
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
		if got := callAndTime(t, n, cluster.Request{}); got != "ok in 0s" {
			t.Errorf("after it announced itself: %s", got)
		}
	})
}

// A request that is canceled because MinResults was reached does not count against its peer.
func TestCanceledRequestDoesNotOpenBreaker(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 4, noEviction())
		n := w.Nodes[0]
		w.Network.Fault(n.Host, w.Nodes[2].Host, clustertest.Delay(9*time.Second))
		for range 100 {
			if res := rpc(t, n, cluster.Request{Path: "/things", MinResults: 2}); len(res.Results) != 2 {
				t.Fatal(failures(res))
			}
		}
		if got := callAndTime(t, n, cluster.Request{}); got != "ok in 9s" {
			t.Error(got)
		}
	})
}

// A silent peer costs the call one timeout, and delays no other outcome. With the npm module it
// costs three timeouts and two pauses: 32 s.
func TestSilentPeerCostsOneTimeout(t *testing.T) {
	parallel(t)
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

// Calls before the breaker opens hold few slots with a silent peer, so that other peers answer
// without delay. All of these calls end soon after the first timeout.
func TestSilentPeerHoldsFewSlots(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 5, noEviction(), clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = 32 }))
		n := w.Nodes[0]
		silent := w.Nodes[2]
		w.Network.Fault(n.Host, silent.Host, clustertest.Hang)
		start := time.Now()
		var wg sync.WaitGroup
		for i := range 300 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 30 * time.Millisecond) // for 9 s
				began := time.Now()
				for o := range n.Stream(t.Context(), cluster.Request{Path: "/things"}) {
					switch at := time.Since(began); {
					case o.Server.ServerID == silent.ID && time.Since(start) > 12*time.Second:
						t.Errorf("call %d: the outcome of the silent peer came after %v", i, at)
					case o.Server.ServerID != silent.ID && at != 0:
						t.Errorf("call %d: %s took %v", i, o.Server.ServerID, at)
					}
				}
			})
		}
		wg.Wait()
	})
}

// All peers of an isolated node are silent. Its calls probe few of them at a time, but it must
// count all of them as suspects, and evict none.
func TestIsolatedNodeEvictsNoPeer(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := startVerified(t, 6)
		n := w.Nodes[0]
		requests := recordRequests(w)
		for _, peer := range w.Nodes[1:] {
			w.Network.Fault(n.Host, peer.Host, clustertest.Hang)
		}
		// The breakers open at different times, so that no call probes all peers.
		for _, peer := range w.Nodes[1:] {
			rpc(t, n, cluster.Request{Path: "/things", Filter: onlyIDs(peer.ID)})
		}
		for range 600 {
			rpc(t, n, cluster.Request{Path: "/things"})
			time.Sleep(time.Second)
		}
		if got := len(requests.deletes(n)); got != 0 || len(w.Registered()) != 6 {
			t.Errorf("the registry received %d deletes, and lists %d servers", got, len(w.Registered()))
		}
	})
}

// Requests above the share of one peer wait, and all get through, even if others are canceled
// meanwhile.
func TestManyCallsToOnePeer(t *testing.T) {
	parallel(t)
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

// Timeouts below the response time of a peer do not open its breaker for requests with more time.
func TestShortTimeoutsDoNotOpenBreakerForLongOnes(t *testing.T) {
	parallel(t)
	t.Run("two short requests in an hour", func(t *testing.T) {
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
					if got := callAndTime(t, n, cluster.Request{}); got != "ok in 2s" {
						t.Error(got)
					}
				})
			}
			wg.Wait()
		})
	})
	t.Run("short requests all the time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 4)
			n := w.Nodes[0]
			w.Network.Fault(n.Host, w.Nodes[2].Host, clustertest.Delay(200*time.Millisecond))
			var wg sync.WaitGroup
			defer wg.Wait()
			done := make(chan struct{})
			defer close(done)
			for i := range 4 {
				wg.Go(func() {
					time.Sleep(time.Duration(i) * 30 * time.Millisecond)
					for {
						select {
						case <-done:
							return
						case <-time.After(40 * time.Millisecond):
							rpc(t, n, cluster.Request{Path: "/things", Timeout: 100 * time.Millisecond})
						}
					}
				})
			}
			for range 3 {
				time.Sleep(10 * time.Second)
				if got := callAndTime(t, n, cluster.Request{}); got != "ok in 200ms" {
					t.Error(got)
				}
			}
		})
	})
}

// A call waits for its share of a silent peer no longer than its own timeout.
func TestBreakerWaitIsBoundedByTimeout(t *testing.T) {
	parallel(t)
	for name, tt := range map[string]struct{ others, own time.Duration }{
		"short behind default": {0, time.Second},
		"short behind short":   {time.Second, time.Second},
		"default behind long":  {time.Minute, 10 * time.Second},
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
					t.Errorf("the call took %v, its timeout is %v", took, tt.own)
				}
				wg.Wait()
			})
		})
	}
}

// The breaker also opens for calls with short timeouts.
func TestSilentPeerWithShortTimeouts(t *testing.T) {
	parallel(t)
	for name, call := range map[string]func(*testing.T, *clustertest.Node){
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
				waited := 0
				for range 100 {
					start := time.Now()
					call(t, n)
					if time.Since(start) > 0 {
						waited++
					}
					time.Sleep(2 * time.Second)
				}
				if waited > 50 {
					t.Errorf("%d of 100 calls waited for the peer", waited)
				}
			})
		})
	}
}

// A request that was rejected may be a waiter of a breaker that is still closed, so the text claims
// a probe only if the breaker has scheduled one.
func TestCircuitOpenErrorText(t *testing.T) {
	for want, err := range map[string]cluster.CircuitOpenError{
		`peer "node-2": circuit open (no response for 5s, next probe in 2s)`: {ServerID: "node-2", SilentFor: 5 * time.Second, RetryIn: 2 * time.Second},
		`peer "node-2": circuit open (no response for 5s)`:                   {ServerID: "node-2", SilentFor: 5 * time.Second},
	} {
		if got := err.Error(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// callAndTime makes one call, and returns the kind of the failing peer and the duration of the
// call.
func callAndTime(t *testing.T, n *clustertest.Node, req cluster.Request) string {
	t.Helper()
	if req.Path == "" {
		req.Path = "/things"
	}
	start := time.Now()
	res := rpc(t, n, req)
	took := time.Since(start)
	kind := cluster.Kind("ok")
	for _, o := range res.Failures {
		kind = o.Kind
		open, ok := errors.AsType[*cluster.CircuitOpenError](o.Err)
		if ok != (o.Kind == cluster.KindCircuitOpen) || ok && (o.Attempts != 0 || open.ServerID != o.Server.ServerID || open.SilentFor < 0 || o.Evicted || o.EvictionSkipped != nil) {
			t.Errorf("%s: %v after %d attempts, evicted %t, skipped: %v", o.Kind, o.Err, o.Attempts, o.Evicted, o.EvictionSkipped)
		}
	}
	return fmt.Sprintf("%s in %v", kind, took)
}
