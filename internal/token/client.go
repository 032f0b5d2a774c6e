package token

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/oauth2"

	"github.com/mimiktech/cluster/internal/redact"
)

// Client speaks the OAuth2 dialect of the token service (mST): JSON requests, and responses wrapped
// in data. Its fields must not be changed after the first use.
type Client struct {
	ID, Secret string

	// Post sends body as JSON to the issuer. A non-2xx response is an error.
	Post func(ctx context.Context, body any) ([]byte, error)

	// Refused reports whether an error of Post is a 400. A refresh then falls back to client
	// credentials. If nil, it never does.
	Refused func(error) bool
}

// Fetch implements [Fetch]. It uses the refresh token if there is one and the issuer accepts it,
// and client credentials otherwise. The text of an error is redacted.
func (c Client) Fetch(ctx context.Context, key Key, refresh string) (*oauth2.Token, error) {
	if refresh != "" {
		tok, err := c.post(ctx, refreshRequest{refresh, "refresh_token"})
		if err == nil {
			if tok.RefreshToken == "" { // the old one stays valid
				tok.RefreshToken = refresh
			}
			return tok, nil
		}
		if c.Refused == nil || !c.Refused(err) {
			return nil, hide(err, c.Secret, refresh)
		}
	}
	body := credentialsRequest{
		ClientID:     c.ID,
		ClientSecret: c.Secret,
		Audience:     key.Audience,
		GrantType:    "client_credentials",
		CustomerName: key.Customer,
	}
	if key.Cluster {
		body.Type = "cluster"
	}
	tok, err := c.post(ctx, body)
	if err != nil {
		return nil, hide(err, c.Secret, refresh)
	}
	return tok, nil
}

const (
	// assumedTTL is used for a token without an expiry: short enough to notice a change of rights,
	// long enough to limit the load of the issuer.
	assumedTTL = 5 * time.Minute

	maxUnix = 253402300799 // the last second of the year 9999, the limit of exp
)

var errExpired = errors.New("the token is already expired")

type credentialsRequest struct {
	ClientID     string `json:"client_id"`
	ClientSecret string `json:"client_secret"`
	Audience     string `json:"audience"`
	GrantType    string `json:"grant_type"`
	Type         string `json:"type,omitempty"`
	CustomerName string `json:"customer_name,omitempty"`
}

type refreshRequest struct {
	RefreshToken string `json:"refresh_token"`
	GrantType    string `json:"grant_type"`
}

func (c Client) post(ctx context.Context, body any) (*oauth2.Token, error) {
	b, err := c.Post(ctx, body)
	if err != nil {
		return nil, err
	}
	return parseResponse(b, time.Now())
}

type tokenResponse struct {
	AccessToken  json.RawMessage `json:"access_token"`
	RefreshToken json.RawMessage `json:"refresh_token"`
	ExpiresIn    json.RawMessage `json:"expires_in"`
}

// parseResponse decodes tokens wrapped in data, as mST sends them, or bare, as in the standard. It
// hides the errors of encoding/json, which quote their input.
func parseResponse(b []byte, now time.Time) (*oauth2.Token, error) {
	var bare struct {
		tokenResponse
		Data json.RawMessage `json:"data"`
	}
	if !json.Valid(b) {
		return nil, errors.New("the response is not JSON")
	}
	if json.Unmarshal(b, &bare) != nil {
		return nil, errors.New("the response is not a JSON object")
	}
	a := bare.tokenResponse
	var wrapped tokenResponse
	if json.Unmarshal(bare.Data, &wrapped) == nil && wrapped.AccessToken != nil {
		a = wrapped
	}

	var access, refresh string
	if a.AccessToken != nil && json.Unmarshal(a.AccessToken, &access) != nil {
		return nil, errors.New("access_token is not a string")
	}
	if err := checkAccessToken(access); err != nil {
		return nil, err
	}
	if a.RefreshToken != nil && json.Unmarshal(a.RefreshToken, &refresh) != nil {
		return nil, errors.New("refresh_token is not a string")
	}
	if len(refresh) > MaxBytes {
		refresh = "" // the next token is obtained with client credentials
	}
	expiry, ok, err := expClaim(access)
	if err == nil && !ok {
		expiry, err = decodeExpiresIn(a.ExpiresIn, now)
	}
	if err != nil {
		return nil, err
	}
	if !now.Before(expiry) {
		return nil, errExpired
	}
	return &oauth2.Token{AccessToken: access, RefreshToken: refresh, Expiry: expiry}, nil
}

// checkAccessToken rejects tokens that cannot be sent in a header.
func checkAccessToken(access string) error {
	if access == "" {
		return errors.New("no access_token")
	}
	if len(access) > MaxBytes {
		return ErrTooLong
	}
	if strings.IndexFunc(access, func(r rune) bool { return r <= ' ' || r > '~' }) >= 0 {
		return errors.New("access_token has characters that are not allowed in a header")
	}
	return nil
}

// expClaim returns the exp of a JWT, unverified, because the token comes from its issuer. It
// reports false for a token without exp and for one that is not a JWT.
func expClaim(token string) (time.Time, bool, error) {
	claims := jwt.MapClaims{}
	_, _, err := jwt.NewParser().ParseUnverified(token, claims)
	if err != nil && !errors.Is(err, jwt.ErrTokenUnverifiable) { // an unknown algorithm is fine
		return time.Time{}, false, nil
	}
	exp, ok := claims["exp"]
	if !ok || exp == nil {
		return time.Time{}, false, nil
	}
	seconds, ok := exp.(float64)
	if !ok {
		return time.Time{}, false, errors.New("the exp of the token is not a number")
	}
	if math.Abs(seconds) > maxUnix {
		return time.Time{}, false, errors.New("the exp of the token is out of range")
	}
	return unixTime(seconds), true, nil
}

// decodeExpiresIn decodes expires_in, seconds from now, as a number or a string.
func decodeExpiresIn(raw json.RawMessage, now time.Time) (time.Time, error) {
	var n json.Number
	if raw != nil && json.Unmarshal(raw, &n) != nil {
		return time.Time{}, errors.New("expires_in is not a number")
	}
	if n == "" {
		return now.Add(assumedTTL), nil
	}
	seconds, err := n.Float64()
	if err != nil || seconds < 0 || seconds >= math.MaxInt64/float64(time.Second) {
		return time.Time{}, errors.New("expires_in is out of range")
	}
	return now.Add(time.Duration(seconds * float64(time.Second))), nil
}

func unixTime(seconds float64) time.Time {
	whole, rest := math.Modf(seconds)
	return time.Unix(int64(whole), int64(rest*1e9))
}

// hide returns err without secrets in its text. Some servers echo requests.
func hide(err error, secrets ...string) error {
	if text := redact.Text(err.Error(), secrets...); text != err.Error() {
		return redact.NewError(text, err)
	}
	return err
}
