package etcd

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mimiktech/cluster/mit"
)

// An attempt fails with an error at once, or gets no response until its timeout.
type attempt func(ctx context.Context) error

func fails(err error) attempt { return func(context.Context) error { return err } }

func noResponse(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestRetry(t *testing.T) {
	down := status.Error(codes.Unavailable, "connection refused")
	noLeader := rpctypes.ErrNoLeader
	for _, test := range []struct {
		name     string
		attempts []attempt // the last one repeats
		says     string    // the error; none
		tries    int       // 0: several
		took     time.Duration
	}{
		{name: "at once", attempts: []attempt{fails(nil)}, tries: 1},
		{name: "no connection, then", attempts: []attempt{fails(down), fails(nil)}, tries: 2},
		{name: "no leader, then", attempts: []attempt{fails(noLeader), fails(noLeader), fails(nil)}, tries: 3},
		{name: "too many requests, then", attempts: []attempt{fails(rpctypes.ErrTooManyRequests), fails(nil)}, tries: 2},
		{name: "a member that is being stopped, then", attempts: []attempt{fails(status.Error(codes.Unknown, "raft: stopped")), fails(nil)}, tries: 2},
		{name: "a member that gives up first, then", attempts: []attempt{fails(status.Error(codes.DeadlineExceeded, "")), fails(nil)}, tries: 2},
		{name: "no response, then", attempts: []attempt{noResponse, fails(nil)}, tries: 2},
		{name: "not there", attempts: []attempt{fails(mit.ErrNotFound)}, says: mit.ErrNotFound.Error(), tries: 1},
		{name: "not allowed", attempts: []attempt{fails(rpctypes.ErrPermissionDenied)}, says: "permission denied", tries: 1},
		{name: "no space", attempts: []attempt{fails(rpctypes.ErrNoSpace)}, says: "space exceeded", tries: 1},
		{name: "unreadable", attempts: []attempt{fails(errors.New("not a server"))}, says: "not a server", tries: 1},
		{name: "no leader, ever", attempts: []attempt{fails(noLeader)}, says: "no leader (tried for 4s)", took: 4 * time.Second},
		{name: "no response at all", attempts: []attempt{noResponse}, says: "no answer within 4s", took: 4 * time.Second},
		{name: "no response, with a reason", attempts: []attempt{noResponse, fails(down), noResponse}, says: "connection refused (tried for 4s)", took: 4 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &Store{cfg: Config{Timeout: 4 * time.Second}, ctx: t.Context()}
				tries := 0
				start := time.Now()
				v, err := retry(t.Context(), s, func(ctx context.Context) (string, error) {
					tries++
					if err := test.attempts[min(tries, len(test.attempts))-1](ctx); err != nil {
						return "", err
					}
					return "done", nil
				})
				if test.says == "" && (err != nil || v != "done") {
					t.Errorf("%q, %v", v, err)
				}
				if test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)) {
					t.Errorf("error %v, want one that says %s", err, test.says)
				}
				if tries != test.tries && (test.tries > 0 || tries < 3) {
					t.Errorf("%d tries", tries)
				}
				if took := time.Since(start); test.took > 0 && took != test.took || took > 4*time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

func TestRetryEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, closeStore := context.WithCancel(t.Context())
		s := &Store{ctx: ctx}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		wait := func(ctx context.Context) (int, error) { return 0, noResponse(ctx) }
		if _, err := retry(ctx, s, wait); !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "no answer") {
			t.Errorf("with its caller gone: %v", err)
		}
		time.AfterFunc(time.Second, closeStore)
		if _, err := retry(t.Context(), s, wait); !errors.Is(err, errClosed) {
			t.Errorf("with the store closed: %v", err)
		}
	})
}
