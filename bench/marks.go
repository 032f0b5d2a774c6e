//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"
)

// A mark is what this module should reach, and what it did.
type mark struct {
	What, Wanted, Measured string
	Met                    bool
}

func (l *lab) atMost(what, unit string, got, bound float64) {
	l.marks = append(l.marks, mark{what, "≤ " + withUnit(bound, unit), withUnit(got, unit), got <= bound})
}

func withUnit(v float64, unit string) string {
	if v == float64(int(v)) {
		return strings.TrimSpace(fmt.Sprintf("%.0f %s", v, unit))
	}
	return strings.TrimSpace(short(v) + " " + unit)
}

// A comparison is a mark for one number of this module in relation to a rival's.
type comparison struct {
	rival, what    string
	value          measure
	bound          float64
	least          bool // not most
	peers, callers int  // 0: any
}

// markCalls compares with the yardstick, the npm module and the default transport.
func (l *lab) markCalls() {
	l.compare(l.all, []comparison{
		{yardstick, "calls/s", rate, 1, true, 0, 0},
		{yardstick, "CPU", work, 1, false, 0, 0},
		{yardstick, "peak memory", memory, 1.0 / 3, false, 1000, 8},
		{yardstick, "p99", slowest, 1.0 / 2, false, 1000, 8},
		{defaultTransport, "calls/s", rate, 2, true, 100, 8},
		{npmName, "calls/s", rate, 10, true, 0, 0},
		{npmName, "CPU", work, 0.1, false, 0, 0},
	}...)
}

func (l *lab) compare(cells []cell, marks ...comparison) {
	for _, m := range marks {
		for _, c := range cells {
			to := find(cells, m.rival, c.Peers, c.Callers)
			if c.Name != ours || to == nil || m.peers != 0 && (m.peers != c.Peers || m.callers != c.Callers) {
				continue
			}
			all := ratios(c, *to, m.value)
			got, sign := middle(all), "≤"
			met := got <= m.bound
			if m.least {
				sign, met = "≥", got >= m.bound
			}
			l.marks = append(l.marks, mark{
				What:     fmt.Sprintf("%d peers, %d callers: %s, in relation to %s", c.Peers, c.Callers, m.what, m.rival),
				Wanted:   fmt.Sprintf("%s ×%s", sign, short(m.bound)),
				Measured: fmt.Sprintf("×%s (×%s to ×%s)", short(got), short(slices.Min(all)), short(slices.Max(all))),
				Met:      met,
			})
		}
	}
}

// verdict is what was to be reached and who was missing, as Markdown.
func (l *lab) verdict() string {
	var b strings.Builder
	if len(l.marks) > 0 {
		b.WriteString("## Marks\n\n| mark | wanted | measured | met |\n| --- | --- | --- | --- |\n")
	}
	for _, m := range l.marks {
		met := "yes"
		if !m.Met {
			met = "**no**"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", m.What, m.Wanted, m.Measured, met)
	}
	for name, why := range l.absent {
		fmt.Fprintf(&b, "\n%s did not take part: %s\n", name, why)
	}
	return b.String()
}
