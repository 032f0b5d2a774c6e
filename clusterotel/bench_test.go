package clusterotel_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"syscall"
	"testing"
	"time"

	metricnoop "go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"golang.org/x/oauth2"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clusterotel"
	"github.com/mimiktech/cluster/internal/fixedworld"
	"github.com/mimiktech/cluster/mit"
)

// BenchmarkOverhead compares calls over loopback sockets of a node without telemetry and of one
// with it, in turns. overhead_% is how much more processor time the latter need, peers included.
func BenchmarkOverhead(b *testing.B) {
	for _, peers := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("none/%d", peers), func(b *testing.B) { // how exact the figures are
			compare(b, newCaller(b, peers), newCaller(b, peers))
		})
	}
	sdk := clusterotel.Config{
		TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithBatcher(tracetest.NewNoopExporter())),
		MeterProvider:  sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader())),
	}
	for name, cfg := range map[string]clusterotel.Config{
		"no-op":  {TracerProvider: tracenoop.NewTracerProvider(), MeterProvider: metricnoop.NewMeterProvider()},
		"no SDK": {}, // the global providers
		"SDK":    sdk,
	} {
		for _, peers := range []int{1, 10, 100} {
			b.Run(fmt.Sprintf("%s/%d", name, peers), func(b *testing.B) {
				telemetry, err := clusterotel.New(cfg)
				if err != nil {
					b.Fatal(err)
				}
				compare(b, newCaller(b, peers), newCaller(b, peers, cluster.WithTrace(telemetry.Trace())))
			})
		}
	}
}

// compare runs two functions in turns.
func compare(b *testing.B, without, with func()) {
	b.Helper()
	var took [2]time.Duration
	functions := [2]func(){without, with}
	for n := 0; b.Loop(); n++ {
		for k := range functions {
			i := (n + k) % 2
			start := processorTime(b)
			for range 20 {
				functions[i]()
			}
			took[i] += processorTime(b) - start
		}
	}
	b.ReportMetric(100*(float64(took[1])/float64(took[0])-1), "overhead_%")
}

// processorTime returns the time that this process has used the processors. Unlike the time that
// passes, it hardly depends on what else the machine does.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// newCaller returns a call of a new node to a number of peers.
func newCaller(b *testing.B, peers int, opts ...cluster.Option) func() {
	b.Helper()
	servers := fixedworld.Servers(0, peers)
	for i := range servers[1:] {
		s := &servers[i+1]
		body := fmt.Sprintf(`{"data":[%q],"server":{"serverId":%[1]q}}`, s.ServerID)
		s.ClusterBaseURL = serve(b, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) })) + "/mds/v1"
	}
	registry, err := mit.NewRegistry(fixedworld.NewStore(servers), mit.RegistryConfig{Verify: func(string) (cluster.Claims, error) { return cluster.Claims{SubType: "mds"}, nil }})
	if err != nil {
		b.Fatal(err)
	}
	cfg := cluster.Config{
		Type: "mds", ID: "node-1", Port: 8080, LocalIPv4: "127.0.0.1", Management: true, ClusterBaseURL: servers[0].ClusterBaseURL,
		RegistryURL: serve(b, registry), RegistryAudience: "mit", PeerAudience: "mds", Issuer: "https://mst.example/oauth/token",
		ClientAccessKey: cluster.Secret(rand.Text()), ClientAudience: "mds",
	}
	tokens := func(context.Context, cluster.TokenKey) (*oauth2.Token, error) {
		return &oauth2.Token{AccessToken: "token-of-the-node", Expiry: time.Now().Add(time.Hour)}, nil
	}
	c, err := cluster.New(cfg, append(opts, cluster.WithTokens(tokens), cluster.WithoutEnv())...)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() })
	ctx, cancel := context.WithTimeout(b.Context(), 10*time.Second)
	defer cancel()
	if _, err := c.Register(ctx); err != nil {
		b.Fatal(err)
	}
	return func() {
		res, err := c.RPCluster(b.Context(), cluster.Request{Path: "/things"})
		if err != nil || len(res.Results) != peers {
			b.Fatal(res, err)
		}
	}
}

// serve returns the URL of a server on loopback.
func serve(b *testing.B, h http.Handler) string {
	b.Helper()
	srv := httptest.NewServer(h)
	b.Cleanup(srv.Close)
	return srv.URL
}
