package main

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster/internal/proctest"
)

// TestSimulation runs some seeds, and many nodes through a week of faults of all kinds. The command
// runs further seeds, and replays one that fails.
func TestSimulation(t *testing.T) {
	seeds := 8
	if proctest.RaceDetector { // it makes a run take several times as long
		seeds = 3
	}
	for seed := range uint64(seeds) {
		seed++
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			t.Logf("replay: go run ./simulation -seed %d", seed)
			runTest(t, drawScenario(seed))
		})
	}
	if full(t, "two days of ten nodes instead of a week of fifty") {
		runTest(t, drawWeek(1, 50, 7*24*time.Hour))
	} else {
		runTest(t, drawWeek(1, 10, 2*24*time.Hour))
	}
}

func runTest(t *testing.T, sc Scenario) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		res := run(t, sc, nil)
		t.Log(res.Summary)
		if t.Failed() {
			for _, line := range res.History {
				t.Log(line)
			}
		}
	})
}
