package cluster

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync/atomic"
)

// A tour is how a call goes around its peers: one turn after the other, whoever takes it.
type tour struct {
	peers int
	shift int          // the place of the peer whose turn is the first
	turns atomic.Int64 // that have been taken
}

// start begins a tour of so many peers, from 0 to 1 around.
func (t *tour) start(peers int, from float64) {
	t.peers, t.shift = peers, int(from*float64(peers))%peers
}

// turn takes a turn: it gives the place of the peer whose turn it is, until all have had theirs.
func (t *tour) turn() (place int, ok bool) {
	n := int(t.turns.Add(1)) - 1
	return (t.shift + n) % t.peers, n < t.peers
}

// over tells whether the last turn has been taken.
func (t *tour) over() bool { return int(t.turns.Load()) >= t.peers }

// at is how far around a call is, from 0 to 1.
func (t *tour) at() float64 {
	return float64((t.shift+int(t.turns.Load()))%t.peers) / float64(t.peers)
}

// farFrom is the middle of the largest gap between points on a circle that is 1 around.
func farFrom(points []float64) float64 {
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
