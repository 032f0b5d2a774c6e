//go:build linux

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mimiktech/cluster/internal/npmtest"
)

// options say what to measure.
type options struct {
	Names   []string // of the contestants
	Peers   []int
	Callers []int
	Rounds  int
	// FailureRounds are the rounds of the failures experiment.
	FailureRounds int
	Time          time.Duration // of a round
	Size          int           // of the data of each response
	Delay         time.Duration // response time of each peer
	Timeout       time.Duration // of each request

	NPM      string // folder of the npm module's package.json and lock file
	Profiles string // folder for profiles, "" for none
	Plot     string // file for the plot, "" for none
}

// allContestants returns the contestants of the calls experiment, in the order of its table.
func allContestants() []string {
	return []string{ours, overNetHTTP, socketsName, baseline, bounded, defaultTransport, "retryablehttp", "resty", "failsafe", npmName}
}

// A harness owns the stub cluster, starts the contestants and collects the results.
type harness struct {
	options
	stub    *process
	modules string            // node_modules of the npm module
	absent  map[string]string // unavailable contestants, with the reason
	log     func(format string, args ...any)

	results         []result // of the calls experiment
	scenarioResults []scenarioResult
	targets         []target
}

func newHarness(ctx context.Context, o options, log func(string, ...any)) (*harness, error) {
	h := &harness{options: o, absent: make(map[string]string), log: log}
	if slices.Contains(o.Names, npmName) {
		var err error
		if h.modules, err = npmtest.Install(ctx, o.NPM); err != nil {
			h.absent[npmName] = err.Error()
			h.Names = slices.DeleteFunc(slices.Clone(h.Names), func(n string) bool { return n == npmName })
		}
	}
	var err error
	h.stub, err = startSelf(ctx, stubRole)
	return h, err
}

func (h *harness) close() { h.stub.kill() }

// selected returns those of the names that the options select.
func (h *harness) selected(names ...string) []string {
	return slices.DeleteFunc(names, func(n string) bool { return !slices.Contains(h.Names, n) })
}

// connect starts a contestant, connects it to the stub cluster, and waits until it has announced
// itself.
func (h *harness) connect(ctx context.Context, name string, e endpoints) (*process, error) {
	var before requestCounts
	if err := h.stub.do("counts", nil, &before); err != nil {
		return nil, err
	}
	var (
		c   *process
		err error
	)
	if name == npmName {
		c, err = startNPM(ctx, h.modules)
	} else {
		c, err = startSelf(ctx, contestantRole, name)
	}
	if err != nil {
		return nil, err
	}
	err = c.do("connect", e, nil)
	if err == nil && name == npmName { // the only one that announces itself in the background
		_, err = waitIdle(ctx, h.stub, before.Others+int64(len(e.Peers)))
	}
	if err != nil {
		c.kill()
		return nil, err
	}
	return c, nil
}

// A config describes one comparison: the behavior of the peers and the kind of calls.
type config struct {
	conditions
	Callers int
	Canned  bool // responses come from memory
	Burst   bool // each caller makes one call, after all peers have restarted
}

// A result has the rounds of one contestant in one config.
type result struct {
	Name           string
	Peers, Callers int
	Rounds         []round
}

// measure starts the contestants and runs all rounds of one config.
func (h *harness) measure(ctx context.Context, names []string, cfg config) ([]result, error) {
	h.log("%s, %s", plural(cfg.Peers, "peer"), plural(cfg.Callers, "caller"))
	var e endpoints
	if err := h.stub.do("conditions", cfg.conditions, &e); err != nil {
		return nil, err
	}
	e.Timeout, e.Canned = h.Timeout, cfg.Canned
	results, contestants := make([]result, len(names)), make([]*process, len(names))
	defer func() {
		for _, c := range contestants {
			if c != nil {
				c.kill()
			}
		}
	}()
	for i, name := range names {
		results[i] = result{Name: name, Peers: cfg.Peers, Callers: cfg.Callers}
		var err error
		if contestants[i], err = h.connect(ctx, name, e); err != nil {
			return nil, err
		}
		if err := contestants[i].do("disconnect", nil, nil); err != nil {
			return nil, err
		}
	}
	for n := range h.Rounds {
		for _, i := range rand.Perm(len(contestants)) {
			r, err := h.runTurn(contestants[i], e, cfg, n)
			if err != nil {
				return nil, err
			}
			results[i].Rounds = append(results[i].Rounds, r)
		}
	}
	return results, nil
}

// runTurn runs round n of one contestant. The contestant connects before it and disconnects after
// it: the connections of all contestants together would exceed the file limit of the stub cluster.
func (h *harness) runTurn(c *process, e endpoints, cfg config, n int) (r round, err error) {
	if err := c.do("connect", e, nil); err != nil {
		return r, err
	}
	t := task{Callers: cfg.Callers, Time: h.Time}
	if cfg.Burst {
		t.Time, t.Cold = 0, true
		if err := h.restartPeers(cfg.conditions); err != nil {
			return r, err
		}
	}
	if h.Profiles != "" && n == 0 {
		name := fmt.Sprintf("%s.%d.%d", strings.NewReplacer(" ", "-", "/", "-").Replace(c.name), len(e.Peers), cfg.Callers)
		t.Profile = filepath.Join(h.Profiles, name)
	}
	if err := c.do("round", t, &r); err != nil {
		return r, err
	}
	return r, c.do("disconnect", nil, nil)
}

// restartPeers restarts all peers, which closes the connections to them.
func (h *harness) restartPeers(c conditions) error {
	down := c
	down.Dead = c.Peers
	if err := h.stub.do("conditions", down, nil); err != nil {
		return err
	}
	return h.stub.do("conditions", c, nil)
}
