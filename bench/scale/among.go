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

// A crowd is a store that lists the same servers to everybody, and whoever registers.
type crowd struct {
	*mit.Memory
	servers []cluster.Server
}

func (c crowd) Put(_ context.Context, r mit.Registration, _ time.Duration) (mit.Resource, error) {
	now := time.Now().UTC().Truncate(time.Millisecond)
	me := cluster.Server{ServerID: r.ServerID, ClusterBaseURL: r.ClusterBaseURL, CreatedAt: now, UpdatedAt: now}
	return mit.Resource{
		ID: mit.ResourceID(r.Type), Type: r.Type, PublicBaseURL: r.PublicBaseURL,
		Servers: append(slices.Clone(c.servers), me),
	}, nil
}

// newCrowd lists servers whose entries are as long as those of real ones: ids are UUIDs.
func newCrowd(count int) crowd {
	c := crowd{Memory: mit.NewMemory()}
	date := time.Now().UTC().Truncate(time.Millisecond)
	for i := range count {
		id := fmt.Sprintf("peer%04d-4f1c-4a56-9a3b-0d5f6c7e8a9b", i)
		c.servers = append(c.servers, cluster.Server{
			ServerID: id, ClusterBaseURL: "http://" + id + ":8080/mds/v1", CreatedAt: date, UpdatedAt: date,
		})
	}
	return c
}

// As much as a node reads of an announcement: Config.MaxRequestBytes.
const mostRead = 1 << 20

// standIn answers as the server would: to an announcement with the list that it knows if it is to
// be told back, or that it is too long to be read; to all else with a small thing.
func standIn(id string, list []byte) http.Handler {
	thing := fmt.Appendf(nil, `{"data":[%q],"server":{"serverId":%q}}`, id, id)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if !announces(r) {
			_, _ = w.Write(thing) // who does not listen misses it
			return
		}
		if n, _ := io.Copy(io.Discard, io.LimitReader(r.Body, mostRead+1)); n > mostRead {
			http.Error(w, `{"statusCode":413}`, http.StatusRequestEntityTooLarge)
			return
		}
		told := list
		if r.Header.Get("Prefer") == "return=minimal" {
			told = []byte("null")
		}
		_, _ = fmt.Fprintf(w, `{"data":%s,"server":{"serverId":%q}}`, told, id) // likewise
	})
}

// The answers to an announcement that a node has in memory at once may not be larger than this.
const mostHeld = 4 << 30

// among measures one node among that many servers.
func among(ctx context.Context, sizes []int, rounds int) (string, error) {
	var b strings.Builder
	b.WriteString("One node in a cluster of that many servers:\n\n")
	b.WriteString("| servers | what it does | requests | refused | sent | received | time |\n| ---: | --- | ---: | ---: | ---: | ---: | ---: |\n")
	for _, n := range sizes {
		c := newCrowd(n - 1)
		list, err := json.Marshal(map[string]any{"id": mit.ResourceID("mds"), "type": "mds", "servers": c.servers})
		if err != nil {
			return "", err
		}
		line := func(what string, c cost) {
			fmt.Fprintf(&b, "| %d | %s | %d | %d | %s | %s | %s |\n", n, what, c.Requests, c.Failed, size(c.Sent), size(c.Received), span(c.Took))
		}
		for _, how := range []announcing{onlyItself, wholeList} {
			what := "joins, announcing " + how.String()
			if all := int64(n) * int64(len(list)); how == wholeList && len(list) <= mostRead && all > mostHeld {
				fmt.Fprintf(&b, "| %d | %s | %d | | | %s (not done: all in memory at once) | |\n", n, what, n+2, size(all))
				continue
			}
			var joins, renewals, fanouts []cost
			for range rounds {
				err := perform(ctx, func(s *stage) {
					w, node := scene(s, c, list, how, true)
					joins = append(joins, costing(w.Network, func() { join(s, node) }))
					if how == onlyItself {
						fanouts = append(fanouts, costing(w.Network, func() { ask(s, node, n-1) }))
					}
				})
				if err != nil {
					return "", fmt.Errorf("%d servers: %w", n, err)
				}
				if how == wholeList {
					continue // all else is the same
				}
				err = perform(ctx, func(s *stage) {
					w, node := scene(s, c, list, how, false)
					join(s, node)
					renewals = append(renewals, costing(w.Network, func() { join(s, node) })) // again is renewing
				})
				if err != nil {
					return "", fmt.Errorf("%d servers: %w", n, err)
				}
			}
			line(what, middle(joins))
			if how == onlyItself {
				line("renews", middle(renewals))
				line("asks all", middle(fanouts))
			}
		}
		one, err := withServers(list, c.servers[:1])
		if err != nil {
			return "", err
		}
		for _, read := range []struct {
			what     string
			resource []byte
			prefer   string
		}{
			{"reads one announcement of only a newcomer", one, "return=minimal"},
			{"reads one announcement of the whole list", list, ""},
		} {
			var reads []cost
			for range rounds {
				err := perform(ctx, func(s *stage) { reads = append(reads, reading(s, c, read.resource, read.prefer)) })
				if err != nil {
					return "", fmt.Errorf("%d servers: %w", n, err)
				}
			}
			line(read.what, middle(reads))
		}
	}
	return b.String(), nil
}

// scene is a world with a node that is about to join a crowd. Only one that manages announces itself.
func scene(s *stage, c crowd, list []byte, how announcing, manages bool) (*clustertest.World, *clustertest.Node) {
	w := clustertest.Start(s, 0, clustertest.WithStore(c), clustertest.WithConfig(func(cfg *cluster.Config) { cfg.Management = manages }))
	for _, peer := range c.servers {
		w.Network.Handle(peer.ServerID+":8080", standIn(peer.ServerID, list))
	}
	var (
		node *clustertest.Node
		opts []cluster.Option
	)
	if how == wholeList {
		opts = append(opts, cluster.WithHTTPClient(widened(w.Network, "node-1:8080", func() []cluster.Server { return node.Servers() })))
	}
	node = w.Add(opts...)
	return w, node
}

func join(s *stage, n *clustertest.Node) {
	if _, err := n.Register(s.ctx); err != nil {
		s.Fatal(err)
	}
}

func ask(s *stage, n *clustertest.Node, want int) {
	r, err := n.RPCluster(s.ctx, cluster.Request{Path: "/things"})
	if err != nil {
		s.Fatal(err)
	}
	if len(r.Results) != want {
		s.Fatalf("%d of %d peers answered, the first failure: %v", len(r.Results), want, r.Failures[0].Err)
	}
}

// reading is what a real node has to do for one announcement.
func reading(s *stage, c crowd, resource []byte, prefer string) cost {
	w, n := scene(s, c, nil, onlyItself, true)
	join(s, n)
	req := httptest.NewRequestWithContext(s.ctx, http.MethodPost, "http://"+n.Host+"/mds/v1/itResources", bytes.NewReader(resource))
	req.RequestURI = ""
	req.Header.Set("Authorization", "Bearer "+w.Token("mds", true))
	req.Header.Set("Prefer", prefer)
	return costing(w.Network, func() {
		resp, err := w.Network.Transport("elsewhere").RoundTrip(req)
		if err != nil {
			s.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			s.Fatal(err)
		}
	})
}
