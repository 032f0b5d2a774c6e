package cluster_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/mit"
)

// TestOutage has mIT away for ten leases of a thousand nodes, and mST for four of these, so that
// all tokens expire. Each node must be registered again without a restart soon after mIT is back,
// and they must not all come at once: neither then nor when they next renew.
//
// How even they come is measured in tenths of the time that it takes all of them to come back:
// wherever such a tenth begins, it may have at most twice the mean.
func TestOutage(t *testing.T) {
	for name, fault := range map[string]clustertest.Fault{
		"refusing": clustertest.Refuse,
		"hanging":  clustertest.Hang,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { testOutage(t, fault) })
		})
	}
}

func testOutage(t *testing.T, fault clustertest.Fault) {
	t.Helper()
	const (
		nodes     = 1000
		lease     = 6 * time.Minute
		tokenLife = 3 * lease

		patience = time.Minute // the longest pause between two tries, the timeout of one, and some
	)
	registrations := &arrivals{Memory: mit.NewMemory()}
	w := clustertest.Start(t, 0,
		clustertest.WithLease(lease),
		clustertest.WithTokenTTL(tokenLife),
		clustertest.WithStore(registrations),
		clustertest.WithConfig(func(cfg *cluster.Config) { cfg.Management = false }))
	for range nodes { // all at the same instant, as after a deployment
		n := w.Add()
		go func() {
			if _, err := n.Register(t.Context()); err != nil {
				t.Error(err)
			}
		}()
	}
	states := func() map[cluster.State]int {
		synctest.Wait()
		count := make(map[cluster.State]int)
		for _, n := range w.Nodes {
			count[n.Status().State]++
		}
		return count
	}
	if got := states(); got[cluster.Registered] != nodes {
		t.Fatalf("at first: %v", got)
	}

	time.Sleep(lease)
	w.Network.Fault(clustertest.Any, clustertest.RegistryHost, fault)
	time.Sleep(4 * lease)
	w.Network.Fault(clustertest.Any, clustertest.TokenHost, fault)
	time.Sleep(4 * lease)
	w.Network.Fault(clustertest.Any, clustertest.TokenHost, nil)
	time.Sleep(2 * lease)
	if got := states(); got[cluster.Lost] != nodes {
		t.Errorf("after ten leases without mIT: %v, want all lost", got)
	}
	registrations.take()
	w.Network.Fault(clustertest.Any, clustertest.RegistryHost, nil)
	back := time.Now()
	time.Sleep(patience)
	if got := states(); got[cluster.Registered] != nodes {
		t.Errorf("%v after mIT came back: %v, want all registered", patience, got)
	}
	for _, n := range w.Nodes {
		if got := n.Status().Registration(); got != "registered" {
			t.Fatalf("%s: REGISTRATION_STATUS is %q", n.ID, got)
		}
	}
	recovery := registrations.take()
	if len(recovery) != nodes {
		t.Fatalf("%d registrations in %v, want one of each node", len(recovery), patience)
	}
	took := recovery[nodes-1].Sub(back)
	checkSpread(t, "registrations after the outage", recovery, took/10)

	// The next renewals are no denser: each is as far from the others as the registrations were,
	// give or take its jitter.
	time.Sleep(lease - patience)
	renewals := registrations.take()
	if len(renewals) != nodes {
		t.Fatalf("%d renewals in the lease after that, want one of each node", len(renewals))
	}
	checkSpread(t, "next renewals", renewals, took/10)
}

// checkSpread checks that no stretch of time of that length has more than two tenths of all
// arrivals.
func checkSpread(t *testing.T, what string, at []time.Time, length time.Duration) {
	t.Helper()
	peak := 0
	for i := range at { // wherever the fullest stretch is, one as full begins with an arrival
		end, _ := slices.BinarySearchFunc(at, at[i].Add(length), time.Time.Compare)
		peak = max(peak, end-i)
	}
	share := float64(peak) / float64(len(at))
	t.Logf("%s: %d within %v, at most %d of them in %v: %.2f times a tenth", what, len(at), at[len(at)-1].Sub(at[0]), peak, length, 10*share)
	if share > 0.2 {
		t.Errorf("%s: %d of %d came within %v", what, peak, len(at), length)
	}
}

// arrivals is a store that notes when servers register or renew, and tells each of itself alone:
// a thousand lists of a thousand servers are another test's concern.
type arrivals struct {
	*mit.Memory

	mu sync.Mutex // guards the field below
	at []time.Time
}

func (a *arrivals) Put(ctx context.Context, reg mit.Registration, life time.Duration) (mit.Resource, error) {
	a.mu.Lock()
	a.at = append(a.at, time.Now())
	a.mu.Unlock()
	now := time.Now()
	return mit.Resource{ID: mit.ResourceID(reg.Type), Type: reg.Type, Servers: []cluster.Server{
		{ServerID: reg.ServerID, ClusterBaseURL: reg.ClusterBaseURL, CreatedAt: now, UpdatedAt: now},
	}}, nil
}

// take gives the arrivals since it was last called.
func (a *arrivals) take() []time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.at
	a.at = nil
	return at
}

// TestPeersAnswering500 has ten of ten peers fail, but answer: they live, so all of them stay.
func TestPeersAnswering500(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 11)
		for _, n := range w.Nodes {
			w.Network.Fault(clustertest.Any, n.Host, clustertest.Status(500))
		}
		res, err := w.Nodes[0].RPCluster(t.Context(), cluster.Request{Path: "/things"})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // for what a call leaves to do beside it
		if len(res.Results) != 0 || len(res.Failures) != 10 {
			t.Errorf("%d results and %d failures, want 10 failures", len(res.Results), len(res.Failures))
		}
		for _, o := range res.Failures {
			se, ok := errors.AsType[*cluster.StatusError](o.Err)
			if !ok || se.Code != 500 || o.Kind != cluster.KindStatus || o.Evicted || o.EvictionSkipped != nil {
				t.Errorf("%s: %s failure, evicted: %v, spared: %v: %v", o.Server.ServerID, o.Kind, o.Evicted, o.EvictionSkipped, o.Err)
			}
		}
		if got := len(w.Registered()); got != 11 {
			t.Errorf("the registry lists %d servers, want 11", got)
		}
		for _, n := range w.Nodes {
			if got := len(n.Servers()); got != 11 {
				t.Errorf("%s knows %d servers, want 11", n.ID, got)
			}
		}
	})
}
