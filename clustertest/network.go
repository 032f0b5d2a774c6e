// Package clustertest is to cluster nodes what [net/http/httptest] is to HTTP handlers: what
// their tests run on. A [Network] connects HTTP clients to HTTP handlers in memory, and breaks
// the connections on demand, in the ways that real networks break.
//
//	synctest.Test(t, func(t *testing.T) {
//		var n clustertest.Network
//		n.Handle("mds-1:8080", handler)
//		client := n.Client("mds-2:8080")
//
//		n.Partition([]string{"mds-1:8080"}, []string{"mds-2:8080", "mds-3:8080"})
//		… // requests between the two sides hang until their contexts end
//		n.Heal()
//	})
//
// There is no socket, no clock of its own and no randomness that the test did not seed: all
// waiting is on timers, channels and contexts. So it fits the bubbles of [testing/synctest], in
// which weeks of timeouts and retries take milliseconds. Every goroutine that the package starts
// ends with the request it was started for.
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

// Any stands for every host, wherever a pair of hosts is named.
const Any = "*"

// A Network carries HTTP requests from clients to handlers in memory. The zero value is a
// network without hosts, in which nothing is broken. All methods may be called from any
// goroutine, also while requests are on their way, and none of them blocks. A Network must not
// be copied after first use.
//
// Hosts are named as they stand in URLs, "mds-1:8080" or "registry", letter by letter. A client
// is seen from the host it was made for, which need not handle anything itself.
//
// A host that was never handled is unknown, as after a failed DNS lookup; one that was removed
// or is down refuses connections; one that is cut off does not answer. On top of that, [Fault]
// adds anything else to the requests between two hosts.
type Network struct {
	mu         sync.Mutex              // guards the fields below
	hosts      map[string]http.Handler // nil: removed
	down       map[string]bool
	cuts       map[pair]bool
	partitions []map[string]int           // each: the side on which a host is
	faults     map[pair]http.RoundTripper // each: the rest of the way, wrapped in the fault
	observers  []*func(Exchange)          // replaced whole, never edited in place
	underWay   map[*exchange]route        // what handlers work on
}

// A pair is two hosts in the direction of a request. Either may be Any.
type pair struct{ from, to string }

// A route is a pair of which neither is Any.
type route = pair

// matching gives the pairs that match a route, the narrowest first.
func (r route) matching() [4]pair {
	return [4]pair{r, {r.from, Any}, {Any, r.to}, {Any, Any}}
}

// width is the place of p among the pairs that match a route.
func (p pair) width() int {
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

// Handle makes h answer the requests to host, from now on. It replaces the handler that was
// there, which still finishes the requests it has. A nil h is [Network.Remove].
//
// A handler sees requests as one behind an [http.Server] does: each in a goroutine of its own,
// with a context that ends when the client gives up or the handler returns, and that has
// nothing else in common with the client's. RemoteAddr has the client's host and a made-up
// port. If a handler panics, its client finds the connection broken.
func (n *Network) Handle(host string, h http.Handler) {
	if h == nil {
		n.Remove(host)
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts = with(n.hosts, host, h)
}

// Remove takes the handler of host away. Connections to it are refused until it is handled
// again; those that it has break.
func (n *Network) Remove(host string) {
	n.mu.Lock()
	n.hosts = with(n.hosts, host, nil)
	broken := n.underWayLocked(func(r route) bool { return r.to == host })
	n.mu.Unlock()
	reset(broken)
}

// Down is what killing the processes on host does: connections to it are refused, its own
// requests find no network, and those under way in either direction break. It lasts until
// [Network.Up]; a handler set meanwhile has to wait for that too.
func (n *Network) Down(host string) {
	n.mu.Lock()
	n.down = with(n.down, host, true)
	broken := n.underWayLocked(func(r route) bool { return r.from == host || r.to == host })
	n.mu.Unlock()
	reset(broken)
}

// Up undoes [Network.Down].
func (n *Network) Up(host string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.down, host)
}

// Cut loses all that a and b send each other: requests hang until their contexts end, even if
// the cut is mended by then. Requests that are already being handled hang as well, but for
// answers whose headers are through. What a host sends to itself is never lost. Either host may
// be [Any].
func (n *Network) Cut(a, b string) {
	n.CutOneWay(a, b)
	n.CutOneWay(b, a)
}

// CutOneWay loses all that from sends to to, and nothing of what to sends to from. Requests of
// from hang and don't reach the handler. Those of to do reach it, over a connection that exists
// already; then their answer is lost, and they hang too. Either host may be [Any].
func (n *Network) CutOneWay(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cuts = with(n.cuts, pair{from, to}, true)
}

// Mend undoes [Network.Cut] and [Network.CutOneWay] between a and b, named as they were there.
func (n *Network) Mend(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cuts, pair{a, b})
	delete(n.cuts, pair{b, a})
}

// Partition cuts every host of each group off from the hosts of all other groups. Hosts in no
// group still reach everyone. Partitions add up, until [Network.Heal].
func (n *Network) Partition(groups ...[]string) {
	sides := make(map[string]int)
	for i, group := range groups {
		for _, host := range group {
			sides[host] = i
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.partitions = append(n.partitions, sides)
}

// Heal mends every cut and every partition. Hosts that are down stay down, and faults stay set.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cuts, n.partitions = nil, nil
}

// Fault puts f in the way of the requests from one host to another, instead of the fault that
// was set for that pair; nil takes that away. Either host may be [Any].
//
// A request meets every fault whose pair matches, first the one set for exactly its two hosts,
// then those for (from, Any), (Any, to), and (Any, Any), so a network that is slow everywhere
// can be broken in places. What is down or cut comes after all of them.
//
// f is called once, here. The round trippers it is given and returns serve all requests of the
// pair, any number at a time. What it passes on must have the request's context, or one derived
// from it.
func (n *Network) Fault(from, to string, f Fault) {
	p := pair{from, to}
	if f == nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.faults, p)
		return
	}
	wrapped := f(RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
		t, ok := req.Context().Value(travelKey{}).(travel)
		if !ok || t.n != n {
			discard(req)
			return nil, fmt.Errorf("clustertest: the fault from %s to %s passed on a request without its context", from, to)
		}
		return n.pass(t.route, p.width()+1, req)
	}))
	n.mu.Lock()
	defer n.mu.Unlock()
	n.faults = with(n.faults, p, wrapped)
}

// Observe has f told of every exchange that begins from now on, until stop is called.
//
// f is called when the exchange is over: when its request failed, or when the client read its
// answer to the end or closed it; a client that does neither is never done. The client waits for f, and several may be in it at a time; f
// may call any method of the Network. Nothing is measured while nobody observes.
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

// An Exchange is a request and what became of it, as its client saw it.
type Exchange struct {
	From, To    string
	Method      string
	Path, Query string      // of the URL, the query as it was encoded
	Header      http.Header // of the request; the client's own: look at it, clone it to keep it
	Status      int         // of the answer; 0 if none came
	Err         error       // why none came, or why it broke off

	Sent     int64 // bytes of the request's body that were read at the other end
	Received int64 // bytes of the answer's body that the client read

	Start    time.Time
	Duration time.Duration // until the client was done with the answer
}

// Client returns a client whose requests go over the network, from the host given, and as
// [http.Client]s do by default follow redirects and have no timeout. The client is the
// caller's to change. It needs no closing.
func (n *Network) Client(from string) *http.Client {
	return &http.Client{Transport: n.Transport(from)}
}

// Transport returns a round tripper whose requests go over the network, from the host given. It
// may be used from any goroutine, and answers with the errors of [http.Transport]: a
// [*net.OpError] around the cause, or the cause for which the request's context ended. An answer
// that comes at the very moment of the context's deadline is too late.
//
// Answers are handed over in memory: up to 64 kB of a body wait for the client while the handler
// goes on, longer or flushed ones stream at the pace at which the client reads. http and https
// are the same wire; the handler of an https request finds a TLS state without certificates.
// There is no compression, and there are no trailers, upgrades or informational answers.
func (n *Network) Transport(from string) http.RoundTripper {
	return RoundTripperFunc(func(req *http.Request) (*http.Response, error) { return n.roundTrip(from, req) })
}

func (n *Network) roundTrip(from string, req *http.Request) (*http.Response, error) {
	if err := check(req); err != nil {
		discard(req)
		return nil, err
	}
	n.mu.Lock()
	observers, faulty := n.observers, len(n.faults) > 0
	n.mu.Unlock()

	r, sent := route{from, req.URL.Host}, req
	var w *watch
	if len(observers) > 0 {
		w = &watch{observers: observers, route: r, req: req, start: time.Now()}
		sent = w.request()
	}
	if faulty {
		sent = sent.WithContext(context.WithValue(sent.Context(), travelKey{}, travel{n, r}))
	}
	resp, err := n.pass(r, 0, sent)
	if resp != nil {
		resp.Request = req
	}
	if w != nil {
		w.answer(resp, err)
	}
	return resp, err
}

// check refuses what could not be sent.
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

// travelKey finds the travel in the context of a request that meets faults.
type travelKey struct{}

// A travel is where a request is on its way: faults carry it past code that is not ours.
type travel struct {
	n *Network
	route
}

// pass sends req past the faults of r from the given width on, and delivers it.
func (n *Network) pass(r route, width int, req *http.Request) (*http.Response, error) {
	if fault := n.fault(r, width); fault != nil {
		return fault.RoundTrip(req)
	}
	return n.deliver(r.from, req)
}

func (n *Network) fault(r route, width int) http.RoundTripper {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.faults) == 0 {
		return nil
	}
	pairs := r.matching()
	for _, p := range pairs[width:] {
		if fault := n.faults[p]; fault != nil {
			return fault
		}
	}
	return nil
}

// deliver brings req to the host in its URL (a fault may have changed that) and the answer back.
func (n *Network) deliver(from string, req *http.Request) (*http.Response, error) {
	r := route{from, req.URL.Host}
	x := newExchange(req)
	h, err := n.connect(r, x)
	switch {
	case err != nil:
		discard(req)
		return nil, err
	case h == nil:
		return hang(req)
	}
	resp, err := x.run(from, req, h, func() { n.forget(x) })
	if req.Context().Err() == nil && n.loses(route{r.to, r.from}) {
		<-req.Context().Done()
		err = context.Cause(req.Context())
		x.breakOff(err)
		return nil, err
	}
	return resp, err
}

// connect finds the handler at the end of r and notes that x is under way to it. It gives
// neither a handler nor an error where nobody answers.
func (n *Network) connect(r route, x *exchange) (http.Handler, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h, known := n.hosts[r.to]
	switch {
	case n.down[r.from]:
		return nil, dialError(r.to, syscall.ENETUNREACH)
	case !known:
		return nil, lookupError(r.to)
	case n.losesLocked(r):
		return nil, nil
	case h == nil || n.down[r.to]:
		return nil, dialError(r.to, syscall.ECONNREFUSED)
	}
	n.underWay = with(n.underWay, x, r)
	return h, nil
}

func (n *Network) forget(x *exchange) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.underWay, x)
}

// loses reports whether what goes this way is lost.
func (n *Network) loses(r route) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.losesLocked(r)
}

func (n *Network) losesLocked(r route) bool {
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
	return slices.ContainsFunc(n.partitions, func(sides map[string]int) bool {
		from, ok1 := sides[r.from]
		to, ok2 := sides[r.to]
		return ok1 && ok2 && from != to
	})
}

func (n *Network) underWayLocked(match func(route) bool) []*exchange {
	var xs []*exchange
	for x, r := range n.underWay {
		if match(r) {
			xs = append(xs, x)
		}
	}
	return xs
}

func reset(xs []*exchange) {
	for _, x := range xs {
		x.breakOff(connectionReset())
	}
}

// with sets m[k] = v, in a new map if m is nil.
func with[K comparable, V any](m map[K]V, k K, v V) map[K]V {
	if m == nil {
		m = make(map[K]V)
	}
	m[k] = v
	return m
}

// A watch measures one exchange for those who observe it.
type watch struct {
	observers []*func(Exchange)
	route     route
	req       *http.Request
	start     time.Time
	status    int
	sent      atomic.Int64 // the handler may go on reading after the client gave up
	received  atomic.Int64
	told      sync.Once
}

// request gives the request to send in place of the client's.
func (w *watch) request() *http.Request {
	if w.req.Body == nil || w.req.Body == http.NoBody {
		return w.req
	}
	req := *w.req
	req.Body = countedRequest{req.Body, &w.sent}
	return &req
}

// answer tells of the exchange if it is over, else has its body do so.
func (w *watch) answer(resp *http.Response, err error) {
	if err != nil || resp == nil {
		w.tell(err)
		return
	}
	w.status = resp.StatusCode
	if resp.Body == nil || resp.Body == http.NoBody {
		w.tell(nil)
		return
	}
	resp.Body = countedAnswer{resp.Body, w}
}

func (w *watch) tell(err error) {
	w.told.Do(func() {
		x := Exchange{
			From: w.route.from, To: w.route.to,
			Method: w.req.Method, Path: w.req.URL.Path, Query: w.req.URL.RawQuery, Header: w.req.Header,
			Status: w.status, Err: err,
			Sent: w.sent.Load(), Received: w.received.Load(),
			Start: w.start, Duration: time.Since(w.start),
		}
		for _, f := range w.observers {
			(*f)(x)
		}
	})
}

type countedRequest struct {
	io.ReadCloser
	read *atomic.Int64
}

func (b countedRequest) Read(p []byte) (int, error) {
	k, err := b.ReadCloser.Read(p)
	b.read.Add(int64(k))
	return k, err
}

type countedAnswer struct {
	io.ReadCloser
	w *watch
}

func (b countedAnswer) Read(p []byte) (int, error) {
	k, err := b.ReadCloser.Read(p)
	b.w.received.Add(int64(k))
	switch {
	case errors.Is(err, io.EOF):
		b.w.tell(nil)
	case err != nil:
		b.w.tell(err)
	}
	return k, err
}

func (b countedAnswer) Close() error {
	err := b.ReadCloser.Close()
	b.w.tell(nil)
	return err
}
