//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// A row is a cell in numbers: medians of its rounds.
type row struct {
	cell
	CallsPerSec   float64
	P50, P99      time.Duration
	CPU           float64 // µs per peer asked
	Allocs, Bytes float64 // per peer asked
	Peak          float64 // bytes
	Lost          int     // peers that stand neither in results nor in failures, or failed
}

func (c cell) row() row {
	of := func(value measure) float64 {
		values := make([]float64, len(c.Rounds))
		for i, r := range c.Rounds {
			values[i] = value(r, c)
		}
		return middle(values)
	}
	r := row{
		cell:        c,
		CallsPerSec: of(rate),
		P50:         time.Duration(of(func(r round, _ cell) float64 { return float64(r.P50) })),
		P99:         time.Duration(of(slowest)),
		CPU:         of(work) / 1e3,
		Allocs:      of(func(r round, c cell) float64 { return float64(r.Allocs) / asks(r, c) }),
		Bytes:       of(func(r round, c cell) float64 { return float64(r.Bytes) / asks(r, c) }),
		Peak:        of(memory),
	}
	for _, got := range c.Rounds {
		r.Lost += got.Calls*c.Peers - got.Results
	}
	return r
}

// missing says what must not be.
func (r row) missing() string {
	if r.Lost == 0 {
		return ""
	}
	return fmt.Sprintf(" %d peers without a result!", r.Lost)
}

// A measure is one number of a round.
type measure func(round, cell) float64

func asks(r round, c cell) float64    { return float64(r.Calls * c.Peers) }
func rate(r round, _ cell) float64    { return float64(r.Calls) / r.Took.Seconds() }
func work(r round, c cell) float64    { return float64(r.CPU) / asks(r, c) } // ns per peer asked
func slowest(r round, _ cell) float64 { return float64(r.P99) }
func memory(r round, _ cell) float64  { return float64(r.Peak) }

// ratios are those of a measure to another contestant's, round by round: what else the machine did
// in a round hit both.
func ratios(c, to cell, value measure) []float64 {
	values := make([]float64, len(c.Rounds))
	for i := range c.Rounds {
		values[i] = value(c.Rounds[i], c) / value(to.Rounds[i], to)
	}
	return values
}

func middle(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

func median(took []time.Duration) time.Duration {
	values := make([]float64, len(took))
	for i, d := range took {
		values[i] = float64(d)
	}
	return time.Duration(middle(values))
}

// table is a comparison as Markdown.
func table(cells []cell) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| peers | callers | contestant | calls/s | ×%[1]s | ×%[2]s | p50 | p99 | CPU/request | ×%[1]s | ×%[2]s | allocs/request | kB/request | peak memory |\n", yardstick, "npm")
	b.WriteString("| ---: | ---: | --- |" + strings.Repeat(" ---: |", 11) + "\n")
	for _, c := range cells {
		r := c.row()
		times := func(name string, value measure) string {
			to := find(cells, name, c.Peers, c.Callers)
			if to == nil {
				return ""
			}
			return short(middle(ratios(c, *to, value)))
		}
		allocs, kB := "", ""
		if r.Allocs > 0 {
			allocs, kB = fmt.Sprintf("%.1f", r.Allocs), fmt.Sprintf("%.1f", r.Bytes/1e3)
		}
		fmt.Fprintf(&b, "| %d | %d | %s | %s | %s | %s | %s | %s | %s µs | %s | %s | %s | %s | %.0f MB |",
			c.Peers, c.Callers, c.Name, short(r.CallsPerSec), times(yardstick, rate), times(npmName, rate), ms(r.P50), ms(r.P99),
			short(r.CPU), times(yardstick, work), times(npmName, work), allocs, kB, r.Peak/1e6)
		b.WriteString(r.missing() + "\n")
	}
	return b.String()
}

// burstTable is a comparison of bursts.
func burstTable(cells []cell) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| peers | calls at once | contestant | a call | the slowest | ×%[1]s | CPU/request | ×%[1]s | peak memory |\n", yardstick)
	b.WriteString("| ---: | ---: | --- |" + strings.Repeat(" ---: |", 6) + "\n")
	for _, c := range cells {
		r := c.row()
		times := func(value measure) string {
			to := find(cells, yardstick, c.Peers, c.Callers)
			if to == nil {
				return ""
			}
			return short(middle(ratios(c, *to, value)))
		}
		fmt.Fprintf(&b, "| %d | %d | %s | %s | %s | %s | %s µs | %s | %.0f MB |%s\n",
			c.Peers, c.Callers, c.Name, ms(r.P50), ms(r.P99), times(slowest), short(r.CPU), times(work), r.Peak/1e6, r.missing())
	}
	return b.String()
}

func find(cells []cell, name string, peers, callers int) *cell {
	for i, c := range cells {
		if c.Name == name && c.Peers == peers && c.Callers == callers {
			return &cells[i]
		}
	}
	return nil
}

// short has three digits, and all before the point.
func short(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 0.1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

func ms(d time.Duration) string {
	if d >= 10*time.Second {
		return short(d.Seconds()) + " s"
	}
	return short(float64(d)/1e6) + " ms"
}
