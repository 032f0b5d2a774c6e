package plan

import (
	"cmp"
	"flag"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A Reduced is a part of the scenario of a seed.
type Reduced struct {
	Seed     uint64
	Nodes    int           // at the start; 0: as drawn
	Duration time.Duration // of the faults; 0: as drawn
	Events   []int         // their indices in the plan; nil: all
}

// AddFlags adds the flags that Args returns.
func (r *Reduced) AddFlags(flags *flag.FlagSet) {
	flags.Uint64Var(&r.Seed, "seed", 0, "run this `seed` alone, and write its history")
	flags.IntVar(&r.Nodes, "nodes", 0, "with -seed: start with this `number` of nodes instead of the drawn one")
	flags.DurationVar(&r.Duration, "duration", 0, "with -seed: end the faults after this `time`")
	flags.Func("events", "with -seed: only the events with these `numbers`, separated by commas", func(value string) error {
		r.Events = []int{}
		for text := range strings.SplitSeq(value, ",") {
			if text == "none" {
				continue
			}
			n, err := strconv.Atoi(text)
			if err != nil {
				return err
			}
			r.Events = append(r.Events, n)
		}
		return nil
	})
}

// Args returns the flags of a command that runs the scenario, separated by spaces.
func (r Reduced) Args() string {
	parts := []string{"-seed", strconv.FormatUint(r.Seed, 10)}
	if r.Nodes > 0 {
		parts = append(parts, "-nodes", strconv.Itoa(r.Nodes))
	}
	if r.Duration > 0 {
		parts = append(parts, "-duration", r.Duration.String())
	}
	if r.Events != nil {
		numbers := []string{}
		for _, n := range r.Events {
			numbers = append(numbers, strconv.Itoa(n))
		}
		parts = append(parts, "-events", cmp.Or(strings.Join(numbers, ","), "none"))
	}
	return strings.Join(parts, " ")
}

// Select returns the events that are left of those of a plan.
func (r Reduced) Select(events []Event) []Event {
	if r.Events == nil {
		return events
	}
	var kept []Event
	for _, i := range r.Events {
		if i >= 0 && i < len(events) {
			kept = append(kept, events[i])
		}
	}
	return kept
}

// A Failure is a scenario that has failed, and its problems.
type Failure struct {
	Reduced  Reduced
	Problems []string
}

// A Size is the size of a whole scenario.
type Size struct {
	Nodes    int
	Duration time.Duration
	Events   int
}

// Shrink removes events, nodes and time that are not needed for a failure. run runs a smaller
// scenario and returns its problems.
func Shrink(f Failure, whole Size, run func(Reduced) []string) Failure {
	s := &shrinker{run: run, whole: whole, best: f}
	s.shrink()
	s.confirm()
	return s.best
}

// Describe returns a scenario as numbered lines, with the command that replays it. The first line
// describes the scenario without its events.
func Describe(first string, events []Event, problems []string, command string) string {
	lines := []string{first}
	for _, e := range events {
		lines = append(lines, e.String())
	}
	lines = append(lines, problems...)
	if len(lines) > maxLines {
		lines = append(lines[:maxLines-1], fmt.Sprintf("… and %d more", len(lines)-maxLines+1))
	}
	var b strings.Builder
	for i, line := range lines {
		_, _ = fmt.Fprintf(&b, "%2d. %s\n", i+1, line)
	}
	_, _ = fmt.Fprintf(&b, "replay: %s\n", command)
	return b.String()
}

// maxLines bounds the description of a scenario.
const maxLines = 15

// maxShrinkRuns bounds the runs to reduce a failing scenario.
const maxShrinkRuns = 400

// A shrinker looks for a smaller scenario that fails.
type shrinker struct {
	run   func(Reduced) (problems []string)
	whole Size
	runs  int
	best  Failure
}

// shrink reduces the scenario in all ways, and repeats this until nothing changes.
func (s *shrinker) shrink() {
	if s.best.Reduced.Events == nil {
		s.best.Reduced.Events = []int{}
		for i := range s.whole.Events {
			s.best.Reduced.Events = append(s.best.Reduced.Events, i)
		}
	}
	for s.runs < maxShrinkRuns {
		size := len(s.best.Reduced.Events) + s.nodes()
		s.shrinkEvents()
		s.shrinkNodes()
		s.shrinkDuration()
		if size == len(s.best.Reduced.Events)+s.nodes() {
			return
		}
	}
}

func (s *shrinker) nodes() int { return cmp.Or(s.best.Reduced.Nodes, s.whole.Nodes) }

// confirm counts how often the reduced scenario fails, because jitter and the order of goroutines
// differ.
func (s *shrinker) confirm() {
	const runs = 10
	failed := 0
	for range runs {
		if len(s.run(s.best.Reduced)) > 0 {
			failed++
		}
	}
	s.best.Problems = append(s.best.Problems, fmt.Sprintf("%d of %d runs fail", failed, runs))
}

// try runs a smaller scenario, and keeps it if it fails.
func (s *shrinker) try(r Reduced) bool {
	if s.runs >= maxShrinkRuns {
		return false
	}
	s.runs++
	problems := s.run(r)
	if len(problems) == 0 {
		return false
	}
	s.best = Failure{r, problems}
	return true
}

// shrinkEvents removes parts of the events, from halves down to single events.
func (s *shrinker) shrinkEvents() {
	for size := max(1, len(s.best.Reduced.Events)/2); ; size /= 2 {
		for i := 0; i < len(s.best.Reduced.Events); {
			r := s.best.Reduced
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
		for n := keep(s.nodes()); n >= 2; n = keep(n) {
			r := s.best.Reduced
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
		r := s.best.Reduced
		r.Duration = (cmp.Or(r.Duration, s.whole.Duration) / 2).Round(time.Second)
		if r.Duration < time.Minute || !s.try(r) {
			return
		}
	}
}
