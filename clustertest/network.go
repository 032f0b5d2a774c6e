package clustertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Any matches every host, in all methods that take a pair of hosts.
const Any = "*"

// A Network carries HTTP requests from clients to handlers in memory. The zero value is a network
// without hosts and without faults. Its methods are safe for concurrent use, also while requests
// are in flight, and none of them blocks. A Network must not be copied after first use.
//
// A host name is the host part of a URL, such as "mds-1:8080" or "registry"; names are compared
// byte by byte. Each client sends from the host that it was created for, which needs no handler.
//
// A host that never had a handler is unknown: requests to it fail like a DNS lookup. A host that
// was removed or is down refuses connections. Requests to a host that is cut off hang.
// [Network.Fault] adds other faults to the requests between two hosts.
type Network struct {
	mu         sync.Mutex              // guards the fields below
	hosts      map[string]http.Handler // nil: removed
	down       map[string]bool
	cuts       map[pair]bool
	partitions []map[string]int           // each: the group of each host
	faults     map[pair]http.RoundTripper // each: the fault around the rest of the route
	observers  []*func(Exchange)          // replaced as a whole, never edited in place
	inFlight   map[*exchange]route        // handlers that have not returned
}

// Handle registers h as the handler of host. It replaces the previous handler, which still
// finishes its current requests. If h is nil, Handle calls [Network.Remove].
//
// A handler sees requests like the handler of an [http.Server]. Each is served in its own
// goroutine. The request's context ends when the client gives up or the handler returns; it does
// not contain the values of the client's context. RemoteAddr is the client's host with an
// arbitrary port. If the handler panics, the client gets a connection error.
func (n *Network) Handle(host string, h http.Handler) {
	if h == nil {
		n.Remove(host)
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts = put(n.hosts, host, h)
}

// Remove removes the handler of host and resets its connections. Further connections are refused
// until the host has a handler again.
func (n *Network) Remove(host string) {
	n.mu.Lock()
	n.hosts = put(n.hosts, host, nil)
	broken := n.inFlightLocked(func(r route) bool { return r.to == host })
	n.mu.Unlock()
	resetAll(broken)
}

// Down makes host unreachable until [Network.Up], as if its processes had been killed.
// Connections to it are refused. Its own requests fail with [syscall.ENETUNREACH]. Requests in
// flight are reset in both directions. A handler that is registered meanwhile is not reachable
// either.
func (n *Network) Down(host string) {
	n.mu.Lock()
	n.down = put(n.down, host, true)
	broken := n.inFlightLocked(func(r route) bool { return r.from == host || r.to == host })
	n.mu.Unlock()
	resetAll(broken)
}

// Up undoes [Network.Down].
func (n *Network) Up(host string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.down, host)
}

// Cut loses all messages between a and b. Requests hang until their contexts end; [Network.Mend]
// does not revive them. Requests in flight hang, too, unless their response headers have arrived.
// Messages of a host to itself are never lost. Either host may be [Any].
func (n *Network) Cut(a, b string) {
	n.CutOneWay(a, b)
	n.CutOneWay(b, a)
}

// CutOneWay loses all messages in the direction from → to. Requests in this direction hang and do
// not reach the handler. Requests in the other direction reach the handler, as over an existing
// connection, but their responses are lost, so that they hang, too. Either host may be [Any].
func (n *Network) CutOneWay(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cuts = put(n.cuts, pair{from, to}, true)
}

// Mend undoes [Network.Cut] and [Network.CutOneWay] for exactly these two names. A cut between a
// host and [Any] is undone by those names only.
func (n *Network) Mend(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cuts, pair{a, b})
	delete(n.cuts, pair{b, a})
}

// Partition cuts the hosts of each group off from those of all other groups. Hosts in no group
// still reach all hosts. Partitions add up until [Network.Heal].
func (n *Network) Partition(groups ...[]string) {
	groupOf := make(map[string]int)
	for i, group := range groups {
		for _, host := range group {
			groupOf[host] = i
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.partitions = append(n.partitions, groupOf)
}

// Heal undoes all cuts and partitions. Hosts that are down stay down, and faults stay set.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cuts, n.partitions = nil, nil
}

// Fault applies f to the requests from one host to another. It replaces the fault that was set for
// the same pair; if f is nil, it removes that fault. Either host may be [Any].
//
// All faults with a matching pair apply to a request, one inside the other. The outermost is that
// of the two hosts; those of (from, Any), (Any, to) and (Any, Any) follow. So one pair of hosts can
// have a fault of its own in a network that is slow everywhere. A request that passes all faults
// still fails if its host is down or cut off.
//
// Fault calls f once. The round trippers that f gets and returns serve all requests of the pair,
// concurrently. A request that f passes on must have the context of the original request, or one
// derived from it.
func (n *Network) Fault(from, to string, f Fault) {
	p := pair{from, to}
	if f == nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.faults, p)
		return
	}
	wrapped := f(RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
		rr, ok := req.Context().Value(requestRouteKey{}).(requestRoute)
		if !ok || rr.network != n {
			closeBody(req)
			return nil, fmt.Errorf("clustertest: the fault from %s to %s passed on a request without its context", from, to)
		}
		return n.send(rr.route, p.rank()+1, req)
	}))
	n.mu.Lock()
	defer n.mu.Unlock()
	n.faults = put(n.faults, p, wrapped)
}

// Observe calls f for every exchange that begins after the call, until stop is called.
//
// f is called when the request has failed, or when the client has read the response body to its
// end or closed it. The client is blocked during the call. Calls may be concurrent, and f may call
// any method of the Network.
func (n *Network) Observe(f func(Exchange)) (stop func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.observers = append(slices.Clip(n.observers), &f)
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.observers = slices.DeleteFunc(slices.Clone(n.observers), func(o *func(Exchange)) bool { return o == &f })
	}
}

// An Exchange is a request and its result, as seen by the client.
type Exchange struct {
	From, To    string
	Method      string
	Path, Query string      // of the URL; Query is encoded
	Header      http.Header // of the request; must not be modified, and only a clone may be kept
	Status      int         // of the response; 0 if there was none
	Err         error       // of the request, or of reading the response body

	Sent     int64 // bytes of the request body that the handler read
	Received int64 // bytes of the response body that the client read

	Start    time.Time
	Duration time.Duration // until the request failed, or the response body was read or closed
}

// Client returns a new client that sends from the given host. Its transport is that of
// [Network.Transport]; its other fields have their zero values, so it follows redirects and has no
// timeout. The caller may change them. The client needs no closing.
func (n *Network) Client(from string) *http.Client {
	return &http.Client{Transport: n.Transport(from)}
}

// Transport returns a round tripper that sends from the given host. It is safe for concurrent use.
// Its errors are those of [http.Transport]: a [*net.OpError] that wraps the cause, or the cause of
// the request's context. A response that arrives exactly at the deadline of the context is late.
//
// Up to 64 kB of a response body are buffered while the handler goes on. A longer or flushed
// response is streamed: the handler writes as fast as the client reads. Requests to http and https
// URLs are handled alike; the handler of the latter sees a TLS state without certificates. There
// is no compression, and there are no trailers, upgrades or informational responses.
func (n *Network) Transport(from string) http.RoundTripper {
	return RoundTripperFunc(func(req *http.Request) (*http.Response, error) { return n.roundTrip(from, req) })
}

// A pair is two hosts in the direction of a request. Either may be Any.
type pair struct{ from, to string }

// A route is a pair without Any.
type route = pair

// matching returns the pairs that match a route, the most specific first.
func (r route) matching() [4]pair {
	return [4]pair{r, {r.from, Any}, {Any, r.to}, {Any, Any}}
}

// rank returns the index of p in the result of matching.
func (p pair) rank() int {
	switch {
	case p.from == Any && p.to == Any:
		return 3
	case p.from == Any:
		return 2
	case p.to == Any:
		return 1
	}
	return 0
}

func (n *Network) roundTrip(from string, req *http.Request) (*http.Response, error) {
	if err := check(req); err != nil {
		closeBody(req)
		return nil, err
	}
	n.mu.Lock()
	observers, hasFaults := n.observers, len(n.faults) > 0
	n.mu.Unlock()

	r, sent := route{from, req.URL.Host}, req
	var rec *recorder
	if len(observers) > 0 {
		rec = &recorder{observers: observers, route: r, req: req, start: time.Now()}
		sent = rec.request()
	}
	if hasFaults {
		sent = sent.WithContext(context.WithValue(sent.Context(), requestRouteKey{}, requestRoute{n, r}))
	}
	resp, err := n.send(r, 0, sent)
	if resp != nil {
		resp.Request = req
	}
	if rec != nil {
		rec.response(resp, err)
	}
	return resp, err
}

// check returns an error if [http.Transport] could not send req.
func check(req *http.Request) error {
	switch {
	case req.URL == nil:
		return errors.New("clustertest: nil Request.URL")
	case req.Header == nil:
		return errors.New("clustertest: nil Request.Header")
	case req.URL.Scheme != "http" && req.URL.Scheme != "https":
		return fmt.Errorf("clustertest: unsupported protocol scheme %q", req.URL.Scheme)
	case req.URL.Host == "":
		return errors.New("clustertest: no Host in request URL")
	case req.Context().Err() != nil:
		return context.Cause(req.Context())
	}
	return nil
}

// A requestRoute is kept in the context of a request, because a fault may change its URL.
type requestRoute struct {
	network *Network
	route
}

type requestRouteKey struct{}

// send sends req through the faults of r, from the given rank on, and delivers it.
func (n *Network) send(r route, rank int, req *http.Request) (*http.Response, error) {
	if fault := n.fault(r, rank); fault != nil {
		return fault.RoundTrip(req)
	}
	return n.deliver(r.from, req)
}

// fault returns the first fault of r from the given rank on, or nil.
func (n *Network) fault(r route, rank int) http.RoundTripper {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.faults) == 0 {
		return nil
	}
	pairs := r.matching()
	for _, p := range pairs[rank:] {
		if fault := n.faults[p]; fault != nil {
			return fault
		}
	}
	return nil
}

// deliver has req handled by the host in its URL, which a fault may have changed.
func (n *Network) deliver(from string, req *http.Request) (*http.Response, error) {
	r := route{from, req.URL.Host}
	x := newExchange(req)
	h, err := n.connect(r, x)
	switch {
	case err != nil:
		closeBody(req)
		return nil, err
	case h == nil:
		return hang(req)
	}
	resp, err := x.run(from, req, h, func() { n.done(x) })
	if req.Context().Err() == nil && n.isCut(route{r.to, r.from}) {
		<-req.Context().Done()
		err = context.Cause(req.Context())
		x.abort(err)
		return nil, err
	}
	return resp, err
}

// connect returns the handler of r.to and records that x is in flight. If requests are lost on the
// route, it returns neither a handler nor an error.
func (n *Network) connect(r route, x *exchange) (http.Handler, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h, known := n.hosts[r.to]
	switch {
	case n.down[r.from]:
		return nil, dialError(r.to, syscall.ENETUNREACH)
	case !known:
		return nil, lookupError(r.to)
	case n.isCutLocked(r):
		return nil, nil
	case h == nil || n.down[r.to]:
		return nil, dialError(r.to, syscall.ECONNREFUSED)
	}
	n.inFlight = put(n.inFlight, x, r)
	return h, nil
}

func (n *Network) done(x *exchange) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.inFlight, x)
}

// isCut reports whether messages on the route are lost.
func (n *Network) isCut(r route) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.isCutLocked(r)
}

func (n *Network) isCutLocked(r route) bool {
	if r.from == r.to {
		return false
	}
	if len(n.cuts) > 0 {
		for _, p := range r.matching() {
			if n.cuts[p] {
				return true
			}
		}
	}
	return slices.ContainsFunc(n.partitions, func(groupOf map[string]int) bool {
		from, ok1 := groupOf[r.from]
		to, ok2 := groupOf[r.to]
		return ok1 && ok2 && from != to
	})
}

func (n *Network) inFlightLocked(match func(route) bool) []*exchange {
	var xs []*exchange
	for x, r := range n.inFlight {
		if match(r) {
			xs = append(xs, x)
		}
	}
	return xs
}

func resetAll(xs []*exchange) {
	for _, x := range xs {
		x.abort(connectionReset())
	}
}

// put sets m[k] = v and returns m, or a new map if m is nil.
func put[K comparable, V any](m map[K]V, k K, v V) map[K]V {
	if m == nil {
		m = make(map[K]V)
	}
	m[k] = v
	return m
}

// A recorder measures one exchange and reports it to the observers, once.
type recorder struct {
	observers []*func(Exchange)
	route     route
	req       *http.Request
	start     time.Time
	status    int
	sent      atomic.Int64 // the handler may still read after the client has given up
	received  atomic.Int64
	once      sync.Once
}

// request returns the client's request with a body that counts what is read.
func (rec *recorder) request() *http.Request {
	if rec.req.Body == nil || rec.req.Body == http.NoBody {
		return rec.req
	}
	req := *rec.req
	req.Body = countingRequestBody{req.Body, &rec.sent}
	return &req
}

// response reports an exchange without a response body. Otherwise the body reports it when it has
// been read or closed.
func (rec *recorder) response(resp *http.Response, err error) {
	if err != nil || resp == nil {
		rec.report(err)
		return
	}
	rec.status = resp.StatusCode
	if resp.Body == nil || resp.Body == http.NoBody {
		rec.report(nil)
		return
	}
	resp.Body = countingResponseBody{resp.Body, rec}
}

func (rec *recorder) report(err error) {
	rec.once.Do(func() {
		x := Exchange{
			From: rec.route.from, To: rec.route.to,
			Method: rec.req.Method, Path: rec.req.URL.Path, Query: rec.req.URL.RawQuery, Header: rec.req.Header,
			Status: rec.status, Err: err,
			Sent: rec.sent.Load(), Received: rec.received.Load(),
			Start: rec.start, Duration: time.Since(rec.start),
		}
		for _, f := range rec.observers {
			(*f)(x)
		}
	})
}

type countingRequestBody struct {
	io.ReadCloser
	read *atomic.Int64
}

func (b countingRequestBody) Read(p []byte) (int, error) {
	k, err := b.ReadCloser.Read(p)
	b.read.Add(int64(k))
	return k, err
}

type countingResponseBody struct {
	io.ReadCloser
	rec *recorder
}

func (b countingResponseBody) Read(p []byte) (int, error) {
	k, err := b.ReadCloser.Read(p)
	b.rec.received.Add(int64(k))
	switch {
	case errors.Is(err, io.EOF):
		b.rec.report(nil)
	case err != nil:
		b.rec.report(err)
	}
	return k, err
}

func (b countingResponseBody) Close() error {
	err := b.ReadCloser.Close()
	b.rec.report(nil)
	return err
}
