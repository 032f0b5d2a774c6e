package clustertest

import (
	"cmp"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster/internal/plan"
)

// The environment variables of [Simulation.Test].
const (
	replayEnv = "CLUSTERTEST_REPLAY"
	seedsEnv  = "CLUSTERTEST_SEEDS"
)

// A Simulation runs a service through random faults, in virtual time. The zero value has the
// defaults of all fields.
//
// Each seed draws a scenario: the number of nodes, the lease, and a plan of faults and of actions
// of the test. The body of the test runs the scenario: it starts the nodes with [Run.Start], passes
// the actions to [Run.Play], and checks the service.
//
//	func TestOrders(t *testing.T) {
//		clustertest.Simulation{}.Test(t, func(r *clustertest.Run) {
//			o := newOrders()
//			r.Start(clustertest.WithHandler(o.handler))
//			r.Play(map[string]func(*rand.Rand){
//				"order": func(rnd *rand.Rand) { o.order(r.Context(), r.Pick(rnd)) },
//			}, nil)
//			if lost := o.lost(); len(lost) > 0 {
//				r.Errorf("lost after recovery: %v", lost)
//			}
//		})
//	}
//
// A scenario that fails is reduced: faults, actions, nodes and time that are not needed for the
// failure are removed. The rest is printed, with the command that replays it. The order of
// goroutines and the jitter of nodes differ between runs, so a rare failure may need several runs.
type Simulation struct {
	// Seeds is the number of scenarios, 20 by default. FirstSeed is the seed of the first one, 1 by
	// default; the others follow.
	Seeds     int
	FirstSeed uint64
	// MaxNodes is the largest number of nodes that a scenario starts with, 6 by default and 2 at
	// least.
	MaxNodes int
	// Duration is the longest time with faults, in virtual time. The default is a day.
	Duration time.Duration
	// Without are kinds of faults to leave out, see [FaultKinds].
	Without []string
}

// Test runs the scenarios one after the other. If one fails, the test fails.
//
// The environment variable CLUSTERTEST_SEEDS replaces Seeds. If CLUSTERTEST_REPLAY is set, as in
// the command that a failure prints, only that scenario is run.
func (s Simulation) Test(t *testing.T, body func(*Run)) {
	t.Helper()
	s.checkFields(t)
	if text := os.Getenv(replayEnv); text != "" { //nolint:forbidigo // a choice for a run of a test
		s.replay(t, text, body)
		return
	}
	if text := os.Getenv(seedsEnv); text != "" { //nolint:forbidigo // as above
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("clustertest: %s=%q is not a number of seeds", seedsEnv, text)
		}
		s.Seeds = n
	}
	for seed := range s.seeds {
		passed := t.Run(fmt.Sprintf("seed=%d", seed), func(sub *testing.T) {
			if f := s.find(sub, t.Name(), seed, body); f != nil {
				sub.Fatal(f)
			}
		})
		if !passed {
			return
		}
	}
}

// FindFailure runs the scenarios until one fails, and returns the reduced failure; nil if all pass.
// The test does not fail. FindFailure is for tests that plant a bug, and check that the simulation
// finds it.
func (s Simulation) FindFailure(t *testing.T, body func(*Run)) *Failure {
	t.Helper()
	s.checkFields(t)
	for seed := range s.seeds {
		if f := s.find(t, t.Name(), seed, body); f != nil {
			return f
		}
	}
	return nil
}

// A Failure is a scenario that fails, reduced to what is needed for it.
type Failure struct {
	Seed     uint64
	Problems []string // that the run reported
	Scenario string   // numbered lines, at most 15, and the command that replays it
	History  []string // what happened when, with the lines of [Run.Logf]
}

// String returns the scenario, followed by its history.
func (f *Failure) String() string {
	return fmt.Sprintf("the scenario of seed %d fails\n%s\n%s", f.Seed, f.Scenario, strings.Join(f.History, "\n"))
}

// seeds yields the seeds.
func (s Simulation) seeds(yield func(uint64) bool) {
	first := cmp.Or(s.FirstSeed, 1)
	for i := range cmp.Or(s.Seeds, 20) {
		if !yield(first + uint64(i)) {
			return
		}
	}
}

// find runs the scenario of a seed, and reduces it if it fails.
func (s Simulation) find(t *testing.T, name string, seed uint64, body func(*Run)) *Failure {
	t.Helper()
	one := plan.Reduced{Seed: seed}
	r := s.run(t, one, body)
	if !r.Failed() {
		return nil
	}
	whole := plan.Size{Nodes: r.nodes, Duration: r.duration, Events: r.drawn}
	failing := r
	f := plan.Shrink(plan.Failure{Reduced: one, Problems: r.problems}, whole, func(smaller plan.Reduced) []string {
		if r := s.run(t, smaller, body); r.Failed() {
			failing = r
			return r.problems
		}
		return nil
	})
	return &Failure{
		Seed: seed, Problems: failing.problems, History: failing.history,
		Scenario: plan.Describe(failing.describe(), failing.events, f.Problems, replayCommand(name, f.Reduced)),
	}
}

// replayCommand returns the command that runs one scenario of a test.
func replayCommand(name string, one plan.Reduced) string {
	parts := strings.Split(name, "/")
	for i, part := range parts {
		parts[i] = "^" + regexp.QuoteMeta(part) + "$"
	}
	return fmt.Sprintf("%s='%s' go test -run '%s'", replayEnv, one.Args(), strings.Join(parts, "/"))
}

// replay runs the scenario with the given flags, and logs its history.
func (s Simulation) replay(t *testing.T, text string, body func(*Run)) {
	t.Helper()
	var one plan.Reduced
	flags := flag.NewFlagSet(replayEnv, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	one.AddFlags(flags)
	if err := flags.Parse(strings.Fields(text)); err != nil {
		t.Fatalf("clustertest: %s: %v", replayEnv, err)
	}
	r := s.run(t, one, body)
	t.Logf("%s\n%s", r.describe(), strings.Join(r.history, "\n"))
	for _, problem := range r.problems {
		t.Error(problem)
	}
}

// run runs a scenario in a bubble of its own. A bubble panics if all of its goroutines are blocked
// for good.
func (s Simulation) run(t *testing.T, one plan.Reduced, body func(*Run)) (r *Run) {
	t.Helper()
	r = s.newRun(one)
	defer r.recoverPanic()
	synctest.Test(t, func(t *testing.T) {
		t.Helper()
		err := Program(t.Context(), func(p TB) {
			defer r.recoverPanic()
			r.program = p
			r.schedule = plan.Schedule{Start: time.Now(), Record: r.Logf}
			// The timers of nodes would otherwise keep virtual time going without an end.
			defer time.AfterFunc(10*(r.duration+r.lease), func() {
				panic("clustertest: the body of a simulation does not return: " + one.Args()) //nolint:forbidigo // it would run for good
			}).Stop()
			body(r)
		})
		if err != nil { // a cleanup has failed
			r.Errorf("%v", err)
		}
	})
	return r
}

// checkFields fails the test if a field is invalid.
func (s Simulation) checkFields(t *testing.T) {
	t.Helper()
	for _, name := range s.Without {
		if !slices.Contains(FaultKinds(), name) {
			t.Fatalf("clustertest: Simulation.Without: unknown kind of fault %q; known are %q", name, FaultKinds())
		}
	}
}

// newRun draws all of a scenario except its events, which depend on the actions.
func (s Simulation) newRun(one plan.Reduced) *Run {
	rnd := rand.New(rand.NewPCG(one.Seed, 0))
	longest := cmp.Or(s.Duration, 24*time.Hour)
	r := &Run{
		rand: rnd, reduced: one, kinds: slices.DeleteFunc(faultKinds(), func(k faultKind) bool { return slices.Contains(s.Without, k.Name) }),
		drawnNodes: 2 + rnd.IntN(max(1, cmp.Or(s.MaxNodes, 6)-1)),
		lease:      plan.LogUniform(rnd, longest/50, longest/4).Round(time.Second),
		duration:   plan.LogUniform(rnd, longest/2, longest).Round(time.Second),
	}
	r.tokenTTL = plan.LogUniform(rnd, max(2*time.Minute, r.lease/4), 4*r.lease).Round(time.Second)
	r.nodes = cmp.Or(one.Nodes, r.drawnNodes)
	r.faultTime = cmp.Or(one.Duration, r.duration)
	return r
}

// recoverPanic turns a panic of the goroutine into a problem.
func (r *Run) recoverPanic() {
	if p := recover(); p != nil {
		r.Errorf("panic: %v", p)
		r.addHistory(string(debug.Stack()))
	}
}
