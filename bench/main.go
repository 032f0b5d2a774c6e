//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		say("bench: %v", err)
		os.Exit(1)
	}
}

// run is the driver, or one of the roles in which it starts itself.
func run(args []string) error {
	if len(args) == 1 && args[0] == "stub" {
		return runStub()
	}
	if len(args) == 2 && args[0] == "contestant" {
		return runContestant(args[1])
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return drive(ctx, args)
}

// An experiment measures something, and tells of it in Markdown.
type experiment struct {
	Name, Title string
	Run         func(*lab, context.Context) (string, error)
}

func experiments() []experiment {
	return []experiment{
		{"calls", "Calls", (*lab).calls},
		{"added", "What is added to net/http", (*lab).added},
		{"start", "The first call", (*lab).start},
		{"burst", "Calls that begin together after all peers have restarted", (*lab).burst},
		{"tail", "Now and then a slow answer", (*lab).tail},
		{"bad", "Bad days", (*lab).bad},
		{"join", "Joining and leaving", (*lab).join},
	}
}

func drive(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	p := plan{}
	names := flags.String("contestants", strings.Join(everybody(), ";"), "who takes part, parted by semicolons")
	peers := flags.String("peers", "10,100,1000", "numbers of peers")
	callers := flags.String("callers", "1,8", "numbers of calls under way at once")
	flags.IntVar(&p.Rounds, "rounds", 7, "rounds of each contestant")
	flags.DurationVar(&p.Time, "time", time.Second, "how long a round takes")
	flags.IntVar(&p.Size, "size", 100, "bytes of data in each answer")
	flags.DurationVar(&p.Delay, "delay", 0, "how long each peer takes to answer")
	flags.DurationVar(&p.Timeout, "timeout", 10*time.Second, "how long a request may take; on bad days it is 2 s")
	flags.StringVar(&p.NPM, "npm", "../interop/npm", "folder with the npm module's package.json and lock file")
	flags.StringVar(&p.Profiles, "profiles", "", "folder to put profiles of the first rounds in")
	brief := flags.Bool("brief", false, "little of everything, to see that it works")
	plot := flags.String("plot", "", "file for a plot of calls and bad days, in SVG")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var err error
	if p.Peers, err = numbers(*peers); err != nil {
		return err
	}
	if p.Callers, err = numbers(*callers); err != nil {
		return err
	}
	for name := range strings.SplitSeq(*names, ";") {
		if name = strings.TrimSpace(name); !slices.Contains(everybody(), name) {
			return fmt.Errorf("%q is none of %q", name, everybody())
		}
		p.Names = append(p.Names, name)
	}
	if *brief {
		p.Peers, p.Callers, p.Rounds, p.Time = []int{10, 100}, []int{1, 8}, 1, 50*time.Millisecond
	}
	if p.Rounds < 1 {
		return errors.New("no rounds")
	}
	chosen, err := choose(flags.Args())
	if err != nil {
		return err
	}

	l, err := open(ctx, p, say)
	if err != nil {
		return err
	}
	defer l.close()
	for _, e := range chosen {
		text, err := e.Run(l, ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", e.Name, err)
		}
		if _, err := fmt.Fprintf(os.Stdout, "## %s\n\n%s\n", e.Title, text); err != nil {
			return err
		}
	}
	if _, err := os.Stdout.WriteString(l.verdict()); err != nil {
		return err
	}
	if *plot != "" {
		picture, err := draw(l.all, l.days)
		if err != nil {
			return err
		}
		return os.WriteFile(*plot, []byte(picture), 0o644)
	}
	return nil
}

// choose is the experiments of those names; without any it is the first.
func choose(names []string) ([]experiment, error) {
	all := experiments()
	if len(names) == 0 {
		return all[:1], nil
	}
	var chosen []experiment
	for _, name := range names {
		i := slices.IndexFunc(all, func(e experiment) bool { return e.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no experiment %q", name)
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

func numbers(text string) ([]int, error) {
	var all []int
	for part := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(part))
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%q is not a number from 1 on", part)
		}
		all = append(all, n)
	}
	return all, nil
}
