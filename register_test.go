package cluster_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

// The npm module makes its first try only after the first pause, and no pause differs from
// another, so that all nodes which wait for one registry come at the same moment.
func TestRegisterRetriesUntilTheRegistryIsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		registryDown(w)
		n := w.Add()
		wantState(t, n, cluster.Orphan)
		l := recordRequests(w)
		began := time.Now()
		done := registerAsync(t.Context(), n)

		time.Sleep(time.Minute)
		synctest.Wait()
		tries := l.renewals(n)
		if !tries[0].Start.Equal(began) {
			t.Errorf("the first try came after %v, want at once", tries[0].Start.Sub(began))
		}
		distinct := map[time.Duration]bool{}
		for _, gap := range intervals(tries) {
			distinct[gap] = true
			if gap < 2*time.Second || gap > 4*time.Second {
				t.Errorf("%v between two tries, want 3 s give or take a third", gap)
			}
		}
		if len(tries) < 15 || len(distinct) < 10 {
			t.Errorf("%d tries with %d different pauses, want one about every 3 s, jittered", len(tries), len(distinct))
		}
		wantState(t, n, cluster.Orphan)
		if got := n.Status().Registration(); !strings.HasPrefix(got, "orphan: mIT cannot be reached by POST http://mit.test/mIT/v1/itResources: ") {
			t.Errorf("the registration reads %q, want why it is an orphan", got)
		}
		select {
		case err := <-done:
			t.Fatalf("Register returned %v while mIT was down", err)
		default:
		}

		registryUp(w)
		time.Sleep(4 * time.Second)
		synctest.Wait()
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
		default:
			t.Fatal("Register did not return once mIT was up")
		}
		wantState(t, n, cluster.Registered)
		wantView(t, n, "node-1")
		if got := n.Status().Registration(); got != "registered" {
			t.Errorf("the registration reads %q", got)
		}
	})
}

func TestRegistrationRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.RegistrationRetry = time.Minute }))
		registryDown(w)
		n := w.Add()
		l := recordRequests(w)
		registerAsync(t.Context(), n)
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := len(l.renewals(n)); got < 46 || got > 90 {
			t.Errorf("%d tries in an hour, want one a minute", got)
		}
		n.Close()
	})
}

// The npm module begins another request to a hanging mIT every retry period, whatever became
// of those before: 17 or so are under way at a time.
func TestOneRegistrationRequestAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		registryFault(w, clustertest.Hang)
		n := w.Add()
		l := recordRequests(w)
		registerAsync(t.Context(), n)
		time.Sleep(10 * time.Minute)
		synctest.Wait()

		tries := l.renewals(n)
		if len(tries) < 40 {
			t.Fatalf("%d tries in ten minutes, want one about every 13 s", len(tries))
		}
		for i, x := range tries[1:] {
			if end := tries[i].Start.Add(tries[i].Duration); x.Start.Before(end) {
				t.Errorf("try %d began %v before the one before it had ended", i+2, end.Sub(x.Start))
			}
			if x.Duration != 10*time.Second {
				t.Errorf("try %d lasted %v, want RequestTimeout", i+2, x.Duration)
			}
		}
		n.Close()
	})
}

// The npm module's register cannot be ended, and returns nothing to wait for.
func TestRegisterEndsWithItsContext(t *testing.T) {
	errEnough := errors.New("enough")
	tests := map[string]struct {
		host    string // where the fault is
		fault   clustertest.Fault
		after   time.Duration
		cause   error // why the context ends; nil for its deadline
		failure func(error) bool
		reads   string
	}{
		"mIT refuses": {
			clustertest.RegistryHost, clustertest.Refuse, time.Minute, errEnough,
			func(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) },
			"cluster: registering: enough, after: mIT cannot be reached by POST http://mit.test/mIT/v1/itResources: dial tcp",
		},
		"mIT answers 503": {
			clustertest.RegistryHost, clustertest.Status(503), time.Minute, errEnough,
			func(err error) bool {
				se, ok := errors.AsType[*cluster.StatusError](err)
				return ok && se.Code == 503 && se.Remote == "mIT"
			},
			"cluster: registering: enough, after: mIT answered 503 Service Unavailable to POST http://mit.test/mIT/v1/itResources: not from the server",
		},
		"mIT hangs": {
			clustertest.RegistryHost, clustertest.Hang, time.Minute, nil,
			func(err error) bool { _, ok := errors.AsType[*cluster.UnreachableError](err); return ok },
			"mIT cannot be reached by POST http://mit.test/mIT/v1/itResources: context deadline exceeded",
		},
		"mIT hangs, at the first try": {
			clustertest.RegistryHost, clustertest.Hang, time.Second, nil,
			func(err error) bool { _, ok := errors.AsType[*cluster.UnreachableError](err); return ok },
			"mIT cannot be reached by POST http://mit.test/mIT/v1/itResources: context deadline exceeded",
		},
		"mST refuses": {
			clustertest.TokenHost, clustertest.Refuse, time.Minute, errEnough,
			func(err error) bool {
				te, ok := errors.AsType[*cluster.TokenError](err)
				return ok && te.Audience == "https://mit.test" && errors.Is(err, syscall.ECONNREFUSED)
			},
			`cluster: registering: enough, after: no token for "https://mit.test": mST cannot be reached by POST http://mst.test/mST/v1/oauth/token: dial tcp`,
		},
		"mST says garbage": {
			clustertest.TokenHost, respondOK(`<html>`), time.Minute, errEnough,
			func(err error) bool {
				ae, ok := errors.AsType[*cluster.InvalidResponseError](err)
				return ok && ae.Remote == "mST"
			},
			`no token for "https://mit.test": mST gave an unusable answer to POST http://mst.test/mST/v1/oauth/token: the answer is not JSON`,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 0)
				w.Network.Fault(clustertest.Any, test.host, test.fault)
				n := w.Add()
				l := recordRequests(w)
				ctx, cancel := context.WithTimeoutCause(t.Context(), test.after, test.cause)
				defer cancel()
				res, err := n.Register(ctx)
				cause := test.cause
				if cause == nil {
					cause = context.DeadlineExceeded
				}
				if res != nil || !errors.Is(err, cause) || !test.failure(err) || !strings.Contains(err.Error(), test.reads) {
					t.Errorf("Register returned %v, %v\nwant %q", res, err, test.reads)
				}
				wantState(t, n, cluster.Orphan)

				before := len(l.renewals(n))
				time.Sleep(time.Hour)
				synctest.Wait()
				if more := len(l.renewals(n)) - before; more != 0 {
					t.Errorf("%d more tries after Register had returned", more)
				}
				w.Network.Fault(clustertest.Any, test.host, nil)
				if _, err := n.Register(t.Context()); err != nil {
					t.Errorf("the end of one Register is in the way of the next: %v", err)
				}
			})
		})
	}
}

func TestRegisterAnnouncesTheNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Add()
		res, err := n.Register(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(res.Results) != 2 || len(res.Failures) != 0 {
			t.Errorf("%d results and %d failures, want one result of each peer", len(res.Results), len(res.Failures))
		}
		for _, n := range w.Nodes {
			wantView(t, n, "node-1", "node-2", "node-3")
		}
	})
}

// A peer that does not answer the announcement keeps nobody from being registered.
func TestRegisterWithDeadPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		w.Nodes[0].Kill()
		n := w.Add()
		res, err := n.Register(t.Context())
		if err != nil || len(res.Results) != 1 || len(res.Failures) != 1 || !res.Failures[0].Evicted {
			t.Errorf("Register returned %+v, %v, want a result of node-2 and the eviction of node-1", res, err)
		}
		wantState(t, n, cluster.Registered)
	})
}

func TestRegisterWithManagementOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.Management = false }))
		n := w.Add()
		l := recordRequests(w)
		res, err := n.Register(t.Context())
		if res != nil || err != nil {
			t.Errorf("Register returned %v, %v, want nil, nil", res, err)
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		tries := l.renewals(n)
		if len(tries) < 30 {
			t.Fatalf("%d registrations and renewals in a day of one-hour leases", len(tries))
		}
		for _, x := range tries {
			if x.Query != "managedCluster=off" || x.Status != http.StatusOK {
				t.Fatalf("POST with query %q was answered %d", x.Query, x.Status)
			}
		}
		if d := n.UnRegister(t.Context()); d.Errors != nil {
			t.Errorf("leaving: %v", d.Errors)
		}
		if got := l.countToPeers(n); got != 0 {
			t.Errorf("%d requests to peers", got)
		}
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-1", "node-2"}) {
			t.Errorf("mIT lists %q", got)
		}
	})
}

func TestRegisterAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Nodes[0]
		l := recordRequests(w)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		before := countGoroutines(t)
		res, err := n.Register(t.Context())
		if err != nil || len(res.Results) != 1 {
			t.Fatalf("Register returned %+v, %v", res, err)
		}
		synctest.Wait()
		if got := countGoroutines(t); got != before {
			t.Errorf("%d goroutines, want the %d of before", got, before)
		}
		if got := len(l.renewals(n)); got != 2 {
			t.Errorf("%d POSTs to mIT, want one, and one by which the lease follows", got)
		}
		if got := len(l.announcements(n, w.Nodes[1].Host)); got != 1 {
			t.Errorf("%d announcements, want one", got)
		}
		if got := n.Status().RenewedAt; !got.Equal(time.Now()) {
			t.Errorf("renewed at %v, want now", got)
		}
	})
}

// The lease that a second Register is granted may be shorter than what the first was.
func TestRegisterAgainWithAShorterLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d traceLog
		w := clustertest.Start(t, 0, clustertest.WithLease(24*time.Hour))
		n := w.Join(cluster.WithTrace(d.trace()))
		w.Registry.SetLease(time.Minute)
		if _, err := n.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 60 {
			time.Sleep(time.Minute)
			wantState(t, n, cluster.Registered)
		}
		if got := d.states(); !cmp.Equal(got, []string{"orphan→registered"}) {
			t.Errorf("the states were %q, want it to stay registered", got)
		}
	})
}

func TestRegisterAfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d traceLog
		w := clustertest.Start(t, 0)
		n := w.Add(cluster.WithTrace(d.trace()))
		n.Close()
		res, err := n.Register(t.Context())
		if res != nil || !errors.Is(err, cluster.ErrClosed) {
			t.Errorf("Register returned %v, %v", res, err)
		}
		if got := d.texts(); !cmp.Equal(got, []string{"orphan→left: cluster: closed"}) {
			t.Errorf("the hooks told %q", got)
		}
	})
}

// The same, when it is the registration that is under way: nothing was known before.
func TestAnnouncementDuringRegistration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1)
		n := w.Add()
		w.Network.Fault(n.Host, clustertest.RegistryHost, delayResponse(2*time.Second))
		done := registerAsync(t.Context(), n)
		time.Sleep(time.Second)
		w.Join() // mIT tells it of node-2, which mIT has told of node-1 alone
		wantView(t, n, "node-3")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		wantView(t, n, "node-1", "node-2", "node-3")
	})
}

// Whatever is wrong with mST, the error says once who failed at what.
func TestTokenErrorNamesTheRequestOnce(t *testing.T) {
	for name, fault := range map[string]clustertest.Fault{
		"refuses": clustertest.Refuse, "is not to be trusted": badCertificate, "breaks off": clustertest.Truncate(5),
		"answers 500": clustertest.Status(500), "answers nonsense": respondOK(`{}`),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 0)
				n := w.Add()
				w.Network.Fault(n.Host, clustertest.TokenHost, fault)
				_, err := n.Register(withTimeout(t, time.Second))
				if _, ok := errors.AsType[*cluster.TokenError](err); !ok || strings.Count(err.Error(), "POST http://mst.test/") != 1 {
					t.Errorf("registering: %v", err)
				}
			})
		})
	}
}

func TestUnRegister(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		n := w.Nodes[1]
		l := recordRequests(w)
		d := n.UnRegister(t.Context())
		if diff := cmp.Diff(cluster.Departure{NbServers: 3, ServerID: "node-2"}, d); diff != "" {
			t.Errorf("Departure (-want +got):\n%s", diff)
		}
		wantState(t, n, cluster.Left)
		if got := n.Status().Registration(); got != "orphan: cluster: not registered: it has left" {
			t.Errorf("the registration reads %q", got)
		}
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-1", "node-3"}) {
			t.Errorf("mIT lists %q", got)
		}
		wantView(t, w.Nodes[0], "node-1", "node-3")
		wantView(t, w.Nodes[2], "node-1", "node-3")

		again := n.UnRegister(t.Context())
		if diff := cmp.Diff(d, again); diff != "" {
			t.Errorf("the second Departure differs (-first +second):\n%s", diff)
		}
		if got := len(l.matching(http.MethodDelete, n.Host, clustertest.RegistryHost)); got != 1 {
			t.Errorf("%d DELETEs at mIT, want one", got)
		}
		if got := len(l.matching(http.MethodDelete, n.Host, clustertest.Any)); got != 3 {
			t.Errorf("%d DELETEs in all, want one at mIT and one at each peer", got)
		}
	})
}

// The npm module's registration goes on after unRegister, and brings the node back: its
// unRegister has nothing to delete yet, and stops only the timer of the lease.
func TestUnRegisterStopsRegister(t *testing.T) {
	faults := map[string]clustertest.Fault{
		"while mIT refuses": clustertest.Refuse,
		"while mIT hangs":   clustertest.Hang,
		"while mIT is slow": clustertest.Delay(8 * time.Second),
	}
	ends := map[string]struct {
		end  func(context.Context, *clustertest.Node)
		want error
	}{
		"UnRegister": {func(ctx context.Context, n *clustertest.Node) { n.UnRegister(ctx) }, cluster.ErrNotRegistered},
		"Close":      {func(_ context.Context, n *clustertest.Node) { n.Close() }, cluster.ErrClosed},
	}
	for when, fault := range faults {
		for name, by := range ends {
			t.Run(name+" "+when, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := clustertest.Start(t, 1)
					registryFault(w, fault)
					n := w.Add()
					l := recordRequests(w)
					synctest.Wait()
					before := countGoroutines(t)
					done := registerAsync(t.Context(), n)
					time.Sleep(7 * time.Second)

					ended := time.Now()
					by.end(t.Context(), n)
					if err := <-done; !errors.Is(err, by.want) {
						t.Errorf("Register returned %v, want %v", err, by.want)
					}
					if took := time.Since(ended); took != 0 {
						t.Errorf("it took %v to end Register", took)
					}
					wantState(t, n, cluster.Left)
					synctest.Wait()
					if got := countGoroutines(t); got > before {
						t.Errorf("%d goroutines are left running", got-before)
					}
					registryFault(w, nil)
					time.Sleep(time.Hour)
					synctest.Wait()
					for _, x := range l.renewals(n) {
						if x.Start.After(ended) {
							t.Errorf("a POST %v after the end", x.Start.Sub(ended))
						}
					}
					if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-1"}) {
						t.Errorf("mIT lists %q", got)
					}
					if _, err := n.Register(t.Context()); !errors.Is(err, by.want) {
						t.Errorf("registering after it: %v, want %v", err, by.want)
					}
				})
			})
		}
	}
}

// A Register that mIT accepted already may still be announcing when it is ended.
func TestUnRegisterWhileAnnouncing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		w.Network.Fault("node-3:8080", "node-1:8080", clustertest.Hang)
		n := w.Add()
		l := recordRequests(w)
		done := registerAsync(t.Context(), n)
		time.Sleep(time.Second)
		wantState(t, n, cluster.Registered)
		d := n.UnRegister(t.Context())
		if d.Errors != nil || d.NbServers != 3 {
			t.Errorf("leaving: %+v", d)
		}
		if err := <-done; err != nil {
			t.Errorf("Register, which had registered, returned %v", err)
		}
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-1", "node-2"}) {
			t.Errorf("mIT lists %q", got)
		}
		if posted, deleted := l.renewals(n), l.matching(http.MethodDelete, n.Host, clustertest.RegistryHost); len(posted) != 1 || len(deleted) != 1 {
			t.Errorf("%d POSTs and %d DELETEs to mIT, want one each", len(posted), len(deleted))
		}
	})
}

// What was sent before the DELETE must not reach mIT after it: the node would be listed until
// its lease has run out.
func TestNoRenewalAfterDeregistration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Nodes[0]
		l := recordRequests(w)
		arrived := make(chan struct{}, 1)
		registryFault(w, onPost(signal(arrived, clustertest.Delay(9*time.Second))))
		<-arrived // the lease's renewal
		done := registerAsync(t.Context(), n)
		time.Sleep(3 * time.Second)
		if d := n.UnRegister(t.Context()); d.Errors != nil || d.NbServers != 2 {
			t.Errorf("leaving: %+v", d)
		}
		if err := <-done; !errors.Is(err, cluster.ErrNotRegistered) {
			t.Errorf("Register returned %v", err)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		deleted := l.matching(http.MethodDelete, n.Host, clustertest.RegistryHost)
		if len(deleted) != 1 {
			t.Fatalf("%d DELETEs, want one", len(deleted))
		}
		for _, x := range l.renewals(n) {
			if end := x.Start.Add(x.Duration); end.After(deleted[0].Start) {
				t.Errorf("a POST ended %v after the DELETE began", end.Sub(deleted[0].Start))
			}
		}
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-2"}) {
			t.Errorf("mIT lists %q", got)
		}
	})
}

func TestUnRegisterBeforeRegister(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		n := w.Add()
		l := recordRequests(w)
		w.Join() // announces nothing: it does not know of node-1
		if diff := cmp.Diff(cluster.Departure{ServerID: "node-1"}, n.UnRegister(t.Context())); diff != "" {
			t.Errorf("Departure (-want +got):\n%s", diff)
		}
		wantState(t, n, cluster.Left)
		if _, err := n.Register(t.Context()); !errors.Is(err, cluster.ErrNotRegistered) {
			t.Errorf("registering after it: %v", err)
		}
		if got := len(l.matching(http.MethodPost, n.Host, clustertest.Any)) + len(l.matching(http.MethodDelete, n.Host, clustertest.Any)); got != 0 {
			t.Errorf("%d requests", got)
		}
	})
}

// What peers announce to a node that has not registered yet is not a cluster it is in.
func TestUnRegisterAfterAnnouncementsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		registryFault(w, onPost(clustertest.Reset)) // mIT lists the node, which does not hear of it
		n := w.Add()
		done := registerAsync(t.Context(), n)
		time.Sleep(10 * time.Second)
		announce(t, w, n, announcement("node-1", "node-2"))
		wantView(t, n, "node-1", "node-2")
		if d := n.UnRegister(t.Context()); d.NbServers != 0 || d.Errors != nil {
			t.Errorf("leaving: %+v, want no servers", d)
		}
		if err := <-done; !errors.Is(err, cluster.ErrNotRegistered) {
			t.Errorf("registering ended with %v, want %v", err, cluster.ErrNotRegistered)
		}
	})
}

func TestUnRegisterConcurrently(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		n := w.Nodes[0]
		l := recordRequests(w)
		registryFault(w, clustertest.Delay(time.Second))
		departures := make([]cluster.Departure, 10)
		var wg sync.WaitGroup
		for i := range departures {
			wg.Go(func() { departures[i] = n.UnRegister(t.Context()) })
		}
		wg.Wait()
		for i, d := range departures {
			if d.Errors != nil || d.NbServers != 3 {
				t.Errorf("departure %d: %+v", i, d)
			}
		}
		if got := len(l.matching(http.MethodDelete, n.Host, clustertest.Any)); got != 3 {
			t.Errorf("%d DELETEs, want one at mIT and one at each of two peers", got)
		}
	})
}

func TestUnRegisterDuringOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n, peer := w.Nodes[0], w.Nodes[1]
		registryDown(w)
		d := n.UnRegister(t.Context())
		if len(d.Errors) != 1 || !errors.Is(d.Errors[0], syscall.ECONNREFUSED) || !strings.HasPrefix(d.Errors[0].Error(), "mIT cannot be reached by DELETE ") {
			t.Errorf("errors %q, want that mIT cannot be reached", d.Errors)
		}
		if d.NbServers != 2 {
			t.Errorf("%d servers, want 2", d.NbServers)
		}
		wantState(t, n, cluster.Left)
		wantView(t, peer, "node-2") // it was told all the same

		registryUp(w)
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-1", "node-2"}) {
			t.Errorf("mIT lists %q: it was down", got)
		}
		if d := n.UnRegister(t.Context()); d.Errors != nil || d.NbServers != 2 {
			t.Errorf("the second try: %+v", d)
		}
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-2"}) {
			t.Errorf("mIT lists %q after the second try", got)
		}
	})
}

// It is the caller's to say how long leaving may take.
func TestUnRegisterEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		w.Network.Fault(clustertest.Any, clustertest.Any, clustertest.Hang)
		began := time.Now()
		d := w.Nodes[0].UnRegister(withTimeout(t, 2*time.Second))
		if took := time.Since(began); took != 2*time.Second {
			t.Errorf("it took %v", took)
		}
		if len(d.Errors) != 1 || !errors.Is(d.Errors[0], context.DeadlineExceeded) {
			t.Errorf("errors %q, want that time was up", d.Errors)
		}
	})
}

// A peer that does not listen is no reason not to leave, nor is leaving one to evict it.
func TestUnRegisterWithDeadPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		w.Nodes[1].Kill()
		d := w.Nodes[0].UnRegister(t.Context())
		if d.Errors != nil || d.NbServers != 3 {
			t.Errorf("leaving: %+v", d)
		}
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-2", "node-3"}) {
			t.Errorf("mIT lists %q, want nobody evicted", got)
		}
		wantView(t, w.Nodes[2], "node-2", "node-3")
	})
}

func TestUnRegisterAfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Nodes[0]
		l := recordRequests(w)
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		wantState(t, n, cluster.Left)
		d := n.UnRegister(t.Context())
		if len(d.Errors) != 1 || !errors.Is(d.Errors[0], cluster.ErrClosed) || d.NbServers != 2 {
			t.Errorf("leaving: %+v, want that it is closed", d)
		}
		synctest.Wait()
		if got := len(l.matching(http.MethodDelete, n.Host, clustertest.Any)); got != 0 {
			t.Errorf("%d requests of a closed node", got)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
}

// The npm module hands out the errors themselves, which have no JSON of their own.
func TestDepartureAsJSON(t *testing.T) {
	tests := map[string]struct {
		d    cluster.Departure
		want string
	}{
		"never registered": {cluster.Departure{ServerID: "me"}, `{"nbServers":0,"serverId":"me"}`},
		"all went well":    {cluster.Departure{NbServers: 3, ServerID: "me"}, `{"nbServers":3,"serverId":"me"}`},
		"with errors": {
			cluster.Departure{NbServers: 2, ServerID: "me", Errors: []error{errors.New("one"), fmt.Errorf("two: %w", cluster.ErrClosed)}},
			`{"nbServers":2,"serverId":"me","errors":["one","two: cluster: closed"]}`,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := json.Marshal(test.d)
			if err != nil || string(got) != test.want {
				t.Errorf("got %s, %v\nwant %s", got, err, test.want)
			}
		})
	}
}
