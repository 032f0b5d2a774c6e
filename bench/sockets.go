//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// socketsName is the contestant whose speed an HTTP client in Go could reach at best.
	socketsName = "sockets alone"
	// socketWorkers is the maximum number of requests of a call in flight.
	socketWorkers = 64
	socketTimeout = time.Hour // from the first use of a connection
)

// sockets writes the bytes of requests that were prepared, and reads responses without parsing more
// than their length. It does not decode them, and has no deadline for a call, and no limits,
// retries or checks.
type sockets struct{ peers []*socketPeer }

// A socketPeer is a peer with its idle connections.
type socketPeer struct {
	address string
	request []byte

	mu   sync.Mutex // guards the field below
	idle []net.Conn
}

func newSockets(_ context.Context, e endpoints) (contestant, error) {
	var s sockets
	for _, p := range e.Peers {
		u, err := url.Parse(p.URL)
		if err != nil {
			return nil, err
		}
		request := fmt.Sprintf("GET %s/things HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n\r\n", u.Path, u.Host, e.Token)
		s.peers = append(s.peers, &socketPeer{address: u.Host, request: []byte(request)})
	}
	return s, nil
}

func (s sockets) call(ctx context.Context) (counts, error) {
	var next, results atomic.Int64
	var failure atomic.Pointer[error]
	var wg sync.WaitGroup
	for range min(socketWorkers, len(s.peers)) {
		wg.Go(func() {
			var buffer [4096]byte
			for i := next.Add(1); i <= int64(len(s.peers)); i = next.Add(1) {
				if err := s.peers[i-1].get(ctx, buffer[:]); err != nil {
					failure.Store(&err)
					return
				}
				results.Add(1)
			}
		})
	}
	wg.Wait()
	if err := failure.Load(); err != nil {
		return counts{}, *err
	}
	return counts{Results: int(results.Load())}, nil
}

func (s sockets) close() {
	for _, p := range s.peers {
		for _, conn := range p.idle {
			_ = conn.Close()
		}
	}
}

// get sends a request, and reads the response into buffer.
func (p *socketPeer) get(ctx context.Context, buffer []byte) error {
	conn, err := p.take(ctx)
	if err != nil {
		return err
	}
	if err := exchange(conn, p.request, buffer); err != nil {
		return errors.Join(err, conn.Close())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = append(p.idle, conn)
	return nil
}

func (p *socketPeer) take(ctx context.Context) (net.Conn, error) {
	p.mu.Lock()
	if last := len(p.idle) - 1; last >= 0 {
		conn := p.idle[last]
		p.idle = p.idle[:last]
		p.mu.Unlock()
		return conn, nil
	}
	p.mu.Unlock()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", p.address)
	if err != nil {
		return nil, err
	}
	return conn, conn.SetDeadline(time.Now().Add(socketTimeout))
}

func exchange(conn net.Conn, request, buffer []byte) error {
	if _, err := conn.Write(request); err != nil {
		return err
	}
	for n, length := 0, -1; length < 0 || n < length; {
		read, err := conn.Read(buffer[n:])
		if err != nil {
			return err
		}
		n += read
		if length < 0 {
			if length, err = responseLength(buffer[:n]); err != nil {
				return err
			}
		}
		if n == len(buffer) && n != length {
			return errors.New("the response is too long")
		}
	}
	return nil
}

// responseLength returns the length of the response that begins with received; -1 if its head is
// not complete. The response must have the status 200 and a Content-Length.
func responseLength(received []byte) (int, error) {
	head, _, complete := bytes.Cut(received, []byte("\r\n\r\n"))
	if !complete {
		return -1, nil
	}
	_, value, ok := bytes.Cut(head, []byte("\r\nContent-Length: "))
	if !ok || !bytes.HasPrefix(head, []byte("HTTP/1.1 200 ")) {
		return 0, fmt.Errorf("unexpected response %q", head)
	}
	digits, _, _ := bytes.Cut(value, []byte("\r\n"))
	length, err := strconv.Atoi(string(digits))
	return len(head) + len("\r\n\r\n") + length, err
}
