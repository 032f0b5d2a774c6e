package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
)

const (
	serverType = "shop"
	basePath   = "/shop/v1"
	lease      = 3 * time.Second
	patience   = 5 * time.Second // with each thing that takes a moment

	registryPath = "/mIT/v1"
	issuerPath   = "/mST/v1/oauth/token"

	registryAudience = "registry"
	peerAudience     = "shops"

	// One process plays all parts, so the secrets need not be any.
	signingKey   = "what tokens are signed with"
	clientSecret = "what a shop says to get one"
)

// A stage is where the story plays: the registry, the nodes, and the listener.
type stage struct {
	out   io.Writer
	began time.Time
	nodes []*node

	address  string // the registry's, once it has one
	memory   *mit.Memory
	registry *http.Server
}

func newStage(out io.Writer) *stage { return &stage{out: out, began: time.Now()} }

// say tells one sentence.
func (s *stage) say(format string, args ...any) {
	fmt.Fprintf(s.out, "%5.2f s  %s\n", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
}

// openRegistry starts a registry and its token service, with an empty memory: on a free port,
// or on the one that the last had.
func (s *stage) openRegistry(ctx context.Context) error {
	ln, err := listen(ctx, s.address)
	if err != nil {
		return err
	}
	s.address = ln.Addr().String()
	issuer := "http://" + s.address + issuerPath
	tokens, err := mit.NewTokenService(mit.TokenConfig{
		Issuer:  issuer,
		Key:     signingKey,
		Clients: []mit.Client{{ID: serverType, Secret: clientSecret, Type: serverType}},
	})
	if err != nil {
		return err
	}
	memory := mit.NewMemory()
	registry, err := mit.NewRegistry(memory, mit.RegistryConfig{
		Lease:    lease,
		BasePath: registryPath,
		Issuer:   issuer,
		Audience: registryAudience,
		Keys:     []string{signingKey},
	})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle(issuerPath, tokens)
	mux.Handle(registryPath+"/", registry)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	s.memory, s.registry = memory, srv
	go func() { _ = srv.Serve(ln) }() // until closeRegistry
	return nil
}

// closeRegistry ends the registry in the middle of whatever it does.
func (s *stage) closeRegistry() {
	if s.registry != nil {
		s.registry.Close()
	}
}

// listed is who the registry lists.
func (s *stage) listed() []string {
	r, err := s.memory.Get(context.Background(), mit.ResourceID(serverType))
	if err != nil {
		return nil // nobody has registered yet
	}
	return ids(r.Servers)
}

// clear ends what still runs.
func (s *stage) clear() {
	for _, n := range s.nodes {
		n.kill()
	}
	s.closeRegistry()
}

func (s *stage) node(name string) *node {
	return s.nodes[slices.IndexFunc(s.nodes, func(n *node) bool { return n.name == name })]
}

// A node is one instance of the service.
type node struct {
	*cluster.Cluster
	name  string
	srv   *http.Server
	leave context.CancelFunc
	left  chan struct{} // closed when Serve has returned err
	err   error

	mu     sync.Mutex // guards the fields below
	states []string   // those of its registration so far
	gone   []string   // whom its peers told it are gone
}

// A thing is what the service deals in.
type thing struct{ Name, Owner string }

// start makes a node and has it serve on a free port.
func (s *stage) start(ctx context.Context, name, stock string) (*node, error) {
	ln, err := listen(ctx, "")
	if err != nil {
		return nil, err
	}
	n := &node{name: name, left: make(chan struct{})}
	opts := []cluster.Option{cluster.WithTrace(&cluster.Trace{StateChanged: n.noteState})}
	if len(s.nodes) > 0 { // a process has one environment: let it be the first node's
		opts = append(opts, cluster.WithoutEnv())
	}
	n.Cluster, err = cluster.New(cluster.Config{
		Type:             serverType,
		ID:               name,
		Port:             ln.Addr().(*net.TCPAddr).Port,
		BasePath:         basePath,
		LocalIPv4:        "127.0.0.1",
		Management:       true,
		RequestTimeout:   2 * time.Second,
		RenewalFraction:  0.5, // early, so that the story need not wait long for it
		RegistryURL:      "http://" + s.address + registryPath,
		RegistryAudience: registryAudience,
		PeerAudience:     peerAudience,
		Issuer:           "http://" + s.address + issuerPath,
		ClientID:         serverType,
		ClientSecret:     clientSecret,
		ClientAccessKey:  signingKey,
		ClientAudience:   peerAudience,
	}, opts...)
	if err != nil {
		ln.Close()
		return nil, err
	}
	mux := http.NewServeMux()
	n.Mount(mux)
	mux.Handle("GET "+basePath+"/things", n.Authenticate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.Reply(w, r, []thing{{Name: stock, Owner: name}})
	})))
	n.srv = &http.Server{Addr: ln.Addr().String(), Handler: n.overhear(mux), ReadHeaderTimeout: 5 * time.Second}

	life, leave := context.WithCancel(context.WithoutCancel(ctx))
	n.leave = leave
	go func() {
		defer close(n.left)
		n.err = n.Serve(life, ln, n.srv)
	}()
	s.nodes = append(s.nodes, n)
	return n, nil
}

// end ends the node as SIGTERM ends a service.
func (n *node) end(ctx context.Context) error {
	n.leave()
	select {
	case <-n.left:
		return n.err
	case <-ctx.Done():
		return fmt.Errorf("%s does not come to an end: %w", n.name, ctx.Err())
	}
}

// kill ends the node as a crash does: it tells nobody, and its connections break.
func (n *node) kill() {
	_ = n.Close() // it returns nil
	n.srv.Close()
	n.leave()
	<-n.left
}

// ask asks the peers what they have. The stock is the joint data.
func (n *node) ask(ctx context.Context) (answer *cluster.Response, stock []string, err error) {
	answer, err = n.RPCluster(ctx, cluster.Request{Path: "/things"})
	if err != nil {
		return nil, nil, err
	}
	things, err := cluster.Decode[thing](answer)
	for _, t := range things {
		stock = append(stock, fmt.Sprintf("%s (%s)", t.Name, t.Owner))
	}
	return answer, stock, err
}

// overhear notes what peers tell the node, before the node hears it.
func (n *node) overhear(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodDelete {
			n.mu.Lock()
			n.gone = append(n.gone, path.Base(r.URL.Path))
			n.mu.Unlock()
		}
		next.ServeHTTP(w, r)
	})
}

func (n *node) noteState(_, to cluster.Status) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.states = append(n.states, string(to.State))
}

// What can be expected of a node.

func (n *node) knows() []string { return ids(n.Servers()) }
func (n *node) state() []string { return []string{string(n.Status().State)} }

func (n *node) pastStates() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.states)
}

func (n *node) toldGone() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.gone)
}

// environment is what the first node mirrors into that of the process.
func environment() []string {
	return []string{os.Getenv("REGISTRATION_STATUS"), os.Getenv("CLUSTER_STATUS_SERVERS")}
}

func ids(servers []cluster.Server) (ids []string) {
	for _, s := range servers {
		ids = append(ids, s.ServerID)
	}
	return ids
}

func asked(outcomes []cluster.Outcome) (ids []string) {
	for _, o := range outcomes {
		ids = append(ids, o.Server.ServerID)
	}
	return ids
}

func evicted(answer *cluster.Response) []string {
	return asked(slices.DeleteFunc(slices.Clone(answer.Failures), func(o cluster.Outcome) bool { return !o.Evicted }))
}

// expect is the error that got is not what was wanted.
func expect(what string, got []string, want ...string) error {
	if slices.Equal(got, want) {
		return nil
	}
	return fmt.Errorf("the story is wrong about %s: expected %q, found %q", what, want, got)
}

// eventually is expect for what takes a moment, for which it waits.
func eventually(ctx context.Context, what string, get func() []string, want ...string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	again := time.NewTicker(2 * time.Millisecond)
	defer again.Stop()
	for {
		err := expect(what, get(), want...)
		if err == nil {
			return nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return fmt.Errorf("%w, until patience ran out", err)
		}
	}
}

// listen listens on an address of this machine alone; on a free port if none is given.
func listen(ctx context.Context, address string) (net.Listener, error) {
	var lc net.ListenConfig
	return lc.Listen(ctx, "tcp", cmp.Or(address, "127.0.0.1:0"))
}
