//go:build unix

package interop

import (
	"errors"
	"os"
	"testing"

	"github.com/mimiktech/cluster/internal/npmtest"
)

// required reports whether all tests must run, and none may be skipped.
func required() bool { return os.Getenv("INTEROP") == "require" }

// install installs the npm module, once per lock file and machine, and returns the folder of its
// packages. If npm is unavailable, it skips the test, or fails it if INTEROP=require.
func install(t *testing.T) string {
	t.Helper()
	unavailable := t.Skipf
	if required() {
		unavailable = t.Fatalf
	}
	modules, err := npmtest.Install(t.Context(), "npm")
	switch {
	case errors.Is(err, npmtest.ErrUnavailable):
		unavailable("cannot run npm nodes: %v", err)
	case err != nil:
		t.Fatal(err)
	}
	return modules
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
