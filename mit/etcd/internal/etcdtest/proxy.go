package etcdtest

import (
	"context"
	"net"
	"sync"
	"testing"
)

// A Proxy connects a store to a member of etcd and can fail like a network.
type Proxy struct {
	// Addr is the address it listens on.
	Addr string

	mu         sync.Mutex // guards the fields below
	cut        bool
	blackholed bool
	conns      map[net.Conn]bool
}

// NewProxy starts a healthy proxy for the duration of the test.
func NewProxy(t *testing.T, target string) *Proxy {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Addr: ln.Addr().String(), conns: map[net.Conn]bool{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			server, err := new(net.Dialer).DialContext(context.Background(), "tcp", target)
			if err != nil || !p.add(client, server) {
				_ = client.Close()
				continue
			}
			wg.Go(func() { forward(server, client, nil) })
			wg.Go(func() { forward(client, server, p.keepResponses) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		p.Cut()
		wg.Wait()
	})
	return p
}

func (p *Proxy) add(client, server net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut {
		_ = server.Close()
		return false
	}
	p.conns[client], p.conns[server] = true, true
	return true
}

// forward copies from src to dst and closes both when one fails. keep, if set, reports whether to
// forward what has been read.
func forward(dst, src net.Conn, keep func() bool) {
	defer src.Close()
	defer dst.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if err != nil {
			return
		}
		if keep != nil && !keep() {
			continue
		}
		if _, err := dst.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (p *Proxy) keepResponses() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.blackholed
}

// Cut closes all connections and refuses new ones until Heal.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut, p.blackholed = true, false
	p.closeLocked()
}

// Blackhole drops all responses but keeps connections open: requests still arrive.
func (p *Proxy) Blackhole() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.blackholed {
		p.closeLocked()
	}
	p.cut, p.blackholed = false, true
}

// Heal makes new connections work. It closes those that have lost responses.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.blackholed {
		p.closeLocked()
	}
	p.cut, p.blackholed = false, false
}

func (p *Proxy) closeLocked() {
	for conn := range p.conns {
		_ = conn.Close()
	}
	clear(p.conns)
}
