package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"github.com/mimiktech/cluster/internal/breaker"
	"github.com/mimiktech/cluster/internal/fanout"
	"github.com/mimiktech/cluster/internal/membership"
	"github.com/mimiktech/cluster/internal/peeraddr"
	"github.com/mimiktech/cluster/internal/token"
	"github.com/mimiktech/cluster/internal/wire"
)

// Watchers returns the number of loops over Watch that have not ended.
func Watchers(c *Cluster) int {
	c.state.mu.Lock()
	defer c.state.mu.Unlock()
	return len(c.state.watchers)
}

// WithLocals replaces the addresses of the machine. Those on an interface that begins with "tun"
// are on a point-to-point one.
func WithLocals(list func() []string) Option {
	return optionFunc(func(o *options) {
		o.locals = func() (locals []peeraddr.Local, err error) {
			for _, entry := range list() {
				name, address, _ := strings.Cut(entry, " ")
				locals = append(locals, peeraddr.Local{
					Interface: name, PointToPoint: strings.HasPrefix(name, "tun"), Addr: netip.MustParseAddr(address),
				})
			}
			return locals, nil
		}
	})
}

// HostileErrors returns an error of each type of this package as it leaves the package, by the name
// of its type. A remote that was sent secret has caused it with text. The text of a panic is local.
func HostileErrors(t *testing.T, secret, text, local string) map[string]error {
	t.Helper()
	quoted, err := json.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	h := testHTTPClient(func(r *http.Request) (*http.Response, error) {
		return respond(r, http.StatusOK, fmt.Sprintf(`{"data":1,"server":{"serverId":%s}}`, quoted))
	})
	h.secrets, h.maxResponse = newCredentials(Config{ClientSecret: Secret(secret)}, zap.NewNop()), 1<<20
	to, req := remote{"peer", "node-2"}, httptest.NewRequest(http.MethodGet, "http://node-2/things", nil)
	unreachable := func(err error) error { return h.requestError(to, req, connState{}, err) }
	info := fmt.Appendf(nil, `{"message":%s,"info":{"x":%s}}`, quoted, quoted)
	peers := testView(time.Unix(100, 0), "node-1", "node-2")
	node2, _ := peers.Get("node-2")
	client := testPeerClient(t, h)
	call := &preparedRequest{method: http.MethodGet, ref: &url.URL{Path: "/things"}, noEviction: true}
	tokens := &tokenFetcher{http: h, replicas: newReplicas("http://mst.test")}
	panicking := func() (err error) {
		defer catchPanic("RoundTripper", &err)
		panic(local)
	}
	return map[string]error{
		"StatusError":          h.statusError(to, req, response{status: 500}, info),
		"UnreachableError":     unreachable(errors.New(text)),
		"InvalidResponseError": h.invalidResponse(to, req, errors.New(text)),
		"WrongServerError":     client.collect(t.Context(), call, peers).Failures[0].Err,
		"CircuitOpenError":     circuitOpen(node2, &breaker.OpenError{Silent: time.Second}),
		"TokenError":           tokens.wrap(token.Key{Audience: "peers"}, h.invalidResponse(to, req, errors.New(text))),
		"PanicError":           panicking(),
		"handshakeError":       unreachable(&handshakeError{errors.New(text)}),
		"http2StreamError":     unreachable(http2StreamError{Cause: errors.New(text)}),
	}
}

// testPeerClient returns a client that sends its requests with h.
func testPeerClient(t *testing.T, h *httpClient) *peerClient {
	t.Helper()
	c := &peerClient{
		ctx: t.Context(), selfID: "node-1", timeout: time.Second, maxBytes: 1 << 20, unproven: fanout.NewClass(2),
		tokens: &testTokens{}, scheduler: fanout.New(8), breakers: breaker.New(time.Second, 8), trace: new(hooks), http: h,
	}
	t.Cleanup(c.scheduler.Close)
	return c
}

// SlotsInFlight returns the number of slots of the scheduler that are taken.
func SlotsInFlight(c *Cluster) int { return c.peers.scheduler.InFlight() }

// Requests to peers do not use a proxy: it would see their tokens, and would dial addresses that
// the policy forbids. The test inspects the transports, because net/http never takes a proxy from
// the environment for the loopback addresses that a test can listen on.
func TestNoProxyTowardsPeers(t *testing.T) {
	r, err := newTransports(options{}, 256)
	if err != nil {
		t.Fatal(err)
	}
	all := []http.RoundTripper{r.backend, r.backendNewConn, r.peers, r.newConn}
	for i, rt := range all {
		if direct, ok := rt.(*directTransport); !ok || len(r.owned) != len(all) || r.owned[i] != direct.other || len(r.direct) != len(all) {
			t.Fatalf("not the transports for the back end and the peers: %v", r.owned)
		}
	}
	for _, transport := range r.owned[:2] {
		if transport.Proxy == nil {
			t.Error("requests to the registry and the token service do not use the proxy of the environment")
		}
	}
	for _, transport := range r.owned[2:] {
		if transport.Proxy != nil || transport.OnProxyConnectResponse != nil {
			t.Error("requests to peers use a proxy")
		}
	}
}

// DropTokens makes a node forget the token for the registry.
func DropTokens(c *Cluster) {
	key := token.Key{Audience: c.cfg.RegistryAudience}
	access, _ := c.registry.tokens.Token(context.Background(), key)
	c.registry.tokens.Drop(key, access)
}

// A connection of HTTP/2 that a firewall drops without a word does not stay in use: a request that
// times out makes the next one use a new connection, and without a request, a ping closes it.
func TestSilentHTTP2Connection(t *testing.T) {
	for name, waits := range map[string]bool{"after a timeout": false, "after a ping": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network := newPipeNetwork(t)
				transport, newConn := newTransport(net.Dialer{}, 4), newTransport(net.Dialer{}, 0)
				transport.DialContext, transport.TLSClientConfig = network.dial, network.trust
				newConn.DialContext, newConn.TLSClientConfig, newConn.DisableKeepAlives = network.dial, network.trust.Clone(), true
				defer func() {
					// net/http ends a request after its caller has returned, and does not close a connection
					// that has one.
					synctest.Wait()
					transport.CloseIdleConnections()
				}()
				h := &httpClient{
					transports: transports{backend: transport, backendNewConn: newConn},
					timeout:    10 * time.Second, maxResponse: 1 << 20, trace: &hooks{}, secrets: newCredentials(Config{}, zap.NewNop()),
				}
				get := func() error {
					resp, err := h.sendJSON(t.Context(), RequestInfo{Target: TargetRegistry}, jsonRequest{method: http.MethodGet, address: "https://registry.test/"})
					if err == nil && string(resp.body) != "HTTP/2.0" {
						t.Errorf("the protocol is %s", resp.body)
					}
					return err
				}
				for range 2 {
					if err := get(); err != nil {
						t.Fatal(err)
					}
				}
				network.dropAll()
				if waits {
					time.Sleep(16 * time.Second)
				} else if err := get(); !timedOut(err) {
					t.Errorf("error %v, want a timeout", err)
				}
				start := time.Now()
				if err := get(); err != nil || time.Since(start) > time.Second || network.dials != 2 {
					t.Errorf("after %v and %d dials: %v", time.Since(start), network.dials, err)
				}
			})
		})
	}
}

// A pipeNetwork connects a client to an HTTP/2 server in memory.
type pipeNetwork struct {
	conns chan net.Conn
	trust *tls.Config
	dials int
	drops []chan struct{} // closing one makes a connection lose everything
}

func newPipeNetwork(t *testing.T) *pipeNetwork {
	t.Helper()
	n := &pipeNetwork{conns: make(chan net.Conn)}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) }))
	_ = s.Listener.Close()
	s.Listener, s.EnableHTTP2 = n, true
	s.StartTLS()
	t.Cleanup(func() {
		for _, drop := range n.drops {
			select {
			case <-drop:
			default:
				close(drop)
			}
		}
		s.Config.Close()
	})
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	n.trust = &tls.Config{RootCAs: roots, ServerName: "example.com", Time: func() time.Time { return s.Certificate().NotBefore.Add(time.Hour) }}
	return n
}

func (n *pipeNetwork) dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	n.dials++
	drop := make(chan struct{})
	n.drops = append(n.drops, drop)
	n.conns <- server
	return &droppingConn{Conn: client, drop: drop, closed: make(chan struct{})}, nil
}

func (n *pipeNetwork) dropAll() {
	for _, drop := range n.drops {
		close(drop)
	}
}

func (n *pipeNetwork) Accept() (net.Conn, error) {
	c, ok := <-n.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (n *pipeNetwork) Close() error   { close(n.conns); return nil }
func (n *pipeNetwork) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

// A droppingConn loses everything once drop is closed, and reports no error.
type droppingConn struct {
	net.Conn
	drop, closed chan struct{}
	once         sync.Once
}

func (c *droppingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	select {
	case <-c.drop:
		<-c.closed
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

func (c *droppingConn) Write(b []byte) (int, error) {
	select {
	case <-c.drop:
		return len(b), nil
	default:
		return c.Conn.Write(b)
	}
}

func (c *droppingConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// Of several calls that fail over from one replica at the same time, only the first switches.
func TestPromoteOnlyOnce(t *testing.T) {
	r := newReplicas("a,b,c")
	previous, urls := r.order(false)
	if !r.promote(previous, urls[1]) {
		t.Error("the first call did not switch")
	}
	if r.promote(previous, urls[2]) {
		t.Error("a call that began before the switch switched again")
	}
	if current, _ := r.order(false); current != urls[1] {
		t.Errorf("the current replica is %s, want %s", current, urls[1])
	}
}

// A node that announces a loopback address listens on that address only.
func TestListenAddr(t *testing.T) {
	for ip, want := range map[string]string{"": ":8080", "10.0.0.1": ":8080", "127.0.0.1": "127.0.0.1:8080", "127.0.0.2": "127.0.0.2:8080"} {
		c := &Cluster{cfg: Config{LocalIPv4: ip, Port: 8080}}
		if got := c.listenAddr(); got != want {
			t.Errorf("for %q: %q, want %q", ip, got, want)
		}
	}
}

// The following tests make one part of a Cluster each, without the others.

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func respond(r *http.Request, code int, body string) (*http.Response, error) {
	return &http.Response{
		StatusCode: code, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)), Request: r,
	}, nil
}

func testHTTPClient(rt roundTripper) *httpClient {
	return &httpClient{
		transports:  transports{backend: rt, peers: rt, backendNewConn: rt, newConn: rt},
		userAgent:   "test",
		trace:       new(hooks),
		timeout:     10 * time.Second,
		maxResponse: 100,
		secrets:     newCredentials(Config{ClientSecret: "hidden"}, zap.NewNop()),
	}
}

// testTokens issues token-1 until it is dropped, and then token-2.
type testTokens struct{ dropped atomic.Bool }

func (s *testTokens) Token(context.Context, token.Key) (string, error) {
	if s.dropped.Load() {
		return "token-2", nil
	}
	return "token-1", nil
}

func (s *testTokens) Drop(_ token.Key, rejected string) {
	if rejected == "token-1" {
		s.dropped.Store(true)
	}
}

func (s *testTokens) Replace(key token.Key, doubtful string) { s.Drop(key, doubtful) }

func testState() *state {
	return newState("node-1", &options{noEnv: true, log: zap.NewNop()}, new(hooks))
}

// testView is a view of itResource "r" with servers that were updated at the same time.
func testView(updated time.Time, ids ...string) membership.View {
	it := wire.ItResource{ID: "r"}
	for _, id := range ids {
		it.Servers = append(it.Servers, testServer(id, updated))
	}
	return membership.New(it, PeerPolicy{}.checkServer, membership.View{})
}

func testServer(id string, updated time.Time) wire.Server {
	return wire.Server{ServerID: id, ClusterBaseURL: "http://" + id, CreatedAt: time.Unix(1, 0), UpdatedAt: updated}
}

func idsOf(v membership.View) []string {
	var ids []string
	for _, p := range v.Peers() {
		ids = append(ids, p.ServerID)
	}
	return ids
}

func TestHTTPClient(t *testing.T) {
	tooLarge := strings.Repeat("x", 101)
	for name, tt := range map[string]struct {
		respond func(*http.Request) (*http.Response, error)
		kind    Kind
		text    string // contained in the error
	}{
		"a response": {func(r *http.Request) (*http.Response, error) { return respond(r, 200, "body") }, KindOK, ""},
		"no response": {
			func(*http.Request) (*http.Response, error) { return nil, io.ErrUnexpectedEOF }, KindConnectionLost,
			"mIT cannot be reached by GET http://mit/path: unexpected EOF",
		},
		"a status, with secrets": {
			func(r *http.Request) (*http.Response, error) {
				return respond(r, 400, `{"message":"bad token-1 or hidden","info":"\u0068idden"}`)
			}, KindStatus,
			"mIT answered 400 Bad Request to GET http://mit/path: bad [redacted] or [redacted]",
		},
		"too large": {
			func(r *http.Request) (*http.Response, error) { return respond(r, 200, tooLarge) }, KindTooLarge,
			"response too large: 101 bytes, 100 allowed",
		},
		"too large, of unknown length": {
			func(r *http.Request) (*http.Response, error) {
				resp, err := respond(r, 200, tooLarge)
				resp.ContentLength = -1
				return resp, err
			}, KindTooLarge, "response too large: more than 100 bytes",
		},
		"truncated": {
			func(r *http.Request) (*http.Response, error) {
				resp, err := respond(r, 200, "body")
				resp.ContentLength = 5
				return resp, err
			}, KindMalformed, "response truncated: unexpected EOF",
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := testHTTPClient(tt.respond)
			resp, err := h.sendJSON(t.Context(), RequestInfo{Target: TargetRegistry}, jsonRequest{method: http.MethodGet, address: "http://mit/path?query=private", bearer: "token-1"})
			if kind := classify(err); kind != tt.kind || err == nil && string(resp.body) != "body" {
				t.Fatalf("%s: body %q, error %v", kind, resp.body, err)
			}
			if err != nil && !strings.Contains(err.Error(), tt.text) {
				t.Errorf("the error is %v, want %s", err, tt.text)
			}
			if se, ok := errors.AsType[*StatusError](err); ok && se.Info != nil {
				t.Errorf("an info with a secret was kept: %s", se.Info)
			}
		})
	}
	cfg := Config{MaxResponseBytes: math.MaxInt64, ClientSecret: "hidden"}
	if h, err := newHTTPClient(cfg, options{}, newCredentials(cfg, nil)); err != nil || h.maxResponse+1 < 0 || h.text("a hidden word", "") != "a [redacted] word" {
		t.Errorf("limit %d, %v", h.maxResponse, err)
	}
}

func TestRegistryClient(t *testing.T) {
	const registered = `{"itResource":{"id":"r","servers":[{"serverId":"node-1"}]},"leaseTime":60000}`
	var sent []string
	handle := func(*http.Request) (int, string) { return 0, "" }
	tokens := &testTokens{}
	r := &registryClient{
		http: testHTTPClient(func(req *http.Request) (*http.Response, error) {
			sent = append(sent, req.Method+" "+req.URL.String()+" "+bearerToken(req.Header))
			code, body := handle(req)
			return respond(req, code, body)
		}),
		tokens:        tokens,
		replicas:      &replicas{urls: []string{"http://a", "http://b"}, current: "http://a"},
		deleteTimeout: time.Second,
		log:           zap.NewNop(),
		trace:         new(hooks),
	}
	requireSent := func(want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, sent); diff != "" {
			t.Errorf("requests (-want +got):\n%s", diff)
		}
		sent = nil
	}

	handle = func(req *http.Request) (int, string) {
		if bearerToken(req.Header) == "token-1" {
			return 403, ""
		}
		return 200, registered
	}
	it, lease, err := r.register(t.Context(), wire.Registration{ServerID: "node-1"}, false, "")
	if err != nil || it.ID != "r" || lease != time.Minute {
		t.Errorf("registered with %+v for %v, error %v", it, lease, err)
	}
	requireSent("POST http://a/itResources?managedCluster=off token-1", "POST http://a/itResources?managedCluster=off token-2")

	_, _, err = r.register(t.Context(), wire.Registration{ServerID: "node-2"}, true, "")
	if kind := classify(err); kind != KindMalformed {
		t.Errorf("a list without this node: %s, %v", kind, err)
	}
	requireSent("POST http://a/itResources token-2", "POST http://b/itResources token-2")

	handle = func(req *http.Request) (int, string) {
		if req.URL.Host == "a" {
			return 503, ""
		}
		return 200, `{"server":{"serverId":"node/2","updatedAt":"2000-01-01T00:00:00.000Z"}}`
	}
	newer, err := r.deleteIf(t.Context(), "r", "node/2", "1999-01-01T00:00:00.000Z")
	if err != nil || newer == nil || newer.ServerID != "node/2" {
		t.Errorf("conditional delete returned %+v, error %v", newer, err)
	}
	const path = "/itResources/r/servers/node%2F2"
	requireSent("DELETE http://a"+path+"@1999-01-01T00:00:00.000Z token-2", "DELETE http://b"+path+"@1999-01-01T00:00:00.000Z token-2")

	if err := r.deregister(t.Context(), "r", "node/2"); err != nil { // at the replica switched to
		t.Error(err)
	}
	requireSent("DELETE http://b" + path + " token-2")
}

func TestState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testState()
		var changes []string
		s.trace = newHooks([]Trace{{StateChanged: func(_ context.Context, from, to Status) {
			changes = append(changes, fmt.Sprintf("%s→%s", from.State, to.State))
		}}}, zap.NewNop(), nil)
		start := time.Now()
		requireServers := func(want ...string) {
			t.Helper()
			if got := idsOf(s.view()); !slices.Equal(got, want) || s.status().Servers != len(want) {
				t.Errorf("the servers are %q, want %q; the status has %d", got, want, s.status().Servers)
			}
		}
		announce := func(v membership.View, limit int) error {
			_, err := s.applyAnnouncement(t.Context(), v, viewLimits{limit, 1 << 20})
			return err
		}

		if err := announce(testView(start, "node-2"), 10); err != nil {
			t.Error(err)
		}
		requireServers("node-2") // before the first registration
		renewal := acceptedRenewal{sent: start, lease: time.Minute, before: s.view(), listed: testView(start, "node-1", "node-3")}
		if s.applyRenewal(t.Context(), renewal).needsAnnounce {
			t.Error("the first registration is to be announced as a recreated one")
		}
		requireServers("node-1", "node-3")
		if err := announce(testView(start, "node-4", "node-5"), 3); err == nil {
			t.Error("an announcement made the view larger than the limit")
		}
		if err := announce(membership.Announced(wire.ItResource{ID: "other"}, PeerPolicy{}.checkServer, membership.View{}), 10); err != nil {
			t.Error(err)
		}
		requireServers("node-1", "node-3")

		for _, tt := range []struct {
			resource, server string
			want             departureResult
		}{{"other", "node-3", departureIgnored}, {"r", "node-3", departureApplied}, {"r", "node-1", departureOfSelf}} {
			if got := s.applyDeparture(t.Context(), tt.resource, tt.server, time.Time{}); got != tt.want {
				t.Errorf("departure of %s of %s: %d, want %d", tt.server, tt.resource, got, tt.want)
			}
		}
		requireServers("node-1")
		renewal.before = s.view()
		if !s.applyRenewal(t.Context(), renewal).needsAnnounce {
			t.Error("a node reported as departed does not announce itself")
		}

		s.applyFailure(t.Context(), errors.New("failed"))
		time.Sleep(time.Minute)
		s.checkExpiry(t.Context())
		if view, deregistered := s.leave(t.Context(), ErrNotRegistered); view.Len() != 2 || deregistered {
			t.Errorf("left a view of %d, deregistered %t", view.Len(), deregistered)
		}
		s.setDeregistered(t.Context())
		if _, deregistered := s.leave(t.Context(), ErrClosed); !deregistered || !errors.Is(s.status().Reason, ErrNotRegistered) {
			t.Errorf("left again: deregistered %t, reason %v", deregistered, s.status().Reason)
		}
		want := []string{"orphan→registered", "registered→degraded", "degraded→lost", "lost→left"}
		if diff := cmp.Diff(want, changes); diff != "" {
			t.Errorf("changes (-want +got):\n%s", diff)
		}
	})
}

func TestStatePendingDepartures(t *testing.T) {
	s := testState()
	s.addPending(t.Context(), []departure{{"node-2", ""}, {"node-3", ""}, {"node-4", ""}, {"node-5", ""}})
	// node-3 is back.
	s.updateView(t.Context(), SourceRegistry, func(d *stateData) { d.view = testView(time.Unix(1, 0), "node-1", "node-3") })
	s.applyDeparture(t.Context(), "r", "node-4", time.Time{})
	s.cancelPending(t.Context(), "node-5")
	for id, want := range map[string]bool{"node-2": true, "node-3": false, "node-4": false, "node-5": false} {
		if _, got := s.takePending(t.Context(), id); got != want {
			t.Errorf("%s is pending: %t, want %t", id, got, want)
		}
	}
	if _, again := s.takePending(t.Context(), "node-2"); again {
		t.Error("a departure was pending twice")
	}
}

// The response to a renewal may list a server that has left since the renewal was sent.
func TestStateDepartureDuringARenewal(t *testing.T) {
	joined, renewed, back := time.Unix(100, 0), time.Unix(101, 0), time.Unix(102, 0)
	early := time.Unix(50, 0) // after the clock of the registry went back
	for name, tt := range map[string]struct {
		departsAfter, sentAfter time.Duration
		listed                  time.Time
		want, ignored           bool
	}{
		"the list is from before the departure, and has a newer entry": {2, 1, renewed, false, true},
		"the list is from before the departure":                        {2, 1, joined, false, false},
		"the server has registered again":                              {2, 1, back, true, false},
		"the same, with an older date":                                 {2, 1, early, false, true},
		"the registry lists a server that left earlier":                {1, 2, renewed, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, start := testState(), time.Now()
				before := testView(joined, "node-1", "node-2")
				s.updateView(t.Context(), SourceRegistry, func(d *stateData) { d.view = before })
				time.Sleep(tt.departsAfter)
				s.applyDeparture(t.Context(), "r", "node-2", renewed)
				time.Sleep(time.Second)
				renewal := acceptedRenewal{
					sent: start.Add(tt.sentAfter), lease: time.Minute, before: before, listed: testView(tt.listed, "node-1", "node-2"),
				}
				if got := s.applyRenewal(t.Context(), renewal); got.ignored != tt.ignored {
					t.Errorf("ignored: %t", got.ignored)
				}
				if _, known := s.view().Get("node-2"); known != tt.want {
					t.Errorf("node-2 is known: %t", known)
				}
				renewal.sent, renewal.before = time.Now(), s.view()
				s.applyRenewal(t.Context(), renewal)
				if _, known := s.view().Get("node-2"); !known {
					t.Error("node-2 is unknown after the next renewal")
				}
			})
		})
	}
}

// Announcements from before a departure are ignored for some time. What peers report is bounded.
func TestStateDepartedServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testState()
		left := time.Unix(100, 0)
		s.updateView(t.Context(), SourceRegistry, func(d *stateData) { d.view = testView(left, "node-1", "node-2", "node-3", "node-4", "node-5") })
		for id, date := range map[string]time.Time{
			"node-2": left, "node-3": left, "node-4": left, "node-5": {}, strings.Repeat("x", 300): left,
		} {
			s.applyDeparture(t.Context(), "r", id, date)
		}
		s.applyDeparture(t.Context(), "r", "node-2", left.Add(-time.Second)) // the later date counts
		if n := len(s.data.departed); n != 3 {
			t.Errorf("%d departures are kept, want 3", n)
		}
		announce := func(what string, updated time.Time, id string, wantKnown bool) {
			t.Helper()
			r, err := s.applyAnnouncement(t.Context(), testView(updated, id, "node-1"), viewLimits{10, 1 << 20})
			if _, known := s.view().Get(id); err != nil || known != wantKnown || r.ignored == wantKnown {
				t.Errorf("%s: %s is known: %t, ignored: %t, %v", what, id, known, r.ignored, err)
			}
		}
		announce("late", left, "node-2", false)
		announce("late", left, "node-3", false)
		announce("new", left.Add(time.Second), "node-3", true)
		announce("without a date of the last update", time.Time{}, "node-4", true)
		announce("after a report without a date", left, "node-5", true)
		evicted, _ := s.view().Get("node-5")
		s.evict(t.Context(), evicted)
		announce("after its eviction", left, "node-5", false)
		s.replaceEntry(t.Context(), "node-5", testView(left.Add(-time.Hour), "node-5"))
		_, err := s.applyAnnouncement(t.Context(), testView(left, "node-5"), viewLimits{10, 1 << 20})
		if current, known := s.view().Get("node-5"); err != nil || !known || current.LastUpdate().Equal(left) {
			t.Errorf("a late announcement replaces the entry that the registry has: %v, %v", current, err)
		}
		time.Sleep(departedMemory)
		announce("later", left, "node-2", true)
		for i := range 2 * maxDeparted {
			s.applyDeparture(t.Context(), "r", fmt.Sprint("unknown-", i), left)
		}
		if n := len(s.data.departed); n != maxDeparted {
			t.Errorf("%d departures are kept, want %d", n, maxDeparted)
		}
	})
}

// testDeleter is a registry that has the given entries, and none of other servers.
type testDeleter map[string]wire.Server

var errNoRegistry = errors.New("no registry")

func (d testDeleter) deleteIf(_ context.Context, _, serverID, unmodifiedSince string) (*wire.Server, error) {
	if d == nil {
		return nil, errNoRegistry
	}
	since, err := time.Parse(time.RFC3339, unmodifiedSince)
	if err != nil {
		return nil, err
	}
	if s, ok := d[serverID]; ok && s.UpdatedAt.After(since) {
		return &s, nil
	}
	return nil, nil
}

func TestEvictor(t *testing.T) {
	updated := time.Unix(100, 0)
	moved := testServer("node-2", updated.Add(time.Second))
	moved.ClusterBaseURL = "http://elsewhere"
	for name, tt := range map[string]struct {
		peers    []string
		suspects int // the first of them
		total    int // 0: all of them
		enough   bool
		left     bool
		registry testDeleter
		evicted  []string
		skipped  string // of all suspects that are not evicted
		retried  string // the URL
		disabled bool
		decision Decision // on each suspect
	}{
		"gone":              {peers: []string{"node-2", "node-3"}, suspects: 2, registry: testDeleter{}, evicted: []string{"node-2", "node-3"}, decision: DecisionEvicted},
		"renewed":           {peers: []string{"node-2"}, suspects: 1, registry: testDeleter{"node-2": testServer("node-2", updated.Add(time.Second))}, skipped: "it is alive", decision: DecisionAlive},
		"moved":             {peers: []string{"node-2"}, suspects: 1, registry: testDeleter{"node-2": moved}, retried: "http://elsewhere", decision: DecisionReturned},
		"no registry":       {peers: []string{"node-2"}, suspects: 1, skipped: "registry did not confirm: no registry", decision: DecisionNotConfirmed},
		"most are":          {peers: []string{"node-2", "node-3", "node-4"}, suspects: 2, registry: testDeleter{}, skipped: "too many peers unreachable (2 of 3)", decision: DecisionSelfPreservation},
		"few of many":       {peers: []string{"node-2"}, total: 5, suspects: 1, registry: testDeleter{}, skipped: "only 1 of 5 peers", decision: DecisionTooFewCalled},
		"MinResults":        {peers: []string{"node-2"}, suspects: 1, enough: true, registry: testDeleter{}, skipped: ErrEnoughResults.Error(), decision: DecisionEnoughResults},
		"this node is gone": {peers: []string{"node-2"}, suspects: 1, left: true, registry: testDeleter{}, skipped: "this node is leaving", decision: DecisionLeaving},
		"disabled":          {peers: []string{"node-2"}, suspects: 1, disabled: true, registry: testDeleter{}, skipped: "eviction is off", decision: DecisionDisabled},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var decisions []string
			e := &evictor{
				policy:         Eviction{Disabled: tt.disabled},
				requestTimeout: time.Second,
				ctx:            t.Context(), memberCtx: t.Context(),
				registry: tt.registry, state: testState(), check: PeerPolicy{}.checkServer, log: zap.NewNop(),
				trace: newHooks([]Trace{{EvictionDecided: func(_ context.Context, d EvictionDecision) {
					mu.Lock()
					defer mu.Unlock()
					decisions = append(decisions, fmt.Sprint(d.Server.ServerID, " ", d.Decision, " ", d.Err))
				}}}, zap.NewNop(), nil),
				background: func(ctx context.Context, work func(context.Context)) error { work(ctx); return nil },
			}
			var notified []string
			e.notify = func(_ context.Context, _ membership.View, d departure) { notified = append(notified, d.serverID) }
			if tt.left {
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				e.memberCtx = ctx
			}
			e.state.updateView(t.Context(), SourceRegistry, func(d *stateData) { d.view = testView(updated, append(tt.peers, "node-1")...) })
			b := batch{peers: e.state.view().Without("node-1").Peers(), enough: tt.enough}
			for len(b.all) < max(tt.total, len(tt.peers)) {
				b.all = append(b.all, b.peers[0])
			}
			retried := ""
			b.retry = func(_ context.Context, p *membership.Peer, o *Outcome) {
				*o, retried = Outcome{Server: o.Server}, p.ClusterBaseURL
			}
			b.keep = func(context.Context, *membership.Peer, *Outcome) (Decision, error) { return "", nil }
			var suspects []int
			for i, p := range b.peers {
				o := Outcome{Server: Server(p.Server)}
				if i < tt.suspects {
					o.Err, o.Kind = &UnreachableError{Err: context.DeadlineExceeded}, KindTimeout
				}
				if b.outcomes = append(b.outcomes, o); e.isSuspect(&o, 0) {
					suspects = append(suspects, i)
				}
			}
			if len(suspects) != tt.suspects {
				t.Fatalf("%d suspects", len(suspects))
			}
			e.review(t.Context(), b, suspects)

			var evicted, wantDecisions []string
			for _, i := range suspects {
				o := b.outcomes[i]
				wantDecisions = append(wantDecisions, fmt.Sprint(o.Server.ServerID, " ", tt.decision, " ", o.EvictionSkipped))
				if o.Evicted {
					evicted = append(evicted, o.Server.ServerID)
				}
				if skipped := fmt.Sprint(o.EvictionSkipped); tt.skipped != "" && !strings.Contains(skipped, tt.skipped) {
					t.Errorf("%s: skipped because of %s, want %s", o.Server.ServerID, skipped, tt.skipped)
				}
			}
			if !slices.Equal(evicted, tt.evicted) || !slices.Equal(notified, tt.evicted) || retried != tt.retried {
				t.Errorf("evicted %q, notified peers of %q, retried at %q", evicted, notified, retried)
			}
			if slices.Sort(decisions); !slices.Equal(decisions, wantDecisions) {
				t.Errorf("the hook got %q, want %q", decisions, wantDecisions)
			}
			if got, want := e.state.view().Len(), 1+len(tt.peers)-len(tt.evicted); got != want {
				t.Errorf("the view has %d servers, want %d", got, want)
			}
		})
	}
}

// A suspect that another call has evicted meanwhile counts as evicted, but not as evicted by this
// call.
func TestEvictedMeanwhile(t *testing.T) {
	var decisions []Decision
	e := &evictor{
		ctx: t.Context(), memberCtx: t.Context(),
		registry: testDeleter{}, state: testState(), check: PeerPolicy{}.checkServer, log: zap.NewNop(),
		trace: newHooks([]Trace{{EvictionDecided: func(_ context.Context, d EvictionDecision) {
			decisions = append(decisions, d.Decision)
		}}}, zap.NewNop(), nil),
	}
	p := testView(time.Unix(100, 0), "node-2").Peers()[0]
	outcome := Outcome{Server: Server(p.Server), Kind: KindTimeout, Err: &UnreachableError{Err: context.DeadlineExceeded}}
	b := batch{peers: []*membership.Peer{p}, outcomes: []Outcome{outcome}, all: []*membership.Peer{p}}
	b.keep = func(context.Context, *membership.Peer, *Outcome) (Decision, error) { return "", nil }
	e.review(t.Context(), b, []int{0})
	if !b.outcomes[0].Evicted || !slices.Equal(decisions, []Decision{DecisionGone}) {
		t.Errorf("evicted %t, decisions %q", b.outcomes[0].Evicted, decisions)
	}
}

func TestPeerClient(t *testing.T) {
	c := testPeerClient(t, testHTTPClient(func(r *http.Request) (*http.Response, error) {
		if bearerToken(r.Header) == "token-1" {
			return respond(r, 401, "")
		}
		id := r.URL.Host
		if id == "node-4" {
			id = "hidden" // which is a secret
		}
		body, _ := io.ReadAll(r.Body)
		return respond(r, 200, fmt.Sprintf(`{"data":%s,"server":{"serverId":%q}}`, bytes.TrimSpace(body), id))
	}))
	call := &preparedRequest{method: http.MethodPut, ref: &url.URL{Path: "/things"}, body: []byte(`[1,2]`), noEviction: true}
	response := c.collect(t.Context(), call, testView(time.Unix(100, 0), "node-1", "node-2", "node-3", "node-4"))
	if len(response.Results) != 2 || len(response.Data) != 4 || len(response.Failures) != 1 {
		t.Fatalf("%d results with %d elements, %d failures", len(response.Results), len(response.Data), len(response.Failures))
	}
	failure := response.Failures[0]
	if failure.Kind != KindWrongServer || failure.Attempts < 1 || !strings.Contains(failure.Err.Error(), `"[redacted]" answered`) {
		t.Errorf("%s after %d attempts: %v", failure.Kind, failure.Attempts, failure.Err)
	}
}

func TestSchedule(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	newSchedule := func() *schedule {
		return &schedule{minInterval: 3 * time.Second, lastTry: start, nextTry: at(100), recheckAt: at(60)}
	}
	for name, tt := range map[string]struct {
		do      func(s *schedule)
		expires int // 0: no lease
		next    int
		due     map[int]bool // at a time, of a node that is alone
	}{
		"recheck comes first":         {func(*schedule) {}, 0, 60, map[int]bool{59: false, 60: true}},
		"or the expiry":               {func(*schedule) {}, 50, 50, map[int]bool{50: false}},
		"then the renewal":            {func(s *schedule) { s.due(at(60), false) }, 150, 100, map[int]bool{60: false, 99: false, 100: true}},
		"trigger":                     {func(s *schedule) { s.onTrigger() }, 0, 3, map[int]bool{2: false, 3: true}},
		"trigger does not postpone":   {func(s *schedule) { s.nextTry = at(1); s.onTrigger() }, 0, 1, map[int]bool{1: true}},
		"success":                     {func(s *schedule) { s.due(at(100), false); s.onSuccess(at(101), 50*time.Second) }, 0, 151, map[int]bool{150: false, 151: true}},
		"failure":                     {func(s *schedule) { s.due(at(100), false); s.onFailure(at(101), 5*time.Second) }, 0, 106, map[int]bool{105: false, 106: true}},
		"success of a recheck":        {func(s *schedule) { s.due(at(60), true); s.onSuccess(at(61), 50*time.Second) }, 0, 111, map[int]bool{110: false}},
		"failure of a recheck":        {func(s *schedule) { s.due(at(60), true); s.onFailure(at(61), 5*time.Second) }, 0, 65, map[int]bool{64: false, 65: true}},
		"trigger after the failure":   {func(s *schedule) { s.due(at(60), true); s.onFailure(at(61), 50*time.Second); s.onTrigger() }, 0, 63, map[int]bool{62: false, 63: true}},
		"failure without a recheck":   {func(s *schedule) { s.recheckAt = time.Time{}; s.due(at(100), true); s.onFailure(at(100), time.Second) }, 0, 101, nil},
		"late wake-up, node is alone": {func(*schedule) {}, 0, 60, map[int]bool{500: true}},
	} {
		t.Run(name, func(t *testing.T) {
			var expires time.Time
			if tt.expires > 0 {
				expires = at(tt.expires)
			}
			s := newSchedule()
			tt.do(s)
			if got := s.next(expires); !got.Equal(at(tt.next)) {
				t.Errorf("wakes up after %v, want %d s", got.Sub(start), tt.next)
			}
			for seconds, want := range tt.due {
				s := newSchedule()
				tt.do(s)
				if got := s.due(at(seconds), true); got != want {
					t.Errorf("due after %d s: %t, want %t", seconds, got, want)
				}
			}
		})
	}
	if s := newSchedule(); !s.due(at(60), true) || !s.rechecking {
		t.Error("no recheck of a node that is alone")
	}
	if s := newSchedule(); s.due(at(60), false) || !s.recheckAt.IsZero() {
		t.Error("a node with peers is rechecked, or will be")
	}
}

// Splitting an array at its commas gives the same elements as decoding it.
func FuzzAppendData(f *testing.F) {
	for _, seed := range []string{
		``, `null`, `1.50`, `"a,[]"`, `{"a":[1,2]}`, `[]`, `[ ]`, `[1]`, `[ 1 , 2 ]`, `[[1,2],{"a":[3,"]"]},"\"],[\\",null]`, `["\\"]`, `["é,\u002c"]`, `[{},[],[[]]]`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		data = bytes.TrimSpace(data)
		if len(data) > 0 && !json.Valid(data) {
			return // appendData is only called with valid JSON
		}
		var want []json.RawMessage
		switch {
		case len(data) == 0:
		case data[0] != '[':
			want = []json.RawMessage{data}
		default:
			if err := json.Unmarshal(data, &want); err != nil {
				t.Fatal(err)
			}
		}
		before := json.RawMessage(`"before"`)
		got := appendData([]json.RawMessage{before}, data)
		if diff := cmp.Diff(append([]json.RawMessage{before}, want...), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", data, diff)
		}
	})
}

// BenchmarkReadEnvelope decodes small and large responses of peers.
func BenchmarkReadEnvelope(b *testing.B) {
	base, err := url.Parse("http://mds-1:8080/mds/v1")
	if err != nil {
		b.Fatal(err)
	}
	peer := &membership.Peer{Server: wire.Server{ServerID: "mds-1"}, Base: base}
	for _, things := range []int{1, 100, 10_000} {
		body := fmt.Appendf(nil, `{"data":[%s{"id":"last"}],"server":{"serverId":"mds-1"}}`,
			bytes.Repeat([]byte(`{"id":"d3b07384-d9a0-4c9b-8f5e-0c6a1c1b1e11","name":"thing"},`), things-1))
		b.Run(fmt.Sprintf("things=%d", things), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				if _, data, err := readEnvelope(body, peer, "GET", new(url.URL)); err != nil || data == nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A hook that is not set costs no allocation, whether or not others are set.
func TestUnsetHooksDoNotAllocate(t *testing.T) {
	ctx, server, err := t.Context(), Server{ServerID: "node-2"}, errors.New("failed")
	req := &http.Request{Method: http.MethodGet, URL: &url.URL{Scheme: "http", Host: "node-2"}}
	for name, traces := range map[string][]Trace{
		"no trace":    nil,
		"other hooks": {{ReplicaChanged: func(context.Context, string, string, error) {}}, {}},
	} {
		h := newHooks(traces, zap.NewNop(), nil)
		for hook, use := range map[string]func() any{
			"Call": func() any { _, end := h.call(ctx, CallInfo{Method: req.Method}); return end.isEmpty() },
			"Request": func() any {
				c, end := h.request(ctx, RequestInfo{Server: server}, req)
				return c == ctx && end.isEmpty()
			},
			"Renewal":           func() any { _, end := h.renewal(ctx, RenewalInfo{}); return end.isEmpty() },
			"TokenFetch":        func() any { _, end := h.tokenFetch(ctx, TokenKey{}); return end.isEmpty() },
			"PeerDone":          func() any { h.peerDone(ctx, Outcome{Server: server, Err: err}); return true },
			"EvictionDecided":   func() any { h.evictionDecided(ctx, EvictionDecision{Server: server, Err: err}); return true },
			"MembershipChanged": func() any { h.membershipChanged(ctx, Change{Server: server}); return true },
			"StateChanged":      func() any { h.stateChanged(ctx, Status{}, Status{Reason: err}); return true },
			"CallerChecked":     func() any { h.callerChecked(ctx, CallerInfo{Err: err}); return true },
			"BreakerChanged":    func() any { h.breakerChanged(ctx, server, true); return true },
		} {
			if got := testing.AllocsPerRun(100, func() { use() }); got != 0 || use() != true {
				t.Errorf("%s: %s allocates %v times", name, hook, got)
			}
		}
	}
}

// What a call has received counts, also if it exceeds a limit.
func TestByteBudget(t *testing.T) {
	b := newByteBudget(10)
	steps := []bool{b.take(6), b.take(6), b.take(4), b.take(1), b.take(-4), b.take(3)}
	if diff := cmp.Diff([]bool{true, false, true, false, true, true}, steps); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if left, taken := b.left.Load(), b.taken.Load(); left != 1 || taken != 20 {
		t.Errorf("%d left and %d taken, want 1 and 20", left, taken)
	}
}

// The last of several long calls is followed by two collections, once its responses can be garbage.
// While long calls follow each other, there are two a minute. Short calls are not followed by any.
func TestCollectionsAfterLongCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stats := func() (m runtime.MemStats) {
			synctest.Wait()
			runtime.ReadMemStats(&m)
			return m
		}
		var c collector
		check := func(when string, before runtime.MemStats, want uint32) {
			t.Helper()
			now := stats()
			all, forced := now.NumGC-before.NumGC, now.NumForcedGC-before.NumForcedGC
			if all < want || forced > want {
				t.Errorf("%s: %d collections, of which the node forced %d, want %d", when, all, forced, want)
			}
		}
		before := stats()
		c.received(longCall - 1)
		time.Sleep(2 * collectDelay)
		check("after a short call", before, 0)
		c.received(longCall)
		time.Sleep(collectDelay - time.Second)
		c.received(2 * longCall)
		time.Sleep(collectDelay - time.Second)
		check("a moment after the second long call", before, 0)
		time.Sleep(time.Second)
		check("after both long calls", before, 2)
		time.Sleep(2 * collectDelay)
		check("later", before, 2)

		before = stats()
		for range 5 {
			c.received(longCall)
			time.Sleep(collectDelay - time.Second)
		}
		check("while long calls go on", before, 2)

		before = stats()
		c.received(longCall)
		c.close()
		c.received(longCall)
		time.Sleep(2 * collectDelay)
		check("after the end", before, 0)

		c = collector{}
		before = stats()
		defer debug.SetGCPercent(debug.SetGCPercent(-1))
		c.received(longCall)
		time.Sleep(collectDelay)
		check("with GOGC off", before, 0)
	})
}
