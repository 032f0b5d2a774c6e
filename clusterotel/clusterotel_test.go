package clusterotel_test

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clusterotel"
	"github.com/mimiktech/cluster/clustertest"
)

// A recording has all that was recorded about one node.
type recording struct {
	*clusterotel.Telemetry
	spans  *tracetest.SpanRecorder
	reader *sdkmetric.ManualReader
}

func record(t *testing.T, cfg clusterotel.Config) *recording {
	t.Helper()
	r := &recording{spans: tracetest.NewSpanRecorder(), reader: sdkmetric.NewManualReader()}
	cfg.TracerProvider = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(r.spans))
	cfg.MeterProvider = sdkmetric.NewMeterProvider(sdkmetric.WithReader(r.reader))
	var err error
	if r.Telemetry, err = clusterotel.New(cfg); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *recording) observe(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	stop, err := r.Observe(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// tree returns the spans that have ended since the last time as an indented list with their
// attributes. Spans with one parent are sorted by their text.
func (r *recording) tree() string {
	children := map[trace.SpanID][]string{}
	var text func(s sdktrace.ReadOnlySpan) string
	spans := r.spans.Ended()
	text = func(s sdktrace.ReadOnlySpan) string {
		line := []string{s.Name()}
		for _, a := range s.Attributes() {
			line = append(line, fmt.Sprintf("%s=%s", a.Key, a.Value.String()))
		}
		if s.SpanKind() != trace.SpanKindInternal {
			line = append(line, s.SpanKind().String())
		}
		if status := s.Status(); status.Code != codes.Unset {
			line = append(line, status.Code.String()+status.Description)
		}
		lines := []string{strings.Join(line, " ")}
		slices.Sort(children[s.SpanContext().SpanID()])
		for _, child := range children[s.SpanContext().SpanID()] {
			lines = append(lines, "  "+strings.ReplaceAll(child, "\n", "\n  "))
		}
		return strings.Join(lines, "\n")
	}
	for _, s := range spans { // children end before their parents
		parent := s.Parent().SpanID()
		children[parent] = append(children[parent], text(s))
	}
	r.spans.Reset()
	return strings.Join(children[trace.SpanID{}], "\n") + "\n"
}

func call(t *testing.T, n *clustertest.Node, req cluster.Request) {
	t.Helper()
	if _, err := n.RPCluster(t.Context(), req); err != nil {
		t.Error(err)
	}
}

func wantTree(t *testing.T, what, got, want string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestSpans(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := record(t, clusterotel.Config{})
		w := clustertest.Start(t, 2)
		n := w.Join(cluster.WithTrace(r.Trace()), cluster.WithRetry(cluster.Retry{MaxRetries: 1}))
		wantTree(t, "joining", r.tree(), `cluster.register mimik.cluster.outcome=ok
  HTTP POST http.request.method=POST mimik.cluster.target=registry server.address=mit.test http.response.status_code=200 client
  cluster.token mimik.cluster.outcome=ok
    HTTP POST http.request.method=POST mimik.cluster.target=token_service server.address=mst.test http.response.status_code=200 client
cluster.announce mimik.cluster.operation=announce http.request.method=POST mimik.cluster.peers=2 mimik.cluster.results=2 mimik.cluster.failures=0 mimik.cluster.outcome=ok
  HTTP POST http.request.method=POST mimik.cluster.target=peer server.address=node-1 server.port=8080 http.response.status_code=200 client
  HTTP POST http.request.method=POST mimik.cluster.target=peer server.address=node-2 server.port=8080 http.response.status_code=200 client
  cluster.token mimik.cluster.outcome=ok
    HTTP POST http.request.method=POST mimik.cluster.target=token_service server.address=mst.test http.response.status_code=200 client
`)
		w.Network.Fault(n.Host, w.Nodes[0].Host, clustertest.FirstN(1, clustertest.Status(503)))
		w.Nodes[1].Kill()
		call(t, n, cluster.Request{Name: "list-things", Path: "/things"})
		wantTree(t, "a call with failures", r.tree(), `cluster.fanout list-things mimik.cluster.operation=fan_out http.request.method=GET mimik.cluster.peers=2 mimik.cluster.results=0 mimik.cluster.failures=2 mimik.cluster.outcome=failed Error
  HTTP DELETE http.request.method=DELETE mimik.cluster.target=registry server.address=mit.test http.response.status_code=200 client
  HTTP DELETE http.request.method=DELETE mimik.cluster.target=registry server.address=mit.test http.response.status_code=200 client
  HTTP GET http.request.method=GET mimik.cluster.target=peer server.address=node-1 server.port=8080 http.response.status_code=503 error.type=503 client Error
  HTTP GET http.request.method=GET mimik.cluster.target=peer server.address=node-2 server.port=8080 error.type=refused client Error
  HTTP GET http.request.method=GET mimik.cluster.target=peer server.address=node-2 server.port=8080 http.request.resend_count=1 error.type=refused client Error
`)
		time.Sleep(time.Second)
		r.tree() // the eviction is broadcast
		call(t, n, cluster.Request{Path: "/things", Method: "PROPFIND"})
		wantTree(t, "an unknown method", r.tree(), `cluster.fanout mimik.cluster.operation=fan_out http.request.method=_OTHER mimik.cluster.peers=1 mimik.cluster.results=0 mimik.cluster.failures=1 mimik.cluster.outcome=failed Error
  HTTP http.request.method=_OTHER mimik.cluster.target=peer server.address=node-1 server.port=8080 http.response.status_code=405 error.type=405 client Error
`)
		w.Network.Down(clustertest.RegistryHost)
		time.Sleep(45 * time.Minute)
		if tree := r.tree(); !strings.HasPrefix(tree, "cluster.renew mimik.cluster.outcome=failed Error\n") {
			t.Errorf("a failed renewal:\n%s", tree)
		}
		n.UnRegister(t.Context())
		if tree := r.tree(); !strings.Contains(tree, "cluster.depart mimik.cluster.operation=depart http.request.method=DELETE mimik.cluster.peers=1 mimik.cluster.results=1") {
			t.Errorf("leaving:\n%s", tree)
		}
	})
}

func TestURLs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := record(t, clusterotel.Config{URLs: true})
		w := clustertest.Start(t, 1)
		n := w.Join(cluster.WithTrace(r.Trace()))
		r.tree()
		call(t, n, cluster.Request{Path: "/things?token=secret"})
		if tree := r.tree(); !strings.Contains(tree, "url.full=http://node-1:8080/mds/v1/things ") {
			t.Errorf("no URL, or one with its query:\n%s", tree)
		}
	})
}

// Of a call to many peers, the requests to some have spans, also those that are repeated.
func TestMaxPeerSpans(t *testing.T) {
	for _, tt := range []struct{ limit, peers, want int }{{0, 64, 64}, {0, 66, 64}, {3, 4, 3}, {3, 3, 3}, {-1, 2, 0}} {
		t.Run(fmt.Sprint(tt.limit, " of ", tt.peers), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := record(t, clusterotel.Config{MaxPeerSpans: tt.limit})
				w := clustertest.Start(t, tt.peers)
				w.Network.Fault("node-"+fmt.Sprint(tt.peers+1)+":8080", clustertest.Any, clustertest.If(
					func(req *http.Request) bool { return req.Method == http.MethodGet }, clustertest.Status(http.StatusServiceUnavailable)))
				n := w.Join(cluster.WithTrace(r.Trace()), cluster.WithRetry(cluster.Retry{
					MaxRetries: 1, RetryIf: func(string, error) bool { return true },
				}))
				r.tree()
				call(t, n, cluster.Request{Path: "/things"})
				lines := strings.Split(strings.TrimSuffix(r.tree(), "\n"), "\n")
				if got := len(lines) - 1; got != 2*tt.want {
					t.Errorf("%d spans of requests, want two for each of %d peers", got, tt.want)
				}
				if !strings.Contains(lines[0], fmt.Sprintf("mimik.cluster.peers=%d ", tt.peers)) {
					t.Errorf("the span of the call: %s", lines[0])
				}
			})
		})
	}
}

// Each peer gets the trace context of its own span, or of the call if it has none, and the
// correlation id.
func TestPropagation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var received []string
		r := record(t, clusterotel.Config{MaxPeerSpans: 2})
		w := clustertest.Start(t, 3, clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				mu.Lock()
				received = append(received, req.Header.Get("traceparent"))
				mu.Unlock()
				if got := req.Header.Get("x-correlation-id"); !strings.HasPrefix(got, "id-1") {
					t.Errorf("correlation id %q", got)
				}
				n.Reply(w, req, nil)
			})
		}))
		n := w.Join(cluster.WithTrace(r.Trace()))
		r.tree()
		header := http.Header{"Traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}
		_, err := n.RPCluster(cluster.WithCorrelationID(t.Context(), "id-1"), cluster.Request{Path: "/things", Header: header})
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, s := range r.spans.Ended() {
			want = append(want, fmt.Sprintf("00-%s-%s-01", s.SpanContext().TraceID(), s.SpanContext().SpanID()))
		}
		slices.Sort(received)
		slices.Sort(want)
		if len(want) != 3 || !slices.Equal(received, want) {
			t.Errorf("peers received %q, the spans are %q", received, want)
		}
	})
}

// A trace that is not sampled costs no spans, and its context reaches the peers.
func TestNotSampled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var traceparent string
		telemetry, err := clusterotel.New(clusterotel.Config{TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample()))})
		if err != nil {
			t.Fatal(err)
		}
		w := clustertest.Start(t, 1, clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				traceparent = req.Header.Get("traceparent")
				n.Reply(w, req, nil)
			})
		}))
		n := w.Join(cluster.WithTrace(telemetry.Trace()))
		call(t, n, cluster.Request{Path: "/things"})
		if !strings.HasPrefix(traceparent, "00-") || !strings.HasSuffix(traceparent, "-00") {
			t.Errorf("traceparent %q, want one that is not sampled", traceparent)
		}
		if got := clusterotel.TraceID(t.Context()); got != "" {
			t.Errorf("trace id %q without a trace", got)
		}
	})
}

// Without an SDK, the trace context of the program reaches the peers.
func TestNoOp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var received string
		telemetry, err := clusterotel.New(clusterotel.Config{TracerProvider: tracenoop.NewTracerProvider(), MeterProvider: noop.NewMeterProvider()})
		if err != nil {
			t.Fatal(err)
		}
		w := clustertest.Start(t, 1, clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				received = req.Header.Get("traceparent")
				n.Reply(w, req, nil)
			})
		}))
		n := w.Join(cluster.WithTrace(telemetry.Trace()))
		if stop, err := telemetry.Observe(n.Cluster); err != nil || stop() != nil {
			t.Error(err)
		}
		call(t, n, cluster.Request{Path: "/things"})
		if received != "" {
			t.Errorf("traceparent %q without a trace", received)
		}
		const id = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
		ctx := propagation.TraceContext{}.Extract(t.Context(), propagation.MapCarrier{"traceparent": id})
		if _, err := n.RPCluster(ctx, cluster.Request{Path: "/things"}); err != nil || received != id {
			t.Errorf("traceparent %q, %v, want %q", received, err, id)
		}
	})
}

// closedSets returns all attributes of metrics with all their values.
func closedSets() map[string]string {
	return map[string]string{
		"http.request.method":       "GET HEAD POST PUT PATCH DELETE CONNECT OPTIONS TRACE _OTHER",
		"http.response.status_code": "200 404",
		"error.type": "404 refused connection_lost timeout tls local_fault status wrong_server malformed too_large" +
			" canceled",
		"mimik.cluster.target":    "peer registry token_service",
		"mimik.cluster.outcome":   "ok partial failed",
		"mimik.cluster.operation": "fan_out announce depart",
		"mimik.cluster.kind": "ok refused connection_lost timeout tls local_fault status wrong_server malformed too_large" +
			" canceled circuit_open not_allowed not_confirmed no_token",
		"mimik.cluster.reason": "retry hedge",
		"mimik.cluster.decision": "evicted gone returned alive unproven not_confirmed unstable self_preservation" +
			" too_few_called enough_results disabled leaving",
		"mimik.cluster.change":        "joined left moved",
		"mimik.cluster.source":        "registry announcement departure eviction",
		"mimik.cluster.caller.check":  "authenticated no_token invalid_token not_verified wrong_type no_peer",
		"mimik.cluster.breaker.state": "open closed",
		"mimik.cluster.state":         "orphan registered degraded lost left",
	}
}

func TestMetrics(t *testing.T) {
	want := map[string]string{
		"http.client.request.duration":       "s histogram error.type http.request.method http.response.status_code mimik.cluster.target",
		"mimik.cluster.breaker.changes":      "{change} counter mimik.cluster.breaker.state",
		"mimik.cluster.breakers_open":        "{breaker} level",
		"mimik.cluster.call.duration":        "s histogram mimik.cluster.operation mimik.cluster.outcome",
		"mimik.cluster.call.peers":           "{peer} histogram mimik.cluster.operation",
		"mimik.cluster.callers":              "{request} counter mimik.cluster.caller.check",
		"mimik.cluster.conflicting_servers":  "{server} level",
		"mimik.cluster.lease.length":         "s gauge",
		"mimik.cluster.lease.remaining":      "s gauge",
		"mimik.cluster.members":              "{server} level",
		"mimik.cluster.peer.outcomes":        "{outcome} counter mimik.cluster.kind mimik.cluster.operation",
		"mimik.cluster.renewal.duration":     "s histogram mimik.cluster.outcome",
		"mimik.cluster.repeated_requests":    "{request} counter mimik.cluster.reason mimik.cluster.target",
		"mimik.cluster.replica.changes":      "{change} counter",
		"mimik.cluster.requests_waiting":     "{request} level",
		"mimik.cluster.slots":                "{slot} level",
		"mimik.cluster.slots_in_use":         "{slot} level",
		"mimik.cluster.state":                "{node} level mimik.cluster.state",
		"mimik.cluster.suspects":             "{suspect} counter mimik.cluster.decision",
		"mimik.cluster.token_fetch.duration": "s histogram mimik.cluster.outcome",
		"mimik.cluster.view.changes":         "{change} counter mimik.cluster.change mimik.cluster.source",
	}
	synctest.Test(t, func(t *testing.T) {
		r := record(t, clusterotel.Config{})
		w := clustertest.Start(t, 4, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.RegistryURL += ",http://second.test/mIT/v1" }))
		n := w.Join(cluster.WithTrace(r.Trace()))
		r.observe(t, n.Cluster)
		w.Network.Fault(n.Host, w.Nodes[0].Host, clustertest.Delay(20*time.Millisecond))
		call(t, n, cluster.Request{Path: "/things", HedgeAfter: 10 * time.Millisecond})
		call(t, n, cluster.Request{Path: "/nothing", Method: "PROPFIND"})
		w.Nodes[2].Kill()
		call(t, n, cluster.Request{Path: "/things"})
		w.Network.Fault(n.Host, w.Nodes[1].Host, clustertest.Hang)
		call(t, n, cluster.Request{Path: "/things", Filter: func(s cluster.Server) bool { return s.ServerID == "node-2" }})
		unauthorized(t, w, n)
		w.Network.Handle("second.test", w.Registry)
		w.Network.Down(clustertest.RegistryHost)
		time.Sleep(45 * time.Minute) // a renewal at the other replica
		checkMetrics(t, r, want)
		wantValues(t, r, map[string]float64{
			"mimik.cluster.members":                            4,
			"mimik.cluster.lease.length":                       3600,
			"mimik.cluster.lease.remaining":                    time.Until(n.Status().ExpiresAt()).Seconds(),
			"mimik.cluster.state registered":                   1,
			"mimik.cluster.breakers_open":                      1,
			"mimik.cluster.breaker.changes open":               1,
			"mimik.cluster.suspects evicted":                   1,
			"mimik.cluster.callers no_token":                   1,
			"mimik.cluster.repeated_requests hedge peer":       1,
			"mimik.cluster.peer.outcomes ok announce":          4,
			"mimik.cluster.peer.outcomes status fan_out":       4,
			"mimik.cluster.call.duration fan_out partial":      1,
			"mimik.cluster.call.peers fan_out":                 4,
			"mimik.cluster.renewal.duration ok":                2,
			"http.client.request.duration 404 _OTHER 404 peer": 4,
		})
	})
}

func unauthorized(t *testing.T, w *clustertest.World, n *clustertest.Node) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+n.Host+"/mds/v1/itResources", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := w.Network.Client("test").Do(req)
	if err != nil || resp.Body.Close() != nil || resp.StatusCode != http.StatusUnauthorized {
		t.Fatal(resp, err)
	}
}

// checkMetrics compares the names, units, types and attributes of all metrics, and checks that the
// values of attributes are from closed sets.
func checkMetrics(t *testing.T, r *recording, want map[string]string) {
	t.Helper()
	got := map[string]string{}
	closed := closedSets()
	for _, m := range r.collect(t) {
		typ, points := points(t, m)
		keys := map[string]bool{}
		for _, p := range points {
			for _, a := range p.attributes.ToSlice() {
				keys[string(a.Key)] = true
				if !slices.Contains(strings.Fields(closed[string(a.Key)]), a.Value.String()) {
					t.Errorf("%s: %s is %q, which is not in the closed set", m.Name, a.Key, a.Value.String())
				}
			}
		}
		signature := []string{m.Unit, typ}
		signature = append(signature, slices.Sorted(maps.Keys(keys))...)
		got[m.Name] = strings.Join(signature, " ")
		if m.Description == "" {
			t.Errorf("%s has no description", m.Name)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

// wantValues compares some values, counts for histograms.
func wantValues(t *testing.T, r *recording, want map[string]float64) {
	t.Helper()
	got := map[string]float64{}
	for _, m := range r.collect(t) {
		_, points := points(t, m)
		for _, p := range points {
			name := []string{m.Name}
			for _, a := range p.attributes.ToSlice() { // sorted by key
				name = append(name, a.Value.String())
			}
			got[strings.Join(name, " ")] = p.value
		}
	}
	for name, value := range want {
		if g, ok := got[name]; !ok || g != value {
			t.Errorf("%s: got %v, %t; want %v", name, g, ok, value)
		}
	}
}

func (r *recording) collect(t *testing.T) []metricdata.Metrics {
	t.Helper()
	var data metricdata.ResourceMetrics
	if err := r.reader.Collect(t.Context(), &data); err != nil || len(data.ScopeMetrics) != 1 {
		t.Fatal(len(data.ScopeMetrics), err)
	}
	if name := data.ScopeMetrics[0].Scope.Name; name != "github.com/mimiktech/cluster/clusterotel" {
		t.Errorf("scope %q", name)
	}
	return data.ScopeMetrics[0].Metrics
}

type point struct {
	attributes attribute.Set
	value      float64
}

func points(t *testing.T, m metricdata.Metrics) (typ string, all []point) {
	t.Helper()
	switch data := m.Data.(type) {
	case metricdata.Histogram[float64]:
		for _, p := range data.DataPoints {
			all = append(all, point{p.Attributes, float64(p.Count)})
		}
		return "histogram", all
	case metricdata.Sum[int64]:
		for _, p := range data.DataPoints {
			all = append(all, point{p.Attributes, float64(p.Value)})
		}
		if data.IsMonotonic {
			return "counter", all
		}
		return "level", all
	case metricdata.Gauge[float64]:
		for _, p := range data.DataPoints {
			all = append(all, point{p.Attributes, p.Value})
		}
		return "gauge", all
	}
	t.Fatalf("%s is a %T", m.Name, m.Data)
	return "", nil
}
