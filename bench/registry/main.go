// Command registry puts a real registry under load: thousands of simulated nodes in this process,
// over a link of limited bandwidth, and clients that misbehave.
//
//	go build -o /tmp/mit ../cmd/mit
//	go run ./registry -mit /tmp/mit -nodes 5000 -rate 30             # all nodes start at once
//	go run ./registry -mit /tmp/mit -nodes 5000 -rate 30 -spread 30s # they come back after an outage
//	go run ./registry -mit /tmp/mit -scenario unread -for 30s -cgroup /sys/fs/cgroup/memory/mit
//	go run ./registry -mit /tmp/mit -scenario attack -nodes 10000 -cgroup /sys/fs/cgroup/memory/mit
//	go run ./registry -mit /tmp/mit -scenario soak -nodes 5000 -lease 10m -for 30m
//
// The scenarios:
//
//   - start: all nodes register once.
//   - unread: a hostile client registers long entries and does not read lists.
//   - attack: all nodes are registered and renew in turn without a pause, while the hostile client
//     also keeps connections open.
//   - soak: all nodes renew and some restart, next to the hostile client.
//
// The -max flags set bounds. The exit code is 1 if a bound is broken, or if the load has not
// reached the registry.
//
// The memory cgroup (version 1) must exist and have its limit. All connections stay on the loopback
// network; each node has an address of its own there. The program needs Linux.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/mimiktech/cluster/internal/proctest"
)

type settings struct {
	mit, cgroup, scenario string
	probe                 string // a URL
	nodes                 int
	decode                int // one list in so many
	seed                  uint64
	rate                  float64 // MB/s
	spread, duration      time.Duration
	settle                time.Duration
	lease                 time.Duration
	timeout               time.Duration // of requests of nodes
	pause                 time.Duration // of nodes, after a failure; it grows
	fixedPauses           bool
	hostile               hostileLoad
	bounds                bounds
}

func main() {
	var s settings
	s.addFlags(flag.CommandLine)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if s.probe != "" {
		if err := proctest.CheckHealth(ctx, []string{s.probe}, os.Stdin, os.Stdout); err != nil {
			log.Fatal(err)
		}
		return
	}
	if err := run(ctx, s, os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func (s *settings) addFlags(fs *flag.FlagSet) {
	fs.StringVar(&s.mit, "mit", "", "the `program` to test")
	fs.StringVar(&s.cgroup, "cgroup", "", "`directory` of a memory cgroup to run it in")
	fs.StringVar(&s.scenario, "scenario", "start", "start, unread, attack or soak")
	fs.IntVar(&s.nodes, "nodes", 5000, "number of nodes")
	fs.IntVar(&s.decode, "decode", 50, "decode one in `n` lists: decoding all of them takes all CPU time")
	fs.Uint64Var(&s.seed, "seed", 1, "seed of the ids, addresses and locations of the nodes")
	fs.Float64Var(&s.rate, "rate", 0, "bandwidth from the registry to the nodes in MB/s; 0 for no limit")
	fs.DurationVar(&s.spread, "spread", 0, "time within which the nodes make their first attempt (soak: half of -settle by default)")
	fs.DurationVar(&s.duration, "for", 2*time.Minute, "maximum time of the scenario")
	fs.DurationVar(&s.settle, "settle", 5*time.Minute, "time after which the memory must stay flat in the soak")
	fs.DurationVar(&s.lease, "lease", 2*time.Hour, "lease")
	fs.BoolVar(&s.fixedPauses, "fixed-pauses", false, "let nodes pause 3 s after each failure, whatever the response asks for")
	fs.StringVar(&s.probe, "probe", "", "check this `URL` for another process, until the standard input ends")
	fs.IntVar(&s.hostile.rounds, "rounds", 0, "end unread or attack after so many rounds of the hostile client")
	s.timeout, s.pause = requestTimeout, firstPause
	s.hostile.entries, s.hostile.lists, s.hostile.idle, s.hostile.hold = 200, 400, 1500, 4*time.Second
	s.bounds.addFlags(fs)
}

// run runs a scenario, and returns an error if a bound is broken.
func run(ctx context.Context, s settings, w io.Writer) error {
	scenarios := map[string]func(context.Context, *process, settings, io.Writer) error{
		"start": start, "unread": unread, "attack": attack, "soak": soak,
	}
	scenario := scenarios[s.scenario]
	if scenario == nil || s.mit == "" || s.nodes < 1 || s.decode < 1 {
		return fmt.Errorf("unknown scenario %q, no program, or a number below 1", s.scenario)
	}
	p, err := startProcess(ctx, s)
	if err != nil {
		return err
	}
	defer p.stop()
	watched, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p.watch(watched, cancel)
	broken := scenario(watched, p, s, w)
	cancel(nil)
	usages := p.usages()
	p.stop()
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	fmt.Fprintln(w, usages)
	broken = errors.Join(usages.check(cmp.Or(s.bounds.memory, s.defaultMemory())), broken)
	if s.scenario == "soak" {
		broken = errors.Join(broken, s.bounds.checkFlat(usages.samples, s.settle))
	}
	if broken != nil {
		return fmt.Errorf("bounds are broken:\n  %s", strings.ReplaceAll(broken.Error(), "\n", "\n  "))
	}
	return nil
}

// defaultMemory returns the bound of the memory in MB.
func (s *settings) defaultMemory() int64 {
	if s.scenario == "start" {
		return 300
	}
	return 512
}
