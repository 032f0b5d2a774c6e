// Package cluster makes a Go micro-service a full member of a mimik cluster.
//
// The instances of one service (a type, such as "mds") form a cluster. Each registers with a
// registry (mIT), renews its lease there, learns who the others are, and can send one request
// to all of them. Go nodes and nodes of the npm module @mimik/cluster live in one cluster and
// cannot tell each other apart.
//
//	cfg, err := cluster.ConfigFromEnv()
//	c, err := cluster.New(cfg)
//	mux := http.NewServeMux()
//	mux.Handle("GET /mds/v1/things", c.Authenticate(things))
//	c.Mount(mux) // the two endpoints that peers call
//	err = c.ListenAndServe(ctx, &http.Server{Handler: mux})
//
// ListenAndServe is the life of a service in one call: it listens, registers, serves, and when
// ctx ends it unregisters, drains and returns. [Cluster.Register], [Cluster.UnRegister] and
// [Cluster.Close] are its parts for those who keep that life themselves.
//
// # Asking all peers
//
// [Cluster.RPCluster] sends one request to every peer and accounts for each of them: a peer
// stands exactly once in the Results or in the Failures of the [Response]. [Decode] reads the
// joint data. [Cluster.Stream] gives the same outcomes as they arrive. A [Request] may pick
// peers, be content with some answers, and ask a slow peer a second time.
//
// # Who is in the cluster
//
// mIT has the last word: each renewal's answer becomes the node's view of the cluster. Between
// two renewals, peers announce themselves, leave, and report who is gone. A peer that cannot
// be reached is evicted only if mIT agrees, and never when most of the cluster is unreachable,
// for then the fault is likely on this side (see [Eviction]).
//
// # The lease
//
// One goroutine keeps the lease. It never gives up: an outage of the registry of any length, an
// expired token, an entry that was lost all heal without a restart. [Status] says how the
// registration stands, [Trace] hears of every change, and the process environment mirrors it:
// REGISTRATION_STATUS, CLUSTER_STATUS_SERVERS, CLUSTER_STATUS_UPDATED_AT and
// CLUSTER_STATUS_LEASE_TIME.
//
// # What it asks of tokens
//
// Every request carries a bearer token from mST, kept per audience and kind. Received tokens
// must be signed with HS256 by mST; [WithVerifier] and [WithTokens] bring others. Tokens and
// secrets are in no log line and no error.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/oauth2"
	"golang.org/x/sync/singleflight"

	"github.com/mimiktech/cluster/internal/breaker"
	"github.com/mimiktech/cluster/internal/fanout"
	"github.com/mimiktech/cluster/internal/membership"
	"github.com/mimiktech/cluster/internal/token"
	"github.com/mimiktech/cluster/internal/wire"
)

// A Cluster is one node's membership in its cluster. Make one with [New]; all its methods may
// be called from any goroutine. It leaves once: to join again, make another.
type Cluster struct {
	cfg        Config // read-only after New, like all down to mu
	self       wire.Registration
	userAgent  string
	log        *zap.Logger
	trace      Trace
	retry      Retry
	eviction   Eviction
	policy     PeerPolicy
	noEnv      bool
	verifier   Verifier
	tokens     *token.Cache
	transports transports
	scheduler  *fanout.Scheduler
	breakers   *breaker.Set
	registry   *replicas
	deletes    singleflight.Group // the dated deletes under way, by server id

	ctx              context.Context // ends with Close
	cancel           context.CancelCauseFunc
	memberCtx        context.Context // ends with UnRegister or Close
	cancelMember     context.CancelCauseFunc
	renewNow         chan struct{}  // hurries the lease on
	registrationLock chan struct{}  // held by whoever speaks to mIT about ourselves: one at a time
	wg               sync.WaitGroup // the lease, and what is told to peers beside a call

	mu                sync.Mutex // guards the fields below
	view              membership.View
	status            Status
	leaseStarted      bool            // the lease goroutine has been started
	mustReregister    bool            // a peer told us to forget ourselves
	deregistered      bool            // mIT knows that we left
	pendingDepartures map[string]bool // servers that this node has evicted, and has still to tell of
}

// New makes the node that cfg describes. It starts nothing and calls nobody; one error names
// everything that is missing or wrong in cfg, by the names of the environment variables.
func New(cfg Config, opts ...Option) (*Cluster, error) {
	o := applyOptions(opts)
	if err := configError(cfg.validate(o, nil)); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	c := &Cluster{
		cfg:               cfg,
		userAgent:         wire.UserAgent(cfg.Type, cfg.Version, cfg.ID),
		log:               o.log.With(zap.String("serverId", cfg.ID)),
		trace:             o.trace,
		retry:             o.retry,
		eviction:          o.eviction,
		policy:            o.policy,
		noEnv:             o.noEnv,
		verifier:          o.verifier,
		registry:          newReplicas(cfg.RegistryURL),
		transports:        newTransports(o.client, o.policy, cfg.MaxInFlight),
		scheduler:         fanout.New(cfg.MaxInFlight),
		breakers:          breaker.New(cfg.RequestTimeout, cfg.MaxInFlight),
		renewNow:          make(chan struct{}, 1),
		registrationLock:  make(chan struct{}, 1),
		pendingDepartures: make(map[string]bool),
		status:            Status{State: Orphan, Reason: ErrNotRegistered, ServerID: cfg.ID},
	}
	c.self = wire.Registration{
		Type:           cfg.Type,
		ServerID:       cfg.ID,
		PublicBaseURL:  cfg.publicBaseURL(),
		ClusterBaseURL: cfg.ClusterBaseURL,
	}
	if cfg.Location != nil {
		location, err := json.Marshal(cfg.Location)
		if err != nil {
			return nil, configError([]error{err})
		}
		c.self.Location = location
	}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	c.memberCtx, c.cancelMember = context.WithCancelCause(c.ctx)
	if c.verifier == nil {
		c.verifier = newKeyVerifier(cfg)
	}
	c.tokens = token.NewCache(c.ctx, c.tokenFetcher(o.tokens))
	return c, nil
}

// fetcher is how tokens are had: from mST, or from the caller's sources.
func (c *Cluster) tokenFetcher(sources func(TokenKey) oauth2.TokenSource) token.Fetch {
	client := token.Client{
		ID:     c.cfg.ClientID,
		Secret: string(c.cfg.ClientSecret),
		Post: func(ctx context.Context, body any) ([]byte, error) {
			return c.post(ctx, "mST", c.cfg.Issuer, body)
		},
		Refused: func(err error) bool {
			se, ok := errors.AsType[*StatusError](err)
			return ok && se.Code == http.StatusBadRequest
		},
	}
	fetch := client.Fetch
	if sources != nil {
		fetch = token.FromSources(func(k token.Key) oauth2.TokenSource { return sources(TokenKey(k)) })
	}
	return func(ctx context.Context, key token.Key, refresh string) (*oauth2.Token, error) {
		t, err := fetch(ensureCorrelationID(ctx), key, refresh)
		if err != nil {
			if sources == nil && !namesRemote(err) {
				err = &InvalidResponseError{"mST", http.MethodPost, c.cfg.Issuer, err}
			}
			err = &TokenError{Audience: key.Audience, Err: err}
			c.log.Warn("no token", zap.Error(err), correlationField(ctx))
		}
		c.trace.tokenFetched(TokenKey(key), err)
		return t, err
	}
}

// Close stops the lease and everything else that is under way, waits for it, and tells nobody:
// the registry forgets the node when its lease has run out. Calls in progress end with
// [ErrClosed]. It returns nil, also when called again. To leave politely, call
// [Cluster.UnRegister] first.
func (c *Cluster) Close() error {
	c.mu.Lock() // so that background cannot slip in between
	c.cancel(ErrClosed)
	c.mu.Unlock()
	c.wg.Wait()
	c.scheduler.Close()
	c.update(func(_ *membership.View, s *Status) {
		if s.State != Left {
			s.State, s.Reason = Left, ErrClosed
		}
	})
	c.transports.close()
	return nil
}

// Config returns the node's configuration with its defaults filled in: its ID and BasePath, for
// instance. It does not block. Secrets in it do not print.
func (c *Cluster) Config() Config { return c.cfg }

// Servers returns the servers of the cluster as last heard of, this one included, sorted by
// id. It does not block; the slice is the caller's to keep.
func (c *Cluster) Servers() []Server {
	peers := c.snapshot().Peers()
	servers := make([]Server, len(peers))
	for i, p := range peers {
		servers[i] = Server(p.Server)
	}
	return servers
}

// Status returns how the registration stands. It does not block.
func (c *Cluster) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

// Format prints the type and the id of the node, under any verb: fmt would show secrets that it
// finds inside.
func (c *Cluster) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "%s/%s", c.cfg.Type, c.cfg.ID) }

func (c *Cluster) snapshot() membership.View {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.view
}

// change is the one door to what the node believes: edit changes view and status as one, and
// the environment follows before anybody else looks.
func (c *Cluster) update(edit func(*membership.View, *Status)) {
	c.mu.Lock()
	before := c.status
	edit(&c.view, &c.status)
	c.status.Servers = c.view.Len()
	after := c.status
	if !c.noEnv {
		after.setEnv()
	}
	c.mu.Unlock()

	if before.State != after.State {
		c.log.Info("registration "+string(after.State), zap.NamedError("reason", after.Reason), zap.Int("servers", after.Servers))
		c.trace.stateChanged(before, after)
	}
}

// background runs work beside a call, until Close at the latest. It keeps the values of ctx.
func (c *Cluster) background(ctx context.Context, work func(context.Context)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return
	}
	c.wg.Go(func() {
		ctx, cancel := mergeCancel(context.WithoutCancel(ctx), c.ctx)
		defer cancel()
		work(ctx)
	})
}
