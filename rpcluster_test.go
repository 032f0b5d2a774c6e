package cluster_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/google/go-cmp/cmp"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/internal/fixedworld"
)

func TestJointData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := map[string]string{
			"node-2": `"data":["a",{"b":1}],`,
			"node-3": `"data":"c",`,
			"node-4": `"data":null,`,
			"node-5": ``, // the npm module makes it undefined, which JSON turns into one more null
			"node-6": `"data":[],`,
			"node-7": `"data": {"d":[1.50]},`,
			"node-8": `"data":[["e"]],`,
		}
		w := clustertest.Start(t, 8, clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
			return responder(http.StatusOK, `{`+answers[n.ID]+`"server":{"serverId":"`+n.ID+`"}}`)
		}))
		for i, n := range w.Nodes { // the later in the order of servers, the earlier in time
			w.Network.Fault(clustertest.Any, n.Host, clustertest.Delay(time.Duration(8-i)*time.Second))
		}
		res := rpc(t, w.Nodes[0], cluster.Request{Path: "/things"})
		if len(res.Failures) != 0 {
			t.Errorf("failures: %v", failures(res))
		}
		if diff := cmp.Diff([]string{"node-2", "node-3", "node-4", "node-5", "node-6", "node-7", "node-8"}, idsOfOutcomes(res.Results)); diff != "" {
			t.Errorf("results (-want +got):\n%s", diff)
		}
		if got, want := marshal(t, res.Data), `["a",{"b":1},"c",null,{"d":[1.50]},["e"]]`; got != want {
			t.Errorf("joint data\n got %s\nwant %s", got, want)
		}
	})
}

// The shape that users of the npm module know; "kind" and what follows it is more than it says.
func TestResponseAsJSON(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 5, clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
			return map[string]http.Handler{
				"node-1": http.NotFoundHandler(),
				"node-2": responder(http.StatusOK, `{"data":["a"],"server":{"serverId":"node-2"},"more":1.50}`),
				"node-3": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					n.ReplyError(w, r, &cluster.StatusError{Code: 404, Message: "no such thing", Info: []byte(`{"id":1.50}`)})
				}),
				"node-4": responder(http.StatusOK, `{"data":"b"}`),
				"node-5": http.NotFoundHandler(),
			}[n.ID]
		}), clustertest.WithOptions(cluster.WithEviction(cluster.Eviction{Disabled: true})))
		w.Network.Down("node-5:8080")
		res := rpc(t, w.Nodes[0], cluster.Request{Path: "/things"})
		server := func(i int) string { return marshal(t, w.Registered()[i-1]) }
		want := `{"data":["a"],` +
			`"results":[{"result":{"data":["a"],"server":{"serverId":"node-2"},"more":1.50},"server":` + server(2) + `}],` +
			`"failures":[` +
			`{"error":{"statusCode":404,"title":"Not Found","message":"no such thing","info":{"id":1.50},` +
			`"kind":"status","attempts":1,"evicted":false},"server":` + server(3) + `},` +
			`{"error":{"message":"peer \"node-4\" gave an invalid response to GET http://node-4:8080/mds/v1: it does not say which server it is from",` +
			`"kind":"malformed","attempts":1,"evicted":false},"server":` + server(4) + `},` +
			`{"error":{"message":"peer \"node-5\" cannot be reached by GET http://node-5:8080/mds/v1/things: dial tcp node-5:8080: connect: connection refused",` +
			`"kind":"refused","attempts":2,"evicted":false,"evictionSkipped":"eviction is off"},"server":` + server(5) + `}]}`
		if diff := cmp.Diff(want, marshal(t, res)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestDecode(t *testing.T) {
	type thing struct {
		Name string `json:"name"`
	}
	t.Run("typed", func(t *testing.T) {
		got, err := cluster.Decode[thing](&cluster.Response{Data: []json.RawMessage{[]byte(`{"name":"a"}`), []byte(`{"name":"b","x":1}`)}})
		if diff := cmp.Diff([]thing{{"a"}, {"b"}}, got); diff != "" || err != nil {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
	})
	t.Run("names the place of what does not fit", func(t *testing.T) {
		got, err := cluster.Decode[thing](&cluster.Response{Data: []json.RawMessage{[]byte(`{}`), []byte(`{"name":1}`)}})
		if _, ok := errors.AsType[*json.UnmarshalTypeError](err); !ok || got != nil || !strings.HasPrefix(err.Error(), "cluster: element 1 of the joint data: ") {
			t.Errorf("got %v, %v", got, err)
		}
	})
	t.Run("of no response", func(t *testing.T) { // what Register gives with management off
		if got, err := cluster.Decode[thing](nil); len(got) != 0 || err != nil {
			t.Errorf("got %v, %v", got, err)
		}
	})
}

func TestBody(t *testing.T) {
	for name, tt := range map[string]struct {
		body any
		want string // at each peer
		typ  string
	}{
		"encoded once for all peers and attempts": {encodeCounter{new(atomic.Int64)}, `{"encoded":1}`, "application/json"},
		"raw":       {json.RawMessage(`{ "a": 1.50 }`), `{ "a": 1.50 }`, "application/json"},
		"bytes":     {[]byte(`["b"]`), `["b"]`, "application/json"},
		"a value":   {map[string]int{"c": 1}, `{"c":1}`, "application/json"},
		"none":      {nil, ``, ""},
		"JSON null": {json.RawMessage("null"), `null`, "application/json"},
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

func TestQueryAndPath(t *testing.T) {
	for name, tt := range map[string]struct {
		req  cluster.Request
		want string // what peers see
	}{
		"of Path":                   {cluster.Request{Path: "/things?a=1&b=x%20y"}, "/mds/v1/things?a=1&b=x%20y"},
		"of Query":                  {cluster.Request{Path: "/things", Query: url.Values{"c": {"2", "3"}}}, "/mds/v1/things?c=2&c=3"},
		"of both":                   {cluster.Request{Path: "/things?a=1", Query: url.Values{"a": {"&"}}}, "/mds/v1/things?a=1&a=%26"},
		"an escaped slash stays so": {cluster.Request{Path: "/things/a%2Fb"}, "/mds/v1/things/a%2Fb"},
		"more than ASCII":           {cluster.Request{Path: "/things/größe"}, "/mds/v1/things/gr%C3%B6%C3%9Fe"},
		"dots in a name":            {cluster.Request{Path: "/things/..a"}, "/mds/v1/things/..a"},
		"a URL in the query":        {cluster.Request{Path: "/things?u=http://host/../x"}, "/mds/v1/things?u=http://host/../x"},
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
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2, clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
			return n.Authenticate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { n.Reply(w, r, r.Header) }))
		}))
		ctx := cluster.WithCorrelationID(t.Context(), "an-id@7/2000-01-01T00:00:00.000Z")
		res, err := w.Nodes[0].RPCluster(ctx, cluster.Request{Path: "/things", Header: http.Header{
			"X-Mine":           {"1", "2"},
			"accept-language":  {"de"}, // as no http.Header.Set would write it
			"Content-Type":     {"text/plain"},
			"Authorization":    {"Bearer not ours"},
			"authorization":    {"Bearer not ours"},
			"User-Agent":       {"somebody else"},
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
		if len(bearer) != 1 || bearer[0] == "Bearer not ours" {
			t.Errorf("authorization: %q", bearer)
		}
	})
}

// A service may pass on the header of a request that it serves. What was about that connection,
// or about who called, must not be taken for ours: with an Accept-Encoding, for one, answers
// would stay compressed, and with another's token the peers would refuse us.
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
		"Accept-Encoding": {"gzip"}, "Connection": {"close"}, "Keep-Alive": {"timeout=5"}, "Te": {"trailers"}, "Trailer": {"X-Sum"},
		"Transfer-Encoding": {"chunked"}, "Upgrade": {"websocket"}, "Proxy-Connection": {"close"},
		"Authorization": {"Bearer another's"}, "authorization": {"Bearer another's"}, "User-Agent": {"another"}, "X-Correlation-Id": {"another"},
	}
	before := incoming.Clone()
	ctx := cluster.WithCorrelationID(t.Context(), "ours@1/d")
	res, err := c.RPCluster(ctx, cluster.Request{Path: "/things", Header: incoming})
	if err != nil || len(res.Results) != 1 {
		t.Fatalf("%+v, %v", res, err)
	}
	want := http.Header{
		"X-Own": {"a", "b"}, "Accept-Language": {"fr"}, "X-Lower-Case": {"c"},
		"Accept": {"application/json"}, "Authorization": {"Bearer hidden-token-for-peers"}, "X-Correlation-Id": {"ours@1/d"},
	}
	if agent := got.Get("User-Agent"); !strings.HasPrefix(agent, "mimik-mds/") {
		t.Errorf("user agent %q", agent)
	}
	got.Del("User-Agent")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("what the peer got (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, incoming); diff != "" {
		t.Errorf("the caller's header was changed (-before +after):\n%s", diff)
	}
}

func TestInvalidRequests(t *testing.T) {
	for name, req := range map[string]cluster.Request{
		"no path":                        {},
		"a path that starts elsewhere":   {Path: "things"},
		"a full URL":                     {Path: "http://host/things"},
		"another host":                   {Path: "//host/things"},
		"another host, with backslashes": {Path: `\\host\things`},
		"only a query":                   {Path: "?x=1"},
		"climbing":                       {Path: "/../things"},
		"climbing later":                 {Path: "/things/../../../other"},
		"climbing at the end":            {Path: "/things/.."},
		"standing still":                 {Path: "/./things"},
		"climbing, escaped":              {Path: "/%2e%2e/things"},
		"climbing, half escaped":         {Path: "/.%2E/things"},
		"climbing, escaped slash":        {Path: "/things%2F..%2Fother"},
		"climbing, with backslashes":     {Path: `/things\..\other`},
		"climbing, escaped backslash":    {Path: "/things/..%5cother"},
		"a bad escape":                   {Path: "/%zz"},
		"a control character":            {Path: "/things\n"},
		"a fragment":                     {Path: "/things#part"},
		"a method with a space":          {Method: "GET /x", Path: "/things"},
		"a method with a line break":     {Method: "GET\r\nX: y", Path: "/things"},
		"a header with a line break":     {Path: "/things", Header: http.Header{"X": {"a\r\nY: b"}}},
		"a header with a NUL":            {Path: "/things", Header: http.Header{"X": {"\x00"}}},
		"a header without a name":        {Path: "/things", Header: http.Header{"": {"a"}}},
		"a header with a bad name":       {Path: "/things", Header: http.Header{"X Y": {"a"}}},
		"a header named as two":          {Path: "/things", Header: http.Header{"X: a\r\nY": {"b"}}},
		"a body that is no JSON":         {Path: "/things", Body: make(chan int)},
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
					t.Errorf("%d requests were made", len(all))
				}
			})
		})
	}
}

// No peer may be blamed for a request that nobody could send.
func TestInvalidRequestsAreNotSent(t *testing.T) {
	o := &remotes{view: []string{"node-1", "node-2"}}
	c := newRegisteredNode(t, o)
	o.peer = func(r *http.Request) (*http.Response, error) {
		t.Errorf("sent %s %s", r.Method, r.URL)
		return newHTTPResponse(r, http.StatusOK, ""), nil
	}
	for name, req := range map[string]cluster.Request{
		"no path":                    {},
		"relative path":              {Path: "things"},
		"another's address":          {Path: "http://evil.test/"},
		"another host":               {Path: "//evil.test/"},
		"climbing":                   {Path: "/../x"},
		"climbing in disguise":       {Path: "/a/%2e%2E/%2e%2e/x"},
		"climbing with backslashes":  {Path: `/..\x`},
		"fragment":                   {Path: "/x#y"},
		"empty fragment":             {Path: "/x#"},
		"bad escape":                 {Path: "/%zz"},
		"line break in the path":     {Path: "/x\r\ny"},
		"blank in the query":         {Path: "/x?a b"},
		"method of two words":        {Path: "/x", Method: "GET /"},
		"line break in a header":     {Path: "/x", Header: http.Header{"X-A": {"a\nb"}}},
		"NUL in a header":            {Path: "/x", Header: http.Header{"X-A": {"a\x00b"}}},
		"name that is none":          {Path: "/x", Header: http.Header{"X A": {"a"}}},
		"empty name":                 {Path: "/x", Header: http.Header{"": {"a"}}},
		"body that is no JSON value": {Path: "/x", Body: func() {}},
		"negative timeout":           {Path: "/x", Timeout: -1},
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
				t.Errorf("%d outcomes, want the one with the error", outcomes)
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
				t.Errorf("refused with %v, but %d requests were sent", err, len(sent))
			}
			return
		}
		if len(sent) != 1 || len(res.Results) != 1 {
			t.Fatalf("%d requests, %+v", len(sent), res)
		}
		// As the peer will read it.
		var wire bytes.Buffer
		if err := sent[0].Clone(t.Context()).Write(&wire); err != nil {
			t.Fatalf("%q was accepted, but cannot be sent: %v", p, err)
		}
		r, err := http.ReadRequest(bufio.NewReader(&wire))
		if err != nil {
			t.Fatalf("%q was accepted, but nobody can read %q: %v", p, wire.String(), err)
		}
		for _, got := range []string{r.URL.Path, strings.ReplaceAll(r.URL.Path, `\`, "/")} {
			if clean := path.Clean(got); clean != "/mds/v1" && !strings.HasPrefix(clean, "/mds/v1/") {
				t.Errorf("%q left its place: %q", p, got)
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

func TestCallWithoutPeers(t *testing.T) {
	for name, tt := range map[string]struct {
		node func(w *clustertest.World) *clustertest.Node
		want error
	}{
		"no peers":            {func(w *clustertest.World) *clustertest.Node { return w.Join() }, nil},
		"before Register":     {func(w *clustertest.World) *clustertest.Node { return w.Add() }, nil},
		"management off":      {func(w *clustertest.World) *clustertest.Node { return w.Join() }, cluster.ErrManagementOff},
		"after Close":         {func(w *clustertest.World) *clustertest.Node { n := w.Join(); n.Close(); return n }, cluster.ErrClosed},
		"closed but not used": {func(w *clustertest.World) *clustertest.Node { n := w.Add(); n.Close(); return n }, cluster.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 0, clustertest.WithConfig(func(cfg *cluster.Config) {
					cfg.Management = !errors.Is(tt.want, cluster.ErrManagementOff)
				}))
				n := tt.node(w)
				requests := recordRequests(w)
				res, err := n.RPCluster(t.Context(), cluster.Request{Path: "/things"})
				if !errors.Is(err, tt.want) {
					t.Errorf("got error %v, want %v", err, tt.want)
				}
				if err == nil && marshal(t, res) != `{"data":[],"results":[],"failures":[]}` {
					t.Errorf("got %s", marshal(t, res))
				}
				streamed := slices.Collect(n.Stream(t.Context(), cluster.Request{Path: "/things"}))
				switch {
				case tt.want == nil && len(streamed) != 0:
					t.Errorf("streamed %v", streamed)
				case tt.want != nil && (len(streamed) != 1 || !errors.Is(streamed[0].Err, tt.want) || streamed[0].Server.ServerID != ""):
					t.Errorf("streamed %v, want the error as the one outcome", streamed)
				}
				if all := requests.sentBy(n); len(all) != 0 {
					t.Errorf("%d requests were made", len(all))
				}
			})
		})
	}
}

// Whatever goes wrong with one peer of four, the others answer at once, and it stands once in the
// response, as what it is.
func TestFaultsOfOnePeer(t *testing.T) {
	const timeout = 10 * time.Second
	for name, tt := range map[string]struct {
		fault    clustertest.Fault
		method   string
		kind     cluster.Kind
		attempts int
		took     time.Duration
		evicted  bool
	}{
		"none":                        {nil, "GET", cluster.KindOK, 1, 0, false},
		"refused":                     {clustertest.Refuse, "GET", cluster.KindRefused, 2, 10 * time.Millisecond, true},
		"refused once":                {clustertest.FirstN(1, clustertest.Refuse), "POST", cluster.KindOK, 2, 10 * time.Millisecond, false},
		"hanging":                     {clustertest.Hang, "GET", cluster.KindTimeout, 1, timeout, true},
		"slow":                        {clustertest.Delay(9 * time.Second), "GET", cluster.KindOK, 1, 9 * time.Second, false},
		"too slow":                    {clustertest.Delay(11 * time.Second), "GET", cluster.KindTimeout, 1, timeout, true},
		"slow, then refused":          {clustertest.Chain(clustertest.Delay(time.Second), clustertest.Refuse), "GET", cluster.KindRefused, 2, 2*time.Second + 10*time.Millisecond, true},
		"broken":                      {clustertest.Reset, "GET", cluster.KindConnectionLost, 2, 10 * time.Millisecond, true},
		"broken once":                 {clustertest.FirstN(1, clustertest.Reset), "GET", cluster.KindOK, 2, 10 * time.Millisecond, false},
		"broken, maybe executed":      {clustertest.Reset, "POST", cluster.KindConnectionLost, 1, 0, true},
		"400":                         {clustertest.Status(400), "GET", cluster.KindStatus, 1, 0, false},
		"401":                         {clustertest.Status(401), "GET", cluster.KindStatus, 2, 0, false},
		"403":                         {clustertest.Status(403), "GET", cluster.KindStatus, 2, 0, false},
		"404":                         {clustertest.Status(404), "GET", cluster.KindStatus, 1, 0, false},
		"429":                         {clustertest.Status(429), "GET", cluster.KindStatus, 1, 0, false},
		"500":                         {clustertest.Status(500), "GET", cluster.KindStatus, 1, 0, false}, // the npm module evicts it
		"503":                         {clustertest.Status(503), "GET", cluster.KindStatus, 1, 0, false}, // the npm module evicts it
		"a redirect":                  {clustertest.Answer(http.RedirectHandler("http://node-2:8080/mds/v1/things", http.StatusFound)), "GET", cluster.KindStatus, 1, 0, false},
		"another server":              {clustertest.RouteTo("node-2:8080"), "GET", cluster.KindWrongServer, 1, 0, false}, // the npm module lets it disappear
		"garbage":                     {respondOK("<html>"), "GET", cluster.KindMalformed, 1, 0, false},
		"nothing":                     {respondOK(""), "GET", cluster.KindMalformed, 1, 0, false},
		"not an object":               {respondOK("[1]"), "GET", cluster.KindMalformed, 1, 0, false},
		"null":                        {respondOK("null"), "GET", cluster.KindMalformed, 1, 0, false},
		"no server in it":             {respondOK(`{"data":1}`), "GET", cluster.KindMalformed, 1, 0, false}, // the npm module evicts it
		"a server without id":         {respondOK(`{"data":1,"server":{}}`), "GET", cluster.KindMalformed, 1, 0, false},
		"a server that is no object":  {respondOK(`{"data":1,"server":"node-3"}`), "GET", cluster.KindMalformed, 1, 0, false},
		"endless":                     {endlessBody(false), "GET", cluster.KindTooLarge, 1, 0, false},
		"large, as it says itself":    {endlessBody(true), "GET", cluster.KindTooLarge, 1, 0, false},
		"truncated":                   {clustertest.Truncate(5), "GET", cluster.KindMalformed, 1, 0, false},
		"stalled after the headers":   {clustertest.Stall(0), "GET", cluster.KindTimeout, 1, timeout, false},
		"stalled half-way":            {clustertest.Stall(5), "GET", cluster.KindTimeout, 1, timeout, false},
		"an address nobody knows":     {clustertest.RouteTo("nowhere:8080"), "GET", cluster.KindRefused, 2, 10 * time.Millisecond, true},
		"a handler that panics":       {clustertest.Answer(abortHandler()), "POST", cluster.KindConnectionLost, 1, 0, true},
		"an answer without a content": {respond(http.StatusNoContent, ""), "GET", cluster.KindMalformed, 1, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 5, clustertest.WithHandler(anyMethod),
					clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxResponseBytes = 1 << 20 }))
				from, to := w.Nodes[0], w.Nodes[2]
				rpc(t, from, cluster.Request{Path: "/things"}) // so that there are tokens
				requests := recordRequests(w)
				w.Network.Fault(from.Host, to.Host, tt.fault)
				start := time.Now()
				res := rpc(t, from, cluster.Request{Method: tt.method, Path: "/things"})
				if took := time.Since(start); took != tt.took {
					t.Errorf("the call took %v, want %v", took, tt.took)
				}
				var got cluster.Outcome
				for _, o := range slices.Concat(res.Results, res.Failures) {
					if o.Server.ServerID == to.ID {
						got = o
					} else if o.Err != nil || o.Duration != 0 || o.Attempts != 1 {
						t.Errorf("%s: %v, %d attempts in %v", o.Server.ServerID, o.Err, o.Attempts, o.Duration)
					}
				}
				wantOneOutcomeEach(t, res, w.Nodes[1:])
				if got.Kind != tt.kind || got.Attempts != tt.attempts || got.Duration != tt.took || got.Evicted != tt.evicted || got.EvictionSkipped != nil {
					t.Errorf("got kind %q, %d attempts, %v, evicted %t, skipped: %v, want %+v", got.Kind, got.Attempts, got.Duration, got.Evicted, got.EvictionSkipped, tt)
				}
				if n := len(requests.matching(tt.method, from.Host, to.Host)); n != tt.attempts {
					t.Errorf("%d requests to it, and %d attempts", n, tt.attempts)
				}
				if (got.Err == nil) != (tt.kind == cluster.KindOK) || (got.Body == nil) != (got.Err != nil) || !isKind(got.Err, tt.kind) {
					t.Errorf("error %#v", got.Err)
				}
				if known := len(from.Servers()); known != 5 && !tt.evicted || known != 4 && tt.evicted {
					t.Errorf("%d servers are known afterwards", known)
				}
			})
		})
	}
}

func FuzzPeerResponse(f *testing.F) {
	for _, seed := range []struct {
		status uint16
		body   string
	}{
		{200, `{"data":["a"],"server":{"serverId":"node-2"}}`},
		{200, `{"data":{"a":[1]},"server":{"serverId":"node-2","more":1}}`},
		{200, `{"server":{"serverId":"node-2"}}`},
		{200, `{"data":null,"server":{"serverId":"node-2"}}`},
		{200, `{"data":[],"server":{"serverId":"node-2"}}`},
		{200, `{"data":["a"],"server":{"serverId":"node-3"}}`},
		{200, `{"data":["a"],"server":{"serverId":"node-1"}}`},
		{200, `{"data":["a"],"server":{}}`},
		{200, `{"data":["a"]}`},
		{200, `{"data":["a"],"server":"node-2"}`},
		{200, `{"server":{"serverId":"node-2"},"server":{"serverId":"node-3"}}`},
		{200, `{"server":{"serverId":"\u006eode-2"}}`},
		{200, `{"\u0073erver":{"server\u0049d":"node-2"},"d\u0061ta":1}`},
		{200, `{"SERVER":{"serverId":"node-2"}}`},
		{200, `{"server":{"serverid":"node-2"}}`},
		{200, `{"server":{"serverId":"node-2"},"server":{}}`},
		{200, `{"data":{"server":{"serverId":"node-3"}},"server":{"x":{"serverId":"node-3"},"serverId":"node-2"}}`},
		{200, `["node-2"]`},
		{200, `null`},
		{200, ``},
		{200, `<html>`},
		{206, `{"data":[1,`},
		{204, ``},
		{200, ` {"data" : [ 1 , [2] , null ] , "server" : {"serverId":"node-2"} } `},
		{200, `{"data":"\ud800","server":{"serverId":"node-2"}}`},
		{301, `{"data":["a"],"server":{"serverId":"node-2"}}`},
		{400, `{"statusCode":400,"message":"no","info":{"a":1}}`},
		{401, ``},
		{403, `{"message":"hidden-token-for-peers"}`},
		{404, `{"message":1}`},
		{429, `{"message":"hidden"}`},
		{500, `{"server":{"serverId":"node-3"}}`},
		{503, `oops`},
	} {
		f.Add(seed.status, []byte(seed.body))
	}
	f.Fuzz(func(t *testing.T, status uint16, body []byte) {
		o := &remotes{view: []string{"node-1", "node-2"}}
		c := newRegisteredNode(t, o)
		o.registry = func(r *http.Request) (int, string) {
			t.Errorf("mIT was asked to %s %s, and the peer did answer", r.Method, r.URL)
			return http.StatusInternalServerError, ""
		}
		asked := 0
		o.peer = func(r *http.Request) (*http.Response, error) {
			asked++
			return newHTTPResponse(r, validStatus(status), string(body)), nil
		}
		res, err := c.RPCluster(t.Context(), cluster.Request{Path: "/things"})
		if err != nil || len(res.Results)+len(res.Failures) != 1 {
			t.Fatalf("one peer, but the outcome is %+v, %v", res, err)
		}
		if len(checkView(t, c)) != 2 {
			t.Errorf("the view became %v", c.Servers())
		}
		var (
			said, server map[string]json.RawMessage // exactly so named, and the last of two counts
			id           string
		)
		good := validStatus(status)/100 == 2 && json.Unmarshal(body, &said) == nil && json.Unmarshal(said["server"], &server) == nil &&
			json.Unmarshal(server["serverId"], &id) == nil && id == "node-2"
		if good != (len(res.Results) == 1) {
			t.Fatalf("%d %q gives %+v", validStatus(status), body, res)
		}
		again := validStatus(status) == http.StatusUnauthorized || validStatus(status) == http.StatusForbidden
		if want := map[bool]int{false: 1, true: 2}[again]; asked != want {
			t.Errorf("%d requests, want %d", asked, want)
		}
		if !json.Valid([]byte(marshal(t, res))) {
			t.Errorf("the response marshals to %s", marshal(t, res))
		}
		if !good {
			got := res.Failures[0]
			if got.Evicted || got.EvictionSkipped != nil || !strings.Contains(got.Err.Error(), "node-2") || len(res.Data) != 0 || got.Body != nil {
				t.Errorf("it failed, with %+v", got)
			}
			want := []cluster.Kind{cluster.KindMalformed, cluster.KindWrongServer}
			if validStatus(status)/100 != 2 {
				want = []cluster.Kind{cluster.KindStatus}
			}
			if !slices.Contains(want, got.Kind) {
				t.Errorf("it failed as %q: %v", got.Kind, got.Err)
			}
			checkNoSecrets(t, got.Err)
			return
		}
		var elements []json.RawMessage
		switch {
		case len(said["data"]) == 0:
		case json.Unmarshal(said["data"], &elements) != nil:
			elements = []json.RawMessage{said["data"]}
		case elements == nil && string(said["data"]) == "null":
			elements = []json.RawMessage{said["data"]}
		}
		values, err := cluster.Decode[json.RawMessage](res)
		if err != nil || len(values) != len(elements) {
			t.Errorf("%q gives the joint data %q, want %q: %v", body, values, elements, err)
		}
	})
}

// Of a call that is ended early, every peer that has not answered says so.
func TestCallEndsBeforeItsPeersAnswer(t *testing.T) {
	errEnough := errors.New("enough")
	for name, tt := range map[string]struct {
		end  func(ctx context.Context, n *clustertest.Node) (context.Context, context.CancelFunc)
		want error
	}{
		"cancelled": {func(ctx context.Context, _ *clustertest.Node) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancelCause(ctx)
			time.AfterFunc(time.Second, func() { cancel(errEnough) })
			return ctx, func() { cancel(nil) }
		}, errEnough},
		"its deadline": {func(ctx context.Context, _ *clustertest.Node) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, time.Second)
		}, context.DeadlineExceeded},
		"Close": {func(ctx context.Context, n *clustertest.Node) (context.Context, context.CancelFunc) {
			time.AfterFunc(time.Second, func() { n.Close() })
			return ctx, func() {}
		}, cluster.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 5)
				n := w.Nodes[0]
				w.Network.Fault(n.Host, w.Nodes[2].Host, clustertest.Hang)
				w.Network.Fault(n.Host, w.Nodes[3].Host, clustertest.Delay(5*time.Second))
				w.Network.Fault(n.Host, w.Nodes[4].Host, clustertest.Stall(3))
				ctx, cancel := tt.end(t.Context(), n)
				defer cancel()
				start := time.Now()
				res, err := n.RPCluster(ctx, cluster.Request{Path: "/things"})
				if took := time.Since(start); took != time.Second || err != nil {
					t.Errorf("took %v, %v", took, err)
				}
				wantOneOutcomeEach(t, res, w.Nodes[1:])
				if diff := cmp.Diff([]string{"node-2"}, idsOfOutcomes(res.Results)); diff != "" {
					t.Errorf("results (-want +got):\n%s", diff)
				}
				for _, o := range res.Failures {
					if o.Kind != cluster.KindCanceled || !errors.Is(o.Err, tt.want) || o.Evicted || o.EvictionSkipped != nil || o.Duration != time.Second {
						t.Errorf("%s: %s, %v, evicted %t, skipped: %v after %v", o.Server.ServerID, o.Kind, o.Err, o.Evicted, o.EvictionSkipped, o.Duration)
					}
				}
			})
		})
	}
	t.Run("before all have had their turn", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 6, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = 3 }))
			n := w.Nodes[0]
			for _, peer := range w.Nodes[1:] {
				w.Network.Fault(n.Host, peer.Host, clustertest.Hang)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			res, err := n.RPCluster(ctx, cluster.Request{Path: "/things"})
			if err != nil {
				t.Fatal(err)
			}
			wantOneOutcomeEach(t, res, w.Nodes[1:])
			attempts := 0
			for _, o := range res.Failures {
				attempts += o.Attempts
				if o.Kind != cluster.KindCanceled || !errors.Is(o.Err, context.DeadlineExceeded) || o.Duration != time.Second {
					t.Errorf("%s: %s, %v, %d attempts in %v", o.Server.ServerID, o.Kind, o.Err, o.Attempts, o.Duration)
				}
			}
			if attempts != 3 {
				t.Errorf("%d peers were asked, want 3", attempts)
			}
		})
	})
	t.Run("before it begins", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 3)
			ctx, cancel := context.WithCancelCause(t.Context())
			cancel(errEnough)
			res, err := w.Nodes[0].RPCluster(ctx, cluster.Request{Path: "/things"})
			if err != nil {
				t.Fatal(err)
			}
			wantOneOutcomeEach(t, res, w.Nodes[1:])
			for _, o := range res.Failures {
				if o.Kind != cluster.KindCanceled || !errors.Is(o.Err, errEnough) || o.Attempts != 0 {
					t.Errorf("%s: %s, %v, %d attempts", o.Server.ServerID, o.Kind, o.Err, o.Attempts)
				}
			}
		})
	})
}

// Whatever happens to whichever peers, and whenever the call ends: results and failures are the
// peers, each once. In the npm module an unreachable peer is in neither.
func TestOneOutcomePerPeer(t *testing.T) {
	faults := map[string]clustertest.Fault{
		"none": nil, "refuse": clustertest.Refuse, "hang": clustertest.Hang, "reset": clustertest.Reset,
		"slow": clustertest.Delay(3 * time.Second), "500": clustertest.Status(500), "403": clustertest.Status(403),
		"once refused": clustertest.FirstN(1, clustertest.Refuse), "twice refused": clustertest.FirstN(2, clustertest.Refuse),
		"other": clustertest.RouteTo("node-1:8080"), "garbage": respondOK("?"),
		"truncate": clustertest.Truncate(9), "stall": clustertest.Stall(9),
	}
	names := slices.Sorted(func(yield func(string) bool) {
		for name := range faults {
			if !yield(name) {
				return
			}
		}
	})
	rapid.Check(t, func(rt *rapid.T) {
		broken := rapid.SliceOfN(rapid.SampledFrom(names), 0, 5).Draw(rt, "faults of the peers")
		registry := rapid.SampledFrom(names).Draw(rt, "fault of mIT")
		inFlight := rapid.IntRange(1, 7).Draw(rt, "in flight")
		share := rapid.SampledFrom([]float64{0, 1}).Draw(rt, "max share")
		method := rapid.SampledFrom([]string{"GET", "POST"}).Draw(rt, "method")
		end := rapid.SampledFrom([]time.Duration{0, 5 * time.Millisecond, 2 * time.Second, time.Hour}).Draw(rt, "end of the call")
		calls := rapid.IntRange(1, 2).Draw(rt, "calls at once")

		var problems []string
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 1+len(broken), clustertest.WithHandler(anyMethod),
				clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = inFlight }),
				clustertest.WithOptions(cluster.WithEviction(cluster.Eviction{MaxSuspectFraction: share})))
			n := w.Nodes[0]
			for i, name := range broken {
				w.Network.Fault(n.Host, w.Nodes[1+i].Host, faults[name])
			}
			w.Network.Fault(n.Host, clustertest.RegistryHost, faults[registry])
			ctx, cancel := context.WithTimeout(t.Context(), end)
			defer cancel()
			var wg sync.WaitGroup
			results := make([]*cluster.Response, calls)
			for i := range calls {
				wg.Go(func() {
					res, err := n.RPCluster(ctx, cluster.Request{Method: method, Path: "/things"})
					if err != nil {
						t.Error(err)
					}
					results[i] = res
				})
			}
			wg.Wait()
			for i, res := range results {
				problems = append(problems, outcomeProblems(res, expectedPeers(w.Nodes[1:], results, i))...)
			}
		})
		if problems != nil {
			rt.Fatal(problems)
		}
	})
}

// Whatever a call asks for, and whatever happens meanwhile: each peer that it asks stands once, nobody
// waits for longer than one timeout and mIT, and no more requests are under way than allowed.
func TestOneOutcomePerSelectedPeer(t *testing.T) {
	faults := map[string]clustertest.Fault{
		"none": nil, "refuse": clustertest.Refuse, "hang": clustertest.Hang, "reset": clustertest.Reset,
		"slow": clustertest.Delay(3 * time.Second), "500": clustertest.Status(500), "403": clustertest.Status(403),
		"once refused": clustertest.FirstN(1, clustertest.Refuse), "once hanging": clustertest.FirstN(1, clustertest.Hang),
		"once 403": clustertest.FirstN(1, clustertest.Status(403)), "stall": clustertest.Stall(9),
		"sometimes slow": clustertest.WithProbability(0.5, 1, clustertest.Delay(time.Second)),
	}
	names := slices.Sorted(maps.Keys(faults))
	rapid.Check(t, func(rt *rapid.T) {
		broken := rapid.SliceOfN(rapid.SampledFrom(names), 1, 6).Draw(rt, "faults of the peers")
		inFlight := rapid.IntRange(1, 9).Draw(rt, "in flight")
		type asked struct {
			req     cluster.Request
			at, end time.Duration
			breakAt int // outcomes of a stream to take; -1: no stream
			picked  []bool
		}
		calls := make([]asked, rapid.IntRange(1, 5).Draw(rt, "calls"))
		for i := range calls {
			c := &calls[i]
			c.picked = rapid.SliceOfN(rapid.SampledFrom([]bool{true, true, false}), len(broken), len(broken)).Draw(rt, "picked")
			c.req = cluster.Request{
				Path:       "/things",
				MinResults: rapid.IntRange(0, 3).Draw(rt, "need"),
				HedgeAfter: rapid.SampledFrom([]time.Duration{0, 5 * time.Millisecond, time.Second, 10 * time.Second}).Draw(rt, "hedge"),
				Timeout:    rapid.SampledFrom([]time.Duration{0, 20 * time.Millisecond, 2 * time.Second, 12 * time.Second}).Draw(rt, "timeout"),
			}
			c.at = rapid.SampledFrom([]time.Duration{0, time.Second, 11 * time.Second}).Draw(rt, "begin")
			c.end = rapid.SampledFrom([]time.Duration{0, 5 * time.Millisecond, 2 * time.Second, time.Hour, time.Hour}).Draw(rt, "end")
			c.breakAt = rapid.IntRange(-3, 2).Draw(rt, "break off")
		}
		closes := rapid.SampledFrom([]time.Duration{0, 0, 0, 1500 * time.Millisecond}).Draw(rt, "close")
		var (
			mu       sync.Mutex
			problems []string
		)
		problem := func(format string, args ...any) {
			mu.Lock()
			defer mu.Unlock()
			problems = append(problems, fmt.Sprintf(format, args...))
		}
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 1+len(broken), noEviction(),
				clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = inFlight }))
			n := w.Nodes[0]
			var now atomic.Int64
			for i, name := range broken {
				fault := faults[name]
				w.Network.Fault(n.Host, w.Nodes[1+i].Host, func(next http.RoundTripper) http.RoundTripper {
					if fault != nil {
						next = fault(next)
					}
					return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
						if req.URL.Path == "/things" || strings.HasSuffix(req.URL.Path, "/things") {
							defer now.Add(-1)
							if at := now.Add(1); at > int64(inFlight) && req.Context().Err() == nil {
								problem("%d requests at once", at)
							}
						}
						return next.RoundTrip(req)
					})
				})
			}
			if closes > 0 {
				time.AfterFunc(closes, func() { n.Close() })
			}
			var wg sync.WaitGroup
			for _, c := range calls {
				wg.Go(func() {
					time.Sleep(c.at)
					ctx, cancel := context.WithTimeout(t.Context(), c.end)
					defer cancel()
					var ids []string
					var peers []*clustertest.Node
					for i, picked := range c.picked {
						if picked {
							ids, peers = append(ids, w.Nodes[1+i].ID), append(peers, w.Nodes[1+i])
						}
					}
					c.req.Filter = onlyIDs(ids...)
					if c.breakAt >= 0 {
						took := 0
						for range n.Stream(ctx, c.req) {
							if took++; took > c.breakAt {
								break
							}
						}
						return
					}
					res, err := n.RPCluster(ctx, c.req)
					if err != nil {
						if !errors.Is(err, cluster.ErrClosed) {
							problem("%v", err)
						}
						return
					}
					for _, p := range outcomeProblems(res, peers) {
						problem("%s", p)
					}
				})
			}
			wg.Wait()
			synctest.Wait()
			if got := now.Load(); got != 0 {
				problem("%d requests are left", got)
			}
			if got := cluster.SlotsInFlight(n.Cluster); got != 0 {
				problem("%d places are lost", got)
			}
			if closes > 0 {
				return
			}
			// No turn has been lost.
			time.Sleep(time.Hour)
			w.Network.Fault(n.Host, clustertest.Any, nil)
			for _, peer := range w.Nodes[1:] {
				w.Network.Fault(n.Host, peer.Host, nil)
			}
			for range 2 * inFlight {
				wg.Go(func() {
					if res := rpc(t, n, cluster.Request{Path: "/things"}); len(res.Results) != len(broken) {
						for _, o := range res.Failures {
							if o.Kind != cluster.KindCircuitOpen { // until the first has found it well
								problem("in the end: %v", o.Err)
							}
						}
					}
				})
			}
			wg.Wait()
			if res := rpc(t, n, cluster.Request{Path: "/things"}); len(res.Results) != len(broken) {
				problem("at last: %v", failures(res))
			}
		})
		if problems != nil {
			rt.Fatal(problems)
		}
	})
}

// One bound for all calls of a node together.
func TestMaxInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now, most atomic.Int64
		w := clustertest.Start(t, 7,
			clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = 2 }),
			clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					defer now.Add(-1)
					if at := now.Add(1); at > most.Load() {
						most.Store(at)
					}
					time.Sleep(time.Second)
					n.Reply(w, r, nil)
				})
			}))
		start := time.Now()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				res := rpc(t, w.Nodes[0], cluster.Request{Path: "/things"})
				wantOneOutcomeEach(t, res, w.Nodes[1:])
				if len(res.Results) != 6 {
					t.Errorf("failures: %v", failures(res))
				}
			})
		}
		wg.Wait()
		// A second more if in the end two calls wait for one peer, which is asked by one at a time.
		if took := time.Since(start); most.Load() != 2 || took != 9*time.Second && took != 10*time.Second {
			t.Errorf("18 requests of 1 s took %v, %d of them at once; want 9 s, 2", took, most.Load())
		}
	})
}

// Calls that are under way together keep apart, so that no peer has to answer all at once, and there are
// not as many connections to each as there are calls.
func TestConcurrentCallsStartAtDifferentPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const peers, calls = 64, 8
		var most atomic.Int64
		w := fixedworld.Start(t, fixedworld.NewStore(fixedworld.Servers(0, peers)), 0, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = 2 * calls }))
		n := w.Join()
		for _, s := range n.Servers() {
			var now atomic.Int64
			w.Network.Fault(n.Host, s.ServerID+":8080", func(next http.RoundTripper) http.RoundTripper {
				return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
					defer now.Add(-1)
					if at := now.Add(1); at > most.Load() {
						most.Store(at)
					}
					time.Sleep(10 * time.Millisecond)
					return next.RoundTrip(req)
				})
			})
		}
		var wg sync.WaitGroup
		for i := range calls {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * time.Millisecond)
				for range 5 {
					if res := rpc(t, n, cluster.Request{Path: "/things"}); len(res.Results) != peers {
						t.Errorf("failures: %v", failures(res))
					}
				}
			})
		}
		wg.Wait()
		if got := most.Load(); got > 3 {
			t.Errorf("a peer was asked by %d calls at once", got)
		}
	})
}

func TestCustomer(t *testing.T) {
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
		if fetched := len(requests.matching("POST", w.Nodes[0].Host, clustertest.TokenHost)); fetched != 3 {
			t.Errorf("%d tokens were fetched for nobody and two customers", fetched)
		}
	})
}

// counting counts how often it is encoded.
type encodeCounter struct{ times *atomic.Int64 }

func (c encodeCounter) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, `{"encoded":%d}`, c.times.Add(1)), nil
}

// isKind tells whether err is of the type that the errors of a kind have.
func isKind(err error, kind cluster.Kind) bool {
	_, unreachable := errors.AsType[*cluster.UnreachableError](err)
	se, status := errors.AsType[*cluster.StatusError](err)
	wrong, other := errors.AsType[*cluster.WrongServerError](err)
	_, answer := errors.AsType[*cluster.InvalidResponseError](err)
	switch kind {
	case cluster.KindRefused, cluster.KindConnectionLost:
		return unreachable
	case cluster.KindTimeout:
		return (unreachable || answer) && errors.Is(err, context.DeadlineExceeded)
	case cluster.KindStatus:
		return status && se.Remote == `peer "node-3"` && se.Code >= 300
	case cluster.KindWrongServer:
		return other && wrong.Want == "node-3" && wrong.Got == "node-2"
	case cluster.KindMalformed:
		return answer
	case cluster.KindTooLarge:
		return answer && errors.Is(err, cluster.ErrResponseTooLarge)
	}
	return err == nil
}

// stillThere are the nodes that the i-th of some calls had to ask. One that begins when another
// has had a peer evicted need not ask that.
func expectedPeers(nodes []*clustertest.Node, results []*cluster.Response, i int) []*clustertest.Node {
	gone := map[string]bool{}
	for j, other := range results {
		for _, o := range other.Failures {
			gone[o.Server.ServerID] = gone[o.Server.ServerID] || j != i && o.Evicted
		}
	}
	asked := idsOfOutcomes(slices.Concat(results[i].Results, results[i].Failures))
	return slices.DeleteFunc(slices.Clone(nodes), func(n *clustertest.Node) bool {
		return gone[n.ID] && !slices.Contains(asked, n.ID)
	})
}

type unencodable struct{}

func (unencodable) MarshalJSON() ([]byte, error) { return nil, errors.New("cannot") }

func abortHandler() http.Handler {
	return http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
}
