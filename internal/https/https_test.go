package https_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mimiktech/cluster/internal/https"
)

// newTransport returns a transport that trusts the certificate of httptest.
func newTransport(t *testing.T) *https.Transport {
	t.Helper()
	other := &http.Transport{ForceAttemptHTTP2: true, IdleConnTimeout: time.Minute}
	transport := https.New(other, new(net.Dialer).DialContext, trust(t))
	t.Cleanup(func() {
		other.CloseIdleConnections()
		transport.HTTP1.Close()
	})
	return transport
}

func certificate() tls.Certificate {
	s := httptest.NewUnstartedServer(nil)
	defer s.Close()
	s.StartTLS()
	return s.TLS.Certificates[0]
}

func trust(t *testing.T) *tls.Config {
	t.Helper()
	leaf, err := x509.ParseCertificate(certificate().Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return &tls.Config{RootCAs: roots, ServerName: "example.com"}
}

// A result is what a test checks of a response.
type result struct {
	proto  int
	body   string
	reused bool
	tls    bool
}

func fetch(t *testing.T, rt http.RoundTripper, url, body string) result {
	t.Helper()
	r, err := tryFetch(t, rt, url, body)
	if err != nil {
		t.Error(err)
	}
	return r
}

func tryFetch(t *testing.T, rt http.RoundTripper, url, body string) (r result, err error) {
	t.Helper()
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { r.reused = info.Reused }})
	method, content := http.MethodGet, io.Reader(http.NoBody)
	if body != "" {
		method, content = http.MethodPost, strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, content)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return result{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	r.proto, r.body, r.tls = resp.ProtoMajor, string(b), resp.TLS != nil
	return r, err
}

// startServer starts a server that returns the body of the request. address may be that of an
// earlier one.
func startServer(t *testing.T, address string, http2 bool) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }))
	if address != "" {
		s.Listener.Close()
		var err error
		if s.Listener, err = new(net.ListenConfig).Listen(t.Context(), "tcp", address); err != nil {
			t.Fatal(err)
		}
	}
	s.EnableHTTP2 = http2
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func TestProtocols(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprint("HTTP/2 ", http2), func(t *testing.T) {
			s, rt, want := startServer(t, "", http2), newTransport(t), result{proto: 1, body: "one", tls: true}
			if http2 {
				want.proto = 2
			}
			if got := fetch(t, rt, s.URL, "one"); got != want {
				t.Errorf("the first response: %+v, want %+v", got, want)
			}
			want.body, want.reused = "two", true
			if got := fetch(t, rt, s.URL, "two"); got != want {
				t.Errorf("the second response: %+v, want %+v", got, want)
			}
		})
	}
}

// The server at an address may be replaced by one with another protocol.
func TestServerChangesProtocol(t *testing.T) {
	rt := newTransport(t)
	s := startServer(t, "", true)
	for i, http2 := range []bool{true, false, true, false} {
		if i > 0 {
			s.CloseClientConnections()
			s.Close()
			s = startServer(t, s.Listener.Addr().String(), http2)
		}
		want := 1
		if http2 {
			want = 2
		}
		got, err := tryFetch(t, rt, s.URL, "")
		// Until the connection to the former server is known to be closed.
		for try := 0; err != nil && try < 100; try++ {
			got, err = tryFetch(t, rt, s.URL, "")
		}
		if got.proto != want {
			t.Errorf("server %d: %+v, %v, want HTTP/%d", i, got, err, want)
		}
	}
}

func TestConcurrentFirstRequests(t *testing.T) {
	s, rt := startServer(t, "", true), newTransport(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if got := fetch(t, rt, s.URL, fmt.Sprint(i)); got.proto != 2 || got.body != fmt.Sprint(i) {
				t.Errorf("response %d: %+v", i, got)
			}
		})
	}
	wg.Wait()
}

const secret = "a-token-that-the-server-has-received"

// serveUnsolicited sends each response with another one behind it, at once or after a pause. sent
// has a value for each of these.
func serveUnsolicited(t *testing.T, protocols []string, pause time.Duration) (url string, sent <-chan struct{}) {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate()}, NextProtos: protocols})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	written := make(chan struct{}, 10)
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	unsolicited := "HTTP/1.1 200 " + secret + "\r\nContent-Length: 2\r\n\r\nno"
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				in := bufio.NewReader(c)
				for {
					if _, err := http.ReadRequest(in); err != nil {
						return
					}
					if pause == 0 {
						_, _ = io.WriteString(c, ok+unsolicited)
					} else {
						_, _ = io.WriteString(c, ok)
						time.Sleep(pause)
						_, _ = io.WriteString(c, unsolicited)
					}
					written <- struct{}{}
				}
			}()
		}
	}()
	return "https://" + ln.Addr().String(), written
}

// An unsolicited response is neither printed nor taken for the response to the next request.
func TestUnsolicitedResponse(t *testing.T) {
	var printed lockedBuffer
	before := log.Writer()
	log.SetOutput(&printed)
	t.Cleanup(func() { log.SetOutput(before) })
	for name, protocols := range map[string][]string{"negotiated": {"http/1.1"}, "not negotiated": nil} {
		for _, pause := range []time.Duration{0, 20 * time.Millisecond} {
			t.Run(fmt.Sprint(name, ", after ", pause), func(t *testing.T) {
				url, sent := serveUnsolicited(t, protocols, pause)
				rt := newTransport(t)
				for range 3 {
					if got := fetch(t, rt, url, ""); got.body != "ok" || got.reused {
						t.Errorf("got %+v", got)
					}
					<-sent
				}
				if text := printed.String(); text != "" {
					t.Errorf("printed: %s", text)
				}

				// net/http prints it, or else this test would find nothing.
				std := &http.Transport{TLSClientConfig: trust(t)}
				defer std.CloseIdleConnections()
				fetch(t, std, url, "")
				for i := 0; i < 200 && !strings.Contains(printed.String(), secret); i++ {
					time.Sleep(10 * time.Millisecond)
				}
				if !strings.Contains(printed.String(), secret) {
					t.Error("net/http prints nothing any more")
				}
				printed.Reset()
			})
		}
	}
}

type lockedBuffer struct {
	mu  sync.Mutex // guards the field below
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *lockedBuffer) Reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf.Reset()
}

// A request that ends while its connection is negotiated leaves no connection behind.
func TestCanceledHandshake(t *testing.T) {
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0") // sends nothing
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+ln.Addr().String(), http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := newTransport(t).RoundTrip(req); err == nil {
		resp.Body.Close()
		t.Error("a response without a handshake")
	}
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Errorf("the connection stays open: %v", err)
	}
}
