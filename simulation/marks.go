package main

import (
	"maps"
	"sync"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

// marks count what a run has covered: the decisions on evictions and leases, the invariants that
// had something to check, and the faults. The zero count of a mark says that it was not hit.
type marks struct {
	mu    sync.Mutex // guards the field below
	count map[string]int
}

func newMarks() *marks { return &marks{count: map[string]int{}} }

func (m *marks) hit(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count[name]++
}

func (m *marks) counts() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.count)
}

// allMarks returns the names of all marks, which a thousand seeds must hit.
func allMarks() []string {
	names := []string{
		// The invariants of docs/design.md.
		"each selected peer has one outcome: results and failures",
		"a silent peer does not hold up calls: circuit opened",
		"a silent peer does not hold up calls: circuit closed",
		"a registered node is in its own view: reported as departed",
		"the state follows the lease: degraded before the expiry",
		"the state follows the lease: lost",
		"a node recovers without a restart: registered after lost",
		"a node recovers without a restart: registered after degraded",
		"nodes keep their peers if the registry loses its data: more known than listed",
		"an eviction needs the registry's confirmation",
		"a renewal replaces the view, except for newer changes: announcement",
		"a renewal replaces the view, except for newer changes: departure",
		"a renewal replaces the view: registry",
		"a node that cannot reach most peers evicts none",
		"two processes with one id are reported",
		"two processes with one id are expected to be reported",
		"a conditional delete keeps a newer entry",
		"an unmanaged node is listed",

		// Causes of failures.
		"registry lost its data", "registry clock set back", "registry clock set forward",
		"key rotation", "late delete",
	}
	for _, m := range clustertest.FailureModes() {
		names = append(names, "a service "+m.Name)
	}
	for _, d := range decisions() {
		names = append(names, "eviction decision: "+string(d))
	}
	for _, k := range kinds() {
		names = append(names, "event: "+k.Name)
	}
	for _, k := range outcomeKinds() {
		names = append(names, "outcome: "+string(k))
	}
	return names
}

// decisions returns the decisions on suspects that a fan-out to all peers can have.
func decisions() []cluster.Decision {
	return []cluster.Decision{
		cluster.DecisionEvicted, cluster.DecisionGone, cluster.DecisionReturned, cluster.DecisionAlive,
		cluster.DecisionUnproven, cluster.DecisionNotConfirmed, cluster.DecisionSelfPreservation,
		cluster.DecisionDisabled, cluster.DecisionLeaving, cluster.DecisionEnoughResults, cluster.DecisionTooFewCalled,
	}
}

// outcomeKinds returns the kinds of outcomes that the faults cause.
func outcomeKinds() []cluster.Kind {
	return []cluster.Kind{
		cluster.KindOK, cluster.KindRefused, cluster.KindConnectionLost, cluster.KindTimeout, cluster.KindLocal,
		cluster.KindStatus, cluster.KindMalformed, cluster.KindCanceled, cluster.KindCircuitOpen, cluster.KindNoToken,
	}
}
