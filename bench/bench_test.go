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
	cells, err := l.compare(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := 2 * len(l.Names); len(cells) != want {
		t.Errorf("%d cells, want %d", len(cells), want)
	}
	for _, c := range cells {
		if len(c.Rounds) != 2 {
			t.Errorf("%s has %d rounds, want 2", c.Name, len(c.Rounds))
		}
		for _, r := range c.Rounds {
			if r.Calls < c.Callers || r.Results != r.Calls*c.Peers || r.Failures != 0 {
				t.Errorf("%s, %d peers, %d callers: %d results and %d failures in %d calls", c.Name, c.Peers, c.Callers, r.Results, r.Failures, r.Calls)
			}
			if r.CPU <= 0 || r.P50 <= 0 || r.P99 < r.P50 {
				t.Errorf("%s: measured %+v", c.Name, r)
			}
		}
		if c.Peaks[0] < 1<<20 {
			t.Errorf("%s had %d bytes at most", c.Name, c.Peaks[0])
		}
	}
	var had counts
	if err := l.stub.do("counts", nil, &had); err != nil {
		t.Fatal(err)
	}
	if had.Unauthorized != 0 || had.Broken != 0 {
		t.Errorf("%d requests without their token, %d given up", had.Unauthorized, had.Broken)
	}

	table := l.table(cells)
	for _, name := range everybody() {
		if !strings.Contains(table, name) {
			t.Errorf("nothing about %s in\n%s", name, table)
		}
	}
	picture, err := draw(cells)
	if err != nil {
		t.Fatal(err)
	}
	bars := 0
	for d := xml.NewDecoder(strings.NewReader(picture)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, picture)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "rect" {
			bars++
		}
	}
	if want := 2 * len(l.Names); bars != want {
		t.Errorf("%d bars in the plot, want %d", bars, want)
	}
}

func TestBadDays(t *testing.T) {
	l := newLab(t, plan{Names: []string{"cluster", yardstick}, Rounds: 1, Size: 10, Timeout: 10 * time.Second})
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
		if second := d.Second[0]; second.Results != then.Peers-then.Dead || second.Failures != then.Dead-evicted {
			t.Errorf("%s, %s: then %d results and %d failures", d.Scenario.What, d.Name, second.Results, second.Failures)
		}
	}
	if table := l.badTable(days); !strings.Contains(table, streaming) {
		t.Errorf("nothing about %s in\n%s", streaming, table)
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
