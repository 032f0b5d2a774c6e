package cluster_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

// A renewal that fails is retried after RegistrationRetry. The npm module waits a whole lease,
// after which the registry no longer lists the node.
func TestFailedRenewalIsRetriedWithinTheLease(t *testing.T) {
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
				if got := degraded[0].status.Registration(); got != "registered" {
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
					if !strings.HasPrefix(lost.status.Registration(), "orphan: ") || strings.Contains(lost.status.Registration(), "ran out") {
						t.Errorf("REGISTRATION_STATUS of a lost node is %q, want the reason", lost.status.Registration())
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
