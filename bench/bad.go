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

// How long a request may take on a bad day: shorter than by default, so that measuring takes less.
// What hangs costs five times as much there.
const badTimeout = 2 * time.Second

// A scenario is one bad day: what all was well before, and what then happens.
type scenario struct {
	What string
	Then weather
}

func scenarios() []scenario {
	return []scenario{
		{allWell, weather{Peers: 10}},
		{"1 of 10 refuses", weather{Peers: 10, Dead: 1}},
		{"2 of 10 refuse", weather{Peers: 10, Dead: 2}},
		{"3 of 10 refuse", weather{Peers: 10, Dead: 3}},
		{"1 of 10 refuses, mIT down", weather{Peers: 10, Dead: 1, Down: true}},
		{"1 of 10 hangs", weather{Peers: 10, Hanging: 1}},
		{"1 of 10 hangs, mIT down", weather{Peers: 10, Hanging: 1, Down: true}},
		{"1 of 10 takes 500 ms", weather{Peers: 10, Slow: 1, SlowFor: 500 * time.Millisecond}},
		{"100 of 1000 refuse", weather{Peers: 1000, Dead: 100}},
	}
}

const (
	allWell   = "all of 10 well"
	streaming = "cluster, Stream"
)

// So many calls follow the one in which it happens.
const following = 5

// A badDay is one contestant in one scenario.
type badDay struct {
	Name     string
	Scenario scenario
	First    []single // the call in which it happens
	Next     []single // those that follow, once what is done beside the first is over
	Cost     []counts // what the stub cluster was asked from the first call until that was over
}

func (d badDay) took() time.Duration {
	return d.of(d.First, func(s single) time.Duration { return s.Took })
}

func (d badDay) next() time.Duration {
	return d.of(d.Next, func(s single) time.Duration { return s.Took })
}

func (d badDay) good() time.Duration {
	return d.of(d.First, func(s single) time.Duration { return s.Good })
}

func (badDay) of(calls []single, what func(single) time.Duration) time.Duration {
	var values []time.Duration
	for _, s := range calls {
		values = append(values, what(s))
	}
	return median(values)
}

// bad measures who has something to say to trouble.
func (l *lab) bad(ctx context.Context) (string, error) {
	days, err := l.badDays(ctx, func(s scenario) bool { return slices.Contains(l.Peers, s.Then.Peers) })
	if err != nil {
		return "", err
	}
	l.days = days
	l.markBad()
	return badTable(days), nil
}

// badDays has each time begin with a new process that has connections to peers who are well.
func (l *lab) badDays(ctx context.Context, wanted func(scenario) bool) ([]badDay, error) {
	var all []badDay
	for _, s := range scenarios() {
		if !wanted(s) {
			continue
		}
		l.log("%s", s.What)
		var days []badDay
		for _, name := range l.among(ours, yardstick, npmName) {
			days = append(days, badDay{Name: name, Scenario: s})
			if name == ours {
				days = append(days, badDay{Name: streaming, Scenario: s})
			}
		}
		for range l.Rounds {
			for _, i := range rand.Perm(len(days)) {
				if err := l.suffer(ctx, &days[i]); err != nil {
					return all, err
				}
			}
		}
		all = append(all, days...)
	}
	return all, nil
}

func (l *lab) suffer(ctx context.Context, d *badDay) error {
	name, call := d.Name, "call"
	if name == streaming {
		name, call = ours, "stream"
	}
	var p place
	if err := l.stub.do("weather", weather{Peers: d.Scenario.Then.Peers, Size: l.Size}, &p); err != nil {
		return err
	}
	p.Timeout = badTimeout
	c, err := l.meet(ctx, name, p)
	if err != nil {
		return err
	}
	defer c.end()
	for range 3 {
		var s single
		if err := c.do("call", nil, &s); err != nil {
			return err
		}
		if s.Results != d.Scenario.Then.Peers {
			return fmt.Errorf("%s: %d of %d peers answered while all was well", name, s.Results, d.Scenario.Then.Peers)
		}
	}
	then := d.Scenario.Then
	then.Size = l.Size
	if err := l.stub.do("weather", then, nil); err != nil {
		return err
	}
	var before counts
	if err := l.stub.do("counts", nil, &before); err != nil {
		return err
	}
	var first single
	if err := c.do(call, nil, &first); err != nil {
		return err
	}
	// A node waits for a moment before it tells of an eviction, in a large cluster for up to a second.
	select {
	case <-time.After(time.Duration(then.Peers+100) * time.Millisecond):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	after, err := quiet(ctx, l.stub, 0)
	if err != nil {
		return err
	}
	for range following {
		var next single
		if err := c.do(call, nil, &next); err != nil {
			return err
		}
		if next.Results == 0 {
			return fmt.Errorf("%s: nobody is left", name)
		}
		d.Next = append(d.Next, next)
	}
	d.First, d.Cost = append(d.First, first), append(d.Cost, after.since(before))
	return nil
}

// badTable is the bad days as Markdown.
func badTable(days []badDay) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Each request may take %s.\n\n", plain(badTimeout))
	fmt.Fprintf(&b, "| what happens | contestant | that call | first outcome | last good one | results + failures | the next %d | results + failures | requests at mIT | to peers beside |\n", following)
	b.WriteString("| --- | --- |" + strings.Repeat(" ---: |", 8) + "\n")
	for _, d := range days {
		first, next, cost := d.First[len(d.First)-1], d.Next[len(d.Next)-1], d.Cost[len(d.Cost)-1]
		opening, good := "", ""
		if d.Name == streaming {
			opening, good = ms(d.of(d.First, func(s single) time.Duration { return s.First })), ms(d.good())
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %d + %d | %s | %d + %d | %d | %d |\n", d.Scenario.What, d.Name,
			ms(d.took()), opening, good, first.Results, first.Failures,
			ms(d.next()), next.Results, next.Failures, cost.Registrations+cost.Deletes, cost.Others)
	}
	return b.String()
}

func (l *lab) markBad() {
	const (
		whole  = 50 * time.Millisecond
		good   = 10 * time.Millisecond // before a dead peer is asked again
		margin = 50 * time.Millisecond
	)
	in := func(d time.Duration) float64 { return float64(d) / 1e6 }
	for _, d := range l.days {
		then, what := d.Scenario.Then, d.Scenario.What+": "
		switch {
		case d.Name != ours && d.Name != streaming:
		case d.Name == streaming && then.Peers == 10 && then.Dead > 0:
			l.atMost(what+"the last good outcome of Stream", "ms", in(d.good()), in(good))
		case d.Name == streaming:
		case then.Peers == 10 && then.Dead > 0:
			l.atMost(what+"the call", "ms", in(d.took()), in(whole))
		case then.Hanging > 0:
			l.atMost(what+"the call", "ms", in(d.took()), in(badTimeout+margin))
			l.atMost(what+"the next calls", "ms", in(d.next()), in(badTimeout/2))
		case then.Dead > 0:
			asked := 0.0
			for _, c := range d.Cost {
				asked = max(asked, float64(c.Registrations+c.Deletes))
			}
			l.atMost(what+"requests at mIT", "", asked, float64(then.Dead))
		}
	}
}
