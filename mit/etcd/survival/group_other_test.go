//go:build unix && !linux

package survival

import "syscall"

// ownGroup keeps a terminal's signals from a process.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
