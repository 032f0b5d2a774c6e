package browser

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

// A world is a cluster on sockets of the loopback interface, with its status pages.
type world struct {
	t        *testing.T
	backend  *clustertest.Backend
	registry *httptest.Server // the registry, and its status page at /status
	down     atomic.Bool      // the registry breaks off every request of nodes
	nodes    map[string]*node
}

type node struct {
	*cluster.Cluster
	srv   *http.Server
	url   string      // of its status page
	hangs atomic.Bool // it answers no request
}

func allow(h http.Handler) http.Handler { return h }

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, backend: clustertest.NewBackend(t), nodes: make(map[string]*node)}
	mux := http.NewServeMux()
	mux.Handle("/status", w.backend.Registry.StatusHandler(cluster.StatusOptions{Actions: true, Auth: allow}))
	mux.HandleFunc("/mIT/v1/", func(rw http.ResponseWriter, r *http.Request) {
		if w.down.Load() {
			panic(http.ErrAbortHandler)
		}
		w.backend.Registry.ServeHTTP(rw, r)
	})
	w.registry = httptest.NewServer(mux)
	t.Cleanup(w.registry.Close)
	return w
}

// start starts a node and registers it. Its tokens are checked for the given audience.
func (w *world) start(id, audience string) {
	w.t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(w.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	cfg := w.backend.Config
	cfg.ID, cfg.Port, cfg.RegistryURL = id, ln.Addr().(*net.TCPAddr).Port, w.registry.URL+"/mIT/v1"
	cfg.RequestTimeout = time.Second
	if audience != "" {
		cfg.ClientAudience = audience
	}
	c, err := cluster.New(cfg, cluster.WithoutEnv())
	if err != nil {
		w.t.Fatal(err)
	}
	n := &node{Cluster: c, url: "http://" + ln.Addr().String() + "/status"}
	mux := http.NewServeMux()
	c.Mount(mux)
	mux.Handle("/status", c.StatusHandler(cluster.StatusOptions{Actions: true, Auth: allow}))
	mux.Handle("GET /mds/v1/things", c.Authenticate(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { c.Reply(rw, r, []string{id}) })))
	n.srv = &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if n.hangs.Load() && r.URL.Path != "/status" {
			<-r.Context().Done()
			return
		}
		mux.ServeHTTP(rw, r)
	})}
	go func() { _ = n.srv.Serve(ln) }() // ends with kill
	w.nodes[id] = n
	w.t.Cleanup(n.kill)
	if _, err := c.Register(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// kill ends a node like a crash.
func (n *node) kill() {
	_ = n.Close()
	_ = n.srv.Close()
}

// call makes the first node call its peers.
func (w *world) call() {
	w.t.Helper()
	if _, err := w.nodes["alpha"].RPCluster(w.t.Context(), cluster.Request{Path: "/things"}); err != nil {
		w.t.Fatal(err)
	}
}

// register makes a node renew its lease. It may fail.
func (w *world) register(id string) {
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
	defer cancel()
	_, _ = w.nodes[id].Register(ctx)
}
