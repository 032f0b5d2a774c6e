package main

import (
	"context"
	"fmt"
	"time"

	"github.com/mimiktech/cluster/internal/plan"
)

// scenarioOf returns the scenario of a seed, without the parts that it lacks.
func scenarioOf(r plan.Reduced) Scenario {
	sc := drawScenario(r.Seed)
	if r.Nodes > 0 {
		sc.Nodes = r.Nodes
	}
	if r.Duration > 0 {
		sc.Duration = r.Duration
	}
	sc.Events = r.Select(sc.Events)
	return sc
}

// reduce leaves out what is not needed for a failure. It runs scenarios in another process, which
// may crash.
func reduce(f plan.Failure) (plan.Failure, error) {
	w, err := startWorker(context.Background())
	if err != nil {
		return f, err
	}
	best := plan.Shrink(f, sizeOf(f.Reduced.Seed), func(r plan.Reduced) []string {
		if err != nil {
			return nil
		}
		_, problems, alive := w.run(scenarioOf(r))
		if !alive {
			w, err = startWorker(context.Background())
		}
		return problems
	})
	if err != nil {
		return best, err
	}
	w.close()
	return best, nil
}

func sizeOf(seed uint64) plan.Size {
	whole := drawScenario(seed)
	return plan.Size{Nodes: whole.Nodes, Duration: whole.Duration, Events: len(whole.Events)}
}

// describe returns a scenario that fails as numbered lines, with the command that replays it.
func describe(f plan.Failure) string {
	sc := scenarioOf(f.Reduced)
	first := fmt.Sprintf("%d nodes, lease %v, token TTL %v, %d requests in flight, policy %+v, unmanaged 1 in %d; faults until %v",
		sc.Nodes, sc.Lease, sc.TokenTTL, sc.MaxInFlight, sc.Policy, sc.Unmanaged, sc.Duration.Round(time.Second))
	return plan.Describe(first, sc.Events, f.Problems, "go run ./simulation "+f.Reduced.Args())
}
