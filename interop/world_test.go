//go:build unix

package interop

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
)

const (
	serverType       = "mds"
	basePath         = "/mds/v1"
	registryPath     = "/mIT/v1"
	issuerPath       = "/mST/v1/oauth/token"
	registryAudience = "https://mit.test/"
	peerAudience     = "https://mds.test/"
	signingKey       = "a key for tests only"
	previousKey      = "the key before it"

	// How long a test waits for what must come.
	patience = 30 * time.Second
	// A lease that no scenario lives to see the end of.
	longLease = time.Hour
	// What a registry grants beyond a lease: a machine that is busy with other things must not
	// cost anybody its place.
	grace = 20 * time.Second
)

// A world is a test with a cluster and all that needs: a registry and a token service in the
// test's own process, so that it can turn them and read along, and nodes in processes of theirs.
type world struct {
	*testing.T
	modules  string
	url      string
	registry *mit.Registry
	tokens   *mit.TokenService
	memory   *mit.Memory
	launched int

	mu      sync.Mutex // guards the fields below
	heard   []request
	instead instead
}

// instead answers a request in the place of the registry or the token service; it returns false
// to let them.
type instead func(w http.ResponseWriter, r *http.Request, body []byte) bool

// A request is one that the registry or the token service got.
type request struct {
	at     time.Time
	method string
	target string // path and query
	header http.Header
	body   []byte
}

type worldOption func(*mit.RegistryConfig, *mit.TokenConfig)

func lease(d time.Duration) worldOption {
	return func(r *mit.RegistryConfig, _ *mit.TokenConfig) { r.Lease = d }
}

func tokenLife(d time.Duration) worldOption {
	return func(_ *mit.RegistryConfig, c *mit.TokenConfig) { c.AccessTokenTTL = d }
}

func newWorld(t *testing.T, with worldOption) *world {
	t.Helper()
	w := &world{T: t, modules: install(t), memory: mit.NewMemory()}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(w.serve))
	w.url = "http://" + srv.Listener.Addr().String()
	registry := mit.RegistryConfig{
		Lease: longLease, Grace: grace, Issuer: w.issuer(), Audience: registryAudience, Keys: []string{signingKey},
		BasePath: registryPath, InvalidTokenStatus: http.StatusForbidden,
	}
	tokens := mit.TokenConfig{
		Issuer: w.issuer(), Key: signingKey,
		Clients: []mit.Client{{ID: serverType, Secret: secretOf(serverType), Type: serverType}},
	}
	if with != nil {
		with(&registry, &tokens)
	}
	var err error
	if w.registry, err = mit.NewRegistry(w.memory, registry); err != nil {
		t.Fatal(err)
	}
	if w.tokens, err = mit.NewTokenService(tokens); err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	return w
}

func secretOf(client string) string { return "secret of " + client }

func (w *world) issuer() string { return w.url + issuerPath }

func (w *world) serve(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	w.mu.Lock()
	w.heard = append(w.heard, request{time.Now(), r.Method, r.RequestURI, r.Header.Clone(), body})
	instead := w.instead
	w.mu.Unlock()
	switch {
	case instead != nil && instead(rw, r, body):
	case r.URL.Path == issuerPath:
		w.tokens.ServeHTTP(rw, r)
	default:
		w.registry.ServeHTTP(rw, r)
	}
}

// answerInstead puts i before the registry and the token service; nil takes it away.
func (w *world) answerInstead(i instead) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.instead = i
}

// registryFails is an instead that answers whatever the registry is asked with that status.
func registryFails(status int, methods ...string) instead {
	return func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		if !strings.HasPrefix(r.URL.Path, registryPath) || len(methods) > 0 && !slices.Contains(methods, r.Method) {
			return false
		}
		reply(w, status, fmt.Sprintf(`{"statusCode":%d,"title":"%s","message":"failing as told"}`, status, http.StatusText(status)))
		return true
	}
}

// requests are those heard so far whose method and target begin like that.
func (w *world) requests(beginning string) []request {
	w.mu.Lock()
	defer w.mu.Unlock()
	var found []request
	for _, r := range w.heard {
		if strings.HasPrefix(r.method+" "+r.target, beginning) {
			found = append(found, r)
		}
	}
	return found
}

// registrations are the requests by which a node registered or renewed.
func (w *world) registrations(id string) []request {
	return slices.DeleteFunc(w.requests("POST "+registryPath+"/itResources"), func(r request) bool {
		return !bytes.Contains(r.body, []byte(`"`+id+`"`))
	})
}

// environment is that of a node, by mimik's own names.
func (w *world) environment() map[string]string {
	return map[string]string{
		"SERVER_TYPE": serverType, "SERVER_VERSION": "1.2.3", "CLUSTER_MANAGEMENT": "on",
		"MIT_URL": w.url + registryPath, "MIT_AUDIENCE": registryAudience, "MDS_AUDIENCE": peerAudience,
		"OAUTH_ISSUER": w.issuer(), "OAUTH_CLIENT_ID": serverType, "OAUTH_CLIENT_SECRET": secretOf(serverType),
		"OAUTH_CLIENT_ACCESS_KEY": signingKey, "OAUTH_CLIENT_AUDIENCE": peerAudience,
		"OAUTH_GENERIC_PREVIOUS_KEY": previousKey,
		"REGISTRATION_RETRY":         "250", "REGISTRATION_SET": "off", // registering is an order
	}
}

// start starts a node that serves but has yet to register. What is in env replaces what a node
// has in its environment otherwise.
func (w *world) start(k kind, env ...string) *node {
	w.Helper()
	return w.launch(k, env...).serving()
}

// launch is start without waiting for it.
func (w *world) launch(k kind, env ...string) *node {
	w.Helper()
	w.launched++
	return w.launchAs(k, fmt.Sprintf("%s-%d", strings.ToLower(string(k)), w.launched), 0, env...)
}

// launchAs is launch with an id and a port; port 0 is any.
func (w *world) launchAs(k kind, id string, port int, env ...string) *node {
	w.Helper()
	releasePort(port)
	return launch(w.T, k, id, fmt.Sprintf("127.0.0.1:%d", port), w.modules, w.with(env))
}

func (w *world) with(env []string) map[string]string {
	w.Helper()
	all := w.environment()
	for _, e := range env {
		name, value, ok := strings.Cut(e, "=")
		if !ok {
			w.Fatalf("%q is no variable", e)
		}
		all[name] = value
	}
	return all
}

// cluster starts one node after the other, each registered and known to all before the next.
func (w *world) cluster(ks ...kind) []*node {
	w.Helper()
	nodes := make([]*node, len(ks))
	for i, k := range ks {
		nodes[i] = w.launch(k)
	}
	w.join(nodes...)
	return nodes
}

// join registers nodes one after the other.
func (w *world) join(nodes ...*node) {
	w.Helper()
	for i, n := range nodes {
		n.serving().register()
		w.settle(nodes[:i+1]...)
	}
}

// listed are the servers that the registry lists, sorted by id.
func (w *world) listed() []cluster.Server {
	w.Helper()
	r, err := w.memory.Get(context.Background(), mit.ResourceID(serverType))
	if err != nil && !errors.Is(err, mit.ErrNotFound) {
		w.Fatal(err)
	}
	return r.Servers
}

// entry is what the registry has of a server; zero if nothing.
func (w *world) entry(id string) cluster.Server {
	w.Helper()
	for _, s := range w.listed() {
		if s.ServerID == id {
			return s
		}
	}
	return cluster.Server{}
}

// settle waits until the registry lists those nodes and no other, and each of them says the same.
func (w *world) settle(nodes ...*node) {
	w.Helper()
	want := sorted(nodes)
	w.until("the registry lists "+strings.Join(want, ", "), func() error { return same(serverIDs(w.listed()), want) })
	for _, n := range nodes {
		w.sees(n, nodes...)
	}
}

// sees waits until a node knows those and no others.
func (w *world) sees(n *node, nodes ...*node) {
	w.Helper()
	want := sorted(nodes)
	w.until(fmt.Sprintf("%s knows %s", n.id, strings.Join(want, ", ")), func() error {
		servers, err := n.view()
		if err != nil {
			return err
		}
		ids := serverIDs(servers)
		slices.Sort(ids)
		return same(ids, want)
	})
}

func sorted(nodes []*node) []string {
	ids := make([]string, len(nodes))
	for i, n := range nodes {
		ids[i] = n.id
	}
	slices.Sort(ids)
	return ids
}

func same(got, want []string) error {
	if !slices.Equal(got, want) {
		return fmt.Errorf("it is %q, not %q", got, want)
	}
	return nil
}

// until waits for a condition to come true, which must be within patience.
func (w *world) until(what string, check func() error) {
	w.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			w.Fatalf("waited %v until %s: %v", patience, what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// token is an access token for the nodes, as a client of that type gets one.
func (w *world) token(typ string, clusterToken bool) string {
	w.Helper()
	if err := w.tokens.SetClient(mit.Client{ID: typ, Secret: secretOf(typ), Type: typ}); err != nil {
		w.Fatal(err)
	}
	body := map[string]string{
		"client_id": typ, "client_secret": secretOf(typ), "audience": peerAudience, "grant_type": "client_credentials",
	}
	if clusterToken {
		body["type"] = "cluster"
	}
	a := w.call(http.MethodPost, w.issuer(), "", body)
	var answer struct {
		Data struct {
			AccessToken string `json:"access_token"`
		}
	}
	if err := json.Unmarshal(a.body, &answer); err != nil || answer.Data.AccessToken == "" {
		w.Fatalf("no token: %d %s", a.status, a.body)
	}
	return answer.Data.AccessToken
}

// An answer is what came of a request of the test itself.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// call makes a request of the test itself, with a token unless that is empty.
func (w *world) call(method, url, token string, body any, headers ...string) answer {
	w.Helper()
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			w.Fatal(err)
		}
		content = bytes.NewReader(b)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, content)
	if err != nil {
		w.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.Fatal(err)
	}
	defer resp.Body.Close()
	read, err := io.ReadAll(resp.Body)
	if err != nil {
		w.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, read}
}

// A stranger is a peer in the test's own process: it answers as it is told, and keeps what it is
// asked.
type stranger struct {
	id, base string

	mu    sync.Mutex // guards the field below
	heard []request
}

func (s *stranger) requests() []request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.heard)
}

// stranger has the registry list a peer that answers with serve; nil: as a peer must.
func (w *world) stranger(id string, serve http.HandlerFunc) *stranger {
	w.Helper()
	s := &stranger{id: id}
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.heard = append(s.heard, request{time.Now(), r.Method, r.RequestURI, r.Header.Clone(), body})
		s.mu.Unlock()
		if serve == nil {
			reply(rw, http.StatusOK, `{"data":["`+id+`"],"server":{"serverId":"`+id+`"}}`)
			return
		}
		serve(rw, r)
	}))
	w.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	s.base = srv.URL + basePath
	w.list(id, s.base)
	return s
}

// ghost has the registry list a peer that is not there: nobody serves port 1.
func (w *world) ghost(id string) {
	w.Helper()
	w.list(id, "http://127.0.0.1:1"+basePath)
}

// list has the registry list a server, as if it had registered just now.
func (w *world) list(id, base string) {
	w.Helper()
	reg := mit.Registration{Type: serverType, ServerID: id, PublicBaseURL: base, ClusterBaseURL: base}
	if _, err := w.memory.Put(context.Background(), reg, longLease); err != nil {
		w.Fatal(err)
	}
}

func reply(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body) // whoever asked sees that it broke off
}
