package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster/internal/httpjson"
	"github.com/mimiktech/cluster/internal/wire"
)

// WithCorrelationID returns a context with a correlation id. All requests made under the context
// carry it, and all log lines written under it. The handlers of this package put the id of the
// incoming request, with its step increased by one, into the request's context. An id that is
// longer than 256 bytes or not printable ASCII is replaced by a new one.
func WithCorrelationID(ctx context.Context, id string) context.Context {
	if !wire.ValidCorrelationID(id) {
		id = wire.NewCorrelationID()
	}
	return httpjson.WithCorrelationID(ctx, id)
}

// CorrelationID returns the correlation id of ctx, or "" if it has none.
func CorrelationID(ctx context.Context) string {
	return httpjson.CorrelationID(ctx)
}

func ensureCorrelationID(ctx context.Context) context.Context {
	if CorrelationID(ctx) != "" {
		return ctx
	}
	return httpjson.WithCorrelationID(ctx, wire.NewCorrelationID())
}

func correlationField(ctx context.Context) zap.Field {
	return zap.String("correlationId", CorrelationID(ctx))
}

const (
	maxErrorBody    = 64 << 10 // of a non-2xx response; the rest is not read
	maxPreallocated = 1 << 20  // a larger Content-Length is not trusted with a buffer
)

// An httpClient sends all requests of a node. It limits the responses, turns failures into the
// error types of this package, and redacts the node's secrets in text received from a remote.
type httpClient struct {
	transports  transports
	userAgent   string
	timeout     time.Duration // of requests to the registry and the token service
	maxResponse int64         // bytes; below math.MaxInt64, because one byte more is read
	secrets     []string      // of this node; none is empty
	trace       *hooks
}

func newHTTPClient(cfg Config, hc *http.Client, policy PeerPolicy) *httpClient {
	h := &httpClient{
		transports:  newTransports(hc, policy, cfg.MaxInFlight),
		userAgent:   wire.UserAgent(cfg.Type, cfg.Version, cfg.ID),
		timeout:     cfg.RequestTimeout,
		maxResponse: min(cfg.MaxResponseBytes, math.MaxInt64-1),
		trace:       new(hooks),
	}
	for _, secret := range []Secret{cfg.ClientSecret, cfg.ClientAccessKey, cfg.GenericKey, cfg.GenericPreviousKey} {
		if secret != "" {
			h.secrets = append(h.secrets, string(secret))
		}
	}
	return h
}

// A remote is where a request goes: the registry, the token service, or the peer of that id.
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
	return fmt.Sprintf("%s %q", r.name, r.id)
}

// A response is what is used of an HTTP response; the zero response if there was none.
type response struct {
	status int
	header http.Header
	body   []byte // nil unless it is a 2xx response that was read
}

// do sends a request and returns the response. Without a 2xx response there is an error, too. The
// errors are *UnreachableError, *StatusError and *InvalidResponseError, and name the remote.
func (h *httpClient) do(rt http.RoundTripper, info RequestInfo, req *http.Request) (response, error) {
	req, end := h.trace.request(info, req)
	if end == nil {
		return h.exchange(rt, info.remote(), req)
	}
	start := time.Now()
	resp, err := h.exchange(rt, info.remote(), req)
	result := RequestResult{StatusCode: resp.status, Kind: classify(err), Err: err, Duration: time.Since(start)}
	if err != nil && errors.Is(req.Context().Err(), context.Canceled) {
		result.Kind = KindCanceled
	}
	end(result)
	return resp, err
}

func (h *httpClient) exchange(rt http.RoundTripper, to remote, req *http.Request) (response, error) {
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return response{}, &UnreachableError{to.String(), req.Method, withoutQuery(req.URL), err}
	}
	defer resp.Body.Close()
	r := response{status: resp.StatusCode, header: resp.Header}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return r, h.statusError(to, req, resp)
	}
	if r.body, err = readBounded(resp, h.maxResponse); err != nil {
		return r, &InvalidResponseError{to.String(), req.Method, withoutQuery(req.URL), err}
	}
	return r, nil
}

func readBounded(resp *http.Response, limit int64) ([]byte, error) {
	if resp.ContentLength > limit {
		return nil, fmt.Errorf("%w: %d bytes, %d allowed", ErrResponseTooLarge, resp.ContentLength, limit)
	}
	var (
		body []byte
		err  error
	)
	if resp.ContentLength < 0 || resp.ContentLength > maxPreallocated {
		body, err = io.ReadAll(io.LimitReader(resp.Body, limit+1))
	} else {
		body = make([]byte, resp.ContentLength)
		_, err = io.ReadFull(resp.Body, body)
	}
	if err != nil {
		return nil, fmt.Errorf("response truncated: %w", err)
	}
	if int64(len(body)) > limit {
		return nil, fmt.Errorf("%w: more than %d bytes", ErrResponseTooLarge, limit)
	}
	return body, nil
}

func (h *httpClient) statusError(from remote, req *http.Request, resp *http.Response) error {
	e := &StatusError{Remote: from.String(), Method: req.Method, URL: withoutQuery(req.URL), Code: resp.StatusCode}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody)) // a part of the body is no envelope
	var envelope wire.Error
	if json.Unmarshal(body, &envelope) == nil {
		bearer := bearerToken(req.Header)
		e.Message = h.redact(envelope.Message, bearer)
		if !h.containsSecret(envelope.Info, bearer) {
			e.Info = envelope.Info
		}
	}
	return e
}

// sendJSON sends a request to the registry or the token service. A nil body sends none; an empty
// bearer sends no token.
func (h *httpClient) sendJSON(ctx context.Context, info RequestInfo, method, address, bearer string, body any) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, h.timeout)
	defer cancel()
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encoding the request to %s: %w", info.remote(), err)
		}
		content = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, address, content)
	if err != nil {
		return nil, fmt.Errorf("request to %s: %w", info.remote(), err)
	}
	req.Header = h.header(ctx, bearer)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := h.do(h.transports.backend, info, req)
	return resp.body, err
}

// header returns what every request carries. All values share one array: this runs once per call.
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

// redact replaces this node's secrets, and the token that it sent, in text received from a remote.
func (h *httpClient) redact(text, bearer string) string {
	if bearer != "" {
		text = strings.ReplaceAll(text, bearer, redacted)
	}
	for _, secret := range h.secrets {
		text = strings.ReplaceAll(text, secret, redacted)
	}
	return text
}

// redactSecrets is redact for text that cannot contain a token.
func (h *httpClient) redactSecrets(text string) string { return h.redact(text, "") }

// containsSecret reports whether redact would change any name or value in raw. It decodes them
// first, because JSON can escape the same text in many ways.
func (h *httpClient) containsSecret(raw json.RawMessage, bearer string) bool {
	in := json.NewDecoder(bytes.NewReader(raw))
	in.UseNumber()
	for {
		token, err := in.Token()
		if err != nil {
			return false // the end: raw is valid JSON
		}
		if text := fmt.Sprint(token); h.redact(text, bearer) != text {
			return true
		}
	}
}

// bearerToken returns the token in a header, whatever its scheme.
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
	newConn http.RoundTripper // to peers, on a new connection for each request
	owned   []*http.Transport // those that close may close
}

// newTransports returns the transport of hc for everything, or new transports if hc is nil.
func newTransports(hc *http.Client, policy PeerPolicy, maxInFlight int) transports {
	if hc != nil {
		rt := hc.Transport
		if rt == nil {
			rt = http.DefaultTransport
		}
		return transports{backend: rt, peers: rt, newConn: rt}
	}
	backend := newTransport(net.Dialer{}, 4)
	backend.Proxy = http.ProxyFromEnvironment
	peers := newTransport(net.Dialer{Control: policy.dialControl}, max(2, maxInFlight/16))
	newConn := newTransport(net.Dialer{Control: policy.dialControl}, 0)
	newConn.DisableKeepAlives = true
	return transports{backend, peers, newConn, []*http.Transport{backend, peers, newConn}}
}

func newTransport(dialer net.Dialer, idlePerHost int) *http.Transport {
	dialer.Timeout, dialer.KeepAlive = 10*time.Second, 30*time.Second
	return &http.Transport{
		DialContext:         dialer.DialContext,
		MaxIdleConnsPerHost: idlePerHost, // the number of hosts is not limited
		IdleConnTimeout:     90 * time.Second,
		TLSHandshakeTimeout: 10 * time.Second,
		ForceAttemptHTTP2:   true, // DialContext is set, which turns it off
	}
}

func (t transports) close() {
	for _, owned := range t.owned {
		owned.CloseIdleConnections()
	}
}
