package cluster_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/internal/fixedworld"
	"github.com/mimiktech/cluster/mit"
)

// BenchmarkRPCluster calls peers that answer at once. Over the network the cost includes their
// small handlers, with the stub it does not.
func BenchmarkRPCluster(b *testing.B) {
	for _, peers := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprintf("network/peers=%d", peers), func(b *testing.B) {
			w := fixedworld.Start(b, fixedworld.NewStore(fixedworld.Servers(0, peers)), 0)
			benchmarkRPCluster(b, w.Join().Cluster, peers)
		})
		b.Run(fmt.Sprintf("stub/peers=%d", peers), func(b *testing.B) {
			var network http.RoundTripper
			stub := clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
				id, _, isPeer := strings.Cut(req.URL.Host, ":8080")
				if !isPeer {
					return network.RoundTrip(req)
				}
				body := `{"data":["` + id + `"],"server":{"serverId":"` + id + `"}}`
				return &http.Response{
					StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)), Request: req,
				}, nil
			})
			w := clustertest.Start(b, 0,
				clustertest.WithStore(fixedworld.NewStore(fixedworld.Servers(0, peers))),
				clustertest.WithOptions(cluster.WithTransport(func(http.RoundTripper) http.RoundTripper { return stub })))
			network = w.Network.Transport("node-1:8080")
			benchmarkRPCluster(b, w.Join().Cluster, peers)
		})
	}
}

// BenchmarkTrace calls a hundred peers without a hook, with hooks that are not called, and with all
// hooks of a call.
func BenchmarkTrace(b *testing.B) {
	const peers = 100
	for name, trace := range map[string]*cluster.Trace{
		"none":  nil,
		"other": {ReplicaChanged: func(context.Context, string, string, error) {}},
		"all": {
			Call: func(ctx context.Context, _ cluster.CallInfo) (context.Context, func(cluster.CallResult)) {
				return ctx, func(cluster.CallResult) {}
			},
			Request: func(ctx context.Context, _ cluster.RequestInfo) (context.Context, func(cluster.RequestResult)) {
				return ctx, func(cluster.RequestResult) {}
			},
			PeerDone: func(context.Context, cluster.Outcome) {},
		},
	} {
		b.Run("hooks="+name, func(b *testing.B) {
			w := fixedworld.Start(b, fixedworld.NewStore(fixedworld.Servers(0, peers)), 0, clustertest.WithOptions(cluster.WithTrace(trace)))
			benchmarkRPCluster(b, w.Join().Cluster, peers)
		})
	}
}

func benchmarkRPCluster(b *testing.B, c *cluster.Cluster, peers int) {
	b.Helper()
	b.ReportAllocs()
	for b.Loop() {
		res, err := c.RPCluster(b.Context(), cluster.Request{Path: "/things"})
		if err != nil || len(res.Results) != peers {
			b.Fatalf("%d results, %v", len(res.Results), err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(peers), "ns/peer")
}

// BenchmarkRenew renews, and replaces the view. The cost includes the registry.
func BenchmarkRenew(b *testing.B) {
	for _, servers := range []int{10, 100, 1000} {
		b.Run(fmt.Sprintf("servers=%d", servers), func(b *testing.B) {
			w := fixedworld.Start(b, fixedworld.NewStore(fixedworld.Servers(0, servers-1)), 0,
				clustertest.WithConfig(func(cfg *cluster.Config) { cfg.Management = false })) // no announcement
			n := w.Join()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := n.Register(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCreateItResource handles an announcement in a cluster of a thousand servers. Nodes of
// this module announce one server, nodes of the npm module all that they know.
func BenchmarkCreateItResource(b *testing.B) {
	for _, announced := range []int{1, 1000} {
		b.Run(fmt.Sprintf("servers=%d", announced), func(b *testing.B) {
			servers := fixedworld.Servers(0, 999)
			w := fixedworld.Start(b, fixedworld.NewStore(servers), 0)
			n := w.Join()
			body, err := json.Marshal(map[string]any{
				"id": mit.ResourceID("mds"), "publicBaseUrl": "", "servers": servers[len(servers)-announced:],
			})
			if err != nil {
				b.Fatal(err)
			}
			benchmarkHandler(b, n.CreateItResource, http.MethodPost, "/mds/v1/itResources", body, w.Token("mds", true))
		})
	}
}

// BenchmarkDeleteServer handles the departure of a server that is no longer in the view.
func BenchmarkDeleteServer(b *testing.B) {
	w := fixedworld.Start(b, fixedworld.NewStore(fixedworld.Servers(0, 999)), 0)
	n := w.Join()
	path := "/mds/v1/itResources/" + mit.ResourceID("mds") + "/servers/gone"
	benchmarkHandler(b, n.DeleteServer, http.MethodDelete, path, nil, w.Token("mds", true))
}

// BenchmarkAuthenticate measures what the module adds to an endpoint of the service.
func BenchmarkAuthenticate(b *testing.B) {
	w := clustertest.Start(b, 1)
	n := w.Nodes[0]
	h := n.Authenticate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { n.Reply(w, r, "ok") }))
	benchmarkHandler(b, h.ServeHTTP, http.MethodGet, "/mds/v1/things", nil, w.Token("mds", false))
}

func benchmarkHandler(b *testing.B, h http.HandlerFunc, method, path string, body []byte, token string) {
	b.Helper()
	b.ReportAllocs()
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		r := httptest.NewRequest(method, path, bytes.NewReader(body))
		r.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		h(w, r)
		if w.Code != http.StatusOK {
			b.Fatalf("%d %s", w.Code, w.Body)
		}
	}
}

// BenchmarkServers reads a view of a thousand servers.
func BenchmarkServers(b *testing.B) {
	n := fixedworld.Start(b, fixedworld.NewStore(fixedworld.Servers(0, 999)), 0).Join()
	b.ReportAllocs()
	for b.Loop() {
		if len(n.Servers()) != 1000 {
			b.Fatal(len(n.Servers()))
		}
	}
}
