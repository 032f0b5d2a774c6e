package simulation

import (
	"net/http"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/mit"
)

// forgeDeparture makes one node report to all others that a running node has left.
func (s *simulation) forgeDeparture() {
	sender, victim := s.pick(), s.pick()
	s.record("%s reports %s as departed", sender.ID, victim.ID)
	c := sender.Cluster
	s.work.Go(func() {
		_, err := c.RPCluster(s.t.Context(), cluster.Request{
			Method: http.MethodDelete,
			Path:   "/itResources/" + mit.ResourceID("mds") + "/servers/" + victim.ID,
		})
		if err != nil {
			s.t.Errorf("%s: forged departure: %v", sender.ID, err)
		}
	})
}

// partition breaks the network for a while: it cuts single connections in one direction, or splits
// the hosts into groups.
func (s *simulation) partition() {
	if s.partitioned {
		return
	}
	s.partitioned = true
	duration := s.between(shortestFault, longestFault)
	if s.rand.IntN(4) == 0 {
		for range 20 {
			from, to := s.pick(), s.pick()
			s.Network.CutOneWay(from.Host, to.Host)
		}
		s.record("20 connections fail in one direction for %v", duration)
	} else {
		groups := s.splitRandomly()
		s.record("the network is partitioned for %v: %v", duration, groups)
	}
	s.callDuring(duration)
	s.after(duration, func() {
		s.record("the network is whole again")
		s.Network.Heal()
		s.partitioned = false
	})
}

// splitRandomly splits the nodes into two or three groups that do not reach each other. The
// registry and the token service each are in one of the groups, or in reach of all.
func (s *simulation) splitRandomly() [][]string {
	groups := make([][]string, 2+s.rand.IntN(2))
	weight := s.rand.Float64() // some partitions are even, others isolate a few nodes
	side := func() int {
		if s.rand.Float64() < weight {
			return 0
		}
		return s.rand.IntN(len(groups))
	}
	for _, m := range s.members {
		i := side()
		groups[i] = append(groups[i], m.Host)
	}
	for _, host := range []string{clustertest.RegistryHost, clustertest.TokenHost} {
		if s.rand.IntN(3) > 0 {
			i := side()
			groups[i] = append(groups[i], host)
		}
	}
	s.Network.Partition(groups...)
	return groups
}

// splitOffThird cuts a third of the nodes off from the others, but not from the registry, so that
// the others evict them.
func (s *simulation) splitOffThird() {
	s.partitioned = true
	var groups [2][]string
	for i, m := range s.running() {
		side := min(i%3, 1)
		groups[side] = append(groups[side], m.Host)
	}
	s.record("the network is partitioned until the end: %v", groups)
	s.Network.Partition(groups[0], groups[1])
	s.after(time.Second, s.callPeers)
	s.after(2*time.Second, s.callPeers)
}

func (s *simulation) resetRegistry() {
	s.record("the registry loses its data")
	s.ResetRegistry()
}

// registryFault makes the registry fail for a while. In one of three cases it also loses its data.
func (s *simulation) registryFault() {
	if s.registryFails {
		return
	}
	s.registryFails = true
	duration, loses := s.between(shortestFault, longestFault), s.rand.IntN(3) == 0
	s.injectFault(clustertest.RegistryHost, duration)
	s.after(s.within(duration), s.forgeDeparture)
	s.after(duration, func() {
		s.record("the registry works again")
		if loses {
			s.resetRegistry()
		}
		s.Network.Fault(clustertest.Any, clustertest.RegistryHost, nil)
		s.registryFails = false
	})
}

// tokenFault makes the token service fail for a while.
func (s *simulation) tokenFault() {
	if s.tokensFail {
		return
	}
	s.tokensFail = true
	duration := s.between(shortestFault, longestFault)
	s.injectFault(clustertest.TokenHost, duration)
	s.after(duration, func() {
		s.record("the token service works again")
		s.Network.Fault(clustertest.Any, clustertest.TokenHost, nil)
		s.tokensFail = false
	})
}

// injectFault makes a service fail in a way that is drawn.
func (s *simulation) injectFault(host string, duration time.Duration) {
	faults := []struct {
		name  string
		fault clustertest.Fault
	}{
		{"refuses connections", clustertest.Refuse},
		{"hangs", clustertest.Hang},
		{"answers 500", clustertest.Status(500)},
		{"answers half of the requests", clustertest.WithProbability(0.5, s.rand.Uint64(), clustertest.Status(503))},
		{"executes all requests and resets some connections", clustertest.WithProbability(0.2, s.rand.Uint64(), clustertest.Reset)},
	}
	f := faults[s.rand.IntN(len(faults))]
	s.record("%s %s for %v", host, f.name, duration)
	s.Network.Fault(clustertest.Any, host, f.fault)
	s.callDuring(duration)
}

// endFaults ends all faults.
func (s *simulation) endFaults() {
	s.record("all faults end")
	s.Network.Heal()
	s.Network.Fault(clustertest.Any, clustertest.RegistryHost, nil)
	s.Network.Fault(clustertest.Any, clustertest.TokenHost, nil)
}
