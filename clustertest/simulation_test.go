package clustertest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/internal/testrun"
)

// settings is the service of one node: a setting, which all nodes are to agree on.
type settings struct {
	c *cluster.Cluster

	mu      sync.Mutex // guards the field below
	current setting
}

type setting struct {
	Version int    `json:"version"`
	Value   string `json:"value"`
}

// ServeHTTP serves GET and PUT.
func (s *settings) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPut {
		var received setting
		if err := json.NewDecoder(r.Body).Decode(&received); err != nil {
			s.c.ReplyError(w, r, err)
			return
		}
		s.merge(received)
	}
	s.c.Reply(w, r, []setting{s.get()})
}

func (s *settings) get() setting {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

// merge keeps the newer one of two settings.
func (s *settings) merge(other setting) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if other.Version > s.current.Version {
		s.current = other
	}
}

// set changes the setting and sends it to all peers. The planted bug: a peer that does not receive
// it keeps the previous one for good.
func (s *settings) set(ctx context.Context, changed setting) {
	s.merge(changed)
	_, _ = s.c.RPCluster(ctx, cluster.Request{Method: http.MethodPut, Path: "/settings", Body: changed})
}

// pull is the correction: each node regularly gets the settings of its peers.
func (s *settings) pull(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(20 * time.Minute):
		}
		res, err := s.c.RPCluster(ctx, cluster.Request{Path: "/settings"})
		if err != nil {
			continue
		}
		received, _ := cluster.Decode[setting](res)
		for _, other := range received {
			s.merge(other)
		}
	}
}

// A fleet is the services of all nodes of a run.
type fleet struct {
	mu      sync.Mutex // guards the fields below
	byNode  map[*cluster.Cluster]*settings
	version int
}

// simulateSettings is the body of a simulation of the service.
func simulateSettings(r *clustertest.Run, pull bool) {
	f := &fleet{byNode: map[*cluster.Cluster]*settings{}}
	r.Start(clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
		s := &settings{c: n.Cluster}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.byNode[n.Cluster] = s
		if pull {
			go s.pull(r.Context())
		}
		return n.Authenticate(s)
	}))
	r.Play(map[string]func(*rand.Rand){
		"change": func(rnd *rand.Rand) {
			n := r.Pick(rnd)
			f.mu.Lock()
			f.version++
			s, changed := f.byNode[n.Cluster], setting{f.version, fmt.Sprintf("value %d", f.version)}
			f.mu.Unlock()
			r.Logf("%s gets %v", n.ID, changed)
			s.set(r.Context(), changed)
		},
	}, nil)
	f.mu.Lock()
	defer f.mu.Unlock()
	nodes := r.Running()
	for _, n := range nodes[1:] {
		if a, b := f.byNode[nodes[0].Cluster].get(), f.byNode[n.Cluster].get(); a != b {
			r.Errorf("after recovery, %s has %v, and %s has %v", nodes[0].ID, a, n.ID, b)
		}
	}
}

// failingSeed is the first seed that finds the bug.
const failingSeed = 8

// The drawn faults find the bug of a small service, and the failure is reduced to what matters.
func TestSimulationFindsABug(t *testing.T) {
	t.Parallel()
	var simulation clustertest.Simulation
	if !testrun.Full(t, "begins with a seed that finds the bug") {
		simulation.FirstSeed = failingSeed
	}
	failure := simulation.FindFailure(t, func(r *clustertest.Run) { simulateSettings(r, false) })
	if failure == nil {
		t.Fatal("no seed has found the bug")
	}
	t.Logf("%s", failure)
	lines := strings.Split(strings.TrimSpace(failure.Scenario), "\n")
	if len(lines) > 15 {
		t.Errorf("the scenario has %d lines, want at most 15", len(lines))
	}
	if !strings.Contains(failure.Problems[0], "after recovery, node-1 has") || len(failure.History) == 0 {
		t.Errorf("got problems %q and %d lines of history", failure.Problems, len(failure.History))
	}
	replay := lines[len(lines)-1]
	want := regexp.MustCompile(`^replay: CLUSTERTEST_REPLAY='-seed \d+ .*-events \d+.*' go test -run '\^TestSimulationFindsABug\$'$`)
	if !want.MatchString(replay) {
		t.Errorf("the last line is %q", replay)
	}
}

// The correction of the bug passes the seeds that find it.
func TestSimulationOfACorrectService(t *testing.T) {
	t.Parallel()
	simulation := clustertest.Simulation{Seeds: 10}
	if !testrun.Full(t, "three seeds instead of ten") {
		simulation = clustertest.Simulation{FirstSeed: failingSeed, Seeds: 3}
	}
	simulation.Test(t, func(r *clustertest.Run) { simulateSettings(r, true) })
}

// planted selects, in another process, the test that fails.
const planted = "CLUSTERTEST_PLANTED"

// A test of a service with a bug fails, and its replay command fails in the same way.
func TestSimulationReplay(t *testing.T) {
	if os.Getenv(planted) != "" {
		clustertest.Simulation{FirstSeed: failingSeed}.Test(t, func(r *clustertest.Run) { simulateSettings(r, false) })
		return
	}
	t.Parallel()
	first := runFailing(t)
	replay := regexp.MustCompile(`CLUSTERTEST_REPLAY='([^']*)'`).FindStringSubmatch(first)
	if replay == nil {
		t.Fatalf("no replay command in\n%s", first)
	}
	problem := "after recovery, node-1 has"
	if second := runFailing(t, "CLUSTERTEST_REPLAY="+replay[1]); !strings.Contains(first, problem) || !strings.Contains(second, problem) {
		t.Errorf("the replay of\n%s\nis\n%s", first, second)
	}
	if invalid := runFailing(t, "CLUSTERTEST_REPLAY=-seed x"); !strings.Contains(invalid, "CLUSTERTEST_REPLAY: invalid value") {
		t.Errorf("an invalid scenario is reported as\n%s", invalid)
	}
	if invalid := runFailing(t, "CLUSTERTEST_SEEDS=many"); !strings.Contains(invalid, "is not a number of seeds") {
		t.Errorf("an invalid number of seeds is reported as\n%s", invalid)
	}
}

// runFailing runs TestSimulationReplay with the bug in another process, which must fail.
func runFailing(t *testing.T, env ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestSimulationReplay$")
	cmd.Env = append(slices.Concat(os.Environ(), env), planted+"=yes")
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Errorf("with %q the test does not fail:\n%s", env, out)
	}
	return string(out)
}

// Whatever ends a run is a problem of its scenario, and the test itself goes on.
func TestSimulationProblems(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		body func(*clustertest.Run)
		want string
	}{
		"panic":              {func(*clustertest.Run) { panic("in the body") }, "panic: in the body"},
		"fatal":              {func(r *clustertest.Run) { r.Fatalf("cause %d", 1) }, "cause 1"},
		"play before start":  {func(r *clustertest.Run) { r.Play(nil, nil) }, "Play was called before Start"},
		"play twice":         {func(r *clustertest.Run) { r.Start(); r.Play(nil, nil); r.Play(nil, nil) }, "Play was called twice"},
		"panic of an action": {playing(func(*clustertest.Run) { panic("in an action") }), "panic: in an action"},
		"fatal in an action": {playing(func(r *clustertest.Run) { r.Fatal("in an action") }), "in an action"},
		"deadlock":           {playing(func(*clustertest.Run) { select {} }), "an action has not returned"},
		"invariant": {func(r *clustertest.Run) {
			w := r.Start()
			r.Play(nil, func() {
				if len(w.Nodes) > 2 || len(r.Running()) < len(w.Nodes) {
					r.Errorf("a node has gone or come")
				}
			})
		}, "a node has gone or come"},
	} {
		t.Run(name, func(t *testing.T) {
			failure := clustertest.Simulation{Seeds: 5, MaxNodes: 2}.FindFailure(t, tt.body)
			if failure == nil || !strings.Contains(failure.Problems[0], tt.want) {
				t.Errorf("got %v, want the problem %q", failure, tt.want)
			}
		})
	}
}

func playing(action func(*clustertest.Run)) func(*clustertest.Run) {
	return func(r *clustertest.Run) {
		r.Start()
		r.Play(map[string]func(*rand.Rand){"act": func(*rand.Rand) { action(r) }}, nil)
	}
}

// A fault kind can be left out, and each kind is drawn and run by some seed.
func TestSimulationFaultKinds(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	var mu sync.Mutex
	clustertest.Simulation{Seeds: 15, MaxNodes: 4, Duration: 12 * time.Hour, Without: []string{"partition"}}.Test(t, func(r *clustertest.Run) {
		r.Start()
		r.Play(nil, nil)
		mu.Lock()
		defer mu.Unlock()
		for _, kind := range r.Kinds() {
			seen[kind] = true
		}
	})
	for _, kind := range clustertest.FaultKinds() {
		if seen[kind] == (kind == "partition") {
			t.Errorf("%s: drawn: %v", kind, seen[kind])
		}
	}
}
