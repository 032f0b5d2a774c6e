package main

import (
	"context"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/internal/fixedworld"
)

// TestIdleFootprint checks that a Cluster that knows a thousand servers, and makes no calls, costs
// one goroutine, less than a MiB, and its renewals.
func TestIdleFootprint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const clusters, servers, lease = 10, 1000, time.Hour
		store := fixedworld.NewStore(fixedworld.Servers(0, servers-1))
		worlds := make([]*clustertest.World, clusters)
		for i := range worlds {
			worlds[i] = fixedworld.Start(t, store, 0, clustertest.WithLease(lease))
			first := worlds[i].Join() // makes the registry fill its cache
			first.Close()
			worlds[i].Network.Remove(first.Host)
			worlds[i].Nodes = nil
		}
		heap, goroutines := heapInUse(), clusterGoroutines()
		for _, w := range worlds {
			w.Join()
		}
		time.Sleep(2 * time.Minute) // beyond the recheck of nodes that are alone
		synctest.Wait()

		if got := clusterGoroutines() - goroutines; got != clusters {
			t.Errorf("%d clusters have %d goroutines, want one each", clusters, got)
		}
		each := (heapInUse() - heap) / clusters
		t.Logf("a cluster of %d servers holds %d KiB, %d bytes per server", servers, each>>10, each/servers)
		if each >= 1<<20 {
			t.Errorf("a cluster of %d servers holds %d bytes, want less than a MiB", servers, each)
		}
		checkOnlyRenewals(t, worlds, servers, lease)
	})
}

// checkOnlyRenewals checks that for two leases nodes only renew, and fetch tokens. The earliest
// renewal is after two thirds of the lease, less a tenth for jitter.
func checkOnlyRenewals(t *testing.T, worlds []*clustertest.World, servers int, lease time.Duration) {
	t.Helper()
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
				t.Errorf("%s %s%s of an idle node", x.Method, x.To, x.Path)
			}
		})
	}
	time.Sleep(2 * lease)
	synctest.Wait()
	mu.Lock()
	defer mu.Unlock()
	if renewals < 2*len(worlds) {
		t.Errorf("%d renewals of %d clusters in two leases", renewals, len(worlds))
	}
}

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC() // frees what the first one finalized, and what pools kept until then
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// clusterGoroutines returns the number of goroutines that run code of package cluster.
func clusterGoroutines() int {
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

// TestRenewalDuringFanOut replaces the view of a thousand servers while a call is in flight. The
// outcomes are those of the servers at the start of the call. Readers of the view do not wait, and
// never see a mix of both views.
func TestRenewalDuringFanOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const (
			delay = 5 * time.Second // of each peer: with 256 in flight the call takes four times as long
			early = 7 * time.Second // the call begins that long before the renewal
		)
		oldServers, newServers := fixedworld.Servers(0, 1000), fixedworld.Servers(500, 1000)
		store := fixedworld.NewStore(oldServers)
		var renewAt time.Time
		w := fixedworld.Start(t, store, delay, clustertest.WithOptions(cluster.WithTrace(&cluster.Trace{
			Renewal: func(ctx context.Context, _ cluster.RenewalInfo) (context.Context, func(cluster.RenewalResult)) {
				return ctx, func(r cluster.RenewalResult) { renewAt = time.Now().Add(r.RenewIn) }
			},
		})))
		n := w.Join()
		store.Set(newServers)

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
		before, after := idsOf(oldServers), idsOf(newServers)
		res, changed := watchView(t, n, before, after, done)

		if took := time.Since(start); changed < early || changed >= took {
			t.Errorf("the view changed after %v, the call took %v: want the change within the call", changed, took)
		}
		if len(res.Failures) > 0 {
			t.Errorf("%d failures, the first: %v", len(res.Failures), res.Failures[0].Err)
		}
		got := make([]string, len(res.Results))
		for i, o := range res.Results {
			got[i] = o.Server.ServerID
		}
		if want := before[1:]; !slices.Equal(got, want) {
			t.Errorf("%d results, from %s to %s; want those of the first view: %d, from %s to %s",
				len(got), got[0], got[len(got)-1], len(want), want[0], want[len(want)-1])
		}
	})
}

// watchView reads the view until the call is done. It returns the response, and after how long the
// view had changed from before to after.
func watchView(t *testing.T, n *clustertest.Node, before, after []string, done <-chan *cluster.Response) (*cluster.Response, time.Duration) {
	t.Helper()
	start := time.Now()
	var changed time.Duration
	for {
		readAt := time.Now()
		ids, status := idsOf(n.Servers()), n.Status()
		if took := time.Since(readAt); took > 0 {
			t.Errorf("reading the view took %v", took)
		}
		switch {
		case changed == 0 && slices.Equal(ids, before):
		case slices.Equal(ids, after):
			if changed == 0 {
				changed = time.Since(start)
			}
		default:
			t.Fatalf("after %v the view has %d servers, from %s on: neither the old nor the new view", time.Since(start), len(ids), ids[1])
		}
		if status.State != cluster.Registered || status.Servers != len(before) {
			t.Errorf("after %v: %s with %d servers", time.Since(start), status.State, status.Servers)
		}
		select {
		case res := <-done:
			return res, changed
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func idsOf(servers []cluster.Server) []string {
	ids := make([]string, len(servers))
	for i, s := range servers {
		ids[i] = s.ServerID
	}
	return ids
}
