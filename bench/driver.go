//go:build linux

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/mimiktech/cluster/internal/npmtest"
)

const npmName = "npm module"

// A plan is what to measure.
type plan struct {
	Names   []string
	Peers   []int
	Callers []int
	Rounds  int
	Time    time.Duration // of a round
	Size    int           // of the data of each answer
	Delay   time.Duration // that each peer takes
	Timeout time.Duration // of each request

	NPM      string // where package.json and the lock file of the npm module are
	Profiles string // folder for profiles, "" for none
}

// everybody is all who can take part in the comparison, in the order of the table.
func everybody() []string {
	return []string{ours, yardstick, bounded, defaultTransport, "retryablehttp", "resty", "failsafe", npmName}
}

// A lab has the stub cluster, and starts contestants against it.
type lab struct {
	plan
	stub    *process
	modules string
	absent  map[string]string // who cannot take part, and why
	log     func(format string, args ...any)

	all   []cell // what was measured, for the plot
	days  []badDay
	marks []mark
}

func open(ctx context.Context, p plan, log func(string, ...any)) (*lab, error) {
	l := &lab{plan: p, absent: make(map[string]string), log: log}
	if slices.Contains(p.Names, npmName) {
		var err error
		if l.modules, err = npmtest.Install(ctx, p.NPM); err != nil {
			l.absent[npmName] = err.Error()
			l.Names = slices.DeleteFunc(slices.Clone(l.Names), func(n string) bool { return n == npmName })
		}
	}
	var err error
	l.stub, err = startSelf(ctx, "stub")
	return l, err
}

func (l *lab) close() { l.stub.end() }

// among are those of the names that take part.
func (l *lab) among(names ...string) []string {
	return slices.DeleteFunc(names, func(n string) bool { return !slices.Contains(l.Names, n) })
}

// meet starts a contestant that knows the stub cluster, and waits until it has told its peers.
func (l *lab) meet(ctx context.Context, name string, p place) (*process, error) {
	var before counts
	if err := l.stub.do("counts", nil, &before); err != nil {
		return nil, err
	}
	var (
		c   *process
		err error
	)
	if name == npmName {
		c, err = startNPM(ctx, l.modules)
	} else {
		c, err = startSelf(ctx, "contestant", name)
	}
	if err != nil {
		return nil, err
	}
	if err := c.do("meet", p, nil); err != nil {
		c.end()
		return nil, err
	}
	if name != npmName { // the others know their peers now
		return c, nil
	}
	if _, err := quiet(ctx, l.stub, before.Others+int64(len(p.Peers))); err != nil {
		c.end()
		return nil, err
	}
	return c, nil
}

// A setting is what contestants are compared in.
type setting struct {
	weather
	Callers int
	Canned  bool // answers come out of memory
	Burst   bool // each caller makes one call, after all peers have restarted
}

// A cell is one contestant in one setting.
type cell struct {
	Name           string
	Peers, Callers int
	Rounds         []round
}

// calls compares everybody when all is well.
func (l *lab) calls(ctx context.Context) (string, error) {
	for _, peers := range l.Peers {
		for _, callers := range l.Callers {
			cells, err := l.cells(ctx, l.Names, setting{weather: weather{Peers: peers, Size: l.Size, Delay: l.Delay}, Callers: callers})
			if err != nil {
				return "", err
			}
			l.all = append(l.all, cells...)
		}
	}
	l.markCalls()
	return table(l.all), nil
}

// cells are one setting: new processes for all, then round after round, in each of which all have
// their turn, so that what else the machine does hits all alike.
func (l *lab) cells(ctx context.Context, names []string, s setting) ([]cell, error) {
	l.log("%d peers, %d callers", s.Peers, s.Callers)
	var p place
	if err := l.stub.do("weather", s.weather, &p); err != nil {
		return nil, err
	}
	p.Timeout, p.Canned = l.Timeout, s.Canned
	cells, contestants := make([]cell, len(names)), make([]*process, len(names))
	defer func() {
		for _, c := range contestants {
			if c != nil {
				c.end()
			}
		}
	}()
	for i, name := range names {
		cells[i] = cell{Name: name, Peers: s.Peers, Callers: s.Callers}
		var err error
		if contestants[i], err = l.meet(ctx, name, p); err != nil {
			return nil, err
		}
		if err := contestants[i].do("part", nil, nil); err != nil {
			return nil, err
		}
	}
	for r := range l.Rounds {
		for _, i := range rand.Perm(len(contestants)) { // who comes after whom is chance
			got, err := l.turn(contestants[i], p, s, r)
			if err != nil {
				return nil, err
			}
			cells[i].Rounds = append(cells[i].Rounds, got)
		}
	}
	return cells, nil
}

// turn is one round of one contestant. It begins with no connections, and keeps none: the
// thousands of all together would be more than one process may have.
func (l *lab) turn(c *process, p place, s setting, r int) (got round, err error) {
	if err := c.do("meet", p, nil); err != nil {
		return got, err
	}
	t := task{Callers: s.Callers, For: l.Time}
	if s.Burst {
		t.For, t.Cold = 0, true
		if err := l.restart(s.weather); err != nil {
			return got, err
		}
	}
	if l.Profiles != "" && r == 0 {
		name := fmt.Sprintf("%s.%d.%d", strings.ReplaceAll(c.name, " ", "-"), len(p.Peers), s.Callers)
		t.Profile = filepath.Join(l.Profiles, name)
	}
	if err := c.do("round", t, &got); err != nil {
		return got, err
	}
	return got, c.do("part", nil, nil)
}

// restart restarts all peers, which breaks the connections to them.
func (l *lab) restart(w weather) error {
	down := w
	down.Dead = w.Peers
	if err := l.stub.do("weather", down, nil); err != nil {
		return err
	}
	return l.stub.do("weather", w, nil)
}

// burst is calls that begin together, when there are no connections.
func (l *lab) burst(ctx context.Context) (string, error) {
	const callers = 8
	var all []cell
	for _, peers := range l.Peers {
		s := setting{weather: weather{Peers: peers, Size: l.Size}, Callers: callers, Burst: true}
		cells, err := l.cells(ctx, l.among(ours, yardstick, bounded, npmName), s)
		if err != nil {
			return "", err
		}
		all = append(all, cells...)
	}
	l.compare(all, comparison{yardstick, "slowest call of a burst", slowest, 1.0 / 2, false, 1000, callers})
	return burstTable(all), nil
}

// tail is a cluster in which now and then somebody takes long to answer.
func (l *lab) tail(ctx context.Context) (string, error) {
	w := weather{Peers: 10, Size: l.Size, SlowOne: 97, SlowFor: 200 * time.Millisecond}
	names := append([]string{hedged}, l.among(ours, yardstick, npmName)...)
	cells, err := l.cells(ctx, names, setting{weather: w, Callers: 1})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("One of %d answers takes %s.\n\n", w.SlowOne, ms(w.SlowFor)) + table(cells), nil
}

// start counts what a node fetches until its first call is answered.
func (l *lab) start(ctx context.Context) (string, error) {
	var b strings.Builder
	b.WriteString("| peers | contestant | tokens fetched | registrations | first call |\n| ---: | --- | ---: | ---: | ---: |\n")
	for _, peers := range l.Peers {
		var p place
		if err := l.stub.do("weather", weather{Peers: peers, Size: l.Size}, &p); err != nil {
			return "", err
		}
		p.Timeout = l.Timeout
		for _, name := range l.among(ours, npmName) {
			l.log("start: %d peers, %s", peers, name)
			var took []time.Duration
			var had counts
			for range l.Rounds {
				first, cost, err := l.firstCall(ctx, name, p)
				if err != nil {
					return "", err
				}
				took, had = append(took, first.Took), cost
			}
			fmt.Fprintf(&b, "| %d | %s | %d | %d | %s |\n", peers, name, had.Tokens, had.Registrations, ms(median(took)))
			if name == ours {
				l.atMost(fmt.Sprintf("%d peers: tokens fetched until the first call is answered", peers), "", float64(had.Tokens), 2)
			}
		}
	}
	return b.String(), nil
}

func (l *lab) firstCall(ctx context.Context, name string, p place) (first single, cost counts, err error) {
	var before, after counts
	if err := l.stub.do("counts", nil, &before); err != nil {
		return first, cost, err
	}
	c, err := l.meet(ctx, name, p)
	if err != nil {
		return first, cost, err
	}
	defer c.end()
	if err := c.do("call", nil, &first); err != nil {
		return first, cost, err
	}
	if first.Results != len(p.Peers) {
		return first, cost, fmt.Errorf("%s: %d of %d peers answered", name, first.Results, len(p.Peers))
	}
	err = l.stub.do("counts", nil, &after)
	return first, after.since(before), err
}

func say(format string, args ...any) { _, _ = fmt.Fprintf(os.Stderr, format+"\n", args...) } // nobody need listen
