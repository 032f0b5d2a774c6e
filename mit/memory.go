package mit

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/internal/httpjson"
)

// Memory is a [Store] in the memory of one process. The zero Memory is empty and ready for use. It
// must not be copied.
//
// It starts no goroutine. Expired servers are removed by the next call for their resource, and once
// a minute by a call for any resource. Resources are never removed. It holds at most the servers
// that have registered and a small entry for each type.
//
// After a restart it is empty and fills again as the nodes renew. For up to a lease it lists only
// the servers that have renewed since.
type Memory struct {
	// Logger logs every server that expires; nil: no log. Set it before the first use.
	Logger *zap.Logger

	clock func() time.Time // for tests; nil: time.Now

	mu        sync.Mutex // guards the fields below, with all their entries
	resources map[string]*memoryResource
	version   uint64    // of the last change
	expired   uint64    // number of servers
	notBefore time.Time // the earliest date of a new entry: later than the dates of all removed ones
	swept     time.Time // when expired servers of all types were last removed
}

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{} }

// Put implements [Store]. Apart from [ErrNotFound], it fails only if Location is not valid JSON.
func (m *Memory) Put(ctx context.Context, reg Registration, ttl time.Duration) (Resource, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	id := ResourceID(reg.Type)
	r := m.resourceLocked(ctx, id, now)
	if r == nil {
		r = &memoryResource{typ: strings.Clone(reg.Type)}
	}
	i, known := r.find(reg.ServerID)
	var previous *cluster.Server
	if known {
		before := r.entries[i].Server
		previous = &before
	}
	if !reg.Renews(previous) {
		return Resource{}, ErrNotFound
	}
	// If the machine's clock goes back, an entry must not get an older date than its predecessor.
	// Peers would ignore it as outdated.
	server, err := reg.Entry(previous, later(now, m.notBefore))
	if err != nil {
		return Resource{}, err
	}
	if m.resources == nil {
		m.resources = make(map[string]*memoryResource)
	}
	m.resources[id] = r
	r.publicBaseURL = cmp.Or(reg.PublicBaseURL, r.publicBaseURL)
	if !known {
		r.entries = slices.Insert(r.entries, i, &memoryEntry{})
	}
	*r.entries[i] = memoryEntry{server, now.Add(ttl)}
	m.notBefore = later(server.UpdatedAt, m.notBefore)
	m.version++
	res := m.snapshotLocked(r)
	res.Replaced = previous
	return res, nil
}

// Get implements [Store].
func (m *Memory) Get(ctx context.Context, id string) (Resource, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.resourceLocked(ctx, id, time.Now())
	if r == nil {
		return Resource{}, ErrNotFound
	}
	return m.snapshotLocked(r), nil
}

// List implements [Store].
func (m *Memory) List(ctx context.Context) ([]Resource, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	list := make([]Resource, 0, len(m.resources))
	for _, r := range m.resources {
		m.expireLocked(ctx, r, now)
		list = append(list, m.snapshotLocked(r))
	}
	sortByType(list)
	return list, nil
}

// String describes the store.
func (m *Memory) String() string { return "in the memory of this process; it is empty after a restart" }

// Delete implements [Store]. It does not fail.
func (m *Memory) Delete(ctx context.Context, id, serverID string) error {
	m.deleteIf(ctx, id, serverID, func(cluster.Server) bool { return true })
	return nil
}

// DeleteIfUnmodifiedSince implements [Store]. It does not fail.
func (m *Memory) DeleteIfUnmodifiedSince(ctx context.Context, id, serverID string, date time.Time) (*cluster.Server, error) {
	newer := m.deleteIf(ctx, id, serverID, func(s cluster.Server) bool { return !s.UpdatedAt.After(date) })
	return newer, nil
}

// Expirations returns the number of servers that have expired.
func (m *Memory) Expirations() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.expired
}

// sweepInterval is the interval at which expired servers of types without requests are removed.
const sweepInterval = time.Minute

type memoryResource struct {
	typ, publicBaseURL string
	entries            []*memoryEntry // sorted by id
}

type memoryEntry struct {
	cluster.Server           // shares no memory with other entries or with a request
	expires        time.Time // on the monotonic clock: setting the machine's clock expires nothing
}

var _ Store = (*Memory)(nil)

func (m *Memory) now() time.Time {
	if m.clock != nil {
		return m.clock()
	}
	return time.Now()
}

func later(t, u time.Time) time.Time {
	if t.Before(u) {
		return u
	}
	return t
}

func sortByType(list []Resource) {
	slices.SortFunc(list, func(a, b Resource) int { return cmp.Compare(a.Type, b.Type) })
}

// deleteIf removes a server if cond holds for its entry, and returns the entry otherwise.
func (m *Memory) deleteIf(ctx context.Context, id, serverID string, cond func(cluster.Server) bool) *cluster.Server {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.resourceLocked(ctx, id, time.Now())
	if r == nil {
		return nil
	}
	i, known := r.find(serverID)
	if !known {
		return nil
	}
	if s := r.entries[i].Server; !cond(s) {
		return &s
	}
	m.version++
	m.removedLocked(r.entries[i])
	r.entries = shrink(slices.Delete(r.entries, i, i+1))
	return nil
}

// removedLocked makes later entries newer than one that is removed.
func (m *Memory) removedLocked(e *memoryEntry) {
	m.notBefore = later(e.UpdatedAt.Add(time.Millisecond), m.notBefore)
}

// resourceLocked returns a resource after removing its expired servers; nil if there is none.
func (m *Memory) resourceLocked(ctx context.Context, id string, now time.Time) *memoryResource {
	if now.Sub(m.swept) >= sweepInterval {
		m.swept = now
		for _, r := range m.resources {
			m.expireLocked(ctx, r, now)
		}
	}
	r := m.resources[id]
	if r != nil {
		m.expireLocked(ctx, r, now)
	}
	return r
}

func (m *Memory) expireLocked(ctx context.Context, r *memoryResource, now time.Time) {
	r.entries = shrink(slices.DeleteFunc(r.entries, func(e *memoryEntry) bool {
		if now.Before(e.expires) {
			return false
		}
		m.version++
		m.expired++
		m.removedLocked(e)
		if m.Logger != nil {
			m.Logger.Info("server expired", zap.String("type", r.typ), zap.String("serverId", e.ServerID),
				zap.Time("updatedAt", e.UpdatedAt), httpjson.CorrelationField(ctx))
		}
		return true
	}))
}

// shrink copies entries if they use a small part of their array, so that the array can be freed.
func shrink(entries []*memoryEntry) []*memoryEntry {
	if cap(entries) > 64 && len(entries) < cap(entries)/4 {
		return slices.Clone(entries)
	}
	return entries
}

// find returns the index of a server in entries, or the index to insert it at.
func (r *memoryResource) find(serverID string) (int, bool) {
	return slices.BinarySearchFunc(r.entries, serverID, func(e *memoryEntry, id string) int {
		return cmp.Compare(e.ServerID, id)
	})
}

func (m *Memory) snapshotLocked(r *memoryResource) Resource {
	res := NewResource(r.typ, r.publicBaseURL, len(r.entries), func(i int) cluster.Server { return r.entries[i].Server })
	res.Version = m.version
	return res
}
