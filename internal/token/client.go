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
)

const (
	// assumedLife is that of a token of which nobody says how long it lives: short enough to
	// notice a change of rights, long enough to spare the issuer.
	assumedTTL = 5 * time.Minute

	maxUnix = 253402300799 // the last second of the year 9999: beyond it, an exp is no date
)

var errExpired = errors.New("the token is already expired")

// Client speaks mST's own dialect of OAuth2: JSON requests, and answers wrapped in data. All
// fields are read-only once it is in use.
type Client struct {
	ID, Secret string

	// Post sends body as JSON to the issuer. An answer that is no 2xx is an error.
	Post func(ctx context.Context, body any) ([]byte, error)

	// Refused tells whether an error of Post is a 400: then a refresh falls back to client
	// credentials. Nil: never.
	Refused func(error) bool
}

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

// Fetch is a [Fetch]: by refresh if there is one and the issuer takes it, else by client
// credentials. No error says what the secret or a token is; one from Post, unwrapped, may.
func (c Client) Fetch(ctx context.Context, key Key, refresh string) (*oauth2.Token, error) {
	if refresh != "" {
		tok, err := c.post(ctx, refreshRequest{refresh, "refresh_token"})
		if err == nil {
			if tok.RefreshToken == "" { // none in return: the old one goes on
				tok.RefreshToken = refresh
			}
			return tok, nil
		}
		if c.Refused == nil || !c.Refused(err) {
			return nil, redact(err, c.Secret, refresh)
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
		return nil, redact(err, c.Secret, refresh)
	}
	return tok, nil
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

// parse reads an answer: in data, as mST has it, or bare, as the standard has it. The errors
// are our own, since those of encoding/json quote what they trip over.
func parseResponse(b []byte, now time.Time) (*oauth2.Token, error) {
	var bare struct {
		tokenResponse
		Data json.RawMessage `json:"data"`
	}
	if !json.Valid(b) {
		return nil, errors.New("the answer is not JSON")
	}
	if json.Unmarshal(b, &bare) != nil {
		return nil, errors.New("the answer is not a JSON object")
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

// checkAccess refuses what can't stand in a header after Bearer.
func checkAccessToken(access string) error {
	if access == "" {
		return errors.New("no access_token")
	}
	if strings.IndexFunc(access, func(r rune) bool { return r <= ' ' || r > '~' }) >= 0 {
		return errors.New("access_token has characters that no header can carry")
	}
	return nil
}

// expiryOf returns the exp of a JWT, unverified: it is the issuer's word to us about its own
// token. It reports false for a token that has none, or is no JWT.
func expClaim(token string) (time.Time, bool, error) {
	claims := jwt.MapClaims{}
	_, _, err := jwt.NewParser().ParseUnverified(token, claims)
	if err != nil && !errors.Is(err, jwt.ErrTokenUnverifiable) { // an unknown algorithm doesn't matter here
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

// expiryIn counts expires_in, a number or the text of one, from now.
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

// hushed is an error whose text quoted a secret: there are servers that echo what they refuse.
type redactedError struct {
	text string
	err  error
}

func (h *redactedError) Error() string { return h.text }
func (h *redactedError) Unwrap() error { return h.err }

func redact(err error, secrets ...string) error {
	text := err.Error()
	for _, s := range secrets {
		if s != "" {
			text = strings.ReplaceAll(text, s, "…")
		}
	}
	if text == err.Error() {
		return err
	}
	return &redactedError{text, err}
}
