package proctest

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// A Usage is what a process needs at one moment.
type Usage struct {
	RSS, Peak   int64 // bytes; 0 for a process that has ended and was not waited for
	CPU         time.Duration
	Waited      time.Duration // of its threads, for a processor that another thread had
	Descriptors int
}

// ProcessUsage reads the usage of a process from /proc, so it needs Linux.
func ProcessUsage(pid int) (Usage, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return Usage{}, err
	}
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return Usage{}, err
	}
	descriptors, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return Usage{}, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 13 {
		return Usage{}, errors.New("unknown format of " + dir + "/stat")
	}
	const tick = 10 * time.Millisecond // on all common systems
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return Usage{
		RSS: kilobytes(status, "VmRSS:"), Peak: kilobytes(status, "VmHWM:"),
		CPU: time.Duration(user+system) * tick, Waited: waited(dir), Descriptors: len(descriptors),
	}, nil
}

// waited returns how long the threads of a process have waited for a processor. It is 0 on a system
// that does not count it.
func waited(dir string) (sum time.Duration) {
	threads, _ := filepath.Glob(dir + "/task/*/schedstat")
	for _, name := range threads {
		text, err := os.ReadFile(name)
		if fields := strings.Fields(string(text)); err == nil && len(fields) == 3 {
			n, _ := strconv.ParseInt(fields[1], 10, 64)
			sum += time.Duration(n)
		}
	}
	return sum
}

func kilobytes(status []byte, name string) int64 {
	_, rest, _ := bytes.Cut(status, []byte(name))
	fields := strings.Fields(string(rest[:min(len(rest), 64)]))
	if len(fields) == 0 {
		return 0
	}
	n, _ := strconv.ParseInt(fields[0], 10, 64)
	return n << 10
}

// maxSlowdown is the largest factor that Slowdown returns.
const maxSlowdown = 10

// Slowdown returns the factor by which waiting for a processor has slowed a process down between
// two moments: the time that its threads ran or waited, divided by the time that they ran.
func Slowdown(before, after Usage) float64 {
	computed, waited := after.CPU-before.CPU, after.Waited-before.Waited
	// The waiting time of threads that have ended is not counted.
	return min(maxSlowdown, 1+max(0, waited.Seconds())/max(computed, 10*time.Millisecond).Seconds())
}
