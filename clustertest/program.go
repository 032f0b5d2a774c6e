package clustertest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
)

// A TB is the part of [testing.TB] that a [World] needs. [Program] provides one outside of tests.
type TB interface {
	Helper()
	Context() context.Context
	Cleanup(func())
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// Program calls f with a [TB] that does not belong to a test. It lets a program, an example or a
// benchmark run a [World]:
//
//	err := clustertest.Program(ctx, func(t clustertest.TB) {
//		w := clustertest.Start(t, 3)
//		…
//	})
//
// Fatal and Fatalf end f, and Program returns their message as an error. Fatalf supports %w. Like
// those of a test, they must be called from the goroutine that runs f, which is not the caller's.
//
// The context of the TB is derived from ctx. When f has ended it is canceled, then the functions
// passed to Cleanup are called in reverse order, and then Program returns.
func Program(ctx context.Context, f func(TB)) error {
	ctx, cancel := context.WithCancel(ctx)
	p := &program{ctx: ctx}
	done := make(chan struct{})
	go func() { // its own goroutine, because fatal ends it
		defer close(done)
		defer p.cleanUp()
		defer cancel()
		f(p)
	}()
	<-done
	return p.err
}

// A program is the TB of one call of Program.
type program struct {
	ctx      context.Context //nolint:containedctx // the program's own
	cleanups []func()
	err      error
}

func (*program) Helper()                    {}
func (p *program) Context() context.Context { return p.ctx }
func (p *program) Cleanup(f func())         { p.cleanups = append(p.cleanups, f) }
func (p *program) Fatal(args ...any)        { p.fatal(errors.New(fmt.Sprint(args...))) }

func (p *program) Fatalf(format string, args ...any) { p.fatal(fmt.Errorf(format, args...)) }

func (p *program) fatal(err error) {
	p.err = errors.Join(p.err, err)
	runtime.Goexit()
}

// cleanUp calls the cleanup functions, last one first. The deferred call continues with the next
// one even if f calls Fatal.
func (p *program) cleanUp() {
	last := len(p.cleanups) - 1
	if last < 0 {
		return
	}
	f := p.cleanups[last]
	p.cleanups = p.cleanups[:last]
	defer p.cleanUp()
	f()
}
