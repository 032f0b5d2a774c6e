package token

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
)

const key = "a key of HS256"

func sign(t testing.TB, claims jwt.MapClaims) string {
	t.Helper()
	s, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString([]byte(key))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var errRefused = errors.New("400")

// post records the requests and returns the responses in order.
type post struct {
	bodies    []string
	responses []any // string or error
}

func (p *post) post(_ context.Context, body any) ([]byte, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	p.bodies = append(p.bodies, string(b))
	a := p.responses[0]
	p.responses = p.responses[1:]
	if err, ok := a.(error); ok {
		return nil, err
	}
	return []byte(a.(string)), nil
}

func (p *post) client() Client {
	return Client{
		ID:      "id",
		Secret:  "s3cret",
		Post:    p.post,
		Refused: func(err error) bool { return errors.Is(err, errRefused) },
	}
}

func TestRequestBodies(t *testing.T) {
	const (
		good      = `{"data":{"access_token":"new","refresh_token":"r2"}}`
		plain     = `{"client_id":"id","client_secret":"s3cret","audience":"mds","grant_type":"client_credentials"}`
		refreshed = `{"refresh_token":"r1","grant_type":"refresh_token"}`
	)
	for name, tt := range map[string]struct {
		key       Key
		refresh   string
		responses []any
		bodies    []string
		err       string
		renewed   string // the refresh token that comes back
	}{
		"plain": {
			key: Key{Audience: "mds"}, responses: []any{good}, bodies: []string{plain}, renewed: "r2",
		},
		"cluster": {
			key: Key{Audience: "mds", Cluster: true}, responses: []any{good}, renewed: "r2",
			bodies: []string{strings.TrimSuffix(plain, "}") + `,"type":"cluster"}`},
		},
		"customer": {
			key: Key{Audience: "mds", Cluster: true, Customer: "c"}, responses: []any{good}, renewed: "r2",
			bodies: []string{strings.TrimSuffix(plain, "}") + `,"type":"cluster","customer_name":"c"}`},
		},
		"refresh": {
			key: Key{Audience: "mds"}, refresh: "r1", responses: []any{good}, bodies: []string{refreshed}, renewed: "r2",
		},
		"refresh, none in return": {
			refresh: "r1", responses: []any{`{"access_token":"new"}`}, bodies: []string{refreshed}, renewed: "r1",
		},
		"refresh refused": {
			key: Key{Audience: "mds"}, refresh: "r1", responses: []any{errRefused, good},
			bodies: []string{refreshed, plain}, renewed: "r2",
		},
		"refresh failed otherwise": {
			refresh: "r1", responses: []any{errDown}, bodies: []string{refreshed}, err: "down",
		},
		"both refused": {
			key: Key{Audience: "mds"}, refresh: "r1", responses: []any{errRefused, errRefused},
			bodies: []string{refreshed, plain}, err: "400",
		},
		"an error that echoes": {
			key: Key{Audience: "mds"}, responses: []any{fmt.Errorf("%w: bad body %s", errRefused, plain)},
			bodies: []string{plain},
			err:    `400: bad body {"client_id":"id","client_secret":"[redacted]","audience":"mds","grant_type":"client_credentials"}`,
		},
		"an error that echoes the refresh token": {
			refresh: "r1", responses: []any{fmt.Errorf("%w: %s", errDown, refreshed)}, bodies: []string{refreshed},
			err: `down: {"refresh_token":"[redacted]","grant_type":"refresh_token"}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := &post{responses: tt.responses}
			tok, err := p.client().Fetch(t.Context(), tt.key, tt.refresh)
			if diff := cmp.Diff(tt.bodies, p.bodies); diff != "" {
				t.Errorf("bodies (-want +got):\n%s", diff)
			}
			if tt.err != "" {
				if err == nil || err.Error() != tt.err || !errors.Is(err, errRefused) && !errors.Is(err, errDown) {
					t.Errorf("error %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if tok.AccessToken != "new" || tok.RefreshToken != tt.renewed {
				t.Errorf("access %q, refresh %q, want new, %q", tok.AccessToken, tok.RefreshToken, tt.renewed)
			}
		})
	}
	t.Run("without Refused", func(t *testing.T) {
		p := &post{responses: []any{errRefused}}
		client := p.client()
		client.Refused = nil
		if _, err := client.Fetch(t.Context(), peers(), "r1"); !errors.Is(err, errRefused) {
			t.Errorf("error %v", err)
		}
	})
}

func TestParseResponse(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	exp := func(v any) string { return sign(t, jwt.MapClaims{"exp": v}) }
	hour := exp(now.Add(time.Hour).Unix())
	es256k := strings.Replace(hour, hour[:strings.Index(hour, ".")], "eyJhbGciOiJFUzI1NksifQ", 1)
	data := func(access, rest string) string { return fmt.Sprintf(`{"data":{"access_token":%q%s}}`, access, rest) }

	for name, tt := range map[string]struct {
		response string
		ttl      time.Duration
		err      string
	}{
		"in data":                  {data(hour, ""), time.Hour, ""},
		"bare":                     {fmt.Sprintf(`{"access_token":%q}`, hour), time.Hour, ""},
		"bare with other data":     {fmt.Sprintf(`{"access_token":%q,"data":"x"}`, hour), time.Hour, ""},
		"bare with empty data":     {fmt.Sprintf(`{"access_token":%q,"data":{}}`, hour), time.Hour, ""},
		"exp before expires_in":    {data(hour, `,"expires_in":60`), time.Hour, ""},
		"an algorithm unknown":     {data(es256k, ""), time.Hour, ""},
		"a JWT without exp":        {data(sign(t, jwt.MapClaims{}), `,"expires_in":60`), time.Minute, ""},
		"opaque":                   {data("opaque", `,"expires_in":60`), time.Minute, ""},
		"expires_in as text":       {data("opaque", `,"expires_in":"60"`), time.Minute, ""},
		"expires_in with fraction": {data("opaque", `,"expires_in":0.5`), time.Second / 2, ""},
		"expires_in null":          {data("opaque", `,"expires_in":null,"refresh_token":null`), assumedTTL, ""},
		"no expiry":                {data("opaque", ""), assumedTTL, ""},

		"empty":                {"", 0, "the response is not JSON"},
		"HTML":                 {"<html>", 0, "the response is not JSON"},
		"cut off":              {`{"data":{"access_token":"t0ken"`, 0, "the response is not JSON"},
		"an array":             {`["t0ken"]`, 0, "the response is not a JSON object"},
		"null":                 {`null`, 0, "no access_token"},
		"nothing":              {`{}`, 0, "no access_token"},
		"nothing in data":      {`{"data":{}}`, 0, "no access_token"},
		"empty token":          {data("", ""), 0, "no access_token"},
		"a number":             {`{"access_token":12345}`, 0, "access_token is not a string"},
		"a refresh number":     {data("t0ken", `,"refresh_token":12345`), 0, "refresh_token is not a string"},
		"a new line":           {data("t0ken\r\nx: y", ""), 0, "access_token has characters that are not allowed in a header"},
		"NUL":                  {`{"access_token":"t0ken\u0000"}`, 0, "access_token has characters that are not allowed in a header"},
		"not ASCII":            {data("t0kén", ""), 0, "access_token has characters that are not allowed in a header"},
		"not UTF-8":            {"{\"access_token\":\"t0ken\xff\"}", 0, "access_token has characters that are not allowed in a header"},
		"exp in the past":      {data(exp(now.Unix()), ""), 0, "the token is already expired"},
		"exp negative":         {data(exp(-5), ""), 0, "the token is already expired"},
		"exp huge":             {data(exp(1e300), ""), 0, "the exp of the token is out of range"},
		"exp in milliseconds":  {data(exp(now.UnixMilli()), ""), 0, "the exp of the token is out of range"},
		"exp as text":          {data(exp("tomorrow"), ""), 0, "the exp of the token is not a number"},
		"expires_in zero":      {data("t0ken", `,"expires_in":0`), 0, "the token is already expired"},
		"expires_in negative":  {data("t0ken", `,"expires_in":-1`), 0, "expires_in is out of range"},
		"expires_in huge":      {data("t0ken", `,"expires_in":1e300`), 0, "expires_in is out of range"},
		"expires_in beyond":    {data("t0ken", `,"expires_in":1e999`), 0, "expires_in is out of range"},
		"expires_in as a word": {data("t0ken", `,"expires_in":"NaN"`), 0, "expires_in is not a number"},
		"expires_in empty":     {data("t0ken", `,"expires_in":""`), 0, "expires_in is not a number"},
		"expires_in an object": {data("t0ken", `,"expires_in":{}`), 0, "expires_in is not a number"},
	} {
		t.Run(name, func(t *testing.T) {
			tok, err := parseResponse([]byte(tt.response), now)
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Errorf("error %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if ttl := tok.Expiry.Sub(now); ttl != tt.ttl {
				t.Errorf("its TTL is %v, want %v", ttl, tt.ttl)
			}
		})
	}
}

// A cache over a client, as they are used.
func TestClientInCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		response := func(n int) string {
			exp := time.Now().Add(time.Duration(n) * time.Hour).Unix()
			return fmt.Sprintf(`{"data":{"access_token":%q,"refresh_token":%q}}`,
				sign(t, jwt.MapClaims{"exp": exp, "n": n}), sign(t, jwt.MapClaims{"exp": exp + 3600}))
		}
		p := &post{responses: []any{response(1), errRefused, response(2), errDown, response(3)}}
		c := NewCache(t.Context(), p.client().Fetch)
		seen := map[string]bool{}
		for _, wait := range []time.Duration{0, 46 * time.Minute, time.Hour, retryInterval} {
			time.Sleep(wait)
			tok, err := c.Token(t.Context(), peers())
			if err != nil {
				t.Fatal(err)
			}
			seen[tok] = true
		}
		if len(seen) != 3 || len(p.bodies) != 5 {
			t.Errorf("%d tokens by %d requests, want 3 by 5", len(seen), len(p.bodies))
		}
	})
}

func FuzzParseResponse(f *testing.F) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	jot := sign(f, jwt.MapClaims{"exp": now.Add(time.Hour).Unix()})
	for _, seed := range []string{
		``, `null`, `[]`, `{"data":{"access_token":"a","refresh_token":"b","expires_in":60}}`,
		`{"access_token":"a","expires_in":"1e3"}`, `{"data":{"access_token":"` + jot + `"}}`,
		`{"data":null,"access_token":"a.b.c","expires_in":-1}`, `{"access_token":"a\u0000\n"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		tok, err := parseResponse(b, now)
		if err != nil {
			if tok != nil {
				t.Error("a token and an error")
			}
			return
		}
		if tok.Expiry.IsZero() || !tok.Expiry.After(now) {
			t.Errorf("expires %v", tok.Expiry)
		}
		if err := checkAccessToken(tok.AccessToken); err != nil {
			t.Error(err)
		}
		e, err := newEntry(tok, now)
		if err != nil || !e.fresh(now) {
			t.Errorf("due as soon as it is there: %+v, %v", e, err)
		}
	})
}
