//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mimiktech/cluster/internal/proctest"
)

// roleVariable makes the test binary run the benchmark with its arguments.
const roleVariable = "BENCH_RUN"

// TestMain also runs the roles in which the driver starts its own binary.
func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) != "" || len(os.Args) > 1 && (os.Args[1] == stubRole || os.Args[1] == contestantRole) {
		if err := run(os.Args[1:]); err != nil {
			logf("%v", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func startHarness(t *testing.T, o options) *harness {
	t.Helper()
	h, err := newHarness(t.Context(), o, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.close)
	if reason, absent := h.absent[npmName]; absent && os.Getenv("INTEROP") == "require" {
		t.Fatalf("no npm module: %s", reason)
	}
	return h
}

// The times are not checked, only that each contestant called every peer.
func TestContestantsCallEveryPeer(t *testing.T) {
	h := startHarness(t, options{
		Names: allContestants(), Peers: []int{10}, Callers: []int{1, 8}, Rounds: 2, Time: 20 * time.Millisecond,
		Size: 10, Timeout: time.Minute, NPM: "../interop/npm",
	})
	text, err := h.calls(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := 2 * len(h.Names); len(h.results) != want {
		t.Errorf("%d results, want %d", len(h.results), want)
	}
	for _, r := range h.results {
		if len(r.Rounds) != 2 {
			t.Errorf("%s has %d rounds, want 2", r.Name, len(r.Rounds))
		}
		for _, round := range r.Rounds {
			if round.Calls < r.Callers || round.Results != round.Calls*r.Peers || round.Failures != 0 {
				t.Errorf("%s, %d peers, %d callers: %d results and %d failures in %d calls", r.Name, r.Peers, r.Callers, round.Results, round.Failures, round.Calls)
			}
			if round.CPU <= 0 || round.P50 <= 0 || round.P99 < round.P50 || round.Peak < 1<<20 {
				t.Errorf("%s: measured %+v", r.Name, round)
			}
		}
	}
	var n requestCounts
	if err := h.stub.do("counts", nil, &n); err != nil {
		t.Fatal(err)
	}
	if n.Unauthorized != 0 || n.Canceled != 0 {
		t.Errorf("%d requests without the token, %d canceled", n.Unauthorized, n.Canceled)
	}
	for _, name := range h.Names {
		if strings.Count(text, "| "+name+" |") != 2 {
			t.Errorf("want two rows of %s in\n%s", name, text)
		}
	}
	targets := 4 // calls/s and CPU relative to the baseline, for two numbers of callers
	if slices.Contains(h.Names, npmName) {
		targets = 8
	}
	if len(h.targets) != targets {
		t.Errorf("%d targets, want %d:\n%s", len(h.targets), targets, h.report())
	}
}

func TestTargets(t *testing.T) {
	h := &harness{results: []result{
		{Name: ours, Peers: 10, Callers: 1, Rounds: []round{{Calls: 10, Took: time.Second, CPU: 3 * time.Second}, {Calls: 30, Took: time.Second, CPU: time.Second}}},
		{Name: baseline, Peers: 10, Callers: 1, Rounds: []round{{Calls: 20, Took: time.Second, CPU: time.Second}, {Calls: 10, Took: time.Second, CPU: time.Second}}},
	}}
	h.checkCalls()
	h.checkAtMost("absolute", "ms", 3.5, 3)
	want := []target{
		{"10 peers, 1 caller: calls/s relative to loop", "≥ ×1.20", "×1.75 (×0.50 to ×3.00)", true},
		{"10 peers, 1 caller: CPU relative to loop", "≤ ×0.65", "×3.17 (×0.33 to ×6.00)", false},
		{"absolute", "≤ 3 ms", "3.50 ms", false},
	}
	if !slices.Equal(h.targets, want) {
		t.Errorf("targets %v, want %v", h.targets, want)
	}
}

func TestOverheadIsMeasuredWithoutNetwork(t *testing.T) {
	h := startHarness(t, options{Names: []string{ours}, Peers: []int{20}, Rounds: 1, Time: 10 * time.Millisecond, Size: 10, Timeout: time.Minute})
	text, err := h.overhead(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(h.targets) != 3 || strings.Count(text, "\n| 20 |") != 3 {
		t.Errorf("%d targets and\n%s", len(h.targets), text)
	}
	var n requestCounts
	if err := h.stub.do("counts", nil, &n); err != nil {
		t.Fatal(err)
	}
	if n.Things != 0 || n.Others != 0 {
		t.Errorf("peers received %d requests", n.Things+n.Others)
	}
}

func TestFirstCallNeedsTwoTokens(t *testing.T) {
	h := startHarness(t, options{Names: []string{ours}, Peers: []int{20}, Rounds: 1, Timeout: time.Minute})
	if _, err := h.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(h.targets) != 1 || !h.targets[0].Met {
		t.Errorf("want one met target: %v", h.targets)
	}
}

func TestBurstHasNoMissingResults(t *testing.T) {
	h := startHarness(t, options{Names: []string{ours, baseline}, Peers: []int{20, 1000}, Rounds: 1, Time: time.Hour, Timeout: time.Minute})
	text, err := h.burst(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(text, "\n| 20 | 8 |") != 2 || strings.Count(text, "\n| 1000 | 8 |") != 2 || strings.Contains(text, "missing") || len(h.targets) != 1 {
		t.Errorf("%d targets and\n%s", len(h.targets), text)
	}
}

func TestTailHasNoMissingResults(t *testing.T) {
	h := startHarness(t, options{Names: []string{ours, baseline}, Rounds: 1, Time: 100 * time.Millisecond, Timeout: time.Minute})
	text, err := h.tail(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(text, "\n| 10 | 1 |") != 3 || strings.Contains(text, "missing") {
		t.Error(text)
	}
}

func TestJoinMeasuresAllSystems(t *testing.T) {
	h := &harness{options: options{Rounds: 1}, log: t.Logf}
	text, err := h.join(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(text, " ms |") < 3*3 {
		t.Error(text)
	}
}

func TestPlot(t *testing.T) {
	var results []result
	var scenarioResults []scenarioResult
	for _, name := range plotted() {
		for _, peers := range []int{10, 100} {
			for _, callers := range []int{8, 1} {
				results = append(results, result{name, peers, callers, []round{{Calls: callers, Took: time.Second, CPU: time.Second, P50: time.Second}}})
			}
		}
		for _, s := range scenarios() {
			scenarioResults = append(scenarioResults, scenarioResult{
				Name: name, Scenario: s, First: []callResult{{Took: time.Second}}, Next: []callResult{{Took: time.Second}},
			})
		}
	}
	for _, tt := range []struct {
		results         []result
		scenarioResults []scenarioResult
		lines           int
	}{{results, scenarioResults, 4 + 4}, {results, nil, 4}, {nil, scenarioResults, 4}, {nil, nil, 0}} {
		svg, err := draw(tt.results, tt.scenarioResults)
		if err != nil {
			t.Fatal(err)
		}
		elements := make(map[string]int)
		for d := xml.NewDecoder(strings.NewReader(svg)); ; {
			token, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%v in\n%s", err, svg)
			}
			if e, ok := token.(xml.StartElement); ok {
				elements[e.Name.Local]++
			}
		}
		// Two circles and a rotated rect for each line and for the legend, and one rect as the
		// background.
		if elements["circle"] != 2*(tt.lines+1) || elements["rect"] != tt.lines+2 {
			t.Errorf("%d circles and %d rects for %d lines in\n%s", elements["circle"], elements["rect"], tt.lines, svg)
		}
	}
}

func TestFailureScenarios(t *testing.T) {
	h := startHarness(t, options{Names: []string{ours, baseline}, FailureRounds: 1, Size: 10, Timeout: time.Minute})
	results, err := h.measureScenarios(t.Context(), func(s scenario) bool { return s.Dead == 1 })
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		first, s := r.First[0], r.Scenario
		if first.Results != s.Peers-s.Dead || first.Failures != s.Dead {
			t.Errorf("%s, %s: %d results and %d failures", s.Name, r.Name, first.Results, first.Failures)
		}
		evicted, deletes := 0, int64(0)
		if r.Name != baseline {
			deletes = int64(s.Dead)
			if !s.RegistryDown {
				evicted = s.Dead
			}
		}
		if r.Cost[0].Deletes != deletes {
			t.Errorf("%s, %s: the registry received %d deletes, want %d", s.Name, r.Name, r.Cost[0].Deletes, deletes)
		}
		if next := r.Next[0]; next.Results != s.Peers-s.Dead || next.Failures != s.Dead-evicted {
			t.Errorf("%s, %s: the next call has %d results and %d failures", s.Name, r.Name, next.Results, next.Failures)
		}
	}
	if text := failuresTable(results); strings.Count(text, "| "+streaming+" |") != 2 {
		t.Errorf("want two rows of %s in\n%s", streaming, text)
	}
}

// The driver is the child of a shell, which is killed.
func TestDriverEndsWithItsParent(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"-c", `"$0" "$@" & wait`, self, "-contestants", baseline, "-peers", "10", "-callers", "1", "-time", "10m"}
	shell := exec.CommandContext(ctx, "sh", args...)
	shell.Env = append(os.Environ(), roleVariable+"=yes")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	shell.Stdout, shell.Stderr = w, w
	proctest.Isolate(shell)
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = shell.Cancel() }() // kills the driver, too, if it has not ended
	w.Close()
	if err := r.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(r)
	if line, err := out.ReadString('\n'); line != "10 peers, 1 caller\n" {
		t.Errorf("the driver printed %q, %v", line, err)
	}
	if err := shell.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = shell.Wait() // "signal: killed"
	rest, err := io.ReadAll(out)
	if !strings.Contains(string(rest), proctest.ErrParentEnded.Error()) || err != nil {
		t.Errorf("after its parent was killed the driver printed %q, %v", rest, err)
	}
}

func TestRolesEndWithTheirStandardInput(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, role := range [][]string{{stubRole}, {contestantRole, baseline}} {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(ctx, self, role...)
		_, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.ExtraFiles = []*os.File{w}
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %v", role, err)
		}
		w.Close()
	}
}

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{3, 1}, 2}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5}} {
		before := slices.Clone(tt.values)
		if got := median(tt.values); got != tt.want || !slices.Equal(before, tt.values) {
			t.Errorf("median(%v) = %v, want %v; it is %v after", before, got, tt.want, tt.values)
		}
	}
}

func TestQuantile(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = i + 1
	}
	for _, tt := range []struct {
		sorted []int
		share  float64
		want   int
	}{{[]int{7}, 0.5, 7}, {[]int{1, 2}, 0.5, 1}, {[]int{1, 2, 3}, 0.5, 2}, {hundred, 0.99, 99}, {hundred, 1, 100}, {hundred, 0, 1}} {
		if got := quantile(tt.sorted, tt.share); got != tt.want {
			t.Errorf("quantile of %d values, %v: %d, want %d", len(tt.sorted), tt.share, got, tt.want)
		}
	}
}
