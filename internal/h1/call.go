package h1

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
)

// ErrBodyTooLarge is wrapped by the error of a response whose body is larger than allowed.
var ErrBodyTooLarge = errors.New("the body of the response is too large")

// ErrReserve is wrapped by the error of a response whose body could not be reserved; see
// [Call.Reserving].
var ErrReserve = errors.New("the bodies of all responses are too large")

// A Call is a request without its target, the common part of the requests of a fan-out. It is
// checked and rendered once, and may be sent concurrently.
type Call struct {
	method  string
	fields  []byte // header fields as they are sent, except Host
	body    []byte
	maxBody int64
	reserve func(n int64) bool // nil: there is no further limit
	gzip    bool
	replay  bool
}

// NewCall returns a Call. body may be nil, and must not be changed while the Call is in use. A
// response with a body of more than maxBody bytes is an error. The size of a compressed body is its
// decompressed size.
func NewCall(method string, header http.Header, body []byte, maxBody int64) (*Call, error) {
	if method != "" && !isToken(method) {
		return nil, fmt.Errorf("invalid method %q", method)
	}
	if err := checkFields(header); err != nil {
		return nil, err
	}
	c := &Call{
		method: method, body: body, maxBody: maxBody,
		gzip: wantsGzip(method, header), replay: idempotent(method, header),
	}
	if c.method == "" {
		c.method = http.MethodGet
	}
	req := &http.Request{Method: c.method, URL: &url.URL{Path: "/"}, Host: "h", Header: header}
	if len(body) > 0 {
		req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	}
	m := &requestMessage{t: new(Transport), original: req}
	m.prepare(c.gzip)
	var buf bytes.Buffer
	if err := m.req.Write(&buf); err != nil {
		return nil, err
	}
	_, rest, _ := bytes.Cut(buf.Bytes(), []byte("\r\nHost: h\r\n"))
	fields, _, _ := bytes.Cut(rest, []byte("\r\n\r\n"))
	if len(fields) > 0 {
		c.fields = append(slices.Clip(slices.Clone(fields)), "\r\n"...)
	}
	return c, nil
}

// With returns a Call with added header fields, which replace fields with the same names. The
// fields must be valid (see [ValidField]), and their names must be in the canonical form.
func (c *Call) With(header http.Header) *Call {
	var fields bytes.Buffer
	fields.Grow(len(c.fields) + 128)
	for line := range bytes.Lines(c.fields) {
		name, _, _ := bytes.Cut(line, []byte(":"))
		if _, replaced := header[string(name)]; !replaced {
			fields.Write(line)
		}
	}
	_ = header.Write(&fields) // a buffer does not fail
	with := *c
	with.fields = fields.Bytes()
	return &with
}

// ValidField reports whether a header field may be sent.
func ValidField(name string, values []string) bool {
	return checkFields(http.Header{name: values}) == nil
}

// Reserving returns a copy of c that calls reserve for the bytes of each body, before or shortly
// after they are read. If reserve returns false, the error is ErrReserve. What was reserved for a
// body that is not read to its end is given back, with a negative number. reserve must be safe for
// concurrent use.
func (c *Call) Reserving(reserve func(n int64) bool) *Call {
	r := *c
	r.reserve = reserve
	return &r
}

// A Response describes the response to a request. Its fields are valid even if Do returns an error.
type Response struct {
	StatusCode int // 0 if there was no response
	Header     Header
	// Body is the whole body, decompressed if the transport asked for compression.
	Body []byte

	Reused bool // the connection had been used before
	Begun  bool // a part of a response arrived
}

// A Header is the header of a response. Fields parses it.
type Header struct {
	head   []byte
	parsed http.Header // used if head is nil
}

// ParsedHeader returns a Header with these fields.
func ParsedHeader(fields http.Header) Header { return Header{parsed: fields} }

// Fields returns the header in the form of net/http. Each call may parse it again.
func (h Header) Fields() http.Header {
	if h.head == nil {
		return h.parsed
	}
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(h.head)), nil)
	if err != nil { // impossible: parseHead accepts only what ReadResponse accepts
		return nil
	}
	resp.Body.Close()
	return resp.Header
}

// Do sends call and reads the response. host is the host of a URL, and uri an escaped path with its
// query. If an error occurs after the head of a response, Do also returns the status and the bytes
// of the body that arrived.
func (t *Transport) Do(ctx context.Context, call *Call, host, uri string) (Response, error) {
	address, err := t.addressOf(host)
	if err != nil {
		return Response{}, err
	}
	if err := checkURI(uri); err != nil {
		return Response{}, err
	}
	d := &struct {
		exchange
		callMessage
	}{
		exchange{
			t: t, ctx: ctx, trace: httptrace.ContextClientTrace(ctx),
			method: call.method, address: address, last: t.DisableKeepAlives,
		},
		callMessage{call, host, uri, t.DisableKeepAlives, nil},
	}
	d.msg, d.callMessage.trace = &d.callMessage, d.exchange.trace
	resp := Response{}
	if err = d.start(); err == nil {
		resp, err = d.readResponse(call)
	}
	resp.Reused, resp.Begun = d.reused, d.begun
	return resp, err
}

// maxClaimed is the Content-Length up to which a buffer is allocated before the body has arrived.
const maxClaimed = 1 << 20

// maxErrorBody bounds the bytes that are read of the body of a non-2xx response.
const maxErrorBody = 64 << 10

func checkURI(uri string) error {
	if !strings.HasPrefix(uri, "/") {
		return fmt.Errorf("path %q does not begin with a slash", uri)
	}
	for i := range len(uri) {
		if b := uri[i]; b <= ' ' || b == 0x7f {
			return fmt.Errorf("path %q has a space or a control character", uri)
		}
	}
	return nil
}

// A callMessage is a Call with its target.
type callMessage struct {
	call      *Call
	host, uri string
	last      bool
	trace     *httptrace.ClientTrace
}

func (m *callMessage) render(buf *bytes.Buffer) (bool, error) {
	if len(m.call.body) > maxInline {
		return false, nil
	}
	m.renderHead(buf)
	buf.Write(m.call.body)
	m.traceWritten(nil)
	return true, nil
}

func (m *callMessage) renderHead(buf *bytes.Buffer) {
	buf.WriteString(m.call.method)
	buf.WriteByte(' ')
	buf.WriteString(m.uri)
	buf.WriteString(" HTTP/1.1\r\nHost: ")
	buf.WriteString(withoutZone(m.host))
	buf.WriteString("\r\n")
	buf.Write(m.call.fields)
	if m.last {
		buf.WriteString("Connection: close\r\n")
	}
	buf.WriteString("\r\n")
}

// withoutZone removes the zone of an IPv6 address. A zone has a meaning on its own machine only.
func withoutZone(host string) string {
	zone, end := strings.IndexByte(host, '%'), strings.LastIndexByte(host, ']')
	if zone < 0 || end < zone {
		return host
	}
	return host[:zone] + host[end:]
}

func (m *callMessage) stream(c *conn) error {
	var head bytes.Buffer
	m.renderHead(&head)
	_, err := c.Write(head.Bytes())
	if err == nil {
		_, err = c.Write(m.call.body)
	}
	m.traceWritten(err)
	return err
}

// traceWritten calls the hooks that net/http calls when it writes a request.
func (m *callMessage) traceWritten(err error) {
	if m.trace == nil {
		return
	}
	if m.trace.WroteHeaders != nil {
		m.trace.WroteHeaders()
	}
	if m.trace.WroteRequest != nil {
		m.trace.WroteRequest(httptrace.WroteRequestInfo{Err: err})
	}
}

func (m *callMessage) rewind() error    { return nil }
func (m *callMessage) replayable() bool { return m.call.replay }
func (m *callMessage) abandon()         {}

// readResponse reads a response whose first byte has arrived.
func (x *exchange) readResponse(call *Call) (Response, error) {
	if buffered, _ := x.c.br.Peek(x.c.br.Buffered()); x.method != http.MethodHead {
		if h, ok := parseHead(buffered); ok && h.length <= min(maxClaimed, call.maxBody) {
			if call.reserve != nil && !call.reserve(h.length) {
				x.discard()
				return Response{StatusCode: h.status}, ErrReserve
			}
			resp, err := x.readSimple(h)
			if err != nil && call.reserve != nil {
				call.reserve(-h.length)
			}
			return resp, err
		}
	}
	httpResp, err := x.readHead(&http.Request{Method: x.method})
	if err != nil {
		x.discard()
		return Response{}, x.explain(err)
	}
	x.setBody(httpResp, call.gzip)
	defer httpResp.Body.Close()
	resp := Response{StatusCode: httpResp.StatusCode, Header: ParsedHeader(httpResp.Header)}
	limit := call.maxBody
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		limit = min(limit, maxErrorBody)
	}
	in := &reservingReader{src: httpResp.Body, reserve: call.reserve}
	if resp.Body, err = x.t.bodies.Read(in, limit); err != nil {
		in.giveBack()
	}
	return resp, err
}

// readSimple reads head and body in one piece.
func (x *exchange) readSimple(h head) (Response, error) {
	x.c.headLimit, x.c.idleTimeout = -1, h.idleTimeout
	data := make([]byte, h.size+int(h.length))
	n, err := io.ReadFull(x.c.br, data)
	resp := Response{StatusCode: h.status, Header: Header{head: data[:h.size:h.size]}, Body: data[h.size:max(h.size, n)]}
	if err != nil {
		x.discard()
		return resp, x.explain(err)
	}
	x.finish(true)
	return resp, nil
}

// A reservingReader reserves the bytes that it has read, if reserve is set.
type reservingReader struct {
	src      io.Reader
	reserve  func(n int64) bool
	reserved int64
}

func (r *reservingReader) Read(p []byte) (int, error) {
	n, err := r.src.Read(p)
	if r.reserve != nil && !r.reserve(int64(n)) {
		return 0, ErrReserve
	}
	r.reserved += int64(n)
	return n, err
}

func (r *reservingReader) giveBack() {
	if r.reserve != nil {
		r.reserve(-r.reserved)
	}
}
