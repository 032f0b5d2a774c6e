package main

import (
	"context"
	"fmt"
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
		for _, how := range []announcing{onlyItself, wholeList} {
			var (
				c    cost
				know int
			)
			err := perform(ctx, func(s *stage) {
				w := clustertest.Start(s, 0)
				for i := range n {
					var (
						node *clustertest.Node
						opts []cluster.Option
					)
					if how == wholeList {
						host := fmt.Sprintf("node-%d:8080", i+1)
						opts = append(opts, cluster.WithHTTPClient(widened(w.Network, host, func() []cluster.Server { return node.Servers() })))
					}
					node = w.Add(opts...)
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
