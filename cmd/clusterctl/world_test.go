package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/internal/testca"
)

// A world is a cluster on sockets of the loopback interface, and the environment of its nodes.
type world struct {
	*testing.T
	backend *clustertest.Backend
	env     map[string]string
	nodes   map[string]*testNode
	ca      *testca.CA
}

// A testNode is a node of a world.
type testNode struct {
	*cluster.Cluster
	server *httptest.Server

	mu    sync.Mutex // guards the field below
	front func(http.Handler) http.Handler
}

// newWorld starts a registry, a token service and nodes with the given ids.
func newWorld(t *testing.T, ids ...string) *world {
	t.Helper()
	b := clustertest.NewBackend(t)
	w := &world{T: t, backend: b, nodes: map[string]*testNode{}, env: map[string]string{
		"SERVER_TYPE": b.Config.Type, "MIT_URL": b.Config.RegistryURL, "MIT_AUDIENCE": b.Config.RegistryAudience,
		"MDS_AUDIENCE": b.Config.PeerAudience, "OAUTH_ISSUER": b.Config.Issuer,
		"OAUTH_CLIENT_ID": b.Config.ClientID, "OAUTH_CLIENT_SECRET": string(b.Config.ClientSecret),
		"REQUEST_TIMEOUT": "2000",
	}}
	var err error
	if w.ca, err = testca.New(); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		w.join(id)
	}
	return w
}

// join starts a node and registers it.
func (w *world) join(id string) *testNode { return w.joinAs(id, nil) }

// joinAs starts a node behind TLS if it has a certificate.
func (w *world) joinAs(id string, cert *tls.Certificate) *testNode {
	w.Helper()
	n := &testNode{}
	n.server = httptest.NewUnstartedServer(http.HandlerFunc(n.serve))
	n.server.Config.ErrorLog = log.New(io.Discard, "", 0) // some clients do not trust the CA
	if cert == nil {
		n.server.Start()
	} else {
		n.server.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}}
		n.server.StartTLS()
	}
	w.Cleanup(n.server.Close)
	cfg := w.backend.Config
	cfg.ID, cfg.Port = id, n.server.Listener.Addr().(*net.TCPAddr).Port
	cfg.ClusterBaseURL = n.server.URL + "/mds/v1"
	c, err := cluster.New(cfg, cluster.WithoutEnv(), cluster.WithPeerTLS(&tls.Config{RootCAs: w.ca.Pool()}))
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { _ = c.Close() })
	n.Cluster = c
	if _, err := c.Register(w.Context()); err != nil {
		w.Fatal(err)
	}
	w.nodes[id] = n
	return n
}

func (n *testNode) serve(w http.ResponseWriter, r *http.Request) {
	mux := http.NewServeMux()
	n.Mount(mux)
	mux.Handle("/mds/v1/things", n.AuthenticatePeer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.Reply(w, r, []string{n.Config().ID})
	})))
	n.mu.Lock()
	front := n.front
	n.mu.Unlock()
	h := http.Handler(mux)
	if front != nil {
		h = front(h)
	}
	h.ServeHTTP(w, r)
}

// behind puts the node behind a handler.
func (n *testNode) behind(front func(http.Handler) http.Handler) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.front = front
}

// kill ends a node without a trace of it in the registry or at its peers.
func (n *testNode) kill() {
	n.server.CloseClientConnections()
	n.server.Close()
	_ = n.Close()
}

// waitForViews waits until all nodes know each other.
func (w *world) waitForViews() {
	w.Helper()
	w.eventually("all nodes know each other", func() bool {
		for _, n := range w.nodes {
			if len(n.Servers()) != len(w.nodes) {
				return false
			}
		}
		return true
	})
}

// eventually waits for something that happens on sockets, in real time.
func (w *world) eventually(what string, happened func() bool) {
	w.Helper()
	for range 1000 {
		if happened() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.Fatalf("not within 10 s: %s", what)
}

// writeFile writes a file and returns its path.
func (w *world) writeFile(name string, content []byte) string {
	w.Helper()
	path := filepath.Join(w.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		w.Fatal(err)
	}
	return path
}

// A result is what a run of the program has printed.
type result struct {
	code           int
	stdout, stderr string
}

// run runs the program in the environment of the nodes.
func (w *world) run(args ...string) result {
	w.Helper()
	return w.runWith(nil, args...)
}

// runWith is run with a terminal if in is not nil.
func (w *world) runWith(in io.Reader, args ...string) result {
	w.Helper()
	var stdout, stderr bytes.Buffer
	a := &app{
		lookupEnv: func(name string) (string, bool) { value, ok := w.env[name]; return value, ok },
		in:        in, out: &stdout, errOut: &stderr, canAsk: in != nil,
	}
	ctx, cancel := context.WithTimeout(w.Context(), time.Minute)
	defer cancel()
	r := result{code: a.run(ctx, args)}
	r.stdout, r.stderr = stdout.String(), stderr.String()
	for _, secret := range []string{w.env["OAUTH_CLIENT_SECRET"], "eyJ"} {
		if secret != "" && strings.Contains(r.stdout+r.stderr, secret) && !slices.Contains(args, "--show") {
			w.Errorf("clusterctl %s prints a secret:\n%s%s", strings.Join(args, " "), r.stdout, r.stderr)
		}
	}
	return r
}

// want checks the exit code, and that the output has all parts.
func (w *world) want(r result, code int, parts ...string) {
	w.Helper()
	if r.code != code {
		w.Errorf("exit code %d, want %d", r.code, code)
	}
	for _, part := range parts {
		if !strings.Contains(r.stdout+r.stderr, part) {
			w.Errorf("the output lacks %q", part)
		}
	}
	if w.Failed() {
		w.Logf("stdout:\n%s\nstderr:\n%s", r.stdout, r.stderr)
	}
}

var durations = regexp.MustCompile(`\d+ (ms|s|min|h|days)\b`)

// stable replaces what differs between two runs: addresses, durations, and the width of columns.
func (w *world) stable(text string) string {
	for id, n := range w.nodes {
		text = strings.ReplaceAll(text, n.server.URL, "http://"+id)
	}
	text = strings.ReplaceAll(text, strings.TrimSuffix(w.backend.Config.RegistryURL, "/mIT/v1"), "http://backend")
	text = durations.ReplaceAllString(text, "N $1")
	text = regexp.MustCompile(`N (ms|s)\b`).ReplaceAllString(text, "N s")
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = regexp.MustCompile(` {2,}`).ReplaceAllString(lines[i], "  ")
	}
	return strings.Join(lines, "\n")
}

// golden compares the output with the wanted text, in the form of stable.
func (w *world) golden(r result, want string) {
	w.Helper()
	if got := w.stable(r.stdout); got != strings.TrimPrefix(want, "\n") || r.code != exitOK {
		w.Errorf("exit code %d; stderr: %s\ngot:\n%s\nwant:%s", r.code, r.stderr, got, want)
	}
}

// shiftClock returns a front that adds d to the dates of responses.
func shiftClock(d time.Duration) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Date", time.Now().Add(d).UTC().Format(http.TimeFormat))
			next.ServeHTTP(w, r)
		})
	}
}

// answer returns a front that responds in place of the node.
func answer(status int, body string) func(http.Handler) http.Handler {
	return func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			fmt.Fprint(w, body)
		})
	}
}
