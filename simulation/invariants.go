package main

import (
	"context"
	"slices"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/internal/plan"
)

// trace counts what the nodes report, and checks each eviction.
func (s *simulation) trace() *cluster.Trace {
	return &cluster.Trace{
		StateChanged: func(_ context.Context, from, to cluster.Status) { s.stateChanged(from, to) },
		Renewal: func(ctx context.Context, _ cluster.RenewalInfo) (context.Context, func(cluster.RenewalResult)) {
			return ctx, func(r cluster.RenewalResult) {
				switch {
				case r.Err == nil:
					s.renewed.Add(1)
				case r.RetryIn > 0: // otherwise the node has stopped
					s.renewalsFailed.Add(1)
				}
			}
		},
		EvictionDecided: func(_ context.Context, d cluster.EvictionDecision) {
			s.marks.hit("eviction decision: " + string(d.Decision))
			switch {
			case d.Decision == cluster.DecisionEvicted:
				s.checkEviction(d.Server)
			case d.Err != nil:
				s.skipped.Add(1)
			}
			if d.Decision == cluster.DecisionSelfPreservation {
				s.marks.hit("a node that cannot reach most peers evicts none")
			}
		},
		MembershipChanged: func(_ context.Context, c cluster.Change) {
			switch c.Source {
			case cluster.SourceAnnouncement:
				s.marks.hit("a renewal replaces the view, except for newer changes: announcement")
			case cluster.SourceDeparture:
				s.marks.hit("a renewal replaces the view, except for newer changes: departure")
			case cluster.SourceRegistry:
				s.marks.hit("a renewal replaces the view: registry")
			}
		},
		BreakerChanged: func(_ context.Context, _ cluster.Server, open bool) {
			if open {
				s.marks.hit("a silent peer does not hold up calls: circuit opened")
			} else {
				s.marks.hit("a silent peer does not hold up calls: circuit closed")
			}
		},
	}
}

func (s *simulation) stateChanged(from, to cluster.Status) {
	switch {
	case to.State == cluster.Lost:
		s.lost.Add(1)
		s.marks.hit("the state follows the lease: lost")
	case to.State == cluster.Degraded:
		s.marks.hit("the state follows the lease: degraded before the expiry")
	case from.State == cluster.Lost && to.State == cluster.Registered:
		s.marks.hit("a node recovers without a restart: registered after lost")
	case from.State == cluster.Degraded && to.State == cluster.Registered:
		s.marks.hit("a node recovers without a restart: registered after degraded")
	}
}

// checkEviction checks that the registry confirmed the eviction: it does not list the same entry.
func (s *simulation) checkEviction(evicted cluster.Server) {
	s.evicted.Add(1)
	s.marks.hit("an eviction needs the registry's confirmation")
	for _, listed := range s.Registered() {
		if listed.ServerID == evicted.ServerID && listed.UpdatedAt.Equal(evicted.UpdatedAt) {
			s.t.Errorf("%v: %s was evicted, but the registry lists it", time.Since(s.Start), evicted.ServerID)
		}
	}
	if p, running := s.processes.at(evicted.ClusterBaseURL); running && p.id == evicted.ServerID &&
		time.Since(p.started) > afterEffect && !s.effects.maybeHurt(hostOf(evicted.ClusterBaseURL)) {
		s.t.Errorf("%v: %s at %s was evicted, although it is healthy", time.Since(s.Start), evicted.ServerID, evicted.ClusterBaseURL)
	}
}

// checkDelete checks that an entry that the registry deletes is not that of a healthy process. The
// entry of a process that has replaced another one may be deleted with the date of the former, if
// the registry executes a delete late and its clock has been set back between the two.
func (s *simulation) checkDelete(e entry, date time.Time) {
	p, running := s.processes.at(e.ClusterBaseURL)
	ahead := date.After(e.UpdatedAt) && date.After(time.Now().Add(s.store.offset))
	switch {
	case !running, p.number != e.process, p.id != e.ServerID:
	case s.effects.maybeHurt(hostOf(e.ClusterBaseURL)):
	case ahead && (s.processes.hadTwin(e.ServerID) || time.Since(p.started) < 2*s.scenario.Lease):
	default:
		s.t.Errorf("%v: the registry has deleted the entry of %s at %s, which is healthy", time.Since(s.Start), e.ServerID, e.ClusterBaseURL)
	}
}

// checkOutcomes checks that the outcomes of a call are those of the peers, one for each.
func (s *simulation) checkOutcomes(caller string, peers []string, outcomes []cluster.Outcome) {
	s.fanOuts.Add(1)
	got := slices.Sorted(slices.Values(outcomeIDs(outcomes)))
	if !slices.Equal(got, peers) {
		s.t.Errorf("%v: %s called %v, the outcomes are those of %v", time.Since(s.Start), caller, peers, got)
	}
	results, failures := 0, 0
	for _, o := range outcomes {
		s.marks.hit("outcome: " + string(o.Kind))
		switch {
		case o.Err == nil:
			results++
		case o.Kind == cluster.KindOK:
			s.t.Errorf("%s: the failure of %s has no kind: %v", caller, o.Server.ServerID, o.Err)
		default:
			failures++
		}
	}
	s.results.Add(int64(results))
	s.failures.Add(int64(failures))
	if results > 0 && failures > 0 {
		s.marks.hit("each selected peer has one outcome: results and failures")
	}
}

// checkInvariants checks what holds at any time for each running node that has registered.
func (s *simulation) checkInvariants() {
	now, listed := time.Now(), serverIDs(s.Registered())
	for _, m := range s.members {
		if !m.running || m.frozen {
			continue
		}
		status := m.Status()
		if status.RenewedAt.IsZero() {
			continue
		}
		servers := serverIDs(m.Servers())
		if !slices.Contains(servers, m.id) {
			s.t.Errorf("%v: %s is not in its own view %v", now.Sub(s.Start), m.id, servers)
		}
		if status.Servers != len(servers) {
			s.t.Errorf("%v: the status of %s counts %d servers, its view has %d", now.Sub(s.Start), m.id, status.Servers, len(servers))
		}
		if registered := status.Env()["REGISTRATION_STATUS"] == "registered"; registered != now.Before(status.ExpiresAt()) {
			s.t.Errorf("%v: %s is %s, its lease expires at %v", now.Sub(s.Start), m.id, status.State, status.ExpiresAt().Sub(s.Start))
		}
		for _, c := range status.Conflicts {
			// An outdated list has the former address of a node that has moved meanwhile.
			if !s.processes.hadTwin(c.ServerID) && !s.listedOld {
				s.t.Errorf("%v: %s reports two processes with the id %s: %v", now.Sub(s.Start), m.id, c.ServerID, c.Addresses)
			}
			s.marks.hit("two processes with one id are reported")
		}
		if len(servers) > len(listed) {
			s.marks.hit("nodes keep their peers if the registry loses its data: more known than listed")
		}
		if !m.managed() {
			s.marks.hit("an unmanaged node is listed")
		}
		s.checkListed(m, slices.Contains(listed, m.id), now)
	}
}

// checkListed checks that the registry lists a running node again within a lease without faults.
func (s *simulation) checkListed(m *member, listed bool, now time.Time) {
	switch {
	case listed:
		m.unlisted = time.Time{}
	case m.unlisted.IsZero():
		m.unlisted = now
	}
	// There may have been a fault since the last check.
	if since := latest(m.unlisted, s.effects.disturbedUntil(m.Host)); !listed && now.Sub(since) > s.scenario.Lease {
		s.t.Errorf("%v: %s runs, but has not been listed since %v", now.Sub(s.Start), m.id, since.Sub(s.Start))
	}
}

// checkConflict checks that two processes with one id have been noticed. Their peers notice them
// first, and then the one whose address was replaced.
func (s *simulation) checkConflict(a, b *member) {
	s.marks.hit("two processes with one id are expected to be reported")
	for _, m := range s.members {
		if m.running && slices.ContainsFunc(m.Status().Conflicts, func(c cluster.Conflict) bool {
			addresses := []string{hostOf(c.Addresses[0]), hostOf(c.Addresses[1])}
			return c.ServerID == a.id && slices.Contains(addresses, a.Host) && slices.Contains(addresses, b.Host)
		}) {
			return
		}
	}
	s.t.Errorf("%v: no node reports that two processes have the id %s, at %s and %s", time.Since(s.Start), a.id, a.Host, b.Host)
}

// convergenceSteps is how often per lease the convergence is measured.
const convergenceSteps = 40

// checkConverged checks that the cluster recovers from all faults: after a lease each node knows
// all running nodes that announce themselves, and after another grace period each node knows all
// running nodes and no others. It measures when. A node that does not announce itself may need two
// renewals to become known: its own, and that of the other node.
func (s *simulation) checkConverged() {
	running, expiry := s.expected()
	announced := s.announced()
	last := map[string]time.Time{}
	end := time.Now()
	for range convergenceSteps {
		for _, m := range s.running() {
			if !s.isConverged(m, announced) {
				last[m.id] = time.Now()
			}
		}
		plan.Sleep(s.scenario.Lease / convergenceSteps)
	}
	for _, m := range s.running() {
		s.converged[m.id] = 0
		if at, ok := last[m.id]; ok {
			s.converged[m.id] = (at.Sub(end) + s.scenario.Lease/convergenceSteps).Seconds() / s.scenario.Lease.Seconds()
		}
		s.checkRecovered(m, announced, expiry)
	}
	for _, id := range running {
		if !slices.Contains(serverIDs(s.Registered()), id) {
			s.t.Errorf("%s is not listed after a lease without faults", id)
		}
	}

	// By now the leases of stopped nodes have expired, and all running nodes have renewed since.
	plan.Sleep(s.gracePeriod())
	if listed := serverIDs(s.Registered()); !slices.Equal(listed, running) {
		s.t.Errorf("the registry lists %v, want %v", listed, running)
	}
	for _, m := range s.running() {
		if servers := serverIDs(m.Servers()); !slices.Equal(servers, running) {
			s.t.Errorf("the view of %s is %v, want %v", m.id, servers, running)
		}
	}
	for i := range 5 {
		if m := s.nthCaller(i); m != nil {
			s.checkAllReachable(m, running)
		}
	}
}

// gracePeriod is how long the registry lists a server that does not renew.
func (s *simulation) gracePeriod() time.Duration { return s.scenario.Lease * 3 / 2 }

// isConverged reports whether a node is registered, listed, and knows some nodes.
func (s *simulation) isConverged(m *member, nodes []string) bool {
	servers := serverIDs(m.Servers())
	return m.Status().State == cluster.Registered && slices.Contains(serverIDs(s.Registered()), m.id) &&
		!slices.ContainsFunc(nodes, func(id string) bool { return !slices.Contains(servers, id) })
}

// announced returns the ids of the running nodes that announce themselves.
func (s *simulation) announced() (ids []string) {
	for _, m := range s.running() {
		if m.managed() {
			ids = append(ids, m.id)
		}
	}
	return ids
}

// expected returns the ids of the running nodes, sorted, and when the entry of each id without a
// running process expires at the latest.
func (s *simulation) expected() (running []string, expiry map[string]time.Time) {
	expiry = map[string]time.Time{}
	for _, m := range s.running() {
		running = append(running, m.id)
	}
	slices.Sort(running)
	for _, m := range s.members {
		if slices.Contains(running, m.id) {
			continue
		}
		until := m.stopped.Add(s.gracePeriod())
		if now := time.Now(); until.Before(now) {
			until = now // the registry may have sent a wrong list so far
		}
		if until.After(expiry[m.id]) {
			expiry[m.id] = until
		}
	}
	return running, expiry
}

// checkRecovered checks a running node after a lease without faults: it is registered, and knows
// all running nodes that announce themselves, and all stopped nodes that are still listed. It knows
// a stopped node only if the registry lists it or did when the node last renewed, or if the node
// has treated the registry as reset.
func (s *simulation) checkRecovered(m *member, announced []string, expiry map[string]time.Time) {
	status, servers, listed := m.Status(), serverIDs(m.Servers()), serverIDs(s.Registered())
	if status.State != cluster.Registered {
		s.t.Errorf("%s is %s after a lease without faults: %v", m.id, status.State, status.Reason)
	}
	for _, id := range announced {
		if !slices.Contains(servers, id) {
			s.t.Errorf("%s does not know the running node %s after a lease without faults", m.id, id)
		}
	}
	for _, id := range listed {
		if _, stopped := expiry[id]; stopped && !slices.Contains(servers, id) {
			s.t.Errorf("%s does not know the listed node %s after a lease without faults", m.id, id)
		}
	}
	// A node that treats the registry as reset retains its peers for a lease.
	retained := s.store.lastLost().Add(s.scenario.Lease)
	for _, id := range servers {
		if until, stopped := expiry[id]; stopped && !status.RenewedAt.Before(retained) && !slices.Contains(listed, id) && !status.RenewedAt.Before(until) {
			s.t.Errorf("%s renewed at %[4]v, but knows %[2]s, although that entry expired at %[3]v", m.id, id, until.Sub(s.Start), status.RenewedAt.Sub(s.Start))
		}
	}
}

// checkAllReachable checks that a node gets a result from each peer.
func (s *simulation) checkAllReachable(m *member, running []string) {
	peers := without(running, m.id)
	outcomes := s.call(s.t.Context(), m.Cluster, "", peers)
	s.checkOutcomes(m.id, peers, outcomes)
	for _, o := range outcomes {
		if o.Err != nil {
			s.t.Errorf("%s cannot reach %s: %v", m.id, o.Server.ServerID, o.Err)
		}
	}
}
