package main

import (
	"context"
	"errors"
	"fmt"
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
const memoryUnderAttack = 768 * mebibyte

// restTime bounds the time until the memory of a node is back after the attacks.
const restTime = 2 * time.Minute

// runTogether runs all attacks at once for d, except for the one that kills a peer. It then waits
// until the memory of the node is back.
func runTogether(ctx context.Context, service string, d time.Duration) (result, error) {
	w, err := newWorld(ctx, service)
	if err != nil {
		return result{}, err
	}
	defer w.close()
	r := result{name: "all at once"}
	if r.before, err = w.victim.usage(); err != nil {
		return result{}, err
	}
	health, err := startChecker(ctx, w.victim, w.peer)
	if err != nil {
		return result{}, err
	}
	if err := giveWay(); err != nil {
		return result{}, err
	}
	renewals := w.renewals.Load()
	w.attackTogether(ctx, d)
	renewals = w.renewals.Load() - renewals
	times, broken := health.stop()
	if len(times) != 2 {
		return result{}, fmt.Errorf("health checks: %w", broken)
	}
	victim, peer := times[0], times[1]
	if victim.Median > maxHealthTime || victim.Failed > 0 {
		broken = fmt.Errorf("health checks: %d of %d failed, the median took %v", victim.Failed, victim.Checks, victim.Median)
	}
	if renewals < int64(d/lease) {
		broken = errors.Join(broken, fmt.Errorf("only %d renewals in %v", renewals, d))
	}
	broken = errors.Join(broken, w.checkListed(ctx), checkTexts(ctx, w))
	r.finish(w, memoryUnderAttack, broken)
	rest, err := w.waitForRest(ctx, r.before.rss)
	r.broken = errors.Join(r.broken, err)
	r.figure = fmt.Sprintf("%d renewals, health checks: median %v, maximum %v, median of a peer %v; %s",
		renewals, victim.Median, victim.Longest, peer.Median, rest)
	return r, nil
}

// attackTogether runs all attacks again and again for d.
func (w *world) attackTogether(ctx context.Context, d time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	var wg sync.WaitGroup
	for _, a := range attacks() {
		if a.name == "forged" {
			continue
		}
		wg.Go(func() {
			for ctx.Err() == nil {
				_, _ = a.run(ctx, w)        // judged when it runs alone
				_ = sleep(ctx, time.Second) // it ends soon
			}
		})
	}
	wg.Wait()
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

// waitForRest waits until the memory of the victim is back, and says how long that took.
func (w *world) waitForRest(ctx context.Context, rest int64) (string, error) {
	var u usage
	for start := time.Now(); time.Since(start) < restTime; {
		var err error
		if u, err = w.victim.usage(); err != nil {
			return "", err
		}
		if u.rss < 2*rest+32*mebibyte {
			return fmt.Sprintf("%d MiB after %v", u.rss/mebibyte, time.Since(start).Round(time.Second)), nil
		}
		if err := sleep(ctx, time.Second); err != nil {
			return "", err
		}
	}
	return "", fmt.Errorf("%d MiB after %v of rest", u.rss/mebibyte, restTime)
}
