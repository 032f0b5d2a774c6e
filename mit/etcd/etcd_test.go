package etcd_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/mimiktech/cluster/internal/testrun"
	"github.com/mimiktech/cluster/mit"
	"github.com/mimiktech/cluster/mit/etcd"
	"github.com/mimiktech/cluster/mit/etcd/internal/etcdtest"
	"github.com/mimiktech/cluster/mit/storetest"
)

// TestMain runs more tests in parallel than there are processors, because they mostly wait for
// etcd's clock.
func TestMain(m *testing.M) {
	testrun.Parallel(16)
	os.Exit(m.Run())
}

// open opens a store for the duration of the test.
func open(t *testing.T, cfg etcd.Config) *etcd.Store {
	t.Helper()
	s, err := etcd.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

// ready returns why load balancers should avoid the store, nil if they should not.
func ready(s *etcd.Store) error { return s.Ready() }

func TestStore(t *testing.T) {
	for _, members := range []int{1, 3} {
		t.Run(fmt.Sprintf("members=%d", members), func(t *testing.T) {
			t.Parallel()
			c := etcdtest.Run(t, members)
			storetest.Run(t, func(t *testing.T) mit.Store {
				t.Helper()
				return open(t, etcd.Config{Endpoints: c.Endpoints, Prefix: "/" + t.Name()})
			}, storetest.Options{
				Run: func(t *testing.T, test func(t *testing.T)) {
					t.Helper()
					t.Parallel()
					test(t)
				},
				TTL: 2 * time.Second,
				// A lease of whole seconds, a little longer than the life, and etcd's look
				// for those that have run out, twice a second.
				ExpirySlack: 2 * time.Second,
			})
		})
	}
}

// A store counts the servers that expire, whichever replica registered them, and not those that are
// deleted.
func TestExpirations(t *testing.T) {
	t.Parallel()
	c := etcdtest.Run(t, 1)
	var stores []*etcd.Store
	for i, id := range []string{"a", "b"} {
		s := open(t, etcd.Config{Endpoints: c.Endpoints})
		stores = append(stores, s)
		for _, id := range []string{id, fmt.Sprintf("deleted-%d", i)} {
			if _, err := s.Put(t.Context(), mit.Registration{Type: "mds", ServerID: id, ClusterBaseURL: "http://10.0.0.1"}, 2*time.Second); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Delete(t.Context(), mit.ResourceID("mds"), fmt.Sprintf("deleted-%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	for i, s := range stores {
		for range 1000 {
			if res, err := s.Get(t.Context(), mit.ResourceID("mds")); err == nil && len(res.Servers) == 0 {
				break
			}
			time.Sleep(10 * time.Millisecond) // until etcd's clock has expired them
		}
		if n := s.Expirations(); n != 2 {
			t.Errorf("replica %d counted %d expirations, want 2", i, n)
		}
	}
}
