package simulation

import (
	"context"
	"slices"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

// A member is a node and its expected state.
type member struct {
	*clustertest.Node

	running  bool      // and meant to be in the cluster
	stopped  time.Time // when running became false
	unlisted time.Time // since when the registry has not listed it, without a fault that explains it
}

func (s *simulation) running() []*member {
	return slices.DeleteFunc(slices.Clone(s.members), func(m *member) bool { return !m.running })
}

// pick draws a running node.
func (s *simulation) pick() *member {
	running := s.running()
	return running[s.rand.IntN(len(running))]
}

// register starts to register a node, and does not wait for the end.
func (s *simulation) register(m *member) {
	m.running, m.stopped = true, time.Time{}
	c := m.Cluster // replaced by a later restart
	s.work.Go(func() { _, _ = c.Register(s.t.Context()) })
}

func (s *simulation) kill(m *member) {
	m.running, m.stopped, m.unlisted = false, time.Now(), time.Time{}
	m.Kill()
}

func (s *simulation) bringBack(m *member) {
	s.record("%s is back", m.ID)
	m.StartUnregistered()
	s.register(m)
}

// The following are events.

func (s *simulation) restart() {
	m, pause := s.pick(), s.between(time.Millisecond, 3*time.Minute)
	s.record("%s restarts within %v", m.ID, pause)
	s.kill(m)
	s.after(pause, func() { s.bringBack(m) })
}

// crash kills a node. Half of the nodes come back later.
func (s *simulation) crash() {
	if !s.enoughRunning() {
		return
	}
	m := s.pick()
	s.record("%s crashes", m.ID)
	s.kill(m)
	if s.rand.IntN(2) == 0 {
		s.after(s.between(time.Minute, 4*lease), func() { s.bringBack(m) })
	}
}

func (s *simulation) leave() {
	if !s.enoughRunning() {
		return
	}
	m := s.pick()
	s.record("%s leaves", m.ID)
	m.running, m.stopped = false, time.Now()
	s.work.Go(func() {
		m.UnRegister(s.t.Context())
		s.Network.Remove(m.Host)
		_ = m.Close() // it returns nil
	})
}

// enoughRunning reports whether another node may go.
func (s *simulation) enoughRunning() bool { return len(s.running()) > s.opts.Nodes/2 }

func (s *simulation) join() {
	m := &member{Node: s.Add()}
	s.record("%s joins", m.ID)
	s.members = append(s.members, m)
	s.register(m)
}

// callPeers makes one node call all its peers, and checks that each has exactly one outcome.
func (s *simulation) callPeers() {
	m := s.pick()
	c, id := m.Cluster, m.ID
	streamed := s.rand.IntN(3) == 0
	ctx, cancel := s.t.Context(), context.CancelFunc(func() {})
	if s.rand.IntN(10) == 0 {
		ctx, cancel = context.WithTimeout(ctx, s.between(time.Nanosecond, 10*time.Second))
	}
	s.work.Go(func() {
		defer cancel()
		// All other goroutines are blocked, so the call uses the same view.
		peers := without(serverIDs(c.Servers()), id)
		s.checkOutcomes(id, peers, s.call(ctx, c, streamed))
	})
}

// callDuring adds calls within a fault of that duration.
func (s *simulation) callDuring(fault time.Duration) {
	for range 3 {
		s.after(s.within(fault), s.callPeers)
	}
}

// call calls all peers of c with RPCluster or Stream.
func (s *simulation) call(ctx context.Context, c *cluster.Cluster, streamed bool) []cluster.Outcome {
	req := cluster.Request{Path: "/things"}
	if streamed {
		return slices.Collect(c.Stream(ctx, req))
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
