package cluster_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

func TestFilter(t *testing.T) {
	parallel(t)
	for name, tt := range map[string]struct {
		filter func(cluster.Server) bool
		want   []string
	}{
		"none":         {nil, []string{"node-2", "node-3", "node-4", "node-5"}},
		"some":         {onlyIDs("node-4", "node-2"), []string{"node-2", "node-4"}},
		"the node":     {onlyIDs("node-1", "node-2"), []string{"node-2"}},
		"unknown peer": {onlyIDs("node-9"), []string{}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 5)
				n := w.Nodes[0]
				requests := recordRequests(w)
				res := rpc(t, n, cluster.Request{Path: "/things", Filter: tt.filter})
				if diff := cmp.Diff(tt.want, idsOfOutcomes(res.Results)); diff != "" || len(res.Failures) != 0 {
					t.Errorf("results (-want +got):\n%s\nfailures: %v", diff, failures(res))
				}
				if got := len(requests.matching("GET", n.Host, clustertest.Any)); got != len(tt.want) {
					t.Errorf("%d requests for %d peers", got, len(tt.want))
				}
			})
		})
	}
}

// The filter is called once for each peer, and not for the node itself.
func TestFilterSeesEachPeerOnce(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 4)
		var seen []string
		rpc(t, w.Nodes[1], cluster.Request{Path: "/things", Filter: func(s cluster.Server) bool {
			seen = append(seen, s.ServerID)
			return true
		}})
		if diff := cmp.Diff([]string{"node-1", "node-3", "node-4"}, seen); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// A call that selects one or two of many peers evicts none of them. Otherwise an isolated node
// that calls its peers one by one would evict them all.
func TestFilteredCallNeedsEnoughPeersToEvict(t *testing.T) {
	parallel(t)
	for name, tt := range map[string]struct {
		nodes   int
		filter  func(cluster.Server) bool
		evicted bool
	}{
		"one of four":                 {5, onlyIDs("node-3"), false},
		"two of four":                 {5, onlyIDs("node-3", "node-4"), false},
		"three of four":               {5, onlyIDs("node-2", "node-3", "node-4"), true},
		"all of four":                 {5, func(cluster.Server) bool { return true }, true},
		"one of two":                  {3, onlyIDs("node-3"), true}, // no call could select more than two
		"one of one, which is all":    {2, onlyIDs("node-2"), true},
		"three of four, most of them": {5, onlyIDs("node-3", "node-4", "node-5"), false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := startVerified(t, tt.nodes)
				n := w.Nodes[0]
				dead := w.Nodes[min(2, tt.nodes-1)]
				dead.Kill()
				if strings.HasSuffix(name, "most of them") {
					w.Nodes[3].Kill()
				}
				res := rpc(t, n, cluster.Request{Path: "/things", Filter: tt.filter})
				for _, o := range res.Failures {
					if o.Evicted != tt.evicted || (o.EvictionSkipped == nil) != tt.evicted {
						t.Errorf("%s: evicted %t, skipped: %v", o.Server.ServerID, o.Evicted, o.EvictionSkipped)
					}
				}
				if len(res.Failures) == 0 {
					t.Error("no peer failed")
				}
			})
		})
	}
}

// Once MinResults peers have answered, the requests to the others are canceled.
func TestMinResults(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 7)
		n := w.Nodes[0]
		for i, peer := range w.Nodes[1:] {
			w.Network.Fault(n.Host, peer.Host, clustertest.Delay(time.Duration(i)*time.Second))
		}
		w.Network.Fault(n.Host, w.Nodes[2].Host, clustertest.Status(http.StatusNotFound)) // no result
		w.Network.Fault(n.Host, w.Nodes[6].Host, clustertest.Hang)
		start := time.Now()
		res := rpc(t, n, cluster.Request{Path: "/things", MinResults: 3})
		if took := time.Since(start); took != 3*time.Second {
			t.Errorf("took %v", took)
		}
		wantOneOutcomeEach(t, res, w.Nodes[1:])
		if diff := cmp.Diff([]string{"node-2", "node-4", "node-5"}, idsOfOutcomes(res.Results)); diff != "" {
			t.Errorf("results (-want +got):\n%s", diff)
		}
		for _, o := range res.Failures {
			canceled := o.Server.ServerID != "node-3"
			if errors.Is(o.Err, cluster.ErrEnoughResults) != canceled || (o.Kind == cluster.KindCanceled) != canceled || o.Evicted || o.EvictionSkipped != nil {
				t.Errorf("%s: %s, %v, evicted %t, skipped: %v", o.Server.ServerID, o.Kind, o.Err, o.Evicted, o.EvictionSkipped)
			}
		}
		if len(n.Servers()) != 7 {
			t.Error("canceled peers were evicted")
		}
	})
}

// Once MinResults is reached no further request begins.
func TestMinResultsLimitsRequests(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 20, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = 2 }))
		n := w.Nodes[0]
		w.Network.Fault(n.Host, clustertest.Any, clustertest.Delay(time.Second))
		requests := recordRequests(w)
		res := rpc(t, n, cluster.Request{Path: "/things", MinResults: 4})
		wantOneOutcomeEach(t, res, w.Nodes[1:])
		canceled := 0
		for _, o := range res.Failures {
			canceled += o.Attempts
		}
		if got := len(requests.matching("GET", n.Host, clustertest.Any)); len(res.Results) != 4 || got > 4+canceled || canceled > 2 {
			t.Errorf("%d results of %d requests, %d of them canceled", len(res.Results), got, canceled)
		}
	})
}

func TestMinResultsNotReached(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := startVerified(t, 5)
		w.Nodes[2].Kill()
		res := rpc(t, w.Nodes[0], cluster.Request{Path: "/things", MinResults: 4})
		if o := singleFailure(t, res); len(res.Results) != 3 || !o.Evicted {
			t.Errorf("%d results, evicted %t", len(res.Results), o.Evicted)
		}
	})
}

// A failure before MinResults is reached does not evict: the call does not wait for the registry.
func TestMinResultsSkipsEviction(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := startVerified(t, 5)
		n := w.Nodes[0]
		w.Nodes[2].Kill()
		for _, peer := range []int{1, 3, 4} {
			w.Network.Fault(n.Host, w.Nodes[peer].Host, clustertest.Delay(time.Second))
		}
		requests := recordRequests(w)
		o := singleFailure(t, rpc(t, n, cluster.Request{Path: "/things", MinResults: 3}))
		if o.Kind != cluster.KindRefused || o.Evicted || !errors.Is(o.EvictionSkipped, cluster.ErrEnoughResults) {
			t.Errorf("%s, evicted %t, skipped: %v", o.Kind, o.Evicted, o.EvictionSkipped)
		}
		if got := len(requests.deletes(n)); got != 0 {
			t.Errorf("the registry received %d deletes", got)
		}
	})
}

func TestCustomer(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3, clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
			return n.Authenticate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				claims, _ := cluster.ClaimsFrom(r.Context())
				n.Reply(w, r, claims.Type+" token of "+claims.SubType+" for "+claims.Customer)
			}))
		}))
		requests := recordRequests(w)
		for _, customer := range []string{"", "acme", "acme", "other", ""} {
			got, err := cluster.Decode[string](rpc(t, w.Nodes[0], cluster.Request{Path: "/things", Customer: customer}))
			want := "cluster token of mds for " + customer
			if diff := cmp.Diff([]string{want, want}, got); diff != "" || err != nil {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		}
		if fetched := len(requests.tokenRequests(w.Nodes[0])); fetched != 3 {
			t.Errorf("%d tokens were fetched for no customer and two customers", fetched)
		}
	})
}

func TestBody(t *testing.T) {
	parallel(t)
	for name, tt := range map[string]struct {
		body any
		want string // received by each peer
		typ  string
	}{
		"encoded once for all peers and attempts": {encodeCounter{new(atomic.Int64)}, `{"encoded":1}`, "application/json"},
		"raw":       {json.RawMessage(`{ "a": 1.50 }`), `{ "a": 1.50 }`, "application/json"},
		"bytes":     {[]byte(`["b"]`), `["b"]`, "application/json"},
		"a value":   {map[string]int{"c": 1}, `{"c":1}`, "application/json"},
		"none":      {nil, ``, ""},
		"JSON null": {json.RawMessage("null"), `null`, "application/json"},
		"a reader":  {strings.NewReader(`{"d":1}`), `{"d":1}`, "application/json"},
		"a buffer":  {bytes.NewBufferString(`["e"]`), `["e"]`, "application/json"},
		"the body of another request": {
			httptest.NewRequest(http.MethodPost, "/", io.MultiReader(strings.NewReader(`"f`), strings.NewReader(`"`))).Body, `"f"`, "application/json",
		},
		"a reader with a JSON form of its own": {marshalingReader{strings.NewReader("not this")}, `"this"`, "application/json"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 4, clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
					return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						body, err := io.ReadAll(r.Body)
						if string(body) != tt.want || r.Header.Get("Content-Type") != tt.typ || err != nil {
							t.Errorf("%s got %q of type %q, %v", n.ID, body, r.Header.Get("Content-Type"), err)
						}
						n.Reply(w, r, nil)
					})
				}))
				w.Network.Fault(clustertest.Any, w.Nodes[1].Host, clustertest.FirstN(1, clustertest.Reset))
				w.Network.Fault(clustertest.Any, w.Nodes[2].Host, clustertest.FirstN(1, clustertest.Status(403)))
				res := rpc(t, w.Nodes[0], cluster.Request{Method: http.MethodPut, Path: "/things", Body: tt.body})
				if len(res.Results) != 3 {
					t.Errorf("failures: %v", failures(res))
				}
			})
		})
	}
}

// A marshalingReader is an io.Reader, but has a JSON form.
type marshalingReader struct{ io.Reader }

func (marshalingReader) MarshalJSON() ([]byte, error) { return []byte(`"this"`), nil }

// zeros is a reader without an end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '0'
	}
	return len(p), nil
}

// Methods are sent in upper case, as axios does: servers distinguish them.
func TestMethodIsSentInUpperCase(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2, clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { n.Reply(w, r, r.Method) })
		}))
		for method, want := range map[string]string{"": "GET", "get": "GET", "Post": "POST", "PURGE": "PURGE", "patch": "PATCH"} {
			got, err := cluster.Decode[string](rpc(t, w.Nodes[0], cluster.Request{Method: method, Path: "/things"}))
			if diff := cmp.Diff([]string{want}, got); diff != "" || err != nil {
				t.Errorf("%q: %v (-want +got):\n%s", method, err, diff)
			}
		}
		// What depends on the method depends on the upper case, too.
		w.Network.Fault(w.Nodes[0].Host, w.Nodes[1].Host, clustertest.FirstN(1, clustertest.Reset))
		if res := rpc(t, w.Nodes[0], cluster.Request{Method: "get", Path: "/things", HedgeAfter: time.Second}); len(res.Results) != 1 {
			t.Errorf("failures %v", failures(res))
		}
	})
}

// Errors quote at most 256 bytes of what is not their own text, whatever its source is, and name
// the path of the request.
func TestErrorsQuoteLittle(t *testing.T) {
	long := strings.Repeat("long ", 10_000)
	for name, peer := range map[string]http.RoundTripper{
		"message of a status":  respond(http.StatusNotFound, fmt.Sprintf(`{"message":%q}`, long))(nil),
		"error of OAuth":       respond(http.StatusBadRequest, fmt.Sprintf(`{"error":%q,"error_description":%q}`, long, long))(nil),
		"id of another server": respond(http.StatusOK, fmt.Sprintf(`{"server":{"serverId":%q}}`, long))(nil),
		"malformed":            respond(http.StatusOK, long)(nil),
		"RoundTripper":         clustertest.RoundTripperFunc(func(*http.Request) (*http.Response, error) { return nil, errors.New(long) }),
		"panic":                clustertest.RoundTripperFunc(func(*http.Request) (*http.Response, error) { panic(long) }),
		"multibyte":            clustertest.RoundTripperFunc(func(*http.Request) (*http.Response, error) { return nil, errors.New(strings.Repeat("é", 10_000)) }),
	} {
		t.Run(name, func(t *testing.T) {
			c := newRegisteredNode(t, &remotes{view: []string{"node-1", "node-2"}, peer: peer.RoundTrip})
			o := callOnePeer(t, c, cluster.Request{Path: "/things/1"})
			if text := fmt.Sprint(o.Err); len(text) > 256*2 || !utf8.ValidString(text) || !strings.Contains(text, "/mds/v1/things/1") {
				t.Errorf("%d bytes: %.600s", len(text), text)
			}
		})
	}
	c := newRegisteredNode(t, &remotes{view: []string{"node-1"}})
	for _, req := range []cluster.Request{
		{Path: long},
		{Path: "/" + long + "#"},
		{Path: "/things", Method: long},
		{Path: "/things", Header: http.Header{long: {""}}},
	} {
		if _, err := c.RPCluster(t.Context(), req); !errors.Is(err, cluster.ErrInvalidRequest) || len(err.Error()) > 400 {
			t.Errorf("an error of %d bytes: %.600s", len(fmt.Sprint(err)), err)
		}
	}
}

func TestQueryAndPath(t *testing.T) {
	parallel(t)
	for name, tt := range map[string]struct {
		req  cluster.Request
		want string // the URI that peers receive
	}{
		"in Path":                     {cluster.Request{Path: "/things?a=1&b=x%20y"}, "/mds/v1/things?a=1&b=x%20y"},
		"in Query":                    {cluster.Request{Path: "/things", Query: url.Values{"c": {"2", "3"}}}, "/mds/v1/things?c=2&c=3"},
		"in both":                     {cluster.Request{Path: "/things?a=1", Query: url.Values{"a": {"&"}}}, "/mds/v1/things?a=1&a=%26"},
		"an escaped slash":            {cluster.Request{Path: "/things/a%2Fb"}, "/mds/v1/things/a%2Fb"},
		"outside ASCII, in the query": {cluster.Request{Path: "/things?q=größe&name=日本"}, "/mds/v1/things?q=gr%C3%B6%C3%9Fe&name=%E6%97%A5%E6%9C%AC"},
		"quotes in the query":         {cluster.Request{Path: `/things?q="a"<b>'c'&r=%22`}, "/mds/v1/things?q=%22a%22%3Cb%3E%27c%27&r=%22"},
		"outside ASCII in both":       {cluster.Request{Path: "/things?a=é", Query: url.Values{"b": {"é"}}}, "/mds/v1/things?a=%C3%A9&b=%C3%A9"},
		"outside ASCII":               {cluster.Request{Path: "/things/größe"}, "/mds/v1/things/gr%C3%B6%C3%9Fe"},
		"dots in a name":              {cluster.Request{Path: "/things/..a"}, "/mds/v1/things/..a"},
		"a URL in the query":          {cluster.Request{Path: "/things?u=http://host/../x"}, "/mds/v1/things?u=http://host/../x"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 2, clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
					return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { n.Reply(w, r, r.RequestURI) })
				}))
				got, err := cluster.Decode[string](rpc(t, w.Nodes[0], tt.req))
				if diff := cmp.Diff([]string{tt.want}, got); diff != "" || err != nil {
					t.Errorf("%v (-want +got):\n%s", err, diff)
				}
			})
		})
	}
}

func TestHeaders(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2, clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
			return n.Authenticate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { n.Reply(w, r, r.Header) }))
		}))
		ctx := cluster.WithCorrelationID(t.Context(), "an-id@7/2000-01-01T00:00:00.000Z")
		res, err := w.Nodes[0].RPCluster(ctx, cluster.Request{Path: "/things", Header: http.Header{
			"X-Mine":           {"1", "2"},
			"accept-language":  {"de"}, // not canonical
			"Content-Type":     {"text/plain"},
			"Authorization":    {"Bearer other"},
			"authorization":    {"Bearer other"},
			"User-Agent":       {"other"},
			"x-correlation-id": {"other@1/2000-01-01T00:00:00.000Z"},
		}})
		if err != nil {
			t.Fatal(err)
		}
		headers, err := cluster.Decode[http.Header](res)
		if err != nil || len(headers) != 1 {
			t.Fatalf("%v, failures %v", err, failures(res))
		}
		h := headers[0]
		bearer := h.Values("Authorization")
		delete(h, "Authorization")
		want := http.Header{
			"X-Mine":           {"1", "2"},
			"Accept":           {"application/json"},
			"Accept-Language":  {"de"},
			"Content-Type":     {"text/plain"},
			"User-Agent":       {fmt.Sprintf("mimik-mds/1.0/node-1 (%s; %s; go %s)", runtime.GOOS, runtime.GOARCH, strings.TrimPrefix(runtime.Version(), "go"))},
			"X-Correlation-Id": {"an-id@7/2000-01-01T00:00:00.000Z"},
		}
		if diff := cmp.Diff(want, h); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if len(bearer) != 1 || bearer[0] == "Bearer other" {
			t.Errorf("authorization: %q", bearer)
		}
	})
}

// A service may forward the header of a request that it serves. Fields of that connection and of
// its client are not sent: Accept-Encoding would keep responses compressed, and peers would reject
// the client's token.
func TestForwardedHeader(t *testing.T) {
	var got http.Header
	o := &remotes{view: []string{"node-1", "node-2"}}
	c := newRegisteredNode(t, o)
	o.peer = func(r *http.Request) (*http.Response, error) {
		got = r.Header
		return newHTTPResponse(r, http.StatusOK, `{"server":{"serverId":"node-2"}}`), nil
	}
	incoming := http.Header{
		"X-Own": {"a", "b"}, "Accept-Language": {"fr"}, "x-lower-case": {"c"},
		"X-Spelled": {"d"}, "x-spelled": {"e"}, "X-SPELLED": {"f"},
		"X-Hop": {"named by Connection"}, "x-other-hop": {"named by connection"}, "connection": {"X-Other-Hop"},
		"Http2-Settings": {"AAMAAABkAARAAAAAAAIAAAAA"}, "Content-Encoding": {"gzip"}, "Content-Length": {"7"}, "Host": {"other"}, "Expect": {"100-continue"},
		"Proxy-Authorization": {"Basic secret"}, "Proxy-Authenticate": {"Basic"}, "proxy-status": {"x"},
		"Accept-Encoding": {"gzip"}, "Connection": {"close, x-hop", "Upgrade"}, "Keep-Alive": {"timeout=5"}, "Te": {"trailers"}, "Trailer": {"X-Sum"},
		"Transfer-Encoding": {"chunked"}, "Upgrade": {"websocket"}, "Proxy-Connection": {"close"},
		"Authorization": {"Bearer client's"}, "authorization": {"Bearer client's"}, "User-Agent": {"another"}, "X-Correlation-Id": {"another"},
	}
	before := incoming.Clone()
	ctx := cluster.WithCorrelationID(t.Context(), "ours@1/d")
	res, err := c.RPCluster(ctx, cluster.Request{Path: "/things", Header: incoming})
	if err != nil || len(res.Results) != 1 {
		t.Fatalf("%+v, %v", res, err)
	}
	want := http.Header{
		"X-Own": {"a", "b"}, "Accept-Language": {"fr"}, "X-Lower-Case": {"c"}, "X-Spelled": {"f", "d", "e"},
		"Accept": {"application/json"}, "Authorization": {"Bearer hidden-token-for-peers"}, "X-Correlation-Id": {"ours@1/d"},
	}
	if agent := got.Get("User-Agent"); !strings.HasPrefix(agent, "mimik-mds/") {
		t.Errorf("user agent %q", agent)
	}
	got.Del("User-Agent")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the received header (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, incoming); diff != "" {
		t.Errorf("the caller's header was changed (-before +after):\n%s", diff)
	}
}

func TestInvalidRequests(t *testing.T) {
	parallel(t)
	for name, req := range map[string]cluster.Request{
		"no path":                        {},
		"a relative path":                {Path: "things"},
		"a full URL":                     {Path: "http://host/things"},
		"another host":                   {Path: "//host/things"},
		"another host, with backslashes": {Path: `\\host\things`},
		"only a query":                   {Path: "?x=1"},
		"dot segment":                    {Path: "/../things"},
		"dot segments later":             {Path: "/things/../../../other"},
		"dot segment at the end":         {Path: "/things/.."},
		"single dot":                     {Path: "/./things"},
		"dot segment, escaped":           {Path: "/%2e%2e/things"},
		"dot segment, half escaped":      {Path: "/.%2E/things"},
		"dot segment, escaped slash":     {Path: "/things%2F..%2Fother"},
		"dot segment, backslashes":       {Path: `/things\..\other`},
		"dot segment, escaped backslash": {Path: "/things/..%5cother"},
		"a bad escape":                   {Path: "/%zz"},
		"a control character":            {Path: "/things\n"},
		"a fragment":                     {Path: "/things#part"},
		"a method with a space":          {Method: "GET /x", Path: "/things"},
		"a method with a line break":     {Method: "GET\r\nX: y", Path: "/things"},
		"a header with a line break":     {Path: "/things", Header: http.Header{"X": {"a\r\nY: b"}}},
		"a header with a NUL":            {Path: "/things", Header: http.Header{"X": {"\x00"}}},
		"a header without a name":        {Path: "/things", Header: http.Header{"": {"a"}}},
		"a header with a bad name":       {Path: "/things", Header: http.Header{"X Y": {"a"}}},
		"a header name with a colon":     {Path: "/things", Header: http.Header{"X: a\r\nY": {"b"}}},
		"a body that is too large":       {Path: "/things", Body: io.LimitReader(zeros{}, 1<<20+1)},
		"a body without an end":          {Path: "/things", Body: zeros{}},
		"a body that cannot be read":     {Path: "/things", Body: iotest.ErrReader(io.ErrUnexpectedEOF)},
		"CONNECT":                        {Method: "CONNECT", Path: "/things"},
		"a body without JSON form":       {Path: "/things", Body: make(chan int)},
		"a body that fails to encode":    {Path: "/things", Body: unencodable{}},
		"a negative timeout":             {Path: "/things", Timeout: -1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 2)
				requests := recordRequests(w)
				start := time.Now()
				res, err := w.Nodes[0].RPCluster(t.Context(), req)
				if err == nil || res != nil || !errors.Is(err, cluster.ErrInvalidRequest) {
					t.Errorf("got %v, %v", res, err)
				}
				if took := time.Since(start); took != 0 {
					t.Errorf("took %v", took)
				}
				if all := requests.sentBy(w.Nodes[0]); len(all) != 0 {
					t.Errorf("%d requests", len(all))
				}
			})
		})
	}
}

// An invalid request is an error of the call, not a failure of its peers.
func TestInvalidRequestsAreNotSent(t *testing.T) {
	o := &remotes{view: []string{"node-1", "node-2"}}
	c := newRegisteredNode(t, o)
	o.peer = func(r *http.Request) (*http.Response, error) {
		t.Errorf("sent %s %s", r.Method, r.URL)
		return newHTTPResponse(r, http.StatusOK, ""), nil
	}
	for name, req := range map[string]cluster.Request{
		"no path":                  {},
		"relative path":            {Path: "things"},
		"absolute URL":             {Path: "http://evil.test/"},
		"another host":             {Path: "//evil.test/"},
		"dot segment":              {Path: "/../x"},
		"escaped dot segment":      {Path: "/a/%2e%2E/%2e%2e/x"},
		"dot segment, backslashes": {Path: `/..\x`},
		"fragment":                 {Path: "/x#y"},
		"empty fragment":           {Path: "/x#"},
		"bad escape":               {Path: "/%zz"},
		"line break in the path":   {Path: "/x\r\ny"},
		"space in the query":       {Path: "/x?a b"},
		"space in the method":      {Path: "/x", Method: "GET /"},
		"line break in a header":   {Path: "/x", Header: http.Header{"X-A": {"a\nb"}}},
		"NUL in a header":          {Path: "/x", Header: http.Header{"X-A": {"a\x00b"}}},
		"space in a header name":   {Path: "/x", Header: http.Header{"X A": {"a"}}},
		"empty header name":        {Path: "/x", Header: http.Header{"": {"a"}}},
		"body without JSON form":   {Path: "/x", Body: func() {}},
		"negative timeout":         {Path: "/x", Timeout: -1},
	} {
		t.Run(name, func(t *testing.T) {
			if res, err := c.RPCluster(t.Context(), req); err == nil {
				t.Errorf("accepted: %+v", res)
			}
			outcomes := 0
			for o := range c.Stream(t.Context(), req) {
				if outcomes++; o.Err == nil || o.Kind != cluster.KindInvalid || o.Server.ServerID != "" {
					t.Errorf("streamed: %+v", o)
				}
			}
			if outcomes != 1 {
				t.Errorf("%d outcomes, want only the error", outcomes)
			}
		})
	}
}

func FuzzRequestPath(f *testing.F) {
	for _, seed := range []string{
		"/things", "/things?x=1", "/", "/a//b", "/a/./b", "/a/../b", "/..", "/../x", "/%2e%2e/x", "/a%2f..%2f..%2fb", "/..%5c..", `/..\..\x`, "/%252e%252e/x",
		"//evil.test/x", "/\\evil.test", "http://evil.test/", "evil.test", "", "/a?b#c", "/a#b", "/a?x y", "/a b", "/é", "/a\nb", "/a\r\nHost: evil.test", "/%zz",
		"/%00", "/a;b", "/a:b", "/*", "*", "/a?../../x", "/a@b", "/ HTTP/1.1", "/a?b HTTP/1.1", "/%2F%2Fevil.test", "/things/%2e", "/..;/x", "/\xff", "/a%20b%3F%23",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, p string) {
		var sent []*http.Request
		o := &remotes{view: []string{"node-1", "node-2"}}
		c := newRegisteredNode(t, o)
		o.peer = func(r *http.Request) (*http.Response, error) {
			sent = append(sent, r)
			return newHTTPResponse(r, http.StatusOK, `{"server":{"serverId":"node-2"}}`), nil
		}
		res, err := c.RPCluster(t.Context(), cluster.Request{Path: p, Query: url.Values{"q": {"1"}}})
		if err != nil {
			if res != nil || len(sent) != 0 || !strings.HasPrefix(err.Error(), "cluster: ") {
				t.Errorf("rejected with %v, but %d requests were sent", err, len(sent))
			}
			return
		}
		if len(sent) != 1 || len(res.Results) != 1 {
			t.Fatalf("%d requests, %+v", len(sent), res)
		}
		// Encode and decode it, as the transport and the peer do.
		var wire bytes.Buffer
		if err := sent[0].Clone(t.Context()).Write(&wire); err != nil {
			t.Fatalf("%q was accepted, but cannot be sent: %v", p, err)
		}
		r, err := http.ReadRequest(bufio.NewReader(&wire))
		if err != nil {
			t.Fatalf("%q was accepted, but %q cannot be decoded: %v", p, wire.String(), err)
		}
		for _, got := range []string{r.URL.Path, strings.ReplaceAll(r.URL.Path, `\`, "/")} {
			if clean := path.Clean(got); clean != "/mds/v1" && !strings.HasPrefix(clean, "/mds/v1/") {
				t.Errorf("%q left the base path: %q", p, got)
			}
		}
		if sent[0].URL.Host != "node-2.test:8080" || r.Host != "node-2.test:8080" || sent[0].URL.Scheme != "http" || sent[0].URL.User != nil {
			t.Errorf("%q went to %s", p, sent[0].URL)
		}
		before, _, _ := strings.Cut(p, "?")
		if want, err := url.PathUnescape(before); err != nil || r.URL.Path != "/mds/v1"+want {
			t.Errorf("%q is %q at the peer", p, r.URL.Path)
		}
		if q := "&" + r.URL.RawQuery; !strings.HasSuffix(q, "&q=1") {
			t.Errorf("%q lost its query: %q", p, r.URL.RawQuery)
		}
	})
}

// An encodeCounter counts its encodings.
type encodeCounter struct{ times *atomic.Int64 }

func (c encodeCounter) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, `{"encoded":%d}`, c.times.Add(1)), nil
}

type unencodable struct{}

func (unencodable) MarshalJSON() ([]byte, error) { return nil, errors.New("cannot") }
