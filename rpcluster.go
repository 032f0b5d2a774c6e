package cluster

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"sync"
	"time"

	"github.com/mimiktech/cluster/internal/breaker"
	"github.com/mimiktech/cluster/internal/fanout"
	"github.com/mimiktech/cluster/internal/membership"
)

// RPCluster sends req to every peer in the view, or to those that it picks, and waits for all of
// them, or for as many as it needs. The error is about the call: management is off
// ([ErrManagementOff]), or req is wrong ([ErrInvalidRequest]), and then nobody was called. What
// happens to a peer is in its [Outcome], also when ctx ends early. A node without peers gets an
// empty Response at once. The node does not ask itself: what it has of its own, the caller adds.
//
// A peer that cannot be reached may be evicted; see [Eviction].
func (c *Cluster) RPCluster(ctx context.Context, req Request) (*Response, error) {
	call, err := c.prepare(req)
	if err != nil {
		return nil, err
	}
	return c.collect(ensureCorrelationID(ctx), call, c.snapshot()), nil
}

// Stream sends req like RPCluster and yields each outcome as it arrives; those of peers that
// cannot be reached come last, once it is decided whether they are evicted. Breaking off ends
// the requests under way. Where RPCluster would return an error, the one Outcome has it as its
// Err, and no server.
func (c *Cluster) Stream(ctx context.Context, req Request) iter.Seq[Outcome] {
	return func(yield func(Outcome) bool) {
		call, err := c.prepare(req)
		if err != nil {
			yield(Outcome{Err: err, Kind: KindInvalid})
			return
		}
		f := c.newFanOut(call, c.snapshot())
		for i := range f.run(ensureCorrelationID(ctx)) {
			if !yield(f.outcomes[i]) {
				return
			}
		}
	}
}

// gather is a fan-out, waited for.
func (c *Cluster) collect(ctx context.Context, call *preparedRequest, view membership.View) *Response {
	f := c.newFanOut(call, view)
	f.waitForAll = f.minResults == 0
	for range f.run(ctx) { // all of them
	}
	return newResponse(f.outcomes)
}

// A fan is one call on its way to the peers of a view.
type fanOut struct {
	*preparedRequest
	c            *Cluster
	peers        []*membership.Peer // to be asked; this node is none
	unasked      int                // the peers that are not
	outcomes     []Outcome          // of the peers, in their order; each is written before it is yielded
	waitForAll   bool               // nobody looks at an outcome before all are there
	done         chan int           // places of peers that have answered, unless whole; nobody waits to deliver
	start        time.Time
	initialToken string // the token that the call began with

	wg    sync.WaitGroup
	slots *fanout.Call

	mu        sync.Mutex // guards the fields below
	bearer    string
	template  *http.Request // what the requests have in common; replaced whole, never edited
	deadlines sharedDeadline
}

func (c *Cluster) newFanOut(call *preparedRequest, view membership.View) *fanOut {
	peers := view.Without(c.cfg.ID).Peers()
	f := &fanOut{preparedRequest: call, c: c, peers: peers}
	if call.filter != nil {
		f.peers = nil // what is cut out of the view is not ours to write to
		for _, p := range peers {
			if call.filter(Server(p.Server)) {
				f.peers = append(f.peers, p)
			}
		}
	}
	f.unasked = len(peers) - len(f.peers)
	f.outcomes = make([]Outcome, len(f.peers))
	f.slots = c.scheduler.NewCall(len(f.peers))
	return f
}

// run asks every peer, and yields their places as they answer. Whoever is suspect is judged
// when all others have answered.
func (f *fanOut) run(ctx context.Context) iter.Seq[int] {
	return func(yield func(int) bool) {
		if len(f.peers) == 0 {
			return
		}
		ctx, cancel := mergeCancel(ctx, f.c.ctx)
		asking, enough := ctx, context.CancelCauseFunc(func(error) {})
		if f.minResults > 0 {
			asking, enough = context.WithCancelCause(ctx)
		}
		defer f.wg.Wait()
		defer cancel()
		defer enough(nil)

		if f.waitForAll { // and need not be woken for each outcome
			f.askAll(asking)
			f.wg.Wait()
		} else {
			f.done = make(chan int, len(f.peers))
			f.wg.Go(func() { f.askAll(asking) })
		}
		var (
			results  int
			suspects []int
		)
		for i := range f.peers {
			if !f.waitForAll {
				i = <-f.done
			}
			f.c.trace.peerDone(f.outcomes[i])
			if f.outcomes[i].Err == nil {
				if results++; results == f.minResults {
					enough(ErrEnoughResults)
				}
			}
			if f.isSuspect(&f.outcomes[i]) {
				suspects = append(suspects, i)
			} else if !yield(i) {
				return
			}
		}
		f.evictSuspects(ctx, suspects, results)
		for _, i := range suspects {
			if !yield(i) {
				return
			}
		}
	}
}

// askAll asks the peers, as many at once as the scheduler allows.
func (f *fanOut) askAll(ctx context.Context) {
	f.start = time.Now()
	skip := func(i int, err error) {
		f.outcomes[i] = Outcome{Server: Server(f.peers[i].Server), Duration: time.Since(f.start)}
		f.setError(ctx, &f.outcomes[i], err)
		f.deliver(i)
	}
	if err := f.buildTemplate(ctx, ""); err != nil {
		for i := range f.peers {
			skip(i, err)
		}
		return
	}
	f.initialToken = f.bearer
	f.slots.Run(ctx, func(i int) {
		f.callPeer(ctx, f.peers[i], &f.outcomes[i], f.start)
		f.deliver(i)
	}, skip)
}

// tell says that there is an outcome.
func (f *fanOut) deliver(i int) {
	if !f.waitForAll {
		f.done <- i
	}
}

// authorize makes the template, with a token other than the refused one.
func (f *fanOut) buildTemplate(ctx context.Context, refused string) error {
	key := f.key
	key.Audience, key.Cluster = f.c.cfg.PeerAudience, true
	if refused != "" {
		f.c.tokens.Drop(key, refused)
	}
	bearer, err := f.c.tokens.Token(ctx, key)
	if err != nil {
		return err
	}
	header := f.c.header(ctx, bearer)
	if f.body != nil {
		header["Content-Type"] = []string{"application/json"}
	}
	for name, values := range f.header {
		switch name = http.CanonicalHeaderKey(name); name {
		case "Authorization", "User-Agent", "X-Correlation-Id":
		case "Accept-Encoding", "Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade":
			// Of one connection only, and of another: this is the header of a request passed on.
		default:
			header[name] = values
		}
	}
	template := &http.Request{Method: f.method, Header: header, ContentLength: int64(len(f.body))}
	if f.body != nil {
		template.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(f.body)), nil }
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.bearer, f.template = bearer, template
	return nil
}

// ask asks one peer, which has been due to be asked since start, repeating as the policy says. It
// holds a place.
func (f *fanOut) callPeer(ctx context.Context, p *membership.Peer, o *Outcome, start time.Time) {
	*o = Outcome{Server: Server(p.Server)}
	err := f.withRetry(ctx, p, o)
	o.Duration = time.Since(start)
	f.setError(ctx, o, err)
}

// fail puts down why there is no result; err is nil if there is one.
func (f *fanOut) setError(ctx context.Context, o *Outcome, err error) {
	o.Err, o.Kind = err, classify(err)
	if err != nil && ctx.Err() != nil {
		o.Kind = KindCanceled
		o.Err = fmt.Errorf("peer %q: cancelled: %w", o.Server.ServerID, context.Cause(ctx))
	}
}

func (f *fanOut) withRetry(ctx context.Context, p *membership.Peer, o *Outcome) error {
	if p.Err != nil {
		return p.Err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	retry := f.c.retry
	if f.retry != nil {
		retry = *f.retry
	}
	road, start := f.c.transports.peers, time.Now()
	for attempt := 1; ; attempt++ {
		err := f.attempt(ctx, p, road, o)
		if err == nil || ctx.Err() != nil || !retry.shouldRetry(f.method, err, attempt, time.Since(start)) {
			return err
		}
		f.slots.Released(ctx, func() { _ = f.c.pause(ctx, retry.delay()) })
		if ctx.Err() != nil {
			return err
		}
		road = f.c.transports.newConn // the pooled connection may be what was wrong
	}
}

// attempt asks once, or twice if the token of the first request is refused. It is replaced once a
// call: who refuses a new one as well will go on to, and mST must not pay for it.
func (f *fanOut) attempt(ctx context.Context, p *membership.Peer, road http.RoundTripper, o *Outcome) error {
	a := f.admit(ctx, p, road, o)
	if tokenRefused(a.err) && a.bearer == f.initialToken {
		if err := f.buildTemplate(ctx, a.bearer); err != nil {
			return fmt.Errorf("%w (and no other token: %s)", a.err, err.Error()) // not wrapped: the peer did answer
		}
		a = f.admit(ctx, p, road, o)
	}
	if a.err != nil {
		return a.err
	}
	var err error
	o.Body, o.Data, err = readEnvelope(a.body, p, f.method)
	if wrong, ok := errors.AsType[*WrongServerError](err); ok {
		wrong.Got = f.c.redact(wrong.Got, a.bearer) // there are servers that repeat what they are sent
	}
	return err
}

// An answer is what came of one request.
type reply struct {
	bearer string // the token that went with it
	body   []byte
	err    error
}

// exchange sends one request if the peer's breaker lets it, or two if the first is hedged.
func (f *fanOut) admit(ctx context.Context, p *membership.Peer, road http.RoundTripper, o *Outcome) reply {
	timeout := cmp.Or(f.timeout, f.c.cfg.RequestTimeout)
	left := timeout
	if end, bounded := ctx.Deadline(); bounded {
		left = min(timeout, time.Until(end))
	}
	now := time.Now()
	for waited := false; ; waited, now = true, time.Now() {
		turn, err := f.c.breakers.Allow(p, breaker.Request{Peers: len(f.peers) + f.unasked, Now: now, Timeout: left, Retry: o.Attempts > 0, Waited: waited})
		if err != nil {
			return reply{err: circuitOpen(p, err)}
		}
		if turn == nil {
			break
		}
		f.slots.Released(ctx, func() {
			late := time.NewTimer(left)
			defer late.Stop()
			select {
			case <-turn:
			case <-late.C:
				f.c.breakers.Cancel(p, turn)
			case <-ctx.Done():
			}
		})
		if ctx.Err() != nil {
			f.c.breakers.Cancel(p, turn)
			return reply{err: context.Cause(ctx)}
		}
	}
	o.Attempts++
	if f.hedgeAfter > 0 {
		return f.sendHedged(ctx, p, road, o, timeout)
	}
	return f.sendOnce(ctx, p, road, now, timeout)
}

// race sends a request, and another if the first is slow.
func (f *fanOut) sendHedged(ctx context.Context, p *membership.Peer, road http.RoundTripper, o *Outcome, timeout time.Duration) reply {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // the slower one
	answers := make(chan reply, 2)
	ended := make(chan struct{})
	f.wg.Go(func() {
		defer close(ended)
		answers <- f.sendOnce(ctx, p, road, time.Now(), timeout)
	})
	slow := time.NewTimer(f.hedgeAfter)
	defer slow.Stop()
	for underway := 1; ; {
		select {
		case a := <-answers:
			if underway--; underway == 0 || !unreachable(a.err) {
				return a
			}
		case <-slow.C:
			if !f.slots.TryAcquire() {
				continue
			}
			if turn, err := f.c.breakers.Allow(p, breaker.Request{Peers: len(f.peers) + f.unasked, Now: time.Now(), Timeout: timeout - f.hedgeAfter}); turn != nil || err != nil {
				if turn != nil {
					f.c.breakers.Cancel(p, turn)
				}
				f.slots.Release()
				continue
			}
			underway++
			o.Attempts++
			f.wg.Go(func() {
				defer f.slots.Release()
				answers <- f.sendOnce(ctx, p, road, time.Now(), timeout-f.hedgeAfter)
				<-ended // the place that the two had at first may be in use again
			})
		}
	}
}

// send sends one request, and tells the breaker what came of it.
func (f *fanOut) sendOnce(ctx context.Context, p *membership.Peer, road http.RoundTripper, began time.Time, timeout time.Duration) (a reply) {
	defer func() {
		given, gaveUp := timeout, ctx.Err() != nil
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			given, gaveUp = time.Since(began), false
		}
		result := breaker.Answered
		switch {
		case a.err != nil && gaveUp:
			result = breaker.Abandoned
		case timedOut(a.err):
			result = breaker.TimedOut
		}
		f.c.breakers.Record(p, result, began, given)
	}()

	f.mu.Lock()
	bearer, template := f.bearer, f.template
	var bounded context.Context
	if f.hedgeAfter == 0 {
		bounded = f.deadlines.context(ctx, began, timeout)
	}
	f.mu.Unlock()
	if bounded == nil { // ctx is of this peer alone
		var cancel context.CancelFunc
		bounded, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}

	req := template.WithContext(bounded)
	u := *p.Base
	if u.RawPath != "" || f.ref.RawPath != "" {
		u.RawPath = u.EscapedPath() + f.ref.EscapedPath()
	}
	u.Path += f.ref.Path
	u.RawQuery = f.ref.RawQuery
	req.URL, req.Host = &u, u.Host
	if f.body != nil {
		req.Body, _ = req.GetBody() // it has no error
	}
	body, err := f.c.send(road, remote{"peer", p.ServerID}, req)
	return reply{bearer, body, err}
}

// A deadline gives requests that begin at about the same moment one context, for a timer of its
// own would cost each of them more than the rest of what is done for it here. Nobody is given
// less time than he is due but for a fiftieth of it, and 5 ms at most.
type sharedDeadline struct {
	ctx        context.Context    //nolint:containedctx // of one call, within which it begins and ends
	cancel     context.CancelFunc // not needed: what it would release goes with the call
	validUntil time.Time          // when the next one is due
}

func (d *sharedDeadline) context(call context.Context, now time.Time, timeout time.Duration) context.Context {
	if d.ctx == nil || now.After(d.validUntil) {
		d.ctx, d.cancel = context.WithDeadline(call, now.Add(timeout))
		d.validUntil = now.Add(min(timeout/50, 5*time.Millisecond))
	}
	return d.ctx
}
