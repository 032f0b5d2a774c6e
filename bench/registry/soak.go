package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mimiktech/cluster/internal/proctest"
)

// soak lets all nodes renew and some of them restart, next to one hostile client, and prints the
// memory of the registry every minute.
func soak(ctx context.Context, p *process, s settings, w io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, s.duration)
	defer cancel()
	f := newFleet(p, p.address, s)
	h := newHostileClient(p, s.hostile)
	var r renewals
	var restarts atomic.Int64
	err := checkHealth(ctx, p, s, w, func() {
		var wg sync.WaitGroup
		for i := range s.nodes {
			wg.Go(func() { r.live(ctx, f, i, &restarts) })
		}
		wg.Go(func() { h.attack(ctx) })
		fmt.Fprintf(w, "| time | memory | renewals | rejected | failed | restarts |\n| ---: | ---: | ---: | ---: | ---: | ---: |\n")
		for began := time.Now(); ctx.Err() == nil; {
			pause(ctx, time.Minute)
			u, _ := proctest.ProcessUsage(p.cmd.Process.Pid) // it may have ended
			fmt.Fprintf(w, "| %.0f min | %d MB | %d | %d | %d | %d |\n", time.Since(began).Minutes(), u.RSS>>20,
				r.done.Load(), r.rejected.Load(), r.failed.Load(), restarts.Load())
		}
		wg.Wait()
	})
	fmt.Fprintf(w, "%v\n%v\n", &r, h)
	return errors.Join(h.check(), r.check(s.nodes), r.checkNoneRejected(), f.checkLists(), err)
}

// live is the life of the ith node: it renews, and restarts now and then.
func (r *renewals) live(ctx context.Context, f *fleet, i int, restarts *atomic.Int64) {
	s := f.s
	pause(ctx, rand.N(cmp.Or(s.spread, s.settle/2)))
	n := newNode(f, i, 0)
	for generation := 0; ctx.Err() == nil; {
		if rand.N(100) == 0 { // under a new id, as a container
			generation++
			n = newNode(f, i, generation)
			restarts.Add(1)
		}
		wait, err := n.renew(ctx)
		r.count(ctx, err)
		n.close()
		switch {
		case err == nil:
			wait = jitter(s.lease * 2 / 3)
		case errors.Is(err, errRejected):
			wait = max(wait, time.Second)
		default:
			wait = jitter(s.pause)
		}
		pause(ctx, wait)
	}
}
