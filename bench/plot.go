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

// What the plot is about: a mark for each of them in each line.
func plotted() []string { return []string{ours, yardstick, npmName} }

// A line of the plot is how long something took, with each of those; 0 if it is not known.
type plotLine struct {
	What string
	Took []time.Duration
}

// draw plots what was measured of calls and bad days: times, all on one logarithmic scale. It
// follows the reader's choice of light or dark.
func draw(cells []cell, days []badDay) (string, error) {
	const (
		width, left, right = 860, 232, 596 // of the picture, and where the scale begins and ends
		columns, column    = 622, 74       // of the numbers
		top, line, heading = 68, 22, 34
	)
	type dot struct {
		X       float64
		Y, Kind int
	}
	type text struct {
		X           float64
		Y           int
		Class, Text string
	}
	var p struct {
		Width, Height, Left, Right int
		Ticks                      []text
		Lines                      []int
		Grid                       [][2]int // from where to where: not through headings
		Dots                       []dot
		Texts                      []text
	}
	p.Width, p.Left, p.Right = width, left, right
	groups := []struct {
		title string
		lines []plotLine
	}{
		{"processor time per request to a peer", wellLines(cells, func(r row) time.Duration { return time.Duration(r.CPU * 1e3) })},
		{"a call to all peers, all of them well", wellLines(cells, func(r row) time.Duration { return r.P50 })},
		{"a call on a bad day, of requests that may take " + plain(badTimeout), badLines(days)},
	}
	low, high := time.Millisecond, time.Millisecond
	for _, g := range groups {
		for _, l := range g.lines {
			for _, d := range l.Took {
				if d > 0 {
					low, high = min(low, d), max(high, d)
				}
			}
		}
	}
	from, to := math.Floor(math.Log10(float64(low))), math.Ceil(math.Log10(float64(high)))
	x := func(d float64) float64 { return left + (math.Log10(d)-from)/(to-from)*(right-left) }

	y := top - heading/2
	for _, g := range groups {
		if len(g.lines) == 0 {
			continue
		}
		y += heading
		p.Texts = append(p.Texts, text{16, y, "head", g.title})
		p.Grid = append(p.Grid, [2]int{y + 6, y + len(g.lines)*line + 6})
		for _, l := range g.lines {
			y += line
			p.Lines = append(p.Lines, y-4)
			p.Texts = append(p.Texts, text{24, y, "", l.What})
			for i, d := range l.Took {
				if d > 0 {
					p.Dots = append(p.Dots, dot{x(float64(d)), y - 4, i})
					p.Texts = append(p.Texts, text{float64(columns + i*column), y, fmt.Sprintf("kind%d", i), plain(d)})
				}
			}
		}
	}
	for e := from; e <= to; e++ {
		d := math.Pow(10, e)
		p.Ticks = append(p.Ticks, text{x(d), y + 24, "tick", plain(time.Duration(d))})
	}
	for i, name := range plotted() {
		p.Dots = append(p.Dots, dot{float64(columns + i*column + 5), 44, i})
		p.Texts = append(p.Texts, text{float64(columns + i*column + 18), 48, "legend", strings.TrimSuffix(name, " module")})
	}
	p.Height = y + 38
	var out strings.Builder
	err := template.Must(template.New("plot").Parse(plotTemplate)).Execute(&out, p)
	return out.String(), err
}

// wellLines are a value at each number of peers, at the fewest calls at once.
func wellLines(cells []cell, value func(row) time.Duration) []plotLine {
	if len(cells) == 0 {
		return nil
	}
	callers := slices.MinFunc(cells, func(a, b cell) int { return cmp.Compare(a.Callers, b.Callers) }).Callers
	var lines []plotLine
	for _, c := range cells {
		what := fmt.Sprintf("%d peers", c.Peers)
		if slices.ContainsFunc(lines, func(l plotLine) bool { return l.What == what }) {
			continue
		}
		l := plotLine{what, make([]time.Duration, len(plotted()))}
		for i, name := range plotted() {
			if found := find(cells, name, c.Peers, callers); found != nil {
				l.Took[i] = value(found.row())
			}
		}
		lines = append(lines, l)
	}
	return lines
}

func badLines(days []badDay) []plotLine {
	var lines []plotLine
	add := func(scenario, what string, value func(badDay) time.Duration) {
		l, any := plotLine{what, make([]time.Duration, len(plotted()))}, false
		for _, d := range days {
			if i := slices.Index(plotted(), d.Name); i >= 0 && d.Scenario.What == scenario {
				l.Took[i], any = value(d), true
			}
		}
		if any {
			lines = append(lines, l)
		}
	}
	for _, s := range scenarios() {
		switch {
		case s.Then.Down || s.Then.Dead != 1 && s.Then.Dead != 100 && s.Then.Hanging == 0:
		case s.Then.Hanging > 0:
			add(s.What, s.What, badDay.took)
			add(s.What, s.What+": the next calls", badDay.next)
		default:
			add(s.What, s.What, badDay.took)
		}
	}
	return lines
}

// plain is a duration with two digits or three.
func plain(d time.Duration) string {
	for _, unit := range []struct {
		d    time.Duration
		name string
	}{{time.Second, "s"}, {time.Millisecond, "ms"}} {
		if d >= unit.d {
			return brief(float64(d)/float64(unit.d)) + " " + unit.name
		}
	}
	return brief(float64(d)/1e3) + " µs"
}

func brief(v float64) string {
	if v < 9.95 && v != math.Trunc(v) {
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}

const plotTemplate = `<svg xmlns="http://www.w3.org/2000/svg" width="{{.Width}}" height="{{.Height}}" viewBox="0 0 {{.Width}} {{.Height}}" role="img" aria-labelledby="t">
<title id="t">How long asking all peers takes</title>
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
<text class="title" x="16" y="26">How long asking all peers takes</text>
<text class="note" x="16" y="46">medians, less is better; each step of the scale is ten times the last</text>
{{range $t := .Ticks}}{{range $.Grid}}<path class="grid" d="M{{$t.X}} {{index . 0}}V{{index . 1}}"/>{{end}}<text class="tick" x="{{.X}}" y="{{.Y}}">{{.Text}}</text>
{{end}}{{range .Lines}}<path class="grid" stroke-dasharray="1 3" d="M{{$.Left}} {{.}}H{{$.Right}}"/>
{{end}}{{range .Dots}}{{if eq .Kind 2}}<rect class="kind2" x="-4.5" y="-4.5" width="9" height="9" transform="translate({{printf "%.1f" .X}} {{.Y}}) rotate(45)"/>{{else}}<circle class="kind{{.Kind}}" cx="{{printf "%.1f" .X}}" cy="{{.Y}}" r="{{if eq .Kind 0}}4.5{{else}}7{{end}}"/>{{end}}
{{end}}{{range .Texts}}<text{{with .Class}} class="{{.}}"{{end}} x="{{.X}}" y="{{.Y}}">{{.Text}}</text>
{{end}}</svg>
`
