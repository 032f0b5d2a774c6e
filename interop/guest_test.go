//go:build unix

package interop

import (
	"errors"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/mimiktech/cluster"
)

func guestScenarios() []scenario {
	return []scenario{
		{
			name:     "guest reads the view of a node",
			shows:    "A guest reads the view of a node of either kind, or the list of the registry, and calls all nodes. No node and no registry lists it.",
			runMixed: guestOfTheCluster,
		},
		{
			name:  "clusterctl",
			shows: "The program `clusterctl`, in the environment of a node, lists, checks and calls nodes of both kinds. It finds a killed npm node and evicts it, and the others learn of it.",
			run:   operatorsTool,
		},
		{
			name:  "status page compares views",
			shows: "The status page of a Go node compares the views of npm nodes. It names the npm node that has lost the Go node, and changes no view.",
			run:   pageComparesViews,
		},
	}
}

func pageComparesViews(w *world) {
	nodes := w.cluster(goKind, npmKind, npmKind)
	golang, forgetful, other := nodes[0], nodes[1], nodes[2]
	page, err := url.Parse(golang.base)
	if err != nil {
		w.Fatal(err)
	}
	page.Path = statusPath
	compare := func(parts ...string) {
		w.Helper()
		resp := w.call(http.MethodPost, page.String(), "", nil) // redirects to the page
		for _, part := range parts {
			if !strings.Contains(string(resp.body), part) {
				w.Errorf("status %d: the page lacks %q:\n%s", resp.status, part, resp.body)
			}
		}
	}
	compare("3 views were compared", "all 3")
	w.call(http.MethodDelete, forgetful.base+"/itResources/"+resourceID()+"/servers/"+golang.id, w.token(serverType, true), nil)
	w.waitForView(forgetful, forgetful, other)
	compare("2 of 3", "This node is missing in the views of "+forgetful.id)
	w.waitForView(forgetful, forgetful, other)
	w.waitForView(other, nodes...)
}

func guestOfTheCluster(m *mixed) {
	all := sortedIDs(m.nodes)
	registrations := len(m.requests("POST " + registryPath))
	g, err := cluster.Observe(cluster.Config{
		Type: serverType, RegistryURL: m.url + registryPath, RegistryAudience: registryAudience, PeerAudience: peerAudience,
		Issuer: m.issuer(), ClientID: serverType, ClientSecret: cluster.Secret(secretOf(serverType)),
	})
	if err != nil {
		m.Fatal(err)
	}
	defer g.Close()
	check := func(source string, err error) {
		m.Helper()
		if err != nil {
			m.Errorf("%s: %v", source, err)
			return
		}
		if err := checkEqual(serverIDs(g.Servers()), all); err != nil || g.ResourceID() != resourceID() {
			m.Errorf("%s: %v, itResource %s", source, err, g.ResourceID())
		}
		res, err := g.RPCluster(m.Context(), cluster.Request{Path: "/things"})
		if err != nil {
			m.Fatal(err)
		}
		var ids []string
		for _, o := range res.Results {
			ids = append(ids, o.Server.ServerID)
		}
		if err := checkEqual(ids, all); err != nil {
			m.Errorf("%s: results: %v; failures: %v", source, err, res.Failures)
		}
	}
	for _, k := range kinds() {
		n := m.firstOf(k)
		check(n.id, g.ReadServer(m.Context(), n.base))
	}
	check("registry", g.ReadRegistry(m.Context()))
	m.waitForMembers(m.nodes...)
	if n := len(m.requests("POST " + registryPath)); n != registrations {
		m.Errorf("%d registrations of a guest", n-registrations)
	}
}

func operatorsTool(w *world) {
	binary := filepath.Join(w.TempDir(), "clusterctl")
	if out, err := exec.CommandContext(w.Context(), "go", "build", "-C", "../cmd/clusterctl", "-o", binary, ".").CombinedOutput(); err != nil {
		w.Fatalf("go build: %v\n%s", err, out)
	}
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + w.TempDir()}
	for name, value := range w.environment() {
		env = append(env, name+"="+value)
	}
	run := func(code int, args ...string) string {
		w.Helper()
		cmd := exec.CommandContext(w.Context(), binary, args...)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		got := 0
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			got = exit.ExitCode()
		} else if err != nil {
			w.Fatal(err)
		}
		if got != code {
			w.Errorf("clusterctl %s: exit code %d, want %d:\n%s", strings.Join(args, " "), got, code, out)
		}
		return string(out)
	}
	nodes := w.cluster(npmKind, npmKind, goKind)
	npm, dead, other := nodes[0], nodes[1], nodes[2]
	contains := func(output string, parts ...string) {
		w.Helper()
		for _, part := range parts {
			if !strings.Contains(output, part) {
				w.Errorf("the output lacks %q:\n%s", part, output)
			}
		}
	}
	run(0, "check")
	contains(run(0, "list"), npm.id, dead.id, other.id)
	contains(run(0, "list", "--server", npm.base), npm.id, dead.id, other.id)
	contains(run(0, "ask", "/things", "--server", npm.base), npm.id, dead.id, other.id)

	dead.kill()
	contains(run(1, "check"), dead.id, "refused")
	contains(run(0, "evict", dead.id, "--yes"), "does not respond", "is evicted")
	w.waitForMembers(npm, other)
	run(0, "check")
}
