package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mimiktech/cluster/internal/plan"
)

// A tally adds up the results of many seeds.
type tally struct {
	mu        sync.Mutex // guards the fields below
	start     time.Time
	seeds     int
	events    int
	years     float64 // of virtual time
	marks     map[string]int
	converged []float64
	failure   *plan.Failure
}

const year = 365 * 24 * time.Hour

// runSeeds runs seeds in several processes until one fails.
func runSeeds(ctx context.Context, out io.Writer, o options) error {
	first := o.first
	if first == 0 {
		first = 1 + rand.Uint64N(1e9)
	}
	if o.forTime > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.forTime)
		defer cancel()
	}
	total := &tally{start: time.Now(), marks: map[string]int{}}
	seeds := make(chan uint64)
	var wg sync.WaitGroup
	var workerErr error
	var once sync.Once
	for range o.workers {
		wg.Go(func() {
			if err := total.work(seeds); err != nil {
				once.Do(func() { workerErr = err })
			}
		})
	}
	progress := time.NewTicker(10 * time.Second)
	defer progress.Stop()
	seed := first
loop:
	for o.seeds == 0 || seed < first+o.seeds {
		select {
		case seeds <- seed:
			seed++
			if total.failed() {
				break loop
			}
		case <-progress.C:
			_, _ = fmt.Fprintln(out, total.progress())
		case <-ctx.Done():
			break loop
		}
	}
	close(seeds)
	wg.Wait()
	if workerErr != nil {
		return workerErr
	}
	_, _ = fmt.Fprint(out, total.summary(first))
	switch f := total.failure; {
	case f != nil && o.reduce:
		return reportFailure(out, *f)
	case f != nil:
		return fmt.Errorf("seed %d fails: %s", f.Reduced.Seed, f.Problems[0])
	}
	if missing := total.missing(); total.seeds >= seedsForMarks && len(missing) > 0 {
		return fmt.Errorf("%d seeds have not hit %q", total.seeds, missing)
	}
	return nil
}

// seedsForMarks is how many seeds must hit all marks.
const seedsForMarks = 1000

// work runs seeds in one worker process at a time.
func (t *tally) work(seeds <-chan uint64) error {
	w, err := startWorker(context.Background())
	if err != nil {
		return err
	}
	for seed := range seeds {
		one := plan.Reduced{Seed: seed}
		res, problems, alive := w.run(scenarioOf(one))
		t.add(one, res, problems)
		if !alive {
			if w, err = startWorker(context.Background()); err != nil {
				return err
			}
		}
	}
	w.close()
	return nil
}

func (t *tally) add(one plan.Reduced, res result, problems []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seeds++
	t.events += res.Events
	t.years += res.Virtual.Hours() / year.Hours()
	for name, n := range res.Marks {
		t.marks[name] += n
	}
	for _, leases := range res.Converged {
		t.converged = append(t.converged, leases)
	}
	if len(problems) > 0 && (t.failure == nil || one.Seed < t.failure.Reduced.Seed) {
		t.failure = &plan.Failure{Reduced: one, Problems: problems}
	}
}

func (t *tally) failed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failure != nil
}

func (t *tally) progress() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.line()
}

func (t *tally) line() string {
	return fmt.Sprintf("%6.0f s: %d seeds, %d events, %.2f virtual years, %d of %d marks", time.Since(t.start).Seconds(),
		t.seeds, t.events, t.years, len(allMarks())-len(t.missing()), len(allMarks()))
}

// missing returns the marks that no seed has hit.
func (t *tally) missing() []string {
	return slices.DeleteFunc(allMarks(), func(name string) bool { return t.marks[name] > 0 })
}

func (t *tally) summary(first uint64) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b strings.Builder
	_, _ = fmt.Fprintf(&b, "%s, from seed %d on\n", t.line(), first)
	if len(t.converged) > 0 {
		slices.Sort(t.converged)
		at := func(q float64) float64 { return t.converged[int(q*float64(len(t.converged)-1))] }
		_, _ = fmt.Fprintf(&b, "convergence after the last fault, in leases, of %d nodes: median %.3f, 90%% %.3f, 99%% %.3f, all %.3f\n",
			len(t.converged), at(0.5), at(0.9), at(0.99), at(1))
	}
	for _, name := range t.missing() {
		_, _ = fmt.Fprintf(&b, "mark not hit: %s\n", name)
	}
	return b.String()
}

// reportFailure reduces a failing seed and describes it.
func reportFailure(out io.Writer, f plan.Failure) error {
	_, _ = fmt.Fprintf(out, "seed %d fails: %s\nreducing it ...\n", f.Reduced.Seed, f.Problems[0])
	short, err := reduce(f)
	if err != nil {
		return err
	}
	_, _ = fmt.Fprint(out, describe(short))
	return fmt.Errorf("seed %d fails", f.Reduced.Seed)
}

// replay runs one seed in this process.
func replay(t *testing.T, out io.Writer, o options) error {
	t.Helper()
	scenario := scenarioOf(o.one)
	hash := sha256.New()
	lines := &lineCounter{}
	sinks := []io.Writer{hash, lines}
	if o.log {
		sinks = append(sinks, out)
	}
	var problems []string
	res := runInBubble(t, scenario, newLog(io.MultiWriter(sinks...)), func(problem string) { problems = append(problems, problem) })
	_, _ = fmt.Fprintf(out, "%s\n%s\nlog: %d lines, sha256 %x\n", strings.Join(res.History, "\n"), res.Summary, lines.count, hash.Sum(nil))
	if len(problems) > 0 {
		return errors.New(strings.Join(problems, "\n"))
	}
	return nil
}

type lineCounter struct{ count int }

func (c *lineCounter) Write(p []byte) (int, error) {
	c.count += strings.Count(string(p), "\n")
	return len(p), nil
}
