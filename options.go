package cluster

import (
	"net/http"
	"time"

	"go.uber.org/zap"
	"golang.org/x/oauth2"
)

// An Option gives [New] a collaborator or a policy.
type Option interface{ apply(*options) }

type options struct {
	log      *zap.Logger
	client   *http.Client
	tokens   func(TokenKey) oauth2.TokenSource
	verifier Verifier
	trace    Trace
	retry    Retry
	eviction Eviction
	policy   PeerPolicy
	noEnv    bool
}

type optionFunc func(*options)

func (f optionFunc) apply(o *options) { f(o) }

func applyOptions(opts []Option) options {
	var o options
	for _, opt := range opts {
		if opt != nil {
			opt.apply(&o)
		}
	}
	if o.log == nil {
		o.log = zap.NewNop()
	}
	return o
}

// WithLogger logs to l; nothing is logged by default. Every line that belongs to a request
// carries its correlation id.
func WithLogger(l *zap.Logger) Option {
	return optionFunc(func(o *options) { o.log = l })
}

// WithHTTPClient sends every request through the Transport of hc; nothing else of hc is used,
// for no redirect is ever followed, and Config.RequestTimeout bounds each request. What the
// default transports do when they dial (no proxy towards peers, [PeerPolicy.Networks] checked on
// the resolved address) is then up to hc.
func WithHTTPClient(hc *http.Client) Option {
	return optionFunc(func(o *options) { o.client = hc })
}

// A TokenKey is what tokens are kept per: one is fetched for each audience, kind and customer,
// however many requests need it.
type TokenKey struct {
	Audience string
	Cluster  bool   // a token that peers accept as a cluster token
	Customer string // the Customer of a [Request]
}

// WithTokens gets tokens from source, which is called once per key, instead of from mST. What
// it returns may be any source of x/oauth2; its tokens are kept until shortly before they expire.
func WithTokens(source func(TokenKey) oauth2.TokenSource) Option {
	return optionFunc(func(o *options) { o.tokens = source })
}

// WithVerifier checks received tokens with v instead of with the keys of [Config].
func WithVerifier(v Verifier) Option {
	return optionFunc(func(o *options) { o.verifier = v })
}

// WithTrace calls the functions of t as things happen.
func WithTrace(t *Trace) Option {
	return optionFunc(func(o *options) {
		if t != nil {
			o.trace = *t
		}
	})
}

// WithRetry sets how requests to peers are repeated; see [Retry] for the default.
func WithRetry(r Retry) Option {
	return optionFunc(func(o *options) { o.retry = r })
}

// WithEviction sets when a peer is evicted; see [Eviction] for the default.
func WithEviction(e Eviction) Option {
	return optionFunc(func(o *options) { o.eviction = e })
}

// WithPeerPolicy sets which servers may be called; see [PeerPolicy] for the default.
func WithPeerPolicy(p PeerPolicy) Option {
	return optionFunc(func(o *options) { o.policy = p })
}

// WithoutEnv leaves the process's environment alone: for a process with several nodes.
func WithoutEnv() Option {
	return optionFunc(func(o *options) { o.noEnv = true })
}

// A Trace is told what happens inside a [Cluster]. Any function may be nil. They are called
// synchronously, from any goroutine, with no lock held: one that blocks holds up what it
// reports.
type Trace struct {
	// StateChanged reports a new [State] of the registration.
	StateChanged func(from, to Status)
	// Renewed reports a registration or renewal that mIT accepted, and when the next is due.
	Renewed func(lease, renewIn time.Duration)
	// RenewFailed reports one that failed, and when the next try is.
	RenewFailed func(err error, retryIn time.Duration)
	// Asked reports the outcome of one peer in a fan-out, before eviction is decided. A call that
	// waits for all peers reports them all at its end.
	PeerDone func(Outcome)
	// Evicted reports a peer that this node evicted.
	Evicted func(Server)
	// Spared reports a peer that was suspect and stays, and why.
	EvictionSkipped func(s Server, why error)
	// TokenFetched reports that a token was fetched, or could not be.
	TokenFetched func(key TokenKey, err error)
}

func (t *Trace) stateChanged(from, to Status) {
	if t.StateChanged != nil {
		t.StateChanged(from, to)
	}
}

func (t *Trace) renewed(lease, renewIn time.Duration) {
	if t.Renewed != nil {
		t.Renewed(lease, renewIn)
	}
}

func (t *Trace) renewFailed(err error, retryIn time.Duration) {
	if t.RenewFailed != nil {
		t.RenewFailed(err, retryIn)
	}
}

func (t *Trace) peerDone(o Outcome) {
	if t.PeerDone != nil {
		t.PeerDone(o)
	}
}

func (t *Trace) evicted(s Server) {
	if t.Evicted != nil {
		t.Evicted(s)
	}
}

func (t *Trace) evictionSkipped(s Server, why error) {
	if t.EvictionSkipped != nil {
		t.EvictionSkipped(s, why)
	}
}

func (t *Trace) tokenFetched(key TokenKey, err error) {
	if t.TokenFetched != nil {
		t.TokenFetched(key, err)
	}
}
