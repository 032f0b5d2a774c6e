package exposition

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWrite(t *testing.T) {
	one := NewHistogram("b_seconds", "Durations.", []float64{.5, 1}, "route", "status")
	for _, v := range []float64{.25, .5, .75, 4} {
		one.Observe(v, "a", "2xx")
	}
	other := NewHistogram("b_seconds", "Durations.", []float64{.5, 1}, "route", "status")
	other.Add(0, "b", "4xx")
	counter := NewCounter("a_total", "Events.", "name")
	counter.Add(1, "two\n\"\\")
	counter.Add(2, "one")
	counter.Add(2, "one")
	gauge := NewGauge("c", "A size.")
	gauge.Add(1e9)

	var b bytes.Buffer
	Write(&b, one, gauge, other, counter, NewGauge("d", "No series.", "type"))
	want := `# HELP a_total Events.
# TYPE a_total counter
a_total{name="one"} 4
a_total{name="two\n\"\\"} 1
# HELP b_seconds Durations.
# TYPE b_seconds histogram
b_seconds_bucket{route="a",status="2xx",le="0.5"} 2
b_seconds_bucket{route="a",status="2xx",le="1"} 3
b_seconds_bucket{route="a",status="2xx",le="+Inf"} 4
b_seconds_sum{route="a",status="2xx"} 5.5
b_seconds_count{route="a",status="2xx"} 4
b_seconds_bucket{route="b",status="4xx",le="0.5"} 0
b_seconds_bucket{route="b",status="4xx",le="1"} 0
b_seconds_bucket{route="b",status="4xx",le="+Inf"} 0
b_seconds_sum{route="b",status="4xx"} 0
b_seconds_count{route="b",status="4xx"} 0
# HELP c A size.
# TYPE c gauge
c 1e+09
# HELP d No series.
# TYPE d gauge
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
