// Package clusterjwks verifies tokens with the public keys of a JWKS (RFC 7517), for a token
// service that signs with RS256, ES256 or EdDSA. A [Verifier] replaces the secret key of a node:
//
//	verifier, err := clusterjwks.New(clusterjwks.FromEnv())
//	cfg, err := cluster.ConfigFromEnv(cluster.WithVerifier(verifier))
//	c, err := cluster.New(cfg, cluster.WithVerifier(verifier))
//
// The first token causes the first fetch of the JWKS. Later fetches replace the keys as a whole, so
// that a removed key is no longer accepted. They happen in two cases:
//
//   - The keys are older than [Config].MaxAge. Tokens are verified with them during the fetch.
//   - A token names a key id (kid) that is unknown. The token waits for the fetch.
//
// Fetches begin at least [Config].MinInterval apart, whatever tokens arrive. A fetch that fails
// changes nothing: the last good keys stay in use, without a time limit.
//
// A JWKS is rejected as a whole if it is longer than 1 MiB, has more than 100 keys, or contains a
// symmetric key, a private key, the method none, a malformed key, or an RSA key that does not have
// 2048 to 8192 bits. Keys for encryption, and of other kinds, are ignored. Redirects are not
// followed.
package clusterjwks

import (
	"context"
	"errors"

	"github.com/MicahParks/jwkset"
	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/internal/token"
)

// A Verifier verifies tokens with the keys of a JWKS. It implements [cluster.Verifier], is safe for
// concurrent use, and need not be closed.
type Verifier struct {
	tokens *token.Verifier
	keys   keyfunc.Keyfunc
}

// New returns a Verifier, or one error that names every problem of cfg. It does no I/O.
func New(cfg Config) (*Verifier, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	keys, err := keyfunc.New(keyfunc.Options{Storage: newKeyStore(cfg)})
	if err != nil {
		return nil, err
	}
	return &Verifier{tokens: token.NewMethodVerifier(cfg.Issuer, cfg.Audience, methods()...), keys: keys}, nil
}

// Verify returns the claims of a valid token. It needs a fetch for the first token, and for a token
// with an unknown key id. It then blocks until the fetch or ctx ends. A token without a key id is
// checked with every key, and causes no fetch if none fits.
//
// The error wraps [cluster.ErrVerifierUnavailable] if no JWKS has been fetched yet, or if the key
// id is unknown and the last fetch failed. It never quotes the token.
func (v *Verifier) Verify(ctx context.Context, text string) (cluster.Claims, error) {
	claims, err := v.tokens.VerifyBy(text, func(t *jwt.Token) (any, error) {
		key, err := v.keys.KeyfuncCtx(ctx)(t)
		return key, describeKeyError(err)
	})
	return cluster.Claims(claims), err
}

// methods returns the signing methods that are accepted. No key fits two of them.
func methods() []string {
	return []string{jwt.SigningMethodRS256.Alg(), jwt.SigningMethodES256.Alg(), jwt.SigningMethodEdDSA.Alg()}
}

// describeKeyError replaces errors of keyfunc, which quote the token's header.
func describeKeyError(err error) error {
	if err == nil {
		return nil
	}
	if unavailable, ok := errors.AsType[*unavailableError](err); ok {
		return unavailable
	}
	if errors.Is(err, jwkset.ErrKeyNotFound) {
		return errors.New("token signed with an unknown key")
	}
	return errors.New("token whose kid and alg do not fit a key")
}
