//go:build !race

package survival

const nodes = 100
