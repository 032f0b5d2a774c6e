package token

import (
	"context"
	"errors"
	"sync"

	"golang.org/x/oauth2"
	"golang.org/x/sync/singleflight"
)

// FromSources returns a [Fetch] that uses a token source for each key. It calls source once per
// key, and again for a key that was evicted by a thousand others.
//
// A token source has no context, so each call runs in its own goroutine. The Fetch returns when its
// ctx ends; the goroutine returns when the source does. There is at most one goroutine for a key. A
// source with a cache of its own, such as [oauth2.ReuseTokenSource], may return a dropped token
// again.
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
	source := s.sourceFor(key)
	done := s.calls.DoChan(flightKey(key), func() (any, error) {
		src := source()
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

// sourceFor returns a function that creates the source of key at its first call, outside the lock.
func (s *sources) sourceFor(key Key) func() oauth2.TokenSource {
	s.mu.Lock()
	defer s.mu.Unlock()
	if source, ok := s.byKey[key]; ok {
		return source
	}
	if len(s.byKey) >= maxKeys {
		for other := range s.byKey {
			delete(s.byKey, other)
			break
		}
	}
	source := sync.OnceValue(func() oauth2.TokenSource { return s.source(key) })
	s.byKey[key] = source
	return source
}
