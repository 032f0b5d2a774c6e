package mit

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mimiktech/cluster/internal/statuspage"
)

const (
	moveMemory     = 3 * time.Hour // a lease and a half, by default
	maxMoves       = 10_000
	warnEvery      = time.Minute // for one server
	movesRemovedAt = maxMoves / 2

	maxAddresses = 4 // of one server
	maxConflicts = 20
)

// moves detects processes that share one server id. Their renewals change the address of the entry
// back and forth. A server that was moved gets an address that it did not have before. The zero
// value is ready for use.
//
// Both addresses of a change are remembered. If two processes renew at different replicas of the
// registry, each replica may see changes to one and the same address only.
type moves struct {
	mu     sync.Mutex // guards the fields below
	byID   map[string]*move
	backed uint64 // number of changes to an address that the server had before
	// conflicts are the servers of the last such changes, the oldest first.
	conflicts []statuspage.RegistryConflict
}

// A move is the last change of a server's address.
type move struct {
	addresses []string // the last ones, with the present one
	at        time.Time
	warned    time.Time
}

// record records that a server's address has changed. It reports whether to warn that the server
// had the new address before.
func (m *moves) record(typ, serverID, from, to string, now time.Time) (warn bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.byID == nil {
		m.byID = map[string]*move{}
	}
	if len(m.byID) >= maxMoves {
		m.makeRoomLocked(now)
	}
	key := typ + "/" + serverID
	last := m.byID[key]
	if last == nil {
		last = &move{}
		m.byID[key] = last
	}
	if now.Sub(last.at) >= moveMemory {
		last.addresses = nil
	}
	back := slices.Contains(last.addresses, to)
	last.remember(from, to)
	last.at = now
	if !back {
		return false
	}
	m.backed++
	m.conflicts = slices.DeleteFunc(m.conflicts, func(c statuspage.RegistryConflict) bool { return c.Type == typ && c.ID == serverID })
	if len(m.conflicts) >= maxConflicts {
		m.conflicts = slices.Delete(m.conflicts, 0, 1)
	}
	m.conflicts = append(m.conflicts, statuspage.RegistryConflict{
		At: now, Type: strings.Clone(typ), ID: strings.Clone(serverID), Addresses: slices.Clone(last.addresses),
	})
	if now.Sub(last.warned) < warnEvery {
		return false
	}
	last.warned = now
	return true
}

// remember adds addresses to the last ones.
func (m *move) remember(addresses ...string) {
	for _, address := range addresses {
		m.addresses = append(slices.DeleteFunc(m.addresses, func(a string) bool { return a == address }), strings.Clone(address))
	}
	if n := len(m.addresses) - maxAddresses; n > 0 {
		m.addresses = slices.Delete(m.addresses, 0, n)
	}
}

// makeRoomLocked removes old moves, or some if none is old.
func (m *moves) makeRoomLocked(now time.Time) {
	for id, last := range m.byID {
		if now.Sub(last.at) >= moveMemory {
			delete(m.byID, id)
		}
	}
	for id := range m.byID {
		if len(m.byID) <= movesRemovedAt {
			return
		}
		delete(m.byID, id)
	}
}

// lastConflicts returns the servers that had conflicts last, the newest first.
func (m *moves) lastConflicts() []statuspage.RegistryConflict {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := slices.Clone(m.conflicts)
	slices.Reverse(list)
	return list
}

func (m *moves) count() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.backed
}
