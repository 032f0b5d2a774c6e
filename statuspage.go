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
	"strings"
	"time"

	"github.com/mimiktech/cluster/internal/membership"
	"github.com/mimiktech/cluster/internal/statuspage"
	"github.com/mimiktech/cluster/internal/wire"
)

// StatusOptions set what the handler of [Cluster.StatusHandler] allows. The zero value is read-only
// and needs no authentication.
type StatusOptions struct {
	// Auth wraps the handler, and lets only authenticated requests through: for example a function
	// that checks a password by [http.Request.BasicAuth], or [Cluster.Authenticate]. If nil, the
	// page needs no authentication.
	Auth func(http.Handler) http.Handler
	// Actions offers a check of all views, called the two-way check. A POST to the page asks
	// all peers for their views, and the page then shows how these differ from each other. It
	// has no effect without Auth, because each check sends a request to every peer.
	Actions bool
}

// StatusHandler returns a handler with a page about this node. The page shows problems with their
// likely causes, the registration, the peers, servers that are gone, and the last 200 events. It
// works without scripts, and loads itself again every 10 s until that is switched off. With
// "Accept: application/json" or ?format=json the response is the same content as JSON.
//
// The page shows no tokens or secrets. But it shows addresses and errors: set Auth, or serve it
// where only operators can reach it. It answers GET and HEAD, and with Actions also POST, so the
// pattern in a mux needs no method:
//
//	mux.Handle("/status", c.StatusHandler(cluster.StatusOptions{}))
//
// Events and outcomes are recorded from the first call of StatusHandler, so call it before
// [Cluster.Register]. The memory for them is bounded by the number of peers. A node without a
// StatusHandler records nothing.
func (c *Cluster) StatusHandler(o StatusOptions) http.Handler {
	c.startRecording()
	actions := o.Actions && o.Auth != nil && c.cfg.Management
	origins := http.NewCrossOriginProtection() // browsers send credentials from any site
	var h http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodGet || r.Method == http.MethodHead:
			page := c.statusPage()
			page.Actions, page.Refresh = actions, statuspage.Refresh(r)
			statuspage.Write(w, r, statuspage.NodePage, page)
		case r.Method == http.MethodPost && actions:
			if err := origins.Check(r); err != nil {
				c.ReplyError(w, r, &StatusError{Code: http.StatusForbidden, Message: "the request comes from a page of another site"})
				return
			}
			c.checkViews(r.Context())
			w.Header().Set("Location", "?"+r.URL.RawQuery+"#check")
			w.WriteHeader(http.StatusSeeOther)
		default:
			w.Header().Set("Allow", "GET, HEAD")
			c.ReplyError(w, r, &StatusError{Code: http.StatusMethodNotAllowed, Message: "only GET and HEAD are served here"})
		}
	})
	if o.Auth != nil {
		h = o.Auth(h)
	}
	return h
}

// startRecording makes the node record events and outcomes for its status page.
func (c *Cluster) startRecording() {
	r := statuspage.NewRecorder(func(id string) bool {
		_, known := c.state.view().Get(id)
		return known
	})
	if c.recorder.CompareAndSwap(nil, r) {
		c.trace.add(c.recorderTrace(r))
	}
}

type operationKey struct{}

// recorderTrace returns the hooks that record what the status page shows.
func (c *Cluster) recorderTrace(r *statuspage.Recorder) Trace {
	t := Trace{
		Call: func(ctx context.Context, info CallInfo) (context.Context, func(CallResult)) {
			return context.WithValue(ctx, operationKey{}, info.Operation), nil
		},
		PeerDone: func(ctx context.Context, o Outcome) {
			if o.Kind == KindCanceled {
				return
			}
			operation, _ := ctx.Value(operationKey{}).(Operation)
			result := c.resultOf(o.Err, o.Kind)
			r.Outcome(o.Server.ServerID, operation != OperationFanOut, result)
			if o.Evicted {
				r.Explain(o.Server.ServerID, result.Text)
			}
		},
		EvictionDecided: func(_ context.Context, d EvictionDecision) {
			if d.Err != nil {
				c.addEvent(statuspage.Event{
					Kind: statuspage.Kept, ServerID: d.Server.ServerID, Address: d.Server.ClusterBaseURL,
					Cause: string(d.Decision), Text: d.Err.Error(),
				})
			}
		},
		MembershipChanged: func(_ context.Context, change Change) {
			kind := statuspage.Kind(change.Kind)
			if change.Source == SourceEviction {
				kind = statuspage.Evicted
			}
			c.addEvent(statuspage.Event{Kind: kind, ServerID: change.Server.ServerID, Address: change.Server.ClusterBaseURL, Cause: string(change.Source)})
		},
		BreakerChanged: func(_ context.Context, s Server, open bool) {
			cause := "closed"
			if open {
				cause = "open"
			}
			c.addEvent(statuspage.Event{Kind: statuspage.Breaker, ServerID: s.ServerID, Address: s.ClusterBaseURL, Cause: cause})
		},
	}
	c.recordRegistration(&t, r)
	return t
}

// recordRegistration adds the hooks about the registry and about callers.
func (c *Cluster) recordRegistration(t *Trace, r *statuspage.Recorder) {
	t.Request = func(ctx context.Context, info RequestInfo) (context.Context, func(RequestResult)) {
		return ctx, func(result RequestResult) {
			switch {
			case info.Target == TargetRegistry && result.Kind != KindCanceled:
				r.Replica(c.registry.replicas.baseOf(info.URL()), c.resultOf(result.Err, result.Kind))
			case info.Target == TargetPeer && result.StatusCode != 0:
				r.Latency(info.Server.ServerID, result.Duration)
			}
		}
	}
	t.Renewal = func(ctx context.Context, _ RenewalInfo) (context.Context, func(RenewalResult)) {
		return ctx, func(result RenewalResult) {
			if result.Err != nil {
				c.addEvent(statuspage.Event{Kind: statuspage.Renewal, Text: result.Err.Error()})
			}
		}
	}
	t.StateChanged = func(_ context.Context, from, to Status) {
		c.addEvent(statuspage.Event{Kind: statuspage.State, Cause: string(to.State), Text: "before: " + string(from.State)})
	}
	t.ReplicaChanged = func(_ context.Context, from, to string, err error) {
		text := "back from " + from
		if err != nil {
			text = err.Error()
		}
		c.addEvent(statuspage.Event{Kind: statuspage.Replicas, Address: to, Text: text})
	}
	t.CallerChecked = func(_ context.Context, caller CallerInfo) {
		host := hostOf(caller.RemoteAddr)
		switch caller.Result {
		case CallerAuthenticated:
			r.Accepted(host, time.Now())
			return
		case CallerInvalidToken, CallerWrongType, CallerNoPeer:
			r.Rejected(host, c.http.text(caller.Err.Error(), ""), time.Now())
		}
		c.addEvent(statuspage.Event{Kind: statuspage.Rejected, Cause: string(caller.Result), Text: "from " + host + ": " + caller.Err.Error()})
	}
}

// addEvent records an event that happens now, if there is a status page.
func (c *Cluster) addEvent(e statuspage.Event) {
	if r := c.recorder.Load(); r != nil {
		e.At, e.Address, e.Text = time.Now(), c.http.text(e.Address, ""), c.http.text(e.Text, "")
		r.Add(e)
	}
}

// resultOf describes how a request ended.
func (c *Cluster) resultOf(err error, kind Kind) statuspage.Result {
	r := statuspage.Result{At: time.Now(), Kind: string(kind)}
	if err == nil {
		return r
	}
	r.Text, r.NotConnected = c.http.text(err.Error(), ""), dialFailed(err)
	remote := ""
	if e, ok := errors.AsType[*StatusError](err); ok {
		r.StatusCode, remote = e.Code, e.Remote
	} else if e, ok := errors.AsType[*UnreachableError](err); ok {
		remote = e.Remote
	} else if e, ok := errors.AsType[*InvalidResponseError](err); ok {
		remote = e.Remote
	}
	switch {
	case isTokenError(err):
		r.Remote = "token service"
	case remote == "mIT":
		r.Remote = "registry"
	}
	return r
}

// statusPage returns the content of the status page.
func (c *Cluster) statusPage() statuspage.Page {
	now, status, stats := time.Now(), c.state.status(), c.Stats()
	page := statuspage.Page{
		Now: now, Service: c.cfg.Type, ServerID: c.cfg.ID, Address: c.address.registration().ClusterBaseURL, ResourceID: status.ResourceID,
		State: string(status.State), RenewedAt: status.RenewedAt, ExpiresAt: status.ExpiresAt(), LeaseTime: statuspage.Duration(status.LeaseTime),
		NotManaged: !c.cfg.Management,
		ClockAhead: statuspage.Duration(time.Duration(c.registry.clockAhead.Load()).Truncate(time.Second)),
		Settings:   statuspage.Settings{PeerAudience: audienceVariable(c.cfg.Type), ReceivedAudience: "OAUTH_GENERIC_AUDIENCE (or OAUTH_CLIENT_AUDIENCE)"},
		InFlight:   stats.InFlight, MaxInFlight: stats.MaxInFlight, Waiting: stats.Waiting,
	}
	if !page.ExpiresAt.IsZero() {
		page.Remaining = statuspage.Duration(max(0, page.ExpiresAt.Sub(now)))
	}
	if status.Reason != nil {
		result := c.resultOf(status.Reason, problemKind(status.Reason))
		page.Problem = &result
	}
	for _, conflict := range status.Conflicts {
		page.Conflicts = append(page.Conflicts, fmt.Sprintf("%s at %s and at %s", conflict.ServerID, conflict.Addresses[0], conflict.Addresses[1]))
	}
	current, urls := c.registry.replicas.order(false)
	for _, u := range urls {
		page.Replicas = append(page.Replicas, statuspage.Replica{URL: u, InUse: u == current})
	}
	for _, p := range c.state.view().Peers() {
		page.Peers = append(page.Peers, c.statusOfPeer(p, now))
	}
	c.recorder.Load().Fill(&page, hostOf)
	page.Diagnose()
	return page
}

func (c *Cluster) statusOfPeer(p *membership.Peer, now time.Time) statuspage.Peer {
	peer := statuspage.Peer{
		ID: p.ServerID, Address: c.http.text(p.ClusterBaseURL, ""), Self: p.ServerID == c.cfg.ID, Announced: p.Announced, UpdatedAt: p.LastUpdate(),
	}
	if !peer.UpdatedAt.IsZero() {
		peer.Age = statuspage.Duration(max(0, now.Sub(peer.UpdatedAt)))
	}
	peer.BreakerOpen, peer.InFlight = c.peers.breakers.State(p.ServerID)
	return peer
}

// problemKind is classify. It also classifies the errors of a node that has sent no request.
func problemKind(err error) Kind {
	if errors.Is(err, ErrNotRegistered) || errors.Is(err, ErrClosed) {
		return KindInvalid
	}
	return classify(err)
}

// hostOf returns the host of a base URL or of an address with a port.
func hostOf(address string) string {
	if !strings.Contains(address, "://") {
		address = "//" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// checkViews asks all peers for their views, and records the differences for the status page. If a
// check is in progress, it does nothing.
func (c *Cluster) checkViews(ctx context.Context) {
	if !c.checking.TryLock() {
		return
	}
	defer c.checking.Unlock()
	start := time.Now()
	check := statuspage.Check{At: start}
	view := c.state.view()
	if view.ID() == "" || c.ctx.Err() != nil {
		check.Err = cmp.Or(context.Cause(c.ctx), ErrNotRegistered).Error()
	} else {
		check.Servers, check.Silent, check.Views = c.compareViews(ctx, view)
	}
	check.Took = statuspage.Duration(time.Since(start))
	c.recorder.Load().SetCheck(check)
}

// compareViews announces an itResource without servers to all peers, which changes nothing. Each
// peer responds with its view.
func (c *Cluster) compareViews(ctx context.Context, view membership.View) (rows []statuspage.CheckRow, silent []statuspage.CheckFail, views int) {
	body, _ := wire.ItResource{ID: view.ID()}.MarshalJSON() // an id that has been decoded
	call := &preparedRequest{
		operation: OperationAnnounce, name: "compare-views",
		method: http.MethodPost, ref: &url.URL{Path: "/itResources"}, body: body, noEviction: true,
	}
	known := map[string][]string{c.cfg.ID: serverIDs(view)}
	for _, o := range c.peers.callAll(ensureCorrelationID(ctx), call, view) {
		var it wire.ItResource
		err := o.Err
		if err == nil {
			err = json.Unmarshal(o.Data, &it)
		}
		if err == nil {
			err = c.http.dropSecrets(&it, "")
		}
		if err != nil {
			silent = append(silent, statuspage.CheckFail{ID: o.Server.ServerID, Text: c.http.text(err.Error(), "")})
			continue
		}
		known[o.Server.ServerID] = serverIDs(membership.New(it, c.checkServer, view))
	}
	return statuspage.Compare(c.cfg.ID, known), silent, len(known)
}

func serverIDs(view membership.View) []string {
	ids := make([]string, 0, view.Len())
	for _, p := range view.Peers() {
		ids = append(ids, p.ServerID)
	}
	return slices.Clip(ids)
}
