package cluster_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

func TestStream(t *testing.T) {
	t.Run("outcomes come as they arrive, suspects last", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 6)
			n := w.Nodes[0]
			w.Network.Fault(n.Host, w.Nodes[1].Host, clustertest.Delay(3*time.Second))
			w.Network.Fault(n.Host, w.Nodes[2].Host, clustertest.Refuse)
			w.Network.Fault(n.Host, w.Nodes[3].Host, clustertest.Chain(clustertest.Delay(2*time.Second), clustertest.Status(500)))
			w.Network.Fault(n.Host, w.Nodes[5].Host, clustertest.Delay(time.Second))
			type arrival struct {
				ID string
				At time.Duration
			}
			var got []arrival
			start := time.Now()
			for o := range n.Stream(t.Context(), cluster.Request{Path: "/things"}) {
				got = append(got, arrival{o.Server.ServerID, time.Since(start)})
				if dead := o.Server.ServerID == "node-3"; dead != o.Evicted {
					t.Errorf("%s: evicted %t", o.Server.ServerID, o.Evicted)
				}
			}
			want := []arrival{{"node-5", 0}, {"node-6", time.Second}, {"node-4", 2 * time.Second}, {"node-2", 3 * time.Second}, {"node-3", 3 * time.Second}}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	})
	t.Run("a break cancels the other requests", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 6)
			n := w.Nodes[0]
			w.Network.Fault(n.Host, w.Nodes[1].Host, clustertest.Delay(time.Second))
			for _, peer := range w.Nodes[2:] {
				w.Network.Fault(n.Host, peer.Host, clustertest.Hang)
			}
			requests := recordRequests(w)
			start := time.Now()
			for o := range n.Stream(t.Context(), cluster.Request{Path: "/things"}) {
				if o.Server.ServerID != "node-2" {
					t.Errorf("%s came first: %v", o.Server.ServerID, o.Err)
				}
				break
			}
			if took := time.Since(start); took != time.Second {
				t.Errorf("took %v", took)
			}
			canceled := 0 // the break has waited for its requests
			for _, x := range requests.matching("GET", n.Host, clustertest.Any) {
				if x.To != w.Nodes[1].Host {
					canceled++
					if !errors.Is(x.Err, context.Canceled) {
						t.Errorf("the request to %s ended with %v", x.To, x.Err)
					}
				}
			}
			if canceled != 4 {
				t.Errorf("%d of 4 silent requests are canceled", canceled)
			}
			time.Sleep(time.Minute)
			if len(n.Servers()) != 6 {
				t.Error("peers of a canceled call were evicted")
			}
		})
	})
	t.Run("an invalid request", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 3)
			requests := recordRequests(w)
			got := slices.Collect(w.Nodes[0].Stream(t.Context(), cluster.Request{Path: "things"}))
			if len(got) != 1 || got[0].Err == nil || got[0].Kind != cluster.KindInvalid || got[0].Server.ServerID != "" {
				t.Errorf("got %+v", got)
			}
			if all := requests.sentBy(w.Nodes[0]); len(all) != 0 {
				t.Errorf("%d requests were made", len(all))
			}
		})
	})
	t.Run("a sequence can be used twice", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 3)
			seq := w.Nodes[0].Stream(t.Context(), cluster.Request{Path: "/things"})
			w.Join()
			for range 2 {
				if got := len(slices.Collect(seq)); got != 3 {
					t.Errorf("%d outcomes, want those of the current peers", got)
				}
			}
		})
	})
}

func TestStreamWithMinResults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 6)
		n := w.Nodes[0]
		for _, peer := range w.Nodes[3:] {
			w.Network.Fault(n.Host, peer.Host, clustertest.Hang)
		}
		var results, canceled int
		for o := range n.Stream(t.Context(), cluster.Request{Path: "/things", MinResults: 2}) {
			switch {
			case o.Err == nil:
				results++
			case errors.Is(o.Err, cluster.ErrEnoughResults):
				canceled++
			}
		}
		if results != 2 || canceled != 3 {
			t.Errorf("%d results, %d canceled", results, canceled)
		}
	})
}
