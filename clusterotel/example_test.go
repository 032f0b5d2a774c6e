package clusterotel_test

import (
	"context"
	"fmt"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clusterotel"
	"github.com/mimiktech/cluster/clustertest"
)

// A node with spans, in a cluster in memory. A service uses cluster.New with the same option, and
// an exporter of its choice.
func Example() {
	exporter := tracetest.NewInMemoryExporter()
	telemetry, err := clusterotel.New(clusterotel.Config{
		TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter)),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	err = clustertest.Program(context.Background(), func(t clustertest.TB) {
		w := clustertest.Start(t, 2)
		node := w.Join(cluster.WithTrace(telemetry.Trace()))
		stop, err := telemetry.Observe(node.Cluster)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = stop() }()

		exporter.Reset() // without those of the registration
		_, _ = node.RPCluster(context.Background(), cluster.Request{Name: "list-things", Path: "/things"})
		for _, span := range exporter.GetSpans() {
			fmt.Println(span.Name)
		}
	})
	if err != nil {
		fmt.Println(err)
	}
	// Output:
	// HTTP GET
	// HTTP GET
	// cluster.fanout list-things
}
