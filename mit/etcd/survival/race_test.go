//go:build race

package survival

// With the race detector everything takes several times as long, and announcing costs the square.
const nodes = 30
