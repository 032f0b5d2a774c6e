//go:build unix

package proctest

import (
	"errors"
	"os/exec"
	"testing"
	"time"
)

// A server that answers too late breaks a bound, and one that a busy machine slows down does not.
func TestHealthBound(t *testing.T) {
	const stall = 5 * time.Second
	bounds := HealthBounds{Time: 100 * time.Millisecond, SlowPercent: 20, Stall: 2 * time.Second}
	for name, tc := range map[string]struct {
		node     func(i int) HealthSample
		control  func(i int) time.Duration
		slowdown float64
		broken   bool
	}{
		"fast":                        {node: func(int) HealthSample { return HealthSample{Took: 5 * time.Millisecond} }},
		"a tenth is slow":             {node: func(i int) HealthSample { return slowIf(i%10 == 0, 300*time.Millisecond) }},
		"blocked for half of the run": {node: func(i int) HealthSample { return slowIf(i < 100, time.Duration(100-i)*healthInterval) }, broken: true},
		"blocked for a quarter":       {node: func(i int) HealthSample { return slowIf(i%8 < 2, 150*time.Millisecond) }, broken: true},
		"one stall":                   {node: func(i int) HealthSample { return slowIf(i == 7, stall) }, broken: true},
		"one check failed":            {node: func(i int) HealthSample { return HealthSample{Failed: i == 7} }, broken: true},
		"slow while the control is": {
			node:    func(i int) HealthSample { return slowIf(i < 90, stall) },
			control: func(i int) time.Duration { return slowIf(i < 90, stall).Took },
		},
		"the control is mostly slow": {
			node:    func(int) HealthSample { return HealthSample{} },
			control: func(i int) time.Duration { return slowIf(i < 110, stall).Took },
			broken:  true,
		},
		"within the slowdown":         {node: func(int) HealthSample { return HealthSample{Took: 350 * time.Millisecond} }, slowdown: 4},
		"beyond the slowdown":         {node: func(int) HealthSample { return HealthSample{Took: 450 * time.Millisecond} }, slowdown: 4, broken: true},
		"stalled beyond the slowdown": {node: func(i int) HealthSample { return slowIf(i == 7, 9*time.Second) }, slowdown: 4, broken: true},
	} {
		t.Run(name, func(t *testing.T) {
			var all HealthSamples
			for i := range 200 {
				moment := []HealthSample{{}, tc.node(i)}
				if tc.control != nil {
					moment[0].Took = tc.control(i)
				}
				all = append(all, moment)
			}
			err := all.Times(0, max(1, tc.slowdown), bounds).Check()
			if (err != nil) != tc.broken {
				t.Errorf("got %v, want an error: %t", err, tc.broken)
			}
		})
	}
}

func slowIf(slow bool, took time.Duration) HealthSample {
	if slow {
		return HealthSample{Took: took}
	}
	return HealthSample{Took: 2 * time.Millisecond}
}

// Time that a node waits for a processor counts, up to a factor of ten. Its CPU time does not.
func TestSlowdown(t *testing.T) {
	for name, tc := range map[string]struct {
		computed, waited time.Duration
		want             float64
	}{
		"alone":                       {4 * time.Second, 0, 1},
		"half of the processor":       {4 * time.Second, 4 * time.Second, 2},
		"hardly any of the processor": {time.Second, time.Minute, maxSlowdown},
		"idle":                        {0, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			before := Usage{CPU: time.Second, Waited: time.Second}
			after := Usage{CPU: before.CPU + tc.computed, Waited: before.Waited + tc.waited}
			if got := Slowdown(before, after); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

// A process that cannot give way must not leave the checker behind.
func TestHealthChecksEndIfTheyCannotStart(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "echo; cat; echo []")
	failure := errors.New("no permission")
	if _, err := StartHealthChecks(cmd, func() error { return failure }); !errors.Is(err, failure) {
		t.Errorf("got %v, want %v", err, failure)
	}
	if cmd.ProcessState == nil {
		t.Error("the checker was not waited for")
	}
}
