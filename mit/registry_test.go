package mit_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/internal/exchanges"
	"github.com/mimiktech/cluster/mit"
)

const (
	issuer   = "http://mst.example.com/oauth/token"
	audience = "https://mit.example.com"
	key      = "the key that signs the tokens"
	secret   = "the secret of a client"
)

// services are a registry and a token service with the same key.
type services struct {
	*testing.T
	registry *mit.Registry
	tokens   *mit.TokenService
	store    mit.Store
}

func newServices(t *testing.T, change func(*mit.RegistryConfig)) *services {
	t.Helper()
	cfg := mit.RegistryConfig{Issuer: issuer, Audience: audience, Keys: []string{key}}
	if change != nil {
		change(&cfg)
	}
	p := &services{T: t, store: mit.NewMemory(), tokens: newTokens(t, nil)}
	var err error
	if p.registry, err = mit.NewRegistry(p.store, cfg); err != nil {
		t.Fatal(err)
	}
	return p
}

func newTokens(tb testing.TB, change func(*mit.TokenConfig)) *mit.TokenService {
	tb.Helper()
	cfg := mit.TokenConfig{Issuer: issuer, Key: key, Clients: []mit.Client{
		{ID: "mds-client", Secret: secret, Type: "mds"},
		{ID: "mfs-client", Secret: secret, Type: "mfs", Scope: "read:file"},
	}}
	if change != nil {
		change(&cfg)
	}
	s, err := mit.NewTokenService(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

// token is an access token of a client for an audience.
func (p *services) token(client, audience string) string {
	p.Helper()
	return requestTokens(p, p.tokens, map[string]string{
		"grant_type": "client_credentials", "client_id": client, "client_secret": secret, "audience": audience,
	}).AccessToken
}

type response struct {
	status int
	header http.Header
	body   string
}

func send(h http.Handler, method, target, token, body string) response {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	return exchange(h, r)
}

func exchange(h http.Handler, r *http.Request) response {
	w := httptest.NewRecorder()
	exchanges.Record(h).ServeHTTP(w, r)
	res := w.Result()
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	return response{res.StatusCode, res.Header, string(body)}
}

func decode[T any](tb testing.TB, a response) (v T) {
	tb.Helper()
	if err := json.Unmarshal([]byte(a.body), &v); err != nil {
		tb.Fatalf("%d %s: %v", a.status, a.body, err)
	}
	return v
}

type entry struct {
	ServerID       string          `json:"serverId"`
	ClusterBaseURL string          `json:"clusterBaseUrl"`
	Location       json.RawMessage `json:"location"`
	CreatedAt      string          `json:"createdAt"`
	UpdatedAt      string          `json:"updatedAt"`
}

type registered struct {
	ItResource struct {
		ID            string  `json:"id"`
		Type          string  `json:"type"`
		PublicBaseURL string  `json:"publicBaseUrl"`
		Servers       []entry `json:"servers"`
	} `json:"itResource"`
	LeaseTime *float64 `json:"leaseTime"`
}

type removed struct {
	Data   json.RawMessage `json:"data"`
	Server *entry          `json:"server"`
}

// checkError fails unless a is an error of that status, in the envelope, that contains all of
// parts.
func checkError(tb testing.TB, a response, status int, parts ...string) {
	tb.Helper()
	var e struct {
		StatusCode int
		Title      string
		Message    string
	}
	if err := json.Unmarshal([]byte(a.body), &e); err != nil {
		tb.Fatalf("%d %q is no envelope: %v", a.status, a.body, err)
	}
	if a.status != status || e.StatusCode != status || e.Title != http.StatusText(status) || e.Message == "" {
		tb.Errorf("%d %s, want a %d", a.status, a.body, status)
	}
	if ct := a.header.Get("Content-Type"); ct != "application/json" {
		tb.Errorf("content-type %q", ct)
	}
	for _, part := range parts {
		if !strings.Contains(e.Message, part) {
			tb.Errorf("message %q does not say %q", e.Message, part)
		}
	}
}

func body(typ, serverID string) string {
	return fmt.Sprintf(`{"type":%q,"serverId":%q,"location":{"type":"Point","coordinates":[1,2]},`+
		`"publicBaseUrl":"https://example.com/v1","clusterBaseUrl":"http://10.0.0.1:80/v1"}`, typ, serverID)
}

// join registers a server of type mds.
func (p *services) join(serverID string) registered {
	p.Helper()
	a := send(p.registry, http.MethodPost, "/itResources", p.token("mds-client", audience), body("mds", serverID))
	if a.status != http.StatusOK {
		p.Fatalf("register %s: %d %s", serverID, a.status, a.body)
	}
	return decode[registered](p, a)
}

func (p *services) servers() []string {
	p.Helper()
	res, err := p.store.Get(p.Context(), mit.ResourceID("mds"))
	if err != nil {
		p.Fatal(err)
	}
	var ids []string
	for _, s := range res.Servers {
		ids = append(ids, s.ServerID)
	}
	return ids
}

func serverPath(serverID string) string {
	return "/itResources/" + mit.ResourceID("mds") + "/servers/" + serverID
}

func TestRegister(t *testing.T) {
	p := newServices(t, nil)
	r := httptest.NewRequest(http.MethodPost, "/itResources?managedCluster=off", strings.NewReader(body("mds", "a")))
	r.Header.Set("Authorization", "bearer "+p.token("mds-client", audience))
	r.Header.Set("X-Correlation-Id", "abc@3/2026-01-02T03:04:05.678Z")
	a := exchange(p.registry, r)
	if a.status != http.StatusOK || a.header.Get("Content-Type") != "application/json" {
		t.Fatalf("%d %v %s", a.status, a.header, a.body)
	}
	if got := a.header.Get("X-Correlation-Id"); got != "abc@4/2026-01-02T03:04:05.678Z" {
		t.Errorf("correlation id %q", got)
	}
	got := decode[registered](t, a)
	if got.LeaseTime == nil || *got.LeaseTime != 7_200_000 {
		t.Errorf("leaseTime in %s, want 2 hours", a.body)
	}
	if got.ItResource.ID != mit.ResourceID("mds") || got.ItResource.Type != "mds" || got.ItResource.PublicBaseURL != "https://example.com/v1" {
		t.Errorf("itResource = %+v", got.ItResource)
	}
	e := got.ItResource.Servers[0]
	if len(got.ItResource.Servers) != 1 || e.ServerID != "a" || e.ClusterBaseURL != "http://10.0.0.1:80/v1" ||
		string(e.Location) != `{"type":"Point","coordinates":[1,2]}` || e.CreatedAt != e.UpdatedAt {
		t.Errorf("servers = %+v", got.ItResource.Servers)
	}
	if !regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$`).MatchString(e.UpdatedAt) {
		t.Errorf("updatedAt %q", e.UpdatedAt)
	}

	second := p.join("b")
	again := p.join("a")
	if n := len(second.ItResource.Servers); n != 2 || len(again.ItResource.Servers) != 2 || again.ItResource.ID != got.ItResource.ID {
		t.Errorf("second %+v, renewed %+v", second, again)
	}
	if f := again.ItResource.Servers[0]; f.CreatedAt != e.CreatedAt || f.UpdatedAt <= e.UpdatedAt {
		t.Errorf("%+v renewed is %+v", e, f)
	}

	a = send(p.registry, http.MethodGet, "/itResources/"+again.ItResource.ID, p.token("mds-client", audience), "")
	if a.status != http.StatusOK || len(decode[registered](t, a).ItResource.Servers) != 2 || strings.Contains(a.body, "leaseTime") {
		t.Errorf("GET: %d %s", a.status, a.body)
	}
}

func TestRegisterRejects(t *testing.T) {
	p := newServices(t, nil)
	with := func(change func(map[string]any)) string {
		m := map[string]any{}
		if err := json.Unmarshal([]byte(body("mds", "a")), &m); err != nil {
			t.Fatal(err)
		}
		change(m)
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	set := func(name string, value any) string { return with(func(m map[string]any) { m[name] = value }) }
	for name, test := range map[string]struct {
		body     string
		status   int
		contains []string
	}{
		"empty":              {"", 400, nil},
		"no JSON":            {"{", 400, nil},
		"two values":         {body("mds", "a") + "{}", 400, nil},
		"an array":           {"[]", 400, nil},
		"null":               {"null", 400, []string{"type is missing", "serverId is missing", "clusterBaseUrl is missing"}},
		"nothing":            {"{}", 400, []string{"type is missing", "serverId is missing", "clusterBaseUrl is missing"}},
		"wrong kind":         {set("serverId", 7), 400, nil},
		"serverId with @":    {set("serverId", "a@b"), 400, []string{"serverId", "@"}},
		"serverId with /":    {set("serverId", "a/b"), 400, []string{"serverId", "/"}},
		"serverId with ?":    {set("serverId", "a?"), 400, []string{"serverId"}},
		"serverId with NUL":  {set("serverId", "a\x00"), 400, []string{"serverId"}},
		"serverId dots":      {set("serverId", ".."), 400, []string{"serverId"}},
		"serverId long":      {set("serverId", strings.Repeat("a", 257)), 400, []string{"serverId", "256"}},
		"URL relative":       {set("clusterBaseUrl", "/v1"), 400, []string{"clusterBaseUrl"}},
		"URL without host":   {set("clusterBaseUrl", "http://:80/v1"), 400, []string{"clusterBaseUrl"}},
		"URL of a file":      {set("clusterBaseUrl", "file:///etc/passwd"), 400, []string{"clusterBaseUrl"}},
		"URL with password":  {set("clusterBaseUrl", "http://u:hunter2@h/v1"), 400, []string{"clusterBaseUrl", "credentials"}},
		"URL that breaks":    {set("clusterBaseUrl", "http://u:hunter2@h:x/"), 400, []string{"clusterBaseUrl"}},
		"URL with query":     {set("clusterBaseUrl", "http://h/v1?a"), 400, []string{"clusterBaseUrl", "more than a path"}},
		"URL with fragment":  {set("clusterBaseUrl", "http://h/v1#a"), 400, []string{"clusterBaseUrl"}},
		"long location":      {set("location", strings.Repeat("a", 5000)), 400, []string{"location"}},
		"long publicBaseUrl": {set("publicBaseUrl", strings.Repeat("a", 5000)), 400, []string{"publicBaseUrl"}},
		"URL with dots":      {set("clusterBaseUrl", "http://h/v1/../x"), 400, []string{"clusterBaseUrl", "dot segment"}},
		"script":             {set("publicBaseUrl", "javascript:alert(1)"), 400, []string{"publicBaseUrl"}},
		"type with controls": {body("mds\x1b", "a"), 400, nil},
		"too large":          {set("location", strings.Repeat("a", 1<<20)), 413, nil},
		"another type":       {body("mfs", "a"), 403, []string{"mds", "mfs"}},
	} {
		t.Run(name, func(t *testing.T) {
			a := send(p.registry, http.MethodPost, "/itResources", p.token("mds-client", audience), test.body)
			checkError(t, a, test.status, test.contains...)
			if strings.Contains(a.body, "hunter2") {
				t.Errorf("the response contains a password: %s", a.body)
			}
		})
	}
	if _, err := p.store.Get(t.Context(), mit.ResourceID("mds")); !errors.Is(err, mit.ErrNotFound) {
		t.Errorf("something was registered: %v", err)
	}
	for _, location := range []any{nil, map[string]any{}} {
		if a := send(p.registry, http.MethodPost, "/itResources", p.token("mds-client", audience), set("location", location)); a.status != http.StatusOK {
			t.Errorf("location %v: %d %s", location, a.status, a.body)
		}
	}
}

func TestDelete(t *testing.T) {
	p := newServices(t, nil)
	mds := p.token("mds-client", audience)
	first := p.join("a").ItResource.Servers[0]
	second := p.join("a").ItResource.Servers[0]
	p.join("b")
	p.join("c")

	a := send(p.registry, http.MethodDelete, serverPath("a@"+first.UpdatedAt), mds, "")
	if got := decode[removed](t, a); a.status != http.StatusOK || got.Data != nil || got.Server == nil || got.Server.UpdatedAt != second.UpdatedAt {
		t.Errorf("dated, too early: %d %s", a.status, a.body)
	}
	if !slices.Equal(p.servers(), []string{"a", "b", "c"}) {
		t.Errorf("servers %v", p.servers())
	}
	for _, path := range []string{
		"a@" + second.UpdatedAt,
		"a@" + second.UpdatedAt, // again
		"b%402099-01-01T00%3A00%3A00+02:00",
		"c",
		"c",
		"unknown",
	} {
		a := send(p.registry, http.MethodDelete, serverPath(path), mds, "")
		if got := decode[removed](t, a); a.status != http.StatusOK || got.Server != nil || !strings.Contains(string(got.Data), "serverId") {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	if len(p.servers()) != 0 {
		t.Errorf("servers %v", p.servers())
	}
}

func TestDeleteRejects(t *testing.T) {
	p := newServices(t, nil)
	p.join("a")
	for _, test := range []struct {
		path, client string
		status       int
		contains     string
	}{
		{serverPath("a@"), "mds-client", 400, `""`},
		{serverPath("a@undefined"), "mds-client", 400, `"undefined"`},
		{serverPath("a@2026-01-01"), "mds-client", 400, `"2026-01-01"`},
		{serverPath("a@2026-01-01T00:00:00Z@x"), "mds-client", 400, `"x"`},
		{serverPath("@2026-01-01T00:00:00Z"), "mds-client", 400, "serverId"},
		{serverPath("a"), "mfs-client", 403, "mfs"},
		{serverPath("a@2099-01-01T00:00:00Z"), "mfs-client", 403, "mfs"},
		{"/itResources/another/servers/a", "mds-client", 403, "mds"},
	} {
		t.Run(test.path+" by "+test.client, func(t *testing.T) {
			a := send(p.registry, http.MethodDelete, test.path, p.token(test.client, audience), "")
			checkError(t, a, test.status, test.contains)
		})
	}
	if !slices.Equal(p.servers(), []string{"a"}) {
		t.Errorf("servers %v", p.servers())
	}
}

func TestRoutes(t *testing.T) {
	for _, base := range []string{"", "/mIT/v1", "/"} {
		p := newServices(t, func(c *mit.RegistryConfig) { c.BasePath = base })
		at := strings.TrimSuffix(base, "/")
		for _, test := range []struct {
			method, path string
			status       int
		}{
			{"POST", at + "/itResources", 200},
			{"GET", at + "/itResources/" + mit.ResourceID("mds"), 200},
			{"DELETE", at + serverPath("a"), 200},
			{"GET", at + "/itResources/" + mit.ResourceID("mfs"), 403},
			{"PUT", at + "/itResources", 405},
			{"GET", at + "/itResources", 405},
			{"POST", at + "/itResources/x", 405},
			{"GET", at + serverPath("a"), 405},
			{"PATCH", at + serverPath("a"), 405},
			{"POST", at + "/itResources/", 404},
			{"POST", at + "//itResources", 404},
			{"POST", at + "/x/../itResources", 404},
			{"POST", at + "/itresources", 404},
			{"DELETE", at + serverPath(""), 404},
			{"DELETE", at + serverPath("a/b"), 404},
			{"GET", "/elsewhere", 404},
			{"OPTIONS", at + "/", 404},
			{"CONNECT", at + "/itResources", 405},
		} {
			t.Run(fmt.Sprintf("%s %s", test.method, test.path), func(t *testing.T) {
				a := send(p.registry, test.method, test.path, p.token("mds-client", audience), body("mds", "a"))
				if test.status == http.StatusOK {
					if a.status != http.StatusOK {
						t.Errorf("%d %s", a.status, a.body)
					}
					return
				}
				checkError(t, a, test.status)
				if test.status == http.StatusMethodNotAllowed && a.header.Get("Allow") == "" {
					t.Error("a 405 without Allow")
				}
				if a.header.Get("X-Correlation-Id") == "" {
					t.Error("no correlation id")
				}
			})
		}
	}
	p := newServices(t, nil)
	checkError(t, send(p.registry, "GET", "/itResources/"+mit.ResourceID("mds"), p.token("mds-client", audience), ""), 404)
}

func TestRegistryChecksTokens(t *testing.T) {
	p := newServices(t, nil)
	other := newTokens(t, func(c *mit.TokenConfig) { c.Key = "another key" })
	otherIssuer := newTokens(t, func(c *mit.TokenConfig) { c.Issuer = "http://elsewhere" })
	old := newTokens(t, func(c *mit.TokenConfig) { c.AccessTokenTTL = time.Second })
	ask := map[string]string{"grant_type": "client_credentials", "client_id": "mds-client", "client_secret": secret, "audience": audience}
	good := requestTokens(t, p.tokens, ask)
	for name, test := range map[string]struct {
		header []string
		status int
	}{
		"good":               {[]string{"Bearer " + good.AccessToken}, 200},
		"missing":            {nil, 401},
		"empty":              {[]string{""}, 401},
		"no token":           {[]string{"Bearer "}, 401},
		"basic":              {[]string{"Basic " + good.AccessToken}, 401},
		"twice":              {[]string{"Bearer " + good.AccessToken, "Bearer " + good.AccessToken}, 401},
		"no JWT":             {[]string{"Bearer x"}, 403},
		"a refresh token":    {[]string{"Bearer " + good.RefreshToken}, 403},
		"another key":        {[]string{"Bearer " + requestTokens(t, other, ask).AccessToken}, 403},
		"another issuer":     {[]string{"Bearer " + requestTokens(t, otherIssuer, ask).AccessToken}, 403},
		"another audience":   {[]string{"Bearer " + p.token("mds-client", "peers")}, 403},
		"another type":       {[]string{"Bearer " + p.token("mfs-client", audience)}, 403},
		"without signature":  {[]string{"Bearer " + good.AccessToken[:strings.LastIndexByte(good.AccessToken, '.')+1]}, 403},
		"two spaces, a good": {[]string{"Bearer  " + good.AccessToken}, 403},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest("POST", "/itResources", strings.NewReader(body("mds", "a")))
			r.Header["Authorization"] = test.header
			a := exchange(p.registry, r)
			if test.status == http.StatusOK {
				if a.status != http.StatusOK {
					t.Errorf("%d %s", a.status, a.body)
				}
				return
			}
			checkError(t, a, test.status)
			if (test.status == http.StatusUnauthorized) != (a.header.Get("WWW-Authenticate") != "") {
				t.Errorf("%d with WWW-Authenticate %q", test.status, a.header.Get("WWW-Authenticate"))
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		expired := requestTokens(t, old, ask).AccessToken
		time.Sleep(12 * time.Second) // with the leeway of the clocks
		checkError(t, send(p.registry, "POST", "/itResources", expired, body("mds", "a")), 403)
	})
}

// A registry that npm nodes use contains 403, after which they fetch a new token.
func TestInvalidTokenStatus(t *testing.T) {
	p := newServices(t, func(c *mit.RegistryConfig) { c.InvalidTokenStatus = http.StatusForbidden })
	checkError(t, send(p.registry, "POST", "/itResources", "x", body("mds", "a")), 403)
	checkError(t, send(p.registry, "POST", "/itResources", "", body("mds", "a")), 401)
}

func TestRegistryKeys(t *testing.T) {
	p := newServices(t, nil)
	before := p.token("mds-client", audience)
	if err := p.tokens.SetKey("a new key"); err != nil {
		t.Fatal(err)
	}
	after := p.token("mds-client", audience)
	status := func(token string) int {
		return send(p.registry, "POST", "/itResources", token, body("mds", "a")).status
	}
	for _, test := range []struct {
		keys          []string
		before, after int
	}{
		{[]string{key}, 200, 403},
		{[]string{"a new key", key}, 200, 200},
		{[]string{"a new key"}, 403, 200},
		{nil, 403, 403},
	} {
		p.registry.SetKeys(test.keys...)
		if b, a := status(before), status(after); b != test.before || a != test.after {
			t.Errorf("with keys %q the old token is answered %d, the new %d", test.keys, b, a)
		}
	}
}

func TestVerifyHook(t *testing.T) {
	g, err := mit.NewRegistry(mit.NewMemory(), mit.RegistryConfig{Verify: func(token string) (cluster.Claims, error) {
		if token == "no" {
			return cluster.Claims{SubType: "mds"}, errors.New("refused")
		}
		return cluster.Claims{SubType: token}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if a := send(g, "POST", "/itResources", "mds", body("mds", "a")); a.status != http.StatusOK {
		t.Errorf("%d %s", a.status, a.body)
	}
	checkError(t, send(g, "POST", "/itResources", "mfs", body("mds", "a")), 403)
	checkError(t, send(g, "POST", "/itResources", "no", body("mds", "a")), 403)
}

func TestLease(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*mit.RegistryConfig)
		set    func(*mit.Registry)
		named  float64 // 0: none
		ttl    time.Duration
	}{
		"default":     {nil, nil, 7_200_000, 3 * time.Hour},
		"configured":  {func(c *mit.RegistryConfig) { c.Lease = time.Minute }, nil, 60_000, 90 * time.Second},
		"grace":       {func(c *mit.RegistryConfig) { c.Lease, c.Grace = time.Minute, time.Second }, nil, 60_000, 61 * time.Second},
		"none":        {func(c *mit.RegistryConfig) { c.Lease = mit.NoLease }, nil, 0, 3 * time.Hour},
		"short":       {func(c *mit.RegistryConfig) { c.Lease = time.Second }, nil, 1000, 6 * time.Second},
		"short, set":  {nil, func(g *mit.Registry) { g.SetLease(8 * time.Second) }, 8000, 13 * time.Second},
		"too short":   {nil, func(g *mit.Registry) { g.SetLease(1) }, 1000, 6 * time.Second},
		"set":         {nil, func(g *mit.Registry) { g.SetLease(time.Minute) }, 60_000, 90 * time.Second},
		"set none":    {func(c *mit.RegistryConfig) { c.Lease = time.Minute }, func(g *mit.Registry) { g.SetLease(mit.NoLease) }, 0, 3 * time.Hour},
		"set default": {func(c *mit.RegistryConfig) { c.Lease = time.Minute }, func(g *mit.Registry) { g.SetLease(0) }, 7_200_000, 3 * time.Hour},
		"cut":         {nil, func(g *mit.Registry) { g.SetLease(1 << 62) }, 1<<31 - 1, (1<<31 - 1) * time.Millisecond * 3 / 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newServices(t, test.change)
				if test.set != nil {
					test.set(p.registry)
				}
				got := p.join("a").LeaseTime
				if test.named == 0 && got != nil || test.named != 0 && (got == nil || *got != test.named) {
					t.Errorf("leaseTime %v, want %v", got, test.named)
				}
				time.Sleep(test.ttl - time.Millisecond)
				if !slices.Equal(p.servers(), []string{"a"}) {
					t.Error("expired too early")
				}
				time.Sleep(time.Millisecond)
				if len(p.servers()) != 0 {
					t.Error("not expired")
				}
			})
		})
	}
}

// A server that renews as it was told to stays, and one that stays silent goes.
func TestRenewals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newServices(t, nil)
		p.join("silent")
		first := p.join("a").ItResource.Servers[0]
		var last registered
		for range 100 {
			time.Sleep(2 * time.Hour)
			last = p.join("a")
		}
		if servers := last.ItResource.Servers; len(servers) != 1 || servers[0].CreatedAt != first.CreatedAt {
			t.Errorf("after 100 leases: %+v", servers)
		}
	})
}

func TestMaxServers(t *testing.T) {
	p := newServices(t, func(c *mit.RegistryConfig) { c.MaxServers = 2 })
	p.join("a")
	p.join("b")
	mds := p.token("mds-client", audience)
	checkError(t, send(p.registry, "POST", "/itResources", mds, body("mds", "c")), 409, "2")
	p.join("a")
	if !slices.Equal(p.servers(), []string{"a", "b"}) {
		t.Errorf("servers %v", p.servers())
	}
	send(p.registry, "DELETE", serverPath("a"), mds, "")
	p.join("c")
}

// Two processes with one id are reported. A server that moves once is not.
func TestAddressConflicts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.WarnLevel)
		g := newOpenRegistry(t, mit.RegistryConfig{Logger: zap.New(core)})
		renew := func(id string, host int) {
			b := strings.Replace(body("mds", id), "10.0.0.1", fmt.Sprint("10.0.0.", host), 1)
			if a := send(g, "POST", "/itResources", "mds", b); a.status != http.StatusOK {
				t.Fatalf("%d %s", a.status, a.body)
			}
		}
		for host := range 10 {
			renew("moved", host)
		}
		if n := g.AddressConflicts(); n != 0 || logs.Len() != 0 {
			t.Errorf("%d conflicts of a server that moved: %v", n, logs.All())
		}
		for range 20 {
			renew("twice", 1)
			renew("twice", 2)
			time.Sleep(10 * time.Second)
		}
		checkMetrics(t, scrape(t, g, nil), map[string]string{"address_conflicts_total": "38"})
		page := g.StatusHandler(cluster.StatusOptions{})
		conflict := "Two running processes use the server id twice of mds"
		text := pageText(t, page, "/")
		checkText(t, text, conflict, "http://10.0.0.1:80/v1", "http://10.0.0.2:80/v1", "10 s ago")
		if strings.Contains(text, "server id moved") {
			t.Error("the page reports a server that moved")
		}
		if n := g.AddressConflicts(); n != 38 { // all but the first two renewals
			t.Errorf("%d conflicts, want 38", n)
		}
		lines := logs.FilterMessage("two processes have the same server id").FilterField(zap.String("serverId", "twice"))
		if n := lines.Len(); n < 3 || n > 4 {
			t.Errorf("%d lines in 200 s, want one a minute: %v", n, logs.All())
		}
		for range 3 { // three processes
			for host := range 3 {
				renew("thrice", host)
			}
		}
		if n := g.AddressConflicts(); n != 38+6 {
			t.Errorf("%d conflicts of three processes, want 6", n-38)
		}
		renew("once", 1)
		renew("once", 2)
		time.Sleep(2*time.Hour + time.Minute)
		renew("once", 2)
		time.Sleep(2 * time.Hour)
		renew("once", 1) // much later, it has moved back
		if n := g.AddressConflicts(); n != 38+6 {
			t.Errorf("%d conflicts after a server moved back later", n)
		}
		if strings.Contains(pageText(t, page, "/"), conflict) {
			t.Error("the page reports a conflict of hours ago")
		}
		for i := range 50 {
			for host := range 4 {
				renew(fmt.Sprint("s", i), host%2)
			}
		}
		text = pageText(t, page, "/?format=json")
		checkText(t, text, `"id":"s49"`)
		if n := strings.Count(text, "Two running processes"); n != 20 {
			t.Errorf("%d conflicts on the page, want 20", n)
		}
	})
}

// A brokenStore fails every call.
type brokenStore struct{ mit.Store }

var errStore = errors.New("no route to 10.1.2.3")

func (brokenStore) Put(context.Context, mit.Registration, time.Duration) (mit.Resource, error) {
	return mit.Resource{}, errStore
}

func (brokenStore) Get(context.Context, string) (mit.Resource, error) {
	return mit.Resource{}, errStore
}

func TestStoreFailure(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	g, err := mit.NewRegistry(brokenStore{}, mit.RegistryConfig{
		Verify: func(token string) (cluster.Claims, error) { return cluster.Claims{SubType: token}, nil },
		Logger: zap.New(core),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []response{
		send(g, "POST", "/itResources", "mds", body("mds", "a")),
		send(g, "GET", "/itResources/"+mit.ResourceID("mds"), "mds", ""),
	} {
		checkError(t, a, 503)
		if strings.Contains(a.body, "10.1.2.3") {
			t.Errorf("the response contains an internal address: %s", a.body)
		}
		if a.header.Get("Connection") != "close" {
			t.Error("the next try comes over the same connection")
		}
	}
	if logs.FilterMessage("store failed").Len() != 2 {
		t.Errorf("logged %v", logs.All())
	}
}

func TestRegistryLog(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	p := newServices(t, func(c *mit.RegistryConfig) { c.Logger = zap.New(core) })
	mds := p.token("mds-client", audience)
	p.join("a")
	p.join("a")
	send(p.registry, "DELETE", serverPath("a@2000-01-01T00:00:00Z"), mds, "")
	send(p.registry, "DELETE", serverPath("a@1970-01-01T00:00:00.000Z"), mds, "")
	send(p.registry, "DELETE", serverPath("a"), mds, "")
	send(p.registry, "DELETE", serverPath("a"), mds+"x", "")
	var messages []string
	for _, e := range logs.All() {
		fields := e.ContextMap()
		client := "mds-client"
		if strings.HasSuffix(e.Message, "rejected") {
			client = "" // the token is not valid
		}
		checkAudit(t, e, client, "a")
		messages = append(messages, e.Level.String()+" "+e.Message)
		if line := fmt.Sprint(e.Message, fields); strings.Contains(line, mds) || strings.Contains(line, key) || strings.Contains(line, secret) {
			t.Errorf("a secret in the log: %s", line)
		}
	}
	want := []string{
		"info server registered",
		"debug server renewed",
		"info server not deleted: it has renewed since",
		"debug server not deleted: it has renewed since", // the query for an entry
		"info server deleted",
		"warn token rejected",
		"info request rejected",
	}
	if !slices.Equal(messages, want) {
		t.Errorf("logged %q, want %q", messages, want)
	}
}

// checkAudit checks the fields of a log line that name its request.
func checkAudit(t *testing.T, e observer.LoggedEntry, client, server string) {
	t.Helper()
	fields := e.ContextMap()
	if id, _ := fields["correlationId"].(string); id == "" {
		t.Errorf("%q without correlation id: %v", e.Message, fields)
	}
	for name, want := range map[string]any{"remoteAddress": "192.0.2.1:1234", "clientId": client, "serverId": server} {
		if fields[name] != want {
			t.Errorf("%q with %s %v, want %v: %v", e.Message, name, fields[name], want, fields)
		}
	}
}

// The line about a refused request names the server that was to be registered or deleted.
func TestRefusalsAreAudited(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	p := newServices(t, func(c *mit.RegistryConfig) {
		c.Logger, c.MaxListBytes = zap.New(core), 4700
	})
	if err := p.tokens.SetClient(mit.Client{ID: "bound", Secret: secret, Type: "mds", ServerIDs: []string{"own"}}); err != nil {
		t.Fatal(err)
	}
	bound := boundToken(t, p.tokens, "own", audience)
	mds := p.token("mds-client", audience)
	renewal := httptest.NewRequest(http.MethodPost, "/itResources", strings.NewReader(body("mds", "target")))
	renewal.Header.Set("Authorization", "Bearer "+mds)
	renewal.Header.Set("X-Renewal-Of", "2026-01-02T03:04:05.678Z")
	send(p.registry, http.MethodPost, "/itResources", mds, largeBody("mds", "a", 4000))
	post := func(token, body string) func() response {
		return func() response { return send(p.registry, http.MethodPost, "/itResources", token, body) }
	}
	remove := func(token, path string) func() response {
		return func() response { return send(p.registry, http.MethodDelete, path, token, "") }
	}
	for _, test := range []struct {
		status int
		client string
		send   func() response
	}{
		{400, "mds-client", post(mds, strings.Replace(body("mds", "target"), "http://", "ftp://", 1))},
		{403, "mds-client", post(mds, body("mfs", "target"))},
		{403, "bound", post(bound, body("mds", "target"))},
		{412, "mds-client", func() response { return exchange(p.registry, renewal) }},
		{413, "mds-client", post(mds, largeBody("mds", "target", 600))},
		{403, "bound", remove(bound, serverPath("target"))},
		{403, "mds-client", remove(mds, "/itResources/"+mit.ResourceID("mfs")+"/servers/target@2026-01-02T03:04:05Z")},
		{400, "mds-client", remove(mds, serverPath("target@yesterday"))},
		{403, "", remove(mds+"x", serverPath("target"))},
	} {
		logs.TakeAll()
		if a := test.send(); a.status != test.status {
			t.Fatalf("%d %s, want %d", a.status, a.body, test.status)
		}
		lines := logs.FilterMessage("request rejected").All()
		if len(lines) != 1 || lines[0].ContextMap()["statusCode"] != int64(test.status) {
			t.Fatalf("%d: logged %v", test.status, lines)
		}
		checkAudit(t, lines[0], test.client, "target")
	}
}

func TestNewRegistryReportsAllProblems(t *testing.T) {
	good := mit.RegistryConfig{Issuer: issuer, Audience: audience, Keys: []string{key}}
	for name, test := range map[string]struct {
		store    mit.Store
		change   func(*mit.RegistryConfig)
		contains []string
	}{
		"nothing": {nil, func(c *mit.RegistryConfig) { *c = mit.RegistryConfig{} }, []string{"store", "Issuer", "Audience", "Keys"}},
		"values": {mit.NewMemory(), func(c *mit.RegistryConfig) {
			c.Lease, c.Grace, c.MaxServers, c.BasePath, c.InvalidTokenStatus, c.Keys = -2, -1, -1, "mIT/", 400, []string{""}
		}, []string{"Lease", "Grace", "MaxServers", "BasePath", "InvalidTokenStatus", "Keys"}},
		"tiny lease":  {mit.NewMemory(), func(c *mit.RegistryConfig) { c.Lease = 1 }, []string{"Lease"}},
		"short lease": {mit.NewMemory(), func(c *mit.RegistryConfig) { c.Lease = time.Second - 1 }, []string{"Lease"}},
		"long lease":  {mit.NewMemory(), func(c *mit.RegistryConfig) { c.Lease = 25 * 24 * time.Hour }, []string{"Lease"}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := good
			test.change(&cfg)
			_, err := mit.NewRegistry(test.store, cfg)
			if err == nil {
				t.Fatal("no error")
			}
			for _, part := range test.contains {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not say %s", err, part)
				}
			}
		})
	}
}

func TestConcurrentRegistrations(t *testing.T) {
	p := newServices(t, nil)
	mds := p.token("mds-client", audience)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			id := fmt.Sprint(i)
			for j := range 20 {
				p.registry.SetLease(time.Duration(j) * time.Second)
				p.registry.SetKeys(key, id)
				send(p.registry, "POST", "/itResources", mds, body("mds", id))
				send(p.registry, "DELETE", serverPath(id), mds, "")
				send(p.registry, "POST", "/itResources", mds, body("mds", id))
			}
		})
	}
	wg.Wait()
	if n := len(p.servers()); n != 8 {
		t.Errorf("%d servers, want 8", n)
	}
}

func FuzzRegistry(f *testing.F) {
	f.Add("POST", "/itResources", "managedCluster=off", body("mds", "a"))
	f.Add("DELETE", serverPath("a@2026-01-01T00:00:00.000Z"), "", "")
	f.Add("DELETE", serverPath("a"), "", "")
	f.Add("GET", "/itResources/x", "", "{}")
	f.Add("POST", "itResources", "", "{}")
	f.Add("OPTIONS", "*", "", "")
	f.Add("", "", "", "")
	f.Add("POST", "/itResources", "%", `{"type":"mds","serverId":"\u0000","clusterBaseUrl":"http://[::1","location":null}`)
	f.Fuzz(func(t *testing.T, method, path, query, body string) {
		store := mit.NewMemory()
		g, err := mit.NewRegistry(store, mit.RegistryConfig{Verify: func(token string) (cluster.Claims, error) { return cluster.Claims{SubType: token}, nil }})
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest("GET", "/", strings.NewReader(body))
		r.Method, r.URL.Path, r.URL.RawQuery = method, path, query
		r.Header.Set("Authorization", "Bearer mds")
		a := exchange(g, r)
		if a.status != http.StatusOK {
			checkError(t, a, a.status)
			if a.status >= 500 {
				t.Errorf("%d %s", a.status, a.body)
			}
			return
		}
		if method != "POST" {
			return
		}
		// Whatever was let in can be put out by the path that a node writes.
		for _, s := range decode[registered](t, a).ItResource.Servers {
			for _, id := range []string{s.ServerID + "@" + s.UpdatedAt, s.ServerID} {
				u, err := url.Parse(serverPath(id))
				if err != nil {
					t.Fatalf("%q cannot stand in a path: %v", id, err)
				}
				r := httptest.NewRequest("DELETE", "/", nil)
				r.URL = u
				r.Header.Set("Authorization", "Bearer mds")
				if a := exchange(g, r); a.status != http.StatusOK {
					t.Errorf("delete %q: %d %s", id, a.status, a.body)
				}
			}
		}
		if res, err := store.Get(t.Context(), mit.ResourceID("mds")); err != nil || len(res.Servers) != 0 {
			t.Errorf("left over: %+v, %v", res, err)
		}
	})
}

func BenchmarkRegistryRenew(b *testing.B) {
	for _, n := range []int{100, 1000, 10_000} {
		b.Run(fmt.Sprintf("servers=%d", n), func(b *testing.B) {
			store := mit.NewMemory()
			g, err := mit.NewRegistry(store, mit.RegistryConfig{Verify: func(token string) (cluster.Claims, error) { return cluster.Claims{SubType: token}, nil }})
			if err != nil {
				b.Fatal(err)
			}
			for i := range n {
				if _, err := store.Put(b.Context(), mit.Registration{Type: "mds", ServerID: fmt.Sprint(i), ClusterBaseURL: "http://10.0.0.1:80/v1"}, time.Hour); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				send(g, "POST", "/itResources", "mds", body("mds", "7"))
			}
		})
	}
}

// The holder of a token that is bound to a server registers and deletes no other one. It may evict
// others, with a conditional delete.
func TestBoundTokens(t *testing.T) {
	p := newServices(t, nil)
	p.tokens = newTokens(t, withBoundClient("*"))
	a := boundToken(t, p.tokens, "a", audience)
	checkError(t, send(p.registry, http.MethodPost, "/itResources", a, body("mds", "b")), 403, `"a"`, `"b"`)
	if r := send(p.registry, http.MethodPost, "/itResources", a, body("mds", "a")); r.status != http.StatusOK {
		t.Errorf("registering itself: %d %s", r.status, r.body)
	}
	b := p.join("b").ItResource.Servers[1]
	p.join("c")
	checkError(t, send(p.registry, http.MethodDelete, serverPath("b"), a, ""), 403, `"a"`, `"b"`)
	if got := p.servers(); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("servers %v", got)
	}
	for _, path := range []string{"a", "b@" + b.UpdatedAt} {
		if r := send(p.registry, http.MethodDelete, serverPath(path), a, ""); r.status != http.StatusOK {
			t.Errorf("deleting %s: %d %s", path, r.status, r.body)
		}
	}
	if got := p.servers(); !slices.Equal(got, []string{"c"}) {
		t.Errorf("servers %v", got)
	}
}
