package cluster

import (
	"cmp"
	"errors"
	"net"
	"net/http"
	"time"
)

// A Retry says how a request to a peer is repeated. The zero Retry repeats once, after 10 ms
// and on a connection of its own, what [RetrySafe] says is safe to repeat: a peer that is gone
// costs its callers milliseconds, and a pooled connection that a restart broke costs nobody
// an answer.
type Retry struct {
	// Max is how often a request is repeated, at most; 1 by default, never if negative.
	MaxRetries int
	// Delay is the pause before each; 10 ms by default.
	Delay time.Duration
	// Within bounds all attempts together: none begins later. Unbounded by default, beyond
	// what Max attempts of RequestTimeout each may take.
	MaxElapsed time.Duration
	// When says whether a request of that method which failed like that is worth another
	// attempt; [RetrySafe] by default.
	RetryIf func(method string, err error) bool
}

// RetrySafe repeats what cannot have been executed, or may be executed twice: a request whose
// address could not be dialled, and one of an idempotent method whose connection broke without
// an answer. A timeout is never repeated, for a hanging peer must cost one timeout only; and
// an answer is an answer, whatever its status.
func RetrySafe(method string, err error) bool {
	if !unreachable(err) || timedOut(err) {
		return false
	}
	return dialFailed(err) || idempotent(method)
}

// RetryNPM is the policy of the npm module: any method, on no answer, 5xx and 429,
// twice, one second apart, within 50 s. It may execute a request three times over, and a dead
// peer costs two seconds.
func RetryNPM() Retry {
	return Retry{MaxRetries: 2, Delay: time.Second, MaxElapsed: 50 * time.Second, RetryIf: func(_ string, err error) bool {
		if se, ok := errors.AsType[*StatusError](err); ok {
			return se.Code >= 500 || se.Code == http.StatusTooManyRequests
		}
		return unreachable(err)
	}}
}

// again tells whether to repeat a request that failed with err on its attempt'th attempt, spent
// after the first began.
func (r Retry) shouldRetry(method string, err error, attempt int, spent time.Duration) bool {
	if attempt > cmp.Or(r.MaxRetries, 1) || r.MaxElapsed > 0 && spent+r.delay() > r.MaxElapsed {
		return false
	}
	if r.RetryIf == nil {
		return RetrySafe(method, err)
	}
	return r.RetryIf(method, err)
}

func (r Retry) delay() time.Duration { return cmp.Or(r.Delay, 10*time.Millisecond) }

func idempotent(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPut, http.MethodDelete:
		return true
	}
	return false
}

// neverSent tells whether the request failed before there was a connection to send it on.
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
