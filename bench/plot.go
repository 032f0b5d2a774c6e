//go:build linux

package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"text/template"
	"time"
)

// plotted returns the contestants in the plot. Each has a symbol and a color.
func plotted() []string { return []string{ours, baseline, npmName} }

// The layout of the plot, in pixels.
const (
	plotWidth, scaleLeft, scaleRight = 860, 232, 596
	columnLeft, columnWidth          = 622, 74 // of the values as text
	plotTop, lineHeight, groupHeight = 68, 22, 34
)

// A plot is what the template draws.
type plot struct {
	Width, Height, Left, Right int
	Ticks                      []plotText
	LineYs                     []int
	Grid                       [][2]int // the vertical extent of each group
	Dots                       []plotDot
	Texts                      []plotText
}

type plotDot struct {
	X       float64
	Y, Kind int // Kind is the index of the contestant
}

type plotText struct {
	X           float64
	Y           int
	Class, Text string
}

type plotGroup struct {
	title string
	lines []plotLine
}

// A plotLine has a duration for each plotted contestant, 0 if unknown.
type plotLine struct {
	label  string
	values []time.Duration
}

// draw returns an SVG picture of the calls and failures experiments. All durations are on one
// logarithmic scale. The colors follow the reader's choice of a light or dark theme.
func draw(results []result, scenarioResults []scenarioResult) (string, error) {
	groups := slices.DeleteFunc([]plotGroup{
		{"CPU time per request", callLines(results, func(s summary) time.Duration { return time.Duration(s.CPU * 1e3) })},
		{"call to all peers, all healthy", callLines(results, func(s summary) time.Duration { return s.P50 })},
		{"call to all peers, some failing, request timeout " + formatDuration(failureTimeout), failureLines(scenarioResults)},
	}, func(g plotGroup) bool { return len(g.lines) == 0 })
	scale := newLogScale(groups)
	p := plot{Width: plotWidth, Left: scaleLeft, Right: scaleRight}
	y := plotTop - groupHeight/2
	for _, g := range groups {
		y = p.addGroup(g, y+groupHeight, scale)
	}
	for e := scale.from; e <= scale.to; e++ {
		d := time.Duration(math.Pow(10, e))
		p.Ticks = append(p.Ticks, plotText{scale.x(d), y + 24, "tick", formatDuration(d)})
	}
	for i, name := range plotted() {
		x := float64(columnLeft + i*columnWidth)
		p.Dots = append(p.Dots, plotDot{x + 5, 44, i})
		p.Texts = append(p.Texts, plotText{x + 18, 48, "legend", strings.TrimSuffix(name, " module")})
	}
	p.Height = y + 38
	var svg strings.Builder
	err := template.Must(template.New("plot").Parse(plotTemplate)).Execute(&svg, p)
	return svg.String(), err
}

// addGroup adds a title at y and the lines below it, and returns the position of the last line.
func (p *plot) addGroup(g plotGroup, y int, scale logScale) int {
	p.Texts = append(p.Texts, plotText{16, y, "head", g.title})
	p.Grid = append(p.Grid, [2]int{y + 6, y + len(g.lines)*lineHeight + 6})
	for _, l := range g.lines {
		y += lineHeight
		p.LineYs = append(p.LineYs, y-4)
		p.Texts = append(p.Texts, plotText{24, y, "", l.label})
		for i, d := range l.values {
			if d > 0 {
				p.Dots = append(p.Dots, plotDot{scale.x(d), y - 4, i})
				p.Texts = append(p.Texts, plotText{float64(columnLeft + i*columnWidth), y, fmt.Sprintf("kind%d", i), formatDuration(d)})
			}
		}
	}
	return y
}

// A logScale maps durations to positions. Its ends are powers of ten.
type logScale struct{ from, to float64 }

func newLogScale(groups []plotGroup) logScale {
	shortest, longest := time.Millisecond, time.Millisecond
	for _, g := range groups {
		for _, l := range g.lines {
			for _, d := range l.values {
				if d > 0 {
					shortest, longest = min(shortest, d), max(longest, d)
				}
			}
		}
	}
	return logScale{math.Floor(math.Log10(float64(shortest))), math.Ceil(math.Log10(float64(longest)))}
}

func (s logScale) x(d time.Duration) float64 {
	return scaleLeft + (math.Log10(float64(d))-s.from)/(s.to-s.from)*(scaleRight-scaleLeft)
}

// callLines returns a line for each number of peers, with the values at the lowest number of
// callers.
func callLines(results []result, value func(summary) time.Duration) []plotLine {
	if len(results) == 0 {
		return nil
	}
	callers := slices.MinFunc(results, func(a, b result) int { return cmp.Compare(a.Callers, b.Callers) }).Callers
	var lines []plotLine
	for _, r := range results {
		label := fmt.Sprintf("%d peers", r.Peers)
		if slices.ContainsFunc(lines, func(l plotLine) bool { return l.label == label }) {
			continue
		}
		l := plotLine{label, make([]time.Duration, len(plotted()))}
		for i, name := range plotted() {
			if r := find(results, name, r.Peers, callers); r != nil {
				l.values[i] = value(r.summary())
			}
		}
		lines = append(lines, l)
	}
	return lines
}

// failureLines returns one or two lines for each scenario in which one peer hangs, or one or a
// hundred refuse connections.
func failureLines(results []scenarioResult) []plotLine {
	var lines []plotLine
	add := func(s scenario, label string, value func(scenarioResult) time.Duration) {
		l, found := plotLine{label, make([]time.Duration, len(plotted()))}, false
		for _, r := range results {
			if i := slices.Index(plotted(), r.Name); i >= 0 && r.Scenario.Name == s.Name {
				l.values[i], found = value(r), true
			}
		}
		if found {
			lines = append(lines, l)
		}
	}
	for _, s := range scenarios() {
		switch {
		case s.RegistryDown:
		case s.Hanging > 0:
			add(s, s.Name, scenarioResult.firstTook)
			add(s, s.Name+": next calls", scenarioResult.nextTook)
		case s.Dead == 1 || s.Dead == 100:
			add(s, s.Name, scenarioResult.firstTook)
		}
	}
	return lines
}

// formatDuration formats d in the largest unit that fits: 1.5 ms, 2 s, 35 µs.
func formatDuration(d time.Duration) string {
	for _, unit := range []struct {
		d    time.Duration
		name string
	}{{time.Second, "s"}, {time.Millisecond, "ms"}} {
		if d >= unit.d {
			return twoDigits(float64(d)/float64(unit.d)) + " " + unit.name
		}
	}
	return twoDigits(float64(d)/1e3) + " µs"
}

// twoDigits formats v with at least two significant digits, unless it is an integer.
func twoDigits(v float64) string {
	if v < 9.95 && v != math.Trunc(v) {
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

const plotTemplate = `<svg xmlns="http://www.w3.org/2000/svg" width="{{.Width}}" height="{{.Height}}" viewBox="0 0 {{.Width}} {{.Height}}" role="img" aria-labelledby="t">
<title id="t">Time to call all peers</title>
<style>
text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 }
.head { font-weight: 600 }
.tick, .note { font-size: 11px; fill: #59636e }
.tick { text-anchor: middle }
.back { fill: #ffffff }
.grid { stroke: #d1d9e0 }
.kind0 { fill: #0969da } circle.kind0 { stroke: #ffffff }
.kind1 { fill: #59636e } circle.kind1 { fill: none; stroke: #59636e; stroke-width: 2 }
.kind2 { fill: #bc4c00 }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc }
.tick, .note { fill: #9198a1 }
.back { fill: #0d1117 }
.grid { stroke: #3d444d }
.kind0 { fill: #58a6ff } circle.kind0 { stroke: #0d1117 }
.kind1 { fill: #9198a1 } circle.kind1 { fill: none; stroke: #9198a1 }
.kind2 { fill: #f0883e }
}
</style>
<rect class="back" width="{{.Width}}" height="{{.Height}}" rx="6"/>
<text class="title" x="16" y="26">Time to call all peers</text>
<text class="note" x="16" y="46">medians, lower is better; logarithmic scale</text>
{{range $t := .Ticks}}{{range $.Grid}}<path class="grid" d="M{{$t.X}} {{index . 0}}V{{index . 1}}"/>{{end}}<text class="tick" x="{{.X}}" y="{{.Y}}">{{.Text}}</text>
{{end}}{{range .LineYs}}<path class="grid" stroke-dasharray="1 3" d="M{{$.Left}} {{.}}H{{$.Right}}"/>
{{end}}{{range .Dots}}{{if eq .Kind 2}}<rect class="kind2" x="-4.5" y="-4.5" width="9" height="9" transform="translate({{printf "%.1f" .X}} {{.Y}}) rotate(45)"/>{{else}}<circle class="kind{{.Kind}}" cx="{{printf "%.1f" .X}}" cy="{{.Y}}" r="{{if eq .Kind 0}}4.5{{else}}7{{end}}"/>{{end}}
{{end}}{{range .Texts}}<text{{with .Class}} class="{{.}}"{{end}} x="{{.X}}" y="{{.Y}}">{{.Text}}</text>
{{end}}</svg>
`
