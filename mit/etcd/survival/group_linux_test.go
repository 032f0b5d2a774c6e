package survival

import "syscall"

// ownGroup keeps a terminal's signals from a process, and ends it with the one that started it, even
// while it is stopped.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
