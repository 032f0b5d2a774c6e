// Package clusterprom exports metrics of a node of package cluster to Prometheus:
//
//	metrics := clusterprom.New(clusterprom.Options{})
//	c, err := cluster.New(cfg, cluster.WithTrace(metrics.Trace()))
//	metrics.Observe(c)
//	err = prometheus.Register(metrics)
//
// Each label has few values, which the README lists. No value is a server id, an address, a path or
// the text of an error.
package clusterprom

import (
	"context"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mimiktech/cluster"
)

// Options configures a [Collector]. The zero value is valid.
type Options struct {
	// TraceID returns the id of the trace of ctx, or "" for none; TraceID of clusterotel is such a
	// function. The histograms of calls, requests, renewals and token fetches record the id as an
	// exemplar, with the label trace_id. The hooks that begin the spans must come first: pass them to
	// an earlier cluster.WithTrace. If nil, there are no exemplars.
	TraceID func(context.Context) string
	// NativeHistograms also exports the durations as native histograms, which have a finer resolution.
	// Prometheus must be configured to read them.
	NativeHistograms bool
}

// A Collector counts the events of one node, and reads the status of the node at each collection.
// It is a [prometheus.Collector]. A process with several nodes needs one Collector for each,
// registered with [prometheus.WrapRegistererWith] and a label that names the node.
type Collector struct {
	traceID func(context.Context) string
	node    atomic.Pointer[cluster.Cluster]

	renewals       *prometheus.HistogramVec
	calls          *prometheus.HistogramVec
	callPeers      *prometheus.HistogramVec
	requests       *prometheus.HistogramVec
	tokenFetches   *prometheus.HistogramVec
	outcomes       *prometheus.CounterVec
	repeated       *prometheus.CounterVec
	suspects       *prometheus.CounterVec
	viewChanges    *prometheus.CounterVec
	callers        *prometheus.CounterVec
	breakerChanges *prometheus.CounterVec
	replicaChanges prometheus.Counter

	gauges []gauge
	state  *prometheus.Desc
}

const namespace = "mimik_cluster"

// New returns a Collector. It counts nothing before a node has its [Collector.Trace].
func New(o Options) *Collector {
	m := &Collector{
		traceID:        o.TraceID,
		gauges:         newGauges(),
		state:          newStateDesc(),
		renewals:       o.duration("renewal", "Duration of attempts to register or to renew the lease.", "outcome"),
		calls:          o.duration("call", "Duration of calls to the peers.", "operation", "outcome"),
		callPeers:      peerHistogram(),
		requests:       o.duration("request", "Duration of HTTP requests that the node sent, without the wait for a slot.", "target", "method", "kind"),
		tokenFetches:   o.duration("token_fetch", "Duration of fetching a token.", "outcome"),
		outcomes:       counter("peer_outcomes_total", "Final outcomes of single peers in calls.", "operation", "kind"),
		repeated:       counter("repeated_requests_total", "Requests that repeat another one of the same operation.", "target", "reason"),
		suspects:       counter("suspects_total", "Decisions on peers that sent no response.", "decision"),
		viewChanges:    counter("view_changes_total", "Servers that joined or left the view, or moved.", "change", "source"),
		callers:        counter("callers_total", "Requests to the node, by the check of their tokens.", "result"),
		breakerChanges: counter("breaker_changes_total", "Circuit breakers that opened or closed.", "state"),
		replicaChanges: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Name: "replica_changes_total", Help: "Changes to another replica of the registry.",
		}),
	}
	m.initialize()
	return m
}

// duration returns a histogram of seconds. Its buckets reach from a fast peer to the timeout of a
// request, and beyond it for calls with retries.
func (o Options) duration(of, help string, labels ...string) *prometheus.HistogramVec {
	opts := prometheus.HistogramOpts{
		Namespace: namespace, Name: of + "_duration_seconds", Help: help,
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
	}
	if o.NativeHistograms {
		opts.NativeHistogramBucketFactor, opts.NativeHistogramMaxBucketNumber = 1.1, 160
	}
	return prometheus.NewHistogramVec(opts, labels)
}

func peerHistogram() *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: namespace, Name: "call_peers", Help: "Number of peers of calls.",
		Buckets: []float64{0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000},
	}, []string{"operation"})
}

func counter(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
}

// Observe makes the Collector read the status of c at each collection. Before the call, it has only
// the metrics of its hooks. Observe may be called at any time.
func (m *Collector) Observe(c *cluster.Cluster) { m.node.Store(c) }

// Describe implements [prometheus.Collector].
func (m *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.counted() {
		c.Describe(ch)
	}
	for _, g := range m.gauges {
		ch <- g.desc
	}
	ch <- m.state
}

// Collect implements [prometheus.Collector]. It does not block.
func (m *Collector) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.counted() {
		c.Collect(ch)
	}
	if c := m.node.Load(); c != nil {
		m.collectStatus(c, ch)
	}
}

func (m *Collector) counted() []prometheus.Collector {
	return []prometheus.Collector{
		m.renewals, m.calls, m.callPeers, m.requests, m.tokenFetches, m.outcomes, m.repeated,
		m.suspects, m.viewChanges, m.callers, m.breakerChanges, m.replicaChanges,
	}
}
