// Package etcd is a [mit.Store] on etcd: several registries share it, and it outlives them all.
//
//	store, err := etcd.Open(ctx, etcd.Config{Endpoints: []string{"etcd-0:2379", "etcd-1:2379", "etcd-2:2379"}})
//	defer store.Close()
//	registry, err := mit.NewRegistry(store, cfg)
//
// What it keeps is there to be read, and named as in the rest of the system:
//
//	$ etcdctl get --prefix /mit/
//	/mit/itResources/09d8f1f0-7477-5c54-9770-74879a6d3b25
//	{"type":"mds","publicBaseUrl":"https://example.com/mds/v1"}
//	/mit/servers/mds/a
//	{"clusterBaseUrl":"http://10.0.0.1:8080/mds/v1","createdAt":"2026-01-02T03:04:05.678Z","updatedAt":"2026-01-02T04:24:05.678Z"}
//
// Names in keys are escaped as in the path of a URL. Whatever else stands under the prefix, or cannot
// be read, is left alone: [Store.Health] and the log name it.
//
// Writes are transactions of etcd. Reads come from a copy in memory that follows etcd within
// milliseconds, goes on answering when etcd does not, and says so.
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

// A Config says which etcd, and where in it. Endpoints is mandatory; the zero value of any other
// field is its default.
type Config struct {
	// Endpoints are members of the etcd cluster, best all of them, as host:port or as a URL.
	Endpoints []string
	// Prefix is what all keys are under; /mit by default. Registries that share a prefix are
	// one registry.
	Prefix string
	// TLS is for https endpoints, and for those without a scheme; nil: the system's
	// authorities for https, no TLS without a scheme.
	TLS *tls.Config
	// Username and Password are for an etcd that asks for them; both or none.
	Username string
	Password cluster.Secret
	// Timeout bounds every call, and the first connection; 5 seconds by default. A store
	// that has not heard from etcd for so long calls its copy stale.
	Timeout time.Duration
	// Logger gets a line when a server goes, when the copy is stale and when it is not any
	// more, and for what does not belong under the prefix; nothing is logged by default.
	Logger *zap.Logger
}

func (c Config) prefix() keys           { return keys(strings.TrimSuffix(cmp.Or(c.Prefix, "/mit"), "/") + "/") }
func (c Config) timeout() time.Duration { return cmp.Or(c.Timeout, 5*time.Second) }

// beat is how often etcd is asked for a sign of life, and how long one try of several may take: a
// member that has lost its leader may keep a request for longer than it is worth.
func (c Config) beat() time.Duration { return min(c.timeout()/4, 2*time.Second) }

func (c Config) check() error {
	var errs []error
	if len(c.Endpoints) == 0 || slices.Contains(c.Endpoints, "") {
		errs = append(errs, errors.New("missing Endpoints, or an empty one among them"))
	}
	if (c.Username == "") != (c.Password == "") {
		errs = append(errs, errors.New("one of Username and Password without the other"))
	}
	if c.Timeout < 0 {
		errs = append(errs, fmt.Errorf("invalid Timeout %v: negative", c.Timeout))
	}
	return errors.Join(errs...)
}

// A Store keeps servers in etcd. [Open] makes one.
//
// The entry of a server lives on an etcd lease, so that it goes by etcd's clock: after its life,
// rounded up to whole seconds, and up to a twentieth of it later, at most a minute; see the
// promises of etcd for what a change of its leader adds. Dates are the clock's of the machine,
// and never go back for an entry.
//
// What [Store.Put] returns is no older than its own transaction, whatever other stores do at that
// moment. [Store.Get] may be behind etcd by the time that word takes to come.
type Store struct {
	cfg    Config
	keys   keys
	log    *zap.Logger
	client *clientv3.Client
	leases *leases

	life context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu      sync.Mutex // guards the fields below, and all they lead to
	view    *view
	heard   time.Time               // when etcd last said something
	waiting map[chan struct{}]int64 // closed when the view has come to the revision
}

var _ mit.Store = (*Store)(nil)

// Open connects to etcd and reads what is there. If that fails for the [Config]'s Timeout, the
// error says which endpoints were tried, and why it failed.
//
// ctx bounds this call only; the store lasts until [Store.Close].
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("mit/etcd: %w", err)
	}
	s := &Store{cfg: cfg, keys: cfg.prefix(), log: cfg.Logger, waiting: map[chan struct{}]int64{}}
	if s.log == nil {
		s.log = zap.NewNop()
	}
	s.life, s.stop = context.WithCancel(context.Background())
	s.leases = newLeases(s.grant)
	view, err := try(ctx, s, func(ctx context.Context) (*view, error) {
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
		s.stop()
		if s.client != nil {
			_ = s.client.Close()
		}
		return nil, fmt.Errorf("mit/etcd: cannot use etcd at %s: %w", strings.Join(cfg.Endpoints, ", "), err)
	}
	s.replace(view)
	s.wg.Go(func() { s.follow(s.life) })
	return s, nil
}

// dial makes a client. It speaks to etcd only if there is a password to check.
func (s *Store) dial() (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Context:     s.life,
		Endpoints:   s.cfg.Endpoints,
		TLS:         s.cfg.TLS,
		Username:    s.cfg.Username,
		Password:    string(s.cfg.Password),
		DialTimeout: s.cfg.timeout(),
		// A member that went without a word is found out about, and left.
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: s.cfg.timeout(),
		// We try again ourselves, and know the reason then; the second is for a token that
		// has run out.
		MaxUnaryRetries: 2,
		DialOptions: []grpc.DialOption{
			grpc.WithChainUnaryInterceptor(failFast),
			// By default a member that was away for long is looked for every two minutes.
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           grpcbackoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
				MinConnectTimeout: s.cfg.timeout(),
			}),
		},
		Logger: zap.NewNop(), // it would repeat what our errors say
	})
}

// Close ends the store. It returns when its goroutine has ended, and may be called again.
func (s *Store) Close() error {
	s.stop()
	s.wg.Wait()
	if err := s.client.Close(); !errors.Is(err, context.Canceled) { // that is our own doing
		return err
	}
	return nil
}

// Health is nil if all is well. Else it says what [Store.Stale] does, or what stands
// under the prefix and does not belong there, or both. Neither keeps the store from answering.
func (s *Store) Health() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	errs := []error{s.staleErrorLocked()}
	if n := len(s.view.foreign); n > 0 {
		errs = append(errs, fmt.Errorf("mit/etcd: %d keys under %s that cannot be used, such as %q", n, s.keys, s.view.foreignKeys(5)))
	}
	return errors.Join(errs...)
}

// Stale is nil while etcd is heard from. Else it says since when it has been silent: what is read may
// be out of date then, and what writes is likely to fail. It does not block.
func (s *Store) Stale() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.staleErrorLocked()
}

func (s *Store) staleErrorLocked() error {
	if !s.staleLocked() {
		return nil
	}
	return fmt.Errorf("mit/etcd: no word from etcd since %s: what is read may be out of date", s.heard.Format(time.RFC3339))
}

func (s *Store) staleLocked() bool { return time.Since(s.heard) > s.cfg.timeout() }

// Put implements [mit.Store].
func (s *Store) Put(ctx context.Context, reg mit.Registration, life time.Duration) (mit.Resource, error) {
	w := writing{reg: reg, life: life, last: s.seen(reg.Type, reg.ServerID)}
	written, err := try(ctx, s, func(ctx context.Context) (*entry, error) { return s.write(ctx, &w) })
	var res mit.Resource
	if err == nil {
		res, err = s.at(ctx, reg.Type, written.revision)
	}
	if err != nil {
		return mit.Resource{}, fmt.Errorf("mit/etcd: put %s: %w", s.keys.server(reg.Type, reg.ServerID), err)
	}
	return with(res, written.Server), nil
}

// A writing is a Put under way.
type writing struct {
	reg  mit.Registration
	life time.Duration
	last *entry // the entry as far as we know, nil if there is none

	// What was sent last without hearing what became of it.
	sent  string
	lease clientv3.LeaseID
}

// write writes the entry of a server, on top of what is there.
func (s *Store) write(ctx context.Context, w *writing) (*entry, error) {
	key := s.keys.server(w.reg.Type, w.reg.ServerID)
	resource, err := s.makeResource(w.reg)
	if err != nil {
		return nil, err
	}
	for { // each turn but the last says that somebody else was faster; ctx bounds them all
		lease, err := s.leases.lend(ctx, w.life)
		if err != nil {
			return nil, err
		}
		server := renewed(w.last, w.reg, time.Now())
		value, err := encodeServer(server)
		if err != nil {
			return nil, err
		}
		then := append([]clientv3.Op{clientv3.OpPut(key, value, clientv3.WithLease(lease))}, resource...)
		resp, err := s.client.Txn(ctx).If(unchanged(key, w.last)).Then(then...).Else(clientv3.OpGet(key)).Commit()
		switch {
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			s.leases.forget(lease)
			continue
		case err != nil:
			w.sent, w.lease = value, lease
			return nil, err
		case resp.Succeeded:
			return &entry{server, resp.Header.Revision}, nil
		}
		kv, last, err := s.found(w.reg.ServerID, resp)
		if err != nil {
			return nil, err
		}
		if kv != nil && string(kv.Value) == w.sent && clientv3.LeaseID(kv.Lease) == w.lease {
			return last, nil // it had been done
		}
		w.last = last
	}
}

// renewed is the entry after a registration at that time.
func renewed(last *entry, reg mit.Registration, now time.Time) cluster.Server {
	date := now.UTC().Truncate(time.Millisecond)
	created := date
	if last != nil {
		created = last.CreatedAt
		if !date.After(last.UpdatedAt) {
			date = last.UpdatedAt.Add(time.Millisecond)
		}
	}
	return cluster.Server{
		ServerID:       reg.ServerID,
		ClusterBaseURL: reg.ClusterBaseURL,
		Location:       reg.Location,
		CreatedAt:      created,
		UpdatedAt:      date,
	}
}

// makeResource is the part of a transaction that makes the resource, or changes its PublicBaseURL.
// It does not write what is there already.
func (s *Store) makeResource(reg mit.Registration) ([]clientv3.Op, error) {
	key := s.keys.resource(mit.ResourceID(reg.Type))
	s.mu.Lock()
	_, foreign := s.view.foreign[key]
	s.mu.Unlock()
	if foreign {
		return nil, nil
	}
	value, err := encode(resourceValue{reg.Type, reg.PublicBaseURL})
	if err != nil {
		return nil, err
	}
	there := clientv3.Compare(clientv3.Value(key), "=", value)
	if reg.PublicBaseURL == "" {
		there = clientv3.Compare(clientv3.CreateRevision(key), ">", 0)
	}
	return []clientv3.Op{clientv3.OpTxn([]clientv3.Cmp{there}, nil, []clientv3.Op{clientv3.OpPut(key, value)})}, nil
}

// unchanged is true as long as the key has the entry that it had last.
func unchanged(key string, last *entry) clientv3.Cmp {
	revision := int64(0)
	if last != nil {
		revision = last.revision
	}
	return clientv3.Compare(clientv3.ModRevision(key), "=", revision)
}

// found reads what a transaction found instead of what it expected: nil for nothing.
func (s *Store) found(serverID string, resp *clientv3.TxnResponse) (*mvccpb.KeyValue, *entry, error) {
	kvs := resp.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 0 {
		return nil, nil, nil
	}
	server, err := decodeServer(serverID, kvs[0].Value)
	if err != nil {
		return nil, nil, fmt.Errorf("left as it is: %w", err)
	}
	return kvs[0], &entry{server, kvs[0].ModRevision}, nil
}

// Get implements [mit.Store].
func (s *Store) Get(ctx context.Context, id string) (mit.Resource, error) {
	s.mu.Lock()
	r := s.view.resources[id]
	if r != nil {
		defer s.mu.Unlock()
		if s.staleLocked() {
			s.log.Debug("read what may be out of date", zap.String("type", r.typ), zap.Time("heard", s.heard))
		}
		return r.snapshot(), nil
	}
	s.mu.Unlock()
	typ, err := s.typeOf(ctx, id)
	var res mit.Resource
	if err == nil {
		res, err = s.read(ctx, typ)
	}
	if err != nil {
		return mit.Resource{}, fmt.Errorf("mit/etcd: get %s: %w", s.keys.resource(id), err)
	}
	return res, nil
}

// Delete implements [mit.Store].
func (s *Store) Delete(ctx context.Context, id, serverID string) error {
	_, err := s.remove(ctx, id, serverID, func(cluster.Server) bool { return true })
	return err
}

// DeleteIfUnmodifiedSince implements [mit.Store].
func (s *Store) DeleteIfUnmodifiedSince(ctx context.Context, id, serverID string, date time.Time) (*cluster.Server, error) {
	return s.remove(ctx, id, serverID, func(e cluster.Server) bool { return !e.UpdatedAt.After(date) })
}

func (s *Store) remove(ctx context.Context, id, serverID string, may func(cluster.Server) bool) (*cluster.Server, error) {
	typ, err := s.typeOf(ctx, id)
	if errors.Is(err, mit.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("mit/etcd: delete server %q of %s: %w", serverID, s.keys.resource(id), err)
	}
	key := s.keys.server(typ, serverID)
	last := s.seen(typ, serverID)
	revision := int64(0) // that the server went at
	newer, err := try(ctx, s, func(ctx context.Context) (*cluster.Server, error) {
		for { // as in write
			gone := last != nil && may(last.Server)
			var then []clientv3.Op
			if gone {
				then = []clientv3.Op{clientv3.OpDelete(key)}
			}
			resp, err := s.client.Txn(ctx).If(unchanged(key, last)).Then(then...).Else(clientv3.OpGet(key)).Commit()
			switch {
			case err != nil:
				return nil, err
			case resp.Succeeded && gone:
				revision = resp.Header.Revision
				return nil, nil
			case resp.Succeeded && last == nil:
				return nil, nil
			case resp.Succeeded:
				return new(with(mit.Resource{}, last.Server).Servers[0]), nil
			}
			if _, last, err = s.found(serverID, resp); err != nil {
				return nil, err
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("mit/etcd: delete %s: %w", key, err)
	}
	s.await(ctx, revision) // so that whoever deletes here does not read it here
	return newer, nil
}

// typeOf is the type of a resource; [mit.ErrNotFound] if there is no such resource.
func (s *Store) typeOf(ctx context.Context, id string) (string, error) {
	s.mu.Lock()
	r := s.view.resources[id]
	s.mu.Unlock()
	if r != nil {
		return r.typ, nil
	}
	// Another store may have made it a moment ago.
	return try(ctx, s, func(ctx context.Context) (string, error) {
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

// seen is the entry of a server as the copy has it.
func (s *Store) seen(typ, serverID string) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.view.entry(typ, serverID)
}

// at is the resource at the revision or later: from the copy, once that has come so far, or, if it
// does not in time, from etcd.
func (s *Store) at(ctx context.Context, typ string, revision int64) (mit.Resource, error) {
	if s.await(ctx, revision) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if r := s.view.resources[mit.ResourceID(typ)]; r != nil {
			return r.snapshot(), nil
		}
		return mit.Resource{ID: mit.ResourceID(typ), Type: typ}, nil
	}
	return s.read(ctx, typ)
}

// read asks etcd for a resource.
func (s *Store) read(ctx context.Context, typ string) (mit.Resource, error) {
	id := mit.ResourceID(typ)
	return try(ctx, s, func(ctx context.Context) (mit.Resource, error) {
		resp, err := s.client.Txn(ctx).Then(
			clientv3.OpGet(s.keys.resource(id)),
			clientv3.OpGet(s.keys.servers(typ), clientv3.WithPrefix()),
		).Commit()
		if err != nil {
			return mit.Resource{}, err
		}
		kvs := slices.Concat(resp.Responses[0].GetResponseRange().Kvs, resp.Responses[1].GetResponseRange().Kvs)
		if r := newView(s.keys, resp.Header.Revision, kvs).resources[id]; r != nil {
			return r.snapshot(), nil
		}
		return mit.Resource{ID: id, Type: typ}, nil
	})
}

func (s *Store) grant(ctx context.Context, seconds int64) (clientv3.LeaseID, error) {
	resp, err := s.client.Grant(ctx, seconds)
	if err != nil {
		return 0, err
	}
	return resp.ID, nil
}

// try does op until it succeeds, while etcd has no leader or a member of it cannot be reached, and
// the time for a call lasts.
func try[T any](ctx context.Context, s *Store, op func(context.Context) (T, error)) (T, error) {
	within, cancel := context.WithTimeout(ctx, s.cfg.timeout())
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	var reason error // the last that is more than the time being over
	v, err := backoff.RetryWithData(func() (T, error) {
		one, cancel := context.WithTimeout(within, s.cfg.beat()) // the next member may answer
		defer cancel()
		v, err := op(one)
		late := err != nil && one.Err() != nil
		if err != nil && !late && status.Code(err) != codes.DeadlineExceeded {
			reason = err
		}
		if err != nil && !late && !isTransient(err) {
			err = backoff.Permanent(err)
		}
		return v, err
	}, backoff.WithContext(backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(20*time.Millisecond),
		backoff.WithMaxInterval(500*time.Millisecond),
		backoff.WithMaxElapsedTime(0),
	), within))
	switch {
	case err == nil || within.Err() == nil || ctx.Err() != nil: // not for lack of time
		return v, err
	case s.life.Err() != nil:
		return v, errClosed
	case reason == nil:
		return v, fmt.Errorf("no answer within %v: %w", s.cfg.timeout(), context.DeadlineExceeded)
	default:
		return v, fmt.Errorf("%w (tried for %v)", reason, s.cfg.timeout())
	}
}

var errClosed = errors.New("the store is closed")

// failFast has a call fail with the reason where there is no connection, instead of wait for one
// until its time is over: [try] tries again.
func failFast(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(ctx, method, req, reply, cc, append(opts, grpc.WaitForReady(false))...)
}

// isTransient says whether an error is one of those that pass.
func isTransient(err error) bool {
	if errors.Is(err, rpctypes.ErrTooManyRequests) {
		return true
	}
	if e, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		return e.Code() == codes.Unavailable
	}
	answer, ok := status.FromError(err)
	// A member that is being stopped calls its errors unknown, and its clock may be faster.
	return ok && slices.Contains([]codes.Code{codes.Unavailable, codes.DeadlineExceeded, codes.Unknown}, answer.Code())
}
