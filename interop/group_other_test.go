//go:build unix && !linux

package interop

import "syscall"

// ownGroup keeps a terminal's signals from a process. It ends with its standard input.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
