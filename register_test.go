package cluster_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
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

// Register sends its first request at once, and the next ones after jittered pauses that grow to
// half a minute, so that a fleet which starts together is not rejected together again and again.
// The npm module waits before its first attempt, and always for the same time, so that all nodes
// arrive together.
func TestRegisterRetriesUntilTheRegistryIsUp(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		registryDown(w)
		n := w.Add()
		wantState(t, n, cluster.Orphan)
		requests := recordRequests(w)
		began := time.Now()
		done := registerAsync(t.Context(), n)

		time.Sleep(time.Hour)
		synctest.Wait()
		attempts := requests.renewals(n)
		if !attempts[0].Start.Equal(began) {
			t.Errorf("the first attempt came after %v, want at once", attempts[0].Start.Sub(began))
		}
		distinct := map[time.Duration]bool{}
		pauses := intervals(attempts)
		if pauses[0] < 2*time.Second || pauses[0] > 4*time.Second {
			t.Errorf("the first pause was %v, want 3 s, plus or minus a third", pauses[0])
		}
		for i, pause := range pauses {
			distinct[pause] = true
			if i >= 10 && (pause < 20*time.Second || pause > 40*time.Second) {
				t.Errorf("a late pause was %v, want 30 s, plus or minus a third", pause)
			}
		}
		if len(attempts) < 100 || len(distinct) < 90 {
			t.Errorf("%d attempts with %d different pauses in an hour", len(attempts), len(distinct))
		}
		wantState(t, n, cluster.Orphan)
		if got := n.Status().Env()["REGISTRATION_STATUS"]; !strings.HasPrefix(got, "orphan: mIT cannot be reached by POST http://mit.test/mIT/v1/itResources: ") {
			t.Errorf("the registration reads %q, want the reason", got)
		}
		select {
		case err := <-done:
			t.Fatalf("Register returned %v while the registry was down", err)
		default:
		}

		registryUp(w)
		time.Sleep(time.Minute)
		synctest.Wait()
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
		default:
			t.Fatal("Register did not return after the registry was up")
		}
		wantState(t, n, cluster.Registered)
		wantView(t, n, "node-1")
		if got := n.Status().Env()["REGISTRATION_STATUS"]; got != "registered" {
			t.Errorf("the registration reads %q", got)
		}
	})
}

// A busy registry says when to try again. The node waits for that, and up to a quarter longer, also
// when it renews.
func TestRetryAfter(t *testing.T) {
	parallel(t)
	for name, tt := range map[string]struct {
		header, date string
		want         time.Duration
	}{
		"a second":     {"1", "", time.Second},
		"20 seconds":   {"20", "", 20 * time.Second},
		"too long":     {"9999", "", time.Minute},
		"date":         {"Fri, 31 Dec 1999 23:59:59 GMT", "Fri, 31 Dec 1999 23:59:29 GMT", 30 * time.Second},
		"distant date": {"Fri, 31 Dec 1999 23:59:59 GMT", "Thu, 30 Dec 1999 23:59:59 GMT", time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 0)
				const busy = 5
				beBusy := func() {
					registryFault(w, clustertest.FirstN(busy, clustertest.Answer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
						w.Header().Set("Retry-After", tt.header)
						if tt.date != "" {
							w.Header().Set("Date", tt.date)
						}
						w.WriteHeader(http.StatusServiceUnavailable)
					}))))
				}
				beBusy()
				n := w.Add()
				requests := recordRequests(w)
				registerAsync(t.Context(), n)
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				wantState(t, n, cluster.Registered)
				registered := len(requests.renewals(n))
				beBusy()
				time.Sleep(2 * time.Hour) // a lease
				synctest.Wait()
				wantState(t, n, cluster.Registered)
				all := requests.renewals(n)
				for what, attempts := range map[string][]clustertest.Exchange{"registering": all[:registered], "renewing": all[registered:]} {
					if len(attempts) <= busy {
						t.Fatalf("%s: %d attempts", what, len(attempts))
					}
					for _, pause := range intervals(attempts)[:busy] {
						if pause < tt.want || pause > tt.want*5/4 {
							t.Errorf("%s: a pause of %v, want %v and up to a quarter more", what, pause, tt.want)
						}
					}
				}
			})
		})
	}
}

func TestRegistrationRetry(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.RegistrationRetry = time.Minute }))
		registryDown(w)
		n := w.Add()
		requests := recordRequests(w)
		registerAsync(t.Context(), n)
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := len(requests.renewals(n)); got < 46 || got > 90 {
			t.Errorf("%d attempts in an hour, want one a minute", got)
		}
		n.Close()
	})
}

// The next attempt begins when the last one has ended. The npm module begins one in every retry
// period, so that about 17 are in flight while the registry hangs.
func TestOneRegistrationRequestAtATime(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		registryFault(w, clustertest.Hang)
		n := w.Add()
		requests := recordRequests(w)
		registerAsync(t.Context(), n)
		time.Sleep(10 * time.Minute)
		synctest.Wait()

		attempts := requests.renewals(n)
		if len(attempts) < 13 {
			t.Fatalf("%d attempts in ten minutes, want one at least every 50 s", len(attempts))
		}
		for i, x := range attempts[1:] {
			if end := attempts[i].Start.Add(attempts[i].Duration); x.Start.Before(end) {
				t.Errorf("attempt %d began %v before the end of the last one", i+2, end.Sub(x.Start))
			}
			if x.Duration != 10*time.Second {
				t.Errorf("attempt %d took %v, want RequestTimeout", i+2, x.Duration)
			}
		}
		n.Close()
	})
}

// Register ends with its context, and its error has the cause and the last failure. The
// registration of the npm module cannot be stopped.
func TestRegisterEndsWithItsContext(t *testing.T) {
	parallel(t)
	errEnough := errors.New("enough")
	tests := map[string]struct {
		host    string // with the fault
		fault   clustertest.Fault
		after   time.Duration
		cause   error // of the end of the context; nil: its deadline
		failure func(error) bool
		reads   string
	}{
		"registry refuses": {
			clustertest.RegistryHost, clustertest.Refuse, time.Minute, errEnough,
			func(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) },
			"cluster: registering: enough, after: mIT cannot be reached by POST http://mit.test/mIT/v1/itResources: dial tcp",
		},
		"registry answers 503": {
			clustertest.RegistryHost, clustertest.Status(503), time.Minute, errEnough,
			func(err error) bool {
				se, ok := errors.AsType[*cluster.StatusError](err)
				return ok && se.Code == 503 && se.Remote == "mIT"
			},
			"cluster: registering: enough, after: mIT answered 503 Service Unavailable to POST http://mit.test/mIT/v1/itResources: injected by clustertest.Status",
		},
		"registry hangs": {
			clustertest.RegistryHost, clustertest.Hang, time.Minute, nil,
			func(err error) bool { _, ok := errors.AsType[*cluster.UnreachableError](err); return ok },
			"mIT cannot be reached by POST http://mit.test/mIT/v1/itResources: context deadline exceeded",
		},
		"registry hangs, first attempt": {
			clustertest.RegistryHost, clustertest.Hang, time.Second, nil,
			func(err error) bool { _, ok := errors.AsType[*cluster.UnreachableError](err); return ok },
			"mIT cannot be reached by POST http://mit.test/mIT/v1/itResources: context deadline exceeded",
		},
		"token service refuses": {
			clustertest.TokenHost, clustertest.Refuse, time.Minute, errEnough,
			func(err error) bool {
				te, ok := errors.AsType[*cluster.TokenError](err)
				return ok && te.Audience == "https://mit.test" && errors.Is(err, syscall.ECONNREFUSED)
			},
			`cluster: registering: enough, after: no token for "https://mit.test": mST cannot be reached by POST http://mst.test/mST/v1/oauth/token: dial tcp`,
		},
		"token service, malformed response": {
			clustertest.TokenHost, respondOK(`<html>`), time.Minute, errEnough,
			func(err error) bool {
				ae, ok := errors.AsType[*cluster.InvalidResponseError](err)
				return ok && ae.Remote == "mST"
			},
			`no token for "https://mit.test": mST gave an invalid response to POST http://mst.test/mST/v1/oauth/token: the response is not JSON`,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 0)
				w.Network.Fault(clustertest.Any, test.host, test.fault)
				n := w.Add()
				requests := recordRequests(w)
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

				before := len(requests.renewals(n))
				time.Sleep(time.Hour)
				synctest.Wait()
				if more := len(requests.renewals(n)) - before; more != 0 {
					t.Errorf("%d more attempts after Register had returned", more)
				}
				w.Network.Fault(clustertest.Any, test.host, nil)
				if _, err := n.Register(t.Context()); err != nil {
					t.Errorf("the next Register: %v", err)
				}
			})
		})
	}
}

func TestRegisterAnnouncesTheNode(t *testing.T) {
	parallel(t)
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

// A peer that does not answer the announcement does not fail the registration.
func TestRegisterWithDeadPeer(t *testing.T) {
	parallel(t)
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
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.Management = false }))
		n := w.Add()
		requests := recordRequests(w)
		res, err := n.Register(t.Context())
		if err != nil || res == nil || marshal(t, res) != `{"data":[],"results":[],"failures":[]}` {
			t.Errorf("Register returned %v, %v, want an empty response", res, err)
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		attempts := requests.renewals(n)
		if len(attempts) < 30 {
			t.Fatalf("%d registrations and renewals in a day of one-hour leases", len(attempts))
		}
		for _, x := range attempts {
			if x.Query != "managedCluster=off" || x.Status != http.StatusOK {
				t.Fatalf("POST with query %q was answered %d", x.Query, x.Status)
			}
		}
		if d := n.UnRegister(t.Context()); d.Errors != nil {
			t.Errorf("UnRegister: %v", d.Errors)
		}
		if got := requests.countToPeers(n); got != 0 {
			t.Errorf("%d requests to peers", got)
		}
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-1", "node-2"}) {
			t.Errorf("the registry lists %q", got)
		}
	})
}

func TestRegisterAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Nodes[0]
		requests := recordRequests(w)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		before := countGoroutines(t)
		res, err := n.Register(t.Context())
		if err != nil || len(res.Results) != 1 {
			t.Fatalf("Register returned %+v, %v", res, err)
		}
		synctest.Wait()
		if got := countGoroutines(t); got != before {
			t.Errorf("%d goroutines, want %d", got, before)
		}
		if got := len(requests.renewals(n)); got != 2 {
			t.Errorf("%d POSTs to the registry, want one of Register and one of the lease goroutine", got)
		}
		if got := len(requests.announcements(n, w.Nodes[1].Host)); got != 1 {
			t.Errorf("%d announcements, want one", got)
		}
		if got := n.Status().RenewedAt; !got.Equal(time.Now()) {
			t.Errorf("renewed at %v, want now", got)
		}
	})
}

// A second Register may get a shorter lease than the first, and the next renewal follows it.
func TestRegisterAgainWithAShorterLease(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		var hooks traceLog
		w := clustertest.Start(t, 0, clustertest.WithLease(24*time.Hour))
		n := w.Join(cluster.WithTrace(hooks.trace()))
		w.Registry.SetLease(time.Minute)
		if _, err := n.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 60 {
			time.Sleep(time.Minute)
			wantState(t, n, cluster.Registered)
		}
		if got := hooks.states(); !cmp.Equal(got, []string{"orphan→registered"}) {
			t.Errorf("the states were %q, want it registered all the time", got)
		}
	})
}

func TestRegisterAfterClose(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		var hooks traceLog
		w := clustertest.Start(t, 0)
		n := w.Add(cluster.WithTrace(hooks.trace()))
		n.Close()
		res, err := n.Register(t.Context())
		if res != nil || !errors.Is(err, cluster.ErrClosed) || err.Error() != "cluster: closed" {
			t.Errorf("Register returned %v, %v", res, err)
		}
		if got := hooks.texts(); !cmp.Equal(got, []string{"orphan→left: cluster: closed"}) {
			t.Errorf("the hooks reported %q", got)
		}
	})
}

// Servers that are announced to a node before it gets the response to its registration stay in its
// view.
func TestAnnouncementDuringRegistration(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1)
		n := w.Add()
		w.Network.Fault(n.Host, clustertest.RegistryHost, delayResponse(2*time.Second))
		done := registerAsync(t.Context(), n)
		time.Sleep(time.Second)
		w.Join() // it gets the list with node-2, and announces itself to node-2
		wantView(t, n, "node-3")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		wantView(t, n, "node-1", "node-2", "node-3")
	})
}

// An error of the token service names the request once.
func TestTokenErrorNamesTheRequestOnce(t *testing.T) {
	parallel(t)
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
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		n := w.Nodes[1]
		requests := recordRequests(w)
		d := n.UnRegister(t.Context())
		if diff := cmp.Diff(cluster.Departure{NbServers: 3, ServerID: "node-2"}, d); diff != "" {
			t.Errorf("Departure (-want +got):\n%s", diff)
		}
		wantState(t, n, cluster.Left)
		if got := n.Status().Env()["REGISTRATION_STATUS"]; got != "orphan: cluster: not registered: it has left" {
			t.Errorf("the registration reads %q", got)
		}
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-1", "node-3"}) {
			t.Errorf("the registry lists %q", got)
		}
		wantView(t, w.Nodes[0], "node-1", "node-3")
		wantView(t, w.Nodes[2], "node-1", "node-3")

		again := n.UnRegister(t.Context())
		if diff := cmp.Diff(d, again); diff != "" {
			t.Errorf("the second Departure differs (-first +second):\n%s", diff)
		}
		if got := len(requests.deletes(n)); got != 2 {
			t.Errorf("the registry received %d deletes, want one that looks the entry up and one", got)
		}
		if got := len(requests.matching(http.MethodDelete, n.Host, clustertest.Any)); got != 4 {
			t.Errorf("%d DELETEs in all, want two to the registry and one to each peer", got)
		}
	})
}

// UnRegister and Close end a Register that is in progress. With the npm module the registration
// continues, and the node comes back: its unRegister only stops the timer of the lease.
func TestUnRegisterStopsRegister(t *testing.T) {
	faults := map[string]clustertest.Fault{
		"while the registry refuses": clustertest.Refuse,
		"while the registry hangs":   clustertest.Hang,
		"while the registry is slow": clustertest.Delay(8 * time.Second),
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
					requests := recordRequests(w)
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
					for _, x := range requests.renewals(n) {
						if x.Start.After(ended) {
							t.Errorf("a POST %v after the end", x.Start.Sub(ended))
						}
					}
					if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-1"}) {
						t.Errorf("the registry lists %q", got)
					}
					if _, err := n.Register(t.Context()); !errors.Is(err, by.want) {
						t.Errorf("registering after it: %v, want %v", err, by.want)
					}
				})
			})
		}
	}
}

// UnRegister ends a Register that has registered the node and is announcing it.
func TestUnRegisterWhileAnnouncing(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		w.Network.Fault("node-3:8080", "node-1:8080", clustertest.Hang)
		n := w.Add()
		requests := recordRequests(w)
		done := registerAsync(t.Context(), n)
		time.Sleep(time.Second)
		wantState(t, n, cluster.Registered)
		d := n.UnRegister(t.Context())
		if d.Errors != nil || d.NbServers != 3 {
			t.Errorf("UnRegister: %+v", d)
		}
		if err := <-done; err != nil {
			t.Errorf("Register returned %v", err)
		}
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-1", "node-2"}) {
			t.Errorf("the registry lists %q", got)
		}
		if posted, deleted := requests.renewals(n), requests.deletes(n); len(posted) != 1 || len(deleted) != 2 {
			t.Errorf("%d POSTs and %d DELETEs to the registry, want 1 and 2", len(posted), len(deleted))
		}
	})
}

// The registry must not receive a renewal after the delete, even if the transport goes on with a
// request that was canceled. It would list the node until the lease expires.
func TestNoRenewalAfterDeregistration(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Nodes[0]
		requests := recordRequests(w)
		arrived := make(chan struct{}, 1)
		registryFault(w, onPost(signal(arrived, func(next http.RoundTripper) http.RoundTripper {
			return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
				time.Sleep(9 * time.Second)
				return next.RoundTrip(req.WithContext(context.WithoutCancel(req.Context())))
			})
		})))
		<-arrived // the renewal
		time.Sleep(2 * time.Second)
		done := registerAsync(t.Context(), n)
		time.Sleep(3 * time.Second)
		if d := n.UnRegister(t.Context()); d.Errors != nil || d.NbServers != 2 {
			t.Errorf("UnRegister: %+v", d)
		}
		if err := <-done; !errors.Is(err, cluster.ErrNotRegistered) {
			t.Errorf("Register returned %v", err)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		deleted := requests.deletes(n)
		if len(deleted) != 2 {
			t.Fatalf("%d DELETEs, want 2", len(deleted))
		}
		for _, x := range requests.renewals(n) {
			if end := x.Start.Add(x.Duration); end.After(deleted[0].Start) {
				t.Errorf("a POST ended %v after the DELETE began", end.Sub(deleted[0].Start))
			}
		}
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-2"}) {
			t.Errorf("the registry lists %q", got)
		}
	})
}

// A proxy may deliver a renewal after the node that has abandoned it has left. The renewal does not
// restore the entry of the node.
func TestLateRenewalAfterDeregistration(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Nodes[0]
		arrived, release := make(chan struct{}, 1), make(chan struct{})
		statuses := make(chan int, 1)
		w.Network.Fault(n.Host, clustertest.RegistryHost, onPost(signal(arrived, func(next http.RoundTripper) http.RoundTripper {
			return clustertest.Late(release)(clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
				resp, err := next.RoundTrip(req)
				if err == nil {
					statuses <- resp.StatusCode
				}
				return resp, err
			}))
		})))
		<-arrived // the renewal
		if d := n.UnRegister(t.Context()); d.Errors != nil {
			t.Errorf("UnRegister: %+v", d)
		}
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-2"}) {
			t.Errorf("the registry lists %q after the delete", got)
		}
		close(release)
		if status := <-statuses; status != http.StatusPreconditionFailed {
			t.Errorf("the late renewal is answered %d", status)
		}
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-2"}) {
			t.Errorf("the registry lists %q", got)
		}
	})
}

// A node whose entry is gone creates another one at once, also at a registry that has lost its
// data.
func TestRenewalOfAnEntryThatIsGone(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		requests := recordRequests(w)
		w.ResetRegistry()
		if _, err := w.Nodes[0].Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		var statuses []int
		for _, x := range requests.renewals(w.Nodes[0]) {
			statuses = append(statuses, x.Status)
		}
		if want := []int{412, 200}; !cmp.Equal(statuses, want) {
			t.Errorf("statuses %v, want %v", statuses, want)
		}
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-1"}) {
			t.Errorf("the registry lists %q", got)
		}
	})
}

// sameID gives node-3 of a world the id of node-1, as a process that replaces another has.
func sameID() clustertest.Option {
	return clustertest.WithConfig(func(cfg *cluster.Config) {
		if cfg.ID == "node-3" {
			cfg.ID = "node-1"
		}
	})
}

// wantAddress checks the address of a server in a list.
func wantAddress(t *testing.T, servers []cluster.Server, id, host string) {
	t.Helper()
	for _, s := range servers {
		if s.ServerID == id {
			if want := "http://" + host + "/mds/v1"; s.ClusterBaseURL != want {
				t.Errorf("%s is at %s, want %s", id, s.ClusterBaseURL, want)
			}
			return
		}
	}
	t.Errorf("%s is not in %q", id, idsOf(servers))
}

// A process that leaves does not take the place of another from it that has registered with its id
// since.
func TestDepartureKeepsTheSuccessor(t *testing.T) {
	parallel(t)
	tests := map[string]func(t *testing.T, w *clustertest.World, n *clustertest.Node){
		"registered since": nil,
		// The response to the last renewal lists the entry of the successor.
		"listed by the last renewal": func(t *testing.T, w *clustertest.World, n *clustertest.Node) {
			t.Helper()
			list := marshal(t, map[string]any{"id": mit.ResourceID("mds"), "publicBaseUrl": "http://x/mds/v1", "servers": w.Registered()})
			w.Network.Fault(n.Host, clustertest.RegistryHost, onPost(respondOK(`{"itResource":`+list+`}`)))
			if _, err := n.Register(t.Context()); err != nil {
				t.Fatal(err)
			}
		},
		// The registry executes the delete, but its response is lost, and the node repeats it.
		"after a lost response": func(t *testing.T, w *clustertest.World, n *clustertest.Node) {
			t.Helper()
			w.Network.Fault(n.Host, clustertest.RegistryHost, onDelete(clustertest.FirstN(1, clustertest.Reset)))
			n.UnRegister(t.Context())
		},
	}
	for name, before := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 3, sameID())
				if before != nil {
					before(t, w, w.Nodes[0])
				}
				requests := recordRequests(w)
				if d := w.Nodes[0].UnRegister(t.Context()); d.Errors != nil {
					t.Errorf("UnRegister: %v", d.Errors)
				}
				wantState(t, w.Nodes[0], cluster.Left)
				wantAddress(t, w.Registered(), "node-1", "node-3:8080")
				wantAddress(t, w.Nodes[1].Servers(), "node-1", "node-3:8080")
				if got := requests.countToPeers(w.Nodes[0]); got != 0 {
					t.Errorf("%d requests to peers, want no notification", got)
				}
			})
		})
	}
}

// The registry executes a delete after the node has restarted at the same address.
func TestLateDeleteKeepsTheRestartedNode(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Nodes[0]
		var late *http.Request
		w.Network.Fault(n.Host, clustertest.RegistryHost, onDelete(func(http.RoundTripper) http.RoundTripper {
			return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
				late = req.Clone(context.WithoutCancel(req.Context()))
				return nil, syscall.ECONNRESET
			})
		}))
		if d := n.UnRegister(t.Context()); len(d.Errors) != 1 {
			t.Errorf("UnRegister: %v, want an error", d.Errors)
		}
		n.Restart()
		sendLate(t, w, late)
		wantAddress(t, w.Registered(), "node-1", n.Host)
	})
}

// A renewal whose response is lost makes the entry newer than the node knows. The node deletes it.
func TestDepartureAfterLostRenewal(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Nodes[0]
		w.Network.Fault(n.Host, clustertest.RegistryHost, onPost(clustertest.Reset))
		time.Sleep(50 * time.Minute)
		wantState(t, n, cluster.Degraded)
		if d := n.UnRegister(t.Context()); d.Errors != nil {
			t.Errorf("UnRegister: %v", d.Errors)
		}
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-2"}) {
			t.Errorf("the registry lists %q", got)
		}
		wantView(t, w.Nodes[1], "node-2")
	})
}

// A registry whose entries have no dates cannot delete on a condition.
func TestDepartureWithoutDates(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Nodes[0]
		w.Network.Fault(n.Host, clustertest.RegistryHost, onPost(respondOK(`{"itResource":`+resourceWithDate("", "node-1", "node-2")+`}`)))
		if _, err := n.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		if d := n.UnRegister(t.Context()); d.Errors != nil {
			t.Errorf("UnRegister: %v", d.Errors)
		}
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-2"}) {
			t.Errorf("the registry lists %q", got)
		}
	})
}

func TestUnRegisterBeforeRegister(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		n := w.Add()
		requests := recordRequests(w)
		w.Join() // it does not know node-1, and does not announce itself to it
		if diff := cmp.Diff(cluster.Departure{ServerID: "node-1"}, n.UnRegister(t.Context())); diff != "" {
			t.Errorf("Departure (-want +got):\n%s", diff)
		}
		wantState(t, n, cluster.Left)
		if _, err := n.Register(t.Context()); !errors.Is(err, cluster.ErrNotRegistered) {
			t.Errorf("registering after it: %v", err)
		}
		if got := len(requests.matching(http.MethodPost, n.Host, clustertest.Any)) + len(requests.matching(http.MethodDelete, n.Host, clustertest.Any)); got != 0 {
			t.Errorf("%d requests", got)
		}
	})
}

// Servers that were announced to a node before its registration do not count in its Departure.
func TestUnRegisterAfterAnnouncementsOnly(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		// The registry lists the node, but its response is lost.
		registryFault(w, onPost(clustertest.Reset))
		n := w.Add()
		done := registerAsync(t.Context(), n)
		time.Sleep(10 * time.Second)
		announce(t, w, n, announcement("node-1", "node-2"))
		wantView(t, n, "node-1", "node-2")
		if d := n.UnRegister(t.Context()); d.NbServers != 0 || d.Errors != nil {
			t.Errorf("UnRegister: %+v, want no servers", d)
		}
		if err := <-done; !errors.Is(err, cluster.ErrNotRegistered) {
			t.Errorf("registering ended with %v, want %v", err, cluster.ErrNotRegistered)
		}
	})
}

func TestUnRegisterConcurrently(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		n := w.Nodes[0]
		requests := recordRequests(w)
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
		if got := len(requests.matching(http.MethodDelete, n.Host, clustertest.Any)); got != 4 {
			t.Errorf("%d DELETEs, want two to the registry and one to each of two peers", got)
		}
	})
}

func TestUnRegisterDuringOutage(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n, peer := w.Nodes[0], w.Nodes[1]
		registryDown(w)
		d := n.UnRegister(t.Context())
		if len(d.Errors) != 1 || !errors.Is(d.Errors[0], syscall.ECONNREFUSED) || !strings.HasPrefix(d.Errors[0].Error(), "mIT cannot be reached by DELETE ") {
			t.Errorf("errors %q, want that the registry cannot be reached", d.Errors)
		}
		if d.NbServers != 2 {
			t.Errorf("%d servers, want 2", d.NbServers)
		}
		wantState(t, n, cluster.Left)
		wantView(t, peer, "node-2") // the peer was notified

		registryUp(w)
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-1", "node-2"}) {
			t.Errorf("the registry lists %q although it was down", got)
		}
		if d := n.UnRegister(t.Context()); d.Errors != nil || d.NbServers != 2 {
			t.Errorf("the second UnRegister: %+v", d)
		}
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-2"}) {
			t.Errorf("the registry lists %q after the second UnRegister", got)
		}
	})
}

// The context of UnRegister bounds its duration.
func TestUnRegisterEndsWithItsContext(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		w.Network.Fault(clustertest.Any, clustertest.Any, clustertest.Hang)
		began := time.Now()
		d := w.Nodes[0].UnRegister(withTimeout(t, 2*time.Second))
		if took := time.Since(began); took != 2*time.Second {
			t.Errorf("it took %v", took)
		}
		if len(d.Errors) != 1 || !errors.Is(d.Errors[0], context.DeadlineExceeded) {
			t.Errorf("errors %q, want DeadlineExceeded", d.Errors)
		}
	})
}

// A dead peer is neither an error of UnRegister nor evicted by it.
func TestUnRegisterWithDeadPeer(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		w.Nodes[1].Kill()
		d := w.Nodes[0].UnRegister(t.Context())
		if d.Errors != nil || d.NbServers != 3 {
			t.Errorf("UnRegister: %+v", d)
		}
		if got := idsOf(w.Registered()); !cmp.Equal(got, []string{"node-2", "node-3"}) {
			t.Errorf("the registry lists %q, want no eviction", got)
		}
		wantView(t, w.Nodes[2], "node-2", "node-3")
	})
}

func TestUnRegisterAfterClose(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Nodes[0]
		requests := recordRequests(w)
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		wantState(t, n, cluster.Left)
		d := n.UnRegister(t.Context())
		if len(d.Errors) != 1 || !errors.Is(d.Errors[0], cluster.ErrClosed) || d.NbServers != 2 {
			t.Errorf("UnRegister: %+v, want ErrClosed", d)
		}
		synctest.Wait()
		if got := len(requests.matching(http.MethodDelete, n.Host, clustertest.Any)); got != 0 {
			t.Errorf("%d requests of a closed node", got)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
}

// Errors are encoded as their texts. The npm module returns Error values, which are encoded as
// empty objects.
func TestDepartureAsJSON(t *testing.T) {
	tests := map[string]struct {
		d    cluster.Departure
		want string
	}{
		"never registered": {cluster.Departure{ServerID: "me"}, `{"nbServers":0,"serverId":"me"}`},
		"without errors":   {cluster.Departure{NbServers: 3, ServerID: "me"}, `{"nbServers":3,"serverId":"me"}`},
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

// A notification of a departure that arrives after the server has returned does not remove it.
func TestLateDepartureKeepsTheReturnedPeer(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n, peer := w.Nodes[0], w.Nodes[1]
		var late *http.Request
		w.Network.Fault(n.Host, peer.Host, onDelete(clustertest.FirstN(1, func(http.RoundTripper) http.RoundTripper {
			return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
				late = req.Clone(context.WithoutCancel(req.Context()))
				return newHTTPResponse(req, http.StatusServiceUnavailable, "{}"), nil
			})
		})))
		n.UnRegister(t.Context())
		time.Sleep(time.Second)
		n.Move("elsewhere:8080")
		if _, err := n.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		sendLate(t, w, late)
		wantAddress(t, peer.Servers(), "node-1", "elsewhere:8080")
	})
}

// An announcement that arrives after the departure of its sender does not bring the sender back.
// Another process with its id comes back at once.
func TestLateAnnouncementOfADepartedPeer(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n, peer := w.Nodes[0], w.Nodes[1]
		n.Move("elsewhere:8080")
		send := holdAnnouncement(t, w, n, peer)
		if _, err := n.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		n.UnRegister(t.Context())
		send()
		if got := peer.Servers(); len(got) != 1 {
			t.Errorf("the peer knows %d servers, want itself alone", len(got))
		}
		n.Move("third:8080") // another process
		if _, err := n.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		wantAddress(t, peer.Servers(), "node-1", "third:8080")
	})
}

// sendLate sends a request that was held back. Any goroutine may call it.
func sendLate(t *testing.T, w *clustertest.World, held *http.Request) {
	t.Helper()
	resp, err := w.Network.Client("test").Do(held)
	if err != nil {
		t.Error(err)
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("%s %s was answered %s", held.Method, held.URL, resp.Status)
	}
}

// holdAnnouncement answers the next announcement of n to peer with 503, and returns a function that
// sends it after all.
func holdAnnouncement(t *testing.T, w *clustertest.World, n, peer *clustertest.Node) (send func()) {
	t.Helper()
	var held *http.Request
	w.Network.Fault(n.Host, peer.Host, onPost(clustertest.FirstN(1, func(http.RoundTripper) http.RoundTripper {
		return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
			body, err := io.ReadAll(req.Body)
			held = req.Clone(context.WithoutCancel(req.Context()))
			held.Body = io.NopCloser(bytes.NewReader(body))
			return newHTTPResponse(req, http.StatusServiceUnavailable, "{}"), err
		})
	})))
	return func() {
		t.Helper()
		if held == nil {
			t.Error("no announcement")
			return
		}
		sendLate(t, w, held)
	}
}

// nth applies a fault to the nth request only, and to all requests if n is 0.
func nth(n int64, f clustertest.Fault) clustertest.Fault {
	var count atomic.Int64
	return clustertest.If(func(*http.Request) bool { return n == 0 || count.Add(1) == n }, f)
}

// An announcement that a peer misses is repeated until the peer has it.
func TestMissedAnnouncementIsRepeated(t *testing.T) {
	parallel(t)
	tests := map[string]struct {
		host  string
		fault clustertest.Fault
	}{
		"peer answers 503":             {"node-1:8080", nth(1, clustertest.Status(503))},
		"peer is not mounted yet":      {"node-1:8080", clustertest.FirstN(2, clustertest.Status(404))},
		"peer rejects the token":       {"node-1:8080", clustertest.FirstN(4, clustertest.Status(403))},
		"connection is lost":           {"node-1:8080", clustertest.FirstN(1, func(http.RoundTripper) http.RoundTripper { return lost{} })},
		"request is lost":              {"node-1:8080", clustertest.FirstN(1, clustertest.Hang)},
		"no token for peers right now": {clustertest.TokenHost, nth(2, clustertest.Status(503))},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 2, noEviction())
				n := w.Add()
				w.Network.Fault(n.Host, test.host, test.fault)
				requests := recordRequests(w)
				if _, err := n.Register(t.Context()); err != nil {
					t.Fatal(err)
				}
				wantView(t, w.Nodes[0], "node-1", "node-2")
				time.Sleep(30 * time.Second)
				wantView(t, w.Nodes[0], "node-1", "node-2", "node-3")
				wantView(t, w.Nodes[1], "node-1", "node-2", "node-3")
				if got := len(requests.announcements(n, w.Nodes[1].Host)); got != 1 {
					t.Errorf("%d announcements to the other peer, want one", got)
				}
			})
		})
	}
}

// The context of Register and UnRegister may end before a peer has answered. The peer is called
// again later, too.
func TestRepetitionAfterTheContext(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2, noEviction())
		n := w.Add()
		w.Network.Fault(n.Host, w.Nodes[0].Host, clustertest.FirstN(1, clustertest.Hang))
		if _, err := n.Register(withTimeout(t, 5*time.Second)); err != nil {
			t.Fatal(err)
		}
		wantView(t, w.Nodes[0], "node-1", "node-2")
		time.Sleep(10 * time.Second)
		wantView(t, w.Nodes[0], "node-1", "node-2", "node-3")

		w.Network.Fault(n.Host, w.Nodes[0].Host, clustertest.FirstN(1, clustertest.Hang))
		if d := n.UnRegister(withTimeout(t, 5*time.Second)); d.Errors != nil {
			t.Errorf("UnRegister: %v", d.Errors)
		}
		wantView(t, w.Nodes[0], "node-1", "node-2", "node-3")
		time.Sleep(10 * time.Second)
		wantView(t, w.Nodes[0], "node-1", "node-2")
	})
}

// A circuit that is open for longer than all pauses does not use up the attempts.
func TestRepetitionWaitsForTheCircuit(t *testing.T) {
	parallel(t)
	start := func(t *testing.T, nodes int) *clustertest.World {
		t.Helper()
		slow := clustertest.WithConfig(func(cfg *cluster.Config) { cfg.RequestTimeout = time.Minute })
		return clustertest.Start(t, nodes, noEviction(), slow, clustertest.WithLease(time.Hour))
	}
	t.Run("announcement", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := start(t, 2)
			n := w.Add()
			w.Network.Fault(n.Host, "node-1:8080", clustertest.FirstN(1, clustertest.Hang))
			if _, err := n.Register(t.Context()); err != nil {
				t.Fatal(err)
			}
			wantView(t, w.Nodes[0], "node-1", "node-2")
			time.Sleep(65 * time.Second)
			wantView(t, w.Nodes[0], "node-1", "node-2", "node-3")
		})
	})
	t.Run("departure", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := start(t, 3)
			n, peer := w.Nodes[0], w.Nodes[1]
			w.Network.Fault(n.Host, peer.Host, clustertest.FirstN(1, clustertest.Hang))
			n.UnRegister(t.Context())
			wantView(t, peer, "node-1", "node-2", "node-3")
			time.Sleep(65 * time.Second)
			wantView(t, peer, "node-2", "node-3")
		})
	})
}

// A lost transport loses the connection before the request is handled.
type lost struct{}

func (lost) RoundTrip(*http.Request) (*http.Response, error) { return nil, syscall.ECONNRESET }

// A peer that rejects all announcements receives a few. One warning says so, and what to look at.
func TestRejectedAnnouncement(t *testing.T) {
	parallel(t)
	for code, hint := range map[int]string{
		404: "are the endpoints mounted under this base path?", 403: "have all nodes the same keys, issuer and audience?", 503: "the announcement is repeated",
	} {
		t.Run(strconv.Itoa(code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				core, logs := observer.New(zap.WarnLevel)
				w := clustertest.Start(t, 3)
				n := w.Add(cluster.WithLogger(zap.New(core)))
				w.Network.Fault(n.Host, "node-1:8080", onPost(clustertest.Status(code)))
				w.Network.Fault(n.Host, "node-2:8080", onPost(clustertest.Status(code)))
				requests := recordRequests(w)
				if _, err := n.Register(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(30 * time.Minute)
				synctest.Wait()
				lines := logs.FilterMessage("announcement rejected").All()
				if len(lines) != 1 {
					t.Fatalf("%d warnings, want one", len(lines))
				}
				fields := lines[0].ContextMap()
				if fields["rejected"] != int64(2) || fields["peers"] != int64(3) || fields["mostCommon"] != strconv.Itoa(code) || fields["hint"] != hint {
					t.Errorf("the warning has %v", fields)
				}
				want := 5
				if code == 403 {
					want = 10 // each is sent with a new token, too
				}
				sent := requests.announcements(n, "node-1:8080")
				if len(sent) < 5 || len(sent) > want {
					t.Errorf("%d announcements, want %d", len(sent), want)
				}
			})
		})
	}
}

// Nothing is announced any more by a node that leaves, nor by one whose lease has expired.
func TestRepeatedAnnouncementEnds(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Add()
		w.Network.Fault(n.Host, "node-1:8080", onPost(clustertest.Status(503)))
		requests := recordRequests(w)
		if _, err := n.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		n.UnRegister(t.Context())
		left := time.Now()
		time.Sleep(time.Hour)
		synctest.Wait()
		for _, x := range requests.announcements(n, "node-1:8080") {
			if x.Start.After(left) {
				t.Errorf("an announcement %v after the departure", x.Start.Sub(left))
			}
		}
	})
}

// A node whose lease has expired is not announced any more.
func TestRepetitionEndsWithTheLease(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		const lease = 10 * time.Second
		w := clustertest.Start(t, 2, clustertest.WithLease(lease))
		n := w.Add()
		w.Network.Fault(n.Host, "node-1:8080", onPost(clustertest.Status(503)))
		requests := recordRequests(w)
		if _, err := n.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		registryDown(w)
		start := time.Now()
		time.Sleep(time.Hour)
		synctest.Wait()
		announced := requests.announcements(n, "node-1:8080")
		if len(announced) < 3 {
			t.Errorf("%d requests within the lease, want 3", len(announced))
		}
		for _, x := range announced {
			if after := x.Start.Sub(start); after > lease {
				t.Errorf("an announcement after %v", after)
			}
		}
	})
}

// A later announcement takes the place of one that is still being repeated.
func TestLaterAnnouncementReplacesARepetition(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Add()
		w.Network.Fault(n.Host, "node-1:8080", onPost(clustertest.Status(503)))
		requests := recordRequests(w)
		for range 2 {
			if _, err := n.Register(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second) // repeated once
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := len(requests.announcements(n, "node-1:8080")); got != 2+5 {
			t.Errorf("%d requests, want 2 of the first announcement and 5 of the second", got)
		}
	})
}

// A departure that a peer misses is repeated while the process serves.
func TestMissedDepartureIsRepeated(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		n, peer := w.Nodes[0], w.Nodes[1]
		w.Network.Fault(n.Host, peer.Host, onDelete(clustertest.FirstN(2, clustertest.Status(503))))
		requests := recordRequests(w)
		n.UnRegister(t.Context())
		wantView(t, peer, "node-1", "node-2", "node-3")
		time.Sleep(30 * time.Second)
		wantView(t, peer, "node-2", "node-3")
		if got := len(requests.matching(http.MethodDelete, n.Host, w.Nodes[2].Host)); got != 1 {
			t.Errorf("%d notifications of the other peer, want one", got)
		}
	})
}

// The entry that the registry did not delete is not that of a successor.
func TestDepartureIsRepeatedDespiteTheRegistry(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		n, peer := w.Nodes[0], w.Nodes[1]
		w.Network.Fault(n.Host, clustertest.RegistryHost, onDelete(clustertest.FirstN(1, clustertest.Status(500))))
		w.Network.Fault(n.Host, peer.Host, onDelete(clustertest.FirstN(2, clustertest.Status(503))))
		if d := n.UnRegister(t.Context()); len(d.Errors) != 1 {
			t.Errorf("UnRegister: %v, want an error", d.Errors)
		}
		wantView(t, peer, "node-1", "node-2", "node-3")
		time.Sleep(30 * time.Second)
		wantView(t, peer, "node-2", "node-3")
	})
}

// The repetition does not remove a process that has registered with the id meanwhile.
func TestRepeatedDepartureKeepsTheSuccessor(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2, sameID())
		n, peer := w.Nodes[0], w.Nodes[1]
		w.Network.Fault(n.Host, peer.Host, onDelete(clustertest.FirstN(1, clustertest.Status(503))))
		n.UnRegister(t.Context())
		time.Sleep(10 * time.Millisecond)
		w.Join()
		requests := recordRequests(w)
		time.Sleep(time.Minute)
		synctest.Wait()
		wantAddress(t, peer.Servers(), "node-1", "node-3:8080")
		if got := requests.countToPeers(n); got != 0 {
			t.Errorf("%d notifications after the successor has registered", got)
		}
	})
}

const conflictWarning = "two running processes use one server id"

// Two running processes with one id: both, and their peer, report it, with both addresses. The
// peer and the first process do so within minutes, the second one when the peer sees the first one
// again.
func TestTwoProcessesWithOneID(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.WarnLevel)
		w := clustertest.Start(t, 3, sameID(), clustertest.WithOptions(cluster.WithLogger(zap.New(core))))
		reported := map[string]bool{} // by host
		look := func() {
			for _, n := range w.Nodes {
				for _, c := range n.Status().Conflicts {
					reported[n.Host] = true
					addresses := slices.Sorted(slices.Values(c.Addresses[:]))
					if want := []string{"http://node-1:8080/mds/v1", "http://node-3:8080/mds/v1"}; c.ServerID != "node-1" || !cmp.Equal(addresses, want) {
						t.Errorf("%s reports %v", n.Host, c)
					}
					if text := marshal(t, n.Status()); !strings.Contains(text, `"conflicts":[{"serverId":"node-1","addresses":["http://`) {
						t.Errorf("the status is %s", text)
					}
				}
			}
		}
		time.Sleep(10 * time.Minute)
		look()
		if !reported["node-1:8080"] || !reported["node-2:8080"] {
			t.Errorf("after ten minutes, it is reported at %v", reported)
		}
		const days = 14
		for range days * 24 {
			time.Sleep(time.Hour)
			look()
		}
		if len(reported) != 3 {
			t.Errorf("after %d days, it is reported at %v", days, reported)
		}
		if got := logs.FilterMessage(conflictWarning).Len(); got < 3 || got > 3*2*days {
			t.Errorf("%d warnings in %d days, want at most one per node in twelve leases", got, days)
		}

		w.Nodes[2].UnRegister(t.Context())
		time.Sleep(15 * time.Hour)
		for _, n := range w.Nodes[:2] {
			if got := n.Status().Conflicts; len(got) != 0 {
				t.Errorf("%s still reports %v", n.Host, got)
			}
		}
	})
}

// Nodes that do not apply announcements notice a conflict in them, too.
func TestConflictWithVerifyWithRegistry(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3, sameID(), clustertest.WithOptions(cluster.WithPeerPolicy(cluster.PeerPolicy{VerifyWithRegistry: true})))
		reported := map[string]bool{} // by host
		for range 7 * 24 {
			time.Sleep(time.Hour)
			for _, n := range w.Nodes {
				reported[n.Host] = reported[n.Host] || len(n.Status().Conflicts) == 1
			}
		}
		for host, noticed := range reported {
			if !noticed {
				t.Errorf("%s does not report the conflict within a week", host)
			}
		}
	})
}

// A registry whose response has the entry of the other process.
func TestConflictInTheResponse(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.WarnLevel)
		w := clustertest.Start(t, 1)
		n := w.Nodes[0]
		_ = n.Close()
		n = w.Add(cluster.WithLogger(zap.New(core)))
		elsewhere := `{"id":"it","servers":[{"serverId":"node-2","clusterBaseUrl":"http://elsewhere:8080/mds/v1"}]}`
		registryFault(w, onPost(respondOK(`{"itResource":`+elsewhere+`}`)))
		if _, err := n.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := n.Status().Conflicts; len(got) != 1 || got[0].Addresses != [2]string{"http://node-2:8080/mds/v1", "http://elsewhere:8080/mds/v1"} {
			t.Errorf("conflicts %v", got)
		}
		if got := logs.FilterMessage(conflictWarning).Len(); got != 1 {
			t.Errorf("%d warnings, want one", got)
		}
	})
}

// A node that restarts at other addresses, back and forth, for days, is not in conflict.
func TestMovesAreNoConflict(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.WarnLevel)
		w := clustertest.Start(t, 3, clustertest.WithOptions(cluster.WithLogger(zap.New(core))))
		for i := range 40 {
			n := w.Nodes[2]
			n.Move([]string{"a:8080", "b:8080"}[i%2])
			w.Network.Up(n.Host)
			if _, err := n.Register(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep([]time.Duration{time.Minute, 50 * time.Minute, 5 * time.Hour}[i%3])
		}
		for _, n := range w.Nodes {
			if got := n.Status().Conflicts; len(got) != 0 {
				t.Errorf("%s reports %v", n.ID, got)
			}
		}
		if got := logs.FilterMessage(conflictWarning).Len(); got != 0 {
			t.Errorf("%d warnings", got)
		}
	})
}
