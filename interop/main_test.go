//go:build unix

package interop

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/mimiktech/cluster/internal/testrun"
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
	testrun.Parallel(8)
	os.Exit(m.Run())
}
