package token

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"time"
)

// Keys verify tokens with keys that may change. They are safe for concurrent use.
type Keys struct {
	// Leeway is that of the verifiers. It must not be changed after first use.
	Leeway time.Duration

	issuer, audience string
	sources          []*Secret

	mu       sync.Mutex // guards the fields below
	current  []string   // the keys of verifier
	verifier *Verifier
}

// NewKeys returns Keys for tokens from issuer for audience, signed with any of the keys.
func NewKeys(issuer, audience string, keys ...*Secret) *Keys {
	return &Keys{Leeway: Leeway, issuer: issuer, audience: audience, sources: keys}
}

// Verifier returns a Verifier with the current keys. An error means that no key can be read.
func (k *Keys) Verifier() (*Verifier, error) {
	keys := make([]string, len(k.sources))
	var problems []error
	for i, source := range k.sources {
		var err error
		if keys[i], err = source.Get(); err != nil {
			problems = append(problems, err)
		}
	}
	if err := errors.Join(problems...); err != nil && strings.Join(keys, "") == "" {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.verifier == nil || !slices.Equal(k.current, keys) {
		k.current, k.verifier = keys, NewVerifier(k.issuer, k.audience, keys...).WithLeeway(k.Leeway)
	}
	return k.verifier, nil
}

// IsPublicKey reports whether a key is a public key or a certificate, which cannot be secret.
func IsPublicKey(key string) bool {
	return strings.Contains(key, "-----BEGIN") &&
		(strings.Contains(key, "PUBLIC KEY-----") || strings.Contains(key, "CERTIFICATE-----"))
}
