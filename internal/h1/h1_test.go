package h1

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"
)

// echo is a server that responds with the request that it received.
func echo(t testing.TB) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Seen", strings.TrimSpace(r.Method+" "+r.URL.RequestURI()+" "+r.Header.Get("X-Token")))
		if r.URL.Query().Has("status") {
			w.WriteHeader(http.StatusTeapot)
		}
		if r.URL.Query().Has("chunked") {
			w.(http.Flusher).Flush()
		}
		_, _ = w.Write(body)
	}))
	t.Cleanup(srv.Close)
	return srv
}

func TestRoundTripper(t *testing.T) {
	srv := echo(t)
	tr := new(Transport)
	defer tr.Close()
	for _, size := range []int{0, 1, 4096, maxInline, 1 << 20} {
		for _, stream := range []bool{false, true} {
			for _, query := range []string{"", "?chunked", "?status"} {
				want := strings.Repeat("x", size)
				var body io.Reader = strings.NewReader(want)
				if stream {
					body = io.MultiReader(body)
				}
				header, got, err := fetch(t.Context(), tr, "POST", srv.URL+"/p"+query, body)
				if err != nil || got != want || header.Get("X-Seen") != "POST /p"+query {
					t.Fatalf("%d bytes, stream %v: got %d, %v, %v", size, stream, len(got), err, header)
				}
			}
		}
	}
	if n := tr.Idle(); n != 1 {
		t.Errorf("%d idle connections after requests in a row", n)
	}
}

func TestDo(t *testing.T) {
	srv := echo(t)
	tr := new(Transport)
	defer tr.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	for _, size := range []int{0, 1, 4096, maxInline, maxInline + 1, 1 << 20} {
		for _, query := range []string{"", "?chunked", "?status"} {
			want := bytes.Repeat([]byte("x"), size)
			call, err := NewCall("PUT", http.Header{"X-Token": {"secret"}}, want, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := tr.Do(t.Context(), call, host, "/p"+query)
			status := 200
			if query == "?status" {
				status = 418
			}
			if status == 418 && size > maxErrorBody { // which is not read to its end
				if !errors.Is(err, ErrBodyTooLarge) || resp.StatusCode != status || len(resp.Body) != maxErrorBody {
					t.Errorf("%d bytes of a failure: got %d, %d bytes, %v", size, resp.StatusCode, len(resp.Body), err)
				}
				continue
			}
			if err != nil || resp.StatusCode != status || !bytes.Equal(resp.Body, want) {
				t.Fatalf("%d bytes, %q: got %d, %d bytes, %v", size, query, resp.StatusCode, len(resp.Body), err)
			}
			if got, want := resp.Header.Fields().Get("X-Seen"), "PUT /p"+query+" secret"; got != want {
				t.Errorf("the peer saw %q, not %q", got, want)
			}
		}
	}
	if n := tr.Idle(); n > 1 {
		t.Errorf("%d idle connections after requests in a row", n)
	}
}

// What is reserved for all bodies bounds each of them, whether its length is known or not.
func TestReserving(t *testing.T) {
	srv := echo(t)
	tr := new(Transport)
	defer tr.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	for _, uri := range []string{"/", "/?chunked"} {
		left := int64(150)
		call, err := NewCall("PUT", nil, make([]byte, 100), 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		call = call.Reserving(func(n int64) bool {
			if n > left {
				return false
			}
			left -= n
			return true
		})
		if resp, err := tr.Do(t.Context(), call, host, uri); err != nil || len(resp.Body) != 100 || left != 50 {
			t.Errorf("%s: %d bytes, %d left, %v", uri, len(resp.Body), left, err)
		}
		if resp, err := tr.Do(t.Context(), call, host, uri); !errors.Is(err, ErrReserve) || resp.StatusCode != 200 || len(resp.Body) > 100 || left != 50 {
			t.Errorf("%s, beyond the limit: status %d, %d bytes, %v", uri, resp.StatusCode, len(resp.Body), err)
		}
	}
}

func TestBodyLimit(t *testing.T) {
	srv := echo(t)
	tr := new(Transport)
	defer tr.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	for _, limit := range []int64{0, 1, 99, 100, 101} {
		for _, uri := range []string{"/", "/?chunked"} {
			call, err := NewCall("PUT", nil, make([]byte, 100), limit)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := tr.Do(t.Context(), call, host, uri)
			if errors.Is(err, ErrBodyTooLarge) != (limit < 100) || limit >= 100 && err != nil {
				t.Errorf("limit %d: %v", limit, err)
			}
			if want := min(limit, 100); int64(len(resp.Body)) != want || resp.StatusCode != 200 {
				t.Errorf("limit %d: %d bytes of the body, status %d", limit, len(resp.Body), resp.StatusCode)
			}
		}
	}
}

func TestInvalidRequests(t *testing.T) {
	tr := &Transport{}
	for _, header := range []http.Header{
		{"": {"x"}},
		{"A b": {"x"}},
		{"A:": {"x"}},
		{"A\r\n": {"x"}},
		{"Ä": {"x"}},
		{"A": {"secret\r\nB: c"}},
		{"A": {"secret\n"}},
		{"A": {"secret\x00"}},
		{"A": {"ok", "secret\x7f"}},
	} {
		_, err := NewCall("GET", header, nil, 0)
		req := httptest.NewRequest("GET", "http://127.0.0.1:1/", nil)
		req.Header = header
		_, err2 := tr.RoundTrip(req)                 //nolint:bodyclose // there is none
		_, std := new(http.Transport).RoundTrip(req) //nolint:bodyclose // there is none
		if err == nil || err2 == nil || !strings.Contains(std.Error(), "invalid header") {
			t.Errorf("%q: %v, %v, net/http: %v", header, err, err2, std)
		}
		if strings.Contains(fmt.Sprint(err, err2), "secret") {
			t.Errorf("the error repeats the value: %v", err)
		}
	}
	for _, method := range []string{"GET /", "G\r\n", "Ä", "("} {
		if _, err := NewCall(method, nil, nil, 0); err == nil {
			t.Errorf("method %q was accepted", method)
		}
	}
	call, err := NewCall("GET", nil, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range [][2]string{
		{"", "/"}, {"a b", "/"}, {"a\r\n", "/"}, {"ä", "/"}, {"h", ""}, {"h", "x"}, {"h", "/ HTTP/1.1"}, {"h", "/\r\n"}, {"h", "/\x7f"},
	} {
		if _, err := tr.Do(t.Context(), call, target[0], target[1]); err == nil {
			t.Errorf("host %q, path %q were accepted", target[0], target[1])
		}
	}
	for _, req := range []*http.Request{
		{},
		{Header: http.Header{}},
		{URL: httptest.NewRequest("GET", "http://h/", nil).URL},
		httptest.NewRequest("GET", "https://h/", nil),
		httptest.NewRequest("GET", "ftp://h/", nil),
		httptest.NewRequest("GET", "http://ä/", nil),
	} {
		if _, err := tr.RoundTrip(req); err == nil { //nolint:bodyclose // there is none
			t.Errorf("%v was accepted", req.URL)
		}
	}
}

func TestCanceledBefore(t *testing.T) {
	tr := new(Transport)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("why")
	cancel(why)
	call, err := NewCall("GET", nil, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tr.Do(ctx, call, "127.0.0.1:1", "/"); !errors.Is(err, why) {
		t.Error(err)
	}
}

// A Call with added fields sends them instead of those with the same names. The original stays.
func TestCallWith(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprint(w, r.Method, r.Header["X-Token"], r.Header["X-Tokens"], r.Header["Traceparent"], string(body))
	}))
	t.Cleanup(srv.Close)
	tr := new(Transport)
	defer tr.Close()
	call, err := NewCall("PUT", http.Header{"X-Token": {"1", "2"}, "X-Tokens": {"3"}}, []byte("body"), 100)
	if err != nil {
		t.Fatal(err)
	}
	with := call.With(http.Header{"X-Token": {"4"}, "Traceparent": {"5"}})
	for _, tt := range []struct {
		call *Call
		want string
	}{{with, "PUT[4][3][5]body"}, {call, "PUT[1 2][3][]body"}, {with.With(nil), "PUT[4][3][5]body"}} {
		resp, err := tr.Do(t.Context(), tt.call, strings.TrimPrefix(srv.URL, "http://"), "/")
		if got := string(resp.Body); err != nil || strings.ReplaceAll(got, " [", "[") != tt.want {
			t.Errorf("got %q, %v; want %q", got, err, tt.want)
		}
	}
}

// A head longer than a socket's buffer does not keep a short body from being sent.
func TestLongRequestHead(t *testing.T) {
	srv := echo(t)
	tr := new(Transport)
	defer tr.Close()
	header := http.Header{"X-Long": {strings.Repeat("x", 100<<10)}}
	call, err := NewCall("PUT", header, []byte("body"), 100)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.Do(t.Context(), call, strings.TrimPrefix(srv.URL, "http://"), "/")
	if err != nil || string(resp.Body) != "body" {
		t.Errorf("Do: %q, %v", resp.Body, err)
	}
	long := roundTripperFunc(func(req *http.Request) (*http.Response, error) {
		req.Header = header
		return tr.RoundTrip(req)
	})
	if _, got, err := fetch(t.Context(), long, "PUT", srv.URL, strings.NewReader("body")); err != nil || got != "body" {
		t.Errorf("RoundTrip: %q, %v", got, err)
	}
}

type roundTripperFunc func(*http.Request) (*http.Response, error)

func (f roundTripperFunc) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// A stalledConn is a socket whose reader gets no CPU time until the connection is closed.
type stalledConn struct {
	*net.TCPConn
	closed chan struct{}
	once   sync.Once
}

func (c *stalledConn) Read([]byte) (int, error) {
	<-c.closed
	return 0, net.ErrClosed
}

func (c *stalledConn) Close() error {
	defer c.once.Do(func() { close(c.closed) })
	return c.TCPConn.Close()
}

// A process that is suspended until after the deadline of a request may not read the response any
// more. It still knows that there is one.
func TestResponseThatIsNotRead(t *testing.T) {
	handled := make(chan struct{}, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/silent" {
			_, _ = io.WriteString(w, "data")
			_ = http.NewResponseController(w).Flush()
		}
		handled <- struct{}{}
		<-r.Context().Done()
	}))
	defer srv.Close()
	tr := &Transport{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		nc, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &stalledConn{TCPConn: nc.(*net.TCPConn), closed: make(chan struct{})}, nil
	}}
	defer tr.Close()
	call, err := NewCall(http.MethodGet, nil, nil, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{"/": true, "/silent": false} {
		ctx, cancel := context.WithCancel(t.Context())
		begun := false
		traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
			GotFirstResponseByte: func() { begun = true },
		})
		go func() {
			<-handled
			time.Sleep(20 * time.Millisecond) // until the response has reached the socket
			cancel()
		}()
		resp, err := tr.Do(traced, call, strings.TrimPrefix(srv.URL, "http://"), path)
		if !errors.Is(err, context.Canceled) || resp.Begun != want || begun != want || resp.StatusCode != 0 {
			t.Errorf("%s: %+v, first byte reported: %t, %v", path, resp, begun, err)
		}
		cancel()
	}
}

// A body is read whole whatever the pieces in which it arrives, and however often the memory for it
// is used again.
func TestBodyReader(t *testing.T) {
	var r BodyReader
	for _, size := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 3*chunkSize + 5, 0, chunkSize} {
		body := make([]byte, size)
		for i := range body {
			body[i] = byte(i*7 + i>>8 + size)
		}
		for name, src := range map[string]io.Reader{
			"at once": bytes.NewReader(body), "in pieces": iotest.HalfReader(bytes.NewReader(body)), "with its end": iotest.DataErrReader(bytes.NewReader(body)),
		} {
			if got, err := r.Read(src, int64(size)); err != nil || !bytes.Equal(got, body) {
				t.Errorf("%d bytes, %s: %d bytes, %v", size, name, len(got), err)
			}
		}
		if size == 0 {
			continue
		}
		if got, err := r.Read(bytes.NewReader(body), int64(size-1)); !errors.Is(err, ErrBodyTooLarge) || !bytes.Equal(got, body[:size-1]) {
			t.Errorf("%d bytes, one less allowed: %d bytes, %v", size, len(got), err)
		}
		if got, err := r.Read(io.MultiReader(bytes.NewReader(body), iotest.ErrReader(io.ErrUnexpectedEOF)), math.MaxInt64); !errors.Is(err, io.ErrUnexpectedEOF) || !bytes.Equal(got, body) {
			t.Errorf("%d bytes, then an error: %d bytes, %v", size, len(got), err)
		}
	}
}
