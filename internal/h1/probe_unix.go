//go:build unix

package h1

import (
	"net"
	"syscall"
)

// newProbe returns a function that reads from a socket without waiting, and reports whether the
// socket is open and has nothing to read. It may discard a byte, because the connection is then
// closed.
func newProbe(nc net.Conn) func() bool {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	var b [1]byte
	var quiet bool
	read := func(fd uintptr) bool {
		_, err := syscall.Read(int(fd), b[:])
		quiet = err == syscall.EAGAIN || err == syscall.EWOULDBLOCK
		return true
	}
	return func() bool { return raw.Read(read) == nil && quiet }
}
