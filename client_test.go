package cluster_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	gotypes "go/types"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/internal/redact"
	"github.com/mimiktech/cluster/internal/testca"
)

// An idle connection to a former peer would take a descriptor on both sides until it expires.
func TestIdleConnectionsAreClosed(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, c *cluster.Cluster){
		"by the departure of the peer": func(t *testing.T, c *cluster.Cluster) {
			t.Helper()
			handle(t, c.DeleteServer, http.MethodDelete, itResources+"/it/servers/node-2", "")
		},
		"by a move of the peer": func(t *testing.T, c *cluster.Cluster) {
			t.Helper()
			handle(t, c.CreateItResource, http.MethodPost, itResources, `{"id":"it","publicBaseUrl":"http://x/mds/v1","servers":[`+
				`{"serverId":"node-2","clusterBaseUrl":"http://127.0.0.9:8080/mds/v1","updatedAt":"2001-01-01T00:00:00Z"}]}`)
		},
		"by Close": func(_ *testing.T, c *cluster.Cluster) { c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			peer := startCountingServer(t, responder(http.StatusOK, `{"data":[],"server":{"serverId":"node-2"}}`))
			c, _ := newSocketNode(t, peer.URL, testConfig())
			for range 3 {
				if o := callOnePeer(t, c, cluster.Request{Path: "/things"}); o.Err != nil {
					t.Fatal(o.Err)
				}
			}
			if peer.open.Load() != 1 || peer.connections.Load() != 1 {
				t.Fatalf("%d of %d connections are open", peer.open.Load(), peer.connections.Load())
			}
			end(t, c)
			// It would expire after four seconds. The server needs a moment to notice.
			for start := time.Now(); peer.open.Load() > 0; time.Sleep(time.Millisecond) {
				if time.Since(start) > 2*time.Second {
					t.Fatal("the connection is still open")
				}
			}
		})
	}
}

// handle lets a handler of a node reply to a peer's request. The status must be 200.
func handle(t *testing.T, h http.HandlerFunc, method, path, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer peer")
	if r := serve(h, req); r.Code != http.StatusOK {
		t.Fatalf("%s %s: %d: %s", method, path, r.Code, r.Body)
	}
}

// The direct transport is used by nodes without a transport of the program, and for http only. Both
// ways must give the same outcomes, whatever the peer responds.
func TestDirectTransportGivesTheSameOutcomes(t *testing.T) {
	respond := map[string]http.HandlerFunc{
		"a result":              writer(200, "", `{"data":[1],"server":{"serverId":"node-2"}}`),
		"chunked":               writer(200, "chunked", `{"data":[1],"server":{"serverId":"node-2"}}`),
		"gzip":                  writer(200, "gzip", `{"data":[1],"server":{"serverId":"node-2"}}`),
		"204":                   writer(204, "", ""),
		"an error":              writer(409, "", `{"statusCode":409,"message":"so it is","info":{"a":1}}`),
		"a 404":                 writer(404, "", "not found"),
		"a redirect":            writer(302, "", ""),
		"no result":             writer(200, "", "{"),
		"too large":             writer(200, "", strings.Repeat(" ", 1<<20)),
		"too large, chunked":    writer(200, "chunked", strings.Repeat(" ", 1<<20)),
		"too large, compressed": writer(200, "gzip", strings.Repeat(" ", 1<<20)),
		"a large error":         writer(500, "", strings.Repeat(" ", 1<<20)),
		"another server":        writer(200, "", `{"data":[1],"server":{"serverId":"node-3"}}`),
		"connection lost":       func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"cut off": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, `{"data":`)
			panic(http.ErrAbortHandler)
		},
		"no response": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"half a response": func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, `{"data":`)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		},
	}
	for name, h := range respond {
		for _, req := range []cluster.Request{
			{Path: "/a%2Fb/c?x=1", Query: url.Values{"y": {"2 3"}}, Header: http.Header{"X-Own": {"a", "b"}}},
			{Method: http.MethodPost, Path: "/things", Body: strings.Repeat("x", 40<<10)},
			{Method: http.MethodHead, Path: "/things"},
		} {
			if name == "no response" || name == "half a response" {
				req.Timeout = 300 * time.Millisecond
			}
			t.Run(name+", "+req.Method, func(t *testing.T) {
				t.Parallel()
				var got [2]string
				for i, client := range []*http.Client{nil, {Transport: new(http.Transport)}} {
					got[i] = outcomeOf(t, h, req, client)
				}
				if diff := cmp.Diff(got[1], got[0]); diff != "" {
					t.Errorf("(-net/http +direct):\n%s", diff)
				}
			})
		}
	}
}

// outcomeOf describes what is sent to a peer that responds with h, and the outcome. The client is
// nil for the transports of the node.
func outcomeOf(t *testing.T, h http.HandlerFunc, req cluster.Request, client *http.Client) string {
	t.Helper()
	var mu sync.Mutex
	var text strings.Builder
	peer := startCountingServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if strings.HasSuffix(r.URL.Path, "/itResources") && r.Method != http.MethodHead {
			responder(http.StatusOK, `{"data":null}`).ServeHTTP(w, r)
			return
		}
		r.Header.Del("X-Correlation-Id")
		r.Header.Del("Connection") // of a retry
		mu.Lock()
		fmt.Fprintln(&text, r.Method, r.RequestURI, r.Proto, r.ContentLength, r.TransferEncoding, r.Header, len(body))
		mu.Unlock()
		h(w, r)
	}))
	peer.Config.ErrorLog = log.New(io.Discard, "", 0)
	cfg := testConfig()
	cfg.MaxResponseBytes = 1 << 19
	c, _ := newSocketNode(t, peer.URL+"/base", cfg, cluster.WithHTTPClient(client))
	if client != nil {
		defer client.CloseIdleConnections() // one may keep a handler waiting
	}
	o := callOnePeer(t, c, req)
	header := o.Header()
	header.Del("Date")
	mu.Lock()
	defer mu.Unlock()
	fmt.Fprintln(&text, o.Kind, o.Err, o.StatusCode, header, string(o.Body), string(o.Data), o.Unverified, o.Attempts, o.Evicted, o.EvictionSkipped)
	const late = " (this process noticed its timeout late)" // it depends on the load of the machine
	return strings.NewReplacer(peer.Listener.Addr().String(), "peer", late, "").Replace(text.String())
}

// writer writes a response in one of several ways.
func writer(code int, how, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Reply", "yes")
		out := io.Writer(w)
		if how == "gzip" && r.Header.Get("Accept-Encoding") == "gzip" {
			w.Header().Set("Content-Encoding", "gzip")
			zw := gzip.NewWriter(w)
			defer zw.Close()
			out = zw
		}
		w.WriteHeader(code)
		if how == "chunked" {
			_ = http.NewResponseController(w).Flush()
		}
		if r.Method != http.MethodHead && code != http.StatusNoContent {
			_, _ = io.WriteString(out, body)
		}
	}
}

// addingHeader wraps a transport as tracing libraries do: the request is cloned, and has one more
// header.
func addingHeader(base http.RoundTripper) http.RoundTripper {
	return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
		req = req.Clone(req.Context())
		req.Header.Set("Traceparent", "00-1-2-01")
		return base.RoundTrip(req)
	})
}

// Sixteen calls at a time need sixteen connections, however often they are repeated.
func TestWithTransportKeepsThePool(t *testing.T) {
	const calls, rounds = 16, 10
	var (
		mu      sync.Mutex
		arrived int
		all     = make(chan struct{})
		traced  atomic.Int64
	)
	peer := startCountingServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Traceparent") != "" {
			traced.Add(1)
		}
		if r.Method == http.MethodGet { // not the announcement
			mu.Lock()
			wait := all
			if arrived++; arrived%calls == 0 {
				close(all)
				all = make(chan struct{})
			}
			mu.Unlock()
			<-wait
		}
		fmt.Fprint(w, `{"data":[],"server":{"serverId":"node-2"}}`)
	}))
	c, _ := newSocketNode(t, peer.URL, testConfig(), cluster.WithTransport(addingHeader))
	for range rounds {
		var wg sync.WaitGroup
		for range calls {
			wg.Go(func() {
				res, err := c.RPCluster(t.Context(), cluster.Request{Path: "/things"})
				if err != nil || len(res.Results) != 1 {
					t.Errorf("%v, %v", res, err)
				}
			})
		}
		wg.Wait()
	}
	if got := peer.connections.Load(); got != calls {
		t.Errorf("%d connections for %d calls at a time", got, calls)
	}
	if got := traced.Load(); got != calls*rounds+1 {
		t.Errorf("%d requests passed the wrapper, want %d", got, calls*rounds+1)
	}
}

// A retry goes through a transport of its own, which makes a new connection.
func TestWithTransportRetriesOnANewConnection(t *testing.T) {
	var used []string  // the transport of each request to the peer
	var closing []bool // whether the request asks for a connection of its own
	transports := 0
	wrap := func(base http.RoundTripper) http.RoundTripper {
		transports++
		name := fmt.Sprint("transport ", transports)
		return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
			if strings.HasSuffix(req.URL.Path, "/things") {
				closing = append(closing, req.Close)
				if used = append(used, name); len(used) == 1 {
					return nil, io.ErrUnexpectedEOF
				}
			}
			return base.RoundTrip(req)
		})
	}
	peer := startCountingServer(t, responder(http.StatusOK, `{"data":[],"server":{"serverId":"node-2"}}`))
	c, _ := newSocketNode(t, peer.URL, testConfig(), cluster.WithTransport(wrap))
	connections := peer.connections.Load()
	o := callOnePeer(t, c, cluster.Request{Path: "/things"})
	if o.Err != nil || o.Attempts != 2 || len(used) != 2 || used[0] == used[1] {
		t.Errorf("%d attempts through %q: %v", o.Attempts, used, o.Err)
	}
	if want := []bool{false, true}; !slices.Equal(closing, want) {
		t.Errorf("Close of the requests: %v, want %v", closing, want)
	}
	if got := peer.connections.Load() - connections; got != 1 {
		t.Errorf("%d new connections", got)
	}
}

func TestWithTransportOrder(t *testing.T) {
	var passed []string
	wrap := func(name string) cluster.Option {
		return cluster.WithTransport(func(base http.RoundTripper) http.RoundTripper {
			return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
				passed = append(passed, name)
				return base.RoundTrip(req)
			})
		})
	}
	registry := clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
		return newHTTPResponse(req, http.StatusOK, registrationResponse(time.Hour, "node-1")), nil
	})
	c := newNode(t, testConfig(), registry, wrap("first"), cluster.WithTransport(nil), wrap("second"))
	if _, err := c.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(passed, []string{"second", "first"}) {
		t.Errorf("passed %q", passed)
	}
}

func TestNewRejectsTransports(t *testing.T) {
	client := cluster.WithHTTPClient(&http.Client{})
	for name, tt := range map[string]struct {
		opts []cluster.Option
		want string
	}{
		"a wrapper that returns nil": {[]cluster.Option{cluster.WithTransport(func(http.RoundTripper) http.RoundTripper { return nil })}, "WithTransport"},
		"networks":                   {[]cluster.Option{client, cluster.WithPeerPolicy(cluster.PeerPolicy{Networks: prefixes("10.0.0.0/8")})}, "WithPeerPolicy"},
		"TLS to peers":               {[]cluster.Option{client, cluster.WithPeerTLS(&tls.Config{})}, "WithPeerTLS"},
		"TLS to the registry":        {[]cluster.Option{client, cluster.WithBackendTLS(&tls.Config{})}, "WithBackendTLS"},
		"no verification":            {[]cluster.Option{cluster.WithPeerTLS(&tls.Config{InsecureSkipVerify: true})}, "WithPeerTLS"},       //nolint:gosec // it is rejected
		"no verification, registry":  {[]cluster.Option{cluster.WithBackendTLS(&tls.Config{InsecureSkipVerify: true})}, "WithBackendTLS"}, //nolint:gosec // it is rejected
		"verification of its own": {[]cluster.Option{cluster.WithPeerTLS(&tls.Config{
			InsecureSkipVerify: true, //nolint:gosec // it is verified
			VerifyConnection:   func(tls.ConnectionState) error { return nil },
		})}, ""},
		"nothing": {[]cluster.Option{cluster.WithPeerTLS(nil), cluster.WithBackendTLS(nil), client}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := cluster.New(testConfig(), tt.opts...)
			if c != nil {
				c.Close()
			}
			if names := strings.Join(namedVariables(err), " "); names != tt.want {
				t.Errorf("the error names %q, want %q: %v", names, tt.want, err)
			}
		})
	}
}

// A TLS fault on either side is an outcome of its own. It never evicts the peer.
func TestMutualTLS(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	files := filepath.Join(t.TempDir(), "node")
	var expired *cluster.KeyPair // it was loaded in time, since a bubble begins in the year 2000
	synctest.Test(t, func(t *testing.T) { expired = loadKeyPair(t, ca, files) })
	for name, tt := range map[string]struct {
		server tls.Certificate
		client *tls.Config
		errs   []string // in the error; none: the call succeeds
	}{
		"both certificates":          {issue(t, ca, "127.0.0.1", time.Hour), clientTLS(ca, issue(t, ca, "node-1", time.Hour)), nil},
		"server of another host":     {issue(t, ca, "127.0.0.2", time.Hour), clientTLS(ca, issue(t, ca, "node-1", time.Hour)), []string{"node-2", "127.0.0.2, not 127.0.0.1"}},
		"expired server":             {issue(t, ca, "127.0.0.1", -time.Minute), clientTLS(ca, issue(t, ca, "node-1", time.Hour)), []string{"node-2", "expired"}},
		"server of another CA":       {issue(t, other, "127.0.0.1", time.Hour), clientTLS(ca, issue(t, ca, "node-1", time.Hour)), []string{"node-2", "unknown authority"}},
		"no client certificate":      {issue(t, ca, "127.0.0.1", time.Hour), clientTLS(ca), []string{"node-2", "certificate required"}},
		"client of another CA":       {issue(t, ca, "127.0.0.1", time.Hour), clientTLS(ca, issue(t, other, "node-1", time.Hour)), []string{"node-2", "certificate"}},
		"expired client, from files": {issue(t, ca, "127.0.0.1", time.Hour), &tls.Config{RootCAs: ca.Pool(), GetClientCertificate: expired.GetClientCertificate}, []string{"node-2", files + ".crt has expired"}},
		"verification of its own": {issue(t, ca, "127.0.0.1", time.Hour), &tls.Config{
			RootCAs: ca.Pool(), VerifyConnection: func(tls.ConnectionState) error { return errors.New("not the workload") },
		}, []string{"node-2", "not the workload"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewUnstartedServer(responder(http.StatusOK, `{"data":[],"server":{"serverId":"node-2"}}`))
			s.Config.ErrorLog = log.New(io.Discard, "", 0)
			s.TLS = &tls.Config{Certificates: []tls.Certificate{tt.server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Pool()}
			s.StartTLS()
			defer s.Close()
			c, deleted := newSocketNode(t, s.URL, testConfig(), cluster.WithPeerTLS(tt.client))
			o := callOnePeer(t, c, cluster.Request{Path: "/things"})
			if tt.errs == nil {
				if o.Err != nil {
					t.Error(o.Err)
				}
				return
			}
			if o.Kind != cluster.KindTLS || o.Evicted || o.EvictionSkipped != nil || deleted.Load() != 0 {
				t.Errorf("%s, evicted %t, skipped: %v, %d deletes: %v", o.Kind, o.Evicted, o.EvictionSkipped, deleted.Load(), o.Err)
			}
			for _, part := range tt.errs {
				if !strings.Contains(fmt.Sprint(o.Err), part) {
					t.Errorf("%q is not in: %v", part, o.Err)
				}
			}
		})
	}
}

func TestWithBackendTLS(t *testing.T) {
	ca := newCA(t)
	registry := httptest.NewUnstartedServer(responder(http.StatusOK, registrationResponse(time.Hour, "node-1")))
	registry.Config.ErrorLog = log.New(io.Discard, "", 0)
	registry.TLS = &tls.Config{
		Certificates: []tls.Certificate{issue(t, ca, "127.0.0.1", time.Hour)}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.Pool(),
	}
	registry.StartTLS()
	defer registry.Close()
	cfg := testConfig()
	cfg.RegistryURL = registry.URL
	for name, tt := range map[string]struct {
		opt  cluster.Option
		want string // in the reason of the status
	}{
		"with the CA and a certificate": {cluster.WithBackendTLS(clientTLS(ca, issue(t, ca, "node-1", time.Hour))), ""},
		"without the CA":                {nil, "unknown authority"},
		"without a certificate":         {cluster.WithBackendTLS(clientTLS(ca)), "certificate required"},
		"with that of peers":            {cluster.WithPeerTLS(clientTLS(ca, issue(t, ca, "node-1", time.Hour))), "unknown authority"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newNode(t, cfg, nil, cluster.WithHTTPClient(nil), tt.opt)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = c.Register(ctx)
			}()
			var reason string
			for s := c.Status(); s.State != cluster.Registered && reason == ""; s = c.Status() {
				if s.Reason != nil && strings.Contains(s.Reason.Error(), "mIT") {
					reason = s.Reason.Error()
				}
				time.Sleep(time.Millisecond) // a socket is not in a bubble
			}
			cancel()
			<-done
			if (tt.want == "") != (reason == "") || !strings.Contains(reason, tt.want) {
				t.Errorf("the reason is %q, want %q", reason, tt.want)
			}
		})
	}
}

func TestLoadKeyPair(t *testing.T) {
	ca := newCA(t)
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for name, ttl := range map[string]time.Duration{"good": time.Hour, "other": time.Hour, "old": -time.Minute} {
		if err := ca.IssueFiles("node-1", ttl, path(name+".crt"), path(name+".key")); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, path("empty"), "")
	for name, tt := range map[string]struct{ cert, key, want string }{
		"good":                 {"good.crt", "good.key", ""},
		"missing certificate":  {"none.crt", "good.key", "none.crt: no such file"},
		"missing key":          {"good.crt", "none.key", "none.key: no such file"},
		"of another key":       {"good.crt", "other.key", "private key does not match public key"},
		"expired":              {"old.crt", "old.key", "old.crt has expired at"},
		"an empty certificate": {"empty", "good.key", "failed to find any PEM data in certificate"},
		"an empty key":         {"good.crt", "empty", "failed to find any PEM data in key"},
		"exchanged":            {"good.key", "good.crt", "good.key with key"},
		"a directory":          {".", "good.key", "not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			pair, err := cluster.LoadKeyPair(path(tt.cert), path(tt.key), nil)
			if (err == nil) != (tt.want == "") || err != nil && (pair != nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), dir)) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

// A certificate is renewed on disk. Until the new files can be used, the last certificate is.
func TestKeyPairIsReread(t *testing.T) {
	ca := newCA(t)
	base := filepath.Join(t.TempDir(), "tls")
	cert, key := base+".crt", base+".key"
	var reported []string
	if err := ca.IssueFiles("node-1", time.Hour, cert, key); err != nil {
		t.Fatal(err)
	}
	pair, err := cluster.LoadKeyPair(cert, key, func(err error) { reported = append(reported, err.Error()) })
	if err != nil {
		t.Fatal(err)
	}
	serial := func() string {
		t.Helper()
		server, err1 := pair.GetCertificate(nil)
		client, err2 := pair.GetClientCertificate(nil)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		if server.Leaf.SerialNumber.Cmp(client.Leaf.SerialNumber) != 0 {
			t.Error("the server and the client have different certificates")
		}
		return server.Leaf.SerialNumber.String()
	}
	first := serial()
	newCert, newKey, err := ca.Issue("node-1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	expiredCert, expiredKey, err := ca.Issue("node-1", -time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct{ cert, key, want string }{
		{string(newCert), "", "failed to find any PEM data in key"}, // half written
		{"", string(newKey), "failed to find any PEM data in certificate"},
		{string(expiredCert), string(expiredKey), "has expired"},
		{string(newCert), string(expiredKey), "does not match"},
	} {
		reported = nil
		writeFile(t, cert, step.cert)
		writeFile(t, key, step.key)
		for range 2 {
			if serial() != first {
				t.Fatalf("%s: another certificate", step.want)
			}
		}
		if len(reported) != 1 || !strings.Contains(reported[0], step.want) || !strings.Contains(reported[0], cert) || strings.Contains(reported[0], "PRIVATE KEY") {
			t.Errorf("reported %q, want one with %q", reported, step.want)
		}
	}
	reported = nil
	writeFile(t, cert, string(newCert))
	writeFile(t, key, string(newKey))
	if serial() == first || reported != nil {
		t.Errorf("the certificate is not renewed; reported %q", reported)
	}
}

// A certificate that expires in use is not presented: the error names the file.
func TestKeyPairExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		base := filepath.Join(t.TempDir(), "tls")
		cert, key := base+".crt", base+".key"
		if err := newCA(t).IssueFiles("node-1", time.Hour, cert, key); err != nil {
			t.Fatal(err)
		}
		var reported []string
		pair, err := cluster.LoadKeyPair(cert, key, func(err error) { reported = append(reported, err.Error()) })
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, key, "")
		time.Sleep(time.Hour)
		if _, err := pair.GetCertificate(nil); err != nil {
			t.Errorf("in its last second: %v", err)
		}
		reported = nil
		time.Sleep(time.Second)
		for range 3 {
			if _, err := pair.GetCertificate(nil); err == nil || !strings.Contains(err.Error(), cert+" has expired at") {
				t.Errorf("%v", err)
			}
		}
		if len(reported) != 1 || !strings.Contains(reported[0], "has expired at") || !strings.Contains(reported[0], "PEM data in key") {
			t.Errorf("reported %q, want both reasons once", reported)
		}
	})
}

func TestListenAndServeWithTLS(t *testing.T) {
	ca := newCA(t)
	cfg := testConfig()
	cfg.NoRegistration = true
	var d net.ListenConfig
	ln, err := d.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	ln.Close()
	cfg.Port = ln.Addr().(*net.TCPAddr).Port
	c := newNode(t, cfg, clustertest.RoundTripperFunc(func(*http.Request) (*http.Response, error) { return nil, errors.New("unused") }))
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- c.ListenAndServe(ctx, &http.Server{
			Addr: address, Handler: responder(http.StatusOK, "{}"), ReadHeaderTimeout: time.Minute,
			TLSConfig: &tls.Config{Certificates: []tls.Certificate{issue(t, ca, "127.0.0.1", time.Hour)}},
		})
	}()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool()}, DisableKeepAlives: true}}
	var resp *http.Response
	for range 1000 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+address, nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err = client.Do(req); err == nil {
			break
		}
		time.Sleep(time.Millisecond) // until it listens
	}
	if resp == nil || resp.StatusCode != http.StatusOK {
		t.Error("no response over TLS")
	} else {
		resp.Body.Close()
	}
	cancel()
	if err := <-served; err != nil { // it never registered, so has no entry to delete
		t.Error(err)
	}
}

func newCA(t *testing.T) *testca.CA {
	t.Helper()
	ca, err := testca.New()
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issue(t *testing.T, ca *testca.CA, host string, ttl time.Duration) tls.Certificate {
	t.Helper()
	cert, err := ca.IssuePair(host, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func clientTLS(ca *testca.CA, certs ...tls.Certificate) *tls.Config {
	return &tls.Config{RootCAs: ca.Pool(), Certificates: certs}
}

func loadKeyPair(t *testing.T, ca *testca.CA, base string) *cluster.KeyPair {
	t.Helper()
	if err := ca.IssueFiles("node-1", time.Hour, base+".crt", base+".key"); err != nil {
		t.Fatal(err)
	}
	pair, err := cluster.LoadKeyPair(base+".crt", base+".key", nil)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// textsOf returns the texts of an error and of all errors that it wraps.
func textsOf(err error) []string {
	if err == nil {
		return nil
	}
	texts := []string{err.Error()}
	switch e := err.(type) { //nolint:errorlint // each error of the tree is visited
	case interface{ Unwrap() error }:
		texts = append(texts, textsOf(e.Unwrap())...)
	case interface{ Unwrap() []error }:
		for _, inner := range e.Unwrap() {
			texts = append(texts, textsOf(inner)...)
		}
	}
	return texts
}

// checkTexts checks what a node makes of text from outside.
func checkTexts(t *testing.T, texts []string, secrets ...string) {
	t.Helper()
	checkHidden(t, texts, secrets...)
	for _, text := range texts {
		if len(text) > 4<<10 || !redact.Printable(text) {
			t.Errorf("%d bytes, or not printable: %.300q", len(text), text)
		}
	}
}

// checkHidden checks texts with entries of servers, which may be longer and have any characters.
func checkHidden(t *testing.T, texts []string, secrets ...string) {
	t.Helper()
	for _, text := range texts {
		if redact.NewSecrets(secrets...).In(text) {
			t.Errorf("a secret in %.300q", text)
		}
	}
}

// logTexts returns the values of all fields of all lines.
func logTexts(lines *observer.ObservedLogs) (texts []string) {
	for _, line := range lines.All() {
		texts = append(texts, line.Message)
		for name, value := range line.ContextMap() {
			if name != "stack" {
				texts = append(texts, fmt.Sprint(value))
			}
		}
	}
	return texts
}

// statusTexts returns what a status has for an application. In the JSON, "<" may be escaped.
func statusTexts(t *testing.T, s cluster.Status) []string {
	t.Helper()
	return append(textsOf(s.Reason), s.Env()["REGISTRATION_STATUS"], marshal(t, s))
}

// Whatever a remote responds, the token that it was sent is in no error, not even in one that is
// wrapped, in no log line, no variable and no JSON.
func TestRemoteTextIsRedacted(t *testing.T) {
	const chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
	for name, raw := range map[string]string{
		"not HTTP":               "%s\r\n\r\n",
		"status line":            "HTTP/1.1 %s\r\n\r\n",
		"header without a colon": "HTTP/1.1 200 OK\r\n%s\r\n\r\n",
		"length":                 "HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n",
		"transfer encoding":      "HTTP/1.1 200 OK\r\nTransfer-Encoding: %s\r\n\r\n",
		"chunk":                  chunked + "%s\r\n",
		"trailer":                chunked + "0\r\n%s\r\n\r\n",
		"long":                   "HTTP/1.1 200 " + strings.Repeat("\xff", 9<<20) + "%s",
		"message":                "HTTP/1.1 500 Error\r\nConnection: close\r\n\r\n" + `{"message":"\u202e` + strings.Repeat("\x7f", 60<<10) + `%s"}`,
		"message, escaped":       "HTTP/1.1 500 Error\r\nConnection: close\r\n\r\n" + `{"message":"Bearer %e"}`,
		"info":                   "HTTP/1.1 500 Error\r\nConnection: close\r\n\r\n" + `{"message":"no","info":{"\u202e":"%s"}}`,
		"another server":         "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + `{"data":1,"server":{"serverId":"%s"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			repeatToken := func(c net.Conn, r *http.Request, _ int) bool {
				_, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
				escaped := strings.ReplaceAll(token, "h", `\u0068`)
				_, _ = io.WriteString(c, strings.NewReplacer("%s", token, "%e", escaped).Replace(raw))
				return false
			}
			hostile := rawServer(t, repeatToken)
			registry := rawServer(t, func(c net.Conn, _ *http.Request, _ int) bool {
				list := strings.ReplaceAll(registrationResponse(time.Hour, "node-1", "node-2"), "http://node-2.test:8080", hostile)
				return writeRaw(c, list)
			})
			observed, lines := observer.New(zap.DebugLevel)
			secrets := []string{"hidden-token-for-peers", "hidden-token-for-mit", "hidden client secret", "hidden access key"}
			for _, registryURL := range []string{hostile, registry} {
				cfg := testConfig()
				cfg.RegistryURL = registryURL
				ctx, cancel := context.WithCancel(t.Context())
				c := newNode(t, cfg, nil, cluster.WithHTTPClient(nil), cluster.WithLogger(zap.New(observed)), onRenewalFailure(func(error) { cancel() }))
				_, err := c.Register(ctx)
				checkTexts(t, append(textsOf(err), statusTexts(t, c.Status())...), secrets...)
				if registryURL == registry {
					res, err := c.RPCluster(ctx, cluster.Request{Path: "/things", Retry: &cluster.Retry{MaxRetries: -1}})
					if err != nil || len(res.Failures) != 1 {
						t.Fatalf("%v, %v", res, err)
					}
					o := res.Failures[0]
					checkTexts(t, append(append(textsOf(o.Err), textsOf(o.EvictionSkipped)...), marshal(t, o)), secrets...)
				}
				cancel()
			}
			checkTexts(t, logTexts(lines), secrets...)
		})
	}
}

// No error type of this package shows text of a remote in another way, neither in its text nor in
// JSON nor in a log line of the program. A type that is not among the errors fails.
func TestErrorTypesHideSecrets(t *testing.T) {
	const secret = "hidden <client> secret"
	local := "\x7f\u202e eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl " + strings.Repeat("x", 64<<10)
	text := secret + " " + strings.ReplaceAll(secret, "h", `\u0068`) + " " + base64.StdEncoding.EncodeToString([]byte(secret)) + local
	errs := cluster.HostileErrors(t, secret, text, local)
	for name := range errorTypes(t) {
		err, ok := errs[name]
		if !ok || !strings.Contains(err.Error(), " ") {
			t.Errorf("no error of the type %s: %v", name, err)
			continue
		}
		var line bytes.Buffer
		encoder := zapcore.NewJSONEncoder(zapcore.EncoderConfig{})
		zap.New(zapcore.NewCore(encoder, zapcore.AddSync(&line), zap.DebugLevel)).Info("", zap.Error(err), zap.Reflect("x", err))
		encoded, jsonErr := json.Marshal(err)
		if jsonErr != nil {
			t.Errorf("%s: %v", name, jsonErr)
		}
		checkTexts(t, append(textsOf(err), fmt.Sprintf("%+v", err), string(encoded), strings.TrimSpace(line.String())), secret)
		delete(errs, name)
	}
	if len(errs) > 0 {
		t.Errorf("errors of unknown types: %v", errs)
	}
}

// errorTypes returns the names of the types of package cluster with a method Error.
func errorTypes(t *testing.T) map[string]bool {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	types := make(map[string]bool)
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv != nil && f.Name.Name == "Error" {
				types[strings.TrimPrefix(gotypes.ExprString(f.Recv.List[0].Type), "*")] = true
			}
		}
	}
	return types
}

// Tokens of others are no secrets of this node. A repeated secret in a field that is not needed
// does not make a response of the registry unusable.
func TestEntriesWithForeignTokensAreKept(t *testing.T) {
	const token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"
	r := &remotes{t: t, view: []string{"node-1", "node-2"}}
	c := newRegisteredNode(t, r)
	view := testResource("node-1", "node-2")
	for _, id := range []string{"node-1", "node-2"} {
		view = strings.Replace(view, `{"serverId":"`+id+`",`, `{"serverId":"`+id+`","location":{"attestation":"`+token+`"},`, 1)
	}
	for name, field := range map[string]string{
		"a token of another": `"publicBaseUrl":"http://x/` + token + `"`, "a token of this node": `"publicBaseUrl":"http://x/hidden-token-for-peers"`,
	} {
		r.registry = func(*http.Request) (int, string) {
			return http.StatusOK, `{"itResource":` + strings.Replace(view, `"servers":`, field+`,"servers":`, 1) + `}`
		}
		if _, err := c.Register(withTimeout(t, time.Second)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if servers := marshal(t, c.Servers()); strings.Count(servers, token) != 2 {
			t.Errorf("%s: the servers are %s", name, servers)
		}
	}
}

// An entry of a server is passed on as it was received, but not if it repeats a secret anywhere.
// The same holds for the unknown fields of a resource, and for what other nodes' views have.
func TestEntriesWithSecretsAreLeftOut(t *testing.T) {
	const secret = "hidden-token-for-peers"
	for name, field := range map[string]string{
		"value":       `"x":"` + secret + `"`,
		"name":        `"` + secret + `":1`,
		"nested":      `"x":{"y":[{"z":"Bearer ` + secret + `."}]}`,
		"location":    `"location":{"type":"` + secret + `"}`,
		"date":        `"updatedAt":"` + secret + `"`,
		"JSON escape": `"x":"` + strings.ReplaceAll(secret, "h", `\u0068`) + `"`,
		"URL escape":  `"x":"` + strings.ReplaceAll(secret, "-", `%2d`) + `"`,
		"base64":      `"x":"` + base64.StdEncoding.EncodeToString([]byte("Bearer "+secret)) + `"`,
		"id":          `"serverId":"` + secret + `"`,
		"escaped id":  `"serverId":"` + strings.ReplaceAll(secret, "h", `\u0068`) + `"`,
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			var texts []string
			collect := func(text string) {
				mu.Lock()
				defer mu.Unlock()
				texts = append(texts, text)
			}
			hostile := strings.Replace(testResource("node-1", "node-2", "node-3"), `{"serverId":"node-3",`, `{"serverId":"node-3",`+field+`,`, 1)
			hostile = strings.Replace(hostile, `"servers":`, field+`,"servers":`, 1)
			r := &remotes{t: t, view: []string{"node-1", "node-2"}}
			r.peer = func(req *http.Request) (*http.Response, error) {
				body, err := io.ReadAll(req.Body)
				if err != nil {
					t.Error(err)
				}
				collect(string(body))
				return newHTTPResponse(req, http.StatusOK, `{"data":`+hostile+`,"server":{"serverId":"node-2"}}`), nil
			}
			c := newRegisteredNode(t, r)
			page := c.StatusHandler(cluster.StatusOptions{Auth: func(h http.Handler) http.Handler { return h }, Actions: true})
			send := func(h http.Handler, method, body string) string {
				req := httptest.NewRequest(method, "/", strings.NewReader(body))
				req.Header.Set("Authorization", "Bearer peer")
				req.Header.Set("Accept", "application/json")
				return serve(h, req).Body
			}
			use := func(source string) {
				res, err := c.RPCluster(t.Context(), cluster.Request{Path: "/things", Body: "x", Method: http.MethodPost})
				if err != nil {
					t.Fatal(err)
				}
				for _, o := range append(res.Results, res.Failures...) {
					collect(marshal(t, o.Server)) // the body is the peer's own
				}
				send(page, http.MethodPost, "")
				collect(send(page, http.MethodGet, ""))
				collect(marshal(t, c.Servers()))
				collect(send(http.HandlerFunc(c.CreateItResource), http.MethodPost, `{"id":"it"}`))
				if ids := idsOf(c.Servers()); !slices.Equal(ids, []string{"node-1", "node-2"}) {
					t.Errorf("%s: servers %q", source, ids)
				}
			}
			use("a view of a peer")
			send(http.HandlerFunc(c.CreateItResource), http.MethodPost, hostile)
			use("an announcement")
			r.registry = func(*http.Request) (int, string) { return http.StatusOK, `{"itResource":` + hostile + `}` }
			if _, err := c.Register(t.Context()); err != nil {
				t.Fatal(err)
			}
			use("the registry")
			c.UnRegister(t.Context())
			mu.Lock()
			defer mu.Unlock()
			checkHidden(t, texts, secret)
		})
	}
}

// The bodies of all responses to a call are bounded, and so is what their elements need.
func TestMaxCallBytes(t *testing.T) {
	parallel(t)
	for name, data := range map[string]string{
		"one text": `"` + strings.Repeat("x", 1<<10) + `"`,
		"elements": "[" + strings.Repeat("0,", 49) + "0]",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 9, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxCallBytes = 5 << 10 }),
					clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
						return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { n.Reply(w, r, json.RawMessage(data)) })
					}))
				n := w.Nodes[8] // it knows all peers from the registry
				for range 2 {   // each call has its own bound
					res := rpc(t, n, cluster.Request{Path: "/things"})
					if len(res.Results) < 3 || len(res.Results) > 5 {
						t.Errorf("%d results within the bound", len(res.Results))
					}
					for _, o := range res.Failures {
						if o.Kind != cluster.KindTooLarge || !errors.Is(o.Err, cluster.ErrResponseTooLarge) || o.EvictionSkipped != nil || o.Body != nil {
							t.Errorf("%s: %s, %v", o.Server.ServerID, o.Kind, o.Err)
						}
					}
				}
			})
		})
	}
}

// Peers that the registry has not confirmed share a quarter of the bound, also when they have
// answered. If they exceed it, the node renews.
func TestMaxCallBytesOfUnconfirmedPeers(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 9, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxCallBytes = 16 << 10 }),
			clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { n.Reply(w, r, strings.Repeat("x", 1<<10)) })
			}))
		n := w.Nodes[0] // it knows all peers from announcements
		requests := recordRequests(w)
		for range 2 {
			if res := rpc(t, n, cluster.Request{Path: "/things"}); len(res.Results) != 3 {
				t.Errorf("%d results of unconfirmed peers within 4 KiB", len(res.Results))
			}
		}
		time.Sleep(10 * time.Second)
		if renewals := len(requests.renewals(n)); renewals != 1 {
			t.Errorf("%d renewals", renewals)
		}
		if res := rpc(t, n, cluster.Request{Path: "/things"}); len(res.Results) != 8 {
			t.Errorf("%d results of confirmed peers: %v", len(res.Results), failures(res))
		}
	})
}

// The garbage of calls with long responses is collected soon, by two collections for many of them.
func TestLongCallsAreFollowedByACollection(t *testing.T) {
	for size, want := range map[int]uint32{1 << 10: 0, 6 << 20: 2} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 4, clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
					return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { n.Reply(w, r, strings.Repeat("x", size)) })
				}))
				collections := func() uint32 {
					var m runtime.MemStats
					runtime.ReadMemStats(&m)
					return m.NumForcedGC
				}
				before := collections()
				for range 3 {
					if res := rpc(t, w.Nodes[3], cluster.Request{Path: "/things"}); len(res.Results) != 3 {
						t.Fatal(failures(res))
					}
				}
				time.Sleep(30 * time.Second)
				if got := collections() - before; got != want {
					t.Errorf("%d collections, want %d", got, want)
				}
			})
		})
	}
}

// net/http prints a response that no request asked for to the standard logger, with the token that
// it repeats. Those of the registry come after a valid response on the same connection.
func TestUnsolicitedResponseIsNotPrinted(t *testing.T) {
	ca := newCA(t)
	for name, scheme := range map[string]func(net.Listener) net.Listener{
		"http": func(ln net.Listener) net.Listener { return ln },
		"https": func(ln net.Listener) net.Listener {
			return tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{issue(t, ca, "127.0.0.1", time.Hour)}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			address := rawServerOn(t, scheme, func(c net.Conn, r *http.Request, _ int) bool {
				body := registrationResponse(time.Hour, "node-1")
				_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%sHTTP/1.1 200 %s\r\n\r\n", len(body), body, r.Header.Get("Authorization"))
				return true
			})
			testNothingPrinted(t, name+"://"+address, clientTLS(ca))
		})
	}
}

func testNothingPrinted(t *testing.T, registry string, trust *tls.Config) {
	t.Helper()
	var printed bytes.Buffer
	log.SetOutput(&printed)
	defer log.SetOutput(os.Stderr)
	cfg := testConfig()
	cfg.RegistryURL = registry
	c := newNode(t, cfg, nil, cluster.WithHTTPClient(nil), cluster.WithBackendTLS(trust))
	for range 2 {
		if _, err := c.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	_ = c.Close()
	time.Sleep(10 * time.Millisecond) // for a goroutine of net/http, on real sockets
	if printed.Len() > 0 {
		t.Errorf("printed: %s", printed.String())
	}
}

// Whatever the registry, the token service and a peer respond, and whatever a peer announces, no
// error, log line, variable or JSON has a secret that went in, and none is longer than 4 KiB. JSON
// with entries of servers may be longer. In the body, "%s" stands for the secret.
func FuzzSecretsStayHidden(f *testing.F) {
	for _, seed := range []string{
		`{"message":"%s"}`, `{"message":"a","info":{"%s":1}}`, `{"error":"%s","error_description":"%s"}`, `{"data":{"access_token":"%s"}}`,
		`{"data":1,"server":{"serverId":"%s"}}`, `{"itResource":{"id":"%s","servers":[{"serverId":"node-1"}]}}`, `%s`, `"%s`,
		`{"itResource":{"id":"it","servers":[{"serverId":"%s"},{"serverId":"node-1","clusterBaseUrl":"http://%s"}]},"leaseTime":"%s"}`,
		`{"server":{"serverId":"%s"}}`, `{"message":"` + strings.Repeat("\x7f", 5000) + `%s"}`,
		`{"itResource":{"id":"it","x":"%s","servers":[{"serverId":"node-1"},{"serverId":"node-2","clusterBaseUrl":"http://node-2.test","x":["%s"]}]}}`,
		`{"id":"it","servers":[{"serverId":"evil","clusterBaseUrl":"http://evil.test","updatedAt":"2030-01-01T00:00:00.000Z","x":"%s","y":"` + strings.Repeat("z", 10<<10) + `"}]}`,
	} {
		for which := range uint8(4) {
			f.Add(which, uint16(which)*100+200, []byte(seed))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, status uint16, body []byte) {
		const clientSecret, accessKey, token = "hidden client secret", "hidden access key", "hidden-token-for-all"
		fill := func(secret string) string { return strings.ReplaceAll(string(body), "%s", secret) }
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r := &remotes{t: t, view: []string{"node-1", "node-2"}}
		r.tokens = func(*http.Request) (int, string) {
			if which%4 == 0 {
				return validStatus(status), fill(clientSecret)
			}
			return http.StatusOK, `{"data":{"access_token":"` + token + `"}}`
		}
		if which%4 == 1 {
			r.registry = func(*http.Request) (int, string) { return validStatus(status), fill(token) }
		}
		r.peer = func(req *http.Request) (*http.Response, error) {
			return newHTTPResponse(req, validStatus(status), fill(token)), nil
		}
		observed, lines := observer.New(zap.DebugLevel)
		c := newNode(t, testConfig(), r, cluster.WithTokens(nil), cluster.WithLogger(zap.New(observed)), onRenewalFailure(func(error) { cancel() }))
		_, err := c.Register(ctx)
		texts := append(textsOf(err), statusTexts(t, c.Status())...)
		var withEntries []string
		announce := func(body string) {
			req := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
			req.Header.Set("Authorization", "Bearer peer")
			withEntries = append(withEntries, serve(http.HandlerFunc(c.CreateItResource), req).Body)
		}
		if which%4 == 3 {
			announce(fill(token))
		}
		if res, err := c.RPCluster(t.Context(), cluster.Request{Path: "/things"}); err == nil {
			for _, o := range res.Failures {
				withEntries = append(withEntries, marshal(t, o))
				o.Server = cluster.Server{}
				texts = append(append(append(texts, textsOf(o.Err)...), textsOf(o.EvictionSkipped)...), string(o.Kind), marshal(t, o))
			}
			for _, o := range res.Results { // the body is the peer's own
				withEntries = append(withEntries, marshal(t, o.Server))
			}
		}
		announce(`{"id":"it"}`)
		checkHidden(t, append(withEntries, marshal(t, c.Servers())), clientSecret, accessKey, token)
		checkTexts(t, append(texts, logTexts(lines)...), clientSecret, accessKey, token)
	})
}
