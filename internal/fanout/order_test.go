package fanout

import (
	"math"
	"testing"
)

func TestFarthest(t *testing.T) {
	for _, tt := range []struct {
		points []float64
		want   float64
	}{
		{[]float64{0}, 0.5},
		{[]float64{0.75}, 0.25},
		{[]float64{0.6, 0}, 0.3},
		{[]float64{0.9, 0.1}, 0.5},
		{[]float64{0.1, 0.3, 0.2}, 0.7},
		{[]float64{0.5, 0.7}, 0.1},
		{[]float64{0.2, 0.2, 0.2}, 0.7},
	} {
		if got := farthest(tt.points); math.Abs(got-tt.want) > 1e-9 {
			t.Errorf("farthest(%v) = %v, want %v", tt.points, got, tt.want)
		}
	}
}
