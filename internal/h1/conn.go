package h1

import (
	"bufio"
	"crypto/tls"
	"errors"
	"net"
	"sync/atomic"
	"syscall"
	"time"
)

// A conn is one connection. It belongs to one request at a time, or is idle.
type conn struct {
	nc      net.Conn
	address string
	abort   func()      // sets arrived and closes nc; made once, since each request needs it
	probe   func() bool // the check of quiet in one system call; nil if there is none
	arrived atomic.Bool // when abort was called, the socket had bytes to read
	kernel  bool        // nc is a socket, or TLS on one, so a short write does not wait for the peer

	br        *bufio.Reader // while a response is read
	headLimit int64         // remaining bytes of the head's limit; negative in a body
	ended     bool          // reading has failed
	sent      bool          // some of the request was written

	reused      bool
	idleTimeout time.Duration // announced by the peer; 0 if it announced none
	idleSince   time.Time
	expires     time.Time
}

func newConn(nc net.Conn, address string) *conn {
	c := &conn{nc: nc, address: address}
	socket := nc
	if tc, ok := nc.(*tls.Conn); ok {
		socket = tc.NetConn()
		c.probe = newTLSProbe(tc)
	} else {
		c.probe = newProbe(nc)
	}
	_, c.kernel = socket.(syscall.Conn)
	c.abort = func() {
		c.arrived.Store(readable(socket))
		socket.Close() // tls.Conn.Close would wait until it has sent an alert
	}
	return c
}

// newTLSProbe is newProbe for a connection with TLS. Such a connection may have read more from its
// socket than it has returned. A Read returns these bytes even if the deadline is over.
func newTLSProbe(tc *tls.Conn) func() bool {
	socket := newProbe(tc.NetConn())
	if socket == nil {
		return nil
	}
	return func() bool { return readsNothing(tc, time.Unix(1, 0)) && socket() }
}

func (c *conn) close() { c.nc.Close() }

// Read reads from the connection. In the head of a response, headLimit bounds the number of bytes.
func (c *conn) Read(p []byte) (int, error) {
	if c.headLimit == 0 {
		return 0, errHeadTooLarge
	}
	if c.headLimit > 0 {
		p = p[:min(int64(len(p)), c.headLimit)]
	}
	n, err := c.nc.Read(p)
	if err != nil {
		c.ended = true
	}
	if c.headLimit > 0 {
		c.headLimit -= int64(n)
	}
	return n, err
}

func (c *conn) Write(p []byte) (int, error) {
	n, err := c.nc.Write(p)
	c.sent = c.sent || n > 0
	return n, err
}

// quiet reports whether an idle connection is open and the peer has sent nothing on it. Bytes that
// arrive without a request must not be taken for the response to the next one.
func (c *conn) quiet() bool {
	if c.probe != nil {
		return c.probe()
	}
	return readsNothing(c.nc, time.Now().Add(probeTime))
}

// readsNothing reports whether a connection is open and has nothing to read until deadline.
func readsNothing(nc net.Conn, deadline time.Time) bool {
	var b [1]byte
	if nc.SetReadDeadline(deadline) != nil {
		return false
	}
	_, err := nc.Read(b[:])
	ne, ok := err.(net.Error) //nolint:errorlint // a connection returns its own error, not a wrapped one
	return ok && ne.Timeout() && nc.SetReadDeadline(time.Time{}) == nil
}

// probeTime is the duration of the read that checks a connection without a probe.
const probeTime = time.Millisecond

var errHeadTooLarge = errors.New("the head of the response is too large")
