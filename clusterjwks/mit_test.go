package clusterjwks

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
	"github.com/mimiktech/cluster/mit/command"
)

// writeKey writes a new private key for mit --signing-key.
func writeKey(t *testing.T, name string, s signer) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(s.key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// startMIT runs the program mit until the test ends, and returns the environment that it prints.
func startMIT(t *testing.T, args ...string) map[string]string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := command.Command{}.Run(ctx, append([]string{"--listen", "127.0.0.1:0", "--type", "mds", "--log", "off"}, args...), w, io.Discard)
		_ = w.CloseWithError(err)
		ended <- err
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	env := map[string]string{}
	for lines := bufio.NewScanner(r); env["SERVER_PORT"] == "" && lines.Scan(); {
		if m := regexp.MustCompile(`^export (\w+)='(.*)'$`).FindStringSubmatch(lines.Text()); m != nil {
			env[m[1]] = m[2]
		}
	}
	return env
}

// serveNode serves a node with the environment of mit, which verifies tokens by its JWKS.
func serveNode(t *testing.T, env map[string]string) *cluster.Cluster {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := New(Config{
		URL: env["OAUTH_JWKS_URL"], Issuer: env["OAUTH_ISSUER"], Audience: env["OAUTH_CLIENT_AUDIENCE"], MinInterval: time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	lookup := func(name string) (string, bool) { value, ok := env[name]; return value, ok }
	cfg, err := cluster.ConfigFrom(lookup, cluster.WithVerifier(verifier))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Port = ln.Addr().(*net.TCPAddr).Port
	c, err := cluster.New(cfg, cluster.WithVerifier(verifier), cluster.WithoutEnv())
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	c.Mount(mux)
	mux.Handle("GET "+c.Config().BasePath+"/things", c.AuthenticatePeer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.Reply(w, r, []string{c.Config().ID})
	})))
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- c.Serve(ctx, ln, &http.Server{Handler: mux, ReadHeaderTimeout: time.Second}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return c
}

// eventually waits for something that happens on sockets, in real time.
func eventually(t *testing.T, what string, happened func() bool) {
	t.Helper()
	for range 1000 {
		if happened() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("not within 10 s: %s", what)
}

// Nodes and registry verify the tokens that mit signs with a private key, also after it has changed
// with SIGHUP.
func TestMITSigningKey(t *testing.T) {
	for _, s := range []signer{rsaSigner(t, ""), ecSigner(t, "")} {
		t.Run(s.method.Alg(), func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "key.pem")
			writeKey(t, file, s)
			env := startMIT(t, "--signing-key", file)
			first, second := serveNode(t, env), serveNode(t, env)
			wantCalls := func(n *cluster.Cluster, peers int) {
				t.Helper()
				eventually(t, "all peers known", func() bool { return len(n.Peers()) == peers })
				res, err := n.RPCluster(t.Context(), cluster.Request{Path: "/things"})
				if err != nil || len(res.Results) != peers || len(res.Failures) != 0 {
					t.Fatalf("results %v, failures %v, error %v", res.Results, res.Failures, err)
				}
			}
			wantCalls(first, 1)
			wantCalls(second, 1)

			writeKey(t, file, ecSigner(t, ""))
			before := countKeys(t, env["OAUTH_JWKS_URL"])
			if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			eventually(t, "a second key in the JWKS", func() bool { return countKeys(t, env["OAUTH_JWKS_URL"]) > before })
			third := serveNode(t, env) // it has tokens of the new key, the others of the previous one
			wantCalls(third, 2)
			wantCalls(first, 2)
		})
	}
}

func countKeys(t *testing.T, url string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(body), `"kid"`)
}

// A registry verifies the tokens of another token service by its JWKS.
func TestRegistryVerifiesByJWKS(t *testing.T) {
	s := edSigner(t, "ed")
	e := &endpoint{body: jwks(t, s)}
	verifier := newVerifier(t, e, func(c *Config) { c.MinInterval = time.Nanosecond })
	registry, err := mit.NewRegistry(mit.NewMemory(), mit.RegistryConfig{Verify: func(token string) (cluster.Claims, error) {
		return verifier.Verify(context.Background(), token)
	}})
	if err != nil {
		t.Fatal(err)
	}
	register := func(token, typ string) int {
		req := httptest.NewRequest(http.MethodPost, "/itResources", strings.NewReader(`{"type":"`+typ+`","serverId":"a","clusterBaseUrl":"http://a/v1"}`))
		req.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		registry.ServeHTTP(w, req)
		return w.Code
	}
	want := func(what string, got, want int) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %d, want %d", what, got, want)
		}
	}
	e.fail(func(*http.Request) (*http.Response, error) { return nil, errors.New("no route") })
	want("no JWKS yet", register(s.token(t, nil), "mds"), http.StatusServiceUnavailable)
	e.serve(jwks(t, s))
	want("valid token", register(s.token(t, nil), "mds"), http.StatusOK)
	want("another type", register(s.token(t, nil), "other"), http.StatusForbidden)
	want("key of another service", register(edSigner(t, "ed").token(t, nil), "mds"), http.StatusForbidden)
	want("expired token", register(s.token(t, map[string]any{"exp": 1}), "mds"), http.StatusForbidden)
}
