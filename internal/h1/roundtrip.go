package h1

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
)

// RoundTrip sends one request and returns the response, whose body must be read to its end or
// closed. It implements [http.RoundTripper].
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	m := &requestMessage{t: t, original: req, body: req.Body}
	address, err := t.checkRequest(req)
	if err != nil {
		m.abandon()
		return nil, err
	}
	ctx := req.Context()
	gzipped := wantsGzip(req.Method, req.Header)
	m.prepare(gzipped)
	x := &exchange{
		t: t, ctx: ctx, trace: httptrace.ContextClientTrace(ctx), msg: m,
		method: req.Method, address: address, last: req.Close || t.DisableKeepAlives,
	}
	if err := x.start(); err != nil {
		m.abandon()
		return nil, err
	}
	resp, err := x.readHead(req)
	if err != nil {
		x.discard()
		return nil, x.explain(err)
	}
	if tc, ok := x.c.nc.(*tls.Conn); ok {
		resp.TLS = new(tc.ConnectionState())
	}
	x.setBody(resp, gzipped)
	return resp, nil
}

// setBody makes resp.Body end the exchange when it is read to its end or closed.
func (x *exchange) setBody(resp *http.Response, gzipped bool) {
	x.c.idleTimeout = keepAlive(resp.Header.Get("Keep-Alive"))
	if x.method == http.MethodHead || resp.ContentLength == 0 {
		x.finish(!resp.Close)
		return
	}
	b := &body{x: x, src: resp.Body, keep: !resp.Close}
	resp.Body = b
	if gzipped && strings.EqualFold(resp.Header.Get("Content-Encoding"), "gzip") {
		uncompressed(resp)
		resp.Body = &gzipBody{src: b}
	}
}

// uncompressed removes the header fields of resp that describe the compressed body.
func uncompressed(resp *http.Response) {
	resp.Header.Del("Content-Encoding")
	resp.Header.Del("Content-Length")
	resp.ContentLength, resp.Uncompressed = -1, true
}

// A body is the body of a response.
type body struct {
	x    *exchange
	src  io.Reader
	keep bool // the peer keeps the connection open

	mu      sync.Mutex
	reading bool  // a Read is in progress
	err     error // of all later reads
}

func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	if b.err != nil || b.reading {
		defer b.mu.Unlock()
		return 0, cmp.Or(b.err, errConcurrentRead)
	}
	b.reading = true
	b.mu.Unlock()

	n, err := b.src.Read(p)

	b.mu.Lock()
	defer b.mu.Unlock()
	b.reading = false
	switch {
	case b.err != nil: // closed during the Read
		b.x.discard()
	case err == io.EOF:
		b.err = io.EOF
		b.x.finish(b.keep)
	case err != nil:
		b.x.discard()
		b.err = b.x.explain(err)
	}
	return n, b.err
}

// Close closes the connection if the body has not been read to its end.
func (b *body) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.x.c.close()
		if !b.reading {
			b.x.discard()
		}
	}
	b.err = errClosedBody
	return nil
}

// A gzipBody decompresses a body.
type gzipBody struct {
	src *body
	zr  *gzip.Reader
	err error // of all later reads
}

func (b *gzipBody) Read(p []byte) (n int, err error) {
	if b.err != nil {
		return 0, b.err
	}
	pool := &b.src.x.t.gunzips
	if b.zr == nil {
		b.zr, _ = pool.Get().(*gzip.Reader)
		if b.zr == nil {
			b.zr = new(gzip.Reader)
		}
		b.err = b.zr.Reset(b.src)
	}
	if b.err == nil {
		n, b.err = b.zr.Read(p)
	}
	if b.err != nil {
		pool.Put(b.zr)
	}
	return n, b.err
}

func (b *gzipBody) Close() error { return b.src.Close() }

var (
	errConcurrentRead = errors.New("concurrent reads of a response body")
	errClosedBody     = errors.New("read of a closed response body")
)

// A requestMessage is an [http.Request], which net/http renders.
type requestMessage struct {
	t        *Transport
	original *http.Request
	req      *http.Request // the copy that is written
	body     io.ReadCloser
	closed   atomic.Bool // body was closed
	readErr  error       // of the body; net/http may return another error
}

// prepare copies the request and adds the header fields of a transport.
func (m *requestMessage) prepare(gzipped bool) {
	req := *m.original
	m.req = &req
	if gzipped {
		req.Header = make(http.Header, len(m.original.Header)+1)
		maps.Copy(req.Header, m.original.Header)
		req.Header["Accept-Encoding"] = []string{"gzip"}
	}
	if m.t.DisableKeepAlives && !strings.EqualFold(req.Header.Get("Upgrade"), "websocket") {
		req.Close = true
	}
	m.setBody(req.Body)
}

func (m *requestMessage) setBody(rc io.ReadCloser) {
	m.body = rc
	m.closed.Store(false)
	if rc != nil && rc != http.NoBody {
		m.req.Body = m
	}
}

// Read and Close are the methods of the body that net/http gets. The first Close closes the body,
// and later ones do nothing.
func (m *requestMessage) Read(p []byte) (int, error) {
	n, err := m.body.Read(p)
	if err != nil && err != io.EOF {
		m.readErr = err
	}
	return n, err
}

func (m *requestMessage) Close() error {
	if m.body == nil || !m.closed.CompareAndSwap(false, true) {
		return nil
	}
	return m.body.Close()
}

func (m *requestMessage) abandon() { m.Close() }

func (m *requestMessage) hasBody() bool { return m.body != nil && m.body != http.NoBody }

func (m *requestMessage) render(buf *bytes.Buffer) (bool, error) {
	if m.hasBody() && (m.req.ContentLength <= 0 || m.req.ContentLength > maxInline || !inMemory(m.body)) {
		return false, nil
	}
	if err := m.req.Write(buf); err != nil {
		return false, &bodyError{err}
	}
	return true, nil
}

func (m *requestMessage) stream(c *conn) error {
	w := &failedWriter{c: c}
	bw := bufio.NewWriterSize(w, bufferSize)
	err := m.req.Write(bw)
	if err == nil {
		err = bw.Flush()
	}
	if err != nil && w.err == nil {
		return &bodyError{cmp.Or(m.readErr, err)}
	}
	return err
}

// A failedWriter stores the error of the connection, to tell it from an error of the body.
type failedWriter struct {
	c   *conn
	err error
}

func (w *failedWriter) Write(p []byte) (n int, err error) {
	n, w.err = w.c.Write(p)
	return n, w.err
}

func (m *requestMessage) rewind() error {
	if !m.hasBody() {
		return nil
	}
	if m.original.GetBody == nil {
		return errors.New("the body cannot be sent again")
	}
	rc, err := m.original.GetBody()
	if err == nil {
		m.Close()
		m.setBody(rc)
	}
	return err
}

func (m *requestMessage) replayable() bool {
	return (!m.hasBody() || m.original.GetBody != nil) && idempotent(m.original.Method, m.original.Header)
}

func idempotent(method string, header http.Header) bool {
	switch cmp.Or(method, http.MethodGet) {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	_, key := header["Idempotency-Key"]
	_, xkey := header["X-Idempotency-Key"]
	return key || xkey
}

// inMemory reports whether body can be read without waiting.
func inMemory(body io.Reader) bool {
	switch reflect.TypeOf(body) {
	case reflect.TypeOf(io.NopCloser(nil)), reflect.TypeOf(io.NopCloser((*bytes.Reader)(nil))):
		body, _ = reflect.ValueOf(body).Field(0).Interface().(io.Reader)
	}
	switch body.(type) {
	case *bytes.Reader, *bytes.Buffer, *strings.Reader:
		return true
	}
	return false
}

// checkRequest returns the address to dial, or an error if the request cannot be sent.
func (t *Transport) checkRequest(req *http.Request) (address string, err error) {
	switch {
	case req.URL == nil:
		return "", errors.New("a request without a URL")
	case req.Header == nil:
		return "", errors.New("a request without a header")
	case req.URL.Scheme != t.scheme():
		return "", fmt.Errorf("unsupported protocol scheme %q", req.URL.Scheme)
	case req.Method != "" && !isToken(req.Method):
		return "", fmt.Errorf("invalid method %q", req.Method)
	}
	if err := checkFields(req.Header); err != nil {
		return "", err
	}
	if err := checkFields(req.Trailer); err != nil {
		return "", err
	}
	return t.addressOf(req.URL.Host)
}

func (t *Transport) scheme() string {
	if t.Secure {
		return "https"
	}
	return "http"
}

// addressOf returns the address to dial for the host of a URL. If host has no port, it is that of
// the scheme.
func (t *Transport) addressOf(host string) (string, error) {
	if host == "" {
		return "", errors.New("a URL without a host")
	}
	for i := range len(host) {
		if b := host[i]; b <= ' ' || b >= 0x7f {
			return "", fmt.Errorf("host %q: not printable ASCII", host)
		}
	}
	u := url.URL{Host: host}
	switch {
	case u.Port() != "":
		return host, nil
	case t.Secure:
		return net.JoinHostPort(u.Hostname(), "443"), nil
	default:
		return net.JoinHostPort(u.Hostname(), "80"), nil
	}
}

// checkFields returns an error, without the value of a field, if header cannot be sent.
func checkFields(header http.Header) error {
	for name, values := range header {
		if !isToken(name) {
			return fmt.Errorf("invalid header field name %q", name)
		}
		for _, value := range values {
			if !isFieldValue(value) {
				return fmt.Errorf("invalid value of header field %q", name)
			}
		}
	}
	return nil
}

func wantsGzip(method string, header http.Header) bool {
	return method != http.MethodHead && header.Get("Accept-Encoding") == "" && header.Get("Range") == ""
}

func isToken[T string | []byte](s T) bool {
	for i := range len(s) {
		b := s[i]
		letter := 'a' <= b|0x20 && b|0x20 <= 'z'
		if !letter && b != '-' && (b < '0' || b > '9') && strings.IndexByte("!#$%&'*+.^_`|~", b) < 0 {
			return false
		}
	}
	return len(s) > 0
}

func isFieldValue[T string | []byte](s T) bool {
	for i := range len(s) {
		if b := s[i]; b < ' ' && b != '\t' || b == 0x7f {
			return false
		}
	}
	return true
}
