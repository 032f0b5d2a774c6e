package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster/api"
	"github.com/mimiktech/cluster/internal/httpjson"
	"github.com/mimiktech/cluster/internal/membership"
	"github.com/mimiktech/cluster/internal/statuspage"
	"github.com/mimiktech/cluster/internal/token"
	"github.com/mimiktech/cluster/internal/wire"
)

// Mount registers the two endpoints that peers call, under Config.BasePath. mux may be any router
// that accepts the patterns of net/http. For other routers, use [Cluster.Routes].
func (c *Cluster) Mount(mux interface {
	Handle(pattern string, handler http.Handler)
},
) {
	for _, r := range c.Routes() {
		mux.Handle(r.Method+" "+r.Pattern, r.Handler)
	}
}

// A Route is an endpoint to register with a router.
type Route struct {
	Method  string
	Pattern string // a path with wildcards like {id}, as net/http, chi and gorilla/mux spell them
	Handler http.Handler
}

// ColonPattern returns the Pattern with wildcards like :id, as gin, echo and fiber spell them.
func (r Route) ColonPattern() string {
	return strings.NewReplacer("{", ":", "}", "").Replace(r.Pattern)
}

// Routes returns the two endpoints that peers call, under Config.BasePath. It is for routers that
// [Cluster.Mount] cannot use. The handlers need nothing from the router: they read the wildcards
// from the path.
func (c *Cluster) Routes() []Route {
	resources := c.cfg.BasePath + "/itResources"
	return []Route{
		{http.MethodPost, resources, http.HandlerFunc(c.CreateItResource)},
		{http.MethodDelete, resources + "/{id}/servers/{serverId}", http.HandlerFunc(c.DeleteServer)},
	}
}

// OpenAPIHandler returns a handler that serves the OpenAPI document of the two endpoints that peers
// call, in YAML, with this node's Config.BasePath. It needs no token and answers GET and HEAD.
func (c *Cluster) OpenAPIHandler() http.Handler {
	document := api.Node(c.cfg.BasePath)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { httpjson.WriteYAML(w, r, document) })
}

// CreateItResource is the endpoint at which peers announce themselves: POST {base}/itResources
// with an itResource as the body. It merges the servers into the view, and keeps the newer of two
// entries of one server. The response is the itResource with all known servers. It is null if there
// is none yet, or if the request has "Prefer: return=minimal" (RFC 7240), which nodes of this
// package send.
//
// The request must carry a cluster token of the node's own type. An itResource with another id
// changes nothing, and is not an error. One without servers only asks for the view. A server that
// the [PeerPolicy] does not allow is ignored. If the token is bound to one server
// ([Claims].ServerID), all other servers are ignored, too.
func (c *Cluster) CreateItResource(w http.ResponseWriter, r *http.Request) {
	if c.ownRequest.is(r) {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	release := func() {}
	defer func() { release() }()
	c.servePeer(w, r, func(ctx context.Context) (any, error) {
		it, err := c.readAnnouncement(w, r)
		if err != nil {
			return nil, err
		}
		if it.Skipped != nil && len(it.Servers) == 0 {
			return nil, &StatusError{Code: http.StatusBadRequest, Message: "the body is not an itResource: " + it.Skipped.Error()}
		}
		view, err := c.mergeAnnounced(ctx, it, senderOf(r))
		if err != nil {
			return nil, err
		}
		if prefersMinimal(r.Header) {
			w.Header().Set("Preference-Applied", returnMinimal)
			return nil, nil
		}
		if view.ID() == "" { // the node has not registered
			return nil, nil
		}
		var resource wire.ItResource
		resource, release = c.fullList(w, view)
		return resource, nil
	})
}

// DeleteServer is the endpoint at which peers report departures: DELETE
// {base}/itResources/{id}/servers/{serverId}. It removes the server from the view. The response is
// the id of the server, even if the server is unknown.
//
// The request must carry a cluster token of the node's own type. If the itResource has another id,
// nothing changes and the response is null. If the server is this node itself, the node does not
// remove itself, but registers again. The request may have the header X-Unmodified-Since, with the
// updatedAt of the departed entry. A newer entry of the server then stays.
func (c *Cluster) DeleteServer(w http.ResponseWriter, r *http.Request) {
	c.servePeer(w, r, func(ctx context.Context) (any, error) {
		id, serverID, err := departedServer(r)
		if err != nil {
			return nil, err
		}
		// An invalid date is treated as a missing one.
		since, _ := time.Parse(time.RFC3339, r.Header.Get(unmodifiedSinceHeader))
		return c.removeDeparted(ctx, id, serverID, since), nil
	})
}

// A Verifier verifies the token of an incoming request: its signature, issuer, audience and
// expiry. Verify may block until ctx ends. Its error is sent to the caller, except for one that
// wraps [ErrVerifierUnavailable].
type Verifier interface {
	Verify(ctx context.Context, token string) (Claims, error)
}

// Claims are the claims of a verified token.
type Claims struct {
	Subject  string // sub
	SubType  string // subType: the type of service that the token was issued to
	Type     string // type: "cluster" in a cluster token
	Customer string // cust
	ServerID string // serverId: the only server that the token was issued to; "" for any of its type
	Scope    string // scope: words separated by spaces

	ExpiresAt time.Time       // exp
	Raw       json.RawMessage // all claims
}

// ClaimsFrom returns the claims of the caller, in a request that [Cluster.Authenticate] has let
// through.
func ClaimsFrom(ctx context.Context) (Claims, bool) {
	claims, ok := ctx.Value(claimsKey{}).(Claims)
	return claims, ok
}

// Authenticate calls next for requests with a valid bearer token: issued by the token service, for
// this node's audience, and not expired. It answers a missing or malformed header with 401. It
// answers an invalid token with 403, because callers of the npm module fetch a new token only after
// a 403. If a request has a token but the [Verifier] cannot verify tokens at the moment,
// Authenticate answers 503. The context of the request has the claims ([ClaimsFrom]) and the
// correlation id ([CorrelationID]). The response has the correlation id, too. Authenticate does not
// check what the caller is allowed to do.
func (c *Cluster) Authenticate(next http.Handler) http.Handler {
	return c.authenticate(next, func(Claims) (CallerCheck, error) { return CallerAuthenticated, nil })
}

// AuthenticatePeer is like Authenticate, for endpoints that peers call. It answers with 403 if the
// token was issued to another type of service. The token need not be a cluster token.
func (c *Cluster) AuthenticatePeer(next http.Handler) http.Handler {
	return c.authenticate(next, func(claims Claims) (CallerCheck, error) {
		if claims.SubType != c.cfg.Type {
			return CallerWrongType, &StatusError{Code: http.StatusForbidden, Message: c.wrongTypeMessage(claims)}
		}
		return CallerAuthenticated, nil
	})
}

// RequireScope calls next for a request if the scope claim of its token has all words of scope. It
// answers other requests with 403. The claims must be in the request's context: wrap the result in
// [Cluster.Authenticate] or [Cluster.AuthenticatePeer]. A request without claims is answered with
// 401. An empty scope lets no request through.
func (c *Cluster) RequireScope(scope string, next http.Handler) http.Handler {
	required := strings.Fields(scope)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		claims, ok := ClaimsFrom(r.Context())
		if !ok {
			w.Header().Set("WWW-Authenticate", "Bearer")
			c.ReplyError(w, r, &StatusError{Code: http.StatusUnauthorized, Message: "the request is not authenticated"})
			return
		}
		granted := strings.Fields(claims.Scope)
		lacks := func(word string) bool { return !slices.Contains(granted, word) }
		if len(required) == 0 || slices.ContainsFunc(required, lacks) {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer error=%q, scope=%q", "insufficient_scope", scope))
			c.ReplyError(w, r, &StatusError{Code: http.StatusForbidden, Message: fmt.Sprintf("the token lacks the scope %q", scope)})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Reply sends a 200 response with data in the envelope that peers expect: {"data": …, "server":
// {"serverId": …}}. Endpoints that peers call with [Cluster.RPCluster] must use it.
func (c *Cluster) Reply(w http.ResponseWriter, r *http.Request, data any) {
	c.ReplyStatus(w, r, http.StatusOK, data)
}

// ReplyStatus is like Reply with another 2xx status, such as 201. The statuses 204 and 205 have no
// body, and so do not allow data. A status that is not a 2xx is replaced by 500. For an error, use
// [Cluster.ReplyError].
func (c *Cluster) ReplyStatus(w http.ResponseWriter, r *http.Request, status int, data any) {
	if status < 200 || status > 299 {
		c.ReplyError(w, r, fmt.Errorf("a reply with the status %d, which is not a 2xx", status))
		return
	}
	if status == http.StatusNoContent || status == http.StatusResetContent {
		if data != nil {
			c.ReplyError(w, r, fmt.Errorf("a reply with data and the status %d, which has no body", status))
			return
		}
		c.writeJSON(w, r, status, nil)
		return
	}
	envelope := struct {
		Data   any            `json:"data"`
		Server wire.ServerRef `json:"server"`
	}{data, wire.ServerRef{ServerID: c.cfg.ID}}
	var (
		body []byte
		err  error
	)
	c.http.long.Do(listBytes(data), func() { body, err = wire.Marshal(envelope) })
	if err != nil {
		c.ReplyError(w, r, fmt.Errorf("encoding the response: %w", err))
		return
	}
	c.writeJSON(w, r, status, body)
}

// ReplyError sends an error response: {"statusCode", "title", "message", "info"?}. A [StatusError]
// without a Remote, such as &StatusError{Code: 404, Message: "no such thing"}, sets the status if
// its Code is at least 400. The Code may also be 206 or 207, which npm services send with an error
// if only a part of a request succeeded. For [ErrInvalidRequest] the status is 400, for
// [ErrManagementOff] 409, for [ErrClosed] and [ErrNotRegistered] 503, and for any other error 500.
func (c *Cluster) ReplyError(w http.ResponseWriter, r *http.Request, err error) {
	response := wire.Error{StatusCode: http.StatusInternalServerError, Message: c.http.text(err.Error(), bearerToken(r.Header))}
	switch {
	case errors.Is(err, ErrInvalidRequest):
		response.StatusCode = http.StatusBadRequest
	case errors.Is(err, ErrManagementOff):
		response.StatusCode = http.StatusConflict
	case errors.Is(err, ErrClosed), errors.Is(err, ErrNotRegistered):
		response.StatusCode = http.StatusServiceUnavailable
	}
	// The status that a remote sent to this node does not apply to the request of the caller.
	if se, ok := errors.AsType[*StatusError](err); ok && se.Remote == "" && isErrorStatus(se.Code) {
		response.StatusCode, response.Message, response.Info = se.Code, se.Message, se.Info
	}
	response.Title = http.StatusText(response.StatusCode)
	c.log.Debug("request rejected", zap.Int("statusCode", response.StatusCode), zap.String("path", r.URL.Path), zap.Error(err), correlationField(r.Context()))
	body, err := json.Marshal(response)
	if err != nil { // Info is not valid JSON
		response.Info = nil
		body, _ = json.Marshal(response)
	}
	c.writeJSON(w, r, response.StatusCode, body)
}

// isErrorStatus reports whether ReplyError may send a status.
func isErrorStatus(code int) bool {
	return code >= 400 && code <= 599 || code == http.StatusPartialContent || code == http.StatusMultiStatus
}

// unmodifiedSinceHeader has the precondition of a departure. Its name is not If-Unmodified-Since,
// because that has whole seconds.
const unmodifiedSinceHeader = "X-Unmodified-Since"

type claimsKey struct{}

// keyVerifier verifies tokens with the keys of a node.
type keyVerifier struct{ keys *token.Keys }

func (v keyVerifier) Verify(_ context.Context, text string) (Claims, error) {
	verifier, err := v.keys.Verifier()
	if err != nil {
		return Claims{}, fmt.Errorf("%w: %w", ErrVerifierUnavailable, err)
	}
	claims, err := verifier.Verify(text)
	return Claims(claims), err
}

// authenticate passes requests with a valid token to next, if check accepts its claims.
func (c *Cluster) authenticate(next http.Handler, check func(Claims) (CallerCheck, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := WithCorrelationID(r.Context(), wire.NextCorrelationID(r.Header.Get(wire.CorrelationHeader)))
		r = r.WithContext(ctx)
		caller := c.verifyCaller(r)
		if caller.Err == nil {
			caller.Result, caller.Err = check(caller.Claims)
		}
		c.trace.callerChecked(ctx, caller)
		if caller.Err != nil {
			if caller.Result == CallerNoToken {
				w.Header().Set("WWW-Authenticate", "Bearer")
			}
			c.ReplyError(w, r, caller.Err)
			return
		}
		w.Header().Set(wire.CorrelationHeader, CorrelationID(ctx))
		next.ServeHTTP(w, r.WithContext(context.WithValue(ctx, claimsKey{}, caller.Claims)))
	})
}

// verifyCaller verifies the token of a request.
func (c *Cluster) verifyCaller(r *http.Request) CallerInfo {
	caller := CallerInfo{Result: CallerNoToken, RemoteAddr: r.RemoteAddr}
	text, err := httpjson.BearerToken(r.Header)
	if err == nil && len(text) > token.MaxBytes {
		err, caller.Result = token.ErrTooLong, CallerInvalidToken
	}
	if err == nil {
		caller.Result = CallerInvalidToken
		var claims Claims
		if claims, err = c.callVerifier(r.Context(), text); err == nil {
			caller.Result, caller.Claims = CallerAuthenticated, claims
			c.refusals.reset()
			return caller
		}
	}
	reason := c.http.quote(err.Error(), bearerToken(r.Header))
	if _, panicked := errors.AsType[*PanicError](err); panicked || errors.Is(err, ErrVerifierUnavailable) {
		if c.verifierWarning.due(time.Now()) {
			c.log.Error("token verification unavailable", zap.String("reason", reason), stackOf(err), correlationField(r.Context()))
		}
		caller.Result = CallerNotVerified
		caller.Err = &StatusError{Code: http.StatusServiceUnavailable, Message: "tokens cannot be verified at the moment"}
		return caller
	}
	code := http.StatusUnauthorized
	if caller.Result == CallerInvalidToken {
		code = http.StatusForbidden // npm callers fetch a new token only then
		c.warnRefused(r, reason)
	}
	caller.Err = &StatusError{Code: code, Message: "invalid token: " + reason}
	return caller
}

// warnRefused logs a warning if this node refuses every caller, which indicates a fault of the
// node.
func (c *Cluster) warnRefused(r *http.Request, reason string) {
	n := c.refusals.add()
	if n < minRefusals || !c.refusals.warning.due(time.Now()) {
		return
	}
	c.log.Warn("tokens of all callers are refused", zap.Int64("inARow", n), zap.String("reason", reason), zap.String("remoteAddr", r.RemoteAddr),
		zap.String("hint", "has this node the issuer, the audience and the key of the token service that its callers use?"), correlationField(r.Context()))
}

// minRefusals is the number of refused tokens in a row that indicates a fault of the node. One
// caller causes fewer: it repeats a request once with a new token.
const minRefusals = 5

// refusals counts the tokens that were refused since the last valid one.
type refusals struct {
	inARow  atomic.Int64
	warning minuteLimit
}

func (r *refusals) add() int64 { return r.inARow.Add(1) }

func (r *refusals) reset() {
	if r.inARow.Load() != 0 { // avoids a write in the usual case
		r.inARow.Store(0)
	}
}

func (c *Cluster) callVerifier(ctx context.Context, text string) (claims Claims, err error) {
	defer catchPanic("Verifier", &err)
	return c.verifier.Verify(ctx, text)
}

// listBytes returns the size of the entries if data is a list of servers, and 0 otherwise.
func listBytes(data any) (n int) {
	it, _ := data.(wire.ItResource)
	for _, s := range it.Servers {
		n += len(s.Raw)
	}
	return n
}

// maxListBytes bounds the total size of the lists of servers in responses that are being written.
const maxListBytes = 64 << 20

// fullList returns the resource for a response to an announcement, and a function to call when the
// response has been written. The list has this node alone while too many others are being written.
func (c *Cluster) fullList(w http.ResponseWriter, view membership.View) (wire.ItResource, func()) {
	size := view.Size().Bytes
	if !c.lists.TryAcquire(size) {
		return view.Select(c.cfg.ID).Resource(), func() {}
	}
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Now().Add(c.cfg.RequestTimeout)) // not all writers support it
	return view.Resource(), func() {
		_ = control.Flush()
		_ = control.SetWriteDeadline(time.Time{})
		c.lists.Release(size)
	}
}

// A senderLimit bounds how many new servers one sender may announce per minute. A node announces
// itself. An npm node announces all servers that it knows.
type senderLimit struct {
	mu     sync.Mutex // guards the fields below
	since  time.Time
	counts map[string]int
}

const (
	maxNewServers = 256
	maxSenders    = 4096 // that are counted
)

// allow reports whether sender may announce n more servers.
func (l *senderLimit) allow(sender string, n int, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.counts == nil || now.Sub(l.since) >= time.Minute {
		l.since, l.counts = now, make(map[string]int)
	}
	count, known := l.counts[sender]
	if count+n > maxNewServers || !known && len(l.counts) == maxSenders {
		return false
	}
	l.counts[sender] = count + n
	return true
}

func senderOf(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// confirmAnnounced renews, at most once a minute, so that the view gets what the registry confirms.
// If the last such renewal is less than a minute ago, the next one follows soon after that minute.
// It is skipped if the node has renewed since it was asked for.
func (c *Cluster) confirmAnnounced() {
	wait, isNew := c.confirmation.schedule()
	if !isNew {
		return
	}
	time.AfterFunc(wait, func() {
		if c.confirmation.isOpenAt(c.state.status().RenewedAt) {
			c.triggerRenewal()
		}
	})
}

// confirmations spaces the renewals that confirm announced servers.
type confirmations struct {
	mu    sync.Mutex // guards the fields below
	last  time.Time  // of the last one, which may be still to come
	asked time.Time  // when one was last asked for
}

// schedule returns how long to wait before the next one. If one is still to come, isNew is false.
func (l *confirmations) schedule() (wait time.Duration, isNew bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now() // not before the lock: the pending one may be canceled meanwhile
	l.asked = now
	if l.last.After(now) {
		return 0, false
	}
	if now.Sub(l.last) < time.Minute { // many nodes may have asked at the same moment
		wait = l.last.Add(jitter(64*time.Second, 1.0/16)).Sub(now)
	}
	l.last = now.Add(wait)
	return wait, true
}

// isOpenAt reports whether a confirmation has been asked for since a renewal that was sent at the
// given time.
func (l *confirmations) isOpenAt(renewed time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.asked.Before(renewed)
}

// mergeAnnounced merges an announcement into the view, and returns the view. Entries that exceed
// the limits for unconfirmed ones are left out: the registry lists those that exist.
func (c *Cluster) mergeAnnounced(ctx context.Context, it wire.ItResource, sender string) (membership.View, error) {
	if len(it.Servers) == 0 { // the caller only asks for the view, maybe under a made-up id
		return c.state.view(), nil
	}
	c.checkAnnouncedSelf(ctx, it)
	if c.policy.VerifyWithRegistry {
		c.triggerRenewal()
		return c.state.view(), nil
	}
	announced := membership.Announced(it, c.checkServer, c.state.view())
	problems := []error{it.Skipped}
	for _, p := range announced.Peers() {
		problems = append(problems, p.Err)
	}
	if err := errors.Join(problems...); err != nil && c.invalidWarning.due(time.Now()) {
		c.log.Warn("announcement contains invalid servers", zap.Error(err), correlationField(ctx))
	}
	// This node's own entry comes from the registry only.
	announced = c.ofSender(ctx, announced.Allowed().Without(c.cfg.ID))
	if n := c.state.view().CountNew(announced); n > 0 && !c.senders.allow(sender, n, time.Now()) {
		c.confirmAnnounced()
		return c.state.view(), nil
	}
	merged, err := c.state.applyAnnouncement(ctx, announced, viewLimits{c.policy.maxServers(), c.cfg.MaxResponseBytes})
	if merged.tooMany || merged.ignored {
		c.confirmAnnounced()
	}
	if merged.disputed {
		c.triggerRenewal()
	}
	c.checkMoved(ctx, merged.moved)
	if err == nil && merged.view.ID() != it.ID {
		c.logIgnored(ctx, merged.view.ID(), it.ID)
	}
	return merged.view, err
}

// ofSender returns the servers of an announcement that its sender may announce: only its own one if
// its token is bound to that. The registry confirms others that exist.
func (c *Cluster) ofSender(ctx context.Context, announced membership.View) membership.View {
	claims, _ := ClaimsFrom(ctx)
	if claims.ServerID == "" {
		return announced
	}
	if others := announced.Without(claims.ServerID); c.state.view().CountNew(others) > 0 {
		c.log.Debug("ignored servers that are not the sender of their announcement",
			zap.String("sender", excerpt(claims.ServerID)), zap.Int("nbServers", others.Len()), correlationField(ctx))
		c.confirmAnnounced()
	}
	return announced.Select(claims.ServerID)
}

// checkAnnouncedSelf looks for an entry of this node at another address. Only an entry that is
// newer than the known one counts: an older one may be from before a restart.
func (c *Cluster) checkAnnouncedSelf(ctx context.Context, it wire.ItResource) {
	own, known := c.state.view().Get(c.cfg.ID)
	for _, s := range it.Servers {
		if known && s.ServerID == c.cfg.ID && s.LastUpdate().After(own.LastUpdate()) {
			c.checkOwnEntry(ctx, s)
		}
	}
}

// checkServer is the check of the [PeerPolicy]. It also rejects another server at this node's
// address: that server is gone, because its address now belongs to this node.
func (c *Cluster) checkServer(s wire.Server) (*url.URL, error) {
	base, err := c.policy.checkServer(s)
	if err == nil && s.ServerID != c.cfg.ID && c.address.isURL(base) {
		return nil, fmt.Errorf("not called, because this node has its address: %w",
			&WrongServerError{URL: withoutQuery(base), Want: s.ServerID, Got: c.cfg.ID})
	}
	return base, err
}

// removeDeparted removes a server from the view, unless its entry is newer than unmodifiedSince.
// It returns the data of the response.
func (c *Cluster) removeDeparted(ctx context.Context, id, serverID string, unmodifiedSince time.Time) any {
	if c.policy.VerifyWithRegistry && serverID != c.cfg.ID {
		c.state.cancelPending(ctx, serverID) // even if the report is wrong, the peers have been notified
		c.triggerRenewal()
		return serverID
	}
	switch c.state.applyDeparture(ctx, id, serverID, unmodifiedSince) {
	case departureIgnored:
		c.logIgnored(ctx, c.state.view().ID(), id)
		return nil
	case departureOfSelf:
		if c.departedWarning.due(time.Now()) {
			c.log.Warn("reported as departed by a peer; registering again", correlationField(ctx))
		}
		c.addEvent(statuspage.Event{Kind: statuspage.Removed, Text: "a peer reports this node as departed; it registers again"})
		c.triggerRenewal()
	}
	return serverID
}

func (c *Cluster) logIgnored(ctx context.Context, own, received string) {
	if !c.ignoredWarning.due(time.Now()) {
		return
	}
	c.log.Warn("ignored message for another itResource", zap.String("itResource", own), zap.String("received", received), correlationField(ctx))
}

// servePeer authenticates a peer, and sends the result of handle.
func (c *Cluster) servePeer(w http.ResponseWriter, r *http.Request, handle func(context.Context) (any, error)) {
	c.authenticate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, err := handle(r.Context())
		if err != nil {
			c.ReplyError(w, r, err)
			return
		}
		c.Reply(w, r, data)
	}), c.checkPeer).ServeHTTP(w, r)
}

func (c *Cluster) checkPeer(claims Claims) (CallerCheck, error) {
	switch {
	case claims.Type != "cluster":
		return CallerNoPeer, &StatusError{Code: http.StatusBadRequest, Message: "invalid token: must be a cluster token"}
	case claims.SubType != c.cfg.Type:
		return CallerWrongType, &StatusError{Code: http.StatusBadRequest, Message: c.wrongTypeMessage(claims)}
	}
	return CallerAuthenticated, nil
}

func (c *Cluster) wrongTypeMessage(claims Claims) string {
	return fmt.Sprintf("invalid token: its type is %.40q, not %q", claims.SubType, c.cfg.Type)
}

const returnMinimal = "return=minimal"

// prefersMinimal reports whether a request has the preference return=minimal. If a preference is
// repeated, the first one counts.
func prefersMinimal(h http.Header) bool {
	for preference := range strings.SplitSeq(strings.Join(h.Values("Prefer"), ","), ",") {
		preference, _, _ = strings.Cut(preference, ";") // its parameters
		name, value, _ := strings.Cut(preference, "=")
		if strings.EqualFold(strings.TrimSpace(name), "return") {
			return strings.Trim(strings.TrimSpace(value), `"`) == "minimal"
		}
	}
	return false
}

// departedServer returns the ids in a request to DeleteServer. They are the end of the path. The
// path values of the router are used only for a path of another form. An outer router may use the
// same names for other parts of the path.
func departedServer(r *http.Request) (id, serverID string, err error) {
	if parts := strings.Split(r.URL.EscapedPath(), "/"); len(parts) >= 4 {
		parts = parts[len(parts)-4:]
		if parts[0] == "itResources" && parts[2] == "servers" {
			id, _ = url.PathUnescape(parts[1]) // EscapedPath is valid
			serverID, _ = url.PathUnescape(parts[3])
			return id, serverID, nil
		}
	}
	id, serverID = r.PathValue("id"), r.PathValue("serverId")
	if id == "" || serverID == "" {
		return "", "", &StatusError{Code: http.StatusBadRequest, Message: "the path does not end in /itResources/{id}/servers/{serverId}"}
	}
	return id, serverID, nil
}

// readAnnouncement reads and decodes the body of an announcement, bounded in size and in time. It
// leaves out entries that repeat a secret of this node.
func (c *Cluster) readAnnouncement(w http.ResponseWriter, r *http.Request) (it wire.ItResource, err error) {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(c.cfg.RequestTimeout)) // not all writers support it
	body, err := httpjson.ReadBody(w, r, c.cfg.MaxRequestBytes)
	if bodyErr, ok := errors.AsType[*httpjson.BodyError](err); ok && bodyErr.StatusCode == http.StatusRequestEntityTooLarge {
		return it, &StatusError{Code: bodyErr.StatusCode, Message: bodyErr.Message}
	}
	var secretErr error
	if err == nil {
		// After an error the deadline stays: the server reads the rest of the body before it
		// responds.
		_ = control.SetReadDeadline(time.Time{})
		c.http.long.Do(len(body), func() {
			if err = json.Unmarshal(body, &it); err == nil {
				secretErr = c.http.dropSecrets(&it, c.cfg.ID)
			}
		})
	}
	if err != nil {
		return it, &StatusError{Code: http.StatusBadRequest, Message: "the body is not an itResource: " + c.http.quote(err.Error(), bearerToken(r.Header))}
	}
	if secretErr != nil {
		return it, &StatusError{Code: http.StatusBadRequest, Message: secretErr.Error()}
	}
	return it, nil
}

func (c *Cluster) writeJSON(w http.ResponseWriter, r *http.Request, status int, body []byte) {
	id := CorrelationID(r.Context())
	if id == "" {
		id = wire.NextCorrelationID(r.Header.Get(wire.CorrelationHeader))
	}
	w.Header().Set(wire.CorrelationHeader, id)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if body != nil {
		w.Header().Set("Content-Type", "application/json")
	}
	w.WriteHeader(status)
	_, _ = w.Write(body) // if it fails, the client has disconnected
}
