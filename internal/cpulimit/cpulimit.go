// Package cpulimit keeps long computations from delaying everything else in a process. The
// scheduler of Go gives each goroutine up to 10 ms at a time, in turn. So a hundred computations at
// a time make a health check wait for a second or more. A few make it wait for some 10 ms.
package cpulimit

import "runtime"

// A Limiter bounds how many long computations run at a time. Its methods may be called
// concurrently. A nil Limiter has no bound.
type Limiter struct{ slots chan struct{} }

// New returns a Limiter that runs as many long computations at a time as there are processors.
func New() *Limiter { return &Limiter{make(chan struct{}, runtime.GOMAXPROCS(0))} }

// longInput is the number of bytes from which a computation is long. Decoding that many bytes takes
// about a millisecond.
const longInput = 64 << 10

// Do calls compute, which processes n bytes and does not block. If the input is long, Do waits for
// a slot. The wait does not end with a context, because a response that has arrived in time must
// not count as late.
func (l *Limiter) Do(n int, compute func()) {
	if l == nil || n < longInput {
		compute()
		return
	}
	l.slots <- struct{}{}
	defer func() { <-l.slots }()
	compute()
}
