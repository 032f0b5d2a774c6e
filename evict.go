package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"

	"github.com/mimiktech/cluster/internal/ctxutil"
	"github.com/mimiktech/cluster/internal/membership"
	"github.com/mimiktech/cluster/internal/wire"
)

const (
	// Self-preservation needs at least this many peers: of one or two, a majority says little.
	minPeersForJudgement = 3
	// How many newer entries of one peer are tried in a row.
	maxNewerEntries = 3
	// A conditional delete with this precondition deletes nothing, because every entry is newer.
	epoch = "1970-01-01T00:00:00.000Z"
	// How many conditional deletes of one call are in flight at a time.
	maxConcurrentDeletes = 8
	// The longest delay before an eviction is broadcast, per server of the cluster: about the time
	// that a notification of one peer takes.
	broadcastDelayPerServer = time.Millisecond
)

// An evictor decides on the suspects of a fan-out.
type evictor struct {
	policy         Eviction
	requestTimeout time.Duration

	ctx       context.Context // the object's own: it bounds deletes that several calls wait for
	memberCtx context.Context // no peer is evicted after its end
	registry  conditionalDeleter
	state     *state
	check     membership.Check
	log       *zap.Logger
	trace     *hooks

	// background runs work in a goroutine.
	background func(ctx context.Context, work func(context.Context)) error
	// notify reports to peers that a server has departed.
	notify func(ctx context.Context, peers membership.View, departed departure)

	deletes singleflight.Group // by path
}

// A conditionalDeleter is the part of a *registryClient that an evictor uses.
type conditionalDeleter interface {
	deleteIf(ctx context.Context, resourceID, serverID, unmodifiedSince string) (newer *wire.Server, err error)
}

// A batch is a fan-out at its end: all peers have been called.
type batch struct {
	peers    []*membership.Peer
	outcomes []Outcome          // in the order of peers
	all      []*membership.Peer // in the view, called or not
	enough   bool               // MinResults was reached
	timeout  time.Duration      // of the request; zero for Config.RequestTimeout

	// retry calls a peer once more and adds to its outcome.
	retry func(ctx context.Context, p *membership.Peer, o *Outcome)
	// keep returns why a suspect is kept; nil if it has failed on a connection of its own.
	keep func(ctx context.Context, p *membership.Peer, o *Outcome) (Decision, error)
}

// isSuspect reports whether a peer with this outcome may be gone. timeout is that of the request;
// zero for Config.RequestTimeout.
func (e *evictor) isSuspect(o *Outcome, timeout time.Duration) bool {
	if o.Err == nil || o.Kind == KindCanceled || o.Kind == KindNoToken || o.Kind == KindLocal {
		return false
	}
	if se, ok := errors.AsType[*StatusError](o.Err); ok {
		return e.policy.ServerErrors && se.Code >= 500
	}
	if o.Kind == KindTimeout && timeout > 0 && timeout < e.requestTimeout {
		return false // the request asked for a faster response than a running peer may take
	}
	return unreachable(o.Err) || e.replaced(o)
}

// replaced reports whether a peer was not called because its address belongs to this node now. Such
// a peer is gone, unless it has renewed since: then both nodes claim the address.
func (e *evictor) replaced(o *Outcome) bool {
	return o.Kind == KindWrongServer && o.Attempts == 0 && e.state.tookOver(wire.Server(o.Server))
}

// review decides on the suspects, given by their indices in b, and writes the decisions to their
// outcomes.
func (e *evictor) review(ctx context.Context, b batch, suspects []int) {
	suspects = e.skipProtected(ctx, b, suspects)
	if len(suspects) == 0 {
		return
	}
	decisionCtx, cancel := context.WithTimeoutCause(ctx, e.policy.timeout(), errors.New("the registry took too long"))
	defer cancel()
	sem := semaphore.NewWeighted(maxConcurrentDeletes)
	evicted := make([]*membership.Peer, len(suspects))
	var wg sync.WaitGroup
	for n, i := range suspects {
		wg.Go(func() {
			if sem.Acquire(decisionCtx, 1) != nil {
				e.skipEviction(ctx, &b.outcomes[i], DecisionNotConfirmed, context.Cause(decisionCtx))
				return
			}
			defer sem.Release(1)
			evicted[n] = e.resolveSuspect(ctx, decisionCtx, b, i)
		})
	}
	wg.Wait()

	var departed []departure
	for _, p := range evicted {
		if p != nil {
			departed = append(departed, departure{p.ServerID, p.UpdatedAtText()})
		}
	}
	e.broadcastDepartures(ctx, departed)
}

// skipProtected skips the suspects that are not to be decided on, and returns the others.
func (e *evictor) skipProtected(ctx context.Context, b batch, suspects []int) (others []int) {
	if len(suspects) == 0 {
		return nil
	}
	decision, reason := e.forbidden(b)
	forbidden := reason != nil
	forProven, forUnproven := verdict{decision, reason}, verdict{decision, reason}
	if !forbidden {
		forProven = e.selfPreservation(b, suspects, (*membership.Peer).Proven)
		forUnproven = e.selfPreservation(b, suspects, func(*membership.Peer) bool { return true })
	}
	for _, i := range suspects {
		v := forProven
		if !b.peers[i].Proven() {
			v = forUnproven
		}
		if forbidden || v.reason != nil && !e.replaced(&b.outcomes[i]) {
			e.skipEviction(ctx, &b.outcomes[i], v.decision, v.reason)
		} else {
			others = append(others, i)
		}
	}
	return others
}

// A verdict is the reason why suspects are kept without a request to the registry. The zero verdict
// means that the registry is asked.
type verdict struct {
	decision Decision
	reason   error
}

// forbidden returns the reason why the call evicts no peer at all; nil if there is none.
func (e *evictor) forbidden(b batch) (Decision, error) {
	switch {
	case e.policy.Disabled:
		return DecisionDisabled, errors.New("eviction is off")
	case e.memberCtx.Err() != nil:
		return DecisionLeaving, fmt.Errorf("this node is leaving: %w", context.Cause(e.memberCtx))
	case b.enough:
		return DecisionEnoughResults, ErrEnoughResults
	}
	return "", nil
}

// selfPreservation returns the reason why none of the suspects is evicted; none if each of them is
// to be decided on. Only the peers count for which counts returns true: peers that may not exist do
// not count for the others. Peers whose address belongs to this node do not count either: they say
// nothing about the network.
func (e *evictor) selfPreservation(b batch, suspects []int, counts func(*membership.Peer) bool) verdict {
	called, total, unreachableCount := count(b.peers, counts), count(b.all, counts), 0
	for i := range b.outcomes {
		if kind := b.outcomes[i].Kind; counts(b.peers[i]) && (kind == KindCircuitOpen || kind == KindLocal) {
			unreachableCount++
		}
	}
	for _, i := range suspects {
		switch {
		case !counts(b.peers[i]):
		case e.replaced(&b.outcomes[i]):
			called, total = called-1, total-1
		default:
			unreachableCount++
		}
	}
	switch {
	case called >= minPeersForJudgement && float64(unreachableCount) > e.policy.maxSuspectFraction()*float64(called):
		return verdict{DecisionSelfPreservation, fmt.Errorf("too many peers unreachable (%d of %d): assuming a local fault", unreachableCount, called)}
	case called < minPeersForJudgement && called < total && total >= minPeersForJudgement:
		return verdict{DecisionTooFewCalled, fmt.Errorf("only %d of %d peers were called: too few to rule out a local fault", called, total)}
	}
	return verdict{}
}

func count(peers []*membership.Peer, counts func(*membership.Peer) bool) (n int) {
	for _, p := range peers {
		if counts(p) {
			n++
		}
	}
	return n
}

func (e *evictor) skipEviction(ctx context.Context, o *Outcome, decision Decision, reason error) {
	o.EvictionSkipped = reason
	e.log.Warn("eviction skipped", zap.String("peer", o.Server.ServerID), zap.NamedError("failure", o.Err), zap.NamedError("reason", reason), correlationField(ctx))
	e.trace.evictionDecided(ctx, EvictionDecision{o.Server, decision, reason})
}

// resolveSuspect decides on one suspect. It is gone, or it stays with an error, or it has
// registered again. In the last case it is retried at its newer entry, up to maxNewerEntries times.
// decisionCtx bounds the requests to the registry. resolveSuspect returns the entry that this call
// evicted; nil if it evicted none.
func (e *evictor) resolveSuspect(ctx, decisionCtx context.Context, b batch, i int) (evicted *membership.Peer) {
	p, o := b.peers[i], &b.outcomes[i]
	for range maxNewerEntries {
		if decision, err := b.keep(decisionCtx, p, o); err != nil {
			e.skipEviction(ctx, o, decision, err)
			return nil
		}
		found, err := e.checkRegistry(ctx, decisionCtx, p)
		switch {
		case err != nil:
			e.skipEviction(ctx, o, DecisionNotConfirmed, err)
			return nil
		case found.peer == nil:
			o.Evicted = true
			decision := DecisionGone
			if found.evicted != nil {
				decision = DecisionEvicted
			}
			e.trace.evictionDecided(ctx, EvictionDecision{Server(p.Server), decision, nil})
			return found.evicted
		case (o.Kind == KindTimeout || o.Kind == KindWrongServer) && !found.peer.Announced && found.peer.ClusterBaseURL == p.ClusterBaseURL:
			e.skipEviction(ctx, o, DecisionAlive, errors.New("peer renewed its lease since: it is alive"))
			return nil
		}
		p = found.peer
		b.retry(ctx, p, o)
		if !e.isSuspect(o, b.timeout) {
			e.trace.evictionDecided(ctx, EvictionDecision{o.Server, DecisionReturned, nil})
			return nil
		}
	}
	e.skipEviction(ctx, o, DecisionUnstable, fmt.Errorf("the registry had %d newer entries of it in a row", maxNewerEntries))
	return nil
}

// A checkResult is the result of looking up a suspect in the registry or in the view.
type checkResult struct {
	peer    *membership.Peer // its other entry; nil if it is gone
	evicted *membership.Peer // the entry that this call evicted, or nil
}

// checkRegistry makes the registry delete p unless it has another entry. That entry replaces the
// one in the view. If the view already has another entry, or none, checkRegistry sends no request.
// The other one may have an older date, if the clock of the registry went back.
func (e *evictor) checkRegistry(ctx, decisionCtx context.Context, p *membership.Peer) (checkResult, error) {
	known, ok := e.state.view().Get(p.ServerID)
	if !ok || !known.LastUpdate().Equal(p.LastUpdate()) || known.ClusterBaseURL != p.ClusterBaseURL {
		return checkResult{peer: known}, nil
	}
	newer, err := e.deleteUnchanged(decisionCtx, known)
	if err != nil {
		return checkResult{}, fmt.Errorf("registry did not confirm: %w", err)
	}
	if newer == nil {
		return checkResult{evicted: e.evict(ctx, known)}, nil
	}
	entry := membership.New(wire.ItResource{Servers: []wire.Server{*newer}}, e.check, e.state.view())
	e.state.replaceEntry(ctx, newer.ServerID, entry)
	current, _ := e.state.view().Get(p.ServerID) // nil if another call has evicted it meanwhile
	return checkResult{peer: current}, nil
}

// deleteUnchanged deletes a server from the registry if the registry has exactly this entry of it.
// It returns the other entry, or nil if the server is gone. A conditional delete alone is not
// enough: it deletes every entry that is not newer. But an entry may be older and yet current, if
// the clock of the registry went back; and the date of an announced entry may be forged.
func (e *evictor) deleteUnchanged(ctx context.Context, p *membership.Peer) (other *wire.Server, err error) {
	if p.UpdatedAtText() == "" && !p.Announced {
		return nil, errNoDate
	}
	current, err := e.conditionalDelete(ctx, p.ServerID, epoch)
	if err != nil || current == nil || current.ClusterBaseURL != p.ClusterBaseURL || !current.LastUpdate().Equal(p.LastUpdate()) {
		return current, err
	}
	if current.UpdatedAtText() == "" {
		return nil, errNoDate
	}
	return e.conditionalDelete(ctx, p.ServerID, current.UpdatedAtText())
}

var errNoDate = errors.New("its entry has no date, which a conditional delete needs")

// conditionalDelete deletes a server from the registry, unless the registry has an entry newer than
// date, which it returns. Concurrent calls with the same date share one request.
func (e *evictor) conditionalDelete(ctx context.Context, serverID, date string) (newer *wire.Server, err error) {
	resourceID := e.state.view().ID()
	key := url.PathEscape(resourceID) + "/" + url.PathEscape(serverID) + "@" + date
	done := e.deletes.DoChan(key, func() (any, error) {
		ctx, cancel := ctxutil.Merge(context.WithoutCancel(ctx), e.ctx)
		defer cancel()
		return e.registry.deleteIf(ctx, resourceID, serverID, date)
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

// evict removes a server that the registry has deleted from the view, unless it is back already. It
// returns p if it did.
func (e *evictor) evict(ctx context.Context, p *membership.Peer) *membership.Peer {
	if !e.state.evict(ctx, p) {
		return nil
	}
	e.log.Info("peer evicted", zap.String("peer", p.ServerID), correlationField(ctx))
	return p
}

// broadcastDepartures notifies the remaining peers of evictions, in a goroutine. In a large
// cluster all nodes may evict the same server at the same moment. So each waits for a random
// delay, and skips departures of which it has been notified meanwhile. A peer that has a newer
// entry of the server keeps it.
func (e *evictor) broadcastDepartures(ctx context.Context, departed []departure) {
	if len(departed) == 0 {
		return
	}
	e.state.addPending(ctx, departed)
	_ = e.background(ctx, func(ctx context.Context) { // or the node is closed
		maxDelay := broadcastDelayPerServer * time.Duration(1+e.state.view().Len())
		_ = ctxutil.Sleep(ctx, rand.N(maxDelay)) // if ctx has ended, notify returns at once
		for _, d := range departed {
			if peers, pending := e.state.takePending(ctx, d.serverID); pending {
				e.notify(ctx, peers, d)
			}
		}
	})
}
