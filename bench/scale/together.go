package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

// atOnce measures real nodes that start together.
func atOnce(ctx context.Context, groups []int) (string, error) {
	var b strings.Builder
	b.WriteString("That many nodes start together:\n\n")
	b.WriteString("| nodes | announcing | requests | refused | sent | received | time | know all |\n| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n")
	for _, n := range groups {
		for _, how := range []announcing{wholeList, onlyItself, nothingBack} {
			var (
				c    cost
				know int
			)
			err := perform(ctx, func(s *stage) {
				w := clustertest.Start(s, 0)
				for i := range n {
					host, id := fmt.Sprintf("node-%d:8080", i+1), fmt.Sprintf("node-%d", i+1)
					var opts []cluster.Option
					if how != wholeList {
						opts = append(opts, cluster.WithHTTPClient(slimmed(w.Network, host, id)))
					}
					node := w.Add(opts...)
					if how == nothingBack {
						mux := http.NewServeMux()
						node.Mount(mux)
						w.Network.Handle(node.Host, short(node.ID, mux))
					}
				}
				c = costing(w.Network, func() { startAll(s, w.Nodes) })
				for _, node := range w.Nodes {
					if len(node.Servers()) == n {
						know++
					}
				}
			})
			if err != nil {
				return "", fmt.Errorf("%d nodes: %w", n, err)
			}
			fmt.Fprintf(&b, "| %d | %s | %d | %d | %s | %s | %s | %d |\n", n, how, c.Requests, c.Failed, size(c.Sent), size(c.Received), span(c.Took), know)
		}
	}
	return b.String(), nil
}

func startAll(s *stage, nodes []*clustertest.Node) {
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { _, errs[i] = n.Register(s.ctx) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			s.Fatal(err)
		}
	}
}
