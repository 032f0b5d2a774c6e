package main

import "testing"

// A patch that does not apply any more tests nothing, and the mutants run too long for each change.
func TestPatchesApply(t *testing.T) {
	mutants, err := read(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mutants {
		if out, err := command(t.Context(), "../..", "git", "-c", "safe.directory=*", "apply", "--check", m.patch); err != nil {
			t.Errorf("%s: %v: %s", m.name, err, out)
		}
	}
}
