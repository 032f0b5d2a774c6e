package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mimiktech/cluster/internal/freeport"
)

// peers are hostile peers, each at a path of its own: /hang, /gzip and /head.
type peers struct {
	server   *http.Server
	url      string
	refusing string // a URL that refuses connections
	bomb     []byte // the beginning of a response of 15 MiB, compressed

	bombs, heads         atomic.Int64 // responses that were begun
	whole                atomic.Int64 // heads that were read to their end
	hanging, mostHanging atomic.Int64 // requests
}

// calls returns how many calls the peers of a kind have got.
func (p *peers) calls(kind string) int64 {
	if kind == "gzip" {
		return p.bombs.Load()
	}
	return p.heads.Load()
}

func newPeers(ctx context.Context) (*peers, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	unused, err := freeport.Next(ctx)
	if err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	p := &peers{url: "http://" + ln.Addr().String(), refusing: fmt.Sprintf("http://127.0.0.1:%d", unused)}
	p.bomb = compress([]byte(`{"data":"`), bytes.Repeat([]byte("x"), 15*mebibyte))
	mux := http.NewServeMux()
	mux.HandleFunc("/hang/", func(_ http.ResponseWriter, r *http.Request) {
		n := p.hanging.Add(1)
		defer p.hanging.Add(-1)
		for most := p.mostHanging.Load(); n > most && !p.mostHanging.CompareAndSwap(most, n); {
			most = p.mostHanging.Load()
		}
		<-r.Context().Done()
	})
	mux.HandleFunc("/gzip/{id}/", p.serveBomb)
	mux.HandleFunc("/head/", p.serveEndlessHead)
	p.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = p.server.Serve(ln) }() // ends with close
	return p, nil
}

func (p *peers) close() { _ = p.server.Close() }

// compress returns parts as a member of a gzip file. Members may follow each other.
func compress(parts ...[]byte) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	for _, part := range parts {
		_, _ = z.Write(part) // a buffer does not fail
	}
	_ = z.Close()
	return b.Bytes()
}

// serveBomb sends a valid response of 15 MiB in about 15 KiB.
func (p *peers) serveBomb(w http.ResponseWriter, r *http.Request) {
	p.bombs.Add(1)
	end := fmt.Appendf(nil, `","server":{"serverId":%q}}`, r.PathValue("id"))
	w.Header().Set("Content-Encoding", "gzip")
	_, _ = w.Write(append(bytes.Clone(p.bomb), compress(end)...))
}

// serveEndlessHead sends header fields until the node closes the connection, at most 16 MiB.
func (p *peers) serveEndlessHead(w http.ResponseWriter, _ *http.Request) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	p.heads.Add(1)
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, err = conn.Write([]byte("HTTP/1.1 200 OK\r\n"))
	field := []byte("X-A: " + strings.Repeat("a", 1<<10) + "\r\n")
	for i := 0; err == nil && i < 16<<10; i++ {
		_, err = conn.Write(field)
	}
	if err == nil {
		p.whole.Add(1)
	}
}
