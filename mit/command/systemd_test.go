package command

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"go.uber.org/zap"
)

// listenNotify is the socket of a systemd. It sets the variables that systemd sets.
func listenNotify(t *testing.T, watchdog time.Duration) *net.UnixConn {
	t.Helper()
	name := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", name)
	t.Setenv("WATCHDOG_USEC", strconv.FormatInt(watchdog.Microseconds(), 10))
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	return conn
}

func wantMessage(t *testing.T, conn *net.UnixConn, want string) {
	t.Helper()
	buf := make([]byte, 100)
	for {
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("no %s: %v", want, err)
		}
		got := string(buf[:n])
		if got == want {
			return
		}
		if got != "WATCHDOG=1" {
			t.Fatalf("got %s, want %s", got, want)
		}
	}
}

// systemd learns that the program is ready, alive and stopping.
func TestNotifySystemd(t *testing.T) {
	conn := listenNotify(t, 20*time.Millisecond)
	t.Run("program", func(t *testing.T) {
		start(t, Command{})
		for _, message := range []string{"READY=1", "WATCHDOG=1", "WATCHDOG=1"} {
			wantMessage(t, conn, message)
		}
	})
	wantMessage(t, conn, "STOPPING=1")
}

// A watchdog of another process is not ours. Without systemd, or if it is gone, the program runs.
func TestNotifyWithoutSystemd(t *testing.T) {
	conn := listenNotify(t, time.Millisecond)
	t.Setenv("WATCHDOG_PID", "1")
	if n := newNotifier(); n.watchdog != 0 || n.socket == "" {
		t.Errorf("%+v", n)
	}
	t.Setenv("WATCHDOG_PID", "")
	for _, usec := range []string{"", "soon", "-5", "0"} {
		t.Setenv("WATCHDOG_USEC", usec)
		if n := newNotifier(); n.watchdog != 0 {
			t.Errorf("%q: %+v", usec, n)
		}
	}
	_ = conn.Close()
	ctx, cancel := context.WithCancel(t.Context())
	stop := newNotifier().start(ctx, zap.NewNop())
	cancel()
	stop()
	t.Setenv("NOTIFY_SOCKET", "")
	newNotifier().start(t.Context(), zap.NewNop())()
}
