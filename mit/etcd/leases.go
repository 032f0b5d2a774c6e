package etcd

import (
	"context"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// The entries of a lease expire together, in one transaction of etcd, which must not be large.
	maxPerLease = 1000
	maxSlack    = time.Minute
)

// leases provides the etcd leases that entries are attached to. Entries written within a short time
// share a lease, so that most renewals need no request to grant one. A lease is granted for longer
// than the requested TTL, by a twentieth or a minute, whichever is less. It is shared during this
// additional time.
//
// A lease without entries is renewed instead of replaced. Failed grants and refused writes thus
// leave at most one lease in etcd for each TTL.
type leases struct {
	// grant grants a lease with the given id, or renews it if it exists.
	grant    func(ctx context.Context, id clientv3.LeaseID, seconds int64) error
	granting chan struct{} // holds a value while a lease is being granted

	mu      sync.Mutex       // guards the field below and all it leads to
	current map[int64]*lease // by TTL in seconds
}

type lease struct {
	id        clientv3.LeaseID
	expires   time.Time // earliest time; zero before the first grant has succeeded
	remaining int       // entries that may still share it
}

func newLeases(grant func(ctx context.Context, id clientv3.LeaseID, seconds int64) error) *leases {
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
	a := l.next(seconds)
	before := time.Now()
	if err := l.grant(ctx, a.id, seconds); err != nil {
		return 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	a.expires = before.Add(time.Duration(seconds) * time.Second)
	a.remaining--
	return a.id, nil
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

// next returns the lease to grant or renew: the current one if no entry uses it, or a new one.
func (l *leases) next(seconds int64) *lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s, old := range l.current { // expired ones of TTLs no longer used
		if s != seconds && time.Until(old.expires) <= 0 {
			delete(l.current, s)
		}
	}
	a := l.current[seconds]
	if a == nil || a.remaining < maxPerLease {
		a = &lease{id: newLeaseID(), remaining: maxPerLease}
		l.current[seconds] = a
	}
	return a
}

func newLeaseID() clientv3.LeaseID { return clientv3.LeaseID(1 + rand.Int64N(math.MaxInt64)) }

// release gives back a lease that no entry was attached to: the write was refused.
func (l *leases) release(id clientv3.LeaseID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range l.current {
		if a.id == id {
			a.remaining++
		}
	}
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
