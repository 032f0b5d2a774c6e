package main

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	chunkBytes  = 16 << 10
	linkBuffers = 32 << 10 // in the kernel, so that the link does not hide its bandwidth
)

// A link is a TCP proxy whose connections share one bandwidth towards the client. It connects from
// the address of the client.
type link struct {
	listener *net.TCPListener
	target   string
	rate     float64 // bytes per second; 0: no limit
	sent     atomic.Int64

	mu   sync.Mutex // guards the field below
	free time.Time  // when the bytes accepted so far have been sent
}

func newLink(ctx context.Context, target string, rate float64) (*link, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l := &link{listener: ln.(*net.TCPListener), target: target, rate: rate}
	context.AfterFunc(ctx, func() { _ = ln.Close() })
	go func() {
		for {
			conn, err := l.listener.AcceptTCP()
			if err != nil {
				return
			}
			go l.serve(ctx, conn)
		}
	}()
	return l, nil
}

func (l *link) address() string { return l.listener.Addr().String() }

func (l *link) serve(ctx context.Context, client *net.TCPConn) {
	defer client.Close()
	from := client.RemoteAddr().(*net.TCPAddr).IP
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: from}}
	conn, err := dialer.DialContext(ctx, "tcp", l.target)
	if err != nil {
		return
	}
	server := conn.(*net.TCPConn)
	defer server.Close()
	_ = client.SetWriteBuffer(linkBuffers)
	_ = server.SetReadBuffer(linkBuffers)
	go func() {
		l.copy(server, client, false)
		_ = server.CloseWrite()
	}()
	l.copy(client, server, true)
}

func (l *link) copy(to, from *net.TCPConn, limited bool) {
	b := make([]byte, chunkBytes)
	for {
		n, err := from.Read(b)
		if n > 0 && limited {
			l.wait(n)
		}
		if _, writeErr := to.Write(b[:n]); err != nil || writeErr != nil {
			return
		}
	}
}

// wait blocks until n more bytes have been sent.
func (l *link) wait(n int) {
	l.sent.Add(int64(n))
	if l.rate == 0 {
		return
	}
	l.mu.Lock()
	now := time.Now()
	if l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
	wait := l.free.Sub(now)
	l.mu.Unlock()
	time.Sleep(wait)
}
