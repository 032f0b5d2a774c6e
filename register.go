package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster/internal/membership"
	"github.com/mimiktech/cluster/internal/wire"
)

// Register joins the cluster. It registers with mIT, trying again every
// Config.RegistrationRetry until it succeeds or ctx ends, and starts the lease; with
// Config.Management it then announces the node to all peers. The Response says which of them
// took it in; what they answer is of no use to a node that has its view from mIT, so peers of
// this package answer null, and those of the npm module all they know. With management off the
// Response is nil.
//
// ctx bounds this call only: the lease lasts until [Cluster.UnRegister] or [Cluster.Close],
// which also end a Register under way. Registering again while registered renews and
// announces once more.
func (c *Cluster) Register(ctx context.Context) (*Response, error) {
	ctx, cancel := mergeCancel(ensureCorrelationID(ctx), c.memberCtx)
	defer cancel()
	wait, err := c.registerWithRetry(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.startLease(ctx, wait); err != nil {
		return nil, err
	}
	if !c.cfg.Management {
		return nil, nil
	}
	return c.announce(ctx, false), nil
}

// join registers until mIT accepts, and says when to renew.
func (c *Cluster) registerWithRetry(ctx context.Context) (time.Duration, error) {
	c.update(func(*membership.View, *Status) {}) // so that the environment shows the orphan
	var last error
	for {
		r, err := c.renew(ctx)
		if err == nil {
			return r.renewIn, nil
		}
		if cause := context.Cause(ctx); cause != nil {
			if last == nil {
				last = err // it says at least who did not answer
			}
			if errors.Is(last, cause) {
				return 0, fmt.Errorf("cluster: registering: %w", last)
			}
			return 0, fmt.Errorf("cluster: registering: %w, after: %w", cause, last)
		}
		last = err
		wait := jitter(c.cfg.RegistrationRetry, 1.0/3)
		c.renewFailed(ctx, err, wait)
		_ = c.pause(ctx, wait) // the end of ctx is found above
	}
}

// renewal is what came of a renewal that succeeded.
type renewal struct {
	renewIn       time.Duration // until the next is due
	needsAnnounce bool          // peers may not know us: our lease had run out, or our entry is a new one
}

// renew registers or renews; it is the same call. What mIT answers becomes the view, but if it has
// forgotten everybody, those it has not listed since stay for a lease. One is under way at a time.
func (c *Cluster) renew(ctx context.Context) (renewal, error) {
	select {
	case c.registrationLock <- struct{}{}:
		defer func() { <-c.registrationLock }()
	case <-ctx.Done():
		return renewal{}, context.Cause(ctx)
	}
	if err := context.Cause(c.memberCtx); err != nil {
		return renewal{}, err
	}
	before, sent := c.snapshot(), time.Now()
	path := "/itResources"
	if !c.cfg.Management {
		path += "?managedCluster=off"
	}
	var (
		it    wire.ItResource
		lease time.Duration
	)
	if err := c.askRegistry(ctx, http.MethodPost, path, c.self, func(answer []byte) (err error) {
		it, lease, err = c.decodeRegistration(answer)
		return err
	}); err != nil {
		return renewal{}, err
	}
	if it.Skipped != nil { // nobody can name them, but all others are there
		c.log.Warn("mIT answered bad entries", zap.Error(it.Skipped), correlationField(ctx))
	}
	answered := membership.New(it, c.policy.checkServer, before)
	// The lease runs from when the request was sent, so the time mIT took is part of the wait.
	r := renewal{renewIn: max(0, jitter(time.Duration(c.cfg.RenewalFraction*float64(lease)), 0.1)-time.Since(sent))}
	var keepUntil time.Time
	if registryWasReset(before, it, c.cfg.ID) {
		keepUntil = sent.Add(lease) // by then all who live have renewed
	}
	c.update(func(view *membership.View, s *Status) {
		r.needsAnnounce = s.State == Lost || c.mustReregister || recreated(before, it, c.cfg.ID)
		c.mustReregister = false
		*view = answered.Reconcile(before, *view).Retain(*view, sent, keepUntil)
		if s.State != Left {
			s.State, s.Reason = Registered, nil
		}
		s.ResourceID, s.LeaseTime, s.RenewedAt, s.UpdatedAt = view.ID(), lease, sent, time.Now()
	})
	c.trace.renewed(lease, r.renewIn)
	return r, nil
}

// reborn tells whether mIT's entry of this node is another than it was: somebody had it
// deleted, or mIT lost it, so peers may have been told that we are gone.
func recreated(before membership.View, it wire.ItResource, id string) bool {
	was, known := before.Get(id)
	if !known {
		return false
	}
	for _, s := range it.Servers {
		if s.ServerID == id {
			return !s.CreatedAt.Equal(was.CreatedAt)
		}
	}
	return false
}

// blank tells whether mIT has forgotten everybody, as one that keeps all in memory has after a
// restart: it has neither this node's entry nor that of anybody else as it was. Then those it does
// not list have likely just not renewed yet. An entry that was made since this node renewed, and
// that it has been told of, says nothing about that.
func registryWasReset(before membership.View, it wire.ItResource, id string) bool {
	if !recreated(before, it, id) {
		return false
	}
	me, _ := before.Get(id)
	for _, s := range it.Servers {
		was, known := before.Get(s.ServerID)
		if known && s.CreatedAt.Equal(was.CreatedAt) && !s.CreatedAt.After(me.LastUpdate()) {
			return false
		}
	}
	return true
}

// readRegistered reads what mIT answers to a registration. An answer that does not name this
// node is no view of the cluster: taking it over would make a node forget its peers because
// the registry had a bad moment.
func (c *Cluster) decodeRegistration(body []byte) (wire.ItResource, time.Duration, error) {
	var answer wire.Registered
	if err := json.Unmarshal(body, &answer); err != nil {
		return wire.ItResource{}, 0, err
	}
	if answer.ItResource == nil {
		return wire.ItResource{}, 0, errors.New("no itResource in it")
	}
	for _, s := range answer.ItResource.Servers {
		if s.ServerID == c.cfg.ID {
			return *answer.ItResource, leaseOf(answer.LeaseTime), nil
		}
	}
	err := fmt.Errorf("this node is not among its %d servers", len(answer.ItResource.Servers))
	if leftOut := answer.ItResource.Skipped; leftOut != nil {
		err = fmt.Errorf("%w; %w", err, leftOut)
	}
	return wire.ItResource{}, 0, err
}

// announce tells all peers that this node is in the cluster: of the servers only its own entry,
// for what it knows of the others is mIT's to tell, and all lists of all nodes that start
// together would be a flood. With everybody it tells them of all servers.
func (c *Cluster) announce(ctx context.Context, everybody bool) *Response {
	view := c.snapshot()
	news := view.Select(c.cfg.ID)
	if everybody {
		news = view
	}
	// json.Marshal would spell entries anew.
	body, err := news.Resource().MarshalJSON()
	if err != nil { // it was JSON when it came
		c.log.Error("cannot announce", zap.Error(err), correlationField(ctx))
		return newResponse(nil)
	}
	return c.collect(ctx, &preparedRequest{
		method: http.MethodPost,
		ref:    &url.URL{Path: "/itResources"},
		header: http.Header{"Prefer": {returnMinimal}},
		body:   body,
	}, view)
}

// A Departure is how leaving went.
type Departure struct {
	// NbServers is how many servers the cluster had, this one included; 0 if it never registered.
	NbServers int
	ServerID  string
	// Errors are why mIT may still list this node, until its lease runs out.
	Errors []error
}

// MarshalJSON gives what the npm module's unRegister gives, errors as their messages.
func (d Departure) MarshalJSON() ([]byte, error) {
	out := struct {
		NbServers int      `json:"nbServers"`
		ServerID  string   `json:"serverId"`
		Errors    []string `json:"errors,omitempty"`
	}{NbServers: d.NbServers, ServerID: d.ServerID}
	for _, err := range d.Errors {
		out.Errors = append(out.Errors, err.Error())
	}
	return json.Marshal(out)
}

// UnRegister leaves the cluster politely: it stops the lease, has mIT delete the node, and
// with Config.Management tells all peers. Peers that do not answer are not waited for beyond
// Config.RequestTimeout, are not evicted, and are no error: they learn it at their next renewal.
//
// It blocks until all that is done or ctx ends, and never fails as a whole: what went wrong is
// in the Departure. It may be called at any time, also before or during Register, which it
// ends, and again: a second call tries once more what failed and else does nothing.
func (c *Cluster) UnRegister(ctx context.Context) Departure {
	left := fmt.Errorf("%w: it has left", ErrNotRegistered)
	c.cancelMember(left)
	c.scheduler.Close()
	d := Departure{ServerID: c.cfg.ID}

	ctx, cancel := mergeCancel(ensureCorrelationID(ctx), c.ctx)
	defer cancel()
	select { // a registration under way must not come after the delete
	case c.registrationLock <- struct{}{}:
		defer func() { <-c.registrationLock }()
	case <-ctx.Done():
		d.Errors = append(d.Errors, context.Cause(ctx))
	}
	var (
		view     membership.View
		departed bool
	)
	c.update(func(v *membership.View, s *Status) {
		view, departed = *v, c.deregistered
		if s.RenewedAt.IsZero() { // it never registered, whatever peers announced to it
			view, departed = membership.View{}, true
		}
		if s.State != Left {
			s.State, s.Reason = Left, left
		}
	})
	d.NbServers = view.Len()
	if departed || d.Errors != nil {
		return d
	}
	path := "/itResources/" + url.PathEscape(view.ID()) + "/servers/" + url.PathEscape(c.cfg.ID)
	whatever := func([]byte) error { return nil }
	if err := c.askRegistry(ctx, http.MethodDelete, path, nil, whatever); err != nil {
		d.Errors = append(d.Errors, err)
		c.log.Warn("mIT was not told that we leave", zap.Error(err), correlationField(ctx))
	}
	if c.cfg.Management {
		c.notifyDeparture(ctx, view, c.cfg.ID)
	}
	c.mu.Lock()
	c.deregistered = d.Errors == nil
	c.mu.Unlock()
	return d
}

// tell has the peers of a view forget one server. Who does not listen learns it from mIT.
func (c *Cluster) notifyDeparture(ctx context.Context, view membership.View, gone string) {
	ref := &url.URL{
		Path:    "/itResources/" + view.ID() + "/servers/" + gone,
		RawPath: "/itResources/" + url.PathEscape(view.ID()) + "/servers/" + url.PathEscape(gone),
	}
	f := c.newFanOut(&preparedRequest{method: http.MethodDelete, ref: ref, noEviction: true}, view)
	for i := range f.run(ctx) {
		if o := f.outcomes[i]; o.Err != nil {
			c.log.Debug("peer not told that a server is gone", zap.String("peer", o.Server.ServerID), zap.Error(o.Err), correlationField(ctx))
		}
	}
}

// jitter is d, give or take a share of it: a fleet must not act in step.
func jitter(d time.Duration, share float64) time.Duration {
	return time.Duration(float64(d) * (1 + share*(2*rand.Float64()-1)))
}
