package command

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"slices"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
)

// A JWKS names the keys of another token service (RFC 7517), and what its tokens must have.
type JWKS struct {
	URL      string
	Issuer   string // iss
	Audience string // aud: that of the registry
}

// A VerifyToken returns the claims of a valid token. It is [mit.RegistryConfig].Verify.
type VerifyToken = func(token string) (cluster.Claims, error)

func (j *JWKS) addFlags(fs *flag.FlagSet) {
	fs.StringVar(&j.URL, "jwks-url", "", "`URL` of the JWKS of another token service: the registry then accepts its access tokens, and this program issues none (default: this program is the token service)")
	fs.StringVar(&j.Issuer, "jwks-issuer", "", "`issuer` of those tokens")
}

// isSet reports whether there is another token service.
func (j *JWKS) isSet() bool { return j.URL != "" || j.Issuer != "" }

// checkJWKS rejects the flags of the token service that the program then lacks. given are the names
// of the flags of the command line.
func (s *settings) checkJWKS(given []string) error {
	if !s.jwks.isSet() {
		return nil
	}
	var errs []error
	if s.jwks.URL == "" || s.jwks.Issuer == "" {
		errs = append(errs, errors.New("--jwks-url and --jwks-issuer must be given together"))
	}
	for _, name := range []string{"type", "client-id", "client-secret", "clients", "key", "key-file", "signing-key", "token-life"} {
		if slices.Contains(given, name) {
			errs = append(errs, fmt.Errorf("--%s has no effect together with --jwks-url: this program then issues no tokens", name))
		}
	}
	return errors.Join(errs...)
}

// newVerifiedRegistry returns services without a token service.
func (s *settings) newVerifiedRegistry(ctx context.Context, c Command, base string, store mit.Store, log *zap.Logger) (*services, error) {
	s.jwks.Audience = s.registryAudience(base)
	verify, err := c.VerifyJWKS(ctx, s.jwks, log)
	if err != nil {
		return nil, err
	}
	cfg := s.registryConfig(log)
	cfg.Verify = verify
	v := &services{base: base, log: log}
	if v.registry, err = mit.NewRegistry(store, cfg); err != nil {
		return nil, err
	}
	v.metrics = mit.MetricsHandler(v.registry, nil)
	return v, nil
}

// printVerified prints what a node needs besides its credentials at the other token service.
func (s *settings) printVerified(w io.Writer, base string) {
	fmt.Fprintln(w, "# for the environment of a node, besides its credentials")
	for _, v := range [][2]string{
		{"MIT_URL", base + registryPath},
		{"MIT_AUDIENCE", s.registryAudience(base)},
		{"OAUTH_ISSUER", s.jwks.Issuer},
		{"OAUTH_JWKS_URL", s.jwks.URL},
	} {
		fmt.Fprintf(w, "export %s=%s\n", v[0], shellQuote(v[1]))
	}
}

// serveTokens serves the paths of the token service, and reports whether path is one of them.
func (v *services) serveTokens(w http.ResponseWriter, r *http.Request) bool {
	switch {
	case v.tokens == nil:
		return false
	case r.URL.Path == issuerPath:
		v.tokens.ServeHTTP(w, r)
	case r.URL.Path == jwksPath:
		v.tokens.ServeJWKS(w, r)
	default:
		return false
	}
	return true
}
