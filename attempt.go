package cluster

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster/internal/breaker"
	"github.com/mimiktech/cluster/internal/ctxutil"
	"github.com/mimiktech/cluster/internal/membership"
	"github.com/mimiktech/cluster/internal/wire"
)

// callPeer calls one peer, with a slot held, and sets its outcome. start is when the call began.
func (f *fanOut) callPeer(ctx context.Context, p *membership.Peer, o *Outcome, start time.Time) {
	*o = Outcome{Server: Server(p.Server)}
	err := f.withRetry(ctx, p, o)
	if p.Announced && errors.Is(err, errCallTooLarge) {
		f.client.confirm()
	}
	o.Duration = time.Since(start)
	f.setError(ctx, o, err)
}

// retryPeer calls a suspect once more, and adds the attempts and the time to its outcome.
func (f *fanOut) retryPeer(ctx context.Context, p *membership.Peer, o *Outcome) {
	attempts, duration, start := o.Attempts, o.Duration, time.Now()
	slots := f.group(p).slots
	if err := slots.Acquire(ctx); err != nil {
		f.setError(ctx, o, err)
	} else {
		f.callPeer(ctx, p, o, start)
		slots.Release()
		o.Attempts += attempts
	}
	o.Duration = duration + time.Since(start)
}

// setError sets the error and the kind of an outcome; err is nil if there is a result.
func (f *fanOut) setError(ctx context.Context, o *Outcome, err error) {
	o.Err, o.Kind = err, classify(err)
	if o.Kind == KindLocal && ctx.Err() == nil {
		f.client.warnLocalFault(ctx, err)
	}
	if err != nil && ctx.Err() != nil {
		o.Kind = KindCanceled
		o.Err = fmt.Errorf("peer %q: canceled: %w", excerpt(o.Server.ServerID), context.Cause(ctx))
		if errors.Is(o.Err, errNotConfirmed) {
			o.Kind = KindNotConfirmed
		}
	}
}

// withRetry makes attempts until one succeeds or the policy allows no more.
func (f *fanOut) withRetry(ctx context.Context, p *membership.Peer, o *Outcome) error {
	if p.Err != nil {
		return p.Err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	retry := f.client.retry
	if f.retry != nil {
		retry = *f.retry
	}
	rt, start := f.client.http.transports.peers, time.Now()
	if f.client.http.stalled.contains(p.Base.Host, start) {
		rt = f.client.http.transports.newConn
	}
	for attempt := 1; ; attempt++ {
		err := f.attempt(ctx, p, rt, o)
		if err == nil || ctx.Err() != nil {
			return err
		}
		again, err := f.shouldRetry(ctx, p, retry, err, attempt, time.Since(start))
		if again {
			f.group(p).slots.Released(ctx, func() { _ = ctxutil.Sleep(ctx, retry.delay()) })
		}
		if !again || ctx.Err() != nil {
			return err
		}
		rt = f.client.http.transports.newConn // a stale pooled connection may have been the cause
	}
}

// shouldRetry decides on a retry. It returns err, and adds a panic of RetryIf to it.
func (f *fanOut) shouldRetry(ctx context.Context, p *membership.Peer, retry Retry, err error, attempt int, elapsed time.Duration) (again bool, _ error) {
	var panicked error
	decide := func() { again, panicked = retry.shouldRetry(f.method, err, attempt, elapsed) }
	if retry.RetryIf == nil {
		decide()
	} else {
		f.group(p).slots.Released(ctx, decide) // the program's function may take its time
	}
	if panicked != nil {
		f.client.log.Error("no retry", zap.Error(panicked), stackOf(panicked), correlationField(ctx))
		err = fmt.Errorf("%w (and %s)", err, panicked.Error()) // not wrapped: the kind is that of err
	}
	return again, err
}

// keepReason returns why a suspect is kept; nil if its failure shows that it may be gone. A request
// on a connection that had been used before fails if the peer or a firewall has just closed it. A
// lost connection may also mean that one endpoint of the peer panics. A timeout that this process
// noticed late may have been caused by this process. So the peer is probed with a request that has
// no effect and no token.
func (f *fanOut) keepReason(ctx context.Context, p *membership.Peer, o *Outcome) (Decision, error) {
	failure, ok := errors.AsType[*UnreachableError](o.Err)
	late := errors.Is(o.Err, errLate)
	switch {
	case !ok || o.Kind == KindRefused || o.Kind == KindTimeout && !failure.Reused && !late:
		return "", nil
	case isHTTP2Reset(o.Err):
		return DecisionAlive, errors.New("it has reset the stream of the request, not the connection")
	case isGoAway(failure.Err):
		return DecisionAlive, errors.New("it accepts no requests on this connection (GOAWAY)")
	case o.Kind == KindTimeout && failure.Reused: // a probe would take as long as the next request
		return DecisionUnproven, errors.New("timed out on a connection that had been in use; the next request uses a new one")
	}
	timeout := f.client.evictor.policy.timeout() / 2
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	// A probe that has as long as a request repeats the request's timeout.
	repeats := late && timeout >= cmp.Or(f.timeout, f.client.timeout)
	for n := 1; n <= maxReusedTries; n++ {
		req := &http.Request{
			Method: http.MethodHead,
			URL:    appendRef(p.Base, &url.URL{Path: "/itResources"}),
			Header: f.client.http.header(ctx, ""),
		}
		info := RequestInfo{Target: TargetPeer, Server: o.Server, Attempt: o.Attempts + n}
		resp, err := f.client.http.do(ctx, f.client.http.transports.newConn, info, req, requestForm{})
		switch {
		case !unreachable(err) || isHTTP2Reset(err) || isGoAway(err):
			return DecisionAlive, errors.New("it responds on a new connection")
		case repeats && timedOut(err) && !resp.reused && !errors.Is(err, errLate) && !isLocalFault(err):
			return "", nil
		case ctx.Err() != nil || timedOut(err):
			return DecisionUnproven, errors.New("it has not responded on a new connection yet")
		case isLocalFault(err):
			return DecisionUnproven, err
		case !resp.reused:
			return "", nil
		}
	}
	return DecisionUnproven, errors.New("it could not be probed on a new connection")
}

// attempt sends a request, and a second one if the peer rejects the token. The token is replaced
// once per call: a peer that rejects a fresh token would reject the next one, too.
func (f *fanOut) attempt(ctx context.Context, p *membership.Peer, rt http.RoundTripper, o *Outcome) error {
	r := f.send(ctx, p, rt, o)
	if tokenRejected(r.err) && r.bearer == f.initialToken {
		if err := f.buildTemplate(ctx, r.bearer); err != nil {
			// err is not wrapped, because r.err determines the kind of the outcome.
			return fmt.Errorf("%w (and no other token: %s)", r.err, err.Error())
		}
		r = f.send(ctx, p, rt, o)
	}
	if tokenDoubtful(r.err) {
		f.client.tokens.Replace(f.tokenKey(), r.bearer)
	}
	if r.err != nil {
		return r.err
	}
	var err error
	if o.Unverified = len(r.body) == 0 && mayBeEmpty(f.method, r.status); o.Unverified {
		return nil
	}
	budget := f.bodies(p).bytes
	elements := 0
	f.client.http.long.Do(len(r.body), func() {
		o.Body, o.Data, err = readEnvelope(r.body, p, f.method, f.ref)
		elements = countElements(o.Data)
	})
	if err == nil && !f.discard && !budget.take(elementBytes*int64(elements)) {
		err = &InvalidResponseError{remote{"peer", p.ServerID}.String(), f.method, withoutQuery(appendRef(p.Base, f.ref)), errCallTooLarge}
	}
	if err != nil || f.discard {
		o.Body, o.Data = nil, nil
		budget.take(-int64(len(r.body)))
	}
	if wrong, ok := errors.AsType[*WrongServerError](err); ok {
		wrong.Got = f.client.http.quote(wrong.Got, r.bearer) // a server may echo what it is sent
	}
	return err
}

// A reply is the result of one request.
type reply struct {
	response
	bearer string // the token that was sent
	err    error
}

// send sends a request as soon as the peer's breaker allows it, and hedges it if the call says so.
func (f *fanOut) send(ctx context.Context, p *membership.Peer, rt http.RoundTripper, o *Outcome) reply {
	timeout := cmp.Or(f.timeout, f.client.timeout)
	began, err := f.admit(ctx, p, o, timeout)
	if err != nil {
		return reply{err: err}
	}
	o.Attempts++
	info := RequestInfo{Target: TargetPeer, Server: o.Server, Attempt: o.Attempts}
	var r reply
	if f.hedgeAfter > 0 {
		r = f.sendHedged(ctx, p, rt, info, o, timeout)
	} else {
		r = f.sendOnce(ctx, p, rt, info, began, timeout)
	}
	if r.status != 0 {
		p.SetAnswered()
	}
	o.StatusCode, o.header = r.status, r.header
	return r
}

// admit waits until the peer's breaker allows a request, and returns when that was. The wait is
// bounded by the timeout of the request.
func (f *fanOut) admit(ctx context.Context, p *membership.Peer, o *Outcome, timeout time.Duration) (began time.Time, err error) {
	if end, bounded := ctx.Deadline(); bounded {
		timeout = min(timeout, time.Until(end))
	}
	r := breaker.Request{Peers: len(f.all), Now: time.Now(), Timeout: timeout, Retry: o.Attempts > 0}
	for {
		wait, err := f.client.breakers.Allow(p, r)
		if err != nil {
			return time.Time{}, circuitOpen(p, err)
		}
		if wait == nil {
			return r.Now, nil
		}
		f.group(p).slots.Released(ctx, func() { f.await(ctx, p, wait, timeout) })
		if ctx.Err() != nil {
			f.client.breakers.Cancel(p, wait)
			return time.Time{}, context.Cause(ctx)
		}
		r.Now, r.Waited = time.Now(), true
	}
}

func (f *fanOut) await(ctx context.Context, p *membership.Peer, wait <-chan struct{}, timeout time.Duration) {
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case <-wait:
	case <-t.C:
		f.client.breakers.Cancel(p, wait)
	case <-ctx.Done():
	}
}

// sendHedged sends a request, and a second one if there is no response after HedgeAfter. It
// returns the first response and cancels the other request.
func (f *fanOut) sendHedged(ctx context.Context, p *membership.Peer, rt http.RoundTripper, info RequestInfo, o *Outcome, timeout time.Duration) reply {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	replies := make(chan reply, 2)
	firstDone := make(chan struct{})
	f.wg.Go(func() {
		defer close(firstDone)
		replies <- f.sendOnce(ctx, p, rt, info, time.Now(), timeout)
	})
	hedge := time.NewTimer(f.hedgeAfter)
	defer hedge.Stop()
	for inFlight := 1; ; {
		select {
		case r := <-replies:
			if inFlight--; inFlight == 0 || !unreachable(r.err) {
				return r
			}
		case <-hedge.C:
			timeout := timeout - f.hedgeAfter
			if !f.admitHedge(p, timeout) {
				continue
			}
			inFlight++
			o.Attempts++
			info := info
			info.Attempt, info.Hedge = o.Attempts, true
			f.wg.Go(func() {
				defer f.group(p).slots.Release()
				replies <- f.sendOnce(ctx, p, rt, info, time.Now(), timeout)
				<-firstDone // sendHedged has returned, and the slot of the first request may be in use again
			})
		}
	}
}

// admitHedge takes a slot if one is free and the peer's breaker allows a request right now.
func (f *fanOut) admitHedge(p *membership.Peer, timeout time.Duration) bool {
	if !f.group(p).slots.TryAcquire() {
		return false
	}
	wait, err := f.client.breakers.Allow(p, breaker.Request{Peers: len(f.all), Now: time.Now(), Timeout: timeout})
	if err == nil && wait == nil {
		return true
	}
	if wait != nil {
		f.client.breakers.Cancel(p, wait)
	}
	f.group(p).slots.Release()
	return false
}

// sendOnce sends a request that the breaker has allowed, and records its result there.
func (f *fanOut) sendOnce(ctx context.Context, p *membership.Peer, rt http.RoundTripper, info RequestInfo, began time.Time, timeout time.Duration) (r reply) {
	defer func() { f.record(ctx, p, r.err, began, timeout) }()
	f.mu.Lock()
	bearer, template, form := f.bearer, f.template, f.bodies(p).form
	var reqCtx context.Context
	if f.hedgeAfter == 0 {
		reqCtx = f.deadlines.context(ctx, began, timeout)
	}
	f.mu.Unlock()
	if reqCtx == nil { // ctx is that of this peer alone, so that its deadline cannot be shared
		var cancel context.CancelFunc
		reqCtx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	req := *template
	req.URL = appendRef(p.Base, f.ref)
	req.Host = req.URL.Host
	resp, err := f.client.http.do(reqCtx, rt, info, &req, form)
	if resp.reused && timedOut(err) {
		f.client.http.stalled.add(p.Base.Host, time.Now())
	}
	return reply{resp, bearer, err}
}

// record tells the peer's breaker how a request ended.
func (f *fanOut) record(ctx context.Context, p *membership.Peer, err error, began time.Time, timeout time.Duration) {
	result := breaker.Answered
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded): // the call's own deadline was the timeout
		timeout = time.Since(began)
		if timedOut(err) {
			result = breaker.TimedOut
		}
	case err != nil && ctx.Err() != nil || isLocalFault(err):
		result = breaker.Abandoned
	case timedOut(err):
		result = breaker.TimedOut
	}
	if change := f.client.breakers.Record(p, result, began, timeout); change != breaker.Unchanged {
		f.client.trace.breakerChanged(ctx, Server(p.Server), change == breaker.Opened)
	}
}

// appendRef appends a path and a query to a base URL.
func appendRef(base, ref *url.URL) *url.URL {
	u := *base
	if u.RawPath != "" || ref.RawPath != "" {
		u.RawPath = u.EscapedPath() + ref.EscapedPath()
	}
	u.Path += ref.Path
	u.RawQuery = ref.RawQuery
	return &u
}

// mayBeEmpty reports whether a response has no envelope, because HTTP does not allow it a body.
func mayBeEmpty(method string, status int) bool {
	return method == http.MethodHead || status == http.StatusNoContent || status == http.StatusResetContent
}

// readEnvelope returns the body and the data of a peer's response to a request for ref. A response
// from another server is an error. It does not decode the data, which may be large.
func readEnvelope(response []byte, p *membership.Peer, method string, ref *url.URL) (body, data json.RawMessage, err error) {
	invalidResponse := func(err error) error {
		return &InvalidResponseError{remote{"peer", p.ServerID}.String(), method, withoutQuery(appendRef(p.Base, ref)), err}
	}
	if !json.Valid(response) {
		return nil, nil, invalidResponse(json.Unmarshal(response, new(any)))
	}
	var serverID []byte // in JSON
	for name, value := range wire.Each(bytes.TrimSpace(response)) {
		switch _, spelled := wire.MatchField(name, "data", "server"); spelled {
		case "data":
			data = value
		case "server":
			serverID = nil
			for name, value := range wire.Each(value) {
				if _, spelled := wire.MatchField(name, "serverId"); spelled == "serverId" {
					serverID = value
				}
			}
		}
	}
	if wire.EqualString(serverID, p.ServerID) {
		return response, data, nil
	}
	got, _ := wire.DecodeString(serverID, "")
	if got == "" {
		return nil, nil, invalidResponse(errors.New("it does not say which server it is from"))
	}
	return nil, nil, &WrongServerError{URL: withoutQuery(appendRef(p.Base, ref)), Want: p.ServerID, Got: got}
}
