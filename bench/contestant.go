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

// A contestant calls all peers of the endpoints for which it was made.
type contestant interface {
	// call sends one request to each peer.
	call(ctx context.Context) (counts, error)
	// close also closes the connections.
	close()
}

// A streamer is a contestant that yields outcomes as they arrive. It returns the times of the first
// outcome and of the last result.
type streamer interface {
	stream(ctx context.Context) (c counts, first, last time.Duration)
}

// counts are the outcomes of calls.
type counts struct{ Results, Failures int }

func (c *counts) add(o counts) {
	c.Results += o.Results
	c.Failures += o.Failures
}

// A task describes a round of calls.
type task struct {
	Callers int           // concurrent calls
	Time    time.Duration // no call starts later than this after the start
	Cold    bool          // without a warm-up
	Profile string        // prefix of the files for profiles, "" for none
}

// A round is the result of a task. All values are those of the contestant's process alone.
type round struct {
	counts
	Calls         int
	Took          time.Duration
	P50, P99      time.Duration // of a call
	CPU           time.Duration
	Allocs, Bytes uint64 // allocated; 0 if unknown
	Peak          int64  // maximum memory since the contestant connected, in bytes
}

// A callResult is the result of one call.
type callResult struct {
	counts
	Took        time.Duration
	First, Last time.Duration // time of the first outcome and of the last result; streams only
}

// constructors returns the contestants that are written in Go.
func constructors() map[string]func(context.Context, endpoints) (contestant, error) {
	things := cluster.Request{Path: "/things"}
	return map[string]func(context.Context, endpoints) (contestant, error){
		ours:             nodeConstructor(things, nil),
		overNetHTTP:      nodeConstructor(things, tunedTransport),
		hedged:           nodeConstructor(cluster.Request{Path: things.Path, HedgeAfter: 20 * time.Millisecond}, nil),
		baseline:         loopConstructor(loop{}, tunedTransport, plainGetter),
		bounded:          loopConstructor(loop{sem: semaphore.NewWeighted(256)}, tunedTransport, plainGetter),
		defaultTransport: loopConstructor(loop{}, cloneDefaultTransport, plainGetter),
		"retryablehttp":  loopConstructor(loop{}, tunedTransport, retryableGetter),
		"resty":          loopConstructor(loop{}, tunedTransport, restyGetter),
		"failsafe":       loopConstructor(loop{}, tunedTransport, failsafeGetter),
		socketsName:      newSockets,
		bareName:         newBareHTTP,
	}
}

func runContestant(name string) error {
	construct, ok := constructors()[name]
	if !ok {
		return fmt.Errorf("unknown contestant %q", name)
	}
	ctx := context.Background()
	var c contestant // nil while disconnected
	return serveCommands(func(command string, args json.RawMessage) (any, error) {
		if command == "connect" {
			var e endpoints
			if err := json.Unmarshal(args, &e); err != nil {
				return nil, err
			}
			debug.FreeOSMemory() // the previous round's memory must not count towards the peak
			if err := resetPeakMemory(); err != nil {
				return nil, err
			}
			var err error
			c, err = construct(ctx, e)
			return nil, err
		}
		if c == nil {
			return nil, errors.New("not connected")
		}
		if command == "disconnect" {
			c.close()
			c = nil
			return nil, nil
		}
		return handleCall(ctx, c, command, args)
	})
}

// handleCall handles the commands that need a connected contestant.
func handleCall(ctx context.Context, c contestant, command string, args json.RawMessage) (any, error) {
	start := time.Now()
	switch command {
	case "round":
		var t task
		if err := json.Unmarshal(args, &t); err != nil {
			return nil, err
		}
		return runRound(ctx, c, t)
	case "call":
		n, err := c.call(ctx)
		return callResult{counts: n, Took: time.Since(start)}, err
	case "stream":
		s, ok := c.(streamer)
		if !ok {
			return nil, errors.ErrUnsupported
		}
		n, first, last := s.stream(ctx)
		return callResult{counts: n, Took: time.Since(start), First: first, Last: last}, nil
	}
	return nil, fmt.Errorf("unknown command %q", command)
}

// runRound measures a round. Unless the task is cold, connections are opened in a warm-up, of which
// only the memory counts.
func runRound(ctx context.Context, c contestant, t task) (round, error) {
	if !t.Cold {
		if _, err := runCallers(ctx, c, t.Callers, t.Time/4); err != nil {
			return round{}, err
		}
	}
	runtime.GC()
	stop, err := startProfiles(t.Profile)
	if err != nil {
		return round{}, err
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start, cpu := time.Now(), usedCPU()
	r, err := runCallers(ctx, c, t.Callers, t.Time)
	r.Took, r.CPU = time.Since(start), usedCPU()-cpu
	runtime.ReadMemStats(&after)
	r.Allocs, r.Bytes = after.Mallocs-before.Mallocs, after.TotalAlloc-before.TotalAlloc
	peak, peakErr := maxMemory()
	r.Peak = peak
	return r, errors.Join(err, stop(), peakErr)
}

// runCallers makes calls from several goroutines until the time is over, at least one from each.
func runCallers(ctx context.Context, c contestant, callers int, limit time.Duration) (round, error) {
	end := time.Now().Add(limit)
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex // guards the fields below
		r     round
		times []time.Duration
		errs  error
	)
	for range callers {
		wg.Go(func() {
			for first := true; first || time.Now().Before(end); first = false {
				start := time.Now()
				n, err := c.call(ctx)
				took := time.Since(start)
				mu.Lock()
				r.add(n)
				times, errs = append(times, took), errors.Join(errs, err)
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	slices.Sort(times)
	r.Calls, r.P50, r.P99 = len(times), quantile(times, 0.5), quantile(times, 0.99)
	return r, errs
}

// quantile returns the smallest of the sorted values that is at least as large as the given share
// of them.
func quantile[T any](sorted []T, share float64) T {
	return sorted[max(0, int(math.Ceil(share*float64(len(sorted))))-1)]
}

// usedCPU returns the CPU time of this process.
func usedCPU() time.Duration {
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		return 0 // cannot happen with these arguments
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// resetPeakMemory resets the maximum memory to the current one.
func resetPeakMemory() error { return os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) }

// maxMemory returns the maximum resident memory of this process in bytes.
func maxMemory() (int64, error) {
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
	return 0, errors.New("/proc/self/status has no VmHWM")
}

// startProfiles starts a CPU profile. The function stop writes it, and a profile of all allocations
// since the process started.
func startProfiles(prefix string) (stop func() error, err error) {
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
