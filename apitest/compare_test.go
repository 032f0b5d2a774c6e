package apitest

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"strings"

	validation "github.com/pb33f/libopenapi-validator/errors"

	"github.com/mimiktech/cluster/internal/exchanges"
)

// The receivers of requests.
const (
	toRegistry     = "registry"
	toTokenService = "token service"
	toNode         = "node"
	toService      = "service" // another endpoint of a node, which no document describes
)

// Senders of requests and responses that are not products.
const byTest = "test"

// An exchange is classified by its parties.
type exchange struct{ exchanges.Exchange }

func (x exchange) path() string {
	target := x.Target
	if u, err := url.Parse(target); err == nil {
		target = u.EscapedPath() // a target may be absolute
	}
	p, _, _ := strings.Cut(target, "?")
	if path.Clean(p) != p {
		return "/not-clean" // the registry serves only clean paths
	}
	return p
}

// receiver returns what the request is meant for.
func (x exchange) receiver() string {
	p := x.path()
	switch {
	case x.servesKeys(), strings.HasSuffix(x.Handler, "mit.TokenService"), strings.HasPrefix(x.Host, "mst"), strings.HasPrefix(p, "/mST/"):
		return toTokenService
	case strings.HasSuffix(x.Handler, "mit.Registry"), strings.HasPrefix(x.Host, "mit"), strings.HasPrefix(p, "/mIT/"):
		return toRegistry
	case strings.Contains(p, "/itResources"):
		return toNode
	}
	return toService
}

func (x exchange) servesKeys() bool { return strings.Contains(x.Handler, "TokenService).ServeJWKS") }

// sender returns what has sent the request, by its user agent: "Go node", "npm node" or "test".
func (x exchange) sender() string {
	agent := x.Request.Header.Get("User-Agent")
	switch {
	case !strings.HasPrefix(agent, "mimik-"):
		return byTest
	case strings.Contains(agent, "; node v"):
		return "npm node"
	}
	return "Go node"
}

var testFunction = regexp.MustCompile(`(?:_test|interop)\.(?:\(\*?\w+\)\.)?(\w+)`)

// responder returns what has sent the response. For a handler of a test, it is "test" and the name
// of the function.
func (x exchange) responder() string {
	if x.servesKeys() {
		return toTokenService
	}
	switch x.Handler {
	case "*mit.Registry", "*mit.TokenService":
		return x.receiver()
	case "*http.ServeMux":
		return "Go node"
	case "npm":
		return "npm node"
	}
	if m := testFunction.FindStringSubmatch(x.Handler); m != nil {
		return byTest + " " + m[1]
	}
	return byTest + " " + x.Handler
}

// A comparison compares exchanges with the documents.
type comparison struct{ node, mit document }

// operations returns the operations of both documents by their names in a result.
func (c comparison) operations() map[string]string {
	all := map[string]string{}
	for prefix, d := range map[string]document{"node.yaml": c.node, "mit.yaml": c.mit} {
		for path, operations := range d.operations() {
			for method, op := range operations {
				all[prefix+" "+op.OperationId] = method + " " + path
			}
		}
	}
	return all
}

// A result is what compare has found.
type result struct {
	operation string // document and operation id, or why there is none
	problems  []string
}

var (
	resourcePath = regexp.MustCompile(`/(?:itResources(?:/[^/]+(?:/servers/[^/]+)?)?|health|openapi\.yaml)$`)
	variable     = regexp.MustCompile(`[\w.:-]*\d[\w.:-]*`)
)

// compare returns the operation of an exchange and how the exchange deviates from it.
//
// Requests of nodes and responses of nodes, registries and token services must match. Requests of
// tests are often malformed; they must match if they are accepted. Responses of tests need not
// match, but are reported.
func (c comparison) compare(x exchange) result {
	d, name, path := c.mit, "mit.yaml", resourcePath.FindString(x.path())
	switch x.receiver() {
	case toService:
		return result{operation: "an endpoint of a service"}
	case toTokenService:
		path = "/mST/v1/oauth/token"
		if x.servesKeys() {
			path = "/mST/v1/jwks.json"
		}
	case toRegistry:
		path = "/mIT/v1" + path
	case toNode:
		d, name = c.node, "node.yaml"
	}
	req := x.request(path)
	id := d.find(x.Method, path)
	switch {
	case id == "" && x.Method == http.MethodHead && d.find(http.MethodGet, path) != "":
		return result{operation: name + " HEAD of " + d.find(http.MethodGet, path)}
	case id == "":
		return result{name + " " + x.Method + " without an operation", x.withoutOperation()}
	}
	r := result{operation: name + " " + id}
	_, errs := d.ValidateHttpRequestSync(req)
	for _, e := range errs {
		switch {
		case x.Request.Incomplete && strings.Contains(strings.ToLower(e.ValidationType), "body"):
			// The handler has not read the body.
		case x.sender() != byTest:
			r.add("request of a %s, %s: %s", x.sender(), id, text(e))
		case x.Status < 400:
			r.add("accepted request of a test, %s: %s", id, text(e))
		}
	}
	resp := x.response(req)
	defer resp.Body.Close()
	if _, errs = d.ValidateHttpResponse(x.request(path), resp); x.Response.Incomplete {
		errs = nil
	}
	for _, e := range errs {
		r.add("response of a %s, %s %d: %s", x.responder(), id, x.Status, text(e))
	}
	return r
}

func (r *result) add(format string, args ...any) {
	r.problems = append(r.problems, fmt.Sprintf(format, args...))
}

// find returns the operation id of a request; "" if there is none.
func (d document) find(method, path string) string {
	for template, operations := range d.operations() {
		parts, pattern := strings.Split(path, "/"), strings.Split(template, "/")
		if len(parts) != len(pattern) {
			continue
		}
		matches := true
		for i, p := range pattern {
			matches = matches && (p == parts[i] || strings.HasPrefix(p, "{"))
		}
		if op := operations[method]; matches && op != nil {
			return op.OperationId
		}
	}
	return ""
}

// withoutOperation returns the problems of an exchange that no document describes: no node may
// send such a request, and it must not be accepted.
func (x exchange) withoutOperation() (problems []string) {
	if x.sender() != byTest {
		problems = append(problems, fmt.Sprintf("request of a %s: %s has no operation", x.sender(), x.Method))
	}
	if !strings.HasPrefix(x.responder(), byTest) && x.Status != http.StatusNotFound && x.Status != http.StatusMethodNotAllowed {
		problems = append(problems, fmt.Sprintf("response of a %s: %d to %s without an operation", x.responder(), x.Status, x.Method))
	}
	return problems
}

// request returns the request of an exchange, at a path of the document.
func (x exchange) request(path string) *http.Request {
	target := "http://localhost" + path
	if _, query, ok := strings.Cut(x.Target, "?"); ok {
		target += "?" + query
	}
	req, err := http.NewRequestWithContext(context.Background(), x.Method, target, bytes.NewReader(x.Request.Body))
	if err != nil {
		req, _ = http.NewRequestWithContext(context.Background(), http.MethodGet, "http://localhost/malformed", nil)
		return req
	}
	req.Header = x.Request.Header.Clone()
	if req.Header == nil {
		req.Header = http.Header{}
	}
	return req
}

// response returns the response of an exchange, decompressed.
func (x exchange) response(req *http.Request) *http.Response {
	body := x.Response.Body
	if x.Response.Header.Get("Content-Encoding") == "gzip" {
		if r, err := gzip.NewReader(bytes.NewReader(body)); err == nil {
			body, _ = io.ReadAll(r)
		}
	}
	header := x.Response.Header.Clone()
	if header == nil {
		header = http.Header{}
	}
	return &http.Response{StatusCode: x.Status, Header: header, Body: io.NopCloser(bytes.NewReader(body)), Request: req, ContentLength: int64(len(body))}
}

// text returns an error of the validator without values, which differ from exchange to exchange.
func text(e *validation.ValidationError) string {
	var s strings.Builder
	s.WriteString(e.Message + ": " + e.Reason)
	for _, f := range e.SchemaValidationErrors {
		s.WriteString("; " + f.FieldPath + ": " + f.Reason)
	}
	return variable.ReplaceAllString(s.String(), "…")
}
