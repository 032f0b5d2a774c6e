// Package fanout runs the tasks of many concurrent calls. All calls share one pool of goroutines
// and one bound on the tasks in flight. What a task does is up to the caller.
package fanout

import (
	"context"
	"runtime/pprof"
	"sync"
)

// A Scheduler bounds the tasks in flight across all its calls, and shares the bound evenly between
// the calls. Its methods are safe for concurrent use.
type Scheduler struct {
	limiter limiter
	workers workers
}

// New returns a Scheduler that runs at most limit tasks at a time.
func New(limit int) *Scheduler {
	return &Scheduler{limiter: limiter{limit: limit, calls: make(map[*Call]struct{})}}
}

// Close stops idle goroutines at once and busy ones after their task. Calls still run afterwards,
// on goroutines that end with their task.
func (s *Scheduler) Close() { s.workers.close() }

// InFlight returns the number of slots taken.
func (s *Scheduler) InFlight() int {
	s.limiter.mu.Lock()
	defer s.limiter.mu.Unlock()
	return s.limiter.inFlight
}

// Waiting returns the number of tasks that wait for a slot.
func (s *Scheduler) Waiting() int {
	l := &s.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	waiting := len(l.waiters)
	for c := range l.calls {
		waiting += c.remaining()
	}
	return waiting
}

// NewCall returns a Call of n tasks. class may be nil.
func (s *Scheduler) NewCall(n int, class *Class) *Call {
	return &Call{s: s, class: class, order: order{n: n}}
}

// A Class bounds the slots that its calls hold together.
type Class struct {
	limit int
	held  int // guarded by limiter.mu
}

// NewClass returns a Class with the given limit.
func NewClass(limit int) *Class { return &Class{limit: limit} }

// Limit returns the limit of c.
func (c *Class) Limit() int { return c.limit }

// A Call is one fan-out over a number of tasks.
type Call struct {
	s     *Scheduler
	class *Class // nil: only the limit of the scheduler applies
	order
	held int // slots held; guarded by limiter.mu
	wg   sync.WaitGroup
}

// Run calls do once for each index below n, concurrently and with a slot held, and returns when all
// have returned. Once ctx has ended, it calls skip instead, for each remaining index. Calls of skip
// may be concurrent, too. Run may be called once.
//
// Concurrent calls start at indices far apart, so that they do not all open a connection to the
// same peer at the same moment.
func (c *Call) Run(ctx context.Context, do func(i int), skip func(i int, err error)) {
	if c.n == 0 {
		return
	}
	defer c.wg.Wait()
	c.register()
	defer c.unregister()
	var err error
	for i, ok := c.next(); ok; i, ok = c.next() {
		if err == nil {
			err = c.Acquire(ctx)
		}
		switch {
		case err != nil:
			skip(i, err)
		case c.exhausted(): // the last task runs here: this goroutine has nothing else to do
			c.unregister()
			c.runFrom(ctx, i, do, skip)
			return
		default:
			c.wg.Add(1)
			c.s.workers.run(func() {
				defer c.wg.Done()
				pprof.SetGoroutineLabels(ctx) // a reused goroutine does not inherit the caller's
				c.runFrom(ctx, i, do, skip)
			})
		}
	}
}

// Acquire takes one more slot, waiting for it until ctx ends.
func (c *Call) Acquire(ctx context.Context) error { return c.s.limiter.acquire(ctx, c) }

// TryAcquire takes one more slot if one is free and no other call waits for it.
func (c *Call) TryAcquire() bool { return c.s.limiter.tryAcquire(c) }

// Release gives up a slot.
func (c *Call) Release() { c.s.limiter.release(c) }

// Released runs wait with the caller's slot released, and takes a slot again afterwards. If ctx
// ends meanwhile, the slot that it takes may be one more than the limit.
func (c *Call) Released(ctx context.Context, wait func()) { c.s.limiter.released(ctx, c, wait) }

// runFrom runs task i, and then further tasks as long as the call may keep the slot.
func (c *Call) runFrom(ctx context.Context, i int, do func(int), skip func(int, error)) {
	held := true
	defer func() { // do may panic
		if held {
			c.Release()
		}
	}()
	for ok := true; ok; i, ok = c.next() {
		if ctx.Err() == nil {
			do(i)
		} else {
			skip(i, context.Cause(ctx))
		}
		if held = c.s.limiter.keep(c); !held {
			return
		}
	}
}

// maxNeighbors is how many concurrent calls are considered when a call chooses its first index.
const maxNeighbors = 16

func (c *Call) register() {
	l := &c.s.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	var others []float64
	for other := range l.calls {
		if others = append(others, other.position()); len(others) == maxNeighbors {
			break
		}
	}
	c.start(farthest(others))
	l.calls[c] = struct{}{}
}

func (c *Call) unregister() {
	l := &c.s.limiter
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.calls, c)
}
