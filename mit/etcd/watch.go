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
	errBehind = errors.New("the history that we know is gone")
	errSilent = errors.New("etcd is silent")
	errEnded  = errors.New("the watch ended")
)

const (
	maxPause        = 2 * time.Second // between two tries to follow etcd
	maxForeignLines = 100             // in the log, one for each key; [Store.Health] counts them all
)

// follow keeps the copy up to date until ctx ends.
func (s *Store) follow(ctx context.Context) {
	stale, behind := false, false
	pause := time.Duration(0)
	for ctx.Err() == nil {
		started := time.Now()
		var err error
		if behind {
			err = s.reload(ctx)
		} else {
			err = s.watch(ctx, func() {
				if stale {
					stale = false
					s.log.Info("following etcd again")
				}
			})
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errBehind):
			s.log.Info("reading everything from etcd again", zap.Error(err))
			behind = true
		case err == nil:
			behind = false
			continue
		}
		s.mu.Lock()
		isStale, heard := s.staleLocked(), s.heard
		s.mu.Unlock()
		if isStale && !stale {
			stale = true
			s.log.Warn("etcd cannot be followed: what is read may be out of date", zap.Time("heard", heard), zap.Error(err))
		}
		if time.Since(started) > maxPause {
			pause = 0
		}
		pause = min(max(2*pause, 20*time.Millisecond), maxPause)
		select {
		case <-time.After(pause/2 + rand.N(pause)):
		case <-ctx.Done():
		}
	}
}

// watch applies to the copy what changes in etcd, until that cannot be followed any further. It
// calls heard whenever etcd says something.
func (s *Store) watch(ctx context.Context, heard func()) error {
	// A member that has lost its leader must say so, and not just be silent.
	ctx, cancel := context.WithCancelCause(clientv3.WithRequireLeader(ctx))
	defer cancel(nil)
	s.mu.Lock()
	known := s.view.revision
	s.mu.Unlock()

	// Another member may be more talkative, and is to be asked before the copy is stale.
	patience := s.cfg.timeout() / 2
	giveUp := time.AfterFunc(patience, func() { cancel(errSilent) }) // Watch waits for a member to be there
	// From what is known, not from what comes next: etcd gives no sign of life to those who wait for
	// a revision that is yet to come.
	events := s.client.Watch(ctx, string(s.keys), clientv3.WithPrefix(), clientv3.WithRev(known), clientv3.WithCreatedNotify())
	giveUp.Stop()

	ask := time.NewTicker(s.cfg.beat())
	defer ask.Stop()
	last := time.Now()
	for {
		select {
		case resp, ok := <-events:
			if !ok {
				return cmp.Or(context.Cause(ctx), errEnded)
			}
			if resp.CompactRevision != 0 {
				return fmt.Errorf("%w: %w", errBehind, resp.Err())
			}
			if err := resp.Err(); err != nil {
				return err
			}
			if err := s.apply(resp); err != nil {
				return err
			}
			last = time.Now()
			heard()
		case <-ask.C:
			if time.Since(last) > patience {
				return errSilent
			}
			// Nothing may have changed for hours: have etcd say how far it is.
			asking, cancel := context.WithTimeout(ctx, s.cfg.beat())
			_ = s.client.RequestProgress(asking) // a failure shows as silence
			cancel()
		}
	}
}

// apply takes in one word of etcd.
func (s *Store) apply(resp clientv3.WatchResponse) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if (resp.Created || resp.IsProgressNotify()) && resp.Header.Revision < s.view.revision {
		return fmt.Errorf("%w: etcd is at revision %d, as after a restore, and was at %d", errBehind, resp.Header.Revision, s.view.revision)
	}
	revision := s.view.revision
	if resp.IsProgressNotify() {
		revision = resp.Header.Revision
	}
	for _, event := range resp.Events {
		if event.Kv.ModRevision <= s.view.revision {
			continue // what was known when the watch began
		}
		key := string(event.Kv.Key)
		if event.Type == clientv3.EventTypeDelete {
			if typ, serverID, gone := s.view.remove(key); gone {
				s.log.Info("server gone: deleted, or silent for too long", zap.String("type", typ), zap.String("serverId", serverID))
			}
		} else {
			known := len(s.view.foreign)
			s.view.put(event.Kv)
			if len(s.view.foreign) > known && known < maxForeignLines {
				s.log.Warn("left as it is: a key that cannot be used", zap.String("key", key), zap.Error(s.view.foreign[key]))
			}
		}
		revision = event.Kv.ModRevision
	}
	s.view.revision = revision
	s.heardLocked()
	return nil
}

// reload reads everything anew.
func (s *Store) reload(ctx context.Context) error {
	v, err := try(ctx, s, s.load)
	if err == nil {
		s.replace(v)
	}
	return err
}

func (s *Store) load(ctx context.Context) (*view, error) {
	resp, err := s.client.Get(ctx, string(s.keys), clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	return newView(s.keys, resp.Header.Revision, resp.Kvs), nil
}

func (s *Store) replace(v *view) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.view = v
	s.heardLocked()
	if n := len(v.foreign); n > 0 {
		s.log.Warn("left as they are: keys that cannot be used", zap.Int("keys", n), zap.Strings("such as", v.foreignKeys(5)))
	}
}

// heardLocked tells those who wait for what the view has come to.
func (s *Store) heardLocked() {
	s.heard = time.Now()
	for ch, revision := range s.waiting {
		if revision <= s.view.revision {
			delete(s.waiting, ch)
			close(ch)
		}
	}
}

// await waits until the copy has come to the revision, and says whether it has. It does not wait
// for long, and not at all for a copy that is stale already.
func (s *Store) await(ctx context.Context, revision int64) bool {
	s.mu.Lock()
	if revision <= s.view.revision || s.staleLocked() {
		defer s.mu.Unlock()
		return revision <= s.view.revision
	}
	ch := make(chan struct{})
	s.waiting[ch] = revision
	s.mu.Unlock()

	late := time.NewTimer(s.cfg.beat())
	defer late.Stop()
	select {
	case <-ch:
		return true
	case <-late.C:
	case <-ctx.Done():
	case <-s.life.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waiting, ch)
	return revision <= s.view.revision
}
