package etcd

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/mimiktech/cluster/mit"
)

// The bounds of the number of keys in a page. Each page has a [Config].Timeout of its own, so that
// a list of any length can be loaded over a slow link. Pages grow while this makes loading faster,
// as it does if each response of etcd takes long. They shrink if a response does not arrive in
// time.
const (
	minPage = 64
	maxPage = 4096
)

// load reads all keys.
func (s *Store) load(ctx context.Context) (*cache, error) {
	c := newCache(s.keys, 0, nil)
	var err error
	c.revision, err = s.scan(ctx, string(s.keys), clientv3.GetPrefixRangeEnd(string(s.keys)), 0, c.put)
	return c, err
}

// scan calls put for the keys in the range [from, end). It reads them at one revision, the given
// one or, if that is 0, the latest, and returns this revision.
func (s *Store) scan(ctx context.Context, from, end string, revision int64, put func(*mvccpb.KeyValue)) (int64, error) {
	limit, largest := int64(minPage), int64(maxPage)
	best := 0.0 // keys per second
	for {
		start := time.Now()
		resp, err := s.page(ctx, from, clientv3.WithRange(end), clientv3.WithRev(revision), clientv3.WithLimit(limit))
		switch {
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil && limit > minPage:
			limit = max(limit/4, minPage)
			largest = limit
			continue
		case err != nil:
			return 0, err
		}
		for _, kv := range resp.Kvs {
			put(kv)
		}
		if revision == 0 {
			revision = resp.Header.Revision
		}
		if !resp.More {
			return revision, nil
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
		took := time.Since(start)
		rate := float64(len(resp.Kvs)) / took.Seconds()
		if took < s.cfg.timeout()/16 || rate > 1.25*best {
			limit = min(2*limit, largest)
		}
		best = max(best, rate)
	}
}

func (s *Store) page(ctx context.Context, from string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	ctx, cancel := s.callContext(ctx)
	defer cancel()
	return retry(ctx, s, func(ctx context.Context) (*clientv3.GetResponse, error) {
		return s.client.Get(ctx, from, opts...)
	})
}

// fetchResource reads a resource from etcd, in one request unless it is very long.
func (s *Store) fetchResource(ctx context.Context, typ string) (mit.Resource, error) {
	key, prefix := s.keys.resource(mit.ResourceID(typ)), s.keys.servers(typ)
	end := clientv3.GetPrefixRangeEnd(prefix)
	resp, err := retry(ctx, s, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return s.client.Txn(ctx).Then(
			clientv3.OpGet(key),
			clientv3.OpGet(prefix, clientv3.WithRange(end), clientv3.WithLimit(maxPage)),
		).Commit()
	})
	if err != nil {
		return mit.Resource{}, err
	}
	servers := resp.Responses[1].GetResponseRange()
	c := newCache(s.keys, 0, slices.Concat(resp.Responses[0].GetResponseRange().Kvs, servers.Kvs))
	if servers.More {
		from := string(servers.Kvs[len(servers.Kvs)-1].Key) + "\x00"
		if _, err := s.scan(ctx, from, end, resp.Header.Revision, c.put); err != nil {
			return mit.Resource{}, err
		}
	}
	if r := c.resources[mit.ResourceID(typ)]; r != nil {
		return r.snapshot(), nil
	}
	return mit.NewResource(typ, "", 0, nil), nil
}

func (s *Store) setCache(c *cache) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cache != nil {
		c.keepDates(s.cache)
	}
	s.cache = c
	s.notifyLocked()
	if n := len(c.unrecognized); n > 0 {
		s.log.Warn("ignored unrecognized keys", zap.Int("keys", n), zap.Strings("such as", c.unrecognizedKeys(5)))
	}
}
