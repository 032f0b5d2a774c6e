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
	"github.com/mimiktech/cluster/internal/roster"
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
	// ErrTooLarge is inside the [AnswerError] of an answer beyond Config.MaxAnswer.
	ErrTooLarge = errors.New("answer too large")
	// ErrEnough is why a peer was not asked, or its answer not waited for: [Request].Need others
	// have answered.
	ErrEnough = errors.New("enough peers have answered")
)

// A StatusError is an answer that is no 2xx. Given to [Cluster.ReplyError] it is the answer of
// an endpoint: Code and Message are all that needs.
type StatusError struct {
	Party   string // who answered: "mST", "mIT" or `peer "…"`
	Method  string
	URL     string // without its query
	Code    int
	Message string          // in the answer's own words, if it had any
	Info    json.RawMessage // the answer's "info", nil if it had none
}

func (e *StatusError) Error() string {
	text := strings.TrimSuffix(fmt.Sprintf("%d %s", e.Code, http.StatusText(e.Code)), " ") // there are codes without a text
	if e.Party != "" {
		text = fmt.Sprintf("%s answered %s to %s %s", e.Party, text, e.Method, e.URL)
	}
	if e.Message != "" {
		text += ": " + e.Message
	}
	return text
}

// An UnreachableError is a request that got no answer: its address could not be dialled, the
// connection broke, or the time was up.
type UnreachableError struct {
	Party  string
	Method string
	URL    string // without its query
	Err    error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("%s cannot be reached by %s %s: %v", e.Party, e.Method, e.URL, e.Err)
}

// Unwrap gives the cause, such as context.DeadlineExceeded or syscall.ECONNREFUSED.
func (e *UnreachableError) Unwrap() error { return e.Err }

// An AnswerError is an answer that came but cannot be used: it is not what the protocol has,
// it is too large ([ErrTooLarge]), or it broke off.
type AnswerError struct {
	Party  string
	Method string
	URL    string // without its query
	Err    error
}

func (e *AnswerError) Error() string {
	return fmt.Sprintf("%s gave an unusable answer to %s %s: %v", e.Party, e.Method, e.URL, e.Err)
}

// Unwrap gives the cause.
func (e *AnswerError) Unwrap() error { return e.Err }

// A WrongServerError is an answer by another server than the one meant: its address has been
// taken over.
type WrongServerError struct {
	URL       string // without its query
	Want, Got string // server ids
}

func (e *WrongServerError) Error() string {
	return fmt.Sprintf("peer %q expected at %s, but server %q answered", e.Want, e.URL, e.Got)
}

// A HangingError is a peer that was not asked, because it hangs: it has let requests time out, and
// said nothing since. It is asked again after a while, and at once when it registers anew. Or it is one
// that was busy, and silent for as long as the call waited for its turn.
type HangingError struct {
	Server string        // its id
	For    time.Duration // how long it has been silent
	Retry  time.Duration // when it is asked again; 0 while somebody else is asking
}

func (e *HangingError) Error() string {
	when := "somebody is asking it again"
	if e.Retry > 0 {
		when = fmt.Sprintf("it will be asked again in %v", e.Retry.Round(time.Millisecond))
	}
	return fmt.Sprintf("peer %q was not asked: it hangs, silent for %v; %s", e.Server, e.For.Round(time.Millisecond), when)
}

// hanging is err, of a peer's breaker, as a *HangingError.
func hanging(p *roster.Peer, err error) error {
	if open, ok := errors.AsType[*breaker.OpenError](err); ok {
		return &HangingError{p.ServerID, open.Silent, open.RetryIn}
	}
	return err
}

// A Kind says how a peer failed.
type Kind string

// The kinds of failure. Only the first three can make a peer suspect, and only if it gave no answer
// at all: whoever answers is alive, also if the answer then stops half-way.
const (
	KindRefused     Kind = "refused"      // its address could not be dialled
	KindBroken      Kind = "broken"       // the connection broke before an answer
	KindTimeout     Kind = "timeout"      // no answer in time, or one that stopped half-way
	KindUntrusted   Kind = "untrusted"    // it answers, but TLS does not hold: its certificate, or that it speaks no TLS
	KindStatus      Kind = "status"       // an answer that is no 2xx: see StatusError
	KindWrongServer Kind = "wrong server" // see WrongServerError
	KindMalformed   Kind = "malformed"    // an answer that is not the envelope that peers answer, or that broke off
	KindTooLarge    Kind = "too large"    // an answer beyond Config.MaxAnswer
	KindCancelled   Kind = "cancelled"    // the call ended before the peer answered; see ErrEnough
	KindHanging     Kind = "hanging"      // it was found to hang, so nothing was sent: see HangingError
	KindNotAllowed  Kind = "not allowed"  // its address is none that may be called; nothing was sent
	KindNoToken     Kind = "no token"     // no token for it could be had; nothing was sent
	KindInvalid     Kind = "invalid"      // the request itself is wrong; nobody was called
)

// kindOf sorts the error of one peer.
func kindOf(err error) Kind {
	switch {
	case err == nil:
		return ""
	case isTokenError(err):
		return KindNoToken
	case errors.Is(err, ErrNotAllowed):
		return KindNotAllowed
	case errors.Is(err, ErrTooLarge):
		return KindTooLarge
	case isHanging(err):
		return KindHanging
	case errors.Is(err, context.DeadlineExceeded) || timedOut(err):
		return KindTimeout
	}
	if _, ok := errors.AsType[*StatusError](err); ok {
		return KindStatus
	}
	if _, ok := errors.AsType[*WrongServerError](err); ok {
		return KindWrongServer
	}
	if _, ok := errors.AsType[*AnswerError](err); ok {
		return KindMalformed
	}
	if untrusted(err) {
		return KindUntrusted
	}
	if neverSent(err) {
		return KindRefused
	}
	return KindBroken
}

// untrusted tells whether there was somebody, with whom no TLS connection could be made.
func untrusted(err error) bool {
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

func isHanging(err error) bool {
	_, ok := errors.AsType[*HangingError](err)
	return ok
}

// unreachable tells whether the error leaves open that the peer is alive: no answer came.
func unreachable(err error) bool {
	_, ok := errors.AsType[*UnreachableError](err)
	return ok && !errors.Is(err, ErrNotAllowed) && !untrusted(err)
}

// blames tells whether the error names who failed, and at what, already.
func blames(err error) bool {
	_, status := errors.AsType[*StatusError](err)
	_, answer := errors.AsType[*AnswerError](err)
	_, silent := errors.AsType[*UnreachableError](err)
	return status || answer || silent
}
