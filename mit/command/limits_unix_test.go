//go:build unix

package command

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
)

// A connection beyond a limit of the program is closed if all others have a request in progress,
// and replaces an idle one otherwise.
func TestConnectionLimits(t *testing.T) {
	t.Run("per address", func(t *testing.T) {
		const limit = 3
		env := start(t, Command{}, "--max-connections-per-address", fmt.Sprint(limit))
		checkConnectionLimit(t, env["base"], limit, func(int) string { return "127.0.0.2" })
		health(t, dial(t, "127.0.0.3", hostOf(env["base"])), true) // another address is not affected
	})
	t.Run("in total", func(t *testing.T) {
		const limit = 5
		env := start(t, Command{}, "--max-connections", fmt.Sprint(limit), "--max-connections-per-address", "2")
		checkConnectionLimit(t, env["base"], limit, func(i int) string { return fmt.Sprint("127.0.1.", 1+i) })
	})
	t.Run("by descriptors", func(t *testing.T) {
		restore := limitDescriptors(t)
		env := start(t, Command{})
		restore() // this process has the other ends of the connections, too
		checkConnectionLimit(t, env["base"], descriptors/8*7, func(i int) string { return fmt.Sprint("127.0.1.", 1+i%8) })
	})
}

// checkConnectionLimit opens as many connections as the limit allows, from the addresses that from
// returns, and then more.
func checkConnectionLimit(t *testing.T, base string, limit int, from func(i int) string) {
	t.Helper()
	host := hostOf(base)
	var busy []net.Conn
	for i := range limit {
		conn := dial(t, from(i), host)
		beginRequest(t, conn)
		busy = append(busy, conn)
	}
	for i := range 3 {
		health(t, dial(t, from(limit+i), host), false)
	}
	for _, conn := range busy { // completes the request, so that the connection is idle
		if _, err := io.WriteString(conn, "{}"); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		if res.Body.Close(); res.StatusCode != http.StatusBadRequest {
			t.Errorf("a request in progress: %s", res.Status)
		}
	}
	for i := range 2 * limit {
		health(t, dial(t, from(limit+i), host), true)
	}
	if !closed(busy[0]) {
		t.Error("the connection that has waited longest is open")
	}
}

// beginRequest sends the header of a request, and returns when the program waits for its body.
func beginRequest(t *testing.T, conn net.Conn) {
	t.Helper()
	if _, err := io.WriteString(conn, "POST "+issuerPath+" HTTP/1.1\r\nHost: mit\r\nContent-Type: application/json\r\n"+
		"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	const want = "HTTP/1.1 100 Continue\r\n\r\n"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Fatalf("%q, %v", got, err)
	}
}

// health checks whether a request over a connection is served.
func health(t *testing.T, conn net.Conn, served bool) {
	t.Helper()
	if err := request(t, conn, registryPath+"/health"); (err == nil) != served {
		t.Errorf("a connection from %s: %v, want it served: %v", conn.LocalAddr(), err, served)
	}
}

func hostOf(base string) string { return strings.TrimPrefix(base, "http://") }

// descriptors is a number that is enough for the program to start.
const descriptors = 64

// limitDescriptors lets this process open no more than descriptors files, until restore is called.
func limitDescriptors(t *testing.T) (restore func()) {
	t.Helper()
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	lowered := before
	lowered.Cur = descriptors
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lowered); err != nil {
		t.Fatal(err)
	}
	restore = func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(restore)
	return restore
}
