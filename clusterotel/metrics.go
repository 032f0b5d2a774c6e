package clusterotel

import (
	"context"
	"errors"
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/semconv/v1.43.0/httpconv"

	"github.com/mimiktech/cluster"
)

// Attributes for which no convention has a name.
const (
	keyOperation    = "mimik.cluster.operation"
	keyOutcome      = "mimik.cluster.outcome"
	keyPeers        = "mimik.cluster.peers"
	keyResults      = "mimik.cluster.results"
	keyFailures     = "mimik.cluster.failures"
	keyTarget       = "mimik.cluster.target"
	keyKind         = "mimik.cluster.kind"
	keyReason       = "mimik.cluster.reason"
	keyDecision     = "mimik.cluster.decision"
	keyChange       = "mimik.cluster.change"
	keySource       = "mimik.cluster.source"
	keyCallerCheck  = "mimik.cluster.caller.check"
	keyBreakerState = "mimik.cluster.breaker.state"
	keyState        = "mimik.cluster.state"
)

// instruments are the synchronous metrics.
type instruments struct {
	requests httpconv.ClientRequestDuration

	calls, callPeers, renewals, tokenFetches  *histogram
	outcomes, repeated, suspects, viewChanges *counter
	callers, breakerChanges, replicaChanges   *counter

	requestOptions sync.Map // of []metric.RecordOption, by requestKey
}

func newInstruments(meter metric.Meter) (*instruments, error) {
	var errs []error
	// From a fast peer to the timeout of a request, and beyond it for calls with retries.
	seconds := metric.WithExplicitBucketBoundaries(.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30)
	peers := metric.WithExplicitBucketBoundaries(0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
	histogramOf := func(name, unit, description string, buckets metric.HistogramOption, keys ...attribute.Key) *histogram {
		h, err := meter.Float64Histogram(name, metric.WithUnit(unit), metric.WithDescription(description), buckets)
		errs = append(errs, err)
		return &histogram{Float64Histogram: h, sets: sets{keys: keys}}
	}
	counterOf := func(name, unit, description string, keys ...attribute.Key) *counter {
		c, err := meter.Int64Counter(name, metric.WithUnit(unit), metric.WithDescription(description))
		errs = append(errs, err)
		return &counter{Int64Counter: c, sets: sets{keys: keys}}
	}
	requests, err := httpconv.NewClientRequestDuration(meter, seconds)
	errs = append(errs, err)
	return &instruments{
		requests:       requests,
		calls:          histogramOf("mimik.cluster.call.duration", "s", "Duration of calls to the peers.", seconds, keyOperation, keyOutcome),
		callPeers:      histogramOf("mimik.cluster.call.peers", "{peer}", "Number of peers of calls.", peers, keyOperation),
		renewals:       histogramOf("mimik.cluster.renewal.duration", "s", "Duration of attempts to register or to renew the lease.", seconds, keyOutcome),
		tokenFetches:   histogramOf("mimik.cluster.token_fetch.duration", "s", "Duration of fetching a token.", seconds, keyOutcome),
		outcomes:       counterOf("mimik.cluster.peer.outcomes", "{outcome}", "Final outcomes of single peers in calls.", keyOperation, keyKind),
		repeated:       counterOf("mimik.cluster.repeated_requests", "{request}", "Requests that repeat another one of the same operation.", keyTarget, keyReason),
		suspects:       counterOf("mimik.cluster.suspects", "{suspect}", "Decisions on peers that sent no response.", keyDecision),
		viewChanges:    counterOf("mimik.cluster.view.changes", "{change}", "Servers that joined or left the view, or moved.", keyChange, keySource),
		callers:        counterOf("mimik.cluster.callers", "{request}", "Requests to the node, by the check of their tokens.", keyCallerCheck),
		breakerChanges: counterOf("mimik.cluster.breaker.changes", "{change}", "Circuit breakers that opened or closed.", keyBreakerState),
		replicaChanges: counterOf("mimik.cluster.replica.changes", "{change}", "Changes to another replica of the registry."),
	}, errors.Join(errs...)
}

// sets caches the sets of attributes of one instrument, so that a measurement builds none. They are
// few.
type sets struct {
	keys  []attribute.Key // at most two
	known sync.Map        // of metric.MeasurementOption slices, by [2]string
}

func (s *sets) attributes(values [2]string) attribute.Set {
	attributes := make([]attribute.KeyValue, len(s.keys))
	for i, key := range s.keys {
		attributes[i] = key.String(values[i])
	}
	return attribute.NewSet(attributes...)
}

type histogram struct {
	metric.Float64Histogram
	sets
}

// record records a value with the values of the attributes, in the order of the keys.
func (h *histogram) record(ctx context.Context, value float64, a, b string) {
	if !h.Enabled(ctx) {
		return
	}
	values := [2]string{a, b}
	options, ok := h.known.Load(values)
	if !ok {
		options, _ = h.known.LoadOrStore(values, []metric.RecordOption{metric.WithAttributeSet(h.attributes(values))})
	}
	h.Record(ctx, value, options.([]metric.RecordOption)...)
}

type counter struct {
	metric.Int64Counter
	sets
}

// add counts one with the values of the attributes, in the order of the keys.
func (c *counter) add(ctx context.Context, a, b string) {
	if !c.Enabled(ctx) {
		return
	}
	values := [2]string{a, b}
	options, ok := c.known.Load(values)
	if !ok {
		options, _ = c.known.LoadOrStore(values, []metric.AddOption{metric.WithAttributeSet(c.attributes(values))})
	}
	c.Add(ctx, 1, options.([]metric.AddOption)...)
}

type requestKey struct {
	target cluster.Target
	method string
	kind   cluster.Kind
	status int
}

// recordRequest records a duration by the convention for HTTP clients, but without the address of
// the server, which is not from a closed set.
func (m *instruments) recordRequest(ctx context.Context, i cluster.RequestInfo, r cluster.RequestResult) {
	if !m.requests.Enabled(ctx) {
		return
	}
	method := methodAttribute(i.Method)
	key := requestKey{i.Target, method.Value.AsString(), r.Kind, r.StatusCode}
	options, ok := m.requestOptions.Load(key)
	if !ok {
		attributes := []attribute.KeyValue{method, attribute.String(keyTarget, string(i.Target))}
		if status, ok := statusAttribute(r.StatusCode); ok {
			attributes = append(attributes, status)
		}
		if r.Kind != cluster.KindOK {
			attributes = append(attributes, errorType(r))
		}
		options, _ = m.requestOptions.LoadOrStore(key, []metric.RecordOption{metric.WithAttributeSet(attribute.NewSet(attributes...))})
	}
	m.requests.Float64Histogram.Record(ctx, r.Duration.Seconds(), options.([]metric.RecordOption)...)
}
