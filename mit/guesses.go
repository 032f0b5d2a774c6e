package mit

import (
	"sync"
	"time"
)

const (
	freeGuesses     = 5   // wrong secrets without a delay, for clients with an old configuration
	freeOfAddress   = 100 // the same for one address, which many clients may share
	firstGuessDelay = time.Second
	maxGuessDelay   = time.Minute
	guessMemory     = 15 * time.Minute // after which wrong secrets no longer count
	maxGuessers     = 10_000
)

// guesses delays clients and addresses that send wrong secrets. Each wrong secret doubles the time
// in which no further secret is checked. The zero value is ready for use.
type guesses struct {
	off bool // read-only

	mu       sync.Mutex // guards the field below
	guessers map[string]*guesser
}

// A guesser is an address, or a client at an address.
type guesser struct {
	wrong int
	last  time.Time
	until time.Time // no secret is checked earlier
}

// wait returns the time for which no secret of a client at an address is checked; 0 if one may be
// checked now.
func (g *guesses) wait(now time.Time, address, client string) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	var wait time.Duration
	for _, key := range []string{address, guesserKey(address, client)} {
		if s := g.guessers[key]; s != nil {
			wait = max(wait, s.until.Sub(now))
		}
	}
	return wait
}

func guesserKey(address, client string) string { return address + " " + client }

// wrong records a wrong secret.
func (g *guesses) wrong(now time.Time, address, client string) {
	if g.off {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.guessers == nil {
		g.guessers = map[string]*guesser{}
	}
	if len(g.guessers) >= maxGuessers {
		g.removeOldLocked(now)
	}
	for key, free := range map[string]int{address: freeOfAddress, guesserKey(address, client): freeGuesses} {
		s := g.guessers[key]
		if s == nil || now.Sub(s.last) > guessMemory {
			s = &guesser{}
			g.guessers[key] = s
		}
		s.wrong++
		s.last = now
		if n := s.wrong - free; n > 0 {
			s.until = now.Add(min(firstGuessDelay<<min(n-1, 16), maxGuessDelay))
		}
	}
}

// right removes the wrong secrets of a client at an address.
func (g *guesses) right(address, client string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.guessers, guesserKey(address, client))
}

// removeOldLocked makes room. It removes guessers whose wrong secrets no longer count; if that is
// not enough, those that delay no request now; and if that is not enough, all.
func (g *guesses) removeOldLocked(now time.Time) {
	for _, old := range []func(*guesser) bool{
		func(s *guesser) bool { return now.Sub(s.last) > guessMemory },
		func(s *guesser) bool { return !s.until.After(now) },
		func(*guesser) bool { return true },
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
