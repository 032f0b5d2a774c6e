//go:build linux

package proctest

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// GiveWay and RunIdle also change this process, so only their parts are tested, on a child.
func TestPriorityOfAProcess(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = in.Close()
		_ = cmd.Wait()
	}()
	pid := cmd.Process.Pid
	const niceField, policyField = 16, 38 // after the name of the program
	for _, step := range []struct {
		set   func(thread int) error
		field int
		want  string
	}{{setLow, niceField, "10"}, {setIdle, policyField, "5"}} {
		if err := setThreadsOf(pid, step.set); err != nil {
			t.Fatal(err)
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/stat", pid, pid))
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := strings.Cut(string(stat), ") ")
		if got := strings.Fields(after)[step.field]; got != step.want {
			t.Errorf("field %d is %s, want %s", step.field, got, step.want)
		}
	}
	if err := setThreadsOf(pid, func(int) error { return syscall.EPERM }); err != syscall.EPERM { //nolint:errorlint // not wrapped
		t.Errorf("got %v, want %v", err, syscall.EPERM)
	}
	if err := setThreadsOf(pid, func(int) error { return syscall.ESRCH }); err != nil {
		t.Errorf("a thread that has ended fails: %v", err)
	}
}
