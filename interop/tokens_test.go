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
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/mimiktech/cluster"
)

func tokenScenarios() []scenario {
	return []scenario{
		{
			name:     acceptedTokensName,
			shows:    "Both kinds accept and reject the same tokens: of this or another type, cluster or plain, signed with the previous key, forged, expired, or for another audience. The test gives the reason for each difference.",
			runMixed: acceptedTokens,
		},
		{
			name:     "claims of a token",
			shows:    "Both kinds read the client, the type, the customer and the kind of a caller from its token. Nodes of both kinds send each other cluster tokens.",
			runMixed: claimsOfTokens,
		},
		{
			name:     "call for a customer",
			shows:    "Peers see the customer of a call by a Go node in its token. An npm node sends the token that it already has.",
			runMixed: callForCustomer,
		},
		{
			name:       "number of token requests",
			shows:      "For three peers a Go node requests one token for the registry and one for all peers. An npm node requests one for each address.",
			runPerKind: numberOfTokenRequests,
		},
		{
			name:       "token is rejected by a peer",
			shows:      "If a peer rejects a token with 403, a node of either kind requests a new one and retries that peer once. A Go node does so for a 401, too.",
			runPerKind: rejectedToken,
		},
		{
			name:       "refresh token",
			shows:      "A node of either kind uses its refresh token. If that is rejected with 400, it uses its credentials.",
			options:    tokenTTL(2 * time.Second),
			runPerKind: refreshToken,
		},
		{
			name:       "token with a lifetime below 900 s",
			shows:      "An npm node requests a new token for each call. A Go node requests one when two thirds of the lifetime are over.",
			options:    tokenTTL(10 * time.Minute),
			runPerKind: shortToken,
		},
		{
			name:       "token service fails",
			shows:      "If the token service (mST) issues no tokens for peers, a Go node reports a failure of kind `no_token` for each peer. An npm node reports failures for a 404. For a 503 it has the registry delete all peers.",
			runPerKind: tokenServiceFails,
		},
		{
			name:  "plain token is reused for peers",
			shows: "After a plain call to a peer, an npm node sends the same plain token where a cluster token is required, and is rejected. A Go peer does not learn of its departure until the next renewal.",
			run:   plainTokenReused,
		},
	}
}

func acceptedTokens(m *mixed) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		m.Fatal(err)
	}
	type claims = jwt.MapClaims
	sign := func(method jwt.SigningMethod, key any, change claims) string {
		all := claims{
			"iss": m.issuer(), "aud": peerAudience, "sub": "client@clients", "subType": serverType, "type": "cluster",
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
	// The middleware of npm services responds with 403.
	missing := statuses{http.StatusForbidden, http.StatusUnauthorized}
	rejected := statuses{http.StatusForbidden, http.StatusForbidden}
	token := m.token(serverType, true)
	// Node.js ignores the second of two Authorization headers.
	for k, want := range map[kind]int{npmKind: http.StatusOK, goKind: http.StatusUnauthorized} {
		req, err := http.NewRequestWithContext(m.Context(), http.MethodGet, m.firstOf(k).base+"/things", nil)
		if err != nil {
			m.Fatal(err)
		}
		req.Header["Authorization"] = []string{"Bearer " + token, "Bearer " + token}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			m.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			m.Errorf("two tokens: the %s node responds with %d, want %d", k, resp.StatusCode, want)
		}
	}
	for _, test := range []struct {
		name          string
		authorization string
		peer          statuses // of a peer endpoint
		own           statuses // of an endpoint of the service
		reason        string   // of a difference
	}{
		{name: "a cluster token from mST", authorization: "Bearer " + m.token(serverType, true), peer: both(200), own: both(200)},
		{name: "a plain token from mST", authorization: "Bearer " + m.token(serverType, false), peer: both(400), own: both(200)},
		{name: "a cluster token of another type from mST", authorization: "Bearer " + m.token("mcm", true), peer: both(400), own: both(200)},
		{name: "bearer in lower case", authorization: "bearer " + m.token(serverType, true), peer: both(200), own: both(200)},
		{name: "no authorization", peer: missing, own: missing},
		{name: "not a bearer token", authorization: "Basic " + m.token(serverType, true), peer: missing, own: missing},
		{name: "not a JWT", authorization: "Bearer 1234", peer: rejected, own: rejected},
		{name: "without a type", authorization: hs256(claims{"type": nil}), peer: both(400), own: both(200)},
		{name: "another type of token", authorization: hs256(claims{"type": "Cluster"}), peer: both(400), own: both(200)},
		{name: "without a subType", authorization: hs256(claims{"subType": nil}), peer: both(400), own: both(200)},
		{name: "several audiences", authorization: hs256(claims{"aud": []string{"https://other.test/", peerAudience}}), peer: both(200), own: both(200)},
		{name: "another audience", authorization: hs256(claims{"aud": "https://other.test/"}), peer: rejected, own: rejected},
		{name: "no audience", authorization: hs256(claims{"aud": nil}), peer: rejected, own: rejected},
		{name: "another issuer", authorization: hs256(claims{"iss": "https://other.test/"}), peer: rejected, own: rejected},
		{name: "no issuer", authorization: hs256(claims{"iss": nil}), peer: rejected, own: rejected},
		{name: "expired", authorization: hs256(claims{"exp": time.Now().Add(-time.Minute).Unix()}), peer: rejected, own: rejected},
		{name: "not valid yet", authorization: hs256(claims{"nbf": time.Now().Add(time.Hour).Unix()}), peer: rejected, own: rejected},
		{name: "previous key", authorization: "Bearer " + sign(jwt.SigningMethodHS256, []byte(previousKey), nil), peer: both(200), own: both(200)},
		{name: "previous key, expired", authorization: "Bearer " + sign(jwt.SigningMethodHS256, []byte(previousKey), claims{"exp": 1}), peer: rejected, own: rejected},
		{name: "unknown key", authorization: "Bearer " + sign(jwt.SigningMethodHS256, []byte("mine"), nil), peer: rejected, own: rejected},
		{name: "no signature", authorization: "Bearer " + sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, nil), peer: rejected, own: rejected},
		{name: "RS256", authorization: "Bearer " + sign(jwt.SigningMethodRS256, rsaKey, nil), peer: rejected, own: rejected},

		{
			name: "HS512", authorization: "Bearer " + sign(jwt.SigningMethodHS512, []byte(signingKey), nil),
			peer: statuses{200, 403}, own: statuses{200, 403}, reason: "the token service signs with HS256 and is the only one with the key",
		},
		{
			name: "without an expiry", authorization: hs256(claims{"exp": nil}),
			peer: statuses{200, 403}, own: statuses{200, 403}, reason: "a leaked token must not stay valid",
		},
		{
			name: "without a scope", authorization: hs256(claims{"scope": nil}),
			peer: statuses{403, 200}, own: statuses{403, 200}, reason: "npm services get the required scope from a swagger file, Go services check the claims themselves",
		},
		{
			name: "another scope", authorization: hs256(claims{"scope": "read:things"}),
			peer: statuses{403, 200}, own: statuses{200, 200}, reason: "as above; of these endpoints of the npm node, only the peer endpoint requires a scope",
		},
		{
			name: "admin token", authorization: hs256(claims{"subType": "admin"}),
			peer: statuses{403, 400}, own: statuses{403, 200}, reason: "npm services have separate endpoints for admins, Go services check the claims themselves",
		},
		{
			name: "bearer in upper case", authorization: "BEARER " + m.token(serverType, true),
			peer: statuses{403, 200}, own: statuses{403, 200}, reason: "scheme names are case-insensitive (RFC 9110)",
		},
	} {
		m.Run(test.name, func(t *testing.T) {
			if differs := test.peer.npm != test.peer.golang || test.own.npm != test.own.golang; differs && test.reason == "" && test.peer != missing {
				m.Errorf("the difference has no reason: %+v", test.peer)
			}
			for _, k := range kinds() {
				n := m.firstOf(k)
				status := func(method, path string) int {
					return m.call(method, n.base+path, "", nil, "Authorization", test.authorization).status
				}
				want := map[kind][2]int{npmKind: {test.peer.npm, test.own.npm}, goKind: {test.peer.golang, test.own.golang}}[k]
				got := [2]int{status(http.MethodDelete, "/itResources/another/servers/unknown"), status(http.MethodGet, "/things")}
				if got != want {
					m.Errorf("the %s node responds with %v, want %v", k, got, want)
				}
			}
		})
	}
}

// tokenRequests returns the token requests so far, each as its grant, audience and type, that start
// with prefix.
func (w *world) tokenRequests(prefix string) []string {
	w.Helper()
	var all []string
	for _, r := range w.requests("POST " + issuerPath) {
		var body struct {
			GrantType string `json:"grant_type"`
			Audience  string
			Type      string
		}
		if err := json.Unmarshal(r.body, &body); err != nil {
			w.Fatalf("token request with body %s", r.body)
		}
		if s := strings.TrimSpace(body.GrantType + " " + body.Audience + " " + body.Type); strings.HasPrefix(s, prefix) {
			all = append(all, s)
		}
	}
	return all
}

const (
	forRegistry = "client_credentials " + registryAudience
	forPeers    = "client_credentials " + peerAudience + " cluster"
)

func numberOfTokenRequests(w *world, k kind) {
	for _, id := range []string{"a", "b", "c"} {
		w.fakePeer(id, nil)
	}
	n := w.start(k)
	n.register()
	w.waitRegistered(n)
	for range 3 {
		if f := n.fanOut(fanoutArgs{Path: "/things"}); checkEqual(f.resultIDs(), []string{"a", "b", "c"}) != nil {
			w.Errorf("results %v, failures %v", f.resultIDs(), f.failureIDs())
		}
	}
	registry, peers := len(w.tokenRequests(forRegistry)), len(w.tokenRequests(forPeers))
	// An npm node requests more of them if registration takes longer than its retry period.
	if k == goKind && (registry != 1 || peers != 1) || k == npmKind && (registry < 1 || peers < 3) {
		w.Errorf("%d token requests for the registry, %d for three peers", registry, peers)
	}
}

func rejectedToken(w *world, k kind) {
	// Each peer has its first request before one of them rejects it. Otherwise the second peer might
	// get the token that replaces the first one, and reject that.
	var asked sync.WaitGroup
	asked.Add(2)
	// strict adds a peer that rejects the first token at /things, whenever it is used.
	strict := func(id string, status int) *fakePeer {
		var first atomic.Value
		return w.fakePeer(id, func(rw http.ResponseWriter, r *http.Request) {
			token := r.Header.Get("Authorization")
			isFirst := r.URL.Path == basePath+"/things" && first.CompareAndSwap(nil, token)
			if isFirst {
				asked.Done()
				asked.Wait()
			}
			if isFirst || r.URL.Path == basePath+"/things" && first.Load() == token {
				reply(rw, status, fmt.Sprintf(`{"statusCode":%d,"title":"no","message":"not with that token"}`, status))
				return
			}
			reply(rw, http.StatusOK, fmt.Sprintf(`{"data":[],"server":{"serverId":%q}}`, id))
		})
	}
	things := func(s *fakePeer) int {
		return len(slices.DeleteFunc(s.requests(), func(r request) bool { return r.target != basePath+"/things" }))
	}
	status403, status401 := strict("403", http.StatusForbidden), strict("401", http.StatusUnauthorized)
	n := w.startRegistered(k)
	w.waitFor("its announcement", func() error {
		if len(status403.requests()) == 0 || len(status401.requests()) == 0 {
			return errors.New("not both peers received a request")
		}
		return nil
	})
	before := len(w.tokenRequests(forPeers))
	f := n.fanOut(fanoutArgs{Path: "/things"})
	wantFailed, wantThings := []string(nil), 2
	if k == npmKind {
		wantFailed, wantThings = []string{"401"}, 1
	}
	if err := checkEqual(f.failureIDs(), wantFailed); err != nil {
		w.Errorf("failures: %v", err)
	}
	if things(status403) != 2 || things(status401) != wantThings {
		w.Errorf("%d requests to the peer with 403, %d to that with 401", things(status403), things(status401))
	}
	// An npm node requests more of them if registration takes longer than its retry period.
	if got := len(w.tokenRequests(forPeers)) - before; got < 1 || k == goKind && got > 1 {
		w.Errorf("%d more token requests for peers, want 1", got)
	}
}

func refreshToken(w *world, k kind) {
	w.fakePeer("a", nil)
	n := w.startRegistered(k)
	grants := func() []string {
		var all []string
		for _, request := range w.tokenRequests("") {
			grant, _, _ := strings.Cut(request, " ")
			all = append(all, grant)
		}
		return all
	}
	w.waitFor("the use of a refresh token", func() error {
		if f := n.fanOut(fanoutArgs{Path: "/things"}); f.failureIDs() != nil {
			w.Fatalf("failures %+v", f.Response.Failures)
		}
		if !slices.Contains(grants(), "refresh_token") {
			return fmt.Errorf("grants so far: %v", grants())
		}
		return nil
	})
	w.intercept(func(rw http.ResponseWriter, r *http.Request, body []byte) bool {
		if r.URL.Path != issuerPath || !bytes.Contains(body, []byte(`"refresh_token"`)) {
			return false
		}
		reply(rw, http.StatusBadRequest, `{"statusCode":400,"title":"Bad Request","message":"rejected by the test"}`)
		return true
	})
	for _, r := range w.requests("POST " + issuerPath) {
		var body map[string]string
		if err := json.Unmarshal(r.body, &body); err != nil {
			w.Fatal(err)
		}
		if keys := slices.Sorted(maps.Keys(body)); body["grant_type"] == "refresh_token" && checkEqual(keys, []string{"grant_type", "refresh_token"}) != nil {
			w.Errorf("body of a refresh request: %q", keys)
		}
	}
	before := len(grants())
	w.waitFor("the use of its credentials", func() error {
		if f := n.fanOut(fanoutArgs{Path: "/things"}); f.failureIDs() != nil {
			w.Fatalf("failures %+v", f.Response.Failures)
		}
		since := grants()[before:]
		if i := slices.Index(since, "refresh_token"); i < 0 || !slices.Contains(since[i:], "client_credentials") {
			return fmt.Errorf("grants since: %v", since)
		}
		return nil
	})
}

func shortToken(w *world, k kind) {
	w.fakePeer("a", nil)
	n := w.startRegistered(k)
	n.fanOut(fanoutArgs{Path: "/things"})
	before := len(w.tokenRequests(""))
	for range 4 {
		n.fanOut(fanoutArgs{Path: "/things"})
	}
	want := map[kind]int{goKind: 0, npmKind: 4}[k]
	if got := len(w.tokenRequests("")) - before; got != want {
		w.Errorf("%d token requests for four calls, want %d", got, want)
	}
}

func claimsOfTokens(m *mixed) {
	token := m.token(serverType, false)
	for _, n := range m.nodes {
		resp := m.call(http.MethodGet, n.base+"/mirror", token, nil)
		var envelope struct{ Data seen }
		if err := json.Unmarshal(resp.body, &envelope); err != nil {
			m.Fatal(err)
		}
		if got, want := envelope.Data.Caller, (caller{ClientID: serverType + "@clients", TokenType: serverType}); got != want {
			m.Errorf("caller of a plain token at %s: got %+v, want %+v", n.id, got, want)
		}
		for _, s := range n.seenByPeers(fanoutArgs{Path: "/mirror"}) {
			if got, want := s.Caller, (caller{ClientID: serverType + "@clients", TokenType: serverType, Cluster: true}); got != want {
				m.Errorf("caller of the token of %s at %s: got %+v, want %+v", n.id, s.ServerID, got, want)
			}
		}
	}
}

// seenByPeers lets the node call its peers, and returns the requests as they received them.
func (n *node) seenByPeers(args fanoutArgs) []seen {
	n.t.Helper()
	var all []seen
	for _, d := range n.fanOut(args).Response.Data {
		var s seen
		if err := json.Unmarshal(d, &s); err != nil {
			n.t.Fatal(err)
		}
		all = append(all, s)
	}
	return all
}

func callForCustomer(m *mixed) {
	for _, n := range m.nodes {
		want := map[kind]string{goKind: "acme"}[n.kind]
		all := n.seenByPeers(fanoutArgs{Path: "/mirror", Customer: "acme"})
		for _, s := range all {
			if s.Caller.Customer != want {
				m.Errorf("customer of a call from %s at %s: got %q, want %q", n.id, s.ServerID, s.Caller.Customer, want)
			}
		}
		if len(all) != len(m.nodes)-1 {
			m.Errorf("%d peers received the call of %s", len(all), n.id)
		}
	}
}

func tokenServiceFails(w *world, k kind) {
	for _, id := range []string{"a", "b", "c"} {
		w.fakePeer(id, nil)
	}
	fail := func(status int) {
		w.intercept(func(rw http.ResponseWriter, r *http.Request, body []byte) bool {
			if r.URL.Path != issuerPath || !bytes.Contains(body, []byte(peerAudience)) {
				return false
			}
			reply(rw, status, fmt.Sprintf(`{"statusCode":%d,"title":"no","message":"not now"}`, status))
			return true
		})
	}
	fail(http.StatusNotFound)
	n := w.startRegistered(k)
	for _, status := range []int{http.StatusNotFound, http.StatusServiceUnavailable} {
		fail(status)
		f := n.fanOut(fanoutArgs{Path: "/things"})
		if k == npmKind && status == http.StatusServiceUnavailable {
			if err := checkEqual(serverIDs(w.registered()), []string{n.id}); err != nil || f.failureIDs() != nil {
				w.Errorf("%d: registered: %v; failures %v", status, err, f.failureIDs())
			}
			continue
		}
		if err := checkEqual(f.failureIDs(), []string{"a", "b", "c"}); err != nil {
			w.Errorf("%d: failures: %v", status, err)
		}
		for _, failure := range f.Response.Failures {
			if e := failure.Error; k == npmKind && e.StatusCode != status || k == goKind && (e.Kind != cluster.KindNoToken || e.Evicted || e.Attempts != 0) {
				w.Errorf("%d: %s: %+v", status, failure.Server.ServerID, e)
			}
		}
		if err := checkEqual(serverIDs(w.registered()), []string{"a", "b", "c", n.id}); err != nil {
			w.Errorf("%d: registered: %v", status, err)
		}
	}
}

func plainTokenReused(w *world) {
	nodes := w.cluster(npmKind, goKind)
	npm, golang := nodes[0], nodes[1]
	// The npm node has no token for the address of the Go node, which joined after it.
	var ignored map[string]any
	npm.must("call", map[string]string{"url": golang.base + "/things"}, &ignored)
	if got := npm.unregister(); got.NbServers != 2 {
		w.Errorf("unRegister returns %+v", got)
	}
	if err := checkEqual(serverIDs(w.registered()), []string{golang.id}); err != nil {
		w.Errorf("registered: %v", err)
	}
	servers, err := golang.view()
	if err != nil {
		w.Fatal(err)
	}
	if err := checkEqual(serverIDs(servers), sortedIDs(nodes)); err != nil {
		w.Errorf("view of the Go node: %v", err)
	}
}
