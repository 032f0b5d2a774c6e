package token

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Claims are the claims of a verified token.
type Claims struct {
	Subject   string // sub
	SubType   string // the caller's type of service
	Type      string // "cluster" if the token is one for peers
	Customer  string // cust
	ServerID  string // serverId: the only server that the token is for, or ""
	Scope     string
	ExpiresAt time.Time
	Raw       json.RawMessage // the payload as received
}

// MaxBytes is the length of the longest token that is accepted, from a caller and from the token
// service.
const MaxBytes = 16 << 10

// ErrTooLong is the error of a longer token.
var ErrTooLong = fmt.Errorf("token of more than %d bytes", MaxBytes)

// Leeway is the default for the difference between the clocks of the issuer and of this machine.
const Leeway = 10 * time.Second

// Verifier verifies tokens of the token service (mST). It is safe for concurrent use.
type Verifier struct {
	issuer, audience string
	methods          []string

	keys      jwt.VerificationKeySet
	parser    *jwt.Parser
	configErr error // if set, all tokens are rejected
}

// NewVerifier returns a Verifier of tokens from issuer for audience, signed with any of keys
// (HS256). It ignores empty keys and PEM public keys, which are not secret. A Verifier without a
// key, an issuer or an audience rejects every token.
//
// A token is valid from [Leeway] before its nbf to Leeway after its exp. Its iat does not matter.
func NewVerifier(issuer, audience string, keys ...string) *Verifier {
	v := NewMethodVerifier(issuer, audience, jwt.SigningMethodHS256.Alg())
	for _, key := range keys {
		if key != "" && !IsPublicKey(key) {
			v.keys.Keys = append(v.keys.Keys, []byte(key))
		}
	}
	if v.configErr == nil && len(v.keys.Keys) == 0 {
		v.configErr = errors.New("no key to check tokens with")
	}
	return v
}

// NewMethodVerifier returns a Verifier without keys, for [Verifier.VerifyBy], of tokens from issuer
// for audience that are signed with one of methods. Keys that fit several methods are not safe.
// Without an issuer or an audience, the Verifier rejects every token.
func NewMethodVerifier(issuer, audience string, methods ...string) *Verifier {
	v := &Verifier{issuer: issuer, audience: audience, methods: methods}
	switch { // the parser would accept any issuer or audience
	case issuer == "":
		v.configErr = errors.New("no issuer to check tokens against")
	case audience == "":
		v.configErr = errors.New("no audience to check tokens against")
	}
	return v.WithLeeway(Leeway)
}

// WithLeeway returns a copy of v with another leeway.
func (v *Verifier) WithLeeway(leeway time.Duration) *Verifier {
	other := *v
	other.parser = jwt.NewParser(
		jwt.WithValidMethods(v.methods),
		jwt.WithExpirationRequired(),
		jwt.WithIssuer(v.issuer),
		jwt.WithAudience(v.audience),
		jwt.WithLeeway(leeway),
	)
	return &other
}

// errCritical is the error of a token with a crit header. It names extensions that a recipient
// must understand (RFC 7515, section 4.1.11), and this one understands none.
var errCritical = errors.New("token with critical header parameters")

// Verify returns the claims of a valid token. The error does not quote the token.
func (v *Verifier) Verify(token string) (Claims, error) {
	// A key set tries its keys on the signature only. An error of the claims is then reported for
	// the key that signed the token.
	return v.VerifyBy(token, func(*jwt.Token) (any, error) { return v.keys, nil })
}

// VerifyBy is like Verify with the key that keyfunc returns. It returns an error of keyfunc as it
// is.
func (v *Verifier) VerifyBy(token string, keyfunc jwt.Keyfunc) (Claims, error) {
	if v.configErr != nil {
		return Claims{}, v.configErr
	}
	if len(token) > MaxBytes {
		return Claims{}, ErrTooLong
	}
	var (
		p      payload
		keyErr error
	)
	t, err := v.parser.ParseWithClaims(token, &p, func(t *jwt.Token) (key any, err error) {
		if _, critical := t.Header["crit"]; critical {
			keyErr = errCritical
			return nil, keyErr
		}
		key, keyErr = keyfunc(t)
		return key, keyErr
	})
	if keyErr != nil {
		return Claims{}, keyErr
	}
	if err != nil {
		return Claims{}, v.describeError(err, t, &p)
	}
	p.claims.ExpiresAt = unixTime(*p.expires)
	return p.claims, nil
}

var errMalformed = errors.New("malformed token")

// describeError replaces errors of the parser, which may quote the token.
func (v *Verifier) describeError(err error, t *jwt.Token, p *payload) error {
	switch {
	case p.err != nil:
		return p.err
	case errors.Is(err, jwt.ErrTokenMalformed):
		return errMalformed
	case errors.Is(err, jwt.ErrTokenUnverifiable), !slices.Contains(v.methods, t.Method.Alg()):
		return errors.New("token not signed with " + strings.Join(v.methods, " or "))
	case errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return errors.New("token with a bad signature")
	}
	var problems []string
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
			problems = append(problems, w.text)
		}
	}
	if problems == nil {
		return errors.New("token with bad claims")
	}
	return errors.New("token refused: " + strings.Join(problems, ", "))
}

type claimError string

func (e claimError) Error() string { return "token with a malformed claim: " + string(e) }

// payload implements [jwt.Claims] and rejects claims of a wrong type. They are decoded when the
// parser asks for the first of them, which it does for tokens with a valid signature only.
type payload struct {
	raw     []byte
	decoded bool
	err     error // why raw cannot be decoded

	claims             Claims
	issuer             string
	audience           jwt.ClaimStrings
	expires, notBefore *float64
}

// UnmarshalJSON keeps b, which is valid JSON.
func (p *payload) UnmarshalJSON(b []byte) error {
	p.raw = bytes.Clone(b)
	return nil
}

func (p *payload) decode() error {
	if !p.decoded {
		p.decoded, p.err = true, p.decodeRaw()
	}
	return p.err
}

// decodeRaw matches names exactly, as npm nodes do. encoding/json would accept "Type" as "type".
func (p *payload) decodeRaw() error {
	var all map[string]json.RawMessage
	if json.Unmarshal(p.raw, &all) != nil || all == nil {
		return errMalformed
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
		{"serverId", &p.claims.ServerID},
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
	p.claims.Raw = p.raw
	return nil
}

// GetExpirationTime returns exp.
func (p *payload) GetExpirationTime() (*jwt.NumericDate, error) {
	err := p.decode()
	return numericDate(p.expires), err
}

// GetNotBefore returns nbf.
func (p *payload) GetNotBefore() (*jwt.NumericDate, error) {
	err := p.decode()
	return numericDate(p.notBefore), err
}

// GetIssuedAt returns nil: iat is not checked.
func (p *payload) GetIssuedAt() (*jwt.NumericDate, error) { return nil, nil }

// GetAudience returns aud.
func (p *payload) GetAudience() (jwt.ClaimStrings, error) {
	err := p.decode()
	return p.audience, err
}

// GetIssuer returns iss.
func (p *payload) GetIssuer() (string, error) {
	err := p.decode()
	return p.issuer, err
}

// GetSubject returns sub.
func (p *payload) GetSubject() (string, error) {
	err := p.decode()
	return p.claims.Subject, err
}

func numericDate(seconds *float64) *jwt.NumericDate {
	if seconds == nil {
		return nil
	}
	return &jwt.NumericDate{Time: unixTime(*seconds)}
}

func outOfRange(seconds *float64) bool { return seconds != nil && math.Abs(*seconds) > maxUnix }
