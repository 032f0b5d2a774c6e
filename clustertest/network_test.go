package clustertest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster/clustertest"
)

func TestHosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n clustertest.Network
		res := fetch(t, &n, "b", "http://a:1")
		if !isNotFound(res.err) {
			t.Errorf("unknown host: got %v, want a failed lookup", res.err)
		}
		n.Handle("a:1", respondWith("one"))
		fetch(t, &n, "b", "http://a:1").want(t, "one", nil, 0)
		fetch(t, &n, "b", "https://a:1").want(t, "one", nil, 0)
		n.Handle("a:1", respondWith("two"))
		fetch(t, &n, "b", "http://a:1").want(t, "two", nil, 0)
		if res := fetch(t, &n, "b", "http://a:2"); !isNotFound(res.err) {
			t.Errorf("another port: got %v, want a failed lookup", res.err)
		}

		n.Handle("a:1", nil)
		res = fetch(t, &n, "b", "http://a:1")
		res.want(t, "", syscall.ECONNREFUSED, 0)
		if !isOp(res.err, "dial") {
			t.Errorf("removed host: got %v, want a failed dial", res.err)
		}
	})
}

func TestDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n clustertest.Network
		n.Handle("a", respondWith("a"))
		n.Handle("b", respondWith("b"))
		n.Down("a")
		fetch(t, &n, "b", "http://a").want(t, "", syscall.ECONNREFUSED, 0)
		fetch(t, &n, "a", "http://b").want(t, "", syscall.ENETUNREACH, 0)
		fetch(t, &n, "a", "http://a").want(t, "", syscall.ENETUNREACH, 0)
		fetch(t, &n, "c", "http://b").want(t, "b", nil, 0)
		n.Handle("a", respondWith("second a"))
		fetch(t, &n, "b", "http://a").want(t, "", syscall.ECONNREFUSED, 0)
		n.Heal()
		fetch(t, &n, "b", "http://a").want(t, "", syscall.ECONNREFUSED, 0)
		n.Up("a")
		fetch(t, &n, "b", "http://a").want(t, "second a", nil, 0)
		fetch(t, &n, "a", "http://b").want(t, "b", nil, 0)
	})
}

func TestDownResetsRequestsInFlight(t *testing.T) {
	kill := map[string]func(*clustertest.Network){
		"the server is down":     func(n *clustertest.Network) { n.Down("a") },
		"the client is down":     func(n *clustertest.Network) { n.Down("b") },
		"the handler is removed": func(n *clustertest.Network) { n.Remove("a") },
	}
	handlers := map[string]http.HandlerFunc{
		"before the response": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"during the response": func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		},
	}
	for how, kill := range kill {
		for when, h := range handlers {
			t.Run(how+" "+when, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var n clustertest.Network
					n.Handle("a", h)
					time.AfterFunc(time.Second, func() { kill(&n) })
					fetch(t, &n, "b", "http://a").want(t, "", syscall.ECONNRESET, time.Second)
				})
			})
		}
	}
}

func TestCuts(t *testing.T) {
	// The result by route: "lost" requests hang, "unanswered" ones are handled and hang, all others
	// succeed.
	type routes map[string]string
	tests := []struct {
		name string
		do   func(*clustertest.Network)
		want routes
	}{
		{"nothing", func(*clustertest.Network) {}, nil},
		{
			"cut", func(n *clustertest.Network) { n.Cut("a", "b") },
			routes{"a b": "lost", "b a": "lost"},
		},
		{
			"cut off from all", func(n *clustertest.Network) { n.Cut("a", clustertest.Any) },
			routes{"a b": "lost", "b a": "lost", "a c": "lost", "c a": "lost"},
		},
		{
			"cut one way", func(n *clustertest.Network) { n.CutOneWay("a", "b") },
			routes{"a b": "lost", "b a": "unanswered"},
		},
		{
			"all requests to one host", func(n *clustertest.Network) { n.CutOneWay(clustertest.Any, "b") },
			routes{"a b": "lost", "c b": "lost", "b a": "unanswered", "b c": "unanswered"},
		},
		{
			"cut off from itself", func(n *clustertest.Network) { n.Cut("a", "a") }, nil,
		},
		{
			"mended", func(n *clustertest.Network) { n.Cut("a", "b"); n.CutOneWay("b", "c"); n.Mend("b", "a") },
			routes{"b c": "lost", "c b": "unanswered"},
		},
		{
			"partition", func(n *clustertest.Network) { n.Partition([]string{"a", "b"}, []string{"c"}) },
			routes{"a c": "lost", "b c": "lost", "c a": "lost", "c b": "lost"},
		},
		{
			"one host in no group", func(n *clustertest.Network) { n.Partition([]string{"a"}, []string{"c"}) },
			routes{"a c": "lost", "c a": "lost"},
		},
		{
			"one host in each group", func(n *clustertest.Network) { n.Partition([]string{"a"}, []string{"b"}, []string{"c"}) },
			routes{"a b": "lost", "a c": "lost", "b a": "lost", "b c": "lost", "c a": "lost", "c b": "lost"},
		},
		{
			"two partitions",
			func(n *clustertest.Network) {
				n.Partition([]string{"a"}, []string{"b"})
				n.Partition([]string{"a"}, []string{"c"})
			},
			routes{"a b": "lost", "a c": "lost", "b a": "lost", "c a": "lost"},
		},
		{
			"healed",
			func(n *clustertest.Network) {
				n.Cut("a", "b")
				n.CutOneWay("a", clustertest.Any)
				n.Partition([]string{"a"}, []string{"c"})
				n.Heal()
			},
			nil,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var n clustertest.Network
				var handled sync.Map
				hosts := []string{"a", "b", "c"}
				for _, host := range hosts {
					n.Handle(host, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
						from, _, _ := strings.Cut(r.RemoteAddr, ":")
						handled.Store(from+" "+host, true)
					}))
				}
				tt.do(&n)
				for _, from := range hosts {
					for _, to := range hosts {
						route := from + " " + to
						res := fetch(t, &n, from, "http://"+to)
						_, reached := handled.Load(route)
						got := ""
						switch {
						case errors.Is(res.err, context.DeadlineExceeded) && res.took == timeout && reached:
							got = "unanswered"
						case errors.Is(res.err, context.DeadlineExceeded) && res.took == timeout:
							got = "lost"
						case res.err != nil || res.took != 0:
							t.Errorf("%s: %v after %v", route, res.err, res.took)
						}
						if got != tt.want[route] {
							t.Errorf("%s: got %q, want %q", route, got, tt.want[route])
						}
					}
				}
			})
		})
	}
}

// The response is lost even though the cut has been mended when the handler returns.
func TestCutWhileHandled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n clustertest.Network
		n.Handle("a", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(2 * time.Second) }))
		time.AfterFunc(time.Second, func() { n.Cut("a", "b") })
		time.AfterFunc(3*time.Second, n.Heal)
		fetch(t, &n, "b", "http://a").want(t, "", context.DeadlineExceeded, timeout)
		fetch(t, &n, "b", "http://a").want(t, "", nil, 2*time.Second)
	})
}

func TestFaultOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n clustertest.Network
		var met []string
		mark := func(name string) clustertest.Fault {
			return func(next http.RoundTripper) http.RoundTripper {
				return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
					met = append(met, name)
					return next.RoundTrip(req)
				})
			}
		}
		n.Handle("a", respondWith("a"))
		n.Fault(clustertest.Any, clustertest.Any, mark("any any"))
		n.Fault(clustertest.Any, "a", mark("any a"))
		n.Fault("b", clustertest.Any, mark("b any"))
		n.Fault("b", "a", mark("old"))
		n.Fault("b", "a", mark("b a"))
		n.Fault("b", "c", mark("b c"))
		check := func(from string, want ...string) {
			t.Helper()
			met = nil
			fetch(t, &n, from, "http://a").want(t, "a", nil, 0)
			if !slices.Equal(met, want) {
				t.Errorf("met %q, want %q", met, want)
			}
		}
		check("b", "b a", "b any", "any a", "any any")
		check("c", "any a", "any any")
		n.Heal()
		n.Fault("b", clustertest.Any, nil)
		n.Fault(clustertest.Any, clustertest.Any, nil)
		check("b", "b a", "any a")
	})
}

func TestFaultWithoutContext(t *testing.T) {
	var n clustertest.Network
	n.Handle("a", respondWith("a"))
	n.Fault("b", "a", func(next http.RoundTripper) http.RoundTripper {
		return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
			return next.RoundTrip(req.WithContext(context.Background()))
		})
	})
	if res := fetch(t, &n, "b", "http://a"); res.err == nil || !strings.Contains(res.err.Error(), "from b to a") {
		t.Errorf("got %v, want an error that names the fault", res.err)
	}
}

// A handler sees the same request from a Network and from net/http.
func TestRequestsAreThoseOfNetHTTP(t *testing.T) {
	type key struct{}
	requests := map[string]func() *http.Request{
		"get": func() *http.Request {
			return httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://HOST/a%2Fb//c?x=1&y=%20#f", nil)
		},
		"root": func() *http.Request {
			return httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://HOST", nil)
		},
		"slash": func() *http.Request {
			return httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://HOST//x/y?", nil)
		},
		"post": func() *http.Request {
			req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://HOST/p", strings.NewReader("body"))
			req.Header = http.Header{"X-A": {"1", "2"}, "User-Agent": {"me"}, "Content-Length": {"99"}, "Host": {"no"}}
			return req
		},
		"chunked": func() *http.Request {
			req := httptest.NewRequestWithContext(t.Context(), http.MethodPut, "http://HOST/p", io.MultiReader(strings.NewReader("body")))
			req.Host, req.Header["User-Agent"] = "other.example", []string{""}
			return req
		},
		"head": func() *http.Request {
			return httptest.NewRequestWithContext(t.Context(), http.MethodHead, "http://HOST/", nil)
		},
	}
	// seen copies all fields that a handler sees, except the address of the client.
	seen := func(got *http.Request) http.HandlerFunc {
		return func(_ http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			if r.Context().Value(key{}) != nil {
				t.Error("the handler sees the client's context")
			}
			*got = http.Request{
				Method: r.Method, URL: r.URL, Proto: r.Proto, ProtoMajor: r.ProtoMajor, ProtoMinor: r.ProtoMinor,
				Header: r.Header, Host: r.Host, ContentLength: r.ContentLength, TransferEncoding: r.TransferEncoding,
				RequestURI: r.RequestURI, Body: io.NopCloser(bytes.NewReader(body)),
			}
		}
	}
	for name, request := range requests {
		t.Run(name, func(t *testing.T) {
			var real, ours http.Request
			server := httptest.NewServer(seen(&real))
			defer server.Close()
			var n clustertest.Network
			host := server.Listener.Addr().String()
			n.Handle(host, seen(&ours))
			transports := []http.RoundTripper{&http.Transport{DisableCompression: true, DisableKeepAlives: true}, n.Transport("b")}
			for _, rt := range transports {
				req := request()
				req.RequestURI, req.URL.Host = "", host
				if req.Host == "HOST" {
					req.Host = ""
				}
				resp, err := rt.RoundTrip(req.WithContext(context.WithValue(t.Context(), key{}, 1)))
				if err != nil {
					t.Fatal(err)
				}
				resp.Body.Close()
			}
			delete(real.Header, "Connection") // of DisableKeepAlives
			realBody, _ := io.ReadAll(real.Body)
			ourBody, _ := io.ReadAll(ours.Body)
			real.Body, ours.Body = nil, nil
			if !reflect.DeepEqual(ours, real) {
				t.Errorf("got  %+v\nwant %+v", ours, real)
			}
			if !bytes.Equal(ourBody, realBody) {
				t.Errorf("got body %q, want %q", ourBody, realBody)
			}
		})
	}
}

// A client sees the same response from a Network and from net/http.
func TestResponsesAreThoseOfNetHTTP(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", 10_000)
	handlers := map[string]http.HandlerFunc{
		"nothing":     func(http.ResponseWriter, *http.Request) {},
		"short":       func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") },
		"json":        func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "{}", http.StatusTeapot) },
		"longer":      func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, long[:10_000]) },
		"long":        func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, long) },
		"no content":  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) },
		"not changed": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) },
		"declared": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "5")
			fmt.Fprint(w, "12345")
			if _, err := io.WriteString(w, "6"); !errors.Is(err, http.ErrContentLength) {
				t.Errorf("write beyond the declared length: got %v", err)
			}
		},
		"short of declared": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "50")
			fmt.Fprint(w, "12345")
		},
		"headers too late": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X", "1")
			w.WriteHeader(http.StatusAccepted)
			w.WriteHeader(http.StatusOK)
			w.Header().Set("X", "2")
			fmt.Fprint(w, "x")
		},
		"flushed": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, "1")
			w.(http.Flusher).Flush()
			fmt.Fprint(w, "2")
		},
		"no body allowed": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNoContent)
			if _, err := io.WriteString(w, "x"); !errors.Is(err, http.ErrBodyNotAllowed) {
				t.Errorf("body with 204: got %v", err)
			}
		},
		"early hints": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusEarlyHints)
			fmt.Fprint(w, "x")
		},
		"deadlines": func(w http.ResponseWriter, _ *http.Request) {
			err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(time.Minute))
			if err != nil && !errors.Is(err, http.ErrNotSupported) {
				t.Error(err)
			}
		},
		"too large": func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1)); err == nil {
				t.Error("read a body of 4 bytes with a limit of 1")
			}
		},
		"panic": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"panic after the header": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, "half")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		},
		"flushed at once": func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			w.(http.Flusher).Flush()
			fmt.Fprint(w, "late")
		},
		"encoded": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "x")
			fmt.Fprint(w, "<html>")
		},
	}
	for name, h := range handlers {
		for _, method := range []string{http.MethodPost, http.MethodHead} {
			t.Run(name+" "+method, func(t *testing.T) {
				if name == "too large" && method == http.MethodHead {
					t.Skip("a HEAD request has no body")
				}
				server := httptest.NewUnstartedServer(h)
				server.Config.ErrorLog = log.New(io.Discard, "", 0)
				server.Start()
				defer server.Close()
				var n clustertest.Network
				host := server.Listener.Addr().String()
				n.Handle(host, h)
				var got [2]string
				for i, rt := range []http.RoundTripper{&http.Transport{DisableKeepAlives: true, DisableCompression: true}, n.Transport("b")} {
					var body io.Reader
					if method == http.MethodPost {
						body = strings.NewReader("body")
					}
					req, _ := http.NewRequestWithContext(t.Context(), method, "http://"+host, body)
					resp, err := rt.RoundTrip(req)
					if err != nil {
						got[i] = fmt.Sprint(errors.Is(err, io.EOF))
						continue
					}
					b, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					maps.DeleteFunc(resp.Header, func(k string, _ []string) bool { return k == "Date" || k == "Connection" })
					got[i] = fmt.Sprintln(resp.Status, resp.Proto, resp.ContentLength, resp.TransferEncoding, resp.Header,
						len(b), err, resp.Body == http.NoBody, resp.Request == req)
				}
				if got[0] != got[1] {
					t.Errorf("got  %s\nwant %s", got[1], got[0])
				}
			})
		}
	}
}

func TestHandlerCrashes(t *testing.T) {
	crashes := map[string]func(){
		"aborts":     func() { panic(http.ErrAbortHandler) },
		"panics":     func() { panic("a bug") },
		"panics nil": func() { panic(nil) },
		"exits":      runtime.Goexit, // what t.FailNow does
	}
	for name, crash := range crashes {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var n clustertest.Network
				n.Handle("a", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { crash() }))
				n.Handle("b", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					fmt.Fprint(w, "half")
					w.(http.Flusher).Flush()
					crash()
				}))
				fetch(t, &n, "c", "http://a").want(t, "", io.EOF, 0)
				fetch(t, &n, "c", "http://b").want(t, "half", io.ErrUnexpectedEOF, 0)
			})
		})
	}
}

// A canceled request returns at once, although its handler has not returned. The handler's context
// ends.
func TestCanceledRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n clustertest.Network
		cause := errors.New("canceled by the test")
		var returned time.Time
		n.Handle("a", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			time.Sleep(time.Hour)
			if _, err := io.WriteString(w, "x"); !errors.Is(err, syscall.EPIPE) {
				t.Errorf("write after the client has gone: got %v", err)
			}
			if _, err := r.Body.Read(make([]byte, 1)); err == nil {
				t.Error("the body can still be read")
			}
			returned = time.Now()
		}))
		start := time.Now()
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(cause) })
		req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://a", strings.NewReader("body"))
		_, err := n.Transport("b").RoundTrip(req) //nolint:bodyclose // an error has no body
		if !errors.Is(err, cause) || time.Since(start) != time.Second {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if got := returned.Sub(start); got != time.Hour+time.Second {
			t.Errorf("the handler returned after %v", got)
		}
	})
}

func TestClientTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n clustertest.Network
		n.Handle("a", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
		client := n.Client("b")
		client.Timeout = timeout
		start := time.Now()
		_, err := client.Get("http://a") //nolint:noctx,bodyclose // the client's own timeout is under test
		if te, ok := errors.AsType[interface {
			error
			Timeout() bool
		}](err); !ok || !te.Timeout() || time.Since(start) != timeout {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
	})
}

func TestResponseAtTheDeadlineIsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n clustertest.Network
		n.Handle("a", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(timeout) }))
		n.Handle("b", respondWith("b"))
		n.Fault(clustertest.Any, "b", clustertest.Delay(timeout))
		for range 50 {
			fetch(t, &n, "c", "http://a").want(t, "", context.DeadlineExceeded, timeout)
			fetch(t, &n, "c", "http://b").want(t, "", context.DeadlineExceeded, timeout)
		}
	})
}

func TestEndlessResponse(t *testing.T) {
	ends := map[string]func(resp *http.Response, cancel func()){
		"closed":   func(resp *http.Response, _ func()) { resp.Body.Close() },
		"canceled": func(_ *http.Response, cancel func()) { cancel() },
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var n clustertest.Network
				var wrote atomic.Int64
				done := make(chan error, 1)
				n.Handle("a", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					for {
						k, err := w.Write(make([]byte, 1000))
						wrote.Add(int64(k))
						if err != nil {
							done <- err
							return
						}
					}
				}))
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://a", nil)
				resp, err := n.Client("b").Do(req)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.CopyN(io.Discard, resp.Body, 1<<20); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if got := wrote.Load(); got > 1<<20+100<<10 {
					t.Errorf("the handler wrote %d bytes ahead", got-1<<20)
				}
				end(resp, cancel)
				if err := <-done; err == nil {
					t.Error("the handler got no error")
				}
				synctest.Wait()
				if _, err := resp.Body.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
					t.Errorf("read after the end: got %v", err)
				}
				resp.Body.Close()
			})
		})
	}
}

// A closer counts its Close calls.
type closer struct {
	io.Reader
	closed atomic.Int64
}

func (c *closer) Close() error { c.closed.Add(1); return nil }

func TestRequestBodyIsClosedOnce(t *testing.T) {
	faults := map[string]clustertest.Fault{
		"none": nil, "refuse": clustertest.Refuse, "hang": clustertest.Hang, "reset": clustertest.Reset,
		"delay": clustertest.Delay(time.Second), "delay beyond the timeout": clustertest.Delay(time.Hour),
		"status": clustertest.Status(500), "other host": clustertest.RouteTo("b"), "unknown host": clustertest.RouteTo("x"),
		"truncate": clustertest.Truncate(1), "stall": clustertest.Stall(1),
	}
	for name, f := range faults {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var n clustertest.Network
				n.Handle("a", respondWith("a"))
				n.Handle("b", respondWith("b"))
				n.Fault(clustertest.Any, clustertest.Any, f)
				ctx, cancel := context.WithTimeout(t.Context(), timeout)
				defer cancel()
				body := &closer{Reader: strings.NewReader("body")}
				req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://a", body)
				if resp, err := n.Transport("c").RoundTrip(req); err == nil {
					resp.Body.Close()
				}
				if got := body.closed.Load(); got != 1 {
					t.Errorf("closed %d times", got)
				}
			})
		})
	}
}

func TestInvalidRequests(t *testing.T) {
	var n clustertest.Network
	valid := func() *http.Request {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://a", nil)
		return req
	}
	spoil := map[string]func(*http.Request){
		"no url":    func(req *http.Request) { req.URL = nil },
		"no header": func(req *http.Request) { req.Header = nil },
		"scheme":    func(req *http.Request) { req.URL.Scheme = "ftp" },
		"no host":   func(req *http.Request) { req.URL.Host = "" },
	}
	for name, spoil := range spoil {
		req := valid()
		spoil(req)
		if _, err := n.Transport("b").RoundTrip(req); err == nil || isNotFound(err) { //nolint:bodyclose // an error has no body
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestObserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n clustertest.Network
		n.Handle("a", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			time.Sleep(time.Second)
			w.WriteHeader(http.StatusCreated)
			fmt.Fprint(w, "result")
		}))
		fetch(t, &n, "b", "http://a") // before the first observer
		var mu sync.Mutex
		var got []clustertest.Exchange
		stop := n.Observe(func(x clustertest.Exchange) {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, x)
		})
		others := 0
		stopOthers := n.Observe(func(clustertest.Exchange) { others++ })

		start := time.Now()
		fetch(t, &n, "b", "http://a/p/q?r=s")
		fetch(t, &n, "b", "http://nowhere")
		stopOthers()
		n.Fault("b", "a", clustertest.Truncate(2))
		fetch(t, &n, "b", "http://a")
		n.Fault("b", "a", clustertest.Status(503))
		fetch(t, &n, "b", "http://a")
		stop()
		fetch(t, &n, "b", "http://a") // after the last observer

		if others != 2 {
			t.Errorf("the second observer saw %d exchanges, want 2", others)
		}
		if len(got) != 4 {
			t.Fatalf("got %d exchanges, want 4", len(got))
		}
		if x := got[0]; x.From != "b" || x.To != "a" || x.Method != http.MethodPost || x.Path != "/p/q" || x.Query != "r=s" ||
			x.Status != 201 || x.Err != nil || x.Sent != 4 || x.Received != 6 || !x.Start.Equal(start) || x.Duration != time.Second {
			t.Errorf("successful exchange: got %+v", x)
		}
		if x := got[1]; x.To != "nowhere" || x.Status != 0 || !isNotFound(x.Err) || x.Sent != 0 || x.Duration != 0 {
			t.Errorf("failed exchange: got %+v", x)
		}
		if x := got[2]; x.Status != 201 || !errors.Is(x.Err, io.ErrUnexpectedEOF) || x.Received != 2 {
			t.Errorf("truncated exchange: got %+v", x)
		}
		if x := got[3]; x.To != "a" || x.Status != 503 || x.Err != nil || x.Sent != 0 {
			t.Errorf("exchange with a response of a fault: got %+v", x)
		}
	})
}

// For the race detector. The bubble checks that no goroutine is left.
func TestConcurrentUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n clustertest.Network
		hosts := make([]string, 10)
		for i := range hosts {
			hosts[i] = fmt.Sprint("host-", i)
			n.Handle(hosts[i], http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(w, r.Body)
				_, _ = w.Write(make([]byte, 100<<10))
			}))
		}
		var observed atomic.Int64
		n.Observe(func(clustertest.Exchange) { observed.Add(1) })
		n.Fault(clustertest.Any, clustertest.Any, clustertest.Chain(
			clustertest.Delay(10*time.Millisecond), clustertest.WithProbability(.1, 1, clustertest.Hang)))
		var wg sync.WaitGroup
		for i, from := range hosts {
			wg.Go(func() {
				for k := range 20 {
					fetch(t, &n, from, "http://"+hosts[(i+k)%len(hosts)])
				}
			})
			wg.Go(func() {
				for range 20 {
					time.Sleep(15 * time.Millisecond)
					n.Cut(from, hosts[0])
					n.Down(hosts[1])
					time.Sleep(15 * time.Millisecond)
					n.Heal()
					n.Up(hosts[1])
				}
			})
		}
		wg.Wait()
		if observed.Load() != 200 {
			t.Errorf("observed %d exchanges, want 200", observed.Load())
		}
	})
}

func BenchmarkRoundTrip(b *testing.B) {
	var n clustertest.Network
	n.Handle("a", respondWith(`{"data":1}`))
	client := n.Client("b")
	req, _ := http.NewRequestWithContext(b.Context(), http.MethodGet, "http://a/x", nil)
	b.ReportAllocs()
	for b.Loop() {
		resp, err := client.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
}
