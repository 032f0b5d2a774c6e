package cluster_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

// The npm module waits a whole lease after a renewal that failed; by then mIT has let it go.
func TestFailedRenewalIsRetriedWithinTheLease(t *testing.T) {
	faults := map[string]clustertest.Fault{
		"refused": clustertest.Refuse, "lost": clustertest.Hang, "broken": clustertest.Reset,
		"500": clustertest.Status(500), "429": clustertest.Status(429), "404": clustertest.Status(404),
		"garbage": respondOK("<html>"), "half": clustertest.Truncate(20), "stalled": clustertest.Stall(20),
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var d traceLog
				w := clustertest.Start(t, 1)
				n := w.Join(cluster.WithTrace(d.trace()))
				l := recordRequests(w)
				w.Network.Fault(n.Host, clustertest.RegistryHost, clustertest.FirstN(1, fault))
				time.Sleep(59 * time.Minute)
				synctest.Wait()
				if got, want := d.states(), []string{"orphan→registered", "registered→degraded", "degraded→registered"}; !cmp.Equal(got, want) {
					t.Errorf("the states were %q, want %q", got, want)
				}
				if got := len(l.renewals(n)); got != 2 {
					t.Errorf("%d tries, want the one that failed and the one that did not", got)
				}
				ill, well := d.snapshot(), d.snapshot()
				ill = slices.DeleteFunc(ill, func(e traceEntry) bool { return e.status.State != cluster.Degraded })
				well = slices.DeleteFunc(well, func(e traceEntry) bool { return e.status.State != cluster.Registered })
				if took := well[1].at.Sub(ill[0].at); took > 4*time.Second {
					t.Errorf("it took %v from the failure to the next success, want RegistrationRetry", took)
				}
				if got := ill[0].status.Registration(); got != "registered" {
					t.Errorf("REGISTRATION_STATUS of a degraded node is %q", got)
				}
				if len(l.announcements(n, clustertest.Any)) != 0 {
					t.Error("it announced itself, although peers have known it all the time")
				}
			})
		})
	}
}

// In a long outage the tries go on, ever less often, but so often that mIT need not wait
// for its servers when it is back.
func TestRetriesBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1)
		n := w.Nodes[0]
		l := recordRequests(w)
		registryDown(w)
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		between := intervals(l.renewals(n)) // the first try is the second look
		if between[0] < 2*time.Second || between[0] > 4*time.Second {
			t.Errorf("the first pause was %v, want RegistrationRetry, jittered", between[0])
		}
		for _, gap := range between[10:] {
			if gap < 20*time.Second || gap > 40*time.Second {
				t.Errorf("a late pause was %v, want 30 s give or take a third", gap)
			}
		}
		if got := len(between); got < 2500 || got > 3100 {
			t.Errorf("%d tries in a day", got)
		}

		registryUp(w)
		time.Sleep(2 * time.Minute)
		wantState(t, n, cluster.Registered)
		before := len(l.renewals(n))
		registryDown(w)
		time.Sleep(50 * time.Minute)
		synctest.Wait()
		if gap := intervals(l.renewals(n)[before:])[0]; gap > 4*time.Second {
			t.Errorf("the first pause of the next outage was %v, want RegistrationRetry again", gap)
		}
	})
}

// The pauses are well inside a short lease, too.
func TestRetriesWithinShortLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1, clustertest.WithLease(12*time.Second))
		n := w.Nodes[0]
		l := recordRequests(w)
		time.Sleep(time.Second)
		registryDown(w)
		time.Sleep(time.Until(n.Status().ExpiresAt()) - time.Nanosecond)
		wantState(t, n, cluster.Degraded)
		if got := len(l.renewals(n)); got < 3 {
			t.Errorf("%d tries in the last third of the lease, want one a second", got)
		}
	})
}

// The npm module never tells that its lease has run out, neither to the application nor in the
// environment.
func TestExpiredLeaseIsReported(t *testing.T) {
	faults := map[string]struct {
		host  string
		fault clustertest.Fault
	}{
		"mIT refuses":     {clustertest.RegistryHost, clustertest.Refuse},
		"mIT hangs":       {clustertest.RegistryHost, clustertest.Hang},
		"mIT stalls":      {clustertest.RegistryHost, clustertest.Stall(10)},
		"mIT answers 503": {clustertest.RegistryHost, clustertest.Status(503)},
		"mST refuses":     {clustertest.TokenHost, clustertest.Refuse},
		"mST hangs":       {clustertest.TokenHost, clustertest.Hang},
	}
	for name, test := range faults {
		for _, lease := range []time.Duration{time.Second, 15 * time.Second, time.Hour} {
			t.Run(fmt.Sprint(name, ", ", lease), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var d traceLog
					w := clustertest.Start(t, 0, clustertest.WithLease(lease), clustertest.WithTokenTTL(max(lease/2, time.Second)),
						clustertest.WithConfig(func(cfg *cluster.Config) { cfg.Management = false }))
					l := recordRequests(w)
					n := w.Join(cluster.WithTrace(d.trace()))
					w.Network.Fault(clustertest.Any, test.host, test.fault)
					time.Sleep(3 * lease)
					synctest.Wait()

					if got, want := d.states(), []string{"orphan→registered", "registered→degraded", "degraded→lost"}; !cmp.Equal(got, want) {
						t.Fatalf("the states were %q, want %q", got, want)
					}
					lost := d.first(t, cluster.Lost)
					var renewed time.Time
					for _, x := range l.renewals(n) {
						if x.Status == http.StatusOK && x.Err == nil && x.Received > 10 {
							renewed = x.Start
						}
					}
					if got := lost.at.Sub(renewed); got != lease {
						t.Errorf("lost %v after the last good renewal was sent, want %v", got, lease)
					}
					if !strings.HasPrefix(lost.status.Registration(), "orphan: ") || strings.Contains(lost.status.Registration(), "ran out") {
						t.Errorf("REGISTRATION_STATUS of a lost node is %q, want why it could not renew", lost.status.Registration())
					}
					wantState(t, n, cluster.Lost)

					w.Network.Fault(clustertest.Any, test.host, nil)
					time.Sleep(51 * time.Second) // a try that hangs, and the longest pause
					wantState(t, n, cluster.Registered)
				})
			})
		}
	}
}

// The view is what mIT last said, however long that is ago, and peers can be asked by it.
func TestRecoveryAfterOutage(t *testing.T) {
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
					t.Errorf("asking peers during the outage: %+v, %v", res, err)
				}

				registryUp(w)
				time.Sleep(41 * time.Second)
				synctest.Wait()
				if got := idsOf(w.Registered()); outage > 2*time.Hour && !cmp.Equal(got, []string{"node-1", "node-2", "node-3"}) {
					t.Errorf("mIT lists %q", got)
				}
				for _, n := range w.Nodes {
					wantState(t, n, cluster.Registered)
					wantView(t, n, "node-1", "node-2", "node-3")
				}
			})
		})
	}
}

// A node whose lease had run out announces itself: its peers may have heard from mIT that it is
// gone, or from each other.
func TestLostNodeAnnouncesItself(t *testing.T) {
	tests := map[string]struct {
		outage time.Duration
		others []string // what its peers know by then
	}{
		"while mIT still lists it": {61 * time.Minute, []string{"node-1", "node-2", "node-3"}},
		"when mIT has let it go":   {3 * time.Hour, []string{"node-2", "node-3"}},
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
				l := recordRequests(w)
				w.Network.Heal()
				time.Sleep(51 * time.Second)
				wantState(t, n, cluster.Registered)
				for _, peer := range w.Nodes[1:] {
					wantView(t, peer, "node-1", "node-2", "node-3")
					if got := len(l.announcements(n, peer.Host)); got != 1 {
						t.Errorf("%d announcements to %s, want one", got, peer.ID)
					}
				}
			})
		})
	}
}

// While mIT is gone peers still join, leave and are told: its return keeps what is true of it.
func TestViewChangesDuringOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		n := w.Nodes[0]
		registryDown(w)
		time.Sleep(10 * time.Hour)
		w.Nodes[2].UnRegister(t.Context()) // peers hear of it, mIT does not
		wantView(t, n, "node-1", "node-2")
		registryUp(w)
		time.Sleep(time.Minute)
		wantState(t, n, cluster.Registered)
		wantView(t, n, "node-1", "node-2")
	})
}

// Neither the end of a token nor an outage of mST is one of mIT's: what is good is used, and
// what is not is fetched when it is needed.
func TestTokenExpiryDuringOutages(t *testing.T) {
	tests := map[string]struct {
		tokenLife time.Duration
		down      string
		outage    time.Duration
		during    cluster.State
	}{
		"the token expires while mIT is down":     {30 * time.Minute, clustertest.RegistryHost, 10 * time.Hour, cluster.Lost},
		"mST is down and the token is good":       {48 * time.Hour, clustertest.TokenHost, 24 * time.Hour, cluster.Registered},
		"mST is down, the token is to be renewed": {time.Hour, clustertest.TokenHost, 59 * time.Minute, cluster.Registered},
		"mST is down and the token has expired":   {time.Hour, clustertest.TokenHost, 10 * time.Hour, cluster.Lost},
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
					t.Errorf("asking the peer: %+v, %v", res, err)
				}
			})
		})
	}
}
