package fanout

import (
	"context"
	"slices"
	"sync"
)

// A limiter is a semaphore that calls share evenly, slot by slot. A call that holds more than
// its share gives up a slot after each task. The waiting call that holds the fewest slots gets it,
// so a large call does not hold up a small one.
type limiter struct {
	limit int

	mu       sync.Mutex // guards the fields below, and Call.held
	inFlight int
	calls    map[*Call]struct{} // calls that still want slots
	waiters  []waiter           // in the order of their arrival
}

type waiter struct {
	call  *Call
	ready chan struct{} // closed once a slot has been taken for call
}

// acquire blocks until it has taken a slot or ctx ends.
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
	if i < 0 { // releaseLocked has granted the slot meanwhile
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
	if l.inFlight >= l.limit || !c.eligible() || slices.ContainsFunc(l.waiters, waiter.eligible) {
		return false
	}
	l.takeLocked(c, 1)
	return true
}

// eligible reports whether the class of a call has a slot left.
func (c *Call) eligible() bool { return c.class == nil || c.class.held < c.class.limit }

func (w waiter) eligible() bool { return w.call.eligible() }

// takeLocked takes n slots for a call; a negative n gives them back.
func (l *limiter) takeLocked(c *Call, n int) {
	l.inFlight += n
	c.held += n
	if c.class != nil {
		c.class.held += n
	}
}

// keep reports whether a call may keep its slot and run another task in it. If not, keep has
// released the slot.
func (l *limiter) keep(c *Call) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.inFlight <= l.limit && (len(l.calls) <= 1 || c.held*len(l.calls) <= l.limit) {
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
	l.takeLocked(c, -1)
	for l.inFlight < l.limit {
		next := -1
		for i, w := range l.waiters {
			if w.eligible() && (next < 0 || w.call.held < l.waiters[next].call.held) {
				next = i
			}
		}
		if next < 0 {
			return
		}
		w := l.waiters[next]
		l.waiters = slices.Delete(l.waiters, next, next+1)
		l.takeLocked(w.call, 1)
		close(w.ready)
	}
}

// released is Call.Released. It may exceed the limit by one once ctx has ended, because the caller
// starts nothing then and is about to release the slot.
func (l *limiter) released(ctx context.Context, c *Call, wait func()) {
	l.release(c)
	wait()
	if l.acquire(ctx, c) != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.takeLocked(c, 1)
	}
}
