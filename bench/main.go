//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/mimiktech/cluster/bench/internal/intlist"
	"github.com/mimiktech/cluster/internal/proctest"
)

// The roles in which the driver starts its own binary.
const (
	stubRole       = "stub"
	contestantRole = "contestant"
)

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		logf("bench: %v", err)
		os.Exit(1)
	}
}

// run runs the driver, the stub cluster or a contestant, depending on the arguments.
func run(args []string) error {
	if len(args) == 1 && args[0] == stubRole {
		return runStub()
	}
	if len(args) == 2 && args[0] == contestantRole {
		return runContestant(args[1])
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := proctest.WithParent(ctx)
	defer cancel()
	err := drive(ctx, args)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause // err is a consequence of it
	}
	return err
}

// An experiment measures one aspect of the contestants and returns the result as Markdown.
type experiment struct {
	name, title string
	run         func(*harness, context.Context) (string, error)
}

func experiments() []experiment {
	return []experiment{
		{"calls", "Calls", (*harness).calls},
		{"overhead", "Overhead over net/http", (*harness).overhead},
		{"start", "The first call", (*harness).start},
		{"burst", "Concurrent calls after a restart of all peers", (*harness).burst},
		{"tail", "Occasional slow responses", (*harness).tail},
		{"failures", "Failing peers", (*harness).failures},
		{"join", "Joining and leaving", (*harness).join},
	}
}

// drive runs the experiments that the arguments name.
func drive(ctx context.Context, args []string) error {
	o, selected, err := parse(args)
	if err != nil {
		return err
	}
	h, err := newHarness(ctx, o, logf)
	if err != nil {
		return err
	}
	defer h.close()
	for _, e := range selected {
		text, err := e.run(h, ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
		if _, err := fmt.Fprintf(os.Stdout, "## %s\n\n%s\n", e.title, text); err != nil {
			return err
		}
	}
	if _, err := os.Stdout.WriteString(h.report()); err != nil {
		return err
	}
	if o.Plot == "" {
		return nil
	}
	svg, err := draw(h.results, h.scenarioResults)
	if err != nil {
		return err
	}
	return os.WriteFile(o.Plot, []byte(svg), 0o644)
}

// parse returns the options and the experiments of a command line.
func parse(args []string) (options, []experiment, error) {
	o := options{}
	peers := intlist.List{Min: 1, Values: []int{10, 100, 1000}}
	callers := intlist.List{Min: 1, Values: []int{1, 8}}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	contestants := flags.String("contestants", strings.Join(allContestants(), ";"), "contestants, separated by semicolons")
	flags.Var(&peers, "peers", "`numbers` of peers")
	flags.Var(&callers, "callers", "`numbers` of concurrent calls")
	flags.IntVar(&o.Rounds, "rounds", 7, "rounds of each contestant")
	flags.IntVar(&o.FailureRounds, "failure-rounds", 0, "rounds of the failures experiment, which takes long (default -rounds)")
	flags.DurationVar(&o.Time, "time", time.Second, "duration of a round")
	flags.IntVar(&o.Size, "size", 100, "bytes of data in each response")
	flags.DurationVar(&o.Delay, "delay", 0, "response time of each peer")
	flags.DurationVar(&o.Timeout, "timeout", 10*time.Second, "request timeout, except in the failures experiment")
	flags.StringVar(&o.NPM, "npm", "../interop/npm", "`folder` of the package.json and the lock file of the npm module")
	flags.StringVar(&o.Profiles, "profiles", "", "`folder` to write profiles of the first rounds to")
	flags.StringVar(&o.Plot, "plot", "", "`file` to write a plot of calls and failures to, as SVG")
	brief := flags.Bool("brief", false, "run one short round with few peers, to check that it works")
	if err := flags.Parse(args); err != nil {
		return o, nil, err
	}
	o.Peers, o.Callers = peers.Values, callers.Values
	if *brief {
		o.Peers, o.Callers, o.Rounds, o.FailureRounds, o.Time = []int{10, 100}, []int{1, 8}, 1, 1, 50*time.Millisecond
	}
	o.FailureRounds = cmp.Or(o.FailureRounds, o.Rounds)
	if o.Rounds < 1 || o.FailureRounds < 1 {
		return o, nil, errors.New("the number of rounds must be positive")
	}
	for name := range strings.SplitSeq(*contestants, ";") {
		if name = strings.TrimSpace(name); !slices.Contains(allContestants(), name) {
			return o, nil, fmt.Errorf("unknown contestant %q, want one of %q", name, allContestants())
		}
		o.Names = append(o.Names, name)
	}
	selected, err := selectExperiments(flags.Args())
	return o, selected, err
}

// selectExperiments returns the experiments with these names, by default the first one.
func selectExperiments(names []string) ([]experiment, error) {
	all := experiments()
	if len(names) == 0 {
		return all[:1], nil
	}
	var selected []experiment
	for _, name := range names {
		i := slices.IndexFunc(all, func(e experiment) bool { return e.name == name })
		if i < 0 {
			return nil, fmt.Errorf("unknown experiment %q", name)
		}
		selected = append(selected, all[i])
	}
	return selected, nil
}

func logf(format string, args ...any) { _, _ = fmt.Fprintf(os.Stderr, format+"\n", args...) }
