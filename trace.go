package cluster

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster/internal/h1"
)

// A Trace has hooks: functions that are called on events in a [Cluster]. Any of them may be nil; an
// unset hook costs nothing. With several [WithTrace] options, the hooks of all of them are called,
// in the order of the options.
//
// # Operations
//
// Call, Request, Renewal and TokenFetch are called at the beginning of an operation, before
// anything else happens in it. A hook returns the context with which the operation continues, and a
// function that is called at its end. The context must be derived from the given one, which is used
// if the hook returns nil. The function may be nil, too. So a span begins in the hook, travels in
// the context, and ends in the function:
//
//	func request(ctx context.Context, req RequestInfo) (context.Context, func(RequestResult)) {
//		ctx, span := tracer.Start(ctx, req.Method)
//		return ctx, func(RequestResult) { span.End() }
//	}
//
// The context of a Request or a TokenFetch is derived from the context of its Call or Renewal. The
// [http.Request] that a transport gets has the context of the Request. A hook can add header fields
// to the request with [WithRequestHeader]. At the end of an operation the functions of several
// traces are called in reverse order, so that operations nest.
//
// # Order
//
// The order in a call is: Call; TokenFetch if a token is needed; for each peer, each Request and
// its end, then PeerDone; the function that Call returned. If a peer is a suspect, EvictionDecided
// comes before its PeerDone. If the suspect is evicted, MembershipChanged comes before
// EvictionDecided. BreakerChanged comes after the end of a Request, before EvictionDecided.
//
// The order in a renewal is: Renewal, TokenFetch, Request, MembershipChanged for each server,
// StateChanged, and the function that Renewal returned. ReplicaChanged comes after the end of the
// Request to the new replica. CallerChecked comes before the handler of the request.
//
// # Calling conventions
//
// Hooks are called synchronously, from any goroutine, and without a lock held. The context of each
// has a correlation id ([CorrelationID]). A hook that blocks delays the operation, and a request
// to a peer keeps its slot. Hooks may call Servers, Peers and Status, but must not make calls,
// register, or close the Cluster.
//
// A panic of a hook is recovered. It is logged, at most once a minute for each hook, and the
// operation continues as if the hook had returned nil.
type Trace struct {
	// Call is called when a call to the peers begins. It may be a call by RPCluster or Stream,
	// or one with which the node announces itself or all servers of its view, or reports a
	// departure. It is not called if the call is not possible at all, for example because the
	// [Request] is invalid.
	Call func(context.Context, CallInfo) (context.Context, func(CallResult))
	// Request is called before each HTTP request that the node sends, when it no longer waits
	// for a slot or for a circuit breaker. It is not called for the request of [Cluster.Serve]
	// to the node's own address.
	Request func(context.Context, RequestInfo) (context.Context, func(RequestResult))
	// Renewal is called before each attempt to register or to renew the lease.
	Renewal func(context.Context, RenewalInfo) (context.Context, func(RenewalResult))
	// TokenFetch is called before a token is fetched. The function that it returns gets the
	// error of the fetch, or nil. Operations that need the same token share one fetch, which
	// has the context of the first one.
	TokenFetch func(context.Context, TokenKey) (context.Context, func(error))

	// PeerDone is called with the outcome of each peer of a call, as soon as it is final. This is
	// after the last request to the peer, and for a suspect after the decision on its eviction. The
	// context is derived from the context of the Call.
	PeerDone func(context.Context, Outcome)
	// EvictionDecided is called for each suspect of a call.
	EvictionDecided func(context.Context, EvictionDecision)
	// MembershipChanged is called for each server that joins or leaves the view, or moves. Changes
	// that are made at the same time by different goroutines may be reported in either order; see
	// [Cluster.Watch] for a consistent sequence.
	MembershipChanged func(context.Context, Change)
	// StateChanged is called when the [State] of the registration changes.
	StateChanged func(ctx context.Context, from, to Status)
	// CallerChecked is called for each request to the peer endpoints and to the handlers of
	// Authenticate and AuthenticatePeer.
	CallerChecked func(context.Context, CallerInfo)
	// ReplicaChanged is called when the node continues with another replica of the registry, given
	// by its base URL. err is the reason; it is nil if the node returns to the preferred replica.
	ReplicaChanged func(ctx context.Context, from, to string, err error)
	// BreakerChanged is called when the circuit breaker of a peer opens or closes.
	BreakerChanged func(ctx context.Context, s Server, open bool)
}

// WithTrace sets functions to call on events; see [Trace]. With several such options, the hooks
// of all of them are called, in the order of the options.
func WithTrace(t *Trace) Option {
	return optionFunc(func(o *options) {
		if t != nil {
			o.traces = append(o.traces, *t)
		}
	})
}

// WithRequestHeader returns a context with header fields, such as the trace context of a span. If
// the hook [Trace].Request returns this context, or one derived from it, the request is sent with
// these fields. They replace fields with the same names. Invalid fields are ignored, and so are
// those that [Request].Header does not send, such as Authorization. Without a hook, the context has
// no effect. header must not be changed afterwards.
func WithRequestHeader(ctx context.Context, header http.Header) context.Context {
	added := make(http.Header, len(header))
	maps.Copy(added, requestHeader(ctx))
	for name, values := range header {
		name = http.CanonicalHeaderKey(name)
		if isForwarded(name) && h1.ValidField(name, values) {
			added[name] = values
		}
	}
	return context.WithValue(ctx, requestHeaderKey{}, added)
}

// An Operation is the purpose of a call to the peers. It is fit for a metric label.
type Operation string

// The operations.
const (
	OperationFanOut   Operation = "fan_out"  // RPCluster or Stream
	OperationAnnounce Operation = "announce" // the node announces itself or its view
	OperationDepart   Operation = "depart"   // the node, or an evicted peer, has departed
)

// A CallInfo describes a call that begins.
type CallInfo struct {
	Operation Operation
	Name      string // of the [Request], or "compare-views" for the check of the status page
	Method    string
	Peers     int // number of peers to be called
}

// A CallResult describes a call that has ended.
type CallResult struct {
	Results, Failures int // numbers of peers
	Duration          time.Duration
}

// A Target is the kind of server to which a request is sent. It is fit for a metric label.
type Target string

// The targets of requests.
const (
	TargetRegistry     Target = "registry"
	TargetTokenService Target = "token_service"
	TargetPeer         Target = "peer"
)

// A RequestInfo describes an HTTP request that is about to be sent.
type RequestInfo struct {
	Target Target
	Server Server // the peer; zero for other targets
	Method string
	// Attempt counts, from 1, the requests to one peer in a call, or the requests to the
	// registry or the token service in one operation. It counts retries, hedged requests, and
	// requests to another replica or with another token. A request to the registry or the token
	// service that is repeated on a new connection keeps its number. Attempt starts at 1 again
	// when a suspect is called at a newer address.
	Attempt int
	Hedge   bool // it is sent after Request.HedgeAfter

	url *url.URL
}

// URL returns the URL of the request without its query. Each call formats it.
func (i RequestInfo) URL() string {
	if i.url == nil {
		return ""
	}
	return withoutQuery(i.url)
}

// A RequestResult describes how an HTTP request ended.
type RequestResult struct {
	StatusCode int // 0 if there was no response
	// Kind classifies Err. It is KindOK for any 2xx response that was read, even if its content is
	// invalid. It is KindCanceled for a request that was no longer needed.
	Kind     Kind
	Err      error
	Duration time.Duration // from the sending of the request to the end of the response
}

// A RenewalInfo describes an attempt to register or to renew the lease.
type RenewalInfo struct {
	First bool // the node has not registered yet
}

// A RenewalResult describes how an attempt to register or to renew the lease ended.
type RenewalResult struct {
	Lease   time.Duration // granted by the registry
	RenewIn time.Duration // until the next renewal, after a success
	RetryIn time.Duration // until the next attempt, after a failure; 0 if there is none
	Err     error
}

// A Decision is the result of deciding on a suspect. It is fit for a metric label.
type Decision string

// The decisions on suspects; see [Eviction]. Only DecisionEvicted means that the call has removed
// the peer.
const (
	DecisionEvicted          Decision = "evicted"           // the registry deleted it
	DecisionGone             Decision = "gone"              // it was no longer in the view
	DecisionReturned         Decision = "returned"          // it has a new entry and was called again
	DecisionAlive            Decision = "alive"             // it renewed its lease, or responds
	DecisionUnproven         Decision = "unproven"          // its failure may have another cause
	DecisionNotConfirmed     Decision = "not_confirmed"     // the registry did not agree
	DecisionUnstable         Decision = "unstable"          // it registered again several times
	DecisionSelfPreservation Decision = "self_preservation" // too many were unreachable
	DecisionTooFewCalled     Decision = "too_few_called"    // only one or two of the peers
	DecisionEnoughResults    Decision = "enough_results"    // MinResults was reached
	DecisionDisabled         Decision = "disabled"          // eviction is off
	DecisionLeaving          Decision = "leaving"           // this node is leaving
)

// An EvictionDecision is the decision on one suspect.
type EvictionDecision struct {
	Server   Server
	Decision Decision
	// Err is the reason if the peer was not evicted, the same as in [Outcome].EvictionSkipped. It
	// is nil with DecisionEvicted, DecisionGone and DecisionReturned.
	Err error
}

// A CallerCheck is the result of checking the caller of an endpoint. It is fit for a metric label.
type CallerCheck string

// The results of checking a caller.
const (
	CallerAuthenticated CallerCheck = "authenticated"
	CallerNoToken       CallerCheck = "no_token"      // no authorization header, or not a bearer token
	CallerInvalidToken  CallerCheck = "invalid_token" // the [Verifier] rejected it
	CallerNotVerified   CallerCheck = "not_verified"  // see [ErrVerifierUnavailable]
	CallerWrongType     CallerCheck = "wrong_type"    // issued to another type of service
	CallerNoPeer        CallerCheck = "no_peer"       // not a cluster token, at an endpoint of Mount
)

// A CallerInfo describes the caller of an endpoint.
type CallerInfo struct {
	Result     CallerCheck
	Claims     Claims // zero unless the token is valid
	RemoteAddr string // as in the [http.Request]
	Err        error  // as it is sent to the caller; nil with CallerAuthenticated
}

type requestHeaderKey struct{}

// requestHeader returns the header fields that hooks have added to the request of ctx.
func requestHeader(ctx context.Context) http.Header {
	header, _ := ctx.Value(requestHeaderKey{}).(http.Header)
	return header
}

// hooks are the traces of a node, in the order of their options.
type hooks struct {
	current atomic.Pointer[hookSet] // nil: no trace
	log     *zap.Logger
	redact  func(string) string

	mu     sync.Mutex           // guards the field below
	panics map[string]time.Time // when the panic of a hook was last logged, by its name
}

// A hookSet is replaced as a whole, never edited.
type hookSet struct {
	traces      []Trace
	hasRequest  bool // a trace has the hook that is called most often
	hasPeerDone bool
	hasChanged  bool // a trace has a hook for changes of the view
}

func newHookSet(traces []Trace) *hookSet {
	return &hookSet{
		traces:      traces,
		hasRequest:  slices.ContainsFunc(traces, func(t Trace) bool { return t.Request != nil }),
		hasPeerDone: slices.ContainsFunc(traces, func(t Trace) bool { return t.PeerDone != nil }),
		hasChanged:  slices.ContainsFunc(traces, func(t Trace) bool { return t.MembershipChanged != nil }),
	}
}

func newHooks(traces []Trace, log *zap.Logger, redact func(string) string) *hooks {
	h := &hooks{log: log, redact: redact, panics: make(map[string]time.Time)}
	h.current.Store(newHookSet(traces))
	return h
}

// set returns the traces with their properties.
func (h *hooks) set() *hookSet {
	if set := h.current.Load(); set != nil {
		return set
	}
	return &hookSet{}
}

// add adds a trace to the others. Operations in progress may not call its hooks.
func (h *hooks) add(t Trace) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.current.Store(newHookSet(append(slices.Clone(h.set().traces), t)))
}

// An operation is the type of a hook for an operation.
type operation[I, R any] = func(context.Context, I) (context.Context, func(R))

// begin calls a hook of all traces, which of selects. It returns the context to continue with, and
// what to call at the end of the operation.
func begin[I, R any](ctx context.Context, h *hooks, name string, info I, of func(*Trace) operation[I, R]) (context.Context, ending[R]) {
	e := ending[R]{h: h, name: name}
	traces := h.set().traces
	for i := range traces {
		hook := of(&traces[i])
		if hook == nil {
			continue
		}
		next, end := beginHook(ctx, h, name, info, hook)
		if next != nil {
			ctx = next
		}
		switch {
		case end == nil:
		case e.first == nil:
			e.first = end
		default:
			e.more = append(e.more, end)
		}
	}
	e.ctx = ctx
	return ctx, e
}

func beginHook[I, R any](ctx context.Context, h *hooks, name string, info I, hook operation[I, R]) (context.Context, func(R)) {
	defer h.recoverPanic(ctx, name)
	return hook(ctx, info)
}

// An ending has the functions of one operation that hooks have returned. It is a value, because
// there is one for each request.
type ending[R any] struct {
	ctx   context.Context //nolint:containedctx // that of the operation
	h     *hooks
	name  string
	first func(R) // nil if there is none
	more  []func(R)
}

func (e *ending[R]) isEmpty() bool { return e.first == nil }

func (e *ending[R]) call(result R) {
	for _, end := range slices.Backward(e.more) {
		e.callOne(end, result)
	}
	if e.first != nil {
		e.callOne(e.first, result)
	}
}

func (e *ending[R]) callOne(end func(R), result R) {
	defer e.h.recoverPanic(e.ctx, e.name)
	end(result)
}

// protect calls a hook. It recovers a panic, so that a fault in a hook breaks no operation.
func (h *hooks) protect(ctx context.Context, name string, call func()) {
	defer h.recoverPanic(ctx, name)
	call()
}

func (h *hooks) recoverPanic(ctx context.Context, name string) {
	if p := recover(); p != nil && h.mayLog(name) {
		h.log.Error("trace hook panicked", zap.String("hook", name), zap.String("panic", h.redact(fmt.Sprint(p))), zap.Stack("stack"), correlationField(ctx))
	}
}

func (h *hooks) mayLog(name string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	last, logged := h.panics[name]
	if logged && time.Since(last) < time.Minute {
		return false
	}
	h.panics[name] = time.Now()
	return true
}

func (h *hooks) call(ctx context.Context, info CallInfo) (context.Context, ending[CallResult]) {
	return begin(ctx, h, "Call", info, func(t *Trace) operation[CallInfo, CallResult] { return t.Call })
}

// request sets the Method and the URL of info.
func (h *hooks) request(ctx context.Context, info RequestInfo, req *http.Request) (context.Context, ending[RequestResult]) {
	if !h.set().hasRequest {
		return ctx, ending[RequestResult]{}
	}
	info.Method, info.url = req.Method, req.URL
	return begin(ctx, h, "Request", info, func(t *Trace) operation[RequestInfo, RequestResult] { return t.Request })
}

func (h *hooks) renewal(ctx context.Context, info RenewalInfo) (context.Context, ending[RenewalResult]) {
	return begin(ctx, h, "Renewal", info, func(t *Trace) operation[RenewalInfo, RenewalResult] { return t.Renewal })
}

func (h *hooks) tokenFetch(ctx context.Context, key TokenKey) (context.Context, ending[error]) {
	return begin(ctx, h, "TokenFetch", key, func(t *Trace) operation[TokenKey, error] { return t.TokenFetch })
}

// each calls emit, which calls a hook if it is set, for all traces.
func (h *hooks) each(ctx context.Context, name string, emit func(*Trace)) {
	traces := h.set().traces
	for i := range traces {
		h.protect(ctx, name, func() { emit(&traces[i]) })
	}
}

func (h *hooks) peerDone(ctx context.Context, o Outcome) {
	h.each(ctx, "PeerDone", func(t *Trace) {
		if t.PeerDone != nil {
			t.PeerDone(ctx, o)
		}
	})
}

func (h *hooks) evictionDecided(ctx context.Context, d EvictionDecision) {
	h.each(ctx, "EvictionDecided", func(t *Trace) {
		if t.EvictionDecided != nil {
			t.EvictionDecided(ctx, d)
		}
	})
}

func (h *hooks) membershipChanged(ctx context.Context, change Change) {
	h.each(ctx, "MembershipChanged", func(t *Trace) {
		if t.MembershipChanged != nil {
			t.MembershipChanged(ctx, change)
		}
	})
}

func (h *hooks) stateChanged(ctx context.Context, from, to Status) {
	h.each(ctx, "StateChanged", func(t *Trace) {
		if t.StateChanged != nil {
			t.StateChanged(ctx, from, to)
		}
	})
}

func (h *hooks) callerChecked(ctx context.Context, info CallerInfo) {
	h.each(ctx, "CallerChecked", func(t *Trace) {
		if t.CallerChecked != nil {
			t.CallerChecked(ctx, info)
		}
	})
}

func (h *hooks) replicaChanged(ctx context.Context, from, to string, err error) {
	h.each(ctx, "ReplicaChanged", func(t *Trace) {
		if t.ReplicaChanged != nil {
			t.ReplicaChanged(ctx, from, to, err)
		}
	})
}

func (h *hooks) breakerChanged(ctx context.Context, s Server, open bool) {
	h.each(ctx, "BreakerChanged", func(t *Trace) {
		if t.BreakerChanged != nil {
			t.BreakerChanged(ctx, s, open)
		}
	})
}
