package cluster_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
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
			return answering(`{` + answers[n.ID] + `"server":{"serverId":"` + n.ID + `"}}`)
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
				"node-2": answering(`{"data":["a"],"server":{"serverId":"node-2"},"more":1.50}`),
				"node-3": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					n.ReplyError(w, r, &cluster.StatusError{Code: 404, Message: "no such thing", Info: []byte(`{"id":1.50}`)})
				}),
				"node-4": answering(`{"data":"b"}`),
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
			`{"error":{"message":"peer \"node-4\" gave an unusable answer to GET http://node-4:8080/mds/v1: it does not say which server it is from",` +
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

// counting counts how often it is encoded.
type counting struct{ times *atomic.Int64 }

func (c counting) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, `{"encoded":%d}`, c.times.Add(1)), nil
}

func TestBody(t *testing.T) {
	for name, tt := range map[string]struct {
		body any
		want string // at each peer
		typ  string
	}{
		"encoded once for all peers and attempts": {counting{new(atomic.Int64)}, `{"encoded":1}`, "application/json"},
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

// One correlation id is on all that a call does: at mST, at mIT, at the peers.
func TestOneCorrelationIDPerCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		seen := keepLedger(w)
		w.Network.Down(w.Nodes[2].Host)
		const id = "an-id@0/2000-01-01T00:00:00.000Z"
		if _, err := w.Nodes[0].RPCluster(cluster.WithCorrelationID(t.Context(), id), cluster.Request{Path: "/things"}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		parties := map[string]bool{}
		for _, x := range seen.by(w.Nodes[0]) {
			parties[x.To] = true
			if got := x.Header.Get("X-Correlation-Id"); got != id {
				t.Errorf("%s %s%s has %q", x.Method, x.To, x.Path, got)
			}
		}
		if len(parties) != 4 {
			t.Errorf("asked %v, want mST, mIT and two peers", parties)
		}
		if _, err := w.Nodes[0].RPCluster(t.Context(), cluster.Request{Path: "/things"}); err != nil {
			t.Fatal(err)
		}
		last := seen.of("GET", w.Nodes[0].Host, w.Nodes[1].Host)
		if got := last[len(last)-1].Header.Get("X-Correlation-Id"); !strings.HasSuffix(got, "@0/"+time.Now().UTC().Format("2006-01-02T15:04:05.000Z")) {
			t.Errorf("without one in the context: %q, want a new one", got)
		}
	})
}

func TestNobodyToAsk(t *testing.T) {
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
				seen := keepLedger(w)
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
				if all := seen.by(n); len(all) != 0 {
					t.Errorf("%d requests were made", len(all))
				}
			})
		})
	}
}

// Whatever goes wrong with one peer of four, the others answer at once, and it stands once in the
// response, as what it is.
func TestEveryFault(t *testing.T) {
	const timeout = 10 * time.Second
	endless := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for chunk := make([]byte, 64<<10); ; {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	declared := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "2000000")
		w.WriteHeader(http.StatusOK)
	})
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
		"garbage":                     {clustertest.Answer(answering("<html>")), "GET", cluster.KindMalformed, 1, 0, false},
		"nothing":                     {clustertest.Answer(answering("")), "GET", cluster.KindMalformed, 1, 0, false},
		"not an object":               {clustertest.Answer(answering("[1]")), "GET", cluster.KindMalformed, 1, 0, false},
		"null":                        {clustertest.Answer(answering("null")), "GET", cluster.KindMalformed, 1, 0, false},
		"no server in it":             {clustertest.Answer(answering(`{"data":1}`)), "GET", cluster.KindMalformed, 1, 0, false}, // the npm module evicts it
		"a server without id":         {clustertest.Answer(answering(`{"data":1,"server":{}}`)), "GET", cluster.KindMalformed, 1, 0, false},
		"a server that is no object":  {clustertest.Answer(answering(`{"data":1,"server":"node-3"}`)), "GET", cluster.KindMalformed, 1, 0, false},
		"endless":                     {clustertest.Answer(endless), "GET", cluster.KindTooLarge, 1, 0, false},
		"large, as it says itself":    {clustertest.Answer(declared), "GET", cluster.KindTooLarge, 1, 0, false},
		"truncated":                   {clustertest.Truncate(5), "GET", cluster.KindMalformed, 1, 0, false},
		"stalled after the headers":   {clustertest.Stall(0), "GET", cluster.KindTimeout, 1, timeout, false},
		"stalled half-way":            {clustertest.Stall(5), "GET", cluster.KindTimeout, 1, timeout, false},
		"an address nobody knows":     {clustertest.RouteTo("nowhere:8080"), "GET", cluster.KindRefused, 2, 10 * time.Millisecond, true},
		"a handler that panics":       {clustertest.Answer(crashing()), "POST", cluster.KindConnectionLost, 1, 0, true},
		"an answer without a content": {clustertest.Answer(status(204)), "GET", cluster.KindMalformed, 1, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 5, clustertest.WithHandler(anyMethod),
					clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxResponseBytes = 1 << 20 }))
				from, to := w.Nodes[0], w.Nodes[2]
				rpc(t, from, cluster.Request{Path: "/things"}) // so that there are tokens
				seen := keepLedger(w)
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
				wantOnce(t, res, w.Nodes[1:])
				if got.Kind != tt.kind || got.Attempts != tt.attempts || got.Duration != tt.took || got.Evicted != tt.evicted || got.EvictionSkipped != nil {
					t.Errorf("got kind %q, %d attempts, %v, evicted %t, spared %v, want %+v", got.Kind, got.Attempts, got.Duration, got.Evicted, got.EvictionSkipped, tt)
				}
				if n := len(seen.of(tt.method, from.Host, to.Host)); n != tt.attempts {
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

// Of a call that is ended early, every peer that has not answered says so.
func TestCallEndsEarly(t *testing.T) {
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
				wantOnce(t, res, w.Nodes[1:])
				if diff := cmp.Diff([]string{"node-2"}, idsOfOutcomes(res.Results)); diff != "" {
					t.Errorf("results (-want +got):\n%s", diff)
				}
				for _, o := range res.Failures {
					if o.Kind != cluster.KindCanceled || !errors.Is(o.Err, tt.want) || o.Evicted || o.EvictionSkipped != nil || o.Duration != time.Second {
						t.Errorf("%s: %s, %v, evicted %t, spared %v after %v", o.Server.ServerID, o.Kind, o.Err, o.Evicted, o.EvictionSkipped, o.Duration)
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
			wantOnce(t, res, w.Nodes[1:])
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
			wantOnce(t, res, w.Nodes[1:])
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
func TestEveryPeerOnce(t *testing.T) {
	faults := map[string]clustertest.Fault{
		"none": nil, "refuse": clustertest.Refuse, "hang": clustertest.Hang, "reset": clustertest.Reset,
		"slow": clustertest.Delay(3 * time.Second), "500": clustertest.Status(500), "403": clustertest.Status(403),
		"once refused": clustertest.FirstN(1, clustertest.Refuse), "twice refused": clustertest.FirstN(2, clustertest.Refuse),
		"other": clustertest.RouteTo("node-1:8080"), "garbage": clustertest.Answer(answering("?")),
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
				problems = append(problems, once(res, stillThere(w.Nodes[1:], results, i))...)
			}
		})
		if problems != nil {
			rt.Fatal(problems)
		}
	})
}

// stillThere are the nodes that the i-th of some calls had to ask. One that begins when another
// has had a peer evicted need not ask that.
func stillThere(nodes []*clustertest.Node, results []*cluster.Response, i int) []*clustertest.Node {
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

func TestStream(t *testing.T) {
	t.Run("as they arrive, suspects last", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 6)
			n := w.Nodes[0]
			w.Network.Fault(n.Host, w.Nodes[1].Host, clustertest.Delay(3*time.Second))
			w.Network.Fault(n.Host, w.Nodes[2].Host, clustertest.Refuse)
			w.Network.Fault(n.Host, w.Nodes[3].Host, clustertest.Chain(clustertest.Delay(2*time.Second), clustertest.Status(500)))
			w.Network.Fault(n.Host, w.Nodes[5].Host, clustertest.Delay(time.Second))
			type arrival struct {
				ID string
				At time.Duration
			}
			var got []arrival
			start := time.Now()
			for o := range n.Stream(t.Context(), cluster.Request{Path: "/things"}) {
				got = append(got, arrival{o.Server.ServerID, time.Since(start)})
				if gone := o.Server.ServerID == "node-3"; gone != o.Evicted {
					t.Errorf("%s: evicted %t", o.Server.ServerID, o.Evicted)
				}
			}
			want := []arrival{{"node-5", 0}, {"node-6", time.Second}, {"node-4", 2 * time.Second}, {"node-2", 3 * time.Second}, {"node-3", 3 * time.Second}}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	})
	t.Run("breaking off ends the rest", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 6)
			n := w.Nodes[0]
			w.Network.Fault(n.Host, w.Nodes[1].Host, clustertest.Delay(time.Second))
			for _, peer := range w.Nodes[2:] {
				w.Network.Fault(n.Host, peer.Host, clustertest.Hang)
			}
			seen := keepLedger(w)
			start := time.Now()
			for o := range n.Stream(t.Context(), cluster.Request{Path: "/things"}) {
				if o.Server.ServerID != "node-2" {
					t.Errorf("%s came first: %v", o.Server.ServerID, o.Err)
				}
				break
			}
			if took := time.Since(start); took != time.Second {
				t.Errorf("took %v", took)
			}
			over := 0 // by now, without waiting for anything: so no goroutine is left
			for _, x := range seen.of("GET", n.Host, clustertest.Any) {
				if x.To != w.Nodes[1].Host {
					over++
					if !errors.Is(x.Err, context.Canceled) {
						t.Errorf("the request to %s ended with %v", x.To, x.Err)
					}
				}
			}
			if over != 4 {
				t.Errorf("%d of 4 hanging requests are over", over)
			}
			time.Sleep(time.Minute)
			if len(n.Servers()) != 6 {
				t.Error("peers were evicted for a call that was broken off")
			}
		})
	})
	t.Run("of a request that is wrong", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 3)
			seen := keepLedger(w)
			got := slices.Collect(w.Nodes[0].Stream(t.Context(), cluster.Request{Path: "things"}))
			if len(got) != 1 || got[0].Err == nil || got[0].Kind != cluster.KindInvalid || got[0].Server.ServerID != "" {
				t.Errorf("got %+v", got)
			}
			if all := seen.by(w.Nodes[0]); len(all) != 0 {
				t.Errorf("%d requests were made", len(all))
			}
		})
	})
	t.Run("again and again", func(t *testing.T) { // a sequence may be ranged over more than once
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 3)
			seq := w.Nodes[0].Stream(t.Context(), cluster.Request{Path: "/things"})
			w.Join()
			for range 2 {
				if got := len(slices.Collect(seq)); got != 3 {
					t.Errorf("%d outcomes, want those of the peers there are when it is ranged over", got)
				}
			}
		})
	})
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
				seen := keepLedger(w)
				start := time.Now()
				res, err := w.Nodes[0].RPCluster(t.Context(), req)
				if err == nil || res != nil || !errors.Is(err, cluster.ErrInvalidRequest) {
					t.Errorf("got %v, %v", res, err)
				}
				if took := time.Since(start); took != 0 {
					t.Errorf("took %v", took)
				}
				if all := seen.by(w.Nodes[0]); len(all) != 0 {
					t.Errorf("%d requests were made", len(all))
				}
			})
		})
	}
}

type unencodable struct{}

func (unencodable) MarshalJSON() ([]byte, error) { return nil, errors.New("cannot") }

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
				wantOnce(t, res, w.Nodes[1:])
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

// A peer that hangs costs one timeout, and nobody but itself; the npm module waits three
// timeouts and two pauses: 32 s.
func TestHangingPeerCostsOneTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 10)
		w.Network.Fault(clustertest.Any, w.Nodes[4].Host, clustertest.Hang)
		start := time.Now()
		arrived := 0
		for o := range w.Nodes[0].Stream(t.Context(), cluster.Request{Path: "/things"}) {
			arrived++
			if at := time.Since(start); o.Err == nil && at != 0 || o.Err != nil && at != 10*time.Second {
				t.Errorf("%s: %v at %v", o.Server.ServerID, o.Err, at)
			}
		}
		if took := time.Since(start); arrived != 9 || took != 10*time.Second {
			t.Errorf("%d outcomes in %v", arrived, took)
		}
	})
}

func TestRetry(t *testing.T) {
	never := cluster.Retry{MaxRetries: -1}
	reference := cluster.RetryNPM()
	thrice := cluster.Retry{MaxRetries: 3, Delay: time.Second}
	conflicts := cluster.Retry{RetryIf: func(method string, err error) bool {
		se, ok := errors.AsType[*cluster.StatusError](err)
		return ok && se.Code == 409 && method == "PUT"
	}}
	for name, tt := range map[string]struct {
		retry    cluster.Retry
		method   string
		fault    clustertest.Fault
		timeout  time.Duration
		attempts int
		executed int // by the peer
		took     time.Duration
	}{
		"default: cannot be dialled":           {cluster.Retry{}, "GET", clustertest.Refuse, 0, 2, 0, 10 * time.Millisecond},
		"default: cannot be dialled, POST":     {cluster.Retry{}, "POST", clustertest.Refuse, 0, 2, 0, 10 * time.Millisecond},
		"default: POST, the second goes well":  {cluster.Retry{}, "POST", clustertest.FirstN(1, clustertest.Refuse), 0, 2, 1, 10 * time.Millisecond},
		"default: breaks, GET":                 {cluster.Retry{}, "GET", clustertest.Reset, 0, 2, 2, 10 * time.Millisecond},
		"default: breaks, PUT":                 {cluster.Retry{}, "PUT", clustertest.Reset, 0, 2, 2, 10 * time.Millisecond},
		"default: breaks, DELETE":              {cluster.Retry{}, "DELETE", clustertest.Reset, 0, 2, 2, 10 * time.Millisecond},
		"default: breaks, OPTIONS":             {cluster.Retry{}, "OPTIONS", clustertest.Reset, 0, 2, 2, 10 * time.Millisecond},
		"default: breaks, POST: at most once":  {cluster.Retry{}, "POST", clustertest.Reset, 0, 1, 1, 0},
		"default: breaks, PATCH: at most once": {cluster.Retry{}, "PATCH", clustertest.Reset, 0, 1, 1, 0},
		"default: too late, POST":              {cluster.Retry{}, "POST", slowAnswer(11 * time.Second), 0, 1, 1, 10 * time.Second},
		"default: hangs, GET":                  {cluster.Retry{}, "GET", clustertest.Hang, 0, 1, 0, 10 * time.Second},
		"default: 503":                         {cluster.Retry{}, "GET", clustertest.Status(503), 0, 1, 0, 0},
		"default: 429":                         {cluster.Retry{}, "GET", clustertest.Status(429), 0, 1, 0, 0},
		"reference: cannot be dialled":         {reference, "GET", clustertest.Refuse, 0, 3, 0, 2 * time.Second},
		"reference: breaks, POST":              {reference, "POST", clustertest.Reset, 0, 3, 3, 2 * time.Second},
		"reference: hangs":                     {reference, "GET", clustertest.Hang, 0, 3, 0, 32 * time.Second},
		"reference: 503":                       {reference, "POST", clustertest.Status(503), 0, 3, 0, 2 * time.Second},
		"reference: 429":                       {reference, "POST", clustertest.Status(429), 0, 3, 0, 2 * time.Second},
		"reference: 404":                       {reference, "GET", clustertest.Status(404), 0, 1, 0, 0},
		"reference: the third goes well":       {reference, "POST", clustertest.FirstN(2, clustertest.Status(500)), 0, 3, 1, 2 * time.Second},
		"reference: none begins after 50 s":    {reference, "GET", clustertest.Hang, 30 * time.Second, 2, 0, 61 * time.Second},
		"never":                                {never, "GET", clustertest.Refuse, 0, 1, 0, 0},
		"thrice":                               {thrice, "GET", clustertest.Refuse, 0, 4, 0, 3 * time.Second},
		"thrice: hangs":                        {thrice, "GET", clustertest.Hang, 0, 1, 0, 10 * time.Second},
		"what I say":                           {conflicts, "PUT", clustertest.Status(409), 0, 2, 0, 10 * time.Millisecond},
		"what I say: else never":               {conflicts, "POST", clustertest.Status(409), 0, 1, 0, 0},
	} {
		for _, own := range []bool{false, true} {
			where := "of the node"
			if own {
				where = "of the request"
			}
			t.Run(name+"/"+where, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var executed atomic.Int64
					ofNode, req := tt.retry, cluster.Request{Method: tt.method, Path: "/things", Timeout: tt.timeout}
					if own {
						ofNode, req.Retry = cluster.Retry{MaxRetries: 7, Delay: time.Minute}, &tt.retry
					}
					w := clustertest.Start(t, 2,
						clustertest.WithOptions(cluster.WithRetry(ofNode), cluster.WithEviction(cluster.Eviction{Disabled: true})),
						clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
							return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
								executed.Add(1)
								n.Reply(w, r, nil)
							})
						}))
					w.Network.Fault(w.Nodes[0].Host, w.Nodes[1].Host, tt.fault)
					start := time.Now()
					res := rpc(t, w.Nodes[0], req)
					wantOnce(t, res, w.Nodes[1:])
					got := slices.Concat(res.Results, res.Failures)[0]
					if took := time.Since(start); got.Attempts != tt.attempts || int(executed.Load()) != tt.executed || took != tt.took || got.Duration != took {
						t.Errorf("%d attempts, executed %d times, in %v; want %d, %d, %v", got.Attempts, executed.Load(), took, tt.attempts, tt.executed, tt.took)
					}
				})
			})
		}
	}
	t.Run("the pause ends with the call", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 2, clustertest.WithOptions(cluster.WithRetry(cluster.RetryNPM())))
			w.Network.Down(w.Nodes[1].Host)
			ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
			defer cancel()
			start := time.Now()
			res, err := w.Nodes[0].RPCluster(ctx, cluster.Request{Path: "/things"})
			if err != nil {
				t.Fatal(err)
			}
			if o := onlyFailure(t, res); time.Since(start) != 1500*time.Millisecond || o.Kind != cluster.KindCanceled || o.Attempts != 2 {
				t.Errorf("%s after %v and %d attempts", o.Kind, time.Since(start), o.Attempts)
			}
		})
	})
}

// slowAnswer has requests handled at once, and their answers delayed.
func slowAnswer(d time.Duration) clustertest.Fault {
	return func(next http.RoundTripper) http.RoundTripper {
		return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
			resp, err := next.RoundTrip(req)
			if err != nil {
				return nil, err
			}
			select {
			case <-time.After(d):
				return resp, nil
			case <-req.Context().Done():
				resp.Body.Close()
				return nil, context.Cause(req.Context())
			}
		})
	}
}

// Peers that refuse a token get another one, once, whatever their number: 403 is how mimik's
// parties say it, 401 what one says whose key has changed.
func TestRefusedToken(t *testing.T) {
	for _, code := range []int{http.StatusForbidden, http.StatusUnauthorized} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 6, clustertest.WithHandler(anyMethod))
				n := w.Nodes[0]
				seen := keepLedger(w)
				rpc(t, n, cluster.Request{Path: "/things"})
				old := seen.of("GET", n.Host, w.Nodes[1].Host)[0].Header.Get("Authorization")
				for i, peer := range w.Nodes[1:] { // one after the other: the last when the new one is long there
					w.Network.Fault(n.Host, peer.Host, clustertest.If(func(r *http.Request) bool {
						return r.Header.Get("Authorization") == old
					}, clustertest.Chain(clustertest.Delay(time.Duration(1+i)*time.Second), clustertest.Status(code))))
				}
				fetched := len(seen.of("POST", n.Host, clustertest.TokenHost))
				res := rpc(t, n, cluster.Request{Method: "POST", Path: "/things"})
				if len(res.Results) != 5 {
					t.Errorf("failures: %v", failures(res))
				}
				if extra := len(seen.of("POST", n.Host, clustertest.TokenHost)) - fetched; extra != 1 {
					t.Errorf("%d tokens were fetched, want 1", extra)
				}
				for _, peer := range w.Nodes[1:] {
					if asked := len(seen.of("POST", n.Host, peer.Host)); asked != 2 {
						t.Errorf("%s was asked %d times", peer.ID, asked)
					}
				}
			})
		})
	}
}

// Peers that refuse every token are failures. They cost mST one token a call, and each peer two
// requests at most, however many there are and however few may be asked at once.
func TestRefusedForGood(t *testing.T) {
	for _, inFlight := range []int{256, 2, 1} {
		t.Run(fmt.Sprintf("%d in flight", inFlight), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 7, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = inFlight }))
				n := w.Nodes[0]
				rpc(t, n, cluster.Request{Path: "/things"})
				w.Network.Fault(n.Host, clustertest.Any, clustertest.If(func(r *http.Request) bool {
					return strings.HasPrefix(r.URL.Host, "node-")
				}, clustertest.Status(403)))
				seen := keepLedger(w)
				for call := 1; call <= 3; call++ {
					res := rpc(t, n, cluster.Request{Path: "/things"})
					wantOnce(t, res, w.Nodes[1:])
					for _, o := range res.Failures {
						if se, ok := errors.AsType[*cluster.StatusError](o.Err); !ok || se.Code != 403 || o.Kind != cluster.KindStatus || o.Evicted || o.EvictionSkipped != nil {
							t.Errorf("%s: %s, %v, evicted %t, spared %v", o.Server.ServerID, o.Kind, o.Err, o.Evicted, o.EvictionSkipped)
						}
					}
					if len(res.Failures) != 6 || len(n.Servers()) != 7 {
						t.Errorf("%d failures, %d servers", len(res.Failures), len(n.Servers()))
					}
					if fetched := len(seen.of("POST", n.Host, clustertest.TokenHost)); fetched > call {
						t.Errorf("%d tokens were fetched for %d calls", fetched, call)
					}
					for _, peer := range w.Nodes[1:] {
						if asked := len(seen.of("GET", n.Host, peer.Host)); asked > 2*call {
							t.Errorf("%s was asked %d times by %d calls", peer.ID, asked, call)
						}
					}
				}
			})
		})
	}
}

// A peer that refuses the token while mST has no other one did answer.
func TestRefusedTokenAndNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Nodes[0]
		rpc(t, n, cluster.Request{Path: "/things"})
		w.Network.Fault(n.Host, w.Nodes[1].Host, clustertest.Status(403))
		w.Network.Down(clustertest.TokenHost)
		o := onlyFailure(t, rpc(t, n, cluster.Request{Path: "/things"}))
		if se, ok := errors.AsType[*cluster.StatusError](o.Err); !ok || se.Code != 403 || o.Kind != cluster.KindStatus || o.Evicted {
			t.Errorf("%s, %v, evicted %t", o.Kind, o.Err, o.Evicted)
		}
	})
}

// A node needs one token for mIT and one for all its peers; the npm module fetches N + 1 to
// speak to N peers.
func TestOneTokenPerAudienceAndKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		seen := keepLedger(w)
		for range 6 {
			w.Join()
		}
		for range 3 {
			rpc(t, w.Nodes[0], cluster.Request{Path: "/things"})
		}
		for _, n := range w.Nodes {
			if fetched := len(seen.of("POST", n.Host, clustertest.TokenHost)); fetched != 2 {
				t.Errorf("%s fetched %d tokens", n.ID, fetched)
			}
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
		seen := keepLedger(w)
		for _, customer := range []string{"", "acme", "acme", "other", ""} {
			got, err := cluster.Decode[string](rpc(t, w.Nodes[0], cluster.Request{Path: "/things", Customer: customer}))
			want := "cluster token of mds for " + customer
			if diff := cmp.Diff([]string{want, want}, got); diff != "" || err != nil {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
		}
		if fetched := len(seen.of("POST", w.Nodes[0].Host, clustertest.TokenHost)); fetched != 3 {
			t.Errorf("%d tokens were fetched for nobody and two customers", fetched)
		}
	})
}

func TestNoToken(t *testing.T) {
	for name, tt := range map[string]struct {
		fault clustertest.Fault
		took  time.Duration
	}{
		"mST is down":    {clustertest.Refuse, 0},
		"mST hangs":      {clustertest.Hang, 10 * time.Second},
		"mST answers no": {clustertest.Status(401), 0},
		"mST is garbage": {clustertest.Answer(answering("?")), 0},
	} {
		for _, nodes := range []int{4, 2} { // of two, mIT alone would decide on a suspect
			t.Run(fmt.Sprintf("%s/%d nodes", name, nodes), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := clustertest.Start(t, nodes)
					n := w.Nodes[0] // it has spoken to no peer yet
					w.Network.Fault(n.Host, clustertest.TokenHost, tt.fault)
					seen := keepLedger(w)
					start := time.Now()
					res := rpc(t, n, cluster.Request{Path: "/things"})
					if took := time.Since(start); took != tt.took {
						t.Errorf("took %v, want %v", took, tt.took)
					}
					wantOnce(t, res, w.Nodes[1:])
					for _, o := range res.Failures {
						if _, ok := errors.AsType[*cluster.TokenError](o.Err); !ok || o.Kind != cluster.KindNoToken || o.Attempts != 0 || o.Evicted || o.EvictionSkipped != nil {
							t.Errorf("%s: %s, %v, %d attempts, evicted %t, spared %v", o.Server.ServerID, o.Kind, o.Err, o.Attempts, o.Evicted, o.EvictionSkipped)
						}
					}
					if len(res.Failures) != nodes-1 || len(n.Servers()) != nodes {
						t.Errorf("%d failures, %d servers", len(res.Failures), len(n.Servers()))
					}
					if all := seen.by(n); len(all) != 1 {
						t.Errorf("%d requests, want the one to mST", len(all))
					}
				})
			})
		}
	}
	t.Run("the call ends first", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 3)
			w.Network.Fault(clustertest.Any, clustertest.TokenHost, clustertest.Hang)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start := time.Now()
			res, err := w.Nodes[0].RPCluster(ctx, cluster.Request{Path: "/things"})
			if err != nil {
				t.Fatal(err)
			}
			wantOnce(t, res, w.Nodes[1:])
			for _, o := range res.Failures {
				if o.Kind != cluster.KindCanceled || !errors.Is(o.Err, context.DeadlineExceeded) {
					t.Errorf("%s: %s, %v", o.Server.ServerID, o.Kind, o.Err)
				}
			}
			if took := time.Since(start); took != time.Second {
				t.Errorf("took %v", took)
			}
		})
	})
}

// rpc has a node ask its peers what is a proper request.
func rpc(t *testing.T, n *clustertest.Node, req cluster.Request) *cluster.Response {
	t.Helper()
	res, err := n.RPCluster(t.Context(), req)
	if err != nil {
		t.Errorf("RPCluster: %v", err)
		return &cluster.Response{}
	}
	return res
}

// onlyFailure is the one failure that there must be.
func onlyFailure(t *testing.T, res *cluster.Response) cluster.Outcome {
	t.Helper()
	if len(res.Failures) != 1 {
		t.Errorf("%d failures, want one: %v", len(res.Failures), failures(res))
		return cluster.Outcome{}
	}
	return res.Failures[0]
}

// once says what is wrong with a response to a call that asked the given nodes.
func once(res *cluster.Response, asked []*clustertest.Node) (problems []string) {
	times := map[string]int{}
	for _, o := range res.Results {
		times[o.Server.ServerID]++
		if o.Err != nil || o.Kind != cluster.KindOK {
			problems = append(problems, fmt.Sprintf("%s is a result with %s, %v", o.Server.ServerID, o.Kind, o.Err))
		}
	}
	for _, o := range res.Failures {
		times[o.Server.ServerID]++
		if o.Err == nil || o.Kind == cluster.KindOK || o.Kind == "" {
			problems = append(problems, fmt.Sprintf("%s is a failure without a reason: kind %q, %v", o.Server.ServerID, o.Kind, o.Err))
		}
	}
	for _, n := range asked {
		if times[n.ID] != 1 {
			problems = append(problems, fmt.Sprintf("%s is there %d times", n.ID, times[n.ID]))
		}
	}
	if len(times) != len(asked) {
		problems = append(problems, fmt.Sprintf("%d peers were asked, %d answer", len(asked), len(times)))
	}
	for _, list := range [][]cluster.Outcome{res.Results, res.Failures} {
		if !slices.IsSorted(idsOfOutcomes(list)) {
			problems = append(problems, fmt.Sprintf("not in the order of the servers: %v", idsOfOutcomes(list)))
		}
	}
	return problems
}

func wantOnce(t *testing.T, res *cluster.Response, asked []*clustertest.Node) {
	t.Helper()
	for _, problem := range once(res, asked) {
		t.Error(problem)
	}
}

func failures(res *cluster.Response) (errs []error) {
	for _, o := range res.Failures {
		errs = append(errs, o.Err)
	}
	return errs
}

func marshal(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// answering answers with a body, whatever it is asked.
func answering(body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, body)
	})
}

func status(code int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) })
}

func crashing() http.Handler {
	return http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
}

// anyMethod serves the node's id by whatever method.
func anyMethod(n *clustertest.Node) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { n.Reply(w, r, []string{n.ID}) })
}

// by are all exchanges that a node began.
func (l *ledger) by(n *clustertest.Node) (found []clustertest.Exchange) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, x := range l.list {
		if x.From == n.Host {
			found = append(found, x)
		}
	}
	return found
}

// Whoever recovers from a panic of a function of his has lost the call, and nothing else.
func TestPanicLosesNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Nodes[0]
		w.Network.Fault(n.Host, w.Nodes[1].Host, clustertest.FirstN(1, clustertest.Refuse))
		func() {
			defer func() {
				if recover() == nil {
					t.Error("nobody panicked")
				}
			}()
			rpc(t, n, cluster.Request{Path: "/things", Retry: &cluster.Retry{RetryIf: func(string, error) bool { panic("of the caller's") }}})
		}()
		if got := cluster.PlacesTaken(n.Cluster); got != 0 {
			t.Errorf("%d places are taken", got)
		}
		if res := rpc(t, n, cluster.Request{Path: "/things"}); len(res.Results) != 1 {
			t.Errorf("failures %v", failures(res))
		}
	})
}
