// Package token obtains and caches the tokens of a node, and verifies the tokens it receives. It
// does no HTTP itself.
package token

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/sync/singleflight"
)

// Key identifies a token in a [Cache].
type Key struct {
	Audience string
	Cluster  bool   // a cluster token, for the peer endpoints
	Customer string // the customer the token acts for, or ""
}

// Fetch obtains a new token for key. refresh is the refresh token received with the last token, ""
// if there is none or it has expired. A Fetch must return when ctx ends.
type Fetch func(ctx context.Context, key Key, refresh string) (*oauth2.Token, error)

// Cache keeps one token per [Key] and renews it in time. It is safe for concurrent use.
type Cache struct {
	ctx     context.Context
	fetch   Fetch
	flights singleflight.Group

	// RetryAfter, if set, returns how long after an error of the fetch no other one may begin, for
	// any key. It must be set before the first use of the Cache.
	RetryAfter func(error) time.Duration

	mu         sync.Mutex // guards the fields below; never held during a fetch
	entries    map[Key]entry
	pauseUntil time.Time
	pauseError error             // why there is a pause
	replaced   map[Key]time.Time // when Replace last removed a token
	recent     []string          // the last tokens, oldest first
}

// NewCache returns a Cache that obtains tokens from fetch. ctx bounds every fetch. After it has
// ended, the Cache returns only the tokens it has: a node needs one to deregister.
func NewCache(ctx context.Context, fetch Fetch) *Cache {
	return &Cache{ctx: ctx, fetch: fetch, entries: make(map[Key]entry)}
}

// Token returns the access token for key. It does not block while that token needs no renewal.
// Otherwise concurrent calls for the key share one fetch. Each call waits until its own ctx ends;
// the fetch continues for the others. The fetch has the values of the first caller's ctx, not its
// cancellation.
//
// If a renewal fails or takes more than a second, the old token is returned while it is valid. The
// renewal is not tried again for a second. Errors are not cached.
func (c *Cache) Token(ctx context.Context, key Key) (string, error) {
	e := c.get(key)
	now := time.Now()
	if e.fresh(now) {
		return e.access, nil
	}
	if ctx.Err() != nil { // the caller is gone already
		return "", waitError(ctx)
	}
	done := c.flights.DoChan(flightKey(key), func() (any, error) { return c.renew(ctx, key) })
	var staleTimeout <-chan time.Time
	if e.valid(now) {
		staleTimeout = time.After(staleWait)
	}
	for {
		select {
		case r := <-done:
			access, _ := r.Val.(string)
			return access, r.Err
		case <-ctx.Done():
			return "", waitError(ctx)
		case <-staleTimeout:
			if access, ok := c.serveStale(key); ok {
				return access, nil
			}
			staleTimeout = nil // expired or dropped meanwhile
		}
	}
}

// Drop removes the token for key if it is still accessToken: many peers that reject one token
// cause one fetch. It also removes the refresh token, so that the next token is obtained with
// client credentials.
func (c *Cache) Drop(key Key, accessToken string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries[key].access == accessToken {
		delete(c.entries, key)
	}
}

// Replace is like Drop, for a remote that may have rejected the token, such as one for which it is
// too long. It removes a token for key at most once in a quarter of an hour.
func (c *Cache) Replace(key Key, accessToken string) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.replaced, func(_ Key, at time.Time) bool { return now.Sub(at) >= refreshMargin })
	if _, recently := c.replaced[key]; recently || c.entries[key].access != accessToken || len(c.replaced) == maxKeys {
		return
	}
	if c.replaced == nil {
		c.replaced = make(map[Key]time.Time)
	}
	c.replaced[key] = now
	delete(c.entries, key)
}

// Values returns what must not be shown, in no order: access and refresh tokens, and the last ones
// that were replaced or dropped, which may still be valid. If there are many, some are left out.
func (c *Cache) Values() (values []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.entries {
		values = append(values, e.access, e.refresh)
		if len(values) == 2*maxValues {
			break
		}
	}
	values = append(values, c.recent...)
	slices.Sort(values)
	return slices.Compact(values)
}

// Check returns an error for a token that a [Cache] does not accept.
func Check(tok *oauth2.Token, now time.Time) error {
	if tok == nil {
		return errors.New("no token")
	}
	if err := checkAccessToken(tok.AccessToken); err != nil {
		return err
	}
	if !tok.Expiry.IsZero() && tok.Expiry.Round(0).Sub(now) <= 0 {
		return errExpired
	}
	return nil
}

const (
	refreshMargin = 900 * time.Second // remaining validity at which a token is renewed
	retryInterval = time.Second       // pause after a failed renewal while the old token is valid
	staleWait     = time.Second       // longest wait for a renewal while the old token is valid
	fetchTimeout  = time.Minute       // a hanging fetch must not block its key forever
	maxKeys       = 1024              // each customer is a key
)

type entry struct {
	access, refresh string
	expiry          time.Time // zero: never
	renewAt         time.Time // zero: never
}

// maxValues is how many entries Values returns the tokens of, and how many recent tokens it
// returns.
const maxValues = 16

func (c *Cache) get(key Key) entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.entries[key]
}

// renew obtains and stores a token. Calls for a key do not overlap. callerCtx is that of the call
// that began the flight.
func (c *Cache) renew(callerCtx context.Context, key Key) (string, error) {
	old := c.get(key)
	now := time.Now()
	if old.fresh(now) { // renewed since the caller checked
		return old.access, nil
	}
	refresh := old.refresh
	if expiry, ok, err := expClaim(refresh); err == nil && ok && !now.Before(expiry) {
		refresh = ""
	}
	e, err := c.fetchEntry(callerCtx, key, refresh)
	if err == nil && !c.put(key, e, old, refresh) {
		if e, err = c.fetchEntry(callerCtx, key, ""); err == nil {
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

// fetchEntry does one fetch, bounded by the cache's ctx.
func (c *Cache) fetchEntry(callerCtx context.Context, key Key, refresh string) (entry, error) {
	if err := context.Cause(c.ctx); err != nil {
		return entry{}, err
	}
	if err := c.paused(time.Now()); err != nil {
		return entry{}, err
	}
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(callerCtx))
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
	if c.RetryAfter != nil {
		c.pause(time.Now().Add(c.RetryAfter(err)), err)
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	return entry{}, err
}

func (c *Cache) pause(until time.Time, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if until.After(c.pauseUntil) {
		c.pauseUntil, c.pauseError = until, err
	}
}

// paused returns an error if no fetch may begin.
func (c *Cache) paused(now time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if left := c.pauseUntil.Sub(now); left > 0 {
		return fmt.Errorf("%w (the next request is sent in %v)", c.pauseError, left.Round(time.Millisecond))
	}
	return nil
}

// put stores e. It reports false if e was obtained with the refresh token of an entry that has
// been dropped meanwhile. An expired entry does not count as dropped: it may have been evicted.
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
	c.recent = append(c.recent, e.access, e.refresh)
	if excess := len(c.recent) - maxValues; excess > 0 {
		c.recent = slices.Delete(c.recent, 0, excess)
	}
	return true
}

// serveStale returns the token of key although it is due for renewal, and postpones the renewal.
// It reports false if the token is not valid any more. It drops the refresh token in both cases:
// the next attempt uses client credentials.
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

// makeRoomLocked removes expired entries. If that is not enough, it removes the next to expire.
func (c *Cache) makeRoomLocked() {
	now := time.Now()
	maps.DeleteFunc(c.entries, func(_ Key, e entry) bool { return !e.valid(now) })
	if len(c.entries) < maxKeys {
		return
	}
	var victim Key
	var soonest entry
	for key, e := range c.entries {
		if soonest.access == "" || e.expiresBefore(soonest) {
			victim, soonest = key, e
		}
	}
	delete(c.entries, victim)
}

func newEntry(tok *oauth2.Token, now time.Time) (entry, error) {
	if err := Check(tok, now); err != nil {
		return entry{}, err
	}
	e := entry{access: tok.AccessToken, refresh: tok.RefreshToken}
	if tok.Expiry.IsZero() {
		return e, nil
	}
	// Drop the monotonic clock, which stops while the machine sleeps.
	e.expiry = tok.Expiry.Round(0)
	ttl := e.expiry.Sub(now)
	// A nanosecond later, because a token with exactly the margin left is not renewed yet.
	e.renewAt = e.expiry.Add(-margin(ttl) + 1)
	return e, nil
}

// margin returns the remaining validity at which a token is renewed: refreshMargin, or a third of
// the TTL of a token that would otherwise be renewed in its first third.
func margin(ttl time.Duration) time.Duration {
	if ttl-refreshMargin < ttl/3 {
		return ttl / 3
	}
	return refreshMargin
}

// valid reports whether the token can be used; the zero entry has none.
func (e entry) valid(now time.Time) bool {
	return e.access != "" && (e.expiry.IsZero() || now.Before(e.expiry))
}

// fresh reports whether the token is valid and needs no renewal yet.
func (e entry) fresh(now time.Time) bool {
	return e.valid(now) && (e.renewAt.IsZero() || now.Before(e.renewAt))
}

func (e entry) expiresBefore(o entry) bool {
	return !e.expiry.IsZero() && (o.expiry.IsZero() || e.expiry.Before(o.expiry))
}

// flightKey returns a different string for every key, whatever characters its parts contain.
func flightKey(key Key) string {
	return fmt.Sprintf("%q %t %q", key.Audience, key.Cluster, key.Customer)
}

func waitError(ctx context.Context) error {
	return fmt.Errorf("waiting for a token: %w", context.Cause(ctx))
}
