package simulation_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster/internal/proctest"
	"github.com/mimiktech/cluster/simulation"
)

//nolint:gochecknoglobals // a flag must be defined before the tests start
var seedFlag = flag.Uint64("simulation.seed", 0, "run TestSimulation in full with this seed alone, and log its events")

// TestSimulation runs fifty nodes through a week of faults. A seed that fails can be replayed:
//
//	go test -run TestSimulation -simulation.seed=17 ./simulation
func TestSimulation(t *testing.T) {
	opts := simulation.Options{Nodes: 50, Duration: 7 * 24 * time.Hour, Verbose: *seedFlag != 0}
	var seeds []uint64
	switch {
	case *seedFlag != 0:
		seeds = []uint64{*seedFlag}
	case !full(t, "two days of twenty nodes with one seed"):
		seeds = []uint64{1}
		opts.Nodes, opts.Duration = 20, 2*24*time.Hour
	case proctest.RaceDetector: // it makes a week take several times as long
		seeds = []uint64{randomSeed()}
	default:
		seeds = []uint64{randomSeed(), 1, 2}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			t.Logf("replay: go test -run TestSimulation -simulation.seed=%d ./simulation", seed)
			synctest.Test(t, func(t *testing.T) {
				opts := opts
				opts.Seed = seed
				simulation.Run(t, opts)
			})
		})
	}
}

func randomSeed() uint64 { return 1 + rand.Uint64N(1e6) }
