package proctest

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// GiveWay lowers the priority of this process, which generates load. It would else take the
// processors from the programs under load, as no program on another machine can. Processes that run
// already keep their priority.
func GiveWay() error {
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
