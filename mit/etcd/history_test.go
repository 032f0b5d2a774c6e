package etcd_test

import (
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/mimiktech/cluster/mit/etcd"
	"github.com/mimiktech/cluster/mit/etcd/internal/etcdtest"
)

// A replica is cut off while etcd is replaced: it must not continue with the changes of the other
// history, even if the revisions have passed those that it knew.
func TestOtherHistory(t *testing.T) {
	t.Parallel()
	restart := func(t *testing.T, c *etcdtest.Cluster, change func() error) {
		t.Helper()
		c.Kill(0)
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if err := c.Restart(0); err != nil {
			t.Fatal(err)
		}
	}
	for name, replace := range map[string]func(t *testing.T, c *etcdtest.Cluster, s *etcd.Store, cut func()){
		"wiped": func(t *testing.T, c *etcdtest.Cluster, _ *etcd.Store, cut func()) {
			t.Helper()
			cut()
			restart(t, c, func() error { return c.EraseData(0) })
		},
		"restored": func(t *testing.T, c *etcdtest.Cluster, s *etcd.Store, cut func()) {
			t.Helper()
			backup := t.TempDir()
			restart(t, c, func() error { return c.CopyData(0, backup) })
			eventually(t, "a server registers that the backup lacks", func() bool {
				_, err := s.Put(t.Context(), registration("lost"), hour)
				return err == nil
			})
			cut()
			restart(t, c, func() error { return c.RestoreData(0, backup) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := etcdtest.Run(t, 1)
			p := etcdtest.NewProxy(t, c.Endpoints[0])
			s := open(t, etcd.Config{Endpoints: []string{p.Addr}, Timeout: 4 * time.Second})
			for _, id := range []string{"a", "b", "c"} {
				put(t, s, id)
			}
			replace(t, c, s, p.Cut)
			other := open(t, etcd.Config{Endpoints: c.Endpoints})
			for i := range 20 { // the revision passes that of the replica
				put(t, other, fmt.Sprint(i%6))
			}
			want, err := other.Get(t.Context(), mds)
			if err != nil {
				t.Fatal(err)
			}
			p.Heal()
			eventually(t, fmt.Sprintf("the replica lists %v", ids(want)), func() bool { return reads(t, s, ids(want)...) && ready(s) == nil })
			put(t, other, "later")
			eventually(t, "the replica follows", func() bool { return reads(t, s, append(ids(want), "later")...) })
		})
	}
}

// The connection of a replica moves to another etcd without any pause, as behind a balancer.
func TestOtherCluster(t *testing.T) {
	t.Parallel()
	one, two := etcdtest.Run(t, 1), etcdtest.Run(t, 1)
	p := etcdtest.NewProxy(t, one.Endpoints[0])
	s := open(t, etcd.Config{Endpoints: []string{p.Addr}, Timeout: 4 * time.Second})
	put(t, s, "a")
	other := open(t, etcd.Config{Endpoints: two.Endpoints})
	for i := range 20 {
		put(t, other, fmt.Sprint(i%2))
	}
	p.Retarget(two.Endpoints[0])
	eventually(t, "the replica lists the servers of the other", func() bool { return reads(t, s, "0", "1") })
}

// Writes to servers that were registered in the earlier history succeed.
func TestLeasesOfOtherHistory(t *testing.T) {
	t.Parallel()
	c := etcdtest.Run(t, 1)
	s := open(t, etcd.Config{Endpoints: c.Endpoints, Timeout: 4 * time.Second})
	put(t, s, "a")
	c.Kill(0)
	if err := c.EraseData(0); err != nil {
		t.Fatal(err)
	}
	if err := c.Restart(0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server registers", func() bool {
		_, err := s.Put(t.Context(), registration("a"), hour)
		return err == nil
	})
	kvs, err := c.Client(t).Get(t.Context(), "/mit/servers/", clientv3.WithPrefix())
	if err != nil || len(kvs.Kvs) != 1 || kvs.Kvs[0].Lease == 0 {
		t.Errorf("%v, %v", kvs, err)
	}
}

// After the clock of a replica was set back, entries get no older dates than before: neither its
// own, nor those that another replica wrote, nor those of servers that are gone.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	c := etcdtest.Run(t, 1)
	ahead := open(t, etcd.Config{Endpoints: c.Endpoints})
	behind := open(t, etcd.Config{Endpoints: c.Endpoints})
	ahead.SetClock(func() time.Time { return time.Now().Add(hour) })
	kept := put(t, ahead, "kept")
	put(t, ahead, "gone")
	gone := put(t, ahead, "gone")
	if err := ahead.Delete(t.Context(), mds, "gone"); err != nil {
		t.Fatal(err)
	}
	ahead.SetClock(time.Now)
	for name, s := range map[string]*etcd.Store{"same": ahead, "other": behind} {
		eventually(t, "the delete is known", func() bool { return reads(t, s, "kept") })
		again := put(t, s, "gone")
		if !again.CreatedAt.After(gone.UpdatedAt) {
			t.Errorf("%s replica: registered again at %v, was updated at %v", name, again.CreatedAt, gone.UpdatedAt)
		}
		if renewed := put(t, s, "kept"); !renewed.UpdatedAt.After(kept.UpdatedAt) || !renewed.CreatedAt.Equal(kept.CreatedAt) {
			t.Errorf("%s replica: renewed as %+v, was %+v", name, renewed, kept)
		}
		if err := s.Delete(t.Context(), mds, "gone"); err != nil {
			t.Fatal(err)
		}
		gone = again
	}
}
