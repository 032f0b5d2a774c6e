package main

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// TestMain runs the program instead of the tests if the variable is set.
func TestMain(m *testing.M) {
	if os.Getenv("MIT_TEST_RUNS_MAIN") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), "MIT_TEST_RUNS_MAIN=1")
	return cmd
}

func TestSignals(t *testing.T) {
	for _, sig := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		cmd := program(t, "--listen", "127.0.0.1:0")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		if !lines.Scan() {
			t.Fatal("nothing printed")
		}
		address, ok := strings.CutPrefix(lines.Text(), "# mIT on http://")
		if !ok {
			t.Fatalf("printed %q", lines.Text())
		}

		var stderr bytes.Buffer
		second := program(t, "--listen", address)
		second.Stderr = &stderr
		err = second.Run()
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 {
			t.Errorf("on a taken address: %v, want exit status 1", err)
		}
		if got := stderr.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "address already in use") {
			t.Errorf("on a taken address: %q", got)
		}

		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() { // until it exits
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("after %v: %v", sig, err)
		}
	}
}
