package main

import (
	"math"
	"math/rand/v2"
	"time"

	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/internal/plan"
)

// An Event is one step of a plan.
type Event = plan.Event

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

// drawScenario draws a scenario from a seed.
func drawScenario(seed uint64) Scenario {
	r := rand.New(rand.NewPCG(seed, 0))
	u := r.Float64()
	lease := plan.LogUniform(r, 5*time.Minute, 12*time.Hour).Round(time.Second)
	sc := Scenario{
		Seed:        seed,
		Nodes:       2 + int(59*u*u*u*u),
		Lease:       lease,
		TokenTTL:    plan.LogUniform(r, max(2*time.Minute, lease/4), 4*lease).Round(time.Second),
		Duration:    time.Duration(float64(lease) * (3 + 9*r.Float64())),
		MaxInFlight: []int{256, 256, 16, 2}[r.IntN(4)],
		Policy:      Policy{NoEviction: r.IntN(8) == 0, VerifyWithRegistry: r.IntN(6) == 0},
	}
	if r.IntN(4) == 0 {
		sc.Unmanaged = 2 + r.IntN(4)
	}
	sc.Pipes = sc.Nodes <= 12 && r.IntN(4) == 0
	count := int(math.Round(10 * math.Pow(5, r.Float64())))
	sc.Events = newPlanner(r, sc).Draw(plan.Choose(r, planKinds()), count)
	return sc
}

// drawWeek draws the scenario of many nodes, all kinds of events and the usual policies.
func drawWeek(seed uint64, nodes int, duration time.Duration) Scenario {
	const lease = 8 * time.Hour
	sc := Scenario{Seed: seed, Nodes: nodes, Duration: duration, Lease: lease, TokenTTL: lease, MaxInFlight: 256}
	r := rand.New(rand.NewPCG(seed, 0))
	const perWeek = 200
	sc.Events = newPlanner(r, sc).Draw(planKinds(), int(perWeek*float64(duration)/float64(7*24*time.Hour)))
	return sc
}

func newPlanner(r *rand.Rand, sc Scenario) *plan.Planner {
	return &plan.Planner{Rand: r, Lease: sc.Lease, Duration: sc.Duration, Nodes: sc.Nodes}
}

func planKinds() []plan.Kind {
	var all []plan.Kind
	for _, k := range kinds() {
		all = append(all, k.Kind)
	}
	return all
}

func drawCall(p *plan.Planner, e *Event) {
	e.Nodes = p.Node()
	e.Variant = []string{"", "", "", callStreamed, callPost, callHedged, callQuorum, callTwo}[p.IntN(8)]
	if p.IntN(10) == 0 {
		e.For = p.Between(time.Nanosecond, 10*time.Second)
	}
}

func drawTwin(p *plan.Planner, e *Event) {
	e.Nodes, e.For = p.Node(), p.Between(p.Lease/2, 4*p.Lease)
	e.Variant = []string{twinKilled, twinUnregistered}[p.IntN(2)]
	p.Nodes++
}

// drawService draws how a host fails.
func drawService(p *plan.Planner, e *Event, host int) {
	var names []string
	for _, m := range clustertest.FailureModes() {
		names = append(names, m.Name)
	}
	p.Variant(e, host, names)
}

func drawClock(p *plan.Planner, e *Event) {
	e.Delay = p.Between(time.Second, 100*p.Lease)
	if p.IntN(3) > 0 {
		e.Delay = -e.Delay
	}
}

func drawList(p *plan.Planner, e *Event) {
	e.For, e.Seed = p.Fault(), p.Uint64()
	e.Variant = []string{listOld, listPartial}[p.IntN(2)]
}

// drawDrift draws a difference that nodes accept by default.
func drawDrift(p *plan.Planner, e *Event) {
	e.Nodes, e.For = p.Node(), p.Fault()
	e.Delay = time.Duration(p.IntN(19)-9) * time.Second
}
