package cluster_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/internal/fixedworld"
	"github.com/mimiktech/cluster/internal/wire"
	"github.com/mimiktech/cluster/mit"
)

func TestNewRejectsInvalidConfig(t *testing.T) {
	location := func(lon, lat float64) func(*cluster.Config) {
		return func(c *cluster.Config) { c.Location = &cluster.Location{Lon: lon, Lat: lat} }
	}
	for name, tt := range map[string]struct {
		edit func(*cluster.Config)
		want string
	}{
		"negative port":        {func(c *cluster.Config) { c.Port = -1 }, "SERVER_PORT"},
		"NUL in the base path": {func(c *cluster.Config) { c.BasePath = "/\x00" }, "SERVER_BASE_PATH"},
		"invalid longitude":    {location(181, 0), "SERVER_LOCATION_LON"},
		"invalid latitude":     {location(0, math.NaN()), "SERVER_LOCATION_LON"},
		"fraction above 0.9":   {func(c *cluster.Config) { c.RenewalFraction = 0.91 }, "RenewalFraction"},
		"negative fraction":    {func(c *cluster.Config) { c.RenewalFraction = -0.1 }, "RenewalFraction"},
		"NaN as fraction": {
			func(c *cluster.Config) { c.RenewalFraction = math.NaN() }, "RenewalFraction",
		},
		"negative timeout":         {func(c *cluster.Config) { c.RequestTimeout = -1 }, "REQUEST_TIMEOUT"},
		"maximal timeout":          {func(c *cluster.Config) { c.RequestTimeout = math.MaxInt64 }, "REQUEST_TIMEOUT"},
		"negative retry":           {func(c *cluster.Config) { c.RegistrationRetry = -time.Second }, "REGISTRATION_RETRY"},
		"maximal retry":            {func(c *cluster.Config) { c.RegistrationRetry = math.MaxInt64 }, "REGISTRATION_RETRY"},
		"negative response size":   {func(c *cluster.Config) { c.MaxResponseBytes = -1 }, "MaxResponseBytes,"},
		"negative request size":    {func(c *cluster.Config) { c.MaxRequestBytes = -1 }, "MaxResponseBytes,"},
		"negative limit in flight": {func(c *cluster.Config) { c.MaxInFlight = -1 }, "MaxResponseBytes,"},
		"no peer audience":         {func(c *cluster.Config) { c.PeerAudience = "" }, "MDS_AUDIENCE"},
		"no secret":                {func(c *cluster.Config) { c.ClientSecret = "" }, "OAUTH_CLIENT_SECRET"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			tt.edit(&cfg)
			_, err := cluster.New(cfg)
			if diff := cmp.Diff([]string{tt.want}, namedVariables(err)); diff != "" {
				t.Errorf("variables in the error (-want +got):\n%s\n%v", diff, err)
			}
		})
	}
}

func TestNewAcceptsNilOptions(t *testing.T) {
	c, err := cluster.New(testConfig(), nil, cluster.WithTrace(nil), cluster.WithLogger(nil), cluster.WithHTTPClient(nil),
		cluster.WithTokens(nil), cluster.WithVerifier(nil), cluster.WithRetry(cluster.Retry{}), cluster.WithEviction(cluster.Eviction{}),
		cluster.WithPeerPolicy(cluster.PeerPolicy{}), cluster.WithoutEnv())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// New starts no goroutine, sends no request and sets no variable. The bubble would not end with a
// blocked goroutine, and the test does not call Close.
func TestNewHasNoSideEffects(t *testing.T) {
	t.Setenv("REGISTRATION_STATUS", "unchanged")
	before, goroutines := os.Environ(), runtime.NumGoroutine()
	synctest.Test(t, func(t *testing.T) {
		client := stubClient(func(r *http.Request) (int, string) {
			t.Errorf("%s %s", r.Method, r.URL)
			return http.StatusOK, ""
		})
		c, err := cluster.New(testConfig(), cluster.WithHTTPClient(client), cluster.WithTrace(&cluster.Trace{
			StateChanged: func(_ context.Context, _, to cluster.Status) { t.Errorf("state %s", to.State) },
		}))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if s := c.Status(); s.State != cluster.Orphan || !errors.Is(s.Reason, cluster.ErrNotRegistered) || s.ServerID != "node-1" {
			t.Errorf("status %+v", s)
		}
		if got := c.Servers(); len(got) != 0 {
			t.Errorf("servers %v", got)
		}
	})
	if diff := cmp.Diff(before, os.Environ()); diff != "" {
		t.Errorf("the environment (-before +after):\n%s", diff)
	}
	if after := runtime.NumGoroutine(); after > goroutines {
		t.Errorf("%d goroutines, %d before", after, goroutines)
	}
}

func TestNewGeneratesID(t *testing.T) {
	seen := map[string]bool{}
	for range 2 {
		cfg := testConfig()
		cfg.ID = ""
		c, err := cluster.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		id, err := uuid.Parse(c.Status().ServerID)
		if err != nil || id.Version() != 4 || seen[id.String()] {
			t.Errorf("id %q: %v", c.Status().ServerID, err)
		}
		seen[id.String()] = true
	}
}

// One process can run several nodes. The npm module keeps its state in the process.
func TestNodesInOneProcessAreIndependent(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		mds := clustertest.Start(t, 2)
		other := clustertest.Start(t, 1, clustertest.WithType("other"))
		wantView(t, mds.Nodes[0], "node-1", "node-2")
		wantView(t, other.Nodes[0], "node-1")
		mds.Nodes[0].UnRegister(t.Context())
		wantState(t, mds.Nodes[0], cluster.Left)
		wantState(t, mds.Nodes[1], cluster.Registered)
		wantState(t, other.Nodes[0], cluster.Registered)
		wantView(t, mds.Nodes[1], "node-2")
	})
}

// A registered node has one goroutine, which UnRegister and Close end. The timers of the npm module
// run on after unRegister.
func TestOneGoroutinePerNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		w.Join() // the others are not alone then
		synctest.Wait()
		before := countGoroutines(t)
		n := w.Add()
		if got := countGoroutines(t); got != before {
			t.Errorf("New started %d goroutines", got-before)
		}
		if _, err := n.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			time.Sleep(25 * time.Minute)
			synctest.Wait()
			if got := countGoroutines(t); got != before+1 {
				t.Errorf("an idle registered node has %d goroutines, want one", got-before)
			}
		}
		n.UnRegister(t.Context())
		synctest.Wait()
		if got := countGoroutines(t); got != before {
			t.Errorf("%d goroutines are left after UnRegister", got-before)
		}

		m := w.Join()
		m.Close()
		synctest.Wait()
		if got := countGoroutines(t); got != before {
			t.Errorf("%d goroutines are left after Close", got-before)
		}
	})
}

func TestTraceOrder(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		var hooks traceLog
		w := clustertest.Start(t, 0, clustertest.WithLease(time.Minute),
			clustertest.WithConfig(func(cfg *cluster.Config) { cfg.Management = false }))
		registryFault(w, clustertest.FirstN(1, clustertest.Status(503)))
		n := w.Join(cluster.WithTrace(hooks.trace()))
		const failed = "mIT answered 500 Internal Server Error to POST http://mit.test/mIT/v1/itResources: injected by clustertest.Status"
		registryFault(w, clustertest.Status(500))
		time.Sleep(2 * time.Minute)
		registryFault(w, nil)
		time.Sleep(10 * time.Second)
		n.UnRegister(t.Context())
		n.Close()

		got := make([]string, 0, 100)
		for _, e := range hooks.snapshot() {
			if e.text != "failed: "+failed || got[len(got)-1] != e.text { // repeated failures count once
				got = append(got, e.text)
			}
		}
		want := []string{
			"token for https://mit.test: <nil>",
			"failed: mIT answered 503 Service Unavailable to POST http://mit.test/mIT/v1/itResources: injected by clustertest.Status",
			"orphan→registered",
			"renewed for 1m0s",
			"registered→degraded: " + failed,
			"failed: " + failed,
			"degraded→lost: " + failed,
			"failed: " + failed,
			"lost→registered",
			"renewed for 1m0s",
			"registered→left: cluster: not registered: it has left",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestEnvironmentOfOrphan(t *testing.T) {
	inheritEnv(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0, clustertest.WithProcessEnv("node-1"))
		registryDown(w)
		n := w.Add()
		if got := statusEnv(); len(got) != 4 || got["REGISTRATION_STATUS"] != "inherited" {
			t.Errorf("New changed the environment to %q", got)
		}
		registerAsync(t.Context(), n)
		time.Sleep(time.Minute)
		got := statusEnv()
		if !strings.HasPrefix(got["REGISTRATION_STATUS"], "orphan: mIT cannot be reached by POST ") {
			t.Errorf("REGISTRATION_STATUS is %q", got["REGISTRATION_STATUS"])
		}
		if len(got) != 1 {
			t.Errorf("the environment is %q, want only REGISTRATION_STATUS", got)
		}
		n.Close()
		if got := statusEnv(); !cmp.Equal(got, map[string]string{"REGISTRATION_STATUS": "orphan: cluster: closed"}) {
			t.Errorf("after Close it is %q", got)
		}
	})
}

// Register sets the state orphan before its first attempt, which may take long.
func TestEnvironmentDuringFirstAttempt(t *testing.T) {
	inheritEnv(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0, clustertest.WithProcessEnv("node-1"))
		registryFault(w, clustertest.Hang)
		n := w.Add()
		registerAsync(t.Context(), n)
		time.Sleep(time.Second)
		if got := statusEnv(); !cmp.Equal(got, map[string]string{"REGISTRATION_STATUS": "orphan: cluster: not registered"}) {
			t.Errorf("the environment is %q", got)
		}
		n.Close()
	})
}

// Version 2.4 of the npm module sets the count and the date, but not the lease time.
func TestEnvironmentFollowsTheView(t *testing.T) {
	inheritEnv(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1, clustertest.WithProcessEnv("node-1"))
		n := w.Nodes[0]
		wantStatusEnv(t, n, "registered", time.Hour, "node-1")
		if got, want := statusEnv()["CLUSTER_STATUS_UPDATED_AT"], "2000-01-01T00:00:00.000Z"; got != want {
			t.Errorf("CLUSTER_STATUS_UPDATED_AT is %q, want %q", got, want)
		}

		time.Sleep(90 * time.Second)
		w.Join()
		wantStatusEnv(t, n, "registered", time.Hour, "node-1", "node-2")
		if got, want := statusEnv()["CLUSTER_STATUS_UPDATED_AT"], "2000-01-01T00:01:30.000Z"; got != want {
			t.Errorf("CLUSTER_STATUS_UPDATED_AT is %q, want %q", got, want)
		}

		w.Join().UnRegister(t.Context())
		wantStatusEnv(t, n, "registered", time.Hour, "node-1", "node-2")

		w.Registry.SetLease(90 * time.Minute)
		time.Sleep(time.Hour)
		wantStatusEnv(t, n, "registered", 90*time.Minute, "node-1", "node-2")

		n.UnRegister(t.Context())
		wantStatusEnv(t, n, "orphan: cluster: not registered: it has left", 90*time.Minute, "node-1", "node-2")
	})
}

// An eviction changes the count at once. The npm module keeps the old count until its next renewal.
func TestEnvironmentAfterEviction(t *testing.T) {
	inheritEnv(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3, clustertest.WithProcessEnv("node-1"))
		n := w.Nodes[0]
		time.Sleep(time.Minute)
		w.Nodes[1].Kill()
		if _, err := n.RPCluster(t.Context(), cluster.Request{Path: "/things"}); err != nil {
			t.Fatal(err)
		}
		wantStatusEnv(t, n, "registered", time.Hour, "node-1", "node-3")
	})
}

// An eviction that a peer broadcasts changes the count, too.
func TestEnvironmentAfterEvictionByPeer(t *testing.T) {
	inheritEnv(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3, clustertest.WithProcessEnv("node-1"))
		w.Nodes[1].Kill()
		if _, err := w.Nodes[2].RPCluster(t.Context(), cluster.Request{Path: "/things"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // the broadcast
		wantStatusEnv(t, w.Nodes[0], "registered", time.Hour, "node-1", "node-3")
	})
}

// REGISTRATION_STATUS depends on the lease, not on the last attempt.
func TestEnvironmentDuringOutage(t *testing.T) {
	inheritEnv(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2, clustertest.WithProcessEnv("node-1"))
		n := w.Nodes[0]
		registryFault(w, clustertest.Status(503))
		time.Sleep(time.Hour - time.Nanosecond)
		wantState(t, n, cluster.Degraded)
		wantStatusEnv(t, n, "registered", time.Hour, "node-1", "node-2")
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		wantState(t, n, cluster.Lost)
		wantStatusEnv(t, n, "orphan: mIT answered 503 Service Unavailable to POST http://mit.test/mIT/v1/itResources: "+
			"injected by clustertest.Status", time.Hour, "node-1", "node-2")
		registryFault(w, nil)
		time.Sleep(time.Minute)
		wantStatusEnv(t, n, "registered", time.Hour, "node-1", "node-2")
	})
}

// Control characters are replaced: a variable cannot have a NUL, and a line break would forge
// another line.
func TestEnvironmentWithControlCharacters(t *testing.T) {
	inheritEnv(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0, clustertest.WithProcessEnv("node-1"))
		registryFault(w, respond(500, `{"statusCode":500,"message":"a\u0000b\nREGISTRATION_STATUS=registered"}`))
		n := w.Add()
		registerAsync(t.Context(), n)
		time.Sleep(time.Second)
		want := "orphan: mIT answered 500 Internal Server Error to POST http://mit.test/mIT/v1/itResources: a b REGISTRATION_STATUS=registered"
		if got := os.Getenv("REGISTRATION_STATUS"); got != want {
			t.Errorf("REGISTRATION_STATUS is %q, want %q", got, want)
		}
		n.Close()
	})
}

// A second node that writes the same variables is reported once.
func TestSharedEnvironment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.WarnLevel)
		want := func(n int, when string) {
			t.Helper()
			if got := logs.FilterMessage("several nodes of this process write their status to its environment").Len(); got != n {
				t.Errorf("%d warnings %s, want %d", got, when, n)
			}
		}
		logged := clustertest.WithOptions(cluster.WithLogger(zap.New(core)))
		first := clustertest.Start(t, 3, logged, clustertest.WithProcessEnv("node-1")).Nodes[0]
		want(0, "for one of three nodes")
		_ = first.Close()
		second := clustertest.Start(t, 1, logged, clustertest.WithProcessEnv("node-1")).Nodes[0]
		want(0, "after the first node has left")
		third := clustertest.Start(t, 1, logged, clustertest.WithProcessEnv("node-1")).Nodes[0]
		want(1, "for two nodes")
		time.Sleep(24 * time.Hour)
		want(1, "a day later")
		third.UnRegister(t.Context())
		second.UnRegister(t.Context())
		clustertest.Start(t, 1, logged, clustertest.WithProcessEnv("node-1"))
		want(1, "after all have left")
	})
}

func TestWithoutEnv(t *testing.T) {
	inheritEnv(t)
	before := statusEnv()
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		time.Sleep(2 * time.Hour)
		w.Nodes[0].UnRegister(t.Context())
	})
	if diff := cmp.Diff(before, statusEnv()); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
}

func statusVariables() []string {
	return []string{"REGISTRATION_STATUS", "CLUSTER_STATUS_SERVERS", "CLUSTER_STATUS_UPDATED_AT", "CLUSTER_STATUS_LEASE_TIME"}
}

// inheritEnv sets the variables as a parent process may have left them. They are restored after the
// test.
func inheritEnv(t *testing.T) {
	t.Helper()
	for _, name := range statusVariables() {
		t.Setenv(name, "inherited")
	}
}

// statusEnv returns those of the four variables that are set.
func statusEnv() map[string]string {
	set := map[string]string{}
	for _, name := range statusVariables() {
		if value, ok := os.LookupEnv(name); ok {
			set[name] = value
		}
	}
	return set
}

// wantStatusEnv checks the four variables, and the view of the node.
func wantStatusEnv(t *testing.T, n *clustertest.Node, registration string, lease time.Duration, servers ...string) {
	t.Helper()
	wantView(t, n, servers...)
	want := map[string]string{
		"REGISTRATION_STATUS":       registration,
		"CLUSTER_STATUS_SERVERS":    strconv.Itoa(len(servers)),
		"CLUSTER_STATUS_UPDATED_AT": wire.FormatTime(n.Status().UpdatedAt),
		"CLUSTER_STATUS_LEASE_TIME": strconv.FormatInt(lease.Milliseconds(), 10),
	}
	if diff := cmp.Diff(want, statusEnv()); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
}

// observe returns a guest of a world, which sends its requests from the host "guest", and the log
// of these requests: method, host and path of each.
func observe(t *testing.T, w *clustertest.World, edit func(*cluster.Config)) (g *cluster.Guest, sent func() []string) {
	t.Helper()
	cfg := w.Nodes[0].Config()
	cfg.RequestTimeout = 3 * time.Second
	if edit != nil {
		edit(&cfg)
	}
	network := w.Network.Transport("guest")
	g, err := cluster.Observe(cfg, cluster.WithTransport(func(http.RoundTripper) http.RoundTripper { return network }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	requests := recordRequests(w)
	return g, func() []string {
		var texts []string
		for _, x := range requests.filter(func(x clustertest.Exchange) bool { return x.From == "guest" }) {
			texts = append(texts, x.Method+" "+x.To+x.Path)
		}
		slices.Sort(texts)
		return texts
	}
}

const (
	guestToken    = "POST " + clustertest.TokenHost + "/mST/v1/oauth/token"
	guestAnnounce = "POST node-1:8080" + itResources
)

func guestRead() string {
	return "GET " + clustertest.RegistryHost + "/mIT/v1/itResources/" + mit.ResourceID("mds")
}

func wantGuest(t *testing.T, g *cluster.Guest, servers ...string) {
	t.Helper()
	if diff := cmp.Diff(servers, idsOf(g.Servers())); diff != "" {
		t.Errorf("the list of the guest (-want +got):\n%s", diff)
	}
}

// A guest reads the list from the registry or from any server, and calls all servers. It sends no
// other requests, also while time passes, and leaves no trace in the cluster.
func TestGuest(t *testing.T) {
	parallel(t)
	for name, tt := range map[string]struct {
		read func(context.Context, *cluster.Guest) error
		sent []string // in addition to those for tokens and things
	}{
		"list of the registry": {func(ctx context.Context, g *cluster.Guest) error { return g.ReadRegistry(ctx) }, []string{guestRead(), guestToken}},
		"view of a server": {
			func(ctx context.Context, g *cluster.Guest) error {
				return g.ReadServer(ctx, "http://node-1:8080/mds/v1")
			}, []string{guestAnnounce},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := startVerified(t, 3)
				time.Sleep(10 * time.Second) // all renewals of the start are over
				before := statusEnv()
				registered := marshal(t, w.Registered())
				g, sent := observe(t, w, nil)
				if err := tt.read(t.Context(), g); err != nil {
					t.Fatal(err)
				}
				wantGuest(t, g, "node-1", "node-2", "node-3")
				res, err := g.RPCluster(t.Context(), cluster.Request{Path: "/things"})
				if err != nil {
					t.Fatal(err)
				}
				wantOneOutcomeEach(t, res, w.Nodes)
				var streamed []string
				for o := range g.Stream(t.Context(), cluster.Request{Path: "/things", Filter: onlyIDs("node-2")}) {
					streamed = append(streamed, o.Server.ServerID+string(o.Data))
				}
				if diff := cmp.Diff([]string{`node-2["node-2"]`}, streamed); diff != "" {
					t.Errorf("streamed (-want +got):\n%s", diff)
				}
				time.Sleep(20 * time.Minute) // the nodes do not renew
				const things = ":8080/mds/v1/things"
				want := append(tt.sent, guestToken, "GET node-1"+things, "GET node-2"+things, "GET node-2"+things, "GET node-3"+things)
				slices.Sort(want)
				if diff := cmp.Diff(want, sent()); diff != "" {
					t.Errorf("requests of the guest (-want +got):\n%s", diff)
				}
				for _, n := range w.Nodes {
					wantView(t, n, "node-1", "node-2", "node-3")
				}
				if diff := cmp.Diff(before, statusEnv()); diff != "" {
					t.Errorf("the environment has changed:\n%s", diff)
				}
				if diff := cmp.Diff(registered, marshal(t, w.Registered())); diff != "" {
					t.Errorf("the registry has changed:\n%s", diff)
				}
			})
		})
	}
}

// A guest keeps its list while the registry is down, and can read that of a server.
func TestGuestWithoutRegistry(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		g, _ := observe(t, w, nil)
		if err := g.ReadRegistry(t.Context()); err != nil {
			t.Fatal(err)
		}
		registryDown(w)
		err := g.ReadRegistry(t.Context())
		if e, ok := errors.AsType[*cluster.UnreachableError](err); !ok || e.Remote != "mIT" {
			t.Errorf("the registry is down: %v", err)
		}
		wantGuest(t, g, "node-1", "node-2")
		if err := g.ReadServer(t.Context(), "http://node-2:8080/mds/v1/"); err != nil {
			t.Error(err)
		}
		wantGuest(t, g, "node-1", "node-2")

		g, sent := observe(t, w, func(cfg *cluster.Config) { cfg.RegistryURL, cfg.RegistryAudience = "", "" })
		if diff := cmp.Diff([]string{"MIT_URL"}, namedVariables(g.ReadRegistry(t.Context()))); diff != "" {
			t.Errorf("missing variables (-want +got):\n%s", diff)
		}
		if len(sent()) > 0 {
			t.Errorf("sent %v", sent())
		}
	})
}

// The id of the itResource is that which the server names.
func TestGuestOfAnotherRegistry(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1)
		g, sent := observe(t, w, nil)
		w.Network.Fault("guest", w.Nodes[0].Host, respondOK(`{"data":`+testResource("a", "b")+`,"server":{"serverId":"a"}}`))
		if err := g.ReadServer(t.Context(), "http://node-1:8080/mds/v1"); err != nil {
			t.Fatal(err)
		}
		wantGuest(t, g, "a", "b")
		if g.ResourceID() != "it" {
			t.Errorf("the itResource %q", g.ResourceID())
		}
		if err := g.ReadRegistry(t.Context()); err == nil { // this registry has no such id
			t.Error("no error")
		}
		want := "GET " + clustertest.RegistryHost + "/mIT/v1/itResources/it"
		if !slices.Contains(sent(), want) {
			t.Errorf("sent %v, want %s", sent(), want)
		}
		wantGuest(t, g, "a", "b")
	})
}

// A list that cannot be used does not replace the last one. The error names the remote and the
// reason.
func TestGuestRejectsInvalidLists(t *testing.T) {
	parallel(t)
	const envelope = `{"data":%s,"server":{"serverId":"node-1"}}`
	for name, tt := range map[string]struct {
		fault clustertest.Fault
		want  string
		took  time.Duration
		sent  int // announcements
	}{
		"refused":              {clustertest.Refuse, "connection refused", 0, 1},
		"no response":          {clustertest.Hang, "deadline exceeded", 3 * time.Second, 1},
		"rejected token":       {clustertest.Status(403), "403 Forbidden", 0, 2},
		"not a node":           {clustertest.Status(404), "404 Not Found", 0, 1},
		"redirect":             {clustertest.Status(302), "302 Found", 0, 1},
		"another token needed": {clustertest.FirstN(1, clustertest.Status(401)), "", 0, 2},
		"HTML":                 {respondOK("<html>"), "invalid character", 0, 1},
		"no data":              {respondOK(`{"server":{"serverId":"node-1"}}`), "it has no itResource", 0, 1},
		"null":                 {respondOK(fmt.Sprintf(envelope, "null")), "it has no itResource", 0, 1},
		"a list":               {respondOK(fmt.Sprintf(envelope, "[]")), "itResource without id", 0, 1},
		"no id":                {respondOK(fmt.Sprintf(envelope, `{"servers":[]}`)), "itResource without id", 0, 1},
		"no servers":           {respondOK(fmt.Sprintf(envelope, announcement())), "it lists no server", 0, 1},
		"invalid servers":      {respondOK(fmt.Sprintf(envelope, `{"id":"it","servers":[{"serverId":7}]}`)), "server whose serverId is not a string", 0, 1},
		"another type":         {respondOK(fmt.Sprintf(envelope, `{"id":"it","type":"mfs","servers":[{"serverId":"a"}]}`)), `not of type "mds"`, 0, 1},
		"truncated":            {clustertest.Truncate(20), "truncated", 0, 1},
		"too long":             {respondOK(`{"data":"` + strings.Repeat("x", 1<<20) + `"}`), "response too large", 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 2)
				g, sent := observe(t, w, func(cfg *cluster.Config) { cfg.MaxResponseBytes = 1 << 20 })
				if err := g.ReadServer(t.Context(), "http://node-2:8080/mds/v1"); err != nil {
					t.Fatal(err)
				}
				w.Network.Fault("guest", "node-1:8080", tt.fault)
				start := time.Now()
				err := g.ReadServer(t.Context(), "http://node-1:8080/mds/v1")
				switch {
				case tt.want == "" && err != nil:
					t.Error(err)
				case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "node-1:8080") && name != "another type"):
					t.Errorf("the error is %v, want one with %q", err, tt.want)
				}
				checkNoSecrets(t, err)
				if took := time.Since(start); took != tt.took {
					t.Errorf("it took %v, want %v", took, tt.took)
				}
				if n := len(slices.DeleteFunc(sent(), func(text string) bool { return text != guestAnnounce })); n != tt.sent {
					t.Errorf("sent %v, want %d announcements to node-1", sent(), tt.sent)
				}
				wantGuest(t, g, "node-1", "node-2")
			})
		})
	}
}

// The address of the server is that of a peer: the policy applies, and a password is not shown.
func TestGuestChecksAddresses(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1)
		g, sent := observe(t, w, nil)
		for _, address := range []string{"", "node-1:8080", "ftp://node-1:8080/mds/v1", "http://me:hidden@node-1:8080/mds/v1", "http://169.254.169.254/mds/v1"} {
			err := g.ReadServer(t.Context(), address)
			if !errors.Is(err, cluster.ErrNotAllowed) || strings.Contains(err.Error(), "hidden") || !strings.Contains(err.Error(), "clusterBaseUrl of the server: ") {
				t.Errorf("%q: %v", address, err)
			}
		}
		w.Network.Fault("guest", "node-1:8080", respondOK(`{"data":{"id":"it","servers":[{"serverId":"a","clusterBaseUrl":"http://169.254.169.254/mds/v1"}],"publicBaseUrl":""},"server":{"serverId":"a"}}`))
		if err := g.ReadServer(t.Context(), "http://node-1:8080/mds/v1"); err != nil {
			t.Fatal(err)
		}
		res, err := g.RPCluster(t.Context(), cluster.Request{Path: "/things"})
		if err != nil {
			t.Fatal(err)
		}
		if o := singleFailure(t, res); o.Kind != cluster.KindNotAllowed {
			t.Errorf("the outcome is %s, %v", o.Kind, o.Err)
		}
		if diff := cmp.Diff([]string{guestToken, guestAnnounce}, sent()); diff != "" {
			t.Errorf("sent (-want +got):\n%s", diff)
		}
	})
}

// A guest evicts no server: not one that is dead, and not one that fails with a 5xx.
func TestGuestEvictsNothing(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := startVerified(t, 5)
		g, sent := observe(t, w, nil)
		if err := g.ReadRegistry(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.Nodes[4].Kill()
		w.Network.Fault("guest", "node-4:8080", clustertest.Status(500))
		for range 3 {
			res, err := g.RPCluster(t.Context(), cluster.Request{Path: "/things"})
			if err != nil {
				t.Fatal(err)
			}
			wantOneOutcomeEach(t, res, w.Nodes)
			for i, kind := range []cluster.Kind{cluster.KindStatus, cluster.KindRefused} {
				if o := res.Failures[i]; o.Kind != kind || o.Evicted || o.EvictionSkipped != nil {
					t.Errorf("%s: %s, evicted: %v, skipped: %v", o.Server.ServerID, o.Kind, o.Evicted, o.EvictionSkipped)
				}
			}
		}
		wantGuest(t, g, "node-1", "node-2", "node-3", "node-4", "node-5")
		if n := len(w.Registered()); n != 5 {
			t.Errorf("%d servers are registered", n)
		}
		for _, text := range sent() {
			if text != guestToken && text != guestRead() && !strings.HasSuffix(text, "/things") {
				t.Errorf("sent %s", text)
			}
		}
	})
}

// An announcement without servers only asks for the view. A node that has not registered does not
// take the id over, which would make it ignore the announcements of its peers.
func TestAskingForTheViewChangesNothing(t *testing.T) {
	parallel(t)
	for name, verify := range map[string]bool{"by default": false, "verified": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				core, logs := observer.New(zap.DebugLevel)
				w := clustertest.Start(t, 1, clustertest.WithOptions(cluster.WithPeerPolicy(cluster.PeerPolicy{VerifyWithRegistry: verify})))
				n := w.Add(cluster.WithLogger(zap.New(core)))
				logs.TakeAll() // about the configuration
				requests := recordRequests(w)
				g, _ := observe(t, w, nil)
				if err := g.ReadServer(t.Context(), "http://node-2:8080/mds/v1"); err == nil || !strings.Contains(err.Error(), "it has no itResource") {
					t.Errorf("a node without a view: %v", err)
				}
				for range 2 {
					announce(t, w, n, `{"id":"made up","type":"mds","publicBaseUrl":"","servers":[]}`)
					wantView(t, n)
					if id := n.Status().ResourceID; id != "" {
						t.Errorf("the itResource %q", id)
					}
				}
				announce(t, w, w.Nodes[0], `{"id":"made up","type":"mds","publicBaseUrl":"","servers":[]}`)
				time.Sleep(time.Minute)
				if got := len(requests.renewals(w.Nodes[0])); got > 1 || !verify && logs.Len() > 0 {
					t.Errorf("%d renewals; logged %v", got, logs.All())
				}
				if !verify {
					announce(t, w, n, announcement("node-1"))
					wantView(t, n, "node-1")
				}
			})
		})
	}
}

func TestGuestErrors(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1)
		g, sent := observe(t, w, nil)
		if _, err := g.RPCluster(t.Context(), cluster.Request{Path: "/things"}); err == nil || !strings.Contains(err.Error(), "not read a list") {
			t.Errorf("without a list: %v", err)
		}
		if _, err := g.RPCluster(t.Context(), cluster.Request{Path: "things"}); !errors.Is(err, cluster.ErrInvalidRequest) {
			t.Errorf("invalid path: %v", err)
		}
		for o := range g.Stream(t.Context(), cluster.Request{Path: "/things"}) {
			if o.Kind != cluster.KindInvalid || o.Err == nil {
				t.Errorf("streamed %s, %v", o.Kind, o.Err)
			}
		}
		if len(sent()) > 0 {
			t.Errorf("sent %v", sent())
		}
		if text := fmt.Sprintf("%v %+v %#v", g, g, g); strings.Contains(text, "secret") {
			t.Errorf("printed as %s", text)
		}

		w.Network.Fault("guest", "node-1:8080", clustertest.Hang)
		done := make(chan error, 1)
		go func() { done <- g.ReadServer(t.Context(), "http://node-1:8080/mds/v1") }()
		synctest.Wait()
		_ = g.Close()
		if err := <-done; !errors.Is(err, cluster.ErrClosed) {
			t.Errorf("interrupted by Close: %v", err)
		}
		_, callErr := g.RPCluster(t.Context(), cluster.Request{Path: "/things"})
		_, tokenErr := g.Token(t.Context(), cluster.TokenKey{})
		for _, err := range []error{callErr, tokenErr, g.ReadRegistry(t.Context()), g.ReadServer(t.Context(), "http://node-1:8080/mds/v1")} {
			if !errors.Is(err, cluster.ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		}
		for o := range g.Stream(t.Context(), cluster.Request{Path: "/things"}) {
			if !errors.Is(o.Err, cluster.ErrClosed) {
				t.Errorf("streamed after Close: %v", o.Err)
			}
		}
		if err := g.Close(); err != nil {
			t.Errorf("closed twice: %v", err)
		}
	})
}

// A context that ends is the cause of the error, and the list stays.
func TestGuestContexts(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		g, _ := observe(t, w, nil)
		if err := g.ReadRegistry(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.Network.Fault("guest", "node-1:8080", clustertest.Hang)
		w.Network.Fault("guest", clustertest.RegistryHost, clustertest.Hang)
		tired := errors.New("tired of waiting")
		for name, read := range map[string]func(context.Context) error{
			"registry": g.ReadRegistry,
			"server":   func(ctx context.Context) error { return g.ReadServer(ctx, "http://node-1:8080/mds/v1") },
		} {
			ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, tired)
			start := time.Now()
			if err := read(ctx); !errors.Is(err, tired) || time.Since(start) != time.Second {
				t.Errorf("%s: after %v: %v", name, time.Since(start), err)
			}
			cancel()
		}
		wantGuest(t, g, "node-1", "node-2")
	})
}

// All methods of a guest may be used at the same time, and Close ends them.
func TestGuestIsSafeForConcurrentUse(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		g, _ := observe(t, w, nil)
		if err := g.ReadRegistry(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.Network.Fault("guest", "node-3:8080", clustertest.Hang)
		key := cluster.TokenKey{Audience: w.Nodes[0].Config().PeerAudience, Cluster: true}
		var wg sync.WaitGroup
		for _, use := range []func() error{
			func() error { return g.ReadRegistry(t.Context()) },
			func() error { return g.ReadServer(t.Context(), "http://node-1:8080/mds/v1") },
			func() error { _, err := g.RPCluster(t.Context(), cluster.Request{Path: "/things"}); return err },
			func() error {
				for o := range g.Stream(t.Context(), cluster.Request{Path: "/things", Filter: onlyIDs("node-2")}) {
					if o.Err != nil {
						return o.Err
					}
				}
				return nil
			},
			func() error { _, err := g.Token(t.Context(), key); return err },
			func() error { _ = g.ResourceID() + fmt.Sprint(g); return context.Cause(t.Context()) },
		} {
			for range 4 {
				wg.Go(func() {
					for range 20 {
						if err := use(); err != nil && !errors.Is(err, cluster.ErrClosed) {
							t.Error(err)
						}
						if n := len(g.Servers()); n != 3 {
							t.Errorf("%d servers", n)
						}
						time.Sleep(time.Second)
					}
				})
			}
		}
		time.Sleep(10*time.Second + time.Millisecond)
		_ = g.Close()
		start := time.Now()
		wg.Wait()
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("calls ended %v after Close", took)
		}
	})
}

func TestGuestToken(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1)
		g, sent := observe(t, w, nil)
		key := cluster.TokenKey{Audience: w.Nodes[0].Config().PeerAudience, Cluster: true}
		first, err := g.Token(t.Context(), key)
		if err != nil || strings.Count(first, ".") != 2 {
			t.Fatalf("the token is %.10q, %v", first, err)
		}
		if err := g.ReadServer(t.Context(), "http://node-1:8080/mds/v1"); err != nil {
			t.Fatal(err)
		}
		if second, err := g.Token(t.Context(), key); second != first || err != nil {
			t.Errorf("another token, %v", err)
		}
		if diff := cmp.Diff([]string{guestToken, guestAnnounce}, sent()); diff != "" {
			t.Errorf("requests (-want +got):\n%s", diff)
		}
		w.Network.Down(clustertest.TokenHost)
		_, err = g.Token(t.Context(), cluster.TokenKey{Audience: "another"})
		if e, ok := errors.AsType[*cluster.TokenError](err); !ok || e.Audience != "another" {
			t.Errorf("without a token service: %v", err)
		}
	})
}

func TestObserveRejectsInvalidConfig(t *testing.T) {
	minimal := cluster.Config{Type: "mds", PeerAudience: "peers", Issuer: "http://mst.test/oauth/token", ClientID: "id", ClientSecret: "hidden"}
	for name, tt := range map[string]struct {
		edit func(*cluster.Config)
		want []string
	}{
		"without a registry": {func(*cluster.Config) {}, nil},
		"fields of a node":   {func(c *cluster.Config) { c.Port, c.BasePath, c.LocalIPv4, c.ID = -1, "x", "x", "an id" }, nil},
		"nothing": {
			func(c *cluster.Config) { *c = cluster.Config{} },
			[]string{"SERVER_TYPE", "{TYPE}_AUDIENCE", "OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_ISSUER"},
		},
		"registry without an audience": {func(c *cluster.Config) { c.RegistryURL = "http://mit.test/mIT/v1" }, []string{"MIT_AUDIENCE"}},
		"invalid URL of the registry":  {func(c *cluster.Config) { c.RegistryURL, c.RegistryAudience = "mit.test", "mit" }, []string{"MIT_URL"}},
		"no peer audience":             {func(c *cluster.Config) { c.PeerAudience = "" }, []string{"MDS_AUDIENCE"}},
		"invalid networks":             {func(c *cluster.Config) { c.PeerNetworks = "x" }, []string{"CLUSTER_PEER_NETWORKS"}},
		"negative timeout":             {func(c *cluster.Config) { c.RequestTimeout = -1 }, []string{"REQUEST_TIMEOUT"}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := minimal
			tt.edit(&cfg)
			g, err := cluster.Observe(cfg)
			if diff := cmp.Diff(tt.want, namedVariables(err)); diff != "" {
				t.Errorf("named variables (-want +got):\n%s", diff)
			}
			if (g == nil) != (err != nil) {
				t.Errorf("a guest %v and %v", g, err)
			}
			if g != nil {
				_ = g.Close()
			}
		})
	}
}

// BenchmarkRPCluster calls peers that answer at once. Over the network the cost includes their
// small handlers, with the stub it does not.
func BenchmarkRPCluster(b *testing.B) {
	for _, peers := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprintf("network/peers=%d", peers), func(b *testing.B) {
			w := fixedworld.Start(b, fixedworld.NewStore(fixedworld.Servers(0, peers)), 0)
			benchmarkRPCluster(b, w.Join().Cluster, peers)
		})
		b.Run(fmt.Sprintf("stub/peers=%d", peers), func(b *testing.B) {
			var network http.RoundTripper
			stub := clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
				id, _, isPeer := strings.Cut(req.URL.Host, ":8080")
				if !isPeer {
					return network.RoundTrip(req)
				}
				body := `{"data":["` + id + `"],"server":{"serverId":"` + id + `"}}`
				return &http.Response{
					StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)), Request: req,
				}, nil
			})
			w := clustertest.Start(b, 0,
				clustertest.WithStore(fixedworld.NewStore(fixedworld.Servers(0, peers))),
				clustertest.WithOptions(cluster.WithTransport(func(http.RoundTripper) http.RoundTripper { return stub })))
			network = w.Network.Transport("node-1:8080")
			benchmarkRPCluster(b, w.Join().Cluster, peers)
		})
	}
}

// BenchmarkTrace calls a hundred peers without a hook, with hooks that are not called, and with all
// hooks of a call.
func BenchmarkTrace(b *testing.B) {
	const peers = 100
	for name, trace := range map[string]*cluster.Trace{
		"none":  nil,
		"other": {ReplicaChanged: func(context.Context, string, string, error) {}},
		"all": {
			Call: func(ctx context.Context, _ cluster.CallInfo) (context.Context, func(cluster.CallResult)) {
				return ctx, func(cluster.CallResult) {}
			},
			Request: func(ctx context.Context, _ cluster.RequestInfo) (context.Context, func(cluster.RequestResult)) {
				return ctx, func(cluster.RequestResult) {}
			},
			PeerDone: func(context.Context, cluster.Outcome) {},
		},
	} {
		b.Run("hooks="+name, func(b *testing.B) {
			w := fixedworld.Start(b, fixedworld.NewStore(fixedworld.Servers(0, peers)), 0, clustertest.WithOptions(cluster.WithTrace(trace)))
			benchmarkRPCluster(b, w.Join().Cluster, peers)
		})
	}
}

func benchmarkRPCluster(b *testing.B, c *cluster.Cluster, peers int) {
	b.Helper()
	b.ReportAllocs()
	for b.Loop() {
		res, err := c.RPCluster(b.Context(), cluster.Request{Path: "/things"})
		if err != nil || len(res.Results) != peers {
			b.Fatalf("%d results, %v", len(res.Results), err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(peers), "ns/peer")
}

// BenchmarkRenew renews, and replaces the view. The cost includes the registry.
func BenchmarkRenew(b *testing.B) {
	for _, servers := range []int{10, 100, 1000} {
		b.Run(fmt.Sprintf("servers=%d", servers), func(b *testing.B) {
			w := fixedworld.Start(b, fixedworld.NewStore(fixedworld.Servers(0, servers-1)), 0,
				clustertest.WithConfig(func(cfg *cluster.Config) { cfg.Management = false })) // no announcement
			n := w.Join()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := n.Register(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCreateItResource handles an announcement in a cluster of a thousand servers. Nodes of
// this module announce one server, nodes of the npm module all that they know.
func BenchmarkCreateItResource(b *testing.B) {
	for _, announced := range []int{1, 1000} {
		b.Run(fmt.Sprintf("servers=%d", announced), func(b *testing.B) {
			servers := fixedworld.Servers(0, 999)
			w := fixedworld.Start(b, fixedworld.NewStore(servers), 0)
			n := w.Join()
			body, err := json.Marshal(map[string]any{
				"id": mit.ResourceID("mds"), "publicBaseUrl": "", "servers": servers[len(servers)-announced:],
			})
			if err != nil {
				b.Fatal(err)
			}
			benchmarkHandler(b, n.CreateItResource, http.MethodPost, "/mds/v1/itResources", body, w.Token("mds", true))
		})
	}
}

// BenchmarkDeleteServer handles the departure of a server that is no longer in the view.
func BenchmarkDeleteServer(b *testing.B) {
	w := fixedworld.Start(b, fixedworld.NewStore(fixedworld.Servers(0, 999)), 0)
	n := w.Join()
	path := "/mds/v1/itResources/" + mit.ResourceID("mds") + "/servers/gone"
	benchmarkHandler(b, n.DeleteServer, http.MethodDelete, path, nil, w.Token("mds", true))
}

// BenchmarkAuthenticate measures what the module adds to an endpoint of the service.
func BenchmarkAuthenticate(b *testing.B) {
	w := clustertest.Start(b, 1)
	n := w.Nodes[0]
	h := n.Authenticate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { n.Reply(w, r, "ok") }))
	benchmarkHandler(b, h.ServeHTTP, http.MethodGet, "/mds/v1/things", nil, w.Token("mds", false))
}

func benchmarkHandler(b *testing.B, h http.HandlerFunc, method, path string, body []byte, token string) {
	b.Helper()
	b.ReportAllocs()
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		r := httptest.NewRequest(method, path, bytes.NewReader(body))
		r.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		h(w, r)
		if w.Code != http.StatusOK {
			b.Fatalf("%d %s", w.Code, w.Body)
		}
	}
}

// BenchmarkServers reads a view of a thousand servers.
func BenchmarkServers(b *testing.B) {
	n := fixedworld.Start(b, fixedworld.NewStore(fixedworld.Servers(0, 999)), 0).Join()
	b.ReportAllocs()
	for b.Loop() {
		if len(n.Servers()) != 1000 {
			b.Fatal(len(n.Servers()))
		}
	}
}
