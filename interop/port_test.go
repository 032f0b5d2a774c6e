//go:build unix

package interop

import (
	"errors"
	"sync"
	"syscall"
	"testing"
)

// held maps the ports of nodes that have ended to bound sockets. A parallel scenario must not get a
// port at which another scenario expects refused connections.
var held sync.Map //nolint:gochecknoglobals // all tests share the ports of the machine

// holdPort binds a port without listening, until releasePort is called or the test ends.
func holdPort(t *testing.T, port int) {
	t.Helper()
	if _, already := held.Load(port); already {
		return
	}
	syscall.ForkLock.RLock() // a node that starts now must not inherit the socket
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
	err = reuse(1) // connections of the ended node may be in TIME_WAIT
	if err == nil {
		err = syscall.Bind(socket, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
	}
	if err == nil {
		err = reuse(0) // no other socket may bind the port
	}
	if err != nil {
		_ = syscall.Close(socket)
		if errors.Is(err, syscall.EADDRINUSE) { // used by a connection, refuses others
			t.Logf("cannot hold port %d of an ended node: %v", port, err)
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
