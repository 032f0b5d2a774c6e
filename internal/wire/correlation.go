package wire

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// NewCorrelationID returns a new correlation id: {uuid}@0/{now}.
func NewCorrelationID() string {
	return uuid.NewString() + "@0/" + FormatTime(time.Now())
}

// NextCorrelationID returns the id for handling an incoming request: the id it carries, with the
// step increased and missing parts filled in.
func NextCorrelationID(incoming string) string {
	if incoming == "" || !ValidCorrelationID(incoming) {
		return NewCorrelationID()
	}
	head, date, _ := strings.Cut(incoming, "/")
	date, _, _ = strings.Cut(date, "/") // what follows a second slash is dropped
	id, step, stepped := strings.Cut(head, "@")
	step, _, _ = strings.Cut(step, "@")
	next := 0
	if stepped {
		next = nextStep(step)
	}
	if id == "" {
		id = uuid.NewString()
	}
	if date == "" {
		date = FormatTime(time.Now())
	}
	return fmt.Sprintf("%s@%d/%s", id, next, date)
}

// ValidCorrelationID reports whether an id can be put in a header and in a log line unchanged.
func ValidCorrelationID(id string) bool {
	return len(id) <= maxCorrelationID && !strings.ContainsFunc(id, func(r rune) bool { return r < ' ' || r > '~' })
}

// UserAgent returns the User-Agent of a node.
func UserAgent(serverType, version, serverID string) string {
	return fmt.Sprintf("mimik-%s/%s/%s (%s; %s; go %s)",
		serverType, version, serverID, runtime.GOOS, runtime.GOARCH, strings.TrimPrefix(runtime.Version(), "go"))
}

// maxCorrelationID is the longest id to continue, in bytes: it is part of every log line.
const maxCorrelationID = 256

// nextStep increases the number that step begins with; without one it returns 0. npm nodes decode
// it with parseInt, which ignores what follows the number.
func nextStep(step string) int {
	step = strings.TrimLeft(step, " \t")
	end := 0
	for end < len(step) && (step[end] >= '0' && step[end] <= '9' || end == 0 && (step[end] == '-' || step[end] == '+')) {
		end++
	}
	n, err := strconv.ParseInt(step[:end], 10, 32)
	if err != nil {
		return 0
	}
	return int(n) + 1
}
