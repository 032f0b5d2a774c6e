package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

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
	// Header is sent along. Authorization, User-Agent and the correlation id are this package's,
	// and what is about one connection only is left out, so that a header can be passed on whole.
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

	// Filter picks the peers to ask; nil asks all. It is called once for each peer before the first
	// is asked, and must not change what it is given. Of a call that asks less than three peers of
	// more, nobody is evicted.
	Filter func(Server) bool
	// Need is how many results are enough: once there are as many, the other peers are given up,
	// and their outcomes say [ErrEnoughResults]. Nobody is evicted then. 0 waits for all.
	MinResults int
	// Hedge sends a GET or HEAD once more, over HTTP/1 on another connection, to a peer that has not
	// answered after so long; the first answer counts, and the other request is given up. Set it to what
	// nearly all answers take less than: each one slower costs a request and a connection. Only places
	// that are free within Config.MaxInFlight are used for it. 0 never does.
	HedgeAfter time.Duration
}

// A call is a request made ready: what all peers are asked alike.
type preparedRequest struct {
	method string
	ref    *url.URL    // path and query, under the base URL of each peer
	header http.Header // the caller's, nil for none
	body   []byte
	key    token.Key

	timeout    time.Duration // zero for Config.RequestTimeout
	retry      *Retry
	filter     func(Server) bool
	minResults int
	hedgeAfter time.Duration
	noEviction bool // evict nobody for this
}

// prepare checks a request and encodes it.
func (c *Cluster) prepare(req Request) (*preparedRequest, error) {
	if err := context.Cause(c.ctx); err != nil {
		return nil, err
	}
	if !c.cfg.Management {
		return nil, ErrManagementOff
	}
	p := &preparedRequest{
		method: cmp.Or(req.Method, http.MethodGet), header: req.Header, timeout: req.Timeout, retry: req.Retry,
		filter: req.Filter, minResults: req.MinResults, hedgeAfter: req.HedgeAfter,
	}
	p.key.Customer = req.Customer
	wrong := func(format string, args ...any) (*preparedRequest, error) {
		return nil, fmt.Errorf("%w: %w", ErrInvalidRequest, fmt.Errorf(format, args...))
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
	case strings.Contains(req.Path, "#"): // also with nothing behind it
		return wrong("path %q has a fragment", req.Path)
	case climbs(u.Path):
		return wrong("path %q climbs", req.Path)
	case strings.Contains(u.RawQuery, " "):
		return wrong("path %q has a query with blanks, which would end it", req.Path)
	}
	p.ref = &url.URL{Path: u.Path, RawPath: u.RawPath, RawQuery: u.RawQuery}
	if len(req.Query) > 0 {
		p.ref.RawQuery = strings.TrimPrefix(u.RawQuery+"&"+req.Query.Encode(), "&")
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
	if req.MinResults < 0 {
		return wrong("need %d is negative", req.MinResults)
	}
	if req.HedgeAfter < 0 {
		return wrong("hedge %v is negative", req.HedgeAfter)
	}
	if req.HedgeAfter > 0 && p.method != http.MethodGet && p.method != http.MethodHead {
		return wrong("hedge of a %s, which may be executed twice", p.method)
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
