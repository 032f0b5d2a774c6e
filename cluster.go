// Package cluster makes a Go micro-service a full member of a mimik cluster.
//
// The instances of one service (a type, such as "mds") form a cluster. Each node registers as a
// server with the registry (mIT), renews its lease there, and receives the list of all servers. It
// can then send one request to all others, its peers. Nodes of this package and of the npm module
// @mimik/cluster work together in one cluster.
//
//	cfg, err := cluster.ConfigFromEnv()
//	c, err := cluster.New(cfg)
//	mux := http.NewServeMux()
//	mux.Handle("GET /mds/v1/things", c.Authenticate(things))
//	c.Mount(mux) // the two endpoints that peers call
//	err = c.ListenAndServe(ctx, &http.Server{Handler: mux})
//
// [Cluster.ListenAndServe] runs a service from start to end. It listens, registers and serves. When
// ctx ends, it unregisters, drains and returns. [Cluster.Register], [Cluster.UnRegister] and
// [Cluster.Close] are for services that do these steps themselves.
//
// # Fan-out
//
// [Cluster.RPCluster] sends one request to every peer. Each peer appears exactly once, in the
// Results or in the Failures of the [Response]. [Decode] decodes the data of all results.
// [Cluster.Stream] yields the same outcomes as they arrive. A [Request] may select peers, stop
// after a number of results, and send a second request to a slow peer.
//
// Fan-out needs Config.Management. Without it, a node registers but neither calls nor evicts peers.
// A program that is not a server of the cluster, such as a tool, calls the servers as a guest; see
// [Observe].
//
// # Membership
//
// The registry has one entry per cluster, called its itResource, with the list of its servers. With
// each renewal the registry sends this list, which becomes the node's view. Between renewals, peers
// announce themselves and report departures, which change the view at once. A peer that cannot be
// reached is evicted only if the registry confirms it. A node with three or more peers evicts none
// while most of them are unreachable (see [Eviction]).
//
// # Lease
//
// One goroutine renews the lease and never gives up. The node recovers without a restart from an
// expired token, a lost entry, and an outage of the registry of any length. [Cluster.Status]
// returns the status of the registration, which is also in the process environment (see
// [Status.Env]). [Cluster.Watch] yields the changes of the view. [Trace] has functions that are
// called on events.
//
// # Tokens
//
// Requests to the registry and to peers carry a bearer token from the token service (mST), or from
// the source given with [WithTokens]. Received tokens must be issued by the token service and
// signed with HS256, unless [WithVerifier] is given. Tokens and secrets never appear in a log line
// or an error.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"

	"github.com/mimiktech/cluster/internal/membership"
	"github.com/mimiktech/cluster/internal/statuspage"
	"github.com/mimiktech/cluster/internal/token"
	"github.com/mimiktech/cluster/internal/wire"
)

// A Cluster is the membership of one node in its cluster. Its methods are safe for concurrent use.
// A node that has left cannot register again: make a new Cluster instead.
type Cluster struct {
	cfg      Config // with its defaults; read-only after New, like all fields
	address  *address
	policy   PeerPolicy
	verifier Verifier
	log      *zap.Logger
	trace    *hooks

	leave    Leave
	created  time.Time
	secrets  *credentials
	http     *httpClient
	registry *registryClient
	peers    *peerClient
	evictor  *evictor
	state    *state
	tasks    *tasks

	ctx              context.Context // ends with Close
	memberCtx        context.Context // ends with UnRegister or Close
	cancelMember     context.CancelCauseFunc
	leaseStarted     atomic.Bool
	ownRequest       ownRequest
	refusals         refusals
	verifierWarning  minuteLimit
	rejectedWarnings sync.Map     // of announcements: a *minuteLimit for each reason
	invalidWarning   minuteLimit  // an announcement has invalid entries
	departedWarning  minuteLimit  // a peer reports this node as departed
	ignoredWarning   minuteLimit  // a message for another itResource
	announcements    atomic.Int64 // number of the last one
	senders          senderLimit  // of announcements
	lists            *semaphore.Weighted
	confirmation     confirmations
	renewNow         chan struct{} // makes the lease goroutine renew
	registrationLock chan struct{} // held during a request to the registry about this node

	recorder atomic.Pointer[statuspage.Recorder] // nil without a status page
	checking sync.Mutex                          // held during a check
}

// A Server is one server of a cluster, as described by the registry or by a peer.
type Server struct {
	// ServerID identifies the server within its cluster.
	ServerID string
	// ClusterBaseURL is the base URL at which peers call the server.
	ClusterBaseURL string
	// Location is the location of the server, a GeoJSON object; nil if unknown.
	Location json.RawMessage
	// CreatedAt and UpdatedAt are set by the registry: the times of the server's first registration
	// and of its last renewal. They are zero if the entry lacks them.
	CreatedAt, UpdatedAt time.Time

	// Raw is the entry as it was received, with all its fields. If set, MarshalJSON returns it.
	Raw json.RawMessage
}

// MarshalJSON returns Raw if it is set, and otherwise encodes the other fields.
func (s Server) MarshalJSON() ([]byte, error) { return wire.Server(s).MarshalJSON() }

// UnmarshalJSON decodes an entry and keeps all of it in Raw. An entry without a serverId is an
// error.
func (s *Server) UnmarshalJSON(b []byte) error { return (*wire.Server)(s).UnmarshalJSON(b) }

// New returns a node with the given configuration. It does no I/O and starts no goroutine. One
// error names all fields that are missing or invalid, by their environment variables.
func New(cfg Config, opts ...Option) (*Cluster, error) {
	o := applyOptions(opts)
	if err := configError(cfg.validate(o, nil)); err != nil {
		return nil, err
	}
	own, err := newAddress(cfg, &o)
	if err != nil {
		return nil, configError([]error{err})
	}
	cfg = own.cfg
	o.policy, _ = cfg.peerPolicy(o.policy) // it is valid
	client, err := newSender(cfg, &o)
	if err != nil {
		return nil, configError([]error{err})
	}
	own.logChoice(o.log)
	c := &Cluster{
		cfg:              cfg,
		address:          own,
		policy:           o.policy,
		verifier:         o.verifier,
		log:              o.log,
		leave:            o.leave,
		created:          time.Now(),
		secrets:          client.secrets,
		trace:            client.trace,
		http:             client,
		lists:            semaphore.NewWeighted(maxListBytes),
		renewNow:         make(chan struct{}, 1),
		registrationLock: make(chan struct{}, 1),
	}
	c.state = newState(cfg.ID, &o, c.trace)
	c.state.transports = c.http.transports
	if c.verifier == nil {
		keys := token.NewKeys(cfg.Issuer, cfg.receivedAudience(), c.secrets.key, c.secrets.previousKey)
		keys.Leeway = o.leeway
		c.verifier = keyVerifier{keys}
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	c.ctx, c.tasks = ctx, &tasks{ctx: ctx, cancel: cancel}
	c.memberCtx, c.cancelMember = context.WithCancelCause(ctx)
	c.connect(o)
	_, sharedKey := c.verifier.(keyVerifier)
	for _, warning := range cfg.unsafeSettings(c.policy, sharedKey) {
		c.log.Warn("unsafe configuration", zap.String("reason", warning))
	}
	return c, nil
}

// connect makes the parts of a Cluster that need others.
func (c *Cluster) connect(o options) {
	tokens := newTokens(c.ctx, c.http, c.cfg, o)
	c.registry = newRegistryClient(c.http, tokens, c.cfg, o)
	c.evictor = &evictor{
		policy:         o.eviction,
		requestTimeout: c.cfg.RequestTimeout,
		ctx:            c.ctx,
		memberCtx:      c.memberCtx,
		registry:       c.registry,
		state:          c.state,
		check:          c.checkServer,
		background:     c.tasks.start,
		notify:         c.notifyDeparture,
		log:            c.log,
		trace:          c.trace,
	}
	c.peers = newPeerClient(c.ctx, c.http, tokens, c.cfg, o)
	c.peers.selfID, c.peers.evictor, c.peers.confirm = c.cfg.ID, c.evictor, c.confirmAnnounced
}

// Close stops the lease and all other goroutines, and waits for them. Calls in progress end with
// [ErrClosed]. Close always returns nil, and may be called again.
//
// Neither the registry nor any peer is notified: the registry drops the node when its lease
// expires. Call [Cluster.UnRegister] first to deregister.
func (c *Cluster) Close() error {
	c.tasks.close(ErrClosed)
	c.peers.close()
	c.state.leave(ensureCorrelationID(context.Background()), ErrClosed)
	c.http.transports.close()
	return nil
}

// Config returns the node's configuration with the defaults filled in, such as its ID and BasePath.
// If the node has chosen its address itself, Config has its first choice, even if the node has
// chosen another since.
func (c *Cluster) Config() Config { return c.cfg }

// SetKeys replaces the keys with which received tokens are verified: GenericKey, or ClientAccessKey
// if there is no GenericKey, and GenericPreviousKey, which may be empty. Key files are no longer
// read. SetKeys changes nothing and returns an error if key is empty, if either key is a public
// key, or if [WithVerifier] was given. It does not block.
func (c *Cluster) SetKeys(key, previous Secret) error {
	if _, ok := c.verifier.(keyVerifier); !ok {
		return errors.New("cluster: SetKeys: tokens are verified by the Verifier of WithVerifier")
	}
	if key == "" || token.IsPublicKey(string(key)) || token.IsPublicKey(string(previous)) {
		return errors.New("cluster: SetKeys: a key must be secret, and the first one must not be empty")
	}
	// In this order, a token that is signed with the old key is valid all the time.
	c.secrets.previousKey.Set(string(previous))
	c.secrets.key.Set(string(key))
	return nil
}

// Servers returns the node's view: all known servers of the cluster, this one included, sorted by
// id. It does not block. The caller owns the slice.
func (c *Cluster) Servers() []Server { return serversOf(c.state.view()) }

// Peers is like Servers, without this node.
func (c *Cluster) Peers() []Server { return serversOf(c.state.view().Without(c.cfg.ID)) }

// Status returns the status of the registration. It does not block.
func (c *Cluster) Status() Status { return c.state.status() }

// Stats returns figures about the requests to peers. It does not block. Its duration grows with the
// number of peers: some microseconds for a thousand.
func (c *Cluster) Stats() Stats {
	return Stats{
		InFlight:     c.peers.scheduler.InFlight(),
		MaxInFlight:  c.cfg.MaxInFlight,
		Waiting:      c.peers.scheduler.Waiting(),
		OpenBreakers: c.peers.breakers.Open(c.state.view().Peers()),
	}
}

// Format implements fmt.Formatter. It prints the type and the id of the node under any verb: by
// default fmt would print all fields, including the secrets.
func (c *Cluster) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "%s/%s", c.cfg.Type, c.cfg.ID) }

func serversOf(view membership.View) []Server {
	peers := view.Peers()
	servers := make([]Server, len(peers))
	for i, p := range peers {
		servers[i] = Server(p.Server)
	}
	return servers
}

// tasks are the goroutines of a Cluster. None starts after close.
type tasks struct {
	ctx    context.Context
	cancel context.CancelCauseFunc

	mu sync.Mutex // keeps close from running between the check of ctx and wg.Go
	wg sync.WaitGroup
}

// start runs work in a goroutine, until close at the latest. The context of work has the
// correlation id of ctx and no other value. Background work is not part of the operation that
// started it.
func (t *tasks) start(ctx context.Context, work func(context.Context)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil {
		return context.Cause(t.ctx)
	}
	own := WithCorrelationID(t.ctx, CorrelationID(ctx))
	t.wg.Go(func() { work(own) })
	return nil
}

func (t *tasks) close(cause error) {
	t.mu.Lock()
	t.cancel(cause)
	t.mu.Unlock()
	t.wg.Wait()
}
