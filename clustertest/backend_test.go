package clustertest_test

import (
	"context"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

// Nodes of a Backend find and call each other over sockets.
func TestBackend(t *testing.T) {
	b := clustertest.NewBackend(t)
	first, second := serveNode(t, b), serveNode(t, b)
	for deadline := time.Now().Add(10 * time.Second); len(first.Peers()) != 1 || len(second.Peers()) != 1; {
		if time.Now().After(deadline) {
			t.Fatalf("the nodes know %v and %v", first.Peers(), second.Peers())
		}
		time.Sleep(10 * time.Millisecond) // real sockets, real time
	}
	res, err := first.RPCluster(t.Context(), cluster.Request{Path: "/things"})
	if err != nil || len(res.Results) != 1 || len(res.Failures) != 0 {
		t.Fatalf("%+v: %v", res, err)
	}
	for typ, want := range map[string]int{"mds": http.StatusOK, "other": http.StatusForbidden} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, first.Config().ClusterBaseURL+"/things", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+b.Token(t, typ, false))
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("a token of type %s: %s, want %d", typ, resp.Status, want)
		}
	}
}

// serveNode starts a node that serves until the test ends.
func serveNode(t *testing.T, b *clustertest.Backend) *cluster.Cluster {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := b.Config
	cfg.Port = ln.Addr().(*net.TCPAddr).Port
	c, err := cluster.New(cfg, cluster.WithoutEnv())
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	c.Mount(mux)
	mux.Handle("GET "+c.Config().BasePath+"/things", c.AuthenticatePeer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.Reply(w, r, []string{c.Config().ID})
	})))
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- c.Serve(ctx, ln, &http.Server{Handler: mux, ReadHeaderTimeout: time.Second}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return c
}

// What breaks a rule of virtual time fails with an error that names the rule, instead of a
// deadlock.
func TestRulesOfVirtualTime(t *testing.T) {
	wantError := func(t *testing.T, want string, f func(clustertest.TB)) {
		t.Helper()
		if err := clustertest.Program(t.Context(), f); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		wantError(t, "a test uses no sockets inside a bubble", func(tb clustertest.TB) { clustertest.NewBackend(tb) })
	})
	wantError(t, "started outside of the bubble", func(tb clustertest.TB) {
		w := clustertest.Start(tb, 1)
		synctest.Test(t, func(*testing.T) {
			joined := make(chan struct{})
			go func() { // Join ends its goroutine
				defer close(joined)
				w.Join()
			}()
			<-joined
		})
	})
}
