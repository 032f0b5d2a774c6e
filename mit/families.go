package mit

import (
	"sync"
	"time"
)

const (
	// reuseTolerance is the time for which the previous refresh token of a family stays valid. The
	// response with its successor may have been lost.
	reuseTolerance = 30 * time.Second
	maxFamilies    = 100_000
)

// families detects refresh tokens that are used twice. A family has all refresh tokens that descend
// from one request with client credentials. The second use of a token shows that it was stolen, and
// ends its family. The zero value is ready for use.
//
// Only families with a refreshed token are recorded, and only in this process. So another replica,
// or this one after a restart, accepts any token of a family until a later one has been used there.
type families struct {
	mu    sync.Mutex // guards the field below
	known map[string]*family
}

type family struct {
	generation int // of the newest token
	since      time.Time
	expires    time.Time
	ended      bool
}

// use reports whether a token of a generation may be refreshed, and records its successor. expires
// is when the family's tokens expire.
func (f *families) use(id string, generation int, expires, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.known[id]
	if s == nil {
		if f.known == nil {
			f.known = map[string]*family{}
		}
		if len(f.known) >= maxFamilies {
			f.makeRoomLocked(now)
		}
		s = &family{generation: generation, expires: expires}
		f.known[id] = s
	}
	switch {
	case s.ended:
		return false
	case generation >= s.generation:
		s.generation, s.since = generation+1, now
		return true
	case generation == s.generation-1 && now.Sub(s.since) <= reuseTolerance:
		return true
	}
	s.ended = true
	return false
}

// makeRoomLocked removes expired families, or some if none has expired.
func (f *families) makeRoomLocked(now time.Time) {
	for id, s := range f.known {
		if now.After(s.expires) {
			delete(f.known, id)
		}
	}
	for id := range f.known {
		if len(f.known) < maxFamilies {
			return
		}
		delete(f.known, id)
	}
}
