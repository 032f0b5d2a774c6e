package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"testing"
	"time"

	"github.com/mimiktech/cluster/internal/plan"
	"github.com/mimiktech/cluster/internal/proctest"
)

func main() {
	o, err := parse(os.Args[1:])
	switch {
	case err != nil:
	case o.worker:
		withTesting(func(t *testing.T) error { t.Helper(); return serveJobs(t, os.Stdin, os.Stdout) })
	case o.one.Seed != 0:
		withTesting(func(t *testing.T) error { t.Helper(); return replay(t, os.Stdout, o) })
	default:
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		ctx, cancel := proctest.WithParent(ctx)
		err = runSeeds(ctx, os.Stdout, o)
		cancel()
		stop()
	}
	if err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			_, _ = fmt.Fprintln(os.Stderr, "simulation:", err)
		}
		os.Exit(1)
	}
}

// An options is what the command is to do.
type options struct {
	seeds   uint64
	forTime time.Duration
	first   uint64
	workers int
	worker  bool // serve jobs from standard input
	log     bool
	reduce  bool

	one plan.Reduced
}

func parse(args []string) (options, error) {
	o := options{}
	flags := flag.NewFlagSet("simulation", flag.ContinueOnError)
	flags.Uint64Var(&o.seeds, "seeds", 0, "run this `number` of seeds")
	flags.DurationVar(&o.forTime, "for", 0, "run as many seeds as fit into this `time`")
	flags.Uint64Var(&o.first, "first", 1, "the first `seed`; 0 draws it")
	flags.IntVar(&o.workers, "workers", runtime.GOMAXPROCS(0), "run this `number` of seeds at a time, each in a process of its own")
	flags.BoolVar(&o.worker, "worker", false, "serve the jobs of another process")
	flags.BoolVar(&o.reduce, "reduce", true, "reduce a seed that fails to what is needed for it")
	flags.BoolVar(&o.log, "log", false, "with -seed: write the log of all nodes")
	o.one.AddFlags(flags)
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if o.seeds == 0 && o.forTime == 0 && o.one.Seed == 0 && !o.worker {
		o.seeds = 100
	}
	return o, nil
}
