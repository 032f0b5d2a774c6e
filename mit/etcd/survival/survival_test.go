//go:build unix

package survival

import (
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit/etcd/internal/etcdtest"
)

// For 30 s, three times the lease, etcd has one of three members: one is dead, one is stopped.
// Replicas read but cannot write. Nodes lose their leases and keep their peers. When both members
// are back, no entry is lost.
func TestNoQuorum(t *testing.T) {
	w := newWorld(t, worldConfig{members: 3, replicas: 3, share: renewalShare})
	t.Parallel() // only now: it takes longest, and is not to wait for the others
	dead := w.leader()
	still := (dead + 1) % 3
	w.members[dead].kill()
	w.members[still].signal(syscall.SIGSTOP)
	end := time.Now().Add(30 * time.Second)
	for _, r := range w.replicas {
		w.readsOnly(r)
	}
	w.eventually("all leases have run out", func() bool { return w.allAre(cluster.Lost) })
	time.Sleep(time.Until(end))
	if !w.allAre(cluster.Lost) {
		t.Errorf("without quorum the nodes are %s", w.states())
	}
	for _, r := range w.replicas {
		w.readsOnly(r)
	}
	if !w.viewsWhole() {
		t.Error("a node has forgotten peers while it was lost")
	}
	w.allAnswer("without quorum")

	w.members[still].signal(syscall.SIGCONT)
	w.members[dead].start()
	back := time.Now()
	w.allRenew("when etcd is back")
	w.eventually("all nodes are registered", func() bool { return w.allAre(cluster.Registered) })
	t.Logf("all are registered %v after etcd's members are back", time.Since(back).Round(time.Millisecond))
	w.allHealthy()
	w.eventually("all nodes know each other", w.viewsWhole)
	w.checkNoLoss()
}

// readsOnly fails the test unless a replica lists all nodes, rejects writes and reports the cause.
func (w *world) readsOnly(r *replica) {
	w.Helper()
	w.eventually(r.name+" says that it is stale", func() bool {
		return health(w.Context(), w.balancer.client, r.url) == http.StatusServiceUnavailable
	})
	if status, body := w.do(w.Context(), http.MethodGet, r.url+registryPath+"/health", nil); !strings.Contains(string(body), "no contact with etcd since") {
		w.Errorf("the health of %s: %d %s", r.name, status, body)
	}
	if status, body := w.renewFirst(r.url); status != http.StatusServiceUnavailable {
		w.Errorf("a renewal at %s: %d %s", r.name, status, body)
	}
	listed := w.list(r.url)
	for id := range w.born {
		if _, ok := listed[id]; !ok {
			w.Errorf("%s does not list %s", r.name, id)
		}
	}
}

// Each replica is killed at least once, during a request, while all nodes renew continuously. No
// node is lost and none fails.
func TestReplicaKilled(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{members: 1, replicas: 3, share: 0.15})
	for kills := 0; kills < len(w.replicas) || w.balancer.repeated.Load() == 0; kills++ {
		if kills == 12 {
			t.Fatalf("after %d kills no request was cut off", kills)
		}
		i := kills % len(w.replicas)
		r := w.replicas[i]
		for end := time.Now().Add(maxWait); w.balancer.busy[i].Load() == 0 && time.Now().Before(end); {
			time.Sleep(time.Millisecond / 2)
		}
		r.kill()
		w.allRenew("without " + r.name)
		w.allRenew("without " + r.name + " again")
		r.start()
		w.allHealthy()
	}
	w.allRenew("with all replicas")
	t.Logf("requests that went to a second replica: %d", w.balancer.repeated.Load())
	w.stayedRegistered()
	w.checkNoLoss()
}

// The leader of etcd is killed, and later its successor. No node is lost and none fails.
func TestLeaderKilled(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{members: 3, replicas: 2, share: renewalShare})
	for range 2 {
		leader := w.leader()
		w.members[leader].kill()
		killed := time.Now()
		w.eventually("another leader", func() bool { return w.leader() >= 0 })
		t.Logf("another leader after %v", time.Since(killed).Round(time.Millisecond))
		w.allRenew("with another leader")
		w.members[leader].start()
		w.allRenew("with the old leader back")
		w.eventually("a leader", func() bool { return w.leader() >= 0 })
	}
	w.stayedRegistered()
	w.checkNoLoss()
}

// A replica is cut off from etcd, but not from the nodes. It reads, rejects writes and reports that
// it is stale. After the connection is back it lists all changes. No node fails.
func TestReplicaCutOff(t *testing.T) {
	t.Parallel()
	var proxy *etcdtest.Proxy
	w := newWorld(t, worldConfig{members: 1, replicas: 2, share: renewalShare, memberAddr: func(replica int, member string) string {
		if replica > 0 {
			return member
		}
		proxy = etcdtest.NewProxy(t, member)
		return proxy.Addr
	}})
	cut, fine := w.replicas[0], w.replicas[1]
	proxy.Cut()
	w.readsOnly(cut)
	if status, body := w.renewFirst(fine.url); status != http.StatusOK {
		t.Errorf("a renewal at the other replica: %d %s", status, body)
	}
	late := w.newNode("late", renewalShare, w.registryURL(true))
	late.register()
	if _, knows := w.list(cut.url)["late"]; knows {
		t.Error("a replica that is cut off knows a newcomer")
	}
	w.allRenew("at the other replica")
	w.readsOnly(cut)

	proxy.Heal()
	w.allHealthy()
	w.eventually("the replica knows the newcomer", func() bool { _, knows := w.list(cut.url)["late"]; return knows })
	if status, body := w.renewFirst(cut.url); status != http.StatusOK {
		t.Errorf("a renewal at the replica that is back: %d %s", status, body)
	}
	w.nodes = append(w.nodes, late)
	w.eventually("all nodes know the newcomer", w.viewsWhole)
	w.allRenew("at both replicas")
	w.stayedRegistered()
	w.checkNoLoss()
}

// All replicas and all members of etcd are killed and restarted with the data of etcd. The first
// response lists all servers, with their old createdAt.
func TestEverythingKilled(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{members: 3, replicas: 2, share: renewalShare})
	resource := w.nodes[0].Status().ResourceID
	for _, r := range w.replicas {
		r.kill()
	}
	for _, m := range w.members {
		m.kill()
	}
	time.Sleep(2 * time.Second)
	for _, m := range w.members {
		m.start()
	}
	w.eventually("etcd has a leader", func() bool { return w.leader() >= 0 })
	for _, r := range w.replicas {
		r.start()
		w.eventually(r.name+" answers", func() bool { return health(t.Context(), w.balancer.client, r.url) == http.StatusOK })
		for id, e := range w.list(r.url) {
			if e.CreatedAt != w.born[id].CreatedAt {
				t.Errorf("%s has %+v, before it was %+v", r.name, e, w.born[id])
			}
		}
		if got := len(w.list(r.url)); got != nodeCount() {
			t.Errorf("%s lists %d servers at first, not %d", r.name, got, nodeCount())
		}
	}
	w.allRenew("when all is back")
	w.eventually("all nodes are registered", func() bool { return w.allAre(cluster.Registered) })
	for _, n := range w.nodes {
		if got := n.Status().ResourceID; got != resource {
			t.Errorf("the resource of %v was %s and is %s", n, resource, got)
		}
	}
	if !w.viewsWhole() {
		t.Error("a node has forgotten peers")
	}
	w.checkNoLoss()
}
