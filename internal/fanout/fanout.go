// Package fanout runs the tasks of many concurrent calls on one set of goroutines, with a common
// bound on the tasks in flight. It knows nothing of HTTP, peers or the cluster.
package fanout

import (
	"context"
	"runtime/pprof"
	"sync"
)

// A Scheduler bounds the tasks in flight across all its calls, shares that bound evenly between
// the calls, and reuses goroutines from call to call.
type Scheduler struct {
	limiter limiter
	workers workers
}

// New returns a Scheduler that runs at most limit tasks at a time.
func New(limit int) *Scheduler {
	return &Scheduler{limiter: limiter{size: limit, calls: make(map[*Call]struct{})}}
}

// Close stops idle goroutines at once and busy ones after their task. The Scheduler stays usable.
func (s *Scheduler) Close() { s.workers.close() }

// InFlight returns the number of slots taken.
func (s *Scheduler) InFlight() int {
	s.limiter.mu.Lock()
	defer s.limiter.mu.Unlock()
	return s.limiter.inFlight
}

// A Call is one fan-out over n tasks.
type Call struct {
	s *Scheduler
	order
	held int // slots held; guarded by limiter.mu
	wg   sync.WaitGroup
}

// NewCall returns a call of n tasks.
func (s *Scheduler) NewCall(n int) *Call { return &Call{s: s, order: order{n: n}} }

// Run calls do once for each index below n, concurrently and holding a slot, and returns when all
// have returned. For an index whose turn has not come when ctx ends it calls skip instead.
//
// Calls that run at the same time start far apart, so that they do not open a connection each to
// the same peer at the same moment.
func (c *Call) Run(ctx context.Context, do func(i int), skip func(i int, err error)) {
	defer c.wg.Wait()
	c.begin()
	defer c.end()
	var err error
	for i, ok := c.next(); ok; i, ok = c.next() {
		if err == nil {
			err = c.Acquire(ctx)
		}
		switch {
		case err != nil:
			skip(i, err)
		case c.exhausted(): // run the last one here instead of waiting for it
			c.end()
			c.runFrom(i, do)
			return
		default:
			c.wg.Add(1)
			c.s.workers.run(func() {
				defer c.wg.Done()
				pprof.SetGoroutineLabels(ctx) // as a new goroutine would have them
				c.runFrom(i, do)
			})
		}
	}
}

// runFrom runs task i, and further tasks for as long as the call may keep its slot.
func (c *Call) runFrom(i int, do func(int)) {
	held := true
	defer func() { // do may panic
		if held {
			c.Release()
		}
	}()
	for ok := true; ok; i, ok = c.next() {
		do(i)
		if held = c.s.limiter.keep(c); !held {
			return
		}
	}
}

// maxNeighbours is how many concurrent calls are considered when a call chooses where to start.
const maxNeighbours = 16

func (c *Call) begin() {
	l := &c.s.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	var others []float64
	for other := range l.calls {
		if others = append(others, other.position()); len(others) == maxNeighbours {
			break
		}
	}
	c.order.start(c.order.n, farthest(others))
	l.calls[c] = struct{}{}
}

func (c *Call) end() {
	l := &c.s.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.calls, c)
}

// Acquire takes one more slot, waiting for it until ctx ends.
func (c *Call) Acquire(ctx context.Context) error { return c.s.limiter.acquire(ctx, c) }

// TryAcquire takes one more slot if one is free and no other call waits for it.
func (c *Call) TryAcquire() bool { return c.s.limiter.tryAcquire(c) }

// Release gives up a slot.
func (c *Call) Release() { c.s.limiter.release(c) }

// Released runs wait without the slot of the task that calls it, and takes one again afterwards.
func (c *Call) Released(ctx context.Context, wait func()) { c.s.limiter.released(ctx, c, wait) }
