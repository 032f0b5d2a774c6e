//go:build !unix

package h1

import "net"

// newProbe returns nil: quiet then reads with a deadline.
func newProbe(net.Conn) func() bool { return nil }

// readable returns false: it is not known.
func readable(net.Conn) bool { return false }
