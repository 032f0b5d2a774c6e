// Package freeport finds ports for the processes of tests.
package freeport

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync/atomic"
)

// Systems give the ports from 32768 on (Linux), or from 49152 on, to whoever connects or listens at port 0.
// A port from there can be gone before its owner starts, and surely while its owner is down.
const lowest, count = 15_000, 15_000

//nolint:gochecknoglobals // the ports of a machine are the process's, not a caller's
var given atomic.Int64 // how many there were

// Next returns a port of 127.0.0.1 at which nobody listens, and that neither a connection nor anybody who
// asks for any port will be given: its owner finds it free after a restart, too. No two calls in a process
// return the same; processes that run side by side begin apart.
func Next(ctx context.Context) (int, error) {
	var failed error
	for range 1000 {
		port := lowest + (131*os.Getpid()+int(given.Add(1)))%count
		ln, err := new(net.ListenConfig).Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			return port, ln.Close()
		}
		failed = err
	}
	return 0, fmt.Errorf("no free port from %d to %d: %w", lowest, lowest+count-1, failed)
}
