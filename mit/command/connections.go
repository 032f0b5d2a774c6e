package command

import (
	"container/list"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"sync"
)

// sendBuffer bounds what the kernel buffers of a response to a client that does not read, in bytes.
const sendBuffer = 64 << 10

// connections is a listener that bounds the connections of an http.Server, in total and for each
// address (for IPv6: each /64). At a bound it closes the connection that has waited longest for a
// request. If all connections have a request in progress, it closes the new one.
type connections struct {
	net.Listener
	total, perAddress int // 0: no limit

	mu    sync.Mutex // guards the fields below
	open  map[*connection]struct{}
	idle  list.List // of *connection, those that have waited longest first
	count map[string]int
}

// A connection is idle until its first request has been read, and between requests.
type connection struct {
	net.Conn
	owner   *connections
	address string
	element *list.Element // in owner.idle; nil while a request is in progress
}

func limitConnections(ln net.Listener, total, perAddress int) *connections {
	return &connections{
		Listener: ln, total: total, perAddress: perAddress,
		open: map[*connection]struct{}{}, count: map[string]int{},
	}
}

// Accept implements [net.Listener].
func (c *connections) Accept() (net.Conn, error) {
	for {
		inner, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if tcp, ok := inner.(*net.TCPConn); ok {
			_ = tcp.SetWriteBuffer(sendBuffer) // the kernel's default works, too
		}
		conn := &connection{Conn: inner, owner: c, address: addressKey(inner.RemoteAddr())}
		evicted, ok := c.add(conn)
		if evicted != nil {
			_ = evicted.Close()
		}
		if ok {
			return conn, nil
		}
		_ = inner.Close()
	}
}

// add registers a connection if there is room or an idle connection makes room. The caller must
// close the evicted one.
func (c *connections) add(conn *connection) (evicted *connection, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.perAddress > 0 && c.count[conn.address] >= c.perAddress:
		evicted = c.longestIdleLocked(conn.address)
	case c.total > 0 && len(c.open) >= c.total:
		evicted = c.longestIdleLocked("")
	default:
		c.addLocked(conn)
		return nil, true
	}
	if evicted == nil {
		return nil, false
	}
	c.removeLocked(evicted)
	c.addLocked(conn)
	return evicted, true
}

// longestIdleLocked returns the connection of an address, or of any if it is "", that has waited
// longest.
func (c *connections) longestIdleLocked(address string) *connection {
	for e := c.idle.Front(); e != nil; e = e.Next() {
		if conn := e.Value.(*connection); address == "" || conn.address == address {
			return conn
		}
	}
	return nil
}

func (c *connections) addLocked(conn *connection) {
	c.open[conn] = struct{}{}
	c.count[conn.address]++
	conn.element = c.idle.PushBack(conn)
}

func (c *connections) removeLocked(conn *connection) {
	if _, ok := c.open[conn]; !ok {
		return
	}
	delete(c.open, conn)
	if c.count[conn.address]--; c.count[conn.address] == 0 {
		delete(c.count, conn.address)
	}
	if conn.element != nil {
		c.idle.Remove(conn.element)
		conn.element = nil
	}
}

// onState is the ConnState hook of the server.
func (c *connections) onState(nc net.Conn, state http.ConnState) {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	conn, ok := nc.(*connection)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.open[conn]; !ok {
		return
	}
	switch {
	case state == http.StateActive && conn.element != nil:
		c.idle.Remove(conn.element)
		conn.element = nil
	case state == http.StateIdle && conn.element == nil:
		conn.element = c.idle.PushBack(conn)
	}
}

// Close implements [net.Conn].
func (c *connection) Close() error {
	c.owner.mu.Lock()
	c.owner.removeLocked(c)
	c.owner.mu.Unlock()
	return c.Conn.Close()
}

// addressKey returns the address by which connections are counted.
func addressKey(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return addr.String()
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	if ip.Is4() {
		return ip.String()
	}
	return netip.PrefixFrom(ip, 64).Masked().String()
}
