package clusterprom

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mimiktech/cluster"
)

// A figure is the status of a node at one moment.
type figure struct {
	status cluster.Status
	stats  cluster.Stats
}

// A gauge is read from a figure. It is absent while its value is not known.
type gauge struct {
	desc  *prometheus.Desc
	value func(figure) (value float64, known bool)
}

func newGauges() []gauge {
	return []gauge{
		{newDesc("members", "Servers in the view, this node included."), func(f figure) (float64, bool) {
			return float64(f.status.Servers), true
		}},
		{newDesc("lease_length_seconds", "Duration of the lease that the registry last granted."), func(f figure) (float64, bool) {
			return f.status.LeaseTime.Seconds(), !f.status.RenewedAt.IsZero()
		}},
		{newDesc("lease_remaining_seconds", "Time until the lease expires; negative if it has expired."), func(f figure) (float64, bool) {
			return time.Until(f.status.ExpiresAt()).Seconds(), !f.status.RenewedAt.IsZero() && f.status.State != cluster.Left
		}},
		{newDesc("conflicting_servers", "Server ids that two running processes use."), func(f figure) (float64, bool) {
			return float64(len(f.status.Conflicts)), true
		}},
		{newDesc("slots", "Number of slots: how many requests to peers may be in flight."), func(f figure) (float64, bool) {
			return float64(f.stats.MaxInFlight), true
		}},
		{newDesc("slots_in_use", "Requests to peers in flight."), func(f figure) (float64, bool) {
			return float64(f.stats.InFlight), true
		}},
		{newDesc("requests_waiting", "Requests to peers that wait for a slot."), func(f figure) (float64, bool) {
			return float64(f.stats.Waiting), true
		}},
		{newDesc("breakers_open", "Peers whose circuit breaker is open."), func(f figure) (float64, bool) {
			return float64(f.stats.OpenBreakers), true
		}},
	}
}

func newStateDesc() *prometheus.Desc {
	return newDesc("state", "1 for the state of the node's registration, 0 for all other states.", "state")
}

func newDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
}

func (m *Collector) collectStatus(c *cluster.Cluster, ch chan<- prometheus.Metric) {
	f := figure{c.Status(), c.Stats()}
	for _, g := range m.gauges {
		if value, known := g.value(f); known {
			ch <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, value)
		}
	}
	for _, state := range states() {
		value := 0.0
		if f.status.State == state {
			value = 1
		}
		ch <- prometheus.MustNewConstMetric(m.state, prometheus.GaugeValue, value, string(state))
	}
}

func states() []cluster.State {
	return []cluster.State{cluster.Orphan, cluster.Registered, cluster.Degraded, cluster.Lost, cluster.Left}
}
