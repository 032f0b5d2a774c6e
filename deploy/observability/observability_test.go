package observability

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"

	"github.com/mimiktech/cluster/clusterprom"
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
		mimik_cluster_slots{job="mds",instance="a"} 256x120`
	tested := map[string]bool{"": true}
	for name, tt := range map[string]struct {
		series string
		want   string // the alert that fires; empty for none
	}{
		"a node in order": {inOrder, ""},
		"renewals fail": {`load 30s
			mimik_cluster_lease_remaining_seconds{job="mds",instance="a"} 1200-30x40
			mimik_cluster_lease_length_seconds{job="mds",instance="a"} 7200x40`, "ClusterLeaseRunsOut"},
		"lost":                    {`load 30s` + "\n" + `mimik_cluster_state{job="mds",instance="a",state="lost"} 0x5 1x40`, "ClusterNodeNotRegistered"},
		"peers evicted in a row":  {`load 30s` + "\n" + `mimik_cluster_suspects_total{job="mds",instance="a",decision="evicted"} 0x10 0+1x40`, "ClusterPeersEvicted"},
		"most peers unreachable":  {`load 30s` + "\n" + `mimik_cluster_suspects_total{job="mds",instance="a",decision="self_preservation"} 0x20 3x40`, "ClusterSelfPreservation"},
		"a silent peer":           {`load 30s` + "\n" + `mimik_cluster_breakers_open{job="mds",instance="a"} 0x5 1x40`, "ClusterBreakersOpen"},
		"announcements rejected":  {`load 30s` + "\n" + `mimik_cluster_peer_outcomes_total{job="mds",instance="a",operation="announce",kind="status"} 0x10 4x40`, "ClusterAnnouncementsRejected"},
		"callers with other keys": {`load 30s` + "\n" + `mimik_cluster_callers_total{job="mds",instance="a",result="invalid_token"} 0+30x120`, "ClusterCallersRejected"},
		"one id twice":            {`load 30s` + "\n" + `mimik_cluster_conflicting_servers{job="mds",instance="a"} 0x5 1x40`, "ClusterServerIDConflict"},
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
