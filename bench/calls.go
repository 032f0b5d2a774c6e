//go:build linux

package main

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// calls compares all contestants while all peers are healthy.
func (h *harness) calls(ctx context.Context) (string, error) {
	for _, peers := range h.Peers {
		for _, callers := range h.Callers {
			c := conditions{Peers: peers, Size: h.Size, Delay: h.Delay}
			results, err := h.measure(ctx, h.Names, config{conditions: c, Callers: callers})
			if err != nil {
				return "", err
			}
			h.results = append(h.results, results...)
		}
	}
	h.checkCalls()
	return callsTable(h.results), nil
}

// burst measures concurrent calls that find no open connections.
func (h *harness) burst(ctx context.Context) (string, error) {
	const callers = 8
	var all []result
	for _, peers := range h.Peers {
		cfg := config{conditions: conditions{Peers: peers, Size: h.Size}, Callers: callers, Burst: true}
		results, err := h.measure(ctx, h.selected(ours, baseline, bounded, npmName), cfg)
		if err != nil {
			return "", err
		}
		all = append(all, results...)
	}
	h.compare(all, comparison{baseline, "slowest call of a burst", p99, 1.0 / 2, false, 1000, callers})
	return burstTable(all), nil
}

// tail measures calls while an occasional response is slow.
func (h *harness) tail(ctx context.Context) (string, error) {
	c := conditions{Peers: 10, Size: h.Size, SlowEvery: 97, SlowFor: 200 * time.Millisecond}
	names := append([]string{hedged}, h.selected(ours, baseline, npmName)...)
	results, err := h.measure(ctx, names, config{conditions: c, Callers: 1})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("One of %d responses takes %s.\n\n", c.SlowEvery, ms(c.SlowFor)) + callsTable(results), nil
}

// start counts what a node fetches until the end of its first call.
func (h *harness) start(ctx context.Context) (string, error) {
	var b strings.Builder
	b.WriteString("| peers | contestant | tokens fetched | registrations | first call |\n| ---: | --- | ---: | ---: | ---: |\n")
	for _, peers := range h.Peers {
		var e endpoints
		if err := h.stub.do("conditions", conditions{Peers: peers, Size: h.Size}, &e); err != nil {
			return "", err
		}
		e.Timeout = h.Timeout
		for _, name := range h.selected(ours, npmName) {
			h.log("start: %d peers, %s", peers, name)
			var times []time.Duration
			var cost requestCounts
			for range h.Rounds {
				r, requests, err := h.firstCall(ctx, name, e)
				if err != nil {
					return "", err
				}
				times, cost = append(times, r.Took), requests
			}
			fmt.Fprintf(&b, "| %d | %s | %d | %d | %s |\n", peers, name, cost.Tokens, cost.Registrations, ms(medianDuration(times)))
			if name == ours {
				what := fmt.Sprintf("%d peers: tokens fetched until the end of the first call", peers)
				h.checkAtMost(what, "", float64(cost.Tokens), 2)
			}
		}
	}
	return b.String(), nil
}

// firstCall starts a contestant and makes one call. It returns the requests of both to the stub
// cluster.
func (h *harness) firstCall(ctx context.Context, name string, e endpoints) (r callResult, cost requestCounts, err error) {
	var before, after requestCounts
	if err := h.stub.do("counts", nil, &before); err != nil {
		return r, cost, err
	}
	c, err := h.connect(ctx, name, e)
	if err != nil {
		return r, cost, err
	}
	defer c.kill()
	if err := c.do("call", nil, &r); err != nil {
		return r, cost, err
	}
	if r.Results != len(e.Peers) {
		return r, cost, fmt.Errorf("%s: %d of %d peers responded", name, r.Results, len(e.Peers))
	}
	err = h.stub.do("counts", nil, &after)
	return r, after.since(before), err
}
