package mit_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
)

// BenchmarkRenewal measures a renewal over HTTP handlers, response included, and the live heap
// per server.
func BenchmarkRenewal(b *testing.B) {
	for _, n := range []int{100, 1000, 10_000} {
		b.Run(fmt.Sprintf("servers=%d", n), func(b *testing.B) {
			before := liveHeap()
			g, err := mit.NewRegistry(mit.NewMemory(), mit.RegistryConfig{
				MaxServers: n,
				Verify:     func(string) (cluster.Claims, error) { return cluster.Claims{SubType: "mds"}, nil },
			})
			if err != nil {
				b.Fatal(err)
			}
			random := rand.New(rand.NewPCG(1, 2))
			bodies := make([]string, n)
			for i := range bodies {
				bodies[i] = fmt.Sprintf(`{"type":"mds","serverId":"%08x-%04x-4%03x-%04x-%012x","publicBaseUrl":"https://example.com/mds/v1",`+
					`"clusterBaseUrl":"http://10.%d.%d.%d:8080/mds/v1","location":{"type":"Point","coordinates":[2.35,48.86]}}`,
					i, random.Uint32N(1<<16), random.Uint32N(1<<12), random.Uint32N(1<<16), random.Uint64N(1<<48),
					i>>16&255, i>>8&255, i&255)
			}
			var w countingWriter
			renew := func(body string) {
				r := httptest.NewRequest(http.MethodPost, "/itResources", strings.NewReader(body))
				r.Header.Set("Authorization", "Bearer t")
				w = countingWriter{header: http.Header{}}
				g.ServeHTTP(&w, r)
				if w.status != http.StatusOK {
					b.Fatalf("status %d", w.status)
				}
			}
			start := time.Now()
			for _, body := range bodies {
				renew(body)
			}
			filled := time.Since(start)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				renew(bodies[i%n])
				i++
			}
			b.ReportMetric(float64(w.size), "bytes/response")
			b.ReportMetric(filled.Seconds()/float64(n)*1e9, "ns/registration")
			b.ReportMetric(float64(liveHeap()-before)/float64(n), "heap-bytes/server")
			runtime.KeepAlive(g)
		})
	}
}

func liveHeap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A countingWriter counts the bytes of a response.
type countingWriter struct {
	header http.Header
	status int
	size   int
}

func (w *countingWriter) Header() http.Header    { return w.header }
func (w *countingWriter) WriteHeader(status int) { w.status = status }

func (w *countingWriter) Write(b []byte) (int, error) {
	w.size += len(b)
	return len(b), nil
}
