package main

import (
	"context"
	"hash/fnv"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
)

// A store keeps the entries of the registry. Its clock can be moved, and its lists can be wrong.
// Get always returns the truth.
type store struct {
	typ       string
	processes *processes
	deleted   func(e entry, date time.Time) // called for each delete; date is zero without a condition
	kept      func()                        // called if a conditional delete deletes nothing

	mu      sync.Mutex // guards the fields below
	entries map[string]entry
	former  map[string]registered // by server id
	lost    time.Time
	offset  time.Duration // of the clock
	list    string        // which list is sent; empty: the right one
	seed    uint64
	old     []cluster.Server
}

// An entry is that of a server, and the number of the process that has registered it.
type entry struct {
	cluster.Server
	process int
	expires time.Time
}

var _ mit.Store = (*store)(nil)

func newStore(typ string, p *processes) *store {
	return &store{typ: typ, processes: p, entries: map[string]entry{}, former: map[string]registered{}}
}

func (s *store) id() string { return mit.ResourceID(s.typ) }

func (s *store) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.entries)
}

func (s *store) moveClock(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.offset += d
}

func (s *store) setList(list string, seed uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list, s.seed, s.old = list, seed, s.liveLocked()
}

// Put implements [mit.Store]. Unlike other stores, it dates an entry by its clock alone, also if
// the clock has been set back.
func (s *store) Put(_ context.Context, reg mit.Registration, ttl time.Duration) (mit.Resource, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	live := s.liveLocked()
	now := time.Now().Add(s.offset)
	var previous, replaced *cluster.Server
	if i, known := find(live, reg.ServerID); known {
		before := live[i]
		replaced, previous = &live[i], &before
		if previous.UpdatedAt.After(now) {
			previous.UpdatedAt = now.Add(-time.Millisecond)
		}
	}
	server, err := reg.Entry(previous, now)
	if err != nil {
		return mit.Resource{}, err
	}
	s.entries[reg.ServerID] = entry{server, s.processes.number(server.ClusterBaseURL), time.Now().Add(ttl)}
	servers := s.sentLocked(server)
	s.noteLossLocked(reg, server, servers)
	res := mit.NewResource(reg.Type, reg.PublicBaseURL, len(servers), func(i int) cluster.Server { return servers[i] })
	res.Replaced = replaced
	return res, nil
}

// registered has the dates of the last registration of an id, by the clock of the registry, and the
// times at which it took place.
type registered struct {
	created, updated time.Time // the dates of the entry
	born, renewed    time.Time // when the entry was created, and when it was renewed
	loss             bool      // the server may have treated the registry as reset then
}

// noteLossLocked records when a server may treat the registry as reset: its entry was created
// again, and the list that is sent to it has no other entry that it may know. That is so after a
// loss, but also after a time in which all entries have expired.
func (s *store) noteLossLocked(reg mit.Registration, own cluster.Server, sent []cluster.Server) {
	now := time.Now()
	former, known := s.former[own.ServerID]
	next := registered{own.CreatedAt, own.UpdatedAt, former.born, now, former.loss}
	if !known || !own.CreatedAt.Equal(former.created) {
		next.born = now
		next.loss = known && !slices.ContainsFunc(sent, func(o cluster.Server) bool {
			return o.ServerID != own.ServerID && !s.former[o.ServerID].born.After(former.renewed) && !o.CreatedAt.After(former.updated)
		})
	} else if reg.RenewalOf.Equal(own.CreatedAt) {
		next.loss = false // the server has received the response that created the entry
	}
	s.former[own.ServerID] = next
	if next.loss {
		s.lost = now
	}
}

// lastLost returns when a server may last have treated the registry as reset.
func (s *store) lastLost() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

// sentLocked returns the list that is sent to a server: the right one, or a wrong one that contains
// that server.
func (s *store) sentLocked(own cluster.Server) []cluster.Server {
	servers := s.liveLocked()
	switch s.list {
	case listOld:
		servers = slices.Clone(s.old)
	case listPartial:
		servers = slices.DeleteFunc(servers, func(other cluster.Server) bool {
			h := fnv.New64a()
			_, _ = h.Write([]byte(other.ServerID))
			return other.ServerID != own.ServerID && (h.Sum64()^s.seed)%2 == 0
		})
	}
	i, listed := find(servers, own.ServerID)
	if listed {
		servers[i] = own
	} else {
		servers = slices.Insert(servers, i, own)
	}
	return servers
}

func find(servers []cluster.Server, id string) (int, bool) {
	return slices.BinarySearchFunc(servers, id, func(s cluster.Server, id string) int {
		switch {
		case s.ServerID < id:
			return -1
		case s.ServerID > id:
			return 1
		}
		return 0
	})
}

// liveLocked removes the expired entries, and returns the others.
func (s *store) liveLocked() []cluster.Server {
	now := time.Now()
	maps.DeleteFunc(s.entries, func(_ string, e entry) bool { return !now.Before(e.expires) })
	servers := make([]cluster.Server, 0, len(s.entries))
	for _, id := range slices.Sorted(maps.Keys(s.entries)) {
		servers = append(servers, s.entries[id].Server)
	}
	return servers
}

// Get implements [mit.Store].
func (s *store) Get(context.Context, string) (mit.Resource, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	servers := s.liveLocked()
	return mit.NewResource(s.typ, "", len(servers), func(i int) cluster.Server { return servers[i] }), nil
}

// List implements [mit.Store].
func (s *store) List(ctx context.Context) ([]mit.Resource, error) {
	r, err := s.Get(ctx, mit.ResourceID(s.typ))
	return []mit.Resource{r}, err
}

// Delete implements [mit.Store].
func (s *store) Delete(_ context.Context, _, serverID string) error {
	s.deleteIf(serverID, time.Time{})
	return nil
}

// DeleteIfUnmodifiedSince implements [mit.Store].
func (s *store) DeleteIfUnmodifiedSince(_ context.Context, _, serverID string, date time.Time) (*cluster.Server, error) {
	return s.deleteIf(serverID, date), nil
}

func (s *store) deleteIf(serverID string, date time.Time) (newer *cluster.Server) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.liveLocked()
	e, known := s.entries[serverID]
	if !known {
		return nil
	}
	if !date.IsZero() && e.UpdatedAt.After(date) {
		s.kept()
		return &e.Server
	}
	delete(s.entries, serverID)
	s.deleted(e, date)
	return nil
}

// processes are the processes that are meant to run, by host.
type processes struct {
	mu     sync.Mutex // guards the fields below
	byHost map[string]process
	count  int
	twins  map[string]bool // ids that two processes have had
}

// A process has a number, which no other has.
type process struct {
	number  int
	id      string
	started time.Time
}

func (p *processes) start(host, id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count++
	p.byHost[host] = process{p.count, id, time.Now()}
}

func (p *processes) stop(host string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.byHost, host)
}

// number returns the number of the process at a base URL; 0 if there is none.
func (p *processes) number(baseURL string) int {
	running, _ := p.at(baseURL)
	return running.number
}

func (p *processes) at(baseURL string) (process, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	running, ok := p.byHost[hostOf(baseURL)]
	return running, ok
}

func (p *processes) addTwin(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.twins[id] = true
}

func (p *processes) hadTwin(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.twins[id]
}
