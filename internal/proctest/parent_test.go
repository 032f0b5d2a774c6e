//go:build unix

package proctest_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/mimiktech/cluster/internal/proctest"
)

// roleVariable lists the roles of a chain of processes of this binary, outermost first.
const roleVariable = "PROCTEST_ROLES"

// TestMain runs this binary as a process that starts the next one, or as the one that watches.
func TestMain(m *testing.M) {
	var err error
	switch roles := os.Getenv(roleVariable); roles {
	case "":
		os.Exit(m.Run())
	case "watch":
		err = watch()
	default:
		err = startNext(roles)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// watch prints a line, and prints another one when its parent has ended.
func watch() error {
	ctx, cancel := proctest.WithParent(context.Background())
	defer cancel()
	fmt.Println("watching")
	select {
	case <-ctx.Done():
		fmt.Println(context.Cause(ctx))
		return nil
	case <-time.After(time.Minute):
		return errors.New("not canceled")
	}
}

// startNext starts the program of its arguments with the remaining roles and waits for it.
func startNext(roles string) error {
	cmd := exec.CommandContext(context.Background(), os.Args[1], os.Args[1:]...)
	cmd.Env = append(os.Environ(), roleVariable+"="+roles[1:])
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

func TestWithParentIsCanceledWhenTheParentIsKilled(t *testing.T) {
	testParentKilled(t, "1watch", executable(t))
}

func TestWithParentWatchesTheParentOfGoRun(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("the parent of another process is only known on Linux")
	}
	fakeGo := filepath.Join(t.TempDir(), "go")
	if err := os.Symlink(executable(t), fakeGo); err != nil {
		t.Fatal(err)
	}
	testParentKilled(t, "12watch", fakeGo)
}

func TestWithParentEndsWithItsContext(t *testing.T) {
	ctx, cancel := proctest.WithParent(t.Context())
	if err := ctx.Err(); err != nil {
		t.Errorf("canceled at once: %v", err)
	}
	cancel()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("the cause is %v, want context.Canceled", err)
	}
}

func executable(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return self
}

// testParentKilled starts a chain of processes and kills the first of them.
func testParentKilled(t *testing.T, roles, next string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, executable(t), next)
	cmd.Env = append(os.Environ(), roleVariable+"="+roles)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := r.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(r)
	if line, err := out.ReadString('\n'); line != "watching\n" {
		t.Errorf("the last process printed %q, %v", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // it was killed
	rest, err := io.ReadAll(out)
	if want := proctest.ErrParentEnded.Error() + "\n"; string(rest) != want || err != nil {
		t.Errorf("after the kill the last process printed %q, %v, want %q", rest, err, want)
	}
}
