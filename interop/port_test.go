//go:build unix

package interop

import (
	"errors"
	"sync"
	"syscall"
	"testing"
)

// held are the ports of nodes that have ended, and the sockets that keep them: the scenarios that
// run beside each other share the machine's ports, and none must get one at which another expects
// to be refused.
var held sync.Map //nolint:gochecknoglobals // the ports of a machine are the process's, not a test's

// holdPort keeps a port from everybody, and listens to nobody there, until it is released or the
// test ends.
func holdPort(t *testing.T, port int) {
	t.Helper()
	if _, already := held.Load(port); already {
		return
	}
	syscall.ForkLock.RLock() // a node that starts meanwhile must not inherit the socket
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(socket)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Fatal(err)
	}
	reuse := func(on int) error {
		return syscall.SetsockoptInt(socket, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, on)
	}
	err = reuse(1) // the connections of the dead are not quite over
	if err == nil {
		err = syscall.Bind(socket, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
	}
	if err == nil {
		err = reuse(0) // and nobody else may do that
	}
	if err != nil {
		_ = syscall.Close(socket)
		if errors.Is(err, syscall.EADDRINUSE) { // a connection was given it: who dials it is refused, too
			t.Logf("port %d of a node that ended is not held: %v", port, err)
			return
		}
		t.Fatalf("holding port %d: %v", port, err)
	}
	held.Store(port, socket)
	t.Cleanup(func() { releasePort(port) })
}

func releasePort(port int) {
	if socket, ok := held.LoadAndDelete(port); ok {
		_ = syscall.Close(socket.(int))
	}
}
