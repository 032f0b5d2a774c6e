package h1

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster/internal/testrun"
)

// occupy has n requests in flight at once, so that as many connections are idle afterwards.
func occupy(t *testing.T, tr *Transport, host string, n int) {
	t.Helper()
	call, err := NewCall("GET", nil, nil, 100)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			if _, err := tr.Do(t.Context(), call, host, "/"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// slow dials peers that take a second to respond.
func slow(dialed *atomic.Int32, fields string) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) {
		dialed.Add(1)
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			buf := make([]byte, 1<<16)
			for {
				if _, err := server.Read(buf); err != nil {
					return
				}
				time.Sleep(time.Second)
				if _, err := io.WriteString(server, withLength(fields, "second")); err != nil {
					return
				}
			}
		}()
		return client, nil
	}
}

func TestIdleLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dialed atomic.Int32
		tr := &Transport{Dial: slow(&dialed, ""), MaxIdlePerHost: 3, MaxIdle: 5}
		defer tr.Close()
		occupy(t, tr, "a", 4)
		if n := tr.Idle(); n != 3 {
			t.Errorf("%d idle, 3 allowed for one host", n)
		}
		occupy(t, tr, "b", 4)
		if n := tr.Idle(); n != 5 {
			t.Errorf("%d idle, 5 allowed in all", n)
		}
		occupy(t, tr, "a", 3) // those that were there first are there still
		if n := dialed.Load(); n != 8 {
			t.Errorf("%d connections, want 8", n)
		}
		tr.CloseIdle("a:80")
		if n := tr.Idle(); n != 2 {
			t.Errorf("%d idle after those of one host were closed", n)
		}
		tr.CloseIdleConnections()
		if n := tr.Idle(); n != 0 {
			t.Errorf("%d idle after all were closed", n)
		}
		occupy(t, tr, "a", 1)
		if n := tr.Idle(); n != 1 {
			t.Errorf("%d idle after another request", n)
		}
		tr.Close()
		occupy(t, tr, "a", 1)
		if n := tr.Idle(); n != 0 {
			t.Errorf("%d idle after Close", n)
		}
	})
}

func TestIdleTimeout(t *testing.T) {
	for _, test := range []struct {
		fields string
		idle   time.Duration // of the transport
		want   time.Duration
	}{
		{"", 0, 4 * time.Second},
		{"", time.Minute, time.Minute},
		{"Keep-Alive: timeout=5\r\n", 0, 4 * time.Second},
		{"Keep-Alive: max=9, Timeout=60\r\n", 0, 48 * time.Second},
		{"Keep-Alive: timeout=65535\r\n", 0, 90 * time.Second},
		{"Keep-Alive: timeout=1\r\n", 0, 800 * time.Millisecond},
		{"Keep-Alive: timeout=99999999999999999999\r\n", 0, 4 * time.Second},
		{"Keep-Alive: timeout=0\r\n", 0, 4 * time.Second},
	} {
		for _, wait := range []time.Duration{test.want - 2*probeTime, test.want} {
			synctest.Test(t, func(t *testing.T) {
				var dialed atomic.Int32
				tr := &Transport{Dial: slow(&dialed, test.fields), IdleTimeout: test.idle}
				defer tr.Close()
				occupy(t, tr, "a", 1)
				time.Sleep(wait)
				occupy(t, tr, "a", 1)
				if want := 1 + int32(wait/test.want); dialed.Load() != want {
					t.Errorf("%q: %d connections after %v, want %d", test.fields, dialed.Load(), wait, want)
				}
				time.Sleep(test.want + sweepInterval)
				synctest.Wait()
				if tr.Idle() != 0 || tr.sweeping != nil || len(tr.hosts) != 0 {
					t.Errorf("%q: %d idle, and the sweep goes on: %v", test.fields, tr.Idle(), tr.sweeping != nil)
				}
			})
		}
	}
}

func TestLastUsedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dialed atomic.Int32
		tr := &Transport{Dial: slow(&dialed, ""), MaxIdlePerHost: 9}
		defer tr.Close()
		occupy(t, tr, "a", 3)
		newest := func() *conn { idle := tr.hosts["a:80"].idle; return idle[len(idle)-1] }
		last := newest()
		for range 5 {
			occupy(t, tr, "a", 1)
			if newest() != last {
				t.Fatal("another connection was used")
			}
		}
		if tr.Idle() != 1 { // the others were not used for five seconds
			t.Errorf("%d idle", tr.Idle())
		}
	})
}

func TestDisableKeepAlives(t *testing.T) {
	var closing atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Close {
			closing.Add(1)
		}
	}))
	defer srv.Close()
	tr := &Transport{DisableKeepAlives: true}
	host := strings.TrimPrefix(srv.URL, "http://")
	occupy(t, tr, host, 2)
	if _, _, err := fetch(t.Context(), tr, "GET", srv.URL, nil); err != nil {
		t.Fatal(err)
	}
	if closing.Load() != 3 || tr.Idle() != 0 {
		t.Errorf("%d of 3 requests asked to close, %d connections are idle", closing.Load(), tr.Idle())
	}
}

func TestTrace(t *testing.T) {
	srv := echo(t)
	for _, kind := range []string{"RoundTrip", "Do"} {
		tr := new(Transport)
		var seen []string
		note := func(what string) { seen = append(seen, what) }
		trace := &httptrace.ClientTrace{
			GetConn:              func(string) { note("GetConn") },
			GotConn:              func(i httptrace.GotConnInfo) { note("GotConn " + strconv.FormatBool(i.Reused)) },
			ConnectStart:         func(string, string) { note("ConnectStart") },
			ConnectDone:          func(string, string, error) { note("ConnectDone") },
			WroteHeaders:         func() { note("WroteHeaders") },
			WroteRequest:         func(httptrace.WroteRequestInfo) { note("WroteRequest") },
			GotFirstResponseByte: func() { note("GotFirstResponseByte") },
			PutIdleConn:          func(err error) { note("PutIdleConn " + strconv.FormatBool(err == nil)) },
		}
		tr.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, strings.TrimPrefix(srv.URL, "http://"))
		}
		for range 2 {
			if err := exchangeWith(httptrace.WithClientTrace(t.Context(), trace), tr, kind, 10); err != nil {
				t.Fatal(err)
			}
		}
		rest := []string{"WroteHeaders", "WroteRequest", "GotFirstResponseByte", "PutIdleConn true"}
		want := append([]string{"GetConn", "ConnectStart", "ConnectDone", "GotConn false"}, rest...)
		want = append(append(want, "GetConn", "GotConn true"), rest...)
		if !slices.Equal(seen, want) {
			t.Errorf("%s: %q", kind, seen)
		}
		tr.Close()
	}
}

// Over real sockets, requests that are canceled at any moment leave no goroutine, no descriptor,
// and no byte of another response.
func TestRandomCancellation(t *testing.T) {
	httptest.NewServer(nil).Close() // makes the runtime open descriptors that stay open
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		reply := strings.Repeat(r.URL.Query().Get("id")+" ", 1+len(body)/10)
		if n, _ := strconv.Atoi(r.URL.Query().Get("id")); n%3 == 0 {
			w.(http.Flusher).Flush()
		}
		_, _ = io.WriteString(w, reply)
	}))
	tr := &Transport{MaxIdlePerHost: 16}
	host := strings.TrimPrefix(srv.URL, "http://")
	requests, callers := 10_000, 16
	if !raceEnabled && !testrun.Full(t, "a thousand requests instead of ten thousand") {
		requests = 1000
	}
	var failed, read atomic.Int32
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for id := i; id < requests; id += callers {
				size := []int{0, 100, 5000, 100_000}[rand.N(4)]
				ctx, cancel := context.WithCancel(t.Context())
				if rand.N(2) == 0 {
					time.AfterFunc(rand.N(400*time.Microsecond), cancel)
				}
				got, err := requestID(ctx, tr, host, id, size)
				cancel()
				if err != nil {
					failed.Add(1)
					continue
				}
				read.Add(1)
				if want := strings.Repeat(strconv.Itoa(id)+" ", 1+size/10); got != want {
					t.Errorf("request %d of %d bytes got %.50q", id, size, got)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d requests were canceled, %d were not", failed.Load(), read.Load())
	if failed.Load() < int32(requests)/20 || read.Load() < int32(requests)/20 {
		t.Error("too few of one kind")
	}
	tr.Close()
	srv.Close()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if runtime.NumGoroutine() <= goroutines && openFiles(t) <= files {
			break
		}
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, %d before; %d files, %d before\n%s", runtime.NumGoroutine(), goroutines,
				openFiles(t), files, buf[:runtime.Stack(buf, true)])
		}
	}
}

// requestID sends a request by one of three ways.
func requestID(ctx context.Context, tr *Transport, host string, id, size int) (string, error) {
	uri := fmt.Sprintf("/?id=%d", id)
	if id%2 == 0 {
		call, err := NewCall("POST", nil, make([]byte, size), 1<<20)
		if err != nil {
			return "", err
		}
		resp, err := tr.Do(ctx, call, host, uri)
		return string(resp.Body), err
	}
	var body io.Reader = strings.NewReader(strings.Repeat("x", size))
	if id%4 == 1 {
		body = io.MultiReader(body)
	}
	_, got, err := fetch(ctx, tr, "POST", "http://"+host+uri, body)
	return got, err
}

// openFiles returns the number of open descriptors, or 0 if the system does not list them.
func openFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(files)
}

// Closing a body ends a Read in progress.
func TestCloseDuringRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := &Transport{Dial: answering("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")}
		defer tr.Close()
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://peer/", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req) //nolint:bodyclose // it is closed below
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error)
		go func() {
			_, err := io.ReadAll(resp.Body)
			ended <- err
		}()
		synctest.Wait()
		if _, err := resp.Body.Read(make([]byte, 1)); err == nil {
			t.Error("two reads at once")
		}
		resp.Body.Close()
		if err := <-ended; err == nil {
			t.Error("the read succeeded")
		}
		if _, err := resp.Body.Read(make([]byte, 1)); err == nil {
			t.Error("a closed body was read")
		}
	})
}
