package mit

import (
	"crypto/sha256"
	"sync"
	"time"
)

const (
	freeGuesses     = 5   // wrong secrets without a delay, for clients with an old configuration
	freeOfAddress   = 100 // the same for one address, which many clients may share
	firstGuessDelay = time.Second
	maxGuessDelay   = time.Minute
	maxGuessers     = 10_000
)

// guesses delays clients and addresses that send wrong secrets. The first ones cause no delay. Each
// further one doubles the time in which no secret is checked, up to maxGuessDelay. After each
// maxGuessDelay, one wrong secret fewer counts. So a guesser that pauses has no more secrets
// checked than one that does not. The zero value is ready for use.
type guesses struct {
	off bool // read-only

	mu       sync.Mutex // guards the field below
	guessers map[guesserKey]guesser
}

// A guesserKey is a client at an address, or an address. A request may have any client id, even a
// long one, so the key has a hash of the id.
type guesserKey struct {
	address string
	client  [sha256.Size]byte // zero: all clients together
}

type guesser struct {
	paid  time.Time // when none of the wrong secrets counts any longer
	until time.Time // no secret is checked earlier
}

// count returns how many wrong secrets count.
func (s guesser) count(now time.Time) int {
	return int((max(0, s.paid.Sub(now)) + maxGuessDelay - 1) / maxGuessDelay)
}

func newGuesserKey(address, client string) guesserKey {
	return guesserKey{address, sha256.Sum256([]byte(client))}
}

func (k guesserKey) anyClient() guesserKey { return guesserKey{address: k.address} }

// wait returns the time for which no secret of a client at an address is checked; 0 if one may be
// checked now.
func (g *guesses) wait(now time.Time, client guesserKey) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return max(0, g.guessers[client].until.Sub(now), g.guessers[client.anyClient()].until.Sub(now))
}

// wrong records a wrong secret.
func (g *guesses) wrong(now time.Time, client guesserKey) {
	if g.off {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.guessers == nil {
		g.guessers = map[guesserKey]guesser{}
	}
	if len(g.guessers) >= maxGuessers {
		g.removeOldLocked(now)
	}
	for key, free := range map[guesserKey]int{client: freeGuesses, client.anyClient(): freeOfAddress} {
		s := g.guessers[key]
		s.paid = later(s.paid, now).Add(maxGuessDelay)
		if n := s.count(now) - free; n > 0 {
			s.until = now.Add(min(firstGuessDelay<<min(n-1, 16), maxGuessDelay))
		}
		g.guessers[key] = s
	}
}

// right removes the wrong secrets of a client at an address.
func (g *guesses) right(client guesserKey) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.guessers, client)
}

// removeOldLocked makes room. It removes guessers whose wrong secrets no longer count; if that is
// not enough, those that delay no request now; and if that is not enough, all.
func (g *guesses) removeOldLocked(now time.Time) {
	for _, old := range []func(guesser) bool{
		func(s guesser) bool { return s.count(now) == 0 },
		func(s guesser) bool { return !s.until.After(now) },
		func(guesser) bool { return true },
	} {
		for key, s := range g.guessers {
			if old(s) {
				delete(g.guessers, key)
			}
		}
		if len(g.guessers) < maxGuessers/2 {
			return
		}
	}
}
