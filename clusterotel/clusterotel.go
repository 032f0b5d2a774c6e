// Package clusterotel records spans and metrics of a node of package cluster with OpenTelemetry:
//
//	telemetry, err := clusterotel.New(clusterotel.Config{})
//	c, err := cluster.New(cfg, cluster.WithTrace(telemetry.Trace()))
//	stop, err := telemetry.Observe(c)
//
// It uses only the API of OpenTelemetry. The program chooses the SDK, and sets its providers
// globally or in [Config]. The README lists all names, units and attributes.
package clusterotel

import (
	"cmp"
	"context"
	"fmt"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/mimiktech/cluster"
)

const scope = "github.com/mimiktech/cluster/clusterotel"

// Config configures [New]. The zero value is valid.
type Config struct {
	// TracerProvider and MeterProvider are the global ones by default.
	TracerProvider trace.TracerProvider
	MeterProvider  metric.MeterProvider
	// Propagator writes the context of spans to the header of requests. The default is the global
	// one if it has been set when New is called, and otherwise W3C Trace Context: the header
	// traceparent.
	Propagator propagation.TextMapPropagator
	// MaxPeerSpans bounds the peers of one call whose requests have spans; 64 by default, none if
	// negative. In a call to more peers, the peers that are called first have spans. The requests to
	// the others have the trace context of the call's span.
	MaxPeerSpans int
	// URLs adds the URL of a request, without its query, to its span (url.full). It is off by default,
	// because paths may contain ids.
	URLs bool
}

// A Telemetry records spans and metrics of one node. Its methods are safe for concurrent use.
type Telemetry struct {
	tracer       trace.Tracer
	propagator   propagation.TextMapPropagator
	maxPeerSpans int
	urls         bool

	idle *call // of which nothing is recorded

	noSpans     bool // the provider does nothing
	noMetrics   bool
	meter       metric.Meter
	instruments *instruments
}

// New returns the Telemetry of one node. It returns an error if the MeterProvider creates no
// instruments.
func New(cfg Config) (*Telemetry, error) {
	if cfg.TracerProvider == nil {
		cfg.TracerProvider = otel.GetTracerProvider()
	}
	if cfg.MeterProvider == nil {
		cfg.MeterProvider = otel.GetMeterProvider()
	}
	if cfg.Propagator == nil {
		cfg.Propagator = otel.GetTextMapPropagator()
		if len(cfg.Propagator.Fields()) == 0 {
			cfg.Propagator = propagation.TraceContext{}
		}
	}
	t := &Telemetry{
		tracer:       cfg.TracerProvider.Tracer(scope, trace.WithSchemaURL(semconv.SchemaURL)),
		propagator:   cfg.Propagator,
		maxPeerSpans: max(0, cmp.Or(cfg.MaxPeerSpans, 64)),
		urls:         cfg.URLs,
		idle:         &call{},
		meter:        cfg.MeterProvider.Meter(scope, metric.WithSchemaURL(semconv.SchemaURL)),
	}
	_, t.noMetrics = cfg.MeterProvider.(noop.MeterProvider)
	_, t.noSpans = cfg.TracerProvider.(tracenoop.TracerProvider)
	var err error
	if t.instruments, err = newInstruments(t.meter); err != nil {
		return nil, fmt.Errorf("clusterotel: %w", err)
	}
	return t, nil
}

// TraceID returns the id of the trace of ctx, or "" if it is not sampled. It is meant for
// Options.TraceID of clusterprom.
func TraceID(ctx context.Context) string {
	sc := trace.SpanContextFromContext(ctx)
	if !sc.IsSampled() {
		return ""
	}
	return sc.TraceID().String()
}

// Trace returns the hooks that record. Pass them to one node with [cluster.WithTrace].
func (t *Telemetry) Trace() *cluster.Trace {
	if t.noMetrics && t.noSpans {
		return &cluster.Trace{Request: t.passOn}
	}
	hooks := &cluster.Trace{Call: t.call, Request: t.request, Renewal: t.renewal, TokenFetch: t.tokenFetch}
	if !t.noMetrics {
		t.countEvents(hooks)
	}
	return hooks
}

// passOn adds the trace context of the program to a request. With no-op providers, this is the only
// hook.
func (t *Telemetry) passOn(ctx context.Context, _ cluster.RequestInfo) (context.Context, func(cluster.RequestResult)) {
	return withHeader(ctx, t.inject(ctx)), nil
}

// countEvents sets the hooks that only count.
func (t *Telemetry) countEvents(hooks *cluster.Trace) {
	m := t.instruments
	hooks.PeerDone = func(ctx context.Context, o cluster.Outcome) {
		if !m.outcomes.Enabled(ctx) {
			return
		}
		if call, ok := ctx.Value(callKey{}).(*call); ok {
			m.outcomes.add(ctx, string(call.operation), string(o.Kind))
		}
	}
	hooks.EvictionDecided = func(ctx context.Context, d cluster.EvictionDecision) {
		m.suspects.add(ctx, string(d.Decision), "")
	}
	hooks.MembershipChanged = func(ctx context.Context, c cluster.Change) {
		m.viewChanges.add(ctx, string(c.Kind), string(c.Source))
	}
	hooks.CallerChecked = func(ctx context.Context, i cluster.CallerInfo) {
		m.callers.add(ctx, string(i.Result), "")
	}
	hooks.ReplicaChanged = func(ctx context.Context, _, _ string, _ error) { m.replicaChanges.add(ctx, "", "") }
	hooks.BreakerChanged = func(ctx context.Context, _ cluster.Server, open bool) {
		state := "closed"
		if open {
			state = "open"
		}
		m.breakerChanges.add(ctx, state, "")
	}
}
