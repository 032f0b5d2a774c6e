package cluster

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mimiktech/cluster/internal/roster"
	"github.com/mimiktech/cluster/internal/token"
)

// A Request is what every peer is asked.
type Request struct {
	// Method is GET by default.
	Method string
	// Path is under the base URL of each peer; it begins with "/", and may bring a query. It is
	// never a full URL and never climbs.
	Path string
	// Query is added to that of Path.
	Query url.Values
	// Header is sent along. Authorization, User-Agent and the correlation id are this package's.
	Header http.Header
	// Body is sent as JSON, encoded once; a json.RawMessage or []byte is sent as it is. Nil
	// sends none.
	Body any
	// Timeout bounds each attempt; Config.RequestTimeout by default. A peer that misses a
	// shorter one is not suspected of being dead.
	Timeout time.Duration
	// Customer asks mST for a token in the name of this customer.
	Customer string
	// Retry replaces the policy of [WithRetry] for this request.
	Retry *Retry
}

// An Outcome is what came of asking one peer.
type Outcome struct {
	Server Server
	// Body is the peer's answer; nil if it failed.
	Body json.RawMessage
	// Data is the data in it; nil if it has none.
	Data json.RawMessage

	// Err is why the peer failed, nil if it did not, and Kind how.
	Err  error
	Kind Kind
	// Evicted tells that the peer is no longer in the view, because mIT agreed that it is gone.
	Evicted bool
	// Spared is why a peer that could not be reached was not evicted.
	Spared error

	// Attempts is how often the peer was asked, 0 if it never came to that.
	Attempts int
	// Duration is how long that took, waiting for a free place in flight included.
	Duration time.Duration
}

// MarshalJSON gives what the npm module's rpCluster has for one server: {"result", "server"}, or
// {"error", "server"}, where the error says in "kind", "attempts", "evicted" and "spared" what
// else is known of it.
func (o Outcome) MarshalJSON() ([]byte, error) {
	if o.Err == nil {
		return json.Marshal(struct {
			Result json.RawMessage `json:"result"`
			Server Server          `json:"server"`
		}{o.Body, o.Server})
	}
	type failure struct {
		StatusCode int             `json:"statusCode,omitempty"`
		Title      string          `json:"title,omitempty"`
		Message    string          `json:"message"`
		Info       json.RawMessage `json:"info,omitempty"`
		Kind       Kind            `json:"kind"`
		Attempts   int             `json:"attempts"`
		Evicted    bool            `json:"evicted"`
		Spared     string          `json:"spared,omitempty"`
	}
	f := failure{Message: o.Err.Error(), Kind: o.Kind, Attempts: o.Attempts, Evicted: o.Evicted}
	if se, ok := errors.AsType[*StatusError](o.Err); ok {
		f.StatusCode, f.Title, f.Info = se.Code, http.StatusText(se.Code), se.Info
		f.Message = cmp.Or(se.Message, f.Message)
	}
	if o.Spared != nil {
		f.Spared = o.Spared.Error()
	}
	return json.Marshal(struct {
		Error  failure `json:"error"`
		Server Server  `json:"server"`
	}{f, o.Server})
}

// A Response is what came of asking all peers: each is exactly once in Results or in Failures,
// both in the order of the servers' ids. It marshals to what the npm module's rpCluster gives.
type Response struct {
	// Data is the data of all results, in the same order: the elements of an array one by one,
	// any other value as it is.
	Data     []json.RawMessage `json:"data"`
	Results  []Outcome         `json:"results"`
	Failures []Outcome         `json:"failures"`
}

// newResponse sorts outcomes into results and failures, in their order.
func newResponse(outcomes []Outcome) *Response {
	r := &Response{Data: []json.RawMessage{}, Results: []Outcome{}, Failures: []Outcome{}} // none is null in JSON
	for _, o := range outcomes {
		if o.Err != nil {
			r.Failures = append(r.Failures, o)
			continue
		}
		r.Results = append(r.Results, o)
		r.Data = appendData(r.Data, o.Data)
	}
	return r
}

// appendData appends the elements of an array, or the value that is none.
func appendData(all []json.RawMessage, data json.RawMessage) []json.RawMessage {
	if len(data) == 0 {
		return all
	}
	var elements []json.RawMessage
	if data[0] != '[' || json.Unmarshal(data, &elements) != nil {
		return append(all, data)
	}
	return append(all, elements...)
}

// Decode reads the joint data of a response as values of one type. The first that does not fit
// is an error which names its place.
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

// RPCluster sends req to every peer in the view and waits for all of them. The error is about
// the call: management is off ([ErrManagementOff]), or req is wrong, and then nobody was
// called. What happens to a peer is in its [Outcome], also when ctx ends early. A node without
// peers gets an empty Response at once.
//
// A peer that cannot be reached may be evicted; see [Eviction].
func (c *Cluster) RPCluster(ctx context.Context, req Request) (*Response, error) {
	call, err := c.prepare(req)
	if err != nil {
		return nil, err
	}
	return c.gather(correlated(ctx), call, c.roster()), nil
}

// Stream sends req to every peer and yields each outcome as it arrives; those of peers that
// cannot be reached come last, once it is decided whether they are evicted. Breaking off ends
// the requests under way. Where RPCluster would return an error, the one Outcome has it as its
// Err, and no server.
func (c *Cluster) Stream(ctx context.Context, req Request) iter.Seq[Outcome] {
	return func(yield func(Outcome) bool) {
		call, err := c.prepare(req)
		if err != nil {
			yield(Outcome{Err: err, Kind: KindInvalid})
			return
		}
		for _, o := range c.each(correlated(ctx), call, c.roster()) {
			if !yield(o) {
				return
			}
		}
	}
}

// A call is a request made ready: what all peers are asked alike.
type call struct {
	method string
	path   string // escaped, as it follows the base path
	query  string
	header http.Header // the caller's, nil for none
	body   []byte
	key    token.Key

	timeout time.Duration // zero for Config.RequestTimeout
	retry   *Retry
	spare   bool // evict nobody for this
}

// prepare checks a request and encodes it.
func (c *Cluster) prepare(req Request) (*call, error) {
	if err := context.Cause(c.life); err != nil {
		return nil, err
	}
	if !c.cfg.Management {
		return nil, ErrManagementOff
	}
	p := &call{method: cmp.Or(req.Method, http.MethodGet), header: req.Header, timeout: req.Timeout, retry: req.Retry}
	p.key.Customer = req.Customer
	wrong := func(format string, args ...any) (*call, error) {
		return nil, fmt.Errorf("cluster: request: %w", fmt.Errorf(format, args...))
	}
	if !isToken(p.method) {
		return wrong("method %q is none", p.method)
	}
	u, err := url.Parse(req.Path)
	switch {
	case err != nil:
		return wrong("path %q is not a path", req.Path)
	case !strings.HasPrefix(req.Path, "/") || u.Scheme != "" || u.Host != "" || strings.HasPrefix(req.Path, "//"):
		return wrong(`path %q is not a path from "/" on`, req.Path)
	case u.Fragment != "":
		return wrong("path %q has a fragment", req.Path)
	case climbs(u.Path):
		return wrong("path %q climbs", req.Path)
	}
	p.path = u.EscapedPath()
	p.query = u.RawQuery
	if len(req.Query) > 0 {
		p.query = strings.TrimPrefix(p.query+"&"+req.Query.Encode(), "&")
	}
	for name, values := range req.Header {
		if !isToken(name) {
			return wrong("header %q is no header name", name)
		}
		for _, v := range values {
			if strings.ContainsFunc(v, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
				return wrong("header %q has a value that fits no header", name)
			}
		}
	}
	if req.Timeout < 0 {
		return wrong("timeout %v is negative", req.Timeout)
	}
	switch body := req.Body.(type) {
	case nil:
	case []byte:
		p.body = body
	case json.RawMessage:
		p.body = body
	default:
		if p.body, err = json.Marshal(body); err != nil {
			return wrong("body: %w", err)
		}
	}
	return p, nil
}

// isToken tells whether s can be a method or the name of a header: RFC 9110, 5.6.2.
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r > '~' || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}

// climbs tells whether a path leaves the place it is put under, for whoever may read it: some
// servers take a backslash for a slash.
func climbs(p string) bool {
	for part := range strings.SplitSeq(strings.ReplaceAll(p, `\`, "/"), "/") {
		if part == ".." || part == "." {
			return true
		}
	}
	return false
}

// gather is each, waited for.
func (c *Cluster) gather(ctx context.Context, call *call, view roster.Roster) *Response {
	outcomes := make([]Outcome, view.Len())
	for i, o := range c.each(ctx, call, view) {
		outcomes[i] = o
	}
	if i, found := view.Index(c.cfg.ID); found {
		outcomes = append(outcomes[:i], outcomes[i+1:]...)
	}
	return newResponse(outcomes)
}

// each asks every peer of a view, and yields the outcomes as they come, with the index of the
// server in the view. Whoever is suspect is judged when all others have answered.
func (c *Cluster) each(ctx context.Context, call *call, view roster.Roster) iter.Seq2[int, Outcome] {
	return func(yield func(int, Outcome) bool) {
		ctx, cancel := within(ctx, c.life)
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()

		self, listed := view.Index(c.cfg.ID)
		peers := view.Len()
		if listed {
			peers--
		}
		if peers == 0 {
			return
		}
		a := &asking{call: call}
		if err := a.authorize(ctx, c, ""); err != nil {
			for i, p := range view.Peers() {
				if i != self || !listed {
					if !yield(i, Outcome{Server: Server(p.Server), Err: err, Kind: failedBefore(ctx)}) {
						return
					}
				}
			}
			return
		}

		type answer struct {
			i int
			o Outcome
		}
		answers := make(chan answer, peers) // nobody waits to deliver
		var next atomic.Int64
		for range min(peers, c.cfg.MaxInFlight) {
			wg.Go(func() {
				for i := int(next.Add(1)) - 1; i < view.Len(); i = int(next.Add(1)) - 1 {
					if i != self || !listed {
						answers <- answer{i, c.ask(ctx, a, view.Peers()[i])}
					}
				}
			})
		}
		var suspects []suspect
		for range peers {
			got := <-answers
			c.trace.asked(got.o)
			if c.suspicious(got.o, call) {
				suspects = append(suspects, suspect{got.i, view.Peers()[got.i], got.o})
			} else if !yield(got.i, got.o) {
				return
			}
		}
		c.judge(ctx, a, suspects, peers)
		for _, s := range suspects {
			if !yield(s.i, s.o) {
				return
			}
		}
	}
}

// failedBefore is the kind of a failure to get a token: the call may have been cancelled.
func failedBefore(ctx context.Context) Kind {
	if ctx.Err() != nil {
		return KindCancelled
	}
	return KindNoToken
}

// asking is one call on its way to the peers of one view. Its header is shared by all requests,
// and replaced as a whole when a peer refuses the token.
type asking struct {
	*call

	mu     sync.Mutex // guards the fields below
	bearer string
	full   http.Header
}

// authorize makes the header, with a token other than the refused one.
func (a *asking) authorize(ctx context.Context, c *Cluster, refused string) error {
	key := a.key
	key.Audience, key.Cluster = c.cfg.PeerAudience, true
	if refused != "" {
		c.tokens.Drop(key, refused)
	}
	bearer, err := c.tokens.Token(ctx, key)
	if err != nil {
		return err
	}
	full := c.header(ctx, bearer)
	if a.body != nil {
		full["Content-Type"] = []string{"application/json"}
	}
	for name, values := range a.header {
		switch name = http.CanonicalHeaderKey(name); name {
		case "Authorization", "User-Agent", "X-Correlation-Id":
		default:
			full[name] = values
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.bearer, a.full = bearer, full
	return nil
}

func (a *asking) headers() (http.Header, string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.full, a.bearer
}

// ask asks one peer, repeating as the policy says.
func (c *Cluster) ask(ctx context.Context, a *asking, p *roster.Peer) Outcome {
	start := time.Now()
	o := Outcome{Server: Server(p.Server)}
	finish := func(err error) Outcome {
		o.Err, o.Kind, o.Duration = err, kindOf(err), time.Since(start)
		if err != nil && ctx.Err() != nil {
			o.Kind = KindCancelled
			o.Err = fmt.Errorf("peer %q: cancelled: %w", p.ServerID, context.Cause(ctx))
		}
		return o
	}
	if p.Err != nil {
		return finish(p.Err)
	}
	if err := c.inFlight.Acquire(ctx, 1); err != nil {
		return finish(err)
	}
	defer c.inFlight.Release(1)

	retry := c.retry
	if a.retry != nil {
		retry = *a.retry
	}
	road := c.roads.peers
	for {
		o.Attempts++
		err := c.askOnce(ctx, a, p, road, &o)
		if err == nil || !retry.again(a.method, err, o.Attempts, time.Since(start)) || c.pause(ctx, retry.delay()) != nil {
			return finish(err)
		}
		road = c.roads.fresh // the pooled connection may be what was wrong
	}
}

// askOnce makes one attempt, or two if the first one's token is refused.
func (c *Cluster) askOnce(ctx context.Context, a *asking, p *roster.Peer, road http.RoundTripper, o *Outcome) error {
	header, bearer := a.headers()
	body, err := c.sendPeer(ctx, a, p, road, header)
	if tokenRefused(err) {
		if tokenErr := a.authorize(ctx, c, bearer); tokenErr != nil {
			return fmt.Errorf("%w (and no other token: %s)", err, tokenErr.Error()) // not wrapped: the peer did answer
		}
		header, _ = a.headers()
		body, err = c.sendPeer(ctx, a, p, road, header)
	}
	if err != nil {
		return err
	}
	o.Body, o.Data, err = readEnvelope(body, p, a.method)
	return err
}

func (c *Cluster) sendPeer(ctx context.Context, a *asking, p *roster.Peer, road http.RoundTripper, header http.Header) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(a.timeout, c.cfg.RequestTimeout))
	defer cancel()
	u := *p.Base
	u.RawQuery = a.query
	if decoded, err := url.PathUnescape(a.path); err == nil {
		u.Path, u.RawPath = p.Base.Path+decoded, p.Base.EscapedPath()+a.path
	}
	req := &http.Request{Method: a.method, URL: &u, Host: u.Host, Header: header, ContentLength: int64(len(a.body))}
	if a.body != nil {
		req.Body = io.NopCloser(bytes.NewReader(a.body))
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(a.body)), nil }
	}
	return c.send(road, "peer "+p.ServerID, req.WithContext(ctx))
}

// readEnvelope reads what a peer answers. An answer by anybody else is none.
func readEnvelope(body []byte, p *roster.Peer, method string) (whole, data json.RawMessage, err error) {
	var envelope struct {
		Data   json.RawMessage `json:"data"`
		Server *struct {
			ServerID string `json:"serverId"`
		} `json:"server"`
	}
	base := bare(p.Base)
	if err := json.Unmarshal(body, &envelope); err != nil {
		return nil, nil, &AnswerError{"peer " + p.ServerID, method, base, err}
	}
	switch {
	case envelope.Server == nil || envelope.Server.ServerID == "":
		return nil, nil, &AnswerError{"peer " + p.ServerID, method, base, errors.New("it does not say which server it is from")}
	case envelope.Server.ServerID != p.ServerID:
		return nil, nil, &WrongServerError{URL: base, Want: p.ServerID, Got: envelope.Server.ServerID}
	}
	return body, envelope.Data, nil
}
