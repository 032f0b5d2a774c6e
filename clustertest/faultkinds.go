package clustertest

import (
	"fmt"
	"slices"

	"github.com/mimiktech/cluster/internal/plan"
)

// FaultKinds returns the names of all kinds of faults that a [Simulation] draws.
func FaultKinds() []string {
	var names []string
	for _, k := range faultKinds() {
		names = append(names, k.Name)
	}
	return names
}

// A faultKind is a kind of fault. run begins one, and draws nothing.
type faultKind struct {
	plan.Kind
	run func(*Run, plan.Event)
}

func faultKinds() []faultKind {
	var all []faultKind
	add := func(name string, weight int, draw func(*plan.Planner, *plan.Event), run func(*Run, plan.Event)) {
		all = append(all, faultKind{plan.Kind{Name: name, Weight: weight, Draw: draw}, run})
	}
	add("restart", 10, (*plan.Planner).Restart, (*Run).restart)
	add("crash", 8, (*plan.Planner).Crash, (*Run).crash)
	add("leave", 4, (*plan.Planner).OneNode, (*Run).leave)
	add("join", 6, (*plan.Planner).Join, (*Run).join)
	add("move", 4, (*plan.Planner).OneNode, (*Run).move)
	add("freeze", 4, (*plan.Planner).Freeze, (*Run).freeze)
	add("partition", 6, (*plan.Planner).Partition, (*Run).partition)
	add("one-way cuts", 3, (*plan.Planner).Cuts, (*Run).cuts)
	add("slow link", 4, (*plan.Planner).SlowLink, (*Run).slowLink)
	add("registry fault", 5, func(p *plan.Planner, e *plan.Event) { p.Variant(e, plan.Registry, modeNames()) }, (*Run).hostFault)
	add("token service fault", 4, func(p *plan.Planner, e *plan.Event) { p.Variant(e, plan.Tokens, modeNames()) }, (*Run).hostFault)
	add("peer fault", 6, func(p *plan.Planner, e *plan.Event) { p.Variant(e, p.Node()[0], modeNames()) }, (*Run).hostFault)
	add("local fault", 4, (*plan.Planner).Local, (*Run).localFault)
	add("registry reset", 2, func(*plan.Planner, *plan.Event) {}, (*Run).resetRegistry)
	return all
}

func modeNames() []string {
	var names []string
	for _, m := range FailureModes() {
		names = append(names, m.Name)
	}
	return names
}

// nth returns the first running node from index i on, or nil. So an event has a node even if other
// events were left out of the plan.
func (r *Run) nth(i int) *member {
	for k := range r.members {
		if m := r.members[(i+k)%len(r.members)]; m.running && !m.frozen {
			return m
		}
	}
	return nil
}

// host returns the host of a node or service of a plan, running or not.
func (r *Run) host(i int) string {
	switch i {
	case plan.Registry:
		return RegistryHost
	case plan.Tokens:
		return TokenHost
	}
	return r.members[i%len(r.members)].Host
}

// spare returns a node that may be stopped, or nil if only two are running.
func (r *Run) spare(i int) *member {
	if len(r.Running()) <= 2 {
		return nil
	}
	return r.nth(i)
}

// set changes fields that mu guards.
func (r *Run) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

// register begins to register a node.
func (r *Run) register(m *member) {
	r.set(func() { m.running = true })
	c := m.Cluster // replaced by a later restart
	r.goWork(func() { _, _ = c.Register(r.Context()) })
}

func (r *Run) kill(m *member) {
	r.set(func() { m.running = false })
	m.Kill()
}

// bringBack starts a killed node again after the duration of an event.
func (r *Run) bringBack(m *member, e plan.Event) {
	key := "start of " + m.ID
	if !r.schedule.Begin(key, e) {
		return
	}
	r.schedule.EndAfter(key, e, func() {
		r.Logf("%s is back", m.ID)
		m.StartUnregistered()
		r.register(m)
	})
}

func (r *Run) restart(e plan.Event) {
	m := r.spare(e.Nodes[0])
	if m == nil {
		return
	}
	r.Logf("%s restarts within %v", m.ID, e.For)
	r.kill(m)
	r.bringBack(m, e)
}

// crash kills a node, and starts it again later if the event has a duration.
func (r *Run) crash(e plan.Event) {
	m := r.spare(e.Nodes[0])
	if m == nil {
		return
	}
	r.Logf("%s crashes, for %v; 0s: for good", m.ID, e.For)
	r.kill(m)
	if e.For > 0 {
		r.bringBack(m, e)
	}
}

func (r *Run) leave(e plan.Event) {
	m := r.spare(e.Nodes[0])
	if m == nil {
		return
	}
	r.Logf("%s leaves", m.ID)
	r.set(func() { m.running = false })
	c, host := m.Cluster, m.Host
	r.goWork(func() {
		c.UnRegister(r.Context())
		r.world.Network.Remove(host)
		_ = c.Close() // it returns nil
	})
}

func (r *Run) join(plan.Event) {
	m := &member{Node: r.world.Add()}
	r.Logf("%s joins", m.ID)
	r.set(func() { r.members = append(r.members, m) })
	r.register(m)
}

// move kills a node, and starts it at another host with the same id.
func (r *Run) move(e plan.Event) {
	m := r.spare(e.Nodes[0])
	if m == nil {
		return
	}
	r.kill(m)
	r.moves++
	host := fmt.Sprintf("host-%d:8080", r.moves)
	r.Logf("%s moves to %s", m.ID, host)
	m.Move(host)
	r.register(m)
}

// freeze suspends a node, as SIGSTOP suspends a process. Requests to it are executed later.
func (r *Run) freeze(e plan.Event) {
	m := r.spare(e.Nodes[0])
	if m == nil || !r.schedule.Begin(m.Host, e) {
		return
	}
	r.Logf("%s is frozen for %v", m.ID, e.For)
	release := make(chan struct{})
	r.fault(m.Host, Any, Suspend(release))
	r.fault(Any, m.Host, Late(release))
	r.set(func() { m.frozen = true })
	host := m.Host
	r.schedule.EndAfter(host, e, func() {
		r.Logf("%s goes on", m.ID)
		r.fault(host, Any, nil)
		r.fault(Any, host, nil)
		close(release)
		r.set(func() { m.frozen = false })
	})
}

// partition splits the hosts into groups that do not reach each other.
func (r *Run) partition(e plan.Event) {
	groups := make([][]string, len(e.Groups))
	for i, group := range e.Groups {
		for _, node := range group {
			if host := r.host(node); node < len(r.members) && !slices.Contains(groups[i], host) {
				groups[i] = append(groups[i], host)
			}
		}
	}
	r.lasting("network", e, fmt.Sprintf("the network is partitioned for %v: %v", e.For, groups),
		func() { r.world.Network.Partition(groups...) }, r.world.Network.Heal)
}

// cuts cuts connections in one direction each.
func (r *Run) cuts(e plan.Event) {
	r.lasting("network", e, fmt.Sprintf("%d connections fail in one direction for %v", len(e.Nodes)/2, e.For), func() {
		for pair := range slices.Chunk(e.Nodes, 2) {
			r.world.Network.CutOneWay(r.host(pair[0]), r.host(pair[1]))
		}
	}, r.world.Network.Heal)
}

// slowLink delays the requests from one host to another.
func (r *Run) slowLink(e plan.Event) {
	from, to := r.host(e.Nodes[0]), r.host(e.Nodes[1])
	r.lasting(from+" → "+to, e, fmt.Sprintf("requests from %s to %s take %v, for %v", from, to, e.Delay, e.For),
		func() { r.fault(from, to, Delay(e.Delay)) }, func() { r.fault(from, to, nil) })
}

// hostFault makes a host fail to serve requests.
func (r *Run) hostFault(e plan.Event) {
	host := r.host(e.Nodes[0])
	mode := FailureModes()[slices.Index(modeNames(), e.Variant)]
	r.lasting(host, e, fmt.Sprintf("%s %s for %v", host, mode.Name, e.For),
		func() { r.fault(Any, host, mode.Fault(e.Seed)) }, func() { r.fault(Any, host, nil) })
}

// localFault makes a node run out of a resource that each connection needs.
func (r *Run) localFault(e plan.Event) {
	host := r.host(e.Nodes[0])
	fault := FailDial(plan.LocalError(e.Variant))
	if e.Seed%2 == 0 {
		fault = WithProbability(0.5, e.Seed, fault)
	}
	r.lasting(host, e, fmt.Sprintf("%s fails to dial for %v: %s", host, e.For, e.Variant),
		func() { r.fault(host, Any, fault) }, func() { r.fault(host, Any, nil) })
}

func (r *Run) resetRegistry(plan.Event) {
	r.Logf("the registry loses its data")
	r.world.ResetRegistry()
}

func (r *Run) fault(from, to string, f Fault) { r.world.Network.Fault(from, to, f) }

// lasting begins a fault, and ends it after the duration of the event. key names what the fault
// affects.
func (r *Run) lasting(key string, e plan.Event, text string, begin, end func()) {
	if !r.schedule.Begin(key, e) {
		return
	}
	r.Logf("%s", text)
	begin()
	r.schedule.EndAfter(key, e, func() {
		r.Logf("the end of: %s", text)
		end()
	})
}
