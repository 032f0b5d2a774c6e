// Package freeport finds ports for the processes of tests.
package freeport

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync/atomic"
)

// The range of ports that Next returns. It lies below the ephemeral ports, which start at 32768
// (Linux) or 49152. An ephemeral port can be taken by a connection while its server is down.
const lowest, count = 15_000, 15_000

//nolint:gochecknoglobals // ports are a resource of the machine, not of a caller
var calls atomic.Int64

// Next returns a free port of 127.0.0.1 below the ephemeral ports, so that a server can listen at
// it again after a restart. No two calls in a process return the same port, unless all were
// returned. Concurrent processes start at different ports of the range.
func Next(ctx context.Context) (int, error) {
	var lastErr error
	for range 1000 {
		port := lowest + (131*os.Getpid()+int(calls.Add(1)))%count
		ln, err := new(net.ListenConfig).Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			return port, ln.Close()
		}
		lastErr = err
	}
	return 0, fmt.Errorf("no free port from %d to %d: %w", lowest, lowest+count-1, lastErr)
}
