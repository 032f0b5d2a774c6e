//go:build unix

package command

import "syscall"

// descriptorLimit returns the number of files that the process may open; 0 if unknown. The runtime
// has raised it to the hard limit.
func descriptorLimit() int {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil || limit.Cur > 1<<30 {
		return 0
	}
	return int(limit.Cur)
}
