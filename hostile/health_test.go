package main

import (
	"testing"
	"time"
)

// A node that answers too late breaks a bound, and one that a busy machine slows down does not.
func TestHealthBound(t *testing.T) {
	const stall = 5 * time.Second
	for name, tc := range map[string]struct {
		node     func(i int) sample
		control  func(i int) time.Duration
		slowdown float64
		broken   bool
	}{
		"fast":                        {node: func(int) sample { return sample{Took: 5 * time.Millisecond} }},
		"a tenth is slow":             {node: func(i int) sample { return slowIf(i%10 == 0, 300*time.Millisecond) }},
		"blocked for half of the run": {node: func(i int) sample { return slowIf(i < 100, time.Duration(100-i)*healthInterval) }, broken: true},
		"blocked for a quarter":       {node: func(i int) sample { return slowIf(i%8 < 2, 150*time.Millisecond) }, broken: true},
		"one stall":                   {node: func(i int) sample { return slowIf(i == 7, stall) }, broken: true},
		"one check failed":            {node: func(i int) sample { return sample{Failed: i == 7} }, broken: true},
		"slow while the control is": {
			node:    func(i int) sample { return slowIf(i < 90, stall) },
			control: func(i int) time.Duration { return slowIf(i < 90, stall).Took },
		},
		"the control is mostly slow": {
			node:    func(int) sample { return sample{} },
			control: func(i int) time.Duration { return slowIf(i < 110, stall).Took },
			broken:  true,
		},
		"slowed down by others":       {node: func(int) sample { return sample{Took: 350 * time.Millisecond} }, slowdown: 4},
		"slower than others slow it":  {node: func(int) sample { return sample{Took: 450 * time.Millisecond} }, slowdown: 4, broken: true},
		"longer than others stall it": {node: func(i int) sample { return slowIf(i == 7, 9*time.Second) }, slowdown: 4, broken: true},
	} {
		t.Run(name, func(t *testing.T) {
			var all samples
			for i := range 200 {
				moment := []sample{{}, tc.node(i)}
				if tc.control != nil {
					moment[0].Took = tc.control(i)
				}
				all = append(all, moment)
			}
			err := all.times(1, max(1, tc.slowdown)).bound()
			if (err != nil) != tc.broken {
				t.Errorf("got %v, want an error: %t", err, tc.broken)
			}
		})
	}
}

func slowIf(slow bool, took time.Duration) sample {
	if slow {
		return sample{Took: took}
	}
	return sample{Took: 2 * time.Millisecond}
}

// What other programs take from a node counts, at most tenfold. What the node does itself does not.
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
			before := usage{cpu: time.Second, waited: time.Second}
			after := usage{cpu: before.cpu + tc.computed, waited: before.waited + tc.waited}
			if got := slowdown(before, after); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}
