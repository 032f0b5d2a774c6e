package mit_test

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/internal/wire"
	"github.com/mimiktech/cluster/mit"
)

// A stuckWriter is the response to a client that does not read until release is closed.
type stuckWriter struct {
	*httptest.ResponseRecorder
	release <-chan struct{}
}

func (w stuckWriter) Write(b []byte) (int, error) {
	if w.Code == http.StatusOK { // errors fit into the buffers of a connection
		<-w.release
	}
	return w.ResponseRecorder.Write(b)
}

// newOpenRegistry returns a registry in which any text is a valid token of the type that it names.
func newOpenRegistry(tb testing.TB, cfg mit.RegistryConfig) *mit.Registry {
	tb.Helper()
	cfg.Verify = func(token string) (cluster.Claims, error) { return cluster.Claims{SubType: token}, nil }
	g, err := mit.NewRegistry(mit.NewMemory(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return g
}

func largeBody(typ, serverID string, size int) string {
	return fmt.Sprintf(`{"type":%q,"serverId":%q,"clusterBaseUrl":"http://10.0.0.1","location":{"name":%q}}`,
		typ, serverID, strings.Repeat("<", size))
}

func newRegistration(typ, address, body string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/itResources", strings.NewReader(body))
	r.Header.Set("Authorization", "Bearer "+typ)
	r.RemoteAddr = address + ":1234"
	return r
}

// Clients that do not read take only a part of the memory: half of the bound for a type, and
// perAddress for an address. Other clients are served. A request for which there is no room gets a
// Retry-After.
func TestListsInFlightAreBounded(t *testing.T) {
	const list = 100 * 4000 // bytes
	for name, test := range map[string]struct {
		perAddress int64
		address    func(i int) string
		want       int // lists in flight
	}{
		"type":              {-1, func(int) string { return "10.0.0.1" }, 5},
		"address":           {2 * list * 11 / 10, func(int) string { return "10.0.0.1" }, 2},
		"network of IPv6":   {2 * list * 11 / 10, func(i int) string { return fmt.Sprintf("[2001:db8::%x]", i) }, 2},
		"several addresses": {2 * list * 11 / 10, func(i int) string { return fmt.Sprintf("10.0.0.%d", i) }, 5},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newOpenRegistry(t, mit.RegistryConfig{MaxInFlightBytes: 11 * list, MaxInFlightBytesPerAddress: test.perAddress})
				for i := range 100 {
					exchange(g, newRegistration("mds", "10.1.0.1", largeBody("mds", fmt.Sprint(i), 3900)))
				}
				release := make(chan struct{})
				writers := make([]stuckWriter, 40)
				var wg sync.WaitGroup
				for i := range writers {
					writers[i] = stuckWriter{httptest.NewRecorder(), release}
					wg.Go(func() { g.ServeHTTP(writers[i], newRegistration("mds", test.address(i), body("mds", fmt.Sprint(i)))) })
					synctest.Wait()
				}
				sent, rejected := 0, 0
				for _, w := range writers {
					switch seconds, _ := strconv.Atoi(w.Header().Get("Retry-After")); {
					case w.Code == http.StatusOK:
						sent++
					case w.Code == http.StatusServiceUnavailable && seconds >= 1 && seconds <= 30:
						rejected++
					default:
						t.Errorf("%d with Retry-After %q", w.Code, w.Header().Get("Retry-After"))
					}
				}
				// The list becomes a little shorter with each renewal.
				if sent < test.want || sent > test.want+2 || sent+rejected != len(writers) {
					t.Errorf("%d lists in flight and %d requests rejected, want about %d in flight", sent, rejected, test.want)
				}
				if a := exchange(g, newRegistration("mfs", "10.2.0.1", body("mfs", "a"))); a.status != http.StatusOK {
					t.Errorf("another type: %d %s", a.status, a.body)
				}
				close(release)
				wg.Wait()
				if a := exchange(g, newRegistration("mds", test.address(1), body("mds", "1"))); a.status != http.StatusOK {
					t.Errorf("after the clients have read: %d %s", a.status, a.body)
				}
			})
		})
	}
}

// A registry that starts over a full store does not know how long the lists are. Requests that it
// admits before the first list is loaded stay within the bound, too. Those that are rejected then
// succeed when they are repeated as the response says.
func TestListsInFlightAfterStart(t *testing.T) {
	const (
		entries, entrySize = 50, 4000
		requests           = 200
		limit              = 16 * entries * entrySize // so 8 lists of one type
	)
	for name, test := range map[string]struct {
		method  string
		address func(i int) string
		bound   int64
	}{
		"type":    {http.MethodPost, func(i int) string { return fmt.Sprintf("10.0.0.%d", i) }, limit / 2},
		"address": {http.MethodPost, func(int) string { return "10.0.0.1" }, limit / 8},
		"read":    {http.MethodGet, func(i int) string { return fmt.Sprintf("10.0.0.%d", i) }, limit / 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &gatedStore{Store: mit.NewMemory(), gate: make(chan struct{})}
				for i := range entries {
					reg := mit.Registration{
						Type: "mds", ServerID: fmt.Sprint(i), ClusterBaseURL: "http://10.0.0.1",
						Location: fmt.Appendf(nil, "%q", strings.Repeat("x", entrySize)),
					}
					if _, err := store.Store.Put(t.Context(), reg, 24*time.Hour); err != nil {
						t.Fatal(err)
					}
				}
				g, err := mit.NewRegistry(store, mit.RegistryConfig{
					MaxInFlightBytes: limit,
					Verify:           func(token string) (cluster.Claims, error) { return cluster.Claims{SubType: token}, nil },
				})
				if err != nil {
					t.Fatal(err)
				}
				newRequest := func(i int) *http.Request {
					r := newRegistration("mds", test.address(i), largeBody("mds", fmt.Sprint(i%entries), entrySize))
					if test.method == http.MethodGet {
						r.Method, r.URL.Path = http.MethodGet, "/itResources/"+mit.ResourceID("mds")
					}
					return r
				}
				read := make(chan struct{})
				writers := make([]stuckWriter, requests)
				var wg sync.WaitGroup
				for i := range writers {
					writers[i] = stuckWriter{httptest.NewRecorder(), read}
					wg.Go(func() { g.ServeHTTP(writers[i], newRequest(i)) })
				}
				synctest.Wait()
				close(store.gate) // all requests are admitted, and none has a list
				synctest.Wait()
				// No response has been read, so this is the maximum. Lists may exceed the bound by the
				// bytes that do not belong to their servers.
				if n := inFlightBytes(t, g); n < test.bound/2 || n > test.bound+entrySize {
					t.Errorf("%d bytes in flight, want up to %d", n, test.bound)
				}
				var rejected []int
				wait := time.Duration(0)
				for i, w := range writers {
					seconds, _ := strconv.Atoi(w.Header().Get("Retry-After"))
					switch {
					case w.Code == http.StatusServiceUnavailable && seconds >= 1 && seconds <= 30:
						rejected = append(rejected, i)
						wait = max(wait, time.Duration(seconds)*time.Second)
					case w.Code != http.StatusOK:
						t.Errorf("%d with Retry-After %q: %s", w.Code, w.Header().Get("Retry-After"), w.Body)
					}
				}
				if len(rejected) < requests-10 {
					t.Errorf("%d of %d requests rejected", len(rejected), requests)
				}
				close(read)
				wg.Wait()
				if n := inFlightBytes(t, g); n != 0 {
					t.Errorf("%d bytes in flight after the responses are read", n)
				}
				time.Sleep(wait)
				for _, i := range rejected {
					w := httptest.NewRecorder()
					if g.ServeHTTP(w, newRequest(i)); w.Code != http.StatusOK {
						t.Errorf("repeated: %d %s", w.Code, w.Body)
					}
				}
			})
		})
	}
}

// A gatedStore responds once its gate is closed.
type gatedStore struct {
	mit.Store
	gate chan struct{}
}

func (s *gatedStore) Put(ctx context.Context, reg mit.Registration, ttl time.Duration) (mit.Resource, error) {
	<-s.gate
	return s.Store.Put(ctx, reg, ttl)
}

func (s *gatedStore) Get(ctx context.Context, id string) (mit.Resource, error) {
	<-s.gate
	return s.Store.Get(ctx, id)
}

// inFlightBytes returns the metric of the lists that are being encoded or sent.
func inFlightBytes(tb testing.TB, g *mit.Registry) int64 {
	tb.Helper()
	w := httptest.NewRecorder()
	mit.MetricsHandler(g, nil).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for line := range strings.Lines(w.Body.String()) {
		if value, ok := strings.CutPrefix(line, "mimik_mit_responses_in_flight_bytes "); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				tb.Fatal(err)
			}
			return int64(n)
		}
	}
	tb.Fatalf("no metric: %s", w.Body)
	return 0
}

// newSlowRegistry returns a registry that sends one list at a time. The list has a megabyte, which
// takes a sixteenth of a second at the assumed rate.
func newSlowRegistry(tb testing.TB, store mit.Store) *mit.Registry {
	tb.Helper()
	putLarge(tb, store, 0, 250)
	g, err := mit.NewRegistry(store, mit.RegistryConfig{
		MaxInFlightBytes: 1, MaxInFlightBytesPerAddress: -1,
		Verify: func(token string) (cluster.Claims, error) { return cluster.Claims{SubType: token}, nil },
	})
	if err != nil {
		tb.Fatal(err)
	}
	if a := exchange(g, newRegistration("mds", "10.0.0.1", largeBody("mds", "0", 4000))); a.status != http.StatusOK {
		tb.Fatalf("%d %s", a.status, a.body)
	}
	return g
}

// putLarge puts servers with entries of 4 kB into a store.
func putLarge(tb testing.TB, store mit.Store, from, to int) {
	tb.Helper()
	for i := from; i < to; i++ {
		reg := mit.Registration{
			Type: "mds", ServerID: fmt.Sprint(i), ClusterBaseURL: "http://10.0.0.1",
			Location: fmt.Appendf(nil, "%q", strings.Repeat("<", 4000)),
		}
		if _, err := store.Put(tb.Context(), reg, 24*time.Hour); err != nil {
			tb.Fatal(err)
		}
	}
}

// rejections sends 64 registrations. It returns how many have each Retry-After.
func rejections(tb testing.TB, g *mit.Registry) map[string]int {
	tb.Helper()
	perSecond := map[string]int{}
	for range 64 {
		a := exchange(g, newRegistration("mds", "10.0.0.1", body("mds", "1")))
		if a.status != http.StatusServiceUnavailable {
			tb.Fatalf("%d, not rejected", a.status)
		}
		perSecond[a.header.Get("Retry-After")]++
	}
	return perSecond
}

// checkSpread checks that the delays spread the rejected requests of a slow registry over the time
// that their responses take.
func checkSpread(t *testing.T, g *mit.Registry) {
	t.Helper()
	release := make(chan struct{})
	defer close(release)
	go g.ServeHTTP(stuckWriter{httptest.NewRecorder(), release}, newRegistration("mds", "10.0.0.1", largeBody("mds", "0", 4000)))
	synctest.Wait()
	perSecond := rejections(t, g)
	for second := range 4 {
		if n := perSecond[fmt.Sprint(second+1)]; n < 13 || n > 18 {
			t.Errorf("%d requests were told to come back after %d s, want about 16: %v", n, second+1, perSecond)
		}
	}
}

func TestRetryAfterSpreads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { checkSpread(t, newSlowRegistry(t, mit.NewMemory())) })
}

// A brokenWriter is the response to a client that has disconnected.
type brokenWriter struct{ countingWriter }

func (w *brokenWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

// Requests to which no list is sent do not count as fast ones: a client that sends many of them
// does not shorten the delays of the others.
func TestRetryAfterCountsSentLists(t *testing.T) {
	for name, newRequest := range map[string]func() *http.Request{
		"refused": func() *http.Request {
			r := newRegistration("mds", "10.0.0.1", body("mds", "gone"))
			r.Header.Set("X-Renewal-Of", "2020-01-02T03:04:05.678Z")
			return r
		},
		"not read": func() *http.Request {
			return newRegistration("mds", "10.0.0.1", largeBody("mds", "0", 4000))
		},
		"head": func() *http.Request {
			r := newRegistration("mds", "10.0.0.1", "")
			r.Method, r.URL.Path = http.MethodHead, "/itResources/"+mit.ResourceID("mds")
			return r
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newSlowRegistry(t, mit.NewMemory())
				serve := func() {
					w := brokenWriter{countingWriter{header: http.Header{}}}
					want := http.StatusOK
					if name == "refused" {
						want = http.StatusPreconditionFailed
					}
					if name == "head" {
						g.ServeHTTP(&w.countingWriter, newRequest())
					} else {
						g.ServeHTTP(&w, newRequest())
					}
					if w.status != want {
						t.Fatalf("%d, want %d", w.status, want)
					}
				}
				for range 40 { // 40 MB a second, if they counted
					serve()
				}
				time.Sleep(time.Second)
				serve()
				checkSpread(t, g)
			})
		})
	}
}

// While a list grows, the delays are computed as if it were compressed by the ratio of the last
// list. The time is real, as in TestWaitingRequestsShareAnEncoding.
func TestRetryAfterOfGrowingList(t *testing.T) {
	store := mit.NewMemory()
	g := newSlowRegistry(t, store)
	register := func() {
		r := newRegistration("mds", "10.0.0.1", largeBody("mds", "0", 4000))
		r.Header.Set("Accept-Encoding", "gzip")
		w := countingWriter{header: http.Header{}}
		if g.ServeHTTP(&w, r); w.status != http.StatusOK || w.header.Get("Content-Encoding") != "gzip" || w.size > 1<<17 {
			t.Errorf("%d, %d bytes, %v", w.status, w.size, w.header)
		}
	}
	register()
	putLarge(t, store, 250, 500)
	waiting, release := g.HoldEncoding("mds")
	var wg sync.WaitGroup
	wg.Go(register)
	for end := time.Now().Add(10 * time.Second); waiting() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			release()
			t.Fatal("the request does not wait for the list")
		}
	}
	if perSecond := rejections(t, g); perSecond["1"] != 64 {
		t.Errorf("64 lists of 2 MB take a second if they are compressed, but the requests were told to come back after %v s", perSecond)
	}
	release()
	wg.Wait()
}

func TestCompressedList(t *testing.T) {
	g := newOpenRegistry(t, mit.RegistryConfig{})
	send := func(method, acceptEncoding string) response {
		r := newRegistration("mds", "10.0.0.1", body("mds", "a"))
		if method == http.MethodGet {
			r = httptest.NewRequest(method, "/itResources/"+mit.ResourceID("mds"), nil)
			r.Header.Set("Authorization", "Bearer mds")
		}
		r.Header.Set("Accept-Encoding", acceptEncoding)
		a := exchange(g, r)
		if a.status != http.StatusOK || a.header.Get("Content-Length") != fmt.Sprint(len(a.body)) || a.header.Get("Vary") != "Accept-Encoding" {
			t.Fatalf("%s: %d %v", method, a.status, a.header)
		}
		return a
	}
	if a := send(http.MethodPost, "gzip"); a.header.Get("Content-Encoding") != "" {
		t.Error("a list of one server is compressed")
	}
	for i := range 100 {
		exchange(g, newRegistration("mds", "10.0.0.1", body("mds", fmt.Sprint(i))))
	}
	plain := send(http.MethodGet, "")
	for header, compressed := range map[string]bool{
		"gzip":                     true,
		"compress, deflate, GZIP":  true,
		"br;q=1, gzip ; q=0.1":     true,
		"gzip;q=0":                 false,
		"gzip;q=0.000, deflate":    false,
		"identity":                 false,
		"x-gzip":                   false,
		"gzip;q=nonsense, deflate": true,
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			a := send(method, header)
			if got := a.header.Get("Content-Encoding") == "gzip"; got != compressed {
				t.Errorf("%s with Accept-Encoding %q: compressed %v", method, header, got)
			}
			if !compressed || method == http.MethodPost {
				continue
			}
			z, err := gzip.NewReader(strings.NewReader(a.body))
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(z)
			if got := decode[registered](t, response{200, nil, string(b)}); err != nil || len(got.ItResource.Servers) != 101 || len(a.body)*3 > len(plain.body) {
				t.Errorf("%d servers in %d bytes instead of %d, %v", len(got.ItResource.Servers), len(a.body), len(plain.body), err)
			}
		}
	}
}

// Renewals at the same time may share a response, which contains each of them.
func TestSharedList(t *testing.T) {
	g := newOpenRegistry(t, mit.RegistryConfig{MaxInFlightBytesPerAddress: -1})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			id, last := fmt.Sprint(i), ""
			for j := range 100 {
				r := newRegistration("mds", "10.0.0.1", body("mds", id))
				a := exchange(g, r)
				var own entry
				for _, s := range decode[registered](t, a).ItResource.Servers {
					if s.ServerID == id {
						own = s
					}
				}
				if own.UpdatedAt <= last {
					t.Errorf("response %d has %q after %q", j, own.UpdatedAt, last)
					return
				}
				last = own.UpdatedAt
			}
		})
	}
	wg.Wait()
}

// A sentWriter keeps the first byte of a response, which identifies the memory that is sent.
type sentWriter struct {
	countingWriter
	first *byte
}

func (w *sentWriter) Write(b []byte) (int, error) {
	w.first = &b[0]
	return w.countingWriter.Write(b)
}

// Requests that wait for a list at the same time get the bytes of one encoding, or of its one
// compression. The time is real: in a bubble, a goroutine that waits for a mutex stops it.
func TestWaitingRequestsShareAnEncoding(t *testing.T) {
	const servers, requests = 50, 20
	g := newOpenRegistry(t, mit.RegistryConfig{MaxInFlightBytesPerAddress: -1})
	register := func(i int) *sentWriter {
		r := newRegistration("mds", "10.0.0.1", body("mds", fmt.Sprint(i)))
		if i%2 == 0 {
			r.Header.Set("Accept-Encoding", "gzip")
		}
		w := &sentWriter{countingWriter: countingWriter{header: http.Header{}}}
		g.ServeHTTP(w, r)
		return w
	}
	sent := map[*byte]bool{}
	for i := range servers {
		sent[register(i).first] = true
	}
	if len(sent) != servers {
		t.Fatalf("%d encodings for %d requests one after the other", len(sent), servers)
	}

	waiting, release := g.HoldEncoding("mds")
	writers := make([]*sentWriter, requests)
	var wg sync.WaitGroup
	for i := range writers {
		before := waiting()
		wg.Go(func() { writers[i] = register(i) })
		for end := time.Now().Add(10 * time.Second); waiting() == before; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				release()
				t.Fatalf("request %d does not wait for the list", i)
			}
		}
	}
	release()
	wg.Wait()
	shared := map[string]*byte{}
	for i, w := range writers {
		encoding := w.header.Get("Content-Encoding")
		if want := []string{"gzip", ""}[i%2]; encoding != want || w.status != http.StatusOK {
			t.Errorf("response %d: %d, encoding %q, want %q", i, w.status, encoding, want)
		}
		if first, ok := shared[encoding]; ok && first != w.first {
			t.Errorf("response %d has an encoding of its own", i)
		}
		shared[encoding] = w.first
	}
	if w := register(0); w.first == shared["gzip"] || sent[shared["gzip"]] {
		t.Error("a request gets the encoding of an earlier list")
	}
}

// A list stays below what a node reads, with each "<" as one byte.
func TestMaxListBytes(t *testing.T) {
	const limit = 100_000
	g := newOpenRegistry(t, mit.RegistryConfig{MaxListBytes: limit})
	post := func(id string, size int) response {
		return exchange(g, newRegistration("mds", "10.0.0.1", largeBody("mds", id, size)))
	}
	n, a := 0, response{}
	for ; n < 100; n++ {
		if a = post(fmt.Sprint(n), 4000); a.status != http.StatusOK {
			break
		}
		if len(a.body) > limit+200 {
			t.Fatalf("the list has %d bytes", len(a.body))
		}
	}
	checkError(t, a, http.StatusRequestEntityTooLarge, "bytes", fmt.Sprint(limit))
	if n < 22 || n > 24 {
		t.Errorf("%d entries of 4.1 kB fit into %d bytes", n, limit)
	}
	if a := post("0", 4000); a.status != http.StatusOK {
		t.Errorf("a renewal: %d %s", a.status, a.body)
	}
	if a := post("0", 100); a.status != http.StatusOK {
		t.Errorf("a shorter renewal: %d %s", a.status, a.body)
	}
	for range 20 { // one of them fills the list
		a = post("1", 4060)
	}
	if a := post("small", 10); a.status != http.StatusOK {
		t.Errorf("a short entry: %d %s", a.status, a.body)
	}
	if a := post("large", 4000); a.status != http.StatusRequestEntityTooLarge {
		t.Errorf("a long entry: %d %s", a.status, a.body)
	}
	if a := exchange(g, newRegistration("mfs", "10.0.0.1", largeBody("mfs", "a", 4000))); a.status != http.StatusOK {
		t.Errorf("another type: %d %s", a.status, a.body)
	}
}

// Nodes can decode the longest entry in each response.
func TestLongestLocation(t *testing.T) {
	g := newOpenRegistry(t, mit.RegistryConfig{})
	in := fmt.Sprintf(`{"type":"mds","serverId":"a","clusterBaseUrl":"http://10.0.0.1","location":"%s"}`,
		strings.Repeat("<", wire.MaxLocationBytes-len(`""`)))
	var listed wire.Registered
	if a := send(g, http.MethodPost, "/itResources", "mds", in); json.Unmarshal([]byte(a.body), &listed) != nil || len(listed.ItResource.Servers) != 1 {
		t.Errorf("%d %.100s", a.status, a.body)
	}
	var kept wire.DeleteResponse
	a := send(g, http.MethodDelete, serverPath("a@1970-01-01T00:00:00.000Z"), "mds", "")
	if err := json.Unmarshal([]byte(a.body), &kept); err != nil || kept.Server == nil || kept.Server.ServerID != "a" {
		t.Errorf("%d %.100s: %v", a.status, a.body, err)
	}
	checkError(t, send(g, http.MethodPost, "/itResources", "mds", strings.Replace(in, "<", "<<", 1)), http.StatusBadRequest, "location", "4096")
}

// The memory of a store does not depend on the servers that it had.
func TestMemoryReleasesServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 2000
		m := mit.NewMemory()
		before := liveHeap()
		for i := range n {
			reg := mit.Registration{Type: "mds", ServerID: fmt.Sprint(i), ClusterBaseURL: "http://10.0.0.1:8080/mds/v1"}
			if _, err := m.Put(t.Context(), reg, time.Hour); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Hour)
		if res, err := m.Get(t.Context(), mit.ResourceID("mds")); err != nil || len(res.Servers) != 0 {
			t.Fatalf("%d servers, %v", len(res.Servers), err)
		}
		if left := liveHeap() - before; left > n*7 { // a pointer for each has 8
			t.Errorf("%d bytes are live after all servers have expired", left)
		}
		runtime.KeepAlive(m)
	})
}

// The memory of a registry depends on its servers only: not on the order of their renewals, not on
// their changes of address, and not on servers that are gone.
func TestMemoryPerServer(t *testing.T) {
	const n, maxPerServer, left = 200, 1536, 10
	synctest.Test(t, func(t *testing.T) {
		g := newOpenRegistry(t, mit.RegistryConfig{MaxInFlightBytesPerAddress: -1})
		posts := 0
		post := func(i int) {
			posts++
			w := countingWriter{header: http.Header{}}
			g.ServeHTTP(&w, newRegistration("mds", "10.0.0.1", fmt.Sprintf(`{"type":"mds","serverId":"c0a7e8b4-0d6c-4d2e-9f0e-%012d",`+
				`"clusterBaseUrl":"http://10.0.%d.%d:8080/mds/v1","location":{"type":"Point","coordinates":[-123.1,49.3]}}`, i, posts>>8, posts&255)))
			if w.status != http.StatusOK {
				t.Fatalf("status %d", w.status)
			}
		}
		ascending := make([]int, n)
		for i := range ascending {
			ascending[i] = i
		}
		descending := slices.Clone(ascending)
		slices.Reverse(descending)
		random := rand.New(rand.NewPCG(1, 2)).Perm(n)
		one := slices.Repeat([]int{n / 2}, n)

		post(0) // what each registry needs, for any number of servers
		before := liveHeap()
		for name, order := range map[string][]int{"ascending": ascending, "descending": descending, "random": random, "one": one} {
			for _, i := range ascending { // the first time: registrations
				post(i)
			}
			for _, i := range order {
				post(i)
			}
			if perServer := (liveHeap() - before) / n; perServer > maxPerServer {
				t.Errorf("%s: %d bytes per server", name, perServer)
			}
		}
		for i := range n / 2 {
			r := httptest.NewRequest(http.MethodDelete, fmt.Sprintf("/itResources/%s/servers/c0a7e8b4-0d6c-4d2e-9f0e-%012d", mit.ResourceID("mds"), i), nil)
			r.Header.Set("Authorization", "Bearer mds")
			w := countingWriter{header: http.Header{}}
			if g.ServeHTTP(&w, r); w.status != http.StatusOK {
				t.Fatalf("delete: %d", w.status)
			}
		}
		time.Sleep(2*time.Hour + 30*time.Minute)
		for i := range left {
			post(n - 1 - i)
		}
		time.Sleep(2*time.Hour + 30*time.Minute) // the others have expired
		post(n - 1)
		if after := liveHeap() - before; after > left*maxPerServer {
			t.Errorf("%d bytes are live with %d servers left", after, left)
		}
		runtime.KeepAlive(g)
	})
}

// After a server was deleted or has expired, nothing is kept of its addresses. The history of the
// status page has the last addresses of the last hundred such servers, and nothing of the requests
// that deleted them. Maps do not shrink, so some bytes per server remain.
func TestMemoryOfServersThatAreGone(t *testing.T) {
	const urlBytes = 1500
	for name, test := range map[string]struct {
		history    bool
		expire     bool
		n          int
		queryBytes int
		max        int64
	}{
		"addresses":                  {false, false, 200, 0, 200 * 120},
		"history of deleted servers": {true, false, 200, 20_000, 200*500 + 100*(urlBytes+500)},
		"history of expired servers": {true, true, 500, 0, 500*600 + 100*(urlBytes+500)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newOpenRegistry(t, mit.RegistryConfig{MaxInFlightBytesPerAddress: -1})
				if test.history {
					g.StatusHandler(cluster.StatusOptions{})
				}
				serve := func(r *http.Request) {
					w := countingWriter{header: http.Header{}}
					if g.ServeHTTP(&w, r); w.status != http.StatusOK {
						t.Fatalf("%s: %d", r.Method, w.status)
					}
				}
				renew := func(id string, path int) {
					serve(newRegistration("mds", "10.0.0.1", fmt.Sprintf(`{"type":"mds","serverId":%q,"clusterBaseUrl":"http://10.0.0.1/%s%d"}`,
						id, strings.Repeat("x", urlBytes), path)))
				}
				renew("stays", 0)
				before := liveHeap()
				for i := range test.n {
					for path := range 5 {
						renew(fmt.Sprint(i), path)
					}
				}
				for i := range test.n {
					if test.expire {
						continue
					}
					r := httptest.NewRequest(http.MethodDelete,
						fmt.Sprintf("/itResources/%s/servers/%d?%s", mit.ResourceID("mds"), i, strings.Repeat("x", test.queryBytes)), nil)
					r.Header.Set("Authorization", "Bearer mds")
					serve(r)
				}
				time.Sleep(4 * time.Hour)
				renew("stays", 0)
				after := liveHeap() - before
				t.Logf("%d bytes are live for each server", after/int64(test.n))
				if after > test.max {
					t.Errorf("%d bytes are live after %d servers are gone, want at most %d", after, test.n, test.max)
				}
				runtime.KeepAlive(g)
			})
		})
	}
}

// A type whose servers are all gone, and which is not asked for, is swept by a call for another.
func TestMemorySweepsOtherTypes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := mit.NewMemory()
		var versions []uint64
		for range 2 {
			res, err := m.Put(t.Context(), mit.Registration{Type: "mfs", ServerID: "a"}, time.Hour)
			if err != nil {
				t.Fatal(err)
			}
			versions = append(versions, res.Version)
			if _, err := m.Put(t.Context(), mit.Registration{Type: "mds", ServerID: "a"}, time.Second); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Minute)
		}
		res, err := m.Put(t.Context(), mit.Registration{Type: "mfs", ServerID: "a"}, time.Hour)
		changes := uint64(3) // mds was put and has expired, mfs was put
		if err != nil || res.Replaced == nil || res.Version != versions[1]+changes {
			t.Errorf("version %d after %v, %v", res.Version, versions, err)
		}
	})
}
