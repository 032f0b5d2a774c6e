package etcd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

var (
	errCompacted = errors.New("etcd has compacted changes before the store received them")
	errNoContact = errors.New("no contact with etcd")
)

const (
	maxRetryInterval     = 2 * time.Second // between attempts to watch etcd
	maxUnrecognizedLines = 100             // log lines, one for each key; [Store.Health] counts them
)

// follow keeps the cache up to date until ctx ends. first is the watch that Open began.
func (s *Store) follow(ctx context.Context, first *watch) {
	stale := false
	interval := time.Duration(0)
	w := first
	for ctx.Err() == nil {
		started := time.Now()
		var err error
		if w == nil {
			w, err = s.reload(ctx)
		}
		if w != nil {
			if stale {
				stale = false
				s.log.Info("etcd watch resumed")
			}
			err = s.applyChanges(ctx, w)
			w.end()
			w = nil
		}
		if ctx.Err() != nil {
			return
		}
		s.log.Debug("etcd watch ended", zap.Error(err))
		stale = s.logIfStale(stale, err)
		if time.Since(started) > maxRetryInterval {
			interval = 0
		}
		interval = min(max(2*interval, 20*time.Millisecond), maxRetryInterval)
		select {
		case <-time.After(interval/2 + rand.N(interval)):
		case <-ctx.Done():
		}
	}
}

// logIfStale logs that the cache has become stale, once, and reports whether it is.
func (s *Store) logIfStale(logged bool, err error) bool {
	s.mu.Lock()
	stale, lastContact := s.staleLocked(), s.lastContact
	s.mu.Unlock()
	if stale && !logged {
		s.log.Warn("etcd watch failed; reads may be stale", zap.Time("lastContact", lastContact), zap.Error(err))
	}
	return stale || logged
}

func (s *Store) reload(ctx context.Context) (*watch, error) {
	w, loaded, err := s.watchAndLoad(ctx)
	if err == nil {
		s.setCache(loaded)
	}
	return w, err
}

// A watch is a stream of changes from one member. It is not resumed after an error: while the
// stream was broken, etcd may have lost its data or been restored from a backup, and its revisions
// could then be those of another history.
//
// The watch of package clientv3 cannot be used, because it resumes by itself.
type watch struct {
	stream  etcdserverpb.Watch_WatchClient
	cancel  context.CancelFunc
	changes chan *etcdserverpb.WatchResponse // closed at the end
	err     error                            // why it ended; read it after changes was closed
}

// watchAndLoad begins a watch, and then reads all keys. In this order no change is missed, and both
// are of one history. The caller ends the watch.
func (s *Store) watchAndLoad(ctx context.Context) (*watch, *cache, error) {
	callCtx, cancel := s.callContext(ctx)
	defer cancel()
	w, err := retry(callCtx, s, func(ctx context.Context) (*watch, error) { return s.beginWatch(ctx) })
	if err != nil {
		return nil, nil, err
	}
	loaded, err := s.load(ctx)
	if err != nil {
		w.end()
		return nil, nil, err
	}
	return w, loaded, nil
}

// beginWatch waits until etcd has confirmed the watch. ctx bounds this wait only.
func (s *Store) beginWatch(ctx context.Context) (*watch, error) {
	// A member without a leader must end the watch instead of staying silent.
	streamCtx, cancel := context.WithCancel(clientv3.WithRequireLeader(s.ctx))
	stop := context.AfterFunc(ctx, cancel)
	w := &watch{cancel: cancel, changes: make(chan *etcdserverpb.WatchResponse)}
	created, err := w.begin(streamCtx, etcdserverpb.NewWatchClient(s.client.ActiveConnection()), string(s.keys))
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err == nil && created.Canceled {
		err = fmt.Errorf("etcd refused the watch: %s", created.CancelReason)
	}
	if err != nil {
		cancel()
		return nil, rpctypes.Error(err)
	}
	s.wg.Go(func() { w.receive(streamCtx) })
	return w, nil
}

// begin returns the first response.
func (w *watch) begin(ctx context.Context, client etcdserverpb.WatchClient, prefix string) (*etcdserverpb.WatchResponse, error) {
	stream, err := client.Watch(ctx, grpc.MaxCallRecvMsgSize(math.MaxInt32))
	if err != nil {
		return nil, err
	}
	w.stream = stream
	create := &etcdserverpb.WatchCreateRequest{Key: []byte(prefix), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(prefix))}
	if err := stream.Send(&etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_CreateRequest{CreateRequest: create}}); err != nil {
		return nil, err
	}
	return stream.Recv()
}

func (w *watch) receive(ctx context.Context) {
	defer close(w.changes)
	for {
		resp, err := w.stream.Recv()
		if err != nil {
			w.err = err
			return
		}
		select {
		case w.changes <- resp:
		case <-ctx.Done():
			w.err = ctx.Err()
			return
		}
	}
}

func (w *watch) requestProgress() {
	// If it fails, the stream has ended, and so does receive.
	_ = w.stream.Send(&etcdserverpb.WatchRequest{
		RequestUnion: &etcdserverpb.WatchRequest_ProgressRequest{ProgressRequest: &etcdserverpb.WatchProgressRequest{}},
	})
}

func (w *watch) end() { w.cancel() }

// applyChanges applies the changes of a watch to the cache until the watch fails.
func (s *Store) applyChanges(ctx context.Context, w *watch) error {
	probe := time.NewTicker(s.cfg.probeInterval())
	defer probe.Stop()
	last := time.Now()
	for {
		select {
		case resp, ok := <-w.changes:
			if !ok {
				return rpctypes.Error(w.err)
			}
			if err := s.apply(resp); err != nil {
				return err
			}
			last = time.Now()
		case <-probe.C:
			if time.Since(last) > s.cfg.silenceTimeout() {
				return errNoContact
			}
			// There may be no change for hours: a progress request makes etcd respond.
			w.requestProgress()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// apply applies a response of the watch to the cache.
func (s *Store) apply(resp *etcdserverpb.WatchResponse) error {
	if resp.CompactRevision != 0 {
		return fmt.Errorf("%w: up to revision %d", errCompacted, resp.CompactRevision)
	}
	if resp.Canceled {
		return fmt.Errorf("etcd ended the watch: %s", resp.CancelReason)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	revision := s.cache.revision
	if len(resp.Events) == 0 { // the response to a progress request
		revision = max(revision, resp.Header.GetRevision())
	}
	for _, event := range resp.Events {
		if event.Kv.ModRevision <= s.cache.revision {
			continue // already in the cache when the watch began
		}
		s.applyEventLocked(event)
		revision = event.Kv.ModRevision
	}
	s.cache.revision = revision
	s.notifyLocked()
	return nil
}

func (s *Store) applyEventLocked(event *mvccpb.Event) {
	key := string(event.Kv.Key)
	if event.Type == clientv3.EventTypeDelete {
		s.countExpiryLocked(key)
		if typ, serverID, removed := s.cache.remove(key); removed {
			s.log.Info("server removed", zap.String("reason", "deleted or expired"), zap.String("type", typ), zap.String("serverId", serverID))
		}
		return
	}
	n := len(s.cache.unrecognized)
	s.cache.put(event.Kv)
	if len(s.cache.unrecognized) > n && n < maxUnrecognizedLines {
		s.log.Warn("ignored unrecognized key", zap.String("key", key), zap.Error(s.cache.unrecognized[key]))
	}
}

// notifyLocked records contact with etcd and a change of the cache, and wakes the calls that wait
// for the cache's revision.
func (s *Store) notifyLocked() {
	s.changes++
	s.lastContact = time.Now()
	for ch, revision := range s.waiters {
		if revision <= s.cache.revision {
			delete(s.waiters, ch)
			close(ch)
		}
	}
}

// waitForRevision waits until the cache has reached a revision, and reports whether it has. It
// waits for a quarter of the timeout at most, and not at all if the cache is stale.
func (s *Store) waitForRevision(ctx context.Context, revision int64) bool {
	s.mu.Lock()
	if revision <= s.cache.revision || s.staleLocked() {
		defer s.mu.Unlock()
		return revision <= s.cache.revision
	}
	ch := make(chan struct{})
	s.waiters[ch] = revision
	s.mu.Unlock()

	timeout := time.NewTimer(s.cfg.timeout() / 4)
	defer timeout.Stop()
	select {
	case <-ch:
		return true
	case <-timeout.C:
	case <-ctx.Done():
	case <-s.ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waiters, ch)
	return revision <= s.cache.revision
}
