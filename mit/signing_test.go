package mit_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"github.com/mimiktech/cluster/internal/exchanges"
	"github.com/mimiktech/cluster/mit"
)

// A registry with the public key accepts the tokens of the token service, and no other token. The
// JWKS has the public key and nothing secret.
func TestSigningKey(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for alg, key := range map[string]crypto.Signer{"RS256": rsaKey, "ES256": ecKey} {
		t.Run(alg, func(t *testing.T) {
			s, err := mit.NewTokenService(mit.TokenConfig{
				Issuer: "iss", Key: "a secret key", SigningKey: key,
				Clients: []mit.Client{{ID: "c", Secret: "s", Type: "mds"}},
			})
			if err != nil {
				t.Fatal(err)
			}
			got := requestTokens(t, s, map[string]string{
				"grant_type": "client_credentials", "client_id": "c", "client_secret": "s", "audience": "aud",
			})
			parsed, err := jwt.Parse(got.AccessToken, func(*jwt.Token) (any, error) { return key.Public(), nil }, jwt.WithValidMethods([]string{alg}))
			if err != nil {
				t.Fatal(err)
			}
			w := httptest.NewRecorder()
			exchanges.Record(http.HandlerFunc(s.ServeJWKS)).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/mST/v1/jwks.json", nil))
			var set struct{ Keys []map[string]string }
			if err := json.Unmarshal(w.Body.Bytes(), &set); err != nil || len(set.Keys) != 1 {
				t.Fatalf("%s: %v", w.Body, err)
			}
			if k := set.Keys[0]; k["kid"] != parsed.Header["kid"] || k["alg"] != alg || k["d"] != "" {
				t.Errorf("JWKS %v, header %v", k, parsed.Header)
			}
			for name, tt := range map[string]struct {
				cfg  mit.RegistryConfig
				want int
			}{
				"the public key":  {mit.RegistryConfig{PublicKeys: []crypto.PublicKey{key.Public()}}, http.StatusOK},
				"both":            {mit.RegistryConfig{PublicKeys: []crypto.PublicKey{key.Public()}, Keys: []string{"x"}}, http.StatusOK},
				"the secret only": {mit.RegistryConfig{Keys: []string{"a secret key"}}, http.StatusForbidden},
			} {
				tt.cfg.Issuer, tt.cfg.Audience = "iss", "aud"
				g, err := mit.NewRegistry(mit.NewMemory(), tt.cfg)
				if err != nil {
					t.Fatal(err)
				}
				r := httptest.NewRequest(http.MethodPost, "/itResources", strings.NewReader(`{"type":"mds","serverId":"a","clusterBaseUrl":"http://127.0.0.1:8080/v1"}`))
				r.Header.Set("Content-Type", "application/json")
				r.Header.Set("Authorization", "Bearer "+got.AccessToken)
				w := httptest.NewRecorder()
				if g.ServeHTTP(w, r); w.Code != tt.want {
					t.Errorf("%s: %d %s, want %d", name, w.Code, w.Body, tt.want)
				}
			}
		})
	}
}

func TestInvalidSigningKeys(t *testing.T) {
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	for want, key := range map[string]crypto.Signer{"an RSA key of 1024 bits, less than 2048": short, "neither RSA nor ECDSA on P-256": ed} {
		_, err := mit.NewTokenService(mit.TokenConfig{Issuer: "iss", Key: "k", SigningKey: key})
		if err == nil || !strings.Contains(err.Error(), "invalid SigningKey: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %s", err, want)
		}
		_, err = mit.NewRegistry(mit.NewMemory(), mit.RegistryConfig{Issuer: "i", Audience: "a", PublicKeys: []crypto.PublicKey{key.Public()}})
		if err == nil || !strings.Contains(err.Error(), "invalid PublicKeys: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}
