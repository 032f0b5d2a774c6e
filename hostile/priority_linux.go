package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// giveWay lowers the priority of this process. The attacks would else take the processors from the
// nodes, as no attacker on another machine can. Processes that run already keep their priority.
func giveWay() error {
	const nice = 10
	for range 2 { // a thread may start meanwhile; it inherits the priority
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		for _, t := range threads {
			id, err := strconv.Atoi(t.Name())
			if err != nil {
				return err
			}
			if err := syscall.Setpriority(syscall.PRIO_PROCESS, id, nice); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("lowering the priority: %w", err)
			}
		}
	}
	return nil
}
