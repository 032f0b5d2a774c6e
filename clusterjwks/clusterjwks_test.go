package clusterjwks

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/mimiktech/cluster"
)

const (
	jwksURL  = "https://keys.example/jwks?token=url-secret"
	issuer   = "https://mst.example/oauth/token"
	audience = "https://mds.example"
)

// A signer is a private key with the id under which its public key is published.
type signer struct {
	id     string
	method jwt.SigningMethod
	key    crypto.Signer
}

func rsaSigner(t testing.TB, id string) signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return signer{id, jwt.SigningMethodRS256, key}
}

func ecSigner(t testing.TB, id string) signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer{id, jwt.SigningMethodES256, key}
}

func edSigner(t testing.TB, id string) signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer{id, jwt.SigningMethodEdDSA, key}
}

// token returns a token that is valid for an hour. change replaces header fields and claims; nil
// removes one.
func (s signer) token(t testing.TB, change map[string]any) string {
	t.Helper()
	claims := jwt.MapClaims{
		"iss": issuer, "aud": audience, "exp": time.Now().Add(time.Hour).Unix(),
		"sub": "a@clients", "subType": "mds", "type": "cluster", "cust": "c", "scope": "read write",
	}
	tok := jwt.NewWithClaims(s.method, claims)
	tok.Header["kid"] = s.id
	for name, value := range change {
		fields := map[string]any(claims)
		if name == "kid" || name == "alg" {
			fields = tok.Header
		}
		fields[name] = value
		maps.DeleteFunc(fields, func(_ string, v any) bool { return v == nil })
	}
	text, err := tok.SignedString(s.key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// jwk returns the public key with further members.
func (s signer) jwk(t testing.TB, more map[string]any) map[string]any {
	t.Helper()
	b64 := base64.RawURLEncoding.EncodeToString
	m := map[string]any{"kid": s.id, "alg": s.method.Alg(), "use": "sig"}
	switch key := s.key.Public().(type) {
	case *rsa.PublicKey:
		m["kty"], m["n"], m["e"] = "RSA", b64(key.N.Bytes()), b64(big.NewInt(int64(key.E)).Bytes())
	case *ecdsa.PublicKey:
		point, err := key.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		m["kty"], m["crv"], m["x"], m["y"] = "EC", "P-256", b64(point[1:33]), b64(point[33:])
	case ed25519.PublicKey:
		m["kty"], m["crv"], m["x"] = "OKP", "Ed25519", b64(key)
	}
	maps.Copy(m, more)
	return m
}

func jwks(t testing.TB, keys ...any) string {
	t.Helper()
	for i, k := range keys {
		if s, ok := k.(signer); ok {
			keys[i] = s.jwk(t, nil)
		}
	}
	b, err := json.Marshal(map[string]any{"keys": keys})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// An endpoint is a round tripper that serves a JWKS, and counts the requests.
type endpoint struct {
	mu      sync.Mutex
	body    string
	answer  func(*http.Request) (*http.Response, error) // instead of body, if set
	fetches int
}

func (e *endpoint) RoundTrip(r *http.Request) (*http.Response, error) {
	e.mu.Lock()
	e.fetches++
	answer, body := e.answer, e.body
	e.mu.Unlock()
	if answer != nil {
		return answer(r)
	}
	return respond(http.StatusOK, body), nil
}

func (e *endpoint) serve(body string) { e.set(body, nil) }

func (e *endpoint) fail(answer func(*http.Request) (*http.Response, error)) { e.set("", answer) }

func (e *endpoint) set(body string, answer func(*http.Request) (*http.Response, error)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.body, e.answer = body, answer
}

func (e *endpoint) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.fetches
}

func (e *endpoint) wantFetches(t testing.TB, want int) {
	t.Helper()
	if got := e.count(); got != want {
		t.Errorf("%d fetches, want %d", got, want)
	}
}

func respond(status int, body string) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}
}

func refused(*http.Request) (*http.Response, error) { return nil, errors.New("connection refused") }

// hang waits until the request is canceled.
func hang(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func newVerifier(t testing.TB, e http.RoundTripper, change ...func(*Config)) *Verifier {
	t.Helper()
	cfg := Config{URL: jwksURL, Issuer: issuer, Audience: audience, Transport: e}
	for _, c := range change {
		c(&cfg)
	}
	v, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// wantError verifies a token; want is "" for a valid one.
func wantError(t testing.TB, v *Verifier, token, want string) {
	t.Helper()
	_, err := v.Verify(t.Context(), token)
	got := ""
	if err != nil {
		got = err.Error()
	}
	if got != want {
		t.Errorf("error %q, want %q", got, want)
	}
	if unavailable := strings.HasPrefix(want, cluster.ErrVerifierUnavailable.Error()); errors.Is(err, cluster.ErrVerifierUnavailable) != unavailable {
		t.Errorf("%v wraps ErrVerifierUnavailable: %v", err, !unavailable)
	}
	if strings.Contains(got, token) || strings.Contains(got, "secret") {
		t.Errorf("%q contains a secret", got)
	}
}

const (
	unknownKey = "token signed with an unknown key"
	remote     = "JWKS of https://keys.example/jwks: "
)

func unavailable(cause string) string {
	return cluster.ErrVerifierUnavailable.Error() + ": " + remote + cause
}

var _ cluster.Verifier = (*Verifier)(nil)

func TestVerify(t *testing.T) {
	for _, s := range []signer{rsaSigner(t, "rsa"), ecSigner(t, "ec"), edSigner(t, "ed")} {
		t.Run(s.method.Alg(), func(t *testing.T) {
			e := &endpoint{body: jwks(t, rsaSigner(t, "other"), ecSigner(t, "other ec"), edSigner(t, "other ed"), s)}
			v := newVerifier(t, e)
			claims, err := v.Verify(t.Context(), s.token(t, map[string]any{"exp": 4102444800}))
			if err != nil {
				t.Fatal(err)
			}
			claims.Raw = nil
			want := cluster.Claims{Subject: "a@clients", SubType: "mds", Type: "cluster", Customer: "c", Scope: "read write", ExpiresAt: time.Unix(4102444800, 0)}
			if diff := cmp.Diff(want, claims); diff != "" {
				t.Errorf("claims (-want +got):\n%s", diff)
			}
			wantError(t, v, s.token(t, map[string]any{"kid": nil}), "")
			wantError(t, v, s.token(t, map[string]any{"exp": 1}), "token refused: expired")
			wantError(t, v, s.token(t, map[string]any{"iss": "x", "aud": "y"}), "token refused: wrong audience, wrong issuer")
			wantError(t, v, s.token(t, map[string]any{"kid": 5}), "token whose kid and alg do not fit a key")
			parts := strings.Split(s.token(t, nil), ".")
			wantError(t, v, parts[0]+"."+parts[1]+"."+base64.RawURLEncoding.EncodeToString(make([]byte, 64)), "token with a bad signature")
			wantError(t, v, "url-secret", "malformed token")
			e.wantFetches(t, 1)
		})
	}
}

// A token that is signed with a published value as a secret key, or with no key, is not valid.
func TestForgedTokens(t *testing.T) {
	good, stranger := rsaSigner(t, "k"), ecSigner(t, "k")
	v := newVerifier(t, &endpoint{body: jwks(t, good, edSigner(t, "ed"))})
	claims := jwt.MapClaims{"iss": issuer, "aud": audience, "exp": time.Now().Add(time.Hour).Unix()}
	const method = "token not signed with RS256 or ES256 or EdDSA"
	for name, tt := range map[string]struct {
		method jwt.SigningMethod
		key    any
		want   string
	}{
		"none":             {jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, method},
		"HS256":            {jwt.SigningMethodHS256, good.key.Public().(*rsa.PublicKey).N.Bytes(), method},
		"RS512":            {jwt.SigningMethodRS512, good.key, method},
		"PS256":            {jwt.SigningMethodPS256, good.key, method},
		"a stranger's":     {jwt.SigningMethodES256, stranger.key, "token whose kid and alg do not fit a key"},
		"without a key id": {jwt.SigningMethodES256, stranger.key, "token with a bad signature"},
	} {
		t.Run(name, func(t *testing.T) {
			tok := jwt.NewWithClaims(tt.method, claims)
			if name != "without a key id" {
				tok.Header["kid"] = "k"
			}
			text, err := tok.SignedString(tt.key)
			if err != nil {
				t.Fatal(err)
			}
			wantError(t, v, text, tt.want)
		})
	}
}

func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, next := ecSigner(t, "old"), edSigner(t, "next")
		e := &endpoint{body: jwks(t, old)}
		v := newVerifier(t, e)
		wantError(t, v, old.token(t, nil), "")
		e.serve(jwks(t, old, next))
		time.Sleep(10 * time.Second)
		wantError(t, v, next.token(t, nil), "") // fetched for this token
		wantError(t, v, old.token(t, nil), "")
		e.wantFetches(t, 2)

		e.serve(jwks(t, next)) // the old key is revoked
		time.Sleep(time.Hour - time.Nanosecond)
		wantError(t, v, old.token(t, nil), "")
		synctest.Wait()
		e.wantFetches(t, 2)
		time.Sleep(time.Nanosecond)
		wantError(t, v, next.token(t, nil), "") // starts the fetch, without waiting
		synctest.Wait()
		e.wantFetches(t, 3)
		wantError(t, v, old.token(t, nil), unknownKey)
	})
}

// A flood of tokens with unknown key ids causes one fetch per MinInterval, and does not block the
// other tokens.
func TestUnknownKeyIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		good, forger := ecSigner(t, "good"), ecSigner(t, "forger")
		e := &endpoint{body: jwks(t, good)}
		v := newVerifier(t, e, func(c *Config) { c.MinInterval = time.Minute })
		wantError(t, v, good.token(t, nil), "")
		began := time.Now()
		for range 600 { // 10 minutes
			for range 3 {
				wantError(t, v, forger.token(t, map[string]any{"kid": rand.Text()}), unknownKey)
			}
			wantError(t, v, good.token(t, nil), "")
			time.Sleep(time.Second)
		}
		if took := time.Since(began); took != 10*time.Minute {
			t.Errorf("took %v: tokens waited", took)
		}
		e.wantFetches(t, 10)
	})
}

// Tokens that arrive during a fetch share it.
func TestConcurrentTokensShareAFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ecSigner(t, "k")
		body := jwks(t, s)
		e := &endpoint{answer: func(*http.Request) (*http.Response, error) {
			time.Sleep(time.Second)
			return respond(http.StatusOK, body), nil
		}}
		v := newVerifier(t, e, func(c *Config) { c.MinInterval = time.Millisecond })
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() { wantError(t, v, s.token(t, nil), "") })
			time.Sleep(10 * time.Millisecond)
		}
		wg.Wait()
		e.wantFetches(t, 1)
	})
}

func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zapcore.InfoLevel)
		s, next := ecSigner(t, "k"), ecSigner(t, "next")
		e := &endpoint{answer: refused}
		v := newVerifier(t, e, func(c *Config) { c.Logger = zap.New(core) })

		wantError(t, v, s.token(t, nil), unavailable("connection refused"))
		wantError(t, v, s.token(t, map[string]any{"kid": nil}), unavailable("connection refused"))
		e.serve(jwks(t, s))
		time.Sleep(10*time.Second - time.Nanosecond)
		wantError(t, v, s.token(t, nil), unavailable("connection refused"))
		e.wantFetches(t, 1)
		time.Sleep(time.Nanosecond)
		wantError(t, v, s.token(t, nil), "")
		e.wantFetches(t, 2)

		e.fail(refused)
		for range 30 * 24 { // a month
			time.Sleep(time.Hour)
			wantError(t, v, s.token(t, nil), "")
			synctest.Wait()
		}
		// The token may be valid: its key may have been published during the outage.
		wantError(t, v, next.token(t, nil), unavailable("connection refused"))
		e.serve(jwks(t, s, next))
		time.Sleep(10 * time.Second)
		wantError(t, v, next.token(t, nil), "")

		var texts []string
		for _, l := range logs.All() {
			texts = append(texts, l.Level.String()+" "+l.Message)
			if strings.Contains(fmt.Sprint(l.ContextMap()), "secret") {
				t.Errorf("a secret is logged: %v", l.ContextMap())
			}
		}
		lost, back := "warn JWKS not available, the last good keys stay in use", "info JWKS available again"
		if diff := cmp.Diff([]string{lost, back, lost, back}, texts); diff != "" {
			t.Errorf("log (-want +got):\n%s", diff)
		}
	})
}

// An endpoint that does not answer delays a token by at most Timeout, and by no more than the
// token's own context permits.
func TestSlowEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ecSigner(t, "k")
		e := &endpoint{answer: hang}
		v := newVerifier(t, e, func(c *Config) { c.Timeout, c.MaxAge = 5*time.Second, time.Minute })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		_, err := v.Verify(ctx, s.token(t, nil))
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, cluster.ErrVerifierUnavailable) || time.Since(began) != time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		wantError(t, v, s.token(t, nil), unavailable("context deadline exceeded"))
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("the fetch ended after %v", took)
		}

		e.serve(jwks(t, s))
		time.Sleep(time.Minute)
		wantError(t, v, s.token(t, nil), "")
		// A body that stalls.
		e.fail(func(r *http.Request) (*http.Response, error) {
			resp := respond(http.StatusOK, "")
			resp.Body = io.NopCloser(readerFunc(func([]byte) (int, error) { <-r.Context().Done(); return 0, r.Context().Err() }))
			return resp, nil
		})
		time.Sleep(time.Minute)
		began = time.Now()
		wantError(t, v, s.token(t, nil), "")
		if took := time.Since(began); took != 0 {
			t.Errorf("a token with a known key waited %v", took)
		}
		wantError(t, v, ecSigner(t, "x").token(t, nil), unavailable("reading the response: context deadline exceeded"))
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// Each bad JWKS results in its own error, and the last good keys stay in use.
func TestBadJWKS(t *testing.T) {
	s := ecSigner(t, "k")
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	many := make([]any, 1000)
	for i := range many {
		many[i] = s.jwk(t, map[string]any{"kid": fmt.Sprint(i)})
	}
	p384 := s.jwk(t, map[string]any{"crv": "P-384", "alg": "ES384"})
	big := base64.RawURLEncoding.EncodeToString(bytes.Repeat([]byte{0xff}, 100_000))
	for name, tt := range map[string]struct {
		body, want string
	}{
		"10 MB":              {jwks(t, s, map[string]any{"kty": "x", "secret": strings.Repeat("x", 10<<20)}), "longer than 1048576 bytes"},
		"1,000 keys":         {jwks(t, many...), "1000 keys, more than 100"},
		"none":               {jwks(t, s, s.jwk(t, map[string]any{"alg": "none"})), "key 2 of 2 has the method none"},
		"symmetric":          {jwks(t, s, map[string]any{"kty": "oct", "k": "secret", "alg": "HS256"}), "key 2 of 2 is symmetric and must not be published"},
		"private":            {jwks(t, s, s.jwk(t, map[string]any{"d": "secret"})), "key 2 of 2 is private and must not be published"},
		"a short RSA key":    {jwks(t, signer{"k", jwt.SigningMethodRS256, small}), "key 1 of 1 has 1024 bits, not 2048 to 8192"},
		"a long RSA key":     {jwks(t, rsaSigner(t, "k").jwk(t, map[string]any{"n": big})), "key 1 of 1 has 800000 bits, not 2048 to 8192"},
		"no point":           {jwks(t, s.jwk(t, map[string]any{"x": "AAAA"})), "key 1 of 1 is malformed"},
		"no base64":          {jwks(t, s.jwk(t, map[string]any{"x": "\x00secret"})), "key 1 of 1 is malformed"},
		"a key of text":      {jwks(t, "secret"), "key 1 of 1 is malformed"},
		"a kid of a number":  {jwks(t, s.jwk(t, map[string]any{"kid": 1})), "key 1 of 1 is malformed"},
		"no keys":            {jwks(t), "no key for RS256, ES256 or EdDSA"},
		"no key that fits":   {jwks(t, p384, s.jwk(t, map[string]any{"use": "enc"}), map[string]any{"kty": "AKP"}), "no key for RS256, ES256 or EdDSA"},
		"an array":           {"[]", "not a JSON object with keys"},
		"HTML":               {"<html>secret", "not a JSON object with keys"},
		"an empty response":  {"", "not a JSON object with keys"},
		"deeply nested JSON": {strings.Repeat(`{"keys":[`, 20_000), "not a JSON object with keys"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := &endpoint{body: tt.body}
				v := newVerifier(t, e)
				wantError(t, v, s.token(t, nil), unavailable(tt.want))
				e.serve(jwks(t, s))
				time.Sleep(time.Minute)
				wantError(t, v, s.token(t, nil), "")
				e.serve(tt.body)
				time.Sleep(2 * time.Hour)
				wantError(t, v, s.token(t, nil), "")
				synctest.Wait()
				wantError(t, v, s.token(t, nil), "")
				wantError(t, v, ecSigner(t, "x").token(t, nil), unavailable(tt.want))
			})
		})
	}
	t.Run("keys of other kinds are ignored", func(t *testing.T) {
		v := newVerifier(t, &endpoint{body: jwks(t, p384, s.jwk(t, map[string]any{"use": "enc", "kid": "enc"}), map[string]any{"kty": "AKP"}, s)})
		wantError(t, v, s.token(t, nil), "")
	})
}

func TestBadResponses(t *testing.T) {
	s := ecSigner(t, "k")
	for name, tt := range map[string]struct {
		answer func(*http.Request) (*http.Response, error)
		want   string
	}{
		"503":         {func(*http.Request) (*http.Response, error) { return respond(503, "secret"), nil }, "status 503"},
		"no response": {func(*http.Request) (*http.Response, error) { return nil, nil }, ""},
		"a panic":     {func(*http.Request) (*http.Response, error) { panic("secret") }, "panic while fetching"},
		"a redirect": {func(*http.Request) (*http.Response, error) {
			resp := respond(302, "")
			resp.Header.Set("Location", "https://other.example/?secret")
			return resp, nil
		}, "status 302"},
	} {
		t.Run(name, func(t *testing.T) {
			e := &endpoint{answer: tt.answer}
			v := newVerifier(t, e)
			if tt.want != "" {
				wantError(t, v, s.token(t, nil), unavailable(tt.want))
			} else if _, err := v.Verify(t.Context(), s.token(t, nil)); !errors.Is(err, cluster.ErrVerifierUnavailable) || strings.Contains(err.Error(), "secret") {
				t.Error(err)
			}
			e.wantFetches(t, 1)
		})
	}
}

// On sockets, the response is read no further than its limit.
func TestEndlessResponse(t *testing.T) {
	var sent int
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		chunk := bytes.Repeat([]byte(" "), 64<<10)
		for sent < 1<<30 {
			n, err := w.Write(chunk)
			if err != nil {
				return
			}
			sent += n
		}
	}))
	v := newVerifier(t, nil, func(c *Config) { c.URL = srv.URL })
	_, err := v.Verify(t.Context(), ecSigner(t, "k").token(t, nil))
	if err == nil || !strings.HasSuffix(err.Error(), "longer than 1048576 bytes") {
		t.Error(err)
	}
	srv.Close() // waits for the handler
	if sent > 100<<20 {
		t.Errorf("%d bytes were sent", sent)
	}
}

// A node answers with 503 while no key is known, and with the caller's claims afterwards.
func TestNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := ecSigner(t, "k")
		e := &endpoint{answer: refused}
		cfg := cluster.Config{
			Type: "mds", ID: "node-1", Port: 8080, LocalIPv4: "127.0.0.1",
			RegistryURL: "http://mit.example", RegistryAudience: "mit", PeerAudience: audience,
			Issuer: issuer, ClientID: "id", ClientSecret: "s",
		}
		c, err := cluster.New(cfg, cluster.WithVerifier(newVerifier(t, e)), cluster.WithoutEnv())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		handler := c.AuthenticatePeer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			claims, _ := cluster.ClaimsFrom(r.Context())
			c.Reply(w, r, claims.Subject)
		}))
		call := func() (int, string) {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
			r.Header.Set("Authorization", "Bearer "+s.token(t, nil))
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			return w.Code, w.Body.String()
		}
		if status, body := call(); status != http.StatusServiceUnavailable || strings.Contains(body, "keys.example") {
			t.Errorf("%d %s during an outage", status, body)
		}
		e.serve(jwks(t, s))
		time.Sleep(10 * time.Second)
		if status, body := call(); status != http.StatusOK || !strings.Contains(body, `"a@clients"`) {
			t.Errorf("%d %s", status, body)
		}
	})
}

func FuzzParseKeys(f *testing.F) {
	f.Add([]byte(`{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}`))
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"AA","e":"AQAB"},{"kty":"OKP","crv":"Ed25519","x":""}]}`))
	f.Add([]byte(jwks(f, ecSigner(f, "k"), edSigner(f, "e"))))
	f.Fuzz(func(t *testing.T, body []byte) {
		keys, err := parseKeys(body)
		if (err == nil) != (len(keys) > 0) {
			t.Errorf("%d keys and %v", len(keys), err)
		}
		for _, k := range keys {
			switch k.Key().(type) {
			case *rsa.PublicKey, *ecdsa.PublicKey, ed25519.PublicKey:
			default:
				t.Errorf("a %T", k.Key())
			}
		}
	})
}
