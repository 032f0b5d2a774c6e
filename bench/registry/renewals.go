package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
)

// renewals counts the outcomes of the renewals of the nodes that are not hostile.
type renewals struct {
	done, rejected, failed atomic.Int64
	failure                atomic.Pointer[error] // the first one
}

// count adds one renewal, unless the end of ctx has canceled it.
func (r *renewals) count(ctx context.Context, err error) {
	switch {
	case ctx.Err() != nil:
	case err == nil:
		r.done.Add(1)
	case errors.Is(err, errRejected):
		r.rejected.Add(1)
	default:
		r.failed.Add(1)
		r.failure.CompareAndSwap(nil, &err)
	}
}

func (r *renewals) String() string {
	return fmt.Sprintf("%d renewals, %d rejected with a Retry-After, %d failed", r.done.Load(), r.rejected.Load(), r.failed.Load())
}

// check returns an error if a renewal failed, or if fewer than least succeeded.
func (r *renewals) check(least int) error {
	var broken error
	if failure := r.failure.Load(); failure != nil {
		broken = fmt.Errorf("%d renewals failed, the first: %w", r.failed.Load(), *failure)
	}
	if done := r.done.Load(); done < int64(least) {
		broken = errors.Join(broken, fmt.Errorf("only %d renewals succeeded, at least %d are needed", done, least))
	}
	return broken
}

// checkNoneRejected returns an error if a renewal was rejected.
func (r *renewals) checkNoneRejected() error {
	if n := r.rejected.Load(); n > 0 {
		return fmt.Errorf("%d renewals were rejected", n)
	}
	return nil
}
