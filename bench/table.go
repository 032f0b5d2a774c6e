//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// A summary has the medians over the rounds of a result.
type summary struct {
	result
	CallsPerSec   float64
	P50, P99      time.Duration
	CPU           float64 // µs per request
	Allocs, Bytes float64 // per request
	Peak          float64 // bytes
	Missing       int     // results that did not arrive, in all rounds
}

func (r result) summary() summary {
	medianOf := func(value measure) float64 {
		values := make([]float64, len(r.Rounds))
		for i, round := range r.Rounds {
			values[i] = value(round, r)
		}
		return median(values)
	}
	s := summary{
		result:      r,
		CallsPerSec: medianOf(callRate),
		P50:         time.Duration(medianOf(func(r round, _ result) float64 { return float64(r.P50) })),
		P99:         time.Duration(medianOf(p99)),
		CPU:         medianOf(cpuPerRequest) / 1e3,
		Allocs:      medianOf(func(r round, of result) float64 { return float64(r.Allocs) / requests(r, of) }),
		Bytes:       medianOf(func(r round, of result) float64 { return float64(r.Bytes) / requests(r, of) }),
		Peak:        medianOf(peakMemory),
	}
	for _, round := range r.Rounds {
		s.Missing += round.Calls*r.Peers - round.Results
	}
	return s
}

// warning returns a remark for the table if results are missing.
func (s summary) warning() string {
	if s.Missing == 0 {
		return ""
	}
	return fmt.Sprintf(" %d results missing!", s.Missing)
}

// A measure is one figure of a round of a result.
type measure func(round, result) float64

func requests(r round, of result) float64      { return float64(r.Calls * of.Peers) }
func callRate(r round, _ result) float64       { return float64(r.Calls) / r.Took.Seconds() }
func cpuPerRequest(r round, of result) float64 { return float64(r.CPU) / requests(r, of) } // ns
func p99(r round, _ result) float64            { return float64(r.P99) }
func peakMemory(r round, _ result) float64     { return float64(r.Peak) }

// ratios returns the ratio of a measure to that of another contestant in each round.
func ratios(r, to result, value measure) []float64 {
	values := make([]float64, len(r.Rounds))
	for i := range r.Rounds {
		values[i] = value(r.Rounds[i], r) / value(to.Rounds[i], to)
	}
	return values
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

func medianDuration(durations []time.Duration) time.Duration {
	values := make([]float64, len(durations))
	for i, d := range durations {
		values[i] = float64(d)
	}
	return time.Duration(median(values))
}

// callsTable returns the results as a Markdown table.
func callsTable(results []result) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| peers | callers | contestant | calls/s | ×%[1]s | ×%[2]s | p50 | p99 | CPU/request | ×%[1]s | ×%[2]s | allocs/request | kB/request | peak memory |\n", baseline, "npm")
	b.WriteString("| ---: | ---: | --- |" + strings.Repeat(" ---: |", 11) + "\n")
	for _, r := range results {
		s := r.summary()
		ratio := func(name string, value measure) string { return formatRatio(results, r, name, value) }
		allocs, kB := "", ""
		if s.Allocs > 0 {
			allocs, kB = fmt.Sprintf("%.1f", s.Allocs), fmt.Sprintf("%.1f", s.Bytes/1e3)
		}
		fmt.Fprintf(&b, "| %d | %d | %s | %s | %s | %s | %s | %s | %s µs | %s | %s | %s | %s | %.0f MB |%s\n",
			r.Peers, r.Callers, r.Name, threeDigits(s.CallsPerSec), ratio(baseline, callRate), ratio(npmName, callRate),
			ms(s.P50), ms(s.P99), threeDigits(s.CPU), ratio(baseline, cpuPerRequest), ratio(npmName, cpuPerRequest),
			allocs, kB, s.Peak/1e6, s.warning())
	}
	return b.String()
}

// burstTable returns the results of bursts as a Markdown table.
func burstTable(results []result) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| peers | callers | contestant | p50 | slowest | ×%[1]s | CPU/request | ×%[1]s | peak memory |\n", baseline)
	b.WriteString("| ---: | ---: | --- |" + strings.Repeat(" ---: |", 6) + "\n")
	for _, r := range results {
		s := r.summary()
		ratio := func(value measure) string { return formatRatio(results, r, baseline, value) }
		fmt.Fprintf(&b, "| %d | %d | %s | %s | %s | %s | %s µs | %s | %.0f MB |%s\n",
			r.Peers, r.Callers, r.Name, ms(s.P50), ms(s.P99), ratio(p99), threeDigits(s.CPU), ratio(cpuPerRequest), s.Peak/1e6, s.warning())
	}
	return b.String()
}

// formatRatio returns the median ratio of r to the named contestant, or "" if that is not among the
// results.
func formatRatio(results []result, r result, name string, value measure) string {
	to := find(results, name, r.Peers, r.Callers)
	if to == nil {
		return ""
	}
	return threeDigits(median(ratios(r, *to, value)))
}

func find(results []result, name string, peers, callers int) *result {
	for i, r := range results {
		if r.Name == name && r.Peers == peers && r.Callers == callers {
			return &results[i]
		}
	}
	return nil
}

// threeDigits formats v with three significant digits, or with all digits before the decimal point
// if there are more.
func threeDigits(v float64) string {
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
		return threeDigits(d.Seconds()) + " s"
	}
	return threeDigits(float64(d)/1e6) + " ms"
}
