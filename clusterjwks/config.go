package clusterjwks

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"
)

// Config configures a [Verifier]. URL, Issuer and Audience are mandatory. The zero value of any
// other field means its default.
type Config struct {
	// URL is the http or https URL of the JWKS [OAUTH_JWKS_URL]. It must not contain credentials.
	URL string
	// Issuer is the required iss of tokens [OAUTH_ISSUER].
	Issuer string
	// Audience is the required aud of tokens [OAUTH_GENERIC_AUDIENCE, otherwise
	// OAUTH_CLIENT_AUDIENCE].
	Audience string

	// MaxAge is the age at which keys are fetched again; an hour by default.
	MaxAge time.Duration
	// MinInterval is the minimum time between the starts of two fetches; 10 seconds by default.
	MinInterval time.Duration
	// Timeout bounds one fetch; 10 seconds by default.
	Timeout time.Duration

	// Transport sends the requests; [http.DefaultTransport] by default. Set it for a private CA.
	Transport http.RoundTripper
	// Logger logs when fetches begin to fail and when they work again; nil: no log.
	Logger *zap.Logger
}

// FromEnv returns a Config with URL, Issuer and Audience of the environment variables that their
// comments name, without white space at their ends. OAUTH_JWKS_URL is a variable of this package.
// The others are those of [cluster.Config]. [New] reports missing variables.
//
// [cluster.Config]: https://pkg.go.dev/github.com/mimiktech/cluster#Config
func FromEnv() Config {
	get := func(name string) string { return strings.TrimSpace(os.Getenv(name)) }
	generic := get("OAUTH_GENERIC_AUDIENCE")
	if generic == noGeneric {
		generic = ""
	}
	return Config{
		URL:      get("OAUTH_JWKS_URL"),
		Issuer:   get("OAUTH_ISSUER"),
		Audience: cmp.Or(generic, get("OAUTH_CLIENT_AUDIENCE")),
	}
}

// noGeneric is the value of the OAUTH_GENERIC_ variables that means that they are not set.
const noGeneric = "noGeneric"

func (c Config) maxAge() time.Duration { return cmp.Or(c.MaxAge, time.Hour) }

func (c Config) minInterval() time.Duration { return cmp.Or(c.MinInterval, 10*time.Second) }

func (c Config) timeout() time.Duration { return cmp.Or(c.Timeout, 10*time.Second) }

// validate does not quote the URL: it may contain a secret.
func (c Config) validate() error {
	var errs []error
	u, err := url.Parse(c.URL)
	switch {
	case c.URL == "":
		errs = append(errs, errors.New("OAUTH_JWKS_URL is missing"))
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Fragment != "":
		errs = append(errs, errors.New("OAUTH_JWKS_URL is not an absolute http or https URL"))
	case u.User != nil:
		errs = append(errs, errors.New("OAUTH_JWKS_URL contains credentials"))
	}
	if c.Issuer == "" {
		errs = append(errs, errors.New("OAUTH_ISSUER is missing"))
	}
	if c.Audience == "" {
		errs = append(errs, errors.New("OAUTH_GENERIC_AUDIENCE (or OAUTH_CLIENT_AUDIENCE) is missing"))
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"MaxAge", c.MaxAge}, {"MinInterval", c.MinInterval}, {"Timeout", c.Timeout}} {
		if d.value < 0 {
			errs = append(errs, fmt.Errorf("invalid %s %v: negative", d.name, d.value))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clusterjwks: %w", err)
	}
	return nil
}
