package sumologic_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster/sumologic"
)

const (
	endpoint = "https://collectors.test/receiver/v1/http/"
	code     = "ZaVnC4dhaV2+4rJ/secret_code-0123456789=="
)

// fakeSumo is an HTTP source of Sumo Logic on connections in memory, so that its tests can run in
// a synctest bubble.
type fakeSumo struct {
	conns    chan net.Conn
	shutdown chan struct{}

	mu       sync.Mutex // guards the fields below
	respond  func(n int, w http.ResponseWriter, r *http.Request)
	requests []request
	dialed   int
	open     int
	maxOpen  int
}

type request struct {
	at     time.Time
	path   string
	header http.Header
	sent   int // bytes of the body as sent
	body   string
}

func (r request) lines() []string { return strings.Split(strings.TrimSuffix(r.body, "\n"), "\n") }

// newFakeSumo starts a source. respond writes the response to the request with the number n, which
// begins at 1. nil accepts everything.
func newFakeSumo(t *testing.T, respond func(n int, w http.ResponseWriter, r *http.Request)) *fakeSumo {
	t.Helper()
	f := &fakeSumo{conns: make(chan net.Conn), shutdown: make(chan struct{}), respond: respond}
	server := &http.Server{Handler: f, ReadHeaderTimeout: time.Minute}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(f) // ends with Close
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-served
	})
	return f
}

func (f *fakeSumo) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client has gone
	}
	zr, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	body, err := io.ReadAll(zr)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	f.mu.Lock()
	f.requests = append(f.requests, request{time.Now(), r.URL.Path, r.Header.Clone(), len(raw), string(body)})
	n, respond := len(f.requests), f.respond
	f.mu.Unlock()
	if respond != nil {
		respond(n, w, r)
	}
}

// change replaces the response function.
func (f *fakeSumo) change(respond func(n int, w http.ResponseWriter, r *http.Request)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.respond = respond
}

func (f *fakeSumo) received() []request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]request(nil), f.requests...)
}

func (f *fakeSumo) lines() (lines []string) {
	for _, r := range f.received() {
		lines = append(lines, r.lines()...)
	}
	return lines
}

// transport dials the source, whatever the address.
func (f *fakeSumo) transport() *http.Transport {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		client, server := net.Pipe()
		select {
		case f.conns <- server:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.dialed++
		f.open++
		f.maxOpen = max(f.maxOpen, f.open)
		return &countedConn{Conn: client, closed: sync.OnceFunc(func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.open--
		})}, nil
	}
	return &http.Transport{DialContext: dial, DialTLSContext: dial}
}

// connections returns how many connections were dialed, and how many were open at once.
func (f *fakeSumo) connections() (dialed, maxOpen int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dialed, f.maxOpen
}

type countedConn struct {
	net.Conn
	closed func()
}

func (c *countedConn) Close() error {
	c.closed()
	return c.Conn.Close()
}

// Accept, Close and Addr make the source a listener.
func (f *fakeSumo) Accept() (net.Conn, error) {
	select {
	case c := <-f.conns:
		return c, nil
	case <-f.shutdown:
		return nil, net.ErrClosed
	}
}

func (f *fakeSumo) Close() error {
	close(f.shutdown)
	return nil
}

func (f *fakeSumo) Addr() net.Addr { return &net.IPAddr{} }

// start returns a sink that sends to f, and its console.
func start(t *testing.T, f *fakeSumo, edit func(*sumologic.Config)) (*sumologic.Sink, *zap.Logger, *output) {
	t.Helper()
	console := &output{}
	cfg := sumologic.Config{
		Endpoint: endpoint, Code: code, ServerType: "mds", ServerID: "node-1",
		ConsoleLevel: zap.WarnLevel, Console: console,
	}
	if f != nil {
		cfg.Transport = f.transport()
	}
	if edit != nil {
		edit(&cfg)
	}
	sink, err := sumologic.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = sink.Close() // its error is that of the test's Close, if any
		if strings.Contains(console.String(), code) {
			t.Errorf("the console shows the code: %s", console.String())
		}
	})
	return sink, sink.Logger(), console
}

func status(code int) func(int, http.ResponseWriter, *http.Request) {
	return func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// hang responds to no request.
func hang(_ int, _ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
