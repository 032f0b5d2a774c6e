//go:build unix

package interop

import (
	"flag"
	"fmt"
	"os"
	"testing"
)

const updateFlag = "update"

// TestMain also runs the Go nodes: each is another process of the test binary, so that it is built
// with the same flags, such as -race.
func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) == roleNode {
		if err := runNode(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Bool(updateFlag, false, "write "+tablePath+" and the golden files")
	flag.Parse()
	setParallel(8)
	os.Exit(m.Run())
}

// setParallel sets the default of -test.parallel. It may exceed the number of processors, because
// scenarios mostly wait for other processes and timers.
func setParallel(n int) {
	isSet := false
	flag.Visit(func(f *flag.Flag) { isSet = isSet || f.Name == "test.parallel" })
	if !isSet {
		_ = flag.Set("test.parallel", fmt.Sprint(n)) // the flag exists and takes a number
	}
}
