package cluster_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/mit"
)

// The npm module does what it is told, and is no longer in its own view.
func TestReportedAsDepartedRegistersAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		n := w.Nodes[0]
		time.Sleep(10 * time.Minute)
		for _, peer := range w.Nodes[1:] {
			reportDeparture(t, w, peer, n.ID)
			wantView(t, peer, "node-2", "node-3")
		}
		l := recordRequests(w)
		reportDeparture(t, w, n, n.ID)
		synctest.Wait()

		wantView(t, n, "node-1", "node-2", "node-3")
		if got := len(l.renewals(n)); got != 1 {
			t.Errorf("%d POSTs at once, want one", got)
		}
		for _, peer := range w.Nodes[1:] {
			wantView(t, peer, "node-1", "node-2", "node-3")
		}
		wantState(t, n, cluster.Registered)
	})
}

// Whoever keeps telling a node that it is gone must not make it hammer mIT.
func TestReportedAsDepartedRepeatedly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Nodes[0]
		l := recordRequests(w)
		for range 300 {
			reportDeparture(t, w, n, n.ID)
			time.Sleep(200 * time.Millisecond)
		}
		synctest.Wait()
		if got := len(l.renewals(n)); got < 15 || got > 21 {
			t.Errorf("%d POSTs in a minute, want one every RegistrationRetry", got)
		}
		wantState(t, n, cluster.Registered)
		wantView(t, n, "node-1", "node-2")
	})
}

// A node that has left is not called back by being told that it is gone.
func TestReportedAsDepartedAfterLeaving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Nodes[0]
		n.UnRegister(t.Context())
		l := recordRequests(w)
		reportDeparture(t, w, n, n.ID)
		time.Sleep(24 * time.Hour)
		if got := len(l.renewals(n)); got != 0 {
			t.Errorf("%d POSTs of a node that has left", got)
		}
		wantState(t, n, cluster.Left)
	})
}

// Somebody else had mIT delete this node, in good faith: for a while it could not be reached.
// Peers learn from the node itself that it is there.
func TestEvictedWhileAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		n, other := w.Nodes[0], w.Nodes[1]
		time.Sleep(5 * time.Minute)
		w.Network.Cut(n.Host, other.Host)
		if _, err := other.RPCluster(t.Context(), cluster.Request{Path: "/things"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // the word spreads
		w.Network.Heal()
		wantView(t, other, "node-2", "node-3")
		wantView(t, w.Nodes[2], "node-2", "node-3")
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-2", "node-3"}) {
			t.Fatalf("mIT lists %q", got)
		}
		wantView(t, n, "node-1", "node-2", "node-3")

		l := recordRequests(w)
		renewed := make(chan struct{}, 1)
		w.Network.Fault(n.Host, clustertest.RegistryHost, signal(renewed, clustertest.FirstN(0, clustertest.Refuse)))
		<-renewed
		synctest.Wait()
		for _, peer := range w.Nodes[1:] {
			if got := len(l.announcements(n, peer.Host)); got != 1 {
				t.Errorf("%d announcements to %s, want one", got, peer.ID)
			}
			wantView(t, peer, "node-1", "node-2", "node-3")
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if got := len(l.announcements(n, other.Host)); got != 1 {
			t.Errorf("%d announcements in a day, want one", got)
		}
	})
}

// A restart of an mIT that keeps all in its memory.
func TestRegistryReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		w.ResetRegistry()
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-1", "node-2", "node-3"}) {
			t.Errorf("mIT lists %q", got)
		}
		for _, n := range w.Nodes {
			wantState(t, n, cluster.Registered)
			wantView(t, n, "node-1", "node-2", "node-3")
		}
	})
}

// While a registry that lost its memory fills again, nobody loses sight of anybody: who has renewed
// keeps those that have yet to, for a lease.
func TestViewsStayCompleteAfterReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lease = time.Hour
		w := clustertest.Start(t, 5, clustertest.WithLease(lease))
		time.Sleep(lease) // all have renewed, and know each other from mIT
		dead := w.Nodes[4]
		dead.Kill()
		l := recordRequests(w)
		w.ResetRegistry()
		began, shortest := time.Now(), 5
		for time.Since(began) < 3*lease {
			time.Sleep(time.Minute)
			if listed := len(w.Registered()); listed > 0 {
				shortest = min(shortest, listed)
			}
			for _, n := range w.Nodes[:4] {
				got := idsOf(n.Servers())
				if len(got) == 5 && time.Since(began) < 5*lease/2 { // the dead one, which nobody has missed yet
					got = got[:4]
				}
				if !cmp.Equal(got, []string{"node-1", "node-2", "node-3", "node-4"}) {
					t.Fatalf("after %v %s knows %q", time.Since(began), n.ID, idsOf(n.Servers()))
				}
			}
		}
		if shortest > 2 {
			t.Errorf("mIT listed at least %d servers at any time: that shows nothing", shortest)
		}
		for _, n := range w.Nodes[:4] {
			if got := len(l.announcements(n, w.Nodes[0].Host)) + len(l.announcements(n, w.Nodes[1].Host)); got == 0 {
				t.Errorf("%s, whose entry is a new one, announced itself to nobody", n.ID)
			}
		}
	})
}

// Some renew soon again, because they are hurried, or others late, as npm nodes do, which let the whole
// lease pass.
func TestUnevenRenewalsAfterReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const nodes, lease = 5, time.Hour
		w := clustertest.Start(t, nodes, clustertest.WithLease(lease))
		time.Sleep(3 * lease)
		w.ResetRegistry()
		late := w.Nodes[4].Host
		w.Network.Fault(late, clustertest.RegistryHost, clustertest.Refuse)
		time.AfterFunc(lease*9/10, func() { w.Network.Fault(late, clustertest.RegistryHost, nil) })
		if _, err := w.Nodes[0].Register(t.Context()); err != nil { // and the lease renews once more
			t.Fatal(err)
		}
		for began := time.Now(); time.Since(began) < 3*lease; time.Sleep(time.Minute) {
			for _, n := range w.Nodes {
				if got := len(n.Servers()); got != nodes {
					t.Fatalf("after %v %s knows %d servers", time.Since(began), n.ID, got)
				}
			}
		}
	})
}

// Of a peer that has renewed already a node may know before it renews itself: that mIT remembers such
// a one does not show that it remembers anybody from before.
func TestPeerLearnedAfterReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := startVerified(t, 5)
		n, peer := w.Nodes[0], w.Nodes[1]
		time.Sleep(time.Minute) // all are quiet
		w.ResetRegistry()
		renewUnnoticed(t, w, n, peer)
		w.Network.Fault(n.Host, peer.Host, clustertest.FirstN(2, clustertest.Refuse)) // so that n learns mIT's entry
		if res := rpc(t, n, cluster.Request{Path: "/things"}); len(res.Results) != 4 {
			t.Fatalf("%v", failures(res))
		}
		reportDeparture(t, w, n, n.ID) // so that it renews at once
		synctest.Wait()
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-1", "node-2"}) {
			t.Errorf("mIT lists %q", got)
		}
		wantView(t, n, "node-1", "node-2", "node-3", "node-4", "node-5")
	})
}

// Whom an mIT that lost its memory does not list is kept by those who knew it, but not spread; if it
// is dead, the first call that asks it has it evicted.
func TestRetainedPeersAreNotAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		time.Sleep(time.Hour) // all have renewed, and know each other from mIT
		n, other, dead := w.Nodes[0], w.Nodes[1], w.Nodes[2]
		dead.Kill()
		reportDeparture(t, w, other, dead.ID)
		w.ResetRegistry()
		reportDeparture(t, w, n, n.ID) // so that it renews at once
		synctest.Wait()
		wantView(t, n, "node-1", "node-2", "node-3")
		wantView(t, other, "node-1", "node-2")
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-1"}) {
			t.Errorf("mIT lists %q", got)
		}
		if o := singleFailure(t, rpc(t, n, cluster.Request{Path: "/things"})); o.Server.ServerID != dead.ID || !o.Evicted {
			t.Errorf("%s: evicted %t, spared %v", o.Server.ServerID, o.Evicted, o.EvictionSkipped)
		}
		wantView(t, n, "node-1", "node-2")
	})
}

// An mIT that seems to forget everybody all the time is believed a lease later.
func TestRetainedPeersExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3, clustertest.WithStore(recreatingStore{mit.NewMemory()}),
			clustertest.WithOptions(cluster.WithEviction(cluster.Eviction{Disabled: true})))
		time.Sleep(time.Hour)
		w.Nodes[2].Kill()
		time.Sleep(4 * time.Hour) // its lease and the grace, and two renewals of the others
		wantView(t, w.Nodes[0], "node-1", "node-2")
		wantView(t, w.Nodes[1], "node-1", "node-2")
	})
}

// An mIT that forgot this node, but not the others, is right about them.
func TestOnlyOwnEntryLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := mit.NewMemory()
		w := clustertest.Start(t, 4, clustertest.WithStore(store))
		time.Sleep(time.Hour)
		n, dead := w.Nodes[0], w.Nodes[3]
		dead.Kill()
		for _, forgotten := range []*clustertest.Node{n, dead} {
			if err := store.Delete(t.Context(), mit.ResourceID("mds"), forgotten.ID); err != nil {
				t.Fatal(err)
			}
		}
		reportDeparture(t, w, n, n.ID) // so that it renews at once
		synctest.Wait()
		wantView(t, n, "node-1", "node-2", "node-3")
	})
}

// A newborn is a store that makes every entry anew whenever it is renewed.
type recreatingStore struct{ *mit.Memory }

func (s recreatingStore) Put(ctx context.Context, reg mit.Registration, life time.Duration) (mit.Resource, error) {
	if err := s.Delete(ctx, mit.ResourceID(reg.Type), reg.ServerID); err != nil {
		return mit.Resource{}, err
	}
	return s.Memory.Put(ctx, reg, life)
}
