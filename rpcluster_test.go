package cluster_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
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
	"github.com/mimiktech/cluster/internal/fixedworld"
	"github.com/mimiktech/cluster/mit"
)

func TestJointData(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		bodies := map[string]string{
			"node-2": `"data":["a",{"b":1}],`,
			"node-3": `"data":"c",`,
			"node-4": `"data":null,`,
			"node-5": ``, // the npm module adds undefined, which JSON encodes as null
			"node-6": `"data":[],`,
			"node-7": `"data": {"d":[1.50]},`,
			"node-8": `"data":[["e"]],`,
		}
		w := clustertest.Start(t, 8, clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
			return responder(http.StatusOK, `{`+bodies[n.ID]+`"server":{"serverId":"`+n.ID+`"}}`)
		}))
		for i, n := range w.Nodes { // the responses arrive in reverse order
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

// The JSON has the shape of the npm module. "kind" and the fields after it are additions.
func TestResponseAsJSON(t *testing.T) {
	parallel(t)
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
			`{"error":{"message":"peer \"node-4\" gave an invalid response to GET http://node-4:8080/mds/v1/things: it does not say which server it is from",` +
			`"kind":"malformed","attempts":1,"evicted":false},"server":` + server(4) + `},` +
			`{"error":{"message":"peer \"node-5\" cannot be reached by GET http://node-5:8080/mds/v1/things: dial tcp node-5:8080: connect: connection refused",` +
			`"kind":"refused","attempts":2,"evicted":false,"evictionSkipped":"eviction is off"},"server":` + server(5) + `}]}`
		if diff := cmp.Diff(want, marshal(t, res)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		checkWriteTo(t, res)
		unverified := rpc(t, w.Nodes[0], cluster.Request{Path: "/things", Method: http.MethodHead})
		checkWriteTo(t, unverified)
		checkWriteTo(t, &cluster.Response{Data: []json.RawMessage{}, Results: []cluster.Outcome{}, Failures: []cluster.Outcome{}})
	})
}

// checkWriteTo checks that WriteTo writes what json.Marshal returns, and reports a failure.
func checkWriteTo(t *testing.T, res *cluster.Response) {
	t.Helper()
	var got bytes.Buffer
	n, err := res.WriteTo(&got)
	if diff := cmp.Diff(marshal(t, res), got.String()); diff != "" || err != nil || n != int64(got.Len()) {
		t.Errorf("WriteTo returns %d, %v (-want +got):\n%s", n, err, diff)
	}
	if n, err := res.WriteTo(failingWriter{}); n != 0 || !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("WriteTo to a closed connection returns %d, %v", n, err)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

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
	t.Run("an error names the index of the element", func(t *testing.T) {
		got, err := cluster.Decode[thing](&cluster.Response{Data: []json.RawMessage{[]byte(`{}`), []byte(`{"name":1}`)}})
		if _, ok := errors.AsType[*json.UnmarshalTypeError](err); !ok || got != nil || !strings.HasPrefix(err.Error(), "cluster: element 1 of the joint data: ") {
			t.Errorf("got %v, %v", got, err)
		}
	})
	t.Run("nil, as after an error", func(t *testing.T) {
		if got, err := cluster.Decode[thing](nil); len(got) != 0 || err != nil {
			t.Errorf("got %v, %v", got, err)
		}
	})
}

func TestCallWithoutPeers(t *testing.T) {
	parallel(t)
	for name, tt := range map[string]struct {
		node func(w *clustertest.World) *clustertest.Node
		want error
	}{
		"no peers":         {func(w *clustertest.World) *clustertest.Node { return w.Join() }, nil},
		"before Register":  {func(w *clustertest.World) *clustertest.Node { return w.Add() }, cluster.ErrNotRegistered},
		"management off":   {func(w *clustertest.World) *clustertest.Node { return w.Join() }, cluster.ErrManagementOff},
		"after Close":      {func(w *clustertest.World) *clustertest.Node { n := w.Join(); n.Close(); return n }, cluster.ErrClosed},
		"never registered": {func(w *clustertest.World) *clustertest.Node { n := w.Add(); n.Close(); return n }, cluster.ErrClosed},
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
					t.Errorf("streamed %v, want only the error", streamed)
				}
				if all := requests.sentBy(n); len(all) != 0 {
					t.Errorf("%d requests", len(all))
				}
			})
		})
	}
}

// A node that has not registered yet calls the peers that have announced themselves to it.
func TestCallBeforeRegister(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Add()
		announce(t, w, n, announcement())
		if _, err := n.RPCluster(t.Context(), cluster.Request{Path: "/things"}); !errors.Is(err, cluster.ErrNotRegistered) {
			t.Errorf("after an announcement of no server: %v", err)
		}
		announce(t, w, n, marshal(t, map[string]any{"id": mit.ResourceID("mds"), "publicBaseUrl": "http://x", "servers": w.Registered()}))
		if res := rpc(t, n, cluster.Request{Path: "/things"}); len(res.Results) != 2 {
			t.Errorf("%d results, %v", len(res.Results), failures(res))
		}
	})
}

// A fault of one peer neither delays nor fails the other three. The outcome of the peer has the
// right kind.
func TestFaultsOfOnePeer(t *testing.T) {
	parallel(t)
	const timeout = 10 * time.Second
	for name, tt := range map[string]struct {
		fault    clustertest.Fault
		method   string
		kind     cluster.Kind
		attempts int
		took     time.Duration
		evicted  bool
	}{
		"none":               {nil, "GET", cluster.KindOK, 1, 0, false},
		"refused":            {clustertest.Refuse, "GET", cluster.KindRefused, 2, 10 * time.Millisecond, true},
		"refused once":       {clustertest.FirstN(1, clustertest.Refuse), "POST", cluster.KindOK, 2, 10 * time.Millisecond, false},
		"hanging":            {clustertest.Hang, "GET", cluster.KindTimeout, 1, timeout, true},
		"slow":               {clustertest.Delay(9 * time.Second), "GET", cluster.KindOK, 1, 9 * time.Second, false},
		"too slow":           {clustertest.Delay(11 * time.Second), "GET", cluster.KindTimeout, 1, timeout, true},
		"slow, then refused": {clustertest.Chain(clustertest.Delay(time.Second), clustertest.Refuse), "GET", cluster.KindRefused, 2, 2*time.Second + 10*time.Millisecond, true},
		"reset":              {clustertest.Reset, "GET", cluster.KindConnectionLost, 2, 10 * time.Millisecond, true},
		"reset once":         {clustertest.FirstN(1, clustertest.Reset), "GET", cluster.KindOK, 2, 10 * time.Millisecond, false},
		"reset, POST":        {clustertest.Reset, "POST", cluster.KindConnectionLost, 1, 0, true},
		"400":                {clustertest.Status(400), "GET", cluster.KindStatus, 1, 0, false},
		"401":                {clustertest.Status(401), "GET", cluster.KindStatus, 2, 0, false},
		"403":                {clustertest.Status(403), "GET", cluster.KindStatus, 2, 0, false},
		"404":                {clustertest.Status(404), "GET", cluster.KindStatus, 1, 0, false},
		"429":                {clustertest.Status(429), "GET", cluster.KindStatus, 1, 0, false},
		// The npm module evicts peers for a 500, a 503 and a response without a server. It drops the
		// response of another server.
		"500":                       {clustertest.Status(500), "GET", cluster.KindStatus, 1, 0, false},
		"503":                       {clustertest.Status(503), "GET", cluster.KindStatus, 1, 0, false},
		"a redirect":                {clustertest.Answer(http.RedirectHandler("http://node-2:8080/mds/v1/things", http.StatusFound)), "GET", cluster.KindStatus, 1, 0, false},
		"another server":            {clustertest.RouteTo("node-2:8080"), "GET", cluster.KindWrongServer, 1, 0, false},
		"malformed":                 {respondOK("<html>"), "GET", cluster.KindMalformed, 1, 0, false},
		"empty":                     {respondOK(""), "GET", cluster.KindMalformed, 1, 0, false},
		"not an object":             {respondOK("[1]"), "GET", cluster.KindMalformed, 1, 0, false},
		"null":                      {respondOK("null"), "GET", cluster.KindMalformed, 1, 0, false},
		"no server":                 {respondOK(`{"data":1}`), "GET", cluster.KindMalformed, 1, 0, false},
		"a server without id":       {respondOK(`{"data":1,"server":{}}`), "GET", cluster.KindMalformed, 1, 0, false},
		"a string as server":        {respondOK(`{"data":1,"server":"node-3"}`), "GET", cluster.KindMalformed, 1, 0, false},
		"endless":                   {endlessBody(false), "GET", cluster.KindTooLarge, 1, 0, false},
		"too large, declared":       {endlessBody(true), "GET", cluster.KindTooLarge, 1, 0, false},
		"truncated":                 {clustertest.Truncate(5), "GET", cluster.KindMalformed, 1, 0, false},
		"stalled after the headers": {clustertest.Stall(0), "GET", cluster.KindTimeout, 1, timeout, false},
		"stalled in the body":       {clustertest.Stall(5), "GET", cluster.KindTimeout, 1, timeout, false},
		"an unknown host":           {clustertest.RouteTo("nowhere:8080"), "GET", cluster.KindRefused, 2, 10 * time.Millisecond, true},
		"a handler that panics":     {clustertest.Answer(abortHandler()), "POST", cluster.KindConnectionLost, 1, 0, true},
		"204":                       {respond(http.StatusNoContent, ""), "GET", cluster.KindOK, 1, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 5, clustertest.WithHandler(anyMethod),
					clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxResponseBytes = 1 << 20 }))
				from, to := w.Nodes[0], w.Nodes[2]
				rpc(t, from, cluster.Request{Path: "/things"}) // fetches the tokens
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
					t.Errorf("%d requests to the peer, and %d attempts", n, tt.attempts)
				}
				if (got.Err == nil) != (tt.kind == cluster.KindOK) || (got.Body == nil) != (got.Err != nil || got.Unverified) || !isKind(got.Err, tt.kind) {
					t.Errorf("error %#v", got.Err)
				}
				if known := len(from.Servers()); known != 5 && !tt.evicted || known != 4 && tt.evicted {
					t.Errorf("%d servers in the view", known)
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
		code := validStatus(status)
		r := &remotes{view: []string{"node-1", "node-2"}}
		c := newRegisteredNode(t, r)
		r.registry = func(req *http.Request) (int, string) {
			t.Errorf("the peer did answer, but the registry received %s %s", req.Method, req.URL)
			return http.StatusInternalServerError, ""
		}
		requests := 0
		r.peer = func(req *http.Request) (*http.Response, error) {
			requests++
			return newHTTPResponse(req, code, string(body)), nil
		}
		res, err := c.RPCluster(t.Context(), cluster.Request{Path: "/things"})
		if err != nil || len(res.Results)+len(res.Failures) != 1 {
			t.Fatalf("one peer, but the response is %+v, %v", res, err)
		}
		if len(checkView(t, c)) != 2 {
			t.Errorf("the view became %v", c.Servers())
		}
		want := 1
		if code == http.StatusUnauthorized || code == http.StatusForbidden {
			want = 2
		}
		if requests != want {
			t.Errorf("%d requests, want %d", requests, want)
		}
		if !json.Valid([]byte(marshal(t, res))) {
			t.Errorf("the response is encoded as %s", marshal(t, res))
		}
		data, valid := decodePeerResponse(code, body)
		switch {
		case len(body) == 0 && (code == http.StatusNoContent || code == http.StatusResetContent):
			if len(res.Results) != 1 || !res.Results[0].Unverified {
				t.Fatalf("%d gives %+v", code, res)
			}
		case valid != (len(res.Results) == 1):
			t.Fatalf("%d %q gives %+v", code, body, res)
		case valid:
			checkJointData(t, res, data)
		default:
			checkInvalidPeer(t, res, code)
		}
	})
}

// decodePeerResponse decodes a response of node-2 with encoding/json: names match exactly, and the
// last of two equal names counts.
func decodePeerResponse(code int, body []byte) (data json.RawMessage, valid bool) {
	var (
		envelope, server map[string]json.RawMessage
		id               string
	)
	valid = code/100 == 2 && json.Unmarshal(body, &envelope) == nil && json.Unmarshal(envelope["server"], &server) == nil &&
		json.Unmarshal(server["serverId"], &id) == nil && id == "node-2"
	return envelope["data"], valid
}

// checkJointData checks that the joint data has the elements of the data of one peer.
func checkJointData(t *testing.T, res *cluster.Response, data json.RawMessage) {
	t.Helper()
	var elements []json.RawMessage
	switch {
	case len(data) == 0:
	case json.Unmarshal(data, &elements) != nil:
		elements = []json.RawMessage{data}
	case elements == nil && string(data) == "null":
		elements = []json.RawMessage{data}
	}
	values, err := cluster.Decode[json.RawMessage](res)
	if err != nil || len(values) != len(elements) {
		t.Errorf("%q gives the joint data %q, want %q: %v", data, values, elements, err)
	}
}

// checkInvalidPeer checks the failure of node-2 after an invalid response.
func checkInvalidPeer(t *testing.T, res *cluster.Response, code int) {
	t.Helper()
	got := res.Failures[0]
	if got.Evicted || got.EvictionSkipped != nil || !strings.Contains(got.Err.Error(), "node-2") || len(res.Data) != 0 || got.Body != nil {
		t.Errorf("the failure is %+v", got)
	}
	want := []cluster.Kind{cluster.KindMalformed, cluster.KindWrongServer}
	if code/100 != 2 {
		want = []cluster.Kind{cluster.KindStatus}
	}
	if !slices.Contains(want, got.Kind) {
		t.Errorf("the kind is %q: %v", got.Kind, got.Err)
	}
	checkNoSecrets(t, got.Err)
}

// When a call ends early, each peer that has not answered has the cause as its error.
func TestCallEndsBeforeItsPeersAnswer(t *testing.T) {
	parallel(t)
	errEnough := errors.New("enough")
	for name, tt := range map[string]struct {
		end  func(ctx context.Context, n *clustertest.Node) (context.Context, context.CancelFunc)
		want error
	}{
		"canceled": {func(ctx context.Context, _ *clustertest.Node) (context.Context, context.CancelFunc) {
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
	t.Run("before all requests have begun", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 6, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = 3 }))
			n := w.Nodes[0]
			rpc(t, n, cluster.Request{Path: "/things"}) // from now on, the peers are known to exist
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
				t.Errorf("%d attempts, want 3", attempts)
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

// With any faults and any end of the call, each peer is once in the results or in the failures.
// With the npm module an unreachable peer is in neither.
func TestOneOutcomePerPeer(t *testing.T) {
	parallel(t)
	faults := map[string]clustertest.Fault{
		"none": nil, "refuse": clustertest.Refuse, "hang": clustertest.Hang, "reset": clustertest.Reset,
		"slow": clustertest.Delay(3 * time.Second), "500": clustertest.Status(500), "403": clustertest.Status(403),
		"once refused": clustertest.FirstN(1, clustertest.Refuse), "twice refused": clustertest.FirstN(2, clustertest.Refuse),
		"wrong server": clustertest.RouteTo("node-1:8080"), "malformed": respondOK("?"),
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
		registry := rapid.SampledFrom(names).Draw(rt, "fault of the registry")
		inFlight := rapid.IntRange(1, 7).Draw(rt, "in flight")
		fraction := rapid.SampledFrom([]float64{0, 1}).Draw(rt, "max suspect fraction")
		method := rapid.SampledFrom([]string{"GET", "POST"}).Draw(rt, "method")
		end := rapid.SampledFrom([]time.Duration{0, 5 * time.Millisecond, 2 * time.Second, time.Hour}).Draw(rt, "end of the call")
		calls := rapid.IntRange(1, 2).Draw(rt, "concurrent calls")

		var problems []string
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 1+len(broken), clustertest.WithHandler(anyMethod),
				clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = inFlight }),
				clustertest.WithOptions(cluster.WithEviction(cluster.Eviction{MaxSuspectFraction: fraction})))
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

// Concurrent calls have any options, faults and ends. Each selected peer has one outcome, the limit
// in flight holds, and no slot is lost.
func TestOneOutcomePerSelectedPeer(t *testing.T) {
	parallel(t)
	faults := map[string]clustertest.Fault{
		"none": nil, "refuse": clustertest.Refuse, "hang": clustertest.Hang, "reset": clustertest.Reset,
		"slow": clustertest.Delay(3 * time.Second), "500": clustertest.Status(500), "403": clustertest.Status(403),
		"once refused": clustertest.FirstN(1, clustertest.Refuse), "once hanging": clustertest.FirstN(1, clustertest.Hang),
		"once 403": clustertest.FirstN(1, clustertest.Status(403)), "stall": clustertest.Stall(9),
		"sometimes slow": clustertest.WithProbability(0.5, 1, clustertest.Delay(time.Second)),
	}
	names := slices.Sorted(maps.Keys(faults))
	rapid.Check(t, func(rt *rapid.T) {
		drawn := rapid.SliceOfN(rapid.SampledFrom(names), 1, 6).Draw(rt, "faults of the peers")
		s := &selectionTest{limit: rapid.IntRange(1, 9).Draw(rt, "limit in flight")}
		calls := drawSelectedCalls(rt, len(drawn))
		closeAfter := rapid.SampledFrom([]time.Duration{0, 0, 0, 1500 * time.Millisecond}).Draw(rt, "close")
		synctest.Test(t, func(t *testing.T) {
			s.start(t, len(drawn))
			for i, name := range drawn {
				s.setFault(s.world.Nodes[1+i], faults[name])
			}
			if closeAfter > 0 {
				time.AfterFunc(closeAfter, func() { s.node.Close() })
			}
			var wg sync.WaitGroup
			for _, c := range calls {
				wg.Go(func() { s.run(t, c) })
			}
			wg.Wait()
			synctest.Wait()
			s.checkIdle()
			if closeAfter == 0 {
				s.checkRecovered(t)
			}
		})
		if s.problems != nil {
			rt.Fatal(s.problems)
		}
	})
}

// MaxInFlight bounds all calls of a node together.
func TestMaxInFlight(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		var inFlight, peak atomic.Int64
		w := clustertest.Start(t, 7,
			clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight, cfg.RequestTimeout = 2, time.Minute }),
			clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					defer inFlight.Add(-1)
					if n := inFlight.Add(1); n > peak.Load() {
						peak.Store(n)
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
		// It takes a second more if two calls remain that wait for the same peer.
		if took := time.Since(start); peak.Load() != 2 || took != 9*time.Second && took != 10*time.Second {
			t.Errorf("18 requests of 1 s took %v, at most %d in flight; want 9 s, 2", took, peak.Load())
		}
	})
}

// Concurrent calls start at different peers. So a peer does not receive all of them at once, and
// needs fewer connections than there are calls.
func TestConcurrentCallsStartAtDifferentPeers(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		const peers, calls = 64, 8
		var peak atomic.Int64
		w := fixedworld.Start(t, fixedworld.NewStore(fixedworld.Servers(0, peers)), 0, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = 2 * calls }))
		n := w.Join()
		for _, s := range n.Servers() {
			var inFlight atomic.Int64
			w.Network.Fault(n.Host, s.ServerID+":8080", func(next http.RoundTripper) http.RoundTripper {
				return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
					defer inFlight.Add(-1)
					if n := inFlight.Add(1); n > peak.Load() {
						peak.Store(n)
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
		if got := peak.Load(); got > 3 {
			t.Errorf("%d concurrent requests to one peer", got)
		}
	})
}

func TestStream(t *testing.T) {
	parallel(t)
	t.Run("outcomes come as they arrive, suspects last", func(t *testing.T) {
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
				if dead := o.Server.ServerID == "node-3"; dead != o.Evicted {
					t.Errorf("%s: evicted %t", o.Server.ServerID, o.Evicted)
				}
			}
			want := []arrival{{"node-5", 0}, {"node-6", time.Second}, {"node-4", 2 * time.Second}, {"node-2", 3 * time.Second}, {"node-3", 3 * time.Second}}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	})
	t.Run("a break cancels the other requests", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 6)
			n := w.Nodes[0]
			w.Network.Fault(n.Host, w.Nodes[1].Host, clustertest.Delay(time.Second))
			for _, peer := range w.Nodes[2:] {
				w.Network.Fault(n.Host, peer.Host, clustertest.Hang)
			}
			requests := recordRequests(w)
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
			canceled := 0 // the break has waited for its requests
			for _, x := range requests.matching("GET", n.Host, clustertest.Any) {
				if x.To != w.Nodes[1].Host {
					canceled++
					if !errors.Is(x.Err, context.Canceled) {
						t.Errorf("the request to %s ended with %v", x.To, x.Err)
					}
				}
			}
			if canceled != 4 {
				t.Errorf("%d of 4 silent requests are canceled", canceled)
			}
			time.Sleep(time.Minute)
			if len(n.Servers()) != 6 {
				t.Error("peers of a canceled call were evicted")
			}
		})
	})
	t.Run("an invalid request", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 3)
			requests := recordRequests(w)
			got := slices.Collect(w.Nodes[0].Stream(t.Context(), cluster.Request{Path: "things"}))
			if len(got) != 1 || got[0].Err == nil || got[0].Kind != cluster.KindInvalid || got[0].Server.ServerID != "" {
				t.Errorf("got %+v", got)
			}
			if all := requests.sentBy(w.Nodes[0]); len(all) != 0 {
				t.Errorf("%d requests were made", len(all))
			}
		})
	})
	t.Run("a sequence can be used twice", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 3)
			seq := w.Nodes[0].Stream(t.Context(), cluster.Request{Path: "/things"})
			w.Join()
			for range 2 {
				if got := len(slices.Collect(seq)); got != 3 {
					t.Errorf("%d outcomes, want those of the current peers", got)
				}
			}
		})
	})
}

func TestStreamWithMinResults(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 6)
		n := w.Nodes[0]
		for _, peer := range w.Nodes[3:] {
			w.Network.Fault(n.Host, peer.Host, clustertest.Hang)
		}
		var results, canceled int
		for o := range n.Stream(t.Context(), cluster.Request{Path: "/things", MinResults: 2}) {
			switch {
			case o.Err == nil:
				results++
			case errors.Is(o.Err, cluster.ErrEnoughResults):
				canceled++
			}
		}
		if results != 2 || canceled != 3 {
			t.Errorf("%d results, %d canceled", results, canceled)
		}
	})
}

// A selectedCall is a call of the property test.
type selectedCall struct {
	req        cluster.Request
	begin, end time.Duration
	breakAt    int    // the index of the outcome at which a stream breaks; negative: RPCluster
	selected   []bool // by the filter, for each peer
}

func drawSelectedCalls(rt *rapid.T, peers int) []selectedCall {
	calls := make([]selectedCall, rapid.IntRange(1, 5).Draw(rt, "calls"))
	for i := range calls {
		c := &calls[i]
		c.selected = rapid.SliceOfN(rapid.SampledFrom([]bool{true, true, false}), peers, peers).Draw(rt, "selected")
		c.req = cluster.Request{
			Path:       "/things",
			MinResults: rapid.IntRange(0, 3).Draw(rt, "min results"),
			HedgeAfter: rapid.SampledFrom([]time.Duration{0, 5 * time.Millisecond, time.Second, 10 * time.Second}).Draw(rt, "hedge after"),
			Timeout:    rapid.SampledFrom([]time.Duration{0, 20 * time.Millisecond, 2 * time.Second, 12 * time.Second}).Draw(rt, "timeout"),
		}
		c.begin = rapid.SampledFrom([]time.Duration{0, time.Second, 11 * time.Second}).Draw(rt, "begin")
		c.end = rapid.SampledFrom([]time.Duration{0, 5 * time.Millisecond, 2 * time.Second, time.Hour, time.Hour}).Draw(rt, "end")
		c.breakAt = rapid.IntRange(-3, 2).Draw(rt, "break at")
	}
	return calls
}

// A selectionTest is a world in which the first node makes the calls. It collects the problems.
type selectionTest struct {
	limit    int
	world    *clustertest.World
	node     *clustertest.Node
	inFlight atomic.Int64

	mu       sync.Mutex // guards the field below
	problems []string
}

func (s *selectionTest) problem(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.problems = append(s.problems, fmt.Sprintf(format, args...))
}

func (s *selectionTest) start(t *testing.T, peers int) {
	t.Helper()
	s.world = clustertest.Start(t, 1+peers, noEviction(),
		clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = s.limit }))
	s.node = s.world.Nodes[0]
}

// setFault sets the fault of a peer, and counts the requests in flight.
func (s *selectionTest) setFault(peer *clustertest.Node, fault clustertest.Fault) {
	s.world.Network.Fault(s.node.Host, peer.Host, func(next http.RoundTripper) http.RoundTripper {
		if fault != nil {
			next = fault(next)
		}
		return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
			if strings.HasSuffix(req.URL.Path, "/things") {
				defer s.inFlight.Add(-1)
				if n := s.inFlight.Add(1); n > int64(s.limit) && req.Context().Err() == nil {
					s.problem("%d requests in flight", n)
				}
			}
			return next.RoundTrip(req)
		})
	})
}

func (s *selectionTest) run(t *testing.T, c selectedCall) {
	t.Helper()
	time.Sleep(c.begin)
	ctx, cancel := context.WithTimeout(t.Context(), c.end)
	defer cancel()
	var ids []string
	var peers []*clustertest.Node
	for i, selected := range c.selected {
		if peer := s.world.Nodes[1+i]; selected {
			ids, peers = append(ids, peer.ID), append(peers, peer)
		}
	}
	c.req.Filter = onlyIDs(ids...)
	if c.breakAt >= 0 {
		taken := 0
		for range s.node.Stream(ctx, c.req) {
			if taken++; taken > c.breakAt {
				break
			}
		}
		return
	}
	res, err := s.node.RPCluster(ctx, c.req)
	switch {
	case err == nil:
		for _, p := range outcomeProblems(res, peers) {
			s.problem("%s", p)
		}
	case !errors.Is(err, cluster.ErrClosed):
		s.problem("%v", err)
	}
}

// checkIdle checks that the calls leave neither requests nor slots behind.
func (s *selectionTest) checkIdle() {
	if got := s.inFlight.Load(); got != 0 {
		s.problem("%d requests are left", got)
	}
	if got := cluster.SlotsInFlight(s.node.Cluster); got != 0 {
		s.problem("%d slots are lost", got)
	}
}

// checkRecovered checks that without faults the node reaches all peers again.
func (s *selectionTest) checkRecovered(t *testing.T) {
	t.Helper()
	time.Sleep(time.Hour)
	peers := s.world.Nodes[1:]
	for _, peer := range peers {
		s.world.Network.Fault(s.node.Host, peer.Host, nil)
	}
	var wg sync.WaitGroup
	for range 2 * s.limit {
		wg.Go(func() {
			for _, o := range rpc(t, s.node, cluster.Request{Path: "/things"}).Failures {
				if o.Kind != cluster.KindCircuitOpen { // until the first probe has succeeded
					s.problem("after the faults: %v", o.Err)
				}
			}
		})
	}
	wg.Wait()
	if res := rpc(t, s.node, cluster.Request{Path: "/things"}); len(res.Results) != len(peers) {
		s.problem("at the end: %v", failures(res))
	}
}

// isKind reports whether err has the type of the errors of a kind.
func isKind(err error, kind cluster.Kind) bool {
	_, unreachable := errors.AsType[*cluster.UnreachableError](err)
	se, status := errors.AsType[*cluster.StatusError](err)
	mismatch, wrongServer := errors.AsType[*cluster.WrongServerError](err)
	_, invalid := errors.AsType[*cluster.InvalidResponseError](err)
	switch kind {
	case cluster.KindRefused, cluster.KindConnectionLost:
		return unreachable
	case cluster.KindTimeout:
		return (unreachable || invalid) && errors.Is(err, context.DeadlineExceeded)
	case cluster.KindStatus:
		return status && se.Remote == `peer "node-3"` && se.Code >= 300
	case cluster.KindWrongServer:
		return wrongServer && mismatch.Want == "node-3" && mismatch.Got == "node-2"
	case cluster.KindMalformed:
		return invalid
	case cluster.KindTooLarge:
		return invalid && errors.Is(err, cluster.ErrResponseTooLarge)
	}
	return err == nil
}

// expectedPeers returns the nodes that the i-th of some calls must have called. A call that began
// after another had evicted a peer need not have called that peer.
func expectedPeers(nodes []*clustertest.Node, results []*cluster.Response, i int) []*clustertest.Node {
	evicted := map[string]bool{}
	for j, other := range results {
		for _, o := range other.Failures {
			evicted[o.Server.ServerID] = evicted[o.Server.ServerID] || j != i && o.Evicted
		}
	}
	called := idsOfOutcomes(slices.Concat(results[i].Results, results[i].Failures))
	return slices.DeleteFunc(slices.Clone(nodes), func(n *clustertest.Node) bool {
		return evicted[n.ID] && !slices.Contains(called, n.ID)
	})
}

func abortHandler() http.Handler {
	return http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
}
