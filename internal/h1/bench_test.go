//go:build unix

package h1

import (
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// respond is a peer that costs little: it answers each read with the same response.
func respond(b *testing.B, response string) (host string) {
	b.Helper()
	l := listen(b)
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer nc.Close()
				buf := make([]byte, 4096)
				for {
					if _, err := nc.Read(buf); err != nil {
						return
					}
					if _, err := io.WriteString(nc, response); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

const benchResponse = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Mon, 02 Jan 2006 15:04:05 GMT\r\n" +
	"X-Correlation-Id: 6ba7b810-9dad-11d1-80b4-00c04fd430c8:1\r\nContent-Length: 62\r\n\r\n" +
	`{"serverId":"6ba7b810-9dad-11d1-80b4-00c04fd430c8","data":{}}` + "\n"

func benchHeader() http.Header {
	return http.Header{
		"User-Agent":       {"cluster"},
		"Accept":           {"application/json"},
		"X-Correlation-Id": {"6ba7b810-9dad-11d1-80b4-00c04fd430c8:1"},
		"Authorization":    {"Bearer " + strings.Repeat("x", 300)},
	}
}

// BenchmarkTransports compares one request with net/http's transport, in ns, CPU time of client and
// peer together, and allocations.
func BenchmarkTransports(b *testing.B) {
	roundTrip := func(rt http.RoundTripper) func(b *testing.B, host string) error {
		template := &http.Request{Method: "GET", Header: benchHeader()}
		return func(b *testing.B, host string) error {
			b.Helper()
			req := template.WithContext(b.Context())
			u := *mustURL(b, "http://"+host+"/rpc")
			req.URL = &u
			resp, err := rt.RoundTrip(req)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			_, err = io.ReadFull(resp.Body, make([]byte, resp.ContentLength))
			return err
		}
	}
	std := &http.Transport{MaxIdleConnsPerHost: 100}
	own := &Transport{MaxIdlePerHost: 100}
	call, err := NewCall("GET", benchHeader(), nil, 1<<20)
	if err != nil {
		b.Fatal(err)
	}
	defer own.Close()
	defer std.CloseIdleConnections()
	host := respond(b, benchResponse)
	for _, bench := range []struct {
		name string
		do   func(b *testing.B, host string) error
	}{
		{"net-http", roundTrip(std)},
		{"RoundTrip", roundTrip(own)},
		{"Do", func(b *testing.B, host string) error {
			b.Helper()
			_, err := own.Do(b.Context(), call, host, "/rpc")
			return err
		}},
	} {
		for _, callers := range []int{1, 32} {
			b.Run(bench.name+"/"+map[int]string{1: "1", 32: "32"}[callers], func(b *testing.B) {
				b.ReportAllocs()
				var wg sync.WaitGroup
				before := cpuTime()
				for i := range callers {
					wg.Go(func() {
						for n := i; n < b.N; n += callers {
							if err := bench.do(b, host); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				b.ReportMetric(float64(cpuTime()-before)/float64(b.N), "cpu-ns/op")
			})
		}
	}
}

func cpuTime() int64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkProbe measures the check of an idle connection.
func BenchmarkProbe(b *testing.B) {
	l := listen(b)
	nc, err := new(net.Dialer).DialContext(b.Context(), "tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	c := newConn(nc, "")
	b.ReportAllocs()
	before := cpuTime()
	for b.Loop() {
		if !c.quiet() {
			b.Fatal("it is not quiet")
		}
	}
	b.ReportMetric(float64(cpuTime()-before)/float64(b.N), "cpu-ns/op")
}
