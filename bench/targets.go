//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// A target is a bound on a figure of this module, together with the measured value.
type target struct {
	What, Required, Measured string
	Met                      bool
}

// checkAtMost adds a target for an absolute value.
func (h *harness) checkAtMost(what, unit string, value, bound float64) {
	h.targets = append(h.targets, target{what, "≤ " + withUnit(bound, unit), withUnit(value, unit), value <= bound})
}

func withUnit(v float64, unit string) string {
	if v == float64(int(v)) {
		return strings.TrimSpace(fmt.Sprintf("%.0f %s", v, unit))
	}
	return strings.TrimSpace(threeDigits(v) + " " + unit)
}

// A comparison is a target for the ratio of a value of this module to that of a rival.
type comparison struct {
	rival, what    string
	value          measure
	bound          float64
	atLeast        bool // bound is a minimum, not a maximum
	peers, callers int  // 0: any number
}

// checkCalls adds the targets of the calls experiment.
func (h *harness) checkCalls() {
	h.compare(h.results, []comparison{
		{baseline, "calls/s", callRate, 1.2, true, 10, 1},
		{baseline, "calls/s", callRate, 1.4, true, 10, 8},
		{baseline, "calls/s", callRate, 1.5, true, 100, 1},
		{baseline, "calls/s", callRate, 1.4, true, 100, 8},
		{baseline, "calls/s", callRate, 1.5, true, 1000, 1},
		{baseline, "calls/s", callRate, 1.85, true, 1000, 8},
		{baseline, "CPU", cpuPerRequest, 0.65, false, 10, 1},
		{baseline, "CPU", cpuPerRequest, 0.55, false, 10, 8},
		{baseline, "CPU", cpuPerRequest, 0.48, false, 100, 0},
		{baseline, "CPU", cpuPerRequest, 0.48, false, 1000, 1},
		{baseline, "CPU", cpuPerRequest, 0.4, false, 1000, 8},
		{baseline, "peak memory", peakMemory, 1.0 / 3, false, 1000, 8},
		{baseline, "p99", p99, 0.3, false, 1000, 8},
		{defaultTransport, "calls/s", callRate, 2, true, 100, 8},
		{npmName, "calls/s", callRate, 18, true, 0, 0},
		{npmName, "CPU", cpuPerRequest, 0.1, false, 0, 0},
	}...)
}

// compare adds a target for each comparison and each result of this module it applies to.
func (h *harness) compare(results []result, comparisons ...comparison) {
	for _, c := range comparisons {
		for _, r := range results {
			rival := find(results, c.rival, r.Peers, r.Callers)
			if r.Name != ours || rival == nil || c.peers != 0 && c.peers != r.Peers || c.callers != 0 && c.callers != r.Callers {
				continue
			}
			all := ratios(r, *rival, c.value)
			ratio, sign := median(all), "≤"
			met := ratio <= c.bound
			if c.atLeast {
				sign, met = "≥", ratio >= c.bound
			}
			h.targets = append(h.targets, target{
				What:     fmt.Sprintf("%d peers, %s: %s relative to %s", r.Peers, plural(r.Callers, "caller"), c.what, c.rival),
				Required: fmt.Sprintf("%s ×%s", sign, threeDigits(c.bound)),
				Measured: fmt.Sprintf("×%s (×%s to ×%s)", threeDigits(ratio), threeDigits(slices.Min(all)), threeDigits(slices.Max(all))),
				Met:      met,
			})
		}
	}
}

func plural(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

// checkFailures adds the targets of the failures experiment.
func (h *harness) checkFailures() {
	const (
		maxFirst  = 50 * time.Millisecond
		maxResult = 10 * time.Millisecond // the delay before a dead peer is retried
		margin    = 50 * time.Millisecond
	)
	checkTime := func(what string, value, bound time.Duration) {
		h.checkAtMost(what, "ms", float64(value)/1e6, float64(bound)/1e6)
	}
	for _, r := range h.scenarioResults {
		s, what := r.Scenario, r.Scenario.Name+": "
		switch {
		case r.Name == streaming && s.Peers == 10 && s.Dead > 0:
			checkTime(what+"last result of Stream", r.lastResult(), maxResult)
		case r.Name != ours:
		case s.Peers == 10 && s.Dead > 0:
			checkTime(what+"first call", r.firstTook(), maxFirst)
		case s.Hanging > 0:
			checkTime(what+"first call", r.firstTook(), failureTimeout+margin)
			checkTime(what+"next calls", r.nextTook(), failureTimeout/2)
		case s.Dead > 0:
			requests := 0.0
			for _, c := range r.Cost {
				requests = max(requests, float64(c.Registrations+c.Deletes))
			}
			lookUpAndDelete := float64(2 * s.Dead)
			h.checkAtMost(what+"registry requests", "", requests, lookUpAndDelete)
		}
	}
}

// report returns the targets and the unavailable contestants as Markdown.
func (h *harness) report() string {
	var b strings.Builder
	if len(h.targets) > 0 {
		b.WriteString("## Targets\n\n| target | required | measured | met |\n| --- | --- | --- | --- |\n")
	}
	for _, t := range h.targets {
		met := "yes"
		if !t.Met {
			met = "**no**"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", t.What, t.Required, t.Measured, met)
	}
	for name, reason := range h.absent {
		fmt.Fprintf(&b, "\n%s was not measured: %s\n", name, reason)
	}
	return b.String()
}
