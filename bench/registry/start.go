package main

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

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
	fmt.Fprintf(w, "\n%d of %d nodes are registered after %.1f s; the slowest was registered %.1f s after its first attempt.\n",
		f.registered.Load(), s.nodes, time.Since(began).Seconds(), time.Duration(f.slowest.Load()).Seconds())
	fmt.Fprintf(w, "A node discarded at most %d responses and made at most %d attempts. %d lists were decoded.\n",
		f.maxDiscarded.Load(), f.maxAttempts.Load(), f.decoded.Load())
	return s.bounds.checkStart(f)
}

func maximum(a *atomic.Int64, n int64) {
	for old := a.Load(); n > old && !a.CompareAndSwap(old, n); old = a.Load() {
	}
}
