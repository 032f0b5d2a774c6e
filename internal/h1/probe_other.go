//go:build !unix

package h1

import "net"

// newProbe returns nil: a socket is read with a deadline instead.
func newProbe(net.Conn) func() bool { return nil }
