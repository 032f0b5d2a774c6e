package mit

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"slices"

	"github.com/golang-jwt/jwt/v5"

	"github.com/mimiktech/cluster/internal/httpjson"
	"github.com/mimiktech/cluster/internal/token"
)

// SetSigningKey changes the key with which access tokens are signed (see [TokenConfig].SigningKey).
// The JWKS has its public key, followed by others. To rotate keys, publish the next key among the
// others first, and then the previous one until its tokens have expired. An unusable key is an
// error, and changes nothing.
func (s *TokenService) SetSigningKey(key crypto.Signer, others ...crypto.PublicKey) error {
	if key == nil {
		return errors.New("mit: missing SigningKey")
	}
	next, err := newSigner(key)
	if err != nil {
		return fmt.Errorf("mit: invalid SigningKey: %w", err)
	}
	for _, other := range others {
		_, jwk, err := newJWK(other)
		if err != nil {
			return fmt.Errorf("mit: invalid key for the JWKS: %w", err)
		}
		if !slices.ContainsFunc(next.jwks, func(k map[string]any) bool { return k["kid"] == jwk["kid"] }) {
			next.jwks = append(next.jwks, jwk)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.signer = next
	return nil
}

// ServeJWKS responds to a GET with the JWKS (RFC 7517) of [TokenConfig].SigningKey. Without such a
// key it responds with a 404. A JWKS contains no secret, so the caller needs no token.
func (s *TokenService) ServeJWKS(w http.ResponseWriter, r *http.Request) {
	measure(s.metrics.requests, w, func(w http.ResponseWriter) string {
		s.respondJWKS(w, r)
		return "jwks"
	})
}

func (s *TokenService) respondJWKS(w http.ResponseWriter, r *http.Request) {
	r = httpjson.Correlate(w, r)
	jwks := s.currentSigner().jwks
	switch {
	case jwks == nil:
		notFound(w)
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		httpjson.WriteError(w, http.StatusMethodNotAllowed, "only GET and HEAD are served here")
	default:
		writeJSON(w, http.StatusOK, map[string]any{"keys": jwks})
	}
}

const minRSABits = 2048

// A signer signs access tokens with a private key. The zero value has none.
type signer struct {
	key    crypto.Signer
	method jwt.SigningMethod
	id     string           // kid
	jwks   []map[string]any // its public key, and others
}

func (s *TokenService) currentSigner() signer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.signer
}

// newSigner returns the signer of an RSA key (RS256) or an ECDSA key (ES256).
func newSigner(key crypto.Signer) (signer, error) {
	method, jwk, err := newJWK(key.Public())
	if err != nil {
		return signer{}, err
	}
	return signer{key, method, jwk["kid"].(string), []map[string]any{jwk}}, nil
}

// newJWK returns the method and the JWK of a public key.
func newJWK(public crypto.PublicKey) (jwt.SigningMethod, map[string]any, error) {
	method, err := signingMethod(public)
	if err != nil {
		return nil, nil, err
	}
	var jwk map[string]any
	b64 := base64.RawURLEncoding.EncodeToString
	switch public := public.(type) {
	case *rsa.PublicKey:
		jwk = map[string]any{"kty": "RSA", "n": b64(public.N.Bytes()), "e": b64(big.NewInt(int64(public.E)).Bytes())}
	case *ecdsa.PublicKey:
		point, err := public.Bytes() // 4, x, y
		if err != nil {
			return nil, nil, errors.New("an invalid ECDSA key")
		}
		jwk = map[string]any{"kty": "EC", "crv": "P-256", "x": b64(point[1:33]), "y": b64(point[33:])}
	}
	members, err := json.Marshal(jwk) // the thumbprint of RFC 7638: these members, sorted
	if err != nil {
		return nil, nil, err
	}
	hash := sha256.Sum256(members)
	jwk["kid"], jwk["alg"], jwk["use"] = b64(hash[:]), method.Alg(), "sig"
	return method, jwk, nil
}

// signingMethod returns the method of a public key.
func signingMethod(public crypto.PublicKey) (jwt.SigningMethod, error) {
	switch public := public.(type) {
	case *rsa.PublicKey:
		if public.N.BitLen() >= minRSABits {
			return jwt.SigningMethodRS256, nil
		}
		return nil, fmt.Errorf("an RSA key of %d bits, less than %d", public.N.BitLen(), minRSABits)
	case *ecdsa.PublicKey:
		if public.Curve == elliptic.P256() {
			return jwt.SigningMethodES256, nil
		}
	}
	return nil, errors.New("a key that is neither RSA nor ECDSA on P-256")
}

// newPublicVerifier returns a function that verifies tokens signed with one of keys.
func newPublicVerifier(issuer, audience string, keys []crypto.PublicKey) func(text string) (token.Claims, error) {
	v := token.NewMethodVerifier(issuer, audience, jwt.SigningMethodRS256.Alg(), jwt.SigningMethodES256.Alg())
	var set jwt.VerificationKeySet
	for _, k := range keys {
		set.Keys = append(set.Keys, k)
	}
	return func(text string) (token.Claims, error) {
		return v.VerifyBy(text, func(*jwt.Token) (any, error) { return set, nil })
	}
}
