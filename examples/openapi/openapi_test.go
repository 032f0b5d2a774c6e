package main

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

// start starts a world of nodes with the generated router. Its nodes have no other handlers.
func start(t *testing.T, nodes int) *clustertest.World {
	t.Helper()
	w := clustertest.Start(t, 0)
	for range nodes {
		n := w.Add()
		w.Network.Handle(n.Host, handler(n.Cluster))
		if _, err := n.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func TestClusterOfGeneratedServices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, 3)
		for _, n := range w.Nodes {
			if got := len(n.Servers()); got != 3 { // by announcements: createItResource
				t.Errorf("%s knows %d servers, want 3", n.ID, got)
			}
		}
		one, three := w.Nodes[0], w.Nodes[2]
		res, err := one.RPCluster(t.Context(), cluster.Request{Path: "/things"})
		if err != nil {
			t.Fatal(err)
		}
		var things []string
		for _, d := range res.Data {
			things = append(things, string(d))
		}
		if diff := cmp.Diff([]string{`"node-2"`, `"node-3"`}, things); diff != "" {
			t.Errorf("things (-want +got):\n%s", diff)
		}
		if d := three.UnRegister(t.Context()); d.Errors != nil { // deleteServer
			t.Error(d.Errors)
		}
		if got := len(one.Servers()); got != 2 {
			t.Errorf("%d servers after a departure, want 2", got)
		}
	})
}

func TestGeneratedRouterRejects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, 1)
		send := func(method, path string, header http.Header) int {
			req, err := http.NewRequestWithContext(t.Context(), method, "http://"+w.Nodes[0].Host+"/mds/v1"+path, strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			req.Header = header
			resp, err := w.Network.Client("test").Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			return resp.StatusCode
		}
		bearer := http.Header{"Authorization": {"Bearer " + w.Token("mds", true)}}
		for _, c := range []struct {
			method, path string
			header       http.Header
			want         int
		}{
			{"POST", "/itResources", http.Header{}, 401},
			{"POST", "/itResources", bearer, 400}, // without an id
			{"POST", "/itResources", http.Header{"Prefer": {"a", "b"}}, 400},
			{"DELETE", "/itResources/another/servers/a", bearer, 200},
			{"GET", "/things", http.Header{}, 401},
			{"GET", "/things", bearer, 200},
			{"PUT", "/things", bearer, 405},
		} {
			if got := send(c.method, c.path, c.header); got != c.want {
				t.Errorf("%s %s with %v: %d, want %d", c.method, c.path, c.header, got, c.want)
			}
		}
	})
}

// TestGeneratedCode checks that the generated code is that of the documents.
func TestGeneratedCode(t *testing.T) {
	for _, g := range []struct{ file, config, document string }{
		{"clusterapi/clusterapi.gen.go", "clusterapi/oapi-codegen.yaml", "../../api/node.yaml"},
		{"service.gen.go", "oapi-codegen.yaml", "service.yaml"},
	} {
		out := filepath.Join(t.TempDir(), "generated.go")
		cmd := exec.CommandContext(t.Context(), "go", "tool", "oapi-codegen", "-config", g.config, "-o", out, g.document)
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		generated, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		committed, err := os.ReadFile(g.file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(committed), string(generated)); diff != "" {
			t.Errorf("%s (-committed +generated, go generate writes it):\n%s", g.file, diff)
		}
	}
}
