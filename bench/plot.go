//go:build linux

package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"text/template"
)

// A panel is one measure of the plot: a column of bars.
type panel struct {
	Title string
	Value func(row) float64
}

// draw plots the comparison at the most callers: a bar for each contestant and number of peers. It
// follows the reader's choice of light or dark.
func draw(cells []cell) (string, error) {
	const (
		labels, width, gap = 118, 290, 78 // of the column of names, a panel, and what is beside one
		line, heading      = 17, 30
		top                = 44
	)
	type bar struct {
		X, Y    int
		Width   float64
		Class   string
		Text    string
		TextX   float64
		Clipped bool
	}
	type text struct {
		X, Y         int
		Class, Words string
	}
	var p struct {
		Width, Height int
		Title         string
		Bars          []bar
		Texts         []text
	}
	panels := []panel{
		{"requests to peers per second: more is better", func(r row) float64 { return r.AsksPerSec }},
		{"processor time per request, µs: less is better", func(r row) float64 { return r.CPU }},
	}
	most := slices.MaxFunc(cells, func(a, b cell) int { return cmp.Compare(a.Callers, b.Callers) }).Callers
	var rows []row
	for _, c := range cells {
		if c.Callers == most {
			rows = append(rows, c.row())
		}
	}
	p.Width = labels + len(panels)*(width+gap)
	p.Title = fmt.Sprintf("Asking all peers, %d calls at once", most)
	y := top
	for i, r := range rows {
		if i == 0 || rows[i-1].Peers != r.Peers {
			y += heading
			p.Texts = append(p.Texts, text{0, y - 8, "head", fmt.Sprintf("%d peers", r.Peers)})
		}
		p.Texts = append(p.Texts, text{0, y + 12, "", r.Name})
		for k, panel := range panels {
			x, value, longest := labels+k*(width+gap), panel.Value(r), longestBar(rows, panel)
			b := bar{X: x, Y: y + 2, Width: width * min(1, value/longest), Class: "other", Text: fmt.Sprintf("%.0f", value), Clipped: value > longest}
			switch r.Name {
			case "cluster":
				b.Class = "mine"
			case yardstick:
				b.Class = "yard"
			}
			if b.Clipped {
				b.Text = "» " + b.Text
			}
			b.TextX = float64(x) + b.Width + 6
			p.Bars = append(p.Bars, b)
		}
		y += line
	}
	for k, panel := range panels {
		p.Texts = append(p.Texts, text{labels + k*(width+gap), top, "", panel.Title})
	}
	p.Height = y + 10
	var out strings.Builder
	err := template.Must(template.New("plot").Parse(plotTemplate)).Execute(&out, p)
	return out.String(), err
}

// longestBar is the value of a bar across the whole panel. One that is far beyond all others is
// clipped, for the others to remain readable.
func longestBar(rows []row, p panel) float64 {
	var values []float64
	for _, r := range rows {
		values = append(values, p.Value(r))
	}
	return min(slices.Max(values), 4*median(values))
}

const plotTemplate = `<svg xmlns="http://www.w3.org/2000/svg" width="{{.Width}}" height="{{.Height}}" viewBox="0 0 {{.Width}} {{.Height}}" role="img" aria-label="{{.Title}}">
<style>
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-size: 15px; font-weight: 600 }
.head { font-weight: 600 }
.mine { fill: #0969da }
.yard { fill: #57606a }
.other { fill: #afb8c1 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.mine { fill: #4493f8 }
.yard { fill: #9198a1 }
.other { fill: #4c545e }
}
</style>
<text class="title" x="0" y="18">{{.Title}}</text>
{{range .Texts}}<text{{if .Class}} class="{{.Class}}"{{end}} x="{{.X}}" y="{{.Y}}">{{.Words}}</text>
{{end}}{{range .Bars}}<rect class="{{.Class}}" x="{{.X}}" y="{{.Y}}" width="{{printf "%.1f" .Width}}" height="13" rx="2"/>
<text x="{{printf "%.1f" .TextX}}" y="{{.Y}}" dy="10">{{.Text}}</text>
{{end}}</svg>
`
