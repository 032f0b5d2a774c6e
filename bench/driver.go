//go:build linux

package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const npmName = "npm module"

// A plan is what to measure.
type plan struct {
	Names   []string
	Peers   []int
	Callers []int
	Rounds  int
	Time    time.Duration // of a round
	Size    int           // of the data of each answer
	Delay   time.Duration // that each peer takes
	Timeout time.Duration // of each request

	NPM      string // where package.json and the lock file of the npm module are
	Profiles string // folder for profiles, "" for none
}

// order of the table.
func everybody() []string {
	return []string{"cluster", yardstick, "loop, bounded", "retryablehttp", "resty", "failsafe", npmName}
}

// A lab has the stub cluster, and starts contestants against it.
type lab struct {
	plan
	stub    *process
	modules string
	absent  map[string]string // who cannot take part, and why
	log     func(format string, args ...any)
}

func open(ctx context.Context, p plan, log func(string, ...any)) (*lab, error) {
	l := &lab{plan: p, absent: make(map[string]string), log: log}
	if slices.Contains(p.Names, npmName) {
		var err error
		if l.modules, err = modules(ctx, p.NPM); err != nil {
			l.absent[npmName] = err.Error()
			l.Names = slices.DeleteFunc(slices.Clone(l.Names), func(n string) bool { return n == npmName })
		}
	}
	var err error
	l.stub, err = startSelf(ctx, "stub")
	return l, err
}

func (l *lab) close() { l.stub.end() }

// meet starts a contestant that knows the stub cluster, and waits until it has told its peers.
func (l *lab) meet(ctx context.Context, name string, p place) (*process, error) {
	var (
		c   *process
		err error
	)
	if name == npmName {
		c, err = startNPM(ctx, l.modules)
	} else {
		c, err = startSelf(ctx, "contestant", name)
	}
	if err != nil {
		return nil, err
	}
	p.Timeout = cmp.Or(p.Timeout, l.Timeout)
	if err := c.do("meet", p, nil); err != nil {
		c.end()
		return nil, err
	}
	if name != npmName { // the others know their peers now
		return c, nil
	}
	if _, err := quiet(ctx, l.stub); err != nil {
		c.end()
		return nil, err
	}
	return c, nil
}

// A cell is one contestant at one number of peers and callers.
type cell struct {
	Name           string
	Peers, Callers int
	Rounds         []round
	Peaks          []int64
}

// compare measures everybody: for each number of peers and callers new processes, then round after
// round, in each of which all have their turn, so that what else the machine does hits all alike.
func (l *lab) compare(ctx context.Context) ([]cell, error) {
	var all []cell
	for _, peers := range l.Peers {
		for _, callers := range l.Callers {
			l.log("%d peers, %d callers", peers, callers)
			cells, err := l.cells(ctx, peers, callers)
			if err != nil {
				return all, err
			}
			all = append(all, cells...)
		}
	}
	return all, nil
}

func (l *lab) cells(ctx context.Context, peers, callers int) ([]cell, error) {
	var p place
	if err := l.stub.do("weather", weather{Peers: peers, Size: l.Size, Delay: l.Delay}, &p); err != nil {
		return nil, err
	}
	cells, contestants := make([]cell, len(l.Names)), make([]*process, len(l.Names))
	defer func() {
		for _, c := range contestants {
			if c != nil {
				c.end()
			}
		}
	}()
	for i, name := range l.Names {
		cells[i] = cell{Name: name, Peers: peers, Callers: callers}
		var err error
		if contestants[i], err = l.meet(ctx, name, p); err != nil {
			return nil, err
		}
	}
	for r := range l.Rounds {
		for k := range contestants {
			i := (k + r) % len(contestants) // nobody always comes after the same
			got, peak, err := l.turn(contestants[i], callers, r)
			if err != nil {
				return nil, err
			}
			cells[i].Rounds, cells[i].Peaks = append(cells[i].Rounds, got), append(cells[i].Peaks, peak)
		}
	}
	return cells, nil
}

// turn is one round of one contestant. Between rounds it keeps no connections: the thousands of
// all together would be more than one process may have.
func (l *lab) turn(c *process, callers, r int) (got round, peak int64, err error) {
	if err := c.forgetPeak(); err != nil {
		return got, 0, err
	}
	t := task{Callers: callers, For: l.Time, Warm: true}
	if l.Profiles != "" && r == 0 {
		t.Profile = filepath.Join(l.Profiles, fmt.Sprintf("%s.%d", strings.ReplaceAll(c.name, " ", "-"), callers))
	}
	if err := c.do("round", t, &got); err != nil {
		return got, 0, err
	}
	if peak, err = c.peak(); err != nil {
		return got, 0, err
	}
	return got, peak, c.do("rest", nil, nil)
}

// Row is a cell in numbers: medians of its rounds.
type row struct {
	cell
	CallsPerSec, AsksPerSec float64
	P50, P99                time.Duration
	CPU                     float64 // µs per peer asked
	Allocs, Bytes           float64 // per peer asked
	Peak                    float64 // bytes
	Lost                    int     // peers that stand neither in results nor in failures, or failed
}

func (c cell) row() row {
	asks := func(r round) float64 { return float64(r.Calls * c.Peers) }
	of := func(value func(round) float64) float64 {
		values := make([]float64, len(c.Rounds))
		for i, r := range c.Rounds {
			values[i] = value(r)
		}
		return median(values)
	}
	r := row{
		cell:        c,
		CallsPerSec: of(func(r round) float64 { return float64(r.Calls) / r.Took.Seconds() }),
		AsksPerSec:  of(func(r round) float64 { return asks(r) / r.Took.Seconds() }),
		P50:         time.Duration(of(func(r round) float64 { return float64(r.P50) })),
		P99:         time.Duration(of(func(r round) float64 { return float64(r.P99) })),
		CPU:         of(func(r round) float64 { return float64(r.CPU.Nanoseconds()) / 1e3 / asks(r) }),
		Allocs:      of(func(r round) float64 { return float64(r.Allocs) / asks(r) }),
		Bytes:       of(func(r round) float64 { return float64(r.Bytes) / asks(r) }),
		Peak:        median(c.Peaks),
	}
	for _, got := range c.Rounds {
		r.Lost += got.Calls*c.Peers - got.Results
	}
	return r
}

// ratio is the median, over the rounds, of a value in relation to the yardstick's in the same round.
func ratio(c, yard cell, value func(round, cell) float64) float64 {
	values := make([]float64, len(c.Rounds))
	for i := range c.Rounds {
		values[i] = value(c.Rounds[i], c) / value(yard.Rounds[i], yard)
	}
	return median(values)
}

func rate(r round, _ cell) float64 { return float64(r.Calls) / r.Took.Seconds() }
func work(r round, c cell) float64 { return float64(r.CPU) / float64(r.Calls*c.Peers) }

func median[T int64 | float64 | time.Duration](values []T) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return float64(sorted[(n-1)/2]+sorted[n/2]) / 2
}

// table is the comparison as Markdown.
func (l *lab) table(cells []cell) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| peers | callers | contestant | calls/s | ×%[1]s | requests/s | p50 | p99 | CPU/request | ×%[1]s | allocs/request | kB/request | peak memory |\n", yardstick)
	b.WriteString("| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n")
	for _, c := range cells {
		r := c.row()
		faster, dearer := "", ""
		if yard := find(cells, yardstick, c.Peers, c.Callers); yard != nil {
			faster, dearer = fmt.Sprintf("%.2f", ratio(c, *yard, rate)), fmt.Sprintf("%.2f", ratio(c, *yard, work))
		}
		allocs, kB := "", ""
		if r.Allocs > 0 {
			allocs, kB = fmt.Sprintf("%.1f", r.Allocs), fmt.Sprintf("%.1f", r.Bytes/1e3)
		}
		fmt.Fprintf(&b, "| %d | %d | %s | %.1f | %s | %.0f | %s | %s | %.1f µs | %s | %s | %s | %.0f MB |",
			c.Peers, c.Callers, c.Name, r.CallsPerSec, faster, r.AsksPerSec, ms(r.P50), ms(r.P99), r.CPU, dearer, allocs, kB, r.Peak/1e6)
		if r.Lost > 0 {
			fmt.Fprintf(&b, " %d peers without a result!", r.Lost)
		}
		b.WriteString("\n")
	}
	for name, why := range l.absent {
		fmt.Fprintf(&b, "\n%s did not take part: %s\n", name, why)
	}
	return b.String()
}

func ms(d time.Duration) string {
	if d >= 10*time.Millisecond {
		return fmt.Sprintf("%.0f ms", float64(d)/1e6)
	}
	return fmt.Sprintf("%.2f ms", float64(d)/1e6)
}

func find(cells []cell, name string, peers, callers int) *cell {
	for i, c := range cells {
		if c.Name == name && c.Peers == peers && c.Callers == callers {
			return &cells[i]
		}
	}
	return nil
}

func say(format string, args ...any) { _, _ = fmt.Fprintf(os.Stderr, format+"\n", args...) } // nobody need listen
