// Package token gets the tokens that a node shows to others, and checks those it is shown.
// It speaks no HTTP itself.
package token

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/sync/singleflight"
)

const (
	refreshMargin = 900 * time.Second // a token with less than this left is renewed
	retryInterval = time.Second       // how long a renewal that failed rests, while the old token is good
	staleWait     = time.Second       // how long a caller waits for a renewal, while the old token is good
	fetchTimeout  = time.Minute       // a fetch that hangs must not block its key for good
	maxKeys       = 1024              // customers come and go, and each is a key
)

// Key is what a token is kept per.
type Key struct {
	Audience string
	Cluster  bool   // a token that peers accept as one of their own
	Customer string // on whose behalf; "" for nobody's
}

// Fetch gets a new token for key. refresh is the refresh token that came with the last one,
// "" if there is none or it expired. A Fetch must return when ctx ends.
type Fetch func(ctx context.Context, key Key, refresh string) (*oauth2.Token, error)

// Cache keeps one token per [Key] and renews it in time. It may be used from any goroutine.
type Cache struct {
	ctx    context.Context
	fetch   Fetch
	flights singleflight.Group

	mu      sync.Mutex // guards the field below; never held during a fetch
	entries map[Key]entry
}

type entry struct {
	access, refresh string
	expiry          time.Time // zero: never
	renewAt         time.Time // zero: never
}

// NewCache makes a Cache which gets its tokens from fetch. life bounds every fetch; once it
// ended, only the tokens that are there already are given out: a node that leaves needs one.
func NewCache(life context.Context, fetch Fetch) *Cache {
	return &Cache{ctx: life, fetch: fetch, entries: make(map[Key]entry)}
}

// Token returns the access token for key. It does not block while there is one that need not
// be renewed. Otherwise one caller fetches, and all others of that key wait with it: until
// their own ctx ends, which leaves the fetch going for the rest. The fetch has the values of
// the ctx that began it, not its end.
//
// A token that is due but still good outlives a renewal that fails or takes its time: it is
// given out, and for the next second without trying again. An error is never kept.
func (c *Cache) Token(ctx context.Context, key Key) (string, error) {
	e := c.get(key)
	now := time.Now()
	if e.fresh(now) {
		return e.access, nil
	}
	if ctx.Err() != nil { // don't begin for nobody
		return "", waitError(ctx)
	}
	done := c.flights.DoChan(flightKey(key), func() (any, error) { return c.renew(ctx, key) })
	var enough <-chan time.Time
	if e.valid(now) {
		enough = time.After(staleWait)
	}
	for {
		select {
		case r := <-done:
			access, _ := r.Val.(string)
			return access, r.Err
		case <-ctx.Done():
			return "", waitError(ctx)
		case <-enough:
			if access, ok := c.serveStale(key); ok {
				return access, nil
			}
			enough = nil // it expired or was dropped while we waited
		}
	}
}

// Drop forgets the token for key, if accessToken is still the one: however many peers refuse
// the same token, it costs one fetch. The refresh token goes with it, since a refused token
// calls for a new one by client credentials, not for more of the same.
func (c *Cache) Drop(key Key, accessToken string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries[key].access == accessToken {
		delete(c.entries, key)
	}
}

func (c *Cache) get(key Key) entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.entries[key]
}

// renew is the one flight of key: it gets a token and keeps it. first is the ctx of the caller
// who began it.
func (c *Cache) renew(first context.Context, key Key) (string, error) {
	old := c.get(key)
	now := time.Now()
	if old.fresh(now) { // another flight landed between look and takeoff
		return old.access, nil
	}
	refresh := old.refresh
	if expiry, ok, err := expClaim(refresh); err == nil && ok && !now.Before(expiry) {
		refresh = ""
	}
	e, err := c.fetchEntry(first, key, refresh)
	if err == nil && !c.put(key, e, old, refresh) {
		if e, err = c.fetchEntry(first, key, ""); err == nil {
			c.put(key, e, old, "")
		}
	}
	if err == nil {
		return e.access, nil
	}
	if access, ok := c.serveStale(key); ok {
		return access, nil
	}
	return "", err
}

// get does one fetch, within the life of the cache.
func (c *Cache) fetchEntry(first context.Context, key Key, refresh string) (entry, error) {
	if err := context.Cause(c.ctx); err != nil {
		return entry{}, err
	}
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(first))
	defer cancel(nil)
	defer context.AfterFunc(c.ctx, func() { cancel(context.Cause(c.ctx)) })()
	ctx, stop := context.WithTimeoutCause(ctx, fetchTimeout, fmt.Errorf("no token within %v", fetchTimeout))
	defer stop()

	tok, err := c.fetch(ctx, key, refresh)
	if err == nil {
		var e entry
		if e, err = newEntry(tok, time.Now()); err == nil {
			return e, nil
		}
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	return entry{}, err
}

// keep makes e the entry of key. It refuses one got with the refresh token of an old entry that
// was dropped meanwhile; had that one expired, it may be gone for lack of room as well.
func (c *Cache) put(key Key, e, old entry, refresh string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, held := c.entries[key]; !held {
		if refresh != "" && old.valid(time.Now()) {
			return false
		}
		c.makeRoomLocked()
	}
	c.entries[key] = e
	return true
}

// postpone gives out the token of key although it is due, and sees to it that nobody tries to
// renew it for a while. It reports false if the token is no good any more. Either way the
// refresh token has had its chance: client credentials always work.
func (c *Cache) serveStale(key Key) (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, held := c.entries[key]
	now := time.Now()
	if held && !e.fresh(now) {
		e.refresh, e.renewAt = "", now.Add(retryInterval)
		c.entries[key] = e
	}
	return e.access, e.valid(now)
}

// makeRoomLocked drops what expired, and, if that is not enough, what expires next.
func (c *Cache) makeRoomLocked() {
	now := time.Now()
	maps.DeleteFunc(c.entries, func(_ Key, e entry) bool { return !e.valid(now) })
	if len(c.entries) < maxKeys {
		return
	}
	var next Key
	var soonest entry
	for key, e := range c.entries {
		if soonest.access == "" || e.expiresBefore(soonest) {
			next, soonest = key, e
		}
	}
	delete(c.entries, next)
}

func newEntry(tok *oauth2.Token, now time.Time) (entry, error) {
	if tok == nil {
		return entry{}, errors.New("no token")
	}
	if err := checkAccessToken(tok.AccessToken); err != nil {
		return entry{}, err
	}
	e := entry{access: tok.AccessToken, refresh: tok.RefreshToken}
	if tok.Expiry.IsZero() {
		return e, nil
	}
	// Without the monotonic clock, which rests while the machine sleeps.
	e.expiry = tok.Expiry.Round(0)
	life := e.expiry.Sub(now)
	if life <= 0 {
		return entry{}, errExpired
	}
	// A nanosecond on top: with exactly that much left, it is not less yet.
	e.renewAt = e.expiry.Add(-margin(life) + 1)
	return e, nil
}

// margin is how much is left of a token of that life when it is to be renewed. One that would
// be due in the first third of its life is short-lived: a third is its margin.
func margin(life time.Duration) time.Duration {
	if life-refreshMargin < life/3 {
		return life / 3
	}
	return refreshMargin
}

// valid tells whether the token can still be shown; the zero entry has none.
func (e entry) valid(now time.Time) bool {
	return e.access != "" && (e.expiry.IsZero() || now.Before(e.expiry))
}

// fresh tells whether the token is valid and not to be renewed yet.
func (e entry) fresh(now time.Time) bool {
	return e.valid(now) && (e.renewAt.IsZero() || now.Before(e.renewAt))
}

func (e entry) expiresBefore(o entry) bool {
	return !e.expiry.IsZero() && (o.expiry.IsZero() || e.expiry.Before(o.expiry))
}

// flight names a key, no two alike: the parts may hold any character.
func flightKey(key Key) string {
	return fmt.Sprintf("%q %t %q", key.Audience, key.Cluster, key.Customer)
}

func waitError(ctx context.Context) error {
	return fmt.Errorf("waiting for a token: %w", context.Cause(ctx))
}
