package clustertest

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A Fault is what goes wrong between two hosts, as a wrapper around the rest of the way: it may
// pass a request on to next, keep it, change it, or change what comes back. [Network.Fault] puts
// it in place; any other chain of round trippers takes it as well.
//
// The round tripper it returns keeps the rules of [http.RoundTripper], closing the request's
// body above all, and may be called from any goroutine. [Refuse], [Hang] and [Reset] are Faults;
// [Slow], [Status], [Answer], [Instead], [Truncate] and [Stall] make them; [Times], [When],
// [Sometimes] and [Chain] make them of others.
type Fault func(next http.RoundTripper) http.RoundTripper

// A RoundTripperFunc is a function as an [http.RoundTripper].
type RoundTripperFunc func(*http.Request) (*http.Response, error)

// RoundTrip calls f(req).
func (f RoundTripperFunc) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// Refuse is a [Fault]: connections are refused at once, as by a machine on which nobody listens
// at that port. The error is a [*net.OpError] around [syscall.ECONNREFUSED].
func Refuse(http.RoundTripper) http.RoundTripper {
	return RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
		discard(req)
		return nil, dialError(req.URL.Host, syscall.ECONNREFUSED)
	})
}

// Hang is a [Fault]: requests are lost, and hang until their contexts end.
func Hang(http.RoundTripper) http.RoundTripper { return RoundTripperFunc(hang) }

func hang(req *http.Request) (*http.Response, error) {
	discard(req)
	<-req.Context().Done()
	return nil, context.Cause(req.Context())
}

// Reset is a [Fault]: requests are handled, and then the connection breaks before the client
// sees any of the answer. So they may have been executed. The error is a [*net.OpError] around
// [syscall.ECONNRESET].
func Reset(next http.RoundTripper) http.RoundTripper {
	return RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
		resp, err := next.RoundTrip(req)
		if err != nil {
			return nil, err
		}
		resp.Body.Close()
		return nil, connectionReset()
	})
}

// Slow has requests wait for d before they go on, or until their contexts end.
func Delay(d time.Duration) Fault {
	return func(next http.RoundTripper) http.RoundTripper {
		return RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
			if err := sleep(req.Context(), d); err != nil {
				discard(req)
				return nil, err
			}
			return next.RoundTrip(req)
		})
	}
}

// sleep returns after d, or with the cause for which ctx ended, also if both happen at once.
func sleep(ctx context.Context, d time.Duration) error {
	if end, ok := ctx.Deadline(); ok && time.Until(end) <= d {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Status answers with a status, and an error as mimik services word theirs:
//
//	{"statusCode": 503, "title": "Service Unavailable", "message": "…"}
//
// Requests don't reach the handler.
func Status(code int) Fault {
	return Answer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(struct {
			StatusCode int    `json:"statusCode"`
			Title      string `json:"title"`
			Message    string `json:"message"`
		}{code, http.StatusText(code), "not from the server: a fault of the network"})
	}))
}

// Answer has h answer in the place of the host, which may be unknown or down: garbage, an
// endless body, a redirect, anything. h gets what [Network.Handle] says.
func Answer(h http.Handler) Fault {
	return func(http.RoundTripper) http.RoundTripper {
		return RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
			return newExchange(req).run(routeOf(req).from, req, h, nil)
		})
	}
}

// routeOf says which way req goes, if it is on the way in a [Network].
func routeOf(req *http.Request) route {
	if t, ok := req.Context().Value(travelKey{}).(travel); ok {
		return t.route
	}
	return route{"client", req.URL.Host}
}

// Instead brings requests to another host than they were meant for, as when an address was taken
// over by another server. They still name the first one, in their Host. What is down or cut
// counts for the other host; the faults of the way there don't.
func RouteTo(host string) Fault {
	return func(next http.RoundTripper) http.RoundTripper {
		return RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
			other, u := *req, *req.URL
			if other.Host == "" {
				other.Host = u.Host
			}
			u.Host = host
			other.URL = &u
			return next.RoundTrip(&other)
		})
	}
}

// Truncate has answers break off after n bytes of their bodies, with [io.ErrUnexpectedEOF].
// Answers that are no longer than that come whole.
func Truncate(n int64) Fault {
	return cutAnswer(n, func(*http.Request, <-chan struct{}) error { return io.ErrUnexpectedEOF })
}

// Stall has answers stop after n bytes of their bodies. Reading on hangs until the request's
// context ends, or until the body is closed. Answers that are no longer than that come whole.
// Stall(0) hangs after the headers.
func Stall(n int64) Fault {
	return cutAnswer(n, func(req *http.Request, closed <-chan struct{}) error {
		select {
		case <-req.Context().Done():
			return context.Cause(req.Context())
		case <-closed:
			return errClosedBody
		}
	})
}

func cutAnswer(n int64, end func(req *http.Request, closed <-chan struct{}) error) Fault {
	return func(next http.RoundTripper) http.RoundTripper {
		return RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
			resp, err := next.RoundTrip(req)
			if err != nil {
				return nil, err
			}
			closed := make(chan struct{})
			resp.Body = &cutBody{
				rc:     resp.Body,
				left:   n,
				end:    func() error { return end(req, closed) },
				closed: sync.OnceFunc(func() { close(closed) }),
			}
			return resp, nil
		})
	}
}

// A cutBody gives way to end after a number of bytes, if there are more.
type cutBody struct {
	rc     io.ReadCloser
	left   int64
	more   bool // there are
	end    func() error
	closed func() // tells end
}

func (b *cutBody) Read(p []byte) (int, error) {
	if b.left > 0 {
		k, err := b.rc.Read(p[:min(int64(len(p)), b.left)])
		b.left -= int64(k)
		return k, err
	}
	if !b.more {
		k, err := b.rc.Read(make([]byte, 1))
		if k == 0 {
			return 0, err
		}
		b.more = true
	}
	return 0, b.end()
}

func (b *cutBody) Close() error {
	b.closed()
	return b.rc.Close()
}

// Times has the first n requests meet f, and lets the others pass. It counts anew wherever it is
// put in place.
func FirstN(n int, f Fault) Fault {
	return func(next http.RoundTripper) http.RoundTripper {
		var met atomic.Int64
		return either(f, next, func(*http.Request) bool { return met.Add(1) <= int64(n) })
	}
}

// When has the requests meet f that match, and lets the others pass. match may be called from
// any goroutine, and leaves the body alone.
func If(match func(*http.Request) bool, f Fault) Fault {
	return func(next http.RoundTripper) http.RoundTripper { return either(f, next, match) }
}

// Sometimes has requests meet f with probability p, and lets the others pass:
//
//	n.Fault(clustertest.Any, clustertest.Any, clustertest.Sometimes(0.01, seed, clustertest.Hang))
//
// Whether the i-th request from one host to another meets f depends on the seed, the two hosts
// and i alone, so that a simulation repeats itself however its goroutines are scheduled.
func WithProbability(p float64, seed uint64, f Fault) Fault {
	return func(next http.RoundTripper) http.RoundTripper {
		var mu sync.Mutex
		count := make(map[route]uint64)
		return either(f, next, func(req *http.Request) bool {
			r := routeOf(req)
			mu.Lock()
			i := count[r]
			count[r]++
			mu.Unlock()
			h := fnv.New64a()
			_, _ = fmt.Fprintf(h, "%q %q %d", r.from, r.to, i)
			return rand.New(rand.NewPCG(seed, h.Sum64())).Float64() < p
		})
	}
}

func either(f Fault, next http.RoundTripper, match func(*http.Request) bool) http.RoundTripper {
	faulty := f(next)
	return RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
		if match(req) {
			return faulty.RoundTrip(req)
		}
		return next.RoundTrip(req)
	})
}

// Chain has requests meet several faults, one after the other, until one does not pass them on.
func Chain(faults ...Fault) Fault {
	return func(next http.RoundTripper) http.RoundTripper {
		for _, f := range slices.Backward(faults) {
			next = f(next)
		}
		return next
	}
}
