package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v4"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

var (
	errClosed  = errors.New("the store is closed")
	errTimeout = errors.New("the timeout is over")
)

// callContext returns the context of one call of the store. It ends after [Config].Timeout, or when
// the store is closed.
func (s *Store) callContext(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.ctx, func() { cancel(errClosed) })
	ctx, cancelTimeout := context.WithTimeoutCause(ctx, s.cfg.timeout(), errTimeout)
	return ctx, func() {
		cancelTimeout()
		stop()
		cancel(nil)
	}
}

// retry repeats op until it succeeds, fails with a permanent error or ctx ends. ctx is that of
// callContext. An attempt is never canceled before ctx ends, so a slow response is not discarded.
func retry[T any](ctx context.Context, s *Store, op func(context.Context) (T, error)) (T, error) {
	var cause error // the last error other than a timeout
	v, err := backoff.RetryWithData(func() (T, error) {
		v, err := op(ctx)
		if err == nil || ctx.Err() != nil {
			return v, err
		}
		if status.Code(err) != codes.DeadlineExceeded {
			cause = err
		}
		if !isTransient(err) {
			err = backoff.Permanent(err)
		}
		return v, err
	}, backoff.WithContext(backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(20*time.Millisecond),
		backoff.WithMaxInterval(500*time.Millisecond),
		backoff.WithMaxElapsedTime(0),
	), ctx))
	if err == nil || ctx.Err() == nil {
		return v, err
	}
	switch ended := context.Cause(ctx); {
	case !errors.Is(ended, errTimeout):
		return v, ended
	case cause == nil:
		return v, fmt.Errorf("no answer within %v: %w", s.cfg.timeout(), context.DeadlineExceeded)
	default:
		return v, fmt.Errorf("%w (tried for %v)", cause, s.cfg.timeout())
	}
}

// isTransient reports whether a later attempt may succeed.
func isTransient(err error) bool {
	err = rpctypes.Error(err)
	if errors.Is(err, rpctypes.ErrTooManyRequests) {
		return true
	}
	if e, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		return e.Code() == codes.Unavailable
	}
	st, ok := status.FromError(err)
	// A stopping member returns Unknown. A member with a faster clock times out before this side.
	return ok && slices.Contains([]codes.Code{codes.Unavailable, codes.DeadlineExceeded, codes.Unknown}, st.Code())
}

// hedgeDelays are divisors of [Config].Timeout: copies of a request are sent after a quarter and
// half of it. Each copy goes to the next member. A member that lost its leader or its network may
// not respond while others do.
var hedgeDelays = [...]time.Duration{4, 2} //nolint:gochecknoglobals // a constant in all but name

// hedge is an interceptor that sends a request again if it gets no response for some time, without
// canceling it, and returns the first success or permanent error. All requests of this package may
// be executed twice: writes compare revisions, and leases have an id chosen by the store.
//
// Without a connection it fails at once with the cause, instead of waiting for a connection. retry
// repeats the request then.
func (s *Store) hedge(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // of the copies that are still in flight
	opts = append(slices.Clip(opts), grpc.WaitForReady(false))
	out, ok := reply.(proto.Message)
	if !ok {
		return invoke(ctx, method, req, reply, cc, opts...)
	}
	type response struct {
		message proto.Message
		err     error
	}
	responses := make(chan response, 1+len(hedgeDelays))
	inFlight := 0
	send := func() {
		inFlight++
		go func() {
			message := out.ProtoReflect().New().Interface()
			err := invoke(ctx, method, req, message, cc, opts...)
			responses <- response{message, err}
		}()
	}
	send()
	start, delays := time.Now(), hedgeDelays[:]
	timer := time.NewTimer(s.cfg.timeout() / delays[0])
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			send()
			if delays = delays[1:]; len(delays) > 0 {
				timer.Reset(s.cfg.timeout()/delays[0] - time.Since(start))
			}
		case r := <-responses:
			inFlight--
			if r.err == nil {
				proto.Merge(out, r.message)
				return nil
			}
			if inFlight == 0 || ctx.Err() != nil || !isTransient(r.err) {
				return r.err
			}
		}
	}
}
