package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if urls := os.Getenv(checkerVariable); urls != "" {
		if err := runChecker(strings.Fields(urls)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// A node that runs as a process withstands each attack, and all at once: it renews its lease,
// answers health checks, evicts no healthy node, shows no secret, and needs bounded memory.
func TestAttacks(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip(errNotLinux)
	}
	service := filepath.Join(t.TempDir(), "service")
	if err := build(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	t.Run("alone", func(t *testing.T) {
		for _, a := range attacks() {
			t.Run(a.name, func(t *testing.T) {
				t.Parallel() // most of the time is spent waiting
				check(t, func() (result, error) { return runAlone(t.Context(), service, a) })
			})
		}
	})
	t.Run("all at once", func(t *testing.T) { // last: it lowers the priority of this process
		check(t, func() (result, error) { return runTogether(t.Context(), service, 12*time.Second) })
	})
}

func check(t *testing.T, run func() (result, error)) {
	t.Helper()
	r, err := run()
	if err != nil {
		t.Fatal(err)
	}
	if t.Log(r); r.broken != nil {
		t.Error(r.broken)
	}
}
