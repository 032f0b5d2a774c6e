package cluster_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

// watch collects the changes of the view as texts, and waits for the given time after each.
func watch(ctx context.Context, c *cluster.Cluster, pause time.Duration) (changes *recordedOrder, done <-chan struct{}) {
	changes, ended := &recordedOrder{}, make(chan struct{})
	go func() {
		defer close(ended)
		for change := range c.Watch(ctx) {
			changes.record(fmt.Sprintf("%s %s by %s", change.Server.ServerID, change.Kind, change.Source))
			time.Sleep(pause)
		}
	}()
	return changes, ended
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Nodes[0]
		changes, closed := watch(t.Context(), n.Cluster, 0)
		ctx, cancel := context.WithCancel(t.Context())
		_, canceled := watch(ctx, n.Cluster, 0)
		wantChanges := func(what string, want ...string) {
			t.Helper()
			synctest.Wait()
			wantTexts(t, what, changes.take(), want...)
		}
		wantChanges("the view at the start", "node-1 joined by registry", "node-2 joined by announcement")
		if got := idsOf(n.Peers()); !slices.Equal(got, []string{"node-2"}) {
			t.Errorf("the peers are %q", got)
		}

		w.Join()
		wantChanges("a node joins", "node-3 joined by announcement")
		time.Sleep(2 * time.Hour) // several renewals
		wantChanges("no change")
		w.Nodes[1].Kill()
		rpc(t, n, cluster.Request{Path: "/things"})
		wantChanges("a node is evicted", "node-2 left by eviction")
		w.Nodes[1].Restart()
		wantChanges("it is back", "node-2 joined by announcement")
		w.Nodes[2].UnRegister(t.Context())
		wantChanges("a node leaves", "node-3 left by departure")

		w.Nodes[1].Move("elsewhere:8080")
		w.Nodes[1].Restart()
		wantChanges("a node moves", "node-2 moved by announcement")
		w.Nodes[1].Kill()
		time.Sleep(3 * time.Hour) // until its lease has expired and this node has renewed
		wantChanges("an entry expires", "node-2 left by registry")

		cancel()
		<-canceled
		n.Close()
		<-closed
		for range n.Watch(t.Context()) {
			t.Error("a closed node has changes")
		}
	})
}

// A consumer that breaks out of the loop is forgotten.
func TestWatchBreak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		for range w.Nodes[0].Watch(t.Context()) {
			break
		}
		if got := cluster.Watchers(w.Nodes[0].Cluster); got != 0 {
			t.Errorf("%d consumers are left", got)
		}
	})
}

// Changes are merged while the consumer is busy: what cancels out is not yielded, and what is
// yielded is the difference to what it knows.
func TestWatchMergesChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.RequestTimeout = time.Second }))
		n := w.Nodes[0]
		changes, _ := watch(t.Context(), n.Cluster, time.Minute)
		synctest.Wait() // it has got the first of two changes
		for i := range 100 {
			announce(t, w, n, announcement(fmt.Sprint("visitor-", i)))
			reportDeparture(t, w, n, fmt.Sprint("visitor-", i))
		}
		reportDeparture(t, w, n, "node-2")
		announce(t, w, n, resourceWithDate("2030-01-01T00:00:00.000Z", "node-2"))
		announce(t, w, n, announcement("visitor-7"))
		time.Sleep(10 * time.Minute)
		wantTexts(t, "changes", changes.take(), "node-1 joined by registry", "node-2 joined by announcement", "visitor-7 joined by announcement")
	})
}

// Whatever happens, and however slow a consumer is, applying the changes leads to the view.
func TestWatchConverges(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 2, clustertest.WithLease(time.Minute))
			n := w.Nodes[0]
			known := map[string]string{}
			pauses := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "pauses"), 0))
			go func() {
				for change := range n.Watch(t.Context()) {
					id := change.Server.ServerID
					if _, isKnown := known[id]; isKnown == (change.Kind == cluster.ServerJoined) || change.Source == "" || change.Time.IsZero() {
						t.Errorf("%+v, known %t", change, isKnown)
					}
					if known[id] = change.Server.ClusterBaseURL; change.Kind == cluster.ServerLeft {
						delete(known, id)
					}
					time.Sleep(time.Duration(pauses.IntN(int(20 * time.Second))))
				}
			}()
			for range rapid.IntRange(1, 40).Draw(rt, "events") {
				disturb(rt, w, n)
			}
			time.Sleep(time.Hour) // the consumer catches up, and leases expire
			synctest.Wait()
			view := map[string]string{}
			for _, s := range n.Servers() {
				view[s.ServerID] = s.ClusterBaseURL
			}
			if !maps.Equal(known, view) {
				t.Errorf("the consumer knows %v, the view is %v", known, view)
			}
			n.Close()
		})
	})
}

// disturb makes the view of n change, or lets time pass.
func disturb(rt *rapid.T, w *clustertest.World, n *clustertest.Node) {
	others := w.Nodes[1:]
	other := others[rapid.IntRange(0, len(others)-1).Draw(rt, "node")]
	switch rapid.SampledFrom([]string{"join", "kill", "restart", "move", "leave", "call", "renew", "reset", "wait"}).Draw(rt, "event") {
	case "join":
		if len(w.Nodes) < 6 {
			w.Join()
		}
	case "kill":
		other.Kill()
	case "restart":
		other.Restart()
	case "move":
		other.Move(fmt.Sprintf("host-%d:8080", rapid.IntRange(0, 99).Draw(rt, "host")))
		other.Restart()
	case "leave":
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		other.UnRegister(ctx)
		cancel()
	case "call":
		for range n.Stream(context.Background(), cluster.Request{Path: "/things"}) {
		}
	case "renew":
		_, _ = n.Register(context.Background())
	case "reset":
		w.ResetRegistry()
	case "wait":
		time.Sleep(time.Duration(rapid.IntRange(1, 90).Draw(rt, "seconds")) * time.Second)
	}
}
