// Package linear checks that the histories of a [mit.Store] are linearizable: each call takes
// effect at one moment between its beginning and its end.
package linear

import (
	"fmt"
	"math"
	"time"

	"github.com/anishathalye/porcupine"
)

// The calls of a store.
type kind string

const (
	put               kind = "put"
	renew             kind = "renew" // a put with RenewalOf
	get               kind = "get"
	remove            kind = "delete"
	conditionalDelete kind = "conditional delete"
)

// An input is a call, for one server. Times are in nanoseconds since the start of the history.
type input struct {
	kind       kind
	server     string
	date       int64 // of a conditional delete or a renewal, in milliseconds
	ttl        int64
	address    string // of a put
	begin, end int64  // the call takes effect in between; end is forever if its result is unknown
}

// An output is the result of a call.
type output struct {
	unknown bool // the call has failed: it may have taken effect, or take effect later
	found   bool // there is an entry, or after a put, there is a new one
	entry   entry
}

// An entry has the checked fields of a server's entry. Its dates are in milliseconds.
type entry struct {
	created, updated int64
	address          string
}

// A state is that of one server.
type state struct {
	present bool
	known   bool  // the entry is known
	entry   entry // otherwise an earlier one
	// An entry expires after the first time, and has expired by the second, unless it is renewed.
	expiresAfter, expiredBy int64
}

const forever = math.MaxInt64

// model returns the sequential specification of a store, for one server.
func model(cfg Config) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return state{} },
		Step: func(s, in, out any) (bool, any) {
			return s.(state).step(in.(input), out.(output), cfg)
		},
		DescribeOperation: func(in, out any) string { return in.(input).describe(out.(output)) },
	}
}

// step reports whether a call may have a result in a state, and returns the next state.
func (s state) step(in input, out output, cfg Config) (bool, state) {
	absent := !s.present || in.end >= s.expiresAfter // possibly
	present := s.present && in.begin <= s.expiredBy  // possibly
	gone := state{entry: s.entry}
	switch {
	case out.unknown:
		return true, s.attempt(in)
	case (in.kind == put || in.kind == renew) && out.found && out.entry.address != in.address:
		return false, s
	case in.kind == put && out.found && out.entry.created == out.entry.updated:
		isNew := out.entry.created != s.entry.created || cfg.DatesRecur && out.entry != s.entry
		return absent && isNew, renewed(in, out, cfg.Slack)
	case (in.kind == put || in.kind == renew) && out.found:
		return present && s.mayBecome(out.entry) && (in.kind == put || out.entry.created == in.date), renewed(in, out, cfg.Slack)
	case in.kind == put: // it returns its entry
		return false, s
	case in.kind == renew:
		if present && (!s.known || s.entry.created != in.date) {
			return true, s
		}
		return absent, gone
	case in.kind == remove:
		return true, gone
	case in.kind == conditionalDelete && out.found:
		return present && s.mayBe(out.entry) && out.entry.updated > in.date, s.observed(out.entry)
	case in.kind == conditionalDelete:
		return absent || !s.known || s.entry.updated <= in.date, gone
	case out.found:
		return present && s.mayBe(out.entry), s.observed(out.entry)
	}
	return absent, gone
}

// attempt returns the state after a call whose result is unknown. A call without an effect is
// ordered after all others.
func (s state) attempt(in input) state {
	gone := state{entry: s.entry}
	switch in.kind {
	case put, renew:
		if in.kind == renew && (!s.present || s.known && s.entry.created != in.date) {
			return s
		}
		return state{present: true, entry: s.entry, expiresAfter: sum(in.begin, in.ttl), expiredBy: forever}
	case conditionalDelete:
		if s.known && s.entry.updated > in.date {
			return s
		}
		return gone
	case remove:
		return gone
	}
	return s
}

// mayBe reports whether the entry may be this one.
func (s state) mayBe(e entry) bool { return !s.known || s.entry == e }

// mayBecome reports whether a renewal of the entry may result in this one.
func (s state) mayBecome(e entry) bool {
	return e.updated > e.created && (!s.known || e.created == s.entry.created && e.updated > s.entry.updated)
}

func (s state) observed(e entry) state {
	s.known, s.entry = true, e
	return s
}

// renewed returns the state after a put that has succeeded.
func renewed(in input, out output, slack time.Duration) state {
	return state{
		present: true, known: true, entry: out.entry,
		expiresAfter: sum(in.begin, in.ttl), expiredBy: sum(sum(in.end, in.ttl), int64(slack)),
	}
}

func (in input) describe(out output) string {
	at := func(t int64) string {
		if t == forever {
			return "…"
		}
		return time.Duration(t).Round(10 * time.Microsecond).String()
	}
	result := "absent"
	switch {
	case out.unknown:
		result = "no result"
	case out.found:
		result = fmt.Sprintf("created %d, updated %d, at %s", out.entry.created, out.entry.updated, out.entry.address)
	}
	return fmt.Sprintf("%s to %s: %s of %s, date %d: %s", at(in.begin), at(in.end), in.kind, in.server, in.date, result)
}

// sum adds up times, at most to forever.
func sum(a, b int64) int64 {
	if a > forever-b {
		return forever
	}
	return a + b
}
