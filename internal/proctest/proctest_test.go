//go:build unix

package proctest_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/mimiktech/cluster/internal/proctest"
)

func TestTailKeepsTheEnd(t *testing.T) {
	var tail proctest.Tail
	for _, text := range []string{strings.Repeat("a", 10_000), strings.Repeat("b", 5_000), "c"} {
		if n, err := io.WriteString(&tail, text); n != len(text) || err != nil {
			t.Fatalf("Write of %d bytes returned %d, %v", len(text), n, err)
		}
	}
	want := strings.Repeat("a", 8<<10-5_001) + strings.Repeat("b", 5_000) + "c"
	if got := tail.String(); got != want {
		t.Errorf("kept %d bytes that end in %q, want the last %d", len(got), got[max(0, len(got)-10):], len(want))
	}
}

// The child of the shell has the shell's standard output: the pipe ends when both are dead.
func TestIsolateKillsTheWholeGroup(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", "sleep 60 & echo started; wait")
	proctest.Isolate(cmd)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		r := bufio.NewReader(out)
		_, err := r.ReadString('\n')
		cancel()
		_, copyErr := io.Copy(io.Discard, r)
		ended <- errors.Join(err, copyErr)
	}()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("a process of the group still runs")
		cancel()
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the killed process succeeded")
	}
}
