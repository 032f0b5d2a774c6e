package fanout

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync/atomic"
)

// An order hands out the indices 0..n-1 once each, starting at an offset and wrapping around.
type order struct {
	n      int
	offset int
	taken  atomic.Int64
}

// start sets the first index, as a fraction of n.
func (o *order) start(from float64) { o.offset = int(from*float64(o.n)) % o.n }

// next returns the next index; ok is false once all have been handed out.
func (o *order) next() (i int, ok bool) {
	k := int(o.taken.Add(1)) - 1
	return (o.offset + k) % o.n, k < o.n
}

// exhausted reports whether all indices have been handed out.
func (o *order) exhausted() bool { return int(o.taken.Load()) >= o.n }

// remaining returns the number of indices that have not been handed out.
func (o *order) remaining() int { return max(0, o.n-int(o.taken.Load())) }

// position is the current index as a fraction of n.
func (o *order) position() float64 {
	return float64((o.offset+int(o.taken.Load()))%o.n) / float64(o.n)
}

// farthest returns the middle of the widest gap between points on a circle of circumference 1.
func farthest(points []float64) float64 {
	if len(points) == 0 {
		return rand.Float64()
	}
	slices.Sort(points)
	last := points[len(points)-1] - 1
	from, gap := last, 0.0
	for _, point := range points {
		if point-last > gap {
			from, gap = last, point-last
		}
		last = point
	}
	return math.Mod(1+from+gap/2, 1)
}
