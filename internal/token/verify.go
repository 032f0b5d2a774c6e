package token

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Claims is what a verified token says about who shows it.
type Claims struct {
	Subject   string // sub
	SubType   string // the caller's type of service
	Type      string // "cluster" if the token is one for peers
	Customer  string // cust
	Scope     string
	ExpiresAt time.Time
	Raw       json.RawMessage // the payload as received
}

// Verifier checks tokens that mST signed. It may be used from any goroutine.
type Verifier struct {
	keys      jwt.VerificationKeySet
	parser    *jwt.Parser
	configErr error // why no token can be checked
}

// NewVerifier makes a Verifier of tokens from issuer for audience, signed HS256 with any of
// keys, tried in order. Empty keys are skipped, and so are PEM public keys: all the world can
// sign with those. A Verifier that is left without a key, an issuer or an audience refuses
// every token.
func NewVerifier(issuer, audience string, keys ...string) *Verifier {
	v := &Verifier{parser: jwt.NewParser(
		jwt.WithValidMethods([]string{jwt.SigningMethodHS256.Alg()}),
		jwt.WithExpirationRequired(),
		jwt.WithIssuer(issuer),
		jwt.WithAudience(audience),
	)}
	for _, key := range keys {
		if key != "" && !isPublicKey(key) {
			v.keys.Keys = append(v.keys.Keys, []byte(key))
		}
	}
	switch { // the parser takes an empty issuer to mean any
	case issuer == "":
		v.configErr = errors.New("no issuer to check tokens against")
	case audience == "":
		v.configErr = errors.New("no audience to check tokens against")
	case len(v.keys.Keys) == 0:
		v.configErr = errors.New("no key to check tokens with")
	}
	return v
}

// Verify returns the claims of token if it is good. The error says why it is not, without
// quoting it.
func (v *Verifier) Verify(token string) (Claims, error) {
	if v.configErr != nil {
		return Claims{}, v.configErr
	}
	var p payload
	// The set tries its keys on the signature alone, so that what is wrong with the claims of
	// a token signed with the second is not hidden by the failure of the first.
	t, err := v.parser.ParseWithClaims(token, &p, func(*jwt.Token) (any, error) { return v.keys, nil })
	if err != nil {
		return Claims{}, describeError(err, t, &p)
	}
	p.claims.ExpiresAt = unixTime(*p.expires)
	return p.claims, nil
}

// why says in our own words what is wrong: those of the parser may quote the token.
func describeError(err error, t *jwt.Token, p *payload) error {
	if bad, ok := errors.AsType[claimError](err); ok {
		return bad
	}
	switch {
	case errors.Is(err, jwt.ErrTokenMalformed):
		return errors.New("malformed token")
	case errors.Is(err, jwt.ErrTokenUnverifiable), t.Method.Alg() != jwt.SigningMethodHS256.Alg():
		return errors.New("token not signed with HS256")
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return errors.New("token with a bad signature")
	}
	var wrong []string
	for _, w := range []struct {
		is   bool
		text string
	}{
		{p.expires == nil, "no exp"},
		{errors.Is(err, jwt.ErrTokenExpired), "expired"},
		{errors.Is(err, jwt.ErrTokenNotValidYet), "not valid yet"},
		{strings.Join(p.audience, "") == "" || errors.Is(err, jwt.ErrTokenInvalidAudience), "wrong audience"},
		{p.issuer == "" || errors.Is(err, jwt.ErrTokenInvalidIssuer), "wrong issuer"},
	} {
		if w.is {
			wrong = append(wrong, w.text)
		}
	}
	if wrong == nil {
		return errors.New("token with bad claims")
	}
	return errors.New("token refused: " + strings.Join(wrong, ", "))
}

type claimError string

func (e claimError) Error() string { return "token with a malformed claim: " + string(e) }

// payload is a [jwt.Claims] that is strict about what it reads.
type payload struct {
	claims             Claims
	issuer             string
	audience           jwt.ClaimStrings
	expires, notBefore *float64
}

// UnmarshalJSON takes names to the letter, as npm nodes do: to encoding/json, "Type" would
// be "type".
func (p *payload) UnmarshalJSON(b []byte) error {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(b, &all); err != nil {
		return err
	}
	for _, claim := range []struct {
		name string
		to   any
	}{
		{"iss", &p.issuer},
		{"aud", &p.audience},
		{"exp", &p.expires},
		{"nbf", &p.notBefore},
		{"sub", &p.claims.Subject},
		{"subType", &p.claims.SubType},
		{"type", &p.claims.Type},
		{"cust", &p.claims.Customer},
		{"scope", &p.claims.Scope},
	} {
		if raw, ok := all[claim.name]; ok && json.Unmarshal(raw, claim.to) != nil {
			return claimError(claim.name)
		}
	}
	if outOfRange(p.expires) {
		return claimError("exp")
	}
	if outOfRange(p.notBefore) {
		return claimError("nbf")
	}
	p.claims.Raw = bytes.Clone(b)
	return nil
}

// GetExpirationTime and the others below make payload a [jwt.Claims].
func (p *payload) GetExpirationTime() (*jwt.NumericDate, error) { return numericDate(p.expires), nil }

// GetNotBefore returns nbf.
func (p *payload) GetNotBefore() (*jwt.NumericDate, error) { return numericDate(p.notBefore), nil }

// GetIssuedAt returns nothing: when a token was issued doesn't matter here.
func (p *payload) GetIssuedAt() (*jwt.NumericDate, error) { return nil, nil }

// GetAudience returns aud.
func (p *payload) GetAudience() (jwt.ClaimStrings, error) { return p.audience, nil }

// GetIssuer returns iss.
func (p *payload) GetIssuer() (string, error) { return p.issuer, nil }

// GetSubject returns sub.
func (p *payload) GetSubject() (string, error) { return p.claims.Subject, nil }

func numericDate(seconds *float64) *jwt.NumericDate {
	if seconds == nil {
		return nil
	}
	return &jwt.NumericDate{Time: unixTime(*seconds)}
}

func outOfRange(seconds *float64) bool { return seconds != nil && math.Abs(*seconds) > maxUnix }

// public tells whether a key is one that its owner gives away.
func isPublicKey(key string) bool {
	return strings.Contains(key, "-----BEGIN") &&
		(strings.Contains(key, "PUBLIC KEY-----") || strings.Contains(key, "CERTIFICATE-----"))
}
