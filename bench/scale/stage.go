package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mimiktech/cluster/clustertest"
)

// A stage is what clustertest needs of a test, outside of one: somewhere to fail, and an end.
type stage struct {
	testing.TB // for what is not called

	ctx      context.Context //nolint:containedctx // the stage's own: it ends with it
	cleanups []func()
	err      error
}

// perform runs a play, and what is to be done after it.
func perform(ctx context.Context, play func(*stage)) error {
	ctx, cancel := context.WithCancel(ctx)
	s := &stage{ctx: ctx}
	done := make(chan struct{})
	go func() { // Fatal ends it
		defer close(done)
		defer func() {
			cancel()
			for _, f := range slices.Backward(s.cleanups) {
				f()
			}
		}()
		play(s)
	}()
	<-done
	return s.err
}

func (s *stage) Helper()                  {}
func (s *stage) Context() context.Context { return s.ctx }
func (s *stage) Cleanup(f func())         { s.cleanups = append(s.cleanups, f) }

func (s *stage) Fatal(args ...any) {
	s.err = fmt.Errorf("%s", fmt.Sprint(args...))
	runtime.Goexit()
}

func (s *stage) Fatalf(format string, args ...any) {
	s.err = fmt.Errorf(format, args...)
	runtime.Goexit()
}

// A cost is what something took.
type cost struct {
	Requests, Failed int64
	Sent, Received   int64 // bytes of bodies
	Took             time.Duration
}

// costing measures what is done, all of which goes over the network.
func costing(network *clustertest.Network, do func()) cost {
	var requests, failed, sent, received atomic.Int64
	stop := network.Observe(func(x clustertest.Exchange) {
		requests.Add(1)
		if x.Err != nil || x.Status >= 400 {
			failed.Add(1)
		}
		sent.Add(x.Sent)
		received.Add(x.Received)
	})
	defer stop()
	start := time.Now()
	do()
	took := time.Since(start)
	return cost{requests.Load(), failed.Load(), sent.Load(), received.Load(), took}
}

// middle is the cost of the round that took neither the longest nor the shortest time.
func middle(costs []cost) cost {
	slices.SortFunc(costs, func(a, b cost) int { return int(a.Took - b.Took) })
	return costs[len(costs)/2]
}

func size(bytes int64) string {
	switch b := float64(bytes); {
	case b >= 1e9:
		return fmt.Sprintf("%.1f GB", b/1e9)
	case b >= 1e6:
		return fmt.Sprintf("%.1f MB", b/1e6)
	case b >= 1e3:
		return fmt.Sprintf("%.1f kB", b/1e3)
	}
	return fmt.Sprintf("%d B", bytes)
}

func span(d time.Duration) string {
	if d >= time.Second {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return fmt.Sprintf("%.1f ms", float64(d)/1e6)
}
