// Package simulation runs a cluster through days of random faults on a virtual clock. It checks
// what must hold at any time, and what must hold after recovery.
//
// A run is a list of events. Nodes restart, crash, leave, join and call each other. The network is
// partitioned, and the registry (mIT) and the token service (mST) fail. The kind, the time and the
// nodes of each event are drawn from a seed. Run needs a bubble of testing/synctest.
package simulation

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

const (
	lease = 8 * time.Hour

	// gracePeriod is how long the registry lists a server that does not renew.
	gracePeriod = lease * 3 / 2

	// Most nodes do not notice the shortest fault. The longest costs all nodes their leases.
	shortestFault = 10 * time.Second
	longestFault  = lease * 5 / 4
)

// TB is what a run needs of a test. A testing.TB is a TB.
type TB interface {
	clustertest.TB
	Errorf(format string, args ...any)
	Failed() bool
	Log(args ...any)
}

// Options describe a run.
type Options struct {
	Seed     uint64
	Nodes    int
	Duration time.Duration // of the faults, on the virtual clock
	Verbose  bool          // log the history of a run that does not fail, too
}

// Run runs one simulation in the bubble of the caller, and reports what it finds to t. The same
// options give almost the same run: nodes draw their jitter elsewhere, and goroutines that wake at
// the same instant run in any order.
func Run(t TB, opts Options) {
	t.Helper()
	s := &simulation{t: t, opts: opts, rand: rand.New(rand.NewPCG(opts.Seed, 0)), start: time.Now()}
	s.World = clustertest.Start(t, opts.Nodes,
		clustertest.WithLease(lease),
		clustertest.WithTokenTTL(lease), // shorter than the longest fault
		clustertest.WithOptions(cluster.WithTrace(s.trace())))
	for _, n := range s.Nodes {
		s.members = append(s.members, &member{Node: n, running: true})
	}
	s.plan()
	s.runEvents()
	if !t.Failed() {
		s.checkConverged()
	}
	s.work.Wait()
	t.Log(s.summary())
	if t.Failed() || opts.Verbose {
		t.Log("events:\n" + strings.Join(s.history, "\n"))
	}
}

// A simulation is a world, the events to come, and the expected state of the nodes.
type simulation struct {
	*clustertest.World

	t       TB
	opts    Options
	rand    *rand.Rand // used only by the goroutine of Run, in the order of the events
	start   time.Time
	events  []event // sorted by time
	members []*member
	work    sync.WaitGroup // calls in flight
	history []string

	partitioned, registryFails, tokensFail bool

	fanOuts, results, failures, evicted, skipped, lost, renewed, renewalsFailed atomic.Int64
}

// An event runs at a time after the start.
type event struct {
	at time.Duration
	do func()
}

func byTime(a, b event) int { return cmp.Compare(a.at, b.at) }

// plan draws the events. Their numbers are those of a week, and are scaled to the duration. The end
// of a fault is added when the fault begins.
func (s *simulation) plan() {
	const week = 7 * 24 * time.Hour
	for _, kind := range []struct {
		perWeek int
		do      func()
	}{
		{80, s.callPeers},
		{10, s.restart},
		{8, s.crash},
		{4, s.leave},
		{6, s.join},
		{2, s.forgeDeparture},
		{8, s.partition},
		{4, s.registryFault},
		{3, s.tokenFault},
	} {
		count := int(math.Ceil(float64(kind.perWeek) * float64(s.opts.Duration) / float64(week)))
		for range count {
			s.events = append(s.events, event{time.Duration(s.rand.Int64N(int64(s.opts.Duration))), kind.do})
		}
	}
	if s.rand.IntN(2) == 0 { // recovery begins from one of two bad states
		s.events = append(s.events, event{s.opts.Duration - time.Minute, s.splitOffThird})
	} else {
		s.events = append(s.events, event{s.opts.Duration, s.resetRegistry})
	}
	slices.SortStableFunc(s.events, byTime)
}

// runEvents runs the events of the simulated time, and checks the invariants after each.
func (s *simulation) runEvents() {
	for len(s.events) > 0 && !s.t.Failed() {
		next := s.events[0]
		s.events = s.events[1:]
		sleep(time.Until(s.start.Add(next.at)))
		if next.at > s.opts.Duration {
			return
		}
		next.do()
		synctest.Wait()
		s.checkInvariants()
	}
}

// sleep lets time pass, and returns when all other goroutines of the bubble are blocked.
func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// after adds an event at d from now.
func (s *simulation) after(d time.Duration, do func()) {
	e := event{time.Since(s.start) + d, do}
	i, _ := slices.BinarySearchFunc(s.events, e, byTime)
	s.events = slices.Insert(s.events, i, e)
}

// between draws a duration. Its logarithm is uniform, so that each doubling is equally likely.
func (s *simulation) between(shortest, longest time.Duration) time.Duration {
	return time.Duration(float64(shortest) * math.Pow(float64(longest)/float64(shortest), s.rand.Float64()))
}

// within draws a duration below d.
func (s *simulation) within(d time.Duration) time.Duration {
	return time.Duration(s.rand.Int64N(int64(d)))
}

// record adds a line to the history.
func (s *simulation) record(format string, args ...any) {
	s.history = append(s.history, fmt.Sprintf("%12s  ", time.Since(s.start).Round(time.Millisecond))+fmt.Sprintf(format, args...))
}

func (s *simulation) summary() string {
	return fmt.Sprintf("%d nodes in all; %d fan-outs with %d results and %d failures; %d evictions, %d skipped; %d renewals, %d failed, %d leases lost",
		len(s.members), s.fanOuts.Load(), s.results.Load(), s.failures.Load(),
		s.evicted.Load(), s.skipped.Load(), s.renewed.Load(), s.renewalsFailed.Load(), s.lost.Load())
}
