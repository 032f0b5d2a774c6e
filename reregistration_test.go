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

// A node that a peer reports as departed stays in its own view, and registers again at once. The
// npm module removes itself from its view.
func TestReportedAsDepartedRegistersAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		n := w.Nodes[0]
		time.Sleep(10 * time.Minute)
		for _, peer := range w.Nodes[1:] {
			reportDeparture(t, w, peer, n.ID)
			wantView(t, peer, "node-2", "node-3")
		}
		requests := recordRequests(w)
		reportDeparture(t, w, n, n.ID)
		synctest.Wait()

		wantView(t, n, "node-1", "node-2", "node-3")
		if got := len(requests.renewals(n)); got != 1 {
			t.Errorf("%d POSTs at once, want one", got)
		}
		for _, peer := range w.Nodes[1:] {
			wantView(t, peer, "node-1", "node-2", "node-3")
		}
		wantState(t, n, cluster.Registered)
	})
}

// Repeated reports do not make the node register more often than every RegistrationRetry.
func TestReportedAsDepartedRepeatedly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Nodes[0]
		requests := recordRequests(w)
		for range 300 {
			reportDeparture(t, w, n, n.ID)
			time.Sleep(200 * time.Millisecond)
		}
		synctest.Wait()
		if got := len(requests.renewals(n)); got < 15 || got > 21 {
			t.Errorf("%d POSTs in a minute, want one every RegistrationRetry", got)
		}
		wantState(t, n, cluster.Registered)
		wantView(t, n, "node-1", "node-2")
	})
}

// A node that has left does not register when it is reported as departed.
func TestReportedAsDepartedAfterLeaving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Nodes[0]
		n.UnRegister(t.Context())
		requests := recordRequests(w)
		reportDeparture(t, w, n, n.ID)
		time.Sleep(24 * time.Hour)
		if got := len(requests.renewals(n)); got != 0 {
			t.Errorf("%d POSTs of a node that has left", got)
		}
		wantState(t, n, cluster.Left)
	})
}

// A node that was evicted because a peer could not reach it announces itself at its next renewal.
func TestEvictedWhileAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		n, other := w.Nodes[0], w.Nodes[1]
		time.Sleep(5 * time.Minute)
		w.Network.Cut(n.Host, other.Host)
		if _, err := other.RPCluster(t.Context(), cluster.Request{Path: "/things"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // the broadcast
		w.Network.Heal()
		wantView(t, other, "node-2", "node-3")
		wantView(t, w.Nodes[2], "node-2", "node-3")
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-2", "node-3"}) {
			t.Fatalf("the registry lists %q", got)
		}
		wantView(t, n, "node-1", "node-2", "node-3")

		requests := recordRequests(w)
		renewed := make(chan struct{}, 1)
		w.Network.Fault(n.Host, clustertest.RegistryHost, signal(renewed, clustertest.FirstN(0, clustertest.Refuse)))
		<-renewed
		synctest.Wait()
		for _, peer := range w.Nodes[1:] {
			if got := len(requests.announcements(n, peer.Host)); got != 1 {
				t.Errorf("%d announcements to %s, want one", got, peer.ID)
			}
			wantView(t, peer, "node-1", "node-2", "node-3")
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if got := len(requests.announcements(n, other.Host)); got != 1 {
			t.Errorf("%d announcements in a day, want one", got)
		}
	})
}

// Nodes are listed again within a lease after the registry has lost its data.
func TestRegistryReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		w.ResetRegistry()
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-1", "node-2", "node-3"}) {
			t.Errorf("the registry lists %q", got)
		}
		for _, n := range w.Nodes {
			wantState(t, n, cluster.Registered)
			wantView(t, n, "node-1", "node-2", "node-3")
		}
	})
}

// After a reset no view lacks a running node: nodes that have renewed retain the others for a
// lease.
func TestViewsStayCompleteAfterReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const lease = time.Hour
		w := clustertest.Start(t, 5, clustertest.WithLease(lease))
		time.Sleep(lease) // all have renewed, and have each other from the registry
		dead := w.Nodes[4]
		dead.Kill()
		requests := recordRequests(w)
		w.ResetRegistry()
		began, shortest := time.Now(), 5
		for time.Since(began) < 3*lease {
			time.Sleep(time.Minute)
			if listed := len(w.Registered()); listed > 0 {
				shortest = min(shortest, listed)
			}
			for _, n := range w.Nodes[:4] {
				got := idsOf(n.Servers())
				if len(got) == 5 && time.Since(began) < 5*lease/2 { // the dead node, which is still retained
					got = got[:4]
				}
				if !cmp.Equal(got, []string{"node-1", "node-2", "node-3", "node-4"}) {
					t.Fatalf("after %v %s knows %q", time.Since(began), n.ID, idsOf(n.Servers()))
				}
			}
		}
		if shortest > 2 {
			t.Errorf("the registry always listed at least %d servers: the test shows nothing", shortest)
		}
		for _, n := range w.Nodes[:4] {
			if got := len(requests.announcements(n, w.Nodes[0].Host)) + len(requests.announcements(n, w.Nodes[1].Host)); got == 0 {
				t.Errorf("%s has a new entry, but did not announce itself", n.ID)
			}
		}
	})
}

// After a reset some nodes renew twice, and others only at the end of the lease, as nodes of the
// npm module do. No view lacks a node meanwhile.
func TestUnevenRenewalsAfterReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const nodes, lease = 5, time.Hour
		w := clustertest.Start(t, nodes, clustertest.WithLease(lease))
		time.Sleep(3 * lease)
		w.ResetRegistry()
		late := w.Nodes[4].Host
		w.Network.Fault(late, clustertest.RegistryHost, clustertest.Refuse)
		time.AfterFunc(lease*9/10, func() { w.Network.Fault(late, clustertest.RegistryHost, nil) })
		// The lease goroutine renews once more.
		if _, err := w.Nodes[0].Register(t.Context()); err != nil {
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

// After a reset a node may learn the new entry of a peer before it renews itself. That the registry
// has this entry does not show that it kept its data.
func TestPeerLearnedAfterReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := startVerified(t, 5)
		n, peer := w.Nodes[0], w.Nodes[1]
		time.Sleep(time.Minute) // triggered renewals have ended
		w.ResetRegistry()
		renewUnnoticed(t, w, n, peer)
		// So that n learns the entry of the registry.
		w.Network.Fault(n.Host, peer.Host, clustertest.FirstN(2, clustertest.Refuse))
		if res := rpc(t, n, cluster.Request{Path: "/things"}); len(res.Results) != 4 {
			t.Fatalf("%v", failures(res))
		}
		reportDeparture(t, w, n, n.ID) // triggers a renewal
		synctest.Wait()
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-1", "node-2"}) {
			t.Errorf("the registry lists %q", got)
		}
		wantView(t, n, "node-1", "node-2", "node-3", "node-4", "node-5")
	})
}

// A node that retains a peer after a reset does not announce it to others. If the peer is dead, the
// first call evicts it.
func TestRetainedPeersAreNotAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		time.Sleep(time.Hour) // all have renewed, and have each other from the registry
		n, other, dead := w.Nodes[0], w.Nodes[1], w.Nodes[2]
		dead.Kill()
		reportDeparture(t, w, other, dead.ID)
		w.ResetRegistry()
		reportDeparture(t, w, n, n.ID) // triggers a renewal
		synctest.Wait()
		wantView(t, n, "node-1", "node-2", "node-3")
		wantView(t, other, "node-1", "node-2")
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-1"}) {
			t.Errorf("the registry lists %q", got)
		}
		if o := singleFailure(t, rpc(t, n, cluster.Request{Path: "/things"})); o.Server.ServerID != dead.ID || !o.Evicted {
			t.Errorf("%s: evicted %t, skipped: %v", o.Server.ServerID, o.Evicted, o.EvictionSkipped)
		}
		wantView(t, n, "node-1", "node-2")
	})
}

// Retained peers expire after a lease, even if the registry seems to be reset at each renewal.
func TestRetainedPeersExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3, clustertest.WithStore(recreatingStore{mit.NewMemory()}),
			clustertest.WithOptions(cluster.WithEviction(cluster.Eviction{Disabled: true})))
		time.Sleep(time.Hour)
		w.Nodes[2].Kill()
		// The lease and the grace period of the dead node, and two renewals of the others.
		time.Sleep(4 * time.Hour)
		wantView(t, w.Nodes[0], "node-1", "node-2")
		wantView(t, w.Nodes[1], "node-1", "node-2")
	})
}

// A registry that lost only the entry of this node was not reset, so other missing peers are not
// retained.
func TestOnlyOwnEntryLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := mit.NewMemory()
		w := clustertest.Start(t, 4, clustertest.WithStore(store))
		time.Sleep(time.Hour)
		n, dead := w.Nodes[0], w.Nodes[3]
		dead.Kill()
		for _, deleted := range []*clustertest.Node{n, dead} {
			if err := store.Delete(t.Context(), mit.ResourceID("mds"), deleted.ID); err != nil {
				t.Fatal(err)
			}
		}
		reportDeparture(t, w, n, n.ID) // triggers a renewal
		synctest.Wait()
		wantView(t, n, "node-1", "node-2", "node-3")
	})
}

// A recreatingStore creates the entry of a server again at each renewal.
type recreatingStore struct{ *mit.Memory }

func (s recreatingStore) Put(ctx context.Context, reg mit.Registration, ttl time.Duration) (mit.Resource, error) {
	if err := s.Delete(ctx, mit.ResourceID(reg.Type), reg.ServerID); err != nil {
		return mit.Resource{}, err
	}
	return s.Memory.Put(ctx, reg, ttl)
}
