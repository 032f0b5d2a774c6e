package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/mimiktech/cluster/internal/token"
)

// A Verifier checks a token that a request brought. It must tell a good one from a bad one by
// more than its form: signature, issuer, audience and expiry. The error is shown to whoever
// sent the token. It may block while ctx lasts.
type Verifier interface {
	Verify(ctx context.Context, token string) (Claims, error)
}

// Claims are what a verified token says of its bearer.
type Claims struct {
	Subject  string // sub
	SubType  string // subType: the bearer's type of service
	Type     string // type: "cluster" in a cluster token
	Customer string // cust
	Scope    string // scope: words parted by spaces

	ExpiresAt time.Time       // exp
	Raw       json.RawMessage // all claims
}

// A TokenError is a token that could not be had.
type TokenError struct {
	Audience string
	Err      error
}

func (e *TokenError) Error() string { return fmt.Sprintf("no token for %q: %v", e.Audience, e.Err) }

// Unwrap gives the cause, such as the [StatusError] of mST.
func (e *TokenError) Unwrap() error { return e.Err }

// keyVerifier checks tokens with the keys of a Config.
type keyVerifier struct{ *token.Verifier }

func newKeyVerifier(cfg Config) keyVerifier {
	return keyVerifier{token.NewVerifier(cfg.Issuer, cfg.receivedAudience(), string(cfg.receivedKey()), string(cfg.GenericPreviousKey))}
}

func (v keyVerifier) Verify(_ context.Context, text string) (Claims, error) {
	claims, err := v.Verifier.Verify(text)
	return Claims(claims), err
}
