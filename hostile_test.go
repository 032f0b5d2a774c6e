package cluster_test

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mimiktech/cluster"
)

// A service may pass on the header of a request that it serves. What was about that connection,
// or about who called, must not be taken for ours: with an Accept-Encoding, for one, answers
// would stay compressed, and with another's token the peers would refuse us.
func TestHeaderIsPassedOn(t *testing.T) {
	var got http.Header
	o := &others{view: []string{"node-1", "node-2"}}
	c := newMember(t, o)
	o.peer = func(r *http.Request) (*http.Response, error) {
		got = r.Header
		return answer(r, http.StatusOK, `{"server":{"serverId":"node-2"}}`), nil
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

// Requests with a correlation id that fits no header could not be sent at all, and the parties
// would seem to be unreachable.
func TestCorrelationIDThatFitsNoHeader(t *testing.T) {
	for name, tt := range map[string]struct {
		id   string
		kept bool
	}{
		"good":            {"abc@1/2020-01-02T03:04:05.678Z", true},
		"of another form": {"request 17", true},
		"as long as can":  {strings.Repeat("x", 256), true},
		"too long":        {strings.Repeat("x", 257), false},
		"line break":      {"abc\r\nX-Evil: 1", false},
		"NUL":             {"abc\x00", false},
		"beyond ASCII":    {"äbc", false},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := cluster.WithCorrelationID(context.Background(), tt.id)
			if got := cluster.CorrelationID(ctx); (got == tt.id) != tt.kept || got == "" {
				t.Errorf("the context has %q", got)
			}
			var sent []string
			c := newNode(t, config(), stub(func(r *http.Request) (int, string) {
				sent = r.Header["X-Correlation-Id"]
				return http.StatusOK, registration(time.Hour, "node-1")
			}).Transport)
			if _, err := c.Register(ctx); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{cluster.CorrelationID(ctx)}, sent); diff != "" {
				t.Errorf("what was sent (-want +got):\n%s", diff)
			}
		})
	}
}

// No peer may be blamed for a request that nobody could send.
func TestRequestsThatCannotBeSent(t *testing.T) {
	o := &others{view: []string{"node-1", "node-2"}}
	c := newMember(t, o)
	o.peer = func(r *http.Request) (*http.Response, error) {
		t.Errorf("sent %s %s", r.Method, r.URL)
		return answer(r, http.StatusOK, ""), nil
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
