package clusterprom_test

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clusterprom"
	"github.com/mimiktech/cluster/clustertest"
)

// world runs a cluster of four nodes and a fifth one with metrics, through events of every kind,
// and calls check at the end.
func world(t *testing.T, check func(*clustertest.Node, *clusterprom.Collector)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := clusterprom.New(clusterprom.Options{TraceID: func(context.Context) string { return "4bf92f3577b34da6a3ce929d0e0e4736" }})
		w := clustertest.Start(t, 4)
		w.Network.Fault("node-5:8080", w.Nodes[0].Host, clustertest.Delay(20*time.Millisecond))
		n := w.Join(cluster.WithTrace(m.Trace()), cluster.WithRetry(cluster.Retry{MaxRetries: 1}))
		m.Observe(n.Cluster)
		call := func(req cluster.Request) {
			if _, err := n.RPCluster(t.Context(), req); err != nil {
				t.Error(err)
			}
		}
		call(cluster.Request{Path: "/things"})
		call(cluster.Request{Path: "/things", HedgeAfter: 10 * time.Millisecond})
		call(cluster.Request{Path: "/nothing", Method: "PROPFIND"})
		w.Nodes[2].Kill()
		call(cluster.Request{Path: "/things"})
		w.Network.Fault(n.Host, w.Nodes[1].Host, clustertest.Hang)
		silent := func(s cluster.Server) bool { return s.ServerID == "node-2" }
		call(cluster.Request{Path: "/things", Filter: silent})
		call(cluster.Request{Path: "/things", Filter: silent})
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+n.Host+"/mds/v1/itResources", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := w.Network.Client("test").Do(req)
		if err != nil || resp.Body.Close() != nil || resp.StatusCode != http.StatusUnauthorized {
			t.Fatal(resp, err)
		}
		w.Network.Down(clustertest.RegistryHost)
		time.Sleep(45 * time.Minute)
		w.Network.Up(clustertest.RegistryHost)
		time.Sleep(10 * time.Minute)
		check(n, m)
	})
}

// closedSets returns all labels with all their values.
func closedSets() map[string]string {
	return map[string]string{
		"outcome":   "ok failed partial",
		"operation": "fan_out announce depart",
		"target":    "peer registry token_service",
		"method":    "GET HEAD POST PUT PATCH DELETE CONNECT OPTIONS TRACE other",
		"kind": "ok refused connection_lost timeout tls local_fault status wrong_server malformed too_large canceled circuit_open" +
			" not_allowed not_confirmed no_token",
		"reason": "retry hedge",
		"decision": "evicted gone returned alive unproven not_confirmed unstable self_preservation too_few_called enough_results" +
			" disabled leaving",
		"change": "joined left moved",
		"source": "registry announcement departure eviction",
		"result": "authenticated no_token invalid_token not_verified wrong_type no_peer",
		"state":  "orphan registered degraded lost left open closed",
	}
}

func TestNamesAndLabels(t *testing.T) {
	want := map[string]string{
		"mimik_cluster_state":                        "GAUGE state",
		"mimik_cluster_members":                      "GAUGE",
		"mimik_cluster_lease_length_seconds":         "GAUGE",
		"mimik_cluster_lease_remaining_seconds":      "GAUGE",
		"mimik_cluster_conflicting_servers":          "GAUGE",
		"mimik_cluster_slots":                        "GAUGE",
		"mimik_cluster_slots_in_use":                 "GAUGE",
		"mimik_cluster_requests_waiting":             "GAUGE",
		"mimik_cluster_breakers_open":                "GAUGE",
		"mimik_cluster_renewal_duration_seconds":     "HISTOGRAM outcome",
		"mimik_cluster_call_duration_seconds":        "HISTOGRAM operation outcome",
		"mimik_cluster_call_peers":                   "HISTOGRAM operation",
		"mimik_cluster_request_duration_seconds":     "HISTOGRAM kind method target",
		"mimik_cluster_token_fetch_duration_seconds": "HISTOGRAM outcome",
		"mimik_cluster_peer_outcomes_total":          "COUNTER kind operation",
		"mimik_cluster_repeated_requests_total":      "COUNTER reason target",
		"mimik_cluster_suspects_total":               "COUNTER decision",
		"mimik_cluster_view_changes_total":           "COUNTER change source",
		"mimik_cluster_callers_total":                "COUNTER result",
		"mimik_cluster_breaker_changes_total":        "COUNTER state",
		"mimik_cluster_replica_changes_total":        "COUNTER",
	}
	closed := closedSets()
	world(t, func(_ *clustertest.Node, m *clusterprom.Collector) {
		got := map[string]string{}
		for _, family := range gather(t, m) {
			for _, metric := range family.GetMetric() {
				signature := []string{family.GetType().String()}
				for _, label := range metric.GetLabel() { // sorted by name
					signature = append(signature, label.GetName())
					if !slices.Contains(strings.Fields(closed[label.GetName()]), label.GetValue()) {
						t.Errorf("%s: %s is %q, which is not in the closed set", family.GetName(), label.GetName(), label.GetValue())
					}
				}
				got[family.GetName()] = strings.Join(signature, " ")
			}
			if family.GetHelp() == "" {
				t.Errorf("%s has no help", family.GetName())
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestLint(t *testing.T) {
	world(t, func(_ *clustertest.Node, m *clusterprom.Collector) {
		problems, err := testutil.CollectAndLint(m)
		if err != nil || len(problems) > 0 {
			t.Errorf("%v, %v", problems, err)
		}
	})
}

func TestValues(t *testing.T) {
	world(t, func(n *clustertest.Node, m *clusterprom.Collector) {
		want := map[string]float64{
			"state registered":                         1,
			"members":                                  4, // one of five was evicted
			"lease_length_seconds":                     3600,
			"lease_remaining_seconds":                  time.Until(n.Status().ExpiresAt()).Seconds(),
			"slots":                                    256,
			"breakers_open":                            1,
			"breaker_changes_total open":               1,
			"peer_outcomes_total announce ok":          4,
			"peer_outcomes_total depart ok":            2,
			"peer_outcomes_total fan_out ok":           4 + 4 + 3,
			"peer_outcomes_total fan_out status":       4,
			"peer_outcomes_total depart timeout":       1,
			"peer_outcomes_total fan_out refused":      1,
			"peer_outcomes_total fan_out timeout":      1,
			"peer_outcomes_total fan_out circuit_open": 1,
			"call_duration_seconds fan_out ok":         2,
			"call_duration_seconds fan_out failed":     3, // an unknown path, a silent peer
			"call_duration_seconds fan_out partial":    1,
			"call_duration_seconds announce ok":        1,
			"call_duration_seconds depart partial":     1, // not to the silent peer
			"call_peers fan_out":                       6,
			"call_peers announce":                      1,
			"call_peers depart":                        1,
			"repeated_requests_total peer hedge":       1,
			"repeated_requests_total peer retry":       1,
			"suspects_total evicted":                   1,
			"suspects_total too_few_called":            1,
			"view_changes_total joined registry":       5,
			"view_changes_total left eviction":         1,
			"callers_total no_token":                   1,
			"token_fetch_duration_seconds ok":          2,
			"renewal_duration_seconds ok":              2,
		}
		got := values(t, m)
		failed := got["renewal_duration_seconds failed"]
		delete(got, "renewal_duration_seconds failed")
		maps.DeleteFunc(got, func(name string, value float64) bool {
			return value == 0 || strings.HasPrefix(name, "request_duration_seconds")
		})
		if diff := cmp.Diff(want, got); diff != "" || failed < 1 {
			t.Errorf("%v failed renewals; (-want +got):\n%s", failed, diff)
		}
	})
}

// Requests are counted with their kinds, those with unknown methods together.
func TestRequests(t *testing.T) {
	world(t, func(_ *clustertest.Node, m *clusterprom.Collector) {
		got := values(t, m)
		for name, want := range map[string]float64{
			"request_duration_seconds status other peer":     4,
			"request_duration_seconds timeout GET peer":      1,
			"request_duration_seconds refused GET peer":      2,
			"request_duration_seconds canceled GET peer":     1, // one of a hedged pair
			"request_duration_seconds ok DELETE registry":    2, // a look-up, and a delete
			"request_duration_seconds ok POST token_service": 2,
		} {
			if got[name] != want {
				t.Errorf("%s: %v, want %v", name, got[name], want)
			}
		}
	})
}

func TestExemplars(t *testing.T) {
	world(t, func(_ *clustertest.Node, m *clusterprom.Collector) {
		found := map[string]bool{}
		for _, family := range gather(t, m) {
			for _, metric := range family.GetMetric() {
				for _, bucket := range metric.GetHistogram().GetBucket() {
					for _, label := range bucket.GetExemplar().GetLabel() {
						if label.GetName() != "trace_id" || label.GetValue() != "4bf92f3577b34da6a3ce929d0e0e4736" {
							t.Errorf("%s has the exemplar %v", family.GetName(), label)
						}
						found[strings.TrimPrefix(family.GetName(), "mimik_cluster_")] = true
					}
				}
			}
		}
		want := []string{"call_duration_seconds", "renewal_duration_seconds", "request_duration_seconds", "token_fetch_duration_seconds"}
		if got := slices.Sorted(maps.Keys(found)); !slices.Equal(got, want) {
			t.Errorf("exemplars of %q, want %q", got, want)
		}
	})
}

// Without a node, and before the first registration, unknown values are absent instead of 0.
func TestUnknownValuesAreAbsent(t *testing.T) {
	m := clusterprom.New(clusterprom.Options{NativeHistograms: true})
	if got := values(t, m); len(got) == 0 {
		t.Error("the counters do not exist from the start")
	} else if _, known := got["members"]; known {
		t.Error("members is known without a node")
	}
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		n := w.Add(cluster.WithTrace(m.Trace()))
		m.Observe(n.Cluster)
		got := values(t, m)
		if _, known := got["lease_remaining_seconds"]; known || got["state orphan"] != 1 || got["state registered"] != 0 {
			t.Errorf("before the registration: %v", got)
		}
		if _, err := n.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := values(t, m); got["lease_remaining_seconds"] != 3600 || got["state orphan"] != 0 {
			t.Errorf("registered: %v", got)
		}
		_ = n.Close()
		if _, known := values(t, m)["lease_remaining_seconds"]; known {
			t.Error("a node that has left has a lease")
		}
	})
}

func gather(t *testing.T, m *clusterprom.Collector) []*dto.MetricFamily {
	t.Helper()
	registry := prometheus.NewPedanticRegistry() // it checks each metric against its description
	if err := registry.Register(m); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// values returns the values of all metrics, counts for histograms, by names and label values.
func values(t *testing.T, m *clusterprom.Collector) map[string]float64 {
	t.Helper()
	all := map[string]float64{}
	for _, family := range gather(t, m) {
		for _, metric := range family.GetMetric() {
			name := []string{strings.TrimPrefix(family.GetName(), "mimik_cluster_")}
			labels := metric.GetLabel()
			// In the order of the README.
			if strings.Contains(name[0], "peer_outcomes") || strings.Contains(name[0], "repeated") {
				slices.Reverse(labels)
			}
			for _, label := range labels {
				name = append(name, label.GetValue())
			}
			all[strings.Join(name, " ")] = metric.GetGauge().GetValue() + metric.GetCounter().GetValue() + float64(metric.GetHistogram().GetSampleCount())
		}
	}
	return all
}
