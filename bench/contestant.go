//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/mimiktech/cluster"
)

// A fanout asks all peers of the place it was made for.
type fanout interface {
	// call asks each of them once.
	call(ctx context.Context) (tally, error)
	// close closes its connections, too.
	close()
}

// A streamer tells also of each peer as it answers: when the first did, and when the last that did well.
type streamer interface {
	stream(ctx context.Context) (t tally, first, good time.Duration)
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
	Cold    bool          // nothing goes before it
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
	Peak          int64  // the most memory that it had since it met its peers, in bytes
}

// A single is one call.
type single struct {
	tally
	Took        time.Duration
	First, Good time.Duration // until the first outcome, and the last good one, if it streams
}

// makers make the contestants that are Go.
func makers() map[string]func(context.Context, place) (fanout, error) {
	things := cluster.Request{Path: "/things"}
	return map[string]func(context.Context, place) (fanout, error){
		ours:             newMember(things),
		hedged:           newMember(cluster.Request{Path: things.Path, HedgeAfter: 20 * time.Millisecond}),
		yardstick:        newLoop(loop{}, tuned, plainGetter),
		bounded:          newLoop(loop{places: semaphore.NewWeighted(256)}, tuned, plainGetter),
		defaultTransport: newLoop(loop{}, untuned, plainGetter),
		"retryablehttp":  newLoop(loop{}, tuned, retryableGetter),
		"resty":          newLoop(loop{}, tuned, restyGetter),
		"failsafe":       newLoop(loop{}, tuned, failsafeGetter),
		bareName:         newBare,
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
			debug.FreeOSMemory() // what it had before is no part of its peak
			if err := forgetPeak(); err != nil {
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
		case "part":
			f.close()
			f = nil
			return nil, nil
		case "round":
			var t task
			if err := json.Unmarshal(args, &t); err != nil {
				return nil, err
			}
			return play(ctx, f, t)
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
			got, first, good := s.stream(ctx)
			return single{tally: got, Took: time.Since(start), First: first, Good: good}, nil
		}
		return nil, fmt.Errorf("no such order: %s", what)
	})
}

// play is a round. Unless it is cold, connecting is no part of it but for the memory it took.
func play(ctx context.Context, f fanout, t task) (round, error) {
	if !t.Cold {
		if _, err := calls(ctx, f, t.Callers, t.For/4); err != nil {
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
	most, peakErr := peak()
	r.Peak = most
	return r, errors.Join(err, stop(), peakErr)
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
	return sorted[max(0, int(math.Ceil(share*float64(len(sorted))))-1)]
}

// used is the processor time that this process has used.
func used() time.Duration {
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		return 0 // it has no way to fail
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// forgetPeak makes the most memory that this process ever had what it has now.
func forgetPeak() error { return os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) }

// peak is the most memory that this process had since, in bytes.
func peak() (int64, error) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kB, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kB << 10, err
		}
	}
	return 0, errors.New("no VmHWM")
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
