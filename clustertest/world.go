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

// The hosts of a World's back end, and what its tokens are for.
const (
	RegistryHost = "mit.test"
	TokenHost    = "mst.test"

	issuer           = "http://" + TokenHost + "/mST/v1/oauth/token"
	registryAudience = "https://mit.test"
	peerAudience     = "https://peers.test"
	signingKey       = "a key for tests only"
)

// A World is a cluster with all it needs: a registry, a token service and nodes, on one network.
// Its methods are called from the test's goroutine.
type World struct {
	// Network connects them all. Nodes are at their Host, the rest at RegistryHost and TokenHost.
	Network *Network
	// Registry is the mIT, Tokens the mST.
	Registry *mit.Registry
	Tokens   *mit.TokenService
	// Nodes are all nodes ever added, in that order.
	Nodes []*Node

	t    TB
	opts options

	mu     sync.Mutex // guards the fields below
	memory mit.Store
}

// An Option says how a World differs from the usual one.
type Option interface{ apply(*options) }

type options struct {
	typ       string
	lease     time.Duration
	tokenLife time.Duration
	configure func(*cluster.Config)
	cluster   []cluster.Option
	handler   func(*Node) http.Handler
	store     mit.Store
	mirrored  string
}

type optionFunc func(*options)

func (f optionFunc) apply(o *options) { f(o) }

// WithType makes the nodes instances of a service other than "mds".
func WithType(typ string) Option { return optionFunc(func(o *options) { o.typ = typ }) }

// WithLease sets the lease that the registry gives, an hour by default.
func WithLease(d time.Duration) Option { return optionFunc(func(o *options) { o.lease = d }) }

// WithTokenLife sets how long access tokens are good for, a day by default.
func WithTokenTTL(d time.Duration) Option { return optionFunc(func(o *options) { o.tokenLife = d }) }

// WithConfig has edit change the configuration of each node before it is made.
func WithConfig(edit func(*cluster.Config)) Option {
	return optionFunc(func(o *options) { o.configure = edit })
}

// WithProcessEnv has the node of that id mirror its status into the environment of the process, as
// a node in a process of its own does. All others leave the environment alone.
func WithProcessEnv(id string) Option { return optionFunc(func(o *options) { o.mirrored = id }) }

// WithOptions gives opts to each node. Nodes have a client of the network unless opts say
// otherwise.
func WithOptions(opts ...cluster.Option) Option {
	return optionFunc(func(o *options) { o.cluster = append(o.cluster, opts...) })
}

// WithHandler sets what a node serves beside the two peer endpoints. By default a node answers
// GET {base}/things to its own type with its id as the one thing it has.
func WithHandler(handler func(*Node) http.Handler) Option {
	return optionFunc(func(o *options) { o.handler = handler })
}

// WithStore has the registry keep its servers in s, instead of in a [mit.Memory] of its own.
// [World.ResetRegistry] then puts an empty one in its place.
func WithStore(s mit.Store) Option { return optionFunc(func(o *options) { o.store = s }) }

// A TB is what a world needs of a test. Every [testing.TB] is one, and a program may make its own.
type TB interface {
	Helper()
	Context() context.Context
	Cleanup(func())
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// Start makes a world with that many nodes, all registered and announced. What it started ends
// with the test, which fails at once if anything cannot be made.
func Start(t TB, nodes int, opts ...Option) *World {
	t.Helper()
	w := &World{Network: &Network{}, t: t, opts: options{typ: "mds", lease: time.Hour, store: mit.NewMemory()}}
	w.opts.handler = things
	for _, o := range opts {
		o.apply(&w.opts)
	}
	w.memory = w.opts.store
	var err error
	w.Tokens, err = mit.NewTokenService(mit.TokenConfig{
		Issuer: issuer, Key: signingKey, AccessTokenTTL: w.opts.tokenLife,
		Clients: []mit.Client{{ID: w.opts.typ, Secret: secretOf(w.opts.typ), Type: w.opts.typ}},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.Registry, err = mit.NewRegistry(store{w}, mit.RegistryConfig{
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

// Join adds a node and registers it.
func (w *World) Join(opts ...cluster.Option) *Node {
	w.t.Helper()
	n := w.Add(opts...)
	if _, err := n.Register(w.t.Context()); err != nil {
		w.t.Fatalf("registering %s: %v", n.ID, err)
	}
	return n
}

// Add adds a node, which serves but has yet to register. It has opts beside those of
// [WithOptions].
func (w *World) Add(opts ...cluster.Option) *Node {
	w.t.Helper()
	id := fmt.Sprintf("node-%d", len(w.Nodes)+1)
	n := &Node{ID: id, Host: id + ":8080", world: w, opts: opts}
	n.make()
	w.Nodes = append(w.Nodes, n)
	return n
}

// ResetRegistry takes the registry's memory, as a restart of one that keeps it there does.
func (w *World) ResetRegistry() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.memory = mit.NewMemory()
}

// Listed are the servers that the registry lists, sorted by id.
func (w *World) Registered() []cluster.Server {
	w.t.Helper()
	r, err := w.store().Get(w.t.Context(), mit.ResourceID(w.opts.typ))
	if err != nil && !errors.Is(err, mit.ErrNotFound) {
		w.t.Fatal(err)
	}
	return r.Servers
}

func (w *World) store() mit.Store {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.memory
}

// Token is an access token for the nodes of this world, as a service of that type gets one:
// a cluster token or a plain one.
func (w *World) Token(typ string, clusterToken bool) string {
	w.t.Helper()
	if err := w.Tokens.SetClient(mit.Client{ID: typ, Secret: secretOf(typ), Type: typ}); err != nil {
		w.t.Fatal(err)
	}
	body := map[string]string{
		"client_id": typ, "client_secret": secretOf(typ), "audience": peerAudience, "grant_type": "client_credentials",
	}
	if clusterToken {
		body["type"] = "cluster"
	}
	var answer struct {
		Data struct {
			AccessToken string `json:"access_token"`
		} `json:"data"`
	}
	w.post(issuer, body, &answer)
	return answer.Data.AccessToken
}

// post asks the back end something that must go well.
func (w *World) post(url string, body, into any) {
	w.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		w.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, url, bytes.NewReader(b))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := w.Network.Client("test").Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil || resp.StatusCode != http.StatusOK {
		w.t.Fatalf("%s: %s, %v", url, resp.Status, err)
	}
}

func secretOf(typ string) string { return "secret of " + typ }

// store is the memory that a world's registry has at the moment.
type store struct{ w *World }

func (s store) Put(ctx context.Context, reg mit.Registration, life time.Duration) (mit.Resource, error) {
	return s.w.store().Put(ctx, reg, life)
}

func (s store) Get(ctx context.Context, id string) (mit.Resource, error) {
	return s.w.store().Get(ctx, id)
}

func (s store) Delete(ctx context.Context, id, serverID string) error {
	return s.w.store().Delete(ctx, id, serverID)
}

func (s store) DeleteIfUnmodifiedSince(ctx context.Context, id, serverID string, date time.Time) (*cluster.Server, error) {
	return s.w.store().DeleteIfUnmodifiedSince(ctx, id, serverID, date)
}
