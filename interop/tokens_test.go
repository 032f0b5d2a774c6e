//go:build unix

package interop

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/mimiktech/cluster"
)

func tokens() []scenario {
	return []scenario{
		{
			name:   goodTokensName,
			says:   "Both kinds take and refuse the same tokens: of one's own type or another, cluster or plain, of the previous key, forged, expired, for others; where they differ the test says why.",
			within: goodTokens,
		},
		{
			name:   "what a token says",
			says:   "Both kinds read client, type, customer and kind of a caller in its token; nodes of both kinds show each other cluster tokens of their own.",
			within: whatTokensSay,
		},
		{
			name:   "a call for a customer",
			says:   "What a Go node asks in a customer's name its peers see so; the npm module shows the token that it has already.",
			within: forCustomer,
		},
		{
			name: "how many tokens are fetched",
			says: "For three peers a Go node fetches one token for the registry and one for all peers; the npm module fetches one for each address.",
			each: tokensFetched,
		},
		{
			name: "a refused token",
			says: "A node of either kind whose token a peer refuses with 403 fetches a new one and asks that peer once more; Go does so at a 401, too.",
			each: refusedToken,
		},
		{
			name: "a refresh token",
			says: "Both kinds renew with their refresh token and, where that is refused with 400, with their credentials.",
			with: tokenLife(2 * time.Second),
			each: refreshToken,
		},
		{
			name: "a token that lives less than 900 s",
			says: "The npm module renews a short-lived token for every call; a Go node renews it when two thirds of its life are over.",
			with: tokenLife(10 * time.Minute),
			each: shortToken,
		},
		{
			name: "a token service that fails",
			says: "Where mST gives no tokens for peers, a Go node reports each peer as not asked; the npm module does so for a 404, and for a 503 has them all deleted at the registry.",
			each: noTokens,
		},
		{
			name:  "a token for oneself and one for peers",
			says:  "After a plain call to a peer the npm module shows it the same plain token where a cluster token is due, and is refused: a Go peer then learns of its departure at the next renewal only.",
			alone: sharedSlot,
		},
	}
}

func goodTokens(m *mixed) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		m.Fatal(err)
	}
	type claims = jwt.MapClaims
	sign := func(method jwt.SigningMethod, key any, change claims) string {
		all := claims{
			"iss": m.issuer(), "aud": peerAudience, "sub": "somebody@clients", "subType": serverType, "type": "cluster",
			"scope": "create:itResource delete:server", "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
		}
		maps.Copy(all, change)
		maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
		token, err := jwt.NewWithClaims(method, all).SignedString(key)
		if err != nil {
			m.Fatal(err)
		}
		return token
	}
	hs256 := func(change claims) string {
		return "Bearer " + sign(jwt.SigningMethodHS256, []byte(signingKey), change)
	}

	type statuses struct{ npm, golang int }
	both := func(status int) statuses { return statuses{status, status} }
	refused := statuses{http.StatusForbidden, http.StatusUnauthorized} // the middleware of npm services says 403
	twice := m.token(serverType, true)
	for k, want := range map[kind]int{npmKind: http.StatusOK, goKind: http.StatusUnauthorized} { // Node.js drops the second
		req, err := http.NewRequestWithContext(m.Context(), http.MethodGet, m.first(k).base+"/things", nil)
		if err != nil {
			m.Fatal(err)
		}
		req.Header["Authorization"] = []string{"Bearer " + twice, "Bearer " + twice}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			m.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			m.Errorf("the %s node answers two tokens with %d, not %d", k, resp.StatusCode, want)
		}
	}
	for _, test := range []struct {
		name          string
		authorization string
		peer          statuses // of an endpoint that peers call
		own           statuses // of one that the service has
		why           string   // they differ
	}{
		{name: "a cluster token from mST", authorization: "Bearer " + m.token(serverType, true), peer: both(200), own: both(200)},
		{name: "a plain token from mST", authorization: "Bearer " + m.token(serverType, false), peer: both(400), own: both(200)},
		{name: "a cluster token of another type from mST", authorization: "Bearer " + m.token("mcm", true), peer: both(400), own: both(200)},
		{name: "the word bearer in small letters", authorization: "bearer " + m.token(serverType, true), peer: both(200), own: both(200)},
		{name: "nothing", peer: refused, own: refused},
		{name: "no bearer token", authorization: "Basic " + m.token(serverType, true), peer: refused, own: refused},
		{name: "no JWT", authorization: "Bearer 1234", peer: refused, own: refused},
		{name: "without a type", authorization: hs256(claims{"type": nil}), peer: both(400), own: both(200)},
		{name: "another type of token", authorization: hs256(claims{"type": "Cluster"}), peer: both(400), own: both(200)},
		{name: "without a subType", authorization: hs256(claims{"subType": nil}), peer: both(400), own: both(200)},
		{name: "several audiences", authorization: hs256(claims{"aud": []string{"https://other.test/", peerAudience}}), peer: both(200), own: both(200)},
		{name: "another audience", authorization: hs256(claims{"aud": "https://other.test/"}), peer: refused, own: refused},
		{name: "no audience", authorization: hs256(claims{"aud": nil}), peer: refused, own: refused},
		{name: "another issuer", authorization: hs256(claims{"iss": "https://other.test/"}), peer: refused, own: refused},
		{name: "no issuer", authorization: hs256(claims{"iss": nil}), peer: refused, own: refused},
		{name: "expired", authorization: hs256(claims{"exp": time.Now().Add(-time.Minute).Unix()}), peer: refused, own: refused},
		{name: "not valid yet", authorization: hs256(claims{"nbf": time.Now().Add(time.Hour).Unix()}), peer: refused, own: refused},
		{name: "the previous key", authorization: "Bearer " + sign(jwt.SigningMethodHS256, []byte(previousKey), nil), peer: both(200), own: both(200)},
		{name: "the previous key, expired", authorization: "Bearer " + sign(jwt.SigningMethodHS256, []byte(previousKey), claims{"exp": 1}), peer: refused, own: refused},
		{name: "a key of one's own", authorization: "Bearer " + sign(jwt.SigningMethodHS256, []byte("mine"), nil), peer: refused, own: refused},
		{name: "no signature", authorization: "Bearer " + sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, nil), peer: refused, own: refused},
		{name: "RS256", authorization: "Bearer " + sign(jwt.SigningMethodRS256, rsaKey, nil), peer: refused, own: refused},

		{
			name: "HS512", authorization: "Bearer " + sign(jwt.SigningMethodHS512, []byte(signingKey), nil),
			peer: statuses{200, 401}, own: statuses{200, 401}, why: "mST signs with HS256, and nobody else has the key",
		},
		{
			name: "without an end", authorization: hs256(claims{"exp": nil}),
			peer: statuses{200, 401}, own: statuses{200, 401}, why: "a token that leaks must not be good for ever",
		},
		{
			name: "without a scope", authorization: hs256(claims{"scope": nil}),
			peer: statuses{403, 200}, own: statuses{403, 200}, why: "a swagger file says which scope an endpoint needs; Go services have the claims and decide",
		},
		{
			name: "another scope", authorization: hs256(claims{"scope": "read:things"}),
			peer: statuses{403, 200}, own: statuses{200, 200}, why: "as above: here the peer endpoints ask for theirs",
		},
		{
			name: "an admin's", authorization: hs256(claims{"subType": "admin"}),
			peer: statuses{403, 400}, own: statuses{403, 200}, why: "the reference has other endpoints for admins; Go services have the claims and decide",
		},
		{
			name: "the word bearer in capitals", authorization: "BEARER " + m.token(serverType, true),
			peer: statuses{403, 200}, own: statuses{403, 200}, why: "the name of a scheme has no case (RFC 9110)",
		},
	} {
		m.Run(test.name, func(t *testing.T) {
			if differs := test.peer.npm != test.peer.golang || test.own.npm != test.own.golang; differs && test.why == "" && test.peer != refused {
				m.Errorf("no reason for a difference between %+v", test.peer)
			}
			for _, k := range kinds() {
				n := m.first(k)
				status := func(method, path string) int {
					return m.call(method, n.base+path, "", nil, "Authorization", test.authorization).status
				}
				want := map[kind][2]int{npmKind: {test.peer.npm, test.own.npm}, goKind: {test.peer.golang, test.own.golang}}[k]
				got := [2]int{status(http.MethodDelete, "/itResources/another/servers/nobody"), status(http.MethodGet, "/things")}
				if got != want {
					m.Errorf("the %s node answers %v, not %v", k, got, want)
				}
			}
		})
	}
}

// fetches are the token requests so far that begin like that: with the grant, the audience and
// the kind of token each asks for.
func (w *world) fetches(beginning string) []string {
	w.Helper()
	var all []string
	for _, r := range w.requests("POST " + issuerPath) {
		var asked struct {
			GrantType string `json:"grant_type"`
			Audience  string
			Type      string
		}
		if err := json.Unmarshal(r.body, &asked); err != nil {
			w.Fatalf("a token request with body %s", r.body)
		}
		if f := strings.TrimSpace(asked.GrantType + " " + asked.Audience + " " + asked.Type); strings.HasPrefix(f, beginning) {
			all = append(all, f)
		}
	}
	return all
}

const (
	forRegistry = "client_credentials " + registryAudience
	forPeers    = "client_credentials " + peerAudience + " cluster"
)

func tokensFetched(w *world, k kind) {
	for _, id := range []string{"a", "b", "c"} {
		w.stranger(id, nil)
	}
	n := w.start(k)
	n.register()
	w.until("it is registered", func() error { return same([]string{n.status().Registration}, []string{"registered"}) })
	for range 3 {
		if f := n.ask(fanoutArgs{Path: "/things"}); same(f.answered(), []string{"a", "b", "c"}) != nil {
			w.Errorf("answered %v, failed %v", f.answered(), f.failed())
		}
	}
	registry, peers := len(w.fetches(forRegistry)), len(w.fetches(forPeers))
	// npm fetches even more of them where registering takes longer than its retry period.
	if k == goKind && (registry != 1 || peers != 1) || k == npmKind && (registry < 1 || peers < 3) {
		w.Errorf("%d tokens were fetched for the registry, and %d for three peers", registry, peers)
	}
}

// registered starts a node and waits until it has registered.
func (w *world) registered(k kind, env ...string) *node {
	w.Helper()
	n := w.start(k, env...)
	n.register()
	w.until("it is registered", func() error { return same([]string{n.status().Registration}, []string{"registered"}) })
	return n
}

func refusedToken(w *world, k kind) {
	// What is shown first when they are asked for things is not good for that.
	strict := func(id string, status int) *stranger {
		var first atomic.Value
		return w.stranger(id, func(rw http.ResponseWriter, r *http.Request) {
			token := r.Header.Get("Authorization")
			if r.URL.Path == basePath+"/things" && (first.CompareAndSwap(nil, token) || first.Load() == token) {
				reply(rw, status, fmt.Sprintf(`{"statusCode":%d,"title":"no","message":"not with that token"}`, status))
				return
			}
			reply(rw, http.StatusOK, fmt.Sprintf(`{"data":[],"server":{"serverId":%q}}`, id))
		})
	}
	things := func(s *stranger) int {
		return len(slices.DeleteFunc(s.requests(), func(r request) bool { return r.target != basePath+"/things" }))
	}
	forbids, denies := strict("forbids", http.StatusForbidden), strict("denies", http.StatusUnauthorized)
	n := w.registered(k)
	w.until("it has announced itself", func() error {
		if len(forbids.requests()) == 0 || len(denies.requests()) == 0 {
			return errors.New("not both peers were asked for something")
		}
		return nil
	})
	fetched := len(w.fetches(forPeers))
	f := n.ask(fanoutArgs{Path: "/things"})
	wantFailed, wantThings := []string(nil), 2
	if k == npmKind {
		wantFailed, wantThings = []string{"denies"}, 1
	}
	if err := same(f.failed(), wantFailed); err != nil {
		w.Errorf("failed: %v", err)
	}
	if things(forbids) != 2 || things(denies) != wantThings {
		w.Errorf("%d requests to the peer with 403, and %d to that with 401", things(forbids), things(denies))
	}
	// npm fetches even more of them where registering takes longer than its retry period.
	if got := len(w.fetches(forPeers)) - fetched; got < 1 || k == goKind && got > 1 {
		w.Errorf("%d more tokens were fetched for peers, not one", got)
	}
}

func refreshToken(w *world, k kind) {
	w.stranger("a", nil)
	n := w.registered(k)
	grants := func() []string {
		var all []string
		for _, f := range w.fetches("") {
			grant, _, _ := strings.Cut(f, " ")
			all = append(all, grant)
		}
		return all
	}
	w.until("it has used a refresh token", func() error {
		if f := n.ask(fanoutArgs{Path: "/things"}); f.failed() != nil {
			w.Fatalf("failed %+v", f.Response.Failures)
		}
		if !slices.Contains(grants(), "refresh_token") {
			return fmt.Errorf("grants so far: %v", grants())
		}
		return nil
	})
	w.answerInstead(func(rw http.ResponseWriter, r *http.Request, body []byte) bool {
		if r.URL.Path != issuerPath || !bytes.Contains(body, []byte(`"refresh_token"`)) {
			return false
		}
		reply(rw, http.StatusBadRequest, `{"statusCode":400,"title":"Bad Request","message":"no more of those"}`)
		return true
	})
	for _, r := range w.requests("POST " + issuerPath) {
		var body map[string]string
		if err := json.Unmarshal(r.body, &body); err != nil {
			w.Fatal(err)
		}
		if keys := slices.Sorted(maps.Keys(body)); body["grant_type"] == "refresh_token" && same(keys, []string{"grant_type", "refresh_token"}) != nil {
			w.Errorf("a refresh has %q in its body", keys)
		}
	}
	so := len(grants())
	w.until("it has gone back to its credentials", func() error {
		if f := n.ask(fanoutArgs{Path: "/things"}); f.failed() != nil {
			w.Fatalf("failed %+v", f.Response.Failures)
		}
		since := grants()[so:]
		if i := slices.Index(since, "refresh_token"); i < 0 || !slices.Contains(since[i:], "client_credentials") {
			return fmt.Errorf("grants since: %v", since)
		}
		return nil
	})
}

func shortToken(w *world, k kind) {
	w.stranger("a", nil)
	n := w.registered(k)
	n.ask(fanoutArgs{Path: "/things"})
	before := len(w.fetches(""))
	for range 4 {
		n.ask(fanoutArgs{Path: "/things"})
	}
	want := map[kind]int{goKind: 0, npmKind: 4}[k]
	if got := len(w.fetches("")) - before; got != want {
		w.Errorf("%d tokens were fetched for four calls, not %d", got, want)
	}
}

func whatTokensSay(m *mixed) {
	token := m.token(serverType, false)
	for _, n := range m.nodes {
		a := m.call(http.MethodGet, n.base+"/mirror", token, nil)
		var envelope struct{ Data seen }
		if err := json.Unmarshal(a.body, &envelope); err != nil {
			m.Fatal(err)
		}
		if got, want := envelope.Data.Caller, (caller{ClientID: serverType + "@clients", TokenType: serverType}); got != want {
			m.Errorf("%s reads %+v in a plain token, not %+v", n.id, got, want)
		}
		for _, s := range n.asked(fanoutArgs{Path: "/mirror"}) {
			if got, want := s.Caller, (caller{ClientID: serverType + "@clients", TokenType: serverType, Cluster: true}); got != want {
				m.Errorf("%s reads %+v in the token of %s, not %+v", s.ServerID, got, n.id, want)
			}
		}
	}
}

// asked is what the peers of a node saw of a request.
func (n *node) asked(args fanoutArgs) []seen {
	n.t.Helper()
	var all []seen
	for _, d := range n.ask(args).Response.Data {
		var s seen
		if err := json.Unmarshal(d, &s); err != nil {
			n.t.Fatal(err)
		}
		all = append(all, s)
	}
	return all
}

func forCustomer(m *mixed) {
	for _, n := range m.nodes {
		want := map[kind]string{goKind: "acme"}[n.kind]
		all := n.asked(fanoutArgs{Path: "/mirror", Customer: "acme"})
		for _, s := range all {
			if s.Caller.Customer != want {
				m.Errorf("%s is asked by %s for %q, not %q", s.ServerID, n.id, s.Caller.Customer, want)
			}
		}
		if len(all) != len(m.nodes)-1 {
			m.Errorf("%d peers saw what %s asked", len(all), n.id)
		}
	}
}

func noTokens(w *world, k kind) {
	for _, id := range []string{"a", "b", "c"} {
		w.stranger(id, nil)
	}
	fail := func(status int) {
		w.answerInstead(func(rw http.ResponseWriter, r *http.Request, body []byte) bool {
			if r.URL.Path != issuerPath || !bytes.Contains(body, []byte(peerAudience)) {
				return false
			}
			reply(rw, status, fmt.Sprintf(`{"statusCode":%d,"title":"no","message":"not now"}`, status))
			return true
		})
	}
	fail(http.StatusNotFound)
	n := w.registered(k)
	for _, status := range []int{http.StatusNotFound, http.StatusServiceUnavailable} {
		fail(status)
		f := n.ask(fanoutArgs{Path: "/things"})
		if k == npmKind && status == http.StatusServiceUnavailable {
			if err := same(serverIDs(w.listed()), []string{n.id}); err != nil || f.failed() != nil {
				w.Errorf("%d: the registry's list: %v; failed %v", status, err, f.failed())
			}
			continue
		}
		if err := same(f.failed(), []string{"a", "b", "c"}); err != nil {
			w.Errorf("%d: failed: %v", status, err)
		}
		for _, failure := range f.Response.Failures {
			if e := failure.Error; k == npmKind && e.StatusCode != status || k == goKind && (e.Kind != cluster.KindNoToken || e.Evicted || e.Attempts != 0) {
				w.Errorf("%d: %s: %+v", status, failure.Server.ServerID, e)
			}
		}
		if err := same(serverIDs(w.listed()), []string{"a", "b", "c", n.id}); err != nil {
			w.Errorf("%d: the registry's list: %v", status, err)
		}
	}
}

func sharedSlot(w *world) {
	nodes := w.cluster(npmKind, goKind)
	npm, golang := nodes[0], nodes[1]
	// The npm node has never spoken to the Go node, which joined after it.
	var answered map[string]any
	npm.must("call", map[string]string{"url": golang.base + "/things"}, &answered)
	if got := npm.unregister(); got.NbServers != 2 {
		w.Errorf("unRegister answers %+v", got)
	}
	if err := same(serverIDs(w.listed()), []string{golang.id}); err != nil {
		w.Errorf("the registry's list: %v", err)
	}
	servers, err := golang.view()
	if err != nil {
		w.Fatal(err)
	}
	if err := same(serverIDs(servers), sorted(nodes)); err != nil {
		w.Errorf("the Go node's view: %v", err)
	}
}
