package proctest

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"
)

// ErrParentEnded is the cause of the contexts that [WithParent] cancels.
var ErrParentEnded = errors.New("the process that started this one has ended")

const parentPollInterval = 500 * time.Millisecond

// WithParent returns a copy of ctx that is canceled when the process that started this one has
// ended, even if it was killed. Under go run that process is the one that started the go command.
// A program run by nohup, which ignores hangups, goes on without its parent.
//
// The parent is recognized by a change of the parent process id, which all Unix systems report. The
// parent of the go command is only known on Linux.
func WithParent(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	if !signal.Ignored(syscall.SIGHUP) {
		first := ancestors() // before the caller goes on: the parent may end right after
		go func() {
			if awaitChange(ctx, first, ancestors) == nil {
				cancel(ErrParentEnded)
			}
		}()
	}
	return ctx, func() { cancel(nil) }
}

// awaitChange polls until the result of ids differs from first.
func awaitChange(ctx context.Context, first []int, ids func() []int) error {
	poll := time.NewTicker(parentPollInterval)
	defer poll.Stop()
	for slices.Equal(ids(), first) {
		select {
		case <-poll.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// ancestors returns the id of the parent and, under go run, that of the go command's parent.
func ancestors() []int {
	parent := os.Getppid()
	if grandparent := goCommandParent(parent); grandparent > 0 {
		return []int{parent, grandparent}
	}
	return []int{parent}
}
