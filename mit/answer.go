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
// one has changed since the last answer: what was written of the others is used again. It holds
// what the last answer for each resource said.
type answers struct {
	mu   sync.Mutex                 // guards the field below
	last map[string][]*writtenEntry // by resource id; each replaced, never changed
}

type writtenEntry struct {
	server cluster.Server
	json   []byte
}

// registered is the answer to a registration: what json.Marshal makes of a [wire.Registered].
func (a *answers) registered(r Resource, leaseTime *float64) (encoded, error) {
	entries, size, err := a.entries(r)
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

// entries are the servers of a resource as they are written, and how much they are together with
// the commas between them.
func (a *answers) entries(r Resource) (entries []*writtenEntry, size int, err error) {
	a.mu.Lock()
	last := a.last[r.ID]
	a.mu.Unlock()
	entries = make([]*writtenEntry, len(r.Servers))
	for i, s := range r.Servers {
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
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last == nil {
		a.last = make(map[string][]*writtenEntry)
	}
	if len(entries) > 0 {
		a.last[r.ID] = entries
	} else {
		delete(a.last, r.ID)
	}
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
