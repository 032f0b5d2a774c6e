package plan

import (
	"slices"
	"testing/synctest"
	"time"
)

// A Schedule executes steps at their times, in a bubble of testing/synctest. Its methods must be
// called from the steps, or from the goroutine that runs them.
type Schedule struct {
	// Start is the time at which the time of the steps is 0.
	Start time.Time
	// Record adds a line to the history of the run.
	Record func(format string, args ...any)

	steps  []step            // sorted by time
	active map[string]func() // the faults in effect, by what they affect, with what ends each
}

// A step is an event of a plan, or the end of one.
type step struct {
	at time.Duration
	do func()
}

// At adds a step at a time since the start.
func (s *Schedule) At(at time.Duration, do func()) {
	i, _ := slices.BinarySearchFunc(s.steps, at, func(s step, at time.Duration) int {
		if s.at <= at { // behind those of the same time
			return -1
		}
		return 1
	})
	s.steps = slices.Insert(s.steps, i, step{at, do})
}

// After adds a step that is executed d from now.
func (s *Schedule) After(d time.Duration, do func()) { s.At(time.Since(s.Start)+d, do) }

// Run executes the steps until a time since the start, each at its time. After each step, when all
// other goroutines are blocked, it calls check, and returns if check returns false.
func (s *Schedule) Run(until time.Duration, check func() bool) {
	for len(s.steps) > 0 {
		next := s.steps[0]
		s.steps = s.steps[1:]
		if next.at > until {
			return
		}
		Sleep(time.Until(s.Start.Add(next.at)))
		next.do()
		synctest.Wait()
		if !check() {
			return
		}
	}
}

// Begin reports whether a fault may begin: no fault in effect has the same key, which names what a
// fault affects.
func (s *Schedule) Begin(key string, e Event) bool {
	if _, busy := s.active[key]; busy {
		s.Record("skipped, because there is another fault of %s: %s", key, e.Kind)
		return false
	}
	if s.active == nil {
		s.active = map[string]func(){}
	}
	s.active[key] = func() {}
	return true
}

// EndAfter ends a fault that Begin has allowed, after the duration of the event or in EndAll.
func (s *Schedule) EndAfter(key string, e Event, end func()) {
	ended := false
	once := func() {
		if !ended {
			ended = true
			delete(s.active, key)
			end()
		}
	}
	s.active[key] = once
	s.After(e.For, once)
}

// EndAll ends all faults.
func (s *Schedule) EndAll() {
	s.Record("all faults end")
	for len(s.active) > 0 {
		keys := make([]string, 0, len(s.active))
		for key := range s.active {
			keys = append(keys, key)
		}
		s.active[slices.Min(keys)]()
		synctest.Wait()
	}
}

// Sleep lets time pass, and returns when all other goroutines of the bubble are blocked.
func Sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
