//go:build unix

package proctest

import (
	"os/exec"
	"syscall"
)

// Isolate prepares cmd, which must come from [exec.CommandContext], to run in a process group of
// its own. A terminal's signals do not reach the group, and the end of the command's context kills
// all of it. On Linux the system also kills the process, even a stopped one, when this process
// ends. Elsewhere the process must end when its standard input does.
func Isolate(cmd *exec.Cmd) {
	cmd.SysProcAttr = ownGroup()
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
