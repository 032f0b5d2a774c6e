package mit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/api"
	"github.com/mimiktech/cluster/internal/wire"
	"github.com/mimiktech/cluster/mit"
)

// A listStore returns its resource from every Put and Get.
type listStore struct {
	mit.Store
	mit.Resource
}

func (l *listStore) Put(context.Context, mit.Registration, time.Duration) (mit.Resource, error) {
	return l.Resource, nil
}

func (l *listStore) Get(context.Context, string) (mit.Resource, error) { return l.Resource, nil }

func newListRegistry(tb testing.TB) (*listStore, *mit.Registry) {
	tb.Helper()
	store := &listStore{Resource: mit.Resource{ID: mit.ResourceID("mds"), Type: "mds"}}
	g, err := mit.NewRegistry(store, mit.RegistryConfig{
		MaxServers: 20_000,
		Verify:     func(token string) (cluster.Claims, error) { return cluster.Claims{SubType: token}, nil },
	})
	if err != nil {
		tb.Fatal(err)
	}
	return store, g
}

// marshaled is the response as encoding/json writes it.
func marshaled(tb testing.TB, r mit.Resource) string {
	tb.Helper()
	servers := make([]wire.Server, len(r.Servers))
	for i, s := range r.Servers {
		servers[i] = wire.Server(s)
	}
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false) // as npm nodes and JSON.stringify
	err := encoder.Encode(wire.Registered{
		ItResource: &wire.ItResource{ID: r.ID, Type: r.Type, PublicBaseURL: r.PublicBaseURL, Servers: servers},
		LeaseTime:  new(float64(2 * time.Hour / time.Millisecond)),
	})
	if err != nil {
		tb.Fatal(err)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// The registry concatenates encoded entries. The response must be the same, to the byte, as that of
// encoding/json.
func TestResponseMatchesEncodingJSON(t *testing.T) {
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
		{"no server", "", nil},
		{"one server", "", []cluster.Server{b}},
		{"three servers", "", []cluster.Server{a, b, c}},
		{"public URL", `https://example.com/?"servers":[&<>`, []cluster.Server{a, b, c}},
		{"renewed", "", []cluster.Server{a, server("b", func(s *cluster.Server) { s.UpdatedAt = date.Add(time.Hour) }), c}},
		{"registered again", "", []cluster.Server{a, server("b", func(s *cluster.Server) { s.CreatedAt = date.Add(time.Millisecond) }), c}},
		{"other address", "", []cluster.Server{server("a", func(s *cluster.Server) { s.ClusterBaseURL = "http://x/<&>" }), b, c}},
		{"location", "", []cluster.Server{a, server("b", func(s *cluster.Server) { s.Location = []byte(`{"type": "<Point>"}`) }), c}},
		{"encoded by the store", "", []cluster.Server{a, b, server("c", func(s *cluster.Server) { s.Raw = []byte(`{"serverId":"c","x":[1,2]}`) })}},
		{"unsorted", "", []cluster.Server{c, a, b}},
		{"no times", "", []cluster.Server{server("a", func(s *cluster.Server) { s.CreatedAt, s.UpdatedAt = time.Time{}, time.Time{} })}},
	} {
		store.PublicBaseURL, store.Servers = step.publicURL, step.servers
		want := marshaled(t, store.Resource)
		if got := send(g, "POST", "/itResources", "mds", body("mds", "a")); got.status != http.StatusOK || got.body != want {
			t.Errorf("%s: %d\n%s, want\n%s", step.name, got.status, got.body, want)
		}
	}
	store.Servers = []cluster.Server{server("a", func(s *cluster.Server) { s.Location = []byte(`{`) })}
	checkError(t, send(g, "POST", "/itResources", "mds", body("mds", "a")), http.StatusInternalServerError)
}

// A deadlineWriter records the write deadlines of a response.
type deadlineWriter struct {
	*httptest.ResponseRecorder
	err       error // of Write
	deadlines []time.Time
}

func (w *deadlineWriter) SetWriteDeadline(t time.Time) error {
	w.deadlines = append(w.deadlines, t)
	return nil
}

func (w *deadlineWriter) Write(b []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	return w.ResponseRecorder.Write(b)
}

func (w *deadlineWriter) FlushError() error { return w.err }

// A client has 5 s for a list and a second for each 256 KiB that are sent. The deadline ends with
// the response, so that the connection can be used again, but not if the client does not read.
func TestWriteDeadlineDependsOnSize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, g := newListRegistry(t)
		for _, test := range []struct {
			servers  int
			encoding string
			err      error
			min, max time.Duration
		}{
			{0, "", nil, 5 * time.Second, 5*time.Second + time.Millisecond},
			{1024, "", nil, 8 * time.Second, 14 * time.Second},
			{4096, "", nil, 18 * time.Second, 40 * time.Second},
			{4096, "", os.ErrDeadlineExceeded, 18 * time.Second, 40 * time.Second},
			{4096, "gzip", nil, 5 * time.Second, 10 * time.Second},
		} {
			store.Servers = make([]cluster.Server, test.servers)
			for i := range store.Servers {
				location := fmt.Sprintf(`"%0900d"`, i)
				store.Servers[i] = cluster.Server{ServerID: fmt.Sprintf("%05d", i), Location: []byte(location)}
			}
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/itResources", strings.NewReader(body("mds", "a")))
			r.Header.Set("Authorization", "Bearer mds")
			r.Header.Set("Accept-Encoding", test.encoding)
			w := &deadlineWriter{ResponseRecorder: httptest.NewRecorder(), err: test.err}
			g.ServeHTTP(w, r)
			name := fmt.Sprintf("%d servers %s, %v", test.servers, test.encoding, test.err)
			if w.Code != http.StatusOK || len(w.deadlines) == 0 {
				t.Fatalf("%s: %d, %d deadlines", name, w.Code, len(w.deadlines))
			}
			got := time.Until(w.deadlines[0])
			size, _ := strconv.Atoi(w.Header().Get("Content-Length"))
			want := 5*time.Second + time.Duration(size)*time.Second/(256<<10)
			if got != want || got < test.min || got > test.max {
				t.Errorf("%s: %v for %d bytes, want %v, between %v and %v", name, got, size, want, test.min, test.max)
			}
			if last := w.deadlines[len(w.deadlines)-1]; last.IsZero() != (test.err == nil) {
				t.Errorf("%s: deadlines %v", name, w.deadlines)
			}
		}
	})
}

// A staleStore reports err as Stale.
type staleStore struct {
	mit.Store
	err error
}

func (s *staleStore) Ready() error { return s.err }

func TestHealth(t *testing.T) {
	store := &staleStore{Store: mit.NewMemory()}
	for name, test := range map[string]struct {
		store  mit.Store
		stale  error
		method string
		status int
	}{
		"in memory": {mit.NewMemory(), nil, "GET", 200},
		"not stale": {store, nil, "GET", 200},
		"HEAD":      {store, nil, "HEAD", 200},
		"stale":     {store, errors.New("no contact since noon"), "GET", 503},
		"POST":      {store, nil, "POST", 405},
	} {
		t.Run(name, func(t *testing.T) {
			store.err = test.stale
			g, err := mit.NewRegistry(test.store, mit.RegistryConfig{
				BasePath: "/mIT/v1",
				Verify: func(string) (cluster.Claims, error) {
					return cluster.Claims{}, errors.New("health must not need a token")
				},
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
				t.Errorf("no reason in %s", a.body)
			}
		})
	}
}

func TestOpenAPIDocument(t *testing.T) {
	g := newServices(t, func(c *mit.RegistryConfig) { c.BasePath = "/mIT/v1" }).registry
	a := send(g, "GET", "/mIT/v1/openapi.yaml", "", "")
	if a.status != http.StatusOK || a.header.Get("Content-Type") != "application/yaml" || a.body != api.MIT() {
		t.Errorf("%d %v %s", a.status, a.header, a.body)
	}
	checkError(t, send(g, "DELETE", "/mIT/v1/openapi.yaml", "", ""), http.StatusMethodNotAllowed)
}
