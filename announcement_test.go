package cluster_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/internal/wire"
	"github.com/mimiktech/cluster/mit"
)

func TestAnnouncement(t *testing.T) {
	const old = "http://node-2:8080/mds/v1"
	resource := func(id, servers string) string {
		return `{"id":"` + id + `","publicBaseUrl":"http://x/mds/v1","servers":` + servers + `}`
	}
	ours := mit.ResourceID("mds")
	node2 := func(dates string) string {
		return resource(ours, `[{"serverId":"node-2","clusterBaseUrl":"http://elsewhere/mds/v1"`+dates+`}]`)
	}
	for name, tt := range map[string]struct {
		body  string
		view  []string
		node2 string // the address of node-2 afterwards
	}{
		"a new server":           {announcement("node-9"), []string{"node-1", "node-2", "node-3", "node-9"}, old},
		"two new servers":        {announcement("node-9", "node-0"), []string{"node-0", "node-1", "node-2", "node-3", "node-9"}, old},
		"a known server":         {announcement("node-3"), []string{"node-1", "node-2", "node-3"}, old},
		"no servers":             {resource(ours, "[]"), []string{"node-1", "node-2", "node-3"}, old},
		"null as servers":        {resource(ours, "null"), []string{"node-1", "node-2", "node-3"}, old},
		"of another resource":    {resource("other", `[{"serverId":"node-9","clusterBaseUrl":"http://node-9/mds/v1"}]`), []string{"node-1", "node-2", "node-3"}, old},
		"newer":                  {node2(`,"updatedAt":"2000-01-01T00:00:00.001Z"`), []string{"node-1", "node-2", "node-3"}, "http://elsewhere/mds/v1"},
		"newer, in another zone": {node2(`,"updatedAt":"2000-01-01T01:00:00.001+01:00"`), []string{"node-1", "node-2", "node-3"}, "http://elsewhere/mds/v1"},
		"newer by its creation":  {node2(`,"createdAt":"2000-01-01T00:00:01.000Z"`), []string{"node-1", "node-2", "node-3"}, "http://elsewhere/mds/v1"},
		"of the same age":        {node2(`,"updatedAt":"2000-01-01T00:00:00.000Z"`), []string{"node-1", "node-2", "node-3"}, old},
		"older":                  {node2(`,"createdAt":"2020-01-01T00:00:00.000Z","updatedAt":"1999-12-31T23:59:59.999Z"`), []string{"node-1", "node-2", "node-3"}, old},
		"without a date":         {node2(``), []string{"node-1", "node-2", "node-3"}, old},
		"with an invalid date": {
			node2(`,"updatedAt":"tomorrow"`),
			[]string{"node-1", "node-2", "node-3"},
			old,
		},
		"a duplicate": {
			resource(ours, `[{"serverId":"node-2","clusterBaseUrl":"http://b","updatedAt":"2000-01-02T00:00:00Z"},{"serverId":"node-2","clusterBaseUrl":"http://c","updatedAt":"2000-01-03T00:00:00Z"},{"serverId":"node-2","clusterBaseUrl":"http://d","updatedAt":"2000-01-01T00:00:00Z"}]`),
			[]string{"node-1", "node-2", "node-3"},
			"http://c",
		},
		"a number as address": {
			resource(ours, `[{"serverId":"node-9","clusterBaseUrl":5},{"serverId":"node-8","clusterBaseUrl":"http://node-8","updatedAt":7}]`),
			[]string{"node-1", "node-2", "node-3", "node-8"},
			old,
		},
		"the node itself": {
			resource(ours, `[{"serverId":"node-1","clusterBaseUrl":"http://elsewhere/mds/v1","updatedAt":"2030-01-01T00:00:00Z"}]`),
			[]string{"node-1", "node-2", "node-3"},
			old,
		},
	} {
		t.Run(name, func(t *testing.T) {
			testEndpoints(t, func(v endpointTest) {
				t, w, send := v.T, v.World, v.send
				n := w.Nodes[0]
				data := send("POST", itResources, tt.body, "Bearer "+w.Token("mds", true)).data(t)
				wantView(t, n, tt.view...)
				servers := n.Servers()
				i := slices.IndexFunc(servers, func(s cluster.Server) bool { return s.ServerID == "node-2" })
				if got := servers[i].ClusterBaseURL; got != tt.node2 {
					t.Errorf("node-2 is at %s, want %s", got, tt.node2)
				}
				i = slices.IndexFunc(servers, func(s cluster.Server) bool { return s.ServerID == "node-1" })
				if got := servers[i].ClusterBaseURL; got != "http://node-1:8080/mds/v1" {
					t.Errorf("the node itself is at %s", got)
				}
				var known struct {
					ID      string
					Servers []cluster.Server
				}
				if err := json.Unmarshal([]byte(data), &known); err != nil {
					t.Fatal(err)
				}
				if known.ID != ours || marshal(t, known.Servers) != marshal(t, servers) {
					t.Errorf("the reply is %s, the view is %s", data, marshal(t, servers))
				}
			})
		})
	}
}

// An announced entry replaces an older one. The npm module keeps the entry that it has, so that it
// cannot reach a peer at a new address until the next renewal.
func TestNewerEntryWins(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		moved := w.Nodes[2]
		moved.Move("node-3-moved:9090")
		if _, err := moved.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, n := range w.Nodes {
			if got := n.Servers()[2].ClusterBaseURL; got != "http://node-3-moved:9090/mds/v1" {
				t.Errorf("in the view of %s node-3 is at %s", n.ID, got)
			}
			if res := rpc(t, n, cluster.Request{Path: "/things"}); len(res.Results) != 2 {
				t.Errorf("%s: failures %v", n.ID, failures(res))
			}
		}
	})
}

// Fields of entries that the module does not know are preserved byte by byte.
func TestUnknownFieldsArePreserved(t *testing.T) {
	parallel(t)
	const (
		known = `{"serverId":"node-2","clusterBaseUrl":"http://node-2:8080/mds/v1"`
		more  = `{"n":1.50,"big":12345678901234567890,"serverId":"node-2","clusterBaseUrl":"http://node-2:8080/mds/v1","x":{"é":[1e2,null]}`
	)
	ofNode1 := func(text string) string { return strings.ReplaceAll(text, "node-2", "node-1") }
	t.Run("of an announcement", func(t *testing.T) {
		testEndpoints(t, func(v endpointTest) {
			t, w, send := v.T, v.World, v.send
			entry := strings.Replace(more, "node-2", "node-9", 2) + `,"updatedAt":"2001-01-01T00:00:00+00:00"}`
			body := `{"id":"` + mit.ResourceID("mds") + `","publicBaseUrl":"","servers":[` + entry + `]}`
			if data := send("POST", itResources, body, "Bearer "+w.Token("mds", true)).data(t); !strings.Contains(data, entry) {
				t.Errorf("%s\nis not in %s", entry, data)
			}
			if got := marshal(t, w.Nodes[0].Servers()[3]); got != entry {
				t.Errorf("\n got %s\nwant %s", got, entry)
			}
		})
	})
	t.Run("of the registry", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 2)
			n := w.Nodes[0]
			w.Network.Fault(n.Host, clustertest.RegistryHost, func(next http.RoundTripper) http.RoundTripper {
				return clustertest.RoundTripperFunc(func(r *http.Request) (*http.Response, error) {
					resp, err := next.RoundTrip(r)
					if err != nil {
						return nil, err
					}
					defer resp.Body.Close()
					b, err := io.ReadAll(resp.Body)
					text := strings.Replace(string(b), known, more, 1)
					text = strings.Replace(text, ofNode1(known), ofNode1(more), 1)
					text = strings.Replace(text, `"servers":`, `"region":{"n":2.50},"servers":`, 1)
					resp.Body, resp.ContentLength = io.NopCloser(strings.NewReader(text)), -1
					return resp, err
				})
			})
			var announced string
			w.Network.Fault(n.Host, w.Nodes[1].Host, onPost(func(next http.RoundTripper) http.RoundTripper {
				return clustertest.RoundTripperFunc(func(r *http.Request) (*http.Response, error) {
					b, err := io.ReadAll(r.Body)
					if err != nil {
						return nil, err
					}
					announced = string(b)
					again := r.Clone(r.Context())
					again.Body = io.NopCloser(strings.NewReader(announced))
					return next.RoundTrip(again)
				})
			}))
			if _, err := n.Register(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(announced, ofNode1(more)) || !strings.Contains(announced, `"region":{"n":2.50}`) {
				t.Errorf("%s\nor the region is not in %s", ofNode1(more), announced)
			}
			if res := marshal(t, rpc(t, n, cluster.Request{Path: "/things"})); !strings.Contains(res, more) {
				t.Errorf("%s\nis not in %s", more, res)
			}
		})
	})
}

// An announcement only has the entry of its sender, and the reply has no data. Otherwise nodes that
// start together would send each other the whole list.
func TestAnnouncementIsShort(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 4)
		requests := recordRequests(w)
		n := w.Add()
		r, err := n.Register(t.Context())
		if err != nil || len(r.Results) != 4 {
			t.Fatalf("%+v, %v", r, err)
		}
		for _, peer := range w.Nodes {
			wantView(t, peer, "node-1", "node-2", "node-3", "node-4", "node-5")
		}
		own, err := json.Marshal(n.Servers()[4])
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range requests.announcements(n, clustertest.Any) {
			if want := `{"data":null,"server":{"serverId":"node-1"}}`; x.Received != int64(len(want)) {
				t.Errorf("a reply of %d bytes, want one like %s", x.Received, want)
			}
			if limit := int64(len(own)) + 150; x.Sent > limit { // the entry, and the fields of the resource
				t.Errorf("an announcement has %d bytes, more than %d", x.Sent, limit)
			}
		}
	})
}

// A sender that does not prefer a minimal reply gets the list. Nodes of the npm module are such
// senders.
func TestPreferHeaderOfAnnouncement(t *testing.T) {
	parallel(t)
	for name, tt := range map[string]struct {
		prefer []string
		short  bool
	}{
		"no preference":            {nil, false},
		"empty":                    {[]string{""}, false},
		"minimal":                  {[]string{"return=minimal"}, true},
		"spaces, quotes, capitals": {[]string{` Return = "minimal" `}, true},
		"with a parameter":         {[]string{"return=minimal; why=much"}, true},
		"among others":             {[]string{"respond-async, wait=10, return=minimal"}, true},
		"in another header":        {[]string{"wait=10", "return=minimal"}, true},
		"representation":           {[]string{"return=representation"}, false},
		"the first counts":         {[]string{"return=representation", "return=minimal"}, false},
		"another preference":       {[]string{"returns=minimal, minimal, x=return=minimal"}, false},
		"no value":                 {[]string{"return"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 2)
				n := w.Nodes[0]
				req := httptest.NewRequest(http.MethodPost, itResources, strings.NewReader(announcement("node-9")))
				req.Header.Set("Authorization", "Bearer "+w.Token("mds", true))
				req.Header["Prefer"] = tt.prefer
				rec := httptest.NewRecorder()
				n.CreateItResource(rec, req)
				applied, want := rec.Header().Get("Preference-Applied"), ""
				if tt.short {
					want = "return=minimal"
				}
				if rec.Code != http.StatusOK || applied != want || strings.Contains(rec.Body.String(), "node-2") == tt.short {
					t.Errorf("the reply is %d %q %s", rec.Code, applied, rec.Body)
				}
				wantView(t, n, "node-1", "node-2", "node-9")
			})
		})
	}
	t.Run("an error", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 1)
			req := httptest.NewRequest(http.MethodPost, itResources, strings.NewReader("null"))
			req.Header.Set("Authorization", "Bearer "+w.Token("mds", true))
			req.Header.Set("Prefer", "return=minimal")
			rec := httptest.NewRecorder()
			w.Nodes[0].CreateItResource(rec, req)
			if applied := rec.Header().Get("Preference-Applied"); rec.Code != http.StatusBadRequest || applied != "" {
				t.Errorf("the reply is %d %q %s", rec.Code, applied, rec.Body)
			}
		})
	})
}

// Announced servers with forbidden addresses are skipped. The others are added.
func TestAnnouncementWithInvalidAddresses(t *testing.T) {
	invalid := []string{
		"", "/mds/v1", "node-9:8080/mds/v1", "ftp://node-9/", "file:///etc/passwd", "http://", "http:///mds/v1", "//node-9/mds/v1",
		"http://user:password@node-9/mds/v1", "http://user@node-9/mds/v1", "http://node-9/mds/v1?x=1", "http://node-9/mds/v1?", "http://node-9/mds/v1#x",
		"http://169.254.169.254/latest", "http://[fe80::1]/", "http://[fe80::1%25eth0]/", "http://[::ffff:169.254.169.254]/",
		"http://224.0.0.1/", "http://0.0.0.0:8080/", "http://[::]/", "http://node 9/", "http://node-9:port/", "\x00",
	}
	t.Run("default policy", func(t *testing.T) {
		testEndpoints(t, func(v endpointTest) {
			t, w, send := v.T, v.World, v.send
			type server struct {
				ServerID       string `json:"serverId"`
				ClusterBaseURL string `json:"clusterBaseUrl"`
			}
			servers := []server{{"valid", "https://node-9:8443/mds/v1/"}}
			for i, address := range invalid {
				servers = append(servers, server{fmt.Sprintf("invalid-%d", i), address})
			}
			body := marshal(t, map[string]any{"id": mit.ResourceID("mds"), "servers": servers})
			send("POST", itResources, body, "Bearer "+w.Token("mds", true)).data(t)
			wantView(t, w.Nodes[0], "node-1", "node-2", "node-3", "valid")
		})
	})
	for name, tt := range map[string]struct {
		policy cluster.PeerPolicy
		view   []string
	}{
		"networks": {cluster.PeerPolicy{Networks: prefixes("10.0.0.0/8", "fd00::/8")}, []string{"in-10", "in-fd00", "named", "node-1", "node-2", "node-3"}},
		"hook": {cluster.PeerPolicy{Allow: func(s cluster.Server) error {
			if strings.HasPrefix(s.ServerID, "node-") || s.ClusterBaseURL == "http://192.168.0.1/" {
				return nil
			}
			return errors.New("rejected by the hook")
		}}, []string{"in-192", "node-1", "node-2", "node-3"}},
	} {
		t.Run(name, func(t *testing.T) {
			testEndpoints(t, func(v endpointTest) {
				t, w, send := v.T, v.World, v.send
				body := `{"id":"` + mit.ResourceID("mds") + `","servers":[` +
					`{"serverId":"in-10","clusterBaseUrl":"http://10.1.2.3/"},{"serverId":"in-192","clusterBaseUrl":"http://192.168.0.1/"},` +
					`{"serverId":"in-fd00","clusterBaseUrl":"http://[fd00::1]/"},{"serverId":"named","clusterBaseUrl":"http://named/"}]}`
				send("POST", itResources, body, "Bearer "+w.Token("mds", true)).data(t)
				wantView(t, w.Nodes[0], tt.view...)
			}, clustertest.WithOptions(cluster.WithPeerPolicy(tt.policy)))
		})
	}
}

// The policy bounds the view that announcements can create. Entries of known servers are replaced
// all the same.
func TestAnnouncementLimit(t *testing.T) {
	testEndpoints(t, func(v endpointTest) {
		t, w, send := v.T, v.World, v.send
		n, token := w.Nodes[0], "Bearer "+w.Token("mds", true)
		send("POST", itResources, announcement("node-8", "node-9"), token).wantError(t, 400, "5 servers, 4 are allowed")
		wantView(t, n, "node-1", "node-2", "node-3")
		send("POST", itResources, announcement("node-9"), token).data(t)
		wantView(t, n, "node-1", "node-2", "node-3", "node-9")
		send("POST", itResources, announcement("node-8"), token).wantError(t, 400, "5 servers, 4 are allowed")
		send("POST", itResources, resourceWithDate("2001-01-01T00:00:00.000Z", "node-9"), token).data(t)
		if got := n.Servers()[3].CreatedAt.Year(); got != 2001 {
			t.Errorf("the newer entry of a known server was not used: %d", got)
		}
	}, clustertest.WithOptions(cluster.WithPeerPolicy(cluster.PeerPolicy{MaxServers: 4})))
}

// Any holder of a cluster token can announce a healthy server with another address and timestamp.
// That may cost a request, but does not delete the server. The npm module sends the announced
// timestamp as the condition of the delete, which then holds.
func TestForgedAnnouncementEvictsNoPeer(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 4)
		victim := w.Nodes[1]
		announce(t, w, w.Nodes[0], fmt.Sprintf(`{"id":%q,"publicBaseUrl":"x","servers":[
			{"serverId":%q,"clusterBaseUrl":"http://nowhere:1/mds/v1","updatedAt":"2099-01-01T00:00:00.000Z"}]}`,
			mit.ResourceID("mds"), victim.ID))

		res, err := w.Nodes[0].RPCluster(t.Context(), cluster.Request{Path: "/things"})
		if err != nil {
			t.Fatal(err)
		}
		if len(res.Results) != 3 {
			t.Errorf("%d of 3 peers answered; the failures: %v", len(res.Results), res.Failures)
		}
		synctest.Wait()
		for _, n := range w.Nodes {
			if got := len(n.Servers()); got != 4 {
				t.Errorf("%s knows %d of 4 servers", n.ID, got)
			}
		}
		if got := len(w.Registered()); got != 4 {
			t.Errorf("the registry lists %d of 4 servers", got)
		}
	})
}

// A dead server is evicted even if the node only has an announced entry of it.
func TestAnnouncedServerIsEvicted(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		w.Nodes[2].Kill() // node-1 has not renewed since the announcement
		res, err := w.Nodes[0].RPCluster(t.Context(), cluster.Request{Path: "/things"})
		if err != nil {
			t.Fatal(err)
		}
		if len(res.Failures) != 1 || !res.Failures[0].Evicted {
			t.Errorf("failures %v, want node-3, evicted", res.Failures)
		}
		if got := len(w.Registered()); got != 2 {
			t.Errorf("the registry lists %d servers, want 2", got)
		}
	})
}

// With VerifyWithRegistry an announcement only triggers a renewal.
func TestAnnouncementIsVerified(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2, clustertest.WithOptions(cluster.WithPeerPolicy(cluster.PeerPolicy{VerifyWithRegistry: true})))
		n := w.Nodes[0]
		time.Sleep(time.Minute)
		unnoticed := w.Add() // listed, but unknown to n
		w.Network.Fault(unnoticed.Host, n.Host, clustertest.Status(503))
		if _, err := unnoticed.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantView(t, n, "node-1", "node-2")
		requests := recordRequests(w)
		for range 100 {
			announce(t, w, n, announcement("made-up"))
		}
		synctest.Wait()
		wantView(t, n, "node-1", "node-2", "node-3")
		time.Sleep(10 * time.Second)
		wantView(t, n, "node-1", "node-2", "node-3")
		if got := len(requests.renewals(n)); got < 1 || got > 2 {
			t.Errorf("%d renewals for 100 announcements", got)
		}
	})
}

// With VerifyWithRegistry neither announcements nor departures change the view.
func TestVerifyWithRegistry(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3, clustertest.WithOptions(cluster.WithPeerPolicy(cluster.PeerPolicy{VerifyWithRegistry: true})))
		synctest.Wait()
		n := w.Nodes[0]
		announce(t, w, n, fmt.Sprintf(`{"id":%q,"publicBaseUrl":"x","servers":[{"serverId":"unknown","clusterBaseUrl":"http://nowhere:1"}]}`, mit.ResourceID("mds")))
		reportDeparture(t, w, n, "node-2")
		synctest.Wait()
		for _, s := range n.Servers() {
			if s.ServerID == "unknown" {
				t.Error("an announced server was added")
			}
		}
		time.Sleep(n.Config().RegistrationRetry) // for the renewal that the messages trigger
		synctest.Wait()
		if got := len(n.Servers()); got != 3 {
			t.Errorf("after the renewal the view has %d servers, want 3", got)
		}
	})
}

func FuzzCreateItResource(f *testing.F) {
	for _, seed := range []string{
		testResource("node-1", "node-2", "node-3"), testResource("node-3"), testResource("node-3", "node-3"), testResource(),
		// The limit, and one more.
		testResource("node-3", "node-4", "node-5"), testResource("node-3", "node-4", "node-5", "node-6"),
		`{"id":"another","servers":[{"serverId":"x","clusterBaseUrl":"http://x.test"}]}`,
		`{"id":"it","servers":[{"serverId":"x","clusterBaseUrl":"http://169.254.169.254/latest"}]}`,
		`{"id":"it","servers":[{"serverId":"x","clusterBaseUrl":"http://[::ffff:169.254.169.254]/"},{"serverId":"y","clusterBaseUrl":"http://[fe80::1%25eth0]:80"}]}`,
		`{"id":"it","servers":[{"serverId":"x","clusterBaseUrl":"http://user:pass@x.test"},{"serverId":"y","clusterBaseUrl":"file:///etc/passwd"}]}`,
		`{"id":"it","servers":[{"serverId":"x","clusterBaseUrl":"//x.test"},{"serverId":"y","clusterBaseUrl":"http:x.test"},{"serverId":"z"}]}`,
		`{"id":"it","servers":[{"serverId":"node-1","clusterBaseUrl":"http://evil.test","updatedAt":"9999-12-31T23:59:59Z"}]}`,
		`{"id":"it","servers":[{"serverId":"node-2","clusterBaseUrl":"http://evil.test","updatedAt":"9999-12-31T23:59:59Z"}]}`,
		`{"id":"it","servers":[{"serverId":"a/../b","clusterBaseUrl":"http://a.test/../.."},{"serverId":"\u0000","clusterBaseUrl":"http://a.test/%00"}]}`,
		`{"ID":"it","SERVERS":[{"SERVERID":"x","clusterbaseurl":"https://x.test:99999/"}]}`,
		`{"id":"it","servers":[{"serverId":"x","clusterBaseUrl":5,"updatedAt":7},{"serverId":"y","clusterBaseUrl":"http://y.test","updatedAt":{}}]}`,
		`{"id":"it","servers":[{"serverId":"x"},null]}`, `null`, `[]`, `"it"`, `{`, ``, `{"id":"it","servers":{}}`, `{"id":"\ud800"}`,
		`{"id":"it","servers":[` + strings.Repeat(`{"serverId":"x","clusterBaseUrl":"http://x.test"},`, 20) + `{"serverId":"y"}]}`,
		strings.Repeat(`{"id":`, 50),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		const limit = 5
		c := newRegisteredNode(t, &remotes{view: []string{"node-1", "node-2"}}, cluster.WithPeerPolicy(cluster.PeerPolicy{MaxServers: limit}))
		self := c.Servers()[0]
		r := httptest.NewRequest(http.MethodPost, "/mds/v1/itResources", bytes.NewReader(body))
		r.Header.Set("Authorization", "Bearer peer")
		got := serve(http.HandlerFunc(c.CreateItResource), r)

		data := got.decode(t)
		ids := checkView(t, c)
		if !slices.Contains(ids, "node-2") || len(ids) > limit {
			t.Errorf("the view became %q", ids)
		}
		switch got.Code {
		case http.StatusOK:
			var listed struct {
				ID      string
				Servers []cluster.Server
			}
			if err := json.Unmarshal(data, &listed); err != nil || listed.ID != "it" {
				t.Errorf("the reply is %s: %v", data, err)
			}
			// The reply has no white space, so the texts are comparable.
			if text, want := marshal(t, listed.Servers), marshal(t, c.Servers()); text != want {
				t.Errorf("the reply lists %s, the node knows %s", text, want)
			}
		case http.StatusBadRequest:
			if len(ids) != 2 {
				t.Errorf("rejected, but the view became %q", ids)
			}
		default:
			t.Errorf("the reply has status %d", got.Code)
		}
		if got := c.Servers()[slices.Index(ids, "node-1")]; got.ClusterBaseURL != self.ClusterBaseURL {
			t.Errorf("the entry of the node itself was replaced: %+v", got)
		}
		for _, s := range c.Servers() {
			checkAllowed(t, mustParse(t, s.ClusterBaseURL))
		}
		res, err := c.RPCluster(t.Context(), cluster.Request{Path: "/things"})
		if err != nil || len(res.Results)+len(res.Failures) != len(ids)-1 {
			t.Errorf("%d peers, but the response is %+v, %v", len(ids)-1, res, err)
		}
	})
}

// Announced servers that do not exist keep no call from the peers that do: it takes one timeout,
// evicts a peer that is gone, and keeps one that is alive. The next renewal drops them.
func TestForgedAnnouncements(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 5, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxInFlight = 16 }))
		n := w.Nodes[4]
		rpc(t, n, cluster.Request{Path: "/things"})
		var forged []string
		for i := range 100 {
			forged = append(forged, fmt.Sprintf("forged-%03d", i))
			w.Network.Fault(n.Host, forged[i]+":8080", clustertest.Hang)
		}
		announce(t, w, n, announcement(forged...))
		if known := len(n.Servers()); known != 105 {
			t.Fatalf("%d servers after the announcement", known)
		}
		w.Nodes[0].Kill()
		start := time.Now()
		res := rpc(t, n, cluster.Request{Path: "/things"})
		if took := time.Since(start); took > 11*time.Second {
			t.Errorf("the call took %v", took)
		}
		if len(res.Results) != 3 {
			t.Errorf("results of %q", idsOfOutcomes(res.Results))
		}
		for _, o := range res.Failures {
			gone := o.Server.ServerID == "node-1"
			if strings.HasPrefix(o.Server.ServerID, "node-") && o.Evicted != gone || !gone && o.Kind != cluster.KindTimeout && o.Kind != cluster.KindNotConfirmed {
				t.Errorf("%s: %s, evicted %t, skipped: %v", o.Server.ServerID, o.Kind, o.Evicted, o.EvictionSkipped)
			}
		}
		time.Sleep(time.Minute)
		wantView(t, n, "node-2", "node-3", "node-4", "node-5")
	})
}

// One sender may announce 256 new servers per minute. The rest comes from the registry.
func TestAnnouncementsAreBounded(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		n := w.Nodes[0]
		requests := recordRequests(w)
		for i := range 400 {
			announce(t, w, n, announcement(fmt.Sprintf("forged-%03d", i)))
		}
		if known := len(n.Servers()); known > 2+256 {
			t.Errorf("%d servers", known)
		}
		time.Sleep(10 * time.Second)
		if renewals := len(requests.renewals(n)); renewals != 1 {
			t.Errorf("%d renewals", renewals)
		}
		wantView(t, n, "node-1", "node-2")
		for i := range 300 {
			announce(t, w, n, announcement(fmt.Sprintf("more-%03d", i)))
		}
		if time.Sleep(10 * time.Second); len(requests.renewals(n)) != 1 {
			t.Error("another renewal within a minute")
		}
	})
}

// Announcements of long or invalid entries change nothing, and do not let the view grow beyond what
// the registry may send.
func TestInvalidAnnouncements(t *testing.T) {
	testEndpoints(t, func(v endpointTest) {
		before := marshal(v.T, v.Nodes[0].Servers())
		for name, resource := range map[string]string{
			"id of 500 KB":  announcement(strings.Repeat("x", 500_000)),
			"dots":          announcement("../../x"),
			"line break":    announcement(`a\nb`),
			"bidi":          announcement("a\u202eb"),
			"long entry":    strings.Replace(announcement("node-9"), `"serverId"`, `"x":"`+strings.Repeat("x", 17<<10)+`","serverId"`, 1),
			"long resource": strings.Replace(announcement("node-9"), `"servers"`, `"x":"`+strings.Repeat("x", 17<<10)+`","servers"`, 1),
		} {
			reply := v.send(http.MethodPost, itResources, resource, "Bearer "+v.Token("mds", true))
			if reply.Code != http.StatusBadRequest || len(reply.Body) > 1<<10 || marshal(v.T, v.Nodes[0].Servers()) != before {
				v.Errorf("%s: %d, %.300s", name, reply.Code, reply.Body)
			}
		}
		reply := v.send(http.MethodPost, itResources, announcement("node-9"), "Bearer "+strings.Repeat("x", 933<<10))
		reply.wantError(v.T, http.StatusForbidden, "token of more than 16384 bytes")
		if got := reply.Header.Get("X-Content-Type-Options"); got != "nosniff" {
			v.Errorf("X-Content-Type-Options is %q", got)
		}
	})
}

// An invalid entry does not keep the valid ones of the same list out: an npm node announces its
// whole list, with whatever the registry has accepted.
func TestInvalidEntryOfAnAnnouncementIsSkipped(t *testing.T) {
	testEndpoints(t, func(v endpointTest) {
		for i, invalid := range []string{"a\nb", "../../x", strings.Repeat("x", 500), ""} {
			valid := fmt.Sprintf("valid-%d", i)
			list := announcement(invalid, valid)
			reply := v.send(http.MethodPost, itResources, list, "Bearer "+v.Token("mds", true))
			if reply.Code != http.StatusOK {
				v.Errorf("%.20s: %d, %s", invalid, reply.Code, reply.Body)
			}
			if !slices.ContainsFunc(v.Nodes[0].Servers(), func(s cluster.Server) bool { return s.ServerID == valid }) {
				v.Errorf("%.20s: the valid entry is missing", invalid)
			}
		}
		if known := len(v.Nodes[0].Servers()); known != 3+4 {
			v.Errorf("%d servers", known)
		}
	})
}

// A node does not make an entry longer when it sends it on: with escapes for HTML, the entry could
// exceed the limits at its receiver.
func TestLongestLocationIsSentOn(t *testing.T) {
	testEndpoints(t, func(v endpointTest) {
		location := `"` + strings.Repeat("<", wire.MaxLocationBytes-len(`""`)) + `"`
		list := strings.Replace(announcement("long"), `"serverId"`, `"location":`+location+`,"serverId"`, 1)
		reply := v.send(http.MethodPost, itResources, list, "Bearer "+v.Token("mds", true))
		var sent struct{ Data wire.ItResource }
		if err := json.Unmarshal([]byte(reply.Body), &sent); err != nil || sent.Data.Skipped != nil || !strings.Contains(reply.Body, location) {
			v.Errorf("%d, %v, left out: %v, %d bytes", reply.Code, err, sent.Data.Skipped, len(reply.Body))
		}
	})
}

// Together, the entries of a view may not have more bytes than a response of the registry.
func TestViewIsBounded(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxResponseBytes = 50 << 10 }))
		n := w.Nodes[0]
		for i := range 20 {
			body := strings.Replace(announcement(fmt.Sprintf("big-%d", i)), `"serverId"`, `"x":"`+strings.Repeat("x", 10<<10)+`","serverId"`, 1)
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+n.Host+itResources, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+w.Token("mds", true))
			if reply := roundTrip(t, w, req); (reply.Code == http.StatusOK) != (i < 4) {
				t.Errorf("announcement %d: %d", i, reply.Code)
			}
		}
		if known := len(n.Servers()); known != 6 {
			t.Errorf("%d servers, want 6", known)
		}
	})
}

// startBound starts nodes whose tokens are bound to them.
func startBound(t *testing.T, nodes int) *clustertest.World {
	t.Helper()
	w := clustertest.Start(t, 0, clustertest.WithConfig(func(c *cluster.Config) { c.ClientID, c.ClientSecret = "bound", "secret of bound" }))
	client := mit.Client{ID: "bound", Secret: "secret of bound", Type: "mds", ServerIDs: []string{"*"}}
	if err := w.Tokens.SetClient(client); err != nil {
		t.Fatal(err)
	}
	for range nodes {
		w.Join()
	}
	return w
}

// announceWithTokenOf announces servers to n with the cluster token of another node.
func announceWithTokenOf(t *testing.T, w *clustertest.World, sender, n *clustertest.Node, resource string) {
	t.Helper()
	stolen := make(chan string, 1)
	stop := w.Network.Observe(func(x clustertest.Exchange) {
		select {
		case stolen <- x.Header.Get("Authorization"):
		default:
		}
	})
	rpc(t, sender, cluster.Request{Path: "/things"})
	stop()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+n.Host+itResources, strings.NewReader(resource))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", <-stolen)
	if r := roundTrip(t, w, req); r.Code != http.StatusOK {
		t.Fatalf("%d: %s", r.Code, r.Body)
	}
}

// A node accepts an announcement with a bound token about the server of the token only, and asks
// the registry about the others.
func TestAnnouncementWithBoundToken(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := startBound(t, 3)
		n, sender := w.Nodes[0], w.Nodes[1]
		requests := recordRequests(w)
		forged := resourceWithDate("2030-01-01T00:00:00.000Z", "node-2", "node-3", "node-9")
		announceWithTokenOf(t, w, sender, n, strings.ReplaceAll(forged, "http://node-", "http://forged-node-"))
		wantView(t, n, "node-1", "node-2", "node-3")
		for i, host := range []string{"node-1", "forged-node-2", "node-3"} {
			if got := n.Servers()[i].ClusterBaseURL; !strings.HasPrefix(got, "http://"+host) {
				t.Errorf("server %d is at %s, not at %s", i+1, got, host)
			}
		}
		time.Sleep(10 * time.Second)
		if renewals := len(requests.renewals(n)); renewals != 1 {
			t.Errorf("%d renewals after servers that are not the sender", renewals)
		}
	})
}

// Nodes with bound tokens do all that nodes do: they join, call each other, evict and leave. Nodes
// of the same type whose tokens are not bound are their peers.
func TestClusterWithBoundTokens(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := startBound(t, 4)
		if res := rpc(t, w.Nodes[0], cluster.Request{Path: "/things"}); len(res.Results) != 3 {
			t.Fatalf("failures %v", failures(res))
		}
		announce(t, w, w.Nodes[0], announcement("node-9")) // with a token that is not bound
		wantView(t, w.Nodes[0], "node-1", "node-2", "node-3", "node-4", "node-9")

		w.Nodes[3].Kill()
		rpc(t, w.Nodes[1], cluster.Request{Path: "/things"})
		time.Sleep(time.Second) // the broadcast
		wantView(t, w.Nodes[2], "node-1", "node-2", "node-3")
		if d := w.Nodes[2].UnRegister(t.Context()); len(d.Errors) > 0 {
			t.Errorf("leaving: %v", d.Errors)
		}
		if got := idsOf(w.Registered()); !slices.Equal(got, []string{"node-1", "node-2"}) {
			t.Errorf("the registry lists %v", got)
		}
	})
}

// A peer that answers at any address can cause a conflict of each id that it announces. The node
// keeps few of them, its own one always, and warns of the others once a minute.
func TestConflictsAreBounded(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		observed, lines := observer.New(zap.WarnLevel)
		w := clustertest.Start(t, 2, clustertest.WithOptions(cluster.WithLogger(zap.New(observed))))
		n := w.Nodes[0]
		w.Network.Fault(n.Host, "forged:8080", clustertest.Answer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = fmt.Fprintf(w, `{"data":null,"server":{"serverId":%q}}`, strings.Split(r.URL.Path, "/")[2])
		})))
		announceAt := func(side, year string, ids ...string) {
			var list []string
			for _, id := range ids {
				list = append(list, fmt.Sprintf(`{"serverId":%q,"clusterBaseUrl":"http://forged:8080/%s/%s","updatedAt":"%s-01-01T00:00:00.000Z"}`, id, side, id, year))
			}
			announce(t, w, n, fmt.Sprintf(`{"id":%q,"publicBaseUrl":"","servers":[%s]}`, n.Status().ResourceID, strings.Join(list, ",")))
		}
		announceAt("a", "2030", n.ID)
		for round := range 2 {
			var ids []string
			for i := range 40 {
				ids = append(ids, fmt.Sprintf("id-%d-%d", round, i))
			}
			announceAt("a", "2030", ids...)
			announceAt("b", "2031", ids...)
			time.Sleep(5 * time.Minute)
		}
		conflicts := n.Status().Conflicts
		own := slices.ContainsFunc(conflicts, func(c cluster.Conflict) bool { return c.ServerID == n.ID })
		old := slices.ContainsFunc(conflicts, func(c cluster.Conflict) bool { return strings.HasPrefix(c.ServerID, "id-0") })
		if len(conflicts) != 16 || !own || old {
			t.Errorf("%d conflicts, own %t, old %t: %v", len(conflicts), own, old, conflicts)
		}
		warned := lines.FilterMessage("two running processes use one server id").FilterField(zap.String("id", n.ID)).Len()
		if all := lines.FilterMessage("two running processes use one server id").Len(); warned != 1 || all < 2 || all > 6 {
			t.Errorf("%d warnings, %d of the own id", all, warned)
		}
	})
}
