package main

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/mimiktech/cluster"
)

const (
	serverType   = "shop"
	basePath     = "/shop/v1"
	peerAudience = "shops"
)

// An item is what a node sells.
type item struct{ Name, Owner string }

// A node is one instance of the service.
type node struct {
	*cluster.Cluster
	name   string
	srv    *http.Server
	cancel context.CancelFunc
	done   chan struct{} // closed when Serve has returned err
	err    error

	mu       sync.Mutex // guards the fields below
	states   []string   // of the registration, in order
	departed []string   // servers that peers have reported as departed
}

// newNode creates a node that sells one item. Its listener determines its port.
func newNode(ln net.Listener, registryAddress string, it item, opts ...cluster.Option) (*node, error) {
	n := &node{name: it.Owner, done: make(chan struct{})}
	opts = append(opts, cluster.WithTrace(&cluster.Trace{StateChanged: n.recordState}))
	c, err := cluster.New(cluster.Config{
		Type:             serverType,
		ID:               n.name,
		Port:             ln.Addr().(*net.TCPAddr).Port,
		BasePath:         basePath,
		LocalIPv4:        "127.0.0.1",
		Management:       true,
		RequestTimeout:   2 * time.Second,
		RenewalFraction:  0.5, // renews early, so that the demo is short
		RegistryURL:      "http://" + registryAddress + registryPath,
		RegistryAudience: registryAudience,
		PeerAudience:     peerAudience,
		Issuer:           "http://" + registryAddress + issuerPath,
		ClientID:         serverType,
		ClientSecret:     clientSecret,
		ClientAccessKey:  signingKey,
		ClientAudience:   peerAudience,
	}, opts...)
	if err != nil {
		return nil, err
	}
	n.Cluster = c
	mux := http.NewServeMux()
	c.Mount(mux) // the endpoints by which peers announce themselves and report departures
	// Without Auth, because the demo listens on the loopback interface only.
	mux.Handle("/status", c.StatusHandler(cluster.StatusOptions{}))
	mux.Handle("GET "+basePath+"/items", c.Authenticate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.Reply(w, r, []item{it})
	})))
	n.srv = &http.Server{Addr: ln.Addr().String(), Handler: n.recordDepartures(mux), ReadHeaderTimeout: 5 * time.Second}
	return n, nil
}

// serve registers the node and serves requests until stop or kill is called.
func (n *node) serve(ctx context.Context, ln net.Listener) {
	ctx, n.cancel = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(n.done)
		n.err = n.Serve(ctx, ln, n.srv)
	}()
}

// stop shuts the node down like a service that receives SIGTERM: it deregisters and finishes its
// requests.
func (n *node) stop(ctx context.Context) error {
	n.cancel()
	select {
	case <-n.done:
		return n.err
	case <-ctx.Done():
		return fmt.Errorf("%s has not shut down: %w", n.name, ctx.Err())
	}
}

// kill ends the node like a crash: it does not deregister, and its connections break.
func (n *node) kill() {
	_ = n.Close() // it returns nil
	n.srv.Close()
	n.cancel()
	<-n.done
}

// callPeers sends one request to all peers. The items are the joint data of their responses.
func (n *node) callPeers(ctx context.Context) (resp *cluster.Response, items []string, err error) {
	resp, err = n.RPCluster(ctx, cluster.Request{Path: "/items"})
	if err != nil {
		return nil, nil, err
	}
	decoded, err := cluster.Decode[item](resp)
	for _, it := range decoded {
		items = append(items, fmt.Sprintf("%s (%s)", it.Name, it.Owner))
	}
	return resp, items, err
}

// recordDepartures records the departures that peers report to the node.
func (n *node) recordDepartures(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodDelete {
			n.mu.Lock()
			n.departed = append(n.departed, path.Base(r.URL.Path))
			n.mu.Unlock()
		}
		next.ServeHTTP(w, r)
	})
}

func (n *node) recordState(_ context.Context, _, to cluster.Status) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.states = append(n.states, string(to.State))
}

func (n *node) serverIDs() []string { return serverIDs(n.Servers()) }
func (n *node) state() []string     { return []string{string(n.Status().State)} }

func (n *node) pastStates() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.states)
}

func (n *node) departedIDs() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.departed)
}

// environment returns two of the variables to which the first node writes its status.
func environment() []string {
	return []string{os.Getenv("REGISTRATION_STATUS"), os.Getenv("CLUSTER_STATUS_SERVERS")}
}

func serverIDs(servers []cluster.Server) (ids []string) {
	for _, s := range servers {
		ids = append(ids, s.ServerID)
	}
	return ids
}

func outcomeIDs(outcomes []cluster.Outcome) (ids []string) {
	for _, o := range outcomes {
		ids = append(ids, o.Server.ServerID)
	}
	return ids
}

func evictedIDs(resp *cluster.Response) []string {
	return outcomeIDs(slices.DeleteFunc(slices.Clone(resp.Failures), func(o cluster.Outcome) bool { return !o.Evicted }))
}

// listen listens on a loopback address, by default on a free port.
func listen(ctx context.Context, address string) (net.Listener, error) {
	var lc net.ListenConfig
	return lc.Listen(ctx, "tcp", cmp.Or(address, "127.0.0.1:0"))
}
