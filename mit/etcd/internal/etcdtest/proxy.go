package etcdtest

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// A Proxy connects a store to a member of etcd and can fail like a network.
type Proxy struct {
	// Addr is the address it listens on.
	Addr string

	mu         sync.Mutex // guards the fields below
	target     string
	cut        bool
	blackholed bool
	delay      time.Duration // of responses
	rate       int           // of responses, in bytes per second; 0: no limit
	conns      map[net.Conn]bool
}

// NewProxy starts a healthy proxy for the duration of the test.
func NewProxy(t *testing.T, target string) *Proxy {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Addr: ln.Addr().String(), target: target, conns: map[net.Conn]bool{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			server, err := new(net.Dialer).DialContext(context.Background(), "tcp", p.to())
			if err != nil || !p.add(client, server) {
				_ = client.Close()
				continue
			}
			wg.Go(func() { forward(server, client) })
			wg.Go(func() { p.respond(client, server) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		p.Cut()
		wg.Wait()
	})
	return p
}

// Retarget closes all connections. New ones lead to another member.
func (p *Proxy) Retarget(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
	p.closeLocked()
}

// Slow delays responses, and limits them to so many bytes per second; 0: no limit.
func (p *Proxy) Slow(delay time.Duration, rate int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay, p.rate = delay, rate
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

func (p *Proxy) to() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.target
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

// forward copies from src to dst and closes both when one fails.
func forward(dst, src net.Conn) {
	defer src.Close()
	defer dst.Close()
	_, _ = io.Copy(dst, src)
}

// A chunk is a part of a response, to be delivered at some time.
type chunk struct {
	at    time.Time
	bytes []byte
}

// respond copies responses with the faults of the proxy. A delay holds up each response, but not
// those after it.
func (p *Proxy) respond(client, server net.Conn) {
	defer server.Close()
	defer client.Close()
	chunks := make(chan chunk, 64)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for c := range chunks {
			time.Sleep(time.Until(c.at))
			if rate := p.limit(); rate > 0 {
				time.Sleep(time.Duration(len(c.bytes)) * time.Second / time.Duration(rate))
			}
			if _, err := client.Write(c.bytes); err != nil {
				_ = server.Close()
			}
		}
	})
	defer close(chunks)
	buf := make([]byte, 4<<10)
	for {
		n, err := server.Read(buf)
		if err != nil {
			return
		}
		if keep, delay := p.response(); keep {
			chunks <- chunk{time.Now().Add(delay), bytes.Clone(buf[:n])}
		}
	}
}

func (p *Proxy) response() (keep bool, delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.blackholed, p.delay
}

func (p *Proxy) limit() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rate
}

func (p *Proxy) closeLocked() {
	for conn := range p.conns {
		_ = conn.Close()
	}
	clear(p.conns)
}
