package command

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// With --signing-key, the registry accepts the tokens of the token service, the JWKS is served, and
// nodes get its URL instead of the secret key.
func TestSigningKey(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"PRIVATE KEY": {Type: "PRIVATE KEY", Bytes: pkcs8}, "EC PRIVATE KEY": {Type: "EC PRIVATE KEY", Bytes: sec1},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "key.pem")
			if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
				t.Fatal(err)
			}
			env := start(t, Command{}, "--signing-key", file)
			join(t, env)
			if env["OAUTH_CLIENT_ACCESS_KEY"] != "" {
				t.Error("the secret key is printed")
			}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, env["OAUTH_JWKS_URL"], nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if body, err := io.ReadAll(resp.Body); err != nil || !bytes.Contains(body, []byte(`"alg":"ES256"`)) {
				t.Errorf("%d %s: %v", resp.StatusCode, body, err)
			}
		})
	}
	t.Run("no key", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "key.pem")
		if err := os.WriteFile(file, []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
		err := Command{}.Run(t.Context(), []string{"--signing-key", file}, io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), file+" has no private key in PEM") || strings.Contains(err.Error(), "secret") {
			t.Error(err)
		}
		err = Command{}.Run(t.Context(), []string{"--signing-key", file + "x"}, io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), "--signing-key: open ") {
			t.Error(err)
		}
	})
}
