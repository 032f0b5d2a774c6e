// Package proctest has what the tests and benchmarks of this repository need to run other
// processes.
package proctest

import (
	"bytes"
	"sync"
)

// A Tail is an io.Writer that keeps the last 8 KiB written to it, such as the output of a process.
// The zero value is empty. A Tail is safe for concurrent use.
type Tail struct {
	mu   sync.Mutex // guards the field below
	text []byte
}

const tailSize = 8 << 10

// Write appends b and drops what exceeds the limit at the front. It returns len(b) and nil.
func (t *Tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, b...)
	if len(t.text) > tailSize {
		t.text = bytes.Clone(t.text[len(t.text)-tailSize:])
	}
	return len(b), nil
}

// String returns the text kept.
func (t *Tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}
