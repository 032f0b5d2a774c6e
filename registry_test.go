package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

func TestStaysWithWorkingReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := startReplicas(t, 0)
		n, home := joinReplica(w)
		l := recordRequests(w)
		time.Sleep(30 * 24 * time.Hour)
		synctest.Wait()
		tries, _ := l.attempts(http.MethodPost, n)
		for _, got := range tries {
			if got != (attempt{home, 200}) {
				t.Fatalf("asked %v, and nothing had failed at %s", got, home)
			}
		}
		if len(tries) < 700 {
			t.Errorf("%d renewals in a month", len(tries))
		}
	})
}

// On to another replica, once, from one that does not work; and back to the first choice, by and by,
// once that works again.
func TestFailoverAndFailback(t *testing.T) {
	for name, tt := range map[string]struct {
		fault  clustertest.Fault
		status int           // at the one that fails
		took   time.Duration // until the other one has answered
	}{
		"refuses":              {clustertest.Refuse, 0, 0},
		"hangs":                {clustertest.Hang, 0, 10 * time.Second / 3},
		"stops in its answer":  {clustertest.Stall(10), 200, 10 * time.Second / 3},
		"breaks off":           {clustertest.Truncate(10), 200, 0},
		"does it, and is gone": {clustertest.Reset, 0, 0},
		"lost its etcd":        {clustertest.Status(503), 503, 0},
		"is broken":            {clustertest.Status(500), 500, 0},
		"is not to be trusted": {badCertificate, 0, 0},
		"is overrun":           {clustertest.Status(429), 429, 0},
		"is no registry":       {clustertest.Status(404), 404, 0},
		"sends one elsewhere":  {clustertest.Status(302), 302, 0},
		"says something else":  {respondOK("<html>"), 200, 0},
		"knows us not":         {respondOK(`{"itResource": {"id": "1", "servers": []}}`), 200, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				core, logs := observer.New(zap.InfoLevel)
				w := startReplicas(t, 0, clustertest.WithOptions(cluster.WithLogger(zap.New(core))))
				n, home := joinReplica(w)
				w.Network.Fault(clustertest.Any, home, tt.fault)

				tries, took := nextRenewal(w, n)
				if took != tt.took {
					t.Errorf("it took %v, want %v", took, tt.took)
				}
				if len(tries) != 2 || tries[0] != (attempt{home, tt.status}) || tries[1].host == home || tries[1].status != 200 {
					t.Fatalf("asked %v, want %s in vain and then one of the others", tries, home)
				}
				there := tries[1].host

				// It stays there, but looks now and then whether the first choice is back.
				looked := 0
				for range 400 {
					tries, _ := nextRenewal(w, n)
					if tries[0].host == home {
						looked++
						tries = tries[1:]
					}
					if len(tries) != 1 || tries[0] != (attempt{there, 200}) {
						t.Fatalf("asked %v, want %s", tries, there)
					}
				}
				if looked < 50 || looked > 150 {
					t.Errorf("of 400 renewals %d began at the one that fails, want about one in four", looked)
				}
				moves := logs.FilterMessageSnippet("replica").All()
				if len(moves) != 1 || moves[0].Level != zap.WarnLevel || moves[0].ContextMap()["to"] != "http://"+there+"/mIT/v1" {
					t.Errorf("logged %v, want the one move", moves)
				}

				logs.TakeAll()
				w.Network.Fault(clustertest.Any, home, nil)
				for range 200 {
					tries, _ = nextRenewal(w, n)
					if len(tries) != 1 || tries[0].status != 200 {
						t.Fatalf("asked %v, want one replica", tries)
					}
				}
				if tries[0].host != home {
					t.Errorf("it is still at %s, and %s works", tries[0].host, home)
				}
				moves = logs.FilterMessageSnippet("replica").All()
				if len(moves) != 1 || moves[0].Level != zap.InfoLevel || moves[0].ContextMap()["to"] != "http://"+home+"/mIT/v1" {
					t.Errorf("logged %v, want the way back", moves)
				}
			})
		})
	}
}

// If two of three fail, it is the third that answers, and none is asked twice.
func TestFailoverPastTwoReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := startReplicas(t, 20)
		good := replicaHosts()[1]
		for _, host := range otherReplicas(good) {
			w.Network.Fault(clustertest.Any, host, clustertest.Hang)
		}
		l := recordRequests(w)
		time.Sleep(45 * time.Minute) // all have renewed once
		most := 0
		for _, n := range w.Nodes {
			tries, took := l.attempts(http.MethodPost, n)
			last := len(tries) - 1
			if want := time.Duration(last) * 10 * time.Second / 3; took != want {
				t.Errorf("%v took %v, want %v: a third of the timeout for each that hangs", tries, took, want)
			}
			if tries[last] != (attempt{good, 200}) || last == 2 && tries[0].host == tries[1].host || last > 2 {
				t.Errorf("asked %v, want each once, and %s last", tries, good)
			}
			most = max(most, len(tries))
		}
		if most != 3 {
			t.Errorf("at most %d were asked", most)
		}
	})
}

// An answer about what was asked for is one: another replica would give the same.
func TestNoFailoverOnClientErrors(t *testing.T) {
	for _, tt := range []struct{ status, tries int }{{400, 1}, {401, 2}, {403, 2}, {409, 1}, {422, 1}} {
		t.Run(fmt.Sprint(tt.status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				failed := make(chan error, 1)
				w := startReplicas(t, 0, clustertest.WithOptions(cluster.WithTrace(&cluster.Trace{
					RenewFailed: func(err error, _ time.Duration) { failed <- err },
				})))
				n, home := joinReplica(w)
				for _, host := range replicaHosts() {
					w.Network.Fault(clustertest.Any, host, clustertest.FirstN(tt.tries, clustertest.Status(tt.status)))
				}
				l := recordRequests(w)
				err := <-failed
				if se, ok := errors.AsType[*cluster.StatusError](err); !ok || se.Code != tt.status || !strings.HasPrefix(se.URL, "http://"+home+"/") {
					t.Errorf("the renewal failed with %v", err)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				want := append(slices.Repeat([]attempt{{home, tt.status}}, tt.tries), attempt{home, 200})
				if got, _ := l.attempts(http.MethodPost, n); !slices.Equal(got, want) {
					t.Errorf("asked %v, want %v", got, want)
				}
				wantState(t, n, cluster.Registered)
			})
		})
	}
}

// The caller's end is the end, and says nothing about the replica.
func TestCanceledCallDoesNotFailOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := startReplicas(t, 0)
		n, home := joinReplica(w)
		w.Network.Fault(clustertest.Any, home, clustertest.Hang)
		l := recordRequests(w)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		began := time.Now()
		_, err := n.Register(ctx)
		if took := time.Since(began); !errors.Is(err, context.Canceled) || strings.Count(err.Error(), "cannot be reached") != 1 || took != time.Second {
			t.Errorf("after %v: %v", took, err)
		}
		w.Network.Fault(clustertest.Any, home, nil)
		nextRenewal(w, n)
		if got, _ := l.attempts(http.MethodPost, n); !slices.Equal(got, []attempt{{home, 0}, {home, 200}}) {
			t.Errorf("asked %v, want %s twice", got, home)
		}
	})
}

// Where all replicas fail the lease goes the way it goes with one registry, and the reason names
// them all.
func TestAllReplicasFail(t *testing.T) {
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
		l := recordRequests(w)
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
			t.Errorf("found in the reason: %v, %v", ue, se)
		}
		tries, _ := l.attempts(http.MethodPost, n)
		count := map[string]int{}
		for _, got := range tries {
			count[got.host]++
		}
		for _, host := range replicaHosts() { // the ledger may begin and end within a try of the lease
			if got := count[host]; got < len(tries)/3-1 || got > len(tries)/3+1 || got < 200 {
				t.Errorf("%d of %d requests went to %s, want a third", got, len(tries), host)
			}
		}

		for _, host := range replicaHosts() {
			w.Network.Fault(clustertest.Any, host, nil)
		}
		time.Sleep(20 * time.Second) // a try under way, and the pause after it
		synctest.Wait()
		wantState(t, n, cluster.Registered)
	})
}

// The time of a renewal is that until the lease ends, and each replica gets its share of it: with
// leases of a few seconds, too, two of three may hang.
func TestShortLeaseWithSilentReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := startReplicas(t, 10, clustertest.WithLease(3*time.Second), clustertest.WithOptions(cluster.WithTrace(&cluster.Trace{
			StateChanged: func(_, to cluster.Status) {
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
			time.Sleep(10 * time.Minute)
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

// A replica that refuses the token is shown a new one, also if it was not the first that was asked.
func TestTokenRefreshDuringFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := startReplicas(t, 0)
		n, home := joinReplica(w)
		w.Network.Fault(clustertest.Any, home, clustertest.Refuse)
		for _, host := range otherReplicas(home) {
			w.Network.Fault(clustertest.Any, host, clustertest.FirstN(1, clustertest.Status(403)))
		}
		l := recordRequests(w)
		tries, _ := nextRenewal(w, n)
		next := tries[1].host
		inVain := attempt{home, 0}
		rest := slices.DeleteFunc(slices.Clone(tries), func(t attempt) bool { return t == inVain }) // a new token may be shown there first
		if want := []attempt{{next, 403}, {next, 200}}; tries[0] != inVain || len(tries) > 4 || !slices.Equal(rest, want) {
			t.Errorf("asked %v, want %s in vain, then %v", tries, home, want)
		}
		if got := len(l.matching(http.MethodPost, n.Host, clustertest.TokenHost)); got != 1 {
			t.Errorf("%d tokens fetched, want one", got)
		}
	})
}

// What decides on a suspect waits for mIT as long as ever: within that time all replicas have been
// asked, and the last one answers.
func TestEvictionFailsOver(t *testing.T) {
	for name, tt := range map[string]struct {
		fault clustertest.Fault
		fail  int           // so many of three
		wait  time.Duration // for all three
	}{
		"one refuses":              {clustertest.Refuse, 1, 0},
		"one hangs":                {clustertest.Hang, 1, 2 * time.Second},
		"two hang":                 {clustertest.Hang, 2, 2 * time.Second},
		"two are without etcd":     {clustertest.Status(503), 2, 0},
		"one says something else":  {respondOK("{}"), 1, 0},
		"one does it, and is gone": {clustertest.Reset, 1, 0}, // the second says that the server is gone
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
				l := recordRequests(w)
				began := time.Now()
				o := singleFailure(t, rpc(t, n, cluster.Request{Path: "/things"}))
				took := time.Since(began) - 10*time.Millisecond // the repeat at the peer
				if !o.Evicted || o.EvictionSkipped != nil {
					t.Errorf("evicted %t, spared %v", o.Evicted, o.EvictionSkipped)
				}
				tries, _ := l.attempts(http.MethodDelete, n)
				want := tt.wait * time.Duration(len(tries)-1) / 3 // a good one may have come second
				if took != want || len(tries) < 2 || tries[0].host != home || tries[len(tries)-1].status != 200 {
					t.Errorf("asked %v in %v, want %v", tries, took, want)
				}
				wantView(t, n, "node-1", "node-2", "node-4", "node-5")
				if got := idsOf(w.Registered()); len(got) != 4 {
					t.Errorf("mIT lists %q", got)
				}
			})
		})
	}
}

// A delete that was executed, but not answered, is repeated. If the server came back in between,
// the second is told so, and nobody is evicted.
func TestRepeatedDeleteOfReturnedPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := startReplicas(t, 4)
		n, home := joinReplica(w)
		peer := w.Nodes[2]
		peer.Kill()
		w.Network.Fault(n.Host, home, func(next http.RoundTripper) http.RoundTripper {
			reset := clustertest.Reset(next)
			return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
				resp, err := reset.RoundTrip(req)
				if got := idsOf(w.Registered()); len(got) != 4 {
					t.Errorf("mIT lists %q, want the peer gone", got)
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
			t.Errorf("mIT lists %q", got)
		}
	})
}

func TestUnRegisterFailsOver(t *testing.T) {
	for name, fault := range map[string]clustertest.Fault{
		"refuses": clustertest.Refuse, "hangs": clustertest.Hang, "lost its etcd": clustertest.Status(503), "does it, and is gone": clustertest.Reset,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := startReplicas(t, 1)
				n, home := joinReplica(w)
				w.Network.Fault(clustertest.Any, home, fault)
				began := time.Now()
				if d := n.UnRegister(t.Context()); d.Errors != nil || d.NbServers != 2 {
					t.Errorf("leaving: %+v", d)
				}
				if took := time.Since(began); took > 2*time.Second/3 {
					t.Errorf("it took %v", took)
				}
				if got := idsOf(w.Registered()); !slices.Equal(got, []string{"node-1"}) {
					t.Errorf("mIT lists %q", got)
				}
				wantView(t, w.Nodes[0], "node-1")
			})
		})
	}
}

// An answer that is of no use is blamed on the replica that gave it.
func TestInvalidResponseNamesItsReplica(t *testing.T) {
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

// join adds a node, and tells which replica it has chosen.
func joinReplica(w *clustertest.World) (n *clustertest.Node, home string) {
	l := recordRequests(w)
	n = w.Join()
	tries, _ := l.attempts(http.MethodPost, n)
	return n, tries[0].host
}

// renewal waits until n has renewed its lease once more, a day at most, and tells how.
func nextRenewal(w *clustertest.World, n *clustertest.Node) (tries []attempt, took time.Duration) {
	var l requestLog
	defer w.Network.Observe(l.record)()
	last, began := n.Status().RenewedAt, time.Now()
	for n.Status().RenewedAt.Equal(last) && time.Since(began) < 24*time.Hour {
		time.Sleep(time.Minute)
	}
	return l.attempts(http.MethodPost, n)
}

// otherHosts are those of the replicas, without those given.
func otherReplicas(not ...string) []string {
	return slices.DeleteFunc(replicaHosts(), func(h string) bool { return slices.Contains(not, h) })
}

// replicaHosts are where the replicas of the registry are in these tests.
func replicaHosts() []string { return []string{"mit-1.test", "mit-2.test", "mit-3.test"} }

// replicaURLs are their URLs, as Config lists them.
func replicaURLs() string {
	return "http://" + strings.Join(replicaHosts(), "/mIT/v1, http://") + "/mIT/v1"
}

// startReplicas starts a world in which one registry is at several hosts.
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

// A try is a request to a replica, and the status of the answer, 0 if none came.
type attempt struct {
	host   string
	status int
}

// tries are what n asked the replicas with that method, in the order in which it did, and how long
// that took in all.
func (l *requestLog) attempts(method string, n *clustertest.Node) (tries []attempt, took time.Duration) {
	var began time.Time
	for _, x := range l.matching(method, n.Host, clustertest.Any) {
		if slices.Contains(replicaHosts(), x.To) {
			if tries == nil {
				began = x.Start
			}
			tries, took = append(tries, attempt{x.To, x.Status}), x.Start.Add(x.Duration).Sub(began)
		}
	}
	return tries, took
}
