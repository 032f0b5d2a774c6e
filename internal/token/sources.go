package token

import (
	"context"
	"errors"
	"sync"

	"golang.org/x/oauth2"
	"golang.org/x/sync/singleflight"
)

// FromSources lets plain token sources serve as a [Fetch]. source is called once per key, and
// once more for a key that comes back after more than a thousand others.
//
// A source knows no context, so it is asked in a goroutine of its own: the Fetch returns when
// its ctx ends, the goroutine when the source does, and until then there is no second one for
// that key. A source that caches by itself, as [oauth2.ReuseTokenSource] does, will answer a
// dropped token with the same one again.
func FromSources(source func(Key) oauth2.TokenSource) Fetch {
	s := &sources{source: source, byKey: make(map[Key]func() oauth2.TokenSource)}
	return s.fetch
}

type sources struct {
	source func(Key) oauth2.TokenSource
	calls  singleflight.Group

	mu    sync.Mutex // guards the field below
	byKey map[Key]func() oauth2.TokenSource
}

func (s *sources) fetch(ctx context.Context, key Key, _ string) (*oauth2.Token, error) {
	of := s.sourceFor(key)
	done := s.calls.DoChan(flightKey(key), func() (any, error) {
		src := of()
		if src == nil {
			return nil, errors.New("no token source for this key")
		}
		return src.Token()
	})
	select {
	case r := <-done:
		tok, _ := r.Val.(*oauth2.Token)
		return tok, r.Err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// of returns what makes the source of key the first time, and remembers it: foreign code must
// not run under the lock.
func (s *sources) sourceFor(key Key) func() oauth2.TokenSource {
	s.mu.Lock()
	defer s.mu.Unlock()
	if of, ok := s.byKey[key]; ok {
		return of
	}
	if len(s.byKey) >= maxKeys {
		for other := range s.byKey {
			delete(s.byKey, other)
			break
		}
	}
	of := sync.OnceValue(func() oauth2.TokenSource { return s.source(key) })
	s.byKey[key] = of
	return of
}
