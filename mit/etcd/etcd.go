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
// milliseconds. While etcd is unreachable, reads are served from the stale cache; [Store.Ready]
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

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"

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
	// Timeout bounds every call, the first connection, and each page of keys while the cache is
	// loaded; 5 seconds by default. A request to etcd may use all of it that is left. The cache is
	// stale after Timeout without contact with etcd. Choose at least three times as long as etcd takes
	// for a response.
	Timeout time.Duration
	// Logger logs removed servers, the beginning and end of stale reads, and unrecognized keys;
	// nil: no log.
	Logger *zap.Logger
}

// A Store keeps servers in etcd. [Open] creates one.
//
// Each entry is attached to an etcd lease and expires by etcd's clock: after its TTL, rounded up to
// whole seconds, and up to a twentieth of it later, at most a minute. A new leader of etcd renews
// all leases, which extends them further. CreatedAt and UpdatedAt are times of this machine's clock
// and never decrease for an entry. After a clock was set back, an entry that is created right after
// a delete through another replica may have the dates of the deleted one.
//
// A request whose response was lost is repeated. So a call may take effect twice, with a change by
// another call in between.
//
// [Store.Put] returns the resource as of its own transaction or later. Two Puts of the same
// registration in the same millisecond may count as one. [Store.Get] may lag behind etcd by the
// delay of the watch.
type Store struct {
	cfg    Config
	now    func() time.Time
	keys   keys
	log    *zap.Logger
	client *clientv3.Client
	leases *leases

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	suspect chan struct{} // holds a value while checkWrites should check at once

	mu          sync.Mutex // guards the fields below, and all they lead to
	cache       *cache
	changes     uint64                  // of the cache. Unlike revisions, they never go back
	ttl         time.Duration           // of the last Put; 0 before
	expired     uint64                  // number of servers
	lastContact time.Time               // with etcd
	lastWrite   time.Time               // that succeeded, or a check
	writeErr    error                   // why writes fail; nil while they succeed
	waiters     map[chan struct{}]int64 // closed when the cache has reached the revision
}

// Open connects to etcd and loads the cache. It retries until [Config].Timeout is over without a
// response; the error then names the endpoints and the cause. Loading a long list over a slow link
// may take longer.
//
// ctx bounds this call only; the store works until [Store.Close].
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("mit/etcd: %w", err)
	}
	s := &Store{cfg: cfg, now: time.Now, keys: cfg.prefix(), log: cfg.Logger, waiters: map[chan struct{}]int64{}}
	if s.log == nil {
		s.log = zap.NewNop()
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.suspect = make(chan struct{}, 1)
	s.leases = newLeases(s.grant)
	first, loaded, err := s.connect(ctx)
	if err != nil {
		s.cancel()
		if s.client != nil {
			_ = s.client.Close()
		}
		return nil, fmt.Errorf("mit/etcd: cannot use etcd at %s: %w", strings.Join(cfg.Endpoints, ", "), err)
	}
	s.setCache(loaded)
	s.wg.Go(func() { s.follow(s.ctx, first) })
	s.wg.Go(func() { s.checkWrites(s.ctx) })
	return s, nil
}

// Close closes the store and waits for its goroutines. It may be called again.
func (s *Store) Close() error {
	s.cancel()
	s.wg.Wait()
	if err := s.client.Close(); !errors.Is(err, context.Canceled) { // canceled by s.cancel
		return err
	}
	return nil
}

// Health returns nil if Ready does and all keys under the prefix are recognized. The store also
// works with unrecognized keys.
func (s *Store) Health() error {
	err := s.Ready()
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.cache.unrecognized); n > 0 {
		err = errors.Join(err, fmt.Errorf("mit/etcd: %d unrecognized keys under %s, such as %q", n, s.keys, s.cache.unrecognizedKeys(5)))
	}
	return err
}

// Ready returns nil while the store is in contact with etcd and etcd accepts writes, and otherwise
// the reason. Reads may then be stale, and writes are likely to fail. It does not block.
func (s *Store) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.staleLocked() {
		return fmt.Errorf("mit/etcd: no contact with etcd since %s: reads may be stale", s.lastContact.Format(time.RFC3339))
	}
	if s.writeErr != nil {
		return fmt.Errorf("mit/etcd: etcd refuses writes: %w", s.writeErr)
	}
	return nil
}

// Put implements [mit.Store].
func (s *Store) Put(ctx context.Context, reg mit.Registration, ttl time.Duration) (mit.Resource, error) {
	callCtx, cancel := s.callContext(ctx)
	defer cancel()
	p := pendingPut{reg: reg, ttl: ttl, previous: s.cachedEntry(reg.Type, reg.ServerID)}
	s.mu.Lock()
	s.ttl = ttl
	s.mu.Unlock()
	written, err := retry(callCtx, s, func(ctx context.Context) (*entry, error) { return s.write(ctx, &p) })
	s.recordWrite(ctx, err)
	var res mit.Resource
	if err == nil {
		res, err = s.resourceAt(callCtx, reg.Type, written.revision)
	}
	if err != nil {
		return mit.Resource{}, fmt.Errorf("mit/etcd: put %s: %w", s.keys.server(reg.Type, reg.ServerID), err)
	}
	res = withServer(res, written.Server)
	if p.previous != nil {
		res.Replaced = new(p.previous.Server)
	}
	return res, nil
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
		return s.snapshotLocked(r), nil
	}
	s.mu.Unlock()
	ctx, cancel := s.callContext(ctx)
	defer cancel()
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

// List implements [mit.Store], from the cache.
func (s *Store) List(context.Context) ([]mit.Resource, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]mit.Resource, 0, len(s.cache.resources))
	for _, r := range s.cache.resources {
		list = append(list, r.snapshot())
	}
	slices.SortFunc(list, func(a, b mit.Resource) int { return cmp.Compare(a.Type, b.Type) })
	return list, nil
}

// Expirations returns the number of servers that this store has seen expire since [Open]. A server
// counts as expired if its entry was removed at least the TTL of the last [Store.Put] after the
// last change of the entry. Each replica sees all expirations, except those before its first Put
// and those while it has no contact with etcd.
func (s *Store) Expirations() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.expired
}

// String describes the store.
func (s *Store) String() string {
	return fmt.Sprintf("etcd with %d endpoints, keys under %s", len(s.cfg.Endpoints), s.keys)
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

func (c Config) prefix() keys           { return keys(strings.TrimSuffix(cmp.Or(c.Prefix, "/mit"), "/") + "/") }
func (c Config) timeout() time.Duration { return cmp.Or(c.Timeout, 5*time.Second) }

// probeInterval is the interval of progress requests. They may take the rest of silenceTimeout.
func (c Config) probeInterval() time.Duration { return min(c.timeout()/8, 2*time.Second) }

// silenceTimeout is the time without a response after which a watch ends. The same time is left to
// try another member before the cache is stale.
func (c Config) silenceTimeout() time.Duration { return c.timeout() / 2 }

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

var _ mit.Store = (*Store)(nil)

// connect creates the client, begins the first watch and reads all keys.
func (s *Store) connect(ctx context.Context) (*watch, *cache, error) {
	callCtx, cancel := s.callContext(ctx)
	defer cancel()
	var err error
	if s.client, err = retry(callCtx, s, func(context.Context) (*clientv3.Client, error) { return s.dial() }); err != nil {
		return nil, nil, err
	}
	return s.watchAndLoad(ctx)
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
		// Retries are up to the function retry. The second attempt of the client replaces an expired
		// token.
		MaxUnaryRetries: 2,
		DialOptions: []grpc.DialOption{
			grpc.WithChainUnaryInterceptor(s.hedge),
			// By default, the client would try an unreachable member every two minutes only.
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           grpcbackoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
				MinConnectTimeout: s.cfg.timeout(),
			}),
		},
		Logger: zap.NewNop(), // it would repeat the errors that calls return
	})
}

func (s *Store) staleLocked() bool { return time.Since(s.lastContact) > s.cfg.timeout() }

// countExpiryLocked counts the removal of a key if the entry of its server has expired. etcd does
// not report the cause of a removal.
func (s *Store) countExpiryLocked(key string) {
	_, typ, serverID, err := s.keys.parse(key)
	if err != nil {
		return
	}
	if e := s.cache.entry(typ, serverID); e != nil && s.ttl > 0 && s.now().Sub(e.UpdatedAt) >= s.ttl {
		s.expired++
	}
}

// A pendingPut is a Put in progress.
type pendingPut struct {
	reg       mit.Registration
	ttl       time.Duration
	previous  *entry    // the last known entry, nil if there is none
	notBefore time.Time // of a new entry
	sent      []sentPut // whose result is unknown or to come
}

type sentPut struct {
	value string
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
		if !p.renews() {
			if gone, err := s.confirmGone(ctx, key, p); gone || err != nil {
				return nil, cmp.Or(err, mit.ErrNotFound)
			}
			continue
		}
		server, value, err := s.encodeEntry(p)
		if err != nil {
			return nil, err
		}
		lease, err := s.leases.acquire(ctx, p.ttl)
		if err != nil {
			return nil, err
		}
		p.sent = append(p.sent, sentPut{value, lease})
		ops := append([]clientv3.Op{clientv3.OpPut(key, value, clientv3.WithLease(lease))}, resource...)
		resp, err := s.client.Txn(ctx).If(unchanged(key, p.previous)).Then(ops...).Else(clientv3.OpGet(key)).Commit()
		switch {
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			s.leases.forget(lease)
			continue
		case err != nil:
			if ctx.Err() == nil && !isTransient(err) {
				s.leases.release(lease)
			}
			return nil, err
		case resp.Succeeded:
			return &entry{server, resp.Header.Revision}, nil
		}
		kv, current, err := s.decodeConflict(p.reg.ServerID, resp)
		if kv == nil || clientv3.LeaseID(kv.Lease) != lease {
			s.leases.release(lease)
		}
		if err != nil {
			return nil, err
		}
		if kv != nil && slices.Contains(p.sent, sentPut{string(kv.Value), clientv3.LeaseID(kv.Lease)}) {
			return current, nil // an earlier attempt, or a copy of this request, had succeeded
		}
		p.conflict(current)
	}
}

func (p *pendingPut) renews() bool {
	if p.previous == nil {
		return p.reg.Renews(nil)
	}
	return p.reg.Renews(&p.previous.Server)
}

// confirmGone reports whether etcd, too, has no entry that the registration may renew. Otherwise it
// corrects the last known entry.
func (s *Store) confirmGone(ctx context.Context, key string, p *pendingPut) (bool, error) {
	resp, err := s.client.Txn(ctx).If(unchanged(key, p.previous)).Else(clientv3.OpGet(key)).Commit()
	if err != nil || resp.Succeeded {
		return err == nil, err
	}
	_, current, err := s.decodeConflict(p.reg.ServerID, resp)
	if err == nil {
		p.conflict(current)
	}
	return false, err
}

// conflict records that the entry differs from the expected one.
func (p *pendingPut) conflict(current *entry) {
	if p.previous != nil && current == nil { // deleted or expired
		p.notBefore = p.previous.UpdatedAt.Add(time.Millisecond)
	}
	p.previous = current
}

// encodeEntry returns the new entry and its value in etcd.
func (s *Store) encodeEntry(p *pendingPut) (cluster.Server, string, error) {
	var previous *cluster.Server
	if p.previous != nil {
		previous = &p.previous.Server
	}
	server, err := p.reg.Entry(previous, later(s.date(), p.notBefore))
	if err != nil {
		return cluster.Server{}, "", err
	}
	value, err := encodeServer(server)
	return server, value, err
}

// date returns the time of this machine's clock, but not before the dates of any entry that the
// store has seen. So entries get no older dates after the clock has been set back.
func (s *Store) date() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return later(s.now(), s.cache.notBefore)
}

func later(t, u time.Time) time.Time {
	if t.Before(u) {
		return u
	}
	return t
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

// deleteIf removes a server if cond holds for its entry, and returns the entry otherwise.
func (s *Store) deleteIf(ctx context.Context, id, serverID string, cond func(cluster.Server) bool) (*cluster.Server, error) {
	callCtx, cancel := s.callContext(ctx)
	defer cancel()
	typ, err := s.typeOf(callCtx, id)
	if errors.Is(err, mit.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("mit/etcd: delete server %q of %s: %w", serverID, s.keys.resource(id), err)
	}
	d := pendingDelete{key: s.keys.server(typ, serverID), serverID: serverID, current: s.cachedEntry(typ, serverID), cond: cond}
	newer, err := retry(callCtx, s, func(ctx context.Context) (*cluster.Server, error) { return s.tryDelete(ctx, &d) })
	if err != nil {
		s.recordWrite(ctx, err)
		return nil, fmt.Errorf("mit/etcd: delete %s: %w", d.key, err)
	}
	s.waitForRevision(callCtx, d.revision) // a later Get from this store must not return the server
	return newer, nil
}

// A pendingDelete is a delete in progress.
type pendingDelete struct {
	key, serverID string
	current       *entry // the last known entry, nil if there is none
	cond          func(cluster.Server) bool
	revision      int64 // at which the entry does not exist
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
		case resp.Succeeded && (remove || d.current == nil):
			d.revision = resp.Header.Revision
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
			return s.snapshotLocked(r), nil
		}
		return mit.NewResource(typ, "", 0, nil), nil
	}
	return s.fetchResource(ctx, typ)
}

// snapshotLocked returns a resource of the cache, with its version.
func (s *Store) snapshotLocked(r *resource) mit.Resource {
	res := r.snapshot()
	res.Version = s.changes
	return res
}

// grant grants a lease with the given id, or renews it if it exists: the response to an earlier
// grant may have been lost.
func (s *Store) grant(ctx context.Context, id clientv3.LeaseID, seconds int64) error {
	// The client of package clientv3 cannot choose the id.
	client := etcdserverpb.NewLeaseClient(s.client.ActiveConnection())
	for {
		_, err := client.LeaseGrant(ctx, &etcdserverpb.LeaseGrantRequest{ID: int64(id), TTL: seconds})
		if err = rpctypes.Error(err); !errors.Is(err, rpctypes.ErrLeaseExist) {
			return err
		}
		// Again if it has expired meanwhile.
		if _, err = s.client.KeepAliveOnce(ctx, id); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return err
		}
	}
}
