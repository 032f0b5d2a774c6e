package h1

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"net"
	"net/http/httptrace"
	"slices"
	"sync"
	"time"
)

// A Transport sends requests over HTTP/1.1 and keeps idle connections for later requests. The
// zero value is ready to use. Its fields must not be changed after the first request. All methods
// are safe for concurrent use.
type Transport struct {
	// Dial opens a connection; by default it is the DialContext of a zero net.Dialer. ctx is the
	// context of the request.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Secure means that Dial opens connections with TLS, as a [*tls.Conn]. The URLs of requests must
	// then have the scheme https, and otherwise http.
	Secure bool
	// MaxIdlePerHost bounds the idle connections to one address; 2 by default.
	MaxIdlePerHost int
	// MaxIdle bounds the idle connections to all addresses; unlimited by default. A further
	// connection is closed, and older ones stay. If older ones were closed, requests that cycle
	// through more addresses would never find an idle connection.
	MaxIdle int
	// IdleTimeout is the time after which an idle connection is closed; 4 s by default. If the peer
	// announces a timeout ("Keep-Alive: timeout=5"), four fifths of it apply instead, and at most
	// 90 s.
	IdleTimeout time.Duration
	// MaxHeadBytes bounds the head of a response, together with all 1xx responses before it;
	// 64 KiB by default.
	MaxHeadBytes int64
	// DisableKeepAlives makes each request use a connection of its own and send "Connection:
	// close".
	DisableKeepAlives bool

	readers sync.Pool // *bufio.Reader, while a response is read
	buffers sync.Pool // *bytes.Buffer, for a request
	bodies  BodyReader
	gunzips sync.Pool // *gzip.Reader

	mu       sync.Mutex
	hosts    map[string]*host
	idle     int         // idle connections of all hosts
	sweeping *time.Timer // runs while a connection is idle
	closed   bool
}

// CloseIdle closes the idle connections to the host of a URL.
func (t *Transport) CloseIdle(host string) {
	address, err := t.addressOf(host)
	if err != nil {
		return // no connection has such an address
	}
	for c := t.pop(address); c != nil; c = t.pop(address) {
		c.close()
	}
}

// CloseIdleConnections closes all idle connections.
func (t *Transport) CloseIdleConnections() {
	t.closeIdle(func(*conn) bool { return true })
}

// Close closes all idle connections. A connection in use is closed after its response has been
// read. Later requests are still sent, each on a connection of its own.
func (t *Transport) Close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.CloseIdleConnections()
}

// Idle returns the number of idle connections.
func (t *Transport) Idle() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.idle
}

const (
	// Servers of Node.js close a connection that has been idle for 5 s, the shortest timeout in
	// wide use. The transport closes it a second earlier. So the peer rarely closes a connection on
	// which a request is being sent.
	defaultIdleTimeout = 4 * time.Second
	// maxIdleTimeout bounds the time that a peer may announce. It is the idle timeout of net/http's
	// DefaultTransport.
	maxIdleTimeout     = 90 * time.Second
	sweepInterval      = time.Second
	defaultIdlePerHost = 2
	defaultMaxHead     = 64 << 10
	max1xx             = 8
	bufferSize         = 4 << 10
)

// A host has the idle connections to one address, in the order of their last use.
type host struct{ idle []*conn }

// get returns an idle connection to address or else a new one.
func (t *Transport) get(ctx context.Context, address string, trace *httptrace.ClientTrace) (*conn, error) {
	if trace != nil && trace.GetConn != nil {
		trace.GetConn(address)
	}
	c := t.takeIdle(address)
	if c == nil {
		dial := t.Dial
		if dial == nil {
			dial = new(net.Dialer).DialContext
		}
		nc, err := dial(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		c = newConn(nc, address)
	}
	if trace != nil && trace.GotConn != nil {
		info := httptrace.GotConnInfo{Conn: c.nc, Reused: c.reused, WasIdle: c.reused}
		if c.reused {
			info.IdleTime = time.Since(c.idleSince)
		}
		trace.GotConn(info)
	}
	return c, nil
}

// takeIdle returns the usable idle connection to address that was used last, or nil if there is
// none.
func (t *Transport) takeIdle(address string) *conn {
	for {
		c := t.pop(address)
		if c == nil {
			return nil
		}
		if time.Now().Before(c.expires) && c.quiet() {
			return c
		}
		c.close()
	}
}

func (t *Transport) pop(address string) *conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.hosts[address]
	if h == nil || len(h.idle) == 0 {
		return nil
	}
	last := len(h.idle) - 1
	c := h.idle[last]
	h.idle[last] = nil
	h.idle = h.idle[:last]
	t.idle--
	return c
}

// put keeps an idle connection, and reports whether there was room for it.
func (t *Transport) put(c *conn) bool {
	c.reused, c.idleSince = true, time.Now()
	c.expires = c.idleSince.Add(cmp.Or(c.idleTimeout, t.IdleTimeout, defaultIdleTimeout))
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.DisableKeepAlives || t.MaxIdle > 0 && t.idle >= t.MaxIdle {
		return false
	}
	h := t.hosts[c.address]
	if h == nil {
		if t.hosts == nil {
			t.hosts = make(map[string]*host)
		}
		h = new(host)
		t.hosts[c.address] = h
	}
	if len(h.idle) >= cmp.Or(t.MaxIdlePerHost, defaultIdlePerHost) {
		return false
	}
	h.idle = append(h.idle, c)
	t.idle++
	if t.sweeping == nil {
		t.sweeping = time.AfterFunc(sweepInterval, t.sweep)
	}
	return true
}

// sweep closes the expired connections, and schedules its next run while others are idle.
func (t *Transport) sweep() {
	now := time.Now()
	t.closeIdle(func(c *conn) bool { return !now.Before(c.expires) })
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sweeping != nil {
		t.sweeping.Reset(sweepInterval)
	}
}

// closeIdle closes the idle connections that match, and removes all hosts without an idle
// connection.
func (t *Transport) closeIdle(match func(*conn) bool) {
	t.mu.Lock()
	var removed []*conn
	for address, h := range t.hosts {
		h.idle = slices.DeleteFunc(h.idle, func(c *conn) bool {
			matches := match(c)
			if matches {
				removed = append(removed, c)
			}
			return matches
		})
		if len(h.idle) == 0 {
			delete(t.hosts, address)
		}
	}
	t.idle -= len(removed)
	if t.idle == 0 && t.sweeping != nil {
		t.sweeping.Stop()
		t.sweeping = nil
	}
	t.mu.Unlock()
	for _, c := range removed {
		c.close()
	}
}

func (t *Transport) reader(c *conn) *bufio.Reader {
	if br, _ := t.readers.Get().(*bufio.Reader); br != nil {
		br.Reset(c)
		return br
	}
	return bufio.NewReaderSize(c, bufferSize)
}

func (t *Transport) buffer() *bytes.Buffer {
	if buf, _ := t.buffers.Get().(*bytes.Buffer); buf != nil {
		return buf
	}
	return new(bytes.Buffer)
}

// recycle puts a buffer into the pool, unless it is too large for most requests.
func (t *Transport) recycle(buf *bytes.Buffer) {
	if buf.Cap() <= maxClaimed {
		buf.Reset()
		t.buffers.Put(buf)
	}
}
