package command

import (
	"context"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"
)

// A notifier sends messages to systemd (sd_notify), which has started the program with Type=notify.
// Without systemd it does nothing.
type notifier struct {
	socket   string        // "": there is no systemd
	watchdog time.Duration // systemd restarts the program after this time without a message; 0: never
}

// newNotifier reads the variables that systemd sets.
func newNotifier() notifier {
	n := notifier{socket: os.Getenv("NOTIFY_SOCKET")}
	if pid := os.Getenv("WATCHDOG_PID"); pid == "" || pid == strconv.Itoa(os.Getpid()) {
		usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
		if err == nil && usec > 0 {
			n.watchdog = time.Duration(usec) * time.Microsecond
		}
	}
	return n
}

// start reports that the program is ready, and that it is alive until the function that it returns
// is called. When ctx ends, it reports that the program is stopping.
func (n notifier) start(ctx context.Context, log *zap.Logger) (stop func()) {
	if n.socket == "" {
		return func() {}
	}
	n.send(log, "READY=1")
	stopped := make(chan struct{})
	var alive <-chan time.Time
	if n.watchdog > 0 {
		alive = time.Tick(n.watchdog / 2)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		stopping := ctx.Done()
		for {
			select {
			case <-alive:
				n.send(log, "WATCHDOG=1")
			case <-stopping:
				n.send(log, "STOPPING=1")
				stopping = nil
			case <-stopped:
				if stopping != nil && ctx.Err() != nil {
					n.send(log, "STOPPING=1")
				}
				return
			}
		}
	})
	return func() {
		close(stopped)
		wg.Wait()
	}
}

func (n notifier) send(log *zap.Logger, state string) {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.socket, Net: "unixgram"})
	if err == nil {
		_, err = conn.Write([]byte(state))
		_ = conn.Close()
	}
	if err != nil {
		log.Warn("systemd cannot be notified", zap.String("state", state), zap.Error(err))
	}
}
