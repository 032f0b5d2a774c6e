package main

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	if os.Getenv(modeVariable) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// A node that runs as a process withstands each attack, and all at once: it keeps its lease,
// answers health checks, evicts no healthy node, shows no secret, and needs bounded memory and
// descriptors.
func TestAttacks(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip(errNotLinux)
	}
	service := filepath.Join(t.TempDir(), "service")
	if err := build(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	wait := attackTogether(t, service) // then its node is idle for some time
	t.Run("alone", func(t *testing.T) {
		for _, a := range attacks() {
			t.Run(a.name, func(t *testing.T) {
				t.Parallel() // most of the time is spent waiting
				r, err := runAlone(t.Context(), service, a)
				if err != nil {
					t.Fatal(err)
				}
				if t.Log(r); r.broken != nil {
					t.Error(r.broken)
				}
			})
		}
	})
	t.Run("all at once", wait)
}

// attackTogether makes all attacks at once, in a process of its own, because that process lowers
// its priority. It returns when they have ended. wait waits for the process, which waits until the
// node is at rest again.
func attackTogether(t *testing.T, service string) (wait func(t *testing.T)) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-service", service, "-only", "all", "-all", "12s")
	cmd.Env = append(os.Environ(), modeVariable+"="+attackMode)
	var table bytes.Buffer
	cmd.Stdout = &table
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var lines []string
	scanner := bufio.NewScanner(stderr)
	for scanner.Scan() && scanner.Text() != endedLine {
		lines = append(lines, scanner.Text())
	}
	return func(t *testing.T) {
		t.Helper()
		for scanner.Scan() {
			lines = append(lines, scanner.Text())
		}
		err := cmd.Wait()
		if t.Log(table.String()); err != nil {
			t.Error(err, strings.Join(lines, "\n"))
		}
	}
}
