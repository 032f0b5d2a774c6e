package mit

import (
	"bytes"
	"cmp"
	"encoding/json"
	"net/http"
	"sync"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/internal/wire"
)

// answers writes resources as the wire has them. A renewal is answered with all servers, of which
// one has changed since the last answer: what was written of the others is used again.
type answers struct {
	mu        sync.Mutex // guards the field below
	resources map[string]*written
}

// written is what the last answer said of a resource.
type written struct {
	mu      sync.Mutex // guards the field below; who writes all anew does so for those who wait, too
	entries []*writtenEntry
}

type writtenEntry struct {
	server cluster.Server
	json   []byte
}

// registered is the answer to a registration: what json.Marshal makes of a [wire.Registered].
func (a *answers) registered(r Resource, leaseTime *float64) (encoded, error) {
	entries, size, err := a.of(r.ID).update(r.Servers)
	if err != nil {
		return nil, err
	}
	frame, err := json.Marshal(wire.Registered{
		ItResource: &wire.ItResource{ID: r.ID, Type: r.Type, PublicBaseURL: r.PublicBaseURL},
		LeaseTime:  leaseTime,
	})
	if err != nil {
		return nil, unwritable()
	}
	// No name before it can hold a bracket and quotes: there they would be escaped.
	at := bytes.Index(frame, []byte(`"servers":[`)) + len(`"servers":[`)
	b := make(encoded, 0, len(frame)+size)
	b = append(b, frame[:at]...)
	for i, e := range entries {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, e.json...)
	}
	return append(b, frame[at:]...), nil
}

func (a *answers) of(id string) *written {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.resources == nil {
		a.resources = make(map[string]*written)
	}
	if a.resources[id] == nil {
		a.resources[id] = new(written)
	}
	return a.resources[id]
}

// update returns servers as they are written, and how much they are together with the commas
// between them.
func (w *written) update(servers []cluster.Server) (entries []*writtenEntry, size int, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	last := w.entries
	entries = make([]*writtenEntry, len(servers))
	for i, s := range servers {
		for len(last) > 0 && cmp.Less(last[0].server.ServerID, s.ServerID) { // both are sorted
			last = last[1:]
		}
		if len(last) > 0 && same(last[0].server, s) {
			entries[i] = last[0]
		} else {
			b, err := json.Marshal(wire.Server(s))
			if err != nil { // only a store that makes up JSON can cause it
				return nil, 0, unwritable()
			}
			entries[i] = &writtenEntry{s, b}
		}
		size += len(entries[i].json) + 1
	}
	w.entries = entries
	return entries, size, nil
}

func unwritable() error {
	return refuse(http.StatusInternalServerError, "the answer could not be written")
}

// same says whether two servers are written alike.
func same(a, b cluster.Server) bool {
	return a.ServerID == b.ServerID && a.ClusterBaseURL == b.ClusterBaseURL &&
		a.UpdatedAt.Equal(b.UpdatedAt) && a.CreatedAt.Equal(b.CreatedAt) &&
		bytes.Equal(a.Location, b.Location) && bytes.Equal(a.Raw, b.Raw)
}
