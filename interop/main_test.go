//go:build unix

package interop

import (
	"flag"
	"fmt"
	"os"
	"testing"
)

const updateFlag = "update"

// TestMain is also the Go node: the tests start their own binary once more for each, so that it
// has whatever they were built with, the race detector included.
func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) == roleNode {
		if err := runNode(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	flag.Bool(updateFlag, false, "write "+tablePath+" and the golden files anew")
	flag.Parse()
	atOnce(8)
	os.Exit(m.Run())
}

// atOnce sets how many scenarios run side by side, unless the command line did: they wait for
// other processes and for time to pass far more than they use a processor.
func atOnce(n int) {
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		_ = flag.Set("test.parallel", fmt.Sprint(n)) // the flag is there, and takes a number
	}
}
