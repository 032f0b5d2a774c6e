package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/internal/freeport"
	"github.com/mimiktech/cluster/internal/npmtest"
	"github.com/mimiktech/cluster/mit"
)

var update = flag.Bool("update", false, "write the golden file") //nolint:gochecknoglobals // a flag

const golden = "testdata/npm.json"

// npm is what the helpers of npm services sent, see testdata/helpers.js.
type npm struct {
	Params         map[string]any
	Results        map[string]sent
	Named          map[string]sent
	Errors         map[string]sent
	Titles         map[int]string
	CorrelationIDs struct{ Label, Request string }
}

type sent struct {
	Status  int
	Headers map[string]string
	Body    map[string]any
}

func readGolden(t *testing.T) (n npm) {
	t.Helper()
	text, err := os.ReadFile(golden)
	if err == nil {
		err = json.Unmarshal(text, &n)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestGoldenFile compares the golden file with what the npm helpers send. Without npm it is
// skipped, or fails if INTEROP=require.
func TestGoldenFile(t *testing.T) {
	modules, err := npmtest.Install(t.Context(), "../../interop/npm")
	switch {
	case errors.Is(err, npmtest.ErrUnavailable) && os.Getenv("INTEROP") != "require":
		t.Skip(err)
	case err != nil:
		t.Fatal(err)
	}
	written := filepath.Join(t.TempDir(), "npm.json") // standard output has the log of the helpers
	cmd := exec.CommandContext(t.Context(), "node", "testdata/helpers.js", written)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "NODE_PATH=" + modules, "LOG_MODE=none", "LOG_LEVEL=error", "CONSOLE_LEVEL=error"}
	if printed, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, printed)
	}
	out, err := os.ReadFile(written)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(golden, out, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(text), string(out)); diff != "" {
		t.Errorf("-golden +npm (-update writes it):\n%s", diff)
	}
}

// node returns a node that is not registered.
func node(t *testing.T) *cluster.Cluster {
	t.Helper()
	c, err := cluster.New(cluster.Config{
		Type: "mds", ID: "node-1", Port: 8080, LocalIPv4: "127.0.0.1",
		RegistryURL: "http://mit.test", RegistryAudience: "mit", Issuer: "http://mst.test",
		ClientID: "id", ClientSecret: "secret", ClientAccessKey: "key", ClientAudience: "mds",
	}, cluster.WithoutEnv())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// respond returns what a handler sends to the request of testdata/helpers.js.
func respond(t *testing.T, h http.HandlerFunc) sent {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, "/users/1", nil)
	r.Header.Set("X-Correlation-Id", "a-request@4/2026-02-03T04:05:06.789Z")
	w := httptest.NewRecorder()
	h(w, r)
	s := sent{Status: w.Code, Headers: map[string]string{}}
	if w.Header().Get("X-Content-Type-Options") != "nosniff" {
		t.Error("a browser may take the response for another type")
	}
	w.Header().Del("X-Content-Type-Options") // the only header that npm services do not send
	for name := range w.Header() {
		s.Headers[strings.ToLower(name)] = w.Header().Get(name)
	}
	if err := json.Unmarshal(w.Body.Bytes(), &s.Body); err != nil {
		t.Fatalf("%s: %v", w.Body, err)
	}
	return s
}

func TestResultsEqualThoseOfNPM(t *testing.T) {
	c := node(t)
	ann := user{ID: "1", Name: "Ann"}
	got := map[string]sent{
		"200":  respond(t, func(w http.ResponseWriter, r *http.Request) { c.Reply(w, r, ann) }),
		"201":  respond(t, func(w http.ResponseWriter, r *http.Request) { c.ReplyStatus(w, r, http.StatusCreated, ann) }),
		"list": respond(t, func(w http.ResponseWriter, r *http.Request) { c.Reply(w, r, []user{ann}) }),
		"null": respond(t, func(w http.ResponseWriter, r *http.Request) { c.Reply(w, r, nil) }),
		// Reply always names the server.
		"without server": respond(t, func(w http.ResponseWriter, r *http.Request) { c.Reply(w, r, ann) }),
	}
	delete(got["without server"].Body, "server")
	if diff := cmp.Diff(readGolden(t).Results, got); diff != "" {
		t.Errorf("-npm +Go:\n%s", diff)
	}
}

func TestErrorsEqualThoseOfNPM(t *testing.T) {
	c := node(t)
	reply := func(err error) sent {
		return respond(t, func(w http.ResponseWriter, r *http.Request) { c.ReplyError(w, r, err) })
	}
	info := json.RawMessage(`{"field":"name"}`)
	named := map[string]sent{}
	for name, code := range map[string]int{
		"System":         http.StatusInternalServerError,
		"Partial":        http.StatusPartialContent,
		"MultiStatus":    http.StatusMultiStatus,
		"Parameter":      http.StatusBadRequest,
		"ParameterError": http.StatusBadRequest,
		"UnAuthorized":   http.StatusUnauthorized,
		"Forbidden":      http.StatusForbidden,
		"NotFound":       http.StatusNotFound,
		"NotImplemented": http.StatusMethodNotAllowed,
		"Conflict":       http.StatusConflict,
		"Unprocessable":  http.StatusUnprocessableEntity,
		"unknown":        http.StatusInternalServerError,
	} {
		named[name] = reply(&cluster.StatusError{Code: code, Message: "what is wrong", Info: info})
	}
	if diff := cmp.Diff(readGolden(t).Named, named); diff != "" {
		t.Errorf("-npm +Go:\n%s", diff)
	}
	cause := errors.New("why")
	others := map[string]sent{
		"without info":  reply(&cluster.StatusError{Code: http.StatusBadRequest, Message: "what is wrong"}),
		"with a cause":  reply(&cluster.StatusError{Code: http.StatusInternalServerError, Message: "what failed: " + cause.Error(), Info: info}),
		"with a number": reply(&cluster.StatusError{Code: http.StatusConflict, Message: "what is wrong", Info: info}),
		"plain error":   reply(errors.New("what failed")),
		"not implemented": reply(&cluster.StatusError{
			Code: http.StatusNotImplemented, Message: "route not implemented",
			Info: json.RawMessage(`{"method":"GET","path":"/users/1","operationId":"getUser"}`),
		}),
	}
	if diff := cmp.Diff(readGolden(t).Errors, others); diff != "" {
		t.Errorf("-npm +Go:\n%s", diff)
	}
}

// TestTitles lists the statuses whose title differs between Node.js and Go.
func TestTitles(t *testing.T) {
	got := map[int][2]string{}
	for code, title := range readGolden(t).Titles {
		if text := http.StatusText(code); text != title {
			got[code] = [2]string{title, text}
		}
	}
	want := map[int][2]string{
		413: {"Payload Too Large", "Request Entity Too Large"},
		414: {"URI Too Long", "Request URI Too Long"},
		416: {"Range Not Satisfiable", "Requested Range Not Satisfiable"},
		418: {"I'm a Teapot", "I'm a teapot"},
		509: {"Bandwidth Limit Exceeded", ""},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestCorrelationIDsEqualThoseOfNPM(t *testing.T) {
	n := readGolden(t).CorrelationIDs
	date := regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$`)
	if got := date.ReplaceAllString(cluster.NewCorrelationID("service-startup-preOps"), "{date}"); got != n.Label {
		t.Errorf("a labeled id is %q, that of npm is %q", got, n.Label)
	}
	got := respond(t, func(w http.ResponseWriter, r *http.Request) { node(t).Reply(w, r, nil) })
	if got.Headers["x-correlation-id"] != n.Request {
		t.Errorf("the id of a response is %q, that of npm is %q", got.Headers["x-correlation-id"], n.Request)
	}
}

// TestGuide checks that each snippet in Go of docs/migrating.md is part of the code that these
// tests run.
func TestGuide(t *testing.T) {
	guide, err := os.ReadFile("../../docs/migrating.md")
	if err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var code strings.Builder
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		code.WriteString(unindented(string(text)))
	}
	snippets := regexp.MustCompile("(?s)\n```go\n(.*?)\n```\n").FindAllStringSubmatch(string(guide), -1)
	if len(snippets) < 8 {
		t.Errorf("only %d snippets", len(snippets))
	}
	for _, s := range snippets {
		if !strings.Contains(code.String(), unindented(s[1])) {
			t.Errorf("not in the code of this folder:\n%s", s[1])
		}
	}
}

// unindented returns the lines of text without their indentation.
func unindented(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(strings.TrimSpace(line) + "\n")
	}
	return b.String()
}

// TestService runs the service with a registry, as a process of its own would.
func TestService(t *testing.T) {
	b := newBackend(t)
	port, err := freeport.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"SERVER_TYPE": "mds", "SERVER_ID": "node-1", "SERVER_LOCAL_IPV4": "127.0.0.1", "SERVER_PORT": strconv.Itoa(port),
		"CLUSTER_MANAGEMENT": "on", "REGISTRATION_RETRY": "100",
		"MIT_URL": b.url + "/mIT", "MIT_AUDIENCE": "mIT", "MDS_AUDIENCE": "mds",
		"OAUTH_ISSUER": b.url + "/token", "OAUTH_CLIENT_ID": "mds", "OAUTH_CLIENT_SECRET": "secret",
		"OAUTH_CLIENT_ACCESS_KEY": "the key", "OAUTH_CLIENT_AUDIENCE": "mds",
	} {
		t.Setenv(name, value)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	base := fmt.Sprintf("http://127.0.0.1:%d/mds/v1", port)
	waitUntil(t, func() bool {
		status, body := request(t, "GET", base+"/healthcheck", "", "")
		return status == http.StatusOK && strings.Contains(body, `"status":"registered"`)
	})

	token := b.token(t)
	status, body := request(t, "POST", base+"/users", token, `{"name":"Ann"}`)
	if status != http.StatusCreated || !strings.Contains(body, `"name":"Ann"`) || !strings.Contains(body, `"server":{"serverId":"node-1"}`) {
		t.Errorf("a user is created: %d %s", status, body)
	}
	var created struct{ Data user }
	if err := json.Unmarshal([]byte(body), &created); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		method, path, token, body string
		status                    int
		want                      string
	}{
		{"GET", "/users/" + created.Data.ID, token, "", 200, `"name":"Ann"`},
		{"GET", "/users/unknown", token, "", 404, `{"statusCode":404,"title":"Not Found","message":"no such user","info":{"id":"unknown"}}`},
		{"POST", "/users", token, `{}`, 400, `"info":{"field":"name"}`},
		{"POST", "/users", token, `no JSON`, 400, `"info":{"field":"body"}`},
		{"GET", "/users", token, "", 200, `"name":"Ann"`},
		{"GET", "/clusterUsers", token, "", 200, `"data":[]`},
		{"GET", "/users/1", "", "", 401, `"statusCode":401`},
	} {
		if status, body := request(t, c.method, base+c.path, c.token, c.body); status != c.status || !strings.Contains(body, c.want) {
			t.Errorf("%s %s: %d %s, want %d with %s", c.method, c.path, status, body, c.status, c.want)
		}
	}
	cancel() // as SIGINT does
	if err := <-done; err != nil {
		t.Error(err)
	}
	if res, err := b.memory.Get(t.Context(), mit.ResourceID("mds")); err != nil || len(res.Servers) != 0 {
		t.Errorf("the registry still lists %v, %v", res.Servers, err)
	}
}

// A backend is a registry and a token service.
type backend struct {
	memory *mit.Memory
	url    string
}

func newBackend(t *testing.T) *backend {
	t.Helper()
	mux := http.NewServeMux()
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	b := &backend{mit.NewMemory(), srv.URL}
	tokens, err := mit.NewTokenService(mit.TokenConfig{
		Issuer: b.url + "/token", Key: "the key",
		Clients: []mit.Client{{ID: "mds", Secret: "secret", Type: "mds", Scope: mit.DefaultScope + " create:user"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	registry, err := mit.NewRegistry(b.memory, mit.RegistryConfig{
		Issuer: b.url + "/token", Audience: "mIT", Keys: []string{"the key"}, BasePath: "/mIT",
	})
	if err != nil {
		t.Fatal(err)
	}
	mux.Handle("/token", tokens)
	mux.Handle("/mIT/", registry)
	return b
}

func (b *backend) token(t *testing.T) string {
	t.Helper()
	_, body := request(t, "POST", b.url+"/token", "",
		`{"grant_type":"client_credentials","client_id":"mds","client_secret":"secret","audience":"mds"}`)
	var in struct {
		Data struct {
			AccessToken string `json:"access_token"`
		}
	}
	if err := json.Unmarshal([]byte(body), &in); err != nil || in.Data.AccessToken == "" {
		t.Fatalf("no token in %s: %v", body, err)
	}
	return in.Data.AccessToken
}

// request sends a request. Its status is 0 if the server does not respond.
func request(t *testing.T, method, url, token, body string) (status int, response string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func waitUntil(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the service does not register")
		}
	}
}
