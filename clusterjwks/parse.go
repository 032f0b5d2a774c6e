package clusterjwks

import (
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/MicahParks/jwkset"
)

const (
	maxKeys    = 100
	minRSABits = 2048
	maxRSABits = 8192 // the time of a verification grows with the square
)

// parseKeys returns the keys of a JWKS that can verify tokens. Its errors name a key by its
// position: what they quoted could be a secret.
func parseKeys(body []byte) ([]jwkset.JWK, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if json.Unmarshal(body, &set) != nil {
		return nil, errors.New("not a JSON object with keys")
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("%d keys, more than %d", len(set.Keys), maxKeys)
	}
	var keys []jwkset.JWK
	for i, raw := range set.Keys {
		key, usable, err := parseKey(raw)
		if err != nil {
			return nil, fmt.Errorf("key %d of %d %w", i+1, len(set.Keys), err)
		}
		if usable {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("no key for %s, %s or %s", jwkset.AlgRS256, jwkset.AlgES256, jwkset.AlgEdDSA)
	}
	return keys, nil
}

// parseKey returns a key, and false if it is not for the verification of tokens. Only the members
// named below are used, so that a key cannot refer to another URL (x5u).
func parseKey(raw []byte) (key jwkset.JWK, usable bool, err error) {
	var m struct {
		KTY jwkset.KTY      `json:"kty"`
		USE jwkset.USE      `json:"use"`
		ALG jwkset.ALG      `json:"alg"`
		KID string          `json:"kid"`
		CRV jwkset.CRV      `json:"crv"`
		N   string          `json:"n"`
		E   string          `json:"e"`
		X   string          `json:"x"`
		Y   string          `json:"y"`
		D   json.RawMessage `json:"d"`
		K   json.RawMessage `json:"k"`
	}
	switch {
	case json.Unmarshal(raw, &m) != nil:
		return key, false, errors.New("is malformed")
	case m.KTY == jwkset.KtyOct || m.K != nil:
		return key, false, errors.New("is symmetric and must not be published")
	case m.D != nil:
		return key, false, errors.New("is private and must not be published")
	case m.ALG == "none":
		return key, false, errors.New("has the method none")
	case m.USE != "" && m.USE != jwkset.UseSig || !supported(m.KTY, m.CRV, m.ALG):
		return key, false, nil
	}
	key, err = jwkset.NewJWKFromMarshal(
		jwkset.JWKMarshal{KTY: m.KTY, USE: m.USE, ALG: m.ALG, KID: m.KID, CRV: m.CRV, N: m.N, E: m.E, X: m.X, Y: m.Y},
		jwkset.JWKMarshalOptions{}, jwkset.JWKValidateOptions{})
	if err != nil {
		return key, false, errors.New("is malformed")
	}
	if public, ok := key.Key().(*rsa.PublicKey); ok {
		if bits := public.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return key, false, fmt.Errorf("has %d bits, not %d to %d", bits, minRSABits, maxRSABits)
		}
	}
	return key, true, nil
}

// supported reports whether a key is of a kind that one of the methods uses.
func supported(kty jwkset.KTY, crv jwkset.CRV, alg jwkset.ALG) bool {
	switch kty {
	case jwkset.KtyRSA:
		return alg == "" || alg == jwkset.AlgRS256
	case jwkset.KtyEC:
		return crv == jwkset.CrvP256 && (alg == "" || alg == jwkset.AlgES256)
	case jwkset.KtyOKP:
		return crv == jwkset.CrvEd25519 && (alg == "" || alg == jwkset.AlgEdDSA)
	default:
		return false
	}
}
