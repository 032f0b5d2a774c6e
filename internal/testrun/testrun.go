// Package testrun sets how the tests of a package run. A TestMain calls its functions.
package testrun

import (
	"flag"
	"os"
	"runtime/debug"
	"strconv"
	"testing"
)

// Full reports whether the environment variable SIMULATION asks for the full length of the tests,
// as in continuous integration. If not, it logs what runs instead.
func Full(t *testing.T, instead string) bool {
	t.Helper()
	if os.Getenv("SIMULATION") == "full" { //nolint:forbidigo // a choice for a run of the tests
		return true
	}
	t.Logf("shortened: %s. SIMULATION=full runs it in full", instead)
	return false
}

// Parallel parses the flags, and sets how many parallel tests run at a time, unless the flag
// -test.parallel does. n may exceed the number of processors if the tests mostly wait.
func Parallel(n int) {
	flag.Parse()
	isSet := false
	flag.Visit(func(f *flag.Flag) { isSet = isSet || f.Name == "test.parallel" })
	if !isSet {
		_ = flag.Set("test.parallel", strconv.Itoa(n)) // the flag exists and takes a number
	}
}

// CollectRarely lets the heap grow to five times its live data before it is collected, unless GOGC
// is set or benchmarks run. Tests create many small clusters and drop them: at the default, a tenth
// of their time is spent on collections. The flags must have been parsed.
func CollectRarely() {
	if benchmarks := flag.Lookup("test.bench"); benchmarks != nil && benchmarks.Value.String() != "" {
		return
	}
	if set := debug.SetGCPercent(400); set != 100 {
		debug.SetGCPercent(set)
	}
}
