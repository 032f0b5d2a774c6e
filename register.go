package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster/internal/ctxutil"
	"github.com/mimiktech/cluster/internal/membership"
	"github.com/mimiktech/cluster/internal/redact"
	"github.com/mimiktech/cluster/internal/statuspage"
	"github.com/mimiktech/cluster/internal/wire"
)

// Register joins the cluster. It registers with the registry, and retries until it succeeds or ctx
// ends. The first pause is Config.RegistrationRetry; later ones grow to half a minute. A
// Retry-After of the registry takes precedence. Register then starts the lease. With
// Config.Management it announces the node to all peers, and returns their outcomes. The Data of
// that Response is of no use. Without Config.Management the Response is empty. The Response is nil
// only if there is an error.
//
// ctx bounds this call only. The lease lasts until [Cluster.UnRegister] or [Cluster.Close], which
// also interrupt a Register in progress. Calling Register again renews the lease and announces the
// node once more.
func (c *Cluster) Register(ctx context.Context) (*Response, error) {
	ctx, cancel := ctxutil.Merge(ensureCorrelationID(ctx), c.memberCtx)
	defer cancel()
	renewIn, err := c.registerWithRetry(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.startLease(ctx, renewIn); err != nil {
		return nil, err
	}
	if !c.cfg.Management {
		return newResponse([]Outcome{}), nil
	}
	return c.announceSelf(ctx), nil
}

// A Departure is the result of [Cluster.UnRegister].
type Departure struct {
	// NbServers is the number of servers the cluster had, this one included; 0 if the node had
	// never registered.
	NbServers int
	ServerID  string
	// Errors are the reasons why the registry may list this node until its lease expires.
	Errors []error
}

// MarshalJSON encodes the departure like the result of the npm module's unRegister, with errors as
// their messages.
func (d Departure) MarshalJSON() ([]byte, error) {
	out := struct {
		NbServers int      `json:"nbServers"`
		ServerID  string   `json:"serverId"`
		Errors    []string `json:"errors,omitempty"`
	}{NbServers: d.NbServers, ServerID: d.ServerID}
	for _, err := range d.Errors {
		out.Errors = append(out.Errors, redact.Text(err.Error()))
	}
	return json.Marshal(out)
}

// UnRegister leaves the cluster. It stops the lease, deletes the node from the registry, and with
// Config.Management notifies all peers. A peer that does not answer within Config.RequestTimeout is
// not evicted and does not count as an error. The next renewal of that peer removes the node from
// its view.
//
// If another process has registered this node's id at another address, the entry of that process
// stays, and no peer is notified.
//
// UnRegister blocks until it is done or ctx ends, and returns the failures in the Departure. It may
// be called at any time, also before Register, and interrupts a Register in progress. A second call
// retries what failed and otherwise does nothing.
func (c *Cluster) UnRegister(ctx context.Context) Departure {
	left := fmt.Errorf("%w: it has left", ErrNotRegistered)
	c.cancelMember(left)
	c.peers.scheduler.Close()

	ctx, cancel := ctxutil.Merge(ensureCorrelationID(ctx), c.ctx)
	defer cancel()
	d := Departure{ServerID: c.cfg.ID}
	unlock, err := c.lockRegistration(ctx)
	if err != nil {
		d.Errors = append(d.Errors, err)
	} else {
		defer unlock()
	}
	view, deregistered := c.state.leave(ctx, left)
	d.NbServers = view.Len()
	if deregistered || err != nil {
		return d
	}
	if err := c.deregister(ctx, view); err != nil {
		d.Errors = append(d.Errors, err)
	} else {
		c.state.setDeregistered(ctx)
	}
	return d
}

// deregister deletes this node's entry from the registry, and notifies the peers even if that
// fails. It does neither if another process now uses the id. A registry that does not answer soon
// does not delay the notification: peers keep an entry that is newer than the given one.
func (c *Cluster) deregister(ctx context.Context, view membership.View) error {
	type result struct {
		entry wire.Server
		err   error
	}
	deleted := make(chan result, 1)
	go func() {
		entry, err := c.deleteOwnEntry(ctx, view)
		deleted <- result{entry, err}
	}()
	var r result
	notified := false
	select {
	case r = <-deleted:
	case <-time.After(notifyDelay):
		if own, known := view.Get(c.cfg.ID); known && c.cfg.Management && c.address.is(own.ClusterBaseURL) {
			c.notifyOwnDeparture(ctx, view, own.UpdatedAtText())
			notified = true
		}
		r = <-deleted
	}
	if !c.address.is(r.entry.ClusterBaseURL) {
		c.log.Warn("another process is registered with this node's id; its entry stays",
			zap.String("clusterBaseUrl", c.address.registration().ClusterBaseURL), zap.String("other", r.entry.ClusterBaseURL), correlationField(ctx))
		return nil
	}
	if r.err != nil {
		c.log.Warn("deregistration failed", zap.Error(r.err), correlationField(ctx))
	}
	if c.cfg.Management && !notified {
		c.notifyOwnDeparture(ctx, view, r.entry.UpdatedAtText())
	}
	return r.err
}

// notifyOwnDeparture reports to the peers that this node departs, and again to those that missed it
// while the process serves.
func (c *Cluster) notifyOwnDeparture(ctx context.Context, view membership.View, updatedAt string) {
	departed := departure{c.cfg.ID, updatedAt}
	if missed := c.callDeparture(ctx, view, departed, nil); len(missed.ids) > 0 {
		_ = c.tasks.start(ctx, func(ctx context.Context) { c.repeatDeparture(ctx, view, departed, missed) })
	}
}

// deleteOwnEntry deletes this node's entry. It first looks up the entry, with a conditional delete
// that deletes nothing: the clock of the registry may have gone back, and the entry of another
// process may have an older date than this node's. An entry at this node's address is deleted, also
// one of a renewal whose response was lost. deleteOwnEntry returns the newest entry that it knows.
// If that is at another address, it is not deleted.
func (c *Cluster) deleteOwnEntry(ctx context.Context, view membership.View) (entry wire.Server, err error) {
	entry = wire.Server{ServerID: c.cfg.ID, ClusterBaseURL: c.address.registration().ClusterBaseURL}
	if own, known := view.Get(c.cfg.ID); known {
		entry = own.Server
	}
	for i := range 1 + maxNewerEntries {
		if !c.address.is(entry.ClusterBaseURL) {
			return entry, nil
		}
		date := entry.UpdatedAtText()
		if date == "" { // this registry sends no dates, and so has no conditional deletes
			return entry, c.registry.deregister(ctx, view.ID(), c.cfg.ID)
		}
		if i == 0 {
			date = epoch
		}
		newer, err := c.registry.deleteIf(ctx, view.ID(), c.cfg.ID, date)
		if err != nil || newer == nil {
			return entry, err
		}
		entry = *newer
	}
	return entry, fmt.Errorf("the registry had %d newer entries of this node in a row", maxNewerEntries)
}

// lockRegistration serializes requests to the registry about this node. Otherwise a renewal in
// progress could be executed after the delete of UnRegister.
func (c *Cluster) lockRegistration(ctx context.Context) (unlock func(), err error) {
	select {
	case c.registrationLock <- struct{}{}:
		return func() { <-c.registrationLock }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// registerWithRetry registers until the registry accepts. It returns the time until the first
// renewal.
func (c *Cluster) registerWithRetry(ctx context.Context) (renewIn time.Duration, err error) {
	c.state.publish(ctx) // as an orphan
	var last error
	retries := c.newBackoff()
	for {
		r, err := c.tryRenew(ctx, c.renew, retries.NextBackOff)
		if err == nil {
			return r.renewIn, nil
		}
		if left := context.Cause(c.memberCtx); left != nil {
			if last == nil {
				return 0, left
			}
			return 0, fmt.Errorf("%w, after: %w", left, last)
		}
		if cause := context.Cause(ctx); cause != nil {
			if last == nil {
				last = err // it may at least name the remote
			}
			if errors.Is(last, cause) {
				return 0, fmt.Errorf("cluster: registering: %w", last)
			}
			return 0, fmt.Errorf("cluster: registering: %w, after: %w", cause, last)
		}
		last = err
		_ = ctxutil.Sleep(ctx, r.retryIn) // if ctx has ended, so does the next renew
	}
}

// A renewal is the result of an attempt to renew.
type renewal struct {
	lease         time.Duration
	renewIn       time.Duration // until the next one is due
	needsAnnounce bool          // peers may not know this node

	retryIn time.Duration // until the next attempt, after a failure
}

// tryRenew makes an attempt to renew. If it fails before ctx ends, tryRenew records the failure. It
// sets retryIn to the delay until the next attempt: the Retry-After of the registry, or delay.
func (c *Cluster) tryRenew(ctx context.Context, renew func(context.Context) (renewal, error), delay func() time.Duration) (renewal, error) {
	if err := context.Cause(ctx); err != nil {
		return renewal{}, err
	}
	renewCtx, end := c.trace.renewal(ctx, RenewalInfo{First: c.state.status().RenewedAt.IsZero()})
	r, err := renew(renewCtx)
	if err != nil && ctx.Err() == nil {
		if r.retryIn = retryAfter(err); r.retryIn == 0 {
			r.retryIn = delay()
		}
		c.state.applyFailure(renewCtx, err)
		c.log.Warn("registration failed", zap.Error(err), zap.Duration("retryIn", r.retryIn), correlationField(ctx))
	}
	end.call(RenewalResult{Lease: r.lease, RenewIn: r.renewIn, RetryIn: r.retryIn, Err: err})
	return r, err
}

// retryAfter returns the Retry-After of a response, with up to a quarter added; 0 if there was
// none. The addition spreads the next requests of nodes that were rejected together.
func retryAfter(err error) time.Duration {
	se, ok := errors.AsType[*StatusError](err)
	if !ok {
		return 0
	}
	return se.RetryAfter + time.Duration(rand.Float64()*float64(se.RetryAfter)/4)
}

// renew registers the node or renews its lease, and makes the registry's list the view. If the
// registry has lost its data, renew retains the servers that it does not list yet. They expire
// after the time of a lease, because all running nodes have renewed by then.
func (c *Cluster) renew(ctx context.Context) (renewal, error) {
	unlock, err := c.lockRegistration(ctx)
	if err != nil {
		return renewal{}, err
	}
	defer unlock()
	if err := context.Cause(c.memberCtx); err != nil {
		return renewal{}, err
	}
	c.address.follow(c.log)
	before, sent := c.state.view(), time.Now()
	renewalOf := ""
	if own, known := before.Get(c.cfg.ID); known && !own.CreatedAt.IsZero() {
		renewalOf = wire.FormatTime(own.CreatedAt)
	}
	it, lease, err := c.registry.register(ctx, c.address.registration(), c.cfg.Management, renewalOf)
	if err != nil {
		return renewal{}, err
	}
	if it.Skipped != nil {
		c.log.Warn("registry response contains invalid entries", zap.Error(it.Skipped), correlationField(ctx))
	}
	accepted := acceptedRenewal{sent: sent, lease: lease, before: before}
	known := before
	if previous, ok := before.Get(c.cfg.ID); ok && !c.address.is(previous.ClusterBaseURL) {
		accepted.moved = true
		known = membership.View{} // all addresses are to be checked again
	}
	accepted.listed = membership.New(it, c.checkServer, known)
	accepted.recreated = recreated(before, accepted.listed, c.cfg.ID)
	if registryWasReset(before, accepted.listed, c.cfg.ID) {
		accepted.retainUntil = sent.Add(lease)
	} else if accepted.recreated && c.state.status().holdsLease() {
		c.addEvent(statuspage.Event{Kind: statuspage.Removed, Text: "the registry had removed the entry of this node, and has created it again"})
	}
	// The lease began when the request was sent.
	renewIn := jitter(time.Duration(c.cfg.RenewalFraction*float64(lease)), 0.1) - time.Since(sent)
	applied := c.state.applyRenewal(ctx, accepted)
	if applied.ignored {
		c.confirmAnnounced()
	}
	if own, ok := accepted.listed.Get(c.cfg.ID); ok {
		c.checkOwnEntry(ctx, own.Server)
	}
	c.checkMoved(ctx, applied.moved)
	return renewal{lease: lease, renewIn: max(0, renewIn), needsAnnounce: applied.needsAnnounce}, nil
}

// recreated reports whether the registry has created this node's entry again since the last
// renewal. Then the entry had been deleted or lost, and peers may have been notified of a
// departure.
func recreated(before, listed membership.View, id string) bool {
	previous, known := before.Get(id)
	current, found := listed.Get(id)
	return known && found && !current.CreatedAt.Equal(previous.CreatedAt)
}

// registryWasReset reports whether the registry has lost its data, for example in a restart without
// a persistent store. It then has created the entry of this node again, and has no entry that is as
// old as in the view. Entries created since the last renewal of this node do not count, because
// they may have been announced after the loss.
func registryWasReset(before, listed membership.View, id string) bool {
	if !recreated(before, listed, id) {
		return false
	}
	self, _ := before.Get(id)
	for _, p := range listed.Peers() {
		previous, known := before.Get(p.ServerID)
		if known && p.CreatedAt.Equal(previous.CreatedAt) && !p.CreatedAt.After(self.LastUpdate()) {
			return false
		}
	}
	return true
}

// checkOwnEntry reports a conflict if an entry of this node is at another address.
func (c *Cluster) checkOwnEntry(ctx context.Context, own wire.Server) {
	if !c.address.is(own.ClusterBaseURL) {
		c.reportConflict(ctx, c.cfg.ID, c.address.registration().ClusterBaseURL, own.ClusterBaseURL)
	}
}

// checkMoved looks for two running processes with one id: the address of such an id changes back
// and forth with their renewals. A while after a server has moved, its entry is sent to its former
// address. A process of that id that still answers there learns of the conflict, too.
func (c *Cluster) checkMoved(ctx context.Context, moved []movedServer) {
	if !c.cfg.Management || len(moved) == 0 {
		return
	}
	_ = c.tasks.start(ctx, func(ctx context.Context) {
		ctx, cancel := ctxutil.Merge(ctx, c.memberCtx)
		defer cancel()
		if ctxutil.Sleep(ctx, conflictDelay+rand.N(conflictDelay)) != nil {
			return
		}
		for _, m := range moved {
			view := c.state.view()
			current, known := view.Get(m.id)
			if !known || current.ClusterBaseURL == m.formerAddress {
				continue
			}
			former := wire.ItResource{ID: view.ID(), Servers: []wire.Server{{ServerID: m.id, ClusterBaseURL: m.formerAddress}}}
			call := announcementOf(view.Select(m.id))
			call.noEviction, call.retry = true, &Retry{MaxRetries: -1}
			res := c.peers.collect(ctx, call, membership.New(former, c.checkServer, membership.View{}))
			if len(res.Results) == 1 {
				c.reportConflict(ctx, m.id, current.ClusterBaseURL, m.formerAddress)
			}
		}
	})
}

// conflictDelay is the shortest time after which a process at the former address of a server counts
// as running. One that has left may serve for a while.
const conflictDelay = 2 * time.Minute

// reportConflict warns once of a conflict, until it is over.
func (c *Cluster) reportConflict(ctx context.Context, serverID, address, other string) {
	conflict := Conflict{ServerID: serverID, Addresses: [2]string{address, other}, SeenAt: time.Now()}
	if c.state.addConflict(ctx, conflict) {
		c.log.Warn("two running processes use one server id", zap.String("id", serverID),
			zap.String("clusterBaseUrl", address), zap.String("other", other), zap.String("hint", "give each process a SERVER_ID of its own"), correlationField(ctx))
	}
}

// announceSelf announces this node to all peers. It sends them no other server, because they get
// all others from the registry. In a large cluster, full lists would be most of the traffic when
// nodes start.
func (c *Cluster) announceSelf(ctx context.Context) *Response {
	return c.announce(ctx, func(v membership.View) membership.View { return v.Select(c.cfg.ID) })
}

// announceAll announces all servers to all peers.
func (c *Cluster) announceAll(ctx context.Context) *Response {
	return c.announce(ctx, func(v membership.View) membership.View { return v })
}

// announce announces servers of the view to all peers. Peers that fail are called again in the
// background.
func (c *Cluster) announce(ctx context.Context, servers func(membership.View) membership.View) *Response {
	number := c.announcements.Add(1)
	view := c.state.view()
	res := c.peers.collect(ctx, announcementOf(servers(view)), view)
	c.warnRejected(ctx, res)
	if missed := missedBy(res.Failures); len(missed.ids) > 0 {
		_ = c.tasks.start(ctx, func(ctx context.Context) { c.repeatAnnouncement(ctx, number, servers, missed) })
	}
	return res
}

func announcementOf(servers membership.View) *preparedRequest {
	// Not json.Marshal, which would change the spelling of entries. They are valid JSON, or they
	// would not have been decoded.
	body, _ := servers.Resource().MarshalJSON()
	return &preparedRequest{
		operation: OperationAnnounce,
		method:    http.MethodPost,
		ref:       &url.URL{Path: "/itResources"},
		header:    http.Header{"Prefer": {returnMinimal}},
		body:      body,
		discard:   true,
	}
}

// repeatPauses returns the pauses before an announcement or a departure is sent again to the peers
// that failed. Such a peer may be restarting, or rejecting all requests for a moment. They have a
// jitter of a third.
func repeatPauses() [4]time.Duration {
	return [...]time.Duration{time.Second, 3 * time.Second, 9 * time.Second, 27 * time.Second}
}

// missedPeers are the peers that a later attempt may reach.
type missedPeers struct {
	ids map[string]bool
	// probeIn is the time until the first of them may be called, if open circuits rejected all calls.
	probeIn time.Duration
}

func missedBy(failures []Outcome) missedPeers {
	missed := missedPeers{ids: make(map[string]bool)}
	for _, o := range failures {
		switch o.Kind {
		case KindNotAllowed, KindWrongServer:
			continue
		}
		if o.Evicted { // no longer a peer: there is nothing to repeat
			continue
		}
		var probeIn time.Duration
		if open, ok := errors.AsType[*CircuitOpenError](o.Err); ok {
			probeIn = open.RetryIn
		}
		if len(missed.ids) == 0 || probeIn < missed.probeIn {
			missed.probeIn = probeIn
		}
		missed.ids[o.Server.ServerID] = true
	}
	return missed
}

func (m missedPeers) contains(s Server) bool { return m.ids[s.ServerID] }

// pause waits before the next attempt. The pause begins when a circuit lets a request through
// again. Otherwise one that is open for long could reject all attempts.
func (m missedPeers) pause(ctx context.Context, d time.Duration) error {
	return ctxutil.Sleep(ctx, m.probeIn+jitter(d, 1.0/3))
}

// repeatAnnouncement announces servers again to the peers that missed the announcement of that
// number, until none is left. It ends early if there is a later announcement, if the lease has
// expired, or if the node leaves.
func (c *Cluster) repeatAnnouncement(ctx context.Context, number int64, servers func(membership.View) membership.View, missed missedPeers) {
	ctx, cancel := ctxutil.Merge(ctx, c.memberCtx)
	defer cancel()
	for _, pause := range repeatPauses() {
		err := missed.pause(ctx, pause)
		if err != nil || c.announcements.Load() != number || !c.state.status().holdsLease() {
			return
		}
		view := c.state.view()
		call := announcementOf(servers(view))
		call.noEviction = true
		call.filter = missed.contains
		if missed = missedBy(c.peers.collect(ctx, call, view).Failures); len(missed.ids) == 0 {
			return
		}
	}
	c.log.Debug("announcement missed", zap.Int("peers", len(missed.ids)), correlationField(ctx))
}

// warnRejected logs one warning if peers answered an announcement, but did not accept it.
func (c *Cluster) warnRejected(ctx context.Context, res *Response) {
	counts := make(map[string]int)
	rejected, common := 0, ""
	for _, o := range res.Failures {
		reason := string(o.Kind)
		if se, ok := errors.AsType[*StatusError](o.Err); ok {
			reason = strconv.Itoa(se.Code)
		} else if o.Kind != KindMalformed {
			continue // no answer, or none of this peer
		}
		rejected++
		if counts[reason]++; counts[reason] > counts[common] {
			common = reason
		}
	}
	if limit, _ := c.rejectedWarnings.LoadOrStore(common, new(minuteLimit)); rejected == 0 || !limit.(*minuteLimit).due(time.Now()) {
		return
	}
	hint := "the log of the peers says more"
	switch common {
	case "404", "405", string(KindMalformed):
		hint = "are the endpoints mounted under this base path?"
	case "401", "403":
		hint = "have all nodes the same keys, issuer and audience?"
	case "503":
		hint = "the announcement is repeated"
	}
	c.log.Warn("announcement rejected", zap.Int("rejected", rejected), zap.Int("peers", len(res.Results)+len(res.Failures)),
		zap.String("mostCommon", common), zap.String("basePath", c.cfg.BasePath), zap.String("hint", hint), correlationField(ctx))
}

// A departure identifies the entry of a server that has left. Peers of this package keep a newer
// entry.
type departure struct {
	serverID  string
	updatedAt string // of the entry, as it is spelled; empty if the entry has no date
}

// notifyDeparture reports to peers that a server has departed. A peer that cannot be reached takes
// it from the registry later.
func (c *Cluster) notifyDeparture(ctx context.Context, peers membership.View, departed departure) {
	c.callDeparture(ctx, peers, departed, nil)
}

// callDeparture calls the peers that filter selects; nil selects all. It returns those that missed
// the departure.
func (c *Cluster) callDeparture(ctx context.Context, peers membership.View, departed departure, filter func(Server) bool) missedPeers {
	path := "/itResources/" + peers.ID() + "/servers/" + departed.serverID
	call := &preparedRequest{
		operation:  OperationDepart,
		method:     http.MethodDelete,
		ref:        &url.URL{Path: path, RawPath: serverPath(peers.ID(), departed.serverID)},
		filter:     filter,
		noEviction: true,
	}
	if departed.updatedAt != "" {
		call.header = http.Header{unmodifiedSinceHeader: {departed.updatedAt}}
	}
	failures := newResponse(c.peers.callAll(ctx, call, peers)).Failures
	for _, o := range failures {
		c.log.Debug("departure notification failed", zap.String("peer", o.Server.ServerID), zap.Error(o.Err), correlationField(ctx))
	}
	return missedBy(failures)
}

// repeatDeparture reports this node's departure again to the peers that missed it, until none is
// left or the node is closed. It ends early if another process has registered with this node's id.
func (c *Cluster) repeatDeparture(ctx context.Context, peers membership.View, departed departure, missed missedPeers) {
	for _, pause := range repeatPauses() {
		if missed.pause(ctx, pause) != nil {
			return
		}
		entry, err := c.registry.deleteIf(ctx, peers.ID(), departed.serverID, epoch)
		if err == nil && entry != nil && (!c.address.is(entry.ClusterBaseURL) || entry.UpdatedAtText() != departed.updatedAt) {
			return // it is not the entry that UnRegister could not delete
		}
		missed = c.callDeparture(ctx, peers, departed, missed.contains)
		if len(missed.ids) == 0 {
			return
		}
	}
}

// notifyDelay is how long a node that leaves waits for the registry before it notifies its peers.
const notifyDelay = time.Second

// jitter changes d at random, by at most the given fraction. Without it, nodes that started
// together would send their requests together from then on.
func jitter(d time.Duration, fraction float64) time.Duration {
	return time.Duration(float64(d) * (1 + fraction*(2*rand.Float64()-1)))
}
