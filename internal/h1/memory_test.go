//go:build unix

package h1

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"syscall"
	"testing"
)

// BenchmarkIdleConnection measures the memory of an idle connection to each of 1,000 and of 10,000
// peers, heap and stacks. The peers have no goroutine for theirs. What is in the heap for the two sockets alone
// is measured as well.
func BenchmarkIdleConnection(b *testing.B) {
	for _, peers := range []int{1000, 10_000} {
		benchmarkIdle(b, peers)
	}
}

func benchmarkIdle(b *testing.B, peers int) {
	b.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		b.Fatal(err)
	}
	if need := uint64(2*peers + 100); uint64(limit.Cur) < need {
		b.Logf("%d peers are not measured: that takes %d descriptors, of %d", peers, need, limit.Cur)
		return
	}
	l := listen(b)
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, l.Addr().String())
	}
	std := func(b *testing.B) http.RoundTripper {
		b.Helper()
		t := &http.Transport{DialContext: dial}
		b.Cleanup(t.CloseIdleConnections)
		return t
	}
	own := func(b *testing.B) http.RoundTripper {
		b.Helper()
		t := &Transport{Dial: dial, IdleTimeout: maxIdleTimeout}
		b.Cleanup(t.Close)
		return t
	}
	sockets := func(b *testing.B) http.RoundTripper {
		b.Helper()
		return &bareSockets{b, dial}
	}
	for name, newTransport := range map[string]func(b *testing.B) http.RoundTripper{"sockets": sockets, "h1": own, "net-http": std} {
		b.Run(fmt.Sprint(name, "/", peers), func(b *testing.B) {
			var total int64
			for range b.N {
				rt := newTransport(b)
				accepted := make([]net.Conn, 0, peers)
				before := memory()
				for i := range peers {
					done := make(chan error, 1)
					go func() {
						_, _, err := fetch(b.Context(), rt, "GET", fmt.Sprintf("http://peer-%d/", i), nil)
						done <- err
					}()
					nc, err := l.Accept()
					if err != nil {
						b.Fatal(err)
					}
					accepted = append(accepted, nc)
					if _, err := nc.Read(make([]byte, 1024)); err != nil {
						b.Fatal(err)
					}
					if _, err := io.WriteString(nc, second); err != nil {
						b.Fatal(err)
					}
					if err := <-done; err != nil {
						b.Fatal(err)
					}
				}
				total += memory() - before
				runtime.KeepAlive(rt)
				for _, nc := range accepted {
					nc.Close()
				}
			}
			b.ReportMetric(float64(total)/float64(peers*b.N), "B/conn")
		})
	}
}

// bareSockets sends just enough for a peer to respond.
type bareSockets struct {
	b    *testing.B
	dial func(context.Context, string, string) (net.Conn, error)
}

func (s *bareSockets) RoundTrip(req *http.Request) (*http.Response, error) {
	nc, err := s.dial(req.Context(), "tcp", "")
	if err != nil {
		return nil, err
	}
	s.b.Cleanup(func() { nc.Close() })
	if _, err := io.WriteString(nc, "GET"); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(nc, make([]byte, len(second))); err != nil {
		return nil, err
	}
	return &http.Response{Body: http.NoBody}, nil
}

func memory() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}
