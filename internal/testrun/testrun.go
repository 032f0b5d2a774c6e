// Package testrun sets how the tests of a package run. A TestMain calls its functions.
package testrun

import (
	"flag"
	"os"
	"runtime/debug"
	"strconv"
	"testing"

	"github.com/mimiktech/cluster/internal/proctest"
)

// Full reports whether the environment variable SIMULATION asks for the full length of the tests,
// as in continuous integration. If not, it logs what runs instead.
func Full(t *testing.T, instead string) bool {
	t.Helper()
	if isFull() {
		return true
	}
	t.Logf("shortened: %s. SIMULATION=full runs it in full", instead)
	return false
}

func isFull() bool {
	return os.Getenv("SIMULATION") == "full" //nolint:forbidigo // a choice for a run of the tests
}

// Parallel parses the flags, and sets how many parallel tests run at a time, unless the flag
// -test.parallel does. n may exceed the number of processors if the tests mostly wait.
func Parallel(n int) { setDefault("test.parallel", n) }

// Checks parses the flags, and sets how many cases each property test draws, unless the flag
// -rapid.checks does. In their full length, and with the race detector, tests draw 100 cases.
func Checks(n int) {
	if !isFull() && !proctest.RaceDetector {
		setDefault("rapid.checks", n)
	}
}

// setDefault parses the flags, and sets a flag that exists and takes a number, unless it is set.
func setDefault(name string, n int) {
	flag.Parse()
	isSet := false
	flag.Visit(func(f *flag.Flag) { isSet = isSet || f.Name == name })
	if !isSet {
		_ = flag.Set(name, strconv.Itoa(n))
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
