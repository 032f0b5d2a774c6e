package clustertest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptrace"
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

func TestFaults(t *testing.T) {
	long := strings.Repeat("x", 100<<10)
	tests := []struct {
		name    string
		fault   clustertest.Fault
		url     string // default: http://a
		body    string
		err     error
		took    time.Duration
		handled bool
	}{
		{name: "none", body: "from a", handled: true},
		{name: "refuse", fault: clustertest.Refuse, err: syscall.ECONNREFUSED},
		{name: "hang", fault: clustertest.Hang, err: context.DeadlineExceeded, took: timeout},
		{name: "reset", fault: clustertest.Reset, err: syscall.ECONNRESET, handled: true},
		{name: "reset of a long response", fault: clustertest.Reset, url: "http://long", err: syscall.ECONNRESET, handled: true},
		{name: "break", fault: clustertest.Break, err: syscall.ECONNRESET},
		{name: "no descriptors", fault: clustertest.FailDial(syscall.EMFILE), err: syscall.EMFILE},
		{name: "delay", fault: clustertest.Delay(time.Second), body: "from a", took: time.Second, handled: true},
		{name: "delay beyond the timeout", fault: clustertest.Delay(time.Minute), err: context.DeadlineExceeded, took: timeout},
		{name: "answer", fault: clustertest.Answer(respondWith("garbage")), body: "garbage"},
		{name: "answer for an unknown host", fault: clustertest.Answer(respondWith("garbage")), url: "http://x", body: "garbage"},
		{name: "route to another host", fault: clustertest.RouteTo("b"), body: "from b"},
		{name: "route to a removed host", fault: clustertest.RouteTo("gone"), err: syscall.ECONNREFUSED},
		{name: "truncate", fault: clustertest.Truncate(4), body: "from", err: io.ErrUnexpectedEOF, handled: true},
		{name: "truncate to nothing", fault: clustertest.Truncate(0), err: io.ErrUnexpectedEOF, handled: true},
		{name: "truncate to the full length", fault: clustertest.Truncate(6), body: "from a", handled: true},
		{name: "truncate to more than the length", fault: clustertest.Truncate(60), body: "from a", handled: true},
		{name: "truncate a long response", fault: clustertest.Truncate(99 << 10), url: "http://long", body: long[:99<<10], err: io.ErrUnexpectedEOF, handled: true},
		{name: "stall", fault: clustertest.Stall(4), body: "from", err: context.DeadlineExceeded, took: timeout, handled: true},
		{name: "stall after the headers", fault: clustertest.Stall(0), err: context.DeadlineExceeded, took: timeout, handled: true},
		{name: "stall at the end", fault: clustertest.Stall(6), body: "from a", handled: true},
		{name: "stall a long response", fault: clustertest.Stall(99 << 10), url: "http://long", body: long[:99<<10], err: context.DeadlineExceeded, took: timeout, handled: true},
		{name: "the first request is on a new connection", fault: clustertest.Reused(clustertest.Break), body: "from a", handled: true},
		{
			name:  "chain",
			fault: clustertest.Chain(clustertest.Delay(time.Second), clustertest.Delay(time.Second), clustertest.Refuse, clustertest.Delay(time.Second)),
			err:   syscall.ECONNREFUSED, took: 2 * time.Second,
		},
		{name: "empty chain", fault: clustertest.Chain(), body: "from a", handled: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var n clustertest.Network
				handled := false
				handle := func(host, body string) {
					n.Handle(host, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
						handled = true
						fmt.Fprint(w, body)
					}))
				}
				handle("a", "from a")
				handle("long", long)
				n.Handle("b", respondWith("from b"))
				n.Remove("gone")
				n.Fault("c", clustertest.Any, tt.fault)
				url := tt.url
				if url == "" {
					url = "http://a"
				}
				fetch(t, &n, "c", url).want(t, tt.body, tt.err, tt.took)
				synctest.Wait()
				if handled != tt.handled {
					t.Errorf("handled: %v, want %v", handled, tt.handled)
				}
				fetch(t, &n, "elsewhere", "http://a").want(t, "from a", nil, 0)
			})
		})
	}
}

func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n clustertest.Network
		n.Fault(clustertest.Any, "a", clustertest.Status(http.StatusServiceUnavailable))
		res := fetch(t, &n, "b", "http://a")
		if res.status != 503 || res.header.Get("Content-Type") != "application/json" {
			t.Errorf("got %d %s", res.status, res.header)
		}
		var envelope map[string]any
		if err := json.Unmarshal([]byte(res.body), &envelope); err != nil {
			t.Fatal(err)
		}
		if envelope["statusCode"] != 503.0 || envelope["title"] != "Service Unavailable" || envelope["message"] == "" {
			t.Errorf("got %s", res.body)
		}
	})
}

func TestRouteToKeepsTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n clustertest.Network
		n.Handle("b", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			fmt.Fprint(w, strings.Join([]string{r.Host, r.RequestURI, r.RemoteAddr, string(body)}, " "))
		}))
		n.Fault("c:1", "a:1", clustertest.RouteTo("b"))
		fetch(t, &n, "c:1", "http://a:1/p?q").want(t, "a:1 /p?q c:49152 ping", nil, 0)

		n.Cut("c:1", "a:1") // the host that RouteTo replaces
		fetch(t, &n, "c:1", "http://a:1/p?q").want(t, "a:1 /p?q c:49152 ping", nil, 0)
		n.Cut("c:1", "b")
		fetch(t, &n, "c:1", "http://a:1/p?q").want(t, "", context.DeadlineExceeded, timeout)
	})
}

// The request has no deadline: only closing the body ends the read.
func TestClosingAStalledBodyEndsTheRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n clustertest.Network
		n.Handle("a", respondWith("response"))
		n.Fault("b", "a", clustertest.Stall(2))
		req, _ := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://a", nil)
		resp, err := n.Client("b").Do(req)
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Second, func() { resp.Body.Close() })
		if got, err := io.ReadAll(resp.Body); string(got) != "re" || err == nil {
			t.Errorf("got %q, %v", got, err)
		}
	})
}

// A read of the body ends with the body, not with the context.
func TestUpgrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n clustertest.Network
		n.Fault("b", "a", clustertest.Upgrade)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://a", nil)
		start := time.Now()
		resp, err := n.Transport("b").RoundTrip(req)
		if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("got %v, %v", resp, err)
		}
		time.AfterFunc(time.Hour, func() { resp.Body.Close() })
		if _, err := io.ReadAll(resp.Body); err == nil || time.Since(start) != time.Hour {
			t.Errorf("the body ended after %v: %v", time.Since(start), err)
		}
	})
}

func TestReused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n clustertest.Network
		n.Handle("a", respondWith("a"))
		n.Handle("b", respondWith("b"))
		n.Fault("c", clustertest.Any, clustertest.Reused(clustertest.Break))
		get := func(host string, newConn bool) (reused bool, err error) {
			trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { reused = info.Reused }}
			req, _ := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), http.MethodGet, "http://"+host, nil)
			req.Close = newConn
			resp, err := n.Transport("c").RoundTrip(req)
			if err == nil {
				resp.Body.Close()
			}
			return reused, err
		}
		for _, step := range []struct {
			host    string
			newConn bool
			reused  bool
		}{{"a", true, false}, {"a", false, false}, {"a", false, true}, {"b", false, false}, {"a", true, false}, {"a", false, true}} {
			reused, err := get(step.host, step.newConn)
			if reused != step.reused || errors.Is(err, syscall.ECONNRESET) != step.reused {
				t.Errorf("%+v: got reused %v, %v", step, reused, err)
			}
		}
	})
}

// The client of a late request has given up. The host handles it nevertheless.
func TestLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n clustertest.Network
		var mu sync.Mutex // the first two requests are handled at the same instant
		var handled []string
		n.Handle("a", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			mu.Lock()
			defer mu.Unlock()
			handled = append(handled, r.URL.Path+" "+string(body))
		}))
		release := make(chan struct{})
		n.Fault("b", "a", clustertest.Late(release))
		fetch(t, &n, "b", "http://a/first").want(t, "", context.DeadlineExceeded, timeout)
		time.AfterFunc(timeout/2, func() { close(release) })
		fetch(t, &n, "b", "http://a/second").want(t, "", nil, timeout/2)
		fetch(t, &n, "b", "http://a/third").want(t, "", nil, 0)
		synctest.Wait()
		slices.Sort(handled)
		if want := []string{"/first ping", "/second ping", "/third ping"}; !slices.Equal(handled, want) {
			t.Errorf("handled %q, want %q", handled, want)
		}
	})
}

func TestLateRequestToASilentHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n clustertest.Network
		n.Handle("a", respondWith("a"))
		release := make(chan struct{})
		n.Fault("b", "a", clustertest.Late(release))
		fetch(t, &n, "b", "http://a").want(t, "", context.DeadlineExceeded, timeout)
		n.Cut("b", "a")
		close(release)
		time.Sleep(2 * time.Minute) // the bubble ends only if the late request does
	})
}

func TestSuspend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n clustertest.Network
		handled := 0
		n.Handle("a", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { handled++ }))
		release := make(chan struct{})
		n.Fault("b", clustertest.Any, clustertest.Suspend(release))
		time.AfterFunc(3*timeout, func() { close(release) })
		fetch(t, &n, "b", "http://a").want(t, "", context.DeadlineExceeded, 3*timeout)
		fetch(t, &n, "b", "http://a").want(t, "", nil, 0)
		if handled != 1 {
			t.Errorf("handled %d requests, want 1", handled)
		}
	})
}

func TestFirstN(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n clustertest.Network
		n.Handle("a", respondWith("a"))
		n.Handle("b", respondWith("b"))
		twice := clustertest.FirstN(2, clustertest.Refuse)
		n.Fault("c", "a", twice)
		n.Fault("c", "b", twice) // has a count of its own
		for _, host := range []string{"a", "b"} {
			for i := range 4 {
				res := fetch(t, &n, "c", "http://"+host)
				if refused := errors.Is(res.err, syscall.ECONNREFUSED); refused != (i < 2) {
					t.Errorf("request %d to %s: got %v", i, host, res.err)
				}
			}
		}
	})
}

func TestIf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n clustertest.Network
		n.Handle("a", respondWith("a"))
		bad := func(req *http.Request) bool { return req.URL.Path == "/bad" }
		n.Fault("b", "a", clustertest.If(bad, clustertest.FirstN(1, clustertest.Refuse)))
		fetch(t, &n, "b", "http://a/good").want(t, "a", nil, 0)
		fetch(t, &n, "b", "http://a/bad").want(t, "", syscall.ECONNREFUSED, 0)
		fetch(t, &n, "b", "http://a/bad").want(t, "a", nil, 0)
	})
}

func TestWithProbability(t *testing.T) {
	const requests = 400
	// refused returns which requests of two clients are refused. The clients send in turn, or one
	// after the other.
	refused := func(t *testing.T, p float64, seed uint64, inTurn bool) (pattern [2][]bool) {
		t.Helper()
		var n clustertest.Network
		n.Handle("a", respondWith("a"))
		n.Fault(clustertest.Any, clustertest.Any, clustertest.WithProbability(p, seed, clustertest.Refuse))
		send := func(i int) {
			res := fetch(t, &n, []string{"b", "c"}[i], "http://a")
			pattern[i] = append(pattern[i], res.err != nil)
		}
		if !inTurn {
			for i := range pattern {
				for range requests {
					send(i)
				}
			}
			return pattern
		}
		for range requests {
			for i := range pattern {
				send(i)
			}
		}
		return pattern
	}
	share := func(pattern []bool) float64 {
		count := 0
		for _, refused := range pattern {
			if refused {
				count++
			}
		}
		return float64(count) / requests
	}
	synctest.Test(t, func(t *testing.T) {
		for _, p := range []float64{0, .01, .3, 1} {
			one, again, other := refused(t, p, 7, true), refused(t, p, 7, false), refused(t, p, 8, true)
			for i := range one {
				if got := share(one[i]); math.Abs(got-p) > 4*math.Sqrt(p*(1-p)/requests) {
					t.Errorf("p=%v: refused %v", p, got)
				}
				if !slices.Equal(one[i], again[i]) {
					t.Errorf("p=%v: the same seed gives different patterns", p)
				}
			}
			if p > 0 && p < 1 && (slices.Equal(one[0], other[0]) || slices.Equal(one[0], one[1])) {
				t.Errorf("p=%v: different seeds or clients give the same pattern", p)
			}
		}
	})
}

func TestFaultOutsideNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var passed atomic.Int64
		next := clustertest.RoundTripperFunc(func(*http.Request) (*http.Response, error) {
			passed.Add(1)
			return nil, syscall.EHOSTUNREACH
		})
		f := clustertest.Chain(clustertest.WithProbability(0, 1, clustertest.Hang), clustertest.FirstN(1, clustertest.Answer(respondWith("a"))))
		client := &http.Client{Transport: f(next)}
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://a", nil)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if _, err := client.Do(req); !errors.Is(err, syscall.EHOSTUNREACH) || passed.Load() != 1 { //nolint:bodyclose // an error has no body
			t.Errorf("got %v, passed %d", err, passed.Load())
		}
	})
}
