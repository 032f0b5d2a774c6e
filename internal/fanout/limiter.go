package fanout

import (
	"context"
	"slices"
	"sync"
)

// A limiter bounds the work in flight across all calls and shares the bound evenly: a call that
// holds more than its share gives up a slot after each task, and the waiting call that holds the
// fewest gets it. A small call is therefore not held up by a large one.
type limiter struct {
	size int

	mu       sync.Mutex // guards the fields below, and Call.held
	inFlight int
	calls    map[*Call]struct{} // calls that still want slots
	waiters  []waiter           // in order of arrival
}

type waiter struct {
	call  *Call
	ready chan struct{} // closed once a slot has been taken for call
}

// acquire takes a slot, or waits for one until ctx ends.
func (l *limiter) acquire(ctx context.Context, c *Call) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	l.mu.Lock()
	if l.tryAcquireLocked(c) {
		l.mu.Unlock()
		return nil
	}
	ready := make(chan struct{})
	l.waiters = append(l.waiters, waiter{c, ready})
	l.mu.Unlock()

	select {
	case <-ready:
		return nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.IndexFunc(l.waiters, func(w waiter) bool { return w.ready == ready })
	if i < 0 { // it was granted at the same moment
		return nil
	}
	l.waiters = slices.Delete(l.waiters, i, i+1)
	return context.Cause(ctx)
}

// tryAcquire takes a slot if one is free and no call waits for it.
func (l *limiter) tryAcquire(c *Call) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tryAcquireLocked(c)
}

func (l *limiter) tryAcquireLocked(c *Call) bool {
	if l.inFlight >= l.size || len(l.waiters) > 0 {
		return false
	}
	l.inFlight++
	c.held++
	return true
}

// keep reports whether the holder of a slot may use it for another task. If not, the slot has
// been released.
func (l *limiter) keep(c *Call) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.inFlight <= l.size && (len(l.calls) <= 1 || c.held*len(l.calls) <= l.size) {
		return true
	}
	l.releaseLocked(c)
	return false
}

func (l *limiter) release(c *Call) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.releaseLocked(c)
}

func (l *limiter) releaseLocked(c *Call) {
	l.inFlight--
	c.held--
	for l.inFlight < l.size && len(l.waiters) > 0 {
		next := 0
		for i, w := range l.waiters {
			if w.call.held < l.waiters[next].call.held {
				next = i
			}
		}
		w := l.waiters[next]
		l.waiters = slices.Delete(l.waiters, next, next+1)
		l.inFlight++
		w.call.held++
		close(w.ready)
	}
}

// released runs wait without the caller's slot, and takes one again afterwards. If ctx has ended
// it may exceed the limit by one, which is harmless: nothing is sent then.
func (l *limiter) released(ctx context.Context, c *Call, wait func()) {
	l.release(c)
	wait()
	if l.acquire(ctx, c) != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.inFlight++
		c.held++
	}
}
