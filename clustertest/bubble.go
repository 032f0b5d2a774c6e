package clustertest

import (
	"runtime"
	"strings"
)

// bubble returns what identifies the bubble of testing/synctest that the caller runs in; "" outside
// of bubbles. The header of a goroutine's stack has it: goroutine 12 [running, synctest bubble 3]:
func bubble() string {
	stack := make([]byte, 100)
	header, _, _ := strings.Cut(string(stack[:runtime.Stack(stack, false)]), "\n")
	_, id, _ := strings.Cut(header, "synctest bubble ")
	id, _, _ = strings.Cut(id, "]")
	return id
}

// checkBubble fails the test if w was started in another bubble than its caller's, or outside of
// bubbles: the goroutines and channels of one do not work in the other.
func (w *World) checkBubble() {
	w.t.Helper()
	switch id := bubble(); {
	case id == w.bubble:
	case w.bubble == "":
		w.t.Fatal("clustertest: the World was started outside of the bubble that uses it: call Start in the function that synctest.Test runs")
	default:
		w.t.Fatal("clustertest: the World was started in another bubble of testing/synctest than it is used in: start one World in each bubble")
	}
}
