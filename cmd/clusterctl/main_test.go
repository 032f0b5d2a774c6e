package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func TestList(t *testing.T) {
	w := newWorld(t, "node-1", "node-2")
	w.waitForViews()
	const want = `
SERVER  ADDRESS  RENEWED  REGISTERED
node-1  http://node-1/mds/v1  N s ago  N s ago
node-2  http://node-2/mds/v1  N s ago  N s ago
`
	w.golden(w.run("list"), want)
	w.golden(w.run("list", "--server", w.nodes["node-2"].Config().ClusterBaseURL), want)

	var list struct {
		Type, ResourceID, Source string
		Servers                  []struct{ ServerID, ClusterBaseURL, UpdatedAt string }
	}
	r := w.run("list", "-o", "json")
	if err := json.Unmarshal([]byte(r.stdout), &list); err != nil {
		t.Fatalf("%v: %s", err, r.stdout)
	}
	if list.Type != "mds" || list.ResourceID != w.nodes["node-1"].Status().ResourceID || list.Source != w.env["MIT_URL"] ||
		len(list.Servers) != 2 || list.Servers[0].ClusterBaseURL != w.nodes["node-1"].Config().ClusterBaseURL || list.Servers[0].UpdatedAt == "" {
		t.Errorf("the JSON is %s", r.stdout)
	}
}

// Entries that cannot be read are left out of the list, and reported.
func TestListWithInvalidEntries(t *testing.T) {
	w := newWorld(t, "node-1")
	w.nodes["node-1"].behind(func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			_, _ = io.WriteString(rw, strings.Replace(rec.Body.String(), `"servers":[`, `"servers":[{"serverId":7},`, 1))
		})
	})
	r := w.run("list", "--server", w.nodes["node-1"].Config().ClusterBaseURL)
	w.want(r, exitOK, "node-1")
	if !strings.Contains(r.stderr, "warn the list of servers contains invalid entries") {
		t.Errorf("the standard error is %q", r.stderr)
	}
}

// A view from a server needs no registry.
func TestListWithoutRegistry(t *testing.T) {
	w := newWorld(t, "node-1")
	delete(w.env, "MIT_URL")
	delete(w.env, "MIT_AUDIENCE")
	w.want(w.run("list", "--server", w.nodes["node-1"].Config().ClusterBaseURL), exitOK, "node-1")
	w.want(w.run("list"), exitUsage, "MIT_URL")
	w.want(w.run("evict", "node-1", "--yes", "--server", w.nodes["node-1"].Config().ClusterBaseURL), exitUsage, "MIT_URL")
}

func TestAsk(t *testing.T) {
	w := newWorld(t, "node-1", "node-2", "node-3")
	w.golden(w.run("ask", "/things"), `
SERVER  RESULT  STATUS  TIME  DATA OR REASON
node-1  ok  200  N s  ["node-1"]
node-2  ok  200  N s  ["node-2"]
node-3  ok  200  N s  ["node-3"]
`)
	w.golden(w.run("ask", "/things", "--only", "node-2"), `
SERVER  RESULT  STATUS  TIME  DATA OR REASON
node-2  ok  200  N s  ["node-2"]
`)
	w.want(w.run("ask", "/things", "--only", "node-7"), exitProblem, `"node-7"`)

	var received []string
	var mu sync.Mutex
	w.nodes["node-1"].behind(func(http.Handler) http.Handler {
		return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			mu.Lock()
			defer mu.Unlock()
			received = append(received, r.Method+" "+r.URL.RequestURI()+" "+r.Header.Get("X-Name")+" "+string(body))
			w.nodes["node-1"].Reply(rw, r, r.Header.Get("Authorization")+" "+w.env["OAUTH_CLIENT_SECRET"])
		})
	})
	file := w.writeFile("body.json", []byte(`{"a":3}`))
	w.want(w.run("ask", "/things?x=1", "-X", "put", "-d", `{"a":1}`, "-H", "X-Name: value", "--only", "node-1"), exitOK, "[redacted]")
	w.want(w.runWith(strings.NewReader(`{"a":2}`), "ask", "/things", "-X", "POST", "-d", "@-", "--only", "node-1", "-o", "json"), exitOK, "[redacted]")
	w.want(w.run("ask", "/things", "-X", "POST", "-d", "@"+file, "--only", "node-1"), exitOK)
	want := []string{`PUT /mds/v1/things?x=1 value {"a":1}`, `POST /mds/v1/things  {"a":2}`, `POST /mds/v1/things  {"a":3}`}
	if diff := cmp.Diff(want, received); diff != "" {
		t.Errorf("received (-want +got):\n%s", diff)
	}
}

// A failing server has a row with its reason, and is not evicted.
func TestAskFailing(t *testing.T) {
	w := newWorld(t, "node-1", "node-2", "node-3")
	w.nodes["node-2"].kill()
	w.nodes["node-3"].behind(answer(http.StatusTeapot, `{"message":"\u001b[31mno coffee"}`))
	r := w.run("ask", "/things")
	w.want(r, exitProblem, "connection refused", "418", "no coffee")
	if strings.ContainsRune(r.stdout, '\x1b') {
		t.Errorf("an escape sequence is printed: %q", r.stdout)
	}
	var res struct {
		Data              []string
		Results, Failures []struct {
			Server struct{ ServerID string }
			Error  struct{ Kind string }
		}
	}
	r = w.run("ask", "/things", "-o", "json")
	if err := json.Unmarshal([]byte(r.stdout), &res); err != nil || r.code != exitProblem {
		t.Fatalf("%v: %d %s", err, r.code, r.stdout)
	}
	if len(res.Data) != 1 || len(res.Results) != 1 || len(res.Failures) != 2 || res.Failures[0].Error.Kind != "refused" || res.Failures[1].Error.Kind != "status" {
		t.Errorf("the JSON is %s", r.stdout)
	}
	w.want(w.run("list"), exitOK, "node-1", "node-2", "node-3")
}

func TestToken(t *testing.T) {
	w := newWorld(t)
	delete(w.env, "MIT_URL")
	r := w.run("token")
	w.want(r, exitOK, "subType", "mds", "type", "cluster", "It expires in")
	r = w.run("token", "--show")
	if strings.Count(r.stdout, ".") != 2 || strings.Count(r.stdout, "\n") != 1 || r.code != exitOK {
		t.Errorf("the token is %q", r.stdout)
	}
	r = w.run("token", "--audience", "https://mit.test", "--plain", "-o", "json")
	var token struct {
		Audience  string
		Cluster   bool
		ExpiresAt time.Time
		Claims    map[string]any
	}
	if err := json.Unmarshal([]byte(r.stdout), &token); err != nil || r.code != exitOK {
		t.Fatalf("%v: %d %s %s", err, r.code, r.stdout, r.stderr)
	}
	if token.Audience != "https://mit.test" || token.Cluster || token.Claims["type"] == "cluster" || time.Until(token.ExpiresAt) < time.Hour {
		t.Errorf("the JSON is %s", r.stdout)
	}
	w.env["OAUTH_CLIENT_SECRET"] = "another secret"
	w.want(w.run("token"), exitProblem, "mST answered 401")
}

// A writer that tells of each line.
type lineWriter struct {
	mu    sync.Mutex // guards the field below
	text  bytes.Buffer
	lines chan string
}

func (l *lineWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(b)
	for {
		line, err := l.text.ReadString('\n')
		if err != nil {
			l.text.WriteString(line)
			return len(b), nil
		}
		l.lines <- strings.TrimSpace(line)
	}
}

func TestWatch(t *testing.T) {
	for _, output := range []string{outputTable, outputJSON} {
		t.Run(output, func(t *testing.T) {
			w := newWorld(t, "node-1")
			out := &lineWriter{lines: make(chan string, 100)}
			a := &app{
				lookupEnv: func(name string) (string, bool) { value, ok := w.env[name]; return value, ok },
				out:       out, errOut: io.Discard,
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan int, 1)
			go func() { ended <- a.run(ctx, []string{"watch", "--interval", "10ms", "-o", output}) }()
			defer func() { cancel(); <-ended }()
			next := func(kind, id string) {
				t.Helper()
				select {
				case line := <-out.lines:
					if !strings.Contains(line, kind) || !strings.Contains(line, id) || strings.HasPrefix(line, "{") != (output == outputJSON) {
						t.Errorf("got %q, want %s %s", line, kind, id)
					}
				case <-time.After(10 * time.Second):
					t.Fatalf("no line for %s %s", kind, id)
				}
			}
			next("joined", "node-1")
			n := w.join("node-2")
			next("joined", "node-2")
			n.UnRegister(t.Context())
			next("left", "node-2")
			cancel()
			if code := <-ended; code != exitOK {
				t.Errorf("exit code %d", code)
			}
			ended <- exitOK // for the deferred function
		})
	}
}

func TestWatchReportsFailures(t *testing.T) {
	w := newWorld(t)
	w.env["MIT_URL"] = "http://127.0.0.1:1/mIT/v1"
	w.want(w.run("watch", "--interval", "10ms", "--for", "100ms"), exitProblem, "connection refused")
}

func TestChanges(t *testing.T) {
	var out bytes.Buffer
	a := &app{out: &out, settings: settings{output: outputTable}}
	a.printChanges(map[string]string{"a": "http://a", "b": "http://b", "c": "http://c"}, map[string]string{"b": "http://x", "c": "http://c", "d": "http://d"})
	var got []string
	for line := range strings.Lines(out.String()) {
		_, change, _ := strings.Cut(strings.TrimSpace(line), "  ")
		got = append(got, change)
	}
	if diff := cmp.Diff([]string{"left    a  http://a", "moved   b  http://x", "joined  d  http://d"}, got); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}

// What cannot work ends with the exit code 2, before any request.
func TestUsageErrors(t *testing.T) {
	w := newWorld(t)
	for name, tt := range map[string]struct {
		args []string
		env  map[string]string
		want string
	}{
		"unknown command":      {[]string{"frobnicate"}, nil, "unknown command"},
		"unknown flag":         {[]string{"list", "--frobnicate"}, nil, "unknown flag"},
		"argument of list":     {[]string{"list", "x"}, nil, `"x"`},
		"no path":              {[]string{"ask"}, nil, "accepts 1 arg"},
		"relative path":        {[]string{"ask", "things"}, nil, "not an absolute path"},
		"invalid output":       {[]string{"list", "-o", "xml"}, nil, `"xml"`},
		"negative timeout":     {[]string{"list", "--timeout", "-1s"}, nil, "negative"},
		"certificate alone":    {[]string{"list", "--cert", "x"}, nil, "--key"},
		"no such CA":           {[]string{"list", "--ca", "/nonexistent"}, nil, "/nonexistent"},
		"invalid header":       {[]string{"ask", "/x", "-H", "x"}, nil, "Name: value"},
		"data is no JSON":      {[]string{"ask", "/x", "-d", "{"}, nil, "not JSON"},
		"no file with data":    {[]string{"ask", "/x", "-d", "@/nonexistent"}, nil, "/nonexistent"},
		"missing settings":     {[]string{"check"}, map[string]string{"MDS_AUDIENCE": "", "OAUTH_CLIENT_ID": ""}, "OAUTH_CLIENT_ID is missing"},
		"invalid setting":      {[]string{"check"}, map[string]string{"REQUEST_TIMEOUT": "soon"}, "REQUEST_TIMEOUT"},
		"no confirmation":      {[]string{"evict", "node-1"}, nil, "--yes"},
		"no interval":          {[]string{"watch", "--interval", "0s"}, nil, "--interval"},
		"negative time":        {[]string{"watch", "--for", "-1s"}, nil, "--for -1s is negative\n"},
		"server is no URL":     {[]string{"list", "--server", "10.0.0.7:8080/mds/v1"}, nil, "--server is not"},
		"server with password": {[]string{"list", "--server", "http://me:hidden@10.0.0.7/mds/v1"}, nil, "--server is a URL with credentials"},
		"negative days":        {[]string{"check", "--certificate-days", "-1"}, nil, "--certificate-days"},
		"secret and its file":  {[]string{"list"}, map[string]string{"OAUTH_CLIENT_SECRET_FILE": "/nonexistent"}, "OAUTH_CLIENT_SECRET_FILE is set"},
		"registry is no URL":   {[]string{"list", "--registry", "mit"}, nil, "MIT_URL"},
		"invalid IP networks":  {[]string{"list", "--peer-networks", "x"}, nil, "CLUSTER_PEER_NETWORKS"},
		"registry no audience": {[]string{"list"}, map[string]string{"MIT_AUDIENCE": ""}, "MIT_AUDIENCE is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			env := map[string]string{}
			maps.Copy(env, w.env)
			maps.Copy(env, tt.env)
			w := &world{T: t, env: env}
			w.want(w.run(tt.args...), exitUsage, tt.want, "clusterctl --help")
		})
	}
}

// Flags take precedence over the environment. Variables of a node that a guest does not need may
// be invalid.
func TestFlags(t *testing.T) {
	w := newWorld(t, "node-1")
	secret := w.writeFile("secret", []byte(w.env["OAUTH_CLIENT_SECRET"]+"\n"))
	args := []string{
		"--type", w.env["SERVER_TYPE"], "--registry", w.env["MIT_URL"], "--registry-audience", w.env["MIT_AUDIENCE"],
		"--peer-audience", w.env["MDS_AUDIENCE"], "--issuer", w.env["OAUTH_ISSUER"], "--client-id", w.env["OAUTH_CLIENT_ID"],
		"--client-secret-file", secret, "--timeout", "5s", "--peer-networks", "127.0.0.0/8",
	}
	w.env = map[string]string{
		"SERVER_TYPE": "other", "MIT_URL": "http://127.0.0.1:1", "OAUTH_CLIENT_SECRET": "another", "REQUEST_TIMEOUT": "x",
		"SERVER_PORT": "x", "SERVER_LOCAL_IPV4": "x", "OAUTH_GENERIC_KEY_FILE": "/nonexistent", "CLUSTER_MANAGEMENT": "x",
	}
	w.want(w.run(append([]string{"ask", "/things"}, args...)...), exitOK, "node-1")
	w.want(w.run(append([]string{"ask", "/things"}, append(args, "--peer-networks", "10.0.0.0/8")...)...), exitProblem, "not_allowed")
}

// The help of each command describes it, shows examples, and documents each flag.
func TestHelp(t *testing.T) {
	w := newWorld(t)
	a := &app{}
	for _, cmd := range append(a.command().Commands(), a.command()) {
		if cmd.Name() == "completion" || cmd.Name() == "help" {
			continue
		}
		if cmd.Short == "" || cmd.Long == "" || cmd.Example == "" {
			t.Errorf("%s has no description or no example", cmd.Name())
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s: the flag %s is not documented", cmd.Name(), f.Name)
			}
		})
		for line := range strings.Lines(cmd.Long) {
			if len([]rune(strings.TrimRight(line, "\n"))) > 100 {
				t.Errorf("%s: a line of the help is too long: %s", cmd.Name(), line)
			}
		}
		args := []string{cmd.Name(), "--help"}
		if cmd.Name() == "clusterctl" {
			args = args[1:]
		}
		r := w.run(args...)
		w.want(r, exitOK, strings.TrimSpace(cmd.Example), "Usage:")
	}
	w.want(w.run("check", "--help"), exitOK, "Exit codes: 0 if no check has failed; 1 if one has; 2 if")
}

func TestCompletion(t *testing.T) {
	w := newWorld(t, "node-1", "node-2")
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		w.want(w.run("completion", shell), exitOK, "clusterctl")
	}
	w.want(w.run(cobra.ShellCompRequestCmd, "evict", ""), exitOK, "node-1\nnode-2\n")
	w.want(w.run(cobra.ShellCompRequestCmd, "list", "-o", ""), exitOK, "table\njson\n")
	w.env["MIT_URL"] = ""
	if r := w.run(cobra.ShellCompRequestCmd, "evict", ""); strings.Contains(r.stdout, "node-1") || r.code != exitOK {
		t.Errorf("%d %s", r.code, r.stdout)
	}
}

// Progress goes to a terminal only, and leaves no trace there.
func TestProgress(t *testing.T) {
	w := newWorld(t, "node-1")
	for _, terminal := range []bool{true, false} {
		var stdout, stderr bytes.Buffer
		a := &app{
			lookupEnv: func(name string) (string, bool) { value, ok := w.env[name]; return value, ok },
			out:       &stdout, errOut: &stderr, showProgress: terminal,
		}
		if code := a.run(t.Context(), []string{"ask", "/things"}); code != exitOK {
			t.Fatalf("exit code %d: %s", code, stderr.String())
		}
		if text := stderr.String(); terminal != strings.Contains(text, "1 of 1 servers have responded") || terminal && !strings.HasSuffix(text, "\r\x1b[K") {
			t.Errorf("terminal %v: %q", terminal, text)
		}
		if strings.Contains(stdout.String(), "responded") {
			t.Errorf("progress in the output: %s", stdout.String())
		}
	}
}

// An output that cannot be written is a failure: a script must not take a part of it for all.
func TestOutputFails(t *testing.T) {
	w := newWorld(t, "node-1")
	for _, args := range [][]string{{"list"}, {"list", "-o", "json"}, {"check"}, {"token", "--show"}, {"--help"}} {
		var stderr bytes.Buffer
		a := &app{
			lookupEnv: func(name string) (string, bool) { value, ok := w.env[name]; return value, ok },
			out:       writerFunc(func([]byte) (int, error) { return 0, syscall.ENOSPC }), errOut: &stderr,
		}
		if code := a.run(t.Context(), args); code != exitProblem || !strings.Contains(stderr.String(), "writing the output: no space left on device") {
			t.Errorf("%v: exit code %d: %s", args, code, stderr.String())
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// A token that is not a JSON Web Token is not shown either if a server or the registry repeats it.
func TestEchoedTokens(t *testing.T) {
	const token = "an-opaque-token-of-a-service"
	var issued atomic.Int32
	var echo *httptest.Server
	echo = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body := fmt.Sprintf(`{"data":{"id":"it","type":"mds","publicBaseUrl":"","servers":[{"serverId":"a","clusterBaseUrl":%q,"updatedAt":"2026-01-02T03:04:05.000Z"}]},"server":{"serverId":"a"}}`, echo.URL)
		status := http.StatusOK
		switch {
		case r.URL.Path == "/token":
			body = fmt.Sprintf(`{"access_token":"%s-%d","token_type":"Bearer","expires_in":3600}`, token, issued.Add(1))
		case r.URL.Path == "/things":
			body = fmt.Sprintf(`{"data":[%q],"server":{"serverId":"a"}}`, r.Header.Get("Authorization"))
		case r.Method == http.MethodDelete:
			status, body = http.StatusForbidden, fmt.Sprintf(`{"message":%q}`, r.Header.Get("Authorization"))
		}
		answer(status, body)(nil).ServeHTTP(rw, r)
	}))
	t.Cleanup(echo.Close)
	w := newWorld(t)
	w.env["OAUTH_ISSUER"], w.env["MIT_URL"] = echo.URL+"/token", echo.URL
	for _, tt := range []struct {
		code int
		args []string
	}{
		{exitOK, []string{"ask", "/things", "--server", echo.URL}},
		{exitOK, []string{"ask", "/things", "--server", echo.URL, "-o", "json"}},
		{exitProblem, []string{"evict", "a", "--yes", "--server", echo.URL}},
	} {
		r := w.run(tt.args...)
		w.want(r, tt.code, "[redacted]")
		if strings.Contains(r.stdout+r.stderr, token) {
			t.Errorf("%v prints the token:\n%s%s", tt.args, r.stdout, r.stderr)
		}
	}
	w.want(w.run("token", "--show"), exitOK, token)
}

func TestEscape(t *testing.T) {
	for text, want := range map[string]string{
		"{\n  \"a\": \"é €\"\n}": "{\n  \"a\": \"é €\"\n}",
		"\u009b31m":              `\u009b31m`,
		"\u202e":                 `\u202e`,
		"\U000e0001":             "\ufffd",
		"\x7f":                   `\u007f`,
	} {
		if got := escape(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func TestShort(t *testing.T) {
	var got []string
	for _, d := range []time.Duration{0, 999 * time.Millisecond, time.Second, 119 * time.Second, 2 * time.Minute, 119 * time.Minute, 2 * time.Hour, 47 * time.Hour, 48 * time.Hour} {
		got = append(got, short(d))
	}
	want := []string{"0 ms", "999 ms", "1 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 days"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
