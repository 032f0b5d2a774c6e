// Command registry puts a real registry under load: thousands of simulated nodes in this process,
// over a link of limited bandwidth, and clients that misbehave.
//
//	go build -o /tmp/mit ../cmd/mit
//	go run ./registry -mit /tmp/mit -nodes 5000 -rate 30             # all nodes start at once
//	go run ./registry -mit /tmp/mit -nodes 5000 -rate 30 -spread 30s # they come back after an outage
//	go run ./registry -mit /tmp/mit -scenario attack -nodes 10000 -cgroup /sys/fs/cgroup/memory/mit
//	go run ./registry -mit /tmp/mit -scenario soak -nodes 5000 -for 30m
//
// The memory cgroup (version 1) must exist and have its limit. All connections stay on the loopback
// network; each node has an address of its own there.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/signal"
	"sync/atomic"
	"time"
)

type settings struct {
	mit, cgroup, scenario string
	probe                 string // a URL
	nodes                 int
	rate                  float64 // MB/s
	spread, duration      time.Duration
	lease                 time.Duration
	fixedPauses           bool
}

func main() {
	var s settings
	flag.StringVar(&s.mit, "mit", "", "the `program` to test")
	flag.StringVar(&s.cgroup, "cgroup", "", "`directory` of a memory cgroup to run it in")
	flag.StringVar(&s.scenario, "scenario", "start", "start, attack or soak")
	flag.IntVar(&s.nodes, "nodes", 5000, "number of nodes")
	flag.Float64Var(&s.rate, "rate", 0, "bandwidth from the registry to the nodes in MB/s; 0 for no limit")
	flag.DurationVar(&s.spread, "spread", 0, "time within which the nodes make their first attempt")
	flag.DurationVar(&s.duration, "for", 2*time.Minute, "maximum time of the scenario")
	flag.DurationVar(&s.lease, "lease", 2*time.Hour, "lease")
	flag.BoolVar(&s.fixedPauses, "fixed-pauses", false, "let nodes pause 3 s after each failure, whatever the response asks for")
	flag.StringVar(&s.probe, "probe", "", "check this `URL` for another process, until the standard input ends")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if s.probe != "" {
		probe(ctx, s.probe, os.Stdin, os.Stdout)
		return
	}
	if err := run(ctx, s, os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, s settings, w io.Writer) error {
	scenarios := map[string]func(context.Context, *process, settings, io.Writer) error{
		"start": start, "attack": attack, "soak": soak,
	}
	scenario := scenarios[s.scenario]
	if scenario == nil || s.mit == "" {
		return fmt.Errorf("unknown scenario %q, or no program", s.scenario)
	}
	p, err := startProcess(ctx, s)
	if err != nil {
		return err
	}
	defer p.stop()
	if err := scenario(ctx, p, s, w); err != nil {
		return err
	}
	rss, peak := p.memory()
	p.stop()
	cpu := p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
	fmt.Fprintf(w, "\nmemory of the registry: %d MB, at most %d MB; CPU time: %.1f s\n", rss>>20, peak>>20, cpu.Seconds())
	return nil
}

// start lets all nodes register once.
func start(ctx context.Context, p *process, s settings, w io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, s.duration)
	defer cancel()
	link, err := newLink(ctx, p.address, s.rate*1e6)
	if err != nil {
		return err
	}
	f := newFleet(p, link.address(), s)
	fmt.Fprintf(w, "| time | registered | rejected | failed | received |\n| ---: | ---: | ---: | ---: | ---: |\n")
	began := time.Now()
	done := f.registerAll(ctx)
	ticker := time.NewTicker(2 * time.Second)
	defer ticker.Stop()
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-ticker.C:
		}
		fmt.Fprintf(w, "| %.1f s | %d | %d | %d | %d MB |\n", time.Since(began).Seconds(),
			f.registered.Load(), f.rejected.Load(), f.failed.Load(), link.sent.Load()>>20)
	}
	fmt.Fprintf(w, "\n%d of %d nodes are registered after %.1f s; the last one took %.1f s from its first attempt.\n",
		f.registered.Load(), s.nodes, time.Since(began).Seconds(), time.Duration(f.slowest.Load()).Seconds())
	fmt.Fprintf(w, "A node discarded at most %d responses and made at most %d attempts.\n", f.maxDiscarded.Load(), f.maxAttempts.Load())
	return nil
}

func maximum(a *atomic.Int64, n int64) {
	for old := a.Load(); n > old && !a.CompareAndSwap(old, n); old = a.Load() {
	}
}
