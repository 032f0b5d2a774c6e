package main

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// A reduced is a seed whose scenario lacks some of its parts.
type reduced struct {
	Seed     uint64
	Nodes    int           // at the start; 0: as drawn
	Duration time.Duration // of the faults; 0: as drawn
	Events   []int         // their indices in the plan; nil: all
}

// scenario returns the scenario.
func (r reduced) scenario() Scenario {
	sc := drawScenario(r.Seed)
	if r.Nodes > 0 {
		sc.Nodes = r.Nodes
	}
	if r.Events != nil {
		var kept []Event
		for _, i := range r.Events {
			if i >= 0 && i < len(sc.Events) {
				kept = append(kept, sc.Events[i])
			}
		}
		sc.Events = kept
	}
	if r.Duration > 0 {
		sc.Duration = r.Duration
	}
	return sc
}

// maxShrinkRuns bounds the runs to reduce a failing seed.
const maxShrinkRuns = 400

// A shrinker looks for a smaller scenario that fails.
type shrinker struct {
	run  func(Scenario) (problems []string)
	runs int
	best failure
}

// reduce leaves out what is not needed for a failure: events, nodes and time. It runs scenarios in
// another process, which may crash.
func reduce(f failure) (failure, error) {
	w, err := startWorker(context.Background())
	if err != nil {
		return f, err
	}
	s := &shrinker{best: f, run: func(sc Scenario) []string {
		if err != nil {
			return nil
		}
		_, problems, alive := w.run(sc)
		if !alive {
			w, err = startWorker(context.Background())
		}
		return problems
	}}
	s.shrink()
	s.confirm()
	if err != nil {
		return s.best, err
	}
	w.close()
	return s.best, nil
}

// shrink repeats all ways to reduce the scenario until none helps.
func (s *shrinker) shrink() {
	if s.best.reduced.Events == nil {
		for i := range s.best.reduced.scenario().Events {
			s.best.reduced.Events = append(s.best.reduced.Events, i)
		}
	}
	for s.runs < maxShrinkRuns {
		size := len(s.best.reduced.Events) + s.best.reduced.scenario().Nodes
		s.shrinkEvents()
		s.shrinkNodes()
		s.shrinkDuration()
		if size == len(s.best.reduced.Events)+s.best.reduced.scenario().Nodes {
			return
		}
	}
}

// confirm counts how often the result fails: jitter and the order of goroutines differ.
func (s *shrinker) confirm() {
	const runs = 10
	failed := 0
	for range runs {
		if len(s.run(s.best.reduced.scenario())) > 0 {
			failed++
		}
	}
	s.best.problems = append(s.best.problems, fmt.Sprintf("%d of %d runs fail", failed, runs))
}

// try runs a smaller scenario, and keeps it if it fails.
func (s *shrinker) try(r reduced) bool {
	if s.runs >= maxShrinkRuns {
		return false
	}
	s.runs++
	problems := s.run(r.scenario())
	if len(problems) == 0 {
		return false
	}
	s.best = failure{r, problems}
	return true
}

// shrinkEvents leaves out ever smaller parts of the events.
func (s *shrinker) shrinkEvents() {
	for size := max(1, len(s.best.reduced.Events)/2); ; size /= 2 {
		for i := 0; i < len(s.best.reduced.Events); {
			r := s.best.reduced
			// Not nil, which stands for all events.
			r.Events = append(append([]int{}, r.Events[:i]...), r.Events[min(i+size, len(r.Events)):]...)
			if !s.try(r) {
				i += size
			}
		}
		if size <= 1 {
			return
		}
	}
}

func (s *shrinker) shrinkNodes() {
	for _, keep := range []func(int) int{func(n int) int { return n / 2 }, func(n int) int { return n - 1 }} {
		for n := keep(s.best.reduced.scenario().Nodes); n >= 2; n = keep(n) {
			r := s.best.reduced
			r.Nodes = n
			if !s.try(r) {
				break
			}
		}
	}
}

// shrinkDuration ends the faults earlier.
func (s *shrinker) shrinkDuration() {
	for range 8 {
		r := s.best.reduced
		r.Duration = (r.scenario().Duration / 2).Round(time.Second)
		if r.Duration < time.Minute || !s.try(r) {
			return
		}
	}
}

// describe returns the scenario as numbered lines, with the command that replays it.
func (f failure) describe() string {
	const maxLines = 15
	sc := f.reduced.scenario()
	lines := []string{fmt.Sprintf("%d nodes, lease %v, token TTL %v, %d requests in flight, policy %+v, unmanaged 1 in %d; faults until %v",
		sc.Nodes, sc.Lease, sc.TokenTTL, sc.MaxInFlight, sc.Policy, sc.Unmanaged, sc.Duration.Round(time.Second))}
	for _, e := range sc.Events {
		lines = append(lines, e.String())
	}
	lines = append(lines, f.problems...)
	if len(lines) > maxLines {
		lines = append(lines[:maxLines-1], fmt.Sprintf("… and %d more", len(lines)-maxLines+1))
	}
	var b strings.Builder
	for i, line := range lines {
		_, _ = fmt.Fprintf(&b, "%2d. %s\n", i+1, line)
	}
	_, _ = fmt.Fprintf(&b, "replay: %s\n", f.reduced.command())
	return b.String()
}

// command returns the command that runs the scenario.
func (r reduced) command() string {
	parts := []string{"go run ./simulation -seed", fmt.Sprint(r.Seed)}
	if r.Nodes > 0 {
		parts = append(parts, "-nodes", fmt.Sprint(r.Nodes))
	}
	if r.Duration > 0 {
		parts = append(parts, "-duration", r.Duration.String())
	}
	if r.Events != nil {
		numbers := make([]string, len(r.Events))
		for i, n := range r.Events {
			numbers[i] = fmt.Sprint(n)
		}
		if len(numbers) == 0 {
			numbers = []string{"none"}
		}
		parts = append(parts, "-events", strings.Join(numbers, ","))
	}
	return strings.Join(parts, " ")
}
