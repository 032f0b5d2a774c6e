package cluster_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/oauth2"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/mit"
)

const itResources = "/mds/v1/itResources"

// serverPath is where a node is told that a server is gone.
func serverPath(id string) string {
	return itResources + "/" + mit.ResourceID("mds") + "/servers/" + id
}

// A reply is what an endpoint answered.
type reply struct {
	Code   int
	Header http.Header
	Body   string
}

// exchange sends a request over the network of a world, and reads the answer.
func exchange(t *testing.T, w *clustertest.World, req *http.Request) reply {
	t.Helper()
	resp, err := w.Network.Transport("somebody").RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, string(b)}
}

// data is that of the envelope, which must name node-1.
func (r reply) data(t *testing.T) string {
	t.Helper()
	var envelope struct {
		Data   json.RawMessage
		Server struct{ ServerID string }
	}
	if err := json.Unmarshal([]byte(r.Body), &envelope); err != nil || r.Code != http.StatusOK || envelope.Server.ServerID != "node-1" {
		t.Fatalf("%d %s: no envelope of node-1: %v", r.Code, r.Body, err)
	}
	return string(envelope.Data)
}

// refused checks the envelope of an error, and that its message has these words.
func (r reply) refused(t *testing.T, code int, words string) {
	t.Helper()
	var envelope struct {
		StatusCode     int
		Title, Message string
	}
	err := json.Unmarshal([]byte(r.Body), &envelope)
	if err != nil || r.Code != code || envelope.StatusCode != code || envelope.Title != http.StatusText(code) || !strings.Contains(envelope.Message, words) {
		t.Errorf("%d %s: want an error of %d that says %q (%v)", r.Code, r.Body, code, words, err)
	}
	if got := r.Header.Get("Content-Type"); got != "application/json" {
		t.Errorf("content type %q", got)
	}
	if got := r.Header.Get("WWW-Authenticate"); (got == "Bearer") != (code == http.StatusUnauthorized) {
		t.Errorf("WWW-Authenticate %q with %d", got, code)
	}
}

// A sender sends node-1 a request with these authorizations.
type sender func(method, path, body string, authorizations ...string) reply

// A visit is a test that sends requests to node-1 of a world of three nodes.
type visit struct {
	*testing.T
	*clustertest.World
	send sender
}

// bothWays tests the endpoints of a node: over the network, and behind a recorder.
func bothWays(t *testing.T, f func(visit), opts ...clustertest.Option) {
	t.Helper()
	for _, way := range []string{"over the network", "behind a recorder"} {
		t.Run(way, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 3, opts...)
				mux := http.NewServeMux()
				w.Nodes[0].Mount(mux)
				f(visit{t, w, func(method, path, body string, authorizations ...string) reply {
					req, err := http.NewRequestWithContext(t.Context(), method, "http://"+w.Nodes[0].Host+path, strings.NewReader(body))
					if err != nil {
						t.Fatal(err)
					}
					req.Header["Authorization"] = authorizations
					if way == "behind a recorder" {
						rec := httptest.NewRecorder()
						mux.ServeHTTP(rec, req)
						return reply{rec.Code, rec.Header(), rec.Body.String()}
					}
					return exchange(t, w, req)
				}})
			})
		})
	}
}

// bearer signs a cluster token for the node of cfg, changed by edit.
func bearer(t *testing.T, cfg cluster.Config, method jwt.SigningMethod, key any, edit func(jwt.MapClaims)) string {
	t.Helper()
	claims := jwt.MapClaims{
		"iss": cfg.Issuer, "aud": cfg.ClientAudience, "exp": time.Now().Add(time.Hour).Unix(),
		"sub": "mds@clients", "subType": cfg.Type, "type": "cluster",
	}
	if edit != nil {
		edit(claims)
	}
	text, err := jwt.NewWithClaims(method, claims).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return "Bearer " + text
}

func TestStrangersAtThePeerEndpoints(t *testing.T) {
	hs256 := func(edit func(jwt.MapClaims)) func(*testing.T, *clustertest.World) []string {
		return func(t *testing.T, w *clustertest.World) []string {
			t.Helper()
			cfg := w.Nodes[0].Config()
			return []string{bearer(t, cfg, jwt.SigningMethodHS256, []byte(cfg.ClientAccessKey), edit)}
		}
	}
	for name, tt := range map[string]struct {
		authorizations func(*testing.T, *clustertest.World) []string
		code           int
		words          string
	}{
		"no token": {func(*testing.T, *clustertest.World) []string { return nil }, 401, "missing"},
		"two tokens": {func(_ *testing.T, w *clustertest.World) []string {
			return []string{"Bearer " + w.Token("mds", true), "Bearer " + w.Token("mds", true)}
		}, 401, "duplicated"},
		"another scheme": {func(_ *testing.T, w *clustertest.World) []string { return []string{"Basic " + w.Token("mds", true)} }, 401, "no bearer token"},
		"an empty one":   {func(*testing.T, *clustertest.World) []string { return []string{"Bearer "} }, 401, "no bearer token"},
		"no JWT":         {func(*testing.T, *clustertest.World) []string { return []string{"Bearer abc"} }, 401, "malformed"},
		"expired": {func(_ *testing.T, w *clustertest.World) []string {
			token := w.Token("mds", true)
			time.Sleep(24 * time.Hour)
			return []string{"Bearer " + token}
		}, 401, "expired"},
		"signed by nobody": {func(t *testing.T, w *clustertest.World) []string {
			t.Helper()
			return []string{bearer(t, w.Nodes[0].Config(), jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, nil)}
		}, 401, "HS256"},
		"signed by another algorithm": {func(t *testing.T, w *clustertest.World) []string {
			t.Helper()
			cfg := w.Nodes[0].Config()
			return []string{bearer(t, cfg, jwt.SigningMethodHS512, []byte(cfg.ClientAccessKey), nil)}
		}, 401, "HS256"},
		"signed by another key": {func(t *testing.T, w *clustertest.World) []string {
			t.Helper()
			return []string{bearer(t, w.Nodes[0].Config(), jwt.SigningMethodHS256, []byte("another key"), nil)}
		}, 401, "bad signature"},
		"for another audience":   {hs256(func(c jwt.MapClaims) { c["aud"] = "https://others.test" }), 401, "audience"},
		"of another issuer":      {hs256(func(c jwt.MapClaims) { c["iss"] = "http://others.test" }), 401, "issuer"},
		"without expiry":         {hs256(func(c jwt.MapClaims) { delete(c, "exp") }), 401, "exp"},
		"not valid yet":          {hs256(func(c jwt.MapClaims) { c["nbf"] = time.Now().Add(time.Minute).Unix() }), 401, "not valid yet"},
		"no cluster token":       {func(_ *testing.T, w *clustertest.World) []string { return []string{"Bearer " + w.Token("mds", false)} }, 400, "must be a cluster token"},
		"of another type":        {func(_ *testing.T, w *clustertest.World) []string { return []string{"Bearer " + w.Token("mfd", true)} }, 400, `its type is "mfd", not "mds"`},
		"of no type":             {hs256(func(c jwt.MapClaims) { delete(c, "subType") }), 400, "its type is"},
		"almost a cluster token": {hs256(func(c jwt.MapClaims) { c["type"] = "Cluster" }), 400, "must be a cluster token"},
	} {
		t.Run(name, func(t *testing.T) {
			bothWays(t, func(v visit) {
				t, w, send := v.T, v.World, v.send
				authorizations := tt.authorizations(t, w)
				before := marshal(t, w.Nodes[0].Servers())
				send("POST", itResources, announcement("node-9"), authorizations...).refused(t, tt.code, tt.words)
				send("DELETE", serverPath("node-2"), "", authorizations...).refused(t, tt.code, tt.words)
				if after := marshal(t, w.Nodes[0].Servers()); after != before {
					t.Errorf("the view was %s, is %s", before, after)
				}
			})
		})
	}
}

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
		node2 string // its address afterwards
	}{
		"a newcomer":             {announcement("node-9"), []string{"node-1", "node-2", "node-3", "node-9"}, old},
		"two newcomers":          {announcement("node-9", "node-0"), []string{"node-0", "node-1", "node-2", "node-3", "node-9"}, old},
		"whom we know":           {announcement("node-3"), []string{"node-1", "node-2", "node-3"}, old},
		"nobody":                 {resource(ours, "[]"), []string{"node-1", "node-2", "node-3"}, old},
		"nobody, not even []":    {resource(ours, "null"), []string{"node-1", "node-2", "node-3"}, old},
		"of another resource":    {resource("other", `[{"serverId":"node-9","clusterBaseUrl":"http://node-9/mds/v1"}]`), []string{"node-1", "node-2", "node-3"}, old},
		"newer":                  {node2(`,"updatedAt":"2000-01-01T00:00:00.001Z"`), []string{"node-1", "node-2", "node-3"}, "http://elsewhere/mds/v1"},
		"newer, in another zone": {node2(`,"updatedAt":"2000-01-01T01:00:00.001+01:00"`), []string{"node-1", "node-2", "node-3"}, "http://elsewhere/mds/v1"},
		"newer by its creation":  {node2(`,"createdAt":"2000-01-01T00:00:01.000Z"`), []string{"node-1", "node-2", "node-3"}, "http://elsewhere/mds/v1"},
		"of the same age":        {node2(`,"updatedAt":"2000-01-01T00:00:00.000Z"`), []string{"node-1", "node-2", "node-3"}, old},
		"older":                  {node2(`,"createdAt":"2020-01-01T00:00:00.000Z","updatedAt":"1999-12-31T23:59:59.999Z"`), []string{"node-1", "node-2", "node-3"}, old},
		"without a date":         {node2(``), []string{"node-1", "node-2", "node-3"}, old},
		"with a date that is none": {
			node2(`,"updatedAt":"tomorrow"`),
			[]string{"node-1", "node-2", "node-3"},
			old,
		},
		"twice the same": {
			resource(ours, `[{"serverId":"node-2","clusterBaseUrl":"http://b","updatedAt":"2000-01-02T00:00:00Z"},{"serverId":"node-2","clusterBaseUrl":"http://c","updatedAt":"2000-01-03T00:00:00Z"},{"serverId":"node-2","clusterBaseUrl":"http://d","updatedAt":"2000-01-01T00:00:00Z"}]`),
			[]string{"node-1", "node-2", "node-3"},
			"http://c",
		},
		"of one whose address is no text": {
			resource(ours, `[{"serverId":"node-9","clusterBaseUrl":5},{"serverId":"node-8","clusterBaseUrl":"http://node-8","updatedAt":7}]`),
			[]string{"node-1", "node-2", "node-3", "node-8"},
			old,
		},
		"of ourselves, whom nobody knows better": {
			resource(ours, `[{"serverId":"node-1","clusterBaseUrl":"http://elsewhere/mds/v1","updatedAt":"2030-01-01T00:00:00Z"}]`),
			[]string{"node-1", "node-2", "node-3"},
			old,
		},
	} {
		t.Run(name, func(t *testing.T) {
			bothWays(t, func(v visit) {
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
					t.Errorf("it answered %s, and knows %s", data, marshal(t, servers))
				}
			})
		})
	}
}

// The newer entry of a server wins. To the npm module the one it has always does, so that a peer
// which came back elsewhere cannot be reached until the next renewal.
func TestReferenceOlderEntryWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		moved := w.Nodes[2]
		moved.Move("node-3-moved:9090")
		if _, err := moved.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, n := range w.Nodes {
			if got := n.Servers()[2].ClusterBaseURL; got != "http://node-3-moved:9090/mds/v1" {
				t.Errorf("%s knows it at %s", n.ID, got)
			}
			if res := rpc(t, n, cluster.Request{Path: "/things"}); len(res.Results) != 2 {
				t.Errorf("%s: failures %v", n.ID, failures(res))
			}
		}
	})
}

// What a server or the registry says beyond what is known here is sent on as it came.
func TestUnknownFieldsSurvive(t *testing.T) {
	const (
		known = `{"serverId":"node-2","clusterBaseUrl":"http://node-2:8080/mds/v1"`
		more  = `{"n":1.50,"big":12345678901234567890,"serverId":"node-2","clusterBaseUrl":"http://node-2:8080/mds/v1","x":{"é":[1e2,null]}`
	)
	ofNode1 := func(text string) string { return strings.ReplaceAll(text, "node-2", "node-1") }
	t.Run("of an announcement", func(t *testing.T) {
		bothWays(t, func(v visit) {
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
	t.Run("of mIT, in an announcement and a response", func(t *testing.T) {
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
			w.Network.Fault(n.Host, w.Nodes[1].Host, posts(func(next http.RoundTripper) http.RoundTripper {
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

// An announcement is about the node that sends it, and no more comes back than that it was heard:
// when all nodes start together, lists would go from each to each.
func TestAnnouncementIsShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 4)
		l := keepLedger(w)
		n := w.Add()
		r, err := n.Register(t.Context())
		if err != nil || len(r.Results) != 4 {
			t.Fatalf("%+v, %v", r, err)
		}
		for _, o := range r.Results {
			if want := `{"data":null,"server":{"serverId":"` + o.Server.ServerID + `"}}`; string(o.Body) != want {
				t.Errorf("%s answers %s, want %s", o.Server.ServerID, o.Body, want)
			}
		}
		for _, peer := range w.Nodes {
			wantView(t, peer, "node-1", "node-2", "node-3", "node-4", "node-5")
		}
		own, err := json.Marshal(n.Servers()[4])
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range l.announcements(n, clustertest.Any) {
			if most := int64(len(own)) + 150; x.Sent > most { // with what is said of the resource
				t.Errorf("an announcement has %d bytes, more than %d", x.Sent, most)
			}
		}
	})
}

// Who does not say that it can do without gets the list, as the npm module's nodes do.
func TestAnswerToAnAnnouncement(t *testing.T) {
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
					t.Errorf("it answered %d %q %s", rec.Code, applied, rec.Body)
				}
				wantView(t, n, "node-1", "node-2", "node-9")
			})
		})
	}
	t.Run("of a refusal", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 1)
			req := httptest.NewRequest(http.MethodPost, itResources, strings.NewReader("null"))
			req.Header.Set("Authorization", "Bearer "+w.Token("mds", true))
			req.Header.Set("Prefer", "return=minimal")
			rec := httptest.NewRecorder()
			w.Nodes[0].CreateItResource(rec, req)
			if applied := rec.Header().Get("Preference-Applied"); rec.Code != http.StatusBadRequest || applied != "" {
				t.Errorf("it answered %d %q %s", rec.Code, applied, rec.Body)
			}
		})
	})
}

func TestBodiesThatAreNone(t *testing.T) {
	for name, tt := range map[string]struct {
		body string
		code int
	}{
		"nothing":                {"", 400},
		"no JSON":                {"<html>", 400},
		"half":                   {announcement("node-9")[:40], 400},
		"more than one":          {announcement("node-9") + announcement("node-9"), 400},
		"null":                   {"null", 400},
		"a list":                 {"[]", 400},
		"no id":                  {`{"servers":[]}`, 400},
		"an id that is no text":  {`{"id":1,"servers":[]}`, 400},
		"servers that are none":  {`{"id":"a","servers":{}}`, 400},
		"a server that is none":  {`{"id":"a","servers":["node-9"]}`, 400},
		"a server without an id": {`{"id":"a","servers":[{"clusterBaseUrl":"http://node-9"}]}`, 400},
		"too large":              {`{"id":"` + strings.Repeat("a", 1000) + `"}`, 413},
		"too large, and no JSON": {strings.Repeat("a", 1001), 413},
	} {
		t.Run(name, func(t *testing.T) {
			bothWays(t, func(v visit) {
				t, w, send := v.T, v.World, v.send
				words := "no itResource"
				if tt.code == 413 {
					words = "more than 1000 bytes"
				}
				send("POST", itResources, tt.body, "Bearer "+w.Token("mds", true)).refused(t, tt.code, words)
				wantView(t, w.Nodes[0], "node-1", "node-2", "node-3")
			}, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxRequestBytes = 1000 }))
		})
	}
}

// A body that comes too slowly is cut off. A socket is needed: only there are read deadlines.
func TestSlowBodyIsCutOff(t *testing.T) {
	cfg := config()
	cfg.RequestTimeout = 50 * time.Millisecond
	c, err := cluster.New(cfg, cluster.WithoutEnv(), cluster.WithVerifier(verifier{"mds", "cluster"}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	mux := http.NewServeMux()
	c.Mount(mux)
	srv := httptest.NewServer(mux)
	defer srv.Close()
	var dialer net.Dialer
	conn, err := dialer.DialContext(t.Context(), "tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil { // without a cut, the test ends here
		t.Fatal(err)
	}
	start := time.Now()
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer t\r\nContent-Length: 100\r\n\r\n{\"id\":", itResources)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("no answer after %v: %v", time.Since(start), err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	reply{resp.StatusCode, resp.Header, string(body)}.refused(t, 400, "no itResource")
	if took := time.Since(start); took < 50*time.Millisecond || took > 5*time.Second {
		t.Errorf("cut off after %v", took)
	}
}

// A verifier lets everybody in as an instance of a type.
type verifier struct{ subType, typ string }

func (v verifier) Verify(_ context.Context, token string) (cluster.Claims, error) {
	if token == "bad" {
		return cluster.Claims{}, errors.New("I know " + token)
	}
	return cluster.Claims{SubType: v.subType, Type: v.typ, Subject: "me " + token}, nil
}

// Servers at addresses that must not be called are left out; the others join all the same.
func TestAnnouncementOfBadAddresses(t *testing.T) {
	bad := []string{
		"", "/mds/v1", "node-9:8080/mds/v1", "ftp://node-9/", "file:///etc/passwd", "http://", "http:///mds/v1", "//node-9/mds/v1",
		"http://user:password@node-9/mds/v1", "http://user@node-9/mds/v1", "http://node-9/mds/v1?x=1", "http://node-9/mds/v1?", "http://node-9/mds/v1#x",
		"http://169.254.169.254/latest", "http://[fe80::1]/", "http://[fe80::1%25eth0]/", "http://[::ffff:169.254.169.254]/",
		"http://224.0.0.1/", "http://0.0.0.0:8080/", "http://[::]/", "http://node 9/", "http://node-9:port/", "\x00",
	}
	t.Run("of any policy", func(t *testing.T) {
		bothWays(t, func(v visit) {
			t, w, send := v.T, v.World, v.send
			type server struct {
				ServerID       string `json:"serverId"`
				ClusterBaseURL string `json:"clusterBaseUrl"`
			}
			servers := []server{{"good", "https://node-9:8443/mds/v1/"}}
			for i, address := range bad {
				servers = append(servers, server{fmt.Sprintf("bad-%d", i), address})
			}
			body := marshal(t, map[string]any{"id": mit.ResourceID("mds"), "servers": servers})
			send("POST", itResources, body, "Bearer "+w.Token("mds", true)).data(t)
			wantView(t, w.Nodes[0], "good", "node-1", "node-2", "node-3")
		})
	})
	for name, tt := range map[string]struct {
		policy cluster.PeerPolicy
		view   []string
	}{
		"of networks": {cluster.PeerPolicy{Networks: prefixes("10.0.0.0/8", "fd00::/8")}, []string{"in-10", "in-fd00", "named", "node-1", "node-2", "node-3"}},
		"of a hook": {cluster.PeerPolicy{Allow: func(s cluster.Server) error {
			if strings.HasPrefix(s.ServerID, "node-") || s.ClusterBaseURL == "http://192.168.0.1/" {
				return nil
			}
			return errors.New("not one of us")
		}}, []string{"in-192", "node-1", "node-2", "node-3"}},
	} {
		t.Run(name, func(t *testing.T) {
			bothWays(t, func(v visit) {
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

// Announcements do not make a view grow without bound. Who is in it already may renew.
func TestAnnouncementOfTooMany(t *testing.T) {
	bothWays(t, func(v visit) {
		t, w, send := v.T, v.World, v.send
		n, token := w.Nodes[0], "Bearer "+w.Token("mds", true)
		send("POST", itResources, announcement("node-8", "node-9"), token).refused(t, 400, "5 servers, 4 are allowed")
		wantView(t, n, "node-1", "node-2", "node-3")
		send("POST", itResources, announcement("node-9"), token).data(t)
		wantView(t, n, "node-1", "node-2", "node-3", "node-9")
		send("POST", itResources, announcement("node-8"), token).refused(t, 400, "5 servers, 4 are allowed")
		send("POST", itResources, resourceOf("2001-01-01T00:00:00.000Z", "node-9"), token).data(t)
		if got := n.Servers()[3].CreatedAt.Year(); got != 2001 {
			t.Errorf("the newer entry of a server that is known was not taken: %d", got)
		}
	}, clustertest.WithOptions(cluster.WithPeerPolicy(cluster.PeerPolicy{MaxServers: 4})))
}

func TestDeleteServer(t *testing.T) {
	ours := mit.ResourceID("mds")
	for name, tt := range map[string]struct {
		path string
		data string
		view []string
	}{
		"a peer":                  {"/" + ours + "/servers/node-2", `"node-2"`, []string{"node-1", "node-3"}},
		"a peer, escaped":         {"/" + ours + "/servers/node%2D2", `"node-2"`, []string{"node-1", "node-3"}},
		"whom we don't know":      {"/" + ours + "/servers/node-9", `"node-9"`, []string{"node-1", "node-2", "node-3"}},
		"of another resource":     {"/other/servers/node-2", `null`, []string{"node-1", "node-2", "node-3"}},
		"the node itself":         {"/" + ours + "/servers/node-1", `"node-1"`, []string{"node-1", "node-2", "node-3"}},
		"the node, of another id": {"/other/servers/node-1", `null`, []string{"node-1", "node-2", "node-3"}},
	} {
		t.Run(name, func(t *testing.T) {
			bothWays(t, func(v visit) {
				t, w, send := v.T, v.World, v.send
				if data := send("DELETE", itResources+tt.path, "", "Bearer "+w.Token("mds", true)).data(t); data != tt.data {
					t.Errorf("it answered %s", data)
				}
				wantView(t, w.Nodes[0], tt.view...)
			})
		})
	}
	t.Run("twice", func(t *testing.T) {
		bothWays(t, func(v visit) {
			t, w, send := v.T, v.World, v.send
			for range 2 {
				send("DELETE", serverPath("node-2"), "", "Bearer "+w.Token("mds", true)).data(t)
				wantView(t, w.Nodes[0], "node-1", "node-3")
			}
		})
	})
}

// A router that does not fill in path values will do, too.
func TestEndpointsUnderAnyRouter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		n := w.Nodes[0]
		token := "Bearer " + w.Token("mds", true)
		serve := func(h http.HandlerFunc, method, path, body string) reply {
			req := httptest.NewRequest(method, path, strings.NewReader(body))
			req.Header.Set("Authorization", token)
			rec := httptest.NewRecorder()
			h(rec, req)
			return reply{rec.Code, rec.Header(), rec.Body.String()}
		}
		serve(n.CreateItResource, "POST", "/anywhere", announcement("node-9")).data(t)
		wantView(t, n, "node-1", "node-2", "node-3", "node-9")
		if data := serve(n.DeleteServer, "DELETE", "/below"+serverPath("node%2D2"), "").data(t); data != `"node-2"` {
			t.Errorf("it answered %s", data)
		}
		wantView(t, n, "node-1", "node-3", "node-9")
	})
}

// Peers may know of a node before mIT has answered it. The npm module crashes.
func TestReferenceDeleteBeforeRegistration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		n := w.Add()
		tell(t, w, n, "DELETE", serverPath("node-9"), "")
		tell(t, w, n, "DELETE", serverPath(n.ID), "")
		wantView(t, n)
		announce(t, w, n, announcement("node-8", "node-9")) // which is believed until mIT says otherwise
		wantView(t, n, "node-8", "node-9")
		tell(t, w, n, "DELETE", serverPath("node-9"), "")
		wantView(t, n, "node-8")
		if n.Status().State != cluster.Orphan {
			t.Errorf("it is %s", n.Status().State)
		}
	})
}

// An announcement may be taken as a reason to ask mIT, and for nothing else.
func TestAnnouncementAsAHint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2, clustertest.WithOptions(cluster.WithPeerPolicy(cluster.PeerPolicy{VerifyWithRegistry: true})))
		n := w.Nodes[0]
		time.Sleep(time.Minute)
		unnoticedBy := w.Add() // whom mIT knows, and n does not
		w.Network.Fault(unnoticedBy.Host, n.Host, clustertest.Status(503))
		if _, err := unnoticedBy.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantView(t, n, "node-1", "node-2")
		seen := keepLedger(w)
		for range 100 {
			announce(t, w, n, announcement("made-up"))
		}
		synctest.Wait()
		wantView(t, n, "node-1", "node-2", "node-3")
		time.Sleep(10 * time.Second)
		wantView(t, n, "node-1", "node-2", "node-3")
		if asked := len(seen.renewals(n)); asked < 1 || asked > 2 {
			t.Errorf("mIT was asked %d times for 100 announcements at once", asked)
		}
	})
}

func TestCorrelationIDOfAnIncomingRequest(t *testing.T) {
	const incoming, ours = "an-id@3/2000-01-01T00:00:00.000Z", "an-id@4/2000-01-01T00:00:00.000Z"
	synctest.Test(t, func(t *testing.T) {
		core, logged := observer.New(zap.DebugLevel)
		w := clustertest.Start(t, 2, clustertest.WithOptions(cluster.WithLogger(zap.New(core))),
			clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
				return n.Authenticate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if strings.HasSuffix(r.URL.Path, "/ask") { // on the caller's behalf
						rpc2, err := n.RPCluster(r.Context(), cluster.Request{Path: "/id"})
						if err != nil {
							n.ReplyError(w, r, err)
							return
						}
						n.Reply(w, r, append([]json.RawMessage{[]byte(`"` + cluster.CorrelationID(r.Context()) + `"`)}, rpc2.Data...))
						return
					}
					n.Reply(w, r, r.Header.Get("X-Correlation-Id"))
				}))
			}))
		n := w.Nodes[0]
		send := func(method, path, token, body string) reply {
			req, err := http.NewRequestWithContext(t.Context(), method, "http://"+n.Host+path, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+token)
			req.Header.Set("X-Correlation-Id", incoming)
			return exchange(t, w, req)
		}
		good := w.Token("mds", true)
		for name, got := range map[string]reply{
			"an announcement": send("POST", itResources, good, resourceOf("", "x")),
			"of another id":   send("POST", itResources, good, `{"id":"another","servers":[]}`),
			"a delete":        send("DELETE", serverPath("node-9"), good, ""),
			"a bad token":     send("DELETE", serverPath("node-9"), "bad", ""),
			"no cluster":      send("POST", itResources, w.Token("mds", false), ""),
		} {
			if id := got.Header.Values("X-Correlation-Id"); len(id) != 1 || id[0] != ours {
				t.Errorf("%s: answered with correlation id %q", name, id)
			}
		}
		for _, message := range []string{"inconsistent cluster: no change", "request refused"} {
			lines := logged.FilterMessage(message).All()
			if len(lines) == 0 {
				t.Errorf("no line %q", message)
			}
			for _, line := range lines {
				if got := line.ContextMap()["correlationId"]; got != ours {
					t.Errorf("%s: logged with correlation id %v", message, got)
				}
			}
		}

		// In the context, and unchanged on what is done on its behalf.
		if data := send("GET", "/mds/v1/ask", good, "").data(t); data != `["`+ours+`","`+ours+`"]` {
			t.Errorf("in the context, and at a peer: %s", data)
		}
	})
}

func TestAuthenticate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1)
		n := w.Nodes[0]
		plain, foreign := w.Token("mds", false), w.Token("mfd", true)
		var got cluster.Claims
		serve := func(guard func(http.Handler) http.Handler, token string) reply {
			got = cluster.Claims{}
			h := guard(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				got, _ = cluster.ClaimsFrom(r.Context())
				w.WriteHeader(http.StatusNoContent)
			}))
			req := httptest.NewRequest("GET", "/anything", nil)
			req.Header.Set("Authorization", "bearer "+token) // schemes are equal in any case
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, req)
			return reply{rec.Code, rec.Header(), rec.Body.String()}
		}
		if r := serve(n.Authenticate, plain); r.Code != 204 || got.SubType != "mds" || got.Type != "" || got.Subject != "mds@clients" || got.ExpiresAt.IsZero() || r.Header.Get("X-Correlation-Id") == "" {
			t.Errorf("a plain token: %v, %+v", r, got)
		}
		if r := serve(n.Authenticate, foreign); r.Code != 204 || got.SubType != "mfd" || got.Type != "cluster" {
			t.Errorf("one of another type: %v, %+v", r, got)
		}
		if r := serve(n.AuthenticatePeer, plain); r.Code != 204 || got.SubType != "mds" {
			t.Errorf("a peer's: %v, %+v", r, got)
		}
		serve(n.AuthenticatePeer, foreign).refused(t, 403, `its type is "mfd", not "mds"`)
		serve(n.AuthenticatePeer, "bad").refused(t, 401, "malformed")
		serve(n.Authenticate, "bad").refused(t, 401, "malformed")
		if got.SubType != "" {
			t.Error("a refused request came through")
		}
		if _, ok := cluster.ClaimsFrom(t.Context()); ok {
			t.Error("claims out of nowhere")
		}
	})
}

func TestReplies(t *testing.T) {
	c := newNode(t, config(), http.DefaultTransport)
	defer c.Close()
	for name, tt := range map[string]struct {
		serve func(w http.ResponseWriter, r *http.Request)
		code  int
		body  string
	}{
		"a value":              {func(w http.ResponseWriter, r *http.Request) { c.Reply(w, r, []int{1}) }, 200, `{"data":[1],"server":{"serverId":"node-1"}}`},
		"nothing":              {func(w http.ResponseWriter, r *http.Request) { c.Reply(w, r, nil) }, 200, `{"data":null,"server":{"serverId":"node-1"}}`},
		"what cannot be told":  {func(w http.ResponseWriter, r *http.Request) { c.Reply(w, r, make(chan int)) }, 500, `{"statusCode":500,"title":"Internal Server Error","message":"encoding the answer: json: unsupported type: chan int"}`},
		"an error":             {func(w http.ResponseWriter, r *http.Request) { c.ReplyError(w, r, errors.New("broken")) }, 500, `{"statusCode":500,"title":"Internal Server Error","message":"broken"}`},
		"a status":             {replyError(c, &cluster.StatusError{Code: 404, Message: "no such thing"}), 404, `{"statusCode":404,"title":"Not Found","message":"no such thing"}`},
		"a status, wrapped":    {replyError(c, fmt.Errorf("looking: %w", &cluster.StatusError{Code: 404, Message: "no such thing"})), 404, `{"statusCode":404,"title":"Not Found","message":"no such thing"}`},
		"with info":            {replyError(c, &cluster.StatusError{Code: 409, Message: "taken", Info: []byte(`{"by":1}`)}), 409, `{"statusCode":409,"title":"Conflict","message":"taken","info":{"by":1}}`},
		"with info like none":  {replyError(c, &cluster.StatusError{Code: 409, Message: "taken", Info: []byte(`{`)}), 409, `{"statusCode":409,"title":"Conflict","message":"taken"}`},
		"a status that is ok":  {replyError(c, &cluster.StatusError{Code: 200, Message: "fine"}), 500, `{"statusCode":500,"title":"Internal Server Error","message":"200 OK: fine"}`},
		"a status of a peer's": {replyError(c, &cluster.StatusError{Remote: `peer "x"`, Method: "GET", URL: "http://x", Code: 404}), 500, `{"statusCode":500,"title":"Internal Server Error","message":"peer \"x\" answered 404 Not Found to GET http://x"}`},
		"management is off":    {replyError(c, cluster.ErrManagementOff), 409, `{"statusCode":409,"title":"Conflict","message":"cluster: management is off"}`},
		"closed":               {replyError(c, cluster.ErrClosed), 503, `{"statusCode":503,"title":"Service Unavailable","message":"cluster: closed"}`},
		"an invalid request":   {replyError(c, cluster.ErrInvalidRequest), 400, `{"statusCode":400,"title":"Bad Request","message":"cluster: invalid request"}`},
	} {
		t.Run(name, func(t *testing.T) {
			rec := httptest.NewRecorder()
			tt.serve(rec, httptest.NewRequest("GET", "/", nil))
			if diff := cmp.Diff(tt.body, rec.Body.String()); rec.Code != tt.code || diff != "" {
				t.Errorf("%d (-want +got):\n%s", rec.Code, diff)
			}
			if rec.Header().Get("Content-Type") != "application/json" || rec.Header().Get("X-Correlation-Id") == "" {
				t.Errorf("headers %v", rec.Header())
			}
		})
	}
}

func replyError(c *cluster.Cluster, err error) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) { c.ReplyError(w, r, err) }
}

// A verifier of one's own replaces the keys; its error is told, but never the token.
func TestWithVerifier(t *testing.T) {
	cfg := config()
	cfg.ClientAccessKey = "" // nothing to check with but the verifier
	c, err := cluster.New(cfg, cluster.WithoutEnv(), cluster.WithVerifier(verifier{"mds", "cluster"}),
		cluster.WithTokens(func(cluster.TokenKey) oauth2.TokenSource { return nil }))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	serve := func(token string) reply {
		rec := httptest.NewRecorder()
		req := httptest.NewRequest("DELETE", "/mds/v1/itResources/x/servers/y", nil)
		req.Header.Set("Authorization", "bearer "+token)
		c.DeleteServer(rec, req)
		return reply{rec.Code, rec.Header(), rec.Body.String()}
	}
	if data := serve("anything").data(t); data != "null" {
		t.Errorf("it answered %s", data)
	}
	refusal := serve("bad")
	refusal.refused(t, 401, "I know")
	if strings.Contains(refusal.Body, "I know bad") {
		t.Errorf("it repeats the token: %s", refusal.Body)
	}
}

// A key is changed in a running cluster without anybody noticing: nodes take both for a while.
func TestKeyRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const next = "the next key"
		w := clustertest.Start(t, 3, clustertest.WithTokenTTL(time.Hour), clustertest.WithConfig(func(cfg *cluster.Config) {
			cfg.GenericKey, cfg.GenericPreviousKey, cfg.GenericAudience = next, cfg.ClientAccessKey, cfg.ClientAudience
		}))
		n := w.Nodes[0]
		check := func(when string) {
			for _, node := range w.Nodes {
				if res := rpc(t, node, cluster.Request{Path: "/things"}); len(res.Results) != 2 {
					t.Errorf("%s: %s: failures %v", when, node.ID, failures(res))
				}
			}
		}
		check("with the previous key")
		if err := w.Tokens.SetKey(next); err != nil {
			t.Fatal(err)
		}
		w.Registry.SetKeys(next, string(n.Config().ClientAccessKey))
		check("with tokens of the previous key")
		time.Sleep(2 * time.Hour) // all have new tokens
		check("with the next key")
		token := bearer(t, n.Config(), jwt.SigningMethodHS256, []byte("neither"), nil)
		req := httptest.NewRequest("DELETE", serverPath("node-2"), nil)
		req.Header.Set("Authorization", token)
		rec := httptest.NewRecorder()
		n.DeleteServer(rec, req)
		reply{rec.Code, rec.Header(), rec.Body.String()}.refused(t, 401, "bad signature")
	})
}
