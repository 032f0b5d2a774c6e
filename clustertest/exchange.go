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
)

const (
	bufferSize = 64 << 10 // of an answer that waits for its client: what the sockets would hold
	lengthSize = 2 << 10  // the longest answer of which net/http tells the length unasked
	clientPort = "49152"  // of every client
)

// An exchange is one request in the hands of a handler, and the [http.ResponseWriter] for its
// answer.
type exchange struct {
	life  context.Context // the handler's; ends when the client gives up or the handler returns
	end   context.CancelFunc
	body  *requestBody
	head  bool          // no body is wanted
	ready chan struct{} // closed when resp or err is set

	// The handler's, while it runs.
	header   http.Header
	frozen   http.Header // header as it was when the status was written
	status   int         // 0: not yet written
	declared int64       // the Content-Length the handler set, or -1
	written  int64
	buffer   []byte
	stream   *io.PipeWriter // takes what the buffer can't
	flushed  bool           // the answer is out, and has no body

	mu   sync.Mutex // guards the fields below until ready is closed
	resp *http.Response
	err  error
	pipe *io.PipeWriter // stream, for whoever breaks the exchange off
}

func newExchange(req *http.Request) *exchange {
	x := &exchange{
		body:     &requestBody{rc: http.NoBody},
		head:     req.Method == http.MethodHead,
		ready:    make(chan struct{}),
		header:   make(http.Header),
		declared: -1,
	}
	x.life, x.end = context.WithCancel(context.Background())
	if req.Body != nil {
		x.body.rc = req.Body
	}
	return x
}

// run has h answer req, and calls over, if there is one, when h has returned. It gives the
// answer once its headers stand.
func (x *exchange) run(from string, req *http.Request, h http.Handler, over func()) (*http.Response, error) {
	r, err := x.request(from, req)
	if err != nil {
		x.breakOff(err)
		if over != nil {
			over()
		}
		return nil, err
	}
	go x.serve(h, r, over)

	ctx := req.Context()
	select {
	case <-x.ready:
		// Which of two events of one moment is seen first is chance: let it make no difference.
		if end, ok := ctx.Deadline(); ctx.Err() == nil && (!ok || time.Now().Before(end)) {
			if x.pipe != nil {
				body := x.resp.Body.(*streamBody)
				body.stop = context.AfterFunc(ctx, func() { x.breakOff(context.Cause(ctx)) })
			}
			return x.resp, x.err
		}
		<-ctx.Done()
	case <-ctx.Done():
	}
	err = context.Cause(ctx)
	x.breakOff(err)
	return nil, err
}

// request gives req as its server sees it.
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
	}).WithContext(x.life)
	for _, name := range []string{"Host", "Content-Length", "Transfer-Encoding", "Trailer"} {
		delete(r.Header, name) // a client sends its own
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

func (x *exchange) serve(h http.Handler, r *http.Request, over func()) {
	var crash any = "it ended its goroutine" // what a handler does that calls t.FailNow
	defer func() {
		if v := recover(); v != nil {
			crash = v
		}
		if over != nil {
			over()
		}
		x.body.Close()
		x.finish(crash)
		x.end()
	}()
	h.ServeHTTP(x, r)
	crash = nil
}

// finish makes what the handler left the answer, or the rest of it.
func (x *exchange) finish(crash any) {
	if x.status == 0 {
		x.freeze(http.StatusOK, x.header)
	}
	short := x.declared > x.written && !x.head && bodyAllowed(x.status)
	switch {
	case crash != nil && x.stream != nil:
		x.stream.CloseWithError(crashError(io.ErrUnexpectedEOF, crash))
	case crash != nil:
		x.settle(nil, crashError(io.EOF, crash), nil)
	case x.stream != nil && short:
		x.stream.CloseWithError(io.ErrUnexpectedEOF)
	case x.stream != nil:
		x.stream.Close()
	case !x.flushed:
		resp := x.response() //nolint:bodyclose // the client's to close
		switch {
		case short:
			resp.Body = &wholeBody{rest: bytes.NewReader(x.buffer), end: io.ErrUnexpectedEOF}
		case len(x.buffer) > 0:
			resp.Body = &wholeBody{rest: bytes.NewReader(x.buffer), end: io.EOF}
		}
		if x.declared < 0 && x.written <= lengthSize && bodyAllowed(x.status) && (!x.head || x.written > 0) {
			resp.ContentLength, resp.TransferEncoding = x.written, nil
			resp.Header.Set("Content-Length", strconv.FormatInt(x.written, 10))
		}
		x.settle(resp, nil, nil)
	}
}

// response is the answer without its body.
func (x *exchange) response() *http.Response {
	resp := &http.Response{
		Status:     strconv.Itoa(x.status) + " " + http.StatusText(x.status),
		StatusCode: x.status,
		Proto:      "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        x.frozen,
		Body:          http.NoBody,
		ContentLength: x.declared,
	}
	switch {
	case x.head:
	case !bodyAllowed(x.status):
		resp.ContentLength = max(0, x.declared)
	case x.declared < 0:
		resp.TransferEncoding = []string{"chunked"}
	}
	return resp
}

// settle makes resp or err the answer, unless there is one.
func (x *exchange) settle(resp *http.Response, err error, pipe *io.PipeWriter) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.resp != nil || x.err != nil {
		return false
	}
	x.resp, x.err, x.pipe = resp, err, pipe
	close(x.ready)
	return true
}

// breakOff ends the exchange where it stands, with err at the client.
func (x *exchange) breakOff(err error) {
	if !x.settle(nil, err, nil) && x.pipe != nil {
		x.pipe.CloseWithError(err)
	}
	x.end()
	x.body.Close()
}

// Header implements [http.ResponseWriter].
func (x *exchange) Header() http.Header { return x.header }

// WriteHeader implements [http.ResponseWriter].
func (x *exchange) WriteHeader(status int) {
	switch {
	case status < 100 || status > 999:
		panic(fmt.Sprintf("invalid WriteHeader code %d", status)) //nolint:forbidigo // as net/http does: the handler is wrong
	case x.status != 0, status < 200 && status != http.StatusSwitchingProtocols:
		return
	}
	x.freeze(status, x.header.Clone())
}

func (x *exchange) freeze(status int, header http.Header) {
	x.status, x.frozen = status, header
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
	case x.life.Err() != nil:
		return 0, brokenPipe()
	case !bodyAllowed(x.status):
		return 0, http.ErrBodyNotAllowed
	case x.declared >= 0 && x.written+int64(len(p)) > x.declared:
		return 0, http.ErrContentLength
	}
	if x.written == 0 && !x.flushed && x.stream == nil {
		x.sniff(p)
	}
	x.written += int64(len(p))
	switch {
	case x.head:
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

// sniff tells the type of an answer that starts with p, if the handler did not.
func (x *exchange) sniff(p []byte) {
	if _, typed := x.frozen["Content-Type"]; !typed && x.frozen.Get("Content-Encoding") == "" {
		x.frozen.Set("Content-Type", http.DetectContentType(p))
	}
}

// FlushError implements what [http.ResponseController] looks for.
func (x *exchange) FlushError() error {
	if x.status == 0 {
		x.WriteHeader(http.StatusOK)
	}
	switch {
	case !x.head && bodyAllowed(x.status):
		return x.startStream()
	case !x.flushed:
		x.flushed = true
		x.settle(x.response(), nil, nil) //nolint:bodyclose // the client's to close
	}
	return nil
}

// Flush implements [http.Flusher].
func (x *exchange) Flush() { _ = x.FlushError() }

// startStream answers with what is in the buffer, to be followed by all that comes.
func (x *exchange) startStream() error {
	if x.stream != nil {
		return nil
	}
	pr, pw := io.Pipe()
	resp := x.response() //nolint:bodyclose // the client's to close
	resp.Body = &streamBody{pr: pr, x: x}
	if !x.settle(resp, nil, pw) {
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

// A requestBody is a client's body, as its server reads it.
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

// A wholeBody is the body of an answer whose handler is done.
type wholeBody struct {
	rest   *bytes.Reader
	end    error // what follows
	closed atomic.Bool
}

func (b *wholeBody) Read(p []byte) (int, error) {
	if b.closed.Load() {
		return 0, errClosedBody
	}
	if b.rest.Len() == 0 {
		return 0, b.end
	}
	return b.rest.Read(p)
}

func (b *wholeBody) Close() error {
	b.closed.Store(true)
	return nil
}

// A streamBody is the body of an answer whose handler may still be writing.
type streamBody struct {
	pr     *io.PipeReader
	x      *exchange
	stop   func() bool // forgets the client's context
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
	b.x.breakOff(errClosedBody)
	return b.pr.Close()
}

// An address is a host as a [net.Addr].
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

// crashError is the end of a connection whose handler crashed, with the reason for the reader of
// a test's output: nobody else would see it.
func crashError(end error, crash any) error {
	if err, ok := crash.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		return end
	}
	return fmt.Errorf("%w: the handler crashed: %v", end, crash)
}

func hostname(host string) string { return (&url.URL{Host: host}).Hostname() }

// discard closes the body of a request that goes no further.
func discard(req *http.Request) {
	if req.Body != nil {
		req.Body.Close()
	}
}
