package etcd

import (
	"context"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// The entries of a lease go together, in one transaction of etcd: they must not be too many.
	maxPerLease = 1000
	maxSlack    = time.Minute
)

// leases lends entries the etcd leases that they live on. Those that are written within a short time
// share one, so that a renewal need not ask etcd for anything but itself; a lease is made longer
// than the life it was asked for, by a twentieth or a minute, whichever is less, and lent for
// that long.
type leases struct {
	grant func(ctx context.Context, seconds int64) (clientv3.LeaseID, error)
	turn  chan struct{} // held by the one who grants

	mu   sync.Mutex       // guards the field below, and all it leads to
	open map[int64]*lease // by seconds
}

type lease struct {
	id      clientv3.LeaseID
	expires time.Time // at the earliest
	room    int       // for so many more entries
}

func newLeases(grant func(ctx context.Context, seconds int64) (clientv3.LeaseID, error)) *leases {
	return &leases{grant: grant, turn: make(chan struct{}, 1), open: map[int64]*lease{}}
}

// lend returns a lease that lasts for life at least.
func (l *leases) lend(ctx context.Context, life time.Duration) (clientv3.LeaseID, error) {
	seconds := leaseSeconds(life)
	if id, ok := l.take(seconds, life); ok {
		return id, nil
	}
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	defer func() { <-l.turn }()
	if id, ok := l.take(seconds, life); ok { // granted while we waited
		return id, nil
	}
	before := time.Now()
	id, err := l.grant(ctx, seconds)
	if err != nil {
		return 0, err
	}
	l.put(seconds, &lease{id: id, expires: before.Add(time.Duration(seconds) * time.Second), room: maxPerLease - 1})
	return id, nil
}

// leaseSeconds is the time of a lease for entries that live for life. etcd counts whole seconds.
func leaseSeconds(life time.Duration) int64 {
	life += min(life/20, maxSlack)
	return int64((life + time.Second - 1) / time.Second)
}

func (l *leases) take(seconds int64, life time.Duration) (clientv3.LeaseID, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.open[seconds]
	if a == nil || a.room == 0 || time.Until(a.expires) < life {
		return 0, false
	}
	a.room--
	return a.id, true
}

func (l *leases) put(seconds int64, a *lease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s, old := range l.open { // of lives that nobody asks for any more
		if time.Until(old.expires) <= 0 {
			delete(l.open, s)
		}
	}
	l.open[seconds] = a
}

// forget lends a lease no more: etcd does not know it.
func (l *leases) forget(id clientv3.LeaseID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s, a := range l.open {
		if a.id == id {
			delete(l.open, s)
		}
	}
}
