package clusterprom_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clusterprom"
	"github.com/mimiktech/cluster/clustertest"
)

// A node with metrics, in a cluster in memory. A service uses cluster.New with the same option.
func Example() {
	metrics := clusterprom.New(clusterprom.Options{})
	registry := prometheus.NewRegistry()
	registry.MustRegister(metrics)

	err := clustertest.Program(context.Background(), func(t clustertest.TB) {
		w := clustertest.Start(t, 3)
		node := w.Join(cluster.WithTrace(metrics.Trace()))
		metrics.Observe(node.Cluster)
		_, _ = node.RPCluster(context.Background(), cluster.Request{Path: "/things"})

		page := httptest.NewRecorder()
		promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(page, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		for line := range strings.Lines(page.Body.String()) {
			if strings.HasPrefix(line, "mimik_cluster_members") || strings.HasPrefix(line, `mimik_cluster_peer_outcomes_total{kind="ok",operation="fan_out"`) {
				fmt.Print(line)
			}
		}
	})
	if err != nil {
		fmt.Println(err)
	}
	// Output:
	// mimik_cluster_members 4
	// mimik_cluster_peer_outcomes_total{kind="ok",operation="fan_out"} 3
}
