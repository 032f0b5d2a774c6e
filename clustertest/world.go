package clustertest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
)

// The hosts of the registry and of the token service of a [World].
const (
	RegistryHost = "mit.test"
	TokenHost    = "mst.test"
)

// A World is a cluster of nodes with a registry and a token service, on one network. Its methods
// must be called from the goroutine of the test.
type World struct {
	// Network connects the nodes with each other, the registry and the token service.
	Network *Network
	// Registry serves RegistryHost, and Tokens serves TokenHost.
	Registry *mit.Registry
	Tokens   *mit.TokenService
	// Nodes are all nodes in the order of their creation, including killed ones.
	Nodes []*Node

	t      TB
	opts   options
	bubble string // that it was started in

	mu    sync.Mutex // guards the field below
	store mit.Store
}

// Start creates a world with the given number of nodes and registers them one after the other. The
// nodes are closed when the test ends. If something cannot be created, the test fails.
func Start(t TB, nodes int, opts ...Option) *World {
	t.Helper()
	w := &World{Network: &Network{}, t: t, bubble: bubble(), opts: options{
		serverType: "mds", lease: time.Hour, store: mit.NewMemory(), handler: things,
	}}
	for _, o := range opts {
		o.apply(&w.opts)
	}
	w.store = w.opts.store
	typ := w.opts.serverType
	var err error
	w.Tokens, err = mit.NewTokenService(mit.TokenConfig{
		Issuer: issuer, Key: signingKey, AccessTokenTTL: w.opts.tokenTTL,
		Clients: []mit.Client{{ID: typ, Secret: secretOf(typ), Type: typ}},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.Registry, err = mit.NewRegistry(worldStore{w}, mit.RegistryConfig{
		Lease: w.opts.lease, Issuer: issuer, Audience: registryAudience, Keys: []string{signingKey}, BasePath: "/mIT/v1",
	})
	if err != nil {
		t.Fatal(err)
	}
	w.Network.Handle(RegistryHost, w.Registry)
	w.Network.Handle(TokenHost, w.Tokens)
	t.Cleanup(func() {
		for _, n := range w.Nodes {
			_ = n.Close() // it returns nil
		}
	})
	for range nodes {
		w.Join()
	}
	return w
}

// Join adds a node and registers it. See [World.Add].
func (w *World) Join(opts ...cluster.Option) *Node {
	w.t.Helper()
	n := w.Add(opts...)
	if _, err := n.Register(w.t.Context()); err != nil {
		w.t.Fatalf("registering %s: %v", n.ID, err)
	}
	return n
}

// Add adds a node, which serves requests but does not register: the test calls
// [cluster.Cluster.Register]. Its options are those of [WithOptions], followed by opts. Its id is
// node-1, node-2 and so on, in the order of creation.
func (w *World) Add(opts ...cluster.Option) *Node {
	w.t.Helper()
	id := fmt.Sprintf("node-%d", len(w.Nodes)+1)
	n := &Node{ID: id, Host: id + ":8080", world: w, opts: opts}
	n.create()
	w.Nodes = append(w.Nodes, n)
	return n
}

// ResetRegistry erases all data of the registry, like a restart of a registry that keeps its data
// in memory.
func (w *World) ResetRegistry() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.store = mit.NewMemory()
}

// Registered returns the servers that the registry lists, sorted by id.
func (w *World) Registered() []cluster.Server {
	w.t.Helper()
	r, err := w.currentStore().Get(w.t.Context(), mit.ResourceID(w.opts.serverType))
	if err != nil && !errors.Is(err, mit.ErrNotFound) {
		w.t.Fatal(err)
	}
	return r.Servers
}

// Token requests an access token for the nodes of this world, as a service of the given type. It
// returns a cluster token, or a plain one if clusterToken is false.
func (w *World) Token(typ string, clusterToken bool) string {
	w.t.Helper()
	w.checkBubble()
	return requestToken(w.t, w.Tokens, w.Network.Client("test"), issuer, typ, clusterToken)
}

// An Option changes a default of [Start].
type Option interface{ apply(*options) }

// WithType sets the service type of the nodes. The default is "mds".
func WithType(typ string) Option { return optionFunc(func(o *options) { o.serverType = typ }) }

// WithLease sets the lease that the registry grants. The default is an hour.
func WithLease(d time.Duration) Option { return optionFunc(func(o *options) { o.lease = d }) }

// WithTokenTTL sets the lifetime of access tokens. The default is a day.
func WithTokenTTL(d time.Duration) Option { return optionFunc(func(o *options) { o.tokenTTL = d }) }

// WithConfig calls edit with the configuration of each node before the node is created.
func WithConfig(edit func(*cluster.Config)) Option {
	return optionFunc(func(o *options) { o.configure = edit })
}

// WithProcessEnv lets the node with the given id write its status to the environment of the
// process. By default no node does, because all of them share one environment.
func WithProcessEnv(id string) Option { return optionFunc(func(o *options) { o.envNode = id }) }

// WithOptions passes opts to each node. By default a node uses an HTTP client of the network, see
// [Network.Client].
func WithOptions(opts ...cluster.Option) Option {
	return optionFunc(func(o *options) { o.cluster = append(o.cluster, opts...) })
}

// WithHandler sets the handler of a node for all requests except those of the two peer endpoints.
// The default handler responds to GET {base}/things with a list that contains the id of the node.
// It requires a valid access token.
func WithHandler(handler func(*Node) http.Handler) Option {
	return optionFunc(func(o *options) { o.handler = handler })
}

// WithStore sets the store of the registry. The default is a new [mit.Memory]. After
// [World.ResetRegistry] the registry uses a new Memory in any case.
func WithStore(s mit.Store) Option { return optionFunc(func(o *options) { o.store = s }) }

// requestToken requests an access token for nodes, as a service of the given type, which becomes a
// client of tokens.
func requestToken(t TB, tokens *mit.TokenService, client *http.Client, url, typ string, clusterToken bool) string {
	t.Helper()
	if err := tokens.SetClient(mit.Client{ID: typ, Secret: secretOf(typ), Type: typ}); err != nil {
		t.Fatal(err)
	}
	body := map[string]string{
		"client_id": typ, "client_secret": secretOf(typ), "audience": peerAudience, "grant_type": "client_credentials",
	}
	if clusterToken {
		body["type"] = "cluster"
	}
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var issued struct {
		Data struct {
			AccessToken string `json:"access_token"`
		} `json:"data"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&issued); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %v", url, resp.Status, err)
	}
	return issued.Data.AccessToken
}

const (
	issuer           = "http://" + TokenHost + "/mST/v1/oauth/token"
	registryAudience = "https://mit.test"
	peerAudience     = "https://peers.test"
	signingKey       = "a key for tests only"
)

type options struct {
	serverType string
	lease      time.Duration
	tokenTTL   time.Duration
	configure  func(*cluster.Config)
	cluster    []cluster.Option
	handler    func(*Node) http.Handler
	store      mit.Store
	envNode    string // the id of the node that writes the environment
}

type optionFunc func(*options)

func (f optionFunc) apply(o *options) { f(o) }

func (w *World) currentStore() mit.Store {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.store
}

func secretOf(typ string) string { return "secret of " + typ }

// A worldStore forwards to the current store of a World, which ResetRegistry replaces.
type worldStore struct{ w *World }

func (s worldStore) Put(ctx context.Context, reg mit.Registration, ttl time.Duration) (mit.Resource, error) {
	return s.w.currentStore().Put(ctx, reg, ttl)
}

func (s worldStore) Get(ctx context.Context, id string) (mit.Resource, error) {
	return s.w.currentStore().Get(ctx, id)
}

func (s worldStore) List(ctx context.Context) ([]mit.Resource, error) {
	return s.w.currentStore().List(ctx)
}

func (s worldStore) Delete(ctx context.Context, id, serverID string) error {
	return s.w.currentStore().Delete(ctx, id, serverID)
}

func (s worldStore) DeleteIfUnmodifiedSince(
	ctx context.Context, id, serverID string, since time.Time,
) (*cluster.Server, error) {
	return s.w.currentStore().DeleteIfUnmodifiedSince(ctx, id, serverID, since)
}
