package etcd

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestLeaseSeconds(t *testing.T) {
	for ttl, want := range map[time.Duration]int64{
		time.Millisecond:        1,
		time.Second:             2,
		2 * time.Second:         3,
		20 * time.Second:        21,
		21 * time.Second:        23, // 22.05
		3 * time.Hour:           3*60*60 + 60,
		1000 * 24 * time.Hour:   1000*24*60*60 + 60,
		1500 * time.Millisecond: 2,
	} {
		if got := leaseSeconds(ttl); got != want {
			t.Errorf("a TTL of %v takes a lease of %d s, want %d", ttl, got, want)
		}
	}
}

// etcdClock grants leases, each after 10 ms, and knows when they expire.
type etcdClock struct {
	mu      sync.Mutex
	ids     []clientv3.LeaseID // in the order of their first grants
	expires map[clientv3.LeaseID]time.Time
	lost    bool // responses are lost
	err     error
}

func (c *etcdClock) grant(_ context.Context, id clientv3.LeaseID, seconds int64) error {
	time.Sleep(10 * time.Millisecond)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	if c.expires == nil {
		c.expires = map[clientv3.LeaseID]time.Time{}
	}
	if _, ok := c.expires[id]; !ok {
		c.ids = append(c.ids, id)
	}
	c.expires[id] = time.Now().Add(time.Duration(seconds) * time.Second)
	if c.lost {
		return context.DeadlineExceeded
	}
	return nil
}

func TestLeases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clock := &etcdClock{}
		l := newLeases(clock.grant)
		acquire := func(ttl time.Duration) clientv3.LeaseID {
			t.Helper()
			id, err := l.acquire(t.Context(), ttl)
			if err != nil {
				t.Fatal(err)
			}
			if left := time.Until(clock.expires[id]); left < ttl {
				t.Fatalf("lease %d lasts for %v, less than %v", id, left, ttl)
			}
			return id
		}

		// For three hours a new entry every second: each lease is shared for a minute.
		for range 3 * 60 * 60 {
			acquire(time.Hour)
			time.Sleep(time.Second)
		}
		if n := len(clock.ids); n < 3*60 || n > 3*60+10 {
			t.Errorf("%d leases in three hours", n)
		}

		// At most maxPerLease entries share a lease.
		acquire(time.Hour)
		time.Sleep(time.Hour)
		known := len(clock.ids)
		used := map[clientv3.LeaseID]int{}
		for range 2*maxPerLease + 1 {
			used[acquire(time.Hour)]++
		}
		if ids := clock.ids[known:]; len(ids) != 3 || used[ids[0]] != maxPerLease || used[ids[1]] != maxPerLease || used[ids[2]] != 1 {
			t.Errorf("entries by lease: %v", used)
		}

		// Another TTL has a lease of its own.
		last := acquire(time.Hour)
		if acquire(time.Minute) == last || acquire(time.Hour) != last {
			t.Error("lives of an hour and a minute disturb each other")
		}
		if len(l.current) != 2 {
			t.Errorf("%d leases are kept, want one for each TTL", len(l.current))
		}
		l.forget(last)
		if acquire(time.Hour) == last {
			t.Error("lent after it was forgotten")
		}
		time.Sleep(2 * time.Hour)
		acquire(time.Hour)
		if len(l.current) != 1 {
			t.Errorf("%d leases are kept, those that ran out among them", len(l.current))
		}
	})
}

// Concurrent calls cause one grant.
func TestConcurrentGrants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clock := &etcdClock{}
		l := newLeases(clock.grant)
		lendAll := func() (errs []error) {
			t.Helper()
			errs = make([]error, maxPerLease)
			var wg sync.WaitGroup
			for i := range errs {
				wg.Go(func() {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					defer cancel()
					_, errs[i] = l.acquire(ctx, time.Hour)
				})
			}
			wg.Wait()
			return errs
		}
		if err := errors.Join(lendAll()...); err != nil || len(clock.ids) != 1 {
			t.Errorf("%d leases, %v", len(clock.ids), err)
		}
		time.Sleep(time.Hour)
		clock.err = errors.New("no leader")
		start := time.Now()
		for _, err := range lendAll() {
			if !errors.Is(err, clock.err) && !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("error %v", err)
			}
		}
		if took := time.Since(start); took > 1010*time.Millisecond {
			t.Errorf("it took %v to fail", took)
		}
	})
}

// Failures leave one lease, however many there are.
func TestLeasesOfFailures(t *testing.T) {
	for name, fail := range map[string]func(t *testing.T, clock *etcdClock, l *leases){
		"response lost": func(t *testing.T, clock *etcdClock, l *leases) {
			t.Helper()
			clock.lost = true
			if _, err := l.acquire(t.Context(), time.Hour); err == nil {
				t.Error("acquired")
			}
			clock.lost = false
		},
		"write refused": func(t *testing.T, _ *etcdClock, l *leases) {
			t.Helper()
			id, err := l.acquire(t.Context(), time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			l.release(id)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				clock := &etcdClock{}
				l := newLeases(clock.grant)
				for range 3 * maxPerLease { // beyond the time and the number for which one is shared
					fail(t, clock, l)
					time.Sleep(time.Second)
				}
				if n := len(clock.ids); n != 1 {
					t.Errorf("%d leases in etcd, want 1", n)
				}
				id, err := l.acquire(t.Context(), time.Hour)
				if left := time.Until(clock.expires[id]); err != nil || left < time.Hour {
					t.Errorf("lease for %v, %v", left, err)
				}
			})
		})
	}
}
