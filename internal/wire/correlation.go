package wire

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// A correlation id longer than this is not continued: it is echoed into every log line.
const maxCorrelationID = 256

// NewCorrelationID starts a correlation: {uuid}@0/{now}.
func NewCorrelationID() string {
	return uuid.NewString() + "@0/" + FormatTime(time.Now())
}

// NextCorrelationID is the id under which an incoming request is worked on: the one it
// carries, its step counted up, with whatever part is missing filled in.
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

// nextStep counts on from the number that step begins with, 0 if there is none: npm nodes
// read it with parseInt, which forgives what follows.
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

// ValidCorrelationID tells whether an id can stand in a header, and in a log line, as it is.
func ValidCorrelationID(id string) bool {
	return len(id) <= maxCorrelationID && !strings.ContainsFunc(id, func(r rune) bool { return r < ' ' || r > '~' })
}

// UserAgent names this node to whoever it calls.
func UserAgent(serverType, version, serverID string) string {
	return fmt.Sprintf("mimik-%s/%s/%s (%s; %s; go %s)",
		serverType, version, serverID, runtime.GOOS, runtime.GOARCH, strings.TrimPrefix(runtime.Version(), "go"))
}
