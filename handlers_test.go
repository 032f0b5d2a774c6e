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
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/oauth2"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/internal/wire"
	"github.com/mimiktech/cluster/mit"
)

func TestPeerEndpointsRejectInvalidTokens(t *testing.T) {
	hs256 := func(edit func(jwt.MapClaims)) func(*testing.T, *clustertest.World) []string {
		return func(t *testing.T, w *clustertest.World) []string {
			t.Helper()
			cfg := w.Nodes[0].Config()
			return []string{signToken(t, cfg, jwt.SigningMethodHS256, []byte(cfg.ClientAccessKey), edit)}
		}
	}
	for name, tt := range map[string]struct {
		authorizations func(*testing.T, *clustertest.World) []string
		code           int
		words          string // in the error
	}{
		"without a token": {func(*testing.T, *clustertest.World) []string { return nil }, 401, "missing"},
		"two tokens": {func(_ *testing.T, w *clustertest.World) []string {
			return []string{"Bearer " + w.Token("mds", true), "Bearer " + w.Token("mds", true)}
		}, 401, "duplicated"},
		"another scheme": {func(_ *testing.T, w *clustertest.World) []string { return []string{"Basic " + w.Token("mds", true)} }, 401, "not a bearer token"},
		"an empty token": {func(*testing.T, *clustertest.World) []string { return []string{"Bearer "} }, 401, "not a bearer token"},
		"not a JWT":      {func(*testing.T, *clustertest.World) []string { return []string{"Bearer abc"} }, 403, "malformed"},
		"expired": {func(_ *testing.T, w *clustertest.World) []string {
			token := w.Token("mds", true)
			time.Sleep(24*time.Hour + 10*time.Second) // its time, and the leeway
			return []string{"Bearer " + token}
		}, 403, "expired"},
		"unsigned": {func(t *testing.T, w *clustertest.World) []string {
			t.Helper()
			return []string{signToken(t, w.Nodes[0].Config(), jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, nil)}
		}, 403, "HS256"},
		"signed by another algorithm": {func(t *testing.T, w *clustertest.World) []string {
			t.Helper()
			cfg := w.Nodes[0].Config()
			return []string{signToken(t, cfg, jwt.SigningMethodHS512, []byte(cfg.ClientAccessKey), nil)}
		}, 403, "HS256"},
		"signed by another key": {func(t *testing.T, w *clustertest.World) []string {
			t.Helper()
			return []string{signToken(t, w.Nodes[0].Config(), jwt.SigningMethodHS256, []byte("another key"), nil)}
		}, 403, "bad signature"},
		"for another audience": {hs256(func(c jwt.MapClaims) { c["aud"] = "https://others.test" }), 403, "audience"},
		"of another issuer":    {hs256(func(c jwt.MapClaims) { c["iss"] = "http://others.test" }), 403, "issuer"},
		"without expiry":       {hs256(func(c jwt.MapClaims) { delete(c, "exp") }), 403, "exp"},
		"not valid yet":        {hs256(func(c jwt.MapClaims) { c["nbf"] = time.Now().Add(time.Minute).Unix() }), 403, "not valid yet"},
		"not a cluster token":  {func(_ *testing.T, w *clustertest.World) []string { return []string{"Bearer " + w.Token("mds", false)} }, 400, "must be a cluster token"},
		"of another type":      {func(_ *testing.T, w *clustertest.World) []string { return []string{"Bearer " + w.Token("mfd", true)} }, 400, `its type is "mfd", not "mds"`},
		"without a type":       {hs256(func(c jwt.MapClaims) { delete(c, "subType") }), 400, "its type is"},
		"cluster in capitals":  {hs256(func(c jwt.MapClaims) { c["type"] = "Cluster" }), 400, "must be a cluster token"},
	} {
		t.Run(name, func(t *testing.T) {
			testEndpoints(t, func(v endpointTest) {
				t, w, send := v.T, v.World, v.send
				authorizations := tt.authorizations(t, w)
				before := marshal(t, w.Nodes[0].Servers())
				send("POST", itResources, announcement("node-9"), authorizations...).wantError(t, tt.code, tt.words)
				send("DELETE", serverPath("node-2"), "", authorizations...).wantError(t, tt.code, tt.words)
				if after := marshal(t, w.Nodes[0].Servers()); after != before {
					t.Errorf("the view was %s, is %s", before, after)
				}
			})
		})
	}
}

func TestMalformedBodies(t *testing.T) {
	for name, tt := range map[string]struct {
		body string
		code int
	}{
		"empty":                  {"", 400},
		"HTML":                   {"<html>", 400},
		"truncated":              {announcement("node-9")[:40], 400},
		"two values":             {announcement("node-9") + announcement("node-9"), 400},
		"null":                   {"null", 400},
		"a list":                 {"[]", 400},
		"without id":             {`{"servers":[]}`, 400},
		"a number as id":         {`{"id":1,"servers":[]}`, 400},
		"an object as servers":   {`{"id":"a","servers":{}}`, 400},
		"a string as server":     {`{"id":"a","servers":["node-9"]}`, 400},
		"a server without an id": {`{"id":"a","servers":[{"clusterBaseUrl":"http://node-9"}]}`, 400},
		"too large":              {`{"id":"` + strings.Repeat("a", 1000) + `"}`, 413},
		"too large, not JSON":    {strings.Repeat("a", 1001), 413},
	} {
		t.Run(name, func(t *testing.T) {
			testEndpoints(t, func(v endpointTest) {
				t, w, send := v.T, v.World, v.send
				words := "not an itResource"
				if tt.code == 413 {
					words = "more than 1000 bytes"
				}
				send("POST", itResources, tt.body, "Bearer "+w.Token("mds", true)).wantError(t, tt.code, words)
				wantView(t, w.Nodes[0], "node-1", "node-2", "node-3")
			}, clustertest.WithConfig(func(cfg *cluster.Config) { cfg.MaxRequestBytes = 1000 }))
		})
	}
}

// A body that arrives too slowly ends the request. The test needs a socket, which has read
// deadlines.
func TestSlowBodyTimesOut(t *testing.T) {
	cfg := testConfig()
	cfg.RequestTimeout = 50 * time.Millisecond
	c, err := cluster.New(cfg, cluster.WithoutEnv(), cluster.WithVerifier(fixedVerifier{"mds", "cluster"}))
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
	// Ends the test if the body does not time out.
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer t\r\nContent-Length: 100\r\n\r\n{\"id\":", itResources)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("no response after %v: %v", time.Since(start), err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	reply{resp.StatusCode, resp.Header, string(body)}.wantError(t, 400, "not an itResource")
	if took := time.Since(start); took < 50*time.Millisecond || took > 5*time.Second {
		t.Errorf("timed out after %v", took)
	}
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
		"an unknown server":       {"/" + ours + "/servers/node-9", `"node-9"`, []string{"node-1", "node-2", "node-3"}},
		"of another resource":     {"/other/servers/node-2", `null`, []string{"node-1", "node-2", "node-3"}},
		"the node itself":         {"/" + ours + "/servers/node-1", `"node-1"`, []string{"node-1", "node-2", "node-3"}},
		"the node, of another id": {"/other/servers/node-1", `null`, []string{"node-1", "node-2", "node-3"}},
	} {
		t.Run(name, func(t *testing.T) {
			testEndpoints(t, func(v endpointTest) {
				t, w, send := v.T, v.World, v.send
				if data := send("DELETE", itResources+tt.path, "", "Bearer "+w.Token("mds", true)).data(t); data != tt.data {
					t.Errorf("the reply is %s", data)
				}
				wantView(t, w.Nodes[0], tt.view...)
			})
		})
	}
	t.Run("twice", func(t *testing.T) {
		testEndpoints(t, func(v endpointTest) {
			t, w, send := v.T, v.World, v.send
			for range 2 {
				send("DELETE", serverPath("node-2"), "", "Bearer "+w.Token("mds", true)).data(t)
				wantView(t, w.Nodes[0], "node-1", "node-3")
			}
		})
	})
}

func FuzzDeleteServer(f *testing.F) {
	for _, seed := range [][2]string{
		{"it", "node-2"},
		{"it", "node-1"},
		{"it", "node-9"},
		{"another", "node-2"},
		{"it", "node-2@2020-01-01T00:00:00.000Z"},
		{"", ""},
		{"", "node-2"},
		{"it", ""},
		{"it", ".."},
		{"..", "."},
		{"it/servers/x", "node-2"},
		{"it", "x/servers/node-2"},
		{"it", "\x00"},
		{"it", "\xff"},
		{"it", "node-2 "},
		{"it", "node-%32"},
		{"IT", "node-2"},
		{"it", "<script>"},
		{"it", "é"},
		{"itResources", "servers"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, id, serverID string) {
		c := newRegisteredNode(t, &remotes{view: []string{"node-1", "node-2", "node-3"}})
		r := &http.Request{
			Method: http.MethodDelete, Body: http.NoBody, Header: http.Header{"Authorization": {"Bearer peer"}},
			URL: &url.URL{
				Path:    "/mds/v1/itResources/" + id + "/servers/" + serverID,
				RawPath: "/mds/v1/itResources/" + url.PathEscape(id) + "/servers/" + url.PathEscape(serverID),
			},
		}
		got := serve(http.HandlerFunc(c.DeleteServer), r)
		data := got.decode(t)
		if got.Code != http.StatusOK {
			t.Fatalf("the reply is %d %s", got.Code, got.Body)
		}
		wantData, wantView := "null", []string{"node-1", "node-2", "node-3"}
		if id == "it" {
			encoded, err := wire.Marshal(serverID)
			if err != nil {
				t.Fatal(err)
			}
			wantData = string(encoded)
			if serverID != "node-1" {
				wantView = slices.DeleteFunc(wantView, func(id string) bool { return id == serverID })
			}
		}
		if string(data) != wantData {
			t.Errorf("answered %s, want %s", data, wantData)
		}
		if diff := cmp.Diff(wantView, checkView(t, c)); diff != "" {
			t.Errorf("the view (-want +got):\n%s", diff)
		}
	})
}

// The endpoints do not need a router that sets path values.
func TestEndpointsUnderAnyRouter(t *testing.T) {
	parallel(t)
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
			t.Errorf("the reply is %s", data)
		}
		wantView(t, n, "node-1", "node-3", "node-9")
	})
}

// The endpoints read the ids from the path, whatever path values an outer router has set.
func TestEndpointsUnderOuterPatterns(t *testing.T) {
	parallel(t)
	for _, pattern := range []string{
		"/", "/{id}/", "/{serverId}/", "DELETE /{rest...}", "DELETE /mds/v1/itResources/{rest...}", "DELETE /mds/v1/{id}/{rest...}",
		"DELETE /mds/v1/itResources/{serverId}/servers/{id}", "DELETE /mds/v1/itResources/{id}/servers/{name}",
	} {
		t.Run(pattern, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 3)
				n := w.Nodes[0]
				inner := http.NewServeMux()
				n.Mount(inner)
				for name, h := range map[string]http.Handler{"node-2": http.HandlerFunc(n.DeleteServer), "node-3": inner} {
					outer := http.NewServeMux()
					outer.Handle(pattern, h)
					req := httptest.NewRequest("DELETE", serverPath(name), nil)
					req.Header.Set("Authorization", "Bearer "+w.Token("mds", true))
					if data := serve(outer, req).data(t); data != `"`+name+`"` {
						t.Errorf("the reply is %s", data)
					}
				}
				wantView(t, n, "node-1")
			})
		})
	}
}

// A path from which no server can be read is not answered with a success.
func TestDeleteServerWithoutIDs(t *testing.T) {
	c := newRegisteredNode(t, &remotes{view: []string{"node-1", "node-2"}})
	for path, values := range map[string][2]string{
		"/gone/it/node-2": {"it", "node-2"}, // a router that rewrites the path
		"/gone":           {},
		"/gone/it":        {"it", ""},
		"/gone/node-2":    {"", "node-2"},
		"/a/b/c/d":        {"", ""},
	} {
		req := httptest.NewRequest("DELETE", path, nil)
		req.Header.Set("Authorization", "Bearer peer")
		req.SetPathValue("id", values[0])
		req.SetPathValue("serverId", values[1])
		got := serve(http.HandlerFunc(c.DeleteServer), req)
		if values[0] != "" && values[1] != "" {
			if data := got.decode(t); string(data) != `"node-2"` {
				t.Errorf("%s: the reply is %s", path, data)
			}
		} else if got.Code != http.StatusBadRequest {
			t.Errorf("%s: %d %s", path, got.Code, got.Body)
		}
	}
}

func TestRoutes(t *testing.T) {
	c := newNode(t, testConfig(), http.DefaultTransport)
	var got []string
	for _, r := range c.Routes() {
		got = append(got, r.Method+" "+r.Pattern+" "+r.ColonPattern())
		req := httptest.NewRequest(r.Method, strings.NewReplacer("{id}", "it", "{serverId}", "node-2").Replace(r.Pattern), nil)
		if got := serve(r.Handler, req); got.Code != http.StatusUnauthorized {
			t.Errorf("%s %s: %d", r.Method, r.Pattern, got.Code)
		}
	}
	want := []string{
		"POST /mds/v1/itResources /mds/v1/itResources",
		"DELETE /mds/v1/itResources/{id}/servers/{serverId} /mds/v1/itResources/:id/servers/:serverId",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestRequireScope(t *testing.T) {
	for name, tt := range map[string]struct {
		granted, required string
		code              int
	}{
		"the scope":        {"things:read", "things:read", 200},
		"among others":     {"a  things:read\tb", "things:read", 200},
		"two":              {"b a", "a b", 200},
		"one of two":       {"a", "a b", 403},
		"a longer one":     {"things:readall", "things:read", 403},
		"none":             {"", "things:read", 403},
		"an empty scope":   {"a", "", 403},
		"a blank scope":    {"a", " ", 403},
		"no claims":        {"unauthenticated", "a", 401},
		"another spelling": {"Things:Read", "things:read", 403},
	} {
		t.Run(name, func(t *testing.T) {
			c := newNode(t, testConfig(), http.DefaultTransport, cluster.WithVerifier(scopeVerifier(tt.granted)))
			h := c.RequireScope(tt.required, responder(http.StatusOK, "{}"))
			if tt.granted != "unauthenticated" {
				h = c.Authenticate(h)
			}
			req := httptest.NewRequest("GET", "/things", nil)
			req.Header.Set("Authorization", "Bearer token")
			got := serve(h, req)
			if got.Code != tt.code || (tt.code != 200) != (got.Header.Get("WWW-Authenticate") != "") {
				t.Errorf("%d %v %s", got.Code, got.Header, got.Body)
			}
		})
	}
}

type scopeVerifier string

func (v scopeVerifier) Verify(context.Context, string) (cluster.Claims, error) {
	return cluster.Claims{Scope: string(v)}, nil
}

// A verifier that cannot reach its keys says nothing about the token.
func TestVerifierUnavailable(t *testing.T) {
	logs, entries := observer.New(zap.DebugLevel)
	c := newNode(t, testConfig(), http.DefaultTransport, cluster.WithLogger(zap.New(logs)), cluster.WithVerifier(failingVerifier{
		fmt.Errorf("fetching keys with bearer-token of 10.0.0.9: %w", cluster.ErrVerifierUnavailable),
	}))
	for name, h := range map[string]http.Handler{
		"Authenticate": c.Authenticate(responder(http.StatusOK, "")), "AuthenticatePeer": c.AuthenticatePeer(responder(http.StatusOK, "")),
		"CreateItResource": http.HandlerFunc(c.CreateItResource),
	} {
		req := httptest.NewRequest("POST", "/things", nil)
		req.Header.Set("Authorization", "Bearer bearer-token")
		got := serve(h, req)
		if got.Code != http.StatusServiceUnavailable || strings.Contains(got.Body, "10.0.0.9") || got.Header.Get("WWW-Authenticate") != "" {
			t.Errorf("%s: %d %v %s", name, got.Code, got.Header, got.Body)
		}
	}
	lines := entries.FilterMessage("token verification unavailable").All()
	if len(lines) != 1 {
		t.Errorf("%d lines are logged, want one a minute", len(lines))
	}
	for _, line := range lines {
		if text := marshal(t, line.ContextMap()); !strings.Contains(text, "10.0.0.9") || strings.Contains(text, "bearer-token") {
			t.Errorf("logged %s", text)
		}
	}
}

// A node that refuses all tokens is at fault itself. It says so, once a minute.
func TestAllTokensRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs, entries := observer.New(zap.WarnLevel)
		c := newNode(t, testConfig(), http.DefaultTransport, cluster.WithLogger(zap.New(logs)))
		call := func(token string, times int) {
			for range times {
				req := httptest.NewRequest("GET", "/things", nil)
				if token != "" {
					req.Header.Set("Authorization", "Bearer "+token)
				}
				serve(c.Authenticate(responder(http.StatusOK, "")), req)
			}
		}
		want := func(n int, when string) {
			t.Helper()
			if got := entries.FilterMessage("tokens of all callers are refused").Len(); got != n {
				t.Errorf("%d warnings %s, want %d", got, when, n)
			}
		}
		call("", 100)
		want(0, "without a token")
		call("bad", 4)
		call("good", 1)
		call("bad", 4)
		want(0, "if some are accepted")
		call("bad", 50)
		want(1, "if all are refused")
		time.Sleep(time.Minute)
		call("bad", 50)
		want(2, "a minute later")
		time.Sleep(time.Minute)
		call("good", 1)
		call("bad", 4)
		want(2, "after the fault")
		text := marshal(t, entries.FilterMessage("tokens of all callers are refused").All()[0].ContextMap())
		for _, part := range []string{`"inARow":5,`, `"reason":"I know [redacted]"`, "the issuer, the audience and the key"} {
			if !strings.Contains(text, part) {
				t.Errorf("the warning has %s, not %s", text, part)
			}
		}
	})
}

type failingVerifier struct{ err error }

func (v failingVerifier) Verify(context.Context, string) (cluster.Claims, error) {
	return cluster.Claims{}, v.err
}

// Peers may call a node before the registry has answered its registration. The npm module crashes
// then.
func TestPeerRequestsBeforeRegistration(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0)
		n := w.Add()
		sendToNode(t, w, n, "DELETE", serverPath("node-9"), "")
		sendToNode(t, w, n, "DELETE", serverPath(n.ID), "")
		wantView(t, n)
		announce(t, w, n, announcement("node-8", "node-9")) // in the view until the registration
		wantView(t, n, "node-8", "node-9")
		sendToNode(t, w, n, "DELETE", serverPath("node-9"), "")
		wantView(t, n, "node-8")
		if n.Status().State != cluster.Orphan {
			t.Errorf("the node is %s", n.Status().State)
		}
	})
}

func TestAuthenticate(t *testing.T) {
	parallel(t)
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
			req.Header.Set("Authorization", "bearer "+token) // the scheme is not case-sensitive
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
		serve(n.AuthenticatePeer, foreign).wantError(t, 403, `its type is "mfd", not "mds"`)
		serve(n.AuthenticatePeer, "bad").wantError(t, 403, "malformed")
		serve(n.Authenticate, "bad").wantError(t, 403, "malformed")
		if got.SubType != "" {
			t.Error("a rejected request reached the handler")
		}
		if _, ok := cluster.ClaimsFrom(t.Context()); ok {
			t.Error("claims without a request")
		}
	})
}

// A verifier replaces the keys. Its error is in the reply, but not the token.
func TestWithVerifier(t *testing.T) {
	cfg := testConfig()
	cfg.ClientAccessKey = "" // only the verifier can check tokens
	c, err := cluster.New(cfg, cluster.WithoutEnv(), cluster.WithVerifier(fixedVerifier{"mds", "cluster"}),
		cluster.WithTokens(func(context.Context, cluster.TokenKey) (*oauth2.Token, error) { return nil, nil }))
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
		t.Errorf("the reply is %s", data)
	}
	rejection := serve("bad")
	rejection.wantError(t, 403, "I know")
	if strings.Contains(rejection.Body, "I know bad") {
		t.Errorf("the reply has the token: %s", rejection.Body)
	}
}

// The key of a running cluster can be changed, because nodes accept two keys for a while.
func TestKeyRotation(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		const next = "the next key"
		w := clustertest.Start(t, 3, clustertest.WithTokenTTL(time.Hour), clustertest.WithConfig(func(cfg *cluster.Config) {
			cfg.GenericKey, cfg.GenericPreviousKey, cfg.GenericAudience = next, cfg.ClientAccessKey, cfg.ClientAudience
		}))
		n := w.Nodes[0]
		check := func(phase string) {
			for _, node := range w.Nodes {
				if res := rpc(t, node, cluster.Request{Path: "/things"}); len(res.Results) != 2 {
					t.Errorf("%s: %s: failures %v", phase, node.ID, failures(res))
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
		token := signToken(t, n.Config(), jwt.SigningMethodHS256, []byte("neither"), nil)
		req := httptest.NewRequest("DELETE", serverPath("node-2"), nil)
		req.Header.Set("Authorization", token)
		rec := httptest.NewRecorder()
		n.DeleteServer(rec, req)
		reply{rec.Code, rec.Header(), rec.Body.String()}.wantError(t, 403, "bad signature")
	})
}

// The keys change without a restart, by SetKeys or in files.
func TestKeysChange(t *testing.T) {
	dir := t.TempDir()
	cfg := testConfig()
	cfg.GenericKeyFile, cfg.GenericPreviousKeyFile = filepath.Join(dir, "key"), filepath.Join(dir, "previous")
	cfg.ClientAccessKey = ""
	logs, entries := observer.New(zap.WarnLevel)
	c := newNode(t, cfg, http.DefaultTransport, cluster.WithVerifier(nil), cluster.WithLogger(zap.New(logs)))
	status := func(key string) int {
		req := httptest.NewRequest("GET", "/things", nil)
		req.Header.Set("Authorization", signToken(t, cfg, jwt.SigningMethodHS256, []byte(key), nil))
		return serve(c.Authenticate(responder(http.StatusOK, "{}")), req).Code
	}
	check := func(phase string, want map[string]int) {
		t.Helper()
		for key, code := range want {
			if got := status(key); got != code {
				t.Errorf("%s: %d with the key %s, want %d", phase, got, key, code)
			}
		}
	}
	check("no files", map[string]int{"one": 503})
	writeFile(t, cfg.GenericKeyFile, "one\n")
	check("one key", map[string]int{"one": 200, "two": 403})
	writeFile(t, cfg.GenericPreviousKeyFile, "one\n")
	writeFile(t, cfg.GenericKeyFile, "two\n")
	check("rotated", map[string]int{"one": 200, "two": 200, "three": 403})
	writeFile(t, cfg.GenericKeyFile, "")
	entries.TakeAll()
	check("an empty file", map[string]int{"one": 200, "two": 200, "": 403})
	if lines := entries.FilterMessage("secret file cannot be used").All(); len(lines) != 1 ||
		!strings.Contains(fmt.Sprint(lines[0].ContextMap()["error"]), "OAUTH_GENERIC_KEY_FILE cannot be used: "+cfg.GenericKeyFile+" is empty") {
		t.Errorf("logged %v", lines)
	}
	for _, path := range []string{cfg.GenericKeyFile, cfg.GenericPreviousKeyFile} {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	check("no files any more", map[string]int{"one": 200, "two": 200})

	for _, keys := range [][2]cluster.Secret{{"", "two"}, {"-----BEGIN PUBLIC KEY-----", ""}, {"three", "-----BEGIN CERTIFICATE-----"}} {
		if err := c.SetKeys(keys[0], keys[1]); err == nil {
			t.Errorf("SetKeys accepts %q", string(keys[0]))
		}
	}
	check("rejected keys", map[string]int{"one": 200, "two": 200})
	if err := c.SetKeys("three", ""); err != nil {
		t.Fatal(err)
	}
	writeFile(t, cfg.GenericKeyFile, "two")
	check("SetKeys", map[string]int{"one": 403, "two": 403, "three": 200})
	if err := newNode(t, cfg, http.DefaultTransport).SetKeys("three", ""); err == nil {
		t.Error("SetKeys succeeds with a Verifier")
	}
}

func TestReply(t *testing.T) {
	c := newNode(t, testConfig(), http.DefaultTransport)
	defer c.Close()
	for name, tt := range map[string]struct {
		serve func(w http.ResponseWriter, r *http.Request)
		code  int
		body  string
	}{
		"a value":             {func(w http.ResponseWriter, r *http.Request) { c.Reply(w, r, []int{1}) }, 200, `{"data":[1],"server":{"serverId":"node-1"}}`},
		"created":             {func(w http.ResponseWriter, r *http.Request) { c.ReplyStatus(w, r, 201, "x") }, 201, `{"data":"x","server":{"serverId":"node-1"}}`},
		"status 404 as reply": {func(w http.ResponseWriter, r *http.Request) { c.ReplyStatus(w, r, 404, "x") }, 500, `{"statusCode":500,"title":"Internal Server Error","message":"a reply with the status 404, which is not a 2xx"}`},
		"data without a body": {func(w http.ResponseWriter, r *http.Request) { c.ReplyStatus(w, r, 204, "x") }, 500, `{"statusCode":500,"title":"Internal Server Error","message":"a reply with data and the status 204, which has no body"}`},
		"nil":                 {func(w http.ResponseWriter, r *http.Request) { c.Reply(w, r, nil) }, 200, `{"data":null,"server":{"serverId":"node-1"}}`},
		"not encodable":       {func(w http.ResponseWriter, r *http.Request) { c.Reply(w, r, make(chan int)) }, 500, `{"statusCode":500,"title":"Internal Server Error","message":"encoding the response: json: unsupported type: chan int"}`},
		"an error":            {func(w http.ResponseWriter, r *http.Request) { c.ReplyError(w, r, errors.New("broken")) }, 500, `{"statusCode":500,"title":"Internal Server Error","message":"broken"}`},
		"a status":            {replyWith(c, &cluster.StatusError{Code: 404, Message: "no such thing"}), 404, `{"statusCode":404,"title":"Not Found","message":"no such thing"}`},
		"a status, wrapped":   {replyWith(c, fmt.Errorf("context: %w", &cluster.StatusError{Code: 404, Message: "no such thing"})), 404, `{"statusCode":404,"title":"Not Found","message":"no such thing"}`},
		"with info":           {replyWith(c, &cluster.StatusError{Code: 409, Message: "taken", Info: []byte(`{"by":1}`)}), 409, `{"statusCode":409,"title":"Conflict","message":"taken","info":{"by":1}}`},
		"with invalid info":   {replyWith(c, &cluster.StatusError{Code: 409, Message: "taken", Info: []byte(`{`)}), 409, `{"statusCode":409,"title":"Conflict","message":"taken"}`},
		"a part":              {replyWith(c, &cluster.StatusError{Code: 206, Message: "one of two"}), 206, `{"statusCode":206,"title":"Partial Content","message":"one of two"}`},
		"several statuses":    {replyWith(c, &cluster.StatusError{Code: 207, Message: "one of two"}), 207, `{"statusCode":207,"title":"Multi-Status","message":"one of two"}`},
		"status 200":          {replyWith(c, &cluster.StatusError{Code: 200, Message: "fine"}), 500, `{"statusCode":500,"title":"Internal Server Error","message":"200 OK: fine"}`},
		"an error of a peer":  {replyWith(c, &cluster.StatusError{Remote: `peer "x"`, Method: "GET", URL: "http://x", Code: 404}), 500, `{"statusCode":500,"title":"Internal Server Error","message":"peer \"x\" answered 404 Not Found to GET http://x"}`},
		"management is off":   {replyWith(c, cluster.ErrManagementOff), 409, `{"statusCode":409,"title":"Conflict","message":"cluster: management is off"}`},
		"closed":              {replyWith(c, cluster.ErrClosed), 503, `{"statusCode":503,"title":"Service Unavailable","message":"cluster: closed"}`},
		"an invalid request":  {replyWith(c, cluster.ErrInvalidRequest), 400, `{"statusCode":400,"title":"Bad Request","message":"cluster: invalid request"}`},
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

func TestReplyWithoutBody(t *testing.T) {
	c := newNode(t, testConfig(), http.DefaultTransport)
	for _, status := range []int{http.StatusNoContent, http.StatusResetContent} {
		rec := httptest.NewRecorder()
		c.ReplyStatus(rec, httptest.NewRequest("DELETE", "/", nil), status, nil)
		if rec.Code != status || rec.Body.Len() != 0 || rec.Header().Get("Content-Type") != "" || rec.Header().Get("X-Correlation-Id") == "" {
			t.Errorf("%d %v %q", rec.Code, rec.Header(), rec.Body)
		}
	}
}

func TestIncomingCorrelationID(t *testing.T) {
	parallel(t)
	const incoming, ours = "an-id@3/2000-01-01T00:00:00.000Z", "an-id@4/2000-01-01T00:00:00.000Z"
	synctest.Test(t, func(t *testing.T) {
		core, logged := observer.New(zap.DebugLevel)
		w := clustertest.Start(t, 2, clustertest.WithOptions(cluster.WithLogger(zap.New(core))),
			clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
				return n.Authenticate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if strings.HasSuffix(r.URL.Path, "/ask") { // calls a peer on behalf of the client
						res, err := n.RPCluster(r.Context(), cluster.Request{Path: "/id"})
						if err != nil {
							n.ReplyError(w, r, err)
							return
						}
						n.Reply(w, r, append([]json.RawMessage{[]byte(`"` + cluster.CorrelationID(r.Context()) + `"`)}, res.Data...))
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
			return roundTrip(t, w, req)
		}
		good := w.Token("mds", true)
		for name, got := range map[string]reply{
			"an announcement": send("POST", itResources, good, resourceWithDate("", "x")),
			"of another id":   send("POST", itResources, good, `{"id":"another","servers":[{"serverId":"x","clusterBaseUrl":"http://x:8080/mds/v1"}]}`),
			"a delete":        send("DELETE", serverPath("node-9"), good, ""),
			"a bad token":     send("DELETE", serverPath("node-9"), "bad", ""),
			"a plain token":   send("POST", itResources, w.Token("mds", false), ""),
		} {
			if id := got.Header.Values("X-Correlation-Id"); len(id) != 1 || id[0] != ours {
				t.Errorf("%s: the reply has the correlation id %q", name, id)
			}
		}
		for _, message := range []string{"ignored message for another itResource", "request rejected"} {
			lines := logged.FilterMessage(message).All()
			if len(lines) == 0 {
				t.Errorf("no log line %q", message)
			}
			for _, line := range lines {
				if got := line.ContextMap()["correlationId"]; got != ours {
					t.Errorf("%s: logged with correlation id %v", message, got)
				}
			}
		}

		// The id is in the context, and is sent unchanged to the peer.
		if data := send("GET", "/mds/v1/ask", good, "").data(t); data != `["`+ours+`","`+ours+`"]` {
			t.Errorf("in the context, and at a peer: %s", data)
		}
	})
}

// All requests of a call have one correlation id: to the token service, the registry and the peers.
func TestOneCorrelationIDPerCall(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		requests := recordRequests(w)
		w.Network.Down(w.Nodes[2].Host)
		const id = "an-id@0/2000-01-01T00:00:00.000Z"
		if _, err := w.Nodes[0].RPCluster(cluster.WithCorrelationID(t.Context(), id), cluster.Request{Path: "/things"}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		hosts := map[string]bool{}
		for _, x := range requests.sentBy(w.Nodes[0]) {
			hosts[x.To] = true
			if got := x.Header.Get("X-Correlation-Id"); got != id {
				t.Errorf("%s %s%s has %q", x.Method, x.To, x.Path, got)
			}
		}
		if len(hosts) != 4 {
			t.Errorf("requests to %v, want the token service, the registry and two peers", hosts)
		}
		if _, err := w.Nodes[0].RPCluster(t.Context(), cluster.Request{Path: "/things"}); err != nil {
			t.Fatal(err)
		}
		last := requests.matching("GET", w.Nodes[0].Host, w.Nodes[1].Host)
		if got := last[len(last)-1].Header.Get("X-Correlation-Id"); !strings.HasSuffix(got, "@0/"+time.Now().UTC().Format("2006-01-02T15:04:05.000Z")) {
			t.Errorf("without an id in the context: %q, want a new one", got)
		}
	})
}

// A correlation id that cannot be a header value is replaced. Otherwise no request with it could be
// sent.
func TestNewCorrelationID(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		const now = "@0/2000-01-01T00:00:00.000Z"
		longest := strings.Repeat("x", 200)
		for label, want := range map[string]string{
			"service-startup-preOps": "service-startup-preOps" + now,
			"two words":              "two words" + now,
			longest:                  longest + now,
			longest + "x":            "",
			"":                       "",
			"a@1":                    "",
			"a/b":                    "",
			"line\nbreak":            "",
			"ä":                      "",
		} {
			got := cluster.NewCorrelationID(label)
			if want == "" { // a UUID
				id, ok := strings.CutSuffix(got, now)
				if _, err := uuid.Parse(id); err != nil || !ok {
					t.Errorf("%q: %q, %v", label, got, err)
				}
				continue
			}
			if got != want || cluster.CorrelationID(cluster.WithCorrelationID(t.Context(), got)) != got {
				t.Errorf("%q: %q, want %q", label, got, want)
			}
		}
	})
}

func TestOpenAPIHandler(t *testing.T) {
	cfg := testConfig()
	cfg.BasePath = "/a/base"
	h := newNode(t, cfg, http.DefaultTransport).OpenAPIHandler()
	for method, want := range map[string]int{"GET": 200, "HEAD": 200, "POST": 405} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(method, "/openapi.yaml", nil))
		if rec.Code != want || (rec.Header().Get("Allow") != "") != (want == 405) {
			t.Errorf("%s: %d %v, want %d", method, rec.Code, rec.Header(), want)
		}
		if method == "GET" && (rec.Header().Get("Content-Type") != "application/yaml" ||
			!strings.Contains(rec.Body.String(), `- url: "/a/base"`) || !strings.Contains(rec.Body.String(), "operationId: createItResource")) {
			t.Errorf("%v %s", rec.Header(), rec.Body)
		}
	}
}

func TestInvalidCorrelationID(t *testing.T) {
	for name, tt := range map[string]struct {
		id   string
		kept bool
	}{
		"valid":           {"abc@1/2020-01-02T03:04:05.678Z", true},
		"of another form": {"request 17", true},
		"maximum length":  {strings.Repeat("x", 256), true},
		"too long":        {strings.Repeat("x", 257), false},
		"line break":      {"abc\r\nX-Evil: 1", false},
		"NUL":             {"abc\x00", false},
		"not ASCII":       {"äbc", false},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := cluster.WithCorrelationID(context.Background(), tt.id)
			if got := cluster.CorrelationID(ctx); (got == tt.id) != tt.kept || got == "" {
				t.Errorf("the context has %q", got)
			}
			var sent []string
			c := newNode(t, testConfig(), stubClient(func(r *http.Request) (int, string) {
				sent = r.Header["X-Correlation-Id"]
				return http.StatusOK, registrationResponse(time.Hour, "node-1")
			}).Transport)
			if _, err := c.Register(ctx); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string{cluster.CorrelationID(ctx)}, sent); diff != "" {
				t.Errorf("the header sent (-want +got):\n%s", diff)
			}
		})
	}
}

// signToken signs a cluster token for the node of cfg. It changes the claims by edit, unless nil.
func signToken(t *testing.T, cfg cluster.Config, method jwt.SigningMethod, key any, edit func(jwt.MapClaims)) string {
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

func replyWith(c *cluster.Cluster, err error) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, r *http.Request) { c.ReplyError(w, r, err) }
}
