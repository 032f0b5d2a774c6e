// Package etcd is a [mit.Store] on etcd. Several registries (mIT) share it, and it keeps its
// servers when they restart.
//
//	endpoints := []string{"etcd-0:2379", "etcd-1:2379", "etcd-2:2379"}
//	store, err := etcd.Open(ctx, etcd.Config{Endpoints: endpoints})
//	defer store.Close()
//	registry, err := mit.NewRegistry(store, cfg)
//
// The keys and values are readable, and named as on the wire:
//
//	$ etcdctl get --prefix /mit/
//	/mit/itResources/09d8f1f0-7477-5c54-9770-74879a6d3b25
//	{"type":"mds","publicBaseUrl":"https://example.com/mds/v1"}
//	/mit/servers/mds/a
//	{"clusterBaseUrl":"http://10.0.0.1:8080/mds/v1","createdAt":"2026-01-02T03:04:05.678Z","updatedAt":"2026-01-02T04:24:05.678Z"}
//
// Names in keys are escaped as in the path of a URL. Other keys under the prefix, and values that
// cannot be decoded, are ignored and left unchanged; [Store.Health] and the log name them.
//
// Writes are transactions of etcd. Reads come from a cache in memory that follows etcd within
// milliseconds. While etcd is unreachable, reads are served from the stale cache; [Store.Stale]
// reports it.
package etcd

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
)

// A Config configures a [Store]. Endpoints is mandatory. The zero value of any other field means
// its default.
type Config struct {
	// Endpoints are members of the etcd cluster, preferably all, as host:port or as URLs.
	Endpoints []string
	// Prefix is the prefix of all keys; /mit by default. Registries with the same prefix are
	// replicas of one registry.
	Prefix string
	// TLS is used for https endpoints and for endpoints without a scheme. If nil, https endpoints
	// are verified with the system's authorities, and endpoints without a scheme use no TLS.
	TLS *tls.Config
	// Username and Password authenticate to etcd; both or none.
	Username string
	Password cluster.Secret
	// Timeout bounds every call and the first connection; 5 seconds by default. The cache is
	// stale after that time without contact with etcd.
	Timeout time.Duration
	// Logger logs removed servers, the beginning and end of stale reads, and unrecognized keys;
	// nil: no log.
	Logger *zap.Logger
}

func (c Config) prefix() keys           { return keys(strings.TrimSuffix(cmp.Or(c.Prefix, "/mit"), "/") + "/") }
func (c Config) timeout() time.Duration { return cmp.Or(c.Timeout, 5*time.Second) }

// probeInterval is the interval of progress requests and the timeout of one attempt of a call. A
// member without a leader may hold a request until it times out.
func (c Config) probeInterval() time.Duration { return min(c.timeout()/4, 2*time.Second) }

func (c Config) validate() error {
	var errs []error
	if len(c.Endpoints) == 0 || slices.Contains(c.Endpoints, "") {
		errs = append(errs, errors.New("missing Endpoints, or an empty one among them"))
	}
	if (c.Username == "") != (c.Password == "") {
		errs = append(errs, errors.New("only one of Username and Password is set"))
	}
	if c.Timeout < 0 {
		errs = append(errs, fmt.Errorf("invalid Timeout %v: negative", c.Timeout))
	}
	return errors.Join(errs...)
}

// A Store keeps servers in etcd. [Open] creates one.
//
// Each entry is attached to an etcd lease and expires by etcd's clock: after its TTL, rounded up to
// whole seconds, and up to a twentieth of it later, at most a minute. A new leader of etcd renews
// all leases, which extends them further. CreatedAt and UpdatedAt are times of this machine's clock
// and never decrease for an entry.
//
// [Store.Put] returns the resource as of its own transaction or later. [Store.Get] may lag behind
// etcd by the delay of the watch.
type Store struct {
	cfg    Config
	keys   keys
	log    *zap.Logger
	client *clientv3.Client
	leases *leases

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu          sync.Mutex // guards the fields below, and all they lead to
	cache       *cache
	lastContact time.Time               // with etcd
	waiters     map[chan struct{}]int64 // closed when the cache has reached the revision
}

var _ mit.Store = (*Store)(nil)

// Open connects to etcd and loads the cache. It retries until [Config].Timeout; the error then
// names the endpoints and the cause.
//
// ctx bounds this call only; the store works until [Store.Close].
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("mit/etcd: %w", err)
	}
	s := &Store{cfg: cfg, keys: cfg.prefix(), log: cfg.Logger, waiters: map[chan struct{}]int64{}}
	if s.log == nil {
		s.log = zap.NewNop()
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.leases = newLeases(s.grant)
	loaded, err := retry(ctx, s, func(ctx context.Context) (*cache, error) {
		if s.client == nil {
			client, err := s.dial()
			if err != nil {
				return nil, err
			}
			s.client = client
		}
		return s.load(ctx)
	})
	if err != nil {
		s.cancel()
		if s.client != nil {
			_ = s.client.Close()
		}
		return nil, fmt.Errorf("mit/etcd: cannot use etcd at %s: %w", strings.Join(cfg.Endpoints, ", "), err)
	}
	s.setCache(loaded)
	s.wg.Go(func() { s.follow(s.ctx) })
	return s, nil
}

// dial creates a client. It contacts etcd only to authenticate.
func (s *Store) dial() (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Context:     s.ctx,
		Endpoints:   s.cfg.Endpoints,
		TLS:         s.cfg.TLS,
		Username:    s.cfg.Username,
		Password:    string(s.cfg.Password),
		DialTimeout: s.cfg.timeout(),
		// Keepalives detect a member that vanished without closing its connections.
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: s.cfg.timeout(),
		// retry repeats calls and knows the cause. The client's second attempt replaces an
		// expired token.
		MaxUnaryRetries: 2,
		DialOptions: []grpc.DialOption{
			grpc.WithChainUnaryInterceptor(failFast),
			// By default, the client would try an unreachable member every two minutes only.
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           grpcbackoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
				MinConnectTimeout: s.cfg.timeout(),
			}),
		},
		Logger: zap.NewNop(), // it would repeat the errors that calls return
	})
}

// Close closes the store and waits for its goroutine. It may be called again.
func (s *Store) Close() error {
	s.cancel()
	s.wg.Wait()
	if err := s.client.Close(); !errors.Is(err, context.Canceled) { // canceled by s.cancel
		return err
	}
	return nil
}

// Health returns nil if the cache is current and all keys under the prefix are recognized. The
// store works in both cases.
func (s *Store) Health() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	errs := []error{s.staleErrorLocked()}
	if n := len(s.cache.unrecognized); n > 0 {
		errs = append(errs, fmt.Errorf("mit/etcd: %d unrecognized keys under %s, such as %q", n, s.keys, s.cache.unrecognizedKeys(5)))
	}
	return errors.Join(errs...)
}

// Stale returns nil while the store is in contact with etcd, and otherwise an error with the time
// of the last contact. Reads may then be stale, and writes are likely to fail. It does not block.
func (s *Store) Stale() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.staleErrorLocked()
}

func (s *Store) staleErrorLocked() error {
	if !s.staleLocked() {
		return nil
	}
	return fmt.Errorf("mit/etcd: no contact with etcd since %s: reads may be stale", s.lastContact.Format(time.RFC3339))
}

func (s *Store) staleLocked() bool { return time.Since(s.lastContact) > s.cfg.timeout() }

// Put implements [mit.Store].
func (s *Store) Put(ctx context.Context, reg mit.Registration, ttl time.Duration) (mit.Resource, error) {
	p := pendingPut{reg: reg, ttl: ttl, previous: s.cachedEntry(reg.Type, reg.ServerID)}
	written, err := retry(ctx, s, func(ctx context.Context) (*entry, error) { return s.write(ctx, &p) })
	var res mit.Resource
	if err == nil {
		res, err = s.resourceAt(ctx, reg.Type, written.revision)
	}
	if err != nil {
		return mit.Resource{}, fmt.Errorf("mit/etcd: put %s: %w", s.keys.server(reg.Type, reg.ServerID), err)
	}
	return withServer(res, written.Server), nil
}

// A pendingPut is a Put in progress.
type pendingPut struct {
	reg      mit.Registration
	ttl      time.Duration
	previous *entry // the last known entry, nil if there is none

	// The last attempt whose result is unknown.
	sent  string
	lease clientv3.LeaseID
}

// write replaces the entry of a server.
func (s *Store) write(ctx context.Context, p *pendingPut) (*entry, error) {
	key := s.keys.server(p.reg.Type, p.reg.ServerID)
	resource, err := s.resourceOps(p.reg)
	if err != nil {
		return nil, err
	}
	for { // again after a conflicting write; ctx bounds the loop
		lease, err := s.leases.acquire(ctx, p.ttl)
		if err != nil {
			return nil, err
		}
		server, value, err := p.encode()
		if err != nil {
			return nil, err
		}
		ops := append([]clientv3.Op{clientv3.OpPut(key, value, clientv3.WithLease(lease))}, resource...)
		resp, err := s.client.Txn(ctx).If(unchanged(key, p.previous)).Then(ops...).Else(clientv3.OpGet(key)).Commit()
		switch {
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			s.leases.forget(lease)
			continue
		case err != nil:
			p.sent, p.lease = value, lease
			return nil, err
		case resp.Succeeded:
			return &entry{server, resp.Header.Revision}, nil
		}
		kv, current, err := s.decodeConflict(p.reg.ServerID, resp)
		if err != nil {
			return nil, err
		}
		if kv != nil && string(kv.Value) == p.sent && clientv3.LeaseID(kv.Lease) == p.lease {
			return current, nil // the earlier attempt had succeeded
		}
		p.previous = current
	}
}

// encode returns the new entry and its value in etcd.
func (p *pendingPut) encode() (cluster.Server, string, error) {
	var previous *cluster.Server
	if p.previous != nil {
		previous = &p.previous.Server
	}
	server, err := p.reg.Entry(previous, time.Now())
	if err != nil {
		return cluster.Server{}, "", err
	}
	value, err := encodeServer(server)
	return server, value, err
}

// resourceOps returns the operations of a transaction that create the resource or change its
// PublicBaseURL, if necessary.
func (s *Store) resourceOps(reg mit.Registration) ([]clientv3.Op, error) {
	key := s.keys.resource(mit.ResourceID(reg.Type))
	s.mu.Lock()
	_, unrecognized := s.cache.unrecognized[key]
	s.mu.Unlock()
	if unrecognized {
		return nil, nil
	}
	value, err := encode(resourceValue{reg.Type, reg.PublicBaseURL})
	if err != nil {
		return nil, err
	}
	exists := clientv3.Compare(clientv3.Value(key), "=", value)
	if reg.PublicBaseURL == "" {
		exists = clientv3.Compare(clientv3.CreateRevision(key), ">", 0)
	}
	return []clientv3.Op{clientv3.OpTxn([]clientv3.Cmp{exists}, nil, []clientv3.Op{clientv3.OpPut(key, value)})}, nil
}

// unchanged is true if the key still has the previous entry.
func unchanged(key string, previous *entry) clientv3.Cmp {
	revision := int64(0)
	if previous != nil {
		revision = previous.revision
	}
	return clientv3.Compare(clientv3.ModRevision(key), "=", revision)
}

// decodeConflict decodes the current entry from a failed transaction, nil if there is none.
func (s *Store) decodeConflict(serverID string, resp *clientv3.TxnResponse) (*mvccpb.KeyValue, *entry, error) {
	kvs := resp.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 0 {
		return nil, nil, nil
	}
	server, err := decodeServer(serverID, kvs[0].Value)
	if err != nil {
		return nil, nil, fmt.Errorf("ignored: %w", err)
	}
	return kvs[0], &entry{server, kvs[0].ModRevision}, nil
}

// Get implements [mit.Store].
func (s *Store) Get(ctx context.Context, id string) (mit.Resource, error) {
	s.mu.Lock()
	r := s.cache.resources[id]
	if r != nil {
		defer s.mu.Unlock()
		if s.staleLocked() {
			s.log.Debug("served stale read", zap.String("type", r.typ), zap.Time("lastContact", s.lastContact))
		}
		return r.snapshot(), nil
	}
	s.mu.Unlock()
	typ, err := s.typeOf(ctx, id)
	var res mit.Resource
	if err == nil {
		res, err = s.fetchResource(ctx, typ)
	}
	if err != nil {
		return mit.Resource{}, fmt.Errorf("mit/etcd: get %s: %w", s.keys.resource(id), err)
	}
	return res, nil
}

// Delete implements [mit.Store].
func (s *Store) Delete(ctx context.Context, id, serverID string) error {
	_, err := s.deleteIf(ctx, id, serverID, func(cluster.Server) bool { return true })
	return err
}

// DeleteIfUnmodifiedSince implements [mit.Store].
func (s *Store) DeleteIfUnmodifiedSince(ctx context.Context, id, serverID string, date time.Time) (*cluster.Server, error) {
	return s.deleteIf(ctx, id, serverID, func(e cluster.Server) bool { return !e.UpdatedAt.After(date) })
}

// deleteIf removes a server if cond holds for its entry, and returns the entry otherwise.
func (s *Store) deleteIf(ctx context.Context, id, serverID string, cond func(cluster.Server) bool) (*cluster.Server, error) {
	typ, err := s.typeOf(ctx, id)
	if errors.Is(err, mit.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("mit/etcd: delete server %q of %s: %w", serverID, s.keys.resource(id), err)
	}
	d := pendingDelete{key: s.keys.server(typ, serverID), serverID: serverID, current: s.cachedEntry(typ, serverID), cond: cond}
	newer, err := retry(ctx, s, func(ctx context.Context) (*cluster.Server, error) { return s.tryDelete(ctx, &d) })
	if err != nil {
		return nil, fmt.Errorf("mit/etcd: delete %s: %w", d.key, err)
	}
	s.waitForRevision(ctx, d.revision) // a later Get from this store must not return the server
	return newer, nil
}

// A pendingDelete is a delete in progress.
type pendingDelete struct {
	key, serverID string
	current       *entry // the last known entry, nil if there is none
	cond          func(cluster.Server) bool
	revision      int64 // of the delete
}

func (s *Store) tryDelete(ctx context.Context, d *pendingDelete) (*cluster.Server, error) {
	for { // as in write
		remove := d.current != nil && d.cond(d.current.Server)
		var ops []clientv3.Op
		if remove {
			ops = []clientv3.Op{clientv3.OpDelete(d.key)}
		}
		resp, err := s.client.Txn(ctx).If(unchanged(d.key, d.current)).Then(ops...).Else(clientv3.OpGet(d.key)).Commit()
		switch {
		case err != nil:
			return nil, err
		case resp.Succeeded && remove:
			d.revision = resp.Header.Revision
			return nil, nil
		case resp.Succeeded && d.current == nil:
			return nil, nil
		case resp.Succeeded:
			return new(d.current.Server), nil
		}
		if _, d.current, err = s.decodeConflict(d.serverID, resp); err != nil {
			return nil, err
		}
	}
}

// typeOf returns the type of a resource, or [mit.ErrNotFound].
func (s *Store) typeOf(ctx context.Context, id string) (string, error) {
	s.mu.Lock()
	r := s.cache.resources[id]
	s.mu.Unlock()
	if r != nil {
		return r.typ, nil
	}
	// Another store may have created it since the last event.
	return retry(ctx, s, func(ctx context.Context) (string, error) {
		resp, err := s.client.Get(ctx, s.keys.resource(id))
		if err != nil {
			return "", err
		}
		if len(resp.Kvs) == 0 {
			return "", mit.ErrNotFound
		}
		value, err := decodeResource(id, resp.Kvs[0].Value)
		return value.Type, err
	})
}

func (s *Store) cachedEntry(typ, serverID string) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cache.entry(typ, serverID)
}

// resourceAt returns a resource at the revision or later: from the cache if it reaches the revision
// in time, otherwise from etcd.
func (s *Store) resourceAt(ctx context.Context, typ string, revision int64) (mit.Resource, error) {
	if s.waitForRevision(ctx, revision) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if r := s.cache.resources[mit.ResourceID(typ)]; r != nil {
			return r.snapshot(), nil
		}
		return mit.NewResource(typ, "", 0, nil), nil
	}
	return s.fetchResource(ctx, typ)
}

// fetchResource reads a resource from etcd.
func (s *Store) fetchResource(ctx context.Context, typ string) (mit.Resource, error) {
	id := mit.ResourceID(typ)
	return retry(ctx, s, func(ctx context.Context) (mit.Resource, error) {
		resp, err := s.client.Txn(ctx).Then(
			clientv3.OpGet(s.keys.resource(id)),
			clientv3.OpGet(s.keys.servers(typ), clientv3.WithPrefix()),
		).Commit()
		if err != nil {
			return mit.Resource{}, err
		}
		kvs := slices.Concat(resp.Responses[0].GetResponseRange().Kvs, resp.Responses[1].GetResponseRange().Kvs)
		if r := newCache(s.keys, resp.Header.Revision, kvs).resources[id]; r != nil {
			return r.snapshot(), nil
		}
		return mit.NewResource(typ, "", 0, nil), nil
	})
}

func (s *Store) grant(ctx context.Context, seconds int64) (clientv3.LeaseID, error) {
	resp, err := s.client.Grant(ctx, seconds)
	if err != nil {
		return 0, err
	}
	return resp.ID, nil
}

// retry repeats op until it succeeds, fails with a permanent error or [Config].Timeout is over.
func retry[T any](ctx context.Context, s *Store, op func(context.Context) (T, error)) (T, error) {
	callCtx, cancel := context.WithTimeout(ctx, s.cfg.timeout())
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	var cause error // the last error other than a timeout
	v, err := backoff.RetryWithData(func() (T, error) {
		// Another member may respond.
		attemptCtx, cancel := context.WithTimeout(callCtx, s.cfg.probeInterval())
		defer cancel()
		v, err := op(attemptCtx)
		timedOut := err != nil && attemptCtx.Err() != nil
		if err != nil && !timedOut && status.Code(err) != codes.DeadlineExceeded {
			cause = err
		}
		if err != nil && !timedOut && !isTransient(err) {
			err = backoff.Permanent(err)
		}
		return v, err
	}, backoff.WithContext(backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(20*time.Millisecond),
		backoff.WithMaxInterval(500*time.Millisecond),
		backoff.WithMaxElapsedTime(0),
	), callCtx))
	switch {
	case err == nil || callCtx.Err() == nil || ctx.Err() != nil: // the timeout is not over
		return v, err
	case s.ctx.Err() != nil:
		return v, errClosed
	case cause == nil:
		return v, fmt.Errorf("no answer within %v: %w", s.cfg.timeout(), context.DeadlineExceeded)
	default:
		return v, fmt.Errorf("%w (tried for %v)", cause, s.cfg.timeout())
	}
}

var errClosed = errors.New("the store is closed")

// failFast makes calls without a connection fail with the cause at once, instead of waiting for a
// connection until they time out. [retry] repeats them.
func failFast(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(ctx, method, req, reply, cc, append(opts, grpc.WaitForReady(false))...)
}

// isTransient reports whether a later attempt may succeed.
func isTransient(err error) bool {
	if errors.Is(err, rpctypes.ErrTooManyRequests) {
		return true
	}
	if e, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		return e.Code() == codes.Unavailable
	}
	st, ok := status.FromError(err)
	// A stopping member returns Unknown. A member with a faster clock times out before this side.
	return ok && slices.Contains([]codes.Code{codes.Unavailable, codes.DeadlineExceeded, codes.Unknown}, st.Code())
}
