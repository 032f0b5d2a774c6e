package main

import (
	"strings"
	"testing"
)

// The demo uses real sockets and real certificates, so it takes six seconds of real time.
func TestRun(t *testing.T) {
	var out strings.Builder
	err := run(t.Context(), &out)
	t.Log("\n" + out.String())
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"know each other", "calls succeeded", "registry has seen several", "ada has seen several", "ben has seen several", "Done."} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("%q is missing", part)
		}
	}
}
