package main

import (
	"bytes"
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
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/internal/freeport"
	"github.com/mimiktech/cluster/mit"
)

// What an operator sees of the service is its process: environment, signals, exit code. So these
// tests run real processes, on real sockets of this machine and in real time; nothing in them
// waits for a time, only for things to happen. The processes are this test's own binary.

const asService = "TEST_RUN_AS_SERVICE"

func TestMain(m *testing.M) {
	if os.Getenv(asService) == "" {
		os.Exit(m.Run())
	}
	go func() { // a test that dies must not leave processes behind
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(3)
	}()
	main()
	os.Exit(0)
}

const soon = 10 * time.Second

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
			t.Errorf("%s is not named in %q", name, p.stderr)
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
			t.Errorf("%q is not in %q", part, p.stderr)
		}
	}
}

func TestUsage(t *testing.T) {
	p := start(t, newBackend(t).environment("one"), "--port=80")
	if code := p.wait(t); code != 2 {
		t.Errorf("exit code %d, want 2; %s", code, p.stderr)
	}
}

// Two nodes meet, ask each other, and end: one by SIGKILL, one by SIGTERM.
func TestLife(t *testing.T) {
	b := newBackend(t)
	env := b.environment("one")
	env["SERVER_BASE_PATH"] = "/a/path"
	one, two := start(t, env), start(t, b.environment("two"))
	one.until(t, "/status", "CLUSTER_STATUS_SERVERS", "2")
	two.until(t, "/status", "CLUSTER_STATUS_SERVERS", "2")
	if status := one.get(t, "/status", http.StatusOK); status["state"] != "registered" ||
		status["REGISTRATION_STATUS"] != "registered" || status["CLUSTER_STATUS_LEASE_TIME"] != "3600000" ||
		status["CLUSTER_STATUS_UPDATED_AT"] != status["updatedAt"] {
		t.Errorf("the status of a registered node: %v", status)
	}
	if health := one.get(t, "/healthz", http.StatusOK); health["state"] != "registered" {
		t.Errorf("the health of a registered node: %v", health)
	}

	for asker, peer := range map[*process]string{one: "two", two: "one"} {
		answer := asker.get(t, "/fanout?path=/things", http.StatusOK)
		if diff := cmp.Diff([]any{map[string]any{"from": peer}}, answer["data"]); diff != "" {
			t.Errorf("things (-want +got):\n%s", diff)
		}
	}
	failure := one.failure(t, "/fanout?path=/forbidden")
	if failure["statusCode"] != 404.0 || failure["title"] != "Not Found" || failure["evicted"] != false {
		t.Errorf("a peer that refuses: %v", failure)
	}
	for _, query := range []string{"", "?path=http://elsewhere/things"} {
		if refusal := one.get(t, "/fanout"+query, http.StatusBadRequest); refusal["statusCode"] != 400.0 {
			t.Errorf("a fan-out to %q: %v", query, refusal)
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
		t.Errorf("a peer that is gone: %v", failure)
	}
	one.until(t, "/status", "CLUSTER_STATUS_SERVERS", "1")

	one.signal(t, syscall.SIGTERM)
	if code := one.wait(t); code != 0 {
		t.Errorf("exit code %d, want 0; %s", code, one.stderr)
	}
	if listed := b.listed(t); len(listed) != 0 {
		t.Errorf("mIT still lists %v", listed)
	}
}

func TestWhoMayAsk(t *testing.T) {
	b := newBackend(t)
	p := start(t, b.environment("one"))
	p.until(t, "/status", "state", "registered")
	for path, granted := range map[string]int{"/mds/v1/things": http.StatusOK, "/mds/v1/forbidden": http.StatusNotFound} {
		for name, test := range map[string]struct {
			token string
			want  int
		}{
			"no token":                 {"", http.StatusUnauthorized},
			"no good token":            {"x.y.z", http.StatusUnauthorized},
			"the token of our type":    {b.token(t, "mds"), granted},
			"the token of another one": {b.token(t, "other"), http.StatusForbidden},
		} {
			t.Run(path+" "+name, func(t *testing.T) {
				code, body := p.ask(t, path, test.token)
				if code != test.want {
					t.Fatalf("%d, want %d: %v", code, test.want, body)
				}
				if code == http.StatusOK {
					want := map[string]any{"data": []any{map[string]any{"from": "one"}}, "server": map[string]any{"serverId": "one"}}
					if diff := cmp.Diff(want, body); diff != "" {
						t.Errorf("(-want +got):\n%s", diff)
					}
				} else if body["statusCode"] != float64(code) || body["message"] == "" {
					t.Errorf("not the envelope of errors: %v", body)
				}
			})
		}
	}
}

// Without management a node registers and serves, but speaks to no peer; SIGINT ends it, too.
func TestManagementOff(t *testing.T) {
	b := newBackend(t)
	env := b.environment("one")
	env["CLUSTER_MANAGEMENT"] = "off"
	p := start(t, env)
	p.until(t, "/status", "state", "registered")
	if refusal := p.get(t, "/fanout?path=/things", http.StatusConflict); refusal["statusCode"] != 409.0 {
		t.Errorf("a fan-out: %v", refusal)
	}
	p.signal(t, os.Interrupt)
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d, want 0; %s", code, p.stderr)
	}
	if listed := b.listed(t); len(listed) != 0 {
		t.Errorf("mIT still lists %v", listed)
	}
}

func TestLeavingFails(t *testing.T) {
	b := newBackend(t)
	p := start(t, b.environment("one"))
	p.until(t, "/status", "state", "registered")
	b.server.Close()
	p.signal(t, syscall.SIGTERM)
	if code := p.wait(t); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	if last := p.stderr.String(); !strings.Contains(last, "service: mIT cannot be reached by DELETE") {
		t.Errorf("it does not say why: %s", last)
	}
}

// A node that never got to register, because mIT is away, is an orphan that serves; and it
// leaves as well as any.
func TestOrphan(t *testing.T) {
	b := newBackend(t)
	b.server.Close()
	p := start(t, b.environment("one"))
	p.until(t, "/healthz", "state", "orphan")
	status := p.get(t, "/status", http.StatusOK)
	if text, _ := status["REGISTRATION_STATUS"].(string); !strings.HasPrefix(text, "orphan: ") {
		t.Errorf("the status of an orphan: %v", status)
	}
	p.signal(t, syscall.SIGTERM)
	if code := p.wait(t); code != 0 {
		t.Errorf("exit code %d, want 0; %s", code, p.stderr)
	}
}

// Who does not want to wait for a node that cannot leave tells it twice.
func TestSecondSignal(t *testing.T) {
	b := newBackend(t)
	p := start(t, b.environment("one"))
	p.until(t, "/status", "state", "registered")
	leaving := b.hang()
	p.signal(t, syscall.SIGTERM)
	select {
	case <-leaving:
	case <-time.After(soon):
		t.Fatal("mIT was not asked to delete the node")
	}
	// The process may still be busy with taking in the first: then it takes a third.
	for again := time.NewTicker(50 * time.Millisecond); ; {
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case <-p.ended:
			again.Stop()
			if code := p.wait(t); code != -1 {
				t.Errorf("exit code %d of a process that was told twice; %s", code, p.stderr)
			}
			return
		case <-again.C:
		}
	}
}

// A backend is an mIT and an mST in the test's own process.
type backend struct {
	memory *mit.Memory
	server *httptest.Server
	hung   atomic.Pointer[chan struct{}]
}

func newBackend(t *testing.T) *backend {
	t.Helper()
	b := &backend{memory: mit.NewMemory()}
	mux := http.NewServeMux()
	b.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if leaving := b.hung.Load(); leaving != nil {
			select {
			case *leaving <- struct{}{}:
			default: // told already
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

// environment is what a node needs to join: all of it, for the process gets no other.
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

// hang makes the backend answer no more, and tells of the requests that come.
func (b *backend) hang() <-chan struct{} {
	came := make(chan struct{}, 1)
	b.hung.Store(&came)
	return came
}

func (b *backend) listed(t *testing.T) []cluster.Server {
	t.Helper()
	r, err := b.memory.Get(t.Context(), mit.ResourceID("mds"))
	if err != nil {
		t.Fatal(err)
	}
	return r.Servers
}

// token is what a client of that id gets for speaking to mds.
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
	_, answer := do(t, req)
	data, _ := answer["data"].(map[string]any)
	token, _ := data["access_token"].(string)
	if token == "" {
		t.Fatalf("no token in %v", answer)
	}
	return token
}

// A process is the service, running.
type process struct {
	cmd    *exec.Cmd
	url    string
	stderr *bytes.Buffer // read it after wait
	ended  chan struct{}
}

// start runs the service with that environment and no other. It is gone when the test ends.
func start(t *testing.T, env map[string]string, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	p := &process{cmd: exec.CommandContext(ctx, self, args...), stderr: new(bytes.Buffer), ended: make(chan struct{})}
	p.cmd.Env = []string{asService + "=1", "GORACE=atexit_sleep_ms=0"} // the race detector's second of sleep would be all there is to wait for
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
	if _, err := p.cmd.StdinPipe(); err != nil { // it ends when we do
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait() // its state says it all
	}()
	t.Cleanup(func() {
		cancel()
		<-p.ended
		if t.Failed() {
			t.Logf("%s said:\n%s", env["SERVER_ID"], p.stderr.String())
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

// wait is the exit code of the process, -1 if a signal ended it.
func (p *process) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-p.ended:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(soon):
		t.Fatal("the process does not end")
		return 0
	}
}

// until asks until the answer has that value.
func (p *process) until(t *testing.T, path, name, value string) {
	t.Helper()
	var last any = "no answer"
	for deadline := time.Now().Add(soon); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		select {
		case <-p.ended:
			t.Fatalf("the process ended: %s", p.stderr)
		default:
		}
		var d net.Dialer // it may not listen yet
		conn, err := d.DialContext(t.Context(), "tcp", strings.TrimPrefix(p.url, "http://"))
		if err != nil {
			continue
		}
		conn.Close()
		if last = p.get(t, path, http.StatusOK)[name]; last == value {
			return
		}
	}
	t.Fatalf("%s of %s does not become %q: %v", name, path, value, last)
}

// get asks without a token.
func (p *process) get(t *testing.T, path string, want int) map[string]any {
	t.Helper()
	code, body := p.ask(t, path, "")
	if code != want {
		t.Fatalf("%s: %d, want %d: %v", path, code, want, body)
	}
	return body
}

// failure is the error of the one peer that a fan-out came to nothing with.
func (p *process) failure(t *testing.T, path string) map[string]any {
	t.Helper()
	answer := p.get(t, path, http.StatusOK)
	results, _ := answer["results"].([]any)
	failures, _ := answer["failures"].([]any)
	if len(results) != 0 || len(failures) != 1 {
		t.Fatalf("%s: not one failure: %v", path, answer)
	}
	first, _ := failures[0].(map[string]any)
	failure, _ := first["error"].(map[string]any)
	return failure
}

func (p *process) ask(t *testing.T, path, token string) (int, map[string]any) {
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

// do sends a request that is answered with JSON.
func do(t *testing.T, req *http.Request) (int, map[string]any) {
	t.Helper()
	req.Close = true // a test's idle connection would be what a process that ends waits for
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
