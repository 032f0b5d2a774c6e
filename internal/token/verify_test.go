package token

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
)

const (
	iss = "https://mst.example/oauth/token"
	aud = "https://mds.example"
)

// good returns the claims of a token that is fine, changed by change; nil takes one out.
func good(change jwt.MapClaims) jwt.MapClaims {
	claims := jwt.MapClaims{
		"iss": iss, "aud": aud, "exp": time.Now().Add(time.Hour).Unix(),
		"sub": "client@clients", "subType": "mds", "type": "cluster", "cust": "c", "scope": "read write",
	}
	maps.Copy(claims, change)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	return claims
}

func signWith(t testing.TB, method jwt.SigningMethod, key any, claims jwt.Claims) string {
	t.Helper()
	s, err := jwt.NewWithClaims(method, claims).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestVerify(t *testing.T) {
	now := time.Now()
	raw := `{"iss":"` + iss + `", "aud":["x","` + aud + `"],"exp":4102444800.5,"sub":"s","subType":"mds",` +
		`"type":"cluster","Type":"other","cust":"c","scope":"read","more":{"a":[1]}}`
	text := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256"}`)) + "." + base64.RawURLEncoding.EncodeToString([]byte(raw))
	mac, err := jwt.SigningMethodHS256.Sign(text, []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	got, err := NewVerifier(iss, aud, "", "another", key).Verify(text + "." + base64.RawURLEncoding.EncodeToString(mac))
	if err != nil {
		t.Fatal(err)
	}
	want := Claims{
		Subject: "s", SubType: "mds", Type: "cluster", Customer: "c", Scope: "read",
		ExpiresAt: time.Unix(4102444800, 5e8), Raw: json.RawMessage(raw),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("claims (-want +got):\n%s", diff)
	}

	for name, tt := range map[string]struct {
		change jwt.MapClaims
		err    string
	}{
		"good":                     {nil, ""},
		"aud array":                {jwt.MapClaims{"aud": []string{"x", aud}}, ""},
		"only what is needed":      {jwt.MapClaims{"sub": nil, "subType": nil, "type": nil, "cust": nil, "scope": nil}, ""},
		"expired":                  {jwt.MapClaims{"exp": now.Unix() - 60}, "token refused: expired"},
		"no exp":                   {jwt.MapClaims{"exp": nil}, "token refused: no exp"},
		"exp by another name":      {jwt.MapClaims{"exp": nil, "Exp": now.Unix() + 60}, "token refused: no exp"},
		"not yet":                  {jwt.MapClaims{"nbf": now.Unix() + 60}, "token refused: not valid yet"},
		"wrong audience":           {jwt.MapClaims{"aud": "other"}, "token refused: wrong audience"},
		"wrong audiences":          {jwt.MapClaims{"aud": []string{"x", "y"}}, "token refused: wrong audience"},
		"part of the audience":     {jwt.MapClaims{"aud": aud[:len(aud)-1]}, "token refused: wrong audience"},
		"no audience":              {jwt.MapClaims{"aud": nil}, "token refused: wrong audience"},
		"empty audience":           {jwt.MapClaims{"aud": ""}, "token refused: wrong audience"},
		"wrong issuer":             {jwt.MapClaims{"iss": "other"}, "token refused: wrong issuer"},
		"no issuer":                {jwt.MapClaims{"iss": nil}, "token refused: wrong issuer"},
		"all wrong":                {jwt.MapClaims{"exp": 1, "aud": "x", "iss": "y"}, "token refused: expired, wrong audience, wrong issuer"},
		"subType a number":         {jwt.MapClaims{"subType": 5}, "token with a malformed claim: subType"},
		"type an array":            {jwt.MapClaims{"type": []string{"cluster"}}, "token with a malformed claim: type"},
		"cust an object":           {jwt.MapClaims{"cust": jwt.MapClaims{}}, "token with a malformed claim: cust"},
		"exp as text":              {jwt.MapClaims{"exp": "4102444800"}, "token with a malformed claim: exp"},
		"exp huge":                 {jwt.MapClaims{"exp": 1e300}, "token with a malformed claim: exp"},
		"nbf huge":                 {jwt.MapClaims{"nbf": -1e300}, "token with a malformed claim: nbf"},
		"aud a number":             {jwt.MapClaims{"aud": 5}, "token with a malformed claim: aud"},
		"aud an array of whatever": {jwt.MapClaims{"aud": []any{aud, 5}}, "token with a malformed claim: aud"},
	} {
		t.Run(name, func(t *testing.T) {
			// With the second key: the failure of the first must not be what is reported.
			_, err := NewVerifier(iss, aud, "current", key).Verify(sign(t, good(tt.change)))
			if got := message(err); got != tt.err {
				t.Errorf("error %q, want %q", got, tt.err)
			}
		})
	}
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestForgedTokens(t *testing.T) {
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&rsaKey.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	public := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	fine := sign(t, good(nil))
	part := strings.Split(fine, ".")
	head := func(json string) string {
		return base64.RawURLEncoding.EncodeToString([]byte(json)) + "." + part[1] + "." + part[2]
	}
	const (
		malformed = "malformed token"
		method    = "token not signed with HS256"
		signature = "token with a bad signature"
	)
	for name, tt := range map[string]struct {
		token, err string
	}{
		"none":               {signWith(t, jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, good(nil)), method},
		"HS384":              {signWith(t, jwt.SigningMethodHS384, []byte(key), good(nil)), method},
		"HS512":              {signWith(t, jwt.SigningMethodHS512, []byte(key), good(nil)), method},
		"RS256":              {signWith(t, jwt.SigningMethodRS256, rsaKey, good(nil)), method},
		"an unknown method":  {head(`{"alg":"XX1"}`), method},
		"no method":          {head(`{}`), method},
		"method in capitals": {head(`{"alg":"NONE"}`), method},
		"renamed method":     {head(`{"alg":"RS256"}`), method},
		"another key":        {signWith(t, jwt.SigningMethodHS256, []byte("guess"), good(nil)), signature},
		"an empty key":       {signWith(t, jwt.SigningMethodHS256, []byte{}, good(nil)), signature},
		"the public key":     {signWith(t, jwt.SigningMethodHS256, []byte(public), good(nil)), signature},
		"bad claims as well": {signWith(t, jwt.SigningMethodHS256, []byte("guess"), good(jwt.MapClaims{"exp": 1})), signature},
		"another payload":    {part[0] + "." + strings.Split(sign(t, good(jwt.MapClaims{"sub": "x"})), ".")[1] + "." + part[2], signature},
		"no signature":       {part[0] + "." + part[1] + ".", signature},
		"two parts":          {part[0] + "." + part[1], malformed},
		"four parts":         {fine + ".x", malformed},
		"empty":              {"", malformed},
		"dots":               {"..", malformed},
		"with Bearer":        {"Bearer " + fine, malformed},
		"a space behind":     {fine + " ", malformed},
		"payload null":       {part[0] + "." + base64.RawURLEncoding.EncodeToString([]byte("null")) + "." + part[2], signature},
		"payload an array":   {part[0] + "." + base64.RawURLEncoding.EncodeToString([]byte("[]")) + "." + part[2], signature},
		"too long":           {fine + strings.Repeat("x", MaxBytes), ErrTooLong.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := NewVerifier(iss, aud, key, public).Verify(tt.token)
			if got := message(err); got != tt.err {
				t.Errorf("error %q, want %q", got, tt.err)
			}
		})
	}
	t.Run("payload null, well signed", func(t *testing.T) {
		_, err := NewVerifier(iss, aud, key).Verify(signWith(t, jwt.SigningMethodHS256, []byte(key), jwt.MapClaims(nil)))
		if err == nil {
			t.Error("no error")
		}
	})
	for want, v := range map[string]*Verifier{
		"no issuer to check tokens against":   NewVerifier("", aud, key),
		"no audience to check tokens against": NewVerifier(iss, "", key),
		"no key to check tokens with":         NewVerifier(iss, aud, "", public),
	} {
		for _, claims := range []jwt.MapClaims{nil, {"iss": ""}, {"aud": ""}, {"iss": nil, "aud": nil}} {
			if _, err := v.Verify(sign(t, good(claims))); message(err) != want {
				t.Errorf("error %v, want %s", err, want)
			}
		}
	}
}

// The clocks of the issuer and of this machine may differ by the leeway. A token that is issued by
// a clock ahead is accepted, whatever its iat.
func TestVerifyLeeway(t *testing.T) {
	for name, tt := range map[string]struct {
		leeway time.Duration
		get    func(*Verifier) *Verifier
	}{
		"default": {10 * time.Second, func(v *Verifier) *Verifier { return v }},
		"another": {30 * time.Second, func(v *Verifier) *Verifier { return v.WithLeeway(30 * time.Second) }},
		"none":    {0, func(v *Verifier) *Verifier { return v.WithLeeway(0) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := tt.get(NewVerifier(iss, aud, key))
				ahead := time.Now().Add(time.Minute).Unix()
				token := sign(t, good(jwt.MapClaims{"nbf": ahead, "iat": ahead + 1000}))
				time.Sleep(time.Minute - tt.leeway - time.Nanosecond)
				if _, err := v.Verify(token); message(err) != "token refused: not valid yet" {
					t.Errorf("before its nbf: %v", err)
				}
				time.Sleep(time.Nanosecond)
				if _, err := v.Verify(token); err != nil {
					t.Errorf("at its nbf: %v", err)
				}
				time.Sleep(time.Hour - time.Minute + 2*tt.leeway - time.Nanosecond)
				if _, err := v.Verify(token); err != nil {
					t.Errorf("before its end: %v", err)
				}
				time.Sleep(time.Nanosecond)
				if _, err := v.Verify(token); message(err) != "token refused: expired" {
					t.Errorf("at its end: %v", err)
				}
			})
		})
	}
}

// A token with a crit header is rejected: no extension is understood (RFC 7515, section 4.1.11).
func TestVerifyCritical(t *testing.T) {
	for name, crit := range map[string]any{"an extension": []string{"b64"}, "none": []string{}, "null": nil, "not a list": "exp"} {
		t.Run(name, func(t *testing.T) {
			token := jwt.NewWithClaims(jwt.SigningMethodHS256, good(nil))
			token.Header["crit"], token.Header["b64"] = crit, true
			text, err := token.SignedString([]byte(key))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := NewVerifier(iss, aud, key).Verify(text); message(err) != "token with critical header parameters" {
				t.Errorf("error %v", err)
			}
		})
	}
}

func FuzzVerify(f *testing.F) {
	f.Add(`{"alg":"HS256"}`, `{"iss":"`+iss+`","aud":"`+aud+`","exp":4102444800}`, true)
	f.Add(`{"alg":"HS256"}`, `{"iss":"`+iss+`","aud":["`+aud+`"],"exp":1e400,"subType":5}`, true)
	f.Add(`{"alg":"none"}`, `null`, false)
	f.Add(`null`, `{}`, true)
	v := NewVerifier(iss, aud, "previous", key)
	f.Fuzz(func(t *testing.T, header, payload string, signed bool) {
		token := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
		mac := []byte(header)
		if signed {
			var err error
			if mac, err = jwt.SigningMethodHS256.Sign(token, []byte(key)); err != nil {
				t.Fatal(err)
			}
		}
		claims, err := v.Verify(token + "." + base64.RawURLEncoding.EncodeToString(mac))
		if _, raw := v.Verify(payload); raw == nil {
			t.Error("a payload passed for a token")
		}
		switch {
		case err != nil:
			if claims.Raw != nil || strings.Contains(err.Error(), token) {
				t.Errorf("refused with %v and %v", claims, err)
			}
		case !signed:
			t.Error("a forgery passed")
		case !json.Valid(claims.Raw) || !claims.ExpiresAt.After(time.Now()):
			t.Errorf("passed with %+v", claims)
		}
	})
}

// VerifyBy returns the error of a key function as it is, and checks the method before it asks for a
// key.
func TestVerifyBy(t *testing.T) {
	v := NewMethodVerifier(iss, aud, "ES256", "HS256")
	fail := errors.New("no key")
	if _, err := v.VerifyBy(sign(t, good(nil)), func(*jwt.Token) (any, error) { return nil, fail }); err != fail { //nolint:errorlint // not wrapped
		t.Errorf("error %v, want %v", err, fail)
	}
	if _, err := v.VerifyBy(sign(t, good(nil)), func(*jwt.Token) (any, error) { return []byte(key), nil }); err != nil {
		t.Error(err)
	}
	token := signWith(t, jwt.SigningMethodHS512, []byte(key), good(nil))
	_, err := v.VerifyBy(token, func(*jwt.Token) (any, error) { t.Error("asked for a key"); return nil, fail })
	if want := "token not signed with ES256 or HS256"; message(err) != want {
		t.Errorf("error %v, want %s", err, want)
	}
	if _, err := NewMethodVerifier("", aud, "HS256").VerifyBy(token, nil); message(err) != "no issuer to check tokens against" {
		t.Error(err)
	}
}
