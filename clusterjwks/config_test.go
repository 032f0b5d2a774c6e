package clusterjwks

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestFromEnv(t *testing.T) {
	for name, value := range map[string]string{
		"OAUTH_JWKS_URL": " u\n", "OAUTH_ISSUER": "i ", "OAUTH_GENERIC_AUDIENCE": "g", "OAUTH_CLIENT_AUDIENCE": "c",
	} {
		t.Setenv(name, value)
	}
	if diff := cmp.Diff(Config{URL: "u", Issuer: "i", Audience: "g"}, FromEnv()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, generic := range []string{"", "noGeneric"} {
		t.Setenv("OAUTH_GENERIC_AUDIENCE", generic)
		if got := FromEnv().Audience; got != "c" {
			t.Errorf("audience %q if the generic one is %q", got, generic)
		}
	}
}

func TestNewRejects(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"nothing":  {func(*Config) {}, ""},
		"all":      {func(c *Config) { *c = Config{} }, "clusterjwks: OAUTH_JWKS_URL is missing\nOAUTH_ISSUER is missing\nOAUTH_GENERIC_AUDIENCE (or OAUTH_CLIENT_AUDIENCE) is missing"},
		"relative": {func(c *Config) { c.URL = "/secret" }, "clusterjwks: OAUTH_JWKS_URL is not an absolute http or https URL"},
		"a file":   {func(c *Config) { c.URL = "file:///secret" }, "clusterjwks: OAUTH_JWKS_URL is not an absolute http or https URL"},
		"no URL":   {func(c *Config) { c.URL = "https://x/%secret" }, "clusterjwks: OAUTH_JWKS_URL is not an absolute http or https URL"},
		"password": {func(c *Config) { c.URL = "https://user:secret@x/" }, "clusterjwks: OAUTH_JWKS_URL contains credentials"},
		"negative": {func(c *Config) { c.Timeout = -time.Second }, "clusterjwks: invalid Timeout -1s: negative"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := Config{URL: jwksURL, Issuer: issuer, Audience: audience}
			tt.change(&cfg)
			_, err := New(cfg)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != tt.want || strings.Contains(got, "secret") {
				t.Errorf("error %q, want %q", got, tt.want)
			}
		})
	}
}
