package clustertest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mimiktech/cluster/internal/exchanges"
)

const (
	bufferSize    = 64 << 10 // of a response body, about that of two socket buffers
	maxAutoLength = 2 << 10  // net/http sets the Content-Length of bodies up to this size
	clientPort    = "49152"  // of all clients
)

// An exchange is one request that a handler serves. It is the handler's [http.ResponseWriter].
type exchange struct {
	// ctx ends when the client gives up or the handler returns.
	ctx    context.Context //nolint:containedctx // the handler's own
	cancel context.CancelFunc
	body   *requestBody
	isHead bool          // the method is HEAD: the response has no body
	ready  chan struct{} // closed when resp or err is set

	// Used by the handler's goroutine only.
	header     http.Header
	sentHeader http.Header // header when the status was written
	status     int         // 0: not yet written
	declared   int64       // the Content-Length that the handler set, or -1
	written    int64
	buffer     []byte
	stream     *io.PipeWriter // nil while the body fits into the buffer
	flushed    bool           // a response without a body has been sent

	mu   sync.Mutex // guards the fields below until ready is closed
	resp *http.Response
	err  error
	pipe *io.PipeWriter // stream, for abort
}

func newExchange(req *http.Request) *exchange {
	x := &exchange{
		body:     &requestBody{rc: http.NoBody},
		isHead:   req.Method == http.MethodHead,
		ready:    make(chan struct{}),
		header:   make(http.Header),
		declared: -1,
	}
	x.ctx, x.cancel = context.WithCancel(context.Background())
	if req.Body != nil {
		x.body.rc = req.Body
	}
	return x
}

// run starts h for req and returns the response when its headers are complete. It calls onDone, if
// not nil, when h has returned.
func (x *exchange) run(from string, req *http.Request, h http.Handler, onDone func()) (*http.Response, error) {
	r, err := x.request(from, req)
	if err != nil {
		x.abort(err)
		if onDone != nil {
			onDone()
		}
		return nil, err
	}
	go x.serve(exchanges.Record(h), r, onDone)

	ctx := req.Context()
	select {
	case <-x.ready:
		// At the deadline both channels may be ready. The deadline always wins, not chance.
		if deadline, ok := ctx.Deadline(); ctx.Err() == nil && (!ok || time.Now().Before(deadline)) {
			if x.pipe != nil {
				body := x.resp.Body.(*streamBody)
				body.stop = context.AfterFunc(ctx, func() { x.abort(context.Cause(ctx)) })
			}
			return x.resp, x.err
		}
		<-ctx.Done()
	case <-ctx.Done():
	}
	err = context.Cause(ctx)
	x.abort(err)
	return nil, err
}

// request returns req as the handler sees it.
func (x *exchange) request(from string, req *http.Request) (*http.Request, error) {
	uri := req.URL.RequestURI()
	u, err := url.ParseRequestURI(uri)
	if err != nil {
		return nil, err
	}
	r := (&http.Request{
		Method: cmp.Or(req.Method, http.MethodGet), URL: u, RequestURI: uri,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Host:       cmp.Or(req.Host, req.URL.Host),
		Header:     req.Header.Clone(),
		Body:       x.body,
		RemoteAddr: net.JoinHostPort(hostname(from), clientPort),
	}).WithContext(x.ctx)
	for _, name := range []string{"Host", "Content-Length", "Transfer-Encoding", "Trailer"} {
		delete(r.Header, name) // net/http sends its own
	}
	switch agent := r.Header["User-Agent"]; {
	case agent == nil:
		r.Header.Set("User-Agent", "Go-http-client/1.1")
	case r.Header.Get("User-Agent") == "":
		r.Header.Del("User-Agent")
	}
	switch {
	case req.Body == nil || req.Body == http.NoBody:
		r.Body = http.NoBody
	case req.ContentLength > 0:
		r.ContentLength = req.ContentLength
		r.Header.Set("Content-Length", strconv.FormatInt(req.ContentLength, 10))
	default:
		r.ContentLength = -1
		r.TransferEncoding = []string{"chunked"}
	}
	if req.URL.Scheme == "https" {
		r.TLS = &tls.ConnectionState{Version: tls.VersionTLS13, HandshakeComplete: true, ServerName: req.URL.Hostname()}
	}
	return r, nil
}

func (x *exchange) serve(h http.Handler, r *http.Request, onDone func()) {
	var crash any = "runtime.Goexit was called" // by t.FailNow, for example
	defer func() {
		if v := recover(); v != nil {
			crash = v
		}
		if onDone != nil {
			onDone()
		}
		x.body.Close()
		x.finish(crash)
		x.cancel()
	}()
	h.ServeHTTP(x, r)
	crash = nil
}

// finish completes the response after the handler has returned or, if crash is not nil, crashed.
func (x *exchange) finish(crash any) {
	if x.status == 0 {
		x.commitHeader(http.StatusOK, x.header)
	}
	short := x.declared > x.written && !x.isHead && bodyAllowed(x.status)
	switch {
	case crash != nil && x.stream != nil:
		x.stream.CloseWithError(crashError(io.ErrUnexpectedEOF, crash))
	case crash != nil:
		x.resolve(nil, crashError(io.EOF, crash), nil)
	case x.stream != nil && short:
		x.stream.CloseWithError(io.ErrUnexpectedEOF)
	case x.stream != nil:
		x.stream.Close()
	case !x.flushed:
		resp := x.response() //nolint:bodyclose // closed by the client
		switch {
		case short:
			resp.Body = &bufferedBody{buffer: bytes.NewReader(x.buffer), err: io.ErrUnexpectedEOF}
		case len(x.buffer) > 0:
			resp.Body = &bufferedBody{buffer: bytes.NewReader(x.buffer), err: io.EOF}
		}
		if x.declared < 0 && x.written <= maxAutoLength && bodyAllowed(x.status) && (!x.isHead || x.written > 0) {
			resp.ContentLength, resp.TransferEncoding = x.written, nil
			resp.Header.Set("Content-Length", strconv.FormatInt(x.written, 10))
		}
		x.resolve(resp, nil, nil)
	}
}

// response returns the response without its body.
func (x *exchange) response() *http.Response {
	resp := &http.Response{
		Status:     strconv.Itoa(x.status) + " " + http.StatusText(x.status),
		StatusCode: x.status,
		Proto:      "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        x.sentHeader,
		Body:          http.NoBody,
		ContentLength: x.declared,
	}
	switch {
	case x.isHead:
	case !bodyAllowed(x.status):
		resp.ContentLength = max(0, x.declared)
	case x.declared < 0:
		resp.TransferEncoding = []string{"chunked"}
	}
	return resp
}

// resolve sets the result of run, and reports false if it was set before.
func (x *exchange) resolve(resp *http.Response, err error, pipe *io.PipeWriter) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.resp != nil || x.err != nil {
		return false
	}
	x.resp, x.err, x.pipe = resp, err, pipe
	close(x.ready)
	return true
}

// abort ends the exchange. The client gets err, from the request or from reading the body.
func (x *exchange) abort(err error) {
	if !x.resolve(nil, err, nil) && x.pipe != nil {
		x.pipe.CloseWithError(err)
	}
	x.cancel()
	x.body.Close()
}

// Header implements [http.ResponseWriter].
func (x *exchange) Header() http.Header { return x.header }

// WriteHeader implements [http.ResponseWriter].
func (x *exchange) WriteHeader(status int) {
	switch {
	case status < 100 || status > 999:
		panic(fmt.Sprintf("invalid WriteHeader code %d", status)) //nolint:forbidigo // net/http panics, too
	case x.status != 0, status < 200 && status != http.StatusSwitchingProtocols:
		return
	}
	x.commitHeader(status, x.header.Clone())
}

func (x *exchange) commitHeader(status int, header http.Header) {
	x.status, x.sentHeader = status, header
	declared := header.Get("Content-Length")
	if declared == "" {
		return
	}
	length, err := strconv.ParseInt(declared, 10, 64)
	if err != nil || length < 0 {
		header.Del("Content-Length")
		return
	}
	x.declared = length
}

// Write implements [http.ResponseWriter].
func (x *exchange) Write(p []byte) (int, error) {
	if x.status == 0 {
		x.WriteHeader(http.StatusOK)
	}
	switch {
	case len(p) == 0:
		return 0, nil
	case x.ctx.Err() != nil:
		return 0, brokenPipe()
	case !bodyAllowed(x.status):
		return 0, http.ErrBodyNotAllowed
	case x.declared >= 0 && x.written+int64(len(p)) > x.declared:
		return 0, http.ErrContentLength
	}
	if x.written == 0 && !x.flushed && x.stream == nil {
		x.detectType(p)
	}
	x.written += int64(len(p))
	switch {
	case x.isHead:
		return len(p), nil
	case x.stream == nil && len(x.buffer)+len(p) <= bufferSize:
		x.buffer = append(x.buffer, p...)
		return len(p), nil
	}
	if err := x.startStream(); err != nil {
		return 0, err
	}
	return x.stream.Write(p)
}

// detectType sets the Content-Type of a body that starts with p, unless the handler has set it.
func (x *exchange) detectType(p []byte) {
	if _, set := x.sentHeader["Content-Type"]; !set && x.sentHeader.Get("Content-Encoding") == "" {
		x.sentHeader.Set("Content-Type", http.DetectContentType(p))
	}
}

// FlushError is called by [http.ResponseController].
func (x *exchange) FlushError() error {
	if x.status == 0 {
		x.WriteHeader(http.StatusOK)
	}
	switch {
	case !x.isHead && bodyAllowed(x.status):
		return x.startStream()
	case !x.flushed:
		x.flushed = true
		x.resolve(x.response(), nil, nil) //nolint:bodyclose // closed by the client
	}
	return nil
}

// Flush implements [http.Flusher].
func (x *exchange) Flush() { _ = x.FlushError() }

// startStream sends the response with the buffered part of its body. Later writes follow it.
func (x *exchange) startStream() error {
	if x.stream != nil {
		return nil
	}
	pr, pw := io.Pipe()
	resp := x.response() //nolint:bodyclose // closed by the client
	resp.Body = &streamBody{pr: pr, x: x}
	if !x.resolve(resp, nil, pw) {
		return brokenPipe()
	}
	x.stream = pw
	if len(x.buffer) == 0 {
		return nil
	}
	_, err := pw.Write(x.buffer)
	x.buffer = nil
	return err
}

func bodyAllowed(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

// A requestBody is the body of a request, as the handler reads it.
type requestBody struct {
	rc     io.ReadCloser
	closed atomic.Bool
}

func (b *requestBody) Read(p []byte) (int, error) {
	if b.closed.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	return b.rc.Read(p)
}

func (b *requestBody) Close() error {
	if b.closed.Swap(true) {
		return nil
	}
	return b.rc.Close()
}

var errClosedBody = errors.New("clustertest: read on closed response body")

// A bufferedBody is the body of a response after its handler has returned.
type bufferedBody struct {
	buffer *bytes.Reader
	err    error // after the buffer
	closed atomic.Bool
}

func (b *bufferedBody) Read(p []byte) (int, error) {
	if b.closed.Load() {
		return 0, errClosedBody
	}
	if b.buffer.Len() == 0 {
		return 0, b.err
	}
	return b.buffer.Read(p)
}

func (b *bufferedBody) Close() error {
	b.closed.Store(true)
	return nil
}

// A streamBody is the body of a response while its handler may still be writing.
type streamBody struct {
	pr     *io.PipeReader
	x      *exchange
	stop   func() bool // stops the context.AfterFunc of run
	closed atomic.Bool
}

func (b *streamBody) Read(p []byte) (int, error) {
	if b.closed.Load() {
		return 0, errClosedBody
	}
	return b.pr.Read(p)
}

func (b *streamBody) Close() error {
	b.closed.Store(true)
	if b.stop != nil {
		b.stop()
	}
	b.x.abort(errClosedBody)
	return b.pr.Close()
}

// An address is a host name that implements [net.Addr].
type address string

func (address) Network() string  { return "tcp" }
func (a address) String() string { return string(a) }

func dialError(host string, errno syscall.Errno) error {
	return &net.OpError{Op: "dial", Net: "tcp", Addr: address(host), Err: os.NewSyscallError("connect", errno)}
}

func lookupError(host string) error {
	return &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: hostname(host), IsNotFound: true}}
}

func connectionReset() error {
	return &net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)}
}

func brokenPipe() error {
	return &net.OpError{Op: "write", Net: "tcp", Err: os.NewSyscallError("write", syscall.EPIPE)}
}

// crashError returns err, the error of the broken connection, with the cause of the crash. There
// is no server log that would show the cause.
func crashError(err error, crash any) error {
	if cause, ok := crash.(error); ok && errors.Is(cause, http.ErrAbortHandler) {
		return err
	}
	return fmt.Errorf("%w: the handler crashed: %v", err, crash)
}

func hostname(host string) string { return (&url.URL{Host: host}).Hostname() }

func closeBody(req *http.Request) {
	if req.Body != nil {
		req.Body.Close()
	}
}
