package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

var (
	errCompacted   = errors.New("the revision of the cache is not available any more")
	errNoContact   = errors.New("no contact with etcd")
	errWatchClosed = errors.New("the watch was closed")
)

const (
	maxRetryInterval     = 2 * time.Second // between attempts to watch etcd
	maxUnrecognizedLines = 100             // log lines, one per key; [Store.Health] counts all
)

// follow keeps the cache up to date until ctx ends.
func (s *Store) follow(ctx context.Context) {
	stale, compacted := false, false
	interval := time.Duration(0)
	for ctx.Err() == nil {
		started := time.Now()
		var err error
		if compacted {
			err = s.reload(ctx)
		} else {
			err = s.watch(ctx, func() {
				if stale {
					stale = false
					s.log.Info("etcd watch resumed")
				}
			})
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errCompacted):
			s.log.Info("reloading from etcd", zap.Error(err))
			compacted = true
		case err == nil:
			compacted = false
			continue
		}
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

// watch applies changes in etcd to the cache until the watch fails. It calls onContact after each
// response.
func (s *Store) watch(ctx context.Context, onContact func()) error {
	// A member without a leader must end the watch instead of staying silent.
	ctx, cancel := context.WithCancelCause(clientv3.WithRequireLeader(ctx))
	defer cancel(nil)
	s.mu.Lock()
	revision := s.cache.revision
	s.mu.Unlock()

	// Half the timeout leaves time to try another member before the cache is stale.
	silenceTimeout := s.cfg.timeout() / 2
	// Watch blocks without a member.
	giveUp := time.AfterFunc(silenceTimeout, func() { cancel(errNoContact) })
	// The watch begins at the known revision, not at the next: etcd sends no progress
	// notifications to a watch of a future revision.
	events := s.client.Watch(ctx, string(s.keys), clientv3.WithPrefix(), clientv3.WithRev(revision), clientv3.WithCreatedNotify())
	giveUp.Stop()

	probe := time.NewTicker(s.cfg.probeInterval())
	defer probe.Stop()
	last := time.Now()
	for {
		select {
		case resp, ok := <-events:
			if !ok {
				return cmp.Or(context.Cause(ctx), errWatchClosed)
			}
			if resp.CompactRevision != 0 {
				return fmt.Errorf("%w: %w", errCompacted, resp.Err())
			}
			if err := resp.Err(); err != nil {
				return err
			}
			if err := s.apply(resp); err != nil {
				return err
			}
			last = time.Now()
			onContact()
		case <-probe.C:
			if time.Since(last) > silenceTimeout {
				return errNoContact
			}
			// There may be no change for hours: a progress request makes etcd respond.
			probeCtx, cancel := context.WithTimeout(ctx, s.cfg.probeInterval())
			_ = s.client.RequestProgress(probeCtx) // if it fails, there is no contact
			cancel()
		}
	}
}

// apply applies a response of the watch to the cache.
func (s *Store) apply(resp clientv3.WatchResponse) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if (resp.Created || resp.IsProgressNotify()) && resp.Header.Revision < s.cache.revision {
		return fmt.Errorf("%w: etcd is at revision %d, as after a restore, and was at %d", errCompacted, resp.Header.Revision, s.cache.revision)
	}
	revision := s.cache.revision
	if resp.IsProgressNotify() {
		revision = resp.Header.Revision
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

func (s *Store) applyEventLocked(event *clientv3.Event) {
	key := string(event.Kv.Key)
	if event.Type == clientv3.EventTypeDelete {
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

func (s *Store) reload(ctx context.Context) error {
	loaded, err := retry(ctx, s, s.load)
	if err == nil {
		s.setCache(loaded)
	}
	return err
}

// load reads all keys.
func (s *Store) load(ctx context.Context) (*cache, error) {
	resp, err := s.client.Get(ctx, string(s.keys), clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	return newCache(s.keys, resp.Header.Revision, resp.Kvs), nil
}

func (s *Store) setCache(c *cache) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cache = c
	s.notifyLocked()
	if n := len(c.unrecognized); n > 0 {
		s.log.Warn("ignored unrecognized keys", zap.Int("keys", n), zap.Strings("such as", c.unrecognizedKeys(5)))
	}
}

// notifyLocked records contact with etcd and wakes the calls that wait for the cache's revision.
func (s *Store) notifyLocked() {
	s.lastContact = time.Now()
	for ch, revision := range s.waiters {
		if revision <= s.cache.revision {
			delete(s.waiters, ch)
			close(ch)
		}
	}
}

// waitForRevision waits until the cache has reached a revision, and reports whether it has. It
// waits for one probe interval at most, and not at all if the cache is stale.
func (s *Store) waitForRevision(ctx context.Context, revision int64) bool {
	s.mu.Lock()
	if revision <= s.cache.revision || s.staleLocked() {
		defer s.mu.Unlock()
		return revision <= s.cache.revision
	}
	ch := make(chan struct{})
	s.waiters[ch] = revision
	s.mu.Unlock()

	timeout := time.NewTimer(s.cfg.probeInterval())
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
