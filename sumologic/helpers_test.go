package sumologic_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"strings"
	"sync"
	"testing"
)

// output is a console that can be read.
type output struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) Sync() error { return nil }

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// lookup is os.LookupEnv for an environment of its own.
func lookup(vars map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		v, ok := vars[name]
		return v, ok
	}
}

func checkStackInfo(t *testing.T, info map[string]any) {
	t.Helper()
	for _, name := range []string{"file", "hash", "line", "method", "path", "pos", "stack"} {
		if _, ok := info[name].(string); !ok {
			t.Errorf("stackInfo has no %s: %v", name, info)
			return
		}
	}
	stack := info["stack"].(string)
	if hash := sha256.Sum256([]byte(stack)); info["hash"] != hex.EncodeToString(hash[:]) {
		t.Errorf("the hash %s is not that of the stack %s", info["hash"], stack)
	}
	for frame := range strings.Lines(stack) {
		if !strings.HasPrefix(frame, "    at ") {
			t.Errorf("not a frame: %q", frame)
		}
	}
}

func marshal(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestReadmeShowsTheExample compares the Go code of README.md with example_test.go.
func TestReadmeShowsTheExample(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(readme), "```go\n")
	snippet, _, closed := strings.Cut(rest, "```")
	if !ok || !closed || !strings.Contains(string(example), snippet) {
		t.Error("the Go code of README.md is not a part of example_test.go")
	}
}
