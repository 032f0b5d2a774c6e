package mit_test

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/internal/wire"
	"github.com/mimiktech/cluster/mit"
)

// A listStore has one resource, and answers with it as it is.
type listStore struct {
	mit.Store
	mit.Resource
}

func (l *listStore) Put(context.Context, mit.Registration, time.Duration) (mit.Resource, error) {
	return l.Resource, nil
}

func newListRegistry(tb testing.TB) (*listStore, *mit.Registry) {
	tb.Helper()
	store := &listStore{Resource: mit.Resource{ID: mit.ResourceID("mds"), Type: "mds"}}
	g, err := mit.NewRegistry(store, mit.RegistryConfig{
		MaxServers: 20_000,
		Verify:     func(token string) (string, error) { return token, nil },
	})
	if err != nil {
		tb.Fatal(err)
	}
	return store, g
}

// marshalled is the answer as encoding/json writes it, all of it anew.
func marshalled(tb testing.TB, r mit.Resource) string {
	tb.Helper()
	servers := make([]wire.Server, len(r.Servers))
	for i, s := range r.Servers {
		servers[i] = wire.Server(s)
	}
	b, err := json.Marshal(wire.Registered{
		ItResource: &wire.ItResource{ID: r.ID, Type: r.Type, PublicBaseURL: r.PublicBaseURL, Servers: servers},
		LeaseTime:  new(float64(2 * time.Hour / time.Millisecond)),
	})
	if err != nil {
		tb.Fatal(err)
	}
	return string(b)
}

// Whatever an answer takes from the last one, it is to the byte what it would be without.
func TestAnswersAsIfAnew(t *testing.T) {
	store, g := newListRegistry(t)
	date := time.Date(2026, 1, 2, 3, 4, 5, 678_000_000, time.UTC)
	server := func(id string, change func(*cluster.Server)) cluster.Server {
		s := cluster.Server{ServerID: id, ClusterBaseURL: "http://10.0.0.1:8080/mds/v1", CreatedAt: date, UpdatedAt: date}
		if change != nil {
			change(&s)
		}
		return s
	}
	a, b, c := server("a", nil), server("b", nil), server("c", nil)
	for _, step := range []struct {
		name, publicURL string
		servers         []cluster.Server
	}{
		{"nobody", "", nil},
		{"one", "", []cluster.Server{b}},
		{"one before and one after", "", []cluster.Server{a, b, c}},
		{"the same", "", []cluster.Server{a, b, c}},
		{"a public address", `https://example.com/?"servers":[&<>`, []cluster.Server{a, b, c}},
		{"a renewal", "", []cluster.Server{a, server("b", func(s *cluster.Server) { s.UpdatedAt = date.Add(time.Hour) }), c}},
		{"born again", "", []cluster.Server{a, server("b", func(s *cluster.Server) { s.CreatedAt = date.Add(time.Millisecond) }), c}},
		{"another address", "", []cluster.Server{server("a", func(s *cluster.Server) { s.ClusterBaseURL = "http://x/<&>" }), b, c}},
		{"a location", "", []cluster.Server{a, server("b", func(s *cluster.Server) { s.Location = []byte(`{"type": "<Point>"}`) }), c}},
		{"another location", "", []cluster.Server{a, server("b", func(s *cluster.Server) { s.Location = []byte(`{"type": "Line"}`) }), c}},
		{"one as it was received", "", []cluster.Server{a, b, server("c", func(s *cluster.Server) { s.Raw = []byte(`{"serverId":"c", "x":[1, 2]}`) })}},
		{"some gone", "", []cluster.Server{c}},
		{"not sorted", "", []cluster.Server{c, a, b}},
		{"no dates", "", []cluster.Server{server("a", func(s *cluster.Server) { s.CreatedAt, s.UpdatedAt = time.Time{}, time.Time{} })}},
		{"all gone", "", nil},
	} {
		store.PublicBaseURL, store.Servers = step.publicURL, step.servers
		want := marshalled(t, store.Resource)
		if got := send(g, "POST", "/itResources", "mds", body("mds", "a")); got.status != http.StatusOK || got.body != want {
			t.Errorf("%s: %d\n%s, want\n%s", step.name, got.status, got.body, want)
		}
	}
	store.Servers = []cluster.Server{server("a", func(s *cluster.Server) { s.Location = []byte(`{`) })}
	checkError(t, send(g, "POST", "/itResources", "mds", body("mds", "a")), http.StatusInternalServerError)
}

// A staleStore may have lost what it keeps its servers in.
type staleStore struct {
	mit.Store
	err error
}

func (s *staleStore) Stale() error { return s.err }

func TestHealth(t *testing.T) {
	store := &staleStore{Store: mit.NewMemory()}
	for name, test := range map[string]struct {
		store  mit.Store
		stale  error
		method string
		status int
	}{
		"in memory":     {mit.NewMemory(), nil, "GET", 200},
		"all is well":   {store, nil, "GET", 200},
		"only the head": {store, nil, "HEAD", 200},
		"stale":         {store, errors.New("no word since noon"), "GET", 503},
		"post":          {store, nil, "POST", 405},
	} {
		t.Run(name, func(t *testing.T) {
			store.err = test.stale
			g, err := mit.NewRegistry(test.store, mit.RegistryConfig{
				BasePath: "/mIT/v1",
				Verify:   func(string) (string, error) { return "", errors.New("nobody is to be asked for a token") },
			})
			if err != nil {
				t.Fatal(err)
			}
			a := send(g, test.method, "/mIT/v1/health", "", "")
			if test.status != http.StatusOK {
				checkError(t, a, test.status)
			} else if a.status != http.StatusOK || a.body != `{"data":"ok"}` {
				t.Errorf("%d %s", a.status, a.body)
			}
			if test.stale != nil && !strings.Contains(a.body, test.stale.Error()) {
				t.Errorf("no reason: %s", a.body)
			}
		})
	}
}

// BenchmarkAnswer is what the answer to a renewal costs: all of it written anew, with what has not
// changed taken from the last answer, and compressed, for comparison.
func BenchmarkAnswer(b *testing.B) {
	for _, n := range []int{100, 1000, 10_000} {
		store, g := newListRegistry(b)
		now := time.Date(2026, 1, 2, 3, 4, 5, 678_000_000, time.UTC)
		random := rand.New(rand.NewPCG(1, 2)) // ids and dates are what does not compress
		for i := range n {
			created := now.Add(-time.Duration(random.Int64N(int64(30 * 24 * time.Hour))))
			store.Servers = append(store.Servers, cluster.Server{
				ServerID:       fmt.Sprintf("%08x-%04x-4%03x-%04x-%012x", i, random.Uint32N(1<<16), random.Uint32N(1<<12), random.Uint32N(1<<16), random.Uint64N(1<<48)),
				ClusterBaseURL: fmt.Sprintf("http://10.%d.%d.%d:8080/mds/v1", i>>16&255, i>>8&255, i&255),
				Location:       []byte(`{"type":"Point","coordinates":[2.35,48.86]}`),
				CreatedAt:      created,
				UpdatedAt:      now.Add(-time.Duration(random.Int64N(int64(80 * time.Minute)))),
			})
		}
		renew := func(i int) {
			s := &store.Servers[i%n]
			s.UpdatedAt = s.UpdatedAt.Add(time.Second)
		}
		b.Run(fmt.Sprintf("anew/servers=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				renew(i)
				marshalled(b, store.Resource)
			}
		})
		b.Run(fmt.Sprintf("registry/servers=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				renew(i)
				r := httptest.NewRequest("POST", "/itResources", strings.NewReader(body("mds", "a")))
				r.Header.Set("Authorization", "Bearer mds")
				w := unread{header: http.Header{}}
				g.ServeHTTP(&w, r)
				b.ReportMetric(float64(w.size), "bytes/answer")
			}
		})
		for level, name := range map[int]string{gzip.BestSpeed: "fast", gzip.DefaultCompression: "default"} {
			b.Run(fmt.Sprintf("gzip-%s/servers=%d", name, n), func(b *testing.B) {
				text := []byte(marshalled(b, store.Resource))
				w, err := gzip.NewWriterLevel(io.Discard, level)
				if err != nil {
					b.Fatal(err)
				}
				for b.Loop() {
					size := new(unread)
					w.Reset(size)
					if _, err := w.Write(text); err != nil {
						b.Fatal(err)
					}
					if err := w.Close(); err != nil {
						b.Fatal(err)
					}
					b.ReportMetric(float64(size.size), "bytes/answer")
				}
			})
		}
	}
}

// unread counts what is written to it.
type unread struct {
	header http.Header
	size   int
}

func (u *unread) Header() http.Header { return u.header }
func (u *unread) WriteHeader(int)     {}

func (u *unread) Write(b []byte) (int, error) {
	u.size += len(b)
	return len(b), nil
}
