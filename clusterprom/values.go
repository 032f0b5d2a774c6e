package clusterprom

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mimiktech/cluster"
)

func texts[T ~string](values ...T) []string {
	out := make([]string, len(values))
	for i, value := range values {
		out[i] = string(value)
	}
	return out
}

// initialize creates the counters with the value 0. Prometheus does not notice the first increase
// of a counter that was absent before.
func (m *Collector) initialize() {
	operations := texts(cluster.OperationFanOut, cluster.OperationAnnounce, cluster.OperationDepart)
	kinds := texts(
		cluster.KindOK, cluster.KindRefused, cluster.KindConnectionLost, cluster.KindTimeout, cluster.KindTLS,
		cluster.KindLocal, cluster.KindStatus, cluster.KindWrongServer, cluster.KindMalformed, cluster.KindTooLarge,
		cluster.KindCanceled, cluster.KindCircuitOpen, cluster.KindNotAllowed, cluster.KindNotConfirmed,
		cluster.KindNoToken,
	)
	decisions := texts(
		cluster.DecisionEvicted, cluster.DecisionGone, cluster.DecisionReturned, cluster.DecisionAlive,
		cluster.DecisionUnproven, cluster.DecisionNotConfirmed, cluster.DecisionUnstable,
		cluster.DecisionSelfPreservation, cluster.DecisionTooFewCalled, cluster.DecisionEnoughResults,
		cluster.DecisionDisabled, cluster.DecisionLeaving,
	)
	targets := texts(cluster.TargetPeer, cluster.TargetRegistry, cluster.TargetTokenService)
	changes := texts(cluster.ServerJoined, cluster.ServerLeft, cluster.ServerMoved)
	sources := texts(cluster.SourceRegistry, cluster.SourceAnnouncement, cluster.SourceDeparture, cluster.SourceEviction)
	checks := texts(
		cluster.CallerAuthenticated, cluster.CallerNoToken, cluster.CallerInvalidToken, cluster.CallerNotVerified,
		cluster.CallerWrongType, cluster.CallerNoPeer,
	)

	create := func(c *prometheus.CounterVec, first []string, second ...string) {
		for _, a := range first {
			if len(second) == 0 {
				c.WithLabelValues(a)
			}
			for _, b := range second {
				c.WithLabelValues(a, b)
			}
		}
	}
	create(m.outcomes, operations, kinds...)
	create(m.repeated, targets, "retry")
	create(m.repeated, targets[:1], "hedge")
	create(m.suspects, decisions)
	create(m.viewChanges, changes, sources...)
	create(m.callers, checks)
	create(m.breakerChanges, []string{"open", "closed"})
	for _, h := range []*prometheus.HistogramVec{m.renewals, m.tokenFetches} {
		for _, value := range []string{"ok", "failed"} {
			h.WithLabelValues(value)
		}
	}
}
