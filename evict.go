package cluster

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"

	"github.com/mimiktech/cluster/internal/membership"
	"github.com/mimiktech/cluster/internal/wire"
)

// An Eviction says when a peer that fails is evicted: taken out of mIT, out of this node's view,
// and, by telling them, out of the other peers'.
//
// Only a peer that gave no answer is suspect; whoever answers is alive. If of three peers or more
// that a call asked over half are suspect, the fault is likely on this side, and nobody is
// evicted. Otherwise mIT is asked to delete each suspect unless its entry is newer than the one
// known here. If it is, the peer came back: the newer entry is taken over, and the peer asked
// again, unless it has just let a request to that address time out. No answer from mIT, no eviction.
// Nor does a call evict that asked fewer than three peers of a larger cluster, or that had enough
// results (see [Request]).
type Eviction struct {
	// Off evicts nobody.
	Disabled bool
	// ServerErrors makes also a peer suspect that answered with a 5xx, as the npm module has it.
	ServerErrors bool
	// MaxSuspectFraction is the share of suspects above which this node suspects itself; 0.5 by default,
	// 1 never.
	MaxSuspectFraction float64
	// Wait bounds how long a call waits for what mIT says of all its suspects; 2 s by default.
	Timeout time.Duration
}

func (e Eviction) timeout() time.Duration { return cmp.Or(e.Timeout, 2*time.Second) }

const (
	// Of fewer peers than these, more than half say little about this node.
	minPeersForJudgement = 3
	// How many entries of one peer are tried, each newer than the last.
	maxNewerEntries = 3
	// A dated delete with this date deletes nothing: mIT gives its entry, if it has one. So a peer
	// that is known by an announcement only is judged by what mIT knows of it.
	epoch = "1970-01-01T00:00:00.000Z"
	// How many dated deletes one call has under way at mIT.
	maxConcurrentDeletes = 8
	// For each server that there is, how long a node may wait before it tells of an eviction. Telling
	// takes less than that for each.
	broadcastDelayPerServer = time.Millisecond
)

// suspicious tells whether an outcome leaves open that the peer is gone.
func (f *fanOut) isSuspect(o *Outcome) bool {
	if o.Err == nil || o.Kind == KindCanceled || o.Kind == KindNoToken || f.noEviction {
		return false
	}
	if se, ok := errors.AsType[*StatusError](o.Err); ok {
		return f.c.eviction.ServerErrors && se.Code >= 500
	}
	if o.Kind == KindTimeout && f.timeout > 0 && f.timeout < f.c.cfg.RequestTimeout {
		return false // it was given less time than any peer may take
	}
	return unreachable(o.Err)
}

// judge decides on the suspects, given by their places, and puts it into their outcomes.
func (f *fanOut) evictSuspects(ctx context.Context, suspects []int, results int) {
	if len(suspects) == 0 {
		return
	}
	if why := f.selfPreservation(len(suspects), results); why != nil {
		for _, i := range suspects {
			f.skipEviction(ctx, &f.outcomes[i], why)
		}
		return
	}
	patience, cancel := context.WithTimeoutCause(ctx, f.c.eviction.timeout(), errors.New("mIT took too long"))
	defer cancel()
	gone := make([]bool, len(suspects))
	places := semaphore.NewWeighted(maxConcurrentDeletes)
	var wg sync.WaitGroup
	for n, i := range suspects {
		wg.Go(func() {
			if places.Acquire(patience, 1) != nil {
				f.skipEviction(ctx, &f.outcomes[i], context.Cause(patience))
				return
			}
			defer places.Release(1)
			gone[n] = f.resolveSuspect(ctx, patience, f.peers[i], &f.outcomes[i])
		})
	}
	wg.Wait()

	var evicted []string
	for n, i := range suspects {
		if gone[n] {
			evicted = append(evicted, f.peers[i].ServerID)
		}
	}
	f.c.broadcastDepartures(ctx, evicted)
}

// spread tells the peers that are left who is gone by this node's doing, beside the call. All nodes of
// a large cluster may find it out at the same moment, and each of them telling all others would be
// worse than the loss: so each waits for a moment of its own, and leaves out whom it has been told of.
func (c *Cluster) broadcastDepartures(ctx context.Context, gone []string) {
	if len(gone) == 0 {
		return
	}
	c.mu.Lock()
	for _, id := range gone {
		c.pendingDepartures[id] = true
	}
	c.mu.Unlock()
	c.background(ctx, func(ctx context.Context) {
		_ = c.pause(ctx, rand.N(broadcastDelayPerServer*time.Duration(1+c.snapshot().Len()))) // the end of ctx is found below
		for _, id := range gone {
			if view, untold := c.takePending(id); untold {
				c.notifyDeparture(ctx, view, id)
			}
		}
	})
}

// toTell is whom to tell that a server is gone, if that is still to be done: nobody else has, and it
// has not come back.
func (c *Cluster) takePending(gone string) (view membership.View, untold bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	untold = c.pendingDepartures[gone]
	delete(c.pendingDepartures, gone)
	_, back := c.view.Get(gone)
	return c.view, untold && !back
}

// pardon is why no suspect at all is evicted, nil if each is to be decided on.
func (f *fanOut) selfPreservation(suspects, results int) error {
	c, asked, silent := f.c, len(f.peers), suspects
	for i := range f.outcomes {
		if f.outcomes[i].Kind == KindCircuitOpen {
			silent++
		}
	}
	switch share := cmp.Or(c.eviction.MaxSuspectFraction, 0.5); {
	case c.eviction.Disabled:
		return errors.New("eviction is off")
	case c.memberCtx.Err() != nil:
		return fmt.Errorf("this node is leaving: %w", context.Cause(c.memberCtx))
	case f.minResults > 0 && results >= f.minResults:
		return ErrEnoughResults
	case asked >= minPeersForJudgement && float64(silent) > share*float64(asked):
		return fmt.Errorf("%d of %d peers cannot be reached: the fault is likely on this side", silent, asked)
	case asked < minPeersForJudgement && f.unasked > 0 && asked+f.unasked >= minPeersForJudgement:
		return fmt.Errorf("only %d of %d peers were asked: too few to tell on which side the fault is", asked, asked+f.unasked)
	}
	return nil
}

func (f *fanOut) skipEviction(ctx context.Context, o *Outcome, why error) {
	o.EvictionSkipped = why
	f.c.log.Warn("peer spared", zap.String("peer", o.Server.ServerID), zap.NamedError("failure", o.Err), zap.NamedError("why", why), correlationField(ctx))
	f.c.trace.evictionSkipped(o.Server, why)
}

// decide asks mIT about one suspect, while patience lasts. While there are newer entries of it,
// they are tried. It tells whether it was this call that evicted it.
func (f *fanOut) resolveSuspect(ctx, patience context.Context, p *membership.Peer, o *Outcome) bool {
	for range maxNewerEntries {
		known, ok := f.c.snapshot().Get(p.ServerID)
		if ok && !known.LastUpdate().After(p.LastUpdate()) {
			newer, err := f.c.conditionalDelete(patience, known)
			switch {
			case err != nil:
				f.skipEviction(ctx, o, fmt.Errorf("mIT did not agree: %w", err))
				return false
			case newer == nil:
				o.Evicted = true
				return f.c.evict(ctx, known)
			}
			f.c.replaceEntry(*newer)
			told := known
			known, ok = f.c.snapshot().Get(p.ServerID)
			if ok && told.Announced && known.ClusterBaseURL == told.ClusterBaseURL && known.LastUpdate().Equal(told.LastUpdate()) {
				p = known // mIT has it as it was announced: there it has just been asked
				continue
			}
		}
		if !ok { // somebody else was faster
			o.Evicted = true
			return false
		}
		if o.Kind == KindTimeout && !known.Announced && known.ClusterBaseURL == p.ClusterBaseURL {
			f.skipEviction(ctx, o, errors.New("it renews its lease: it lives, though it does not answer"))
			return false
		}
		p = known // it came back: ask again
		f.retryPeer(ctx, p, o)
		if !f.isSuspect(o) {
			return false
		}
	}
	f.skipEviction(ctx, o, fmt.Errorf("mIT had %d newer entries of it in a row", maxNewerEntries))
	return false
}

// askAgain asks a suspect once more, and adds to its outcome what that took.
func (f *fanOut) retryPeer(ctx context.Context, p *membership.Peer, o *Outcome) {
	attempts, took, start := o.Attempts, o.Duration, time.Now()
	if err := f.slots.Acquire(ctx); err != nil {
		f.setError(ctx, o, err)
	} else {
		f.callPeer(ctx, p, o, start)
		f.slots.Release()
		o.Attempts += attempts
	}
	o.Duration = took + time.Since(start)
}

// remove has mIT delete a server unless it knows a newer entry, which is then returned. Calls
// that suspect the same server at the same moment share one request.
func (c *Cluster) conditionalDelete(ctx context.Context, p *membership.Peer) (newer *wire.Server, err error) {
	date := p.UpdatedAtText()
	if p.Announced {
		date = epoch // whoever can announce could have mIT delete any server by a date of his own
	}
	if date == "" {
		return nil, errors.New("its entry has no date, so that it cannot be deleted on condition")
	}
	path := "/itResources/" + url.PathEscape(c.snapshot().ID()) + "/servers/" + url.PathEscape(p.ServerID) + "@" + url.PathEscape(date)
	done := c.deletes.DoChan(path, func() (any, error) {
		ctx, cancel := mergeCancel(context.WithoutCancel(ctx), c.ctx)
		defer cancel()
		var newer *wire.Server
		err := c.askRegistry(ctx, http.MethodDelete, path, nil, func(answer []byte) (err error) {
			newer, err = decodeDeleteResponse(answer, p.ServerID)
			return err
		})
		return newer, err
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

// readRemoved reads what mIT answers to a dated delete: the newer entry, or nil if the server is gone.
func decodeDeleteResponse(body []byte, id string) (newer *wire.Server, err error) {
	var answer wire.DeleteResponse
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, err
	}
	switch {
	case answer.Server != nil && answer.Server.ServerID != id:
		return nil, errors.New("it is about another server") // not which: it may be anything that we sent
	case answer.Server == nil && (answer.Data == nil || string(answer.Data) == "null"):
		return nil, errors.New("neither data nor server in it")
	}
	return answer.Server, nil
}

// learn takes over mIT's entry of a server, whatever its date here.
func (c *Cluster) replaceEntry(s wire.Server) {
	entry := membership.New(wire.ItResource{Servers: []wire.Server{s}}, c.policy.checkServer, c.snapshot())
	c.update(func(view *membership.View, status *Status) {
		*view = view.Without(s.ServerID).Merge(entry)
		status.UpdatedAt = time.Now()
	})
}

// evict forgets a server that mIT deleted, unless it came back meanwhile or is forgotten
// already. It tells whether it did.
func (c *Cluster) evict(ctx context.Context, p *membership.Peer) bool {
	evicted := false
	c.update(func(v *membership.View, s *Status) {
		if now, ok := v.Get(p.ServerID); ok && !now.LastUpdate().After(p.LastUpdate()) {
			*v, s.UpdatedAt, evicted = v.Without(p.ServerID), time.Now(), true
		}
	})
	if evicted {
		c.log.Info("peer evicted", zap.String("peer", p.ServerID), correlationField(ctx))
		c.trace.evicted(Server(p.Server))
	}
	return evicted
}
