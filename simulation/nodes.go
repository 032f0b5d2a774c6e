package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/internal/plan"
)

// A member is a node and its expected state.
type member struct {
	*clustertest.Node

	id       string    // that the process registers with; Node.ID, except for a twin
	twin     bool      // another member has the same id
	running  bool      // and meant to be in the cluster
	stopped  time.Time // when running became false
	frozen   bool
	unlisted time.Time // since when the registry is known not to list it
}

// managed reports whether the node calls its peers.
func (m *member) managed() bool { return m.Config().Management }

// configure edits the configuration of a node before it is created.
func (s *simulation) configure(cfg *cluster.Config) {
	var index int
	_, _ = fmt.Sscanf(cfg.ID, "node-%d", &index)
	if s.twinOf != "" {
		cfg.ID = s.twinOf
	}
	cfg.MaxInFlight = s.scenario.MaxInFlight
	cfg.Management = s.scenario.Unmanaged == 0 || index%s.scenario.Unmanaged != 0
	cfg.GenericKey, cfg.GenericPreviousKey = s.keys[0], s.keys[1]
}

// handler is that of a node for the calls of its peers. The data are the id of the node.
func handler(n *clustertest.Node) http.Handler {
	c := n.Cluster
	return c.Authenticate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.Reply(w, r, []string{c.Config().ID})
	}))
}

func (s *simulation) running() []*member {
	return slices.DeleteFunc(slices.Clone(s.members), func(m *member) bool { return !m.running || m.twin })
}

// nth returns the first running node from index i on, or nil if none is running. Frozen nodes do
// not count. So an event has a node also if others were left out of the plan.
func (s *simulation) nth(i int) *member {
	return s.first(i, func(m *member) bool { return m.running && !m.frozen && !m.twin })
}

// nthCaller is nth for nodes that call their peers.
func (s *simulation) nthCaller(i int) *member {
	return s.first(i, func(m *member) bool { return m.running && !m.frozen && !m.twin && m.managed() })
}

func (s *simulation) first(i int, match func(*member) bool) *member {
	for k := range s.members {
		if m := s.members[(i+k)%len(s.members)]; match(m) {
			return m
		}
	}
	return nil
}

// host returns the host with an index of a plan: the registry, the token service, or that of a
// node, running or not.
func (s *simulation) host(i int) string {
	switch i {
	case plan.Registry:
		return clustertest.RegistryHost
	case plan.Tokens:
		return clustertest.TokenHost
	}
	return s.members[i%len(s.members)].Host
}

// register starts to register a node, and does not wait for the end.
func (s *simulation) register(m *member) {
	m.running, m.stopped = true, time.Time{}
	s.processes.start(m.Host, m.id)
	c := m.Cluster // replaced by a later restart
	s.work.Go(func() { _, _ = c.Register(s.t.Context()) })
}

func (s *simulation) kill(m *member) {
	s.stopped(m)
	m.Kill()
}

// stopped records that a node is no longer meant to be in the cluster.
func (s *simulation) stopped(m *member) {
	m.running, m.stopped, m.unlisted = false, time.Now(), time.Time{}
	s.processes.stop(m.Host)
}

func (s *simulation) bringBack(m *member) {
	s.record("%s is back", m.id)
	m.StartUnregistered()
	s.register(m)
}

// enoughRunning reports whether another node may go.
func (s *simulation) enoughRunning() bool { return len(s.running()) > max(2, s.scenario.Nodes/2) }

// The following run events.

func (s *simulation) restart(e Event) {
	m := s.nth(e.Nodes[0])
	if m == nil {
		return
	}
	s.record("%s restarts within %v", m.id, e.For)
	s.kill(m)
	s.After(e.For, func() { s.bringBack(m) })
}

// crash kills a node, which comes back later if the event has a duration.
func (s *simulation) crash(e Event) {
	m := s.nth(e.Nodes[0])
	if m == nil || !s.enoughRunning() {
		return
	}
	s.record("%s crashes", m.id)
	s.kill(m)
	if e.For > 0 {
		s.After(e.For, func() { s.bringBack(m) })
	}
}

func (s *simulation) leave(e Event) {
	m := s.nth(e.Nodes[0])
	if m == nil || !s.enoughRunning() {
		return
	}
	s.record("%s leaves", m.id)
	s.startCall(m, Event{})
	s.stopped(m)
	c, host := m.Cluster, m.Host
	s.work.Go(func() {
		time.Sleep(time.Millisecond) // it is in the middle of the call
		c.UnRegister(s.t.Context())
		s.Network.Remove(host)
		_ = c.Close() // it returns nil
	})
}

func (s *simulation) join(Event) {
	m := &member{Node: s.Add()}
	m.id = m.ID
	s.record("%s joins", m.id)
	s.members = append(s.members, m)
	s.register(m)
}

// move starts a node at another host, with its id, after it has been killed.
func (s *simulation) move(e Event) {
	m := s.nth(e.Nodes[0])
	if m == nil {
		return
	}
	s.kill(m)
	s.moves++
	host := fmt.Sprintf("host-%d:8080", s.moves)
	s.record("%s moves to %s", m.id, host)
	m.Move(host)
	s.register(m)
}

// twins starts a second process with the id of a node. It ends after a while: it is killed, or it
// unregisters.
func (s *simulation) twins(e Event) {
	m := s.nth(e.Nodes[0])
	if m == nil || s.twinOf != "" || !s.Begin("twin of "+m.id, e) {
		return
	}
	s.twinOf = m.id
	twin := &member{Node: s.Add(), id: m.id, twin: true}
	s.twinOf = ""
	s.processes.addTwin(m.id)
	s.record("a second process has the id %s, at %s, for %v", m.id, twin.Host, e.For)
	s.members = append(s.members, twin)
	s.register(twin)
	began := time.Now()
	host, process := m.Host, m.Cluster
	undisturbed, observed := s.undisturbedSince(began), s.watchMoves(m.id, host, twin.Host)
	s.EndAfter("twin of "+m.id, e, func() {
		if observed() && undisturbed() && m.running && m.Host == host && m.Cluster == process {
			s.checkConflict(m, twin)
		}
		s.record("the second process with the id %s ends: %s", m.id, e.Variant)
		s.stopped(twin)
		if e.Variant == twinKilled {
			twin.Kill()
			return
		}
		m.unlisted = time.Now() // the second process deletes the entry of the id
		s.work.Go(func() {
			twin.UnRegister(s.t.Context())
			s.Network.Remove(twin.Host)
			_ = twin.Close() // it returns nil
		})
	})
}

// noticeTime is how long after a move a node has found out whether the former address answers, too.
const noticeTime = 5 * time.Minute

// watchMoves watches the views of the nodes that call their peers. observed ends that, and reports
// whether the server with an id has moved between two hosts in one of the views, and stayed for the
// noticeTime. Two processes may renew in such a rhythm that a node never sees the entry of one of
// them.
func (s *simulation) watchMoves(id, a, b string) (observed func() bool) {
	ctx, stop := context.WithCancel(s.t.Context())
	var watches sync.WaitGroup
	seenBy := map[*member]*bool{}
	watched := map[*member]*cluster.Cluster{}
	for _, m := range s.running() {
		if m.id == id || !m.managed() {
			continue
		}
		seen, process := new(bool), m.Cluster
		seenBy[m], watched[m] = seen, process
		watches.Go(func() {
			var host string
			var moved time.Time // from one to the other
			at := func(next string) {
				now := time.Now()
				*seen = *seen || !moved.IsZero() && now.Sub(moved) > noticeTime
				moved = time.Time{}
				if host == a && next == b || host == b && next == a {
					moved = now
				}
				host = next
			}
			for change := range process.Watch(ctx) {
				switch {
				case change.Server.ServerID != id:
				case change.Kind == cluster.ServerLeft:
					at("")
				default:
					at(hostOf(change.Server.ClusterBaseURL))
				}
			}
			at("")
		})
	}
	return func() bool {
		stop()
		watches.Wait()
		for m, seen := range seenBy {
			if m.running && m.Cluster == watched[m] && *seen {
				return true
			}
		}
		return false
	}
}

const (
	twinKilled       = "killed"
	twinUnregistered = "unregistered"
)

// lateDelete lets a node leave and start again. The registry executes the delete of the first
// process only when the second one has registered.
func (s *simulation) lateDelete(e Event) {
	m := s.nth(e.Nodes[0])
	if m == nil || !s.Begin(link(m.Host, clustertest.RegistryHost), e) {
		return
	}
	s.record("%s leaves; the registry executes its delete %v later", m.id, e.For)
	release := make(chan struct{})
	isOwnDelete := func(r *http.Request) bool {
		return r.Method == http.MethodDelete && strings.Contains(r.URL.Path, "/servers/"+m.id+"@")
	}
	s.Network.Fault(m.Host, clustertest.RegistryHost, clustertest.If(isOwnDelete, clustertest.Late(release)))
	s.stopped(m)
	c := m.Cluster
	s.work.Go(func() {
		c.UnRegister(s.t.Context())
		_ = c.Close() // it returns nil
	})
	s.After(e.For/2, func() {
		if m.running { // it has been started again already
			return
		}
		s.bringBack(m)
	})
	s.EndAfter(link(m.Host, clustertest.RegistryHost), e, func() {
		s.record("the registry executes the delete of %s", m.id)
		close(release)
		s.Network.Fault(m.Host, clustertest.RegistryHost, nil)
		s.marks.hit("late delete")
	})
}

// freeze stops a process for a while, like SIGSTOP. Requests to it are executed later. Over pipes
// it does nothing: the timers of internal/h1 would not stop, and no response would reach a socket.
func (s *simulation) freeze(e Event) {
	m := s.nth(e.Nodes[0])
	if m == nil || s.scenario.Pipes || !s.Begin(m.Host, e) {
		return
	}
	s.record("%s is frozen for %v", m.id, e.For)
	s.hurts(e.For, m.Host)
	m.frozen = true
	release := make(chan struct{})
	s.Network.Fault(m.Host, clustertest.Any, clustertest.Suspend(release))
	s.Network.Fault(clustertest.Any, m.Host, clustertest.Late(release))
	s.startCall(m, Event{}) // it is in the middle of a call
	s.EndAfter(m.Host, e, func() {
		s.record("%s goes on", m.id)
		s.Network.Fault(m.Host, clustertest.Any, nil)
		s.Network.Fault(clustertest.Any, m.Host, nil)
		close(release)
		m.frozen = false
	})
}

// callPeers makes one node call all its peers, and checks that each has exactly one outcome.
func (s *simulation) callPeers(e Event) {
	if m := s.nthCaller(e.Nodes[0]); m != nil {
		s.startCall(m, e)
	}
}

// startCall starts a call of all peers.
func (s *simulation) startCall(m *member, e Event) {
	if !m.managed() || m.Status().RenewedAt.IsZero() { // without a view there is no call
		return
	}
	c, id := m.Cluster, m.id
	ctx, cancel := s.t.Context(), context.CancelFunc(func() {})
	if e.For > 0 {
		ctx, cancel = context.WithTimeout(ctx, e.For)
	}
	s.work.Go(func() {
		defer cancel()
		// All other goroutines are blocked, so the call uses the same view.
		peers := without(serverIDs(c.Servers()), id)
		if e.Variant == callTwo {
			peers = peers[:min(2, len(peers))]
		}
		s.checkOutcomes(id, peers, s.call(ctx, c, e.Variant, peers))
	})
}

// The ways to call all peers.
const (
	callStreamed = "streamed"
	callPost     = "POST"
	callHedged   = "hedged"
	callQuorum   = "until half of the peers have answered"
	callTwo      = "two peers only"
)

// call calls peers of c.
func (s *simulation) call(ctx context.Context, c *cluster.Cluster, variant string, peers []string) []cluster.Outcome {
	req := cluster.Request{Path: "/things"}
	switch variant {
	case callStreamed:
		return slices.Collect(c.Stream(ctx, req))
	case callPost:
		req.Method = http.MethodPost
	case callHedged:
		req.HedgeAfter = time.Second
	case callQuorum:
		req.MinResults = max(1, len(peers)/2)
	case callTwo:
		req.Filter = func(p cluster.Server) bool { return slices.Contains(peers, p.ServerID) }
	}
	res, err := c.RPCluster(ctx, req)
	if err != nil {
		s.t.Errorf("%s: fan-out: %v", c.Status().ServerID, err)
		return nil
	}
	data, err := cluster.Decode[string](res) // each node returns its id
	if want := outcomeIDs(res.Results); err != nil || !slices.Equal(data, want) {
		s.t.Errorf("%s: joint data %v, %v, want %v", c.Status().ServerID, data, err, want)
	}
	return slices.Concat(res.Results, res.Failures)
}

// forgeDeparture makes one node report to all others that a running node has left.
func (s *simulation) forgeDeparture(e Event) {
	sender, victim := s.nthCaller(e.Nodes[0]), s.nth(e.Nodes[1])
	if sender == nil || victim == nil || sender.Status().RenewedAt.IsZero() {
		return
	}
	s.record("%s reports %s as departed", sender.id, victim.id)
	s.marks.hit("a registered node is in its own view: reported as departed")
	c := sender.Cluster
	s.work.Go(func() {
		_, err := c.RPCluster(s.t.Context(), cluster.Request{
			Method: http.MethodDelete,
			Path:   "/itResources/" + s.store.id() + "/servers/" + victim.id,
		})
		if err != nil {
			s.t.Errorf("%s: forged departure: %v", sender.id, err)
		}
	})
}

func serverIDs(servers []cluster.Server) []string {
	ids := make([]string, len(servers))
	for i, server := range servers {
		ids[i] = server.ServerID
	}
	return ids
}

func outcomeIDs(outcomes []cluster.Outcome) []string {
	ids := make([]string, len(outcomes))
	for i, o := range outcomes {
		ids[i] = o.Server.ServerID
	}
	return ids
}

// without returns a copy of ids that lacks id.
func without(ids []string, id string) []string {
	return slices.DeleteFunc(slices.Clone(ids), func(other string) bool { return other == id })
}
