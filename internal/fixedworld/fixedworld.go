// Package fixedworld starts worlds of one node and any number of fixed peers. A fixed peer is an
// entry of the registry (mIT) and a canned response. Tests use it for clusters that are too large
// to run.
package fixedworld

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/mit"
)

// A Store is a registry store that answers every registration with the same servers.
type Store struct {
	*mit.Memory

	mu      sync.Mutex // guards the field below
	servers []cluster.Server
}

// NewStore returns a store that lists the servers.
func NewStore(servers []cluster.Server) *Store {
	return &Store{Memory: mit.NewMemory(), servers: servers}
}

// Set replaces the servers that the store lists.
func (s *Store) Set(servers []cluster.Server) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.servers = servers
}

// Put returns the servers of the store and ignores the registration.
func (s *Store) Put(_ context.Context, reg mit.Registration, _ time.Duration) (mit.Resource, error) {
	return mit.Resource{
		ID: mit.ResourceID(reg.Type), Type: reg.Type, PublicBaseURL: reg.PublicBaseURL, Servers: s.list(),
	}, nil
}

// Servers returns the entries of node-1 and of count peers, numbered from the given number, as a
// registry lists them.
func Servers(from, count int) []cluster.Server {
	date := time.Now().UTC().Truncate(time.Millisecond)
	servers := []cluster.Server{{ServerID: "node-1", ClusterBaseURL: "http://node-1:8080/mds/v1", CreatedAt: date, UpdatedAt: date}}
	for i := range count {
		id := fmt.Sprintf("peer-%04d-4f1c-4a56-9a3b-0d5f6c7e8a9b", from+i) // as long as a UUID
		servers = append(servers, cluster.Server{
			ServerID:       id,
			ClusterBaseURL: "http://" + id + ":8080/mds/v1",
			Location:       json.RawMessage(`{"type":"Point","coordinates":[-123.1207,49.2827]}`),
			CreatedAt:      date,
			UpdatedAt:      date,
		})
	}
	return servers
}

// Start starts a world in which node-1 can join the servers of the store. Each peer answers any
// request with its id after the delay.
func Start(t clustertest.TB, store *Store, delay time.Duration, opts ...clustertest.Option) *clustertest.World {
	t.Helper()
	w := clustertest.Start(t, 0, append(opts, clustertest.WithStore(store))...)
	for _, s := range store.list()[1:] {
		envelope := fmt.Appendf(nil, `{"data":[%q],"server":{"serverId":%[1]q}}`, s.ServerID)
		w.Network.Handle(s.ServerID+":8080", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(delay)
			_, _ = w.Write(envelope)
		}))
	}
	return w
}

func (s *Store) list() []cluster.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.servers)
}
