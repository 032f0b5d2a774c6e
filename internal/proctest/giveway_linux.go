package proctest

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
	"unsafe"
)

// GiveWay gives a low priority to this process and to others, which generate load. In
// production, load comes from other machines, which do not compete with the program under test for
// processors.
func GiveWay(others ...int) error {
	return setEachThread(others, setLow)
}

// RunIdle lets this process and others run only while a processor is free. So they hardly delay the
// program under test, but any other program may stop them for long.
func RunIdle(others ...int) error {
	return setEachThread(others, setIdle)
}

func setLow(thread int) error {
	const nice = 10
	return syscall.Setpriority(syscall.PRIO_PROCESS, thread, nice)
}

func setIdle(thread int) error {
	const policy = 5 // SCHED_IDLE
	var priority int32
	_, _, errno := syscall.Syscall(syscall.SYS_SCHED_SETSCHEDULER, uintptr(thread), policy, uintptr(unsafe.Pointer(&priority))) //nolint:gosec // the system call reads it
	if errno != 0 {
		return errno
	}
	return nil
}

// setEachThread calls set for each thread of this process and of others. What they start later
// inherits the priority.
func setEachThread(others []int, set func(thread int) error) error {
	for _, pid := range append([]int{os.Getpid()}, others...) {
		if err := setThreadsOf(pid, set); err != nil {
			return fmt.Errorf("the priority of process %d: %w", pid, err)
		}
	}
	return nil
}

func setThreadsOf(pid int, set func(thread int) error) error {
	known := make(map[string]bool)
	for before := -1; before < len(known); { // a thread that was not set yet may start another one
		before = len(known)
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			return err
		}
		for _, t := range threads {
			id, err := strconv.Atoi(t.Name())
			if err != nil {
				return err
			}
			if known[t.Name()] {
				continue
			}
			known[t.Name()] = true
			if err := set(id); err != nil && err != syscall.ESRCH { //nolint:errorlint // system calls do not wrap errors
				return err
			}
		}
	}
	return nil
}
