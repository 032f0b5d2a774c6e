package cluster

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/mimiktech/cluster/internal/breaker"
	"github.com/mimiktech/cluster/internal/membership"
)

// Errors to compare with errors.Is.
var (
	// ErrInvalidRequest means that a [Request] cannot be sent. No peer was called.
	ErrInvalidRequest = errors.New("cluster: invalid request")
	// ErrManagementOff means that the node does not call peers: Config.Management is not set.
	ErrManagementOff = errors.New("cluster: management is off")
	// ErrNotRegistered is the Reason in the [Status] of a node that has not registered yet, or has
	// left. [Cluster.Register] returns it if [Cluster.UnRegister] interrupts it.
	ErrNotRegistered = errors.New("cluster: not registered")
	// ErrClosed is returned by calls that [Cluster.Close] interrupts and by calls made after it.
	ErrClosed = errors.New("cluster: closed")
	// ErrNotAllowed means that the [PeerPolicy] does not allow the address of a peer.
	ErrNotAllowed = errors.New("address not allowed")
	// ErrVerifierUnavailable is wrapped by the error of a [Verifier] that cannot verify any token at
	// the moment, such as one without a connection to its keys. The request is answered with 503 and
	// a message without details: the caller's token may be valid.
	ErrVerifierUnavailable = errors.New("cluster: tokens cannot be verified at the moment")
	// ErrResponseTooLarge is wrapped by the [InvalidResponseError] of a response that exceeds
	// Config.MaxResponseBytes.
	ErrResponseTooLarge = errors.New("response too large")
	// ErrEnoughResults is the error of peers that did not answer before [Request].MinResults results
	// had arrived.
	ErrEnoughResults = errors.New("enough peers have answered")
)

// A StatusError is a response with a non-2xx status. Given to [Cluster.ReplyError] it becomes the
// response of an endpoint, which takes only Code, Message and Info from it.
type StatusError struct {
	Remote  string // the sender: "mST", "mIT" or `peer "…"`
	Method  string
	URL     string // without its query
	Code    int
	Message string          // from the response, if it had one
	Info    json.RawMessage // the "info" of the response, nil if it had none
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
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("%s cannot be reached by %s %s: %v", e.Remote, e.Method, e.URL, e.Err)
}

// Unwrap returns the cause, such as context.DeadlineExceeded or syscall.ECONNREFUSED.
func (e *UnreachableError) Unwrap() error { return e.Err }

// An InvalidResponseError is a response that was received but cannot be used: it does not follow
// the protocol, is too large ([ErrResponseTooLarge]), or was truncated.
type InvalidResponseError struct {
	Remote string
	Method string
	URL    string // without its query
	Err    error
}

func (e *InvalidResponseError) Error() string {
	return fmt.Sprintf("%s gave an invalid response to %s %s: %v", e.Remote, e.Method, e.URL, e.Err)
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
	return fmt.Sprintf("peer %q expected at %s, but server %q answered", e.Want, e.URL, e.Got)
}

// A CircuitOpenError means that nothing was sent, because the peer's circuit breaker is open. A
// breaker opens when requests to the peer time out and no response is received from it for
// Config.RequestTimeout. It then lets a probe through at growing intervals, and at once when the
// peer registers again. Any response closes it.
//
// A request may also have to wait because many others to the same peer are in flight. It ends with
// this error if the peer answers none of them within the timeout of the request.
type CircuitOpenError struct {
	ServerID  string
	SilentFor time.Duration // how long the peer has not answered
	RetryIn   time.Duration // until the next probe; 0 while one is in flight
}

func (e *CircuitOpenError) Error() string {
	probe := "a probe is in flight"
	if e.RetryIn > 0 {
		probe = fmt.Sprintf("next probe in %v", e.RetryIn.Round(time.Millisecond))
	}
	return fmt.Sprintf("peer %q: circuit open (no response for %v, %s)", e.ServerID, e.SilentFor.Round(time.Millisecond), probe)
}

// A TokenError means that a token could not be obtained.
type TokenError struct {
	Audience string
	Err      error
}

func (e *TokenError) Error() string { return fmt.Sprintf("no token for %q: %v", e.Audience, e.Err) }

// Unwrap returns the cause, such as the [StatusError] of the token service.
func (e *TokenError) Unwrap() error { return e.Err }

// A Kind classifies the outcome of one peer. It is a single word, fit for a metric label.
type Kind string

// The kinds of outcomes. A peer becomes a suspect for eviction only if it sent no response at all,
// so only with KindRefused, KindConnectionLost or KindTimeout. The option [Eviction].ServerErrors
// adds responses with a 5xx status.
const (
	KindOK             Kind = "ok"              // a result
	KindRefused        Kind = "refused"         // the address could not be dialed
	KindConnectionLost Kind = "connection_lost" // the connection was lost before a response
	KindTimeout        Kind = "timeout"         // no response in time, or only a part of one
	KindTLS            Kind = "tls"             // no TLS connection, as with an invalid certificate
	KindStatus         Kind = "status"          // a non-2xx response: see StatusError
	KindWrongServer    Kind = "wrong_server"    // see WrongServerError
	KindMalformed      Kind = "malformed"       // a truncated response, or one without the envelope
	KindTooLarge       Kind = "too_large"       // a response that exceeds Config.MaxResponseBytes
	KindCanceled       Kind = "canceled"        // the call ended first; see ErrEnoughResults
	KindCircuitOpen    Kind = "circuit_open"    // nothing was sent: see CircuitOpenError
	KindNotAllowed     Kind = "not_allowed"     // nothing was sent: see ErrNotAllowed
	KindNoToken        Kind = "no_token"        // nothing was sent: see TokenError
	KindInvalid        Kind = "invalid"         // no peer was called: the call itself failed
)

func classify(err error) Kind {
	switch {
	case err == nil:
		return KindOK
	case isTokenError(err):
		return KindNoToken
	case errors.Is(err, ErrNotAllowed):
		return KindNotAllowed
	case errors.Is(err, ErrResponseTooLarge):
		return KindTooLarge
	case isCircuitOpen(err):
		return KindCircuitOpen
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

// isTLSError reports whether there was a server, but no TLS connection to it.
func isTLSError(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	if _, ok := errors.AsType[tls.AlertError](err); ok {
		return true
	}
	// The operation of an alert that the server has sent is "remote error".
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return true
	}
	_, ok := errors.AsType[tls.RecordHeaderError](err)
	return ok
}

func isTokenError(err error) bool {
	_, ok := errors.AsType[*TokenError](err)
	return ok
}

func isCircuitOpen(err error) bool {
	_, ok := errors.AsType[*CircuitOpenError](err)
	return ok
}

// tokenRejected reports whether a response says that the token was not accepted. Both the registry
// and npm peers use 403 for it; other servers, and Go peers, use 401.
func tokenRejected(err error) bool {
	se, ok := errors.AsType[*StatusError](err)
	return ok && (se.Code == http.StatusForbidden || se.Code == http.StatusUnauthorized)
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
