// Package plan draws plans of faults from a seed, executes their steps on time, and reduces a plan
// that fails.
//
// A plan is data: a list of events, each at a time. Its execution draws nothing, so any part of a
// plan is a plan, too.
package plan

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Indices of hosts that are not nodes.
const (
	Registry = -1
	Tokens   = -2
)

// An Event is one step of a plan. Its kind says which of the other fields it uses.
type Event struct {
	At    time.Duration `json:"at"` // since the start
	Kind  string        `json:"kind"`
	Nodes []int         `json:"nodes,omitempty"` // in the order of their creation, from 0
	// Groups are the sides of a partition.
	Groups  [][]int       `json:"groups,omitempty"`
	For     time.Duration `json:"for,omitempty"`
	Delay   time.Duration `json:"delay,omitempty"`
	Variant string        `json:"variant,omitempty"`
	Seed    uint64        `json:"seed,omitempty"` // of the requests that are chosen
}

// String describes the event.
func (e Event) String() string {
	parts := []string{e.Kind}
	if len(e.Nodes) > 0 {
		parts = append(parts, "of "+describeNodes(e.Nodes))
	}
	for i, group := range e.Groups {
		parts = append(parts, [2]string{"of", "|"}[min(i, 1)], describeNodes(group))
	}
	if e.Variant != "" {
		parts = append(parts, fmt.Sprintf("(%s)", e.Variant))
	}
	if e.Delay != 0 {
		parts = append(parts, "by", e.Delay.Round(time.Millisecond).String())
	}
	if e.For != 0 {
		parts = append(parts, "for", e.For.Round(time.Millisecond).String())
	}
	return fmt.Sprintf("%12s  %s", e.At.Round(time.Millisecond), strings.Join(parts, " "))
}

// A Kind is a kind of event.
type Kind struct {
	Name   string
	Weight int // the rate, relative to other kinds
	// Action marks an action of a test, as opposed to a fault. Each plan has all actions, and actions
	// accompany each fault.
	Action bool
	// Draw sets the other fields of an event.
	Draw func(*Planner, *Event)
}

// A Planner draws events.
type Planner struct {
	*rand.Rand
	Lease    time.Duration
	Duration time.Duration // of the plan
	Nodes    int           // that have been created by the time of the event
}

// LogUniform draws a duration. Its logarithm is uniform, so that each doubling is equally likely.
func LogUniform(r *rand.Rand, shortest, longest time.Duration) time.Duration {
	return time.Duration(float64(shortest) * math.Pow(float64(longest)/float64(shortest), r.Float64()))
}

// Choose draws which kinds a plan has, and their rates. It leaves out a third of the kinds of
// faults, on average, so that plans differ.
func Choose(r *rand.Rand, kinds []Kind) []Kind {
	var chosen []Kind
	for _, k := range kinds {
		if !k.Action {
			if r.IntN(3) == 0 {
				continue
			}
			k.Weight = int(float64(k.Weight) * math.Pow(10, r.Float64()))
		}
		chosen = append(chosen, k)
	}
	return chosen
}

// Draw draws count events, and in addition up to two actions during each fault. The events are
// sorted by time.
func (p *Planner) Draw(kinds []Kind, count int) []Event {
	actions := slices.DeleteFunc(slices.Clone(kinds), func(k Kind) bool { return !k.Action })
	times := make([]time.Duration, count)
	for i := range times {
		times[i] = p.Below(p.Duration)
	}
	slices.Sort(times)
	var events []Event
	for _, at := range times {
		k := pick(kinds, p.IntN(totalWeight(kinds)))
		e := p.draw(k, at)
		events = append(events, e)
		if k.Action || len(actions) == 0 {
			continue
		}
		for range 2 {
			at := at + p.Below(cmp.Or(e.For, time.Minute))
			k := actions[0]
			if len(actions) > 1 {
				k = pick(actions, p.IntN(totalWeight(actions)))
			}
			if e := p.draw(k, at); at < p.Duration {
				events = append(events, e)
			}
		}
	}
	slices.SortStableFunc(events, ByTime)
	return events
}

// ByTime compares two events by their time.
func ByTime(a, b Event) int { return cmp.Compare(a.At, b.At) }

func (p *Planner) draw(k Kind, at time.Duration) Event {
	e := Event{At: at, Kind: k.Name}
	k.Draw(p, &e)
	return e
}

func totalWeight(kinds []Kind) int {
	total := 0
	for _, k := range kinds {
		total += k.Weight
	}
	return total
}

func pick(kinds []Kind, n int) Kind {
	for _, k := range kinds {
		if n -= k.Weight; n < 0 {
			return k
		}
	}
	return kinds[0]
}

// shortestFault is too short to be noticed by most nodes.
const shortestFault = 10 * time.Second

// Between draws a duration like LogUniform.
func (p *Planner) Between(shortest, longest time.Duration) time.Duration {
	return LogUniform(p.Rand, shortest, max(shortest, longest))
}

// Below draws a duration below d.
func (p *Planner) Below(d time.Duration) time.Duration { return time.Duration(p.Int64N(int64(d))) }

// Fault draws the duration of a fault. During the longest faults, all leases expire.
func (p *Planner) Fault() time.Duration { return p.Between(shortestFault, p.Lease*5/4) }

// Node draws a node.
func (p *Planner) Node() []int { return []int{p.IntN(p.Nodes)} }

// Restart draws a node that is gone for up to three minutes.
func (p *Planner) Restart(e *Event) {
	e.Nodes, e.For = p.Node(), p.Between(time.Millisecond, 3*time.Minute)
}

// Crash draws a node, and in half of the events the time until it starts again.
func (p *Planner) Crash(e *Event) {
	e.Nodes = p.Node()
	if p.IntN(2) == 0 {
		e.For = p.Between(time.Minute, 4*p.Lease)
	}
}

// OneNode draws a node.
func (p *Planner) OneNode(e *Event) { e.Nodes = p.Node() }

// Join counts another node.
func (p *Planner) Join(*Event) { p.Nodes++ }

// Freeze draws a node, and how long it is frozen.
func (p *Planner) Freeze(e *Event) { e.Nodes, e.For = p.Node(), p.Fault() }

// Partition draws two or three groups. The registry and the token service are each in one of them,
// or reachable from all.
func (p *Planner) Partition(e *Event) {
	e.For = p.Fault()
	e.Groups = make([][]int, 2+p.IntN(2))
	weight := p.Float64() // some partitions are even, others isolate a few nodes
	add := func(node int) {
		side := 0
		if p.Float64() >= weight {
			side = p.IntN(len(e.Groups))
		}
		e.Groups[side] = append(e.Groups[side], node)
	}
	for i := range p.Nodes {
		add(i)
	}
	for _, service := range []int{Registry, Tokens} {
		if p.IntN(3) > 0 {
			add(service)
		}
	}
}

// Cuts draws pairs of a node and a node or the registry.
func (p *Planner) Cuts(e *Event) {
	e.For = p.Fault()
	for range 1 + p.IntN(2*p.Nodes) {
		e.Nodes = append(e.Nodes, p.IntN(p.Nodes), p.IntN(p.Nodes+1)-1) // sometimes to the registry
	}
}

// SlowLink draws two hosts, and how long a request takes from the first to the second.
func (p *Planner) SlowLink(e *Event) {
	e.Nodes = []int{p.IntN(p.Nodes), p.IntN(p.Nodes+2) - 2}
	e.For, e.Delay = p.Fault(), p.Between(10*time.Millisecond, 30*time.Second)
}

// Variant draws in which of several ways a host fails.
func (p *Planner) Variant(e *Event, host int, variants []string) {
	e.Nodes, e.For, e.Seed = []int{host}, p.Fault(), p.Uint64()
	e.Variant = variants[p.IntN(len(variants))]
}

// Local draws a node, and the resource that it runs out of.
func (p *Planner) Local(e *Event) { p.Variant(e, p.Node()[0], localErrorNames()) }

// LocalError returns the error of a node that has run out of a resource, by its name.
func LocalError(name string) syscall.Errno {
	return localErrors()[slices.Index(localErrorNames(), name)]
}

func localErrorNames() []string {
	return []string{"EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EADDRNOTAVAIL"}
}

func localErrors() []syscall.Errno {
	return []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL}
}

func describeNodes(nodes []int) string {
	names := make([]string, len(nodes))
	for i, n := range nodes {
		switch n {
		case Registry:
			names[i] = "registry"
		case Tokens:
			names[i] = "token service"
		default:
			names[i] = fmt.Sprintf("node-%d", n+1)
		}
	}
	return strings.Join(names, ", ")
}
