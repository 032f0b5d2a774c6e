package command

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"go.uber.org/zap"
)

// startLimited serves until the test ends. A request for /wait sends to waiting, and blocks until
// release is closed.
func startLimited(t *testing.T, total, perAddress int) (limited *connections, waiting, release chan struct{}) {
	t.Helper()
	inner, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	waiting, release = make(chan struct{}), make(chan struct{})
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			waiting <- struct{}{}
			<-release
		}
		_, _ = io.WriteString(w, "{}")
	})
	ctx, cancel := context.WithCancel(t.Context())
	limited = limitConnections(inner, total, perAddress)
	served := make(chan error, 1)
	go func() { served <- serve(ctx, limited, nil, handler, zap.NewNop()) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return limited, waiting, release
}

// dial connects from an address of the loopback network.
func dial(t *testing.T, from, to string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 5 * time.Second}
	conn, err := d.DialContext(t.Context(), "tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func request(t *testing.T, conn net.Conn, path string) error {
	t.Helper()
	if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: mit\r\n\r\n"); err != nil {
		return err
	}
	if path == "/wait" {
		return nil
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return err
}

// awaitIdle waits until all connections are idle, except those with a request for /wait. A client
// has a response a moment before the server is done with the request.
func (c *connections) awaitIdle(t *testing.T, busy int) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		c.mu.Lock()
		active := len(c.open) - c.idle.Len()
		c.mu.Unlock()
		if active == busy {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d requests in progress, want %d", active, busy)
		}
	}
}

func closed(conn net.Conn) bool {
	_, err := conn.Read(make([]byte, 1))
	return err != nil
}

// Idle connections do not keep others out, whatever their number and address.
func TestIdleConnectionsAreReplaced(t *testing.T) {
	for name, test := range map[string]struct{ total, perAddress int }{
		"in total":    {8, 0},
		"per address": {0, 8},
	} {
		t.Run(name, func(t *testing.T) {
			limited, _, _ := startLimited(t, test.total, test.perAddress)
			address := limited.Addr().String()
			var idle []net.Conn
			for range 8 {
				conn := dial(t, "127.0.0.1", address)
				if err := request(t, conn, "/"); err != nil {
					t.Fatal(err)
				}
				limited.awaitIdle(t, 0)
				idle = append(idle, conn)
			}
			if err := request(t, idle[0], "/"); err != nil { // now the second one has waited longest
				t.Fatal(err)
			}
			for range 100 {
				limited.awaitIdle(t, 0)
				if err := request(t, dial(t, "127.0.0.1", address), "/"); err != nil {
					t.Fatalf("a new connection: %v", err)
				}
			}
			if !closed(idle[1]) {
				t.Error("the connection that has waited longest is open")
			}
		})
	}
}

// Requests in progress are not interrupted. Their address gets no further connections; others do.
func TestBusyConnectionsStay(t *testing.T) {
	limited, waiting, release := startLimited(t, 10, 4)
	address := limited.Addr().String()
	var busy []net.Conn
	for range 4 {
		conn := dial(t, "127.0.0.1", address)
		if err := request(t, conn, "/wait"); err != nil {
			t.Fatal(err)
		}
		busy = append(busy, conn)
		<-waiting
	}
	if request(t, dial(t, "127.0.0.1", address), "/") == nil {
		t.Error("a fifth connection of one address is served")
	}
	for range 20 {
		limited.awaitIdle(t, 4)
		if err := request(t, dial(t, "127.0.0.2", address), "/"); err != nil {
			t.Errorf("another address: %v", err)
		}
	}
	close(release)
	for _, conn := range busy {
		if res, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || res.Body.Close() != nil {
			t.Errorf("a request in progress: %v", err)
		}
	}
}

func TestAddressKey(t *testing.T) {
	for addr, want := range map[string]string{
		"10.0.0.1:80":            "10.0.0.1",
		"[::ffff:10.0.0.1]:80":   "10.0.0.1",
		"[2001:db8:0:1::5]:4000": "2001:db8:0:1::/64",
	} {
		tcp, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := addressKey(tcp); got != want {
			t.Errorf("addressKey(%s) = %s, want %s", addr, got, want)
		}
	}
}
