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
// It starts no goroutine: expired servers are removed by the next call for their resource.
// Resources are never removed. It holds at most the servers that have registered and a small entry
// for each type.
//
// After a restart it is empty and fills again as the nodes renew. For up to a lease it lists only
// the servers that have renewed since.
type Memory struct {
	// Logger logs every server that expires; nil: no log. Set it before the first use.
	Logger *zap.Logger

	mu        sync.Mutex // guards the field below and all it leads to
	resources map[string]*memoryResource
}

type memoryResource struct {
	typ, publicBaseURL string
	entries            []*memoryEntry // sorted by id
}

type memoryEntry struct {
	cluster.Server           // shares no memory with other entries or with a request
	expires        time.Time // on the monotonic clock: setting the machine's clock expires nothing
}

var _ Store = (*Memory)(nil)

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{} }

// Put implements [Store]. It fails only if Location is not valid JSON.
func (m *Memory) Put(ctx context.Context, reg Registration, ttl time.Duration) (Resource, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	id := ResourceID(reg.Type)
	r := m.resourceLocked(ctx, id, now)
	if r == nil {
		r = &memoryResource{typ: strings.Clone(reg.Type)}
	}
	i, known := r.find(reg.ServerID)
	var previous *cluster.Server
	if known {
		previous = &r.entries[i].Server
	}
	server, err := reg.Entry(previous, now)
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
	return r.snapshot(), nil
}

// Get implements [Store].
func (m *Memory) Get(ctx context.Context, id string) (Resource, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.resourceLocked(ctx, id, time.Now())
	if r == nil {
		return Resource{}, ErrNotFound
	}
	return r.snapshot(), nil
}

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
	r.entries = slices.Delete(r.entries, i, i+1)
	return nil
}

// resourceLocked returns a resource after removing its expired servers; nil if there is none.
func (m *Memory) resourceLocked(ctx context.Context, id string, now time.Time) *memoryResource {
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
				zap.Time("updatedAt", e.UpdatedAt), httpjson.CorrelationField(ctx))
		}
		return true
	})
	return r
}

// find returns the index of a server in entries, or the index to insert it at.
func (r *memoryResource) find(serverID string) (int, bool) {
	return slices.BinarySearchFunc(r.entries, serverID, func(e *memoryEntry, id string) int {
		return cmp.Compare(e.ServerID, id)
	})
}

func (r *memoryResource) snapshot() Resource {
	return NewResource(r.typ, r.publicBaseURL, len(r.entries), func(i int) cluster.Server { return r.entries[i].Server })
}
