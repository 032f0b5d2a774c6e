package h1

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"testing"
)

// BenchmarkIdleConnection measures the memory of an idle connection to each of 1,000 and of 10,000
// peers, heap and stacks. The peers are in another process. The memory of the sockets alone is
// measured, too.
func BenchmarkIdleConnection(b *testing.B) {
	for _, peers := range []int{1000, 10_000} {
		benchmarkIdle(b, peers)
	}
}

func benchmarkIdle(b *testing.B, peers int) {
	b.Helper()
	address := startPeer(b)
	dial := func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
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
				before := memory()
				for i := range peers {
					if _, _, err := fetch(b.Context(), rt, "GET", fmt.Sprintf("http://peer-%d/", i), nil); err != nil {
						b.Fatal(err)
					}
				}
				total += memory() - before
				runtime.KeepAlive(rt)
			}
			b.ReportMetric(float64(total)/float64(peers*b.N), "B/conn")
		})
	}
}

// peerVariable makes the test binary play the peers of BenchmarkIdleConnection.
const peerVariable = "H1_TEST_PEER"

// startPeer starts a process that responds on any number of connections, and returns its address.
func startPeer(b *testing.B) (address string) {
	b.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(b.Context()), os.Args[0])
	cmd.Env = append(os.Environ(), peerVariable+"=1")
	stdin, err := cmd.StdinPipe() // its end is the end of the peer
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
	})
	if _, err := fmt.Fscanln(stdout, &address); err != nil {
		b.Fatal(err)
	}
	return address
}

// runPeer is the process of startPeer. It ends with its standard input.
func runPeer() error {
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(os.Stdout, l.Addr()); err != nil {
		return err
	}
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			go respondOnce(nc)
		}
	}()
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// respondOnce keeps the connection open until the other side closes it.
func respondOnce(nc net.Conn) {
	defer nc.Close()
	if _, err := nc.Read(make([]byte, 1024)); err != nil {
		return
	}
	if _, err := io.WriteString(nc, second); err != nil {
		return
	}
	_, _ = io.Copy(io.Discard, nc)
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
