package cluster_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/mit"
)

// The policy checks the address that is dialed, not only the name. A peer at a forbidden address
// does not become suspect. The npm module sends its token to any announced URL.
func TestDialedAddressIsChecked(t *testing.T) {
	for name, tt := range map[string]struct {
		host     string
		networks []netip.Prefix
		allowed  bool
	}{
		"any network, by address":       {"127.0.0.1", nil, true},
		"any network, by name":          {"localhost", nil, true},
		"in the networks, by address":   {"127.0.0.1", prefixes("10.0.0.0/8", "127.0.0.0/8"), true},
		"in the networks, by name":      {"localhost", prefixes("127.0.0.0/8", "::1/128"), true},
		"outside, by address":           {"127.0.0.1", prefixes("10.0.0.0/8"), false},
		"outside, by name":              {"localhost", prefixes("10.0.0.0/8"), false},
		"outside, mapped into IPv6":     {"[::ffff:127.0.0.1]", prefixes("10.0.0.0/8"), false},
		"in the networks, mapped":       {"[::ffff:127.0.0.1]", prefixes("127.0.0.0/8"), true},
		"outside, next address":         {"127.0.0.1", prefixes("127.0.0.2/32"), false},
		"by name, one of its addresses": {"localhost", prefixes("127.0.0.1/32"), true},
	} {
		t.Run(name, func(t *testing.T) {
			peer := startCountingServer(t, responder(http.StatusOK, `{"data":["node-2"],"server":{"serverId":"node-2"}}`))
			wrapped := cluster.WithTransport(addingHeader)
			_, port, err := net.SplitHostPort(peer.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			c, deleted := newSocketNode(t, "http://"+tt.host+":"+port+"/mds/v1", testConfig(), wrapped, cluster.WithPeerPolicy(cluster.PeerPolicy{Networks: tt.networks}))
			calls := peer.requests.Load() // the announcement
			o := callOnePeer(t, c, cluster.Request{Path: "/things"})
			if tt.allowed {
				if o.Err != nil || peer.requests.Load() != calls+1 {
					t.Errorf("%d requests, %v", peer.requests.Load()-calls, o.Err)
				}
				return
			}
			if o.Kind != cluster.KindNotAllowed || !errors.Is(o.Err, cluster.ErrNotAllowed) || o.Attempts > 1 {
				t.Errorf("%s after %d attempts: %v", o.Kind, o.Attempts, o.Err)
			}
			if o.Evicted || o.EvictionSkipped != nil || deleted.Load() != 0 || len(c.Servers()) != 2 {
				t.Errorf("evicted %t, skipped: %v, %d deletes at the registry", o.Evicted, o.EvictionSkipped, deleted.Load())
			}
			if n := peer.connections.Load(); n != 0 {
				t.Errorf("%d connections", n)
			}
		})
	}
}

// Redirects are not followed. They would send the token to an address that was not checked.
func TestRedirectsAreNotFollowed(t *testing.T) {
	for _, code := range []int{301, 302, 303, 307, 308} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			elsewhere := startCountingServer(t, responder(http.StatusOK, `{"data":["node-2"],"server":{"serverId":"node-2"}}`))
			peer := startCountingServer(t, http.RedirectHandler(elsewhere.URL, code))
			for kind, opt := range map[string]cluster.Option{
				"its own client": nil,
				"a given client": cluster.WithHTTPClient(&http.Client{}), // it would follow
			} {
				c, _ := newSocketNode(t, peer.URL, testConfig())
				if opt != nil {
					c, _ = newSocketNode(t, peer.URL, testConfig(), opt)
				}
				o := callOnePeer(t, c, cluster.Request{Method: "POST", Path: "/things", Body: 1})
				if se, ok := errors.AsType[*cluster.StatusError](o.Err); !ok || se.Code != code || o.Kind != cluster.KindStatus {
					t.Errorf("%s: %s, %v", kind, o.Kind, o.Err)
				}
			}
			if n := elsewhere.connections.Load(); n != 0 {
				t.Errorf("%d connections to the target", n)
			}
		})
	}
}

// Faults of real sockets have the same kinds as those of the network of the other tests.
func TestKindsOnSockets(t *testing.T) {
	hijacked := func(text string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.WriteString(conn, text)
			conn.Close()
		})
	}
	wait := func(r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // the server notices the end of the client only after that
		<-r.Context().Done()
	}
	hanging := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { wait(r) })
	stalled := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"data":`)
		_ = http.NewResponseController(w).Flush()
		wait(r)
	})
	for name, tt := range map[string]struct {
		h        http.Handler // nil: no listener
		kind     cluster.Kind
		attempts int
		evicted  bool
	}{
		"no listener":         {nil, cluster.KindRefused, 2, true},
		"closed at once":      {hijacked(""), cluster.KindConnectionLost, 1, true},
		"hanging":             {hanging, cluster.KindTimeout, 1, true},
		"stalled in the body": {stalled, cluster.KindTimeout, 1, false},
		"truncated body":      {hijacked("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"data\""), cluster.KindMalformed, 1, false},
		"truncated chunk":     {hijacked("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n{\"dat"), cluster.KindMalformed, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := tt.h
			if h == nil {
				h = http.NotFoundHandler()
			}
			peer := startCountingServer(t, h)
			if tt.h == nil {
				peer.Close()
			}
			cfg := testConfig()
			cfg.RequestTimeout = 50 * time.Millisecond
			cfg.Management = true
			c, deleted := newSocketNode(t, peer.URL, cfg, cluster.WithEviction(cluster.Eviction{Disabled: !tt.evicted}))
			if tt.evicted { // by the announcement
				if deleted.Load() != 1 || len(c.Servers()) != 1 {
					t.Errorf("%d deletes at the registry, %d servers in the view", deleted.Load(), len(c.Servers()))
				}
				c, _ = newSocketNode(t, peer.URL, cfg, cluster.WithEviction(cluster.Eviction{Disabled: true}))
			}
			// The announcement has opened the breaker: wait for the next probe.
			if tt.kind == cluster.KindTimeout {
				time.Sleep(2 * cfg.RequestTimeout)
			}
			o := callOnePeer(t, c, cluster.Request{Method: "POST", Path: "/things", Body: 1})
			if o.Kind != tt.kind || o.Attempts != tt.attempts {
				t.Errorf("%s after %d attempts: %v", o.Kind, o.Attempts, o.Err)
			}
			if suspect := o.EvictionSkipped != nil; suspect != tt.evicted {
				t.Errorf("suspect %t", suspect)
			}
		})
	}
}

// A peer with a TLS error is alive: it gets one attempt, and is not evicted.
func TestTLSErrorsOfPeers(t *testing.T) {
	ok := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it received a request") })
	secure := func(edit func(*tls.Config)) string {
		s := httptest.NewUnstartedServer(ok)
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		s.TLS = &tls.Config{}
		edit(s.TLS)
		s.StartTLS()
		t.Cleanup(s.Close)
		return s.URL
	}
	for name, address := range map[string]string{
		"unknown authority":    secure(func(*tls.Config) {}),
		"no TLS":               "https" + strings.TrimPrefix(startCountingServer(t, ok).URL, "http"),
		"no version in common": secure(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS10 }),
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			cfg.Management = true
			c, deleted := newSocketNode(t, address, cfg)
			if o := callOnePeer(t, c, cluster.Request{Path: "/things"}); o.Kind != cluster.KindTLS || o.Attempts != 1 || o.Evicted || o.EvictionSkipped != nil {
				t.Errorf("%s after %d attempts: %v; evicted %t, skipped: %v", o.Kind, o.Attempts, o.Err, o.Evicted, o.EvictionSkipped)
			}
			if deleted.Load() != 0 || len(c.Servers()) != 2 {
				t.Errorf("%d deletes at the registry, %d servers in the view", deleted.Load(), len(c.Servers()))
			}
		})
	}
}

// The functions of a tls.Config run on goroutines of net/http. A panic of one does not end the
// process: it is a fault of this node.
func TestPanicsOfTLSFunctions(t *testing.T) {
	peer := httptest.NewUnstartedServer(responder(http.StatusOK, `{"data":[],"server":{"serverId":"node-2"}}`))
	peer.Config.ErrorLog = log.New(io.Discard, "", 0)
	peer.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	peer.StartTLS()
	t.Cleanup(peer.Close)
	roots := x509.NewCertPool()
	roots.AddCert(peer.Certificate())
	for name, cfg := range map[string]*tls.Config{
		"GetClientCertificate":  {GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { panic("of the program") }},
		"VerifyPeerCertificate": {VerifyPeerCertificate: func([][]byte, [][]*x509.Certificate) error { panic("of the program") }},
		"VerifyConnection":      {VerifyConnection: func(tls.ConnectionState) error { panic("of the program") }},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.RootCAs = roots
			c, deleted := newSocketNode(t, peer.URL+"/mds/v1", testConfig(), cluster.WithPeerTLS(cfg))
			o := callOnePeer(t, c, cluster.Request{Path: "/things"})
			if o.Kind != cluster.KindLocal || !strings.Contains(o.Err.Error(), name+" panicked: of the program") || deleted.Load() != 0 {
				t.Errorf("%s: %v, evicted %t", o.Kind, o.Err, o.Evicted)
			}
		})
	}
}

// Secrets that a remote repeats do not get into errors, logs, hooks or JSON.
func TestEchoedSecretsAreRedacted(t *testing.T) {
	parallel(t)
	token := func(token string) string { return token }
	empty := func(string) string { return "" }
	for name, tt := range map[string]struct{ peers, registry, tokens clustertest.Fault }{
		"peers, 500":                         {echo(500, nil), nil, nil},
		"peers, 403":                         {echo(403, nil), nil, nil},
		"peers, 302":                         {echo(302, nil), nil, nil},
		"peers, the token as server id":      {echo(200, token), nil, nil},
		"peers, an empty server id":          {echo(200, empty), nil, nil},
		"registry, 500":                      {clustertest.Refuse, echo(500, nil), nil},
		"registry, 401":                      {clustertest.Refuse, echo(401, nil), nil},
		"registry, the token as server id":   {clustertest.Refuse, echo(200, token), nil},
		"token service, 500":                 {nil, nil, echo(500, nil)},
		"token service, 400":                 {nil, nil, echo(400, nil)},
		"token service, 200 without a token": {nil, nil, echo(200, nil)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startRedactionTest(t)
				n := r.world.Nodes[0]
				for _, peer := range r.world.Nodes[1:] {
					r.world.Network.Fault(n.Host, peer.Host, tt.peers)
				}
				r.world.Network.Fault(n.Host, clustertest.RegistryHost, tt.registry)
				r.world.Network.Fault(n.Host, clustertest.TokenHost, tt.tokens)
				r.callAndLeave(tt.peers != nil)
				r.check()
			})
		})
	}
}

const echoedSecret = `p&ss<w>"o\rd`

// echo answers with all that it received in the title, message and info. If serverID is given, the
// response also has a server id, which is made of the token.
func echo(code int, serverID func(token string) string) clustertest.Fault {
	return clustertest.Answer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var fields map[string]any
		_ = json.NewDecoder(r.Body).Decode(&fields) // nil if the body is not an object
		token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		response := map[string]any{
			"statusCode": code, "title": token, "message": fmt.Sprintf("%s and %v", token, fields), "info": map[string]any{token: []any{"Bearer " + token, fields}},
			"data": nil,
		}
		if serverID != nil {
			response["server"] = map[string]string{"serverId": serverID(token)}
		}
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(response)
	}))
}

// A redactionTest is a world of three nodes, and collects all texts that the first node produces.
type redactionTest struct {
	t        *testing.T
	world    *clustertest.World
	requests *requestLog
	logged   *observer.ObservedLogs

	mu    sync.Mutex // guards the field below
	texts []string
}

func startRedactionTest(t *testing.T) *redactionTest {
	t.Helper()
	core, logged := observer.New(zap.DebugLevel)
	r := &redactionTest{t: t, logged: logged}
	r.world = clustertest.Start(t, 0, clustertest.WithTokenTTL(30*time.Minute),
		clustertest.WithConfig(func(cfg *cluster.Config) { cfg.ClientSecret = echoedSecret }),
		clustertest.WithOptions(
			cluster.WithLogger(zap.New(core)),
			cluster.WithEviction(cluster.Eviction{MaxSuspectFraction: 1}),
			cluster.WithTrace(&cluster.Trace{
				StateChanged:    func(_ context.Context, from, to cluster.Status) { r.collect("%v %+v", from, to) },
				PeerDone:        func(_ context.Context, o cluster.Outcome) { r.collect("%v %+v %s", o.Err, o, o.Body) },
				EvictionDecided: func(_ context.Context, d cluster.EvictionDecision) { r.collect("%+v", d) },
				CallerChecked:   func(_ context.Context, i cluster.CallerInfo) { r.collect("%v %+v", i.Err, i) },
				ReplicaChanged:  func(_ context.Context, from, to string, err error) { r.collect("%s %s %v", from, to, err) },
				Request: func(ctx context.Context, i cluster.RequestInfo) (context.Context, func(cluster.RequestResult)) {
					r.collect("%+v", i)
					return ctx, func(result cluster.RequestResult) { r.collect("%v %+v", result.Err, result) }
				},
				TokenFetch: func(ctx context.Context, _ cluster.TokenKey) (context.Context, func(error)) {
					return ctx, func(err error) { r.collect("%v", err) }
				},
			}),
			onRenewal(func(result cluster.RenewalResult) { r.collect("%v", result.Err) })))
	if err := r.world.Tokens.SetClient(mit.Client{ID: "mds", Secret: echoedSecret, Type: "mds"}); err != nil {
		t.Fatal(err)
	}
	r.requests = recordRequests(r.world)
	for range 3 {
		r.world.Join()
	}
	rpc(t, r.world.Nodes[0], cluster.Request{Path: "/things"})
	return r
}

func (r *redactionTest) collect(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.texts = append(r.texts, fmt.Sprintf(format, args...))
}

// callAndLeave calls the peers with valid tokens, with tokens due for refresh, and with expired
// ones, and collects the responses. Then the node leaves.
func (r *redactionTest) callAndLeave(peersFail bool) {
	r.t.Helper()
	n := r.world.Nodes[0]
	for range 3 {
		res, err := n.RPCluster(r.t.Context(), cluster.Request{Method: "POST", Path: "/things", Body: map[string]string{"a": "b"}})
		if err != nil {
			r.t.Fatal(err)
		}
		r.collect("%v %+v %s", res, res, marshal(r.t, res))
		for _, o := range res.Failures {
			r.collect("%v %v", o.Err, o.EvictionSkipped)
		}
		if peersFail && len(res.Failures) == 0 && len(n.Servers()) == 3 {
			r.t.Error("no peer failed")
		}
		time.Sleep(20 * time.Minute)
		r.collect("%v %+v %s %s", n.Status(), n.Status(), marshal(r.t, n.Status()), n.Status().Env()["REGISTRATION_STATUS"])
	}
	d := n.UnRegister(r.t.Context())
	r.collect("%v %+v %s", d, d, marshal(r.t, d))
}

// check searches the texts and the log lines for the secret and all tokens.
func (r *redactionTest) check() {
	r.t.Helper()
	encoder := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
	for _, line := range r.logged.All() {
		buf, err := encoder.EncodeEntry(line.Entry, line.Context)
		if err != nil {
			r.t.Fatal(err)
		}
		r.collect("log: %s", buf)
	}
	secrets := map[string]bool{echoedSecret: true, strings.Trim(marshal(r.t, echoedSecret), `"`): true, `p&ss<w>\"o\\rd`: true}
	for _, x := range r.requests.sentBy(r.world.Nodes[0]) {
		if token := strings.TrimPrefix(x.Header.Get("Authorization"), "Bearer "); token != "" {
			secrets[token] = true
		}
	}
	if len(secrets) < 5 {
		r.t.Errorf("only %d secrets were sent", len(secrets))
	}
	for _, text := range r.texts {
		for secret := range secrets {
			if strings.Contains(text, secret) {
				r.t.Errorf("%q is in: %s", secret, text)
			}
		}
	}
}

// A countingServer is a peer on a socket. It counts connections, all and open ones, and requests.
type countingServer struct {
	*httptest.Server
	connections, open, requests atomic.Int64
}

func startCountingServer(t *testing.T, h http.Handler) *countingServer {
	t.Helper()
	l := &countingServer{}
	l.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.requests.Add(1)
		h.ServeHTTP(w, r)
	}))
	l.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			l.connections.Add(1)
			l.open.Add(1)
		case http.StateClosed:
			l.open.Add(-1)
		}
	}
	l.Start()
	t.Cleanup(l.Close)
	return l
}

// newSocketNode returns a registered node with its own client, and the number of deletes at its
// registry. The registry lists one peer, at the address, and confirms every delete.
func newSocketNode(t *testing.T, peer string, cfg cluster.Config, opts ...cluster.Option) (c *cluster.Cluster, deleted *atomic.Int64) {
	t.Helper()
	deleted = &atomic.Int64{}
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodDelete {
			deleted.Add(1)
			fmt.Fprint(w, `{"data":{}}`)
			return
		}
		fmt.Fprintf(w, `{"itResource":{"id":"it","publicBaseUrl":"","servers":[{"serverId":"node-1","clusterBaseUrl":"http://10.0.0.7:8080/mds/v1","updatedAt":"2000-01-01T00:00:00Z"},`+
			`{"serverId":"node-2","clusterBaseUrl":%q,"updatedAt":"2000-01-01T00:00:00Z"}]}}`, peer)
	}))
	t.Cleanup(registry.Close)
	cfg.RegistryURL = registry.URL
	c = newNode(t, cfg, nil, append([]cluster.Option{cluster.WithHTTPClient(nil)}, opts...)...)
	if _, err := c.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c, deleted
}

// A policy may allow link-local addresses of IPv6, which have a zone: the interface to dial
// through.
func TestLinkLocalPeersWithZone(t *testing.T) {
	for name, tt := range map[string]struct {
		networks []netip.Prefix
		host     string
		kind     cluster.Kind
	}{
		"allowed":             {prefixes("fe80::/10"), "[fe80::1%25eth0]", cluster.KindOK},
		"allowed, no zone":    {prefixes("fe80::/10"), "[fe80::1]", cluster.KindOK},
		"one of two networks": {prefixes("10.0.0.0/8", "fe80::/64"), "[fe80::2%25wlan0]", cluster.KindOK},
		"another network":     {prefixes("fe80:0:0:1::/64"), "[fe80::1%25eth0]", cluster.KindNotAllowed},
		"by default":          {nil, "[fe80::1%25eth0]", cluster.KindNotAllowed},
	} {
		t.Run(name, func(t *testing.T) {
			r := &remotes{t: t}
			r.registry = func(*http.Request) (int, string) {
				return http.StatusOK, `{"itResource":{"id":"it","publicBaseUrl":"","servers":[{"serverId":"node-1","clusterBaseUrl":"http://10.0.0.7:8080/mds/v1"},` +
					`{"serverId":"node-2","clusterBaseUrl":"http://` + tt.host + `:8080/mds/v1"}]}}`
			}
			rt := clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
				if req.URL.Host == "mit.test" {
					return r.RoundTrip(req)
				}
				return newHTTPResponse(req, http.StatusOK, `{"server":{"serverId":"node-2"}}`), nil
			})
			c := newNode(t, testConfig(), nil, cluster.WithHTTPClient(nil), cluster.WithPeerPolicy(cluster.PeerPolicy{Networks: tt.networks}),
				cluster.WithTransport(func(http.RoundTripper) http.RoundTripper { return rt }))
			if _, err := c.Register(t.Context()); err != nil {
				t.Fatal(err)
			}
			if o := callOnePeer(t, c, cluster.Request{Path: "/things"}); o.Kind != tt.kind {
				t.Errorf("%s: %v", o.Kind, o.Err)
			}
		})
	}
}

func callOnePeer(t *testing.T, c *cluster.Cluster, req cluster.Request) cluster.Outcome {
	t.Helper()
	res, err := c.RPCluster(t.Context(), req)
	if err != nil || len(res.Results)+len(res.Failures) != 1 {
		t.Fatalf("%v, %v", res, err)
	}
	return append(res.Results, res.Failures...)[0]
}
