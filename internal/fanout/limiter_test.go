package fanout

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// A caller is a call whose every request takes an hour.
type caller struct {
	*Call
	wg sync.WaitGroup
}

func (c *caller) work(g *Scheduler, requests int) {
	c.Call = g.NewCall(requests)
	c.register()
	c.wg.Go(func() {
		var workers sync.WaitGroup
		left := make(chan struct{}, requests)
		for range requests {
			left <- struct{}{}
		}
		close(left)
		for range left {
			if c.Acquire(context.Background()) != nil {
				return
			}
			workers.Go(func() {
				time.Sleep(time.Hour)
				for g.limiter.keep(c.Call) {
					if _, more := <-left; !more {
						c.Release()
						return
					}
					time.Sleep(time.Hour)
				}
			})
		}
		c.unregister()
		workers.Wait()
	})
}

func (c *caller) holds(g *Scheduler) int {
	g.limiter.mu.Lock()
	defer g.limiter.mu.Unlock()
	return c.held
}

// Calls that come have places once requests before them have been answered, and soon about their
// share: not quite, since here all are answered at one moment.
func TestPlacesAreSharedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(12)
		var large, later, small caller
		large.work(g, 12*10)
		synctest.Wait()
		if got := large.holds(g); got != 12 {
			t.Errorf("alone: %d places", got)
		}
		time.Sleep(time.Minute)
		later.work(g, 12*5)
		small.work(g, 2)
		synctest.Wait()
		if a, b, c := large.holds(g), later.holds(g), small.holds(g); a != 12 || b != 0 || c != 0 {
			t.Errorf("before the first answer: %d, %d and %d places", a, b, c)
		}
		time.Sleep(time.Hour)
		if a, b, c := large.holds(g), later.holds(g), small.holds(g); a+b+c != 12 || b < 1 || c < 1 {
			t.Errorf("among three: %d, %d and %d places", a, b, c)
		}
		small.wg.Wait()
		time.Sleep(time.Hour)
		if a, b := large.holds(g), later.holds(g); a+b != 12 || max(a, b) > 7 {
			t.Errorf("among two: %d and %d places", a, b)
		}
		large.wg.Wait()
		later.wg.Wait()
		if g.limiter.inFlight != 0 || len(g.limiter.calls) != 0 || len(g.limiter.waiters) != 0 {
			t.Errorf("when all is over: %+v", g)
		}
	})
}

// Whoever comes, waits, gives up and leaves in whatever order: never are more places taken than
// there are, none is lost, and nobody waits while one is free.
func TestGate(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.IntRange(1, 3).Draw(rt, "size")
		steps := rapid.SliceOfN(rapid.IntRange(0, 3), 1, 40).Draw(rt, "steps")
		who := rapid.SliceOfN(rapid.IntRange(0, 2), 40, 40).Draw(rt, "who")
		var problem string
		synctest.Test(t, func(*testing.T) {
			g := New(size)
			passes := make([]*Call, 3)
			for i := range passes {
				passes[i] = g.NewCall(1)
				passes[i].register()
			}
			type entering struct {
				cancel context.CancelCauseFunc
				done   chan struct{}
			}
			var under []entering
			collect := func() {
				synctest.Wait()
				for i := 0; i < len(under); {
					select {
					case <-under[i].done:
						under = append(under[:i], under[i+1:]...)
					default:
						i++
					}
				}
			}
			for i, step := range steps {
				p := who[i]
				switch step {
				case 0, 1:
					ctx, cancel := context.WithCancelCause(context.Background())
					e := entering{cancel, make(chan struct{})}
					under = append(under, e)
					go func() {
						defer close(e.done)
						_ = passes[p].Acquire(ctx) // or it was given up
					}()
				case 2:
					if passes[p].held > 0 {
						passes[p].Release()
					}
				case 3:
					if len(under) > 0 {
						under[0].cancel(errors.New("given up"))
					}
				}
				collect()
				held := 0
				for i := range passes {
					held += passes[i].held
				}
				if held != g.limiter.inFlight || held > size || len(under) != len(g.limiter.waiters) || len(under) > 0 && held < size {
					problem = "places were lost or given twice"
				}
			}
			for _, e := range under {
				e.cancel(errors.New("over"))
			}
			synctest.Wait()
		})
		if problem != "" {
			rt.Fatal(problem)
		}
	})
}

// Who waits for something else holds no place meanwhile, and has one afterwards.
func TestOutsideTheGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(1)
		a, b := g.NewCall(2), g.NewCall(2)
		a.register()
		b.register()
		if err := a.Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		a.Released(t.Context(), func() {
			if !b.TryAcquire() || b.TryAcquire() {
				t.Error("the place was not free, or free twice")
			}
			time.AfterFunc(time.Hour, func() { b.Release() })
		})
		if a.held != 1 || b.held != 0 || g.limiter.inFlight != 1 {
			t.Errorf("afterwards %d and %d of %d", a.held, b.held, g.limiter.inFlight)
		}
		ctx, cancel := context.WithCancel(t.Context())
		a.Released(ctx, func() { // the call is over, and somebody has the place
			if !b.TryAcquire() {
				t.Error("the place was not free")
			}
			cancel()
		})
		if a.held != 1 || g.limiter.inFlight != 2 || g.limiter.keep(a) {
			t.Errorf("at the end of a call %d of %d", a.held, g.limiter.inFlight)
		}
		if b.Release(); g.limiter.inFlight != 0 {
			t.Errorf("%d places are taken by nobody", g.limiter.inFlight)
		}
	})
}
