package cluster_test

import (
	"crypto/tls"
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

// The address that is dialled counts, not what a name promises. What may not be called is not
// suspected either. The npm module calls whatever an announcement names, with a token.
func TestDialedAddressIsChecked(t *testing.T) {
	for name, tt := range map[string]struct {
		host     string
		networks []netip.Prefix
		allowed  bool
	}{
		"any network, by number":        {"127.0.0.1", nil, true},
		"any network, by name":          {"localhost", nil, true},
		"in the networks, by number":    {"127.0.0.1", prefixes("10.0.0.0/8", "127.0.0.0/8"), true},
		"in the networks, by name":      {"localhost", prefixes("127.0.0.0/8", "::1/128"), true},
		"outside, by number":            {"127.0.0.1", prefixes("10.0.0.0/8"), false},
		"outside, by name":              {"localhost", prefixes("10.0.0.0/8"), false},
		"outside, mapped into IPv6":     {"[::ffff:127.0.0.1]", prefixes("10.0.0.0/8"), false},
		"in the networks, mapped":       {"[::ffff:127.0.0.1]", prefixes("127.0.0.0/8"), true},
		"outside, just by one address":  {"127.0.0.1", prefixes("127.0.0.2/32"), false},
		"by name, one address of it in": {"localhost", prefixes("127.0.0.1/32"), true},
	} {
		t.Run(name, func(t *testing.T) {
			peer := startCountingServer(t, responder(http.StatusOK, `{"data":["node-2"],"server":{"serverId":"node-2"}}`))
			_, port, err := net.SplitHostPort(peer.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			c, deleted := newSocketNode(t, "http://"+tt.host+":"+port+"/mds/v1", testConfig(), cluster.WithPeerPolicy(cluster.PeerPolicy{Networks: tt.networks}))
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
				t.Errorf("evicted %t, spared %v, mIT was asked %d times", o.Evicted, o.EvictionSkipped, deleted.Load())
			}
			if n := peer.connections.Load(); n != 0 {
				t.Errorf("%d connections were made", n)
			}
		})
	}
}

// No redirect is followed: it would take the token to where nobody was checked.
func TestRedirectsAreNotFollowed(t *testing.T) {
	for _, code := range []int{301, 302, 303, 307, 308} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			elsewhere := startCountingServer(t, responder(http.StatusOK, `{"data":["node-2"],"server":{"serverId":"node-2"}}`))
			peer := startCountingServer(t, http.RedirectHandler(elsewhere.URL, code))
			for kind, opt := range map[string]cluster.Option{
				"its own client": nil,
				"a given client": cluster.WithHTTPClient(&http.Client{}), // which would follow
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
				t.Errorf("%d connections were made to where it led", n)
			}
		})
	}
}

// What breaks on real sockets is what breaks in the network of the other tests.
func TestKindsOnSockets(t *testing.T) {
	hijacked := func(say string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.WriteString(conn, say)
			conn.Close()
		})
	}
	wait := func(r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // before that, nobody notices that the client gives up
		<-r.Context().Done()
	}
	hanging := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { wait(r) })
	stalled := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"data":`)
		_ = http.NewResponseController(w).Flush()
		wait(r)
	})
	for name, tt := range map[string]struct {
		h        http.Handler // nil: nobody listens
		kind     cluster.Kind
		attempts int
		evicted  bool
	}{
		"nobody listens":          {nil, cluster.KindRefused, 2, true},
		"closed without a word":   {hijacked(""), cluster.KindConnectionLost, 1, true},
		"hanging":                 {hanging, cluster.KindTimeout, 1, true},
		"stalled in the body":     {stalled, cluster.KindTimeout, 1, false},
		"broken off in the body":  {hijacked("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"data\""), cluster.KindMalformed, 1, false},
		"a chunk that breaks off": {hijacked("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n{\"dat"), cluster.KindMalformed, 1, false},
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
			if tt.evicted { // by the announcement already
				if deleted.Load() != 1 || len(c.Servers()) != 1 {
					t.Errorf("mIT was asked %d times, %d servers are known", deleted.Load(), len(c.Servers()))
				}
				c, _ = newSocketNode(t, peer.URL, cfg, cluster.WithEviction(cluster.Eviction{Disabled: true}))
			}
			if tt.kind == cluster.KindTimeout { // as the announcement has found: until it is asked again
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

// A peer whose TLS does not hold is alive: it is asked once, and nobody is evicted.
func TestTLSErrorsOfPeers(t *testing.T) {
	ok := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was asked") })
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
		"nobody knows who signed": secure(func(*tls.Config) {}),
		"it speaks no TLS":        "https" + strings.TrimPrefix(startCountingServer(t, ok).URL, "http"),
		"no version in common":    secure(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS10 }), //nolint:gosec // that is the point
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			cfg.Management = true
			c, deleted := newSocketNode(t, address, cfg)
			if o := callOnePeer(t, c, cluster.Request{Path: "/things"}); o.Kind != cluster.KindTLS || o.Attempts != 1 || o.Evicted || o.EvictionSkipped != nil {
				t.Errorf("%s after %d attempts: %v; evicted %t, spared %v", o.Kind, o.Attempts, o.Err, o.Evicted, o.EvictionSkipped)
			}
			if deleted.Load() != 0 || len(c.Servers()) != 2 {
				t.Errorf("mIT was asked %d times, %d servers are known", deleted.Load(), len(c.Servers()))
			}
		})
	}
}

// Whoever repeats our secrets to us, in whatever way, does not bring them into errors, logs or
// answers.
func TestEchoedSecretsAreRedacted(t *testing.T) {
	const secret = `p&ss<w>"o\rd`
	// echo says in its message, and in its info, all that was sent to it.
	echo := func(code int, serverID func(token string) string) clustertest.Fault {
		return clustertest.Answer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			var fields map[string]any
			_ = json.Unmarshal(body, &fields) // where it is an object
			token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
			answer := map[string]any{
				"statusCode": code, "title": token, "message": fmt.Sprintf("%s and %v", token, fields), "info": map[string]any{token: []any{"Bearer " + token, fields}},
				"data": nil,
			}
			if serverID != nil {
				answer["server"] = map[string]string{"serverId": serverID(token)}
			}
			w.WriteHeader(code)
			_ = json.NewEncoder(w).Encode(answer)
		}))
	}
	itself := func(token string) string { return token }
	nobody := func(string) string { return "" }
	for name, tt := range map[string]struct{ peers, registry, tokens clustertest.Fault }{
		"peers, 500":               {echo(500, nil), nil, nil},
		"peers, 403":               {echo(403, nil), nil, nil},
		"peers, 302":               {echo(302, nil), nil, nil},
		"peers, as another server": {echo(200, itself), nil, nil},
		"peers, as no server":      {echo(200, nobody), nil, nil},
		"mIT, 500":                 {clustertest.Refuse, echo(500, nil), nil},
		"mIT, 401":                 {clustertest.Refuse, echo(401, nil), nil},
		"mIT, of another server":   {clustertest.Refuse, echo(200, itself), nil},
		"mST, 500":                 {nil, nil, echo(500, nil)},
		"mST, 400":                 {nil, nil, echo(400, nil)},
		"mST, 200":                 {nil, nil, echo(200, nil)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				var said []string
				say := func(format string, args ...any) {
					mu.Lock()
					defer mu.Unlock()
					said = append(said, fmt.Sprintf(format, args...))
				}
				core, logged := observer.New(zap.DebugLevel)
				w := clustertest.Start(t, 0, clustertest.WithTokenTTL(30*time.Minute),
					clustertest.WithConfig(func(cfg *cluster.Config) { cfg.ClientSecret = secret }),
					clustertest.WithOptions(
						cluster.WithLogger(zap.New(core)),
						cluster.WithEviction(cluster.Eviction{MaxSuspectFraction: 1}),
						cluster.WithTrace(&cluster.Trace{
							StateChanged:    func(from, to cluster.Status) { say("%v %+v", from, to) },
							RenewFailed:     func(err error, _ time.Duration) { say("%v", err) },
							PeerDone:        func(o cluster.Outcome) { say("%v %+v %s", o.Err, o, o.Body) },
							EvictionSkipped: func(_ cluster.Server, why error) { say("%v", why) },
							TokenFetched:    func(_ cluster.TokenKey, err error) { say("%v", err) },
						})))
				if err := w.Tokens.SetClient(mit.Client{ID: "mds", Secret: secret, Type: "mds"}); err != nil {
					t.Fatal(err)
				}
				seen := recordRequests(w)
				n := w.Join()
				w.Join()
				w.Join()
				rpc(t, n, cluster.Request{Path: "/things"})
				for _, peer := range w.Nodes[1:] {
					w.Network.Fault(n.Host, peer.Host, tt.peers)
				}
				w.Network.Fault(n.Host, clustertest.RegistryHost, tt.registry)
				w.Network.Fault(n.Host, clustertest.TokenHost, tt.tokens)
				for range 3 { // with tokens, with those that must be renewed, and without
					res, err := n.RPCluster(t.Context(), cluster.Request{Method: "POST", Path: "/things", Body: map[string]string{"a": "b"}})
					if err != nil {
						t.Fatal(err)
					}
					say("%v %+v %s", res, res, marshal(t, res))
					for _, o := range res.Failures {
						say("%v %v", o.Err, o.EvictionSkipped)
					}
					if tt.peers != nil && len(res.Failures) == 0 && len(n.Servers()) == 3 {
						t.Error("nothing failed")
					}
					time.Sleep(20 * time.Minute)
					say("%v %+v %s %s", n.Status(), n.Status(), marshal(t, n.Status()), n.Status().Registration())
				}
				d := n.UnRegister(t.Context())
				say("%v %+v %s", d, d, marshal(t, d))

				encoder := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
				for _, line := range logged.All() {
					buf, err := encoder.EncodeEntry(line.Entry, line.Context)
					if err != nil {
						t.Fatal(err)
					}
					say("log: %s", buf)
				}
				secrets := map[string]bool{secret: true, strings.Trim(marshal(t, secret), `"`): true, `p&ss<w>\"o\\rd`: true}
				for _, x := range seen.sentBy(n) {
					if token := strings.TrimPrefix(x.Header.Get("Authorization"), "Bearer "); token != "" {
						secrets[token] = true
					}
				}
				if len(secrets) < 5 {
					t.Errorf("only %d secrets were sent", len(secrets))
				}
				for _, text := range said {
					for hidden := range secrets {
						if strings.Contains(text, hidden) {
							t.Errorf("%q is in: %s", hidden, text)
						}
					}
				}
			})
		})
	}
}

// A listener is a peer behind a socket.
type countingServer struct {
	*httptest.Server
	connections, requests atomic.Int64
}

// listen serves h as a peer, and counts.
func startCountingServer(t *testing.T, h http.Handler) *countingServer {
	t.Helper()
	l := &countingServer{}
	l.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.requests.Add(1)
		h.ServeHTTP(w, r)
	}))
	l.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			l.connections.Add(1)
		}
	}
	l.Start()
	t.Cleanup(l.Close)
	return l
}

// onSockets is a node with the client that it makes itself. To its mIT, which agrees to every
// delete, there is one peer, at that address.
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
	c = newNode(t, cfg, nil, append(opts, cluster.WithHTTPClient(nil))...)
	if _, err := c.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c, deleted
}

func callOnePeer(t *testing.T, c *cluster.Cluster, req cluster.Request) cluster.Outcome {
	t.Helper()
	res, err := c.RPCluster(t.Context(), req)
	if err != nil || len(res.Results)+len(res.Failures) != 1 {
		t.Fatalf("%v, %v", res, err)
	}
	return append(res.Results, res.Failures...)[0]
}
