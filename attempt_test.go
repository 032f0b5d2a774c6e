package cluster_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

func TestRetry(t *testing.T) {
	parallel(t)
	never := cluster.Retry{MaxRetries: -1}
	npm := cluster.RetryNPM()
	three := cluster.Retry{MaxRetries: 3, Delay: time.Second}
	conflicts := cluster.Retry{RetryIf: func(method string, err error) bool {
		se, ok := errors.AsType[*cluster.StatusError](err)
		return ok && se.Code == 409 && method == "PUT"
	}}
	for name, tt := range map[string]struct {
		retry    cluster.Retry
		method   string
		fault    clustertest.Fault
		timeout  time.Duration
		attempts int
		executed int // by the peer
		took     time.Duration
	}{
		"default: refused":                    {cluster.Retry{}, "GET", clustertest.Refuse, 0, 2, 0, 10 * time.Millisecond},
		"default: refused, POST":              {cluster.Retry{}, "POST", clustertest.Refuse, 0, 2, 0, 10 * time.Millisecond},
		"default: refused once, POST":         {cluster.Retry{}, "POST", clustertest.FirstN(1, clustertest.Refuse), 0, 2, 1, 10 * time.Millisecond},
		"default: reset, GET":                 {cluster.Retry{}, "GET", clustertest.Reset, 0, 2, 2, 10 * time.Millisecond},
		"default: reset, PUT":                 {cluster.Retry{}, "PUT", clustertest.Reset, 0, 2, 2, 10 * time.Millisecond},
		"default: reset, DELETE":              {cluster.Retry{}, "DELETE", clustertest.Reset, 0, 2, 2, 10 * time.Millisecond},
		"default: reset, OPTIONS":             {cluster.Retry{}, "OPTIONS", clustertest.Reset, 0, 2, 2, 10 * time.Millisecond},
		"default: reset, POST: at most once":  {cluster.Retry{}, "POST", clustertest.Reset, 0, 1, 1, 0},
		"default: reset, PATCH: at most once": {cluster.Retry{}, "PATCH", clustertest.Reset, 0, 1, 1, 0},
		"default: response too late, POST":    {cluster.Retry{}, "POST", delayResponse(11 * time.Second), 0, 1, 1, 10 * time.Second},
		"default: timeout, GET":               {cluster.Retry{}, "GET", clustertest.Hang, 0, 1, 0, 10 * time.Second},
		"default: 503":                        {cluster.Retry{}, "GET", clustertest.Status(503), 0, 1, 0, 0},
		"default: 429":                        {cluster.Retry{}, "GET", clustertest.Status(429), 0, 1, 0, 0},
		"npm: refused":                        {npm, "GET", clustertest.Refuse, 0, 3, 0, 2 * time.Second},
		"npm: reset, POST":                    {npm, "POST", clustertest.Reset, 0, 3, 3, 2 * time.Second},
		"npm: timeout":                        {npm, "GET", clustertest.Hang, 0, 3, 0, 32 * time.Second},
		"npm: 503":                            {npm, "POST", clustertest.Status(503), 0, 3, 0, 2 * time.Second},
		"npm: 429":                            {npm, "POST", clustertest.Status(429), 0, 3, 0, 2 * time.Second},
		"npm: 404":                            {npm, "GET", clustertest.Status(404), 0, 1, 0, 0},
		"npm: two failures":                   {npm, "POST", clustertest.FirstN(2, clustertest.Status(500)), 0, 3, 1, 2 * time.Second},
		"npm: no retry after 50 s":            {npm, "GET", clustertest.Hang, 30 * time.Second, 2, 0, 61 * time.Second},
		"never":                               {never, "GET", clustertest.Refuse, 0, 1, 0, 0},
		"three retries":                       {three, "GET", clustertest.Refuse, 0, 4, 0, 3 * time.Second},
		"three retries: timeout":              {three, "GET", clustertest.Hang, 0, 1, 0, 10 * time.Second},
		"RetryIf accepts":                     {conflicts, "PUT", clustertest.Status(409), 0, 2, 0, 10 * time.Millisecond},
		"RetryIf rejects":                     {conflicts, "POST", clustertest.Status(409), 0, 1, 0, 0},
	} {
		for _, own := range []bool{false, true} {
			where := "of the node"
			if own {
				where = "of the request"
			}
			t.Run(name+"/"+where, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var executed atomic.Int64
					ofNode, req := tt.retry, cluster.Request{Method: tt.method, Path: "/things", Timeout: tt.timeout}
					if own {
						ofNode, req.Retry = cluster.Retry{MaxRetries: 7, Delay: time.Minute}, &tt.retry
					}
					w := clustertest.Start(t, 2,
						clustertest.WithOptions(cluster.WithRetry(ofNode), cluster.WithEviction(cluster.Eviction{Disabled: true})),
						clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
							return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
								executed.Add(1)
								n.Reply(w, r, nil)
							})
						}))
					w.Network.Fault(w.Nodes[0].Host, w.Nodes[1].Host, tt.fault)
					start := time.Now()
					res := rpc(t, w.Nodes[0], req)
					wantOneOutcomeEach(t, res, w.Nodes[1:])
					got := slices.Concat(res.Results, res.Failures)[0]
					if took := time.Since(start); got.Attempts != tt.attempts || int(executed.Load()) != tt.executed || took != tt.took || got.Duration != took {
						t.Errorf("%d attempts, executed %d times, in %v; want %d, %d, %v", got.Attempts, executed.Load(), took, tt.attempts, tt.executed, tt.took)
					}
				})
			})
		}
	}
	t.Run("the pause ends with the call", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 2, clustertest.WithOptions(cluster.WithRetry(cluster.RetryNPM())))
			w.Network.Down(w.Nodes[1].Host)
			ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
			defer cancel()
			start := time.Now()
			res, err := w.Nodes[0].RPCluster(ctx, cluster.Request{Path: "/things"})
			if err != nil {
				t.Fatal(err)
			}
			if o := singleFailure(t, res); time.Since(start) != 1500*time.Millisecond || o.Kind != cluster.KindCanceled || o.Attempts != 2 {
				t.Errorf("%s after %v and %d attempts", o.Kind, time.Since(start), o.Attempts)
			}
		})
	})
}

// A panic in code of the program does not end the process, and releases the slot. A filter is
// called on the goroutine of the caller, so its panic goes on to the caller.
func TestPanicsOfTheProgram(t *testing.T) {
	parallel(t)
	panics := func(http.RoundTripper) http.RoundTripper {
		return clustertest.RoundTripperFunc(func(*http.Request) (*http.Response, error) { panic("of the program") })
	}
	panickingBody := func(http.RoundTripper) http.RoundTripper {
		return clustertest.RoundTripperFunc(func(r *http.Request) (*http.Response, error) {
			resp := newHTTPResponse(r, http.StatusOK, "")
			resp.Body = panickingReader{}
			return resp, nil
		})
	}
	panickingClose := func(http.RoundTripper) http.RoundTripper {
		return clustertest.RoundTripperFunc(func(r *http.Request) (*http.Response, error) {
			resp := newHTTPResponse(r, http.StatusOK, "")
			resp.Body = panickingCloser{resp.Body}
			return resp, nil
		})
	}
	for name, tt := range map[string]struct {
		fault clustertest.Fault
		req   cluster.Request
		kind  cluster.Kind
		text  string
	}{
		"RoundTripper": {panics, cluster.Request{}, cluster.KindLocal, "RoundTripper panicked: of the program"},
		"Body":         {panickingBody, cluster.Request{}, cluster.KindLocal, "Body of a Response panicked: of the program"},
		"Body, Close":  {panickingClose, cluster.Request{}, cluster.KindLocal, "Body of a Response panicked: of the program"},
		"RetryIf": {
			clustertest.Refuse,
			cluster.Request{Retry: &cluster.Retry{RetryIf: func(string, error) bool { panic("of the program") }}},
			cluster.KindRefused, "(and RetryIf panicked: of the program)",
		},
		"Filter": {nil, cluster.Request{Filter: func(cluster.Server) bool { panic("of the program") }}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 3, noEviction())
				n := w.Nodes[0]
				for _, peer := range w.Nodes[1:] {
					w.Network.Fault(n.Host, peer.Host, tt.fault)
				}
				tt.req.Path = "/things"
				func() {
					defer func() {
						if v := recover(); (v != nil) != (name == "Filter") {
							t.Errorf("panic: %v", v)
						}
					}()
					res := rpc(t, n, tt.req)
					for _, o := range res.Failures {
						if o.Kind != tt.kind || !strings.Contains(o.Err.Error(), tt.text) {
							t.Errorf("%s: %v", o.Kind, o.Err)
						}
					}
					wantOneOutcomeEach(t, res, w.Nodes[1:])
				}()
				if got := cluster.SlotsInFlight(n.Cluster); got != 0 {
					t.Errorf("%d slots are taken", got)
				}
				for _, peer := range w.Nodes[1:] {
					w.Network.Fault(n.Host, peer.Host, nil)
				}
				if res := rpc(t, n, cluster.Request{Path: "/things"}); len(res.Results) != 2 {
					t.Errorf("failures %v", failures(res))
				}
			})
		})
	}
}

type panickingReader struct{}

func (panickingReader) Read([]byte) (int, error) { panic("of the program") }
func (panickingReader) Close() error             { return nil }

type panickingCloser struct{ io.Reader }

func (panickingCloser) Close() error { panic("of the program") }

type panickingMarshaler struct{}

func (panickingMarshaler) MarshalJSON() ([]byte, error) { panic("of the program") }

// A panic of the code that makes the body of a request is an error of the call.
func TestPanicsOfRequestBody(t *testing.T) {
	c := newRegisteredNode(t, &remotes{view: []string{"node-1", "node-2"}})
	for name, body := range map[string]any{
		"Read": panickingReader{}, "MarshalJSON": panickingMarshaler{}, "Read of a nil pointer": (*strings.Reader)(nil),
	} {
		_, err := c.RPCluster(t.Context(), cluster.Request{Method: http.MethodPost, Path: "/things", Body: body})
		if !errors.Is(err, cluster.ErrInvalidRequest) || !strings.Contains(err.Error(), "Request.Body panicked: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A RoundTripper of the program may change the header of a request. Such a change is not seen in
// other requests of the call, and does not race with them.
func TestRoundTripperMayChangeHeader(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 8)
		n := w.Nodes[0]
		var changed atomic.Int64
		w.Network.Fault(n.Host, clustertest.Any, func(next http.RoundTripper) http.RoundTripper {
			return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
				if req.Header.Get("X-Signature") != "" {
					t.Error("the header has a change of another request")
				}
				req.Header.Set("X-Signature", req.URL.Host)
				changed.Add(1)
				return next.RoundTrip(req)
			})
		})
		header := http.Header{"X-Mine": {"1"}}
		if res := rpc(t, n, cluster.Request{Path: "/things", Header: header}); len(res.Results) != 7 || changed.Load() < 7 {
			t.Errorf("%d requests, failures %v", changed.Load(), failures(res))
		}
		if len(header) != 1 {
			t.Errorf("the header of the caller became %v", header)
		}
	})
}

// A response that a RoundTripper of the program makes may lack what net/http always sets.
func TestIncompleteResponseOfRoundTripper(t *testing.T) {
	for name, tt := range map[string]struct {
		resp *http.Response
		body string
		kind cluster.Kind
	}{
		"nil":               {nil, "", cluster.KindLocal},
		"nil body":          {&http.Response{StatusCode: http.StatusOK}, "", cluster.KindMalformed},
		"nil body of a 404": {&http.Response{StatusCode: http.StatusNotFound}, "", cluster.KindStatus},
		"nil body, length":  {&http.Response{StatusCode: http.StatusOK, ContentLength: 5}, "", cluster.KindMalformed},
		"no length":         {&http.Response{StatusCode: http.StatusOK}, `{"data":["a"],"server":{"serverId":"node-2"}}`, cluster.KindOK},
	} {
		t.Run(name, func(t *testing.T) {
			c := newRegisteredNode(t, &remotes{view: []string{"node-1", "node-2"}, peer: func(*http.Request) (*http.Response, error) {
				if tt.body != "" {
					tt.resp.Body = io.NopCloser(strings.NewReader(tt.body))
				}
				return tt.resp, nil
			}})
			if o := callOnePeer(t, c, cluster.Request{Path: "/things"}); o.Kind != tt.kind || o.Evicted {
				t.Errorf("%s: %v, evicted %t", o.Kind, o.Err, o.Evicted)
			}
		})
	}
}

// RetryIf holds no slot: with one slot, a call proceeds while that of another one takes its time.
func TestRetryIfHoldsNoSlot(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2, noEviction(), clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = 1 }))
		n := w.Nodes[0]
		w.Network.Fault(n.Host, w.Nodes[1].Host, clustertest.FirstN(1, clustertest.Refuse))
		var wg sync.WaitGroup
		wg.Go(func() {
			rpc(t, n, cluster.Request{Path: "/things", Retry: &cluster.Retry{RetryIf: func(string, error) bool {
				time.Sleep(time.Minute)
				return false
			}}})
		})
		time.Sleep(time.Second)
		start := time.Now()
		if res := rpc(t, n, cluster.Request{Path: "/things"}); len(res.Results) != 1 || time.Since(start) != 0 {
			t.Errorf("after %v: failures %v", time.Since(start), failures(res))
		}
		wg.Wait()
	})
}

// Responses that net/http takes for something else than a response, or cannot parse, end the call
// in time, are not a reason to evict the peer, and do not keep Close from returning. The test uses
// sockets, because net/http hands a connection over only if it is one.
func TestUnusualHTTP(t *testing.T) {
	const timeout = 2 * time.Second
	endless := func(text string, pause time.Duration) func(net.Conn) {
		return func(c net.Conn) {
			for {
				if _, err := io.WriteString(c, text); err != nil {
					return
				}
				time.Sleep(pause)
			}
		}
	}
	once := func(text string) func(net.Conn) {
		return func(c net.Conn) {
			_, _ = io.WriteString(c, text)
			_, _ = io.Copy(io.Discard, c) // keeps it open
		}
	}
	for name, tt := range map[string]struct {
		respond func(net.Conn)
		kind    cluster.Kind // empty: malformed, or a timeout on a slow machine
	}{
		"101":                      {once("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"), cluster.KindStatus},
		"101 with data":            {endless("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", 0), cluster.KindStatus},
		"101 without an upgrade":   {once("HTTP/1.1 101 Switching Protocols\r\n\r\n"), cluster.KindStatus},
		"100 without end":          {endless("HTTP/1.1 100 Continue\r\n\r\n", 0), ""},
		"103 without end":          {endless("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", 0), ""},
		"103 without end, slow":    {endless("HTTP/1.1 103 Early Hints\r\n\r\n", 50*time.Millisecond), ""},
		"a head without end":       {endless("HTTP/1.1 200 OK\r\nA: "+strings.Repeat("a", 1<<16)+"\r\nB: ", 0), ""},
		"a head of 12 MB":          {once("HTTP/1.1 200 OK\r\nA: " + strings.Repeat("a", 12<<20) + "\r\n\r\n"), ""},
		"two lengths":              {once("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"), cluster.KindMalformed},
		"a length that is a word":  {once("HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\n{}"), cluster.KindMalformed},
		"an unknown coding":        {once("HTTP/1.1 200 OK\r\nTransfer-Encoding: rot13\r\n\r\n{}"), cluster.KindMalformed},
		"another protocol":         {once("SSH-2.0-OpenSSH_9.6\r\n"), cluster.KindMalformed},
		"a head that stops":        {once("HTTP/1.1 200 OK\r\nContent-"), cluster.KindTimeout},
		"a connection lost in it":  {func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-") }, cluster.KindMalformed},
		"the token of the request": {nil, cluster.KindMalformed},
	} {
		for _, method := range []string{"GET", "POST"} {
			t.Run(name+", "+method, func(t *testing.T) {
				t.Parallel()
				peer := rawServer(t, func(c net.Conn, r *http.Request, _ int) bool {
					if r.URL.Path == itResources { // the announcement
						_, _ = io.WriteString(c, "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
						return false
					}
					if tt.respond == nil {
						_, _ = io.WriteString(c, r.Header.Get("Authorization")+"\r\n")
						return false
					}
					tt.respond(c)
					return false
				})
				cfg := testConfig()
				cfg.RequestTimeout = timeout
				c, deleted := newSocketNode(t, peer+"/mds/v1", cfg)
				start := time.Now()
				o := callOnePeer(t, c, cluster.Request{Method: method, Path: "/things"})
				if took := time.Since(start); took > 5*timeout {
					t.Errorf("the call took %v", took)
				}
				right := o.Kind == tt.kind || tt.kind == "" && (o.Kind == cluster.KindMalformed || o.Kind == cluster.KindTimeout)
				if !right || o.EvictionSkipped != nil || deleted.Load() != 0 {
					t.Errorf("%s: %v, evicted %t, skipped: %v", o.Kind, o.Err, o.Evicted, o.EvictionSkipped)
				}
				checkNoSecrets(t, o.Err)
				if len(o.Err.Error()) > 512 {
					t.Errorf("the error has %d bytes", len(o.Err.Error()))
				}
				_ = c.Close()
			})
		}
	}
}

// What net/http cannot parse as HTTP/2 is a response, too, and so is a stream that the peer resets.
// Neither is a reason to evict the peer, also not by the announcement.
func TestUnusualHTTP2(t *testing.T) {
	headers := func(block ...byte) []byte {
		return slices.Concat([]byte{0, 0, byte(len(block)), 1, 5, 0, 0, 0, 1}, block)
	}
	for name, tt := range map[string]struct {
		frame []byte // the answer (RFC 9113)
		kind  cluster.Kind
	}{
		"upper case":             {headers(0x88, 0, 1, 'A', 1, 'b'), cluster.KindMalformed},
		"no status":              {headers(0, 1, 'a', 1, 'b'), cluster.KindMalformed},
		"101":                    {headers(0x08, 3, '1', '0', '1'), cluster.KindMalformed},
		"compression":            {headers(0xff, 0xff, 0xff, 0xff, 0xff), cluster.KindMalformed},
		"a frame that is not":    {[]byte("HTTP/1.1 400 Bad Request\r\n\r\n"), cluster.KindMalformed},
		"a reset, REFUSED":       {[]byte{0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8}, cluster.KindConnectionLost},
		"a reset, INTERNAL":      {[]byte{0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 2}, cluster.KindConnectionLost},
		"GOAWAY, calm down":      {[]byte{0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11}, cluster.KindConnectionLost},
		"a setting out of range": {[]byte{0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 9}, cluster.KindMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address, trust := rawHTTP2Server(t, tt.frame)
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				c, deleted := newSocketNode(t, address+"/mds/v1", testConfig(), cluster.WithPeerTLS(trust))
				if deleted.Load() != 0 {
					t.Fatal("the announcement evicts the peer")
				}
				o := callOnePeer(t, c, cluster.Request{Method: method, Path: "/things"})
				if o.Kind != tt.kind || o.Evicted || deleted.Load() != 0 {
					t.Errorf("%s %s: %v, evicted %t, skipped: %v", method, o.Kind, o.Err, o.Evicted, o.EvictionSkipped)
				}
			}
		})
	}
}

// rawHTTP2Server answers each request with a frame. Its stream, if it is 1, becomes that of the
// request.
func rawHTTP2Server(t *testing.T, answer []byte) (address string, trust *tls.Config) {
	t.Helper()
	s := httptest.NewUnstartedServer(nil)
	s.TLS = &tls.Config{NextProtos: []string{"h2"}}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Config.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){"h2": func(_ *http.Server, c *tls.Conn, _ http.Handler) {
		_, _ = c.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0}) // SETTINGS
		in := bufio.NewReader(c)
		_, _ = in.Discard(len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
		head := make([]byte, 9)
		for {
			if _, err := io.ReadFull(in, head); err != nil {
				return
			}
			if head[3] == 1 { // HEADERS
				frame := bytes.Clone(answer)
				if frame[8] == 1 {
					frame[8] = head[8] // the stream of this request
				}
				_, _ = c.Write(frame)
			}
			_, _ = in.Discard(int(head[0])<<16 | int(head[1])<<8 | int(head[2]))
		}
	}}
	s.StartTLS()
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return s.URL, &tls.Config{RootCAs: roots}
}

// The registry and the token service may answer with a 101, too, and so may a peer to an
// announcement, and one that is called by net/http.
func TestUpgradeByRemotes(t *testing.T) {
	t.Parallel()
	remote := rawServer(t, func(c net.Conn, _ *http.Request, _ int) bool {
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		_, _ = io.Copy(io.Discard, c)
		return false
	})
	for name, opts := range map[string][]cluster.Option{
		"registry":      {cluster.WithHTTPClient(nil)},
		"token service": {cluster.WithHTTPClient(nil), cluster.WithTokens(nil)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := testConfig()
			cfg.RegistryURL, cfg.Issuer, cfg.RequestTimeout = remote, remote, 500*time.Millisecond
			c := newNode(t, cfg, nil, opts...)
			_, err := c.Register(withTimeout(t, time.Second))
			if se, ok := errors.AsType[*cluster.StatusError](err); !ok || se.Code != http.StatusSwitchingProtocols {
				t.Errorf("Register: %v", err)
			}
			_ = c.Close()
		})
	}
	t.Run("announcement", func(t *testing.T) {
		t.Parallel()
		c, deleted := newSocketNode(t, remote+"/mds/v1", testConfig())
		_ = c.Close()
		if deleted.Load() != 0 {
			t.Error("the peer was evicted")
		}
	})
	t.Run("net/http", func(t *testing.T) {
		t.Parallel()
		c, deleted := newSocketNode(t, remote+"/mds/v1", testConfig(), cluster.WithHTTPClient(&http.Client{Transport: new(http.Transport)}))
		if o := callOnePeer(t, c, cluster.Request{Path: "/things"}); o.Kind != cluster.KindStatus || o.StatusCode != http.StatusSwitchingProtocols || deleted.Load() != 0 {
			t.Errorf("%s: %v, evicted %t", o.Kind, o.Err, o.Evicted)
		}
		_ = c.Close()
	})
}

// A backend that closes a connection for being idle, just as a request is sent on it, costs a node
// neither its token nor its registration: the request is repeated on a new connection. A backend
// that always does so is not asked without end.
func TestBackendClosesReusedConnection(t *testing.T) {
	registered := func() string { return registrationResponse(time.Hour, "node-1") }
	for name, tt := range map[string]struct {
		closes string // the path of requests that fail on a reused connection
		times  int    // that a reused connection is usable
	}{
		"token service":             {"/token", 1},
		"registry":                  {"/itResources", 1},
		"registry, a later renewal": {"/itResources", 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var lost, tokens atomic.Int64
			backend := rawServer(t, func(c net.Conn, r *http.Request, n int) bool {
				if r.URL.Path == tt.closes && n > tt.times {
					lost.Add(1)
					return false
				}
				if r.URL.Path == "/token" {
					return writeRaw(c, fmt.Sprintf(`{"access_token":"token-%d","expires_in":3600}`, tokens.Add(1)))
				}
				return writeRaw(c, registered())
			})
			cfg := testConfig()
			cfg.RegistryURL, cfg.Issuer, cfg.Management = backend, backend+"/token", false
			c := newNode(t, cfg, nil, cluster.WithHTTPClient(nil), cluster.WithTokens(nil))
			for range 6 {
				if _, err := c.Register(withTimeout(t, 2*time.Second)); err != nil {
					t.Fatal(err)
				}
				cluster.DropTokens(c)
			}
			if lost.Load() == 0 {
				t.Error("no connection was lost")
			}
		})
	}
}

// A token service that is overloaded says how long not to call it. It is obeyed, also by calls
// that have no valid token left.
func TestTokenServiceAsksForPause(t *testing.T) {
	parallel(t)
	for _, code := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable} {
		t.Run(strconv.Itoa(code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 3, clustertest.WithTokenTTL(time.Hour))
				n := w.Nodes[0]
				time.Sleep(2 * time.Hour)
				requests := recordRequests(w)
				w.Network.Fault(n.Host, clustertest.TokenHost, clustertest.Answer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Retry-After", "30")
					w.WriteHeader(code)
				})))
				start := time.Now()
				for time.Since(start) < time.Minute {
					for _, o := range rpc(t, n, cluster.Request{Path: "/things"}).Failures {
						if o.Kind != cluster.KindNoToken {
							t.Fatalf("%s: %v", o.Kind, o.Err)
						}
					}
					time.Sleep(100 * time.Millisecond)
				}
				if sent := requests.matching(http.MethodPost, n.Host, clustertest.TokenHost); len(sent) > 3 {
					t.Errorf("%d requests in a minute", len(sent))
				}
			})
		})
	}
}

// A token service that the program calls by x/oauth2 may ask for a pause, too.
func TestTokenSourceAsksForPause(t *testing.T) {
	parallel(t)
	for code, most := range map[int]int64{http.StatusTooManyRequests: 2, http.StatusServiceUnavailable: 2, http.StatusBadGateway: 1000} {
		synctest.Test(t, func(t *testing.T) {
			var fetched atomic.Int64
			c := newNode(t, testConfig(), &remotes{t: t, view: []string{"node-1", "node-2"}}, cluster.WithTokens(func(_ context.Context, key cluster.TokenKey) (*oauth2.Token, error) {
				if !key.Cluster {
					return &oauth2.Token{AccessToken: "token"}, nil
				}
				fetched.Add(1)
				resp := &http.Response{StatusCode: code, Header: http.Header{"Retry-After": {"30"}}}
				return nil, fmt.Errorf("of the program: %w", &oauth2.RetrieveError{Response: resp})
			}))
			if _, err := c.Register(t.Context()); err != nil { // the announcement asks for a token
				t.Fatal(err)
			}
			for start := time.Now(); time.Since(start) < 50*time.Second; time.Sleep(100 * time.Millisecond) {
				if o := callOnePeer(t, c, cluster.Request{Path: "/things"}); o.Kind != cluster.KindNoToken {
					t.Fatalf("%s: %v", o.Kind, o.Err)
				}
			}
			if got := fetched.Load(); got > most || most > 2 && got < most/3 {
				t.Errorf("%d: %d tokens were fetched in 50 s", code, got)
			}
		})
	}
}

// The error that a token service sends in the form of OAuth is part of the node's error, without
// the secrets that it may repeat.
func TestOAuthErrorIsShown(t *testing.T) {
	for body, want := range map[string]string{
		`{"error":"invalid_client"}`:                                                "/oauth/token: invalid_client",
		`{"error":"invalid_client","error_description":"unknown client"}`:           "/oauth/token: invalid_client: unknown client",
		`{"error":"invalid_client","error_description":"not hidden client secret"}`: "/oauth/token: invalid_client: not [redacted]",
		`{"error":{"code":5},"message":"of the envelope"}`:                          "/oauth/token: of the envelope",
		`{"error":{"code":5}}`:                                                      "401 Unauthorized to POST http://mst.test/oauth/token",
		`{"error":"e","message":"of the envelope"}`:                                 "/oauth/token: of the envelope",
	} {
		r := &remotes{t: t, tokens: func(*http.Request) (int, string) { return http.StatusUnauthorized, body }}
		c := newNode(t, testConfig(), r, cluster.WithTokens(nil))
		_, err := c.Register(withTimeout(t, 100*time.Millisecond))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s gives %v, want %s", body, err, want)
		}
		checkNoSecrets(t, err)
	}
}

// A panic of the program's Verifier is a 503, one of its policy forbids the server, and one of its
// token function is an error. None ends the process.
func TestPanicsOfVerifierPolicyAndTokens(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2, clustertest.WithOptions(cluster.WithVerifier(panickingVerifier{})))
		req := httptest.NewRequest(http.MethodPost, itResources, strings.NewReader(announcement("node-9")))
		req.Header.Set("Authorization", "Bearer token")
		mux := http.NewServeMux()
		w.Nodes[0].Mount(mux)
		serve(mux, req).wantError(t, http.StatusServiceUnavailable, "cannot be verified")
	})
	c := newRegisteredNode(t, &remotes{view: []string{"node-1", "node-2"}}, cluster.WithPeerPolicy(cluster.PeerPolicy{
		Allow: func(s cluster.Server) error { panic("of the program") },
	}))
	if o := callOnePeer(t, c, cluster.Request{Path: "/things"}); o.Kind != cluster.KindNotAllowed || !strings.Contains(o.Err.Error(), "PeerPolicy.Allow panicked: of the program") {
		t.Errorf("%s: %v", o.Kind, o.Err)
	}
	c = newNode(t, testConfig(), &remotes{t: t}, cluster.WithTokens(func(context.Context, cluster.TokenKey) (*oauth2.Token, error) {
		panic("of the program")
	}))
	if _, err := c.Register(withTimeout(t, 10*time.Millisecond)); err == nil || !strings.Contains(err.Error(), "panicked: of the program") {
		t.Errorf("error %v", err)
	}
}

type panickingVerifier struct{}

func (panickingVerifier) Verify(context.Context, string) (cluster.Claims, error) {
	panic("of the program")
}

// A response that must not have a body is a result, which says that the server is not verified.
func TestResultsWithoutBody(t *testing.T) {
	for name, tt := range map[string]struct {
		method     string
		code       int
		body       string
		kind       cluster.Kind
		unverified bool
	}{
		"HEAD":                    {"HEAD", 200, "", cluster.KindOK, true},
		"HEAD, 201":               {"HEAD", 201, "", cluster.KindOK, true},
		"HEAD, 204":               {"HEAD", 204, "", cluster.KindOK, true},
		"HEAD, a length":          {"HEAD", 200, "the body of a GET", cluster.KindOK, true},
		"HEAD, 404":               {"HEAD", 404, "", cluster.KindStatus, false},
		"204":                     {"DELETE", 204, "", cluster.KindOK, true},
		"205":                     {"POST", 205, "", cluster.KindOK, true},
		"205 with another server": {"POST", 205, `{"server":{"serverId":"node-9"}}`, cluster.KindWrongServer, false},
		"200":                     {"GET", 200, "", cluster.KindMalformed, false},
		"201":                     {"POST", 201, "", cluster.KindMalformed, false},
	} {
		t.Run(name, func(t *testing.T) {
			peer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if tt.method == http.MethodHead {
					w.Header().Set("Content-Length", strconv.Itoa(len(tt.body)))
				}
				w.WriteHeader(tt.code)
				if tt.method != http.MethodHead && tt.code != http.StatusResetContent {
					_, _ = io.WriteString(w, tt.body)
				}
			}))
			t.Cleanup(peer.Close)
			address := peer.URL
			if tt.code == http.StatusResetContent && tt.body != "" { // which net/http does not send
				address = rawServer(t, func(c net.Conn, _ *http.Request, _ int) bool {
					_, _ = fmt.Fprintf(c, "HTTP/1.1 205 Reset Content\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(tt.body), tt.body)
					return false
				})
			}
			c, _ := newSocketNode(t, address+"/mds/v1", testConfig())
			o := callOnePeer(t, c, cluster.Request{Method: tt.method, Path: "/things"})
			if o.Kind != tt.kind || o.Unverified != tt.unverified || o.Body != nil || o.Data != nil {
				t.Errorf("%s, %v, unverified %t, body %s", o.Kind, o.Err, o.Unverified, o.Body)
			}
			if strings.Contains(marshal(t, o), `"unverified":true`) != tt.unverified {
				t.Errorf("as JSON: %s", marshal(t, o))
			}
		})
	}
}

func TestHedge(t *testing.T) {
	parallel(t)
	for name, tt := range map[string]struct {
		fault    clustertest.Fault
		inFlight int
		took     time.Duration
		attempts int
		kind     cluster.Kind
	}{
		"fast":                       {nil, 0, 0, 1, cluster.KindOK},
		"slow once":                  {delayFirst(5 * time.Second), 0, time.Second, 2, cluster.KindOK},
		"slow twice, the first wins": {delayResponse(1500 * time.Millisecond), 0, 1500 * time.Millisecond, 2, cluster.KindOK},
		"slow, and no slot is free":  {delayFirst(5 * time.Second), 1, 5 * time.Second, 1, cluster.KindOK},
		"hanging":                    {clustertest.Hang, 0, 10 * time.Second, 2, cluster.KindTimeout},
		"hanging once":               {clustertest.FirstN(1, clustertest.Hang), 0, time.Second, 2, cluster.KindOK},
		"an error response":          {clustertest.Chain(delayFirst(1100*time.Millisecond), clustertest.Status(500)), 0, time.Second, 2, cluster.KindStatus},
		"refused":                    {clustertest.Refuse, 0, 10 * time.Millisecond, 2, cluster.KindRefused},
		"slow, then reset":           {clustertest.FirstN(1, clustertest.Chain(clustertest.Delay(2*time.Second), clustertest.Reset)), 0, time.Second, 2, cluster.KindOK},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 2,
					clustertest.WithOptions(cluster.WithEviction(cluster.Eviction{Disabled: true})),
					clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = tt.inFlight }))
				n := w.Nodes[0]
				w.Network.Fault(n.Host, w.Nodes[1].Host, tt.fault)
				start := time.Now()
				res := rpc(t, n, cluster.Request{Path: "/things", HedgeAfter: time.Second})
				took := time.Since(start)
				wantOneOutcomeEach(t, res, w.Nodes[1:])
				o := slices.Concat(res.Results, res.Failures)[0]
				if took != tt.took || o.Attempts != tt.attempts || o.Kind != tt.kind {
					t.Errorf("%q, %v, after %d attempts in %v", o.Kind, o.Err, o.Attempts, took)
				}
				synctest.Wait()
			})
		})
	}
}

// The slower request is canceled at once, and does not count against the peer.
func TestHedgeCancelsTheSlowerRequest(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		n := w.Nodes[0]
		var canceled atomic.Int64
		w.Network.Fault(n.Host, w.Nodes[1].Host, clustertest.FirstN(1, func(next http.RoundTripper) http.RoundTripper {
			return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
				<-req.Context().Done()
				canceled.Add(1)
				return nil, context.Cause(req.Context())
			})
		}))
		res := rpc(t, n, cluster.Request{Path: "/things", HedgeAfter: 100 * time.Millisecond})
		if len(res.Results) != 2 || canceled.Load() != 1 {
			t.Errorf("%d results, %d requests canceled, failures: %v", len(res.Results), canceled.Load(), failures(res))
		}
		if res := rpc(t, n, cluster.Request{Path: "/things"}); len(res.Results) != 2 || res.Results[0].Attempts != 1 {
			t.Errorf("the next call: %d results, failures: %v", len(res.Results), failures(res))
		}
	})
}

// A canceled hedged request counts as in flight until it has ended.
func TestMaxInFlightCountsHedgedRequests(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		const limit = 16
		w := clustertest.Start(t, 9, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = limit }))
		n := w.Nodes[0]
		var inFlight, peak atomic.Int64
		for _, peer := range w.Nodes[1:] {
			var requests atomic.Int64
			w.Network.Fault(n.Host, peer.Host, func(next http.RoundTripper) http.RoundTripper {
				return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
					for n, highest := inFlight.Add(1), peak.Load(); n > highest && !peak.CompareAndSwap(highest, n); highest = peak.Load() {
					}
					defer inFlight.Add(-1)
					if requests.Add(1)%2 == 0 {
						time.Sleep(10 * time.Millisecond)
						return next.RoundTrip(req)
					}
					<-req.Context().Done()
					time.Sleep(time.Second) // it ends late
					return nil, context.Cause(req.Context())
				})
			})
		}
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 150 * time.Millisecond)
				rpc(t, n, cluster.Request{Path: "/things", HedgeAfter: 100 * time.Millisecond})
			})
		}
		wg.Wait()
		if got := peak.Load(); got > limit {
			t.Errorf("%d requests at once, %d allowed", got, limit)
		}
	})
}

// If any number of peers reject the token of a call, the call fetches one new token. mimik
// services reject with 403, or with 401 after their key has changed.
func TestRejectedTokenIsReplacedOncePerCall(t *testing.T) {
	parallel(t)
	for _, code := range []int{http.StatusForbidden, http.StatusUnauthorized} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 6, clustertest.WithHandler(anyMethod))
				n := w.Nodes[0]
				requests := recordRequests(w)
				rpc(t, n, cluster.Request{Path: "/things"})
				old := requests.matching("GET", n.Host, w.Nodes[1].Host)[0].Header.Get("Authorization")
				// One after the other, the last long after the new token was fetched.
				for i, peer := range w.Nodes[1:] {
					w.Network.Fault(n.Host, peer.Host, clustertest.If(func(r *http.Request) bool {
						return r.Header.Get("Authorization") == old
					}, clustertest.Chain(clustertest.Delay(time.Duration(1+i)*time.Second), clustertest.Status(code))))
				}
				fetched := len(requests.tokenRequests(n))
				res := rpc(t, n, cluster.Request{Method: "POST", Path: "/things"})
				if len(res.Results) != 5 {
					t.Errorf("failures: %v", failures(res))
				}
				if extra := len(requests.tokenRequests(n)) - fetched; extra != 1 {
					t.Errorf("%d tokens were fetched, want 1", extra)
				}
				for _, peer := range w.Nodes[1:] {
					if got := len(requests.matching("POST", n.Host, peer.Host)); got != 2 {
						t.Errorf("%d requests to %s", got, peer.ID)
					}
				}
			})
		})
	}
}

// Peers that reject every token are failures. Whatever the limit in flight, a call fetches at most
// one token, and sends each peer at most two requests.
func TestAllTokensRejected(t *testing.T) {
	parallel(t)
	for _, inFlight := range []int{256, 2, 1} {
		t.Run(fmt.Sprintf("%d in flight", inFlight), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 7, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = inFlight }))
				n := w.Nodes[0]
				rpc(t, n, cluster.Request{Path: "/things"})
				w.Network.Fault(n.Host, clustertest.Any, clustertest.If(func(r *http.Request) bool {
					return strings.HasPrefix(r.URL.Host, "node-")
				}, clustertest.Status(403)))
				requests := recordRequests(w)
				for call := 1; call <= 3; call++ {
					res := rpc(t, n, cluster.Request{Path: "/things"})
					wantOneOutcomeEach(t, res, w.Nodes[1:])
					for _, o := range res.Failures {
						if se, ok := errors.AsType[*cluster.StatusError](o.Err); !ok || se.Code != 403 || o.Kind != cluster.KindStatus || o.Evicted || o.EvictionSkipped != nil {
							t.Errorf("%s: %s, %v, evicted %t, skipped: %v", o.Server.ServerID, o.Kind, o.Err, o.Evicted, o.EvictionSkipped)
						}
					}
					if len(res.Failures) != 6 || len(n.Servers()) != 7 {
						t.Errorf("%d failures, %d servers", len(res.Failures), len(n.Servers()))
					}
					if fetched := len(requests.tokenRequests(n)); fetched > call {
						t.Errorf("%d tokens were fetched for %d calls", fetched, call)
					}
					for _, peer := range w.Nodes[1:] {
						if got := len(requests.matching("GET", n.Host, peer.Host)); got > 2*call {
							t.Errorf("%d requests to %s in %d calls", got, peer.ID, call)
						}
					}
				}
			})
		})
	}
}

// If the token service fails, the rejection of the first token is the outcome.
func TestRejectedTokenWithoutReplacement(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Nodes[0]
		rpc(t, n, cluster.Request{Path: "/things"})
		w.Network.Fault(n.Host, w.Nodes[1].Host, clustertest.Status(403))
		w.Network.Down(clustertest.TokenHost)
		o := singleFailure(t, rpc(t, n, cluster.Request{Path: "/things"}))
		if se, ok := errors.AsType[*cluster.StatusError](o.Err); !ok || se.Code != 403 || o.Kind != cluster.KindStatus || o.Evicted {
			t.Errorf("%s, %v, evicted %t", o.Kind, o.Err, o.Evicted)
		}
	})
}

// A node fetches one token for the registry and one for all its peers. The npm module fetches one
// for each peer.
func TestTokensPerNode(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		requests := recordRequests(w)
		for range 6 {
			w.Join()
		}
		for range 3 {
			rpc(t, w.Nodes[0], cluster.Request{Path: "/things"})
		}
		for _, n := range w.Nodes {
			if fetched := len(requests.tokenRequests(n)); fetched != 2 {
				t.Errorf("%s fetched %d tokens", n.ID, fetched)
			}
		}
	})
}

func TestNoToken(t *testing.T) {
	parallel(t)
	for name, tt := range map[string]struct {
		fault clustertest.Fault
		took  time.Duration
	}{
		"refused":   {clustertest.Refuse, 0},
		"hanging":   {clustertest.Hang, 10 * time.Second},
		"401":       {clustertest.Status(401), 0},
		"malformed": {respondOK("?"), 0},
	} {
		// With two nodes the registry alone would decide about a suspect.
		for _, nodes := range []int{4, 2} {
			t.Run(fmt.Sprintf("%s/%d nodes", name, nodes), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := clustertest.Start(t, nodes)
					n := w.Nodes[0] // it has no token for peers yet
					w.Network.Fault(n.Host, clustertest.TokenHost, tt.fault)
					requests := recordRequests(w)
					start := time.Now()
					res := rpc(t, n, cluster.Request{Path: "/things"})
					if took := time.Since(start); took != tt.took {
						t.Errorf("took %v, want %v", took, tt.took)
					}
					wantOneOutcomeEach(t, res, w.Nodes[1:])
					for _, o := range res.Failures {
						if _, ok := errors.AsType[*cluster.TokenError](o.Err); !ok || o.Kind != cluster.KindNoToken || o.Attempts != 0 || o.Evicted || o.EvictionSkipped != nil {
							t.Errorf("%s: %s, %v, %d attempts, evicted %t, skipped: %v", o.Server.ServerID, o.Kind, o.Err, o.Attempts, o.Evicted, o.EvictionSkipped)
						}
					}
					if len(res.Failures) != nodes-1 || len(n.Servers()) != nodes {
						t.Errorf("%d failures, %d servers", len(res.Failures), len(n.Servers()))
					}
					if all := requests.sentBy(n); len(all) != 1 {
						t.Errorf("%d requests, want the one to the token service", len(all))
					}
				})
			})
		}
	}
	t.Run("the call ends first", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 3)
			w.Network.Fault(clustertest.Any, clustertest.TokenHost, clustertest.Hang)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start := time.Now()
			res, err := w.Nodes[0].RPCluster(ctx, cluster.Request{Path: "/things"})
			if err != nil {
				t.Fatal(err)
			}
			wantOneOutcomeEach(t, res, w.Nodes[1:])
			for _, o := range res.Failures {
				if o.Kind != cluster.KindCanceled || !errors.Is(o.Err, context.DeadlineExceeded) {
					t.Errorf("%s: %s, %v", o.Server.ServerID, o.Kind, o.Err)
				}
			}
			if took := time.Since(start); took != time.Second {
				t.Errorf("took %v", took)
			}
		})
	})
}

func FuzzTokenResponse(f *testing.F) {
	for _, seed := range []struct {
		status uint16
		body   string
	}{
		{200, `{"data":{"access_token":"opaque","expires_in":3600}}`},
		{200, `{"access_token":"opaque"}`},
		{201, `{"data":{"access_token":"a.b.c"}}`},
		{200, `{"data":{"access_token":"two words"}}`},
		{200, `{"data":{"access_token":"line\nbreak"}}`},
		{200, `{"data":{"access_token":"é"}}`},
		{200, `{"data":{"access_token":""}}`},
		{200, `{"data":{"access_token":1}}`},
		{200, `{"data":{"access_token":"x","expires_in":-1}}`},
		{200, `{"data":{"access_token":"x","expires_in":1e300}}`},
		{200, `{"data":"hidden client secret"}`},
		{200, `hidden client secret`},
		{200, `{"data":null}`},
		{200, `{"data":{"access_token":"eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjF9.x"}}`},
		{200, ``},
		{200, `null`},
		{204, ``},
		{302, `{"access_token":"x"}`},
		{400, `{"message":"client_secret hidden client secret is wrong","info":{"secret":"hidden client secret"}}`},
		{401, `hidden client secret`},
		{403, `{"message":"no"}`},
		{500, `{"message":{"a":"hidden client secret"}}`},
		{503, ``},
	} {
		f.Add(seed.status, []byte(seed.body))
	}
	f.Fuzz(func(t *testing.T, status uint16, body []byte) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var failed error
		bearer := ""
		o := &remotes{t: t, view: []string{"node-1"}}
		o.tokens = func(*http.Request) (int, string) { return validStatus(status), string(body) }
		o.registry = func(r *http.Request) (int, string) {
			bearer = r.Header.Get("Authorization")
			return http.StatusOK, registrationResponse(time.Hour, "node-1")
		}
		c := newNode(t, testConfig(), o, cluster.WithTokens(nil), onRenewalFailure(func(err error) { failed = err; cancel() }))
		_, err := c.Register(ctx)
		checkNoSecrets(t, err)
		checkNoSecrets(t, failed)
		if err == nil {
			token, found := strings.CutPrefix(bearer, "Bearer ")
			if !found || token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
				t.Errorf("the node used the token %q", bearer)
			}
			if validStatus(status)/100 != 2 {
				t.Errorf("a response with status %d was accepted", validStatus(status))
			}
			return
		}
		if _, ok := errors.AsType[*cluster.TokenError](failed); !ok || !strings.Contains(failed.Error(), "mST") || bearer != "" {
			t.Errorf("without a token the error is %v", failed)
		}
	})
}

// delayFirst delays the response to the first request.
func delayFirst(d time.Duration) clustertest.Fault { return clustertest.FirstN(1, delayResponse(d)) }
