package clusterprom

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mimiktech/cluster"
)

type operationKey struct{}

// Trace returns the hooks that count. Pass them to one node with [cluster.WithTrace].
func (m *Collector) Trace() *cluster.Trace {
	return &cluster.Trace{
		Call:       m.call,
		Request:    m.request,
		Renewal:    m.renewal,
		TokenFetch: m.tokenFetch,
		PeerDone: func(ctx context.Context, o cluster.Outcome) {
			operation, _ := ctx.Value(operationKey{}).(cluster.Operation)
			m.outcomes.WithLabelValues(string(operation), string(o.Kind)).Inc()
		},
		EvictionDecided: func(_ context.Context, d cluster.EvictionDecision) {
			m.suspects.WithLabelValues(string(d.Decision)).Inc()
		},
		MembershipChanged: func(_ context.Context, c cluster.Change) {
			m.viewChanges.WithLabelValues(string(c.Kind), string(c.Source)).Inc()
		},
		CallerChecked: func(_ context.Context, i cluster.CallerInfo) {
			m.callers.WithLabelValues(string(i.Result)).Inc()
		},
		ReplicaChanged: func(context.Context, string, string, error) { m.replicaChanges.Inc() },
		BreakerChanged: func(_ context.Context, _ cluster.Server, open bool) {
			state := "closed"
			if open {
				state = "open"
			}
			m.breakerChanges.WithLabelValues(state).Inc()
		},
	}
}

func (m *Collector) call(ctx context.Context, i cluster.CallInfo) (context.Context, func(cluster.CallResult)) {
	traceID := m.exemplar(ctx)
	return context.WithValue(ctx, operationKey{}, i.Operation), func(r cluster.CallResult) {
		m.callPeers.WithLabelValues(string(i.Operation)).Observe(float64(i.Peers))
		observe(m.calls.WithLabelValues(string(i.Operation), callOutcome(r)), r.Duration, traceID)
	}
}

// callOutcome classifies a call. A call without peers has succeeded.
func callOutcome(r cluster.CallResult) string {
	switch {
	case r.Failures == 0:
		return "ok"
	case r.Results == 0:
		return "failed"
	}
	return "partial"
}

func (m *Collector) request(ctx context.Context, i cluster.RequestInfo) (context.Context, func(cluster.RequestResult)) {
	if i.Attempt > 1 {
		reason := "retry"
		if i.Hedge {
			reason = "hedge"
		}
		m.repeated.WithLabelValues(string(i.Target), reason).Inc()
	}
	traceID := m.exemplar(ctx)
	return ctx, func(r cluster.RequestResult) {
		observe(m.requests.WithLabelValues(string(i.Target), knownMethod(i.Method), string(r.Kind)), r.Duration, traceID)
	}
}

// knownMethod returns a method that HTTP defines, or "other": a method could be any text.
func knownMethod(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete,
		http.MethodConnect, http.MethodOptions, http.MethodTrace:
		return method
	}
	return "other"
}

func (m *Collector) renewal(ctx context.Context, _ cluster.RenewalInfo) (context.Context, func(cluster.RenewalResult)) {
	traceID, start := m.exemplar(ctx), time.Now()
	return ctx, func(r cluster.RenewalResult) {
		observe(m.renewals.WithLabelValues(outcome(r.Err)), time.Since(start), traceID)
	}
}

func (m *Collector) tokenFetch(ctx context.Context, _ cluster.TokenKey) (context.Context, func(error)) {
	traceID, start := m.exemplar(ctx), time.Now()
	return ctx, func(err error) {
		observe(m.tokenFetches.WithLabelValues(outcome(err)), time.Since(start), traceID)
	}
}

func outcome(err error) string {
	if err != nil {
		return "failed"
	}
	return "ok"
}

func (m *Collector) exemplar(ctx context.Context) string {
	if m.traceID == nil {
		return ""
	}
	return m.traceID(ctx)
}

func observe(o prometheus.Observer, d time.Duration, traceID string) {
	if with, ok := o.(prometheus.ExemplarObserver); ok && traceID != "" {
		with.ObserveWithExemplar(d.Seconds(), prometheus.Labels{"trace_id": traceID})
		return
	}
	o.Observe(d.Seconds())
}
