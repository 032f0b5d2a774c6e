package main

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/mimiktech/cluster/clustertest"
)

// startupTable measures groups of nodes that start at the same time.
func startupTable(ctx context.Context, groups []int) (string, error) {
	var b strings.Builder
	b.WriteString("Nodes that start at the same time:\n\n")
	b.WriteString("| nodes | announcing | requests | rejected | sent | received | time | complete views |\n| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n")
	for _, n := range groups {
		for _, a := range []announcement{announceSelf, announceAll} {
			c, complete, err := measureStartup(ctx, n, a)
			if err != nil {
				return "", fmt.Errorf("%d nodes: %w", n, err)
			}
			fmt.Fprintf(&b, "| %d | %s | %d | %d | %s | %s | %s | %d |\n", n, a,
				c.Requests, c.Failed, formatBytes(c.Sent), formatBytes(c.Received), formatDuration(c.Took), complete)
		}
	}
	return b.String(), nil
}

// measureStartup returns the cost, and the number of nodes that know of all others in the end.
func measureStartup(ctx context.Context, nodes int, a announcement) (c cost, complete int, err error) {
	err = clustertest.Program(ctx, func(t clustertest.TB) {
		w := clustertest.Start(t, 0)
		for range nodes {
			addNode(w, a)
		}
		c = measure(w.Network, func() { registerAll(t, w.Nodes) })
		for _, n := range w.Nodes {
			if len(n.Servers()) == nodes {
				complete++
			}
		}
	})
	return c, complete, err
}

func registerAll(t clustertest.TB, nodes []*clustertest.Node) {
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { _, errs[i] = n.Register(t.Context()) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			t.Fatalf("%w", err)
		}
	}
}
