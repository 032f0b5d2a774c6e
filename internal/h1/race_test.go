//go:build race

package h1

// The race detector makes a test ten times as slow.
const raceEnabled = true
