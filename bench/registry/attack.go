package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	hostileAddress = "127.66.6.6"
	storming       = 50 // nodes that renew at the same time
	hostileEntries = 200
	unreadLists    = 400
	idleConns      = 1500
)

// attack measures the registry while all nodes renew without a pause, and one client registers long
// entries, does not read 400 lists, and keeps 1,500 connections open.
func attack(ctx context.Context, p *process, s settings, w io.Writer) error {
	f := newFleet(p, p.address, s)
	nodes := make([]*node, s.nodes)
	for i := range nodes {
		nodes[i] = newNode(f, i)
	}
	if err := f.fill(ctx, nodes); err != nil {
		return err
	}
	rss, _ := p.memory()
	fmt.Fprintf(w, "%d nodes are registered; the registry has %d MB\n", len(nodes), rss>>20)

	ctx, cancel := context.WithTimeout(ctx, s.duration)
	defer cancel()
	health, err := watchHealth(ctx, p)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	var renewals, rejected, failed atomic.Int64
	for i := range storming {
		wg.Go(func() {
			for j := i; ctx.Err() == nil; j += storming {
				n := nodes[j%len(nodes)]
				wait, err := n.renew(ctx)
				switch {
				case err == nil:
					renewals.Add(1)
				case errors.Is(err, errRejected):
					rejected.Add(1)
					pause(ctx, min(wait, time.Second))
				case ctx.Err() == nil:
					failed.Add(1)
				}
				n.close()
			}
		})
	}
	wg.Go(func() { hostile(ctx, p) })
	wg.Wait()
	fmt.Fprintf(w, "storm: %d renewals, %d rejected with a Retry-After, %d failed\n", renewals.Load(), rejected.Load(), failed.Load())
	if err := health.print(w); err != nil {
		return err
	}
	if !p.alive() {
		fmt.Fprintln(w, "THE REGISTRY WAS KILLED")
	}
	return nil
}

// fill registers all nodes, a few at a time.
func (f *fleet) fill(ctx context.Context, nodes []*node) error {
	var wg sync.WaitGroup
	next := make(chan *node)
	var failure atomic.Pointer[error]
	for range 4 {
		wg.Go(func() {
			for n := range next {
				for try := 0; ; try++ {
					_, err := n.renew(ctx)
					if err == nil || try == 20 {
						if err != nil {
							failure.Store(&err)
						}
						break
					}
					pause(ctx, 100*time.Millisecond)
				}
				n.close()
			}
		})
	}
	for _, n := range nodes {
		next <- n
	}
	close(next)
	wg.Wait()
	if err := failure.Load(); err != nil {
		return *err
	}
	return nil
}

// hostile repeats all attacks until ctx ends.
func hostile(ctx context.Context, p *process) {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(hostileAddress)}, Timeout: 2 * time.Second}
	var open []net.Conn
	defer func() {
		for _, c := range open {
			_ = c.Close()
		}
	}()
	connect := func(request string) {
		c, err := dialer.DialContext(ctx, "tcp", p.address)
		if err != nil {
			return
		}
		open = append(open, c)
		_ = c.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = io.WriteString(c, request)
	}
	for round := 0; ctx.Err() == nil; round++ {
		for i := 0; i < hostileEntries && ctx.Err() == nil; i++ {
			postAndDrain(ctx, p, dialer, hostileBody(i))
		}
		for i := 0; i < unreadLists && ctx.Err() == nil; i++ {
			body := hostileBody(i % hostileEntries)
			connect(fmt.Sprintf("POST %s HTTP/1.1\r\nHost: mit\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s",
				resourcesPath, p.tokens[typeHostile], len(body), body))
		}
		for i := 0; i < idleConns && ctx.Err() == nil; i++ {
			connect("")
		}
		pause(ctx, 5*time.Second)
		for _, c := range open {
			_ = c.Close()
		}
		open = nil
	}
}

// hostileBody is as long as an entry may be; the registry of before wrote each "<" as six bytes.
func hostileBody(i int) string {
	location := make([]byte, 4000)
	for j := range location {
		location[j] = 'x'
		if j%8 == 0 {
			location[j] = '<'
		}
	}
	return fmt.Sprintf(`{"type":%q,"serverId":"evil-%d","clusterBaseUrl":"http://10.9.9.9","location":{"name":"%s"}}`, typeHostile, i, location)
}

func postAndDrain(ctx context.Context, p *process, dialer net.Dialer, body string) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := dialer.DialContext(ctx, "tcp", p.address)
	if err != nil {
		return
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: mit\r\nConnection: close\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s",
		resourcesPath, p.tokens[typeHostile], len(body), body)
	_, _ = io.Copy(io.Discard, c)
}
