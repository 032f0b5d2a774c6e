package proctest

import (
	"fmt"
	"os"
	"strings"
)

// goCommandParent returns the parent of process id if that process is the go command, else 0.
func goCommandParent(id int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", id)) // "12 (go) S 7 …"
	if err != nil {
		return 0 // the process has ended
	}
	_, fields, isGo := strings.Cut(string(stat), " (go) ")
	if !isGo {
		return 0
	}
	var (
		state  string
		parent int
	)
	if _, err := fmt.Sscan(fields, &state, &parent); err != nil {
		return 0
	}
	return parent
}
