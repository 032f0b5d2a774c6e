package token

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"
)

var (
	errDown   = errors.New("down")
	errClosed = errors.New("closed")
)

func peers() Key { return Key{Audience: "mds", Cluster: true} }

type correlation struct{}

// issuer is a Fetch that returns token-1, token-2, …
type issuer struct {
	ttl     time.Duration // of its tokens; 0: no expiry
	delay   time.Duration
	refresh bool // give refresh tokens: refresh-1, …

	mu      sync.Mutex
	err     error
	offered []string // the refresh token of each fetch
	ids     []any    // the correlation of each
}

func (s *issuer) fetch(ctx context.Context, _ Key, refresh string) (*oauth2.Token, error) {
	s.mu.Lock()
	s.offered = append(s.offered, refresh)
	s.ids = append(s.ids, ctx.Value(correlation{}))
	n := len(s.offered)
	s.mu.Unlock()
	select {
	case <-time.After(s.delay):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	tok := &oauth2.Token{AccessToken: fmt.Sprint("token-", n)}
	if s.ttl != 0 {
		tok.Expiry = time.Now().Add(s.ttl)
	}
	if s.refresh {
		tok.RefreshToken = fmt.Sprint("refresh-", n)
	}
	return tok, nil
}

func (s *issuer) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *issuer) fetches() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.offered)
}

func want(t *testing.T, c *Cache, key Key, token string) {
	t.Helper()
	switch got, err := c.Token(t.Context(), key); {
	case err != nil:
		t.Errorf("Token: %v, want %s", err, token)
	case got != token:
		t.Errorf("Token = %s, want %s", got, token)
	}
}

func TestRenewal(t *testing.T) {
	for name, tt := range map[string]struct {
		ttl, fresh time.Duration // fresh: for how long it is given out
	}{
		"an hour":             {time.Hour, 45 * time.Minute},
		"a day":               {24 * time.Hour, 24*time.Hour - 15*time.Minute},
		"half an hour":        {30 * time.Minute, 15 * time.Minute},
		"just over the limit": {901 * time.Second, 901 * time.Second * 2 / 3},
		"the limit":           {900 * time.Second, 600 * time.Second},
		"a minute":            {time.Minute, 40 * time.Second},
		"a second":            {time.Second, time.Second * 2 / 3},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &issuer{ttl: tt.ttl}
				c := NewCache(t.Context(), s.fetch)
				want(t, c, peers(), "token-1")
				time.Sleep(tt.fresh - time.Millisecond)
				want(t, c, peers(), "token-1")
				time.Sleep(2 * time.Millisecond)
				want(t, c, peers(), "token-2")
			})
		})
	}
	t.Run("at exactly 900 s it is not due", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &issuer{ttl: time.Hour}
			c := NewCache(t.Context(), s.fetch)
			want(t, c, peers(), "token-1")
			time.Sleep(time.Hour - 900*time.Second)
			want(t, c, peers(), "token-1")
			time.Sleep(time.Nanosecond)
			want(t, c, peers(), "token-2")
		})
	})
	t.Run("never", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &issuer{}
			c := NewCache(t.Context(), s.fetch)
			want(t, c, peers(), "token-1")
			time.Sleep(10 * 365 * 24 * time.Hour)
			want(t, c, peers(), "token-1")
			c.Drop(peers(), "token-1")
			want(t, c, peers(), "token-2")
		})
	})
}

func TestConcurrentCallersShareFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &issuer{ttl: time.Hour, delay: time.Second}
		c := NewCache(t.Context(), s.fetch)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { want(t, c, peers(), "token-1") })
		}
		wg.Wait()
		if n := s.fetches(); n != 1 {
			t.Errorf("%d fetches for 100 callers", n)
		}
	})
}

func TestKeysAreIndependent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &issuer{ttl: time.Hour}
		c := NewCache(t.Context(), s.fetch)
		keys := []Key{
			{Audience: "a"},
			{Audience: "a", Cluster: true},
			{Audience: "a", Customer: "c"},
			{Audience: `a" false "c`},
			{Customer: `a" false "c`},
		}
		for i, key := range keys {
			want(t, c, key, fmt.Sprint("token-", i+1))
		}
		for i, key := range keys {
			want(t, c, key, fmt.Sprint("token-", i+1))
			for _, other := range keys[:i] {
				if flightKey(key) == flightKey(other) {
					t.Errorf("%v and %v share flights", key, other)
				}
			}
		}
	})
}

func TestCanceledWaiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &issuer{ttl: time.Hour, delay: 10 * time.Second}
		c := NewCache(t.Context(), s.fetch)
		ctx, cancel := context.WithCancelCause(context.WithValue(t.Context(), correlation{}, "id-1"))
		left := make(chan error)
		go func() { // begins the fetch
			_, err := c.Token(ctx, peers())
			left <- err
		}()
		synctest.Wait()
		var wg sync.WaitGroup
		wg.Go(func() { want(t, c, peers(), "token-1") })
		time.Sleep(time.Second)
		errBored := errors.New("bored")
		cancel(errBored)
		if err := <-left; !errors.Is(err, errBored) {
			t.Errorf("the waiter left with %v", err)
		}
		wg.Wait()
		if s.fetches() != 1 || s.ids[0] != "id-1" {
			t.Errorf("correlations of the fetches: %v, want id-1", s.ids)
		}
		if _, err := c.Token(ctx, Key{}); !errors.Is(err, errBored) || s.fetches() != 1 {
			t.Errorf("with a ctx that ended: %v after %d fetches", err, s.fetches())
		}
	})
}

func TestFailedRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &issuer{ttl: time.Hour, refresh: true}
		c := NewCache(t.Context(), s.fetch)
		want(t, c, peers(), "token-1")

		s.fail(errDown)
		time.Sleep(50 * time.Minute)
		for range 10 {
			want(t, c, peers(), "token-1")
		}
		if n := s.fetches(); n != 2 {
			t.Errorf("%d fetches at once, want 2", n)
		}
		time.Sleep(retryInterval)
		want(t, c, peers(), "token-1")
		if n := s.fetches(); n != 3 {
			t.Errorf("%d fetches after a rest, want 3", n)
		}
		if got := fmt.Sprint(s.offered); got != "[ refresh-1 ]" {
			t.Errorf("refresh tokens offered: %s; one that failed must not come again", got)
		}

		time.Sleep(10 * time.Minute)
		for range 2 { // an error is not kept
			if _, err := c.Token(t.Context(), peers()); !errors.Is(err, errDown) {
				t.Errorf("with an expired token: %v", err)
			}
		}
		s.fail(nil)
		want(t, c, peers(), "token-6")
	})
}

func TestErrorsAreNotCached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &issuer{ttl: time.Hour, delay: time.Second, err: errDown}
		c := NewCache(t.Context(), s.fetch)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if got, err := c.Token(t.Context(), peers()); !errors.Is(err, errDown) || got != "" {
					t.Errorf("Token = %q, %v", got, err)
				}
			})
		}
		wg.Wait()
		s.fail(nil)
		want(t, c, peers(), "token-2")
	})
}

func TestSlowRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &issuer{ttl: time.Hour}
		c := NewCache(t.Context(), s.fetch)
		want(t, c, peers(), "token-1")
		time.Sleep(50 * time.Minute)
		s.delay = 30 * time.Second

		start := time.Now()
		want(t, c, peers(), "token-1")
		if took := time.Since(start); took != staleWait {
			t.Errorf("a good token came after %v", took)
		}
		want(t, c, peers(), "token-1")
		if took := time.Since(start); took != staleWait {
			t.Errorf("the next one waited too: %v", took-staleWait)
		}
		time.Sleep(s.delay)
		want(t, c, peers(), "token-2")
		if n := s.fetches(); n != 2 {
			t.Errorf("%d fetches, want 2", n)
		}
	})
}

func TestSlowRenewalOfExpiringToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &issuer{ttl: time.Hour, refresh: true}
		c := NewCache(t.Context(), s.fetch)
		want(t, c, peers(), "token-1")
		time.Sleep(time.Hour - staleWait/2)
		s.delay = 10 * time.Second
		want(t, c, peers(), "token-2")
		if n := s.fetches(); n != 2 {
			t.Errorf("%d fetches, want 2", n)
		}
	})
}

func TestHangingFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &issuer{delay: 24 * time.Hour}
		c := NewCache(t.Context(), s.fetch)
		start := time.Now()
		_, err := c.Token(t.Context(), peers())
		if took := time.Since(start); took != fetchTimeout || err == nil || !strings.Contains(err.Error(), "no token within 1m0s") {
			t.Errorf("after %v: %v", took, err)
		}
	})
}

func TestDrop(t *testing.T) {
	t.Run("costs one fetch", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &issuer{ttl: time.Hour, delay: time.Second, refresh: true}
			c := NewCache(t.Context(), s.fetch)
			want(t, c, peers(), "token-1")
			var wg sync.WaitGroup
			for i := range 100 { // all refuse it, some late
				wg.Go(func() {
					time.Sleep(time.Duration(i) * 100 * time.Millisecond)
					c.Drop(peers(), "token-1")
					want(t, c, peers(), "token-2")
				})
			}
			wg.Wait()
			if got := fmt.Sprintf("%q", s.offered); got != `["" ""]` {
				t.Errorf("refresh tokens offered: %s", got)
			}
		})
	})
	t.Run("during a renewal", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &issuer{ttl: time.Hour, delay: time.Second / 2, refresh: true}
			c := NewCache(t.Context(), s.fetch)
			want(t, c, peers(), "token-1")
			time.Sleep(50 * time.Minute)
			var wg sync.WaitGroup
			wg.Go(func() { want(t, c, peers(), "token-3") })
			synctest.Wait()
			c.Drop(peers(), "token-1")
			wg.Wait()
			if got := fmt.Sprintf("%q", s.offered); got != `["" "refresh-1" ""]` {
				t.Errorf("refresh tokens offered: %s", got)
			}
			want(t, c, peers(), "token-3")
		})
	})
	t.Run("during a renewal that fails", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &issuer{ttl: time.Hour, delay: 5 * time.Second}
			c := NewCache(t.Context(), s.fetch)
			want(t, c, peers(), "token-1")
			time.Sleep(50 * time.Minute)
			s.fail(errDown)
			var wg sync.WaitGroup
			wg.Go(func() {
				if got, err := c.Token(t.Context(), peers()); !errors.Is(err, errDown) {
					t.Errorf("Token = %q, %v: a dropped token must not be given out", got, err)
				}
			})
			synctest.Wait()
			c.Drop(peers(), "token-1")
			wg.Wait()
		})
	})
	t.Run("of what is not there", func(t *testing.T) {
		c := NewCache(t.Context(), nil)
		c.Drop(peers(), "")
		c.Drop(peers(), "token-1")
	})
}

func TestRefresh(t *testing.T) {
	t.Run("is offered, also once the token expired", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &issuer{ttl: time.Hour, refresh: true}
			c := NewCache(t.Context(), s.fetch)
			want(t, c, peers(), "token-1")
			time.Sleep(50 * time.Minute)
			want(t, c, peers(), "token-2")
			time.Sleep(2 * time.Hour)
			want(t, c, peers(), "token-3")
			if got := fmt.Sprintf("%q", s.offered); got != `["" "refresh-1" "refresh-2"]` {
				t.Errorf("refresh tokens offered: %s", got)
			}
		})
	})
	t.Run("is not, once expired itself", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			refresh := sign(t, map[string]any{"exp": time.Now().Add(time.Hour).Unix()})
			var offered []string
			c := NewCache(t.Context(), func(_ context.Context, _ Key, r string) (*oauth2.Token, error) {
				offered = append(offered, r)
				return &oauth2.Token{AccessToken: "t", RefreshToken: refresh, Expiry: time.Now().Add(30 * time.Minute)}, nil
			})
			want(t, c, peers(), "t")
			time.Sleep(29 * time.Minute)
			want(t, c, peers(), "t")
			time.Sleep(31 * time.Minute)
			want(t, c, peers(), "t")
			if len(offered) != 3 || offered[1] != refresh || offered[2] != "" {
				t.Errorf("refresh tokens offered: %q", offered)
			}
		})
	})
}

func TestCanceledCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		s := &issuer{ttl: time.Hour}
		c := NewCache(ctx, s.fetch)
		want(t, c, peers(), "token-1")
		s.delay = 30 * time.Second
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if _, err := c.Token(t.Context(), Key{}); !errors.Is(err, errClosed) {
					t.Errorf("Token when ctx ends: %v", err)
				}
			})
		}
		start := time.Now()
		time.Sleep(time.Second)
		cancel(errClosed)
		wg.Wait()
		if took := time.Since(start); took != time.Second {
			t.Errorf("the fetch went on for %v", took-time.Second)
		}
		if _, err := c.Token(t.Context(), Key{}); !errors.Is(err, errClosed) || s.fetches() != 2 {
			t.Errorf("Token after the end of ctx: %v, %d fetches", err, s.fetches())
		}
		want(t, c, peers(), "token-1")
		time.Sleep(50 * time.Minute) // due, and still good for leaving
		want(t, c, peers(), "token-1")
	})
}

func TestInvalidTokens(t *testing.T) {
	for name, tok := range map[string]*oauth2.Token{
		"none":       nil,
		"empty":      {},
		"a new line": {AccessToken: "to\nken"},
		"not ASCII":  {AccessToken: "tökén"},
		"a space":    {AccessToken: "to ken"},
		"expired":    {AccessToken: "t0ken", Expiry: time.Now().Add(-time.Second)},
		"long ago":   {AccessToken: "t0ken", Expiry: time.Unix(1, 0)},
	} {
		t.Run(name, func(t *testing.T) {
			c := NewCache(t.Context(), func(context.Context, Key, string) (*oauth2.Token, error) { return tok, nil })
			got, err := c.Token(t.Context(), peers())
			if err == nil || got != "" {
				t.Fatalf("Token = %q, %v", got, err)
			}
			if tok != nil && tok.AccessToken != "" && strings.Contains(err.Error(), tok.AccessToken) {
				t.Errorf("the error quotes the token: %v", err)
			}
		})
	}
}

func TestCacheIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &issuer{ttl: time.Hour}
		c := NewCache(t.Context(), s.fetch)
		want(t, c, Key{Customer: "first"}, "token-1")
		time.Sleep(time.Second)
		for i := range 2 * maxKeys {
			if _, err := c.Token(t.Context(), Key{Customer: fmt.Sprint(i)}); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(c.entries); n != maxKeys {
			t.Errorf("%d entries, want %d", n, maxKeys)
		}
		if _, held := c.entries[Key{Customer: "first"}]; held {
			t.Error("the one that expires first is still there")
		}
		time.Sleep(time.Hour)
		want(t, c, peers(), fmt.Sprint("token-", 2*maxKeys+2))
		if n := len(c.entries); n != 1 {
			t.Errorf("%d entries after all others expired", n)
		}
	})
}

func TestExpiredEntryRemovedDuringRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &issuer{ttl: time.Hour, delay: time.Second, refresh: true}
		c := NewCache(t.Context(), s.fetch)
		want(t, c, peers(), "token-1")
		time.Sleep(2 * time.Hour)
		var wg sync.WaitGroup
		wg.Go(func() { want(t, c, Key{}, "token-2") })
		time.Sleep(time.Second / 2)
		wg.Go(func() { want(t, c, peers(), "token-3") }) // expired, and swept when token-2 comes
		wg.Wait()
		if n := s.fetches(); n != 3 {
			t.Errorf("%d fetches, want 3", n)
		}
	})
}

func TestRenewAfterConcurrentRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &issuer{ttl: time.Hour}
		c := NewCache(t.Context(), s.fetch)
		want(t, c, peers(), "token-1")
		// like a caller that looked up the token before the first renewal
		if got, err := c.renew(t.Context(), peers()); got != "token-1" || err != nil || s.fetches() != 1 {
			t.Errorf("renew = %q, %v after %d fetches", got, err, s.fetches())
		}
	})
}

// After an error that asks for a pause, no fetch begins until it has passed, for any key, also if
// no valid token is left.
func TestRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &issuer{ttl: time.Hour}
		c := NewCache(t.Context(), s.fetch)
		c.RetryAfter = func(err error) time.Duration {
			if errors.Is(err, errDown) {
				return 30 * time.Second
			}
			return 0
		}
		s.fail(errDown)
		for range 100 {
			for _, k := range []Key{peers(), {Audience: "mit"}} {
				if _, err := c.Token(t.Context(), k); !errors.Is(err, errDown) {
					t.Fatalf("error %v", err)
				}
			}
			time.Sleep(250 * time.Millisecond)
		}
		if n := s.fetches(); n != 1 {
			t.Errorf("%d fetches in 25 s", n)
		}
		_, err := c.Token(t.Context(), peers())
		if err == nil || !strings.Contains(err.Error(), "the next request is sent in 5s") {
			t.Errorf("error %v", err)
		}
		s.fail(nil)
		time.Sleep(5 * time.Second)
		want(t, c, peers(), "token-2")
		s.fail(errClosed) // which asks for no pause
		for range 3 {
			if _, err := c.Token(t.Context(), Key{Audience: "mit"}); !errors.Is(err, errClosed) {
				t.Errorf("error %v", err)
			}
		}
		if n := s.fetches(); n != 5 {
			t.Errorf("%d fetches, want 5", n)
		}
	})
}

// A token that may be why requests are rejected is replaced once in a quarter of an hour.
func TestReplace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		c := NewCache(t.Context(), func(context.Context, Key, string) (*oauth2.Token, error) {
			n++
			return &oauth2.Token{AccessToken: fmt.Sprintf("token-%d", n)}, nil
		})
		for _, want := range []string{"token-1", "token-2", "token-2", "token-3"} {
			got, err := c.Token(t.Context(), Key{Audience: "a"})
			if err != nil || got != want {
				t.Errorf("%s, %v, want %s", got, err, want)
			}
			c.Replace(Key{Audience: "a"}, got)
			c.Replace(Key{Audience: "a"}, "another")
			time.Sleep(8 * time.Minute)
		}
	})
}
