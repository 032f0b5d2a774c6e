package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/mimiktech/cluster/mit"
)

//nolint:gochecknoglobals // derived from a constant
var resourceID = mit.ResourceID("mds")

// A result is a row of the table.
type result struct {
	name          string
	before, after usage
	figure        string
	broken        error // the bound that is broken; nil if all hold
}

func (r result) String() string {
	verdict := "holds"
	if r.broken != nil {
		verdict = "BROKEN: " + r.broken.Error()
	}
	return fmt.Sprintf("%s\t%d MiB\t%d\t%d\t%v\t%d → %d\t%s; %s", r.name, r.before.rss/mebibyte, r.after.rss/mebibyte, r.after.peak/mebibyte,
		r.after.cpu-r.before.cpu, r.before.descriptors, r.after.descriptors, r.figure, verdict)
}

// runAlone runs one attack against new nodes.
func runAlone(ctx context.Context, service string, a attack) (result, error) {
	w, err := newWorld(ctx, service)
	if err != nil {
		return result{}, err
	}
	defer w.close()
	r := result{name: a.name}
	if r.before, err = w.victim.usage(); err != nil {
		return result{}, err
	}
	figure, broken := a.run(ctx, w)
	r.figure = figure
	if a.check != nil {
		broken = errors.Join(broken, a.check(ctx, w))
	}
	r.finish(w, a.memory, broken)
	return r, nil
}

// finish reads the usage after an attack.
func (r *result) finish(w *world, memory int64, broken error) {
	var err error
	if r.after, err = w.victim.usage(); err != nil || !w.victim.alive() {
		r.broken = errors.Join(broken, errors.New("the node has ended"), err)
		return
	}
	if grown := r.after.peak - r.before.rss; grown > memory {
		broken = errors.Join(broken, fmt.Errorf("%d MiB more than at rest, %d are allowed", grown/mebibyte, memory/mebibyte))
	}
	r.broken = broken
}

// The memory that a node may need under all attacks at once, beyond that at rest. The documents
// state it.
const memoryUnderAttack = 1 << 30

// maxHealthTime is how long the node may take to answer a health check, at the median, on a machine
// with a processor left. 60 to 104 ms were measured on one. On a machine with more to do,
// each process waits for its turn, and the bound is higher in proportion; see overload.
const maxHealthTime = 100 * time.Millisecond

// overload returns how many processes want to run for each processor; at least 1.
func overload() float64 {
	text, err := os.ReadFile("/proc/loadavg")
	load := 0.0
	if err == nil {
		_, _ = fmt.Sscan(string(text), &load) // 0 if it has another format
	}
	return max(1, load/float64(runtime.NumCPU()))
}

// runTogether runs all attacks at once for d, except for the one that kills a peer. It then waits
// until the memory of the node is back, for rest at most.
func runTogether(ctx context.Context, service string, d, rest time.Duration) (result, error) {
	w, err := newWorld(ctx, service)
	if err != nil {
		return result{}, err
	}
	defer w.close()
	r := result{name: "all at once"}
	if r.before, err = w.victim.usage(); err != nil {
		return result{}, err
	}
	attackCtx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	renewals := w.renewals.Load()
	var wg sync.WaitGroup
	for _, a := range attacks() {
		if a.name == "forged" {
			continue
		}
		wg.Go(func() {
			for attackCtx.Err() == nil {
				_, _ = a.run(attackCtx, w)        // judged when it runs alone
				_ = sleep(attackCtx, time.Second) // it ends soon
			}
		})
	}
	times, broken := w.checkHealth(attackCtx)
	wg.Wait()
	renewals = w.renewals.Load() - renewals
	if renewals < int64(d/lease) {
		broken = errors.Join(broken, fmt.Errorf("only %d renewals in %v", renewals, d))
	}
	broken = errors.Join(broken, w.checkListed(ctx), checkTexts(ctx, w))
	r.finish(w, memoryUnderAttack, broken)
	r.figure = fmt.Sprintf("%d renewals, health checks: median %v, maximum %v, median of a peer %v; %s",
		renewals, times.median, times.longest, times.peer, w.waitForRest(ctx, r.before.rss, rest))
	return r, nil
}

type healthTimes struct{ median, longest, peer time.Duration }

// checkHealth sends health checks until ctx ends.
func (w *world) checkHealth(ctx context.Context) (healthTimes, error) {
	var took, ofPeer []time.Duration
	failed := 0
	check := func(n *node) time.Duration {
		start := time.Now()
		if _, err := n.get(context.WithoutCancel(ctx), "/healthz", 5*time.Second); err != nil {
			failed++
		}
		return time.Since(start).Round(time.Millisecond)
	}
	for sleep(ctx, 50*time.Millisecond) == nil {
		took, ofPeer = append(took, check(w.victim)), append(ofPeer, check(w.peer))
	}
	if len(took) == 0 {
		return healthTimes{}, errors.New("no health check")
	}
	slices.Sort(took)
	slices.Sort(ofPeer)
	t := healthTimes{took[len(took)/2], took[len(took)-1], ofPeer[len(ofPeer)/2]}
	var err error
	if limit := time.Duration(overload() * float64(maxHealthTime)); t.median > limit || failed > 0 {
		err = fmt.Errorf("health checks: %d of %d failed, the median took %v", failed, len(took), t.median)
	}
	return t, err
}

// checkListed checks that no node has been evicted: all run.
func (w *world) checkListed(ctx context.Context) error {
	for range 20 {
		r, err := w.memory.Get(ctx, resourceID)
		if err == nil && len(r.Servers) == 3 {
			return nil
		}
		if err := sleep(ctx, 500*time.Millisecond); err != nil {
			return err
		}
	}
	return errors.New("a healthy node is not registered any more")
}

// waitForRest says after how long the memory of the victim is back.
func (w *world) waitForRest(ctx context.Context, rest int64, timeout time.Duration) string {
	start := time.Now()
	for time.Since(start) < timeout {
		u, err := w.victim.usage()
		if err != nil || sleep(ctx, time.Second) != nil {
			break
		}
		if u.rss < 2*rest+32*mebibyte {
			return fmt.Sprintf("%d MiB after %v", u.rss/mebibyte, time.Since(start).Round(time.Second))
		}
	}
	return fmt.Sprintf("not at rest after %v", timeout)
}
