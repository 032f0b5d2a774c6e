package cluster_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/mit"
)

// A renewal that fails is retried after RegistrationRetry. The npm module waits a whole lease,
// after which the registry no longer lists the node.
func TestFailedRenewalIsRetriedWithinTheLease(t *testing.T) {
	parallel(t)
	faults := map[string]clustertest.Fault{
		"refused": clustertest.Refuse, "hanging": clustertest.Hang, "reset": clustertest.Reset,
		"500": clustertest.Status(500), "429": clustertest.Status(429), "404": clustertest.Status(404),
		"malformed": respondOK("<html>"), "truncated": clustertest.Truncate(20), "stalled": clustertest.Stall(20),
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var hooks traceLog
				w := clustertest.Start(t, 1)
				n := w.Join(cluster.WithTrace(hooks.trace()))
				requests := recordRequests(w)
				w.Network.Fault(n.Host, clustertest.RegistryHost, clustertest.FirstN(1, fault))
				time.Sleep(59 * time.Minute)
				synctest.Wait()
				if got, want := hooks.states(), []string{"orphan→registered", "registered→degraded", "degraded→registered"}; !cmp.Equal(got, want) {
					t.Errorf("the states were %q, want %q", got, want)
				}
				if got := len(requests.renewals(n)); got != 2 {
					t.Errorf("%d attempts, want one that fails and one that succeeds", got)
				}
				degraded, registered := hooks.changes(cluster.Degraded), hooks.changes(cluster.Registered)
				if took := registered[1].at.Sub(degraded[0].at); took > 4*time.Second {
					t.Errorf("it took %v from the failure to the next success, want RegistrationRetry", took)
				}
				if got := degraded[0].status.Env()["REGISTRATION_STATUS"]; got != "registered" {
					t.Errorf("REGISTRATION_STATUS of a degraded node is %q", got)
				}
				if len(requests.announcements(n, clustertest.Any)) != 0 {
					t.Error("it announced itself, although its peers did not lose it")
				}
			})
		})
	}
}

// In a long outage the pauses between attempts grow to half a minute, so that nodes register soon
// after it.
func TestRetriesBackOff(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1)
		n := w.Nodes[0]
		requests := recordRequests(w)
		registryDown(w)
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		between := intervals(requests.renewals(n)) // the first attempt is the recheck
		if between[0] < 2*time.Second || between[0] > 4*time.Second {
			t.Errorf("the first pause was %v, want RegistrationRetry, jittered", between[0])
		}
		for _, gap := range between[10:] {
			if gap < 20*time.Second || gap > 40*time.Second {
				t.Errorf("a late pause was %v, want 30 s, plus or minus a third", gap)
			}
		}
		if got := len(between); got < 2500 || got > 3100 {
			t.Errorf("%d attempts in a day", got)
		}

		registryUp(w)
		time.Sleep(2 * time.Minute)
		wantState(t, n, cluster.Registered)
		before := len(requests.renewals(n))
		registryDown(w)
		time.Sleep(50 * time.Minute)
		synctest.Wait()
		if gap := intervals(requests.renewals(n)[before:])[0]; gap > 4*time.Second {
			t.Errorf("the first pause of the next outage was %v, want RegistrationRetry again", gap)
		}
	})
}

// With a short lease the pauses are short, too.
func TestRetriesWithinShortLease(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1, clustertest.WithLease(12*time.Second))
		n := w.Nodes[0]
		requests := recordRequests(w)
		time.Sleep(time.Second)
		registryDown(w)
		time.Sleep(time.Until(n.Status().ExpiresAt()) - time.Nanosecond)
		wantState(t, n, cluster.Degraded)
		if got := len(requests.renewals(n)); got < 3 {
			t.Errorf("%d attempts in the last third of the lease, want one a second", got)
		}
	})
}

// When its lease expires a node is lost, and reports so. The npm module reports it neither to the
// application nor in the environment.
func TestExpiredLeaseIsReported(t *testing.T) {
	parallel(t)
	faults := map[string]struct {
		host  string
		fault clustertest.Fault
	}{
		"registry refuses":      {clustertest.RegistryHost, clustertest.Refuse},
		"registry hangs":        {clustertest.RegistryHost, clustertest.Hang},
		"registry stalls":       {clustertest.RegistryHost, clustertest.Stall(10)},
		"registry answers 503":  {clustertest.RegistryHost, clustertest.Status(503)},
		"token service refuses": {clustertest.TokenHost, clustertest.Refuse},
		"token service hangs":   {clustertest.TokenHost, clustertest.Hang},
	}
	for name, test := range faults {
		for _, lease := range []time.Duration{time.Second, 15 * time.Second, time.Hour} {
			t.Run(fmt.Sprint(name, ", ", lease), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var hooks traceLog
					w := clustertest.Start(t, 0, clustertest.WithLease(lease), clustertest.WithTokenTTL(max(lease/2, time.Second)),
						clustertest.WithConfig(func(cfg *cluster.Config) { cfg.Management = false }))
					requests := recordRequests(w)
					n := w.Join(cluster.WithTrace(hooks.trace()))
					w.Network.Fault(clustertest.Any, test.host, test.fault)
					time.Sleep(3 * lease)
					synctest.Wait()

					if got, want := hooks.states(), []string{"orphan→registered", "registered→degraded", "degraded→lost"}; !cmp.Equal(got, want) {
						t.Fatalf("the states were %q, want %q", got, want)
					}
					lost := hooks.first(t, cluster.Lost)
					var renewed time.Time
					for _, x := range requests.renewals(n) {
						if x.Status == http.StatusOK && x.Err == nil && x.Received > 10 {
							renewed = x.Start
						}
					}
					if got := lost.at.Sub(renewed); got != lease {
						t.Errorf("lost %v after the last good renewal was sent, want %v", got, lease)
					}
					if !strings.HasPrefix(lost.status.Env()["REGISTRATION_STATUS"], "orphan: ") || strings.Contains(lost.status.Env()["REGISTRATION_STATUS"], "ran out") {
						t.Errorf("REGISTRATION_STATUS of a lost node is %q, want the reason", lost.status.Env()["REGISTRATION_STATUS"])
					}
					wantState(t, n, cluster.Lost)

					w.Network.Fault(clustertest.Any, test.host, nil)
					time.Sleep(51 * time.Second) // an attempt that hangs, and the longest pause
					wantState(t, n, cluster.Registered)
				})
			})
		}
	}
}

// During an outage of any length the view stays as it was, and calls use it.
func TestRecoveryAfterOutage(t *testing.T) {
	parallel(t)
	for _, outage := range []time.Duration{time.Minute, time.Hour, 24 * time.Hour} {
		t.Run(outage.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 3)
				time.Sleep(30 * time.Minute)
				registryDown(w)
				time.Sleep(outage)
				for _, n := range w.Nodes {
					wantView(t, n, "node-1", "node-2", "node-3")
				}
				res, err := w.Nodes[0].RPCluster(t.Context(), cluster.Request{Path: "/things"})
				if err != nil || len(res.Results) != 2 {
					t.Errorf("a call during the outage: %+v, %v", res, err)
				}

				registryUp(w)
				time.Sleep(41 * time.Second)
				synctest.Wait()
				if got := idsOf(w.Registered()); outage > 2*time.Hour && !cmp.Equal(got, []string{"node-1", "node-2", "node-3"}) {
					t.Errorf("the registry lists %q", got)
				}
				for _, n := range w.Nodes {
					wantState(t, n, cluster.Registered)
					wantView(t, n, "node-1", "node-2", "node-3")
				}
			})
		})
	}
}

// A lost node announces itself when it has registered again, because its peers may have removed it.
func TestLostNodeAnnouncesItself(t *testing.T) {
	parallel(t)
	tests := map[string]struct {
		outage time.Duration
		others []string // the views of its peers by then
	}{
		"still listed":     {61 * time.Minute, []string{"node-1", "node-2", "node-3"}},
		"no longer listed": {3 * time.Hour, []string{"node-2", "node-3"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 3)
				n := w.Nodes[0]
				w.Network.Cut(n.Host, clustertest.RegistryHost)
				time.Sleep(test.outage)
				wantState(t, n, cluster.Lost)
				wantView(t, n, "node-1", "node-2", "node-3")
				for _, peer := range w.Nodes[1:] {
					wantView(t, peer, test.others...)
				}
				requests := recordRequests(w)
				w.Network.Heal()
				time.Sleep(51 * time.Second)
				wantState(t, n, cluster.Registered)
				for _, peer := range w.Nodes[1:] {
					wantView(t, peer, "node-1", "node-2", "node-3")
					if got := len(requests.announcements(n, peer.Host)); got != 1 {
						t.Errorf("%d announcements to %s, want one", got, peer.ID)
					}
				}
			})
		})
	}
}

// A departure that peers report during an outage stays in effect after it.
func TestViewChangesDuringOutage(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		n := w.Nodes[0]
		registryDown(w)
		time.Sleep(10 * time.Hour)
		w.Nodes[2].UnRegister(t.Context()) // its peers receive the departure, the registry does not
		wantView(t, n, "node-1", "node-2")
		registryUp(w)
		time.Sleep(time.Minute)
		wantState(t, n, cluster.Registered)
		wantView(t, n, "node-1", "node-2")
	})
}

// A valid token is used while the token service fails. An expired one is replaced when it is
// needed.
func TestTokenExpiryDuringOutages(t *testing.T) {
	parallel(t)
	tests := map[string]struct {
		tokenLife time.Duration
		down      string
		outage    time.Duration
		during    cluster.State
	}{
		"registry down, token expires":              {30 * time.Minute, clustertest.RegistryHost, 10 * time.Hour, cluster.Lost},
		"token service down, token valid":           {48 * time.Hour, clustertest.TokenHost, 24 * time.Hour, cluster.Registered},
		"token service down, token due for refresh": {time.Hour, clustertest.TokenHost, 59 * time.Minute, cluster.Registered},
		"token service down, token expires":         {time.Hour, clustertest.TokenHost, 10 * time.Hour, cluster.Lost},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 2, clustertest.WithTokenTTL(test.tokenLife))
				n := w.Nodes[0]
				w.Network.Down(test.down)
				time.Sleep(test.outage)
				wantState(t, n, test.during)
				wantView(t, n, "node-1", "node-2")
				w.Network.Up(test.down)
				time.Sleep(time.Minute)
				wantState(t, n, cluster.Registered)
				if res, err := n.RPCluster(t.Context(), cluster.Request{Path: "/things"}); err != nil || len(res.Results) != 1 {
					t.Errorf("a call: %+v, %v", res, err)
				}
			})
		})
	}
}

// A node that a peer reports as departed stays in its own view, and registers again at once. The
// npm module removes itself from its view.
func TestReportedAsDepartedRegistersAgain(t *testing.T) {
	parallel(t)
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
// Each renewal is followed by an announcement, which the peer refuses here.
func TestReportedAsDepartedRepeatedly(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.WarnLevel)
		w := clustertest.Start(t, 1, clustertest.WithOptions(cluster.WithLogger(zap.New(core))))
		n := w.Nodes[0]
		w.Join()
		requests := recordRequests(w)
		w.Network.Fault(n.Host, "node-2:8080", onPost(clustertest.Status(http.StatusNotFound)))
		for range 300 {
			reportDeparture(t, w, n, n.ID)
			time.Sleep(200 * time.Millisecond)
		}
		synctest.Wait()
		if got := len(requests.renewals(n)); got < 15 || got > 21 {
			t.Errorf("%d POSTs in a minute, want one every RegistrationRetry", got)
		}
		for _, message := range []string{"reported as departed by a peer; registering again", "announcement rejected"} {
			if got := logs.FilterMessage(message).Len(); got < 1 || got > 2 {
				t.Errorf("%q is logged %d times in a minute", message, got)
			}
		}
		wantState(t, n, cluster.Registered)
		wantView(t, n, "node-1", "node-2")
	})
}

// A node that has left does not register when it is reported as departed.
func TestReportedAsDepartedAfterLeaving(t *testing.T) {
	parallel(t)
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
	parallel(t)
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
	parallel(t)
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
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		const lease = time.Hour
		w := clustertest.Start(t, 5, clustertest.WithLease(lease))
		time.Sleep(lease) // all have renewed, and have each other from the registry
		dead := w.Nodes[4]
		dead.Kill()
		requests := recordRequests(w)
		renewed := make(chan struct{}, 1)
		for _, n := range w.Nodes[:4] {
			w.Network.Fault(n.Host, clustertest.RegistryHost, signal(renewed, clustertest.FirstN(0, clustertest.Refuse)))
		}
		w.ResetRegistry()
		began, shortest := time.Now(), 5
		for time.Since(began) < 3*lease {
			select { // several nodes may renew within a minute: the list is short only in between
			case <-renewed:
			case <-time.After(time.Minute):
			}
			synctest.Wait()
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
		if shortest > 1 {
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
	parallel(t)
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
	parallel(t)
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
	parallel(t)
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
	parallel(t)
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
	parallel(t)
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

// serveAt makes a node reachable at another host, too.
func serveAt(w *clustertest.World, n *clustertest.Node, host string) {
	mux := http.NewServeMux()
	n.Mount(mux)
	mux.Handle("GET /mds/v1/things", anyMethod(n))
	w.Network.Handle(host, mux)
}

func registeredAddress(w *clustertest.World, id string) string {
	for _, s := range w.Registered() {
		if s.ServerID == id {
			return s.ClusterBaseURL
		}
	}
	return ""
}

// A node whose machine gets another address registers there with its next renewal, and announces
// it.
func TestAddressOfTheMachineChanges(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		var locals atomic.Pointer[[]string]
		set := func(list ...string) { locals.Store(&list) }
		set("eth0 10.1.0.1", "eth1 10.2.0.1")
		w := clustertest.Start(t, 2, clustertest.WithConfig(func(cfg *cluster.Config) {
			if cfg.ID == "node-3" {
				cfg.LocalIPv4, cfg.ClusterBaseURL = "", ""
			}
		}))
		peer := w.Nodes[0]
		core, logs := observer.New(zap.WarnLevel)
		n := w.Add(cluster.WithLocals(func() []string { return *locals.Load() }), cluster.WithLogger(zap.New(core)))
		serveAt(w, n, "10.1.0.1:8080")
		if _, err := n.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		check := func(when, host string, warnings int) {
			t.Helper()
			for deadline := time.Now().Add(time.Hour); registeredAddress(w, n.ID) != "http://"+host+"/mds/v1" && time.Now().Before(deadline); {
				time.Sleep(time.Second)
			}
			time.Sleep(time.Second) // for the announcement
			wantState(t, n, cluster.Registered)
			wantAddress(t, w.Registered(), n.ID, host)
			wantAddress(t, peer.Servers(), n.ID, host)
			if res := rpc(t, peer, cluster.Request{Path: "/things"}); len(res.Results) != 2 {
				t.Errorf("%s: %d results, %v", when, len(res.Results), failures(res))
			}
			if got := logs.FilterMessage("local address has changed").Len(); got != warnings {
				t.Errorf("%s: %d warnings, want %d", when, got, warnings)
			}
		}
		check("at first", "10.1.0.1:8080", 0)

		set("eth1 10.2.0.1", "eth0 10.1.0.1") // another order is no change
		time.Sleep(24 * time.Hour)
		check("in another order", "10.1.0.1:8080", 0)

		set("lo 127.0.0.1", "eth0 169.254.7.7") // no network: the last address stays
		time.Sleep(2 * time.Hour)
		check("without an address", "10.1.0.1:8080", 0)

		set("eth0 10.3.0.1", "lo 127.0.0.1")
		w.Network.Remove("10.1.0.1:8080")
		serveAt(w, n, "10.3.0.1:8080")
		check("at another address", "10.3.0.1:8080", 1)

		set("eth0 2001:db8::7")
		w.Network.Remove("10.3.0.1:8080")
		serveAt(w, n, "[2001:db8::7]:8080")
		check("at an IPv6 address", "[2001:db8::7]:8080", 2)

		if d := n.UnRegister(t.Context()); d.Errors != nil {
			t.Errorf("UnRegister: %v", d.Errors)
		}
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-1", "node-2"}) {
			t.Errorf("the registry lists %q", got)
		}
	})
}

// startAtAddressOfDead starts two nodes, and then nodes at one more address, one after the other.
// All but the last of these are gone without deregistering.
func startAtAddressOfDead(t *testing.T, dead int, opts ...clustertest.Option) (w *clustertest.World, n *clustertest.Node) {
	t.Helper()
	w = clustertest.Start(t, 2, append(opts, clustertest.WithConfig(func(cfg *cluster.Config) {
		if cfg.ID != "node-1" && cfg.ID != "node-2" {
			cfg.ClusterBaseURL = "http://shared:8080/mds/v1"
		}
	}))...)
	for i := range dead + 1 {
		time.Sleep(time.Second)
		if i < dead {
			n = w.Add(cluster.WithEviction(cluster.Eviction{Disabled: true}))
			defer n.Close()
		} else {
			n = w.Add()
		}
		serveAt(w, n, "shared:8080")
		if _, err := n.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return w, n
}

// A node at the address of nodes that are gone does not call itself under their ids. It evicts
// them, however many there are.
func TestNodeAtTheAddressOfDeadNodes(t *testing.T) {
	parallel(t)
	for _, dead := range []int{1, 9} {
		synctest.Test(t, func(t *testing.T) {
			w, n := startAtAddressOfDead(t, dead)
			requests := recordRequests(w)
			res := rpc(t, n, cluster.Request{Path: "/things"})
			if got := len(requests.matching(http.MethodGet, n.Host, "shared:8080")); got != 0 {
				t.Errorf("%d requests to itself", got)
			}
			// The announcement has evicted them already.
			if ids := idsOfOutcomes(res.Results); !cmp.Equal(ids, []string{"node-1", "node-2"}) || len(res.Failures) != 0 {
				t.Errorf("results of %q, failures %v", ids, failures(res))
			}
			if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-1", "node-2", n.ID}) && !cmp.Equal(got, []string{"node-1", n.ID, "node-2"}) {
				t.Errorf("the registry lists %q", got)
			}
		})
	}
}

func TestOutcomeOfNodeAtOwnAddress(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w, n := startAtAddressOfDead(t, 1, noEviction())
		requests := recordRequests(w)
		o := singleFailure(t, rpc(t, n, cluster.Request{Path: "/things"}))
		if o.Kind != cluster.KindWrongServer || o.Attempts != 0 || o.Server.ServerID != "node-3" || o.EvictionSkipped == nil {
			t.Errorf("outcome %+v", o)
		}
		if got := len(requests.matching(http.MethodGet, n.Host, "shared:8080")); got != 0 {
			t.Errorf("%d requests to itself", got)
		}
	})
}

// Two running nodes claim one address by mistake. Once both have renewed, neither evicts the other.
func TestRunningNodesWithOneAddress(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3, clustertest.WithConfig(func(cfg *cluster.Config) {
			if cfg.ID == "node-4" {
				cfg.ClusterBaseURL = "http://node-3:8080/mds/v1"
			}
		}))
		w.Join()
		time.Sleep(2 * time.Hour)
		requests := recordRequests(w)
		for range 24 {
			time.Sleep(time.Hour)
			for _, n := range w.Nodes {
				res := rpc(t, n, cluster.Request{Path: "/things"})
				wantOneOutcomeEach(t, res, slices.DeleteFunc(slices.Clone(w.Nodes), func(o *clustertest.Node) bool { return o == n }))
			}
		}
		if got := len(requests.matching(http.MethodDelete, clustertest.Any, clustertest.RegistryHost)); got != 0 {
			t.Errorf("%d deletes at the registry", got)
		}
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-1", "node-2", "node-3", "node-4"}) {
			t.Errorf("the registry lists %q", got)
		}
	})
}

// A backwardStore is a store whose clock can be set back. Entries that are registered after that
// have older dates, also those that replace another entry.
type backwardStore struct {
	*mit.Memory
	mu   sync.Mutex
	back time.Duration
	late map[string]bool // ids that have registered since
}

func (s *backwardStore) setBack(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.back, s.late = d, map[string]bool{}
}

func (s *backwardStore) shift(server cluster.Server) cluster.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.late[server.ServerID] {
		server.CreatedAt, server.UpdatedAt, server.Raw = server.CreatedAt.Add(-s.back), server.UpdatedAt.Add(-s.back), nil
	}
	return server
}

func (s *backwardStore) shiftAll(r mit.Resource) mit.Resource {
	for i := range r.Servers {
		r.Servers[i] = s.shift(r.Servers[i])
	}
	return r
}

func (s *backwardStore) Put(ctx context.Context, reg mit.Registration, ttl time.Duration) (mit.Resource, error) {
	r, err := s.Memory.Put(ctx, reg, ttl)
	s.mu.Lock()
	if s.late != nil {
		s.late[reg.ServerID] = true
	}
	s.mu.Unlock()
	return s.shiftAll(r), err
}

func (s *backwardStore) Get(ctx context.Context, id string) (mit.Resource, error) {
	r, err := s.Memory.Get(ctx, id)
	return s.shiftAll(r), err
}

func (s *backwardStore) DeleteIfUnmodifiedSince(ctx context.Context, id, serverID string, date time.Time) (*cluster.Server, error) {
	s.mu.Lock()
	if s.late[serverID] {
		date = date.Add(s.back)
	}
	s.mu.Unlock()
	newer, err := s.Memory.DeleteIfUnmodifiedSince(ctx, id, serverID, date)
	if newer != nil {
		shifted := s.shift(*newer)
		newer = &shifted
	}
	return newer, err
}

// The successor of a process registers after the clock of the registry has gone back, so that its
// entry is older. The process that leaves keeps it.
func TestDepartureAfterTheClockWentBack(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		s := &backwardStore{Memory: mit.NewMemory()}
		w := clustertest.Start(t, 2, clustertest.WithStore(s), sameID())
		s.setBack(6 * time.Hour)
		successor := w.Join()
		requests := recordRequests(w)
		if d := w.Nodes[0].UnRegister(t.Context()); d.Errors != nil {
			t.Errorf("UnRegister: %v", d.Errors)
		}
		wantAddress(t, w.Registered(), "node-1", successor.Host)
		if got := requests.countToPeers(w.Nodes[0]); got != 0 {
			t.Errorf("%d requests to peers, want no notification", got)
		}
	})
}

// The successor of a node that has left has an older date, because the clock of the registry went
// back. Its peers take its announcement for a late one of the node that left, though. They ask the
// registry within 70 s, even if they have just done so because of another late announcement.
func TestReturnAfterTheClockWentBack(t *testing.T) {
	parallel(t)
	for name, late := range map[string]time.Duration{ // when the late announcement arrives
		"no late announcement":    -1,
		"before it returns":       0,
		"after it is known again": 20 * time.Second,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &backwardStore{Memory: mit.NewMemory()}
				// With one peer only, the peer would be alone after the departure, and renew often.
				w := clustertest.Start(t, 3, clustertest.WithStore(s), clustertest.WithLease(12*time.Hour))
				n, peer := w.Nodes[0], w.Nodes[1]
				n.Move("elsewhere:8080")
				send := holdAnnouncement(t, w, n, peer)
				if _, err := n.Register(t.Context()); err != nil {
					t.Fatal(err)
				}
				n.UnRegister(t.Context())
				if late >= 0 {
					time.AfterFunc(late, send)
				}
				time.Sleep(10 * time.Second) // a renewal does not follow at once
				s.setBack(6 * time.Hour)
				n.Move("third:8080")
				if _, err := n.Register(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(70 * time.Second)
				wantAddress(t, peer.Servers(), "node-1", "third:8080")
			})
		})
	}
}

// The clock of the registry goes back, and a node moves. Its peers take its new address although
// its date is older, and do not evict it.
func TestRegistryClockGoesBack(t *testing.T) {
	parallel(t)
	tests := map[string]func(t *testing.T, w *clustertest.World, moved *clustertest.Node, call func()){
		"call right after the announcement": func(t *testing.T, w *clustertest.World, moved *clustertest.Node, call func()) {
			t.Helper()
			moved.Move("elsewhere:8080")
			if _, err := moved.Register(t.Context()); err != nil {
				t.Fatal(err)
			}
			call()
		},
		"call seconds later": func(t *testing.T, w *clustertest.World, moved *clustertest.Node, call func()) {
			t.Helper()
			moved.Move("elsewhere:8080")
			if _, err := moved.Register(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
			wantAddress(t, w.Nodes[0].Servers(), "node-3", "elsewhere:8080")
			wantAddress(t, w.Nodes[1].Servers(), "node-3", "elsewhere:8080")
			call()
		},
		"the announcement is lost": func(t *testing.T, w *clustertest.World, moved *clustertest.Node, call func()) {
			t.Helper()
			w.Network.Fault("elsewhere:8080", "node-1:8080", clustertest.Status(503))
			moved.Move("elsewhere:8080")
			if _, err := moved.Register(t.Context()); err != nil {
				t.Fatal(err)
			}
			wantAddress(t, w.Nodes[0].Servers(), "node-3", "node-3:8080")
			call()
		},
		// The view has the newer entry, with the older date, when eviction is decided.
		"renewal during the call": func(t *testing.T, w *clustertest.World, moved *clustertest.Node, call func()) {
			t.Helper()
			w.Network.Fault("node-1:8080", "node-3:8080", clustertest.Hang)
			done := make(chan struct{})
			go func() { defer close(done); call() }()
			time.Sleep(time.Second)
			w.Network.Fault("elsewhere:8080", "node-1:8080", clustertest.Status(503))
			moved.Move("elsewhere:8080")
			if _, err := moved.Register(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Nodes[0].Register(t.Context()); err != nil {
				t.Fatal(err)
			}
			<-done
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &backwardStore{Memory: mit.NewMemory()}
				w := clustertest.Start(t, 3, clustertest.WithStore(s))
				if _, err := w.Nodes[0].Register(t.Context()); err != nil { // it has confirmed entries
					t.Fatal(err)
				}
				time.Sleep(10 * time.Minute)
				s.setBack(6 * time.Hour)
				test(t, w, w.Nodes[2], func() {
					res := rpc(t, w.Nodes[0], cluster.Request{Path: "/things"})
					if ids := idsOfOutcomes(res.Results); !cmp.Equal(ids, []string{"node-2", "node-3"}) {
						t.Errorf("results of %q, failures %v", ids, failures(res))
					}
				})
				wantAddress(t, w.Registered(), "node-3", "elsewhere:8080")
			})
		})
	}
}
