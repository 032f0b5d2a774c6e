package clusterjwks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/MicahParks/jwkset"
	"go.uber.org/zap"

	"github.com/mimiktech/cluster"
)

const maxBytes = 1 << 20

// A keyStore keeps the keys of the last good JWKS and fetches new ones. It is the storage of a
// keyfunc.Keyfunc.
type keyStore struct {
	*jwkset.MemoryJWKSet // the last good keys

	cfg    Config
	remote string // the URL without its query, for messages
	client *http.Client
	log    *zap.Logger

	mu       sync.Mutex // guards the fields below
	fetched  time.Time  // start of the last good fetch; zero: no keys
	started  time.Time  // start of the last fetch
	lastErr  error      // of the last fetch that has ended
	inFlight *fetch     // nil: none
}

// A fetch is one request for the JWKS.
type fetch struct {
	done chan struct{} // closed at the end
	err  error         // valid after done
}

func newKeyStore(cfg Config) *keyStore {
	u, err := url.Parse(cfg.URL)
	if err != nil {
		u = &url.URL{} // validate has parsed it
	}
	u.RawQuery = ""
	log := cfg.Logger
	if log == nil {
		log = zap.NewNop()
	}
	return &keyStore{
		MemoryJWKSet: jwkset.NewMemoryStorage(),
		cfg:          cfg,
		remote:       u.String(),
		log:          log,
		client: &http.Client{
			Transport:     cfg.Transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// KeyRead returns the key with an id. If the id is unknown, it fetches the JWKS first.
func (s *keyStore) KeyRead(ctx context.Context, id string) (jwkset.JWK, error) {
	if err := s.ready(ctx); err != nil {
		return jwkset.JWK{}, err
	}
	key, err := s.MemoryJWKSet.KeyRead(ctx, id)
	if !errors.Is(err, jwkset.ErrKeyNotFound) {
		return key, err
	}
	if err := s.refresh(ctx); err != nil {
		return jwkset.JWK{}, err
	}
	return s.MemoryJWKSet.KeyRead(ctx, id)
}

// KeyReadAll returns all keys.
func (s *keyStore) KeyReadAll(ctx context.Context) ([]jwkset.JWK, error) {
	if err := s.ready(ctx); err != nil {
		return nil, err
	}
	return s.MemoryJWKSet.KeyReadAll(ctx)
}

// ready returns nil if there are keys. It waits for the first fetch, but not for later ones.
func (s *keyStore) ready(ctx context.Context) error {
	s.mu.Lock()
	fetched := s.fetched
	if !fetched.IsZero() && time.Since(fetched) >= s.cfg.maxAge() {
		s.startLocked(ctx)
	}
	s.mu.Unlock()
	if fetched.IsZero() {
		return s.refresh(ctx)
	}
	return nil
}

// refresh fetches the JWKS, or waits for the fetch in flight. Within MinInterval it returns the
// result of the last fetch.
func (s *keyStore) refresh(ctx context.Context) error {
	s.mu.Lock()
	f := s.startLocked(ctx)
	err := s.lastErr
	s.mu.Unlock()
	if f != nil {
		select {
		case <-f.done:
			err = f.err
		case <-ctx.Done():
			err = fmt.Errorf("JWKS of %s: %w", s.remote, context.Cause(ctx))
		}
	}
	if err != nil {
		return &unavailableError{err}
	}
	return nil
}

// startLocked returns the fetch in flight, and starts one if MinInterval permits.
func (s *keyStore) startLocked(ctx context.Context) *fetch {
	if s.inFlight == nil && (s.started.IsZero() || time.Since(s.started) >= s.cfg.minInterval()) {
		s.started = time.Now()
		f := &fetch{done: make(chan struct{})}
		s.inFlight = f
		go s.run(context.WithoutCancel(ctx), f) // other tokens may wait for it; Timeout ends it
	}
	return s.inFlight
}

func (s *keyStore) run(ctx context.Context, f *fetch) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.timeout())
	defer cancel()
	keys, err := s.load(ctx)
	if err == nil {
		err = s.KeyReplaceAll(ctx, keys)
	}
	if err != nil {
		err = fmt.Errorf("JWKS of %s: %w", s.remote, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logChange(err, len(keys))
	if err == nil {
		s.fetched = s.started
	}
	s.lastErr, s.inFlight = err, nil
	f.err = err
	close(f.done)
}

// load returns the keys of the JWKS. Its error does not quote the URL or the response.
func (s *keyStore) load(ctx context.Context) (keys []jwkset.JWK, err error) {
	defer func() {
		if r := recover(); r != nil { // of the Transport, or of a parser
			err = errors.New("panic while fetching")
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.cfg.URL, nil)
	if err != nil {
		return nil, errors.New("invalid URL")
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, withoutURL(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBytes+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading the response: %w", err)
	case len(body) > maxBytes:
		return nil, fmt.Errorf("longer than %d bytes", maxBytes)
	}
	return parseKeys(body)
}

// withoutURL returns the cause of an error of an http.Client. Its text quotes the URL with the
// query.
func withoutURL(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

// logChange logs that fetches begin to fail, fail for another reason, or work again.
func (s *keyStore) logChange(err error, keys int) {
	switch {
	case err == nil && s.lastErr != nil:
		s.log.Info("JWKS available again", zap.String("url", s.remote), zap.Int("keys", keys))
	case err != nil && (s.lastErr == nil || err.Error() != s.lastErr.Error()):
		s.log.Warn("JWKS not available, the last good keys stay in use",
			zap.Bool("noKeys", s.fetched.IsZero()), zap.Error(err))
	}
}

// An unavailableError means that a key could not be looked up.
type unavailableError struct{ cause error }

func (e *unavailableError) Error() string {
	return cluster.ErrVerifierUnavailable.Error() + ": " + e.cause.Error()
}

func (e *unavailableError) Unwrap() []error { return []error{cluster.ErrVerifierUnavailable, e.cause} }
