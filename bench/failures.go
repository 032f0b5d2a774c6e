//go:build linux

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// failureTimeout is the request timeout of the failures experiment. It is shorter than the default
// of 10 s to shorten the experiment. With the default, hanging peers cost five times as much.
const failureTimeout = 2 * time.Second

// A scenario changes the conditions of a healthy cluster between two calls.
type scenario struct {
	Name string
	conditions
}

func scenarios() []scenario {
	return []scenario{
		{"all 10 healthy", conditions{Peers: 10}},
		{"1 of 10 refuses", conditions{Peers: 10, Dead: 1}},
		{"2 of 10 refuse", conditions{Peers: 10, Dead: 2}},
		{"3 of 10 refuse", conditions{Peers: 10, Dead: 3}},
		{"1 of 10 refuses, registry down", conditions{Peers: 10, Dead: 1, RegistryDown: true}},
		{"1 of 10 hangs", conditions{Peers: 10, Hanging: 1}},
		{"1 of 10 hangs, registry down", conditions{Peers: 10, Hanging: 1, RegistryDown: true}},
		{"1 of 10 takes 500 ms", conditions{Peers: 10, Slow: 1, SlowFor: 500 * time.Millisecond}},
		{"100 of 1000 refuse", conditions{Peers: 1000, Dead: 100}},
	}
}

const streaming = "cluster, Stream"

// nextCalls is the number of calls that are measured after the first one.
const nextCalls = 5

// A scenarioResult has the rounds of one contestant in one scenario.
type scenarioResult struct {
	Name     string
	Scenario scenario
	First    []callResult    // of the first call after the conditions have changed
	Next     []callResult    // of the next calls, after the background work of the first one
	Cost     []requestCounts // requests to the stub cluster before the next calls
}

func (r scenarioResult) firstTook() time.Duration {
	return medianOf(r.First, func(c callResult) time.Duration { return c.Took })
}

func (r scenarioResult) nextTook() time.Duration {
	return medianOf(r.Next, func(c callResult) time.Duration { return c.Took })
}

func (r scenarioResult) firstOutcome() time.Duration {
	return medianOf(r.First, func(c callResult) time.Duration { return c.First })
}

func (r scenarioResult) lastResult() time.Duration {
	return medianOf(r.First, func(c callResult) time.Duration { return c.Last })
}

func medianOf(calls []callResult, value func(callResult) time.Duration) time.Duration {
	var values []time.Duration
	for _, c := range calls {
		values = append(values, value(c))
	}
	return medianDuration(values)
}

// failures compares the contestants while peers refuse connections, hang or are slow.
func (h *harness) failures(ctx context.Context) (string, error) {
	results, err := h.measureScenarios(ctx, func(s scenario) bool { return slices.Contains(h.Peers, s.Peers) })
	if err != nil {
		return "", err
	}
	h.scenarioResults = results
	h.checkFailures()
	return failuresTable(results), nil
}

// measureScenarios runs the wanted scenarios. Each run uses a new process.
func (h *harness) measureScenarios(ctx context.Context, wanted func(scenario) bool) ([]scenarioResult, error) {
	var all []scenarioResult
	for _, s := range scenarios() {
		if !wanted(s) {
			continue
		}
		h.log("%s", s.Name)
		var results []scenarioResult
		for _, name := range h.selected(ours, baseline, npmName) {
			results = append(results, scenarioResult{Name: name, Scenario: s})
			if name == ours {
				results = append(results, scenarioResult{Name: streaming, Scenario: s})
			}
		}
		for range h.FailureRounds {
			for _, i := range rand.Perm(len(results)) {
				if err := h.runScenario(ctx, &results[i]); err != nil {
					return all, err
				}
			}
		}
		all = append(all, results...)
	}
	return all, nil
}

// runScenario adds one round to r.
func (h *harness) runScenario(ctx context.Context, r *scenarioResult) error {
	name, command := r.Name, "call"
	if name == streaming {
		name, command = ours, "stream"
	}
	c, err := h.connectHealthy(ctx, name, r.Scenario.Peers)
	if err != nil {
		return err
	}
	defer c.kill()

	failing := r.Scenario.conditions
	failing.Size = h.Size
	if err := h.stub.do("conditions", failing, nil); err != nil {
		return err
	}
	var before requestCounts
	if err := h.stub.do("counts", nil, &before); err != nil {
		return err
	}
	var first callResult
	if err := c.do(command, nil, &first); err != nil {
		return err
	}
	after, err := h.awaitBroadcasts(ctx, failing.Peers)
	if err != nil {
		return err
	}
	r.First, r.Cost = append(r.First, first), append(r.Cost, after.since(before))
	for range nextCalls {
		var next callResult
		if err := c.do(command, nil, &next); err != nil {
			return err
		}
		if next.Results == 0 {
			return fmt.Errorf("%s: a call after the first one had no results", name)
		}
		r.Next = append(r.Next, next)
	}
	return nil
}

// connectHealthy starts a contestant in a healthy cluster and makes calls that open its
// connections.
func (h *harness) connectHealthy(ctx context.Context, name string, peers int) (*process, error) {
	var e endpoints
	if err := h.stub.do("conditions", conditions{Peers: peers, Size: h.Size}, &e); err != nil {
		return nil, err
	}
	e.Timeout = failureTimeout
	c, err := h.connect(ctx, name, e)
	if err != nil {
		return nil, err
	}
	for range 3 {
		var r callResult
		err := c.do("call", nil, &r)
		if err == nil && r.Results != peers {
			err = fmt.Errorf("%s: %d of %d healthy peers responded", name, r.Results, peers)
		}
		if err != nil {
			c.kill()
			return nil, err
		}
	}
	return c, nil
}

// awaitBroadcasts waits until the evictions of a call have been broadcast. A node delays each
// broadcast by up to a millisecond per peer.
func (h *harness) awaitBroadcasts(ctx context.Context, peers int) (requestCounts, error) {
	select {
	case <-time.After(time.Duration(peers+100) * time.Millisecond):
		return waitIdle(ctx, h.stub, 0)
	case <-ctx.Done():
		return requestCounts{}, context.Cause(ctx)
	}
}

// failuresTable returns the results as a Markdown table.
func failuresTable(results []scenarioResult) string {
	var b strings.Builder
	fmt.Fprintf(&b, "The request timeout is %s.\n\n", formatDuration(failureTimeout))
	fmt.Fprintf(&b, "| scenario | contestant | first call | first outcome | last result | results + failures | next %d calls | results + failures | registry requests | other requests to peers |\n", nextCalls)
	b.WriteString("| --- | --- |" + strings.Repeat(" ---: |", 8) + "\n")
	for _, r := range results {
		first, next, cost := r.First[len(r.First)-1], r.Next[len(r.Next)-1], r.Cost[len(r.Cost)-1]
		outcome, result := "", ""
		if r.Name == streaming {
			outcome, result = ms(r.firstOutcome()), ms(r.lastResult())
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %d + %d | %s | %d + %d | %d | %d |\n", r.Scenario.Name, r.Name,
			ms(r.firstTook()), outcome, result, first.Results, first.Failures,
			ms(r.nextTook()), next.Results, next.Failures, cost.Registrations+cost.Deletes, cost.Others)
	}
	return b.String()
}
