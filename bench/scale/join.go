package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/mit"
)

const (
	// maxRequestBytes is the default of Config.MaxRequestBytes, the limit of an announcement.
	maxRequestBytes = 1 << 20

	// maxMemory bounds the responses to an announcement, which a node has in memory at the same
	// time.
	maxMemory = 4 << 30
)

// joinTable measures one node in clusters of several sizes.
func joinTable(ctx context.Context, sizes []int, rounds int) (string, error) {
	var b strings.Builder
	b.WriteString("One node in a cluster of the given size:\n\n")
	b.WriteString("| servers | operation | requests | rejected | sent | received | time |\n| ---: | --- | ---: | ---: | ---: | ---: | ---: |\n")
	for _, n := range sizes {
		c, err := newFakeCluster(n)
		if err != nil {
			return "", err
		}
		for _, o := range c.operations() {
			if o.memory > maxMemory {
				fmt.Fprintf(&b, "| %d | %s | | | | %s (too much memory to measure) | |\n", n, o.name, formatBytes(o.memory))
				continue
			}
			m, err := medianCost(ctx, rounds, o.run)
			if err != nil {
				return "", fmt.Errorf("%d servers: %s: %w", n, o.name, err)
			}
			fmt.Fprintf(&b, "| %d | %s | %d | %d | %s | %s | %s |\n", n, o.name,
				m.Requests, m.Failed, formatBytes(m.Sent), formatBytes(m.Received), formatDuration(m.Took))
		}
	}
	return b.String(), nil
}

// An operation is one row of the table.
type operation struct {
	name   string
	run    func(clustertest.TB) cost
	memory int64 // bytes of responses in memory, 0 if few
}

// A fakeCluster is a cluster in which all servers but one are fakes.
type fakeCluster struct {
	size  int
	store fixedStore
	list  []byte // an itResource with all fakes
	one   []byte // an itResource with one of them
}

func newFakeCluster(size int) (fakeCluster, error) {
	store := newFixedStore(size - 1)
	list, err := json.Marshal(map[string]any{"id": mit.ResourceID("mds"), "type": "mds", "servers": store.servers})
	if err != nil {
		return fakeCluster{}, err
	}
	one, err := withServers(list, store.servers[:1])
	return fakeCluster{size, store, list, one}, err
}

// operations returns what is measured, in the order of the table.
func (c fakeCluster) operations() []operation {
	joinOperation := func(a announcement) operation {
		o := operation{name: "join, announcing " + a.String(), run: func(t clustertest.TB) cost {
			w, node := c.setup(t, a, true)
			return measure(w.Network, func() { register(t, node) })
		}}
		if a == announceAll && len(c.list) <= maxRequestBytes { // larger announcements are rejected
			o.memory = int64(c.size) * int64(len(c.list))
		}
		return o
	}
	return []operation{
		joinOperation(announceSelf),
		{name: "renewal", run: func(t clustertest.TB) cost {
			w, node := c.setup(t, announceSelf, false)
			register(t, node)
			return measure(w.Network, func() { register(t, node) })
		}},
		{name: "fan-out", run: func(t clustertest.TB) cost {
			w, node := c.setup(t, announceSelf, true)
			register(t, node)
			return measure(w.Network, func() { fanOut(t, node, c.size-1) })
		}},
		joinOperation(announceAll),
		{name: "receive an announcement of one server", run: func(t clustertest.TB) cost {
			return c.measureReceive(t, c.one, "return=minimal")
		}},
		{name: "receive an announcement of all servers", run: func(t clustertest.TB) cost {
			return c.measureReceive(t, c.list, "")
		}},
	}
}

// setup returns a world with the fakes and a real node that has not joined yet. The node announces
// itself only if management is on.
func (c fakeCluster) setup(t clustertest.TB, a announcement, management bool) (*clustertest.World, *clustertest.Node) {
	w := clustertest.Start(t, 0, clustertest.WithStore(c.store), clustertest.WithConfig(func(cfg *cluster.Config) { cfg.Management = management }))
	for _, s := range c.store.servers {
		w.Network.Handle(s.ServerID+":8080", fakePeer(s.ServerID, c.list))
	}
	return w, addNode(w, a)
}

// measureReceive measures how a real node handles an announcement.
func (c fakeCluster) measureReceive(t clustertest.TB, resource []byte, prefer string) cost {
	w, node := c.setup(t, announceSelf, true)
	register(t, node)
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+node.Host+"/mds/v1/itResources", bytes.NewReader(resource))
	req.RequestURI = ""
	req.Header.Set("Authorization", "Bearer "+w.Token("mds", true))
	req.Header.Set("Prefer", prefer)
	return measure(w.Network, func() {
		resp, err := w.Network.Transport("elsewhere").RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			t.Fatal(err)
		}
	})
}

// register registers the node, or renews its lease if it is registered.
func register(t clustertest.TB, n *clustertest.Node) {
	if _, err := n.Register(t.Context()); err != nil {
		t.Fatalf("%w", err)
	}
}

func fanOut(t clustertest.TB, n *clustertest.Node, want int) {
	r, err := n.RPCluster(t.Context(), cluster.Request{Path: "/things"})
	if err != nil {
		t.Fatalf("%w", err)
	}
	if len(r.Results) != want {
		t.Fatalf("%d of %d peers responded, first failure: %v", len(r.Results), want, r.Failures[0].Err)
	}
}

// A fixedStore is a registry store that lists the same servers in each resource, together with the
// server that registers.
type fixedStore struct {
	*mit.Memory
	servers []cluster.Server
}

// newFixedStore returns a store of servers with UUIDs as ids, so that entries have a realistic
// length.
func newFixedStore(count int) fixedStore {
	s := fixedStore{Memory: mit.NewMemory()}
	date := time.Now().UTC().Truncate(time.Millisecond)
	for i := range count {
		id := fmt.Sprintf("peer%04d-4f1c-4a56-9a3b-0d5f6c7e8a9b", i)
		s.servers = append(s.servers, cluster.Server{
			ServerID: id, ClusterBaseURL: "http://" + id + ":8080/mds/v1", CreatedAt: date, UpdatedAt: date,
		})
	}
	return s
}

// Put implements [mit.Store].
func (s fixedStore) Put(_ context.Context, r mit.Registration, _ time.Duration) (mit.Resource, error) {
	now := time.Now().UTC().Truncate(time.Millisecond)
	server := cluster.Server{ServerID: r.ServerID, ClusterBaseURL: r.ClusterBaseURL, CreatedAt: now, UpdatedAt: now}
	return mit.Resource{
		ID: mit.ResourceID(r.Type), Type: r.Type, PublicBaseURL: r.PublicBaseURL,
		Servers: append(slices.Clone(s.servers), server),
	}, nil
}

// fakePeer responds like a node. It answers an announcement with list unless the request prefers a
// minimal response, and rejects one that is too long. It answers all other requests with a small
// value.
func fakePeer(id string, list []byte) http.Handler {
	thing := fmt.Appendf(nil, `{"data":[%q],"server":{"serverId":%q}}`, id, id)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if !isAnnouncement(r) {
			_, _ = w.Write(thing) // the client may be gone
			return
		}
		if n, _ := io.Copy(io.Discard, io.LimitReader(r.Body, maxRequestBytes+1)); n > maxRequestBytes {
			http.Error(w, `{"statusCode":413}`, http.StatusRequestEntityTooLarge)
			return
		}
		data := list
		if r.Header.Get("Prefer") == "return=minimal" {
			data = []byte("null")
		}
		_, _ = fmt.Fprintf(w, `{"data":%s,"server":{"serverId":%q}}`, data, id) // the client may be gone
	})
}
