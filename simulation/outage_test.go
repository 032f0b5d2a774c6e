package main

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/internal/testrun"
	"github.com/mimiktech/cluster/mit"
)

// TestOutage takes the registry away from many nodes for four leases, or in full for ten. For four
// of these it also takes the token service away, so that all tokens expire. Soon after the registry
// works again each node must be registered. Neither these registrations nor the next renewals may
// come at the same time.
//
// The measure is a tenth of the time in which all nodes register again. Any interval of this length
// may have at most twice the mean.
func TestOutage(t *testing.T) {
	nodes, length, faults := 300, 4, map[string]clustertest.Fault{"hanging": clustertest.Hang}
	if testrun.Full(t, "300 nodes instead of a thousand, and an outage of four leases, in which the registry hangs") {
		nodes, length, faults["refusing"] = 1000, 10, clustertest.Refuse
	}
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { testOutage(t, nodes, length, fault) })
		})
	}
}

// testOutage runs an outage of nodes for length leases, which must be at least four.
func testOutage(t *testing.T, nodes, length int, fault clustertest.Fault) {
	t.Helper()
	const (
		lease    = 6 * time.Minute
		tokenTTL = 3 * lease
		recovery = time.Minute // above the longest pause between two attempts and the timeout of one
	)
	store := &arrivalStore{Memory: mit.NewMemory()}
	w := clustertest.Start(t, 0,
		clustertest.WithLease(lease),
		clustertest.WithTokenTTL(tokenTTL),
		clustertest.WithStore(store),
		clustertest.WithConfig(func(cfg *cluster.Config) { cfg.Management = false }))
	registerAll(t, w, nodes, 0) // at the same instant, as after a deployment
	wantAll(t, w, cluster.Registered, "before the outage")

	time.Sleep(lease)
	w.Network.Fault(clustertest.Any, clustertest.RegistryHost, fault)
	rest := time.Duration(length-4) * lease // without the fault of the token service
	time.Sleep(rest * 2 / 3)
	w.Network.Fault(clustertest.Any, clustertest.TokenHost, fault)
	time.Sleep(4 * lease)
	w.Network.Fault(clustertest.Any, clustertest.TokenHost, nil)
	time.Sleep(rest / 3)
	wantAll(t, w, cluster.Lost, "at the end of the outage")

	store.take()
	w.Network.Fault(clustertest.Any, clustertest.RegistryHost, nil)
	end := time.Now()
	time.Sleep(recovery)
	wantAll(t, w, cluster.Registered, "after the recovery time")
	for _, n := range w.Nodes {
		if got := n.Status().Env()["REGISTRATION_STATUS"]; got != "registered" {
			t.Fatalf("%s: REGISTRATION_STATUS is %q", n.ID, got)
		}
	}
	registrations := store.take()
	if len(registrations) != nodes {
		t.Fatalf("%d registrations in %v, want one of each node", len(registrations), recovery)
	}
	tenth := registrations[nodes-1].Sub(end) / 10
	checkSpread(t, "registrations after the outage", registrations, tenth)

	// Jitter moves each renewal, so the renewals are not denser than the registrations.
	time.Sleep(lease - recovery)
	renewals := store.take()
	if len(renewals) != nodes {
		t.Fatalf("%d renewals in the next lease, want one of each node", len(renewals))
	}
	checkSpread(t, "next renewals", renewals, tenth)
}

// wantAll checks that all nodes are in a state.
func wantAll(t *testing.T, w *clustertest.World, want cluster.State, when string) {
	t.Helper()
	synctest.Wait()
	count := map[cluster.State]int{}
	for _, n := range w.Nodes {
		count[n.Status().State]++
	}
	if count[want] != len(w.Nodes) {
		t.Fatalf("%s: %v, want all %s", when, count, want)
	}
}

// checkSpread checks that at most two tenths of the arrivals are in any interval of the length.
func checkSpread(t *testing.T, what string, arrivals []time.Time, length time.Duration) {
	t.Helper()
	peak := 0
	for i, at := range arrivals { // a fullest interval begins with an arrival
		end, _ := slices.BinarySearchFunc(arrivals, at.Add(length), time.Time.Compare)
		peak = max(peak, end-i)
	}
	count := len(arrivals)
	share := float64(peak) / float64(count)
	t.Logf("%s: %d within %v, at most %d of them in %v: %.2f times a tenth", what, count, arrivals[count-1].Sub(arrivals[0]), peak, length, 10*share)
	if share > 0.2 {
		t.Errorf("%s: %d of %d arrived within %v", what, peak, count, length)
	}
}

// An arrivalStore records when servers register or renew. It lists each server only itself, because
// a thousand lists of a thousand servers would slow the test down.
type arrivalStore struct {
	*mit.Memory

	mu       sync.Mutex // guards the field below
	arrivals []time.Time
}

func (s *arrivalStore) Put(_ context.Context, reg mit.Registration, _ time.Duration) (mit.Resource, error) {
	now := time.Now()
	s.mu.Lock()
	s.arrivals = append(s.arrivals, now)
	s.mu.Unlock()
	return mit.Resource{ID: mit.ResourceID(reg.Type), Type: reg.Type, Servers: []cluster.Server{
		{ServerID: reg.ServerID, ClusterBaseURL: reg.ClusterBaseURL, CreatedAt: now, UpdatedAt: now},
	}}, nil
}

// take returns the arrivals since the last call.
func (s *arrivalStore) take() []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	arrivals := s.arrivals
	s.arrivals = nil
	return arrivals
}
