package command

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster/mit"
)

// start runs the program on a free port until the test ends, and returns the environment that
// it prints. The test fails if the program does not end well.
func start(t *testing.T, c Command, args ...string) map[string]string {
	t.Helper()
	return startLogged(t, io.Discard, c, args...)
}

// startLogged is start with a writer for the log, which must be safe for concurrent use. It is off
// unless args has a level.
func startLogged(t *testing.T, stderr io.Writer, c Command, args ...string) map[string]string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := c.Run(ctx, append([]string{"--listen", "127.0.0.1:0", "--log", "off"}, args...), w, stderr)
		_ = w.CloseWithError(err)
		ended <- err
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("ended with %v", err)
		}
	})
	env := map[string]string{}
	for lines := bufio.NewScanner(r); lines.Scan(); {
		line := lines.Text()
		if base, ok := strings.CutPrefix(line, "# mIT on "); ok {
			env["base"] = base
			if slices.Contains(args, "--clients") {
				break // there is no more to come
			}
		}
		if m := regexp.MustCompile(`^export (\w+)='(.*)'$`).FindStringSubmatch(line); m != nil {
			env[m[1]] = m[2]
		}
		if env["SERVER_PORT"] != "" || slices.Contains(args, "--jwks-url") && env["OAUTH_JWKS_URL"] != "" {
			break
		}
	}
	if env["base"] == "" {
		t.Fatalf("the program did not start: %v", env)
	}
	return env
}

func post(t *testing.T, url, token string, body any) (status int, response map[string]any) {
	t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&response); err != nil {
		t.Fatalf("%d: %v", res.StatusCode, err)
	}
	return res.StatusCode, response
}

// requestToken requests a token with what the environment names, and returns the response.
func requestToken(t *testing.T, env map[string]string) (status int, response map[string]any) {
	t.Helper()
	return post(t, env["OAUTH_ISSUER"], "", map[string]string{
		"grant_type":    "client_credentials",
		"client_id":     env["OAUTH_CLIENT_ID"],
		"client_secret": env["OAUTH_CLIENT_SECRET"],
		"audience":      env["MIT_AUDIENCE"],
	})
}

func accessToken(t *testing.T, env map[string]string) string {
	t.Helper()
	status, response := requestToken(t, env)
	if status != http.StatusOK {
		t.Fatalf("token: %d %v", status, response)
	}
	return response["data"].(map[string]any)["access_token"].(string)
}

// register registers a server with a token.
func register(t *testing.T, env map[string]string, token string) (status int, response map[string]any) {
	t.Helper()
	return post(t, env["MIT_URL"]+"/itResources", token, map[string]string{
		"type": env["SERVER_TYPE"], "serverId": "a", "clusterBaseUrl": "http://127.0.0.1:8080/v1",
	})
}

// join registers a server with what the environment names, and returns the response.
func join(t *testing.T, env map[string]string) map[string]any {
	t.Helper()
	status, response := register(t, env, accessToken(t, env))
	if status != http.StatusOK {
		t.Fatalf("register: %d %v", status, response)
	}
	return response
}

func TestJoin(t *testing.T) {
	env := start(t, Command{})
	for name, want := range map[string]string{
		"SERVER_TYPE":           "example",
		"SERVER_LOCAL_IPV4":     "127.0.0.1",
		"SERVER_PORT":           "8080",
		"CLUSTER_MANAGEMENT":    "on",
		"OAUTH_CLIENT_ID":       "example",
		"OAUTH_CLIENT_AUDIENCE": "example",
		"EXAMPLE_AUDIENCE":      "example",
		"MIT_URL":               env["base"] + "/mIT/v1",
		"MIT_AUDIENCE":          env["base"] + "/mIT/v1",
		"OAUTH_ISSUER":          env["base"] + "/mST/v1/oauth/token",
	} {
		if env[name] != want {
			t.Errorf("%s = %q, want %q", name, env[name], want)
		}
	}
	if len(env["OAUTH_CLIENT_SECRET"]) < 20 || len(env["OAUTH_CLIENT_ACCESS_KEY"]) < 40 {
		t.Errorf("weak secrets: %v", env)
	}
	if response := join(t, env); response["leaseTime"] != 7_200_000.0 {
		t.Errorf("registered: %v", response)
	}
	if status, _ := post(t, env["MIT_URL"]+"/itResources", "no token", nil); status != http.StatusForbidden {
		t.Errorf("a bad token is answered %d", status)
	}
	if status, response := post(t, env["base"]+"/elsewhere", "", nil); status != http.StatusNotFound || response["statusCode"] != 404.0 {
		t.Errorf("elsewhere: %d %v", status, response)
	}
	other := start(t, Command{})
	if env["OAUTH_CLIENT_SECRET"] == other["OAUTH_CLIENT_SECRET"] || env["OAUTH_CLIENT_ACCESS_KEY"] == other["OAUTH_CLIENT_ACCESS_KEY"] {
		t.Error("two starts with one secret")
	}
}

// The metrics need no token, and have no secret.
func TestMetrics(t *testing.T) {
	env := start(t, Command{})
	join(t, env)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, env["base"]+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%d, %v", resp.StatusCode, err)
	}
	for _, line := range []string{
		`mimik_mit_servers{type="example"} 1`,
		`mimik_mit_tokens_total{outcome="issued"} 1`,
		`mimik_mit_store_ready 1`,
	} {
		if !strings.Contains(string(text), "\n"+line+"\n") {
			t.Errorf("no line %s in:\n%s", line, text)
		}
	}
	for _, name := range []string{"OAUTH_CLIENT_SECRET", "OAUTH_CLIENT_ACCESS_KEY", "MIT_URL"} {
		if strings.Contains(string(text), env[name]) {
			t.Errorf("the metrics have %s", name)
		}
	}
}

func TestFlags(t *testing.T) {
	t.Setenv("MIT_CLIENT_SECRET", "from 'the' environment")
	t.Setenv("MIT_SIGNING_KEY", "not this one")
	var opened, closed bool
	zone := "?"
	c := Command{
		Name:  "mit-test",
		Flags: func(fs *flag.FlagSet) { fs.StringVar(&zone, "zone", "", "") },
		Open: func(context.Context, *zap.Logger) (mit.Store, func() error, error) {
			opened = zone == "north"
			return mit.NewMemory(), func() error { closed = true; return nil }, nil
		},
	}
	t.Run("run", func(t *testing.T) {
		env := start(t, c, "--zone", "north", "--type", "mds", "--client-id", "it's", "--insecure-dev", "--key", "k",
			"--lease", "3s", "--audience", "here", "--url", "http://localhost:1/")
		for name, want := range map[string]string{
			"base":                    "http://localhost:1",
			"SERVER_TYPE":             "mds",
			"OAUTH_CLIENT_ID":         `it'\''s`,
			"OAUTH_CLIENT_SECRET":     `from '\''the'\'' environment`,
			"OAUTH_CLIENT_ACCESS_KEY": "k",
			"MIT_AUDIENCE":            "here",
			"MDS_AUDIENCE":            "mds",
		} {
			if env[name] != want {
				t.Errorf("%s = %q, want %q", name, env[name], want)
			}
		}
	})
	if !opened || !closed {
		t.Errorf("store opened after the flags: %v, closed: %v", opened, closed)
	}
}

func TestClientsFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "clients.json")
	if err := os.WriteFile(file, []byte(`[{"id":"m","secret":"s","type":"mds"}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	env := start(t, Command{}, "--clients", file, "--audience", "here")
	env["OAUTH_ISSUER"] = env["base"] + issuerPath
	env["MIT_URL"] = env["base"] + registryPath
	env["OAUTH_CLIENT_ID"], env["OAUTH_CLIENT_SECRET"], env["MIT_AUDIENCE"], env["SERVER_TYPE"] = "m", "s", "here", "mds"
	join(t, env)

	if err := os.WriteFile(file, []byte(`{"secret":"hunter2"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	err := Command{}.Run(t.Context(), []string{"--clients", file}, io.Discard, io.Discard)
	if err == nil || !strings.Contains(err.Error(), file) || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a bad file: %v", err)
	}
}

func TestHelp(t *testing.T) {
	for _, arg := range []string{"--help", "-h"} {
		var out strings.Builder
		if err := (Command{Name: "mit-test"}).Run(t.Context(), []string{arg}, &out, io.Discard); err != nil {
			t.Error(err)
		}
		for _, part := range []string{"mit-test", "-listen", "127.0.0.1:4000", "-lease", "MIT_SIGNING_KEY", "MIT_CLIENT_SECRET"} {
			if !strings.Contains(out.String(), part) {
				t.Errorf("%s does not say %s:\n%s", arg, part, out.String())
			}
		}
	}
}

func TestInvalidArguments(t *testing.T) {
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	errStore := errors.New("no store today")
	for name, test := range map[string]struct {
		c        Command
		args     []string
		contains string
	}{
		"unknown flag":   {Command{}, []string{"--nonsense"}, "nonsense"},
		"argument":       {Command{}, []string{"serve"}, `"serve"`},
		"bad duration":   {Command{}, []string{"--lease", "soon"}, "lease"},
		"negative lease": {Command{}, []string{"--lease", "-5s"}, "--lease"},
		"tiny lease":     {Command{}, []string{"--lease", "1ns"}, "--lease 1ns"},
		"short lease":    {Command{}, []string{"--lease", "999ms"}, "--lease 999ms"},
		"lease of zero":  {Command{}, []string{"--lease", "0"}, "--lease 0s"},
		"hidden NoLease": {Command{}, []string{"--lease", "-1ns"}, "--lease -1ns"},
		"bad type":       {Command{}, []string{"--type", "a-b"}, "--type"},
		"bad url":        {Command{}, []string{"--url", "localhost"}, "--url"},
		"bad level":      {Command{}, []string{"--log", "loud"}, "--log"},
		"two at once":    {Command{}, []string{"--log", "loud", "--url", "x"}, "--url"},
		"short key":      {Command{}, []string{"--key", strings.Repeat("a", 31)}, "32 bytes"},
		"placeholder":    {Command{}, []string{"--key", "replace-me"}, "placeholder"},
		"client secret":  {Command{}, []string{"--client-secret", "Change-Me!"}, `client "example" is a placeholder`},
		"no TLS key":     {Command{}, []string{"--tls-cert", "cert.pem"}, "--tls-key"},
		"no certificate": {Command{}, []string{"--tls-cert", "/nowhere", "--tls-key", "/nowhere"}, "/nowhere"},
		"only client CA": {Command{}, []string{"--client-ca", "/nowhere"}, "--tls-cert"},
		"connections":    {Command{}, []string{"--max-connections", "-1"}, "--max-connections"},
		"no file":        {Command{}, []string{"--clients", "/nowhere"}, "/nowhere"},
		"no key file":    {Command{}, []string{"--key-file", "/nowhere"}, "--key-file: open /nowhere"},
		"two keys":       {Command{}, []string{"--key", strings.Repeat("a", 32), "--key-file", "/nowhere"}, "--key-file is given, and so is --key"},
		"address in use": {Command{}, []string{"--listen", ln.Addr().String()}, "address already in use"},
		"store": {Command{Open: func(context.Context, *zap.Logger) (mit.Store, func() error, error) {
			return nil, nil, errStore
		}}, nil, errStore.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			args := append([]string{"--listen", "127.0.0.1:0", "--log", "off"}, test.args...)
			err := test.c.Run(t.Context(), args, io.Discard, io.Discard)
			if err == nil || !strings.Contains(err.Error(), test.contains) {
				t.Errorf("error %v, want one with %s", err, test.contains)
			}
		})
	}
}

// What is in flight when the program is told to end is still answered.
func TestGracefulShutdown(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cancel()
		// The server refuses new connections once it is ending.
		for {
			conn, err := new(net.Dialer).DialContext(r.Context(), "tcp", ln.Addr().String())
			if err != nil {
				break
			}
			_ = conn.Close()
		}
		_, _ = io.WriteString(w, "{}")
	})
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, limitConnections(ln, 0, 0), nil, handler, zap.NewNop()) }()
	if status, _ := post(t, "http://"+ln.Addr().String(), "", nil); status != http.StatusOK {
		t.Errorf("status %d", status)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("still serving")
	}
}

func TestLocalURL(t *testing.T) {
	for addr, want := range map[string]string{
		"127.0.0.1:4000": "http://127.0.0.1:4000",
		"0.0.0.0:4000":   "http://127.0.0.1:4000",
		"[::]:4000":      "http://127.0.0.1:4000",
		"[::1]:4000":     "http://[::1]:4000",
		"10.0.0.1:80":    "http://10.0.0.1:80",
	} {
		tcp, err := net.ResolveTCPAddr("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := localURL(tcp, false); got != want {
			t.Errorf("localURL(%s) = %s, want %s", addr, got, want)
		}
		if got := localURL(tcp, true); got != strings.Replace(want, "http:", "https:", 1) {
			t.Errorf("localURL(%s) with TLS = %s", addr, got)
		}
	}
}
