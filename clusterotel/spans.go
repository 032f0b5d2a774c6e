package clusterotel

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/mimiktech/cluster"
)

const (
	outcomeOK      = "ok"
	outcomePartial = "partial"
	outcomeFailed  = "failed"
)

type callKey struct{}

// A call is the state that the hooks of its requests and outcomes use.
type call struct {
	operation cluster.Operation
	header    http.Header // with the trace context of the call; nil if there is none
	recording bool        // the call has a span that is recorded
	all       bool        // all peers have spans, if any has

	mu    sync.Mutex          // guards the fields below
	room  int                 // for further peers with spans
	peers map[string]struct{} // with spans, by server id
}

// hasSpans reports whether requests to a peer have spans.
func (c *call) hasSpans(serverID string) bool {
	if !c.recording || c.all {
		return c.recording
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.peers[serverID]; ok {
		return true
	}
	if c.room == 0 {
		return false
	}
	c.room--
	c.peers[serverID] = struct{}{}
	return true
}

func (t *Telemetry) call(ctx context.Context, i cluster.CallInfo) (context.Context, func(cluster.CallResult)) {
	ctx, span := t.tracer.Start(ctx, callName(i))
	header, recording := t.inject(ctx), span.IsRecording()
	if header == nil && !recording && !t.instruments.calls.Enabled(ctx) {
		return context.WithValue(ctx, callKey{}, t.idle), nil
	}
	c := &call{operation: i.Operation, header: header, recording: recording, all: i.Peers <= t.maxPeerSpans}
	if c.recording {
		span.SetAttributes(attribute.String(keyOperation, string(i.Operation)), methodAttribute(i.Method), attribute.Int(keyPeers, i.Peers))
	}
	if !c.all {
		c.room, c.peers = t.maxPeerSpans, make(map[string]struct{})
	}
	ctx = context.WithValue(ctx, callKey{}, c)
	return ctx, func(r cluster.CallResult) {
		outcome := callOutcome(r)
		t.instruments.calls.record(ctx, r.Duration.Seconds(), string(i.Operation), outcome)
		t.instruments.callPeers.record(ctx, float64(i.Peers), string(i.Operation), "")
		if span.IsRecording() {
			span.SetAttributes(
				attribute.Int(keyResults, r.Results), attribute.Int(keyFailures, r.Failures),
				attribute.String(keyOutcome, outcome),
			)
			setFailed(span, outcome == outcomeFailed)
		}
		span.End()
	}
}

func callName(i cluster.CallInfo) string {
	switch {
	case i.Operation != cluster.OperationFanOut:
		return "cluster." + string(i.Operation)
	case i.Name == "":
		return "cluster.fanout"
	}
	return "cluster.fanout " + i.Name
}

// callOutcome classifies a call. A call without peers has succeeded.
func callOutcome(r cluster.CallResult) string {
	switch {
	case r.Failures == 0:
		return outcomeOK
	case r.Results == 0:
		return outcomeFailed
	}
	return outcomePartial
}

// setFailed sets the status of a span. It has no description, which would be the text of an error.
func setFailed(span trace.Span, failed bool) {
	if failed {
		span.SetStatus(codes.Error, "")
	}
}

func (t *Telemetry) request(ctx context.Context, i cluster.RequestInfo) (context.Context, func(cluster.RequestResult)) {
	if i.Attempt > 1 {
		reason := "retry"
		if i.Hedge {
			reason = "hedge"
		}
		t.instruments.repeated.add(ctx, string(i.Target), reason)
	}
	ctx, span := t.startRequest(ctx, i)
	if span == nil && !t.instruments.requests.Enabled(ctx) {
		return ctx, nil
	}
	return ctx, func(r cluster.RequestResult) {
		t.instruments.recordRequest(ctx, i, r)
		if span != nil {
			endRequest(span, r)
		}
	}
}

// startRequest adds the trace context to a request. It begins a span if the operation of the
// request is recorded, and returns nil otherwise.
func (t *Telemetry) startRequest(ctx context.Context, i cluster.RequestInfo) (context.Context, trace.Span) {
	c, _ := ctx.Value(callKey{}).(*call)
	switch {
	case c != nil && i.Target == cluster.TargetPeer:
		if !c.hasSpans(i.Server.ServerID) {
			return withHeader(ctx, c.header), nil
		}
	case !trace.SpanFromContext(ctx).IsRecording():
		return withHeader(ctx, t.inject(ctx)), nil
	}
	ctx, span := t.startSpan(ctx, i)
	return withHeader(ctx, t.inject(ctx)), span
}

// inject returns the header fields with the trace context of ctx; nil if there are none.
func (t *Telemetry) inject(ctx context.Context) http.Header {
	var c carrier
	t.propagator.Inject(ctx, &c)
	return c.header
}

func withHeader(ctx context.Context, header http.Header) context.Context {
	if header == nil {
		return ctx
	}
	return cluster.WithRequestHeader(ctx, header)
}

func (t *Telemetry) startSpan(ctx context.Context, i cluster.RequestInfo) (context.Context, trace.Span) {
	method := methodAttribute(i.Method)
	name := "HTTP"
	if method.Value.AsString() == i.Method {
		name += " " + i.Method
	}
	attributes := []attribute.KeyValue{method, attribute.String(keyTarget, string(i.Target))}
	if u, err := url.Parse(i.URL()); err == nil {
		attributes = append(attributes, semconv.ServerAddress(u.Hostname()))
		if port, err := strconv.Atoi(u.Port()); err == nil {
			attributes = append(attributes, semconv.ServerPort(port))
		}
	}
	if t.urls {
		attributes = append(attributes, semconv.URLFull(i.URL()))
	}
	if i.Attempt > 1 {
		attributes = append(attributes, semconv.HTTPRequestResendCount(i.Attempt-1))
	}
	return t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attributes...))
}

func endRequest(span trace.Span, r cluster.RequestResult) {
	if status, ok := statusAttribute(r.StatusCode); ok {
		span.SetAttributes(status)
	}
	if r.Kind != cluster.KindOK {
		span.SetAttributes(errorType(r))
		setFailed(span, r.Kind != cluster.KindCanceled)
	}
	span.End()
}

// methodAttribute returns the attribute for a method. Methods that HTTP does not define could be
// any text.
func methodAttribute(method string) attribute.KeyValue {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete,
		http.MethodConnect, http.MethodOptions, http.MethodTrace:
		return semconv.HTTPRequestMethodKey.String(method)
	}
	return semconv.HTTPRequestMethodOther
}

// statusAttribute returns the attribute for a status code, and whether HTTP defines a class for the
// code.
func statusAttribute(code int) (attribute.KeyValue, bool) {
	return semconv.HTTPResponseStatusCode(code), code >= 100 && code <= 599
}

// errorType returns the status code of a non-2xx response, and the kind of all other failures.
func errorType(r cluster.RequestResult) attribute.KeyValue {
	if _, ok := statusAttribute(r.StatusCode); ok && r.Kind == cluster.KindStatus {
		return semconv.ErrorTypeKey.String(strconv.Itoa(r.StatusCode))
	}
	return semconv.ErrorTypeKey.String(string(r.Kind))
}

// A carrier collects the header fields of a propagator. The first one creates its map.
type carrier struct{ header http.Header }

// Get implements [propagation.TextMapCarrier].
func (c *carrier) Get(key string) string { return c.header.Get(key) }

// Set implements [propagation.TextMapCarrier].
func (c *carrier) Set(key, value string) {
	if c.header == nil {
		c.header = make(http.Header, 2)
	}
	c.header.Set(key, value)
}

// Keys implements [propagation.TextMapCarrier].
func (c *carrier) Keys() []string {
	keys := make([]string, 0, len(c.header))
	for key := range c.header {
		keys = append(keys, key)
	}
	return keys
}

func (t *Telemetry) renewal(ctx context.Context, i cluster.RenewalInfo) (context.Context, func(cluster.RenewalResult)) {
	name := "cluster.renew"
	if i.First {
		name = "cluster.register"
	}
	ctx, end := t.operation(ctx, name, t.instruments.renewals)
	return ctx, func(r cluster.RenewalResult) { end(r.Err) }
}

func (t *Telemetry) tokenFetch(ctx context.Context, _ cluster.TokenKey) (context.Context, func(error)) {
	return t.operation(ctx, "cluster.token", t.instruments.tokenFetches)
}

// operation begins an operation with a span and a duration by outcome.
func (t *Telemetry) operation(ctx context.Context, name string, durations *histogram) (context.Context, func(error)) {
	start := time.Now()
	ctx, span := t.tracer.Start(ctx, name)
	return ctx, func(err error) {
		outcome := outcomeOK
		if err != nil {
			outcome = outcomeFailed
		}
		durations.record(ctx, time.Since(start).Seconds(), outcome, "")
		span.SetAttributes(attribute.String(keyOutcome, outcome))
		setFailed(span, err != nil)
		span.End()
	}
}
