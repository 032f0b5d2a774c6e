package routers

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

// withOTel is the transport of OpenTelemetry, around those of a node.
func withOTel(spans *tracetest.SpanRecorder) cluster.Option {
	provider := trace.NewTracerProvider(trace.WithSpanProcessor(spans))
	return cluster.WithTransport(func(rt http.RoundTripper) http.RoundTripper {
		return otelhttp.NewTransport(rt, otelhttp.WithTracerProvider(provider), otelhttp.WithPropagators(propagation.TraceContext{}))
	})
}

type connKey struct{}

// A peer records the requests for things and their connections.
type peer struct {
	mu       sync.Mutex // guards the fields below
	conns    map[int64]int
	requests int
	traced   int // requests with a traceparent
}

// record returns how many requests of its connection there have been.
func (p *peer) record(r *http.Request) int {
	conn, _ := r.Context().Value(connKey{}).(int64)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests++
	if r.Header.Get("Traceparent") != "" {
		p.traced++
	}
	p.conns[conn]++
	return p.conns[conn]
}

// serveCounting serves a node, whose peers call it at host. things is called with the number of
// requests of a connection so far.
func serveCounting(t *testing.T, b *clustertest.Backend, host string, things func(c *cluster.Cluster, w http.ResponseWriter, r *http.Request, n int), opts ...cluster.Option) (*cluster.Cluster, *peer) {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	cfg := b.Config
	cfg.Port, cfg.ClusterBaseURL = ln.Addr().(*net.TCPAddr).Port, "http://"+net.JoinHostPort(host, port)+"/mds/v1"
	c, err := cluster.New(cfg, append(opts, cluster.WithoutEnv())...)
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{conns: map[int64]int{}}
	mux := http.NewServeMux()
	c.Mount(mux)
	mux.HandleFunc("GET "+path(c), func(w http.ResponseWriter, r *http.Request) { things(c, w, r, p.record(r)) })
	var conns atomic.Int64
	srv := &http.Server{
		Handler: mux, ReadHeaderTimeout: time.Second,
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, conns.Add(1))
		},
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- c.Serve(ctx, ln, srv) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return c, p
}

func waitForPeer(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	for range 1000 {
		if c.Status().State == cluster.Registered && len(c.Peers()) == 1 {
			return
		}
		time.Sleep(10 * time.Millisecond) // sockets need real time
	}
	t.Fatalf("%v has the peers %v", c.Status(), c.Peers())
}

func callThings(t *testing.T, c *cluster.Cluster) *cluster.Response {
	t.Helper()
	res, err := c.RPCluster(t.Context(), cluster.Request{Path: "/things"})
	if err != nil {
		t.Error(err)
		return &cluster.Response{}
	}
	return res
}

// 16 concurrent calls use 16 connections, however often they are repeated.
func TestOTelKeepsThePool(t *testing.T) {
	const calls, rounds = 16, 20
	b := clustertest.NewBackend(t)
	var inFlight sync.WaitGroup
	_, p := serveCounting(t, b, "127.0.0.1", func(c *cluster.Cluster, w http.ResponseWriter, r *http.Request, _ int) {
		inFlight.Done()
		inFlight.Wait() // until all calls of the round are in flight
		c.Reply(w, r, []string{"x"})
	})
	spans := tracetest.NewSpanRecorder()
	c, _ := serveCounting(t, b, "127.0.0.1", nil, withOTel(spans))
	waitForPeer(t, c)
	for range rounds {
		inFlight.Add(calls)
		var done sync.WaitGroup
		for range calls {
			done.Go(func() {
				if res := callThings(t, c); len(res.Results) != 1 {
					t.Errorf("failures: %v", res.Failures)
				}
			})
		}
		done.Wait()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.conns) > calls || p.requests != calls*rounds {
		t.Errorf("%d connections for %d requests, want %d", len(p.conns), p.requests, calls)
	}
	if p.traced != p.requests || len(spans.Ended()) < p.requests {
		t.Errorf("%d of %d requests are traced, by %d spans", p.traced, p.requests, len(spans.Ended()))
	}
}

// A peer outside of the networks gets no request, and so no token. Its name is resolved only when
// it is dialed.
func TestOTelKeepsTheDialCheck(t *testing.T) {
	for name, tt := range map[string]struct {
		networks []netip.Prefix
		want     cluster.Kind
		requests int
	}{
		"allowed": {nil, cluster.KindOK, 1}, "outside": {[]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, cluster.KindNotAllowed, 0},
	} {
		t.Run(name, func(t *testing.T) {
			b := clustertest.NewBackend(t)
			_, p := serveCounting(t, b, "localhost", func(c *cluster.Cluster, w http.ResponseWriter, r *http.Request, _ int) {
				c.Reply(w, r, []string{"x"})
			})
			c, _ := serveCounting(t, b, "127.0.0.1", nil, withOTel(tracetest.NewSpanRecorder()), cluster.WithPeerPolicy(cluster.PeerPolicy{Networks: tt.networks}))
			waitForPeer(t, c)
			res := callThings(t, c)
			outcomes := append(res.Results, res.Failures...)
			if len(outcomes) != 1 || outcomes[0].Kind != tt.want {
				t.Errorf("outcomes %+v, want %s", outcomes, tt.want)
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.requests != tt.requests {
				t.Errorf("the peer got %d requests, want %d", p.requests, tt.requests)
			}
		})
	}
}

// A retry uses a new connection, also if there are idle ones that work.
func TestOTelKeepsTheNewConnection(t *testing.T) {
	b := clustertest.NewBackend(t)
	var rejected atomic.Bool
	_, p := serveCounting(t, b, "127.0.0.1", func(c *cluster.Cluster, w http.ResponseWriter, r *http.Request, n int) {
		switch {
		case rejected.CompareAndSwap(false, true):
			c.ReplyError(w, r, &cluster.StatusError{Code: http.StatusServiceUnavailable})
		case n != 1:
			t.Errorf("the retry is request %d of its connection", n)
			fallthrough
		default:
			c.Reply(w, r, []string{"x"})
		}
	})
	always := func(string, error) bool { return true }
	c, _ := serveCounting(t, b, "127.0.0.1", nil, withOTel(tracetest.NewSpanRecorder()), cluster.WithRetry(cluster.Retry{RetryIf: always}))
	waitForPeer(t, c)
	for range 4 {
		rejected.Store(false)
		if res := callThings(t, c); len(res.Results) != 1 || res.Results[0].Attempts != 2 {
			t.Fatalf("results %+v, failures %v", res.Results, res.Failures)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.requests != 4*2 || len(p.conns) != 5 {
		t.Errorf("%d requests on the connections %v, want one connection for the first attempts", p.requests, p.conns)
	}
}
