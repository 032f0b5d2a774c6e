package etcdtest

import (
	"context"
	"net"
	"sync"
	"testing"
)

// A Proxy stands between a store and a member of etcd, and can be a bad network.
type Proxy struct {
	// Addr is where it listens.
	Addr string

	mu    sync.Mutex // guards the fields below
	cut   bool
	mute  bool
	conns map[net.Conn]bool
}

// NewProxy starts a proxy that ends with its test, and is a good network at first.
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
			wg.Go(func() { p.pass(server, client, false) })
			wg.Go(func() { p.pass(client, server, true) })
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

// pass hands on what comes from src, and ends both connections when one ends.
func (p *Proxy) pass(dst, src net.Conn, answers bool) {
	defer src.Close()
	defer dst.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		mute := p.mute && answers
		p.mu.Unlock()
		if mute {
			continue
		}
		if _, err := dst.Write(buf[:n]); err != nil {
			return
		}
	}
}

// Cut ends all connections, and lets none come about until Heal.
func (p *Proxy) Cut() { p.set(true, false) }

// Mute loses all answers, and ends nothing: requests still arrive.
func (p *Proxy) Mute() { p.set(false, true) }

// Heal makes it a good network, for new connections.
func (p *Proxy) Heal() { p.set(false, false) }

func (p *Proxy) set(cut, mute bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mute || cut { // a connection that has lost something is beyond help
		for conn := range p.conns {
			_ = conn.Close()
		}
		clear(p.conns)
	}
	p.cut, p.mute = cut, mute
}
