package command

import (
	"context"
	"crypto"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster/mit"
)

// services are the registry and the token service, whose secrets may change.
type services struct {
	tokens   *mit.TokenService // nil with --jwks-url
	registry *mit.Registry
	status   http.Handler // the status page; nil if there is none
	metrics  http.Handler
	base     string
	log      *zap.Logger

	current secrets
	// The keys before the last change: tokens that are signed with them stay valid.
	previousKey    string
	previousPublic crypto.PublicKey
}

// start returns the services under base.
func (s *settings) start(ctx context.Context, c Command, base string, store mit.Store, log *zap.Logger) (*services, error) {
	if s.jwks.isSet() {
		return s.newVerifiedRegistry(ctx, c, base, store, log)
	}
	return s.newServices(base, store, log, s.secrets)
}

// newServices returns the registry and the token service under base.
func (s *settings) newServices(base string, store mit.Store, log *zap.Logger, with secrets) (*services, error) {
	v := &services{base: base, log: log, current: with}
	issuer := base + issuerPath
	cfg := mit.TokenConfig{
		Issuer:         issuer,
		Key:            with.keys[0],
		Clients:        with.clients,
		AccessTokenTTL: s.access,
		NoGuessDelay:   s.maxPerAddr == 0,
		Logger:         log,
	}
	if len(with.signing) > 0 {
		cfg.SigningKey = with.signing[0]
	}
	secretKeys, publicKeys := v.accepted(with)
	var err error
	if v.tokens, err = mit.NewTokenService(cfg); err != nil {
		return nil, err
	}
	registry := s.registryConfig(log)
	registry.Issuer, registry.Audience, registry.Keys, registry.PublicKeys = issuer, s.registryAudience(base), secretKeys, publicKeys
	if v.registry, err = mit.NewRegistry(store, registry); err != nil {
		return nil, err
	}
	v.metrics = mit.MetricsHandler(v.registry, v.tokens)
	if len(with.signing) > 0 {
		err = v.tokens.SetSigningKey(with.signing[0], publicKeys...)
	}
	return v, err
}

// registryConfig returns the configuration of the registry without its check of tokens.
func (s *settings) registryConfig(log *zap.Logger) mit.RegistryConfig {
	cfg := mit.RegistryConfig{Lease: s.lease, Grace: s.grace, MaxServers: s.maxServers, BasePath: registryPath, Logger: log}
	if s.maxPerAddr == 0 {
		cfg.MaxInFlightBytesPerAddress = -1
	}
	return cfg
}

// ServeHTTP implements http.Handler.
func (v *services) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case v.serveTokens(w, r):
	case r.URL.Path == metricsPath:
		v.metrics.ServeHTTP(w, r)
	case r.URL.Path == "/" && v.status != nil:
		v.status.ServeHTTP(w, r)
	default:
		v.registry.ServeHTTP(w, r) // its 404 is a JSON error
	}
}

// reloadOnHangup reads the secrets again on each SIGHUP, until ctx ends or the function that it
// returns is called.
func (v *services) reloadOnHangup(ctx context.Context, s *settings) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-hangup:
				v.reload(s)
			case <-ctx.Done():
				return
			}
		}
	})
	return func() {
		signal.Stop(hangup)
		cancel()
		wg.Wait()
	}
}

// reload replaces the secrets by those in the files now. If they are not valid, nothing changes.
func (v *services) reload(s *settings) {
	if v.tokens == nil {
		v.log.Info("nothing to reload: the keys are those of the JWKS")
		return
	}
	next, err := s.readSecrets()
	if err == nil {
		_, err = s.newServices(v.base, mit.NewMemory(), zap.NewNop(), next) // checks all of them
	}
	if err == nil {
		err = v.apply(next)
	}
	if err != nil {
		v.log.Error("keys and clients are not valid: the previous ones stay in use", zap.Error(err))
		return
	}
	v.log.Info("keys and clients reloaded", zap.Int("clients", len(next.clients)))
}

// apply makes valid secrets the current ones. The registry is the first to know a new key.
func (v *services) apply(next secrets) error {
	if next.keys[0] != v.current.keys[0] {
		v.previousKey = v.current.keys[0]
	}
	if len(next.signing) > 0 && !samePublic(next.signing[0].Public(), v.current.signing[0].Public()) {
		v.previousPublic = v.current.signing[0].Public()
	}
	secretKeys, publicKeys := v.accepted(next)
	if len(next.signing) > 0 {
		if err := v.registry.SetPublicKeys(publicKeys...); err != nil {
			return err
		}
		if err := v.tokens.SetSigningKey(next.signing[0], publicKeys...); err != nil {
			return err
		}
	} else {
		v.registry.SetKeys(secretKeys...)
	}
	if next.keys[0] != v.current.keys[0] {
		if err := v.tokens.SetKey(next.keys[0]); err != nil {
			return err
		}
	}
	v.current = next
	return v.tokens.SetClients(next.clients)
}

// accepted returns the keys of access tokens that the registry accepts: either secret or public
// ones.
func (v *services) accepted(with secrets) (secretKeys []string, publicKeys []crypto.PublicKey) {
	if len(with.signing) == 0 {
		secretKeys = slices.Clone(with.keys)
		if v.previousKey != "" {
			secretKeys = append(secretKeys, v.previousKey)
		}
		return secretKeys, nil
	}
	for _, key := range with.signing {
		publicKeys = append(publicKeys, key.Public())
	}
	if v.previousPublic != nil {
		publicKeys = append(publicKeys, v.previousPublic)
	}
	return nil, publicKeys
}

// samePublic compares keys of types of the standard library.
func samePublic(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}
