//go:build race

package proctest

// RaceDetector reports whether this program was built with the race detector, which makes it
// several times slower.
const RaceDetector = true
