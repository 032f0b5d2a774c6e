package command

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster"
)

// With the keys of another token service, the program is only a registry.
func TestJWKS(t *testing.T) {
	const url, issuer = "https://mst.example.com/jwks.json", "https://mst.example.com/token"
	var keys JWKS
	c := Command{VerifyJWKS: func(_ context.Context, k JWKS, _ *zap.Logger) (VerifyToken, error) {
		keys = k
		return func(token string) (cluster.Claims, error) {
			if token != "good" {
				return cluster.Claims{}, errors.New("signed with another key")
			}
			return cluster.Claims{SubType: "mds"}, nil
		}, nil
	}}
	var log logBuffer
	env := startLogged(t, &log, c, "--log", "info", "--jwks-url", url, "--jwks-issuer", issuer)
	if want := (JWKS{url, issuer, env["base"] + registryPath}); keys != want {
		t.Errorf("the keys are %+v, want %+v", keys, want)
	}
	if env["OAUTH_ISSUER"] != issuer || env["OAUTH_JWKS_URL"] != url || env["MIT_AUDIENCE"] != keys.Audience || env["OAUTH_CLIENT_SECRET"] != "" {
		t.Errorf("printed %v", env)
	}
	env["SERVER_TYPE"] = "mds"
	check := func() {
		t.Helper()
		status, _ := register(t, env, "good")
		wantStatus(t, "valid token", status, http.StatusOK)
		status, _ = register(t, env, "bad")
		wantStatus(t, "invalid token", status, http.StatusForbidden)
		for _, path := range []string{issuerPath, jwksPath} {
			status, _ := post(t, env["base"]+path, "", map[string]string{"grant_type": "client_credentials"})
			wantStatus(t, path, status, http.StatusNotFound)
		}
	}
	check()
	log.hangup(t, "nothing to reload")
	check()
}

func TestJWKSFlags(t *testing.T) {
	c := Command{VerifyJWKS: func(context.Context, JWKS, *zap.Logger) (VerifyToken, error) {
		return nil, errors.New("not such a URL")
	}}
	both := []string{"--jwks-url", "https://mst.example.com/jwks.json", "--jwks-issuer", "https://mst.example.com/token"}
	for name, tt := range map[string]struct {
		c    Command
		args []string
		want string
	}{
		"not supported":       {Command{}, both, "jwks-url"},
		"no issuer":           {c, both[:2], "--jwks-issuer"},
		"no URL":              {c, both[2:], "--jwks-url"},
		"with a client":       {c, append(both, "--type", "mds"), "--type has no effect"},
		"with a key":          {c, append(both, "--key", strings.Repeat("k", 40)), "--key has no effect"},
		"with a lifetime":     {c, append(both, "--token-life", "1h"), "--token-life has no effect"},
		"error of VerifyJWKS": {c, append(both, "--listen", "127.0.0.1:0"), "not such a URL"},
	} {
		t.Run(name, func(t *testing.T) {
			err := tt.c.Run(t.Context(), append([]string{"--log", "off"}, tt.args...), io.Discard, io.Discard)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("the error is %v, want one with %q", err, tt.want)
			}
		})
	}
}
