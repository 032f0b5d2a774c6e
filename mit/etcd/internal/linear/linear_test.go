package linear

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
)

// checkTimeout is far longer than a check takes.
const checkTimeout = 30 * time.Second

// record returns the history of a store in memory. Entries expire while clients call it.
func record(t *testing.T, store mit.Store) *History {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	return Record(ctx, Config{
		Clients: 4, Servers: 3, TTL: 8 * time.Millisecond, Pause: 2 * time.Millisecond,
		Store: func(int) mit.Store { return store },
	})
}

// The store in memory is linearizable, and the history has all results that a call can have.
func TestMemoryIsLinearizable(t *testing.T) {
	t.Parallel()
	h := record(t, mit.NewMemory())
	t.Log(h)
	if err := h.Check(checkTimeout); err != nil {
		t.Error(err)
	}
	for kind, results := range map[kind][]string{
		put: {"present"}, renew: {"present", "absent"}, get: {"present", "absent"}, remove: {"absent"},
		conditionalDelete: {"present", "absent"},
	} {
		for _, result := range results {
			if h.Count(string(kind), result) == 0 {
				t.Errorf("no call %q has the result %q", kind, result)
			}
		}
	}
}

// A store that breaks one guarantee is noticed.
func TestBrokenStores(t *testing.T) {
	t.Parallel()
	for name, broken := range map[string]func(*mit.Memory) mit.Store{
		"a delete has no effect":           func(m *mit.Memory) mit.Store { return &lostDelete{Memory: m} },
		"a delete takes effect later":      func(m *mit.Memory) mit.Store { return &lateDelete{Memory: m} },
		"a delete ignores its date":        func(m *mit.Memory) mit.Store { return &dateless{Memory: m} },
		"a list is from before":            func(m *mit.Memory) mit.Store { return &staleList{Memory: m} },
		"an entry expires early":           func(m *mit.Memory) mit.Store { return &otherTTL{Memory: m, factor: 0.2} },
		"an entry expires late":            func(m *mit.Memory) mit.Store { return &otherTTL{Memory: m, factor: 50} },
		"a renewal restores a lost entry":  func(m *mit.Memory) mit.Store { return &restoring{Memory: m} },
		"a renewal has the dates of a put": func(m *mit.Memory) mit.Store { return &recreating{Memory: m} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := record(t, broken(mit.NewMemory()))
			if err := h.Check(checkTimeout); err == nil || !strings.Contains(err.Error(), "not linearizable") {
				t.Errorf("got %v for %v", err, h)
			}
		})
	}
}

type lostDelete struct{ *mit.Memory }

func (*lostDelete) Delete(context.Context, string, string) error { return nil }

type lateDelete struct{ *mit.Memory }

func (s *lateDelete) Delete(ctx context.Context, id, serverID string) error {
	time.AfterFunc(5*time.Millisecond, func() { _ = s.Memory.Delete(ctx, id, serverID) })
	return nil
}

type dateless struct{ *mit.Memory }

func (s *dateless) DeleteIfUnmodifiedSince(ctx context.Context, id, serverID string, _ time.Time) (*cluster.Server, error) {
	return nil, s.Delete(ctx, id, serverID)
}

// A staleList returns each list only with the next read.
type staleList struct {
	*mit.Memory

	mu   sync.Mutex // guards the field below
	last mit.Resource
}

func (s *staleList) Get(ctx context.Context, id string) (mit.Resource, error) {
	now, err := s.Memory.Get(ctx, id)
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.last
	s.last = now
	return before, err
}

type otherTTL struct {
	*mit.Memory

	factor float64
}

func (s *otherTTL) Put(ctx context.Context, reg mit.Registration, ttl time.Duration) (mit.Resource, error) {
	return s.Memory.Put(ctx, reg, time.Duration(s.factor*float64(ttl)))
}

// A restoring store creates the entry that a renewal lacks.
type restoring struct{ *mit.Memory }

func (s *restoring) Put(ctx context.Context, reg mit.Registration, ttl time.Duration) (mit.Resource, error) {
	reg.RenewalOf = time.Time{}
	return s.Memory.Put(ctx, reg, ttl)
}

// A recreating store takes each put for that of a new server.
type recreating struct{ *mit.Memory }

func (s *recreating) Put(ctx context.Context, reg mit.Registration, ttl time.Duration) (mit.Resource, error) {
	if reg.RenewalOf.IsZero() {
		_ = s.Delete(ctx, mit.ResourceID(reg.Type), reg.ServerID) // it returns nil
	}
	return s.Memory.Put(ctx, reg, ttl)
}
