package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/mimiktech/cluster/internal/plan"
	"github.com/mimiktech/cluster/internal/proctest"
	"github.com/mimiktech/cluster/internal/testrun"
)

// TestSimulation runs some seeds, and many nodes through a week of faults of all kinds. The command
// runs further seeds, and replays one that fails.
func TestSimulation(t *testing.T) {
	isFull := testrun.Full(t, "three seeds instead of eight, and two days of ten nodes instead of a week of fifty")
	seeds := []uint64{1, 2, 3, 4, 5, 6, 7, 8}
	switch {
	case proctest.RaceDetector: // it makes a run take several times as long
		seeds = seeds[:3]
	case !isFull:
		seeds = []uint64{1, 4, 8}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			t.Logf("replay: go run ./simulation -seed %d", seed)
			runTest(t, drawScenario(seed))
		})
	}
	if isFull {
		runTest(t, drawWeek(1, 50, 7*24*time.Hour))
	} else {
		runTest(t, drawWeek(1, 10, 2*24*time.Hour))
	}
}

// Only two of the events and three of the nodes are needed for the failure.
func TestShrink(t *testing.T) {
	whole := drawScenario(7)
	first, second := whole.Events[3], whole.Events[len(whole.Events)-2]
	has := func(sc Scenario, e Event) bool {
		return slices.ContainsFunc(sc.Events, func(other Event) bool { return other.At == e.At })
	}
	failure := plan.Shrink(plan.Failure{Reduced: plan.Reduced{Seed: 7}}, sizeOf(7), func(r plan.Reduced) []string {
		if sc := scenarioOf(r); has(sc, first) && has(sc, second) && sc.Nodes >= 3 {
			return []string{"it fails"}
		}
		return nil
	})
	got := failure.Reduced
	if want := []int{3, len(whole.Events) - 2}; !slices.Equal(got.Events, want) || got.Nodes != 3 {
		t.Errorf("reduced to the events %v of %d nodes, want %v of 3", got.Events, got.Nodes, want)
	}
	command := "go run ./simulation " + got.Args()
	if text := describe(failure); strings.Count(text, "\n") > 16 || !strings.Contains(text, command) {
		t.Errorf("described as\n%s", text)
	}
	o, err := parse(strings.Fields(command)[3:])
	if err != nil || !slices.Equal(o.one.Events, got.Events) || o.one.Nodes != 3 || o.one.Duration != got.Duration {
		t.Errorf("the command %q means %+v, %v", command, o.one, err)
	}
}

// A plan is data: it survives its encoding for another process.
func TestScenarios(t *testing.T) {
	for seed := range uint64(200) {
		sc := drawScenario(seed)
		text, err := json.Marshal(sc)
		if err != nil {
			t.Fatal(err)
		}
		var decoded Scenario
		if err := json.Unmarshal(text, &decoded); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(drawScenario(seed), decoded, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("seed %d is drawn, and decoded, differently:\n%s", seed, diff)
		}
		if !slices.IsSortedFunc(sc.Events, plan.ByTime) || sc.Nodes < 2 || sc.Nodes > 60 {
			t.Errorf("seed %d: %d nodes, sorted: %v", seed, sc.Nodes, slices.IsSortedFunc(sc.Events, plan.ByTime))
		}
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
