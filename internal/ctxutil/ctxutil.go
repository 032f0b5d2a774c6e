// Package ctxutil has what the context package lacks: a context with two parents, and a sleep.
package ctxutil

import (
	"context"
	"time"
)

// Merge returns a copy of ctx that is also canceled when other ends, with the cause of other.
func Merge(ctx, other context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	if other.Err() != nil {
		cancel(context.Cause(other)) // now: AfterFunc would cancel a moment later, on its own goroutine
	}
	stop := context.AfterFunc(other, func() { cancel(context.Cause(other)) })
	return ctx, func() { stop(); cancel(nil) }
}

// Sleep waits for d. If ctx ends first, it returns the cause.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
