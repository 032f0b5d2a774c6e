package etcd

import (
	"context"
	"errors"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/mimiktech/cluster/mit"
)

// probeLeaseSeconds is the TTL of the lease that each check grants. A few of them exist at a time.
const probeLeaseSeconds = 10

// checkInterval is the time without a successful write after which checkWrites makes its own.
func (c Config) checkInterval() time.Duration { return 6 * c.timeout() }

// minCheckInterval is the shortest time between two checks, and their interval while writes fail.
func (c Config) minCheckInterval() time.Duration { return c.timeout() / 2 }

// recordWrite records the result of a write. ctx is that of its caller. A failed write does not
// prove that others fail, so it is followed by a check.
func (s *Store) recordWrite(ctx context.Context, err error) {
	switch {
	case err == nil:
		s.setWriteErr(nil)
	case errors.Is(err, mit.ErrNotFound): // it says nothing about writes
	case ctx.Err() == nil:
		select {
		case s.suspect <- struct{}{}:
		default:
		}
	}
}

// checkWrites checks whether etcd accepts writes until ctx ends: soon after a write has failed,
// after some time without a write, and repeatedly while writes fail. It cannot wait for the next
// write, because load balancers send no writes to a store that is not ready.
func (s *Store) checkWrites(ctx context.Context) {
	interval := s.cfg.checkInterval()
	for ctx.Err() == nil {
		select {
		case <-s.suspect:
		case <-time.After(interval):
			if s.sinceWrite() < interval {
				continue
			}
		case <-ctx.Done():
			return
		}
		interval = s.cfg.checkInterval()
		err := s.tryWrite(ctx)
		if ctx.Err() != nil {
			return
		}
		if s.setWriteErr(err); err != nil {
			interval = 0
		}
		select {
		case <-time.After(s.cfg.minCheckInterval()):
		case <-ctx.Done():
		}
	}
}

// sinceWrite returns the time since the last successful write or check.
func (s *Store) sinceWrite() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.lastWrite)
}

// tryWrite does what a Put does, but changes no key: the comparison of its transaction is never
// true. etcd checks quota and permissions all the same.
func (s *Store) tryWrite(ctx context.Context) error {
	ctx, cancel := s.callContext(ctx)
	defer cancel()
	resource, server := s.keys.resource("check"), s.keys.server("check", "check")
	never := clientv3.Compare(clientv3.Version(server), "=", -1)
	lease := newLeaseID()
	_, err := retry(ctx, s, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		if err := s.grant(ctx, lease, probeLeaseSeconds); err != nil {
			return nil, err
		}
		return s.client.Txn(ctx).If(never).Then(clientv3.OpPut(resource, ""), clientv3.OpPut(server, "")).Commit()
	})
	return err
}

func (s *Store) setWriteErr(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch failed := s.writeErr != nil; {
	case err != nil && !failed:
		s.log.Warn("etcd refuses writes", zap.Error(err))
	case err == nil && failed:
		s.log.Info("etcd accepts writes again")
	}
	s.writeErr = err
	if err == nil {
		s.lastWrite = time.Now()
	}
}
