//go:build linux

package main

import (
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
)

// TestMain is also the stub cluster and the contestants: the driver starts its own binary again.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == "stub" || os.Args[1] == "contestant") {
		if err := run(os.Args[1:]); err != nil {
			say("%v", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func newLab(t *testing.T, p plan) *lab {
	t.Helper()
	l, err := open(t.Context(), p, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.close)
	if why, absent := l.absent[npmName]; absent && os.Getenv("INTEROP") == "require" {
		t.Fatalf("no npm module: %s", why)
	}
	return l
}

// How long anything takes is nobody's business here: only that everybody asked every peer.
func TestEverybodyAsksEverybody(t *testing.T) {
	l := newLab(t, plan{
		Names: everybody(), Peers: []int{10}, Callers: []int{1, 3}, Rounds: 2, Time: 20 * time.Millisecond,
		Size: 10, Timeout: 10 * time.Second, NPM: "../interop/npm",
	})
	text, err := l.calls(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := 2 * len(l.Names); len(l.all) != want {
		t.Errorf("%d cells, want %d", len(l.all), want)
	}
	for _, c := range l.all {
		if len(c.Rounds) != 2 {
			t.Errorf("%s has %d rounds, want 2", c.Name, len(c.Rounds))
		}
		for _, r := range c.Rounds {
			if r.Calls < c.Callers || r.Results != r.Calls*c.Peers || r.Failures != 0 {
				t.Errorf("%s, %d peers, %d callers: %d results and %d failures in %d calls", c.Name, c.Peers, c.Callers, r.Results, r.Failures, r.Calls)
			}
			if r.CPU <= 0 || r.P50 <= 0 || r.P99 < r.P50 || r.Peak < 1<<20 {
				t.Errorf("%s: measured %+v", c.Name, r)
			}
		}
	}
	var had counts
	if err := l.stub.do("counts", nil, &had); err != nil {
		t.Fatal(err)
	}
	if had.Unauthorized != 0 || had.Broken != 0 {
		t.Errorf("%d requests without their token, %d given up", had.Unauthorized, had.Broken)
	}
	for _, name := range l.Names {
		if strings.Count(text, "| "+name+" |") != 2 {
			t.Errorf("not two lines about %s in\n%s", name, text)
		}
	}
	marks := 4 // calls and CPU in relation to the yardstick, at two numbers of callers
	if slices.Contains(l.Names, npmName) {
		marks = 8
	}
	if len(l.marks) != marks {
		t.Errorf("%d marks, want %d:\n%s", len(l.marks), marks, l.verdict())
	}
}

func TestMarks(t *testing.T) {
	l := &lab{all: []cell{
		{Name: ours, Peers: 10, Callers: 1, Rounds: []round{{Calls: 10, Took: time.Second, CPU: 3 * time.Second}, {Calls: 30, Took: time.Second, CPU: time.Second}}},
		{Name: yardstick, Peers: 10, Callers: 1, Rounds: []round{{Calls: 20, Took: time.Second, CPU: time.Second}, {Calls: 10, Took: time.Second, CPU: time.Second}}},
	}}
	l.markCalls()
	l.atMost("a third", "ms", 3.5, 3)
	want := []mark{
		{"10 peers, 1 callers: calls/s, in relation to loop", "≥ ×1.00", "×1.75 (×0.50 to ×3.00)", true},
		{"10 peers, 1 callers: CPU, in relation to loop", "≤ ×1.00", "×3.17 (×0.33 to ×6.00)", false},
		{"a third", "≤ 3 ms", "3.50 ms", false},
	}
	if !slices.Equal(l.marks, want) {
		t.Errorf("marks %v, want %v", l.marks, want)
	}
}

// What is added is the difference of two that do ask everybody, without a network.
func TestAdded(t *testing.T) {
	l := newLab(t, plan{Names: []string{ours}, Peers: []int{20}, Rounds: 1, Time: 10 * time.Millisecond, Size: 10, Timeout: 10 * time.Second})
	text, err := l.added(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(l.marks) != 3 || strings.Count(text, "\n| 20 |") != 3 {
		t.Errorf("%d marks, and\n%s", len(l.marks), text)
	}
	var had counts
	if err := l.stub.do("counts", nil, &had); err != nil {
		t.Fatal(err)
	}
	if had.Things != 0 || had.Others != 0 {
		t.Errorf("%d requests went to peers over the network", had.Things+had.Others)
	}
}

func TestFirstCall(t *testing.T) {
	l := newLab(t, plan{Names: []string{ours}, Peers: []int{20}, Rounds: 1, Timeout: 10 * time.Second})
	if _, err := l.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(l.marks) != 1 || !l.marks[0].Met {
		t.Errorf("not two tokens: %v", l.marks)
	}
}

func TestBurst(t *testing.T) {
	l := newLab(t, plan{Names: []string{ours, yardstick}, Peers: []int{20, 1000}, Rounds: 1, Time: time.Hour, Timeout: 10 * time.Second})
	text, err := l.burst(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(text, "\n| 20 | 8 |") != 2 || strings.Count(text, "\n| 1000 | 8 |") != 2 || strings.Contains(text, "without a result") || len(l.marks) != 1 {
		t.Errorf("%d marks, and\n%s", len(l.marks), text)
	}
}

func TestTail(t *testing.T) {
	l := newLab(t, plan{Names: []string{ours, yardstick}, Rounds: 1, Time: 100 * time.Millisecond, Timeout: 10 * time.Second})
	text, err := l.tail(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(text, "\n| 10 | 1 |") != 3 || strings.Contains(text, "without a result") {
		t.Error(text)
	}
}

func TestJoin(t *testing.T) {
	l := &lab{plan: plan{Rounds: 1}, log: t.Logf}
	text, err := l.join(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(text, " ms |") < 3*3 {
		t.Error(text)
	}
}

func TestPlot(t *testing.T) {
	var cells []cell
	var days []badDay
	for _, name := range plotted() {
		for _, peers := range []int{10, 100} {
			for _, callers := range []int{8, 1} {
				cells = append(cells, cell{name, peers, callers, []round{{Calls: callers, Took: time.Second, CPU: time.Second, P50: time.Second}}})
			}
		}
		for _, s := range scenarios() {
			days = append(days, badDay{Name: name, Scenario: s, First: []single{{Took: time.Second}}, Next: []single{{Took: time.Second}}})
		}
	}
	for _, tt := range []struct {
		cells []cell
		days  []badDay
		lines int
	}{{cells, days, 4 + 4}, {cells, nil, 4}, {nil, days, 4}, {nil, nil, 0}} {
		picture, err := draw(tt.cells, tt.days)
		if err != nil {
			t.Fatal(err)
		}
		marks := make(map[string]int)
		for d := xml.NewDecoder(strings.NewReader(picture)); ; {
			token, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%v in\n%s", err, picture)
			}
			if e, ok := token.(xml.StartElement); ok {
				marks[e.Name.Local]++
			}
		}
		// In each line a circle for two, a diamond for the third, as in the legend; and one rect is the ground.
		if marks["circle"] != 2*(tt.lines+1) || marks["rect"] != tt.lines+2 {
			t.Errorf("%d circles and %d rects for %d lines in\n%s", marks["circle"], marks["rect"], tt.lines, picture)
		}
	}
}

func TestBadDays(t *testing.T) {
	l := newLab(t, plan{Names: []string{ours, yardstick}, Rounds: 1, Size: 10, Timeout: 10 * time.Second})
	days, err := l.badDays(t.Context(), func(s scenario) bool { return s.Then.Dead == 1 })
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range days {
		first, then := d.First[0], d.Scenario.Then
		if first.Results != then.Peers-then.Dead || first.Failures != then.Dead {
			t.Errorf("%s, %s: %d results and %d failures", d.Scenario.What, d.Name, first.Results, first.Failures)
		}
		evicted, deletes := 0, int64(0)
		if d.Name != yardstick {
			deletes = int64(then.Dead)
			if !then.Down {
				evicted = then.Dead
			}
		}
		if d.Cost[0].Deletes != deletes {
			t.Errorf("%s, %s: mIT was asked for %d deletes, want %d", d.Scenario.What, d.Name, d.Cost[0].Deletes, deletes)
		}
		if next := d.Next[0]; next.Results != then.Peers-then.Dead || next.Failures != then.Dead-evicted {
			t.Errorf("%s, %s: then %d results and %d failures", d.Scenario.What, d.Name, next.Results, next.Failures)
		}
	}
	if text := badTable(days); strings.Count(text, "| "+streaming+" |") != 2 {
		t.Errorf("not two lines about %s in\n%s", streaming, text)
	}
}

// Who started them may be killed: nobody stays behind.
func TestProcessesEndWithTheirStandardInput(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, role := range [][]string{{"stub"}, {"contestant", yardstick}} {
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

func TestMiddle(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{3, 1}, 2}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5}} {
		before := slices.Clone(tt.values)
		if got := middle(tt.values); got != tt.want || !slices.Equal(before, tt.values) {
			t.Errorf("middle(%v) = %v, want %v; it is %v after", before, got, tt.want, tt.values)
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
