package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mimiktech/cluster"
)

func TestCheckOfHealthyCluster(t *testing.T) {
	w := newWorld(t, "node-1", "node-2", "node-3")
	w.waitForViews()
	w.golden(w.run("check"), `
CHECK  RESULT  DETAIL
token service  ok  2 of 2 tokens issued; the first one expires in N h
registry  ok  3 servers in N s
servers  ok  3 of 3 respond with their views
views  ok  4 views of 3 servers
clocks  ok  4 clocks, besides that of this machine
certificates  skipped  no https URL is in use
`)
	var report struct {
		OK     bool
		Checks []finding
	}
	r := w.run("check", "-o", "json")
	if err := json.Unmarshal([]byte(r.stdout), &report); err != nil || r.code != exitOK {
		t.Fatalf("%v: %d %s", err, r.code, r.stdout)
	}
	if !report.OK || len(report.Checks) != 6 || report.Checks[3].Check != "views" || report.Checks[3].Result != checkOK {
		t.Errorf("the JSON is %s", r.stdout)
	}
	for _, n := range w.nodes { // the check has changed nothing
		if got := len(n.Servers()); got != 3 {
			t.Errorf("a node knows %d servers", got)
		}
	}
}

// Each fault fails its check, and no other one; failed checks are "failed", others what they are
// without the fault, except those that need what the failed one did not get.
func TestCheckFindsFaults(t *testing.T) {
	for name, tt := range map[string]struct {
		fault func(w *world)
		want  string // the results of the checks
		parts []string
	}{
		"client secret": {
			func(w *world) { w.env["OAUTH_CLIENT_SECRET"] = "another secret" },
			"failed skipped skipped skipped ok skipped",
			[]string{"mST answered 401"},
		},
		"token service down": {
			func(w *world) { w.env["OAUTH_TOKEN_URL"] = "http://127.0.0.1:1/token" },
			"failed skipped skipped skipped skipped skipped",
			[]string{"connection refused"},
		},
		"registry down": {
			func(w *world) { w.env["MIT_URL"] = "http://127.0.0.1:1/mIT/v1" },
			"ok failed skipped skipped ok skipped",
			[]string{"mIT", "connection refused"},
		},
		"audience of the registry": {
			func(w *world) { w.env["MIT_AUDIENCE"] = "another" },
			"ok failed skipped skipped ok skipped",
			[]string{"mIT answered 403"},
		},
		"no servers": {
			func(w *world) {
				for id, n := range w.nodes {
					n.UnRegister(w.Context())
					delete(w.nodes, id)
				}
			},
			"ok failed ok skipped ok skipped",
			[]string{"it lists no server"},
		},
		"server is dead": {
			func(w *world) { w.nodes["node-2"].kill() },
			"ok ok failed ok ok skipped",
			[]string{"node-2 at http", "refused"},
		},
		"server hangs": {
			func(w *world) {
				w.env["REQUEST_TIMEOUT"] = "200"
				w.nodes["node-2"].behind(func(http.Handler) http.Handler {
					return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
						_, _ = io.Copy(io.Discard, r.Body) // until then, the end of the connection is not noticed
						<-r.Context().Done()
					})
				})
			},
			"ok ok failed ok ok skipped",
			[]string{"node-2 at http", "timeout"},
		},
		"endpoints are not mounted": {
			func(w *world) { w.nodes["node-2"].behind(answer(http.StatusNotFound, "404 page not found")) },
			"ok ok failed ok ok skipped",
			[]string{"node-2 at http", "404", "mounted"},
		},
		"audience of the servers": {
			func(w *world) { w.env["MDS_AUDIENCE"] = "another" },
			"ok ok failed skipped ok skipped",
			[]string{"node-1 at http", "403", "audience"},
		},
		"another server at the address": {
			func(w *world) {
				w.nodes["node-2"].behind(answer(http.StatusOK, `{"data":null,"server":{"serverId":"node-9"}}`))
			},
			"ok ok failed ok ok skipped",
			[]string{"node-2 at http", "wrong_server"},
		},
		"server without a view": {
			func(w *world) {
				w.nodes["node-2"].behind(answer(http.StatusOK, `{"data":"x","server":{"serverId":"node-2"}}`))
			},
			"ok ok failed ok ok skipped",
			[]string{"node-2: its view cannot be read"},
		},
		"server is missing in a view": {
			func(w *world) {
				w.send("node-1", http.MethodDelete, "/itResources/"+w.nodes["node-1"].Status().ResourceID+"/servers/node-3", "")
			},
			"ok ok ok failed ok skipped",
			[]string{"node-3 is missing in the views of node-1\n"},
		},
		"another address in a view": {
			func(w *world) {
				w.send("node-1", http.MethodPost, "/itResources", fmt.Sprintf(
					`{"id":%q,"publicBaseUrl":"","servers":[{"serverId":"node-3","clusterBaseUrl":"http://127.0.0.1:1/mds/v1","updatedAt":"2999-01-01T00:00:00.000Z"}]}`,
					w.nodes["node-1"].Status().ResourceID))
			},
			"ok ok ok failed ok skipped",
			[]string{"node-3 is at http://127.0.0.1:1/mds/v1 in the views of node-1, and at http"},
		},
		"clock of a server": {
			func(w *world) { w.nodes["node-2"].behind(shiftClock(-time.Minute)) },
			"ok ok ok ok failed skipped",
			[]string{"the clock of node-2 is ", " behind that of this machine"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, "node-1", "node-2", "node-3")
			w.waitForViews()
			tt.fault(w)
			r := w.run("check")
			w.want(r, exitProblem, tt.parts...)
			if got := results(r); got != tt.want {
				t.Errorf("the results are %q, want %q:\n%s", got, tt.want, r.stdout)
			}
		})
	}
}

// results returns the second column of a report.
func results(r result) string {
	var all []string
	for line := range strings.Lines(r.stdout) {
		for _, result := range []string{checkOK, checkFailed, checkSkipped} {
			if strings.Contains(line, "  "+result+"  ") && !strings.HasPrefix(line, " ") {
				all = append(all, result)
			}
		}
	}
	return strings.Join(all, " ")
}

// send sends a request to a node, as a peer does.
func (w *world) send(id, method, path, body string) {
	w.Helper()
	req, err := http.NewRequestWithContext(w.Context(), method, w.nodes[id].Config().ClusterBaseURL+path, strings.NewReader(body))
	if err != nil {
		w.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.backend.Token(w, "mds", true))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		w.Fatalf("%s %s: %s", method, path, resp.Status)
	}
}

// Without the list of the registry, --server gives one.
func TestCheckWithServer(t *testing.T) {
	w := newWorld(t, "node-1", "node-2")
	w.waitForViews()
	server := w.nodes["node-1"].Config().ClusterBaseURL
	registry := w.env["MIT_URL"]
	w.env["MIT_URL"] = "http://127.0.0.1:1/mIT/v1"
	r := w.run("check", "--server", server)
	w.want(r, exitProblem, "2 of 2 respond")
	if got := results(r); got != "ok failed ok ok ok skipped" {
		t.Errorf("the results are %q", got)
	}
	w.env["MIT_URL"] = ""
	r = w.run("check", "--server", server)
	w.want(r, exitOK)
	if got := results(r); got != "ok skipped ok ok ok skipped" {
		t.Errorf("the results are %q", got)
	}
	r = w.run("check", "--server", "http://127.0.0.1:1/mds/v1")
	w.want(r, exitProblem, "reading the view of a server: peer cannot be reached", "connection refused")
	w.env["MIT_URL"] = registry
	w.want(w.run("check", "--server", "http://127.0.0.1:1/mds/v1"), exitOK, "2 of 2 respond")
}

func TestCheckCertificates(t *testing.T) {
	w := newWorld(t)
	for id, ttl := range map[string]time.Duration{"node-1": 90 * 24 * time.Hour, "node-2": 10*24*time.Hour + time.Hour} {
		cert, err := w.ca.IssuePair("127.0.0.1", ttl)
		if err != nil {
			t.Fatal(err)
		}
		w.joinAs(id, &cert)
	}
	w.waitForViews()
	ca := w.writeFile("ca.pem", w.ca.PEM())
	w.want(w.run("check", "--ca", ca), exitProblem, "the certificate of node-2 expires in 10 days", "2 certificates")
	w.want(w.run("check", "--ca", ca, "--certificate-days", "9"), exitOK, "the first one expires in 10 days")
	w.want(w.run("check"), exitProblem, "no TLS connection to node-1", "no TLS connection to node-2")

	dir := t.TempDir()
	if err := w.ca.IssueFiles("client", time.Hour, dir+"/cert.pem", dir+"/key.pem"); err != nil {
		t.Fatal(err)
	}
	r := w.run("check", "--ca", ca, "--certificate-days", "1", "--cert", dir+"/cert.pem", "--key", dir+"/key.pem")
	w.want(r, exitProblem, "the certificate of this program expires in", "3 certificates")
}

func TestCheckClocks(t *testing.T) {
	for name, tt := range map[string]struct {
		ahead map[string]time.Duration // of this machine, by host
		want  []string
	}{
		"agree":                     {map[string]time.Duration{"a": 0, "b": 9 * time.Second}, nil},
		"one is behind":             {map[string]time.Duration{"a": 0, "b": 11 * time.Second}, []string{"the clock of b is 11 s behind that of this machine"}},
		"one is ahead":              {map[string]time.Duration{"a": 0, "b": -time.Hour}, []string{"the clock of b is 60 min ahead of that of this machine"}},
		"two differ by their sum":   {map[string]time.Duration{"a": 6 * time.Second, "b": -6 * time.Second}, []string{"the clock of b is 12 s ahead of that of a"}},
		"this machine is ahead":     {map[string]time.Duration{"a": time.Hour, "b": time.Hour + 5*time.Second}, []string{"the clock of this machine is 60 min ahead of all others"}},
		"this machine is behind":    {map[string]time.Duration{"a": -time.Minute, "b": -time.Minute}, []string{"the clock of this machine is 60 s behind all others"}},
		"a single one":              {map[string]time.Duration{"a": time.Minute}, []string{"the clock of this machine is 60 s ahead of all others"}},
		"all of them are different": {map[string]time.Duration{"a": time.Minute, "b": -time.Minute}, []string{"the clock of b is 60 s ahead of that of this machine", "the clock of a is 60 s behind that of this machine"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := &checker{session: &session{seen: newResponses(&secrets{})}, limits: checkLimits{clock: 10 * time.Second}}
			for host, ahead := range tt.ahead {
				c.seen.byHost[host] = observation{hasDate: true, ahead: ahead}
			}
			f := &finding{Result: checkOK}
			c.checkClocks(context.Background(), f)
			if diff := cmp.Diff(tt.want, f.Problems); diff != "" || (f.Result == checkOK) != (tt.want == nil) {
				t.Errorf("%s; problems (-want +got):\n%s", f.Result, diff)
			}
		})
	}
	f := &finding{Result: checkOK}
	(&checker{session: &session{seen: newResponses(&secrets{})}}).checkClocks(context.Background(), f)
	if f.Result != checkSkipped {
		t.Errorf("without a date: %+v", f)
	}
}

func TestManyNamesAreShortened(t *testing.T) {
	if got := some([]string{"a", "b", "c", "d", "e", "f", "g"}); got != "a, b, c, d, e and 2 more" {
		t.Error(got)
	}
}

// A host is named after all that it serves.
func TestNamesOfHosts(t *testing.T) {
	c := &checker{session: &session{cfg: cluster.Config{RegistryURL: "http://a/mIT, http://b/mIT", Issuer: "http://a/token"}}}
	c.listed = []cluster.Server{{ServerID: "node-1", ClusterBaseURL: "http://c:8080/mds/v1"}}
	want := map[string]string{"a": "registry, token service", "b": "registry", "c:8080": "node-1"}
	if diff := cmp.Diff(want, c.names()); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}

// A registry that cannot be read by id, such as one of another kind, is reported as such.
func TestCheckOfRegistryWithoutReads(t *testing.T) {
	w := newWorld(t, "node-1")
	registry := httptest.NewServer(answer(http.StatusNotFound, `{"message":"no such path"}`)(nil))
	defer registry.Close()
	w.env["MIT_URL"] = registry.URL
	w.want(w.run("check"), exitProblem, "mIT answered 404", "no such path")
}
