package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/internal/plan"
)

// A kind is a kind of event, and what executes one. run draws nothing.
type kind struct {
	plan.Kind
	run func(*simulation, Event)
}

// kinds returns all kinds of events.
func kinds() []kind {
	var all []kind
	add := func(name string, weight int, draw func(*plan.Planner, *Event), run func(*simulation, Event)) {
		all = append(all, kind{plan.Kind{Name: name, Weight: weight, Action: name == "call", Draw: draw}, run})
	}
	add("call", 80, drawCall, (*simulation).callPeers)
	add("restart", 10, (*plan.Planner).Restart, (*simulation).restart)
	add("crash", 8, (*plan.Planner).Crash, (*simulation).crash)
	add("leave", 4, (*plan.Planner).OneNode, (*simulation).leave)
	add("join", 6, (*plan.Planner).Join, (*simulation).join)
	add("move", 4, (*plan.Planner).OneNode, (*simulation).move)
	add("twin", 2, drawTwin, (*simulation).twins)
	add("late delete", 3, func(p *plan.Planner, e *Event) { e.Nodes, e.For = p.Node(), p.Between(time.Minute, p.Lease/2) }, (*simulation).lateDelete)
	add("freeze", 4, (*plan.Planner).Freeze, (*simulation).freeze)
	add("forged departure", 2, func(p *plan.Planner, e *Event) { e.Nodes = append(p.Node(), p.Node()...) }, (*simulation).forgeDeparture)
	add("partition", 6, (*plan.Planner).Partition, (*simulation).partition)
	add("one-way cuts", 3, (*plan.Planner).Cuts, (*simulation).cuts)
	add("slow link", 4, (*plan.Planner).SlowLink, (*simulation).slowLink)
	add("registry fault", 5, func(p *plan.Planner, e *Event) { drawService(p, e, plan.Registry) }, (*simulation).service)
	add("token service fault", 4, func(p *plan.Planner, e *Event) { drawService(p, e, plan.Tokens) }, (*simulation).service)
	add("peer fault", 6, func(p *plan.Planner, e *Event) { drawService(p, e, p.Node()[0]) }, (*simulation).service)
	add("local fault", 4, (*plan.Planner).Local, (*simulation).localFault)
	add("registry reset", 2, func(*plan.Planner, *Event) {}, (*simulation).resetRegistry)
	add("registry clock", 2, drawClock, (*simulation).moveClock)
	add("wrong list", 3, drawList, (*simulation).wrongList)
	add("drifting clock", 3, drawDrift, (*simulation).drift)
	add("key rotation", 2, func(p *plan.Planner, e *Event) { e.For = p.Between(time.Minute, p.Lease) }, (*simulation).rotateKeys)
	return all
}

// service makes the registry, the token service or a peer fail for a while.
func (s *simulation) service(e Event) {
	host := s.serviceHost(e)
	if host == "" || !s.Begin(host, e) {
		return
	}
	s.record("%s %s for %v", host, e.Variant, e.For)
	modes := clustertest.FailureModes()
	m := modes[slices.IndexFunc(modes, func(m clustertest.FailureMode) bool { return m.Name == e.Variant })]
	if e.Nodes[0] >= 0 && m.Harmful {
		s.hurts(e.For, host)
	} else {
		s.disturbs(e.For, host)
	}
	s.Network.Fault(clustertest.Any, host, m.Fault(e.Seed))
	s.marks.hit("a service " + m.Name)
	s.EndAfter(host, e, func() {
		s.record("%s works again", host)
		s.Network.Fault(clustertest.Any, host, nil)
	})
}

func (s *simulation) serviceHost(e Event) string {
	if e.Nodes[0] < 0 {
		return s.host(e.Nodes[0])
	}
	if m := s.nth(e.Nodes[0]); m != nil {
		return m.Host
	}
	return ""
}

// partition splits the hosts into groups that do not reach each other.
func (s *simulation) partition(e Event) {
	if !s.Begin("partition", e) {
		return
	}
	groups := make([][]string, len(e.Groups))
	for i, group := range e.Groups {
		for _, node := range group {
			groups[i] = append(groups[i], s.host(node))
		}
	}
	s.record("the network is partitioned for %v: %v", e.For, groups)
	s.hurts(e.For)
	s.Network.Partition(groups...)
	s.EndAfter("partition", e, func() {
		s.record("the network is whole again")
		s.Network.Heal()
	})
}

// cuts cuts connections in one direction each.
func (s *simulation) cuts(e Event) {
	if !s.Begin("partition", e) {
		return
	}
	for pair := range slices.Chunk(e.Nodes, 2) {
		from, to := s.host(pair[0]), s.host(pair[1])
		s.hurts(e.For, from, to)
		s.Network.CutOneWay(from, to)
	}
	s.record("%d connections fail in one direction for %v", len(e.Nodes)/2, e.For)
	s.EndAfter("partition", e, func() {
		s.record("the connections work again")
		s.Network.Heal()
	})
}

func link(from, to string) string { return from + " → " + to }

// slowLink delays the requests from one host to another.
func (s *simulation) slowLink(e Event) {
	from, to := s.host(e.Nodes[0]), s.host(e.Nodes[1])
	if from == to || !s.Begin(link(from, to), e) {
		return
	}
	s.record("requests from %s to %s take %v, for %v", from, to, e.Delay, e.For)
	if e.Delay > requestTimeout/2 {
		s.hurts(e.For, from, to)
	}
	s.Network.Fault(from, to, clustertest.Delay(e.Delay))
	s.EndAfter(link(from, to), e, func() {
		s.record("requests from %s to %s are fast again", from, to)
		s.Network.Fault(from, to, nil)
	})
}

// localFault lets a node run out of a resource that each connection needs.
func (s *simulation) localFault(e Event) {
	m := s.nth(e.Nodes[0])
	if m == nil || !s.Begin(m.Host, e) {
		return
	}
	s.record("%s fails to dial for %v: %s", m.id, e.For, e.Variant)
	s.disturbs(e.For, m.Host)
	fault := clustertest.FailDial(plan.LocalError(e.Variant))
	if e.Seed%2 == 0 {
		fault = clustertest.WithProbability(0.5, e.Seed, fault)
	}
	host := m.Host
	s.Network.Fault(host, clustertest.Any, fault)
	s.EndAfter(host, e, func() {
		s.record("%s can dial again", host)
		s.Network.Fault(host, clustertest.Any, nil)
	})
}

func (s *simulation) resetRegistry(Event) {
	s.record("the registry loses its data")
	s.disturbs(0)
	s.store.reset()
	s.marks.hit("registry lost its data")
}

// moveClock moves the clock of the registry for good.
func (s *simulation) moveClock(e Event) {
	s.record("the clock of the registry moves by %v", e.Delay)
	s.store.moveClock(e.Delay)
	if e.Delay < 0 {
		s.marks.hit("registry clock set back")
	} else {
		s.marks.hit("registry clock set forward")
	}
}

// The wrong lists of a registry.
const (
	listOld     = "as it is now"
	listPartial = "half of the servers"
)

// wrongList makes the registry send a wrong list with each renewal. The node itself is in each.
func (s *simulation) wrongList(e Event) {
	if !s.Begin("list", e) {
		return
	}
	s.record("for %v the registry lists %s, with each renewal", e.For, e.Variant)
	s.disturbs(e.For)
	s.store.setList(e.Variant, e.Seed)
	s.listedOld = s.listedOld || e.Variant == listOld
	s.EndAfter("list", e, func() {
		s.record("the registry lists all servers again")
		s.store.setList("", 0)
	})
}

// drift makes the clock of the token service differ from that of the others, for one node.
func (s *simulation) drift(e Event) {
	m := s.nth(e.Nodes[0])
	if m == nil || !s.Begin(link(m.Host, clustertest.TokenHost), e) {
		return
	}
	s.record("tokens of %s are dated by %v, for %v", m.id, e.Delay, e.For)
	host := m.Host
	s.Network.Fault(host, clustertest.TokenHost, s.redate(e.Delay))
	s.EndAfter(link(host, clustertest.TokenHost), e, func() {
		s.record("tokens for %s are dated correctly again", host)
		s.Network.Fault(host, clustertest.TokenHost, nil)
	})
}

// redate returns a fault that adds d to the dates of issued access tokens.
func (s *simulation) redate(d time.Duration) clustertest.Fault {
	return func(next http.RoundTripper) http.RoundTripper {
		return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
			resp, err := next.RoundTrip(req)
			if err != nil || resp.StatusCode != http.StatusOK {
				return resp, err
			}
			defer resp.Body.Close()
			var body struct {
				Data map[string]any `json:"data"`
			}
			if err := json.NewDecoder(resp.Body).Decode(&body); err != nil {
				return nil, err
			}
			token, _ := body.Data["access_token"].(string)
			claims := jwt.MapClaims{}
			if _, _, err := jwt.NewParser().ParseUnverified(token, claims); err != nil {
				return nil, err
			}
			for _, name := range []string{"iat", "nbf", "exp"} {
				if date, ok := claims[name].(float64); ok {
					claims[name] = date + d.Seconds()
				}
			}
			key := s.signingKey.Load().(cluster.Secret)
			if body.Data["access_token"], err = jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString([]byte(key)); err != nil {
				return nil, err
			}
			text, err := json.Marshal(body)
			if err != nil {
				return nil, err
			}
			answer := clustertest.Answer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(text) }))
			return answer(nil).RoundTrip(req.Clone(req.Context()))
		})
	}
}

// rotateKeys replaces the key of tokens: first where tokens are verified, and a while later in the
// token service. So each token is valid all the time.
func (s *simulation) rotateKeys(e Event) {
	if !s.Begin("keys", e) {
		return
	}
	s.rotations++
	next := cluster.Secret(fmt.Sprintf("key number %d", s.rotations))
	s.record("the key of tokens changes within %v", e.For)
	previous := s.keys[0]
	s.setKeys(next, previous)
	s.EndAfter("keys", e, func() {
		s.record("tokens are signed with the next key")
		if err := s.Tokens.SetKey(string(next)); err != nil {
			s.t.Errorf("token service: %v", err)
		}
		s.signingKey.Store(next)
		s.marks.hit("key rotation")
	})
}

func (s *simulation) setKeys(key, previous cluster.Secret) {
	s.keys = [2]cluster.Secret{key, previous}
	s.Registry.SetKeys(string(key), string(previous))
	for _, m := range s.members {
		if err := m.SetKeys(key, previous); err != nil {
			s.t.Errorf("%s: %v", m.id, err)
		}
	}
}
