package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

// A kind is a kind of event. draw sets what an event of the kind consists of. run executes it and
// draws nothing, so that a plan without some of its events is a plan, too.
type kind struct {
	name   string
	weight int // how many there are, compared to other kinds
	draw   func(*planner, *Event)
	run    func(*simulation, Event)
}

// kinds returns all kinds of events.
func kinds() []kind {
	return []kind{
		{"call", 80, (*planner).drawCall, (*simulation).callPeers},
		{"restart", 10, func(p *planner, e *Event) { e.Nodes, e.For = p.node(), p.between(time.Millisecond, 3*time.Minute) }, (*simulation).restart},
		{"crash", 8, (*planner).drawCrash, (*simulation).crash},
		{"leave", 4, func(p *planner, e *Event) { e.Nodes = p.node() }, (*simulation).leave},
		{"join", 6, func(p *planner, _ *Event) { p.nodes++ }, (*simulation).join},
		{"move", 4, func(p *planner, e *Event) { e.Nodes = p.node() }, (*simulation).move},
		{"twin", 2, (*planner).drawTwin, (*simulation).twins},
		{"late delete", 3, func(p *planner, e *Event) { e.Nodes, e.For = p.node(), p.between(time.Minute, p.lease/2) }, (*simulation).lateDelete},
		{"freeze", 4, func(p *planner, e *Event) { e.Nodes, e.For = p.node(), p.fault() }, (*simulation).freeze},
		{"forged departure", 2, func(p *planner, e *Event) { e.Nodes = append(p.node(), p.node()...) }, (*simulation).forgeDeparture},
		{"partition", 6, (*planner).drawPartition, (*simulation).partition},
		{"one-way cuts", 3, (*planner).drawCuts, (*simulation).cuts},
		{"slow link", 4, (*planner).drawSlowLink, (*simulation).slowLink},
		{"registry fault", 5, func(p *planner, e *Event) { p.drawService(e, registry) }, (*simulation).service},
		{"token service fault", 4, func(p *planner, e *Event) { p.drawService(e, tokens) }, (*simulation).service},
		{"peer fault", 6, func(p *planner, e *Event) { p.drawService(e, p.node()[0]) }, (*simulation).service},
		{"local fault", 4, (*planner).drawLocal, (*simulation).localFault},
		{"registry reset", 2, func(*planner, *Event) {}, (*simulation).resetRegistry},
		{"registry clock", 2, (*planner).drawClock, (*simulation).moveClock},
		{"wrong list", 3, (*planner).drawList, (*simulation).wrongList},
		{"drifting clock", 3, (*planner).drawDrift, (*simulation).drift},
		{"key rotation", 2, func(p *planner, e *Event) { e.For = p.between(time.Minute, p.lease) }, (*simulation).rotateKeys},
	}
}

// A mode is a way in which a service fails.
type mode struct {
	name  string
	hurts bool // a healthy peer may be evicted
	fault func(seed uint64) clustertest.Fault
}

func always(f clustertest.Fault) func(uint64) clustertest.Fault {
	return func(uint64) clustertest.Fault { return f }
}

func sometimes(p float64, f clustertest.Fault) func(uint64) clustertest.Fault {
	return func(seed uint64) clustertest.Fault { return clustertest.WithProbability(p, seed, f) }
}

// modes returns the ways in which the registry, the token service or a peer fails.
func modes() []mode {
	return []mode{
		{"refuses connections", true, always(clustertest.Refuse)},
		{"hangs", true, always(clustertest.Hang)},
		{"answers after a minute", true, always(clustertest.Delay(time.Minute))},
		{"loses some connections before the request arrives", true, sometimes(0.2, clustertest.Break)},
		{"handles all requests and resets some connections", true, sometimes(0.2, clustertest.Reset)},
		{"answers after a second", false, always(clustertest.Delay(time.Second))},
		{"answers 500", false, always(clustertest.Status(http.StatusInternalServerError))},
		{"answers 503 to half of the requests", false, sometimes(0.5, clustertest.Status(http.StatusServiceUnavailable))},
		{"answers 101", false, always(clustertest.Upgrade)},
		{"sends the head of a response and hangs", false, always(clustertest.Stall(0))},
		{"truncates responses", false, always(clustertest.Truncate(20))},
		{"answers with something else", false, always(clustertest.Answer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = fmt.Fprint(w, "<html>")
		})))},
		{"closes connections as they are used again", false, always(clustertest.Reused(clustertest.Break))},
		{"does not answer on connections that are used again", false, always(clustertest.Reused(clustertest.Hang))},
	}
}

// service makes the registry, the token service or a peer fail for a while.
func (s *simulation) service(e Event) {
	host := s.serviceHost(e)
	i := slices.IndexFunc(modes(), func(m mode) bool { return m.name == e.Variant })
	if host == "" || !s.begin(host, e) {
		return
	}
	s.record("%s %s for %v", host, e.Variant, e.For)
	m := modes()[i]
	if e.Nodes[0] >= 0 && m.hurts {
		s.hurts(e.For, host)
	} else {
		s.disturbs(e.For, host)
	}
	s.Network.Fault(clustertest.Any, host, m.fault(e.Seed))
	s.marks.hit("a service " + m.name)
	s.endAfter(host, e, func() {
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
	if !s.begin("partition", e) {
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
	s.endAfter("partition", e, func() {
		s.record("the network is whole again")
		s.Network.Heal()
	})
}

// cuts cuts connections in one direction each.
func (s *simulation) cuts(e Event) {
	if !s.begin("partition", e) {
		return
	}
	for pair := range slices.Chunk(e.Nodes, 2) {
		from, to := s.host(pair[0]), s.host(pair[1])
		s.hurts(e.For, from, to)
		s.Network.CutOneWay(from, to)
	}
	s.record("%d connections fail in one direction for %v", len(e.Nodes)/2, e.For)
	s.endAfter("partition", e, func() {
		s.record("the connections work again")
		s.Network.Heal()
	})
}

func link(from, to string) string { return from + " → " + to }

// slowLink delays the requests from one host to another.
func (s *simulation) slowLink(e Event) {
	from, to := s.host(e.Nodes[0]), s.host(e.Nodes[1])
	if from == to || !s.begin(link(from, to), e) {
		return
	}
	s.record("requests from %s to %s take %v, for %v", from, to, e.Delay, e.For)
	if e.Delay > requestTimeout/2 {
		s.hurts(e.For, from, to)
	}
	s.Network.Fault(from, to, clustertest.Delay(e.Delay))
	s.endAfter(link(from, to), e, func() {
		s.record("requests from %s to %s are fast again", from, to)
		s.Network.Fault(from, to, nil)
	})
}

// localFault lets a node run out of a resource that each connection needs.
func (s *simulation) localFault(e Event) {
	m := s.nth(e.Nodes[0])
	if m == nil || !s.begin(m.Host, e) {
		return
	}
	s.record("%s fails to dial for %v: %s", m.id, e.For, e.Variant)
	s.disturbs(e.For, m.Host)
	var fault clustertest.Fault
	for _, errno := range localErrors() {
		if errno.name == e.Variant {
			fault = clustertest.FailDial(errno.errno)
		}
	}
	if e.Seed%2 == 0 {
		fault = clustertest.WithProbability(0.5, e.Seed, fault)
	}
	host := m.Host
	s.Network.Fault(host, clustertest.Any, fault)
	s.endAfter(host, e, func() {
		s.record("%s can dial again", host)
		s.Network.Fault(host, clustertest.Any, nil)
	})
}

type localError struct {
	name  string
	errno syscall.Errno
}

func localErrors() []localError {
	return []localError{
		{"EMFILE", syscall.EMFILE},
		{"ENFILE", syscall.ENFILE},
		{"ENOBUFS", syscall.ENOBUFS},
		{"ENOMEM", syscall.ENOMEM},
		{"EADDRNOTAVAIL", syscall.EADDRNOTAVAIL},
	}
}

func (s *simulation) resetRegistry(Event) {
	s.record("the registry loses its data")
	s.disturbs(0)
	s.store.reset()
	s.lastReset = time.Now()
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
	if !s.begin("list", e) {
		return
	}
	s.record("for %v the registry lists %s, with each renewal", e.For, e.Variant)
	s.disturbs(e.For)
	s.store.setList(e.Variant, e.Seed)
	s.listedOld = s.listedOld || e.Variant == listOld
	s.endAfter("list", e, func() {
		s.record("the registry lists all servers again")
		s.store.setList("", 0)
	})
}

// drift makes the clock of the token service differ from that of the others, for one node.
func (s *simulation) drift(e Event) {
	m := s.nth(e.Nodes[0])
	if m == nil || !s.begin(link(m.Host, clustertest.TokenHost), e) {
		return
	}
	s.record("tokens of %s are dated by %v, for %v", m.id, e.Delay, e.For)
	host := m.Host
	s.Network.Fault(host, clustertest.TokenHost, s.redate(e.Delay))
	s.endAfter(link(host, clustertest.TokenHost), e, func() {
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
	if !s.begin("keys", e) {
		return
	}
	s.rotations++
	next := cluster.Secret(fmt.Sprintf("key number %d", s.rotations))
	s.record("the key of tokens changes within %v", e.For)
	previous := s.keys[0]
	s.setKeys(next, previous)
	s.endAfter("keys", e, func() {
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

func describeNodes(nodes []int) string {
	names := make([]string, len(nodes))
	for i, n := range nodes {
		switch n {
		case registry:
			names[i] = "registry"
		case tokens:
			names[i] = "token service"
		default:
			names[i] = fmt.Sprintf("node-%d", n+1)
		}
	}
	return strings.Join(names, ", ")
}
