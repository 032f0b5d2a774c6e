package mit

import (
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"github.com/mimiktech/cluster/internal/statuspage"
)

const (
	moveMemory     = 3 * time.Hour // a lease and a half, by default
	moveSweep      = time.Minute   // interval at which older moves are removed
	maxMoves       = 10_000
	warnEvery      = time.Minute // for one server
	movesRemovedAt = maxMoves / 2

	maxAddresses = 4 // of one server
	maxConflicts = 20
)

// moves detects processes that share one server id. Their renewals change the address of the entry
// back and forth. A server that is moved, however, gets an address that it did not have before. The
// zero value is ready for use.
//
// Both addresses of a change are remembered. If two processes renew at different replicas of the
// registry, each replica may see changes to one and the same address only.
//
// Nothing is kept of a server that was deleted, or that has not moved for moveMemory, except in
// conflicts.
type moves struct {
	mu     sync.Mutex // guards the fields below
	byID   map[serverKey]*move
	swept  time.Time
	backed uint64 // number of changes to an address that the server had before
	// conflicts are the servers of the last such changes, the oldest first.
	conflicts []statuspage.RegistryConflict
}

// A move is the last change of a server's address.
type move struct {
	addresses []uint64 // hashes of the last addresses, including the present one
	at        time.Time
	warned    time.Time
}

// renewed records a renewal, by which the address of a server may have changed. It reports whether
// to warn that the server had the new address before.
func (m *moves) renewed(key serverKey, from, to string, now time.Time) (warn bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sweepLocked(now)
	if from == to {
		return false
	}
	last := m.moveLocked(key, now)
	back := slices.Contains(last.addresses, hashOf(to))
	last.addresses = lastAddresses(last.addresses, hashOf(from), hashOf(to))
	last.at = now
	if !back {
		return false
	}
	m.backed++
	m.addConflictLocked(key, from, to, now)
	if now.Sub(last.warned) < warnEvery {
		return false
	}
	last.warned = now
	return true
}

// left removes what is kept of a server.
func (m *moves) left(key serverKey) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.byID, key)
}

//nolint:gochecknoglobals // a constant of the process
var addressSeed = maphash.MakeSeed()

func hashOf(address string) uint64 { return maphash.String(addressSeed, address) }

// moveLocked returns the last move of a server; an empty one if there is none.
func (m *moves) moveLocked(key serverKey, now time.Time) *move {
	last := m.byID[key]
	if last != nil && now.Sub(last.at) < moveMemory {
		return last
	}
	if len(m.byID) >= maxMoves {
		m.makeRoomLocked()
	}
	last = &move{}
	m.byID[key] = last
	return last
}

func (m *moves) addConflictLocked(key serverKey, from, to string, now time.Time) {
	var before []string
	m.conflicts = slices.DeleteFunc(m.conflicts, func(c statuspage.RegistryConflict) bool {
		if c.Type != key.typ || c.ID != key.id {
			return false
		}
		if now.Sub(c.At) < moveMemory {
			before = c.Addresses
		}
		return true
	})
	if len(m.conflicts) >= maxConflicts {
		m.conflicts = slices.Delete(m.conflicts, 0, 1)
	}
	m.conflicts = append(m.conflicts, statuspage.RegistryConflict{
		At: now, Type: key.typ, ID: key.id, Addresses: lastAddresses(before, from, to),
	})
}

// lastAddresses returns the last addresses of a server, after further ones were added. The newest
// is the last.
func lastAddresses[T comparable](before []T, further ...T) []T {
	addresses := slices.DeleteFunc(slices.Clone(before), func(a T) bool { return slices.Contains(further, a) })
	addresses = append(addresses, further...)
	return addresses[max(0, len(addresses)-maxAddresses):]
}

// sweepLocked removes old moves, once in moveSweep.
func (m *moves) sweepLocked(now time.Time) {
	if now.Sub(m.swept) < moveSweep {
		return
	}
	m.swept = now
	recent := map[serverKey]*move{} // a map does not become smaller
	for key, last := range m.byID {
		if now.Sub(last.at) < moveMemory {
			recent[key] = last
		}
	}
	m.byID = recent
}

// makeRoomLocked removes some moves.
func (m *moves) makeRoomLocked() {
	for key := range m.byID {
		if len(m.byID) <= movesRemovedAt {
			return
		}
		delete(m.byID, key)
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
