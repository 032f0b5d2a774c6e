package clustertest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mimiktech/cluster/internal/plan"
)

// A Run is the run of one scenario of a [Simulation]. It is the [TB] of its world. Its methods must
// be called from the goroutine of the body, except for Context, Running, Pick and those that
// report.
type Run struct {
	program  TB // that the body runs in
	rand     *rand.Rand
	reduced  plan.Reduced
	kinds    []faultKind
	schedule plan.Schedule
	world    *World
	played   bool
	work     sync.WaitGroup // actions and registrations in progress

	drawnNodes, nodes   int // at the start: as drawn, and as reduced
	lease, tokenTTL     time.Duration
	duration, faultTime time.Duration // with faults: as drawn, and as reduced
	drawn               int           // events, before they were reduced
	events              []plan.Event

	mu       sync.Mutex // guards the fields below
	members  []*member
	moves    int
	problems []string
	history  []string
}

// A member is a node of a run.
type member struct {
	*Node
	running bool // and meant to be in the cluster
	frozen  bool
}

// Start starts a world with the nodes, the lease and the token lifetime of the scenario. opts may
// replace the latter two.
func (r *Run) Start(opts ...Option) *World {
	r.Helper()
	opts = slices.Concat([]Option{WithLease(r.lease), WithTokenTTL(r.tokenTTL)}, opts)
	r.world = Start(r, r.nodes, opts...)
	r.lease = r.world.opts.lease
	for _, n := range r.world.Nodes {
		r.members = append(r.members, &member{Node: n, running: true})
	}
	return r.world
}

// Play executes the plan of the scenario, and returns when the cluster has had the time to recover:
// all faults have ended, and two and a half leases have passed. Nodes that have crashed for good or
// left are still gone.
//
// The plan has faults, and calls of the actions. An action gets a source of randomness that depends
// on the scenario only. It runs in a goroutine of its own, concurrently with other actions and with
// faults. It must return at the latest a lease after the recovery. If check is not nil, it is
// called after each step of the plan, when all other goroutines are blocked. Play returns early if
// a problem is reported.
func (r *Run) Play(actions map[string]func(*rand.Rand), check func()) {
	r.Helper()
	switch {
	case r.world == nil:
		r.Fatal("clustertest: Play was called before Start")
	case r.played:
		r.Fatal("clustertest: Play was called twice")
	}
	r.played = true
	if check == nil {
		check = func() {}
	}
	r.drawEvents(actions)
	r.schedule.Start = time.Now()
	for _, e := range r.events {
		r.schedule.At(e.At, func() { r.execute(e, actions) })
	}
	r.schedule.Run(r.faultTime, func() bool { check(); return !r.Failed() })
	r.schedule.EndAll()
	r.world.Network.Heal()
	if !r.Failed() {
		plan.Sleep(r.lease*5/2 + settleTime)
		check()
	}
	r.waitForActions()
}

// waitForActions waits until all actions have returned, for a lease at most.
func (r *Run) waitForActions() {
	done := make(chan struct{})
	go func() {
		r.work.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(r.lease + settleTime):
		r.Errorf("an action has not returned, although all faults have ended")
	}
}

// settleTime is how long calls in flight may take after the last fault.
const settleTime = 2 * time.Minute

// Running returns the nodes that are meant to be in the cluster: those that run, and are neither
// leaving nor frozen. Each is a copy: if the node restarts, the Cluster of the copy is closed.
func (r *Run) Running() []*Node {
	r.mu.Lock()
	defer r.mu.Unlock()
	var nodes []*Node
	for _, m := range r.members {
		if m.running && !m.frozen {
			n := *m.Node // later changes of the node do not affect the copy
			nodes = append(nodes, &n)
		}
	}
	return nodes
}

// Pick returns one of the running nodes. There is always one.
func (r *Run) Pick(rnd *rand.Rand) *Node {
	nodes := r.Running()
	return nodes[rnd.IntN(len(nodes))]
}

// Helper does nothing. It is there for [TB].
func (*Run) Helper() {}

// Context returns the context of the run, which ends with it.
func (r *Run) Context() context.Context { return r.program.Context() }

// Cleanup calls f when the body has returned, and the context has ended.
func (r *Run) Cleanup(f func()) { r.program.Cleanup(f) }

// Errorf reports a problem: the scenario fails. Like [fmt.Errorf], it supports %w.
func (r *Run) Errorf(format string, args ...any) { r.report(fmt.Errorf(format, args...)) }

// Fatal reports a problem and ends the goroutine.
func (r *Run) Fatal(args ...any) {
	r.report(errors.New(fmt.Sprint(args...)))
	runtime.Goexit()
}

// Fatalf reports a problem and ends the goroutine.
func (r *Run) Fatalf(format string, args ...any) {
	r.report(fmt.Errorf(format, args...))
	runtime.Goexit()
}

// Logf adds a line to the history of the run, which is part of a failure.
func (r *Run) Logf(format string, args ...any) {
	r.addHistory(r.now() + "  " + fmt.Sprintf(format, args...))
}

// Failed reports whether a problem has been reported.
func (r *Run) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.problems) > 0
}

// report adds the first line of a problem to the problems, and all of it to the history.
func (r *Run) report(problem error) {
	first, _, _ := strings.Cut(problem.Error(), "\n")
	r.mu.Lock()
	defer r.mu.Unlock()
	r.problems = append(r.problems, r.now()+"  "+first)
	r.history = append(r.history, r.now()+"  PROBLEM: "+problem.Error())
}

func (r *Run) addHistory(line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.history = append(r.history, line)
}

// now returns the time of the scenario.
func (r *Run) now() string {
	if bubble() == "" {
		return "  at the end"
	}
	return fmt.Sprintf("%12s", time.Since(r.schedule.Start).Round(time.Millisecond))
}

// describe describes the scenario without its events.
func (r *Run) describe() string {
	return fmt.Sprintf("%d nodes, lease %v, token TTL %v; faults until %v", r.nodes, r.lease, r.tokenTTL, r.faultTime)
}

// drawEvents draws the plan from faults and actions, and selects the events of the reduced
// scenario.
func (r *Run) drawEvents(actions map[string]func(*rand.Rand)) {
	var kinds []plan.Kind
	for _, name := range slices.Sorted(maps.Keys(actions)) {
		kinds = append(kinds, plan.Kind{
			Name: name, Weight: max(1, actionWeight/len(actions)), Action: true,
			Draw: func(p *plan.Planner, e *plan.Event) { e.Seed = p.Uint64() },
		})
	}
	for _, k := range r.kinds {
		kinds = append(kinds, k.Kind)
	}
	p := &plan.Planner{Rand: r.rand, Lease: r.lease, Duration: r.duration, Nodes: r.drawnNodes}
	count := int(math.Round(10 * math.Pow(5, r.rand.Float64())))
	events := p.Draw(plan.Choose(r.rand, kinds), count)
	r.drawn = len(events)
	r.events = r.reduced.Select(events)
}

// actionWeight is the weight of all actions together.
const actionWeight = 80

// execute begins an event.
func (r *Run) execute(e plan.Event, actions map[string]func(*rand.Rand)) {
	if action, ok := actions[e.Kind]; ok {
		r.Logf("%s", e.Kind)
		r.goWork(func() { action(rand.New(rand.NewPCG(e.Seed, 0))) })
		return
	}
	for _, k := range r.kinds {
		if k.Name == e.Kind {
			k.run(r, e)
		}
	}
}

// goWork runs f in a goroutine that Play waits for.
func (r *Run) goWork(f func()) {
	r.work.Go(func() {
		defer r.recoverPanic()
		f()
	})
}
