package main

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/mimiktech/cluster/internal/h1"
)

// pipes returns a transport that sends requests over connections in memory: with internal/h1, as
// nodes do, to servers of net/http. Each server passes its requests on to next. So the node finds
// its connections closed or silent, instead of a fault that only says so.
func (s *simulation) pipes(next http.RoundTripper) http.RoundTripper {
	l := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	ctx, cancel := context.WithCancel(s.t.Context())
	server := &http.Server{
		// Without the whole body of a request, a server does not notice that the client has gone.
		BaseContext: func(net.Listener) context.Context { return ctx },
		Handler:     http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { forward(w, r, next) }),
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, pipeKey{}, conn.(*pipeConn).pipe)
		},
	}
	s.work.Go(func() { _ = server.Serve(l) }) // it returns when l is closed
	t := &h1.Transport{Dial: l.dial}
	s.closePipes = append(s.closePipes, func() {
		t.Close()
		cancel()
		_ = server.Close()
	})
	return t
}

// A pipe is what both ends of a connection share.
type pipe struct {
	requests atomic.Int64
	failure  atomic.Pointer[error] // why the connection was closed without a response
}

type pipeKey struct{}

// A pipeConn is an end of a connection.
type pipeConn struct {
	net.Conn
	*pipe
}

// Read returns the failure at the end, as if the connection could not be dialed.
func (c *pipeConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if failure := c.failure.Load(); errors.Is(err, io.EOF) && failure != nil {
		err = *failure
	}
	return n, err
}

// forward sends a request to next. If there is no response, or only a part of one, it closes the
// connection.
func forward(w http.ResponseWriter, r *http.Request, next http.RoundTripper) {
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host, out.RequestURI = "http", r.Host, ""
	p := r.Context().Value(pipeKey{}).(*pipe)
	out.Close = p.requests.Add(1) == 1 // the connection is new
	control := http.NewResponseController(w)
	resp, err := next.RoundTrip(out)
	if err != nil {
		p.failure.Store(&err)
	} else {
		defer resp.Body.Close()
		if resp.StatusCode == http.StatusSwitchingProtocols {
			switchProtocols(control)
			return
		}
		maps.Copy(w.Header(), resp.Header)
		w.WriteHeader(resp.StatusCode)
		_ = control.Flush()
		_, err = io.Copy(w, resp.Body)
	}
	if err != nil {
		if conn, _, err := control.Hijack(); err == nil {
			conn.Close()
		}
	}
}

// switchProtocols responds with a 101, and then waits until the client closes the connection.
func switchProtocols(control *http.ResponseController) {
	conn, _, err := control.Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n")
	_, _ = io.Copy(io.Discard, conn)
}

// A pipeListener accepts the other ends of the connections that it dials.
type pipeListener struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	shared := new(pipe)
	select {
	case l.conns <- &pipeConn{server, shared}:
		return &pipeConn{client, shared}, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Accept implements [net.Listener].
func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements [net.Listener].
func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements [net.Listener].
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{} }
