package etcd

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
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
		{name: "not there", attempts: []attempt{fails(mit.ErrNotFound)}, says: mit.ErrNotFound.Error(), tries: 1},
		{name: "not allowed", attempts: []attempt{fails(rpctypes.ErrPermissionDenied)}, says: "permission denied", tries: 1},
		{name: "no space", attempts: []attempt{fails(rpctypes.ErrNoSpace)}, says: "space exceeded", tries: 1},
		{name: "unreadable", attempts: []attempt{fails(errors.New("not a server"))}, says: "not a server", tries: 1},
		{name: "no leader, ever", attempts: []attempt{fails(noLeader)}, says: "no leader (tried for 4s)", took: 4 * time.Second},
		{name: "no response", attempts: []attempt{noResponse}, says: "no answer within 4s", tries: 1, took: 4 * time.Second},
		{name: "no response, with a reason", attempts: []attempt{fails(down), noResponse}, says: "connection refused (tried for 4s)", tries: 2, took: 4 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &Store{cfg: Config{Timeout: 4 * time.Second}, ctx: t.Context()}
				tries := 0
				start := time.Now()
				ctx, cancel := s.callContext(t.Context())
				defer cancel()
				v, err := retry(ctx, s, func(ctx context.Context) (string, error) {
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
		life, closeStore := context.WithCancel(t.Context())
		s := &Store{ctx: life}
		wait := func(ctx context.Context) (int, error) { return 0, noResponse(ctx) }
		call := func(ctx context.Context) error {
			ctx, cancel := s.callContext(ctx)
			defer cancel()
			_, err := retry(ctx, s, wait)
			return err
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "no answer") {
			t.Errorf("with its caller gone: %v", err)
		}
		time.AfterFunc(time.Second, closeStore)
		if err := call(t.Context()); !errors.Is(err, errClosed) {
			t.Errorf("with the store closed: %v", err)
		}
	})
}

// Copies of a request are sent after a quarter and after half of the timeout.
func TestHedge(t *testing.T) {
	down, denied := status.Error(codes.Unavailable, "connection refused"), status.Error(codes.PermissionDenied, "no")
	after := func(d time.Duration, err error) attempt {
		return func(ctx context.Context) error {
			select {
			case <-time.After(d):
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	for _, test := range []struct {
		name   string
		copies []attempt
		err    error
		sent   int
		took   time.Duration
	}{
		{name: "at once", copies: []attempt{fails(nil)}, sent: 1},
		{name: "refused at once", copies: []attempt{fails(down)}, err: down, sent: 1},
		{name: "slow", copies: []attempt{after(3*time.Second, nil), noResponse, noResponse}, sent: 3, took: 3 * time.Second},
		{name: "silent", copies: []attempt{noResponse, fails(nil)}, sent: 2, took: time.Second},
		{name: "two silent", copies: []attempt{noResponse, noResponse, fails(nil)}, sent: 3, took: 2 * time.Second},
		{name: "all silent", copies: []attempt{noResponse, noResponse, noResponse}, err: context.DeadlineExceeded, sent: 3, took: 4 * time.Second},
		{name: "slow, the other down", copies: []attempt{after(1500*time.Millisecond, nil), fails(down)}, sent: 2, took: 1500 * time.Millisecond},
		{name: "slow, the other denied", copies: []attempt{noResponse, fails(denied)}, err: denied, sent: 2, took: time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &Store{cfg: Config{Timeout: 4 * time.Second}, ctx: t.Context()}
				ctx, cancel := s.callContext(t.Context())
				defer cancel()
				var mu sync.Mutex
				sent := 0
				var reply etcdserverpb.RangeResponse
				start := time.Now()
				err := s.hedge(ctx, "", nil, &reply, nil, func(ctx context.Context, _ string, _, reply any, _ *grpc.ClientConn, _ ...grpc.CallOption) error {
					mu.Lock()
					sent++
					send := test.copies[sent-1]
					reply.(*etcdserverpb.RangeResponse).Count = int64(sent)
					mu.Unlock()
					return send(ctx)
				})
				took := time.Since(start)
				synctest.Wait()
				if !errors.Is(err, test.err) || sent != test.sent || took != test.took {
					t.Errorf("%v, %d copies, %v", err, sent, took)
				}
				if err == nil && reply.Count == 0 {
					t.Error("the reply is empty")
				}
			})
		})
	}
}
