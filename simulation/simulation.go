// Command simulation runs clusters through weeks of random faults on a virtual clock. It checks
// what must hold at any time, and what must hold after recovery.
//
//	go run ./simulation -for 10m     # as many seeds as fit
//	go run ./simulation -seeds 1000  # this many
//	go run ./simulation -seed 17     # one, with its history
//
// A seed draws a scenario: a cluster, its policies, and a plan of events. The plan is data. Nodes
// restart, crash, leave, join, move, freeze and call each other. The network is partitioned or
// slow, and the registry (mIT), the token service (mST) or a peer fail in many ways. A run executes
// the plan in a bubble of testing/synctest. A seed that fails is reduced to a short scenario.
//
// The model is in four files: nodes.go, faults.go, invariants.go and marks.go.
package main

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/internal/plan"
)

// serviceType is the type of the nodes.
const serviceType = "mds"

// requestTimeout is the default of Config.RequestTimeout.
const requestTimeout = 10 * time.Second

// afterEffect is how long after a fault its failures may still have an effect: a call in flight has
// several attempts, and a decision on eviction at its end.
const afterEffect = 2 * time.Minute

// A TB is what a run needs of a test. A testing.TB is a TB.
type TB interface {
	clustertest.TB
	Errorf(format string, args ...any)
	Failed() bool
}

// A result is what a run has found, and how much it has done.
type result struct {
	Events    int                `json:"events"`
	Virtual   time.Duration      `json:"virtual"`
	Marks     map[string]int     `json:"marks"`
	Converged map[string]float64 `json:"converged"` // in leases, by node
	History   []string           `json:"history"`
	Summary   string             `json:"summary"`
}

// run runs a scenario in the bubble of the caller, and reports what it finds to t. log gets the log
// of all nodes; nil: no log.
func run(t TB, scenario Scenario, log *zap.Logger) result {
	t.Helper()
	s := &simulation{
		t: t, scenario: scenario, marks: newMarks(),
		processes: &processes{byHost: map[string]process{}, twins: map[string]bool{}},
		keys:      [2]cluster.Secret{"a key for tests only", ""},
		converged: map[string]float64{},
	}
	s.Schedule = plan.Schedule{Start: time.Now(), Record: s.record}
	s.signingKey.Store(s.keys[0])
	s.store = newStore(serviceType, s.processes)
	s.store.deleted = s.checkDelete
	s.store.kept = func() { s.marks.hit("a conditional delete keeps a newer entry") }
	opts := []cluster.Option{
		cluster.WithTrace(s.trace()),
		cluster.WithEviction(cluster.Eviction{Disabled: scenario.Policy.NoEviction}),
		cluster.WithPeerPolicy(cluster.PeerPolicy{VerifyWithRegistry: scenario.Policy.VerifyWithRegistry}),
	}
	if log != nil {
		opts = append(opts, cluster.WithLogger(log))
	}
	if scenario.Pipes {
		opts = append(opts, cluster.WithTransport(s.pipes))
	}
	s.World = clustertest.Start(t, 0,
		clustertest.WithLease(scenario.Lease),
		clustertest.WithTokenTTL(scenario.TokenTTL),
		clustertest.WithStore(s.store),
		clustertest.WithConfig(s.configure),
		clustertest.WithHandler(handler),
		clustertest.WithOptions(opts...))
	// Timers of other nodes would let virtual time go on for good.
	time.AfterFunc(scenario.Duration+5*scenario.Lease+time.Hour, func() { t.Errorf("the run does not end: a call or Close blocks") })
	for range scenario.Nodes {
		m := &member{Node: s.Add()}
		m.id = m.ID
		s.members = append(s.members, m)
		s.register(m)
		plan.Sleep(time.Millisecond)
	}
	for _, e := range scenario.Events {
		s.At(e.At, func() { s.execute(e) })
	}
	s.Run(scenario.Duration, func() bool { s.checkInvariants(); return !t.Failed() })
	s.EndAll()
	s.Network.Heal()
	if !t.Failed() {
		s.checkConverged()
	}
	for _, closePipe := range s.closePipes {
		closePipe()
	}
	s.work.Wait()
	plan.Sleep(afterEffect) // late requests have ended
	return result{
		Events: len(scenario.Events), Virtual: time.Since(s.Start), Marks: s.marks.counts(),
		Converged: s.converged, History: s.history, Summary: s.summary(),
	}
}

// A simulation is a world, the steps to come, and the expected state of the nodes.
type simulation struct {
	*clustertest.World
	plan.Schedule // the steps to come

	t         TB
	scenario  Scenario
	members   []*member
	processes *processes
	store     *store
	work      sync.WaitGroup // calls in flight
	history   []string
	marks     *marks
	converged map[string]float64

	closePipes []func()

	effects   effects
	twinOf    string // the id of the next node, if it is a twin
	listedOld bool   // the registry has sent an outdated list
	moves     int
	rotations int

	keys       [2]cluster.Secret // with which nodes verify tokens
	signingKey atomic.Value      // cluster.Secret: that of the token service

	fanOuts, results, failures, evicted, skipped, lost, renewed, renewalsFailed atomic.Int64
}

// execute runs an event.
func (s *simulation) execute(e Event) {
	for _, k := range kinds() {
		if k.Name == e.Kind {
			s.marks.hit("event: " + k.Name)
			k.run(s, e)
			return
		}
	}
	s.t.Fatalf("unknown kind of event %q", e.Kind)
}

// record adds a line to the history.
func (s *simulation) record(format string, args ...any) {
	s.history = append(s.history, fmt.Sprintf("%12s  ", time.Since(s.Start).Round(time.Millisecond))+fmt.Sprintf(format, args...))
}

func (s *simulation) summary() string {
	return fmt.Sprintf("%d nodes in all; %d fan-outs with %d results and %d failures; %d evictions, %d skipped; %d renewals, %d failed, %d leases lost",
		len(s.members), s.fanOuts.Load(), s.results.Load(), s.failures.Load(),
		s.evicted.Load(), s.skipped.Load(), s.renewed.Load(), s.renewalsFailed.Load(), s.lost.Load())
}

// hostOf returns the host of a base URL.
func hostOf(baseURL string) string {
	host, _, _ := strings.Cut(strings.TrimPrefix(baseURL, "http://"), "/")
	return host
}

// effects are the faults that explain what would otherwise be a violation.
type effects struct {
	mu        sync.Mutex           // guards the fields below
	hurt      map[string]time.Time // hosts that may be evicted, until when; "" for all
	disturbed map[string]time.Time // hosts that may not be listed
	last      time.Time            // when the last effect of all of them ends
}

// hurts records that healthy nodes at some hosts, or at all if none is given, may be evicted.
func (s *simulation) hurts(d time.Duration, hosts ...string) {
	s.effects.add(&s.effects.hurt, d, hosts)
	s.disturbs(d, hosts...)
}

// disturbs records that nodes at some hosts, or at all, may not be listed, although no peer evicts
// them.
func (s *simulation) disturbs(d time.Duration, hosts ...string) {
	s.effects.add(&s.effects.disturbed, d, hosts)
}

func (f *effects) add(to *map[string]time.Time, d time.Duration, hosts []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if *to == nil {
		*to = map[string]time.Time{}
	}
	until := time.Now().Add(d + afterEffect)
	if len(hosts) == 0 {
		hosts = []string{""}
	}
	for _, host := range hosts {
		switch host {
		case clustertest.RegistryHost, clustertest.TokenHost:
			host = ""
		}
		if until.After((*to)[host]) {
			(*to)[host] = until
		}
	}
	if until.After(f.last) {
		f.last = until
	}
}

// maybeHurt reports whether a healthy node at a host may be evicted.
func (f *effects) maybeHurt(host string) bool { return time.Now().Before(f.until(&f.hurt, host)) }

// disturbedUntil returns the time until which a running node at a host may be missing in the list.
func (f *effects) disturbedUntil(host string) time.Time { return f.until(&f.disturbed, host) }

func (f *effects) until(in *map[string]time.Time, host string) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return latest((*in)[host], (*in)[""])
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// undisturbedSince returns a function that reports whether there was no fault since a time.
func (s *simulation) undisturbedSince(start time.Time) func() bool {
	return func() bool {
		s.effects.mu.Lock()
		defer s.effects.mu.Unlock()
		return s.effects.last.Before(start)
	}
}
