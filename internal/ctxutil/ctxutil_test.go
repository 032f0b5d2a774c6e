package ctxutil

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestMerge(t *testing.T) {
	first, second := errors.New("first"), errors.New("second")
	synctest.Test(t, func(t *testing.T) {
		for _, tc := range []struct {
			name string
			end  func(cancelCtx, cancelOther context.CancelCauseFunc)
			want error
		}{
			{"ctx", func(ctx, _ context.CancelCauseFunc) { ctx(first) }, first},
			{"other", func(_, other context.CancelCauseFunc) { other(second) }, second},
			{"both, ctx first", func(ctx, other context.CancelCauseFunc) { ctx(first); other(second) }, first},
		} {
			ctx, cancelCtx := context.WithCancelCause(t.Context())
			other, cancelOther := context.WithCancelCause(t.Context())
			merged, cancel := Merge(ctx, other)
			if merged.Err() != nil {
				t.Errorf("%s: ended before its parents", tc.name)
			}
			tc.end(cancelCtx, cancelOther)
			synctest.Wait()
			if got := context.Cause(merged); !errors.Is(got, tc.want) {
				t.Errorf("%s: ended with %v, want %v", tc.name, got, tc.want)
			}
			cancel()
			cancelCtx(nil)
			cancelOther(nil)
		}
	})
}

// No synctest.Wait here: a context merged with one that has ended has ended, too.
func TestMergeWithEndedContext(t *testing.T) {
	cause := errors.New("cause")
	other, end := context.WithCancelCause(t.Context())
	end(cause)
	merged, cancel := Merge(t.Context(), other)
	defer cancel()
	if got := context.Cause(merged); !errors.Is(got, cause) {
		t.Errorf("ended with %v, want %v", got, cause)
	}
}

func TestSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		if err := Sleep(t.Context(), time.Minute); err != nil || time.Since(start) != time.Minute {
			t.Errorf("slept for %v, with error %v", time.Since(start), err)
		}
		cause := errors.New("cause")
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, cause)
		defer cancel()
		start = time.Now()
		if err := Sleep(ctx, time.Minute); !errors.Is(err, cause) || time.Since(start) != time.Second {
			t.Errorf("slept for %v, with error %v", time.Since(start), err)
		}
	})
}
