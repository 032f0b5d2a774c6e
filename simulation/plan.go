package main

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// A Scenario is all that a run depends on, except for the order of goroutines that wake at the same
// instant and for the jitter of nodes.
type Scenario struct {
	Seed      uint64        `json:"seed"`
	Nodes     int           `json:"nodes"` // at the start
	Duration  time.Duration `json:"duration"`
	Lease     time.Duration `json:"lease"`
	TokenTTL  time.Duration `json:"tokenTTL"`
	Policy    Policy        `json:"policy"`
	Unmanaged int           `json:"unmanaged,omitempty"` // one in so many calls no peers; 0: none

	MaxInFlight int `json:"maxInFlight"`

	Pipes bool `json:"pipes,omitempty"` // requests are sent over connections, by the node's transport

	Events []Event `json:"events"` // sorted by time
}

// A Policy is what the nodes of a scenario are configured with.
type Policy struct {
	NoEviction         bool `json:"noEviction,omitempty"`
	VerifyWithRegistry bool `json:"verifyWithRegistry,omitempty"`
}

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

// Hosts in the place of a node.
const (
	registry = -1
	tokens   = -2
)

// String describes the event for a person.
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

// The shortest fault is one that most nodes do not notice.
const shortestFault = 10 * time.Second

// A planner draws the events of a scenario.
type planner struct {
	*rand.Rand
	lease time.Duration
	nodes int // that have been created by the time of the event
}

// drawScenario draws a scenario from a seed. Each seed has few kinds of events, each at a rate of
// its own, so that no seed has a little of everything.
func drawScenario(seed uint64) Scenario {
	r := rand.New(rand.NewPCG(seed, 0))
	u := r.Float64()
	lease := logUniform(r, 5*time.Minute, 12*time.Hour).Round(time.Second)
	sc := Scenario{
		Seed:        seed,
		Nodes:       2 + int(59*u*u*u*u),
		Lease:       lease,
		TokenTTL:    logUniform(r, max(2*time.Minute, lease/4), 4*lease).Round(time.Second),
		Duration:    time.Duration(float64(lease) * (3 + 9*r.Float64())),
		MaxInFlight: []int{256, 256, 16, 2}[r.IntN(4)],
		Policy:      Policy{NoEviction: r.IntN(8) == 0, VerifyWithRegistry: r.IntN(6) == 0},
	}
	if r.IntN(4) == 0 {
		sc.Unmanaged = 2 + r.IntN(4)
	}
	sc.Pipes = sc.Nodes <= 12 && r.IntN(4) == 0
	count := int(math.Round(10 * math.Pow(5, r.Float64())))
	sc.Events = drawEvents(r, sc, count)
	return sc
}

// drawWeek draws the scenario of many nodes, all kinds of events and the usual policies.
func drawWeek(seed uint64, nodes int, duration time.Duration) Scenario {
	const lease = 8 * time.Hour
	sc := Scenario{Seed: seed, Nodes: nodes, Duration: duration, Lease: lease, TokenTTL: lease, MaxInFlight: 256}
	r := rand.New(rand.NewPCG(seed, 0))
	const perWeek = 200
	sc.Events = newPlan(r, sc, kinds(), int(perWeek*float64(duration)/float64(7*24*time.Hour)))
	return sc
}

// drawEvents draws which kinds of events there are, and then the events.
func drawEvents(r *rand.Rand, sc Scenario, count int) []Event {
	var chosen []kind
	for _, k := range kinds() {
		if k.name != "call" && r.IntN(3) == 0 {
			continue
		}
		if k.name != "call" {
			k.weight = int(float64(k.weight) * math.Pow(10, r.Float64()))
		}
		chosen = append(chosen, k)
	}
	return newPlan(r, sc, chosen, count)
}

// newPlan draws events of some kinds. With each fault come calls while it lasts.
func newPlan(r *rand.Rand, sc Scenario, chosen []kind, count int) []Event {
	p := &planner{Rand: r, lease: sc.Lease, nodes: sc.Nodes}
	total := 0
	for _, k := range chosen {
		total += k.weight
	}
	times := make([]time.Duration, count)
	for i := range times {
		times[i] = p.below(sc.Duration)
	}
	slices.Sort(times)
	var events []Event
	for _, at := range times {
		k := pickKind(chosen, p.IntN(total))
		e := Event{At: at, Kind: k.name}
		k.draw(p, &e)
		events = append(events, e)
		if k.name == "call" {
			continue
		}
		window := e.For
		if window == 0 {
			window = time.Minute
		}
		for range 2 {
			call := Event{At: at + p.below(window), Kind: "call"}
			p.drawCall(&call)
			if call.At < sc.Duration {
				events = append(events, call)
			}
		}
	}
	slices.SortStableFunc(events, byTime)
	return events
}

func byTime(a, b Event) int { return cmp.Compare(a.At, b.At) }

func pickKind(chosen []kind, n int) kind {
	for _, k := range chosen {
		if n -= k.weight; n < 0 {
			return k
		}
	}
	return chosen[0]
}

func logUniform(r *rand.Rand, shortest, longest time.Duration) time.Duration {
	return time.Duration(float64(shortest) * math.Pow(float64(longest)/float64(shortest), r.Float64()))
}

// between draws a duration. Its logarithm is uniform, so that each doubling is equally likely.
func (p *planner) between(shortest, longest time.Duration) time.Duration {
	return logUniform(p.Rand, shortest, max(shortest, longest))
}

// below draws a duration below d.
func (p *planner) below(d time.Duration) time.Duration { return time.Duration(p.Int64N(int64(d))) }

// fault draws how long a fault lasts. The longest faults cost all nodes their leases.
func (p *planner) fault() time.Duration { return p.between(shortestFault, p.lease*5/4) }

func (p *planner) node() []int { return []int{p.IntN(p.nodes)} }

func (p *planner) drawCall(e *Event) {
	e.Nodes = p.node()
	e.Variant = []string{"", "", "", callStreamed, callPost, callHedged, callQuorum, callTwo}[p.IntN(8)]
	if p.IntN(10) == 0 {
		e.For = p.between(time.Nanosecond, 10*time.Second)
	}
}

func (p *planner) drawCrash(e *Event) {
	e.Nodes = p.node()
	if p.IntN(2) == 0 {
		e.For = p.between(time.Minute, 4*p.lease)
	}
}

func (p *planner) drawTwin(e *Event) {
	e.Nodes, e.For = p.node(), p.between(p.lease/2, 4*p.lease)
	e.Variant = []string{twinKilled, twinUnregistered}[p.IntN(2)]
	p.nodes++
}

// drawPartition draws two or three groups. The registry and the token service each are in one of
// them, or in reach of all.
func (p *planner) drawPartition(e *Event) {
	e.For = p.fault()
	e.Groups = make([][]int, 2+p.IntN(2))
	weight := p.Float64() // some partitions are even, others isolate a few nodes
	add := func(node int) {
		side := 0
		if p.Float64() >= weight {
			side = p.IntN(len(e.Groups))
		}
		e.Groups[side] = append(e.Groups[side], node)
	}
	for i := range p.nodes {
		add(i)
	}
	for _, service := range []int{registry, tokens} {
		if p.IntN(3) > 0 {
			add(service)
		}
	}
}

func (p *planner) drawCuts(e *Event) {
	e.For = p.fault()
	for range 1 + p.IntN(2*p.nodes) {
		e.Nodes = append(e.Nodes, p.IntN(p.nodes), p.IntN(p.nodes+1)-1) // sometimes to the registry
	}
}

func (p *planner) drawSlowLink(e *Event) {
	e.Nodes = []int{p.IntN(p.nodes), p.IntN(p.nodes+2) - 2}
	e.For, e.Delay = p.fault(), p.between(10*time.Millisecond, 30*time.Second)
}

func (p *planner) drawService(e *Event, target int) {
	e.Nodes, e.For, e.Seed = []int{target}, p.fault(), p.Uint64()
	e.Variant = modes()[p.IntN(len(modes()))].name
}

func (p *planner) drawLocal(e *Event) {
	e.Nodes, e.For, e.Seed = p.node(), p.fault(), p.Uint64()
	e.Variant = localErrors()[p.IntN(len(localErrors()))].name
}

func (p *planner) drawClock(e *Event) {
	e.Delay = p.between(time.Second, 100*p.lease)
	if p.IntN(3) > 0 {
		e.Delay = -e.Delay
	}
}

func (p *planner) drawList(e *Event) {
	e.For, e.Seed = p.fault(), p.Uint64()
	e.Variant = []string{listOld, listPartial}[p.IntN(2)]
}

// drawDrift draws a difference that nodes accept by default.
func (p *planner) drawDrift(e *Event) {
	e.Nodes, e.For = p.node(), p.fault()
	e.Delay = time.Duration(p.IntN(19)-9) * time.Second
}
