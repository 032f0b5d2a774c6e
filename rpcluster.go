package cluster

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unsafe"

	"github.com/mimiktech/cluster/internal/h1"
	"github.com/mimiktech/cluster/internal/membership"
	"github.com/mimiktech/cluster/internal/redact"
	"github.com/mimiktech/cluster/internal/token"
	"github.com/mimiktech/cluster/internal/wire"
)

// RPCluster sends req to every peer in the view, or to the peers that req selects. It waits for all
// of them, or until it has Request.MinResults results. The node does not call itself. A node
// without peers gets an empty Response.
//
// If a peer fails, or ctx ends before it answers, its [Outcome] has the error. RPCluster itself
// returns an error only if it calls no peer for one of these reasons:
//
//   - [ErrInvalidRequest]: the request is invalid.
//   - [ErrManagementOff]: management is off.
//   - [ErrClosed]: the node is closed.
//   - [ErrNotRegistered]: the node has never registered, and no peer has announced itself.
//
// A peer that cannot be reached may be evicted; see [Eviction].
func (c *Cluster) RPCluster(ctx context.Context, req Request) (*Response, error) {
	call, view, err := c.prepare(req)
	if err != nil {
		return nil, err
	}
	return c.peers.collect(ensureCorrelationID(ctx), call, view), nil
}

// Stream sends req like RPCluster, and yields each outcome as it arrives. Peers that cannot be
// reached come last, after eviction has been decided. Breaking out of the loop cancels the
// requests in flight. Where RPCluster would return an error, Stream yields one Outcome with that
// error, the kind [KindInvalid] and no server.
func (c *Cluster) Stream(ctx context.Context, req Request) iter.Seq[Outcome] {
	return c.peers.stream(ctx, func() (*preparedRequest, membership.View, error) { return c.prepare(req) })
}

// A Request is a request to be sent to peers.
type Request struct {
	// Name names the request for hooks ([CallInfo].Name), such as "list-things". It may become a
	// metric label, so use few different names. It is not sent.
	Name string
	// Method is GET by default. It is sent in upper case.
	Method string
	// Path is appended to the base URL of each peer. It begins with "/", may have a query, and must
	// not have "." or ".." segments.
	Path string
	// Query is added to the query of Path.
	Query url.Values
	// Header is sent with the request, except for Authorization, User-Agent, the correlation id,
	// hop-by-hop headers, and those about the encoding of a body. So the header of an incoming
	// request may be passed on.
	Header http.Header
	// Body is encoded as JSON; a json.RawMessage or []byte is sent as it is. An io.Reader is
	// read to its end before the first request is sent, and must not have more than
	// Config.MaxRequestBytes. Nil sends no body. If a method of Body panics, such as
	// MarshalJSON or Read, the call fails with [ErrInvalidRequest].
	Body any
	// Timeout bounds each attempt; Config.RequestTimeout by default. A peer that misses a
	// timeout shorter than Config.RequestTimeout is not a suspect for eviction.
	Timeout time.Duration
	// Customer is the customer that the token is requested for; none by default.
	Customer string
	// Retry replaces the policy of [WithRetry] for this request.
	Retry *Retry

	// Filter reports whether to call a peer; nil calls all. It is called for every peer before
	// the first request is sent, and must not change its argument. If it panics, so does the
	// call. A node with three or more peers evicts none in a call to only one or two of them.
	Filter func(Server) bool
	// MinResults is the quorum: the number of results after which the call ends. The requests to
	// the other peers are then canceled, and their outcomes have [ErrEnoughResults]. Such a call
	// evicts no peer. 0 waits for all peers.
	MinResults int
	// HedgeAfter is the delay after which a GET or HEAD without a response is sent a second
	// time. With HTTP/1 this takes another connection. The first response counts, and the other
	// request is canceled. Choose a delay within which nearly all responses arrive, because
	// each hedged request costs a connection. Hedged requests count towards Config.MaxInFlight,
	// and are not sent when no slot is free. 0 sends none.
	HedgeAfter time.Duration
}

// An Outcome is the result of calling one peer.
type Outcome struct {
	Server Server
	// Body is the body of the response; nil if the peer failed.
	Body json.RawMessage
	// Data is the data in Body; nil if it has none.
	Data json.RawMessage
	// StatusCode is the status of the response to the last request, even if the peer failed.
	// Header returns the header of that response. StatusCode is zero if the last request got no
	// response, even if an earlier one did.
	StatusCode int
	// Unverified reports whether the result has no body: it is a response to a HEAD, or has the
	// status 204 or 205. Such a response does not name its server. So it may come from another
	// server at the peer's address.
	Unverified bool

	// Err is why the peer failed; nil if it did not. Kind classifies it.
	Err  error
	Kind Kind
	// Evicted reports whether a suspect is no longer in the view: the registry has deleted it,
	// or it was already gone (see [DecisionGone]).
	Evicted bool
	// EvictionSkipped is why a suspect was not evicted. It is nil for all other peers.
	EvictionSkipped error

	// Attempts is the number of requests sent, hedged ones included.
	Attempts int
	// Duration is the time from the start of the call to the outcome, so it includes the wait for a
	// slot within Config.MaxInFlight.
	Duration time.Duration

	header h1.Header
}

// Header returns the header of the response that StatusCode belongs to, as received; nil if there
// was none. Each call of Header may parse it again, so keep the result if you read it more than
// once. It must not be changed.
func (o Outcome) Header() http.Header { return o.header.Fields() }

// MarshalJSON encodes an outcome as the npm module's rpCluster does: {"result", "server"} or
// {"error", "server"}. It adds "kind", "attempts", "evicted" and "evictionSkipped" to the error,
// and "unverified" to a result without a body.
func (o Outcome) MarshalJSON() ([]byte, error) {
	if o.Err == nil {
		return json.Marshal(struct {
			Result     json.RawMessage `json:"result"`
			Unverified bool            `json:"unverified,omitempty"`
			Server     Server          `json:"server"`
		}{o.Body, o.Unverified, o.Server})
	}
	type failure struct {
		StatusCode      int             `json:"statusCode,omitempty"`
		Title           string          `json:"title,omitempty"`
		Message         string          `json:"message"`
		Info            json.RawMessage `json:"info,omitempty"`
		Kind            Kind            `json:"kind"`
		Attempts        int             `json:"attempts"`
		Evicted         bool            `json:"evicted"`
		EvictionSkipped string          `json:"evictionSkipped,omitempty"`
	}
	f := failure{Message: redact.Text(o.Err.Error()), Kind: o.Kind, Attempts: o.Attempts, Evicted: o.Evicted}
	if se, ok := errors.AsType[*StatusError](o.Err); ok {
		f.StatusCode, f.Title, f.Info = se.Code, http.StatusText(se.Code), se.Info
		f.Message = cmp.Or(se.Message, f.Message)
	}
	if o.EvictionSkipped != nil {
		f.EvictionSkipped = redact.Text(o.EvictionSkipped.Error())
	}
	return json.Marshal(struct {
		Error  failure `json:"error"`
		Server Server  `json:"server"`
	}{f, o.Server})
}

// A Response has the outcomes of a call. Each peer appears exactly once, in Results or in Failures,
// both sorted by server id. Its JSON has the form of the result of the npm module's rpCluster.
type Response struct {
	// Data is the data of all results, in the same order: the elements of each array, and any other
	// value as it is.
	Data     []json.RawMessage `json:"data"`
	Results  []Outcome         `json:"results"`
	Failures []Outcome         `json:"failures"`
}

// WriteTo writes the JSON of a response to w, such as an [http.ResponseWriter]. It needs little
// memory for that. The JSON is up to twice as long as Config.MaxCallBytes, and json.Marshal needs
// several times its length. Bodies are written as they were received, which may be with spaces.
func (r *Response) WriteTo(w io.Writer) (int64, error) {
	counted := &countingWriter{w: w}
	out := bufio.NewWriter(counted) // its Flush returns the first error
	_, _ = out.WriteString(`{"data":[`)
	for i, data := range r.Data {
		writeComma(out, i)
		_, _ = out.Write(data)
	}
	for i, outcomes := range [][]Outcome{r.Results, r.Failures} {
		_, _ = out.WriteString([]string{`],"results":[`, `],"failures":[`}[i])
		for i, o := range outcomes {
			writeComma(out, i)
			if err := o.writeTo(out); err != nil {
				return counted.n, err
			}
		}
	}
	_, _ = out.WriteString("]}")
	err := out.Flush()
	return counted.n, err
}

// Decode decodes the Data of a response into values of one type. If a value does not fit, the error
// has its index.
func Decode[T any](r *Response) ([]T, error) {
	if r == nil {
		return nil, nil
	}
	values := make([]T, len(r.Data))
	for i, data := range r.Data {
		if err := json.Unmarshal(data, &values[i]); err != nil {
			return nil, fmt.Errorf("cluster: element %d of the joint data: %w", i, err)
		}
	}
	return values, nil
}

// writeTo writes the JSON of an outcome. out keeps the error of writing.
func (o Outcome) writeTo(out *bufio.Writer) error {
	if o.Err != nil {
		encoded, err := json.Marshal(o)
		_, _ = out.Write(encoded)
		return err
	}
	server, err := o.Server.MarshalJSON()
	body, unverified := []byte(o.Body), ""
	if body == nil {
		body = []byte("null")
	}
	if o.Unverified {
		unverified = `,"unverified":true`
	}
	_, _ = out.WriteString(`{"result":`)
	_, _ = out.Write(body)
	_, _ = out.WriteString(unverified + `,"server":`)
	_, _ = out.Write(server)
	_ = out.WriteByte('}')
	return err
}

func writeComma(out *bufio.Writer, i int) {
	if i > 0 {
		_ = out.WriteByte(',')
	}
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// newResponse splits outcomes into results and failures, and keeps their order.
func newResponse(outcomes []Outcome) *Response {
	// None of the fields may be null in JSON.
	r := &Response{Data: []json.RawMessage{}, Results: outcomes, Failures: []Outcome{}}
	failures := 0
	for i := range outcomes {
		if outcomes[i].Err != nil {
			failures++
		}
	}
	if failures > 0 {
		r.Results, r.Failures = make([]Outcome, 0, len(outcomes)-failures), make([]Outcome, 0, failures)
		for _, o := range outcomes {
			if o.Err != nil {
				r.Failures = append(r.Failures, o)
			} else {
				r.Results = append(r.Results, o)
			}
		}
	}
	elements := 0
	for i := range r.Results {
		elements += countElements(r.Results[i].Data)
	}
	r.Data = slices.Grow(r.Data, elements)
	for i := range r.Results {
		r.Data = appendData(r.Data, r.Results[i].Data)
	}
	return r
}

// appendData appends the elements of data if it is an array, and otherwise data itself. data is
// valid JSON without space around it, or empty.
func appendData(all []json.RawMessage, data json.RawMessage) []json.RawMessage {
	if len(data) == 0 || data[0] != '[' {
		if len(data) > 0 {
			all = append(all, data)
		}
		return all
	}
	for _, element := range wire.Each(data) {
		all = append(all, element)
	}
	return all
}

// elementBytes is what an element of Response.Data needs, apart from its JSON.
const elementBytes = int64(unsafe.Sizeof(json.RawMessage{}))

// countElements returns how many elements appendData appends.
func countElements(data json.RawMessage) (n int) {
	if len(data) == 0 || data[0] != '[' {
		return min(len(data), 1)
	}
	for range wire.Each(data) {
		n++
	}
	return n
}

// A preparedRequest is a valid, encoded request, the same for all peers.
type preparedRequest struct {
	operation Operation
	name      string

	method string
	ref    *url.URL    // path and query, to be appended to the base URL of a peer
	header http.Header // of the caller; may be nil
	body   []byte
	key    token.Key

	timeout    time.Duration // zero for Config.RequestTimeout
	retry      *Retry
	filter     func(Server) bool
	minResults int
	hedgeAfter time.Duration
	noEviction bool
	discard    bool // of no use are the bodies of the responses
}

func (c *Cluster) prepare(req Request) (*preparedRequest, membership.View, error) {
	if err := context.Cause(c.ctx); err != nil {
		return nil, membership.View{}, err
	}
	if !c.cfg.Management {
		return nil, membership.View{}, ErrManagementOff
	}
	call, err := req.prepare(c.cfg.MaxRequestBytes)
	if err != nil {
		return nil, membership.View{}, err
	}
	view := c.state.view()
	if view.Len() == 0 {
		return nil, membership.View{}, ErrNotRegistered
	}
	return call, view, nil
}

// prepare validates and encodes a request. A body from an io.Reader has at most maxBytes.
func (req *Request) prepare(maxBytes int64) (*preparedRequest, error) {
	req.Method = strings.ToUpper(cmp.Or(req.Method, http.MethodGet))
	if err := req.validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidRequest, err)
	}
	ref, err := req.ref()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidRequest, err)
	}
	body, err := req.encode(maxBytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidRequest, err)
	}
	return &preparedRequest{
		operation: OperationFanOut, name: req.Name,
		method: req.Method, ref: ref, header: req.Header, body: body, key: token.Key{Customer: req.Customer},
		timeout: req.Timeout, retry: req.Retry, filter: req.Filter, minResults: req.MinResults, hedgeAfter: req.HedgeAfter,
	}, nil
}

// validate checks all fields except those that ref and encode check.
func (req *Request) validate() error {
	if !isToken(req.Method) {
		return fmt.Errorf("method %q is not a valid method", excerpt(req.Method))
	}
	if req.Method == http.MethodConnect {
		return errors.New("method CONNECT has no path, and no response")
	}
	for name, values := range req.Header {
		if !isToken(name) {
			return fmt.Errorf("header %q is not a valid header name", excerpt(name))
		}
		for _, v := range values {
			if strings.ContainsFunc(v, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
				return fmt.Errorf("header %q has a value with control characters", excerpt(name))
			}
		}
	}
	switch {
	case req.Timeout < 0:
		return fmt.Errorf("timeout %v is negative", req.Timeout)
	case req.MinResults < 0:
		return fmt.Errorf("minResults %d is negative", req.MinResults)
	case req.HedgeAfter < 0:
		return fmt.Errorf("hedgeAfter %v is negative", req.HedgeAfter)
	case req.HedgeAfter > 0 && req.Method != http.MethodGet && req.Method != http.MethodHead:
		return fmt.Errorf("hedgeAfter is set for a %s, which might be executed twice", req.Method)
	}
	return nil
}

// ref returns the path and the query.
func (req *Request) ref() (*url.URL, error) {
	u, err := url.Parse(req.Path)
	path := excerpt(req.Path)
	switch {
	case err != nil:
		return nil, fmt.Errorf("path %q is not a path", path)
	case !strings.HasPrefix(req.Path, "/") || u.Scheme != "" || u.Host != "" || strings.HasPrefix(req.Path, "//"):
		return nil, fmt.Errorf("path %q is not an absolute path", path)
	case strings.Contains(req.Path, "#"): // u does not show an empty fragment
		return nil, fmt.Errorf("path %q has a fragment", path)
	case hasDotSegments(u.Path):
		return nil, fmt.Errorf(`path %q has "." or ".." segments`, path)
	case strings.Contains(u.RawQuery, " "): // which would end the request target
		return nil, fmt.Errorf("path %q has a query with spaces", path)
	}
	ref := &url.URL{Path: u.Path, RawPath: u.RawPath, RawQuery: escapeQuery(u.RawQuery)}
	if len(req.Query) > 0 {
		ref.RawQuery = strings.TrimPrefix(ref.RawQuery+"&"+req.Query.Encode(), "&")
	}
	return ref, nil
}

// escapeQuery escapes the same bytes in the query of a URL as a browser: some servers reject a
// request target that is not ASCII.
func escapeQuery(query string) string {
	var escaped strings.Builder
	for _, b := range []byte(query) {
		if b >= 0x80 || b == '"' || b == '<' || b == '>' || b == '\'' {
			fmt.Fprintf(&escaped, "%%%02X", b)
		} else {
			escaped.WriteByte(b)
		}
	}
	return escaped.String()
}

// encode returns the body, which must not have more than limit bytes if it is an io.Reader.
func (req *Request) encode(limit int64) (_ []byte, err error) {
	defer catchPanic("Request.Body", &err)
	switch body := req.Body.(type) {
	case nil:
		return nil, nil
	case []byte:
		return body, nil
	case json.RawMessage:
		return body, nil
	case json.Marshaler: // also if it is an io.Reader
	case io.Reader:
		content, err := io.ReadAll(io.LimitReader(body, limit+1))
		switch {
		case err != nil:
			return nil, fmt.Errorf("body: %w", err)
		case int64(len(content)) > limit:
			return nil, fmt.Errorf("body: more than %d bytes", limit)
		}
		return content, nil
	}
	encoded, err := json.Marshal(req.Body)
	if err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	return encoded, nil
}

// isToken reports whether s is a token of RFC 9110, section 5.6.2: a valid method or header name.
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}

// hasDotSegments reports whether a server may resolve p to a path outside of the base path (RFC
// 3986, section 5.2.4). Some servers treat a backslash as a slash.
func hasDotSegments(p string) bool {
	for segment := range strings.SplitSeq(strings.ReplaceAll(p, `\`, "/"), "/") {
		if segment == ".." || segment == "." {
			return true
		}
	}
	return false
}
