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
	"sync/atomic"
	"time"

	"github.com/mimiktech/cluster/internal/roster"
)

// RPCluster sends req to every peer in the view and waits for all of them. The error is about
// the call: management is off ([ErrManagementOff]), or req is wrong ([ErrInvalidRequest]), and
// then nobody was called. What happens to a peer is in its [Outcome], also when ctx ends early. A node without
// peers gets an empty Response at once. The node does not ask itself: what it has of its own, the
// caller adds.
//
// A peer that cannot be reached may be evicted; see [Eviction].
func (c *Cluster) RPCluster(ctx context.Context, req Request) (*Response, error) {
	call, err := c.prepare(req)
	if err != nil {
		return nil, err
	}
	return c.gather(correlated(ctx), call, c.roster()), nil
}

// Stream sends req to every peer and yields each outcome as it arrives; those of peers that
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
		f := c.fan(call, c.roster())
		for i := range f.run(correlated(ctx)) {
			if !yield(f.outcomes[i]) {
				return
			}
		}
	}
}

// gather is a fan-out, waited for.
func (c *Cluster) gather(ctx context.Context, call *call, view roster.Roster) *Response {
	f := c.fan(call, view)
	for range f.run(ctx) { // all of them
	}
	return newResponse(f.outcomes)
}

// A fan is one call on its way to all peers of a view.
type fan struct {
	*call
	c        *Cluster
	peers    []*roster.Peer // this node is none
	outcomes []Outcome      // of the peers, in their order; each is written before it is yielded
	first    string         // the token that the call began with

	mu       sync.Mutex // guards the fields below
	bearer   string
	template *http.Request // what the requests have in common; replaced whole, never edited
	due      deadline
}

func (c *Cluster) fan(call *call, view roster.Roster) *fan {
	peers := view.Without(c.cfg.ID).Peers()
	return &fan{call: call, c: c, peers: peers, outcomes: make([]Outcome, len(peers))}
}

// run asks every peer, and yields their places as they answer. Whoever is suspect is judged
// when all others have answered.
func (f *fan) run(ctx context.Context) iter.Seq[int] {
	return func(yield func(int) bool) {
		if len(f.peers) == 0 {
			return
		}
		ctx, cancel := within(ctx, f.c.life)
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()

		answered := make(chan int, len(f.peers)) // nobody waits to deliver
		if err := f.authorize(ctx, ""); err != nil {
			for i, p := range f.peers {
				f.outcomes[i] = Outcome{Server: Server(p.Server), Err: err, Kind: kindOf(err)}
				if ctx.Err() != nil {
					f.outcomes[i].Kind = KindCancelled
				}
				answered <- i
			}
		} else {
			f.first = f.bearer
			start := time.Now()
			var next atomic.Int64
			for range min(len(f.peers), f.c.cfg.MaxInFlight) {
				wg.Go(func() {
					for i := next.Add(1) - 1; i < int64(len(f.peers)); i = next.Add(1) - 1 {
						f.ask(ctx, f.peers[i], &f.outcomes[i], start)
						answered <- int(i)
					}
				})
			}
		}
		var suspects []int
		for range f.peers {
			i := <-answered
			f.c.trace.asked(f.outcomes[i])
			if f.suspicious(&f.outcomes[i]) {
				suspects = append(suspects, i)
			} else if !yield(i) {
				return
			}
		}
		f.judge(ctx, suspects)
		for _, i := range suspects {
			if !yield(i) {
				return
			}
		}
	}
}

// authorize makes the template, with a token other than the refused one.
func (f *fan) authorize(ctx context.Context, refused string) error {
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

// ask asks one peer, which has been due to be asked since start, repeating as the policy says.
func (f *fan) ask(ctx context.Context, p *roster.Peer, o *Outcome, start time.Time) {
	*o = Outcome{Server: Server(p.Server)}
	o.Err = f.persist(ctx, p, o)
	o.Duration = time.Since(start)
	switch {
	case o.Err == nil:
	case ctx.Err() != nil:
		o.Kind = KindCancelled
		o.Err = fmt.Errorf("peer %q: cancelled: %w", p.ServerID, context.Cause(ctx))
	default:
		o.Kind = kindOf(o.Err)
	}
}

func (f *fan) persist(ctx context.Context, p *roster.Peer, o *Outcome) error {
	if p.Err != nil {
		return p.Err
	}
	if err := f.c.inFlight.Acquire(ctx, 1); err != nil {
		return err
	}
	defer f.c.inFlight.Release(1)

	retry := f.c.retry
	if f.retry != nil {
		retry = *f.retry
	}
	road, start := f.c.roads.peers, time.Now()
	for attempt := 1; ; attempt++ {
		err := f.attempt(ctx, p, road, o)
		if err == nil || !retry.again(f.method, err, attempt, time.Since(start)) || f.c.pause(ctx, retry.delay()) != nil {
			return err
		}
		road = f.c.roads.fresh // the pooled connection may be what was wrong
	}
}

// attempt sends one request, or two if the token of the first is refused. It is replaced once a
// call: who refuses a new one as well will go on to, and mST must not pay for it.
func (f *fan) attempt(ctx context.Context, p *roster.Peer, road http.RoundTripper, o *Outcome) error {
	o.Attempts++
	bearer, body, err := f.send(ctx, p, road)
	if tokenRefused(err) && bearer == f.first {
		if tokenErr := f.authorize(ctx, bearer); tokenErr != nil {
			return fmt.Errorf("%w (and no other token: %s)", err, tokenErr.Error()) // not wrapped: the peer did answer
		}
		o.Attempts++
		bearer, body, err = f.send(ctx, p, road)
	}
	if err != nil {
		return err
	}
	o.Body, o.Data, err = readEnvelope(body, p, f.method)
	if wrong, ok := errors.AsType[*WrongServerError](err); ok {
		wrong.Got = f.c.scrub(wrong.Got, bearer) // there are servers that repeat what they are sent
	}
	return err
}

// send sends one request, and tells also which token went with it.
func (f *fan) send(ctx context.Context, p *roster.Peer, road http.RoundTripper) (bearer string, body []byte, err error) {
	f.mu.Lock()
	bearer, template := f.bearer, f.template
	ctx = f.due.in(ctx, cmp.Or(f.timeout, f.c.cfg.RequestTimeout))
	f.mu.Unlock()

	req := template.WithContext(ctx)
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
	body, err = f.c.send(road, party{"peer", p.ServerID}, req)
	return bearer, body, err
}

// A deadline gives requests that begin at about the same moment one context, for a timer of its
// own would cost each of them more than the rest of what is done for it here. Nobody is given
// less time than he is due but for a fiftieth of it, and 5 ms at most.
type deadline struct {
	ctx     context.Context    //nolint:containedctx // of one call, within which it begins and ends
	release context.CancelFunc // not needed: what it would release goes with the call
	until   time.Time          // when the next one is due
}

func (d *deadline) in(call context.Context, timeout time.Duration) context.Context {
	if now := time.Now(); d.ctx == nil || now.After(d.until) {
		d.ctx, d.release = context.WithDeadline(call, now.Add(timeout))
		d.until = now.Add(min(timeout/50, 5*time.Millisecond))
	}
	return d.ctx
}
