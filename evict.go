package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"

	"github.com/mimiktech/cluster/internal/roster"
	"github.com/mimiktech/cluster/internal/wire"
)

// An Eviction says when a peer that fails is evicted: taken out of mIT, out of this node's view,
// and, by telling them, out of the other peers'.
//
// Only a peer that gave no answer is suspect; whoever answers is alive. If of three peers or more
// that a call asked over half are suspect, the fault is likely on this side, and nobody is
// evicted. Otherwise mIT is asked to delete each suspect unless its entry is newer than the one
// known here. If it is, the peer came back: the newer entry is taken over, and the peer asked
// again. No answer from mIT, no eviction.
type Eviction struct {
	// Off evicts nobody.
	Off bool
	// ServerErrors makes also a peer suspect that answered with a 5xx, as the npm module has it.
	ServerErrors bool
	// MaxShare is the share of suspects above which this node suspects itself; 0.5 by default,
	// 1 never.
	MaxShare float64
	// Wait bounds how long a call waits for what mIT says of all its suspects; 2 s by default.
	Wait time.Duration
}

const (
	// Of fewer peers than these, more than half say little about this node.
	fewPeers = 3
	// How many entries of one peer are tried, each newer than the last.
	maxEntries = 3
	// How many dated deletes one call has under way at mIT.
	maxRemovals = 8
)

// A suspect is a peer that may be gone, and what came of asking it.
type suspect struct {
	i int
	p *roster.Peer
	o Outcome
}

// suspicious tells whether an outcome leaves open that the peer is gone.
func (c *Cluster) suspicious(o Outcome, call *call) bool {
	if o.Err == nil || o.Kind == KindCancelled || call.spare {
		return false
	}
	if se, ok := errors.AsType[*StatusError](o.Err); ok {
		return c.eviction.ServerErrors && se.Code >= 500
	}
	if o.Kind == KindTimeout && call.timeout > 0 && call.timeout < c.cfg.RequestTimeout {
		return false // it was given less time than any peer may take
	}
	return unreachable(o.Err)
}

// judge decides on the suspects among the peers asked, and puts it into their outcomes.
func (c *Cluster) judge(ctx context.Context, a *asking, suspects []suspect, asked int) {
	if len(suspects) == 0 {
		return
	}
	if why := c.pardon(len(suspects), asked); why != nil {
		for i := range suspects {
			c.spare(ctx, &suspects[i].o, why)
		}
		return
	}
	patience, cancel := context.WithTimeoutCause(ctx, cmp.Or(c.eviction.Wait, 2*time.Second), errors.New("mIT took too long"))
	defer cancel()
	gone := make([]bool, len(suspects))
	places := semaphore.NewWeighted(maxRemovals)
	var wg sync.WaitGroup
	for i := range suspects {
		wg.Go(func() {
			s := &suspects[i]
			if places.Acquire(patience, 1) != nil {
				c.spare(ctx, &s.o, context.Cause(patience))
				return
			}
			defer places.Release(1)
			gone[i] = c.decide(ctx, patience, a, s.p, &s.o)
		})
	}
	wg.Wait()
	c.spread(ctx, suspects, gone)
}

// spread tells the peers that are left who is gone by this node's doing, beside the call.
func (c *Cluster) spread(ctx context.Context, suspects []suspect, gone []bool) {
	if !slices.Contains(gone, true) {
		return
	}
	view := c.roster()
	c.background(ctx, func(ctx context.Context) {
		for i, s := range suspects {
			if gone[i] {
				c.tell(ctx, view, s.p.ServerID)
			}
		}
	})
}

// pardon is why no suspect at all is evicted, nil if each is to be decided on.
func (c *Cluster) pardon(suspects, asked int) error {
	switch share := cmp.Or(c.eviction.MaxShare, 0.5); {
	case c.eviction.Off:
		return errors.New("eviction is off")
	case c.stay.Err() != nil:
		return fmt.Errorf("this node is leaving: %w", context.Cause(c.stay))
	case asked >= fewPeers && float64(suspects) > share*float64(asked):
		return fmt.Errorf("%d of %d peers cannot be reached: the fault is likely on this side", suspects, asked)
	}
	return nil
}

func (c *Cluster) spare(ctx context.Context, o *Outcome, why error) {
	o.Spared = why
	c.log.Warn("peer spared", zap.String("peer", o.Server.ServerID), zap.NamedError("failure", o.Err), zap.NamedError("why", why), correlation(ctx))
	c.trace.spared(o.Server, why)
}

// decide asks mIT about one suspect, while patience lasts. While there are newer entries of it,
// they are tried. It tells whether it was this call that evicted it.
func (c *Cluster) decide(ctx, patience context.Context, a *asking, p *roster.Peer, o *Outcome) bool {
	for range maxEntries {
		known, ok := c.roster().Get(p.ServerID)
		if ok && !known.Seen().After(p.Seen()) {
			newer, err := c.remove(patience, known)
			switch {
			case err != nil:
				c.spare(ctx, o, fmt.Errorf("mIT did not agree: %w", err))
				return false
			case newer == nil:
				o.Evicted = true
				return c.evict(ctx, known)
			}
			c.learn(*newer)
			known, ok = c.roster().Get(p.ServerID)
		}
		if !ok { // somebody else was faster
			o.Evicted = true
			return false
		}
		p = known // it came back: ask again
		attempts := o.Attempts
		*o = c.ask(ctx, a, p)
		o.Attempts += attempts
		if !c.suspicious(*o, a.call) {
			return false
		}
	}
	c.spare(ctx, o, fmt.Errorf("mIT had %d newer entries of it in a row", maxEntries))
	return false
}

// remove has mIT delete a server unless it knows a newer entry, which is then returned. Calls
// that suspect the same server at the same moment share one request.
func (c *Cluster) remove(ctx context.Context, p *roster.Peer) (newer *wire.Server, err error) {
	date := p.Date()
	if date == "" {
		return nil, errors.New("its entry has no date, so that it cannot be deleted on condition")
	}
	path := "/itResources/" + url.PathEscape(c.roster().ID()) + "/servers/" + url.PathEscape(p.ServerID) + "@" + url.PathEscape(date)
	done := c.removing.DoChan(path, func() (any, error) {
		ctx, cancel := within(context.WithoutCancel(ctx), c.life)
		defer cancel()
		body, err := c.askRegistry(ctx, http.MethodDelete, path, nil)
		if err != nil {
			return nil, err
		}
		var answer wire.Removed
		err = json.Unmarshal(body, &answer)
		switch {
		case err != nil:
		case answer.Server != nil && answer.Server.ServerID == p.ServerID:
			return answer.Server, nil
		case answer.Server != nil:
			err = fmt.Errorf("it is about server %.80q", answer.Server.ServerID)
		case answer.Data == nil || string(answer.Data) == "null":
			err = errors.New("neither data nor server in it")
		default:
			return (*wire.Server)(nil), nil
		}
		return nil, &AnswerError{"mIT", http.MethodDelete, c.cfg.RegistryURL + path, err}
	})
	select {
	case r := <-done:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*wire.Server), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// learn takes over mIT's entry of a server, whatever its date here.
func (c *Cluster) learn(s wire.Server) {
	entry := roster.New(wire.ItResource{Servers: []wire.Server{s}}, c.policy.check, c.roster())
	c.change(func(view *roster.Roster, status *Status) {
		*view = view.Without(s.ServerID).Union(entry)
		status.UpdatedAt = time.Now()
	})
}

// evict forgets a server that mIT deleted, unless it came back meanwhile or is forgotten
// already. It tells whether it did.
func (c *Cluster) evict(ctx context.Context, p *roster.Peer) bool {
	evicted := false
	c.change(func(v *roster.Roster, s *Status) {
		if now, ok := v.Get(p.ServerID); ok && !now.Seen().After(p.Seen()) {
			*v, s.UpdatedAt, evicted = v.Without(p.ServerID), time.Now(), true
		}
	})
	if evicted {
		c.log.Info("peer evicted", zap.String("peer", p.ServerID), correlation(ctx))
		c.trace.evicted(Server(p.Server))
	}
	return evicted
}
