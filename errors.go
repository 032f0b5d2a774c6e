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

// What the package decides, for errors.Is.
var (
	// ErrInvalidRequest is a [Request] that cannot be sent. Nobody was called.
	ErrInvalidRequest = errors.New("cluster: invalid request")
	// ErrManagementOff refuses a fan-out: Config.Management is not set.
	ErrManagementOff = errors.New("cluster: management is off")
	// ErrNotRegistered is why a node is an orphan that has not registered yet or has left, and
	// what a [Cluster.Register] returns that [Cluster.UnRegister] ended.
	ErrNotRegistered = errors.New("cluster: not registered")
	// ErrClosed is what every call returns that [Cluster.Close] ended or that came after it.
	ErrClosed = errors.New("cluster: closed")
	// ErrNotAllowed refuses to call an address that the [PeerPolicy] does not allow.
	ErrNotAllowed = errors.New("address not allowed")
	// ErrResponseTooLarge is inside the [InvalidResponseError] of an answer beyond Config.MaxResponseBytes.
	ErrResponseTooLarge = errors.New("answer too large")
	// ErrEnoughResults is why a peer was not asked, or its answer not waited for: [Request].MinResults others
	// have answered.
	ErrEnoughResults = errors.New("enough peers have answered")
)

// A StatusError is an answer that is no 2xx. Given to [Cluster.ReplyError] it is the answer of
// an endpoint: Code and Message are all that needs.
type StatusError struct {
	Remote  string // who answered: "mST", "mIT" or `peer "…"`
	Method  string
	URL     string // without its query
	Code    int
	Message string          // in the answer's own words, if it had any
	Info    json.RawMessage // the answer's "info", nil if it had none
}

func (e *StatusError) Error() string {
	text := strings.TrimSuffix(fmt.Sprintf("%d %s", e.Code, http.StatusText(e.Code)), " ") // there are codes without a text
	if e.Remote != "" {
		text = fmt.Sprintf("%s answered %s to %s %s", e.Remote, text, e.Method, e.URL)
	}
	if e.Message != "" {
		text += ": " + e.Message
	}
	return text
}

// An UnreachableError is a request that got no answer: its address could not be dialled, the
// connection broke, or the time was up.
type UnreachableError struct {
	Remote string
	Method string
	URL    string // without its query
	Err    error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("%s cannot be reached by %s %s: %v", e.Remote, e.Method, e.URL, e.Err)
}

// Unwrap gives the cause, such as context.DeadlineExceeded or syscall.ECONNREFUSED.
func (e *UnreachableError) Unwrap() error { return e.Err }

// An InvalidResponseError is an answer that came but cannot be used: it is not what the protocol has,
// it is too large ([ErrResponseTooLarge]), or it broke off.
type InvalidResponseError struct {
	Remote string
	Method string
	URL    string // without its query
	Err    error
}

func (e *InvalidResponseError) Error() string {
	return fmt.Sprintf("%s gave an unusable answer to %s %s: %v", e.Remote, e.Method, e.URL, e.Err)
}

// Unwrap gives the cause.
func (e *InvalidResponseError) Unwrap() error { return e.Err }

// A WrongServerError is an answer by another server than the one meant: its address has been
// taken over.
type WrongServerError struct {
	URL       string // without its query
	Want, Got string // server ids
}

func (e *WrongServerError) Error() string {
	return fmt.Sprintf("peer %q expected at %s, but server %q answered", e.Want, e.URL, e.Got)
}

// A CircuitOpenError is a peer that was not asked, because it hangs: it has let requests time out, and
// said nothing since. It is asked again after a while, and at once when it registers anew. Or it is one
// that was busy, and silent for as long as the call waited for its turn.
type CircuitOpenError struct {
	ServerID  string        // its id
	SilentFor time.Duration // how long it has been silent
	RetryIn   time.Duration // when it is asked again; 0 while somebody else is asking
}

func (e *CircuitOpenError) Error() string {
	when := "somebody is asking it again"
	if e.RetryIn > 0 {
		when = fmt.Sprintf("it will be asked again in %v", e.RetryIn.Round(time.Millisecond))
	}
	return fmt.Sprintf("peer %q was not asked: it hangs, silent for %v; %s", e.ServerID, e.SilentFor.Round(time.Millisecond), when)
}

// hanging is err, of a peer's breaker, as a *CircuitOpenError.
func circuitOpen(p *membership.Peer, err error) error {
	if open, ok := errors.AsType[*breaker.OpenError](err); ok {
		return &CircuitOpenError{p.ServerID, open.Silent, open.RetryIn}
	}
	return err
}

// A Kind says how a peer failed.
type Kind string

// The kinds of failure. Only the first three can make a peer suspect, and only if it gave no answer
// at all: whoever answers is alive, also if the answer then stops half-way.
const (
	KindOK             Kind = "ok"              // a result
	KindRefused        Kind = "refused"         // its address could not be dialled
	KindConnectionLost Kind = "connection_lost" // the connection broke before an answer
	KindTimeout        Kind = "timeout"         // no answer in time, or one that stopped half-way
	KindTLS            Kind = "tls"             // it answers, but TLS does not hold: its certificate, or that it speaks no TLS
	KindStatus         Kind = "status"          // an answer that is no 2xx: see StatusError
	KindWrongServer    Kind = "wrong_server"    // see WrongServerError
	KindMalformed      Kind = "malformed"       // an answer that is not the envelope that peers answer, or that broke off
	KindTooLarge       Kind = "too_large"       // an answer beyond Config.MaxResponseBytes
	KindCanceled       Kind = "canceled"        // the call ended before the peer answered; see ErrEnoughResults
	KindCircuitOpen    Kind = "circuit_open"    // it was found to hang, so nothing was sent: see CircuitOpenError
	KindNotAllowed     Kind = "not_allowed"     // its address is none that may be called; nothing was sent
	KindNoToken        Kind = "no_token"        // no token for it could be had; nothing was sent
	KindInvalid        Kind = "invalid"         // the request itself is wrong; nobody was called
)

// kindOf sorts the error of one peer.
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

// untrusted tells whether there was somebody, with whom no TLS connection could be made.
func isTLSError(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	if _, ok := errors.AsType[tls.AlertError](err); ok {
		return true
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" { // an alert that it sent
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

// unreachable tells whether the error leaves open that the peer is alive: no answer came.
func unreachable(err error) bool {
	_, ok := errors.AsType[*UnreachableError](err)
	return ok && !errors.Is(err, ErrNotAllowed) && !isTLSError(err)
}

// blames tells whether the error names who failed, and at what, already.
func namesRemote(err error) bool {
	_, status := errors.AsType[*StatusError](err)
	_, answer := errors.AsType[*InvalidResponseError](err)
	_, silent := errors.AsType[*UnreachableError](err)
	return status || answer || silent
}
