package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/mimiktech/cluster/clustertest"
)

// A cost has the requests, bytes and time of an operation.
type cost struct {
	Requests, Failed int64
	Sent, Received   int64 // bytes of bodies
	Took             time.Duration
}

// measure returns the cost of an operation. All requests on the network count.
func measure(network *clustertest.Network, operation func()) cost {
	var requests, failed, sent, received atomic.Int64
	stop := network.Observe(func(x clustertest.Exchange) {
		requests.Add(1)
		if x.Err != nil || x.Status >= 400 {
			failed.Add(1)
		}
		sent.Add(x.Sent)
		received.Add(x.Received)
	})
	defer stop()
	start := time.Now()
	operation()
	took := time.Since(start)
	return cost{requests.Load(), failed.Load(), sent.Load(), received.Load(), took}
}

// medianCost runs an operation several times and returns the cost of the run with the median time.
func medianCost(ctx context.Context, rounds int, operation func(clustertest.TB) cost) (cost, error) {
	var costs []cost
	for range rounds {
		err := clustertest.Program(ctx, func(t clustertest.TB) { costs = append(costs, operation(t)) })
		if err != nil {
			return cost{}, err
		}
	}
	slices.SortFunc(costs, func(a, b cost) int { return cmp.Compare(a.Took, b.Took) })
	return costs[len(costs)/2], nil
}

func formatBytes(n int64) string {
	switch f := float64(n); {
	case f >= 1e9:
		return fmt.Sprintf("%.1f GB", f/1e9)
	case f >= 1e6:
		return fmt.Sprintf("%.1f MB", f/1e6)
	case f >= 1e3:
		return fmt.Sprintf("%.1f kB", f/1e3)
	}
	return fmt.Sprintf("%d B", n)
}

func formatDuration(d time.Duration) string {
	if d >= time.Second {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return fmt.Sprintf("%.1f ms", float64(d)/1e6)
}
