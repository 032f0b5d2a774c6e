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
	"github.com/mimiktech/cluster/internal/exchanges"
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

	waitTimeout = 30 * time.Second
	longLease   = time.Hour        // does not expire during a scenario
	grace       = 20 * time.Second // after a lease, for nodes that are late on a busy machine
)

// A world is the cluster of a test. Its registry and token service run in the process of the test,
// which can intercept and read their requests. Its nodes are processes of their own.
type world struct {
	*testing.T
	modules  string
	url      string
	registry *mit.Registry
	tokens   *mit.TokenService
	memory   *mit.Memory
	launched int

	mu          sync.Mutex // guards the fields below
	received    []request
	interceptor interceptor
}

// An interceptor may respond to a request in place of the registry or the token service. If it
// returns false, they handle the request.
type interceptor func(w http.ResponseWriter, r *http.Request, body []byte) bool

// A request is a received request.
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

func tokenTTL(d time.Duration) worldOption {
	return func(_ *mit.RegistryConfig, c *mit.TokenConfig) { c.AccessTokenTTL = d }
}

func newWorld(t *testing.T, option worldOption) *world {
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
	if option != nil {
		option(&registry, &tokens)
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
	w.received = append(w.received, request{time.Now(), r.Method, r.RequestURI, r.Header.Clone(), body})
	intercept := w.interceptor
	w.mu.Unlock()
	if intercept != nil {
		handled := false
		exchanges.Record(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			handled = intercept(rw, r, body)
		})).ServeHTTP(rw, r)
		if handled {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	backend := http.Handler(w.registry)
	if r.URL.Path == issuerPath {
		backend = w.tokens
	}
	exchanges.Record(backend).ServeHTTP(rw, r)
}

// intercept sets the interceptor of the registry and the token service, or removes it if i is nil.
func (w *world) intercept(i interceptor) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.interceptor = i
}

// failRegistry returns an interceptor that fails the registry's requests with the given status. It
// applies to the given methods, or to all if there are none.
func failRegistry(status int, methods ...string) interceptor {
	return func(w http.ResponseWriter, r *http.Request, _ []byte) bool {
		if !strings.HasPrefix(r.URL.Path, registryPath) || len(methods) > 0 && !slices.Contains(methods, r.Method) {
			return false
		}
		reply(w, status, fmt.Sprintf(`{"statusCode":%d,"title":"%s","message":"requested failure"}`, status, http.StatusText(status)))
		return true
	}
}

// requests returns the requests so far. Their method and target start with prefix.
func (w *world) requests(prefix string) []request {
	w.mu.Lock()
	defer w.mu.Unlock()
	var found []request
	for _, r := range w.received {
		if strings.HasPrefix(r.method+" "+r.target, prefix) {
			found = append(found, r)
		}
	}
	return found
}

// registrations returns the registrations and renewals of a node.
func (w *world) registrations(id string) []request {
	return slices.DeleteFunc(w.requests("POST "+registryPath+"/itResources"), func(r request) bool {
		return !bytes.Contains(r.body, []byte(`"`+id+`"`))
	})
}

// environment returns the environment variables of a node.
func (w *world) environment() map[string]string {
	return map[string]string{
		"SERVER_TYPE": serverType, "SERVER_VERSION": "1.2.3", "CLUSTER_MANAGEMENT": "on",
		"MIT_URL": w.url + registryPath, "MIT_AUDIENCE": registryAudience, "MDS_AUDIENCE": peerAudience,
		"OAUTH_ISSUER": w.issuer(), "OAUTH_CLIENT_ID": serverType, "OAUTH_CLIENT_SECRET": secretOf(serverType),
		"OAUTH_CLIENT_ACCESS_KEY": signingKey, "OAUTH_CLIENT_AUDIENCE": peerAudience,
		"OAUTH_GENERIC_PREVIOUS_KEY": previousKey,
		"REGISTRATION_RETRY":         "250", "REGISTRATION_SET": "off", // a node registers on command
	}
}

// start starts a node and waits until it serves requests. The node has not registered. The
// variables in env, such as "NAME=value", override those of environment.
func (w *world) start(k kind, env ...string) *node {
	w.Helper()
	return w.launch(k, env...).waitReady()
}

// startRegistered starts a node and registers it.
func (w *world) startRegistered(k kind, env ...string) *node {
	w.Helper()
	n := w.start(k, env...)
	n.register()
	w.waitRegistered(n)
	return n
}

func (w *world) waitRegistered(n *node) {
	w.Helper()
	w.waitFor(n.id+" is registered", func() error {
		return checkEqual([]string{n.status().Registration}, []string{"registered"})
	})
}

// launch is start without waiting.
func (w *world) launch(k kind, env ...string) *node {
	w.Helper()
	w.launched++
	return w.launchAs(k, fmt.Sprintf("%s-%d", strings.ToLower(string(k)), w.launched), 0, env...)
}

// launchAs is launch with an id and a port. Port 0 is any free port.
func (w *world) launchAs(k kind, id string, port int, env ...string) *node {
	w.Helper()
	releasePort(port)
	return launch(w.T, k, id, fmt.Sprintf("127.0.0.1:%d", port), w.modules, w.withEnv(env))
}

func (w *world) withEnv(env []string) map[string]string {
	w.Helper()
	all := w.environment()
	for _, e := range env {
		name, value, ok := strings.Cut(e, "=")
		if !ok {
			w.Fatalf("%q is not of the form NAME=value", e)
		}
		all[name] = value
	}
	return all
}

// cluster starts nodes of the given kinds and joins them.
func (w *world) cluster(ks ...kind) []*node {
	w.Helper()
	nodes := make([]*node, len(ks))
	for i, k := range ks {
		nodes[i] = w.launch(k)
	}
	w.join(nodes...)
	return nodes
}

// join registers the nodes one after the other. Each is known to all before the next one registers.
func (w *world) join(nodes ...*node) {
	w.Helper()
	for i, n := range nodes {
		n.waitReady().register()
		w.waitForMembers(nodes[:i+1]...)
	}
}

// registered returns the servers that the registry lists, sorted by id.
func (w *world) registered() []cluster.Server {
	w.Helper()
	r, err := w.memory.Get(context.Background(), mit.ResourceID(serverType))
	if err != nil && !errors.Is(err, mit.ErrNotFound) {
		w.Fatal(err)
	}
	return r.Servers
}

// registryEntry returns the registry's entry of a server, or the zero value.
func (w *world) registryEntry(id string) cluster.Server {
	w.Helper()
	for _, s := range w.registered() {
		if s.ServerID == id {
			return s
		}
	}
	return cluster.Server{}
}

// waitForMembers waits until the registry and each of the nodes list exactly these nodes.
func (w *world) waitForMembers(nodes ...*node) {
	w.Helper()
	want := sortedIDs(nodes)
	w.waitFor("the registry lists "+strings.Join(want, ", "), func() error { return checkEqual(serverIDs(w.registered()), want) })
	for _, n := range nodes {
		w.waitForView(n, nodes...)
	}
}

// waitForView waits until a node knows exactly these nodes.
func (w *world) waitForView(n *node, nodes ...*node) {
	w.Helper()
	want := sortedIDs(nodes)
	w.waitFor(fmt.Sprintf("%s knows %s", n.id, strings.Join(want, ", ")), func() error {
		servers, err := n.view()
		if err != nil {
			return err
		}
		ids := serverIDs(servers)
		slices.Sort(ids)
		return checkEqual(ids, want)
	})
}

// sortedIDs returns the ids of the nodes, sorted.
func sortedIDs(nodes []*node) []string {
	ids := make([]string, len(nodes))
	for i, n := range nodes {
		ids[i] = n.id
	}
	slices.Sort(ids)
	return ids
}

// checkEqual returns an error if the lists differ.
func checkEqual(got, want []string) error {
	if !slices.Equal(got, want) {
		return fmt.Errorf("got %q, want %q", got, want)
	}
	return nil
}

// waitFor calls check until it returns nil. After waitTimeout it fails the test.
func (w *world) waitFor(what string, check func() error) {
	w.Helper()
	deadline := time.Now().Add(waitTimeout)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			w.Fatalf("waited %v for: %s: %v", waitTimeout, what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// token requests an access token for the nodes as a client of the given type.
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
	resp := w.call(http.MethodPost, w.issuer(), "", body)
	var envelope struct {
		Data struct {
			AccessToken string `json:"access_token"`
		}
	}
	if err := json.Unmarshal(resp.body, &envelope); err != nil || envelope.Data.AccessToken == "" {
		w.Fatalf("no token: %d %s", resp.status, resp.body)
	}
	return envelope.Data.AccessToken
}

type response struct {
	status int
	header http.Header
	body   []byte
}

// call sends a request from the test, with a token unless that is empty. The headers are names and
// values in turn.
func (w *world) call(method, url, token string, body any, headers ...string) response {
	w.Helper()
	var content io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			w.Fatal(err)
		}
		content = bytes.NewReader(b)
	}
	ctx, cancel := context.WithTimeout(context.Background(), waitTimeout)
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
	return response{resp.StatusCode, resp.Header, read}
}

// A fakePeer is a peer in the process of the test. It records its requests.
type fakePeer struct {
	id, base string

	mu       sync.Mutex // guards the field below
	received []request
}

func (s *fakePeer) requests() []request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.received)
}

// fakePeer adds a fake peer to the registry. Its handler is serve or, if that is nil, one that
// responds like a node.
func (w *world) fakePeer(id string, serve http.HandlerFunc) *fakePeer {
	w.Helper()
	s := &fakePeer{id: id}
	srv := httptest.NewServer(exchanges.Record(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		s.mu.Lock()
		s.received = append(s.received, request{time.Now(), r.Method, r.RequestURI, r.Header.Clone(), body})
		s.mu.Unlock()
		if serve == nil {
			reply(rw, http.StatusOK, `{"data":["`+id+`"],"server":{"serverId":"`+id+`"}}`)
			return
		}
		serve(rw, r)
	})))
	w.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	s.base = srv.URL + basePath
	w.addToRegistry(id, s.base)
	return s
}

// deadPeer adds a peer to the registry that refuses connections, because no server uses port 1.
func (w *world) deadPeer(id string) {
	w.Helper()
	w.addToRegistry(id, "http://127.0.0.1:1"+basePath)
}

// addToRegistry adds an entry to the registry, as if a server had registered.
func (w *world) addToRegistry(id, base string) {
	w.Helper()
	reg := mit.Registration{Type: serverType, ServerID: id, PublicBaseURL: base, ClusterBaseURL: base}
	if _, err := w.memory.Put(context.Background(), reg, longLease); err != nil {
		w.Fatal(err)
	}
}

func reply(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body) // the client notices an error itself
}
