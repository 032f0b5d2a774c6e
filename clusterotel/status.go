package clusterotel

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/mimiktech/cluster"
)

// A figure is the status of a node at one moment.
type figure struct {
	status cluster.Status
	stats  cluster.Stats
}

// A level is a metric that is read from a figure.
type level struct {
	name, unit, description string
	value                   func(figure) int64
}

func levels() []level {
	return []level{
		{"mimik.cluster.members", "{server}", "Servers in the view, this node included.", func(f figure) int64 { return int64(f.status.Servers) }},
		{"mimik.cluster.conflicting_servers", "{server}", "Server ids that two running processes use.", func(f figure) int64 { return int64(len(f.status.Conflicts)) }},
		{"mimik.cluster.slots", "{slot}", "Number of slots: how many requests to peers may be in flight.", func(f figure) int64 { return int64(f.stats.MaxInFlight) }},
		{"mimik.cluster.slots_in_use", "{slot}", "Requests to peers in flight.", func(f figure) int64 { return int64(f.stats.InFlight) }},
		{"mimik.cluster.requests_waiting", "{request}", "Requests to peers that wait for a slot.", func(f figure) int64 { return int64(f.stats.Waiting) }},
		{"mimik.cluster.breakers_open", "{breaker}", "Peers whose circuit breaker is open.", func(f figure) int64 { return int64(f.stats.OpenBreakers) }},
	}
}

func states() []cluster.State {
	return []cluster.State{cluster.Orphan, cluster.Registered, cluster.Degraded, cluster.Lost, cluster.Left}
}

// Observe reads the status of c whenever metrics are collected, until stop is called. It does not
// keep c from being closed.
func (t *Telemetry) Observe(c *cluster.Cluster) (stop func() error, err error) {
	var errs []error
	var observables []metric.Observable
	var observe []func(metric.Observer, figure)
	for _, l := range levels() {
		instrument, err := t.meter.Int64ObservableUpDownCounter(l.name, metric.WithUnit(l.unit), metric.WithDescription(l.description))
		errs = append(errs, err)
		observables = append(observables, instrument)
		observe = append(observe, func(o metric.Observer, f figure) { o.ObserveInt64(instrument, l.value(f)) })
	}
	state, err := t.meter.Int64ObservableUpDownCounter("mimik.cluster.state", metric.WithUnit("{node}"),
		metric.WithDescription("1 for the state of the node's registration, 0 for all other states."))
	length, errLength := t.meter.Float64ObservableGauge("mimik.cluster.lease.length", metric.WithUnit("s"),
		metric.WithDescription("Duration of the lease that the registry last granted."))
	remaining, errRemaining := t.meter.Float64ObservableGauge("mimik.cluster.lease.remaining", metric.WithUnit("s"),
		metric.WithDescription("Time until the lease expires; negative if it has expired."))
	if err := errors.Join(append(errs, err, errLength, errRemaining)...); err != nil {
		return nil, fmt.Errorf("clusterotel: %w", err)
	}
	observables = append(observables, state, length, remaining)
	observe = append(observe, func(o metric.Observer, f figure) {
		observeState(o, state, f.status.State)
		observeLease(o, length, remaining, f.status)
	})
	registration, err := t.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		f := figure{c.Status(), c.Stats()}
		for _, observe := range observe {
			observe(o, f)
		}
		return nil
	}, observables...)
	if err != nil {
		return nil, fmt.Errorf("clusterotel: %w", err)
	}
	return registration.Unregister, nil
}

func observeState(o metric.Observer, instrument metric.Int64Observable, current cluster.State) {
	for _, state := range states() {
		var value int64
		if state == current {
			value = 1
		}
		o.ObserveInt64(instrument, value, metric.WithAttributes(attribute.String(keyState, string(state))))
	}
}

// observeLease observes what is known: nothing before the first registration.
func observeLease(o metric.Observer, length, remaining metric.Float64Observable, s cluster.Status) {
	if s.RenewedAt.IsZero() {
		return
	}
	o.ObserveFloat64(length, s.LeaseTime.Seconds())
	if s.State != cluster.Left {
		o.ObserveFloat64(remaining, time.Until(s.ExpiresAt()).Seconds())
	}
}
