package mit

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster"
)

// Memory is a [Store] in the memory of one process. The zero Memory is empty and ready; it
// must not be copied.
//
// It starts no goroutine: servers that have outstayed their lease go when their resource is
// next touched, by whatever call. A resource stays, so it holds at most the servers that
// registered and one small entry for every type that ever did.
//
// After a restart it is empty, and fills again as its nodes renew: for up to a lease it names
// only those that have.
type Memory struct {
	// Logger gets a line for every server that goes because it stayed silent; nil: none.
	// Set it before the first use.
	Logger *zap.Logger

	mu        sync.Mutex // guards the field below, and all it leads to
	resources map[string]*memoryResource
}

type memoryResource struct {
	id, typ, publicBaseURL string
	entries                []*memoryEntry // sorted by id
}

type memoryEntry struct {
	cluster.Server
	expires time.Time // on the monotonic clock: a machine that changes its time evicts nobody
}

var _ Store = (*Memory)(nil)

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{} }

// Put implements [Store]. It does not fail.
func (m *Memory) Put(ctx context.Context, reg Registration, life time.Duration) (Resource, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	id := ResourceID(reg.Type)
	r := m.touchLocked(ctx, id, now)
	if r == nil {
		r = &memoryResource{id: id, typ: reg.Type}
		if m.resources == nil {
			m.resources = make(map[string]*memoryResource)
		}
		m.resources[id] = r
	}
	r.publicBaseURL = cmp.Or(reg.PublicBaseURL, r.publicBaseURL)

	i, known := r.find(reg.ServerID)
	if !known {
		r.entries = slices.Insert(r.entries, i, &memoryEntry{})
	}
	e := r.entries[i]
	date := now.UTC().Truncate(time.Millisecond)
	if known && !date.After(e.UpdatedAt) {
		date = e.UpdatedAt.Add(time.Millisecond)
	}
	created := date
	if known {
		created = e.CreatedAt
	}
	e.Server = cluster.Server{
		ServerID:       reg.ServerID,
		ClusterBaseURL: reg.ClusterBaseURL,
		Location:       bytes.Clone(reg.Location),
		CreatedAt:      created,
		UpdatedAt:      date,
	}
	e.expires = now.Add(life)
	return r.snapshot(), nil
}

// Get implements [Store].
func (m *Memory) Get(ctx context.Context, id string) (Resource, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.touchLocked(ctx, id, time.Now())
	if r == nil {
		return Resource{}, ErrNotFound
	}
	return r.snapshot(), nil
}

// Delete implements [Store]. It does not fail.
func (m *Memory) Delete(ctx context.Context, id, serverID string) error {
	_, err := m.remove(ctx, id, serverID, func(cluster.Server) bool { return true })
	return err
}

// DeleteIfUnmodifiedSince implements [Store]. It does not fail.
func (m *Memory) DeleteIfUnmodifiedSince(ctx context.Context, id, serverID string, date time.Time) (*cluster.Server, error) {
	return m.remove(ctx, id, serverID, func(s cluster.Server) bool { return !s.UpdatedAt.After(date) })
}

func (m *Memory) remove(ctx context.Context, id, serverID string, may func(cluster.Server) bool) (*cluster.Server, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.touchLocked(ctx, id, time.Now())
	if r == nil {
		return nil, nil
	}
	i, known := r.find(serverID)
	if !known {
		return nil, nil
	}
	if s := r.entries[i].Server; !may(s) {
		s.Location = bytes.Clone(s.Location)
		return &s, nil
	}
	r.entries = slices.Delete(r.entries, i, i+1)
	return nil, nil
}

// touchLocked is the resource without the servers whose time is up; nil if there is none.
func (m *Memory) touchLocked(ctx context.Context, id string, now time.Time) *memoryResource {
	r := m.resources[id]
	if r == nil {
		return nil
	}
	r.entries = slices.DeleteFunc(r.entries, func(e *memoryEntry) bool {
		if now.Before(e.expires) {
			return false
		}
		if m.Logger != nil {
			m.Logger.Info("server expired", zap.String("type", r.typ), zap.String("serverId", e.ServerID),
				zap.Time("updatedAt", e.UpdatedAt), correlation(ctx))
		}
		return true
	})
	return r
}

// find is where the server stands in entries, or should.
func (r *memoryResource) find(serverID string) (int, bool) {
	return slices.BinarySearchFunc(r.entries, serverID, func(e *memoryEntry, id string) int {
		return cmp.Compare(e.ServerID, id)
	})
}

// snapshot is a copy that shares nothing with r, in two allocations however many servers
// there are.
func (r *memoryResource) snapshot() Resource {
	size := 0
	for _, e := range r.entries {
		size += len(e.Location)
	}
	locations := make([]byte, 0, size)
	servers := make([]cluster.Server, len(r.entries))
	for i, e := range r.entries {
		servers[i] = e.Server
		if e.Location != nil {
			start := len(locations)
			locations = append(locations, e.Location...)
			servers[i].Location = locations[start:len(locations):len(locations)]
		}
	}
	return Resource{ID: r.id, Type: r.typ, PublicBaseURL: r.publicBaseURL, Servers: servers}
}
