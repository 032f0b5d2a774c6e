package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/mimiktech/cluster/internal/proctest"
	"github.com/mimiktech/cluster/mit"
)

//nolint:gochecknoglobals // derived from a constant
var resourceID = mit.ResourceID("mds")

// A result is a row of the table.
type result struct {
	name          string
	before, after proctest.Usage
	descriptors   int // at most, during the attack
	figure        string
	broken        error // the bounds that are broken; nil if all hold
}

func (r result) String() string {
	verdict := "holds"
	if r.broken != nil {
		verdict = "BROKEN: " + strings.ReplaceAll(r.broken.Error(), "\n", "; ")
	}
	return fmt.Sprintf("%s\t%d MiB\t%d\t%d\t%v\t%d → %d → %d\t%s; %s", r.name, r.before.RSS/mebibyte, r.after.RSS/mebibyte, r.after.Peak/mebibyte,
		r.after.CPU-r.before.CPU, r.before.Descriptors, r.descriptors, r.after.Descriptors, r.figure, verdict)
}

// runAlone runs one attack against new nodes.
func runAlone(ctx context.Context, service string, a attack) (result, error) {
	w, err := newWorld(ctx, service)
	if err != nil {
		return result{}, err
	}
	defer w.close()
	if a.bare {
		if err := w.replaceVictim(ctx); err != nil {
			return result{}, err
		}
	}
	r := result{name: a.name}
	if r.before, err = w.victim.usage(); err != nil {
		return result{}, err
	}
	stop := r.watchDescriptors(ctx, w.victim)
	done, broken := a.run(ctx, w)
	stop()
	r.figure = done.figure
	if done.arrived < a.inputs {
		broken = errors.Join(broken, fmt.Errorf("only %d of %d inputs have arrived", done.arrived, a.inputs))
	}
	if a.check != nil {
		broken = errors.Join(broken, a.check(ctx, w))
	}
	broken = errors.Join(broken, w.checkRegistered(ctx, w.victim, w.peer))
	r.finish(w, a.memory, a.files, broken)
	return r, nil
}

// replaceVictim replaces the victim by a node with a bare http.Server.
func (w *world) replaceVictim(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	bare, err := w.startNode(ctx, self, "bare")
	if err != nil {
		return err
	}
	w.victim.stop()
	w.victim = bare
	w.since, err = w.registrations(ctx)
	return err
}

// watchDescriptors records how many descriptors a node has at most, until stop is called.
func (r *result) watchDescriptors(ctx context.Context, n *node) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		for sleep(ctx, 20*time.Millisecond) == nil {
			if u, err := n.usage(); err == nil {
				r.descriptors = max(r.descriptors, u.Descriptors)
			}
		}
	})
	return func() {
		cancel()
		watch.Wait()
	}
}

// finish reads the usage after an attack, and checks that the node needed no more memory and
// descriptors than given.
func (r *result) finish(w *world, memory int64, files int, broken error) {
	var err error
	if r.after, err = w.victim.usage(); err != nil || !w.victim.alive() {
		r.broken = errors.Join(broken, errors.New("the node has ended"), err)
		return
	}
	r.descriptors = max(r.descriptors, r.before.Descriptors, r.after.Descriptors)
	if grown := r.after.Peak - r.before.RSS; grown > memory {
		broken = errors.Join(broken, fmt.Errorf("%d MiB more than at rest, %d are allowed", grown/mebibyte, memory/mebibyte))
	}
	if grown := r.descriptors - r.before.Descriptors; grown > files {
		broken = errors.Join(broken, fmt.Errorf("%d descriptors more than at rest, %d are allowed", grown, files))
	}
	r.broken = broken
}

// The memory and the descriptors that a node may need under all attacks at once, beyond those at
// rest. The documents state them.
const (
	memoryUnderAttack = 768 * mebibyte
	filesUnderAttack  = 1024
)

// restTime bounds the time until a node is at rest after the attacks: until it has hardly more
// memory than before.
const restTime = 2 * time.Minute

// together says how all attacks run at once.
type together struct {
	time time.Duration
	idle bool // attacks, peers and registry run only while a processor is free
}

// runTogether runs all attacks at once. It calls ended, and waits until the node is at rest again.
func runTogether(ctx context.Context, service string, all together, ended func()) (result, error) {
	w, err := newWorld(ctx, service)
	if err != nil {
		return result{}, err
	}
	defer w.close()
	w.together, w.forged = true, 50 // the servers of the other attacks must fit into the view, too
	r := result{name: "all at once"}
	if r.before, err = w.victim.usage(); err != nil {
		return result{}, err
	}
	stop := r.watchDescriptors(ctx, w.victim)
	renewals := w.renewals.Load()
	var broken error
	health, err := w.checkHealth(ctx, all.idle, func() { r.figure, broken = w.attackTogether(ctx, all.time) })
	stop()
	if err != nil {
		return result{}, err
	}
	if renewals = w.renewals.Load() - renewals; renewals < int64(all.time/lease) {
		broken = errors.Join(broken, fmt.Errorf("only %d renewals in %v", renewals, all.time))
	}
	for _, times := range health {
		broken = errors.Join(broken, times.Check())
	}
	_, err = w.callForged(ctx, "gzip", 60) // the last call leaves much memory
	broken = errors.Join(broken, err)
	broken = errors.Join(broken, w.checkRegistered(ctx, w.victim, w.peer, w.other), checkTexts(ctx, w))
	ended()
	r.finish(w, memoryUnderAttack, filesUnderAttack, broken)
	rest, err := w.waitForRest(ctx, r.before.RSS)
	r.broken = errors.Join(r.broken, err)
	r.figure = fmt.Sprintf("%s; %d renewals; %v; of a peer: %v; %s", r.figure, renewals, health[0], health[1], rest)
	return r, nil
}

// healthBounds are how late a node may answer health checks under all attacks at once. The
// documents state them.
//
//nolint:gochecknoglobals // a constant
var healthBounds = proctest.HealthBounds{Time: 100 * time.Millisecond, SlowPercent: 2, Stall: 500 * time.Millisecond}

// checkHealth checks the health of the victim and of a peer during f. From the first check on, this
// process and the peers have a low priority, or run only while a processor is free.
func (w *world) checkHealth(ctx context.Context, idle bool, f func()) ([2]proctest.HealthTimes, error) {
	var times [2]proctest.HealthTimes
	nodes := [2]*node{w.victim, w.peer}
	self, err := os.Executable()
	if err != nil {
		return times, err
	}
	var before [2]proctest.Usage
	for i, n := range nodes {
		if before[i], err = n.usage(); err != nil {
			return times, err
		}
	}
	checker := exec.CommandContext(ctx, self)
	checker.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s/healthz %s/healthz", modeVariable, checkerMode, w.victim.url, w.peer.url))
	giveWay := proctest.GiveWay
	if idle {
		giveWay = proctest.RunIdle
	}
	health, err := proctest.StartHealthChecks(checker, func() error { return giveWay(w.peer.cmd.Process.Pid, w.other.cmd.Process.Pid) })
	if err != nil {
		return times, err
	}
	f()
	samples, err := health.Stop()
	if err != nil {
		return times, fmt.Errorf("health checks: %w", err)
	}
	for i, n := range nodes {
		after, usageErr := n.usage()
		err = errors.Join(err, usageErr)
		times[i] = samples.Times(i, proctest.Slowdown(before[i], after), healthBounds)
	}
	return times, err
}

// attackTogether runs all attacks again and again for d. At least a quarter of the inputs of each
// must arrive. What they achieve is checked only when each runs alone. It returns how many inputs
// arrived.
func (w *world) attackTogether(ctx context.Context, d time.Duration) (arrivals string, err error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	all := attacks()
	arrived := make([]int, len(all))
	last := make([]error, len(all))
	each(len(all), func(i int) {
		for ctx.Err() == nil {
			r, err := all[i].run(ctx, w)
			if arrived[i] += r.arrived; err != nil && ctx.Err() == nil {
				last[i] = err
			}
			_ = sleep(ctx, 200*time.Millisecond) // the loop checks ctx
		}
	})
	for i, a := range all {
		if arrivals += fmt.Sprintf("%s %d, ", a.name, arrived[i]); 4*arrived[i] < a.inputs {
			err = errors.Join(err, fmt.Errorf("%s: only %d inputs have arrived", a.name, arrived[i]), last[i])
		}
	}
	return strings.TrimSuffix(arrivals, ", "), err
}

// waitForRest waits until the victim is at rest again, and returns how long that took.
func (w *world) waitForRest(ctx context.Context, rest int64) (string, error) {
	var u proctest.Usage
	for start := time.Now(); time.Since(start) < restTime; {
		var err error
		if u, err = w.victim.usage(); err != nil {
			return "", err
		}
		if u.RSS < 2*rest+32*mebibyte {
			return fmt.Sprintf("%d MiB after %v", u.RSS/mebibyte, time.Since(start).Round(time.Second)), nil
		}
		if err := sleep(ctx, time.Second); err != nil {
			return "", err
		}
	}
	return "", fmt.Errorf("%d MiB after %v of rest", u.RSS/mebibyte, restTime)
}
