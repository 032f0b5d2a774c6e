package cluster_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"pgregory.net/rapid"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

// A tracer builds spans as a tracing library would: a span is begun by a hook, is found in the
// context by nested ones, and is ended by the function that the hook returns. It also counts.
type tracer struct {
	mu     sync.Mutex // guards the fields below, and all spans
	roots  []*span
	open   int
	counts map[string]int
}

type span struct {
	name     string
	children []*span
}

type spanKey struct{}

// start begins a span below that of ctx. The returned function ends it.
func (tr *tracer) start(ctx context.Context, format string, args ...any) (context.Context, func(result string)) {
	s := &span{name: fmt.Sprintf(format, args...)}
	if cluster.CorrelationID(ctx) == "" {
		s.name += " without a correlation id"
	}
	parent, _ := ctx.Value(spanKey{}).(*span)
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if tr.open++; parent == nil {
		tr.roots = append(tr.roots, s)
	} else {
		parent.children = append(parent.children, s)
	}
	return context.WithValue(ctx, spanKey{}, s), func(result string) {
		tr.mu.Lock()
		defer tr.mu.Unlock()
		tr.open--
		s.name += " " + result
	}
}

func (tr *tracer) count(format string, args ...any) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if tr.counts == nil {
		tr.counts = map[string]int{}
	}
	tr.counts[fmt.Sprintf(format, args...)]++
}

func (tr *tracer) trace() *cluster.Trace {
	return &cluster.Trace{
		Call: func(ctx context.Context, i cluster.CallInfo) (context.Context, func(cluster.CallResult)) {
			ctx, end := tr.start(ctx, "%s %q %s of %d", i.Operation, i.Name, i.Method, i.Peers)
			return ctx, func(r cluster.CallResult) {
				tr.count("call %s", i.Operation)
				end(fmt.Sprintf("%d results, %d failures", r.Results, r.Failures))
			}
		},
		Request: func(ctx context.Context, i cluster.RequestInfo) (context.Context, func(cluster.RequestResult)) {
			ctx, end := tr.start(ctx, "%s %s %s #%d", i.Method, i.Target, i.Server.ServerID, i.Attempt)
			return ctx, func(r cluster.RequestResult) {
				tr.count("request %s %s", i.Target, r.Kind)
				end(fmt.Sprintf("%d %s", r.StatusCode, r.Kind))
			}
		},
		Renewal: func(ctx context.Context, i cluster.RenewalInfo) (context.Context, func(cluster.RenewalResult)) {
			ctx, end := tr.start(ctx, "renewal, first %t", i.First)
			return ctx, func(r cluster.RenewalResult) { end(fmt.Sprintf("for %v", r.Lease)) }
		},
		TokenFetch: func(ctx context.Context, key cluster.TokenKey) (context.Context, func(error)) {
			ctx, end := tr.start(ctx, "token for %s", key.Audience)
			return ctx, func(err error) { end(fmt.Sprint(err)) }
		},
		PeerDone: func(ctx context.Context, o cluster.Outcome) {
			tr.count("peer %s", o.Kind)
			if _, ok := ctx.Value(spanKey{}).(*span); !ok {
				tr.count("outcome without the span of its call")
			}
		},
		EvictionDecided: func(_ context.Context, d cluster.EvictionDecision) { tr.count("suspect %s", d.Decision) },
	}
}

// tree returns the spans as an indented list. The order of spans with one parent is that of their
// names, because requests to peers are concurrent.
func (tr *tracer) tree() string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	var text strings.Builder
	var write func(spans []*span, indent string)
	write = func(spans []*span, indent string) {
		slices.SortStableFunc(spans, func(a, b *span) int { return strings.Compare(a.name, b.name) })
		for _, s := range spans {
			text.WriteString(indent + strings.TrimSpace(s.name) + "\n")
			write(s.children, indent+"  ")
		}
	}
	write(tr.roots, "")
	return text.String()
}

// take returns and forgets the spans and the counts.
func (tr *tracer) take(t *testing.T) (tree string, counts map[string]int) {
	t.Helper()
	tree = tr.tree()
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if tr.open != 0 {
		t.Errorf("%d spans have not ended", tr.open)
	}
	counts = tr.counts
	tr.roots, tr.counts = nil, nil
	return tree, counts
}

// Spans of calls, requests, renewals and token requests nest, and reach the transport, with nothing
// shared but the context. Background work has spans of its own.
func TestTraceBuildsSpans(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		tr := &tracer{}
		transport := clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
			s, ok := req.Context().Value(spanKey{}).(*span)
			if !ok || !strings.HasPrefix(s.name, req.Method+" ") || cluster.CorrelationID(req.Context()) == "" {
				t.Errorf("the transport gets %s %s with the span %v", req.Method, req.URL, s)
			}
			return w.Network.Transport("node-4:8080").RoundTrip(req)
		})
		w.Nodes[2].Kill()
		n := w.Join(cluster.WithTrace(tr.trace()), cluster.WithHTTPClient(&http.Client{Transport: transport}))
		time.Sleep(time.Second) // until the eviction has been broadcast
		tree, counts := tr.take(t)
		want := `announce "" POST of 3 2 results, 1 failures
  DELETE registry  #1 200 ok
  DELETE registry  #1 200 ok
  POST peer node-1 #1 200 ok
  POST peer node-2 #1 200 ok
  POST peer node-3 #1 0 refused
  POST peer node-3 #2 0 refused
  token for https://peers.test <nil>
    POST token_service  #1 200 ok
depart "" DELETE of 2 2 results, 0 failures
  DELETE peer node-1 #1 200 ok
  DELETE peer node-2 #1 200 ok
renewal, first true for 1h0m0s
  POST registry  #1 200 ok
  token for https://mit.test <nil>
    POST token_service  #1 200 ok
`
		if diff := cmp.Diff(want, tree); diff != "" {
			t.Errorf("spans of joining (-want +got):\n%s", diff)
		}
		wantCounts := map[string]int{
			"call announce": 1, "call depart": 1, "peer ok": 4, "peer refused": 1, "suspect evicted": 1,
			"request peer ok": 4, "request peer refused": 2, "request registry ok": 3, "request token_service ok": 2,
		}
		if diff := cmp.Diff(wantCounts, counts); diff != "" {
			t.Errorf("metrics of joining (-want +got):\n%s", diff)
		}

		ctx, end := tr.start(cluster.WithCorrelationID(t.Context(), "handler@0"), "handler")
		if _, err := n.RPCluster(ctx, cluster.Request{Name: "list-things", Path: "/things"}); err != nil {
			t.Error(err)
		}
		for range n.Stream(ctx, cluster.Request{Path: "/things", Filter: onlyIDs("node-1")}) {
		}
		end("")
		tree, _ = tr.take(t)
		want = `handler
  fan_out "" GET of 1 1 results, 0 failures
    GET peer node-1 #1 200 ok
  fan_out "list-things" GET of 2 2 results, 0 failures
    GET peer node-1 #1 200 ok
    GET peer node-2 #1 200 ok
`
		if diff := cmp.Diff(want, tree); diff != "" {
			t.Errorf("spans of calls (-want +got):\n%s", diff)
		}

		time.Sleep(time.Hour)
		if tree, _ = tr.take(t); !strings.HasPrefix(tree, "renewal, first false for 1h0m0s\n  POST registry  #1 200 ok\n") {
			t.Errorf("spans of the background:\n%s", tree)
		}
	})
}

// orderTrace records each call of a hook, and of the function that a hook returns.
func orderTrace(record func(string)) *cluster.Trace {
	return &cluster.Trace{
		Call: func(ctx context.Context, i cluster.CallInfo) (context.Context, func(cluster.CallResult)) {
			record("Call " + string(i.Operation))
			return ctx, func(cluster.CallResult) { record("end of Call") }
		},
		Request: func(ctx context.Context, i cluster.RequestInfo) (context.Context, func(cluster.RequestResult)) {
			record("Request " + i.Method + " " + string(i.Target))
			return ctx, func(cluster.RequestResult) { record("end of Request") }
		},
		Renewal: func(ctx context.Context, _ cluster.RenewalInfo) (context.Context, func(cluster.RenewalResult)) {
			record("Renewal")
			return ctx, func(cluster.RenewalResult) { record("end of Renewal") }
		},
		TokenFetch: func(ctx context.Context, _ cluster.TokenKey) (context.Context, func(error)) {
			record("TokenFetch")
			return ctx, func(error) { record("end of TokenFetch") }
		},
		PeerDone:        func(_ context.Context, o cluster.Outcome) { record(fmt.Sprintf("PeerDone %s %t", o.Kind, o.Evicted)) },
		EvictionDecided: func(_ context.Context, d cluster.EvictionDecision) { record("EvictionDecided " + string(d.Decision)) },
		MembershipChanged: func(_ context.Context, c cluster.Change) {
			record(fmt.Sprintf("MembershipChanged %s %s %s", c.Server.ServerID, c.Kind, c.Source))
		},
		StateChanged:   func(_ context.Context, _, to cluster.Status) { record("StateChanged " + string(to.State)) },
		CallerChecked:  func(_ context.Context, i cluster.CallerInfo) { record("CallerChecked " + string(i.Result)) },
		ReplicaChanged: func(_ context.Context, _, _ string, err error) { record(fmt.Sprint("ReplicaChanged ", err != nil)) },
		BreakerChanged: func(_ context.Context, s cluster.Server, open bool) {
			record(fmt.Sprintf("BreakerChanged %s %t", s.ServerID, open))
		},
	}
}

// A recordedOrder is the hooks that were called, in order.
type recordedOrder struct {
	mu    sync.Mutex // guards the field below
	texts []string
}

func (o *recordedOrder) record(text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.texts = append(o.texts, text)
}

func (o *recordedOrder) take() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	texts := o.texts
	o.texts = nil
	return texts
}

func wantTexts(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestHookOrder(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		var hooks recordedOrder
		w := clustertest.Start(t, 1)
		n := w.Join(cluster.WithTrace(orderTrace(hooks.record)))
		wantTexts(t, "joining", hooks.take(),
			"Renewal",
			"TokenFetch", "Request POST token_service", "end of Request", "end of TokenFetch",
			"Request POST registry", "end of Request",
			"MembershipChanged node-1 joined registry", "MembershipChanged node-2 joined registry",
			"StateChanged registered", "end of Renewal",
			"Call announce",
			"TokenFetch", "Request POST token_service", "end of Request", "end of TokenFetch",
			"Request POST peer", "end of Request", "PeerDone ok false",
			"end of Call")

		w.Nodes[0].Kill()
		rpc(t, n, cluster.Request{Path: "/things"})
		wantTexts(t, "a call that evicts", hooks.take(),
			"Call fan_out",
			"Request GET peer", "end of Request", "Request GET peer", "end of Request",
			"Request DELETE registry", "end of Request", "Request DELETE registry", "end of Request",
			"MembershipChanged node-1 left eviction", "EvictionDecided evicted", "PeerDone refused true",
			"end of Call")

		n.UnRegister(t.Context())
		wantTexts(t, "leaving", hooks.take(), "StateChanged left", "Request DELETE registry", "end of Request",
			"Request DELETE registry", "end of Request", "Call depart", "end of Call")
	})
}

// A change of the replica comes after the request that failed, and one of a breaker before the
// outcome of its peer. A caller is checked before the handler.
func TestHookOrderOfFaults(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		var hooks recordedOrder
		w := startReplicas(t, 0)
		requests := recordRequests(w)
		n := w.Join(cluster.WithTrace(orderTrace(hooks.record)))
		attempts, _ := requests.attempts(http.MethodPost, n)
		w.Network.Fault(n.Host, attempts[0].host, clustertest.Refuse)
		hooks.take()
		if _, err := n.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantTexts(t, "another replica", hooks.take(),
			"Renewal", "Request POST registry", "end of Request", "Request POST registry", "end of Request",
			"ReplicaChanged true", "end of Renewal", "Call announce", "end of Call")
	})
	synctest.Test(t, func(t *testing.T) {
		var hooks recordedOrder
		w := clustertest.Start(t, 1, noEviction(), clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
			return n.Authenticate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				hooks.record("handler of " + n.ID)
				n.Reply(w, r, nil)
			}))
		}))
		n := w.Join(cluster.WithTrace(orderTrace(hooks.record)))
		hooks.take()
		rpc(t, w.Nodes[0], cluster.Request{Path: "/things"})
		wantTexts(t, "a caller", hooks.take(), "CallerChecked authenticated", "handler of node-2")

		w.Network.Fault(n.Host, w.Nodes[0].Host, clustertest.Hang)
		var order []string
		for range 5 { // until the breaker opens
			rpc(t, n, cluster.Request{Path: "/things"})
			if order = hooks.take(); slices.Contains(order, "BreakerChanged node-1 true") {
				break
			}
		}
		wantTexts(t, "a breaker that opens", order, "Call fan_out", "Request GET peer", "end of Request",
			"BreakerChanged node-1 true", "EvictionDecided disabled", "PeerDone timeout false", "end of Call")
	})
}

// A call that waits for all peers reports each as soon as it is done.
func TestPeerDoneAtOnce(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		start := time.Time{}
		var hooks recordedOrder
		w := clustertest.Start(t, 3)
		n := w.Join(cluster.WithTrace(&cluster.Trace{PeerDone: func(_ context.Context, o cluster.Outcome) {
			hooks.record(fmt.Sprint(o.Server.ServerID, " ", o.Kind, " ", time.Since(start)))
		}}))
		w.Network.Fault(n.Host, w.Nodes[0].Host, clustertest.Delay(3*time.Second))
		w.Network.Fault(n.Host, w.Nodes[1].Host, clustertest.Status(500))
		w.Network.Fault(n.Host, w.Nodes[2].Host, clustertest.Delay(time.Second))
		hooks.take()
		start = time.Now()
		rpc(t, n, cluster.Request{Path: "/things"})
		wantTexts(t, "peers", hooks.take(), "node-2 status 0s", "node-3 ok 1s", "node-1 ok 3s")

		w.Nodes[2].Kill() // its eviction would be decided after all peers have been called
		w.Network.Fault(n.Host, w.Nodes[2].Host, nil)
		w.Network.Fault(n.Host, w.Nodes[1].Host, clustertest.Chain(clustertest.Delay(time.Second), clustertest.Status(500)))
		start = time.Now()
		for range n.Stream(t.Context(), cluster.Request{Path: "/things"}) {
			break // which cancels the call: each peer is reported nevertheless
		}
		got := hooks.take()
		slices.Sort(got)
		wantTexts(t, "peers of a canceled call", got, "node-1 canceled 1s", "node-2 status 1s", "node-3 refused 1s")
	})
}

// Hooks of several traces are called in order, and the functions that end operations in reverse.
// A context of nil, and a function of nil, are as if the hook was not set.
func TestSeveralTraces(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		type key struct{}
		var hooks recordedOrder
		named := func(name string) *cluster.Trace {
			return &cluster.Trace{
				Call: func(ctx context.Context, _ cluster.CallInfo) (context.Context, func(cluster.CallResult)) {
					hooks.record(fmt.Sprint(name, " in ", ctx.Value(key{})))
					return context.WithValue(ctx, key{}, name), func(cluster.CallResult) { hooks.record("end of " + name) }
				},
				PeerDone: func(ctx context.Context, _ cluster.Outcome) {
					hooks.record(fmt.Sprint(name, ": peer in ", ctx.Value(key{})))
				},
			}
		}
		w := clustertest.Start(t, 1)
		n := w.Join(cluster.WithTrace(named("first")), cluster.WithTrace(nil),
			cluster.WithTrace(&cluster.Trace{
				Call: func(context.Context, cluster.CallInfo) (context.Context, func(cluster.CallResult)) { return nil, nil },
			}),
			cluster.WithTrace(named("last")))
		hooks.take()
		rpc(t, n, cluster.Request{Path: "/things"})
		wantTexts(t, "hooks", hooks.take(), "first in <nil>", "last in first", "first: peer in last", "last: peer in last", "end of last", "end of first")
	})
}

// panickingTrace panics in each hook and in each function that a hook returns.
func panickingTrace(beginPanics bool) *cluster.Trace {
	fail := func() { panic("panic with " + secretText) }
	begin := func() {
		if beginPanics {
			fail()
		}
	}
	return &cluster.Trace{
		Call: func(ctx context.Context, _ cluster.CallInfo) (context.Context, func(cluster.CallResult)) {
			begin()
			return ctx, func(cluster.CallResult) { fail() }
		},
		Request: func(ctx context.Context, _ cluster.RequestInfo) (context.Context, func(cluster.RequestResult)) {
			begin()
			return ctx, func(cluster.RequestResult) { fail() }
		},
		Renewal: func(ctx context.Context, _ cluster.RenewalInfo) (context.Context, func(cluster.RenewalResult)) {
			begin()
			return ctx, func(cluster.RenewalResult) { fail() }
		},
		TokenFetch: func(ctx context.Context, _ cluster.TokenKey) (context.Context, func(error)) {
			begin()
			return ctx, func(error) { fail() }
		},
		PeerDone:          func(context.Context, cluster.Outcome) { fail() },
		EvictionDecided:   func(context.Context, cluster.EvictionDecision) { fail() },
		MembershipChanged: func(context.Context, cluster.Change) { fail() },
		StateChanged:      func(context.Context, cluster.Status, cluster.Status) { fail() },
		CallerChecked:     func(context.Context, cluster.CallerInfo) { fail() },
	}
}

const secretText = "the-client-secret"

// Panics in hooks are logged, without secrets and not each time, and break nothing. The hooks of
// other traces are still called.
func TestPanickingHooks(t *testing.T) {
	parallel(t)
	for _, beginPanics := range []bool{true, false} {
		t.Run(fmt.Sprint("begin=", beginPanics), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				logs, entries := observer.New(zap.ErrorLevel)
				var hooks recordedOrder
				w := clustertest.Start(t, 0,
					clustertest.WithConfig(func(cfg *cluster.Config) { cfg.GenericPreviousKey = secretText }),
					clustertest.WithOptions(cluster.WithTrace(panickingTrace(beginPanics)), cluster.WithLogger(zap.New(logs)), cluster.WithTrace(orderTrace(hooks.record))))
				for range 3 {
					w.Join()
				}
				w.Nodes[2].Kill()
				for range 3 {
					res := rpc(t, w.Nodes[0], cluster.Request{Path: "/things"})
					if got := idsOfOutcomes(res.Results); !slices.Equal(got, []string{"node-2"}) {
						t.Errorf("results of %q", got)
					}
				}
				wantView(t, w.Nodes[0], "node-1", "node-2")
				counts := map[string]int{}
				for _, e := range entries.FilterField(zap.String("serverId", "node-1")).All() {
					fields := e.ContextMap()
					counts[fmt.Sprint(fields["hook"])]++
					if text := fmt.Sprint(fields["panic"]); e.Message != "trace hook panicked" || text != "panic with [redacted]" || !strings.Contains(fmt.Sprint(fields["stack"]), "panickingTrace") {
						t.Errorf("logged %s %s", e.Message, text)
					}
				}
				want := map[string]int{
					"Call": 1, "Request": 1, "Renewal": 1, "TokenFetch": 1, "PeerDone": 1, "EvictionDecided": 1,
					"MembershipChanged": 1, "StateChanged": 1, "CallerChecked": 1,
				}
				if diff := cmp.Diff(want, counts); diff != "" {
					t.Errorf("logged panics (-want +got):\n%s", diff)
				}
				if got := hooks.take(); !slices.Contains(got, "end of Call") || !slices.Contains(got, "PeerDone refused true") {
					t.Errorf("the hooks of the other trace: %q", got)
				}
				time.Sleep(time.Hour)
				if got := entries.FilterField(zap.String("hook", "Renewal")).FilterField(zap.String("serverId", "node-1")).Len(); got < 2 {
					t.Errorf("later panics of a hook are not logged")
				}
			})
		})
	}
}

// Each check of a caller is reported once, with its result.
func TestCallerChecked(t *testing.T) {
	checks := map[string]int{}
	verifier := verifierFunc(func(token string) (cluster.Claims, error) {
		switch token {
		case "peer":
			return cluster.Claims{Type: "cluster", SubType: "mds"}, nil
		case "other":
			return cluster.Claims{Type: "cluster", SubType: "other"}, nil
		case "service":
			return cluster.Claims{SubType: "mds"}, nil
		case "unavailable":
			return cluster.Claims{}, cluster.ErrVerifierUnavailable
		}
		return cluster.Claims{SubType: "ignored"}, errors.New("bad " + token)
	})
	c := newNode(t, testConfig(), http.DefaultTransport, cluster.WithVerifier(verifier), cluster.WithTrace(&cluster.Trace{
		CallerChecked: func(ctx context.Context, i cluster.CallerInfo) {
			checks[fmt.Sprintf("%s of %q: %v", i.Result, i.Claims.SubType, i.Err)]++
			if i.RemoteAddr == "" || cluster.CorrelationID(ctx) == "" {
				t.Errorf("%+v has no address or no correlation id", i)
			}
		},
	}))
	ok := responder(http.StatusOK, "")
	for name, h := range map[string]http.Handler{"all": c.Authenticate(ok), "peers": c.AuthenticatePeer(ok), "endpoint": http.HandlerFunc(c.DeleteServer)} {
		for _, token := range []string{"", "peer", "other", "service", "unavailable", "invalid"} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, "/mds/v1/itResources/it/servers/x", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.RemoteAddr = name
			if token != "" {
				req.Header.Set("Authorization", "Bearer "+token)
			}
			serve(h, req)
		}
	}
	want := map[string]int{
		`no_token of "": 401 Unauthorized: invalid token: missing authorization header`: 3,
		`authenticated of "mds": <nil>`:   5,
		`authenticated of "other": <nil>`: 1,
		`wrong_type of "other": 403 Forbidden: invalid token: its type is "other", not "mds"`:   1,
		`wrong_type of "other": 400 Bad Request: invalid token: its type is "other", not "mds"`: 1,
		`no_peer of "mds": 400 Bad Request: invalid token: must be a cluster token`:             1,
		`not_verified of "": 503 Service Unavailable: tokens cannot be verified at the moment`:  3,
		`invalid_token of "": 403 Forbidden: invalid token: bad [redacted]`:                     3,
	}
	if diff := cmp.Diff(want, checks); diff != "" {
		t.Errorf("checks (-want +got):\n%s", diff)
	}
}

type verifierFunc func(token string) (cluster.Claims, error)

func (f verifierFunc) Verify(_ context.Context, token string) (cluster.Claims, error) {
	return f(token)
}

// Fields that a hook adds to a request are sent, by each transport and for each retry, and replace
// those of the call. Fields that a hook must not set are not sent.
func TestRequestHeader(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	peer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen = append(seen, fmt.Sprint(r.Header["Traceparent"], r.Header["X-Kept"], r.Header["X-Bad"], strings.HasPrefix(r.Header.Get("Authorization"), "Bearer stolen")))
		mu.Unlock()
		_, _ = io.WriteString(w, `{"server":{"serverId":"node-2"}}`)
	}))
	t.Cleanup(peer.Close)
	add := func(name, value string) *cluster.Trace {
		return &cluster.Trace{Request: func(ctx context.Context, i cluster.RequestInfo) (context.Context, func(cluster.RequestResult)) {
			return cluster.WithRequestHeader(ctx, http.Header{name: {value + " " + string(i.Target)}}), nil
		}}
	}
	request := cluster.Request{Path: "/things", Header: http.Header{"traceparent": {"of the caller"}, "X-Kept": {"kept"}}}
	for name, opts := range map[string][]cluster.Option{
		"direct transport": nil,
		"net/http":         {cluster.WithHTTPClient(&http.Client{Transport: &http.Transport{}})},
	} {
		t.Run(name, func(t *testing.T) {
			opts := append(opts, cluster.WithTrace(add("traceparent", "span of a")), cluster.WithTrace(add("X-Bad", "a\nb")), cluster.WithTrace(add("Authorization", "Bearer stolen")))
			c, _ := newSocketNode(t, peer.URL+"/mds/v1", testConfig(), opts...)
			seen = nil // without the announcement
			rpc(t, &clustertest.Node{Cluster: c}, request)
			rpc(t, &clustertest.Node{Cluster: c}, request)
			want := "[span of a peer] [kept] [] false"
			wantTexts(t, "requests", seen, want, want)
		})
	}
}

func TestStats(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 5, noEviction(), clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = 2 }))
		n := w.Nodes[0]
		if got, want := n.Stats(), (cluster.Stats{MaxInFlight: 2}); got != want {
			t.Errorf("idle: %+v, want %+v", got, want)
		}
		rpc(t, n, cluster.Request{Path: "/things"}) // from now on, the peers are known to exist
		for _, peer := range w.Nodes[1:] {
			w.Network.Fault(n.Host, peer.Host, clustertest.Hang)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			rpc(t, n, cluster.Request{Path: "/things"})
		}()
		time.Sleep(time.Second)
		if got, want := n.Stats(), (cluster.Stats{InFlight: 2, MaxInFlight: 2, Waiting: 2}); got != want {
			t.Errorf("during a call: %+v, want %+v", got, want)
		}
		<-done
		if got, want := n.Stats(), (cluster.Stats{MaxInFlight: 2, OpenBreakers: 4}); got != want {
			t.Errorf("after a call without responses: %+v, want %+v", got, want)
		}
		w.Nodes[4].UnRegister(t.Context())
		if got := n.Stats().OpenBreakers; got != 3 {
			t.Errorf("%d breakers are open after one of four peers left", got)
		}
	})
}

// The breaker of a silent peer is reported when it opens and when it closes, not for each request.
func TestBreakerChanged(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		var hooks recordedOrder
		w := clustertest.Start(t, 3, noEviction())
		n := w.Join(cluster.WithTrace(&cluster.Trace{BreakerChanged: func(_ context.Context, s cluster.Server, open bool) {
			hooks.record(fmt.Sprintf("%s open %t", s.ServerID, open))
		}}), cluster.WithEviction(cluster.Eviction{Disabled: true}))
		w.Network.Fault(n.Host, w.Nodes[0].Host, clustertest.Hang)
		for range 5 {
			rpc(t, n, cluster.Request{Path: "/things"})
			time.Sleep(10 * time.Second)
		}
		w.Network.Fault(n.Host, w.Nodes[0].Host, nil)
		time.Sleep(time.Minute)
		rpc(t, n, cluster.Request{Path: "/things"})
		wantTexts(t, "changes", hooks.take(), "node-1 open true", "node-1 open false")
	})
}

func TestReplicaChanged(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		var hooks recordedOrder
		w := startReplicas(t, 0, clustertest.WithOptions(cluster.WithTrace(&cluster.Trace{
			ReplicaChanged: func(_ context.Context, from, to string, err error) {
				hooks.record(fmt.Sprintf("%s to %s, failed %t", from, to, err != nil))
			},
		})))
		_, home := joinReplica(w)
		w.Network.Down(home)
		time.Sleep(2 * time.Hour)
		w.Network.Up(home)
		time.Sleep(100 * time.Hour)
		got := hooks.take()
		if len(got) != 2 || !strings.HasPrefix(got[0], "http://"+home+"/") || !strings.HasSuffix(got[0], "failed true") ||
			!strings.Contains(got[1], " to http://"+home+"/") || !strings.HasSuffix(got[1], "failed false") {
			t.Errorf("the preferred replica is %s, the changes are %q", home, got)
		}
	})
}

// The status and the header of a peer's response are in its outcome, also if the peer failed.
func TestOutcomeHasResponse(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 4, noEviction(), clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("X-From", n.ID)
				if n.ID == "node-2" {
					n.ReplyError(w, r, &cluster.StatusError{Code: http.StatusTeapot})
					return
				}
				n.Reply(w, r, n.ID)
			})
		}))
		w.Network.Down(w.Nodes[3].Host)
		res := rpc(t, w.Nodes[0], cluster.Request{Path: "/things"})
		got := map[string]string{}
		for _, o := range slices.Concat(res.Results, res.Failures) {
			got[o.Server.ServerID] = fmt.Sprint(o.StatusCode, o.Header().Get("X-From"))
		}
		if want := map[string]string{"node-2": "418node-2", "node-3": "200node-3", "node-4": "0"}; !maps.Equal(got, want) {
			t.Errorf("responses %v, want %v", got, want)
		}
	})
}

// watch collects the changes of the view as texts, and waits for the given time after each.
func watch(ctx context.Context, c *cluster.Cluster, pause time.Duration) (changes *recordedOrder, done <-chan struct{}) {
	changes, ended := &recordedOrder{}, make(chan struct{})
	go func() {
		defer close(ended)
		for change := range c.Watch(ctx) {
			changes.record(fmt.Sprintf("%s %s by %s", change.Server.ServerID, change.Kind, change.Source))
			time.Sleep(pause)
		}
	}()
	return changes, ended
}

func TestWatch(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Nodes[0]
		changes, closed := watch(t.Context(), n.Cluster, 0)
		ctx, cancel := context.WithCancel(t.Context())
		_, canceled := watch(ctx, n.Cluster, 0)
		wantChanges := func(what string, want ...string) {
			t.Helper()
			synctest.Wait()
			wantTexts(t, what, changes.take(), want...)
		}
		wantChanges("the view at the start", "node-1 joined by registry", "node-2 joined by announcement")
		if got := idsOf(n.Peers()); !slices.Equal(got, []string{"node-2"}) {
			t.Errorf("the peers are %q", got)
		}

		w.Join()
		wantChanges("a node joins", "node-3 joined by announcement")
		time.Sleep(2 * time.Hour) // several renewals
		wantChanges("no change")
		w.Nodes[1].Kill()
		rpc(t, n, cluster.Request{Path: "/things"})
		wantChanges("a node is evicted", "node-2 left by eviction")
		w.Nodes[1].Restart()
		wantChanges("it is back", "node-2 joined by announcement")
		w.Nodes[2].UnRegister(t.Context())
		wantChanges("a node leaves", "node-3 left by departure")

		w.Nodes[1].Move("elsewhere:8080")
		w.Nodes[1].Restart()
		wantChanges("a node moves", "node-2 moved by announcement")
		w.Nodes[1].Kill()
		time.Sleep(3 * time.Hour) // until its lease has expired and this node has renewed
		wantChanges("an entry expires", "node-2 left by registry")

		cancel()
		<-canceled
		n.Close()
		<-closed
		for range n.Watch(t.Context()) {
			t.Error("a closed node has changes")
		}
	})
}

// A consumer that breaks out of the loop is forgotten.
func TestWatchBreak(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		for range w.Nodes[0].Watch(t.Context()) {
			break
		}
		if got := cluster.Watchers(w.Nodes[0].Cluster); got != 0 {
			t.Errorf("%d consumers are left", got)
		}
	})
}

// Changes are merged while the consumer is busy: what cancels out is not yielded, and what is
// yielded is the difference to what it knows.
func TestWatchMergesChanges(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.RequestTimeout = time.Second }))
		n := w.Nodes[0]
		changes, _ := watch(t.Context(), n.Cluster, time.Minute)
		synctest.Wait() // it has got the first of two changes
		for i := range 100 {
			announce(t, w, n, announcement(fmt.Sprint("visitor-", i)))
			reportDeparture(t, w, n, fmt.Sprint("visitor-", i))
		}
		reportDeparture(t, w, n, "node-2")
		announce(t, w, n, resourceWithDate("2030-01-01T00:00:00.000Z", "node-2"))
		announce(t, w, n, announcement("visitor-7"))
		time.Sleep(10 * time.Minute)
		wantTexts(t, "changes", changes.take(), "node-1 joined by registry", "node-2 joined by announcement", "visitor-7 joined by announcement")
	})
}

// Whatever happens, and however slow a consumer is, applying the changes leads to the view.
func TestWatchConverges(t *testing.T) {
	parallel(t)
	rapid.Check(t, func(rt *rapid.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 2, clustertest.WithLease(time.Minute))
			n := w.Nodes[0]
			known := map[string]string{}
			pauses := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "pauses"), 0))
			go func() {
				for change := range n.Watch(t.Context()) {
					id := change.Server.ServerID
					if _, isKnown := known[id]; isKnown == (change.Kind == cluster.ServerJoined) || change.Source == "" || change.Time.IsZero() {
						t.Errorf("%+v, known %t", change, isKnown)
					}
					if known[id] = change.Server.ClusterBaseURL; change.Kind == cluster.ServerLeft {
						delete(known, id)
					}
					time.Sleep(time.Duration(pauses.IntN(int(20 * time.Second))))
				}
			}()
			for range rapid.IntRange(1, 15).Draw(rt, "events") {
				disturb(rt, w, n)
			}
			time.Sleep(15 * time.Minute) // the consumer catches up, and leases expire
			synctest.Wait()
			view := map[string]string{}
			for _, s := range n.Servers() {
				view[s.ServerID] = s.ClusterBaseURL
			}
			if !maps.Equal(known, view) {
				t.Errorf("the consumer knows %v, the view is %v", known, view)
			}
			n.Close()
		})
	})
}

// disturb makes the view of n change, or lets time pass.
func disturb(rt *rapid.T, w *clustertest.World, n *clustertest.Node) {
	others := w.Nodes[1:]
	other := others[rapid.IntRange(0, len(others)-1).Draw(rt, "node")]
	switch rapid.SampledFrom([]string{"join", "kill", "restart", "move", "leave", "call", "renew", "reset", "wait"}).Draw(rt, "event") {
	case "join":
		if len(w.Nodes) < 6 {
			w.Join()
		}
	case "kill":
		other.Kill()
	case "restart":
		other.Restart()
	case "move":
		other.Move(fmt.Sprintf("host-%d:8080", rapid.IntRange(0, 99).Draw(rt, "host")))
		other.Restart()
	case "leave":
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		other.UnRegister(ctx)
		cancel()
	case "call":
		for range n.Stream(context.Background(), cluster.Request{Path: "/things"}) {
		}
	case "renew":
		_, _ = n.Register(context.Background())
	case "reset":
		w.ResetRegistry()
	case "wait":
		time.Sleep(time.Duration(rapid.IntRange(1, 90).Draw(rt, "seconds")) * time.Second)
	}
}

type slogKey struct{}

// A contextHandler records lines with a value of their contexts. It enables Debug if there is one.
type contextHandler struct {
	slog.Handler
	mu    *sync.Mutex
	lines *[]string
}

func (h contextHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return level > slog.LevelDebug || ctx.Value(slogKey{}) != nil
}

func (h contextHandler) WithAttrs([]slog.Attr) slog.Handler { return h }

func (h contextHandler) Handle(ctx context.Context, r slog.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	line := fmt.Sprintf("%s %s value=%v", r.Level, r.Message, ctx.Value(slogKey{}))
	r.Attrs(func(a slog.Attr) bool {
		value := a.Value.Any()
		if err, ok := value.(error); ok {
			if se, ok := errors.AsType[*cluster.StatusError](err); ok {
				value = se
			}
		}
		line += fmt.Sprintf(" %s=%T", a.Key, value)
		return true
	})
	*h.lines = append(*h.lines, line)
	return nil
}

// The handler of WithSlog gets the fields with their types, errors for errors.As, and the caller's
// context.
func TestWithSlog(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		w := clustertest.Start(t, 1)
		registryDown(w)
		n := w.Add(cluster.WithSlog(slog.New(slog.NewJSONHandler(&out, nil))))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := n.Register(cluster.WithCorrelationID(ctx, "call-7"))
		if err == nil {
			t.Fatal("registered")
		}
		lines := slices.DeleteFunc(strings.Split(out.String(), "\n"), isAboutConfiguration)
		line := lines[0]
		var got map[string]any
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		text, _ := got["error"].(string)
		if got["level"] != "WARN" || got["msg"] != "registration failed" || got["serverId"] != n.ID || got["correlationId"] != "call-7" ||
			!strings.Contains(text, "mIT") || got["retryIn"] == nil || got["time"] != time.Now().Add(-time.Second).Format(time.RFC3339Nano) {
			t.Errorf("logged %s", line)
		}
	})
}

func TestWithSlogContext(t *testing.T) {
	var mu sync.Mutex
	var lines []string
	c := newNode(t, testConfig(), http.DefaultTransport, cluster.WithVerifier(failingVerifier{cluster.ErrVerifierUnavailable}),
		cluster.WithSlog(slog.New(contextHandler{slog.DiscardHandler, &mu, &lines})))
	for _, value := range []any{nil, "of the caller"} {
		req := httptest.NewRequest("GET", "/things", nil)
		req.Header.Set("Authorization", "Bearer bearer-token")
		if value != nil {
			req = req.WithContext(context.WithValue(req.Context(), slogKey{}, value))
		}
		serve(c.Authenticate(responder(http.StatusOK, "")), req)
	}
	want := []string{
		"ERROR token verification unavailable value=<nil> reason=string correlationId=string",
		"DEBUG request rejected value=of the caller statusCode=int64 path=string error=*cluster.StatusError correlationId=string",
	}
	if diff := cmp.Diff(want, slices.DeleteFunc(lines, isAboutConfiguration)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func isAboutConfiguration(line string) bool { return strings.Contains(line, "unsafe configuration") }

// WithSlog and WithLogger replace each other, and nil logs nothing.
func TestLastLoggerApplies(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	var mu sync.Mutex
	var lines []string
	toSlog := cluster.WithSlog(slog.New(contextHandler{slog.DiscardHandler, &mu, &lines}))
	for _, opts := range [][]cluster.Option{
		{toSlog, cluster.WithSlog(nil)}, {toSlog, cluster.WithLogger(zap.New(core))}, {cluster.WithLogger(zap.New(core)), toSlog},
	} {
		cfg := testConfig()
		cfg.NoRegistration = true
		_ = newNode(t, cfg, http.DefaultTransport, opts...).Close()
	}
	lines = slices.DeleteFunc(lines, isAboutConfiguration)
	if len(lines) != 1 || logs.FilterMessage("registration state changed").Len() != 1 {
		t.Errorf("%d lines of slog, %d of zap: %q", len(lines), logs.Len(), lines)
	}
}
