package mit_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/mimiktech/cluster/internal/token"
	"github.com/mimiktech/cluster/mit"
)

type tokens struct {
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token"`
	TokenType    string `json:"token_type"`
	ExpiresIn    int    `json:"expires_in"`
}

func postJSON(tb testing.TB, s *mit.TokenService, req any) response {
	tb.Helper()
	b, err := json.Marshal(req)
	if err != nil {
		tb.Fatal(err)
	}
	return send(s, http.MethodPost, issuer, "", string(b))
}

// requestTokens is the pair of tokens that a good request is answered with.
func requestTokens(tb testing.TB, s *mit.TokenService, req map[string]string) tokens {
	tb.Helper()
	a := postJSON(tb, s, req)
	if a.status != http.StatusOK {
		tb.Fatalf("%d %s", a.status, a.body)
	}
	return decode[struct{ Data tokens }](tb, a).Data
}

func credentials(more ...string) map[string]string {
	req := map[string]string{
		"grant_type": "client_credentials", "client_id": "mds-client", "client_secret": secret, "audience": "peers",
	}
	for pair := range slices.Chunk(more, 2) {
		req[pair[0]] = pair[1]
	}
	return req
}

func claimsOf(tb testing.TB, raw string) jwt.MapClaims {
	tb.Helper()
	claims := jwt.MapClaims{}
	if _, _, err := jwt.NewParser().ParseUnverified(raw, claims); err != nil {
		tb.Fatal(err)
	}
	return claims
}

func TestTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTokens(t, nil)
		now := time.Now()
		for name, test := range map[string]struct {
			req  map[string]string
			want map[string]any
		}{
			"plain":    {credentials(), map[string]any{"subType": "mds", "scope": mit.DefaultScope, "type": nil, "cust": nil}},
			"cluster":  {credentials("type", "cluster"), map[string]any{"subType": "mds", "type": "cluster"}},
			"customer": {credentials("customer_name", "acme"), map[string]any{"cust": "acme", "type": nil}},
			"scope": {credentials("client_id", "mfs-client"), map[string]any{
				"sub": "mfs-client@clients", "subType": "mfs", "scope": "read:file",
			}},
		} {
			got := requestTokens(t, s, test.req)
			if got.TokenType != "Bearer" || got.ExpiresIn != 24*60*60 {
				t.Errorf("%s: %+v", name, got)
			}
			refreshed := requestTokens(t, s, map[string]string{"grant_type": "refresh_token", "refresh_token": got.RefreshToken})
			for _, pair := range []tokens{got, refreshed} {
				claims := claimsOf(t, pair.AccessToken)
				want := map[string]any{
					"iss": issuer, "aud": "peers", "sub": "mds-client@clients",
					"iat": float64(now.Unix()), "exp": float64(now.Add(24 * time.Hour).Unix()),
				}
				maps.Copy(want, test.want)
				for k, v := range want {
					if claims[k] != v {
						t.Errorf("%s: %s = %v, want %v", name, k, claims[k], v)
					}
				}
				if exp := claimsOf(t, pair.RefreshToken)["exp"]; exp != float64(now.Add(30*24*time.Hour).Unix()) {
					t.Errorf("%s: refresh token has exp %v", name, exp)
				}
			}
			if claimsOf(t, got.AccessToken)["jti"] == claimsOf(t, refreshed.AccessToken)["jti"] {
				t.Errorf("%s: two tokens with one jti", name)
			}
		}
	})
}

func TestTokenRequestsRejected(t *testing.T) {
	s := newTokens(t, nil)
	access := requestTokens(t, s, credentials("audience", issuer)).AccessToken
	otherIssuer := requestTokens(t, newTokens(t, func(c *mit.TokenConfig) { c.Key = "another" }), credentials()).RefreshToken
	elsewhere := requestTokens(t, newTokens(t, func(c *mit.TokenConfig) { c.Issuer = "http://elsewhere" }), credentials()).RefreshToken
	stranger := newTokens(t, func(c *mit.TokenConfig) { c.Clients[0].ID = "stranger" })
	unknown := requestTokens(t, stranger, credentials("client_id", "stranger")).RefreshToken
	none, err := jwt.NewWithClaims(jwt.SigningMethodNone, jwt.MapClaims{
		"iss": issuer, "aud": issuer, "sub": "mds-client@clients", "exp": time.Now().Add(time.Hour).Unix(),
	}).SignedString(jwt.UnsafeAllowNoneSignatureType)
	if err != nil {
		t.Fatal(err)
	}
	refresh := func(token string) map[string]string {
		return map[string]string{"grant_type": "refresh_token", "refresh_token": token}
	}
	for name, test := range map[string]struct {
		req    map[string]string
		status int
		oauth  string
	}{
		"unknown client":        {credentials("client_id", "unknown"), 401, "invalid_client"},
		"no client":             {credentials("client_id", ""), 401, "invalid_client"},
		"wrong secret":          {credentials("client_secret", secret+"x"), 401, "invalid_client"},
		"no secret":             {credentials("client_secret", ""), 401, "invalid_client"},
		"unknown, no secret":    {credentials("client_id", "unknown", "client_secret", ""), 401, "invalid_client"},
		"no audience":           {credentials("audience", ""), 400, "invalid_request"},
		"unknown type":          {credentials("type", "admin"), 400, "invalid_request"},
		"no grant":              {credentials("grant_type", ""), 400, "unsupported_grant_type"},
		"unsupported grant":     {credentials("grant_type", "password"), 400, "unsupported_grant_type"},
		"no refresh token":      {refresh(""), 400, "invalid_grant"},
		"no JWT":                {refresh("x.y.z"), 400, "invalid_grant"},
		"access token":          {refresh(access), 400, "invalid_grant"},
		"another key":           {refresh(otherIssuer), 400, "invalid_grant"},
		"another issuer":        {refresh(elsewhere), 400, "invalid_grant"},
		"client is gone":        {refresh(unknown), 400, "invalid_grant"},
		"unsigned":              {refresh(none), 400, "invalid_grant"},
		"secret in wrong field": {map[string]string{"grant_type": secret}, 400, "unsupported_grant_type"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTokens(t, nil) // without the wrong secrets of other tests
			a := postJSON(t, s, test.req)
			checkError(t, a, test.status)
			form := url.Values{}
			for k, v := range test.req {
				form.Set(k, v)
			}
			b := postForm(s, form, nil)
			checkError(t, b, test.status)
			if got := decode[struct{ Error string }](t, b).Error; got != test.oauth {
				t.Errorf("error %q, want %q", got, test.oauth)
			}
			for _, a := range []response{a, b} {
				for _, s := range []string{secret, key, access, otherIssuer, none} {
					if strings.Contains(a.body, s) {
						t.Errorf("the response contains a secret: %s", a.body)
					}
				}
			}
		})
	}
}

func TestTokenBodies(t *testing.T) {
	s := newTokens(t, nil)
	for name, test := range map[string]struct {
		method, contentType, body string
		status                    int
	}{
		"empty":           {"POST", "application/json", "", 400},
		"no JSON":         {"POST", "application/json", "{", 400},
		"wrong kind":      {"POST", "application/json", `{"client_secret":7}`, 400},
		"null":            {"POST", "application/json", "null", 400},
		"no form":         {"POST", "application/x-www-form-urlencoded", "%", 400},
		"empty form":      {"POST", "application/x-www-form-urlencoded; charset=utf-8", "", 400},
		"odd type":        {"POST", ";", "{}", 400},
		"too large":       {"POST", "application/json", `"` + strings.Repeat("a", 1<<20), 413},
		"too large form":  {"POST", "application/x-www-form-urlencoded", "a=" + strings.Repeat("a", 1<<20), 413},
		"GET":             {"GET", "application/json", "", 405},
		"form by GET":     {"GET", "application/x-www-form-urlencoded", "", 405},
		"good, no header": {"POST", "", `{"grant_type":"client_credentials","client_id":"mds-client","client_secret":"` + secret + `","audience":"x","new":{}}`, 200},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(test.method, issuer, strings.NewReader(test.body))
			r.Header.Set("Content-Type", test.contentType)
			r.Header.Set("X-Correlation-Id", "abc@0/2026-01-02T03:04:05.678Z")
			a := exchange(s, r)
			if test.status == http.StatusOK {
				if a.status != http.StatusOK {
					t.Errorf("%d %s", a.status, a.body)
				}
			} else {
				checkError(t, a, test.status)
			}
			if got := a.header.Get("X-Correlation-Id"); got != "abc@1/2026-01-02T03:04:05.678Z" {
				t.Errorf("correlation id %q", got)
			}
			if a.header.Get("Cache-Control") != "no-store" {
				t.Error("the response may be cached")
			}
		})
	}
}

func postForm(s *mit.TokenService, form url.Values, change func(*http.Request)) response {
	r := httptest.NewRequest(http.MethodPost, issuer, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if change != nil {
		change(r)
	}
	return exchange(s, r)
}

// handlerTransport is an http.RoundTripper that asks the handler itself.
type handlerTransport struct{ http.Handler }

func (h handlerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result(), nil
}

// A client of the standard kind gets its tokens by a form.
func TestPlainOAuth2(t *testing.T) {
	odd := "a+b c&d=%é:"
	s := newTokens(t, func(c *mit.TokenConfig) {
		c.Clients = append(c.Clients, mit.Client{ID: odd, Secret: odd, Type: "mds"})
	})
	ctx := context.WithValue(t.Context(), oauth2.HTTPClient, &http.Client{Transport: handlerTransport{s}})
	for _, style := range []oauth2.AuthStyle{oauth2.AuthStyleAutoDetect, oauth2.AuthStyleInHeader, oauth2.AuthStyleInParams} {
		cfg := clientcredentials.Config{
			ClientID: odd, ClientSecret: odd, TokenURL: issuer, AuthStyle: style,
			EndpointParams: url.Values{"audience": {"peers"}, "type": {"cluster"}},
		}
		got, err := cfg.Token(ctx)
		if err != nil {
			t.Fatalf("style %d: %v", style, err)
		}
		claims, err := token.NewVerifier(issuer, "peers", key).Verify(got.AccessToken)
		if err != nil || claims.Type != "cluster" || claims.SubType != "mds" || got.RefreshToken == "" || got.Type() != "Bearer" {
			t.Errorf("style %d: %+v, %v", style, claims, err)
		}
	}
	cfg := clientcredentials.Config{ClientID: odd, ClientSecret: "wrong", TokenURL: issuer, AuthStyle: oauth2.AuthStyleInHeader}
	if _, err := cfg.Token(ctx); err == nil || !strings.Contains(err.Error(), "invalid_client") {
		t.Errorf("wrong secret: %v", err)
	}
	a := postForm(s, url.Values{"grant_type": {"client_credentials"}, "audience": {"peers"}}, func(r *http.Request) { r.SetBasicAuth("%", "%") })
	checkError(t, a, 401)
	if a.header.Get("WWW-Authenticate") == "" {
		t.Error("a 401 without WWW-Authenticate")
	}
}

// A refresh token is never good as an access token, even where a deployment gives all parties
// one audience.
func TestRefreshTokenIsNotAnAccessToken(t *testing.T) {
	s := newTokens(t, nil)
	pair := requestTokens(t, s, credentials("audience", issuer))
	v := token.NewVerifier(issuer, issuer, key)
	if _, err := v.Verify(pair.AccessToken); err != nil {
		t.Errorf("access token: %v", err)
	}
	if _, err := v.Verify(pair.RefreshToken); err == nil {
		t.Error("a refresh token was taken for an access token")
	}
	a := postJSON(t, s, map[string]string{"grant_type": "refresh_token", "refresh_token": pair.AccessToken})
	checkError(t, a, 400)
}

func TestTokenTTLs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTokens(t, func(c *mit.TokenConfig) { c.AccessTokenTTL, c.RefreshTokenTTL = time.Minute, time.Hour })
		pair := requestTokens(t, s, credentials())
		if pair.ExpiresIn != 60 {
			t.Errorf("expires_in %d", pair.ExpiresIn)
		}
		v := token.NewVerifier(issuer, "peers", key).WithLeeway(0)
		refresh := map[string]string{"grant_type": "refresh_token", "refresh_token": pair.RefreshToken}
		time.Sleep(time.Minute - time.Second)
		if _, err := v.Verify(pair.AccessToken); err != nil {
			t.Errorf("before its time: %v", err)
		}
		time.Sleep(time.Second)
		if _, err := v.Verify(pair.AccessToken); err == nil {
			t.Error("the access token outlived its time")
		}
		time.Sleep(58 * time.Minute)
		requestTokens(t, s, refresh)
		time.Sleep(time.Minute)
		checkError(t, postJSON(t, s, refresh), 400)
	})
}

func TestSetKey(t *testing.T) {
	s := newTokens(t, nil)
	first := requestTokens(t, s, credentials())
	refresh := map[string]string{"grant_type": "refresh_token", "refresh_token": first.RefreshToken}
	if err := s.SetKey(""); err == nil {
		t.Error("an empty key was taken")
	}
	if err := s.SetKey("second"); err != nil {
		t.Fatal(err)
	}
	second := requestTokens(t, s, refresh)
	if _, err := token.NewVerifier(issuer, "peers", "second").Verify(second.AccessToken); err != nil {
		t.Errorf("signed with the new key: %v", err)
	}
	if err := s.SetKey("third"); err != nil {
		t.Fatal(err)
	}
	checkError(t, postJSON(t, s, refresh), 400)
}

func TestSetClient(t *testing.T) {
	s := newTokens(t, nil)
	if err := s.SetClient(mit.Client{ID: "new"}); err == nil {
		t.Error("a client without secret and type was taken")
	}
	if err := s.SetClient(mit.Client{ID: "mds-client", Secret: "changed", Type: "mds"}); err != nil {
		t.Fatal(err)
	}
	checkError(t, postJSON(t, s, credentials()), 401)
	pair := requestTokens(t, s, credentials("client_secret", "changed"))
	s.RemoveClient("mds-client")
	checkError(t, postJSON(t, s, credentials("client_secret", "changed")), 401)
	checkError(t, postJSON(t, s, map[string]string{"grant_type": "refresh_token", "refresh_token": pair.RefreshToken}), 400)
}

func refreshRequest(pair tokens) map[string]string {
	return map[string]string{"grant_type": "refresh_token", "refresh_token": pair.RefreshToken}
}

// Refresh tokens end with the secret with which the first one was requested.
func TestRefreshTokensEndWithTheSecret(t *testing.T) {
	s := newTokens(t, nil)
	first := requestTokens(t, s, credentials())
	second := requestTokens(t, s, refreshRequest(first))
	if err := s.SetClient(mit.Client{ID: "mds-client", Secret: "changed", Type: "mds"}); err != nil {
		t.Fatal(err)
	}
	for _, pair := range []tokens{first, second} {
		checkError(t, postJSON(t, s, refreshRequest(pair)), 400)
	}
	if err := s.SetClient(mit.Client{ID: "mds-client", Secret: secret, Type: "mds"}); err != nil {
		t.Fatal(err)
	}
	requestTokens(t, s, refreshRequest(second))
}

// A refresh does not extend the time after which the secret is needed again.
func TestRefreshTokensHaveOneEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTokens(t, func(c *mit.TokenConfig) { c.RefreshTokenTTL = 10 * time.Hour })
		pair := requestTokens(t, s, credentials())
		for range 9 {
			time.Sleep(time.Hour)
			pair = requestTokens(t, s, refreshRequest(pair))
		}
		time.Sleep(time.Hour)
		checkError(t, postJSON(t, s, refreshRequest(pair)), 400)
	})
}

// The second use of a refresh token ends all that descend from the same request, except for a retry
// whose first response was lost.
func TestRefreshTokenReuse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.WarnLevel)
		s := newTokens(t, func(c *mit.TokenConfig) { c.Logger = zap.New(core) })
		other := requestTokens(t, s, credentials())
		first := requestTokens(t, s, credentials())
		requestTokens(t, s, refreshRequest(first))
		time.Sleep(20 * time.Second)
		second := requestTokens(t, s, refreshRequest(first)) // a retry
		third := requestTokens(t, s, refreshRequest(second))
		time.Sleep(time.Minute)
		checkError(t, postJSON(t, s, refreshRequest(first)), 400)
		checkError(t, postJSON(t, s, refreshRequest(third)), 400)
		if n := logs.FilterField(zap.String("clientId", "mds-client")).Len(); n != 2 {
			t.Errorf("%d lines name the client: %v", n, logs.All())
		}
		requestTokens(t, s, refreshRequest(other))
		requestTokens(t, s, credentials())
	})
}

// In the first hour, about 70 secrets of one client are checked for an address, and 165 of any
// number of clients. Then it is one a minute. A guesser that pauses until its delay is short again
// has no more secrets checked.
func TestGuessesPerHour(t *testing.T) {
	const hours, perHour = 10, 60
	one := func(int) string { return "mds-client" }
	many := func(i int) string { return fmt.Sprint("client-", i) }
	for name, test := range map[string]struct {
		client   func(i int) string
		pause    time.Duration // after a delay was requested; 0: the delay
		min, max int           // in the first hour
	}{
		"one client":                     {one, 0, 65, 75},
		"one client, short pauses":       {one, 6 * time.Minute, 50, 75},
		"one client, long pauses":        {one, 16 * time.Minute, 10, 75},
		"many clients":                   {many, 0, 160, 168},
		"many clients, short pauses":     {many, 6 * time.Minute, 140, 168},
		"many clients, long pauses":      {many, 16 * time.Minute, 140, 168},
		"many clients, very long pauses": {many, 100 * time.Minute, 100, 168},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newTokens(t, nil)
				var checked [hours]int
				began := time.Now()
				for i := 0; time.Since(began) < hours*time.Hour; i++ {
					switch a := postJSON(t, s, credentials("client_id", test.client(i), "client_secret", fmt.Sprint("guess ", i))); a.status {
					case http.StatusUnauthorized:
						checked[time.Since(began)/time.Hour]++
					case http.StatusTooManyRequests:
						delay, err := strconv.Atoi(a.header.Get("Retry-After"))
						if err != nil || delay > 60 {
							t.Fatalf("a delay of %d s, %v", delay, err)
						}
						time.Sleep(max(test.pause, time.Duration(delay)*time.Second))
					default:
						t.Fatalf("%d %s", a.status, a.body)
					}
				}
				total := 0
				for _, n := range checked {
					total += n
				}
				t.Logf("%d secrets checked, by hours %d", total, checked)
				if checked[0] < test.min || checked[0] > test.max || total > test.max+(hours-1)*perHour {
					t.Errorf("%d secrets were checked in %d hours, %d in the first, want %d to %d, and then %d an hour",
						total, hours, checked[0], test.min, test.max, perHour)
				}
			})
		})
	}
}

// What is kept of a wrong secret does not depend on the length of the client's id.
func TestWrongSecretsTakeLittleMemory(t *testing.T) {
	const ids, maxPerID = 2000, 512
	s := newTokens(t, nil)
	form := "grant_type=client_credentials&audience=x&client_secret=guess&client_id=" + strings.Repeat("x", 60_000)
	before := liveHeap()
	for i := range ids {
		r := httptest.NewRequest(http.MethodPost, issuer, strings.NewReader(form+strconv.Itoa(i)))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.RemoteAddr = fmt.Sprintf("10.0.0.%d:1234", i%200)
		w := countingWriter{header: http.Header{}}
		if s.ServeHTTP(&w, r); w.status != http.StatusUnauthorized {
			t.Fatalf("request %d: %d", i, w.status)
		}
	}
	after := liveHeap() - before
	t.Logf("%d bytes for each id", after/ids)
	if after > ids*maxPerID {
		t.Errorf("%d bytes are live after %d wrong secrets", after, ids)
	}
	runtime.KeepAlive(s)
}

// Wrong secrets delay their client at their address. Another address and another client are not
// delayed.
func TestWrongSecretsAreDelayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.WarnLevel)
		s := newTokens(t, func(c *mit.TokenConfig) { c.Logger = zap.New(core) })
		wrong := credentials("client_secret", "guess")
		for range 20 {
			switch a := postJSON(t, s, wrong); a.status {
			case http.StatusUnauthorized:
			case http.StatusTooManyRequests:
				if a.header.Get("Retry-After") == "" {
					t.Error("a 429 without Retry-After")
				}
			default:
				t.Fatalf("%d %s", a.status, a.body)
			}
			time.Sleep(500 * time.Millisecond)
		}
		checkError(t, postJSON(t, s, credentials()), http.StatusTooManyRequests)
		requestTokens(t, s, credentials("client_id", "mfs-client"))
		r := httptest.NewRequest(http.MethodPost, issuer, strings.NewReader(url.Values{
			"grant_type": {"client_credentials"}, "client_id": {"mds-client"}, "client_secret": {secret}, "audience": {"x"},
		}.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.RemoteAddr = "10.0.0.1:1234"
		if a := exchange(s, r); a.status != http.StatusOK {
			t.Errorf("from another address: %d %s", a.status, a.body)
		}
		time.Sleep(time.Minute)
		requestTokens(t, s, credentials())
		e := logs.All()[0].ContextMap()
		if e["clientId"] != "mds-client" || e["remoteAddress"] != "192.0.2.1:1234" {
			t.Errorf("a line of the log does not name client and address: %v", e)
		}

		for i := range 150 { // unknown clients
			postJSON(t, s, credentials("client_id", fmt.Sprint(i)))
		}
		checkError(t, postJSON(t, s, credentials()), http.StatusTooManyRequests)
		open := newTokens(t, func(c *mit.TokenConfig) { c.NoGuessDelay = true })
		for range 200 {
			checkError(t, postJSON(t, open, wrong), http.StatusUnauthorized)
		}
	})
}

func TestClientMayRequest(t *testing.T) {
	limited := mit.Client{ID: "limited", Secret: secret, Type: "mds", Audiences: []string{"peers", "mIT"}, Customers: []string{"acme"}}
	s := newTokens(t, func(c *mit.TokenConfig) { c.Clients = append(c.Clients, limited) })
	pair := requestTokens(t, s, credentials("client_id", "limited", "customer_name", "acme"))
	requestTokens(t, s, credentials("client_id", "limited", "audience", "mIT"))
	checkError(t, postJSON(t, s, credentials("client_id", "limited", "audience", "other")), 400, "audience")
	checkError(t, postJSON(t, s, credentials("client_id", "limited", "customer_name", "other")), 400, "customer_name")
	requestTokens(t, s, credentials("audience", "other", "customer_name", "other"))
	limited.Audiences = []string{"mIT"}
	if err := s.SetClient(limited); err != nil {
		t.Fatal(err)
	}
	checkError(t, postJSON(t, s, refreshRequest(pair)), 400, "audience")
}

func TestTokenLog(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	s := newTokens(t, func(c *mit.TokenConfig) { c.Logger = zap.New(core) })
	pair := requestTokens(t, s, credentials())
	requestTokens(t, s, map[string]string{"grant_type": "refresh_token", "refresh_token": pair.RefreshToken})
	postJSON(t, s, credentials("client_id", secret))
	postJSON(t, s, map[string]string{"grant_type": "refresh_token", "refresh_token": pair.AccessToken})
	postJSON(t, s, map[string]any{"client_secret": []string{secret}})
	if logs.FilterMessage("token issued").Len() != 2 || logs.FilterMessage("token request rejected").Len() != 3 {
		t.Errorf("logged %v", logs.All())
	}
	for _, e := range logs.All() {
		line := fmt.Sprint(e.Message, e.ContextMap())
		for _, s := range []string{secret, key, pair.AccessToken, pair.RefreshToken} {
			if strings.Contains(line, s) {
				t.Errorf("a secret in the log: %s", line)
			}
		}
		if e.ContextMap()["correlationId"] == nil {
			t.Errorf("no correlation id with %q", e.Message)
		}
	}
}

func TestNewTokenServiceReportsAllProblems(t *testing.T) {
	_, err := mit.NewTokenService(mit.TokenConfig{
		AccessTokenTTL: time.Millisecond, RefreshTokenTTL: -1,
		Clients: []mit.Client{{ID: "twice", Type: "x", Secret: secret}, {ID: "twice"}},
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, part := range []string{"Issuer", "Key", "AccessTokenTTL", "RefreshTokenTTL", `"twice"`, "client Secret", "client Type"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %s", err, part)
		}
	}
	if strings.Contains(err.Error(), secret) {
		t.Errorf("the error contains a secret: %v", err)
	}
}

func FuzzTokenService(f *testing.F) {
	s := newTokens(f, nil)
	other := requestTokens(f, newTokens(f, func(c *mit.TokenConfig) { c.Key = "another" }), credentials())
	f.Add("application/json", "", `{"grant_type":"client_credentials","client_id":"mds-client","audience":"x"}`)
	f.Add("application/json", "", `{"grant_type":"refresh_token","refresh_token":"`+other.RefreshToken+`"}`)
	f.Add("application/json", "", `{"grant_type":"refresh_token","refresh_token":"`+other.AccessToken+`"}`)
	f.Add("application/x-www-form-urlencoded", "Basic OjoK", "grant_type=client_credentials&audience=%20")
	f.Fuzz(func(t *testing.T, contentType, authorization, body string) {
		r := httptest.NewRequest(http.MethodPost, issuer, strings.NewReader(body))
		r.Header.Set("Content-Type", contentType)
		r.Header.Set("Authorization", authorization)
		a := exchange(s, r)
		if a.status == http.StatusOK { // no input so far holds a secret
			t.Fatalf("tokens for nothing: %s", body)
		}
		checkError(t, a, a.status)
		if a.status >= 500 {
			t.Errorf("%d %s", a.status, a.body)
		}
	})
}

// requestFor is the response to a token request that names a server.
func requestFor(tb testing.TB, s *mit.TokenService, serverID string, req map[string]string) response {
	tb.Helper()
	b, err := json.Marshal(req)
	if err != nil {
		tb.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodPost, issuer, strings.NewReader(string(b)))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-Server-Id", serverID)
	return exchange(s, r)
}

// boundToken is an access token that is bound to a server.
func boundToken(tb testing.TB, s *mit.TokenService, serverID, audience string) string {
	tb.Helper()
	a := requestFor(tb, s, serverID, credentials("client_id", "bound", "audience", audience))
	if a.status != http.StatusOK {
		tb.Fatalf("%d %s", a.status, a.body)
	}
	return decode[struct{ Data tokens }](tb, a).Data.AccessToken
}

func withBoundClient(ids ...string) func(*mit.TokenConfig) {
	return func(c *mit.TokenConfig) {
		c.Clients = append(c.Clients, mit.Client{ID: "bound", Secret: secret, Type: "mds", ServerIDs: ids})
	}
}

// The tokens of a client with ServerIDs have the id of the server for which they were requested.
func TestTokensBoundToAServer(t *testing.T) {
	s := newTokens(t, withBoundClient("a", "b"))
	bound := credentials("client_id", "bound")
	first := decode[struct{ Data tokens }](t, requestFor(t, s, "a", bound)).Data
	refreshed := requestTokens(t, s, refreshRequest(first)) // the refresh token has the id
	for _, raw := range []string{first.AccessToken, refreshed.AccessToken, boundToken(t, newTokens(t, withBoundClient("*")), "a", "peers")} {
		if id := claimsOf(t, raw)["serverId"]; id != "a" {
			t.Errorf("the token is bound to %v", id)
		}
	}
	checkError(t, postJSON(t, s, bound), 400, "X-Server-Id", "is missing")
	checkError(t, requestFor(t, s, "c", bound), 400, "may not request a token for this server")
	checkError(t, requestFor(t, s, "a/../b", bound), 400, "X-Server-Id")

	other := decode[struct{ Data tokens }](t, requestFor(t, s, "a/../b", credentials())).Data
	if id, has := claimsOf(t, other.AccessToken)["serverId"]; has {
		t.Errorf("a client without ServerIDs gets a token that is bound to %v", id)
	}
	// A client that is bound later does not refresh the tokens that it had.
	if err := s.SetClient(mit.Client{ID: "mds-client", Secret: secret, Type: "mds", ServerIDs: []string{"*"}}); err != nil {
		t.Fatal(err)
	}
	checkError(t, postJSON(t, s, refreshRequest(other)), 400, "is missing")
	if err := s.SetClient(mit.Client{ID: "x", Secret: secret, Type: "mds", ServerIDs: []string{"a/b"}}); err == nil || !strings.Contains(err.Error(), "ServerIDs") {
		t.Errorf("a client with an invalid server id: %v", err)
	}
}
