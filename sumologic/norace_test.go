//go:build !race

package sumologic_test

const raceDetector = false
