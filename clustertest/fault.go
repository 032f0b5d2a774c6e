package clustertest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A Fault disturbs the requests between two hosts. It is a middleware for HTTP clients: it returns
// a round tripper that may pass a request on to next, keep it, change it, or change the response.
// [Network.Fault] applies a Fault to a pair of hosts. A Fault works in any other chain of round
// trippers, too.
//
// The round tripper that a Fault returns must follow the rules of [http.RoundTripper]: it closes
// the request body, and it is safe for concurrent use.
//
// [Refuse], [Hang], [Reset], [Break] and [Upgrade] are Faults. [Delay], [Status], [Answer],
// [RouteTo], [Truncate], [Stall], [FailDial], [Late] and [Suspend] create one. [FirstN], [If],
// [WithProbability] and [Reused] limit a Fault to some requests, and [Chain] combines several.
type Fault func(next http.RoundTripper) http.RoundTripper

// A RoundTripperFunc is a function that implements [http.RoundTripper].
type RoundTripperFunc func(*http.Request) (*http.Response, error)

// RoundTrip calls f(req).
func (f RoundTripperFunc) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// Refuse is a [Fault] that refuses connections at once, like a machine without a listener on the
// port. The error is a [*net.OpError] that wraps [syscall.ECONNREFUSED].
func Refuse(http.RoundTripper) http.RoundTripper {
	return RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
		closeBody(req)
		return nil, dialError(req.URL.Host, syscall.ECONNREFUSED)
	})
}

// Hang is a [Fault] that loses requests. They hang until their contexts end.
func Hang(http.RoundTripper) http.RoundTripper { return RoundTripperFunc(hang) }

// Reset is a [Fault] that lets the request be handled and resets the connection before the client
// receives any of the response. The error is a [*net.OpError] that wraps [syscall.ECONNRESET].
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

// Break is a [Fault] that resets the connection before the request reaches the host. The error is a
// [*net.OpError] that wraps [syscall.ECONNRESET].
func Break(http.RoundTripper) http.RoundTripper {
	return RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
		closeBody(req)
		return nil, connectionReset()
	})
}

// Upgrade is a [Fault] that responds with 101 Switching Protocols. The body of the response is the
// connection: a read blocks until the body is closed, whatever the request's context says. Requests
// do not reach the host.
func Upgrade(http.RoundTripper) http.RoundTripper {
	return RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
		closeBody(req)
		pr, _ := io.Pipe()
		return &http.Response{
			Status: "101 Switching Protocols", StatusCode: http.StatusSwitchingProtocols,
			Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Header: http.Header{"Connection": {"Upgrade"}, "Upgrade": {"other"}}, Body: pr, Request: req,
		}, nil
	})
}

// FailDial fails requests like a machine that cannot open a connection, with errno as the reason:
// [syscall.EMFILE] without free descriptors, or [syscall.EADDRNOTAVAIL] without free ports. The
// error is a [*net.OpError] that wraps errno. Nothing is sent.
func FailDial(errno syscall.Errno) Fault {
	return func(http.RoundTripper) http.RoundTripper {
		return RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
			closeBody(req)
			return nil, dialError(req.URL.Host, errno)
		})
	}
}

// Late keeps requests until release is closed. A request whose context has ended by then fails for
// its client, but reaches the host nevertheless, late, and its response is lost. Late is like a
// proxy or a queue that delivers a request long after its client has given up. The host has a
// minute to respond to it; in a bubble, a test whose host does not respond must last until then.
func Late(release <-chan struct{}) Fault {
	return func(next http.RoundTripper) http.RoundTripper {
		return RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
			kept, err := keepBody(req)
			if err != nil {
				return nil, err
			}
			select {
			case <-release:
				return next.RoundTrip(kept)
			case <-req.Context().Done():
			}
			go func() {
				<-release
				ctx, cancel := context.WithTimeout(context.WithoutCancel(req.Context()), lateTimeout)
				defer cancel()
				if resp, err := next.RoundTrip(kept.WithContext(ctx)); err == nil {
					resp.Body.Close()
				}
			}()
			return nil, context.Cause(req.Context())
		})
	}
}

// Suspend blocks requests until release is closed, also beyond the end of their contexts. Set it
// from a host to [Any] to simulate that the process of the host is stopped. A request that times
// out meanwhile fails only when release is closed. Its response has then reached the socket, so
// GotFirstResponseByte of its [httptrace.ClientTrace] is called. Use [Late] for the requests to the
// host.
func Suspend(release <-chan struct{}) Fault {
	return func(next http.RoundTripper) http.RoundTripper {
		return RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
			select {
			case <-release: // it is over: the context decides alone
				return next.RoundTrip(req)
			default:
			}
			<-release
			ctx := req.Context()
			if ctx.Err() == nil {
				if resp, err := next.RoundTrip(req); err == nil || ctx.Err() == nil {
					return resp, err
				}
			}
			closeBody(req)
			if trace := httptrace.ContextClientTrace(ctx); trace != nil && trace.GotFirstResponseByte != nil {
				trace.GotFirstResponseByte()
			}
			return nil, context.Cause(ctx)
		})
	}
}

// Reused applies f to the requests that a client would send on a connection that has been in use
// before: to all requests of a pair of hosts but the first, except those with [http.Request.Close]
// set, which ask for a connection of their own. It reports such a connection to the request's
// [httptrace.ClientTrace].
//
//	closing := clustertest.Reused(clustertest.Break) // the host closes idle connections
//	dropped := clustertest.Reused(clustertest.Hang)  // a firewall has dropped them
func Reused(f Fault) Fault {
	return func(next http.RoundTripper) http.RoundTripper {
		var mu sync.Mutex
		used := make(map[route]bool)
		return choose(reportReused(f), next, func(req *http.Request) bool {
			if req.Close {
				return false
			}
			mu.Lock()
			defer mu.Unlock()
			r := routeOf(req)
			was := used[r]
			used[r] = true
			return was
		})
	}
}

// Delay delays requests by d, or until their contexts end.
func Delay(d time.Duration) Fault {
	return func(next http.RoundTripper) http.RoundTripper {
		return RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
			if err := sleep(req.Context(), d); err != nil {
				closeBody(req)
				return nil, err
			}
			return next.RoundTrip(req)
		})
	}
}

// Status responds with the given status and an error body in the format of mimik services:
//
//	{"statusCode": 503, "title": "Service Unavailable", "message": "…"}
//
// Requests do not reach the host.
func Status(code int) Fault {
	return Answer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(struct {
			StatusCode int    `json:"statusCode"`
			Title      string `json:"title"`
			Message    string `json:"message"`
		}{code, http.StatusText(code), "injected by clustertest.Status"})
	}))
}

// Answer lets h handle requests in place of the host, which may be unknown or down. It can produce
// malformed data, endless bodies, redirects and others. h sees requests as described at
// [Network.Handle].
func Answer(h http.Handler) Fault {
	return func(http.RoundTripper) http.RoundTripper {
		return RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
			return newExchange(req).run(routeOf(req).from, req, h, nil)
		})
	}
}

// RouteTo sends requests to another host, as if another server had taken over the address. The
// Host of the requests is unchanged. They fail if the other host is down or cut off, but the
// faults that are set for it do not apply.
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

// Truncate ends response bodies after n bytes with [io.ErrUnexpectedEOF]. Bodies of at most n bytes
// are unchanged.
func Truncate(n int64) Fault {
	return limitBody(n, func(*http.Request, <-chan struct{}) error { return io.ErrUnexpectedEOF })
}

// Stall stops response bodies after n bytes. A further read blocks until the request's context
// ends or the body is closed. Bodies of at most n bytes are unchanged. Stall(0) lets the headers
// pass, and nothing of a body.
func Stall(n int64) Fault {
	return limitBody(n, func(req *http.Request, closed <-chan struct{}) error {
		select {
		case <-req.Context().Done():
			return context.Cause(req.Context())
		case <-closed:
			return errClosedBody
		}
	})
}

// FirstN applies f to the first n requests. Each pair of hosts that it is set for has a count of
// its own.
func FirstN(n int, f Fault) Fault {
	return func(next http.RoundTripper) http.RoundTripper {
		var count atomic.Int64
		return choose(f, next, func(*http.Request) bool { return count.Add(1) <= int64(n) })
	}
}

// If applies f to the requests for which match returns true. match must be safe for concurrent use
// and must not read the body.
func If(match func(*http.Request) bool, f Fault) Fault {
	return func(next http.RoundTripper) http.RoundTripper { return choose(f, next, match) }
}

// WithProbability applies f to a request with probability p:
//
//	lost := clustertest.WithProbability(0.01, seed, clustertest.Hang)
//	n.Fault(clustertest.Any, clustertest.Any, lost)
//
// The choice for the i-th request from one host to another depends only on the seed, the two hosts
// and i. It does not depend on the scheduling of goroutines, so that a simulation can be repeated.
func WithProbability(p float64, seed uint64, f Fault) Fault {
	return func(next http.RoundTripper) http.RoundTripper {
		var mu sync.Mutex
		count := make(map[route]uint64)
		return choose(f, next, func(req *http.Request) bool {
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

// Chain applies several faults, the first one outermost.
func Chain(faults ...Fault) Fault {
	return func(next http.RoundTripper) http.RoundTripper {
		for _, f := range slices.Backward(faults) {
			next = f(next)
		}
		return next
	}
}

// A FailureMode is a way in which a host fails to serve requests.
type FailureMode struct {
	Name string
	// Harmful modes make the host seem to be gone, so that its peers may evict it.
	Harmful bool
	// Fault returns the fault, for requests from [Any] to the host. The seed is that of
	// [WithProbability], where the mode affects some requests only.
	Fault func(seed uint64) Fault
}

// FailureModes returns the ways in which the registry, the token service and the nodes of a
// [Simulation] fail.
func FailureModes() []FailureMode {
	always := func(f Fault) func(uint64) Fault { return func(uint64) Fault { return f } }
	sometimes := func(p float64, f Fault) func(uint64) Fault {
		return func(seed uint64) Fault { return WithProbability(p, seed, f) }
	}
	page := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "<html>") })
	return []FailureMode{
		{"refuses connections", true, always(Refuse)},
		{"hangs", true, always(Hang)},
		{"answers after a minute", true, always(Delay(time.Minute))},
		{"loses some connections before the request arrives", true, sometimes(0.2, Break)},
		{"handles all requests and resets some connections", true, sometimes(0.2, Reset)},
		{"answers after a second", false, always(Delay(time.Second))},
		{"answers 500", false, always(Status(http.StatusInternalServerError))},
		{"answers 503 to half of the requests", false, sometimes(0.5, Status(http.StatusServiceUnavailable))},
		{"answers 101", false, always(Upgrade)},
		{"sends the head of a response and hangs", false, always(Stall(0))},
		{"truncates responses", false, always(Truncate(20))},
		{"answers with something else", false, always(Answer(page))},
		{"closes connections as they are used again", false, always(Reused(Break))},
		{"does not answer on connections that are used again", false, always(Reused(Hang))},
	}
}

// lateTimeout bounds a request that is delivered after its client has given up.
const lateTimeout = time.Minute

// reportReused returns f for requests on a connection that has been in use.
func reportReused(f Fault) Fault {
	return func(next http.RoundTripper) http.RoundTripper {
		faulty := f(next)
		return RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
			if trace := httptrace.ContextClientTrace(req.Context()); trace != nil && trace.GotConn != nil {
				trace.GotConn(httptrace.GotConnInfo{Reused: true, WasIdle: true})
			}
			return faulty.RoundTrip(req)
		})
	}
}

// choose sends a request through f if it matches, and otherwise directly to next.
func choose(f Fault, next http.RoundTripper, match func(*http.Request) bool) http.RoundTripper {
	faulty := f(next)
	return RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
		if match(req) {
			return faulty.RoundTrip(req)
		}
		return next.RoundTrip(req)
	})
}

func hang(req *http.Request) (*http.Response, error) {
	closeBody(req)
	<-req.Context().Done()
	return nil, context.Cause(req.Context())
}

// sleep waits for d, or until ctx ends and then returns its cause. If both happen at the same
// time, the cause is returned.
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

// keepBody returns req with a copy of its body, which can be sent after the client has closed its
// own.
func keepBody(req *http.Request) (*http.Request, error) {
	kept := req.Clone(req.Context())
	if req.Body == nil || req.Body == http.NoBody {
		return kept, nil
	}
	defer closeBody(req)
	content, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	kept.Body = io.NopCloser(bytes.NewReader(content))
	return kept, nil
}

// routeOf returns the route of a request, also outside a [Network].
func routeOf(req *http.Request) route {
	if rr, ok := req.Context().Value(requestRouteKey{}).(requestRoute); ok {
		return rr.route
	}
	return route{"client", req.URL.Host}
}

// limitBody returns a fault that passes n bytes of a response body and then, if there are more,
// returns the error of atLimit from each read.
func limitBody(n int64, atLimit func(req *http.Request, closed <-chan struct{}) error) Fault {
	return func(next http.RoundTripper) http.RoundTripper {
		return RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
			resp, err := next.RoundTrip(req)
			if err != nil {
				return nil, err
			}
			closed := make(chan struct{})
			resp.Body = &limitedBody{
				rc:        resp.Body,
				remaining: n,
				atLimit:   func() error { return atLimit(req, closed) },
				onClose:   sync.OnceFunc(func() { close(closed) }),
			}
			return resp, nil
		})
	}
}

type limitedBody struct {
	rc        io.ReadCloser
	remaining int64
	exceeded  bool // rc has more than the limit
	atLimit   func() error
	onClose   func()
}

func (b *limitedBody) Read(p []byte) (int, error) {
	if b.remaining > 0 {
		k, err := b.rc.Read(p[:min(int64(len(p)), b.remaining)])
		b.remaining -= int64(k)
		return k, err
	}
	if !b.exceeded {
		k, err := b.rc.Read(make([]byte, 1))
		if k == 0 {
			return 0, err
		}
		b.exceeded = true
	}
	return 0, b.atLimit()
}

func (b *limitedBody) Close() error {
	b.onClose()
	return b.rc.Close()
}
