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

// readable reports whether bytes have arrived at a socket that have not been read. It may be called
// while another goroutine reads.
func readable(nc net.Conn) (yes bool) {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	var b [1]byte
	err = raw.Control(func(fd uintptr) { // unlike raw.Read, Control does not wait for a reader
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK)
		yes = err == nil && n > 0
	})
	return yes && err == nil
}
