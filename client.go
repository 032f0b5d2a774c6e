package cluster

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/oauth2"

	"github.com/mimiktech/cluster/internal/cpulimit"
	"github.com/mimiktech/cluster/internal/h1"
	"github.com/mimiktech/cluster/internal/httpjson"
	"github.com/mimiktech/cluster/internal/https"
	"github.com/mimiktech/cluster/internal/redact"
	"github.com/mimiktech/cluster/internal/wire"
)

// WithCorrelationID returns a context with a correlation id. Requests that are made with the
// context carry the id, and so do their log lines. The handlers of this package put the id of the
// incoming request, {id}@{step}/{date}, with its step increased by one, into the request's context.
// An id that is longer than 256 bytes or not printable ASCII is replaced by a new one.
func WithCorrelationID(ctx context.Context, id string) context.Context {
	if !wire.ValidCorrelationID(id) {
		id = wire.NewCorrelationID()
	}
	return httpjson.WithCorrelationID(ctx, id)
}

// NewCorrelationID returns the correlation id {label}@0/{now}, for work that no request has
// started, such as the startup of a program. The label makes the id easy to find in the logs. It
// has 1 to 200 printable ASCII characters, except @ and /. Any other label is replaced by a UUID.
func NewCorrelationID(label string) string {
	if len(label) > maxLabelBytes || strings.ContainsAny(label, "@/") {
		label = ""
	}
	return wire.NextCorrelationID(label)
}

// CorrelationID returns the correlation id of ctx, or "" if it has none.
func CorrelationID(ctx context.Context) string {
	return httpjson.CorrelationID(ctx)
}

// maxLabelBytes leaves room for the step and the date.
const maxLabelBytes = 200

func ensureCorrelationID(ctx context.Context) context.Context {
	if CorrelationID(ctx) != "" {
		return ctx
	}
	return httpjson.WithCorrelationID(ctx, wire.NewCorrelationID())
}

// correlationField is the field of all lines that belong to a request. It also carries the context
// of the line, which only the core of [WithSlog] reads.
func correlationField(ctx context.Context) zap.Field {
	return zap.Field{Key: "correlationId", Type: zapcore.StringType, String: CorrelationID(ctx), Interface: ctx}
}

const (
	maxRetryAfter = time.Minute // that a response can ask for

	maxErrorBody    = 64 << 10 // of a non-2xx response; the rest is not read
	maxInfo         = 2 << 10  // of the info of an error response; a longer one is dropped
	maxResponseHead = 64 << 10
	maxPreallocated = 1 << 20 // a larger Content-Length is not trusted with a buffer
)

// An httpClient sends all requests of a node. It limits the responses, turns failures into the
// error types of this package, and redacts the node's secrets in text received from a remote.
type httpClient struct {
	transports  transports
	userAgent   string
	timeout     time.Duration   // of requests to the registry and the token service
	maxResponse int64           // bytes; below math.MaxInt64, because one byte more is read
	secrets     *credentials    // of this node
	issued      func() []string // its tokens; nil if there are none
	lastKnown   atomic.Pointer[knownSecrets]
	stalled     stallLog
	trace       *hooks
	connTraces  sync.Pool // of *connTrace
	bodies      h1.BodyReader
	long        *cpulimit.Limiter // for decoding and encoding
}

func newHTTPClient(cfg Config, o options, secrets *credentials) (*httpClient, error) {
	transports, err := newTransports(o, cfg.MaxInFlight)
	if err != nil {
		return nil, err
	}
	h := &httpClient{
		transports:  transports,
		userAgent:   wire.UserAgent(cfg.Type, cfg.Version, cfg.ID),
		timeout:     cfg.RequestTimeout,
		maxResponse: min(cfg.MaxResponseBytes, math.MaxInt64-1),
		secrets:     secrets,
		trace:       new(hooks),
		long:        cpulimit.New(),
	}
	return h, nil
}

// newSender returns the HTTP client of a node or a guest, and makes the logger in o redact its
// secrets.
func newSender(cfg Config, o *options) (*httpClient, error) {
	var client *httpClient
	text := func(text string) string { return client.text(text, "") }
	o.log = redact.Log(o.log, text).With(zap.String("serverId", cfg.ID))
	client, err := newHTTPClient(cfg, *o, newCredentials(cfg, o.log))
	if err != nil {
		return nil, err
	}
	client.trace = newHooks(o.traces, o.log, text)
	return client, nil
}

// A remote is where a request goes: the registry, the token service, or the peer with the id.
type remote struct{ name, id string }

func (i *RequestInfo) remote() remote {
	switch i.Target {
	case TargetRegistry:
		return remote{"mIT", ""}
	case TargetTokenService:
		return remote{"mST", ""}
	}
	return remote{"peer", i.Server.ServerID}
}

func (r remote) String() string {
	if r.id == "" {
		return r.name
	}
	return fmt.Sprintf("%s %q", r.name, excerpt(r.id))
}

// A response has the used parts of an HTTP response; the zero response if there was none.
type response struct {
	status int
	header h1.Header
	body   []byte // nil unless it is a 2xx response that was read
	reused bool   // the request was sent on a connection that had been in use before
}

// A byteBudget bounds the bodies of the responses to one call, all together.
type byteBudget struct {
	left  atomic.Int64
	taken atomic.Int64 // at any time, with those given back or refused
}

func newByteBudget(n int64) *byteBudget {
	b := new(byteBudget)
	b.left.Store(n)
	return b
}

// take takes n bytes, and reports whether they are left. A negative n returns bytes that are no
// longer needed. A nil byteBudget has no bound.
func (b *byteBudget) take(n int64) bool {
	if b == nil {
		return true
	}
	if n > 0 {
		b.taken.Add(n)
	}
	if b.left.Add(-n) >= 0 || n <= 0 {
		return true
	}
	b.left.Add(n)
	return false
}

// A requestForm has the common parts of requests that are sent to many peers. The zero value is for
// a single request.
type requestForm struct {
	direct *h1.Call    // for the direct transport; nil if no transport sends them in this form
	budget *byteBudget // of their responses
}

// do sends a request and returns the response. Without a 2xx response there is an error, too. The
// errors are *UnreachableError, *StatusError and *InvalidResponseError, and name the remote. The
// context is ctx, not the context of req. form belongs to the header and the body of req.
func (h *httpClient) do(ctx context.Context, rt http.RoundTripper, info RequestInfo, req *http.Request, form requestForm) (response, error) {
	ctx, end := h.trace.request(ctx, info, req)
	if h.trace.set().hasRequest {
		req, form.direct = addTraceHeader(req, form.direct, requestHeader(ctx))
	}
	start := time.Now()
	resp, err := h.exchange(ctx, rt, info.remote(), req, form)
	err = markLate(ctx, err)
	if end.isEmpty() {
		return resp, err
	}
	result := RequestResult{StatusCode: resp.status, Kind: classify(err), Err: err, Duration: time.Since(start)}
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		result.Kind = KindCanceled
	}
	end.call(result)
	return resp, err
}

// addTraceHeader returns a request with added header fields, in both of its forms. The request that
// it gets may be shared.
func addTraceHeader(req *http.Request, call *h1.Call, added http.Header) (*http.Request, *h1.Call) {
	if len(added) == 0 {
		return req, call
	}
	extended := *req
	extended.Header = req.Header.Clone()
	maps.Copy(extended.Header, added)
	if call != nil {
		call = call.With(added)
	}
	return &extended, call
}

// directCall prepares requests to peers that have a header and a body in common. It returns nil if
// no transport sends them in this form.
func (h *httpClient) directCall(method string, header http.Header, body []byte) *h1.Call {
	if len(h.transports.direct) == 0 || h.transports.foreign {
		return nil
	}
	call, err := h1.NewCall(method, header, body, h.maxResponse)
	if err != nil {
		return nil // each request fails for the same reason
	}
	return call
}

// newForm returns the form of requests whose responses share a budget. direct may be nil.
func newForm(direct *h1.Call, budget *byteBudget) requestForm {
	if direct != nil {
		direct = direct.Reserving(budget.take)
	}
	return requestForm{direct, budget}
}

func (h *httpClient) exchange(ctx context.Context, rt http.RoundTripper, to remote, req *http.Request, form requestForm) (r response, err error) {
	if direct, ok := rt.(*directTransport); ok && form.direct != nil && direct.sendsTo(req.URL) {
		return h.exchangeDirect(ctx, direct.http, to, req, form.direct)
	}
	conn := h.connTrace()
	sent := req.WithContext(httptrace.WithClientTrace(ctx, &conn.ClientTrace)) // a copy
	if sent.Body == nil && sent.GetBody != nil {
		sent.Body, _ = sent.GetBody() // never fails
	}
	resp, err := h.roundTrip(rt, sent)
	if err != nil {
		state := conn.state()
		return response{reused: state.reused}, h.requestError(to, req, state, err)
	}
	defer closeBody(resp, &err)
	r = response{status: resp.StatusCode, header: h1.ParsedHeader(resp.Header), reused: conn.reused.Load()}
	h.recycle(conn)
	if !is2xx(resp.StatusCode) {
		var body []byte
		if resp.StatusCode >= 200 { // the body of a 101 is the connection, which no context ends
			body, _ = readErrorBody(resp) // a truncated one is not decoded
		}
		return r, h.statusError(to, req, r, body)
	}
	if req.Method == http.MethodHead { // its Content-Length is that of another response
		return r, nil
	}
	if r.body, err = h.readBounded(resp, form.budget); err != nil {
		return r, h.invalidResponse(to, req, err)
	}
	return r, nil
}

// exchangeDirect sends call to the URL of req.
func (h *httpClient) exchangeDirect(ctx context.Context, t *h1.Transport, to remote, req *http.Request, call *h1.Call) (response, error) {
	resp, err := t.Do(ctx, call, req.URL.Host, req.URL.RequestURI())
	r := response{status: resp.StatusCode, header: resp.Header, reused: resp.Reused}
	switch {
	case resp.StatusCode == 0:
		return r, h.requestError(to, req, connState{resp.Reused, resp.Begun}, err)
	case !is2xx(resp.StatusCode):
		return r, h.statusError(to, req, r, resp.Body[:min(len(resp.Body), maxErrorBody)])
	case errors.Is(err, h1.ErrBodyTooLarge):
		err = fmt.Errorf("%w: more than %d bytes", ErrResponseTooLarge, h.maxResponse)
	case errors.Is(err, h1.ErrReserve):
		err = errCallTooLarge
	case err != nil:
		err = fmt.Errorf("response truncated: %w", err)
	default:
		r.body = resp.Body
		return r, nil
	}
	return r, h.invalidResponse(to, req, err)
}

// closeBody closes the body of a response, which a RoundTripper of the program may have made.
func closeBody(resp *http.Response, err *error) {
	defer catchPanic("Body of a Response", err)
	_ = resp.Body.Close()
}

func is2xx(status int) bool { return status >= 200 && status <= 299 }

// roundTrip corrects violations of the contract by a RoundTripper of the program.
func (h *httpClient) roundTrip(rt http.RoundTripper, req *http.Request) (resp *http.Response, err error) {
	defer catchPanic("RoundTripper", &err)
	if h.transports.foreign {
		req.Header = req.Header.Clone() // rt might change it, and the requests of a call share it
	}
	resp, err = rt.RoundTrip(req)
	switch {
	case err != nil:
		return nil, err
	case resp == nil:
		return nil, errNoResponse
	case resp.Body == nil:
		resp.Body = http.NoBody
	}
	return resp, nil
}

// requestError returns the error of a request that has no response. A response that begins, and
// does not get as far as its body, is an invalid one: the remote is alive.
func (h *httpClient) requestError(to remote, req *http.Request, conn connState, err error) error {
	if errors.Is(err, h1.ErrSwitchingProtocols) {
		return &StatusError{Remote: to.String(), Method: req.Method, URL: withoutQuery(req.URL), Code: http.StatusSwitchingProtocols}
	}
	if conn.answered || isMalformedHTTP2(err) {
		return h.invalidResponse(to, req, err)
	}
	return &UnreachableError{to.String(), req.Method, withoutQuery(req.URL), h.remoteError(req, err), conn.reused}
}

func (h *httpClient) invalidResponse(to remote, req *http.Request, err error) error {
	return &InvalidResponseError{to.String(), req.Method, withoutQuery(req.URL), h.remoteError(req, err)}
}

// remoteError returns err with a text that may be logged. net/http quotes the bytes that it cannot
// parse.
func (h *httpClient) remoteError(req *http.Request, err error) error {
	text := err.Error()
	if quoted := h.quote(text, sentSecret(req)); quoted != text {
		return redact.NewError(quoted, err)
	}
	return err
}

// A connState describes the connection of a request.
type connState struct {
	reused   bool // it had been in use before
	answered bool // a response has begun
}

// A connTrace records what a transport reports about the connection of one request. net/http may
// still report when the request has ended.
type connTrace struct {
	httptrace.ClientTrace
	reused   atomic.Bool // the request was sent on a connection that had been in use before
	answered atomic.Bool // a response has begun
}

func (t *connTrace) state() connState { return connState{t.reused.Load(), t.answered.Load()} }

// connTrace returns a connTrace for one request.
func (h *httpClient) connTrace() *connTrace {
	if t, _ := h.connTraces.Get().(*connTrace); t != nil {
		return t
	}
	t := new(connTrace)
	t.GotConn = func(info httptrace.GotConnInfo) { t.reused.Store(info.Reused) }
	t.GotFirstResponseByte = func() { t.answered.Store(true) }
	return t
}

// recycle keeps the connTrace of a request that has a response: net/http reports nothing more to
// it. Another transport may.
func (h *httpClient) recycle(t *connTrace) {
	if h.transports.foreign {
		return
	}
	t.reused.Store(false)
	t.answered.Store(false)
	h.connTraces.Put(t)
}

func (h *httpClient) readBounded(resp *http.Response, budget *byteBudget) (body []byte, err error) {
	defer catchPanic("Body of a Response", &err)
	limit := h.maxResponse
	if resp.ContentLength > limit {
		return nil, fmt.Errorf("%w: %d bytes, %d allowed", ErrResponseTooLarge, resp.ContentLength, limit)
	}
	if resp.ContentLength <= 0 || resp.ContentLength > maxPreallocated { // 0 may mean: not set
		in := &budgetReader{src: resp.Body, budget: budget}
		if body, err = h.bodies.Read(in, limit); err != nil {
			budget.take(-in.taken)
		}
	} else {
		if !budget.take(resp.ContentLength) {
			return nil, errCallTooLarge
		}
		body = make([]byte, resp.ContentLength)
		if _, err = io.ReadFull(resp.Body, body); err != nil {
			budget.take(-resp.ContentLength)
		}
	}
	switch {
	case err == nil:
		return body, nil
	case errors.Is(err, ErrResponseTooLarge):
		return nil, err
	case errors.Is(err, h1.ErrBodyTooLarge):
		return nil, fmt.Errorf("%w: more than %d bytes", ErrResponseTooLarge, limit)
	}
	return nil, fmt.Errorf("response truncated: %w", err)
}

var errCallTooLarge = fmt.Errorf("%w: all responses to the call together exceed Config.MaxCallBytes", ErrResponseTooLarge)

// A budgetReader takes what it has read from a budget.
type budgetReader struct {
	src    io.Reader
	budget *byteBudget
	taken  int64
}

func (r *budgetReader) Read(p []byte) (int, error) {
	n, err := r.src.Read(p)
	if !r.budget.take(int64(n)) {
		return 0, errCallTooLarge
	}
	r.taken += int64(n)
	return n, err
}

func (h *httpClient) statusError(from remote, req *http.Request, r response, body []byte) error {
	e := &StatusError{Remote: from.String(), Method: req.Method, URL: withoutQuery(req.URL), Code: r.status}
	e.RetryAfter = parseRetryAfter(r.header.Fields())
	var envelope wire.Error
	if json.Unmarshal(body, &envelope) == nil {
		sent := sentSecret(req)
		e.Message = h.quote(cmp.Or(envelope.Message, oauthError(body)), sent)
		e.Info = h.info(envelope.Info, sent)
	}
	return e
}

// oauthError returns the text of an error response of OAuth (RFC 6749, section 5.2), or "".
func oauthError(body []byte) string {
	var e struct {
		Code        string `json:"error"`
		Description string `json:"error_description"`
	}
	if json.Unmarshal(body, &e) != nil || e.Code == "" {
		return ""
	}
	return strings.TrimSuffix(e.Code+": "+e.Description, ": ")
}

// sentSecret returns the token that a request carries: the one in its header, or else the refresh
// token in its body. Text that repeats it is redacted before it is cut, which could leave a part of
// it.
func sentSecret(req *http.Request) string {
	if bearer := bearerToken(req.Header); bearer != "" || req.GetBody == nil {
		return bearer
	}
	var sent struct {
		RefreshToken string `json:"refresh_token"`
	}
	if body, err := req.GetBody(); err == nil {
		_ = json.NewDecoder(body).Decode(&sent) // or the body has none
	}
	return sent.RefreshToken
}

// tokenPause returns how long the token service asks not to be called; 0 if it does not.
func tokenPause(err error) time.Duration {
	var code int
	var retryAfter time.Duration
	if se, ok := errors.AsType[*StatusError](err); ok {
		code, retryAfter = se.Code, se.RetryAfter
	} else if re, ok := errors.AsType[*oauth2.RetrieveError](err); ok && re.Response != nil {
		code, retryAfter = re.Response.StatusCode, parseRetryAfter(re.Response.Header)
	}
	if code != http.StatusTooManyRequests && code != http.StatusServiceUnavailable {
		return 0
	}
	return retryAfter
}

// parseRetryAfter returns the delay in a Retry-After header; 0 if there is none. If it is a date,
// the delay is counted from the response's own date, because the clocks may differ.
func parseRetryAfter(header http.Header) time.Duration {
	text := header.Get("Retry-After")
	if seconds, err := strconv.ParseUint(text, 10, 32); err == nil {
		return min(time.Duration(seconds)*time.Second, maxRetryAfter)
	}
	end, err := http.ParseTime(text)
	start, startErr := http.ParseTime(header.Get("Date"))
	if err != nil || startErr != nil {
		return 0
	}
	return min(max(0, end.Sub(start)), maxRetryAfter)
}

func readErrorBody(resp *http.Response) (body []byte, err error) {
	defer catchPanic("Body of a Response", &err)
	return io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
}

// maxReusedTries bounds how often a request to the registry or the token service is sent, if its
// connections had been used before and are lost.
const maxReusedTries = 3

// A jsonRequest is a request to the registry or the token service. Empty fields are not sent.
type jsonRequest struct {
	method, address, bearer string
	renewalOf, serverID     string
	body                    any
}

// sendJSON sends a request to the registry or the token service. With an error it returns the part
// of the response that arrived.
//
// If the lost connection had been used before, the remote may have closed it as idle just when the
// request was sent. The request is then repeated, which is safe: a registration, a delete and a
// token request may each be executed twice.
func (h *httpClient) sendJSON(ctx context.Context, info RequestInfo, r jsonRequest) (response, error) {
	ctx, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	var content []byte
	if r.body != nil {
		var err error
		if content, err = json.Marshal(r.body); err != nil {
			return response{}, fmt.Errorf("encoding the request to %s: %w", info.remote(), err)
		}
	}
	rt := h.transports.backend
	for try := 1; ; try++ {
		req, err := http.NewRequestWithContext(ctx, r.method, r.address, bytes.NewReader(content))
		if err != nil {
			return response{}, fmt.Errorf("request to %s: %w", info.remote(), err)
		}
		if h.stalled.contains(req.URL.Host, time.Now()) {
			rt = h.transports.backendNewConn
		}
		req.Header = h.header(ctx, r.bearer)
		if r.body != nil {
			req.Header.Set("Content-Type", "application/json")
		}
		if r.renewalOf != "" {
			req.Header.Set(wire.RenewalOfHeader, r.renewalOf)
		}
		if r.serverID != "" {
			req.Header.Set(wire.ServerIDHeader, r.serverID)
		}
		resp, err := h.do(ctx, rt, info, req, requestForm{})
		switch {
		case err == nil || !resp.reused || !unreachable(err):
			return resp, err
		case timedOut(err) || ctx.Err() != nil:
			h.stalled.add(req.URL.Host, time.Now())
			return resp, err
		case try == maxReusedTries:
			return resp, err
		}
		rt = h.transports.backendNewConn
	}
}

// header returns the header fields of every request. All values share one array: this runs once per
// call.
func (h *httpClient) header(ctx context.Context, bearer string) http.Header {
	values := [...]string{h.userAgent, "application/json", CorrelationID(ctx), "Bearer " + bearer}
	header := http.Header{
		"User-Agent":           values[0:1:1],
		"Accept":               values[1:2:2],
		wire.CorrelationHeader: values[2:3:3],
	}
	if bearer != "" {
		header["Authorization"] = values[3:]
	}
	return header
}

// text returns text received from a remote as it may be shown; see [redact.Secrets]. sent is a
// secret that the remote was sent.
func (h *httpClient) text(text, sent string) string { return h.known(sent).Text(text) }

// quote is text for a part of an error.
func (h *httpClient) quote(text, sent string) string { return h.known(sent).Quote(text) }

// A knownSecrets has the secrets that were looked up last, because many errors may come at once.
type knownSecrets struct {
	list    []string
	secrets func() redact.Secrets
	long    func() redact.Secrets // those that cannot be a part of a name by chance
}

// minLongSecret is the length of the shortest secret that counts as long.
const minLongSecret = 16

// known returns the secrets of this node, its tokens, and sent.
func (h *httpClient) known(sent string) redact.Secrets {
	if h == nil { // the node is being made
		return redact.Secrets{}
	}
	return h.lookUp(sent).secrets()
}

func (h *httpClient) lookUp(sent string) *knownSecrets {
	list := append(h.secrets.values(), sent)
	if h.issued != nil {
		list = append(list, h.issued()...)
	}
	last := h.lastKnown.Load()
	if last == nil || !slices.Equal(last.list, list) {
		long := slices.DeleteFunc(slices.Clone(list), func(s string) bool { return len(s) < minLongSecret })
		last = &knownSecrets{
			list:    list,
			secrets: sync.OnceValue(func() redact.Secrets { return redact.NewSecrets(list...) }),
			long:    sync.OnceValue(func() redact.Secrets { return redact.NewSecrets(long...) }),
		}
		h.lastKnown.Store(last)
	}
	return last
}

// dropSecrets removes the servers whose entry repeats a secret from a resource, because its JSON is
// passed on as it was received. It also removes the other fields of the resource that do. Its id,
// and the entry of the server with the id own, must not repeat a secret. Tokens of others may be in
// entries.
func (h *httpClient) dropSecrets(it *wire.ItResource, own string) error {
	secrets := h.lookUp("").long()
	repeats := func(s wire.Server) bool {
		text := string(s.Raw)
		if text == "" || strings.Contains(text, `\`) { // otherwise both are in it as they are
			text += " " + s.ServerID + " " + s.ClusterBaseURL
		}
		return secrets.Has(text)
	}
	if secrets.Has(it.ID) || slices.ContainsFunc(it.Servers, func(s wire.Server) bool { return s.ServerID == own && repeats(s) }) {
		return errRepeatsSecret
	}
	for _, field := range []*string{&it.Type, &it.PublicBaseURL} {
		if secrets.Has(*field) {
			*field = ""
		}
	}
	maps.DeleteFunc(it.Extra, func(name string, value json.RawMessage) bool { return secrets.Has(name + " " + string(value)) })
	all := len(it.Servers)
	it.Servers = slices.DeleteFunc(it.Servers, repeats)
	if dropped := all - len(it.Servers); dropped > 0 {
		it.Skipped = errors.Join(it.Skipped, fmt.Errorf("%d of %d entries left out: %w", dropped, all, errRepeatsSecret))
	}
	return nil
}

var errRepeatsSecret = errors.New("it repeats a secret of this node")

// info returns the info of an error response; nil if it is too long, repeats a secret, or has
// characters that are not printable. It looks at the decoded names and values, too, because JSON
// can escape the same text in many ways.
func (h *httpClient) info(raw json.RawMessage, sent string) json.RawMessage {
	secrets := h.known(sent)
	if len(raw) > maxInfo || secrets.In(string(raw)) {
		return nil
	}
	in := json.NewDecoder(bytes.NewReader(raw))
	in.UseNumber()
	for {
		token, err := in.Token()
		if err != nil {
			return raw // the end: raw is valid JSON
		}
		text := fmt.Sprint(token)
		if secrets.In(text) || !redact.Printable(strings.NewReplacer("\n", "", "\t", "").Replace(text)) {
			return nil
		}
	}
}

// bearerToken returns the token in a header with any scheme.
func bearerToken(h http.Header) string {
	_, text, _ := strings.Cut(h.Get("Authorization"), " ")
	return strings.TrimSpace(text)
}

// withoutQuery formats a URL without the parts that may contain private data.
func withoutQuery(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String()
}

// transports are the ways that requests leave this node. They are round trippers instead of
// clients, because a client would follow redirects, with the node's token, to addresses that are
// not checked.
type transports struct {
	backend http.RoundTripper // to the registry and the token service
	peers   http.RoundTripper
	// These use a new connection for each request.
	backendNewConn, newConn http.RoundTripper

	owned   []*http.Transport  // those that close may close
	direct  []*directTransport // those of peers and newConn come first
	foreign bool               // round trippers are of types that the program defines
}

// newTransports returns the transport of WithHTTPClient for all requests, or new transports if
// there is none. The wrappers of WithTransport wrap them.
func newTransports(o options, maxInFlight int) (transports, error) {
	if o.client != nil {
		rt := o.client.Transport
		if rt == nil {
			rt = http.DefaultTransport
		}
		_, standard := rt.(*http.Transport)
		t, err := transports{backend: rt, peers: rt, backendNewConn: rt, newConn: rt, foreign: !standard}.wrap(o.wrap)
		return t.closing(), err
	}
	backend := newBackendTransport(o, 4)
	backendNewConn := newBackendTransport(o, 0)
	backendNewConn.disableKeepAlives()
	peers := newDirectTransport(o, max(2, maxInFlight/16))
	newConn := newDirectTransport(o, 0)
	newConn.disableKeepAlives()
	t := transports{
		backend: backend, peers: peers, backendNewConn: backendNewConn, newConn: newConn,
		owned:  []*http.Transport{backend.other, backendNewConn.other, peers.other, newConn.other},
		direct: []*directTransport{peers, newConn, backend, backendNewConn},
	}
	t, err := t.wrap(o.wrap)
	if t.foreign {
		t = t.closing()
	}
	return t, err
}

// closing returns t with Close set on each request for which it should use a new connection.
func (t transports) closing() transports {
	t.backendNewConn, t.newConn = closing{t.backendNewConn}, closing{t.newConn}
	return t
}

// closing sets Close on each request. A RoundTripper of the program thereby learns that the request
// is to be sent on a connection of its own.
type closing struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (c closing) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.WithContext(req.Context()) // a copy
	req.Close = true
	return c.next.RoundTrip(req)
}

func (t transports) wrap(wrappers []func(http.RoundTripper) http.RoundTripper) (transports, error) {
	for _, wrap := range wrappers {
		t.foreign = true
		for _, rt := range []*http.RoundTripper{&t.backend, &t.peers, &t.backendNewConn, &t.newConn} {
			if *rt = wrap(*rt); *rt == nil {
				return transports{}, errors.New("WithTransport has a function that returns nil")
			}
		}
	}
	return t, nil
}

// idleConnTimeout is the time for which an unused connection is kept.
const idleConnTimeout = 90 * time.Second

func newTransport(dialer net.Dialer, idlePerHost int) *http.Transport {
	return &http.Transport{
		DialContext:         dialContext(dialer),
		MaxIdleConnsPerHost: idlePerHost, // the number of hosts is not limited
		IdleConnTimeout:     idleConnTimeout,
		TLSHandshakeTimeout: 10 * time.Second,

		MaxResponseHeaderBytes: maxResponseHead,
		ForceAttemptHTTP2:      true, // DialContext is set, which turns it off
		// All requests to a host share one connection of HTTP/2. If a firewall drops it without a word,
		// only the missing response to a ping shows it.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 5 * time.Second},
	}
}

// A stallLog has the hosts to which a request timed out on a connection that had been in use. Such
// a connection may be dead, and the pool may hold more that are, until it closes them for being
// idle.
type stallLog struct{ until sync.Map } // by host: when the pool may be used again

func (l *stallLog) add(host string, now time.Time) {
	l.until.Range(func(host, until any) bool {
		if now.After(until.(time.Time)) {
			l.until.Delete(host)
		}
		return true
	})
	l.until.Store(host, now.Add(idleConnTimeout))
}

func (l *stallLog) contains(host string, now time.Time) bool {
	until, ok := l.until.Load(host)
	return ok && now.Before(until.(time.Time))
}

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

func dialContext(dialer net.Dialer) dialFunc {
	dialer.Timeout, dialer.KeepAlive = 10*time.Second, 30*time.Second
	return dialer.DialContext
}

// closeIdle closes the idle connections to a peer that is no longer called at this base URL. Those
// of net/http, for HTTP/2, expire.
func (t transports) closeIdle(base *url.URL) {
	for _, d := range t.direct {
		d.http.CloseIdle(base.Host)
		d.https.HTTP1.CloseIdle(base.Host)
	}
}

func (t transports) close() {
	for _, owned := range t.owned {
		owned.CloseIdleConnections()
	}
	for _, d := range t.direct {
		d.http.Close()
		d.https.HTTP1.Close()
	}
}

// maxIdleConns bounds the idle connections to all peers. Each takes a descriptor and 1 kB.
const maxIdleConns = 16 << 10

// A directTransport sends requests. net/http sends those over HTTP/2 and through a proxy. Package
// h1 sends all others, over HTTP/1.1. They cost half of what they cost with net/http, which also
// prints an unsolicited response, with all secrets in it, to the standard logger.
type directTransport struct {
	http  *h1.Transport
	https *https.Transport
	other *http.Transport
}

// newBackendTransport returns a transport to the registry and the token service, which may be
// behind a proxy.
func newBackendTransport(o options, idlePerHost int) *directTransport {
	t := makeDirectTransport(net.Dialer{}, o.backendTLS, idlePerHost)
	t.other.Proxy = http.ProxyFromEnvironment
	t.http.MaxIdlePerHost = max(1, idlePerHost)
	return t
}

func newDirectTransport(o options, idlePerHost int) *directTransport {
	return makeDirectTransport(net.Dialer{Control: o.policy.dialControl}, o.peerTLS, idlePerHost)
}

func makeDirectTransport(dialer net.Dialer, cfg *tls.Config, idlePerHost int) *directTransport {
	other := newTransport(dialer, idlePerHost)
	other.TLSClientConfig = cfg.Clone() // net/http changes it
	t := &directTransport{
		http:  &h1.Transport{Dial: dialContext(dialer), MaxIdlePerHost: idlePerHost, MaxIdle: maxIdleConns},
		https: https.New(other, dialContext(dialer), cfg),
		other: other,
	}
	t.https.HTTP1.MaxIdlePerHost, t.https.HTTP1.MaxIdle = idlePerHost, maxIdleConns
	return t
}

func (t *directTransport) disableKeepAlives() {
	t.http.DisableKeepAlives, t.https.HTTP1.DisableKeepAlives, t.other.DisableKeepAlives = true, true, true
}

// RoundTrip implements http.RoundTripper.
func (t *directTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	switch {
	case t.hasProxy(req) || !isASCII(req.URL.Host): // net/http encodes such a host name
		return t.other.RoundTrip(req)
	case t.sendsTo(req.URL):
		return t.http.RoundTrip(req)
	case req.URL.Scheme == "https":
		return t.https.RoundTrip(req)
	}
	return t.other.RoundTrip(req)
}

// hasProxy reports whether req is sent to a proxy, or cannot be sent because its URL is invalid.
func (t *directTransport) hasProxy(req *http.Request) bool {
	if t.other.Proxy == nil {
		return false
	}
	proxy, err := t.other.Proxy(req)
	return proxy != nil || err != nil
}

// sendsTo reports whether requests to u are sent with plain HTTP/1.1, unless there is a proxy.
func (t *directTransport) sendsTo(u *url.URL) bool { return u.Scheme == "http" && isASCII(u.Host) }

func isASCII(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return r > unicode.MaxASCII })
}
