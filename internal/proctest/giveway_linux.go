package proctest

import (
	"fmt"
	"os"
	"strconv"
	"syscall"
	"unsafe"
)

// GiveWay gives this process, which generates load, the lowest priority. Otherwise it would take
// the processors from the program under test, which other machines cannot do.
func GiveWay() error {
	const lowest = 19
	return setEachThread(os.Getpid(), func(thread int) error { return syscall.Setpriority(syscall.PRIO_PROCESS, thread, lowest) })
}

// RunIdle lets this process and others run only while a processor is free. So they hardly delay the
// program under test, but any other program may stop them for long.
func RunIdle(others ...int) error {
	const policy = 5 // SCHED_IDLE
	for _, pid := range append([]int{os.Getpid()}, others...) {
		err := setEachThread(pid, func(thread int) error {
			var priority int32
			_, _, errno := syscall.Syscall(syscall.SYS_SCHED_SETSCHEDULER, uintptr(thread), policy, uintptr(unsafe.Pointer(&priority)))
			if errno != 0 {
				return errno
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// setEachThread calls set for each thread of a process. A thread or process that one of them starts
// later inherits what set has set.
func setEachThread(pid int, set func(thread int) error) error {
	for range 2 { // a thread may start meanwhile
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			return err
		}
		for _, t := range threads {
			id, err := strconv.Atoi(t.Name())
			if err != nil {
				return err
			}
			if err := set(id); err != nil && err != syscall.ESRCH { //nolint:errorlint // system calls do not wrap errors
				return fmt.Errorf("the priority of thread %d of process %d: %w", id, pid, err)
			}
		}
	}
	return nil
}
