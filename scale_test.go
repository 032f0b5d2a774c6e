package cluster_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/mit"
)

// A list is a store that answers every registration with the same servers, for clusters larger
// than those that a test can run.
type list struct {
	*mit.Memory

	mu      sync.Mutex // guards the field below
	servers []cluster.Server
}

func (l *list) set(servers []cluster.Server) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.servers = servers
}

func (l *list) Put(_ context.Context, reg mit.Registration, _ time.Duration) (mit.Resource, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return mit.Resource{
		ID: mit.ResourceID(reg.Type), Type: reg.Type, PublicBaseURL: reg.PublicBaseURL, Servers: slices.Clone(l.servers),
	}, nil
}

// someServers are count servers from the given one on, and node-1, as a registry would list them.
func someServers(from, count int) []cluster.Server {
	date := time.Now().UTC().Truncate(time.Millisecond)
	servers := []cluster.Server{{ServerID: "node-1", ClusterBaseURL: "http://node-1:8080/mds/v1", CreatedAt: date, UpdatedAt: date}}
	for i := range count {
		id := fmt.Sprintf("peer-%04d-4f1c-4a56-9a3b-0d5f6c7e8a9b", from+i) // as long as a UUID
		servers = append(servers, cluster.Server{
			ServerID:       id,
			ClusterBaseURL: "http://" + id + ":8080/mds/v1",
			Location:       json.RawMessage(`{"type":"Point","coordinates":[-123.1207,49.2827]}`),
			CreatedAt:      date,
			UpdatedAt:      date,
		})
	}
	return servers
}

// worldOf makes a world in which one node, node-1, can join those servers, which take their time to
// answer.
func worldOf(t testing.TB, store *list, slow time.Duration, opts ...clustertest.Option) *clustertest.World {
	t.Helper()
	w := clustertest.Start(t, 0, append(opts, clustertest.WithStore(store))...)
	for _, s := range store.servers[1:] {
		envelope := fmt.Appendf(nil, `{"data":[%q],"server":{"serverId":%[1]q}}`, s.ServerID)
		w.Network.Handle(s.ServerID+":8080", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(slow)
			_, _ = w.Write(envelope)
		}))
	}
	return w
}

// TestAtRest holds what a Cluster costs while nothing happens, knowing a thousand servers, to one
// goroutine, less than a MiB, and its renewals.
func TestAtRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const clusters, servers, lease = 10, 1000, time.Hour
		store := &list{servers: someServers(0, servers-1)}
		worlds := make([]*clustertest.World, clusters)
		for i := range worlds {
			worlds[i] = worldOf(t, store, 0, clustertest.WithLease(lease))
			first := worlds[i].Join() // so that the registry already has what it keeps of its answers
			first.Close()
			worlds[i].Network.Remove(first.Host)
			worlds[i].Nodes = nil
		}
		heap, goroutines := heapInUse(), ownGoroutines()
		for _, w := range worlds {
			w.Join()
		}
		time.Sleep(2 * time.Minute) // beyond the second look of those that find themselves alone
		synctest.Wait()

		if got := ownGoroutines() - goroutines; got != clusters {
			t.Errorf("%d clusters have %d goroutines, want one each", clusters, got)
		}
		each := (heapInUse() - heap) / clusters
		t.Logf("a cluster of %d servers holds %d KiB, %d bytes per server", servers, each>>10, each/servers)
		if each >= 1<<20 {
			t.Errorf("a cluster of %d servers holds %d bytes, want less than a MiB", servers, each)
		}

		// From here on a node does nothing but renew, no sooner than two thirds of the lease less a
		// tenth of that, and get a token now and then.
		var mu sync.Mutex
		renewals := 0
		for _, w := range worlds {
			if got := w.Nodes[0].Status().Servers; got != servers {
				t.Fatalf("a node knows %d servers, want %d", got, servers)
			}
			last := w.Nodes[0].Status().RenewedAt
			w.Network.Observe(func(x clustertest.Exchange) {
				mu.Lock()
				defer mu.Unlock()
				switch {
				case x.To == clustertest.RegistryHost:
					renewals++
					if since := x.Start.Sub(last); since < lease*6/10 {
						t.Errorf("a renewal %v after the last", since)
					}
					last = x.Start
				case x.To != clustertest.TokenHost:
					t.Errorf("%s %s%s at rest", x.Method, x.To, x.Path)
				}
			})
		}
		time.Sleep(2 * lease)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if renewals < 2*clusters {
			t.Errorf("%d renewals of %d clusters in two leases", renewals, clusters)
		}
	})
}

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC() // what the first one finalized, and what pools kept for one more
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// ownGoroutines counts the goroutines that run code of the package.
func ownGoroutines() int {
	stacks := make([]byte, 16<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	count := 0
	for stack := range strings.SplitSeq(string(stacks), "\n\n") {
		if strings.Contains(stack, "github.com/mimiktech/cluster.") {
			count++
		}
	}
	return count
}

// TestRenewalDuringFanOut has the view of a thousand servers replaced while they are being asked.
// The call accounts for those it began with, and nobody who looks at the view waits, or sees it
// half-changed.
func TestRenewalDuringFanOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const (
			slow  = 5 * time.Second // what each peer takes; with 256 at a time all take four times that
			early = 7 * time.Second // how long before the renewal the fan-out begins
		)
		was, is := someServers(0, 1000), someServers(500, 1000)
		store := &list{servers: was}
		var renewAt time.Time
		w := worldOf(t, store, slow, clustertest.WithOptions(cluster.WithTrace(&cluster.Trace{
			Renewed: func(_, renewIn time.Duration) { renewAt = time.Now().Add(renewIn) },
		})))
		n := w.Join()
		store.set(is)

		time.Sleep(time.Until(renewAt) - early)
		done := make(chan *cluster.Response, 1)
		start := time.Now()
		go func() {
			res, err := n.RPCluster(t.Context(), cluster.Request{Path: "/things"})
			if err != nil {
				t.Error(err)
			}
			done <- res
		}()

		before, after := idsOf(was), idsOf(is)
		var res *cluster.Response
		var swapped time.Duration // after how long the view was seen to be another
		for res == nil {
			asked := time.Now()
			ids, status := idsOf(n.Servers()), n.Status()
			if took := time.Since(asked); took > 0 {
				t.Errorf("looking at the view took %v", took)
			}
			switch {
			case swapped == 0 && slices.Equal(ids, before):
			case slices.Equal(ids, after):
				if swapped == 0 {
					swapped = time.Since(start)
				}
			default:
				t.Fatalf("after %v the view has %d servers from %s on: neither the old nor the new", time.Since(start), len(ids), ids[1])
			}
			if status.State != cluster.Registered || status.Servers != len(before) {
				t.Errorf("after %v: %s with %d servers", time.Since(start), status.State, status.Servers)
			}
			select {
			case res = <-done:
			case <-time.After(100 * time.Millisecond):
			}
		}
		took := time.Since(start)
		if swapped == 0 || swapped < early || swapped >= took {
			t.Errorf("the view changed after %v, the fan-out took %v: want the change within it", swapped, took)
		}
		got := idsOfOutcomes(res.Results)
		if len(res.Failures) > 0 {
			t.Errorf("%d failures, the first: %v", len(res.Failures), res.Failures[0].Err)
		}
		if want := before[1:]; !slices.Equal(got, want) {
			t.Errorf("%d results, from %s to %s; want those of the view that the call began with: %d, from %s to %s",
				len(got), got[0], got[len(got)-1], len(want), want[0], want[len(want)-1])
		}
	})
}
