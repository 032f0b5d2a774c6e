package command

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/mimiktech/cluster/mit"
)

// A logBuffer is a log that is read while it is written.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) count(text string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Count(b.text.String(), text)
}

// hangup sends SIGHUP to this process, and waits for a further line in the log of the program.
func (b *logBuffer) hangup(t *testing.T, line string) {
	t.Helper()
	before := b.count(line)
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if b.count(line) > before {
			return
		}
		time.Sleep(10 * time.Millisecond) // the program is on another goroutine, with sockets
	}
	t.Fatalf("no %q after SIGHUP", line)
}

const (
	reloaded    = "keys and clients reloaded"
	notReloaded = "keys and clients are not valid"
)

func writeFile(t *testing.T, name string, content any) {
	t.Helper()
	text, ok := content.(string)
	if !ok {
		b, err := json.Marshal(content)
		if err != nil {
			t.Fatal(err)
		}
		text = string(b)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// clientEnv is the environment of a client of a program that runs with files.
func clientEnv(base, id, secret string) map[string]string {
	return map[string]string{
		"OAUTH_ISSUER": base + issuerPath, "MIT_URL": base + registryPath, "MIT_AUDIENCE": base + registryPath,
		"OAUTH_CLIENT_ID": id, "OAUTH_CLIENT_SECRET": secret, "SERVER_TYPE": "mds",
	}
}

func wantStatus(t *testing.T, what string, got, want int) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %d, want %d", what, got, want)
	}
}

// SIGHUP replaces keys and clients. Tokens of the previous key stay valid, and files that are not
// valid change nothing.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	keyFile, clientsFile := filepath.Join(dir, "key"), filepath.Join(dir, "clients.json")
	keys := []string{strings.Repeat("first key ", 4), strings.Repeat("second key ", 4), strings.Repeat("third key ", 4)}
	client := func(id, secret string) mit.Client { return mit.Client{ID: id, Secret: secret, Type: "mds"} }
	writeFile(t, keyFile, keys[0]+"\n")
	writeFile(t, clientsFile, []mit.Client{client("a", "first secret"), client("b", "secret of b")})
	var log logBuffer
	base := startLogged(t, &log, Command{}, "--log", "info", "--key-file", keyFile, "--clients", clientsFile)["base"]
	a, b, c := clientEnv(base, "a", "first secret"), clientEnv(base, "b", "secret of b"), clientEnv(base, "c", "secret of c")
	first := accessToken(t, a)

	for name, content := range map[string]any{
		"no JSON": `{"secret":"hunter2"}`, "no client": []mit.Client{client("", "hunter2")}, "twice": []mit.Client{client("a", "hunter2"), client("a", "hunter2")},
		"placeholder": []mit.Client{client("a", "changeme")},
	} {
		writeFile(t, clientsFile, content)
		writeFile(t, keyFile, keys[1]) // valid, and yet not used
		log.hangup(t, notReloaded)
		current := accessToken(t, a)
		status, _ := register(t, a, current)
		wantStatus(t, name+": registration", status, http.StatusOK)
		if _, err := jwt.Parse(current, func(*jwt.Token) (any, error) { return []byte(strings.TrimSpace(keys[0])), nil }); err != nil {
			t.Errorf("%s: the key has changed: %v", name, err)
		}
	}
	writeFile(t, clientsFile, []mit.Client{client("a", "other secret"), client("c", "secret of c")})
	writeFile(t, keyFile, "short")
	log.hangup(t, notReloaded)
	status, _ := requestToken(t, c)
	wantStatus(t, "new client with an invalid key file", status, http.StatusUnauthorized)

	writeFile(t, keyFile, keys[1])
	log.hangup(t, reloaded)
	for what, tt := range map[string]struct {
		env  map[string]string
		want int
	}{
		"old secret": {a, http.StatusUnauthorized}, "removed client": {b, http.StatusUnauthorized},
		"new client": {c, http.StatusOK}, "new secret": {clientEnv(base, "a", "other secret"), http.StatusOK},
	} {
		status, _ := requestToken(t, tt.env)
		wantStatus(t, what, status, tt.want)
	}
	second := accessToken(t, c)
	log.hangup(t, reloaded) // the same keys again
	status, _ = register(t, c, first)
	wantStatus(t, "token of the previous key", status, http.StatusOK)
	status, _ = register(t, c, second)
	wantStatus(t, "token of the current key", status, http.StatusOK)

	writeFile(t, keyFile, keys[2]+"\n\n"+keys[0]+"\n")
	log.hangup(t, reloaded)
	for what, token := range map[string]string{"listed": first, "previous": second, "current": accessToken(t, c)} {
		status, _ := register(t, c, token)
		wantStatus(t, what+" key", status, http.StatusOK)
	}
	writeFile(t, keyFile, strings.Repeat("fourth key ", 4))
	log.hangup(t, reloaded)
	status, _ = register(t, c, first)
	wantStatus(t, "key that is no longer listed", status, http.StatusForbidden)
	for _, secret := range append(keys, "hunter2", "first secret", "secret of b") {
		if log.count(secret) > 0 {
			t.Errorf("the log contains %q", secret)
		}
	}
}

// pemKey returns a new private key in PEM.
func pemKey(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// SIGHUP replaces the signing key. The JWKS has the current key, the others of the file, and the
// previous one.
func TestReloadSigningKey(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys.pem")
	one, two, three := pemKey(t), pemKey(t), pemKey(t)
	writeFile(t, file, one)
	var log logBuffer
	env := startLogged(t, &log, Command{}, "--log", "info", "--signing-key", file)
	first := accessToken(t, env)
	for _, tt := range []struct {
		content string
		keys    int
	}{{two, 2}, {two, 2}, {two + one, 2}, {three + two, 2}, {one + two, 3}, {two, 2}} {
		writeFile(t, file, tt.content)
		log.hangup(t, reloaded)
		status, _ := register(t, env, accessToken(t, env))
		wantStatus(t, "token of the new key", status, http.StatusOK)
		if got := countKeys(t, env["OAUTH_JWKS_URL"]); got != tt.keys {
			t.Errorf("%d keys in the JWKS, want %d", got, tt.keys)
		}
	}
	status, _ := register(t, env, first)
	wantStatus(t, "token of the previous key", status, http.StatusOK)
	for _, content := range []string{"no key", strings.ReplaceAll(one, "A", "B")} {
		writeFile(t, file, content)
		log.hangup(t, notReloaded)
		status, _ := register(t, env, accessToken(t, env))
		wantStatus(t, "token after an invalid file", status, http.StatusOK)
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
	var jwks struct{ Keys []any }
	if err := json.NewDecoder(resp.Body).Decode(&jwks); err != nil {
		t.Fatal(err)
	}
	return len(jwks.Keys)
}
