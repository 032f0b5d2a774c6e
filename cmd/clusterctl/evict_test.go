package main

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// ids returns the ids that list shows.
func (w *world) ids() []string {
	w.Helper()
	var list struct{ Servers []struct{ ServerID string } }
	if err := json.Unmarshal([]byte(w.run("list", "-o", "json").stdout), &list); err != nil {
		w.Fatal(err)
	}
	ids := []string{}
	for _, s := range list.Servers {
		ids = append(ids, s.ServerID)
	}
	return ids
}

// A server that is gone leaves the registry and the views of the others.
func TestEvictDeadServer(t *testing.T) {
	w := newWorld(t, "node-1", "node-2", "node-3")
	w.waitForViews()
	w.nodes["node-2"].kill()
	r := w.runWith(strings.NewReader("y\n"), "evict", "node-2")
	w.want(r, exitOK, "node-2 at http", " ago, and does not respond (refused): it has likely stopped.", "Evict it? [y/N]", "node-2 is evicted. 2 servers are notified.")
	if diff := cmp.Diff([]string{"node-1", "node-3"}, w.ids()); diff != "" {
		t.Errorf("the registry lists (-want +got):\n%s", diff)
	}
	for _, id := range w.ids() {
		for _, s := range w.nodes[id].Servers() {
			if s.ServerID == "node-2" {
				t.Errorf("%s still knows it", id)
			}
		}
	}
	w.want(w.run("evict", "node-2", "--yes"), exitProblem, `no server has the id "node-2"`)
}

// Nothing is changed without a confirmation. The effect on a running server is stated before.
func TestEvictAsks(t *testing.T) {
	w := newWorld(t, "node-1", "node-2")
	w.waitForViews()
	for _, answer := range []string{"", "\n", "n\n", "no\n", "maybe\n"} {
		r := w.runWith(strings.NewReader(answer), "evict", "node-2")
		w.want(r, exitProblem, " ago, and responds: it will be back with its next renewal.", "node-2 is not evicted: not confirmed.")
	}
	if diff := cmp.Diff([]string{"node-1", "node-2"}, w.ids()); diff != "" {
		t.Errorf("the registry lists (-want +got):\n%s", diff)
	}
}

func TestEvictAsJSON(t *testing.T) {
	w := newWorld(t, "node-1", "node-2", "node-3")
	w.waitForViews()
	w.nodes["node-3"].kill()
	r := w.run("evict", "node-2", "--yes", "-o", "json")
	var got eviction
	if err := json.Unmarshal([]byte(r.stdout), &got); err != nil || r.code != exitOK {
		t.Fatalf("%v: %d %s %s", err, r.code, r.stdout, r.stderr)
	}
	if !strings.Contains(got.Effect, "it will be back") || !strings.Contains(r.stderr, got.Effect) {
		t.Errorf("the effect is %q; stderr: %s", got.Effect, r.stderr)
	}
	got.Effect = ""
	if diff := cmp.Diff(eviction{ServerID: "node-2", Evicted: true, Notified: []string{"node-1"}, Missed: []string{"node-3"}}, got); diff != "" {
		t.Errorf("the result (-want +got):\n%s", diff)
	}
	if slices.Contains(w.ids(), "node-2") {
		t.Error("the registry still lists it")
	}
}

// A renewal between the question and the answer keeps the server.
func TestEvictRenewedServer(t *testing.T) {
	w := newWorld(t, "node-1", "node-2")
	w.waitForViews()
	r := w.runWith(readerFunc(func(b []byte) (int, error) {
		if _, err := w.nodes["node-2"].Register(t.Context()); err != nil {
			t.Error(err)
		}
		return copy(b, "y\n"), nil
	}), "evict", "node-2")
	w.want(r, exitProblem, "node-2 is not evicted: it has renewed its lease since")
	if !slices.Contains(w.ids(), "node-2") {
		t.Error("it is gone")
	}
	for _, s := range w.nodes["node-1"].Peers() {
		if s.ServerID == "node-2" {
			return
		}
	}
	t.Error("node-1 no longer knows it")
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func TestEvictStatesTheEffect(t *testing.T) {
	for name, tt := range map[string]struct {
		front func(http.Handler) http.Handler
		want  string
	}{
		"another server": {answer(http.StatusOK, `{"data":null,"server":{"serverId":"x"}}`), "another server responds at its address: it has likely stopped."},
		"a failure":      {answer(http.StatusInternalServerError, `{}`), "responds with 500: it will be back with its next renewal."},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "node-1")
			w.nodes["node-1"].behind(tt.front)
			w.want(w.runWith(strings.NewReader("n\n"), "evict", "node-1"), exitProblem, tt.want)
		})
	}
}

// The registry fails over to a replica, and its errors are shown without secrets.
func TestEvictRegistryFails(t *testing.T) {
	w := newWorld(t, "node-1", "node-2")
	registry := w.env["MIT_URL"]
	for name, tt := range map[string]struct {
		status int
		body   string
		want   string
	}{
		"error":          {http.StatusServiceUnavailable, `{"message":"the store is down"}`, "503 Service Unavailable to DELETE http"},
		"no JSON":        {http.StatusOK, "<html>", "invalid response"},
		"neither":        {http.StatusOK, "{}", "neither data nor a server"},
		"another server": {http.StatusOK, `{"server":{"serverId":"x"}}`, "the entry of another server"},
		"echo":           {http.StatusForbidden, `{"message":"AUTHORIZATION"}`, "[redacted]"},
	} {
		t.Run(name, func(t *testing.T) {
			proxy := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodDelete {
					answer(tt.status, strings.ReplaceAll(tt.body, "AUTHORIZATION", r.Header.Get("Authorization")))(nil).ServeHTTP(rw, r)
					return
				}
				forward(t, rw, r, strings.TrimSuffix(registry, "/mIT/v1"))
			}))
			defer proxy.Close()
			w.env["MIT_URL"] = proxy.URL + "/mIT/v1"
			w.want(w.run("evict", "node-2", "--yes"), exitProblem, tt.want)
		})
	}
	w.env["MIT_URL"] = "http://127.0.0.1:1/mIT/v1," + registry
	w.want(w.run("evict", "node-2", "--yes"), exitOK, "is evicted")
}

// forward passes a request on to another base URL.
func forward(t *testing.T, w http.ResponseWriter, r *http.Request, base string) {
	t.Helper()
	req, err := http.NewRequestWithContext(r.Context(), r.Method, base+r.URL.RequestURI(), r.Body)
	if err != nil {
		t.Error(err)
		return
	}
	req.Header = r.Header.Clone()
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Error(err)
		return
	}
	defer resp.Body.Close()
	maps.Copy(w.Header(), resp.Header)
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body)
}
