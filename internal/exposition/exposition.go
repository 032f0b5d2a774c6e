// Package exposition keeps counters, gauges and histograms, and writes them in the text format of
// Prometheus.
package exposition

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// ContentType is the media type of the format.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// maxLabels is the number of labels that a metric may have.
const maxLabels = 2

// A Family is a metric with its series, one for each combination of label values. The caller bounds
// their number. Its methods are safe for concurrent use.
type Family struct {
	name, kind, help string
	labels           []string
	bounds           []float64 // of the buckets of a histogram, ascending

	mu     sync.Mutex // guards the field below and its series
	series map[[maxLabels]string]*series
}

type series struct {
	value  float64  // of a histogram: the sum
	counts []uint64 // of the buckets; the last one has no bound
}

// NewCounter returns a counter with labels. name ends in _total.
func NewCounter(name, help string, labels ...string) *Family {
	return &Family{name: name, kind: "counter", help: help, labels: labels}
}

// NewGauge returns a gauge with labels.
func NewGauge(name, help string, labels ...string) *Family {
	return &Family{name: name, kind: "gauge", help: help, labels: labels}
}

// NewHistogram returns a histogram with labels. bounds are those of its buckets, ascending.
func NewHistogram(name, help string, bounds []float64, labels ...string) *Family {
	return &Family{name: name, kind: "histogram", help: help, bounds: bounds, labels: labels}
}

// Add adds n to the series of a counter or gauge with label values. With 0, a series of any kind
// exists from then on.
func (f *Family) Add(n float64, values ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seriesLocked(values).value += n
}

// Observe records a value in the histogram with label values.
func (f *Family) Observe(v float64, values ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.seriesLocked(values)
	s.value += v
	i, _ := slices.BinarySearch(f.bounds, v) // a bound is part of its bucket
	s.counts[i]++
}

func (f *Family) seriesLocked(values []string) *series {
	var key [maxLabels]string
	copy(key[:], values)
	s := f.series[key]
	if s == nil {
		s = &series{counts: make([]uint64, len(f.bounds)+1)}
		if f.series == nil {
			f.series = map[[maxLabels]string]*series{}
		}
		f.series[key] = s
	}
	return s
}

// Write writes families, sorted by name. Families with the same name must be equal except for their
// series, and have none in common.
func Write(b *bytes.Buffer, families ...*Family) {
	families = slices.Clone(families)
	slices.SortStableFunc(families, func(x, y *Family) int { return cmp.Compare(x.name, y.name) })
	last := ""
	for _, f := range families {
		if f.name != last {
			fmt.Fprintf(b, "# HELP %s %s\n# TYPE %s %s\n", f.name, f.help, f.name, f.kind)
		}
		last = f.name
		f.write(b)
	}
}

func (f *Family) write(b *bytes.Buffer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	byLabels := func(x, y [maxLabels]string) int { return slices.Compare(x[:], y[:]) }
	for _, key := range slices.SortedFunc(maps.Keys(f.series), byLabels) {
		s := f.series[key]
		if f.kind != "histogram" {
			f.sample(b, "", key, s.value, "")
			continue
		}
		var n uint64
		for i, count := range s.counts {
			n += count
			f.sample(b, "_bucket", key, float64(n), number(append(f.bounds, math.Inf(1))[i]))
		}
		f.sample(b, "_sum", key, s.value, "")
		f.sample(b, "_count", key, float64(n), "")
	}
}

// sample writes one line. bound is that of a bucket; empty for none.
func (f *Family) sample(b *bytes.Buffer, suffix string, key [maxLabels]string, value float64, bound string) {
	var labels []string
	for i, name := range f.labels {
		labels = append(labels, name+`="`+escape(key[i])+`"`)
	}
	if bound != "" {
		labels = append(labels, `le="`+bound+`"`)
	}
	b.WriteString(f.name + suffix)
	if len(labels) > 0 {
		b.WriteString("{" + strings.Join(labels, ",") + "}")
	}
	b.WriteString(" " + number(value) + "\n")
}

func escape(value string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(strings.ToValidUTF8(value, "\uFFFD"))
}

func number(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
