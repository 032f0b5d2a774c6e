package h1

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// answering dials peers that send response to every request, and nothing more.
func answering(response string) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go rawPeer{}.serve(server, []string{response}, false)
		return client, nil
	}
}

func get(ctx context.Context, tr *Transport) (Response, error) {
	call, err := NewCall("GET", nil, nil, 1<<20)
	if err != nil {
		return Response{}, err
	}
	return tr.Do(ctx, call, "peer", "/")
}

func TestStricterThanNetHTTP(t *testing.T) {
	const fine = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
	for name, test := range map[string]struct{ response, want string }{
		"protocol switch":         {"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "switches protocols"},
		"too many 1xx":            {strings.Repeat("HTTP/1.1 102 P\r\n\r\n", max1xx) + fine, "more than 7 1xx responses"},
		"1xx too large":           {strings.Repeat("HTTP/1.1 102 P\r\nA: "+strings.Repeat("b", 20<<10)+"\r\n\r\n", 4) + fine, "too large"},
		"head too large":          {withLength("A: "+strings.Repeat("b", 70<<10)+"\r\n", "hi"), "too large"},
		"head that does not end":  {"HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", 20<<10), "too large"},
		"line that does not end":  {strings.Repeat("x", 1<<20), "too large"},
		"status below 100":        {"HTTP/1.1 099 OK\r\nContent-Length: 2\r\n\r\nhi", "status 99"},
		"head just small enough":  {withLength("A: "+strings.Repeat("b", 60<<10)+"\r\n", "hi"), ""},
		"body larger than a head": {withLength("", strings.Repeat("b", 100<<10)), ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tr := &Transport{Dial: answering(test.response)}
				defer tr.Close()
				_, err := get(t.Context(), tr)
				if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
					t.Errorf("got %v, want %q", err, test.want)
				}
				if err != nil && tr.Idle() != 0 {
					t.Error("the connection is used again")
				}
			})
		})
	}
}

// A hangingPeer answers one request on each connection, and closes it when another arrives.
func hangingPeer(requests *atomic.Int32) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go func() {
			defer server.Close()
			br := bufio.NewReader(server)
			for i := range 2 {
				req, err := http.ReadRequest(br)
				if err != nil {
					return
				}
				if _, err := io.Copy(io.Discard, req.Body); err != nil {
					return
				}
				requests.Add(1)
				response := second
				if req.Method == http.MethodHead {
					response = strings.TrimSuffix(second, "second")
				}
				if i == 0 {
					_, _ = io.WriteString(server, response)
				}
			}
		}()
		return client, nil
	}
}

// A request that may be sent twice is retried as in net/http: if its connection had been used
// before, and no response has begun.
func TestRetry(t *testing.T) {
	for _, method := range []string{"", "GET", "HEAD", "OPTIONS", "TRACE", "POST", "PUT", "DELETE", "PATCH"} {
		for _, key := range []string{"", "Idempotency-Key", "X-Idempotency-Key"} {
			for _, body := range []string{"", "memory", "stream"} {
				run := func(own bool) (requests int32, class string) {
					synctest.Test(t, func(t *testing.T) {
						var n atomic.Int32
						var rt http.RoundTripper = &http.Transport{DialContext: hangingPeer(&n)}
						if own {
							rt = &Transport{Dial: hangingPeer(&n)}
						}
						for range 2 {
							var r io.Reader
							if body != "" {
								r = strings.NewReader(body)
							}
							if body == "stream" {
								r = io.MultiReader(r)
							}
							req, err := http.NewRequestWithContext(t.Context(), method, "http://peer/", r)
							if err != nil {
								t.Fatal(err)
							}
							req.ContentLength = int64(len(body))
							if key != "" {
								req.Header.Set(key, "1")
							}
							resp, err := rt.RoundTrip(req)
							class = classOf(err)
							if err == nil {
								_, _ = io.Copy(io.Discard, resp.Body)
								resp.Body.Close()
							}
						}
						requests = n.Load()
						rt.(interface{ CloseIdleConnections() }).CloseIdleConnections()
					})
					return requests, class
				}
				want, wantClass := run(false)
				if got, class := run(true); got != want || class != wantClass {
					t.Errorf("%s, %q, body %q: the peer got %d requests, %q; of net/http %d, %q", method, key, body, got, class, want, wantClass)
				}
			}
		}
	}
}

// A peer that closes an idle connection, or sends something on it, costs no request.
func TestStaleConnections(t *testing.T) {
	for name, wrap := range map[string]func(net.Conn) net.Conn{
		"socket":           func(nc net.Conn) net.Conn { return nc },
		"without a socket": func(nc net.Conn) net.Conn { return struct{ net.Conn }{nc} },
	} {
		for what, stale := range map[string]func(net.Conn){
			"closed": func(nc net.Conn) { nc.Close() },
			"reset":  func(nc net.Conn) { _ = nc.(*net.TCPConn).SetLinger(0); nc.Close() },
			"half":   func(nc net.Conn) { _ = nc.(*net.TCPConn).CloseWrite() },
			"bytes":  func(nc net.Conn) { _, _ = io.WriteString(nc, withLength("", "foreign")) },
		} {
			t.Run(name+"/"+what, func(t *testing.T) {
				l := listen(t)
				conns := make(chan net.Conn, 2)
				go func() {
					for {
						nc, err := l.Accept()
						if err != nil {
							return
						}
						conns <- nc
						go rawPeer{}.serve(nc, []string{second}, false)
					}
				}()
				tr := &Transport{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
					nc, err := new(net.Dialer).DialContext(ctx, network, l.Addr().String())
					if err != nil {
						return nil, err
					}
					return wrap(nc), nil
				}}
				defer tr.Close()
				call, err := NewCall("POST", nil, nil, 100) // which is not sent twice
				if err != nil {
					t.Fatal(err)
				}
				for i := range 2 {
					resp, err := tr.Do(t.Context(), call, "peer", "/")
					if err != nil || string(resp.Body) != "second" {
						t.Fatalf("request %d: %q, %v", i, resp.Body, err)
					}
					if i == 0 {
						stale(<-conns)
						time.Sleep(20 * time.Millisecond) // the loopback takes its time to deliver
					}
				}
				if len(conns) != 1 {
					t.Error("the stale connection was used")
				}
			})
		}
	}
}

// The context ends each stage at once.
func TestContextEndsEachStage(t *testing.T) {
	peers := map[string]func(ctx context.Context, network, address string) (net.Conn, error){
		"dial": func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
		"write": func(context.Context, string, string) (net.Conn, error) { // nothing reads
			client, _ := net.Pipe()
			return client, nil
		},
		"head":      answering("HTTP/1.1 200 OK\r\n"),
		"1xx":       answering("HTTP/1.1 100 Continue\r\n\r\n"),
		"body":      answering("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"),
		"long body": answering("HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\nabc"),
		"chunks":    answering("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"),
		"gzip":      answering("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + zipped("abc")[:10]),
	}
	why := errors.New("why")
	for stage, dial := range peers {
		for _, cause := range []error{why, context.DeadlineExceeded} {
			for _, size := range []int{0, 100, 1 << 20} {
				for _, kind := range []string{"RoundTrip", "Do"} {
					synctest.Test(t, func(t *testing.T) {
						tr := &Transport{Dial: dial}
						defer tr.Close()
						ctx, cancel := context.WithCancelCause(t.Context())
						if errors.Is(cause, why) {
							time.AfterFunc(time.Minute, func() { cancel(why) })
						} else {
							var stop context.CancelFunc
							ctx, stop = context.WithTimeout(ctx, time.Minute)
							defer stop()
						}
						begin := time.Now()
						err := exchangeWith(ctx, tr, kind, size)
						if !errors.Is(err, cause) {
							t.Errorf("%s of %d bytes in %s: %v, not %v", kind, size, stage, err, cause)
						}
						if took := time.Since(begin); took != time.Minute {
							t.Errorf("%s of %d bytes in %s took %v", kind, size, stage, took)
						}
						if tr.Idle() != 0 {
							t.Error("the connection is idle")
						}
						cancel(nil)
					})
				}
			}
		}
	}
}

func exchangeWith(ctx context.Context, tr *Transport, kind string, size int) error {
	if kind == "Do" {
		call, err := NewCall("PUT", nil, make([]byte, size), 1<<30)
		if err != nil {
			return err
		}
		_, err = tr.Do(ctx, call, "peer", "/")
		return err
	}
	_, _, err := fetch(ctx, tr, "PUT", "http://peer/", strings.NewReader(strings.Repeat("x", size)))
	return err
}

// A request whose body waits for the caller's data ends with its context.
func TestCancelWhileCallerWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := &Transport{Dial: func(context.Context, string, string) (net.Conn, error) {
			client, server := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, server) }()
			return client, nil
		}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		body, w := io.Pipe()
		_, _, err := fetch(ctx, tr, "POST", "http://peer/", body)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if _, err := w.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("the body is not closed: %v", err)
		}
	})
}

// An error of the request's body is not an error of the peer.
func TestBodyError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := &Transport{Dial: answering(second)}
		defer tr.Close()
		mine := errors.New("mine")
		r, w := io.Pipe()
		w.CloseWithError(mine)
		if _, _, err := fetch(t.Context(), tr, "POST", "http://peer/", r); !errors.Is(err, mine) {
			t.Error(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), "POST", "http://peer/", strings.NewReader("abc"))
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = 4
		if _, err := tr.RoundTrip(req); err == nil || !strings.Contains(err.Error(), "ContentLength=4 with Body length 3") { //nolint:bodyclose // there is none
			t.Error(err)
		}
		if tr.Idle() != 0 {
			t.Error("a connection with half a request on it is idle")
		}
	})
}

// A response that the peer sends before it reads the request is read.
func TestResponseBeforeRequest(t *testing.T) {
	for _, size := range []int{0, 100, 1 << 20} {
		for _, kind := range []string{"RoundTrip", "Do"} {
			synctest.Test(t, func(t *testing.T) {
				tr := &Transport{Dial: func(context.Context, string, string) (net.Conn, error) {
					client, server := net.Pipe()
					go func() {
						_, _ = server.Read(make([]byte, 1))
						_, _ = io.WriteString(server, second)
					}()
					return client, nil
				}}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				begin := time.Now()
				if err := exchangeWith(ctx, tr, kind, size); err != nil {
					t.Errorf("%s of %d bytes: %v", kind, size, err)
				}
				if took := time.Since(begin); took > time.Second || tr.Idle() != 0 {
					t.Errorf("%s of %d bytes took %v, and the connection was kept: %v", kind, size, took, tr.Idle() != 0)
				}
			})
		}
	}
}

// The connection of a request that asks for its end is closed, whatever the peer sends.
func TestRequestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := &Transport{Dial: answering(second)}
		defer tr.Close()
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://peer/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Close = true
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.ReadAll(resp.Body); err != nil || tr.Idle() != 0 {
			t.Errorf("%v, %d idle", err, tr.Idle())
		}
	})
}
