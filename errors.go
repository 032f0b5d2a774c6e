package cluster

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster/internal/breaker"
	"github.com/mimiktech/cluster/internal/membership"
	"github.com/mimiktech/cluster/internal/redact"
)

// Errors to compare with errors.Is.
var (
	// ErrInvalidRequest means that a [Request] cannot be sent. No peer was called.
	ErrInvalidRequest = errors.New("cluster: invalid request")
	// ErrManagementOff means that the node does not call peers: Config.Management is not set.
	ErrManagementOff = errors.New("cluster: management is off")
	// ErrNotRegistered is the Reason in the [Status] of a node until its first attempt to
	// register has ended, and after [Cluster.UnRegister]. [Cluster.Register] returns it when
	// [Cluster.UnRegister] interrupts the call. [Cluster.RPCluster] returns it if the node has
	// never registered and knows no peers.
	ErrNotRegistered = errors.New("cluster: not registered")
	// ErrClosed is the error of calls that [Cluster.Close] interrupts, and of calls made after
	// it. An interrupted [Cluster.RPCluster] returns no error, but its outcomes have this one.
	ErrClosed = errors.New("cluster: closed")
	// ErrNotAllowed means that the [PeerPolicy] does not allow the address of a peer.
	ErrNotAllowed = errors.New("address not allowed")
	// ErrVerifierUnavailable is wrapped by the error of a [Verifier] that cannot verify any token
	// at the moment, for example because it cannot fetch its keys. The request is answered with 503
	// and a message without details: the caller's token may be valid.
	ErrVerifierUnavailable = errors.New("cluster: tokens cannot be verified at the moment")
	// ErrResponseTooLarge is wrapped by the [InvalidResponseError] of a response that exceeds
	// Config.MaxResponseBytes, or that makes all responses to a call exceed Config.MaxCallBytes.
	ErrResponseTooLarge = errors.New("response too large")
	// ErrEnoughResults is the error of peers that did not answer before [Request].MinResults results
	// had arrived.
	ErrEnoughResults = errors.New("enough peers have answered")
)

// A StatusError is a response with a non-2xx status. An endpoint can also pass one to
// [Cluster.ReplyError], which sends its Code, Message and Info.
type StatusError struct {
	Remote  string // the sender: "mST", "mIT" or `peer "…"`
	Method  string
	URL     string // without its query
	Code    int
	Message string          // from the response, if it had one
	Info    json.RawMessage // the "info" of the response, nil if it had none

	// RetryAfter is the delay that the response asked for, at most a minute; 0 if it had none. It is
	// not sent by [Cluster.ReplyError].
	RetryAfter time.Duration
}

func (e *StatusError) Error() string {
	text := strings.TrimSpace(fmt.Sprintf("%d %s", e.Code, http.StatusText(e.Code)))
	if e.Remote != "" {
		text = fmt.Sprintf("%s answered %s to %s %s", e.Remote, text, e.Method, e.URL)
	}
	if e.Message != "" {
		text += ": " + e.Message
	}
	return text
}

// An UnreachableError is a request that got no response: the address could not be dialed, the
// connection was lost, or the timeout expired.
type UnreachableError struct {
	Remote string
	Method string
	URL    string // without its query
	Err    error
	// Reused reports whether the request was sent on a connection that had been used before. The
	// remote may have closed it while it was idle, so the error does not show that the remote is
	// gone.
	Reused bool
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("%s cannot be reached by %s %s: %s", e.Remote, e.Method, e.URL, excerpt(fmt.Sprint(e.Err)))
}

// Unwrap returns the cause, such as context.DeadlineExceeded or syscall.ECONNREFUSED.
func (e *UnreachableError) Unwrap() error { return e.Err }

// An InvalidResponseError is a response that was received but cannot be used. It is not HTTP,
// violates the protocol, is too large ([ErrResponseTooLarge]), or was truncated.
type InvalidResponseError struct {
	Remote string
	Method string
	URL    string // without its query
	Err    error
}

func (e *InvalidResponseError) Error() string {
	return fmt.Sprintf("%s gave an invalid response to %s %s: %s", e.Remote, e.Method, e.URL, excerpt(fmt.Sprint(e.Err)))
}

// Unwrap returns the cause.
func (e *InvalidResponseError) Unwrap() error { return e.Err }

// A WrongServerError is a response from another server than the one called: its address has been
// taken over.
type WrongServerError struct {
	URL       string // without its query
	Want, Got string // server ids
}

func (e *WrongServerError) Error() string {
	return fmt.Sprintf("peer %q expected at %s, but server %q answered", excerpt(e.Want), e.URL, excerpt(e.Got))
}

// A CircuitOpenError means that nothing was sent, because the peer's circuit breaker is open. A
// breaker opens when requests to the peer time out and no response is received from it for
// Config.RequestTimeout. It then lets a probe through at growing intervals, and at once when the
// peer registers again. Any response closes it, and so does a failure other than a timeout, such as
// a refused connection.
//
// A request may also have to wait because many others to the same peer are in flight. It ends with
// this error if the peer answers none of them within the timeout of the request, even if the
// breaker is closed.
type CircuitOpenError struct {
	ServerID  string
	SilentFor time.Duration // how long the peer has not answered
	// RetryIn is the time until the next probe. It is 0 if that is due or in flight, or if the
	// breaker is closed.
	RetryIn time.Duration
}

func (e *CircuitOpenError) Error() string {
	probe := ""
	if e.RetryIn > 0 {
		probe = fmt.Sprintf(", next probe in %v", e.RetryIn.Round(time.Millisecond))
	}
	return fmt.Sprintf("peer %q: circuit open (no response for %v%s)", e.ServerID, e.SilentFor.Round(time.Millisecond), probe)
}

// A TokenError means that a token could not be obtained.
type TokenError struct {
	Audience string
	Err      error
}

func (e *TokenError) Error() string {
	text := fmt.Sprint(e.Err)
	if !namesRemote(e.Err) { // it is an error of the program's own source
		text = excerpt(text)
	}
	return fmt.Sprintf("no token for %q: %s", e.Audience, text)
}

// Unwrap returns the cause, such as the [StatusError] of the token service.
func (e *TokenError) Unwrap() error { return e.Err }

// A PanicError is a panic in code that the program has given to this package, such as a
// RoundTripper or a token source. The package recovers it, and treats it as an error of that code.
type PanicError struct {
	In    string // the name of the code that panicked
	Value any    `json:"-"` // the argument of the panic; not redacted
	Stack []byte `json:"-"` // of the goroutine that panicked
}

func (e *PanicError) Error() string {
	return fmt.Sprintf("%s panicked: %s", e.In, excerpt(fmt.Sprint(e.Value)))
}

// A Kind classifies the outcome of one peer. It is a single word, fit for a metric label.
type Kind string

// The kinds of outcomes. A peer becomes a suspect for eviction only if it sent no response at all,
// so only with KindRefused, KindConnectionLost or KindTimeout. A peer whose address belongs to this
// node now is a suspect, too; its kind is KindWrongServer. The option [Eviction].ServerErrors adds
// responses with a 5xx status.
//
// Peers that the registry has not confirmed, and that have never answered, share a small part of
// the slots. Those that get no slot soon enough for a response have KindNotConfirmed.
const (
	KindOK             Kind = "ok"              // a result
	KindRefused        Kind = "refused"         // the address could not be dialed
	KindConnectionLost Kind = "connection_lost" // the connection was lost before a response
	KindTimeout        Kind = "timeout"         // no response in time, or only a part of one
	KindTLS            Kind = "tls"             // the TLS handshake failed: see Outcome.Err
	KindLocal          Kind = "local_fault"     // this node could not send: see Outcome.Err
	KindStatus         Kind = "status"          // a non-2xx response: see StatusError
	KindWrongServer    Kind = "wrong_server"    // see WrongServerError
	KindMalformed      Kind = "malformed"       // not HTTP, without the envelope, or truncated
	KindTooLarge       Kind = "too_large"       // see ErrResponseTooLarge
	KindCanceled       Kind = "canceled"        // the call ended first; see ErrEnoughResults
	KindCircuitOpen    Kind = "circuit_open"    // nothing was sent: see CircuitOpenError
	KindNotAllowed     Kind = "not_allowed"     // nothing was sent: see ErrNotAllowed
	KindNotConfirmed   Kind = "not_confirmed"   // not confirmed by the registry, and no slot in time
	KindNoToken        Kind = "no_token"        // nothing was sent: see TokenError
	KindInvalid        Kind = "invalid"         // no peer was called: the call itself failed
)

// stackOf returns the stack of a panic in err, to be logged.
func stackOf(err error) zap.Field {
	if p, ok := errors.AsType[*PanicError](err); ok {
		return zap.ByteString("stack", p.Stack)
	}
	return zap.Skip()
}

// catchPanic turns a panic into a *PanicError. It must be deferred itself.
func catchPanic(in string, err *error) {
	if v := recover(); v != nil {
		*err = &PanicError{In: in, Value: v, Stack: debug.Stack()}
	}
}

func classify(err error) Kind {
	switch {
	case err == nil:
		return KindOK
	case isTokenError(err):
		return KindNoToken
	case errors.Is(err, ErrNotAllowed):
		return KindNotAllowed
	case errors.Is(err, errNotConfirmed):
		return KindNotConfirmed
	case errors.Is(err, ErrResponseTooLarge):
		return KindTooLarge
	case isCircuitOpen(err):
		return KindCircuitOpen
	case isLocalFault(err):
		return KindLocal
	case errors.Is(err, context.DeadlineExceeded) || timedOut(err):
		return KindTimeout
	}
	if _, ok := errors.AsType[*StatusError](err); ok {
		return KindStatus
	}
	if _, ok := errors.AsType[*WrongServerError](err); ok {
		return KindWrongServer
	}
	if _, ok := errors.AsType[*InvalidResponseError](err); ok {
		return KindMalformed
	}
	if isTLSError(err) {
		return KindTLS
	}
	if dialFailed(err) {
		return KindRefused
	}
	return KindConnectionLost
}

// circuitOpen turns the error of a breaker into a *CircuitOpenError.
func circuitOpen(p *membership.Peer, err error) error {
	if open, ok := errors.AsType[*breaker.OpenError](err); ok {
		return &CircuitOpenError{p.ServerID, open.Silent, open.RetryIn}
	}
	return err
}

// errNoResponse is the error of a RoundTripper that returns neither a response nor an error.
var errNoResponse = errors.New("the RoundTripper returned no response and no error")

// errNotConfirmed is the error of a peer that may not exist and had no slot in time; see peerGroup.
var errNotConfirmed = errors.New("the registry has not confirmed this peer, it has never answered, and there was no time left for such peers")

// isLocalFault reports whether a request failed because of a fault on this node, so that the state
// of the remote is unknown. Such faults are exhausted resources, a local firewall, a resolver that
// does not answer, a suspended process, and faults of a RoundTripper. ENETUNREACH is not among
// them: routers on the way cause it, too.
func isLocalFault(err error) bool {
	for _, errno := range []syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL, syscall.EAGAIN,
		syscall.ENETDOWN, syscall.EAFNOSUPPORT, syscall.EPERM, syscall.EACCES,
	} {
		if errors.Is(err, errno) {
			return true
		}
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return !dns.IsNotFound
	}
	_, panicked := errors.AsType[*PanicError](err)
	return panicked || errors.Is(err, errNoResponse) || errors.Is(err, errSuspended)
}

// errSuspended is the error of a request that has timed out while this process did not run. The
// response may have arrived in time.
var errSuspended = errors.New("this process was suspended meanwhile")

// errLate is the error of a request that has timed out later than it should. Either this process
// was suspended until shortly after the deadline, or the machine is busy.
var errLate = errors.New("this process noticed its timeout late")

const (
	// suspendedAfter is how long after its deadline a request may end on a busy machine.
	suspendedAfter = time.Second
	// lateAfter is how long after its deadline a request may end on an idle machine.
	lateAfter = 50 * time.Millisecond
)

// markLate adds errSuspended or errLate to the error of a request that has timed out long after the
// deadline of ctx. A process that is stopped, or a machine that is paused, is noticed by this.
func markLate(ctx context.Context, err error) error {
	deadline, ok := ctx.Deadline()
	if !ok || !timedOut(err) {
		return err
	}
	switch late := time.Since(deadline); {
	case late > suspendedAfter:
		return fmt.Errorf("%w (%w)", err, errSuspended)
	case late > lateAfter:
		return fmt.Errorf("%w (%w)", err, errLate)
	}
	return err
}

// isTLSError reports whether there was a server, but no TLS connection to it.
func isTLSError(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	if _, ok := errors.AsType[tls.AlertError](err); ok {
		return true
	}
	if _, ok := errors.AsType[*handshakeError](err); ok {
		return true
	}
	// The operation of an alert that the server has sent is "remote error".
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return true
	}
	_, ok := errors.AsType[tls.RecordHeaderError](err)
	return ok
}

// An http2StreamError is the error of one request over HTTP/2. net/http does not export its own
// type, but converts its errors to one with these fields.
type http2StreamError struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

func (e http2StreamError) Error() string {
	return fmt.Sprintf("stream %d: code %d", e.StreamID, e.Code)
}

func (e http2StreamError) fromPeer() bool {
	return e.Cause != nil && e.Cause.Error() == "received from peer"
}

// isHTTP2Reset reports whether a server of HTTP/2 has ended a request without a response.
func isHTTP2Reset(err error) bool {
	stream, ok := errors.AsType[http2StreamError](err)
	return ok && stream.fromPeer()
}

// isGoAway reports whether a server of HTTP/2 has refused further requests on a connection. There
// are several such errors in net/http, and none is exported.
func isGoAway(err error) bool { return strings.Contains(err.Error(), "GOAWAY") }

// isMalformedHTTP2 reports whether a server of HTTP/2 has sent what net/http cannot parse. The
// types of such errors are not exported.
func isMalformedHTTP2(err error) bool {
	stream, ok := errors.AsType[http2StreamError](err)
	return ok && !stream.fromPeer() || strings.HasPrefix(err.Error(), "connection error: ") ||
		strings.Contains(err.Error(), "http2: frame too large")
}

func isTokenError(err error) bool {
	_, ok := errors.AsType[*TokenError](err)
	return ok
}

func isCircuitOpen(err error) bool {
	_, ok := errors.AsType[*CircuitOpenError](err)
	return ok
}

// excerpt prepares text from outside that an error quotes.
func excerpt(text string) string { return redact.Quote(text) }

// tokenRejected reports whether a response means that the token was not accepted. Both the registry
// and npm peers use 403 for it; other servers, and Go peers, use 401.
func tokenRejected(err error) bool {
	se, ok := errors.AsType[*StatusError](err)
	return ok && (se.Code == http.StatusForbidden || se.Code == http.StatusUnauthorized)
}

// tokenDoubtful reports whether the token may be why a request was rejected: it may be too long for
// the remote, or malformed.
func tokenDoubtful(err error) bool {
	se, ok := errors.AsType[*StatusError](err)
	return ok && (se.Code == http.StatusRequestHeaderFieldsTooLarge || se.Code == http.StatusBadRequest)
}

// unreachable reports whether no response was received, so that the peer may be gone.
func unreachable(err error) bool {
	_, ok := errors.AsType[*UnreachableError](err)
	return ok && !errors.Is(err, ErrNotAllowed) && !isTLSError(err)
}

// dialFailed reports whether the request failed before there was a connection to send it on.
func dialFailed(err error) bool {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return true
	}
	_, ok := errors.AsType[*net.DNSError](err)
	return ok
}

func timedOut(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

// namesRemote reports whether the error already names the remote and the request.
func namesRemote(err error) bool {
	_, status := errors.AsType[*StatusError](err)
	_, invalid := errors.AsType[*InvalidResponseError](err)
	_, unreachable := errors.AsType[*UnreachableError](err)
	return status || invalid || unreachable
}
