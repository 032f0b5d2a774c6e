//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
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
		{What: "all of 10 well", Then: weather{Peers: 10}},
		{What: "1 of 10 refuses", Then: weather{Peers: 10, Dead: 1}},
		{What: "2 of 10 refuse", Then: weather{Peers: 10, Dead: 2}},
		{What: "3 of 10 refuse", Then: weather{Peers: 10, Dead: 3}},
		{What: "1 of 10 hangs", Then: weather{Peers: 10, Hanging: 1}},
		{What: "1 of 10 takes 500 ms", Then: weather{Peers: 10, Slow: 1, SlowFor: 500 * time.Millisecond}},
		{What: "1 of 10 refuses, mIT down", Then: weather{Peers: 10, Dead: 1, Down: true}},
		{What: "100 of 1000 refuse", Then: weather{Peers: 1000, Dead: 100}},
	}
}

const streaming = "cluster, Stream"

// A badDay is one contestant in one scenario.
type badDay struct {
	Name     string
	Scenario scenario
	First    []single // the call in which it happens
	Second   []single // the next, once what is done beside the first is over
	Cost     []counts // what the stub cluster was asked from the first call until that was over
}

// badDays measures who has something to say to trouble. Each time begins with a new process that
// has connections to peers who are well.
func (l *lab) badDays(ctx context.Context, wanted func(scenario) bool) ([]badDay, error) {
	var all []badDay
	for _, s := range scenarios() {
		if !wanted(s) {
			continue
		}
		l.log("%s", s.What)
		var days []badDay
		for _, name := range l.Names {
			switch name {
			case "cluster":
				days = append(days, badDay{Name: name, Scenario: s}, badDay{Name: streaming, Scenario: s})
			case yardstick, npmName:
				days = append(days, badDay{Name: name, Scenario: s})
			}
		}
		for range l.Rounds {
			for i := range days {
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
		name, call = "cluster", "stream"
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
	var first, second single
	if err := c.do(call, nil, &first); err != nil {
		return err
	}
	after, err := quiet(ctx, l.stub)
	if err != nil {
		return err
	}
	if err := c.do(call, nil, &second); err != nil {
		return err
	}
	if second.Results == 0 {
		return errors.New(name + ": nobody is left")
	}
	d.First, d.Second, d.Cost = append(d.First, first), append(d.Second, second), append(d.Cost, after.since(before))
	return nil
}

// badTable is the bad days as Markdown.
func (l *lab) badTable(days []badDay) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Each request may take %v.\n\n", badTimeout)
	b.WriteString("| what happens | contestant | call | first outcome | results + failures | next call | results + failures | requests at mIT | to peers beside |\n")
	b.WriteString("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n")
	for _, d := range days {
		var took, opening, next []time.Duration
		for i := range d.First {
			took, opening, next = append(took, d.First[i].Took), append(opening, d.First[i].First), append(next, d.Second[i].Took)
		}
		first, second, cost := d.First[len(d.First)-1], d.Second[len(d.Second)-1], d.Cost[len(d.Cost)-1]
		begins := ""
		if d.Name == streaming {
			begins = ms(time.Duration(median(opening)))
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %d + %d | %s | %d + %d | %d | %d |\n", d.Scenario.What, d.Name,
			ms(time.Duration(median(took))), begins, first.Results, first.Failures,
			ms(time.Duration(median(next))), second.Results, second.Failures, cost.Registrations+cost.Deletes, cost.Others)
	}
	for name, why := range l.absent {
		fmt.Fprintf(&b, "\n%s did not take part: %s\n", name, why)
	}
	return b.String()
}
