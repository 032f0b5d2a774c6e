//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"sync"
	"syscall"
	"time"
)

// A fanout asks all peers of the place it was made for.
type fanout interface {
	// call asks each of them once.
	call(ctx context.Context) (tally, error)
	// rest closes the connections that are idle.
	rest()
	close()
}

// A streamer tells also of each peer as it answers.
type streamer interface {
	stream(ctx context.Context) (t tally, first time.Duration)
}

// A tally is what became of the peers that were asked.
type tally struct{ Results, Failures int }

func (t *tally) add(o tally) {
	t.Results += o.Results
	t.Failures += o.Failures
}

// A task is a round of calls.
type task struct {
	Callers int           // how many calls are under way at once
	For     time.Duration // no call begins later
	Warm    bool          // make one call for each caller before the round begins
	Profile string        // where to put profiles of it, "" for none
}

// A round is what came of a task. It is about this process alone.
type round struct {
	tally
	Calls         int
	Took          time.Duration
	P50, P99      time.Duration // of a call
	CPU           time.Duration
	Allocs, Bytes uint64 // allocated; 0 if nobody counts
}

// A single is one call.
type single struct {
	tally
	Took  time.Duration
	First time.Duration // until the first outcome, if it streams
}

// makers make the contestants that are Go.
func makers() map[string]func(context.Context, place) (fanout, error) {
	return map[string]func(context.Context, place) (fanout, error){
		"cluster":       newMember,
		yardstick:       newLoop(0, plainGetter),
		"loop, bounded": newLoop(256, plainGetter),
		"retryablehttp": newLoop(0, retryableGetter),
		"resty":         newLoop(0, restyGetter),
		"failsafe":      newLoop(0, failsafeGetter),
	}
}

func runContestant(name string) error {
	make, ok := makers()[name]
	if !ok {
		return fmt.Errorf("no such contestant: %q", name)
	}
	ctx := context.Background()
	var f fanout
	return obey(func(what string, args json.RawMessage) (any, error) {
		if what == "meet" {
			var p place
			if err := json.Unmarshal(args, &p); err != nil {
				return nil, err
			}
			var err error
			f, err = make(ctx, p)
			return nil, err
		}
		if f == nil {
			return nil, errors.New("nobody to ask yet")
		}
		switch what {
		case "rest":
			f.rest()
			return nil, nil
		case "round":
			var t task
			if err := json.Unmarshal(args, &t); err != nil {
				return nil, err
			}
			return measure(ctx, f, t)
		case "call":
			start := time.Now()
			got, err := f.call(ctx)
			return single{tally: got, Took: time.Since(start)}, err
		case "stream":
			s, ok := f.(streamer)
			if !ok {
				return nil, errors.ErrUnsupported
			}
			start := time.Now()
			got, first := s.stream(ctx)
			return single{tally: got, Took: time.Since(start), First: first}, nil
		}
		return nil, fmt.Errorf("no such order: %s", what)
	})
}

func measure(ctx context.Context, f fanout, t task) (round, error) {
	if t.Warm {
		if _, err := calls(ctx, f, t.Callers, 0); err != nil {
			return round{}, err
		}
	}
	runtime.GC()
	stop, err := profile(t.Profile)
	if err != nil {
		return round{}, err
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start, cpu := time.Now(), used()
	r, err := calls(ctx, f, t.Callers, t.For)
	r.Took, r.CPU = time.Since(start), used()-cpu
	runtime.ReadMemStats(&after)
	r.Allocs, r.Bytes = after.Mallocs-before.Mallocs, after.TotalAlloc-before.TotalAlloc
	return r, errors.Join(err, stop())
}

// calls has callers make calls until the time is over, each at least one.
func calls(ctx context.Context, f fanout, callers int, d time.Duration) (round, error) {
	end := time.Now().Add(d)
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex // guards what follows
		r    round
		took []time.Duration
		errs error
	)
	for range callers {
		wg.Go(func() {
			for first := true; first || time.Now().Before(end); first = false {
				start := time.Now()
				got, err := f.call(ctx)
				spent := time.Since(start)
				mu.Lock()
				r.add(got)
				took, errs = append(took, spent), errors.Join(errs, err)
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	slices.Sort(took)
	r.Calls, r.P50, r.P99 = len(took), quantile(took, 0.5), quantile(took, 0.99)
	return r, errs
}

// quantile is the smallest of the sorted values that so large a share of them does not exceed.
func quantile[T any](sorted []T, share float64) T {
	return sorted[min(len(sorted)-1, int(share*float64(len(sorted))))]
}

// used is the processor time that this process has used.
func used() time.Duration {
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		return 0 // it has no way to fail
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// profile writes profiles of what happens until stop: of the processor, and of all that was
// allocated since the process began.
func profile(prefix string) (stop func() error, err error) {
	if prefix == "" {
		return func() error { return nil }, nil
	}
	if err := os.MkdirAll(filepath.Dir(prefix), 0o750); err != nil {
		return nil, err
	}
	cpu, err := os.Create(prefix + ".cpu.prof")
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(cpu); err != nil {
		return nil, errors.Join(err, cpu.Close())
	}
	return func() error {
		pprof.StopCPUProfile()
		allocs, err := os.Create(prefix + ".allocs.prof")
		if err != nil {
			return errors.Join(err, cpu.Close())
		}
		return errors.Join(pprof.Lookup("allocs").WriteTo(allocs, 0), allocs.Close(), cpu.Close())
	}, nil
}
