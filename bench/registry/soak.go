package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// soak lets all nodes renew and some of them restart, next to one hostile client, and prints the
// memory of the registry every minute.
func soak(ctx context.Context, p *process, s settings, w io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, s.duration)
	defer cancel()
	f := newFleet(p, p.address, s)
	health, err := watchHealth(ctx, p)
	if err != nil {
		return err
	}
	var renewals, rejected, failed, restarts atomic.Int64
	var wg sync.WaitGroup
	for i := range s.nodes {
		wg.Go(func() {
			pause(ctx, rand.N(max(s.spread, s.lease*2/3)))
			n := newNode(f, i)
			for ctx.Err() == nil {
				if rand.N(100) == 0 { // under a new id, as a container
					n.close()
					n = newNode(f, i)
					restarts.Add(1)
				}
				wait, err := n.renew(ctx)
				switch {
				case ctx.Err() != nil:
				case err == nil:
					renewals.Add(1)
					wait = jitter(s.lease * 2 / 3)
				case errors.Is(err, errRejected):
					rejected.Add(1)
					wait = max(wait, time.Second)
				default:
					failed.Add(1)
					wait = jitter(firstPause)
				}
				n.close()
				pause(ctx, wait)
			}
		})
	}
	wg.Go(func() { hostile(ctx, p) })
	fmt.Fprintf(w, "| time | memory | renewals | rejected | failed | restarts |\n| ---: | ---: | ---: | ---: | ---: | ---: |\n")
	for began := time.Now(); ctx.Err() == nil; {
		pause(ctx, time.Minute)
		rss, _ := p.memory()
		fmt.Fprintf(w, "| %.0f min | %d MB | %d | %d | %d | %d |\n", time.Since(began).Minutes(), rss>>20,
			renewals.Load(), rejected.Load(), failed.Load(), restarts.Load())
	}
	wg.Wait()
	return health.print(w)
}
