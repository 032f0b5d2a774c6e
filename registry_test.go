package cluster_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

// A clock that differs from that of the registry by more than half a minute is reported, once a
// minute at most.
func TestClockDiffers(t *testing.T) {
	parallel(t)
	const second = time.Second
	for date, ahead := range map[time.Duration]time.Duration{
		0: 0, 30 * second: 0, -31 * second: 0, 31 * second: -31 * second, -33 * second: 32 * second, -24 * time.Hour: 24*time.Hour - second,
	} {
		t.Run(date.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				core, logs := observer.New(zap.WarnLevel)
				w := clustertest.Start(t, 0)
				registryFault(w, func(next http.RoundTripper) http.RoundTripper {
					return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
						resp, err := next.RoundTrip(req)
						if err == nil {
							resp.Header.Set("Date", time.Now().Add(date).UTC().Format(http.TimeFormat))
						}
						return resp, err
					})
				})
				n := w.Join(cluster.WithLogger(zap.New(core)))
				for range 3 {
					if _, err := n.Register(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				lines := logs.FilterMessage("clock differs from that of the registry").All()
				if ahead == 0 {
					if len(lines) != 0 {
						t.Errorf("logged %v", lines)
					}
					return
				}
				if len(lines) != 1 {
					t.Fatalf("logged %v, want one line", lines)
				}
				if f := lines[0].ContextMap(); f["ahead"] != ahead || f["registry"] != "http://mit.test/mIT/v1" || f["hint"] == nil {
					t.Errorf("the warning has %v, want %v ahead", f, ahead)
				}
			})
		})
	}
}

func TestStaysWithWorkingReplica(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := startReplicas(t, 0)
		n, home := joinReplica(w)
		requests := recordRequests(w)
		time.Sleep(30 * 24 * time.Hour)
		synctest.Wait()
		attempts, _ := requests.attempts(http.MethodPost, n)
		for _, got := range attempts {
			if got != (attempt{home, 200}) {
				t.Fatalf("a request to %v, although %s works", got, home)
			}
		}
		if len(attempts) < 700 {
			t.Errorf("%d renewals in a month", len(attempts))
		}
	})
}

// When its replica fails a node switches once to another. It probes the preferred replica, and
// switches back once that works again.
func TestFailoverAndFailback(t *testing.T) {
	parallel(t)
	for name, tt := range map[string]struct {
		fault  clustertest.Fault
		status int           // of the failing replica
		took   time.Duration // until another has answered
	}{
		"refuses":                {clustertest.Refuse, 0, 0},
		"hangs":                  {clustertest.Hang, 0, 10 * time.Second / 3},
		"stalls":                 {clustertest.Stall(10), 200, 10 * time.Second / 3},
		"truncates":              {clustertest.Truncate(10), 200, 0},
		"executes, then resets":  {clustertest.Reset, 0, 0},
		"answers 503":            {clustertest.Status(503), 503, 0},
		"answers 500":            {clustertest.Status(500), 500, 0},
		"has a bad certificate":  {badCertificate, 0, 0},
		"answers 429":            {clustertest.Status(429), 429, 0},
		"answers 404":            {clustertest.Status(404), 404, 0},
		"redirects":              {clustertest.Status(302), 302, 0},
		"answers with HTML":      {respondOK("<html>"), 200, 0},
		"does not list the node": {respondOK(`{"itResource": {"id": "1", "servers": []}}`), 200, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				core, logs := observer.New(zap.InfoLevel)
				w := startReplicas(t, 0, clustertest.WithOptions(cluster.WithLogger(zap.New(core))))
				n, home := joinReplica(w)
				w.Network.Fault(clustertest.Any, home, tt.fault)

				attempts, took := nextRenewal(w, n)
				if took != tt.took {
					t.Errorf("the renewal took %v, want %v", took, tt.took)
				}
				if len(attempts) != 2 || attempts[0] != (attempt{home, tt.status}) || attempts[1].host == home || attempts[1].status != 200 {
					t.Fatalf("requests to %v, want %s and then another replica", attempts, home)
				}
				other := attempts[1].host

				// It stays there, and probes the preferred replica.
				probes := 0
				for range 200 {
					attempts, _ := nextRenewal(w, n)
					if attempts[0].host == home {
						probes++
						attempts = attempts[1:]
					}
					if len(attempts) != 1 || attempts[0] != (attempt{other, 200}) {
						t.Fatalf("requests to %v, want %s", attempts, other)
					}
				}
				if probes < 20 || probes > 80 {
					t.Errorf("%d of 200 renewals probed the failing replica, want about one in four", probes)
				}
				switches := logs.FilterMessageSnippet("replica").All()
				if len(switches) != 1 || switches[0].Level != zap.WarnLevel || switches[0].ContextMap()["to"] != "http://"+other+"/mIT/v1" {
					t.Errorf("logged %v, want one switch", switches)
				}

				logs.TakeAll()
				w.Network.Fault(clustertest.Any, home, nil)
				for range 60 { // a renewal probes with a probability of 1/4; 60 without a probe are improbable
					attempts, _ = nextRenewal(w, n)
					if len(attempts) != 1 || attempts[0].status != 200 {
						t.Fatalf("requests to %v, want one replica", attempts)
					}
				}
				if attempts[0].host != home {
					t.Errorf("still at %s, although %s works", attempts[0].host, home)
				}
				switches = logs.FilterMessageSnippet("replica").All()
				if len(switches) != 1 || switches[0].Level != zap.InfoLevel || switches[0].ContextMap()["to"] != "http://"+home+"/mIT/v1" {
					t.Errorf("logged %v, want the failback", switches)
				}
			})
		})
	}
}

// If two of three replicas fail, the third answers. No replica gets two requests.
func TestFailoverPastTwoReplicas(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := startReplicas(t, 20)
		good := replicaHosts()[1]
		for _, host := range otherReplicas(good) {
			w.Network.Fault(clustertest.Any, host, clustertest.Hang)
		}
		requests := recordRequests(w)
		time.Sleep(45 * time.Minute) // all have renewed once
		longest := 0
		for _, n := range w.Nodes {
			attempts, took := requests.attempts(http.MethodPost, n)
			last := len(attempts) - 1
			if want := time.Duration(last) * 10 * time.Second / 3; took != want {
				t.Errorf("%v took %v, want %v: a third of the timeout for each hanging replica", attempts, took, want)
			}
			if attempts[last] != (attempt{good, 200}) || last == 2 && attempts[0].host == attempts[1].host || last > 2 {
				t.Errorf("requests to %v, want one to each, and %s last", attempts, good)
			}
			longest = max(longest, len(attempts))
		}
		if longest != 3 {
			t.Errorf("at most %d requests, want 3", longest)
		}
	})
}

// A client error does not fail over, because another replica would answer the same.
func TestNoFailoverOnClientErrors(t *testing.T) {
	parallel(t)
	for _, tt := range []struct{ status, attempts int }{{400, 1}, {401, 2}, {403, 2}, {409, 1}, {422, 1}} {
		t.Run(fmt.Sprint(tt.status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				failed := make(chan error, 1)
				w := startReplicas(t, 0, clustertest.WithOptions(onRenewalFailure(func(err error) { failed <- err })))
				n, home := joinReplica(w)
				for _, host := range replicaHosts() {
					w.Network.Fault(clustertest.Any, host, clustertest.FirstN(tt.attempts, clustertest.Status(tt.status)))
				}
				requests := recordRequests(w)
				err := <-failed
				if se, ok := errors.AsType[*cluster.StatusError](err); !ok || se.Code != tt.status || !strings.HasPrefix(se.URL, "http://"+home+"/") {
					t.Errorf("the renewal failed with %v", err)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				want := append(slices.Repeat([]attempt{{home, tt.status}}, tt.attempts), attempt{home, 200})
				if got, _ := requests.attempts(http.MethodPost, n); !slices.Equal(got, want) {
					t.Errorf("requests to %v, want %v", got, want)
				}
				wantState(t, n, cluster.Registered)
			})
		})
	}
}

// A call that its caller cancels does not fail over.
func TestCanceledCallDoesNotFailOver(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := startReplicas(t, 0)
		n, home := joinReplica(w)
		w.Network.Fault(clustertest.Any, home, clustertest.Hang)
		requests := recordRequests(w)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		began := time.Now()
		_, err := n.Register(ctx)
		if took := time.Since(began); !errors.Is(err, context.Canceled) || strings.Count(err.Error(), "cannot be reached") != 1 || took != time.Second {
			t.Errorf("after %v: %v", took, err)
		}
		w.Network.Fault(clustertest.Any, home, nil)
		nextRenewal(w, n)
		if got, _ := requests.attempts(http.MethodPost, n); !slices.Equal(got, []attempt{{home, 0}, {home, 200}}) {
			t.Errorf("requests to %v, want two to %s", got, home)
		}
	})
}

// If all replicas fail, the lease expires as with one registry, and the reason names all replicas.
func TestAllReplicasFail(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		const lease = time.Minute
		w := startReplicas(t, 1, clustertest.WithLease(lease))
		n := w.Nodes[0]
		faults := []clustertest.Fault{clustertest.Refuse, clustertest.Hang, clustertest.Status(503)}
		for i, host := range replicaHosts() {
			w.Network.Fault(clustertest.Any, host, faults[i])
		}
		time.Sleep(lease * 9 / 10)
		wantState(t, n, cluster.Degraded)
		time.Sleep(lease)
		wantState(t, n, cluster.Lost)
		requests := recordRequests(w)
		time.Sleep(time.Hour)
		wantState(t, n, cluster.Lost)

		reason := n.Status().Reason
		for _, part := range []string{
			"mIT cannot be reached by POST http://mit-1.test/mIT/v1/itResources: ",
			"mIT cannot be reached by POST http://mit-2.test/mIT/v1/itResources: context deadline exceeded",
			"mIT answered 503 Service Unavailable to POST http://mit-3.test/mIT/v1/itResources: ",
		} {
			if strings.Count(reason.Error(), part) != 1 {
				t.Errorf("the reason does not name %q once: %v", part, reason)
			}
		}
		if strings.Contains(reason.Error(), "\n") {
			t.Errorf("the reason is not one line: %q", reason)
		}
		ue, unreachable := errors.AsType[*cluster.UnreachableError](reason)
		se, answered := errors.AsType[*cluster.StatusError](reason)
		if !unreachable || ue.Remote != "mIT" || !answered || se.Code != 503 || !errors.Is(reason, syscall.ECONNREFUSED) || !errors.Is(reason, context.DeadlineExceeded) {
			t.Errorf("errors of the reason: %v, %v", ue, se)
		}
		attempts, _ := requests.attempts(http.MethodPost, n)
		count := map[string]int{}
		for _, got := range attempts {
			count[got.host]++
		}
		for _, host := range replicaHosts() { // recording may begin and end within an attempt
			if got := count[host]; got < len(attempts)/3-1 || got > len(attempts)/3+1 || got < 200 {
				t.Errorf("%d of %d requests went to %s, want a third", got, len(attempts), host)
			}
		}

		for _, host := range replicaHosts() {
			w.Network.Fault(clustertest.Any, host, nil)
		}
		time.Sleep(20 * time.Second) // an attempt in progress, and the pause after it
		synctest.Wait()
		wantState(t, n, cluster.Registered)
	})
}

// A renewal may take until the lease expires, and its replicas share this time. So two of three
// replicas may hang even if the lease is a few seconds.
func TestShortLeaseWithSilentReplicas(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := startReplicas(t, 5, clustertest.WithLease(3*time.Second), clustertest.WithOptions(cluster.WithTrace(&cluster.Trace{
			StateChanged: func(_ context.Context, _, to cluster.Status) {
				if to.State == cluster.Lost {
					t.Errorf("%s: %v", to.ServerID, to.Reason)
				}
			},
		})))
		for _, good := range replicaHosts() {
			for _, host := range replicaHosts() {
				w.Network.Fault(clustertest.Any, host, nil)
			}
			time.Sleep(time.Minute)
			for _, host := range otherReplicas(good) {
				w.Network.Fault(clustertest.Any, host, clustertest.Hang)
			}
			time.Sleep(3 * time.Minute)
			synctest.Wait()
			for _, n := range w.Nodes {
				if last := n.Status().RenewedAt; time.Since(last) > 3*time.Second {
					t.Errorf("%s last renewed %v ago", n.ID, time.Since(last))
				}
			}
		}
		for _, n := range w.Nodes {
			n.Close()
		}
	})
}

// A replica that rejects the token after a failover gets a new token.
func TestTokenRefreshDuringFailover(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := startReplicas(t, 0)
		n, home := joinReplica(w)
		w.Network.Fault(clustertest.Any, home, clustertest.Refuse)
		for _, host := range otherReplicas(home) {
			w.Network.Fault(clustertest.Any, host, clustertest.FirstN(1, clustertest.Status(403)))
		}
		requests := recordRequests(w)
		attempts, _ := nextRenewal(w, n)
		next := attempts[1].host
		refused := attempt{home, 0}
		// The second request may try it again first.
		rest := slices.DeleteFunc(slices.Clone(attempts), func(t attempt) bool { return t == refused })
		if want := []attempt{{next, 403}, {next, 200}}; attempts[0] != refused || len(attempts) > 4 || !slices.Equal(rest, want) {
			t.Errorf("requests to %v, want %s, then %v", attempts, home, want)
		}
		if got := len(requests.tokenRequests(n)); got != 1 {
			t.Errorf("%d tokens fetched, want one", got)
		}
	})
}

// The replicas share the time for a conditional delete, so that the last one still can confirm it.
func TestEvictionFailsOver(t *testing.T) {
	parallel(t)
	for name, tt := range map[string]struct {
		fault clustertest.Fault
		fail  int           // number of failing replicas
		wait  time.Duration // shared by three replicas
	}{
		"one refuses":              {clustertest.Refuse, 1, 0},
		"one hangs":                {clustertest.Hang, 1, 2 * time.Second},
		"two hang":                 {clustertest.Hang, 2, 2 * time.Second},
		"two answer 503":           {clustertest.Status(503), 2, 0},
		"one answers without data": {respondOK("{}"), 1, 0},
		// For the second the server is already deleted.
		"one executes, then resets": {clustertest.Reset, 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := startReplicas(t, 4)
				n, home := joinReplica(w)
				failing := append([]string{home}, otherReplicas(home)...)[:tt.fail]
				for _, host := range failing {
					w.Network.Fault(clustertest.Any, host, onDelete(tt.fault))
				}
				w.Nodes[2].Kill()
				requests := recordRequests(w)
				began := time.Now()
				o := singleFailure(t, rpc(t, n, cluster.Request{Path: "/things"}))
				took := time.Since(began) - 10*time.Millisecond // the retry of the peer
				if !o.Evicted || o.EvictionSkipped != nil {
					t.Errorf("evicted %t, skipped: %v", o.Evicted, o.EvictionSkipped)
				}
				attempts, _ := requests.attempts(http.MethodDelete, n)
				failed := slices.IndexFunc(attempts, func(a attempt) bool { return a.host == attempts[len(attempts)-1].host })
				want := tt.wait * time.Duration(failed) / 3 // the second one may work
				if took != want || failed < 1 || attempts[0].host != home || len(attempts) != failed+2 || attempts[failed].status != 200 || attempts[failed+1].status != 200 {
					t.Errorf("requests to %v in %v, want %v", attempts, took, want)
				}
				wantView(t, n, "node-1", "node-2", "node-4", "node-5")
				if got := idsOf(w.Registered()); len(got) != 4 {
					t.Errorf("the registry lists %q", got)
				}
			})
		})
	}
}

// If the response to a delete was lost, the delete is repeated at another replica. If the server
// has registered again meanwhile, the response has its new entry, and the server is not evicted.
func TestRepeatedDeleteOfReturnedPeer(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := startReplicas(t, 4)
		n, home := joinReplica(w)
		peer := w.Nodes[2]
		peer.Kill()
		w.Network.Fault(n.Host, home, func(next http.RoundTripper) http.RoundTripper {
			reset := clustertest.Reset(next)
			return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
				if strings.HasSuffix(req.URL.Path, epoch) {
					return next.RoundTrip(req)
				}
				resp, err := reset.RoundTrip(req)
				if got := idsOf(w.Registered()); len(got) != 4 {
					t.Errorf("the registry lists %q, want the peer deleted", got)
				}
				peer.StartUnregistered()
				renewUnnoticed(t, w, n, peer)
				return resp, err
			})
		})
		res := rpc(t, n, cluster.Request{Path: "/things"})
		if len(res.Failures) > 0 || len(res.Results) != 4 {
			t.Errorf("%d results; failures %v", len(res.Results), failures(res))
		}
		wantView(t, n, "node-1", "node-2", "node-3", "node-4", "node-5")
		if got := idsOf(w.Registered()); len(got) != 5 {
			t.Errorf("the registry lists %q", got)
		}
	})
}

func TestUnRegisterFailsOver(t *testing.T) {
	parallel(t)
	for name, fault := range map[string]clustertest.Fault{
		"refuses": clustertest.Refuse, "hangs": clustertest.Hang, "answers 503": clustertest.Status(503), "executes, then resets": clustertest.Reset,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := startReplicas(t, 1)
				n, home := joinReplica(w)
				w.Network.Fault(clustertest.Any, home, fault)
				began := time.Now()
				if d := n.UnRegister(t.Context()); d.Errors != nil || d.NbServers != 2 {
					t.Errorf("UnRegister: %+v", d)
				}
				if took := time.Since(began); took > 2*time.Second/3 {
					t.Errorf("UnRegister took %v", took)
				}
				if got := idsOf(w.Registered()); !slices.Equal(got, []string{"node-1"}) {
					t.Errorf("the registry lists %q", got)
				}
				wantView(t, w.Nodes[0], "node-1")
			})
		})
	}
}

// An error about an invalid response names the replica.
func TestInvalidResponseNamesItsReplica(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := startReplicas(t, 0)
		n, home := joinReplica(w)
		for _, host := range replicaHosts() {
			w.Network.Fault(clustertest.Any, host, respondOK(`{"itResource": {"id": "1", "servers": []}}`))
		}
		_, err := n.Register(withTimeout(t, time.Second))
		ae, ok := errors.AsType[*cluster.InvalidResponseError](err)
		if !ok || ae.URL != "http://"+home+"/mIT/v1/itResources" {
			t.Errorf("registering: %v", err)
		}
		for _, host := range replicaHosts() {
			if err == nil || !strings.Contains(err.Error(), "http://"+host+"/mIT/v1/itResources") {
				t.Errorf("%s is not named: %v", host, err)
			}
		}
	})
}

// joinReplica adds a node, and returns the replica that it has chosen.
func joinReplica(w *clustertest.World) (n *clustertest.Node, home string) {
	requests := recordRequests(w)
	n = w.Join()
	attempts, _ := requests.attempts(http.MethodPost, n)
	return n, attempts[0].host
}

// nextRenewal waits at most a day for the next renewal of n, and returns its requests.
func nextRenewal(w *clustertest.World, n *clustertest.Node) (attempts []attempt, took time.Duration) {
	var requests requestLog
	defer w.Network.Observe(requests.record)()
	last, began := n.Status().RenewedAt, time.Now()
	for n.Status().RenewedAt.Equal(last) && time.Since(began) < 24*time.Hour {
		time.Sleep(time.Minute)
	}
	return requests.attempts(http.MethodPost, n)
}

// otherReplicas returns the hosts of the replicas except the given ones.
func otherReplicas(except ...string) []string {
	return slices.DeleteFunc(replicaHosts(), func(h string) bool { return slices.Contains(except, h) })
}

func replicaHosts() []string { return []string{"mit-1.test", "mit-2.test", "mit-3.test"} }

// replicaURLs is the RegistryURL of a Config that lists the replicas.
func replicaURLs() string {
	return "http://" + strings.Join(replicaHosts(), "/mIT/v1, http://") + "/mIT/v1"
}

// startReplicas starts a world with a registry at three hosts.
func startReplicas(t *testing.T, nodes int, opts ...clustertest.Option) *clustertest.World {
	t.Helper()
	w := clustertest.Start(t, 0, append([]clustertest.Option{
		clustertest.WithConfig(func(cfg *cluster.Config) { cfg.RegistryURL = replicaURLs() }),
	}, opts...)...)
	w.Network.Remove(clustertest.RegistryHost)
	for _, host := range replicaHosts() {
		w.Network.Handle(host, w.Registry)
	}
	for range nodes {
		w.Join()
	}
	return w
}

// An attempt is a request to a replica. Its status is 0 if no response was received.
type attempt struct {
	host   string
	status int
}

// attempts returns the requests of one method from n to the replicas, and how long they took in
// all.
func (l *requestLog) attempts(method string, n *clustertest.Node) (attempts []attempt, took time.Duration) {
	var began time.Time
	for _, x := range l.matching(method, n.Host, clustertest.Any) {
		if slices.Contains(replicaHosts(), x.To) {
			if attempts == nil {
				began = x.Start
			}
			attempts, took = append(attempts, attempt{x.To, x.Status}), x.Start.Add(x.Duration).Sub(began)
		}
	}
	return attempts, took
}

// A token that is rejected is replaced, because the function of WithTokens returns a new one each
// time.
func TestWithTokensReplacesRejectedToken(t *testing.T) {
	var issued atomic.Int64
	issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"access_token":"token-%d","token_type":"bearer","expires_in":3600}`, issued.Add(1))
	}))
	defer issuer.Close()
	credentials := clientcredentials.Config{ClientID: "mds", ClientSecret: "secret", TokenURL: issuer.URL}
	var sent []string
	registry := clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
		bearer := strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer ")
		sent = append(sent, bearer)
		if bearer == "token-1" || bearer == "token-3" {
			return newHTTPResponse(req, http.StatusForbidden, ""), nil
		}
		return newHTTPResponse(req, http.StatusOK, registrationResponse(time.Hour, "node-1")), nil
	})
	c := newNode(t, testConfig(), registry, cluster.WithTokens(func(ctx context.Context, _ cluster.TokenKey) (*oauth2.Token, error) {
		if cluster.CorrelationID(ctx) == "" {
			t.Error("no correlation id")
		}
		return credentials.Token(ctx)
	}))
	for range 2 {
		if _, err := c.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"token-1", "token-2", "token-2"}; !slices.Equal(sent, want) {
		t.Errorf("sent %q, want %q", sent, want)
	}
}

func TestWithTokensFails(t *testing.T) {
	for name, tt := range map[string]struct {
		fetch func(ctx context.Context, key cluster.TokenKey) (*oauth2.Token, error)
		want  string
	}{
		"error":    {func(context.Context, cluster.TokenKey) (*oauth2.Token, error) { return nil, errors.New("no vault") }, "no vault"},
		"no token": {func(context.Context, cluster.TokenKey) (*oauth2.Token, error) { return nil, nil }, "no token"},
		"empty":    {func(context.Context, cluster.TokenKey) (*oauth2.Token, error) { return &oauth2.Token{}, nil }, "no access_token"},
		"expired": {func(context.Context, cluster.TokenKey) (*oauth2.Token, error) {
			return &oauth2.Token{AccessToken: "old", Expiry: time.Unix(1, 0)}, nil
		}, "already expired"},
		"panic": {func(context.Context, cluster.TokenKey) (*oauth2.Token, error) { panic("no map") }, "no map"},
		"hanging": {func(ctx context.Context, _ cluster.TokenKey) (*oauth2.Token, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}, "no token within 1m0s"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				c := newNode(t, testConfig(), http.DefaultTransport, cluster.WithTokens(tt.fetch))
				_, err := c.Register(ctx)
				te, ok := errors.AsType[*cluster.TokenError](err)
				if !ok || te.Audience != "mit" || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%v, want %q", err, tt.want)
				}
				_ = c.Close()
			})
		})
	}
}

// The client secret is read from its file when a token is fetched. A former one stays redacted.
func TestClientSecretFile(t *testing.T) {
	cfg := testConfig()
	cfg.ClientSecret, cfg.ClientSecretFile = "", filepath.Join(t.TempDir(), "secret")
	var sent []string
	remotes := clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
		if req.URL.Host == "mst.test" {
			var body struct {
				ClientSecret string `json:"client_secret"`
			}
			if err := json.NewDecoder(req.Body).Decode(&body); err != nil {
				t.Error(err)
			}
			sent = append(sent, body.ClientSecret)
			return newHTTPResponse(req, http.StatusUnauthorized, `{"message":"not hidden-1"}`), nil
		}
		return newHTTPResponse(req, http.StatusOK, registrationResponse(time.Hour, "node-1")), nil
	})
	stop := func() {}
	c := newNode(t, cfg, remotes, cluster.WithTokens(nil), onRenewalFailure(func(error) { stop() }))
	register := func() string {
		ctx, cancel := context.WithCancel(t.Context())
		stop = cancel
		_, err := c.Register(ctx)
		return fmt.Sprint(err)
	}
	if text := register(); !strings.Contains(text, "OAUTH_CLIENT_SECRET_FILE cannot be used: ") || !strings.Contains(text, cfg.ClientSecretFile) {
		t.Errorf("without the file: %s", text)
	}
	for _, secret := range []string{"hidden-1", "hidden-2"} {
		writeFile(t, cfg.ClientSecretFile, secret+"\n")
		if text := register(); !strings.Contains(text, "not [redacted]") {
			t.Errorf("with %s: %s", secret, text)
		}
	}
	if want := []string{"hidden-1", "hidden-2"}; !slices.Equal(sent, want) {
		t.Errorf("sent %q, want %q", sent, want)
	}
}

// The replicas of the token service are used like those of the registry.
func TestTokenServiceReplicas(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.TokenURL = "http://mst-1.test/token, http://mst-2.test/token/,http://mst-3.test/token"
		cfg.Issuer = "http://issuer.test/never-called"
		logs, entries := observer.New(zap.DebugLevel)
		var (
			mu       sync.Mutex // guards requests
			requests []string
		)
		record := func(req *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			requests = append(requests, req.URL.String())
		}
		recorded := func() []string {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(requests)
		}
		remotes := clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
			switch req.URL.Host {
			case "mst-1.test":
				record(req)
				return nil, syscall.ECONNREFUSED
			case "mst-2.test":
				record(req)
				return newHTTPResponse(req, http.StatusOK, "<html>a proxy</html>"), nil
			case "mst-3.test":
				record(req)
				return newHTTPResponse(req, http.StatusOK, `{"access_token":"token","expires_in":3600}`), nil
			case "mit.test":
				return newHTTPResponse(req, http.StatusOK, registrationResponse(time.Hour, "node-1")), nil
			}
			return nil, errors.New("called " + req.URL.Host)
		})
		c := newNode(t, cfg, remotes, cluster.WithTokens(nil), cluster.WithLogger(zap.New(logs)))
		if _, err := c.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		tried := recorded()
		if len(tried) == 0 || tried[len(tried)-1] != "http://mst-3.test/token" || slices.Contains(tried[:len(tried)-1], "http://mst-3.test/token") {
			t.Errorf("tried %q", tried)
		}
		if switched := entries.FilterMessage("switched token service replica").Len(); switched != min(len(tried)-1, 1) {
			t.Errorf("%d changes logged after %q", switched, tried)
		}
		time.Sleep(24 * time.Hour)
		if rest := recorded()[3:]; len(rest) < 10 || !slices.Contains(rest, "http://mst-3.test/token") {
			t.Errorf("%d requests in a day", len(rest))
		}
		_ = c.Close()
	})
}

// A token may be too long for a remote, or malformed. It is replaced once by another one, not for
// each request.
func TestDoubtfulTokenIsReplacedOnce(t *testing.T) {
	parallel(t)
	for _, status := range []int{http.StatusRequestHeaderFieldsTooLarge, http.StatusBadRequest} {
		for name, host := range map[string]string{"registry": clustertest.RegistryHost, "peer": "node-2:8080"} {
			t.Run(fmt.Sprintf("%d from a %s", status, name), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := clustertest.Start(t, 2)
					n := w.Nodes[0]
					rpc(t, n, cluster.Request{Path: "/things"}) // both tokens are known
					var mu sync.Mutex
					sent := map[string]bool{}
					w.Network.Fault(n.Host, host, func(next http.RoundTripper) http.RoundTripper {
						return clustertest.RoundTripperFunc(func(r *http.Request) (*http.Response, error) {
							mu.Lock()
							defer mu.Unlock()
							sent[r.Header.Get("Authorization")] = true
							return respond(status, "")(next).RoundTrip(r)
						})
					})
					requests := recordRequests(w)
					for range 10 {
						rpc(t, n, cluster.Request{Path: "/things"})
						ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
						_, _ = n.Register(ctx) // fails if the registry rejects it
						cancel()
					}
					if len(sent) != 2 || len(requests.tokenRequests(n)) != 1 {
						t.Errorf("%d tokens were sent, %d were requested", len(sent), len(requests.tokenRequests(n)))
					}
				})
			})
		}
	}
}
