package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/internal/freeport"
	"github.com/mimiktech/cluster/mit"
)

// These tests check environment, signals and exit codes, so they run the service as processes: more
// processes of the test binary, on loopback sockets and in real time. They wait for events, never
// for a fixed time.

const asService = "TEST_RUN_AS_SERVICE"

func TestMain(m *testing.M) {
	if os.Getenv(asService) == "" {
		os.Exit(m.Run())
	}
	go func() { // ends the process with the test
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(3)
	}()
	main()
	os.Exit(0)
}

const waitTimeout = 10 * time.Second

func TestWithoutEnvironment(t *testing.T) {
	p := start(t, nil)
	if code := p.wait(t); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	for _, name := range []string{
		"SERVER_TYPE", "SERVER_PORT", "MIT_URL", "MIT_AUDIENCE", "OAUTH_ISSUER", "OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET",
		"OAUTH_GENERIC_KEY", "OAUTH_GENERIC_AUDIENCE",
	} {
		if !strings.Contains(p.stderr.String(), name) {
			t.Errorf("%s is missing in %q", name, p.stderr)
		}
	}
}

func TestMalformedEnvironment(t *testing.T) {
	env := newBackend(t).environment("one")
	env["SERVER_PORT"], env["CLUSTER_MANAGEMENT"] = "eighty", "perhaps"
	p := start(t, env)
	if code := p.wait(t); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	for _, part := range []string{"SERVER_PORT", "eighty", "CLUSTER_MANAGEMENT", "perhaps"} {
		if !strings.Contains(p.stderr.String(), part) {
			t.Errorf("%q is missing in %q", part, p.stderr)
		}
	}
}

func TestUsage(t *testing.T) {
	p := start(t, newBackend(t).environment("one"), "--port=80")
	if code := p.wait(t); code != 2 {
		t.Errorf("exit code %d, want 2; %s", code, p.stderr)
	}
}

// Two nodes find and call each other. One ends by SIGKILL, the other by SIGTERM.
func TestTwoNodes(t *testing.T) {
	b := newBackend(t)
	env := b.environment("one")
	env["SERVER_BASE_PATH"] = "/base/path"
	one, two := start(t, env), start(t, b.environment("two"))
	one.waitFor(t, "/status", "CLUSTER_STATUS_SERVERS", "2")
	two.waitFor(t, "/status", "CLUSTER_STATUS_SERVERS", "2")
	if status := one.get(t, "/status", http.StatusOK); status["state"] != "registered" ||
		status["REGISTRATION_STATUS"] != "registered" || status["CLUSTER_STATUS_LEASE_TIME"] != "3600000" ||
		status["CLUSTER_STATUS_UPDATED_AT"] != status["updatedAt"] {
		t.Errorf("status of a registered node: %v", status)
	}
	if health := one.get(t, "/healthz", http.StatusOK); health["state"] != "registered" {
		t.Errorf("health of a registered node: %v", health)
	}

	for caller, peer := range map[*process]string{one: "two", two: "one"} {
		resp := caller.get(t, "/fanout?path=/things", http.StatusOK)
		if diff := cmp.Diff([]any{map[string]any{"from": peer}}, resp["data"]); diff != "" {
			t.Errorf("things (-want +got):\n%s", diff)
		}
	}
	failure := one.failure(t, "/fanout?path=/missing")
	if failure["statusCode"] != 404.0 || failure["title"] != "Not Found" || failure["evicted"] != false {
		t.Errorf("failure of a peer that responds with 404: %v", failure)
	}
	for _, query := range []string{"", "?path=http://elsewhere/things"} {
		if resp := one.get(t, "/fanout"+query, http.StatusBadRequest); resp["statusCode"] != 400.0 {
			t.Errorf("fan-out to %q: %v", query, resp)
		}
	}

	if err := two.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if code := two.wait(t); code != -1 {
		t.Errorf("exit code %d of a killed process", code)
	}
	failure = one.failure(t, "/fanout?path=/things")
	if failure["kind"] != string(cluster.KindRefused) || failure["evicted"] != true {
		t.Errorf("failure of a killed peer: %v", failure)
	}
	one.waitFor(t, "/status", "CLUSTER_STATUS_SERVERS", "1")

	one.signal(t, syscall.SIGTERM)
	if code := one.wait(t); code != 0 {
		t.Errorf("exit code %d, want 0; %s", code, one.stderr)
	}
	if listed := b.registered(t); len(listed) != 0 {
		t.Errorf("the registry still lists %v", listed)
	}
}

func TestEndpointsRequireAPeerToken(t *testing.T) {
	b := newBackend(t)
	p := start(t, b.environment("one"))
	p.waitFor(t, "/status", "state", "registered")
	for path, granted := range map[string]int{"/mds/v1/things": http.StatusOK, "/mds/v1/missing": http.StatusNotFound} {
		for name, test := range map[string]struct {
			token string
			want  int
		}{
			"no token":               {"", http.StatusUnauthorized},
			"invalid token":          {"x.y.z", http.StatusForbidden},
			"token of the same type": {b.token(t, "mds"), granted},
			"token of another type":  {b.token(t, "other"), http.StatusForbidden},
		} {
			t.Run(path+" "+name, func(t *testing.T) {
				code, body := p.request(t, path, test.token)
				if code != test.want {
					t.Fatalf("%d, want %d: %v", code, test.want, body)
				}
				if code == http.StatusOK {
					want := map[string]any{"data": []any{map[string]any{"from": "one"}}, "server": map[string]any{"serverId": "one"}}
					if diff := cmp.Diff(want, body); diff != "" {
						t.Errorf("(-want +got):\n%s", diff)
					}
				} else if body["statusCode"] != float64(code) || body["message"] == "" {
					t.Errorf("the body is not an error envelope: %v", body)
				}
			})
		}
	}
}

// With LOG_MODE=sumologic the log goes to Sumo Logic as well, whose last lines the process sends
// before it ends.
func TestLogMode(t *testing.T) {
	b := newBackend(t)
	var mu sync.Mutex
	var received bytes.Buffer
	sink := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := gzip.NewReader(r.Body)
		if err != nil || r.URL.Path != "/receiver/the-collector-code" {
			t.Errorf("%s, %v", r.URL.Path, err)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		_, _ = received.ReadFrom(body)
	}))
	defer sink.Close()
	env := b.environment("one")
	env["LOG_MODE"], env["SUMO_LOGIC_ENDPOINT"], env["SUMO_LOGIC_COLLECTOR_CODE"] = "sumologic", sink.URL+"/receiver/", "the-collector-code"
	p := start(t, env)
	p.waitFor(t, "/status", "state", "registered")
	p.signal(t, syscall.SIGTERM)
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d, want 0; %s", code, p.stderr)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, part := range []string{`"message":"starting"`, `"to":"left"`, `"serverId":"one@clients"`} {
		if !strings.Contains(received.String(), part) {
			t.Errorf("%s is missing in %s", part, &received)
		}
	}

	env["LOG_MODE"] = "awsS3"
	p = start(t, env)
	if code := p.wait(t); code != 1 || !strings.Contains(p.stderr.String(), "LOG_MODE") {
		t.Errorf("exit code %d with an unknown mode: %s", code, p.stderr)
	}
}

// Without management a node registers and handles requests but calls no peers. It ends on SIGINT.
func TestManagementOff(t *testing.T) {
	b := newBackend(t)
	env := b.environment("one")
	env["CLUSTER_MANAGEMENT"] = "off"
	p := start(t, env)
	p.waitFor(t, "/status", "state", "registered")
	if resp := p.get(t, "/fanout?path=/things", http.StatusConflict); resp["statusCode"] != 409.0 {
		t.Errorf("fan-out: %v", resp)
	}
	p.signal(t, os.Interrupt)
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d, want 0; %s", code, p.stderr)
	}
	if listed := b.registered(t); len(listed) != 0 {
		t.Errorf("the registry still lists %v", listed)
	}
}

func TestFailedDeregistration(t *testing.T) {
	b := newBackend(t)
	p := start(t, b.environment("one"))
	p.waitFor(t, "/status", "state", "registered")
	b.server.Close()
	p.signal(t, syscall.SIGTERM)
	if code := p.wait(t); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	lines := strings.Split(strings.TrimSpace(p.stderr.String()), "\n")
	if last := lines[len(lines)-1]; !strings.HasPrefix(last, "service: ") || !strings.Contains(last, "DELETE "+b.server.URL) {
		t.Errorf("the last line does not name the request: %s", last)
	}
}

// A node that cannot register because the registry is unreachable is an orphan. It handles requests
// and exits with 0.
func TestOrphan(t *testing.T) {
	b := newBackend(t)
	b.server.Close()
	p := start(t, b.environment("one"))
	p.waitFor(t, "/healthz", "state", "orphan")
	status := p.get(t, "/status", http.StatusOK)
	if text, _ := status["REGISTRATION_STATUS"].(string); !strings.HasPrefix(text, "orphan: ") {
		t.Errorf("status of an orphan: %v", status)
	}
	p.signal(t, syscall.SIGTERM)
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d, want 0; %s", code, p.stderr)
	}
}

// The registry hangs, so that the deregistration does not end before the second signal.
func TestSecondSignalEndsTheProcess(t *testing.T) {
	b := newBackend(t)
	p := start(t, b.environment("one"))
	p.waitFor(t, "/status", "state", "registered")
	requests := b.hang()
	p.signal(t, syscall.SIGTERM)
	select {
	case <-requests:
	case <-time.After(waitTimeout):
		t.Fatal("the registry received no request")
	}
	// The signal is repeated, because the process may still be handling the first one.
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // fails if the process has ended
		select {
		case <-p.ended:
			if code := p.wait(t); code != -1 {
				t.Errorf("exit code %d after two signals; %s", code, p.stderr)
			}
			return
		case <-ticker.C:
		}
	}
}

// A backend is a registry and a token service in the process of the test.
type backend struct {
	memory *mit.Memory
	server *httptest.Server
	hung   atomic.Pointer[chan struct{}] // set by hang
}

func newBackend(t *testing.T) *backend {
	t.Helper()
	b := &backend{memory: mit.NewMemory()}
	mux := http.NewServeMux()
	b.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if requests := b.hung.Load(); requests != nil {
			select {
			case *requests <- struct{}{}:
			default: // not the first request
			}
			<-r.Context().Done()
			return
		}
		mux.ServeHTTP(w, r)
	}))
	issuer := "http://" + b.server.Listener.Addr().String() + "/token"
	tokens, err := mit.NewTokenService(mit.TokenConfig{
		Issuer: issuer, Key: "the key",
		Clients: []mit.Client{{ID: "mds", Secret: "secret", Type: "mds"}, {ID: "other", Secret: "secret", Type: "other"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	registry, err := mit.NewRegistry(b.memory, mit.RegistryConfig{
		Lease: time.Hour, Issuer: issuer, Audience: "mIT", Keys: []string{"the key"}, BasePath: "/mIT",
	})
	if err != nil {
		t.Fatal(err)
	}
	mux.Handle("/token", tokens)
	mux.Handle("/mIT/", registry)
	b.server.Start()
	t.Cleanup(b.server.Close)
	return b
}

// environment returns all environment variables of the process of a node.
func (b *backend) environment(id string) map[string]string {
	return map[string]string{
		"SERVER_TYPE":             "mds",
		"SERVER_ID":               id,
		"SERVER_LOCAL_IPV4":       "127.0.0.1",
		"CLUSTER_MANAGEMENT":      "on",
		"REGISTRATION_RETRY":      "100",
		"MIT_URL":                 b.server.URL + "/mIT",
		"MIT_AUDIENCE":            "mIT",
		"MDS_AUDIENCE":            "mds",
		"OAUTH_ISSUER":            b.server.URL + "/token",
		"OAUTH_CLIENT_ID":         "mds",
		"OAUTH_CLIENT_SECRET":     "secret",
		"OAUTH_CLIENT_ACCESS_KEY": "the key",
		"OAUTH_CLIENT_AUDIENCE":   "mds",
	}
}

// hang lets all further requests hang. The channel receives a value for the first one.
func (b *backend) hang() <-chan struct{} {
	requests := make(chan struct{}, 1)
	b.hung.Store(&requests)
	return requests
}

func (b *backend) registered(t *testing.T) []cluster.Server {
	t.Helper()
	r, err := b.memory.Get(t.Context(), mit.ResourceID("mds"))
	if err != nil {
		t.Fatal(err)
	}
	return r.Servers
}

// token requests a token for nodes of the type mds as the client with the given id.
func (b *backend) token(t *testing.T, id string) string {
	t.Helper()
	body, err := json.Marshal(map[string]string{
		"client_id": id, "client_secret": "secret", "audience": "mds", "grant_type": "client_credentials",
	})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.server.URL+"/token", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	_, resp := do(t, req)
	data, _ := resp["data"].(map[string]any)
	token, _ := data["access_token"].(string)
	if token == "" {
		t.Fatalf("no token in %v", resp)
	}
	return token
}

// A process is a running service.
type process struct {
	cmd    *exec.Cmd
	url    string
	stderr *bytes.Buffer // complete after wait
	ended  chan struct{}
}

// start starts a service with only the given environment. It is killed when the test ends.
func start(t *testing.T, env map[string]string, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	p := &process{cmd: exec.CommandContext(ctx, self, args...), stderr: new(bytes.Buffer), ended: make(chan struct{})}
	p.cmd.Env = []string{asService + "=1", "GORACE=atexit_sleep_ms=0"} // -race: no delay at exit
	if env != nil && env["SERVER_PORT"] == "" {
		port, err := freeport.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		p.url = fmt.Sprintf("http://127.0.0.1:%d", port)
		env["SERVER_PORT"] = strconv.Itoa(port)
	}
	for name, value := range env {
		p.cmd.Env = append(p.cmd.Env, name+"="+value)
	}
	p.cmd.Stderr = p.stderr
	if _, err := p.cmd.StdinPipe(); err != nil { // closed when the test ends
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait() // its result is in ProcessState
	}()
	t.Cleanup(func() {
		cancel()
		<-p.ended
		if t.Failed() {
			t.Logf("output of %s:\n%s", env["SERVER_ID"], p.stderr.String())
		}
	})
	return p
}

func (p *process) signal(t *testing.T, s os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// wait waits until the process ends and returns its exit code, or -1 if it was ended by a signal.
func (p *process) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-p.ended:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(waitTimeout):
		t.Fatal("the process does not end")
		return 0
	}
}

// waitFor requests path until the field name of the response has the given value.
func (p *process) waitFor(t *testing.T, path, name, value string) {
	t.Helper()
	var last any = "no response"
	for deadline := time.Now().Add(waitTimeout); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		select {
		case <-p.ended:
			t.Fatalf("the process ended: %s", p.stderr)
		default:
		}
		var d net.Dialer // the process may not listen yet
		conn, err := d.DialContext(t.Context(), "tcp", strings.TrimPrefix(p.url, "http://"))
		if err != nil {
			continue
		}
		conn.Close()
		if last = p.get(t, path, http.StatusOK)[name]; last == value {
			return
		}
	}
	t.Fatalf("%s of %s: got %v, want %q", name, path, last, value)
}

// get sends a request without a token and checks the status.
func (p *process) get(t *testing.T, path string, want int) map[string]any {
	t.Helper()
	code, body := p.request(t, path, "")
	if code != want {
		t.Fatalf("%s: %d, want %d: %v", path, code, want, body)
	}
	return body
}

// failure requests a fan-out and returns its only outcome, which must be a failure.
func (p *process) failure(t *testing.T, path string) map[string]any {
	t.Helper()
	resp := p.get(t, path, http.StatusOK)
	results, _ := resp["results"].([]any)
	failures, _ := resp["failures"].([]any)
	if len(results) != 0 || len(failures) != 1 {
		t.Fatalf("%s: got %v, want exactly one failure", path, resp)
	}
	first, _ := failures[0].(map[string]any)
	failure, _ := first["error"].(map[string]any)
	return failure
}

func (p *process) request(t *testing.T, path, token string) (int, map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return do(t, req)
}

// do sends a request and decodes the response body as JSON.
func do(t *testing.T, req *http.Request) (int, map[string]any) {
	t.Helper()
	req.Close = true // the process would wait for an idle connection when it ends
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var body map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
		t.Fatalf("%s: %s: %v", req.URL, resp.Status, err)
	}
	return resp.StatusCode, body
}
