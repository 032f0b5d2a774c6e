package simulation

import (
	"context"
	"slices"
	"time"

	"github.com/mimiktech/cluster"
)

// trace counts what the nodes report, and checks each eviction.
func (s *simulation) trace() *cluster.Trace {
	return &cluster.Trace{
		StateChanged: func(_ context.Context, _, to cluster.Status) {
			if to.State == cluster.Lost {
				s.lost.Add(1)
			}
		},
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
			switch {
			case d.Decision == cluster.DecisionEvicted:
				s.checkEviction(d.Server)
			case d.Err != nil:
				s.skipped.Add(1)
			}
		},
	}
}

// checkEviction checks that the registry confirmed the eviction: if it lists the server, the listed
// entry is newer than the evicted one.
func (s *simulation) checkEviction(evicted cluster.Server) {
	s.evicted.Add(1)
	for _, listed := range s.Registered() {
		if listed.ServerID == evicted.ServerID && !listed.UpdatedAt.After(evicted.UpdatedAt) {
			s.t.Errorf("%v: %s was evicted, but the registry lists it", time.Since(s.start), evicted.ServerID)
		}
	}
}

// checkOutcomes checks that the outcomes of a call are those of the peers, one for each.
func (s *simulation) checkOutcomes(caller string, peers []string, outcomes []cluster.Outcome) {
	s.fanOuts.Add(1)
	got := slices.Sorted(slices.Values(outcomeIDs(outcomes)))
	if !slices.Equal(got, peers) {
		s.t.Errorf("%s called %v, the outcomes are those of %v", caller, peers, got)
	}
	for _, o := range outcomes {
		switch {
		case o.Err == nil:
			s.results.Add(1)
		case o.Kind == cluster.KindOK:
			s.t.Errorf("%s: the failure of %s has no kind: %v", caller, o.Server.ServerID, o.Err)
		default:
			s.failures.Add(1)
		}
	}
}

// checkInvariants checks what holds at any time for each running node that has registered.
func (s *simulation) checkInvariants() {
	now, listed := time.Now(), serverIDs(s.Registered())
	for _, m := range s.running() {
		status := m.Status()
		if status.RenewedAt.IsZero() {
			continue
		}
		servers := serverIDs(m.Servers())
		if !slices.Contains(servers, m.ID) {
			s.t.Errorf("%v: %s is not in its own view %v", now.Sub(s.start), m.ID, servers)
		}
		if status.Servers != len(servers) {
			s.t.Errorf("%v: the status of %s counts %d servers, its view has %d", now.Sub(s.start), m.ID, status.Servers, len(servers))
		}
		if registered := status.Registration() == "registered"; registered != now.Before(status.ExpiresAt()) {
			s.t.Errorf("%v: %s is %s, its lease expires at %v", now.Sub(s.start), m.ID, status.State, status.ExpiresAt().Sub(s.start))
		}
		s.checkListed(m, slices.Contains(listed, m.ID), now)
	}
}

// checkListed checks that the registry lists a running node again within a lease without faults.
func (s *simulation) checkListed(m *member, listed bool, now time.Time) {
	switch {
	case listed, s.partitioned, s.registryFails, s.tokensFail:
		m.unlisted = time.Time{}
	case m.unlisted.IsZero():
		m.unlisted = now
	case now.Sub(m.unlisted) > lease:
		s.t.Errorf("%v: %s runs, but has not been listed since %v", now.Sub(s.start), m.ID, m.unlisted.Sub(s.start))
	}
}

// checkConverged ends all faults, and checks that the cluster recovers: after a lease each node
// knows all running nodes, and after another grace period each node knows no others.
func (s *simulation) checkConverged() {
	s.endFaults()
	running, expiry := s.expected()
	sleep(lease)
	for _, m := range s.running() {
		s.checkRecovered(m, running, expiry)
	}
	for _, id := range running {
		if !slices.Contains(serverIDs(s.Registered()), id) {
			s.t.Errorf("%s is not listed after a lease without faults", id)
		}
	}

	// By now the leases of stopped nodes have expired, and all running nodes have renewed since.
	sleep(gracePeriod)
	if listed := serverIDs(s.Registered()); !slices.Equal(listed, running) {
		s.t.Errorf("the registry lists %v, want %v", listed, running)
	}
	for _, m := range s.running() {
		if servers := serverIDs(m.Servers()); !slices.Equal(servers, running) {
			s.t.Errorf("the view of %s is %v, want %v", m.ID, servers, running)
		}
	}
	for range 10 {
		s.checkAllReachable(running)
	}
	if s.evicted.Load() == 0 || s.skipped.Load() == 0 || s.renewalsFailed.Load() == 0 {
		s.t.Errorf("the run shows nothing, because its faults had no effect: %s", s.summary())
	}
}

// expected returns the ids of the running nodes, sorted, and when the entry of each stopped node
// expires at the latest.
func (s *simulation) expected() (running []string, expiry map[string]time.Time) {
	expiry = map[string]time.Time{}
	for _, m := range s.members {
		if m.running {
			running = append(running, m.ID)
		} else {
			expiry[m.ID] = m.stopped.Add(gracePeriod)
		}
	}
	slices.Sort(running)
	return running, expiry
}

// checkRecovered checks a running node after a lease without faults: it is registered, and knows
// all running nodes and all listed ones. It knows a stopped node only if the registry lists it or
// did when the node last renewed.
func (s *simulation) checkRecovered(m *member, running []string, expiry map[string]time.Time) {
	status, servers, listed := m.Status(), serverIDs(m.Servers()), serverIDs(s.Registered())
	if status.State != cluster.Registered {
		s.t.Errorf("%s is %s after a lease without faults: %v", m.ID, status.State, status.Reason)
	}
	for _, id := range running {
		if !slices.Contains(servers, id) {
			s.t.Errorf("%s does not know the running node %s after a lease without faults", m.ID, id)
		}
	}
	for _, id := range listed {
		if !slices.Contains(servers, id) && !slices.Contains(running, id) {
			s.t.Errorf("%s does not know the listed node %s after a lease without faults", m.ID, id)
		}
	}
	for _, id := range servers {
		if until, stopped := expiry[id]; stopped && !slices.Contains(listed, id) && !status.RenewedAt.Before(until) {
			s.t.Errorf("%s renewed at %[4]v, but knows %[2]s, although that entry expired at %[3]v", m.ID, id, until.Sub(s.start), status.RenewedAt.Sub(s.start))
		}
	}
}

// checkAllReachable checks that a node gets a result from each peer.
func (s *simulation) checkAllReachable(running []string) {
	m := s.pick()
	outcomes := s.call(s.t.Context(), m.Cluster, false)
	s.checkOutcomes(m.ID, without(running, m.ID), outcomes)
	for _, o := range outcomes {
		if o.Err != nil {
			s.t.Errorf("%s cannot reach %s: %v", m.ID, o.Server.ServerID, o.Err)
		}
	}
}
