// Package nodes runs a cluster of nodes behind a router, over sockets of the loopback interface.
package nodes

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

// A Router returns the handler of a node's server, which has the two peer endpoints, and things at
// GET {base}/things.
type Router func(c *cluster.Cluster, things http.Handler) http.Handler

// Test runs three nodes with a router: they register, announce themselves, call each other, reject
// other callers, and one of them leaves with SIGTERM.
func Test(t *testing.T, router Router) {
	t.Helper()
	b := clustertest.NewBackend(t)
	first := serve(t, b, "node-1", router, context.Background())
	second := serve(t, b, "node-2", router, context.Background())
	onSignal, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	third := serve(t, b, "node:3_x.y", router, onSignal) // its id has all special characters

	// Announcements arrive at the endpoint: the lease is an hour.
	first.wantPeers(t, "node-2", "node:3_x.y")
	second.wantPeers(t, "node-1", "node:3_x.y")
	first.wantThings(t, "node-2", "node:3_x.y")
	third.wantThings(t, "node-1", "node-2")
	first.checkCallers(t, b)

	// The departure arrives at the endpoint, too.
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	third.wait(t)
	first.wantPeers(t, "node-2")
	second.wantPeers(t, "node-1")
	first.wantThings(t, "node-2")
}

// A node is a cluster and its server.
type node struct {
	*cluster.Cluster
	served chan error // nil once it has been read
	cancel context.CancelFunc
}

// serve starts a node, which serves until ctx ends, or the test.
func serve(t *testing.T, b *clustertest.Backend, id string, router Router, ctx context.Context) *node {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := b.Config
	cfg.ID, cfg.Port = id, ln.Addr().(*net.TCPAddr).Port
	c, err := cluster.New(cfg, cluster.WithoutEnv())
	if err != nil {
		t.Fatal(err)
	}
	things := c.AuthenticatePeer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { c.Reply(w, r, []string{id}) }))
	n := &node{Cluster: c, served: make(chan error, 1)}
	ctx, n.cancel = context.WithCancel(ctx)
	go func() {
		n.served <- c.Serve(ctx, ln, &http.Server{Handler: router(c, things), ReadHeaderTimeout: time.Second})
	}()
	t.Cleanup(func() {
		n.cancel()
		n.wait(t)
	})
	return n
}

// wait waits until the node has left.
func (n *node) wait(t *testing.T) {
	t.Helper()
	if n.served == nil {
		return
	}
	select {
	case err := <-n.served:
		n.served = nil
		if err != nil {
			t.Errorf("%s: %v", n.Config().ID, err)
		}
	case <-time.After(30 * time.Second):
		t.Errorf("%s does not end", n.Config().ID)
	}
}

// wantPeers waits for the peers of a node. Sockets need real time.
func (n *node) wantPeers(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for range 1000 {
		got = nil
		for _, s := range n.Peers() {
			got = append(got, s.ServerID)
		}
		if slices.Equal(got, want) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s has the peers %q, want %q", n.Config().ID, got, want)
}

func (n *node) wantThings(t *testing.T, want ...string) {
	t.Helper()
	res, err := n.RPCluster(t.Context(), cluster.Request{Path: "/things"})
	if err != nil {
		t.Fatal(err)
	}
	got, err := cluster.Decode[string](res)
	if err != nil || len(res.Failures) > 0 || !slices.Equal(got, want) {
		t.Fatalf("%s got %q, want %q; failures %v, error %v", n.Config().ID, got, want, res.Failures, err)
	}
}

// checkCallers calls the endpoints without a token, and with tokens of others.
func (n *node) checkCallers(t *testing.T, b *clustertest.Backend) {
	t.Helper()
	id := n.Status().ResourceID
	for _, e := range []struct{ method, path string }{
		{http.MethodGet, "/things"}, {http.MethodPost, "/itResources"}, {http.MethodDelete, "/itResources/" + id + "/servers/node-2"},
	} {
		for what, tt := range map[string]struct {
			token string
			want  int
		}{
			"no token": {"", http.StatusUnauthorized}, "invalid token": {"invalid", http.StatusForbidden},
			"another type": {b.Token(t, "other", false), http.StatusForbidden},
		} {
			if e.path != "/things" && what == "another type" {
				tt.want = http.StatusBadRequest // not a cluster token
			}
			got := n.send(t, e.method, e.path, tt.token)
			var envelope struct{ StatusCode int }
			if got.status != tt.want || json.Unmarshal(got.body, &envelope) != nil || envelope.StatusCode != tt.want {
				t.Errorf("%s %s with %s: %d %s, want %d", e.method, e.path, what, got.status, got.body, tt.want)
			}
			if challenge := got.header.Get("WWW-Authenticate"); strings.HasPrefix(challenge, "Bearer") != (tt.want == http.StatusUnauthorized) {
				t.Errorf("%s %s with %s: WWW-Authenticate is %q", e.method, e.path, what, challenge)
			}
		}
	}
	// A peer's own requests are accepted.
	token := b.Token(t, "mds", true)
	if got := n.send(t, http.MethodDelete, "/itResources/"+id+"/servers/unknown", token); got.status != http.StatusOK || !bytes.Contains(got.body, []byte(`"unknown"`)) {
		t.Errorf("a departure: %d %s", got.status, got.body)
	}
	// So is one without a body, which is malformed.
	if got := n.send(t, http.MethodPost, "/itResources", token); got.status != http.StatusBadRequest {
		t.Errorf("an empty announcement: %d", got.status)
	}
}

type response struct {
	status int
	header http.Header
	body   []byte
}

func (n *node) send(t *testing.T, method, path, token string) response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, n.Config().ClusterBaseURL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response{resp.StatusCode, resp.Header, body}
}
