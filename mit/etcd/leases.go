package etcd

import (
	"context"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// The entries of a lease expire together, in one transaction of etcd, so they must not be many.
	maxPerLease = 1000
	maxSlack    = time.Minute
)

// leases provides the etcd leases that entries are attached to. Entries written within a short time
// share a lease, so that most renewals need no request to grant one. A lease is granted for longer
// than the requested TTL, by a twentieth or a minute, whichever is less, and shared for that long.
type leases struct {
	grant    func(ctx context.Context, seconds int64) (clientv3.LeaseID, error)
	granting chan struct{} // holds a value while a lease is being granted

	mu      sync.Mutex       // guards the field below and all it leads to
	current map[int64]*lease // by TTL in seconds
}

type lease struct {
	id        clientv3.LeaseID
	expires   time.Time // earliest time
	remaining int       // entries that may still share it
}

func newLeases(grant func(ctx context.Context, seconds int64) (clientv3.LeaseID, error)) *leases {
	return &leases{grant: grant, granting: make(chan struct{}, 1), current: map[int64]*lease{}}
}

// acquire returns a lease that lasts for at least ttl.
func (l *leases) acquire(ctx context.Context, ttl time.Duration) (clientv3.LeaseID, error) {
	seconds := leaseSeconds(ttl)
	if id, ok := l.reuse(seconds, ttl); ok {
		return id, nil
	}
	select {
	case l.granting <- struct{}{}:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	defer func() { <-l.granting }()
	if id, ok := l.reuse(seconds, ttl); ok { // granted meanwhile
		return id, nil
	}
	before := time.Now()
	id, err := l.grant(ctx, seconds)
	if err != nil {
		return 0, err
	}
	l.store(seconds, &lease{id: id, expires: before.Add(time.Duration(seconds) * time.Second), remaining: maxPerLease - 1})
	return id, nil
}

// leaseSeconds returns the TTL of a lease for entries with the given TTL, in whole seconds.
func leaseSeconds(ttl time.Duration) int64 {
	ttl += min(ttl/20, maxSlack)
	return int64((ttl + time.Second - 1) / time.Second)
}

func (l *leases) reuse(seconds int64, ttl time.Duration) (clientv3.LeaseID, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.current[seconds]
	if a == nil || a.remaining == 0 || time.Until(a.expires) < ttl {
		return 0, false
	}
	a.remaining--
	return a.id, true
}

func (l *leases) store(seconds int64, a *lease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s, old := range l.current { // expired ones of TTLs no longer used
		if time.Until(old.expires) <= 0 {
			delete(l.current, s)
		}
	}
	l.current[seconds] = a
}

// forget drops a lease that etcd does not know.
func (l *leases) forget(id clientv3.LeaseID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s, a := range l.current {
		if a.id == id {
			delete(l.current, s)
		}
	}
}
