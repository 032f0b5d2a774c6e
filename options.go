package cluster

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/oauth2"

	"github.com/mimiktech/cluster/internal/peeraddr"
	"github.com/mimiktech/cluster/internal/redact"
	"github.com/mimiktech/cluster/internal/token"
	"github.com/mimiktech/cluster/internal/wire"
)

// An Option is an optional argument of [New]: a dependency or a policy.
type Option interface{ apply(*options) }

// WithLogger makes the node log to l; by default it logs nothing. Each line that belongs to a
// request has its correlation id. Secrets of the node are redacted in all lines. An error in a
// field is replaced by one with the redacted text, in which errors.As still finds the original
// types.
func WithLogger(l *zap.Logger) Option {
	return optionFunc(func(o *options) { o.log = l })
}

// WithTransport wraps the transports of the node, for example with the transport of OpenTelemetry.
// The function wrap is called four times, by [New]. There are two transports to peers, and two that
// the registry and the token service share. In each pair, one transport keeps a pool of
// connections, and the other one opens a new connection for each request. Requests that need a new
// connection have Close set. The node keeps its connection pool, its checks of addresses, and the
// rule that no proxy is used towards peers. A RoundTripper that wrap returns must not follow
// redirects. Several wrappers apply in the order of their options: the last one is the outermost.
func WithTransport(wrap func(http.RoundTripper) http.RoundTripper) Option {
	return optionFunc(func(o *options) {
		if wrap != nil {
			o.wrap = append(o.wrap, wrap)
		}
	})
}

// WithHTTPClient sends all requests through the Transport of hc. Nothing else of hc is used:
// redirects are never followed, and Config.RequestTimeout bounds each request. It replaces the
// node's own transports. Two of their rules then do not apply: that requests to peers use no proxy,
// and that the [PeerPolicy] must allow the resolved address. [New] therefore rejects it together
// with [PeerPolicy].Networks, [WithPeerTLS] or [WithBackendTLS]. Use [WithTransport] to keep the
// checks. If hc has an [http.Transport], its functions run on goroutines of net/http, where a panic
// ends the process.
func WithHTTPClient(hc *http.Client) Option {
	return optionFunc(func(o *options) { o.client = hc })
}

// A TokenKey describes a token that the node needs. The node keeps one token per key.
type TokenKey struct {
	Audience string
	Cluster  bool   // a cluster token, which peers accept
	Customer string // the Customer of a [Request]
}

// WithTokens obtains tokens from fetch instead of from the token service. The node keeps each token
// until shortly before it expires, and replaces it if a remote rejects it. So fetch must return a
// new token each time: the Token method of a clientcredentials.Config fits, a caching source of
// x/oauth2 does not. A fetch must return when ctx ends. At most one fetch is in progress for each
// key. If a fetch fails with an *oauth2.RetrieveError of a 429 or 503 with Retry-After, the next
// fetch does not begin before the time that Retry-After gives.
func WithTokens(fetch func(ctx context.Context, key TokenKey) (*oauth2.Token, error)) Option {
	return optionFunc(func(o *options) { o.tokens = fetch })
}

// WithVerifier verifies received tokens with v instead of with the keys of [Config]. The module
// clusterjwks has a Verifier for RS256, ES256 and EdDSA.
func WithVerifier(v Verifier) Option {
	return optionFunc(func(o *options) { o.verifier = v })
}

// WithTokenLeeway sets the allowed difference between the clocks of the token service and of this
// node. A received token is accepted from leeway before its nbf until leeway after its exp. The
// default is 10 s. It has no effect together with [WithVerifier].
func WithTokenLeeway(leeway time.Duration) Option {
	return optionFunc(func(o *options) { o.leeway = leeway })
}

// WithRetry sets how requests to peers are retried; see [Retry] for the default.
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

// WithoutEnv keeps the node from writing its status to the process environment (see [Status.Env]).
// Use it in a process with several nodes.
func WithoutEnv() Option {
	return optionFunc(func(o *options) { o.noEnv = true })
}

// A Retry sets how a request to a peer is retried. The zero Retry makes one retry, after 10 ms and
// on a new connection, if [RetrySafe] allows it. So a peer that is gone delays a call by
// milliseconds only. A pooled connection that broke when the peer restarted does not fail the
// request.
type Retry struct {
	// MaxRetries is the maximum number of retries; 1 by default, none if negative.
	MaxRetries int
	// Delay is the pause before each retry; 10 ms by default.
	Delay time.Duration
	// MaxElapsed bounds the time from the start of the first attempt to the start of the last.
	// There is no bound by default.
	MaxElapsed time.Duration
	// RetryIf reports whether to retry a request of the given method that failed with err;
	// [RetrySafe] by default. It may be called from any goroutine. Meanwhile the request holds no
	// slot of Config.MaxInFlight. If it panics, there is no retry, the outcome's error says so, and
	// the stack is logged.
	RetryIf func(method string, err error) bool
}

// RetrySafe is the default of [Retry].RetryIf. It allows a retry if the address could not be
// dialed, or if the connection was lost before a response and the method is idempotent. It allows
// none after a response of any status, and none after a timeout. So a peer that hangs delays a call
// by one timeout only.
func RetrySafe(method string, err error) bool {
	if !unreachable(err) || timedOut(err) {
		return false
	}
	return dialFailed(err) || idempotent(method)
}

// RetryNPM returns the policy of the npm module. It allows two retries, one second apart and within
// 50 s, for any method. It retries after a 5xx, a 429, or no response. A request may be executed
// three times, and a peer that is gone delays a call by two seconds.
func RetryNPM() Retry {
	return Retry{MaxRetries: 2, Delay: time.Second, MaxElapsed: 50 * time.Second, RetryIf: func(_ string, err error) bool {
		if se, ok := errors.AsType[*StatusError](err); ok {
			return se.Code >= 500 || se.Code == http.StatusTooManyRequests
		}
		return unreachable(err)
	}}
}

// An Eviction sets when an unreachable peer is evicted. The node then deletes the peer from the
// registry, removes it from its view, and notifies the other peers.
//
// A peer becomes a suspect if it sends no response at all. It is not evicted if its failure may be
// due to a connection that had been used before, or to a delay of this node. At the end of a
// fan-out, the node looks up the entry of every remaining suspect in the registry:
//
//   - If the registry has the same entry as the node, the node asks it to delete that entry unless
//     it has changed. The peer is evicted if the registry deletes the entry or has none.
//   - If the registry has another entry, the peer has renewed its lease or registered again. The
//     node adopts that entry and retries the request at its address. There is no retry if only the
//     lease was renewed and the request timed out: the peer then stays.
//   - If the registry does not respond, the peer stays.
//
// No suspect is evicted if more than MaxSuspectFraction of the called peers are unreachable,
// because the fault is then likely local. This self-preservation applies to calls to three or more
// peers. A call that reached MinResults evicts none, either. A node with three or more peers evicts
// none in a call to only one or two of them.
type Eviction struct {
	// Disabled turns eviction off.
	Disabled bool
	// ServerErrors treats peers that answer with a 5xx as suspects, too, as the npm module does.
	ServerErrors bool
	// MaxSuspectFraction is the fraction of unreachable peers up to which suspects are evicted; 0.5
	// by default. 1 turns self-preservation off.
	MaxSuspectFraction float64
	// Timeout bounds how long a call waits for the registry to decide on all its suspects; 2 s by
	// default.
	Timeout time.Duration
}

// A PeerPolicy sets which servers this node may call. Their addresses come from the network, and
// every request carries a token. So the node calls only absolute http or https URLs without
// credentials. It uses no proxy for them, and follows no redirect. The fields add further
// restrictions.
//
// If the registry lists a server that is not allowed, the server stays in the view, and its
// outcome in every fan-out is [KindNotAllowed]. If a peer announces one, it is ignored.
type PeerPolicy struct {
	// Networks are the networks in which peers may be. The check is made on the address that is
	// dialed, after a name is resolved. By default all addresses are allowed except link-local,
	// multicast, unspecified and reserved ones, and those of the metadata services of clouds, which
	// serve credentials. A metadata service is allowed only by a network that consists of its
	// address alone. Networks cannot be combined with [WithHTTPClient].
	Networks []netip.Prefix
	// Allow, if set, returns an error for a server that must not be called. It is called whenever a
	// server or its address is new, possibly for many servers in a row, and must not block. If it
	// panics, the server is not called.
	Allow func(Server) error
	// MaxServers is the number of servers up to which announcements of peers may enlarge the view;
	// 10,000 by default. The registry may list more.
	MaxServers int
	// VerifyWithRegistry treats announcements and departures reported by peers as hints. Instead of
	// applying them, the node renews at once and applies the registry's list. Such renewals are at
	// least Config.RegistrationRetry apart.
	VerifyWithRegistry bool
}

type optionFunc func(*options)

func (f optionFunc) apply(o *options) { f(o) }

type options struct {
	log                 *zap.Logger
	client              *http.Client
	wrap                []func(http.RoundTripper) http.RoundTripper
	peerTLS, backendTLS *tls.Config // nil: the defaults
	tokens              func(context.Context, TokenKey) (*oauth2.Token, error)
	verifier            Verifier
	traces              []Trace
	leeway              time.Duration
	retry               Retry
	eviction            Eviction
	policy              PeerPolicy
	leave               Leave
	noEnv               bool
	locals              func() ([]peeraddr.Local, error) // the addresses of this machine
	local               peeraddr.Local                   // the default; zero if none is usable
}

func applyOptions(opts []Option) options {
	o := options{locals: peeraddr.Locals, leeway: token.Leeway}
	for _, opt := range opts {
		if opt != nil {
			opt.apply(&o)
		}
	}
	if o.log == nil {
		o.log = zap.NewNop()
	}
	if candidates, err := o.locals(); err == nil {
		o.local, _ = peeraddr.Choose(candidates)
	}
	return o
}

func (o options) validate(p *problems) {
	if o.leeway < 0 {
		p.add("WithTokenLeeway", "is negative (%v)", o.leeway)
	}
	o.validateTransports(p)
	o.leave.validate(p)
	if e := o.eviction; !(e.MaxSuspectFraction >= 0 && e.MaxSuspectFraction <= 1) {
		p.add("WithEviction", "has a MaxSuspectFraction of %g, which is not between 0 and 1", e.MaxSuspectFraction)
	}
	if e := o.eviction; e.Timeout < 0 {
		p.add("WithEviction", "has a negative Timeout (%v)", e.Timeout)
	}
	if r := o.retry; r.Delay < 0 || r.MaxElapsed < 0 {
		p.add("WithRetry", "has a negative Delay (%v) or MaxElapsed (%v)", r.Delay, r.MaxElapsed)
	}
}

// validateTransports rejects options that WithHTTPClient would turn off without notice.
func (o options) validateTransports(p *problems) {
	const remedy = "which has no effect together with WithHTTPClient: use WithTransport, or leave it out"
	if o.client != nil {
		if len(o.policy.Networks) > 0 {
			p.add("WithPeerPolicy", "has Networks, "+remedy)
		}
		if o.peerTLS != nil {
			p.add("WithPeerTLS", "has a configuration, "+remedy)
		}
		if o.backendTLS != nil {
			p.add("WithBackendTLS", "has a configuration, "+remedy)
		}
	}
	validateTLS(p, "WithPeerTLS", o.peerTLS)
	validateTLS(p, "WithBackendTLS", o.backendTLS)
}

// shouldRetry decides on a retry after an attempt that failed with err. The first attempt is
// number 1, and began elapsed ago. panicked is a panic of RetryIf.
func (r Retry) shouldRetry(method string, err error, attempt int, elapsed time.Duration) (again bool, panicked error) {
	if attempt > cmp.Or(r.MaxRetries, 1) || r.MaxElapsed > 0 && elapsed+r.delay() > r.MaxElapsed {
		return false, nil
	}
	if r.RetryIf == nil {
		return RetrySafe(method, err), nil
	}
	defer catchPanic("RetryIf", &panicked)
	return r.RetryIf(method, err), nil
}

func (r Retry) delay() time.Duration { return cmp.Or(r.Delay, 10*time.Millisecond) }

func idempotent(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPut, http.MethodDelete:
		return true
	}
	return false
}

func (e Eviction) timeout() time.Duration { return cmp.Or(e.Timeout, 2*time.Second) }

func (e Eviction) maxSuspectFraction() float64 { return cmp.Or(e.MaxSuspectFraction, 0.5) }

func (p PeerPolicy) maxServers() int {
	if p.MaxServers > 0 {
		return p.MaxServers
	}
	return 10_000
}

// checkServer parses the address of a server. It returns an error if the server must not be
// called.
func (p PeerPolicy) checkServer(s wire.Server) (*url.URL, error) {
	base, err := peeraddr.Parse(s.ClusterBaseURL)
	if err == nil {
		err = wire.CheckBaseURL(s.ClusterBaseURL)
	}
	if err == nil {
		err = peeraddr.Networks(p.Networks).CheckHost(base.Hostname())
	}
	if err != nil {
		return nil, fmt.Errorf("clusterBaseUrl of %s: %w: %w", nameOf(s), ErrNotAllowed, err)
	}
	if err := p.allow(Server(s)); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", nameOf(s), ErrNotAllowed, err)
	}
	return base, nil
}

// nameOf returns the name of a server in errors. A guest may only know its address.
func nameOf(s wire.Server) string {
	if s.ServerID == "" {
		return "the server"
	}
	return fmt.Sprintf("server %.80q", s.ServerID)
}

// allow calls Allow. A server is not allowed if it panics.
func (p PeerPolicy) allow(s Server) (err error) {
	if p.Allow == nil {
		return nil
	}
	defer catchPanic("PeerPolicy.Allow", &err)
	if err = p.Allow(s); err != nil {
		err = redact.NewError(excerpt(err.Error()), err)
	}
	return err
}

func (p PeerPolicy) dialControl(network, address string, conn syscall.RawConn) error {
	if err := peeraddr.Networks(p.Networks).Control(network, address, conn); err != nil {
		return fmt.Errorf("%w: %w", ErrNotAllowed, err)
	}
	return nil
}
