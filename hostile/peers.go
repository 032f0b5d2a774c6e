package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"
)

// peers are hostile peers, each at a path of its own: /hang, /gzip and /head.
type peers struct {
	server *http.Server
	url    string
	bomb   []byte // the beginning of a response of 15 MiB, compressed
}

func newPeers(ctx context.Context) (*peers, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &peers{url: "http://" + ln.Addr().String(), bomb: compress([]byte(`{"data":"`), bytes.Repeat([]byte("x"), 15*mebibyte))}
	mux := http.NewServeMux()
	mux.HandleFunc("/hang/", func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
	})
	mux.HandleFunc("/gzip/{id}/", p.serveBomb)
	mux.HandleFunc("/head/", serveEndlessHead)
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
	end := fmt.Appendf(nil, `","server":{"serverId":%q}}`, r.PathValue("id"))
	w.Header().Set("Content-Encoding", "gzip")
	_, _ = w.Write(append(bytes.Clone(p.bomb), compress(end)...))
}

// serveEndlessHead sends header fields until the node closes the connection, at most 16 MiB.
func serveEndlessHead(w http.ResponseWriter, _ *http.Request) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, err = conn.Write([]byte("HTTP/1.1 200 OK\r\n"))
	field := []byte("X-A: " + strings.Repeat("a", 1<<10) + "\r\n")
	for i := 0; err == nil && i < 16<<10; i++ {
		_, err = conn.Write(field)
	}
}
