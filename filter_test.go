package cluster_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

func TestFilter(t *testing.T) {
	for name, tt := range map[string]struct {
		filter func(cluster.Server) bool
		want   []string
	}{
		"none":         {nil, []string{"node-2", "node-3", "node-4", "node-5"}},
		"some":         {onlyIDs("node-4", "node-2"), []string{"node-2", "node-4"}},
		"the node":     {onlyIDs("node-1", "node-2"), []string{"node-2"}},
		"unknown peer": {onlyIDs("node-9"), []string{}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 5)
				n := w.Nodes[0]
				requests := recordRequests(w)
				res := rpc(t, n, cluster.Request{Path: "/things", Filter: tt.filter})
				if diff := cmp.Diff(tt.want, idsOfOutcomes(res.Results)); diff != "" || len(res.Failures) != 0 {
					t.Errorf("results (-want +got):\n%s\nfailures: %v", diff, failures(res))
				}
				if got := len(requests.matching("GET", n.Host, clustertest.Any)); got != len(tt.want) {
					t.Errorf("%d requests for %d peers", got, len(tt.want))
				}
			})
		})
	}
}

// The filter is called once for each peer, and not for the node itself.
func TestFilterSeesEachPeerOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 4)
		var seen []string
		rpc(t, w.Nodes[1], cluster.Request{Path: "/things", Filter: func(s cluster.Server) bool {
			seen = append(seen, s.ServerID)
			return true
		}})
		if diff := cmp.Diff([]string{"node-1", "node-3", "node-4"}, seen); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// A call that selects one or two of many peers evicts none of them. Otherwise an isolated node that
// calls its peers one by one would evict them all.
func TestFilteredCallNeedsEnoughPeersToEvict(t *testing.T) {
	for name, tt := range map[string]struct {
		nodes   int
		filter  func(cluster.Server) bool
		evicted bool
	}{
		"one of four":                 {5, onlyIDs("node-3"), false},
		"two of four":                 {5, onlyIDs("node-3", "node-4"), false},
		"three of four":               {5, onlyIDs("node-2", "node-3", "node-4"), true},
		"all of four":                 {5, func(cluster.Server) bool { return true }, true},
		"one of two":                  {3, onlyIDs("node-3"), true}, // no call could select more than two
		"one of one, which is all":    {2, onlyIDs("node-2"), true},
		"three of four, most of them": {5, onlyIDs("node-3", "node-4", "node-5"), false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := startVerified(t, tt.nodes)
				n := w.Nodes[0]
				dead := w.Nodes[min(2, tt.nodes-1)]
				dead.Kill()
				if strings.HasSuffix(name, "most of them") {
					w.Nodes[3].Kill()
				}
				res := rpc(t, n, cluster.Request{Path: "/things", Filter: tt.filter})
				for _, o := range res.Failures {
					if o.Evicted != tt.evicted || (o.EvictionSkipped == nil) != tt.evicted {
						t.Errorf("%s: evicted %t, skipped: %v", o.Server.ServerID, o.Evicted, o.EvictionSkipped)
					}
				}
				if len(res.Failures) == 0 {
					t.Error("no peer failed")
				}
			})
		})
	}
}

// Once MinResults peers have answered, the requests to the others are canceled.
func TestMinResults(t *testing.T) {
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
		wantOneOutcomeEach(t, res, w.Nodes[1:])
		if diff := cmp.Diff([]string{"node-2", "node-4", "node-5"}, idsOfOutcomes(res.Results)); diff != "" {
			t.Errorf("results (-want +got):\n%s", diff)
		}
		for _, o := range res.Failures {
			canceled := o.Server.ServerID != "node-3"
			if errors.Is(o.Err, cluster.ErrEnoughResults) != canceled || (o.Kind == cluster.KindCanceled) != canceled || o.Evicted || o.EvictionSkipped != nil {
				t.Errorf("%s: %s, %v, evicted %t, skipped: %v", o.Server.ServerID, o.Kind, o.Err, o.Evicted, o.EvictionSkipped)
			}
		}
		if len(n.Servers()) != 7 {
			t.Error("canceled peers were evicted")
		}
	})
}

// Once MinResults is reached no further request begins.
func TestMinResultsLimitsRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 20, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = 2 }))
		n := w.Nodes[0]
		w.Network.Fault(n.Host, clustertest.Any, clustertest.Delay(time.Second))
		requests := recordRequests(w)
		res := rpc(t, n, cluster.Request{Path: "/things", MinResults: 4})
		wantOneOutcomeEach(t, res, w.Nodes[1:])
		canceled := 0
		for _, o := range res.Failures {
			canceled += o.Attempts
		}
		if got := len(requests.matching("GET", n.Host, clustertest.Any)); len(res.Results) != 4 || got > 4+canceled || canceled > 2 {
			t.Errorf("%d results of %d requests, %d of them canceled", len(res.Results), got, canceled)
		}
	})
}

func TestMinResultsNotReached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := startVerified(t, 5)
		w.Nodes[2].Kill()
		res := rpc(t, w.Nodes[0], cluster.Request{Path: "/things", MinResults: 4})
		if o := singleFailure(t, res); len(res.Results) != 3 || !o.Evicted {
			t.Errorf("%d results, evicted %t", len(res.Results), o.Evicted)
		}
	})
}

// A failure before MinResults is reached does not evict: the call does not wait for the registry.
func TestMinResultsSkipsEviction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := startVerified(t, 5)
		n := w.Nodes[0]
		w.Nodes[2].Kill()
		for _, peer := range []int{1, 3, 4} {
			w.Network.Fault(n.Host, w.Nodes[peer].Host, clustertest.Delay(time.Second))
		}
		requests := recordRequests(w)
		o := singleFailure(t, rpc(t, n, cluster.Request{Path: "/things", MinResults: 3}))
		if o.Kind != cluster.KindRefused || o.Evicted || !errors.Is(o.EvictionSkipped, cluster.ErrEnoughResults) {
			t.Errorf("%s, evicted %t, skipped: %v", o.Kind, o.Evicted, o.EvictionSkipped)
		}
		if got := len(requests.deletes(n)); got != 0 {
			t.Errorf("the registry received %d deletes", got)
		}
	})
}
