package observability

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clusterprom"
	"github.com/mimiktech/cluster/mit"
)

const ruleFile = "rules.yml"

// An alert fires on series as a node in trouble has them, and not on those of a node in order.
func TestAlerts(t *testing.T) {
	const inOrder = `load 30s
		mimik_cluster_lease_remaining_seconds{job="mds",instance="a"} 7200-30x60 5400+0x60
		mimik_cluster_lease_length_seconds{job="mds",instance="a"} 7200x120
		mimik_cluster_state{job="mds",instance="a",state="registered"} 1x120
		mimik_cluster_state{job="mds",instance="a",state="lost"} 0x120
		mimik_cluster_suspects_total{job="mds",instance="a",decision="evicted"} 0x40 1x80
		mimik_cluster_suspects_total{job="mds",instance="a",decision="self_preservation"} 0x120
		mimik_cluster_breakers_open{job="mds",instance="a"} 0x20 2x3 0x97
		mimik_cluster_peer_outcomes_total{job="mds",instance="a",operation="announce",kind="status"} 0x120
		mimik_cluster_peer_outcomes_total{job="mds",instance="a",operation="fan_out",kind="status"} 0+5x120
		mimik_cluster_callers_total{job="mds",instance="a",result="authenticated"} 0+100x120
		mimik_cluster_callers_total{job="mds",instance="a",result="no_token"} 0x60 1x60
		mimik_cluster_conflicting_servers{job="mds",instance="a"} 0x120
		mimik_cluster_requests_waiting{job="mds",instance="a"} 0x120
		mimik_cluster_slots_in_use{job="mds",instance="a"} 256x120
		mimik_cluster_slots{job="mds",instance="a"} 256x120
		mimik_mit_store_ready{job="mit",instance="r"} 1x20 0 1x99
		mimik_mit_store_duration_seconds_count{job="mit",instance="r",operation="put",outcome="ok"} 0+5x120
		mimik_mit_store_duration_seconds_count{job="mit",instance="r",operation="put",outcome="failed"} 0x40 0+1x80
		mimik_mit_store_duration_seconds_count{job="mit",instance="quiet",operation="put",outcome="ok"} 7x120
		mimik_mit_store_duration_seconds_count{job="mit",instance="quiet",operation="put",outcome="failed"} 0x120
		mimik_mit_address_conflicts_total{job="mit",instance="r"} 3x120`
	tested := map[string]bool{"": true}
	for name, tt := range map[string]struct {
		series string
		want   string // the alert that fires; empty for none
	}{
		"a node in order": {inOrder, ""},
		"renewals fail": {`load 30s
			mimik_cluster_lease_remaining_seconds{job="mds",instance="a"} 1200-30x40
			mimik_cluster_lease_length_seconds{job="mds",instance="a"} 7200x40`, "ClusterLeaseRunsOut"},
		"lost":                      {`load 30s` + "\n" + `mimik_cluster_state{job="mds",instance="a",state="lost"} 0x5 1x40`, "ClusterNodeNotRegistered"},
		"peers evicted in a row":    {`load 30s` + "\n" + `mimik_cluster_suspects_total{job="mds",instance="a",decision="evicted"} 0x10 0+1x40`, "ClusterPeersEvicted"},
		"most peers unreachable":    {`load 30s` + "\n" + `mimik_cluster_suspects_total{job="mds",instance="a",decision="self_preservation"} 0x20 3x40`, "ClusterSelfPreservation"},
		"a silent peer":             {`load 30s` + "\n" + `mimik_cluster_breakers_open{job="mds",instance="a"} 0x5 1x40`, "ClusterBreakersOpen"},
		"announcements rejected":    {`load 30s` + "\n" + `mimik_cluster_peer_outcomes_total{job="mds",instance="a",operation="announce",kind="status"} 0x10 4x40`, "ClusterAnnouncementsRejected"},
		"callers with other keys":   {`load 30s` + "\n" + `mimik_cluster_callers_total{job="mds",instance="a",result="invalid_token"} 0+30x120`, "ClusterCallersRejected"},
		"one id twice":              {`load 30s` + "\n" + `mimik_cluster_conflicting_servers{job="mds",instance="a"} 0x5 1x40`, "ClusterServerIDConflict"},
		"the registry is not ready": {`load 30s` + "\n" + `mimik_mit_store_ready{job="mit",instance="r"} 1x5 0x40`, "MitNotWriting"},
		"all writes fail": {`load 30s
			mimik_mit_store_ready{job="mit",instance="r"} 1x60
			mimik_mit_store_duration_seconds_count{job="mit",instance="r",operation="put",outcome="ok"} 0+5x20 100x40
			mimik_mit_store_duration_seconds_count{job="mit",instance="r",operation="put",outcome="failed"} 0x20 0+5x40`, "MitNotWriting"},
		"one id at the registry": {`load 30s` + "\n" + `mimik_mit_address_conflicts_total{job="mit",instance="r"} 0x10 0+1x40`, "MitAddressConflicts"},
		"too few slots": {`load 30s
			mimik_cluster_requests_waiting{job="mds",instance="a"} 40x40
			mimik_cluster_slots_in_use{job="mds",instance="a"} 256x40
			mimik_cluster_slots{job="mds",instance="a"} 256x40`, "ClusterSlotsExhausted"},
	} {
		tested[tt.want] = true
		t.Run(name, func(t *testing.T) {
			fired := evaluate(t, tt.series)
			if got := strings.Join(slices.Sorted(maps.Keys(fired)), " "); got != tt.want {
				t.Errorf("%q fired, want %q", got, tt.want)
			}
			for alert, summary := range fired {
				if summary == "" || strings.Contains(summary, "<no value>") || strings.Contains(summary, "error expanding") {
					t.Errorf("%s: %q", alert, summary)
				}
			}
		})
	}
	for _, group := range load(t, "load 1m") {
		for _, rule := range group.Rules() {
			if !tested[rule.Name()] {
				t.Errorf("%s is not tested", rule.Name())
			}
		}
	}
}

// load returns the groups of rules, for recorded series.
func load(t *testing.T, series string) map[string]*rules.Group {
	t.Helper()
	storage := promqltest.LoadedStorage(t, series)
	engine := promqltest.NewTestEngine(t, false, 0, 1_000_000)
	m := rules.NewManager(&rules.ManagerOptions{
		QueryFunc: rules.EngineQueryFunc(engine, storage), AppendableV2: storage, Queryable: storage, Context: t.Context(),
		NotifyFunc: func(context.Context, string, ...*rules.Alert) {}, Parser: parser.NewParser(parser.Options{}),
	})
	groups, errs := m.LoadGroups(30*time.Second, labels.EmptyLabels(), "", nil, false, ruleFile)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	return groups
}

// evaluate returns the summaries of the alerts that fire within an hour.
func evaluate(t *testing.T, series string) map[string]string {
	t.Helper()
	groups := load(t, series)
	fired := map[string]string{}
	for at := time.Unix(0, 0); at.Before(time.Unix(3600, 0)); at = at.Add(30 * time.Second) {
		for _, group := range groups {
			group.Eval(t.Context(), at)
			for _, rule := range group.AlertingRules() {
				for _, alert := range rule.ActiveAlerts() {
					if alert.State == rules.StateFiring {
						fired[rule.Name()] = alert.Annotations.Get("summary")
					}
				}
			}
		}
	}
	return fired
}

// Each query of the rules and of the dashboard is for metrics and labels that exist, and there is a
// query for each metric.
func TestQueries(t *testing.T) {
	known := metrics(t)
	maps.Copy(known, registryMetrics(t))
	used := map[string]bool{}
	for _, query := range queries(t) {
		query = strings.NewReplacer("$__rate_interval", "5m", "$job", "mds", "$instance", "a").Replace(query)
		expr, err := parser.NewParser(parser.Options{}).ParseExpr(query)
		if err != nil {
			t.Errorf("%s: %v", query, err)
			continue
		}
		parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
			selector, ok := node.(*parser.VectorSelector)
			if !ok {
				return nil
			}
			name := selector.Name
			if _, ok := known[name]; !ok {
				name = name[:max(0, strings.LastIndex(name, "_"))] // a part of a histogram
			}
			names, ok := known[name]
			if !ok {
				t.Errorf("%s: there is no metric %s", query, selector.Name)
			}
			used[name] = true
			for _, matcher := range selector.LabelMatchers {
				if !slices.Contains(append(names, "__name__", "job", "instance"), matcher.Name) {
					t.Errorf("%s: %s has no label %s", query, name, matcher.Name)
				}
			}
			return nil
		})
	}
	for name := range known {
		if !used[name] {
			t.Errorf("%s is in no query", name)
		}
	}
}

// queries returns those of the rules and of the dashboard.
func queries(t *testing.T) (all []string) {
	t.Helper()
	text, err := os.ReadFile("dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	for _, panel := range dashboard.Panels {
		if len(panel.Targets) == 0 || panel.Title == "" {
			t.Errorf("the panel %q has no title or no query", panel.Title)
		}
		for _, target := range panel.Targets {
			all = append(all, target.Expr)
		}
	}
	for _, group := range load(t, "load 1m") {
		for _, rule := range group.Rules() {
			all = append(all, rule.Query().String())
		}
	}
	return all
}

// metrics returns the labels of each metric of a node, by the description of its Collector.
func metrics(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	descriptions := make(chan *prometheus.Desc, 100)
	clusterprom.New(clusterprom.Options{}).Describe(descriptions)
	close(descriptions)
	for d := range descriptions {
		_, rest, _ := strings.Cut(d.String(), `fqName: "`)
		name, rest, _ := strings.Cut(rest, `"`)
		_, rest, _ = strings.Cut(rest, "variableLabels: {")
		names, _, _ := strings.Cut(rest, "}")
		all[name] = strings.Split(names, ",")
	}
	return all
}

// exposed returns what a registry and a token service respond to a scrape, after an event of each
// kind.
func exposed(t *testing.T) []byte {
	t.Helper()
	tokens, err := mit.NewTokenService(mit.TokenConfig{Issuer: "http://mst.example.com", Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	registry, err := mit.NewRegistry(mit.NewMemory(), mit.RegistryConfig{Verify: func(token string) (cluster.Claims, error) { return cluster.Claims{SubType: token}, nil }})
	if err != nil {
		t.Fatal(err)
	}
	send := func(h http.Handler, method, path, typ string) []byte {
		body, err := json.Marshal(map[string]string{"type": typ, "serverId": "a", "clusterBaseUrl": "http://10.0.0.1"})
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest(method, path, bytes.NewReader(body))
		r.Header.Set("Authorization", "Bearer "+typ)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Body.Bytes()
	}
	send(tokens, http.MethodPost, "/", "")
	for _, typ := range []string{"mds", `of "quotes" and \ `, "of \xff bytes"} {
		send(registry, http.MethodPost, "/itResources", typ)
		send(registry, http.MethodDelete, "/itResources/"+mit.ResourceID(typ)+"/servers/a", typ)
	}
	return send(mit.MetricsHandler(registry, tokens), http.MethodGet, "/metrics", "")
}

// registryMetrics returns the labels of each metric of the program mit, as Prometheus reads them.
func registryMetrics(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	p := textparse.NewPromParser(exposed(t), labels.NewSymbolTable(), false)
	kinds := map[string]model.MetricType{}
	for {
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		switch entry {
		case textparse.EntryType:
			name, kind := p.Type()
			kinds[string(name)] = kind
		case textparse.EntrySeries:
			var series labels.Labels
			p.Labels(&series)
			name := series.Get(model.MetricNameLabel)
			if _, ok := kinds[name]; !ok {
				name = name[:max(0, strings.LastIndex(name, "_"))] // a part of a histogram
			}
			if _, ok := kinds[name]; !ok {
				t.Errorf("%s has no type", series)
			}
			series.Range(func(l labels.Label) {
				if l.Name != model.MetricNameLabel && !slices.Contains(all[name], l.Name) {
					all[name] = append(all[name], l.Name)
				}
			})
			if all[name] == nil {
				all[name] = []string{}
			}
		}
	}
}

// The names, types and labels of the program mit are part of its interface, and follow the rules of
// Prometheus.
func TestRegistryMetrics(t *testing.T) {
	want := map[string][]string{
		"mimik_mit_servers":                   {"type"},
		"mimik_mit_registrations_total":       {"kind", "type"},
		"mimik_mit_deletes_total":             {"cause", "type"},
		"mimik_mit_expirations_total":         {},
		"mimik_mit_tokens_total":              {"outcome"},
		"mimik_mit_request_duration_seconds":  {"le", "route", "status"},
		"mimik_mit_store_duration_seconds":    {"le", "operation", "outcome"},
		"mimik_mit_store_ready":               {},
		"mimik_mit_responses_in_flight":       {},
		"mimik_mit_responses_in_flight_bytes": {},
		"mimik_mit_responses_limit_bytes":     {},
		"mimik_mit_address_conflicts_total":   {},
	}
	got := registryMetrics(t)
	for _, names := range got {
		slices.Sort(names)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	problems, err := promlint.New(bytes.NewReader(exposed(t))).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
	documented, err := os.ReadFile("../../docs/registry.md")
	if err != nil {
		t.Fatal(err)
	}
	for name := range want {
		if !strings.Contains(string(documented), "`"+name+"`") {
			t.Errorf("docs/registry.md does not describe %s", name)
		}
	}
}
