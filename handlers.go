package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster/internal/membership"
	"github.com/mimiktech/cluster/internal/wire"
)

// Mount puts the two endpoints that peers call where they belong, under Config.BasePath. Any
// mux that takes the patterns of net/http will do.
func (c *Cluster) Mount(mux interface {
	Handle(pattern string, handler http.Handler)
},
) {
	mux.Handle("POST "+c.cfg.BasePath+"/itResources", http.HandlerFunc(c.CreateItResource))
	mux.Handle("DELETE "+c.cfg.BasePath+"/itResources/{id}/servers/{serverId}", http.HandlerFunc(c.DeleteServer))
}

// CreateItResource is the endpoint that peers announce themselves at: POST {base}/itResources,
// with an itResource as its body. The servers it names are joined to the view; of two entries
// of one server the newer stays. It answers the resource as now known, or null to a caller that
// says "Prefer: return=minimal" (RFC 7240), as nodes of this package do.
//
// It takes a cluster token of the node's own type. A resource of another id changes nothing,
// and is no error. A server whose address the [PeerPolicy] does not allow is left out.
func (c *Cluster) CreateItResource(w http.ResponseWriter, r *http.Request) {
	c.servePeer(w, r, func(ctx context.Context) (any, error) {
		var it wire.ItResource
		if err := c.readBody(w, r, &it); err != nil {
			return nil, err
		}
		if it.Skipped != nil {
			return nil, &StatusError{Code: http.StatusBadRequest, Message: "the body is no itResource: " + it.Skipped.Error()}
		}
		known, err := c.mergeAnnounced(ctx, it)
		if err != nil {
			return nil, err
		}
		if prefersMinimal(r.Header) {
			w.Header().Set("Preference-Applied", returnMinimal)
			return nil, nil
		}
		return known.Resource(), nil
	})
}

// returnMinimal is the preference of a caller that does not need the list of all servers back.
const returnMinimal = "return=minimal"

// prefersMinimal tells whether a request says so. Of two preferences for one thing the first
// counts.
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

// DeleteServer is the endpoint that peers report at who is gone: DELETE
// {base}/itResources/{id}/servers/{serverId}. It answers the id of the server, which is also
// fine if it is not known.
//
// It takes a cluster token of the node's own type. A resource of another id changes nothing,
// and null is answered. A node that is told to forget itself does not: it registers again.
func (c *Cluster) DeleteServer(w http.ResponseWriter, r *http.Request) {
	c.servePeer(w, r, func(ctx context.Context) (any, error) {
		id, serverID := pathValues(r)
		return c.removeDeparted(ctx, id, serverID)
	})
}

// pathValues are the resource and the server of DELETE …/itResources/{id}/servers/{serverId},
// under whatever router: the path has them, too.
func pathValues(r *http.Request) (id, serverID string) {
	id, serverID = r.PathValue("id"), r.PathValue("serverId")
	if parts := strings.Split(r.URL.EscapedPath(), "/"); id == "" && serverID == "" && len(parts) >= 4 {
		parts = parts[len(parts)-4:]
		if parts[0] == "itResources" && parts[2] == "servers" {
			id, _ = url.PathUnescape(parts[1])
			serverID, _ = url.PathUnescape(parts[3])
		}
	}
	return id, serverID
}

// joinServers takes in an announcement, and returns what is known then.
func (c *Cluster) mergeAnnounced(ctx context.Context, it wire.ItResource) (membership.View, error) {
	if c.policy.VerifyWithRegistry {
		c.triggerRenewal()
		return c.snapshot(), nil
	}
	announced := membership.Announced(it, c.policy.checkServer, c.snapshot())
	var problems []error
	for _, p := range announced.Peers() {
		problems = append(problems, p.Err)
	}
	if err := errors.Join(problems...); err != nil {
		c.log.Warn("servers left out of an announcement", zap.Error(err), correlationField(ctx))
	}
	announced = announced.Allowed().Without(c.cfg.ID) // of ourselves nobody knows more than mIT

	var known membership.View
	joined := 0
	c.update(func(view *membership.View, s *Status) {
		known = *view
		switch known.ID() {
		case it.ID:
			known = known.Merge(announced)
		case "": // not registered yet: better these peers than none
			known = announced
		default:
			return
		}
		if joined = known.Len(); joined <= max(c.policy.maxServers(), view.Len()) {
			*view, s.UpdatedAt, joined = known, time.Now(), 0
		}
	})
	if joined > 0 {
		return membership.View{}, &StatusError{
			Code:    http.StatusBadRequest,
			Message: fmt.Sprintf("the cluster would have %d servers, %d are allowed", joined, c.policy.maxServers()),
		}
	}
	if known.ID() != it.ID {
		c.log.Warn("inconsistent cluster: no change", zap.String("itResource", known.ID()), zap.String("announced", it.ID), correlationField(ctx))
	}
	return known, nil
}

// dropServer takes in a departure.
func (c *Cluster) removeDeparted(ctx context.Context, id, serverID string) (any, error) {
	if c.policy.VerifyWithRegistry && serverID != c.cfg.ID {
		c.mu.Lock()
		delete(c.pendingDepartures, serverID) // true or not, the others have been told
		c.mu.Unlock()
		c.triggerRenewal()
		return serverID, nil
	}
	ours := ""
	c.update(func(view *membership.View, s *Status) {
		if ours = view.ID(); ours != id || ours == "" {
			return
		}
		if serverID == c.cfg.ID {
			c.mustReregister = s.State != Left
			return
		}
		*view, s.UpdatedAt = view.Without(serverID), time.Now()
		delete(c.pendingDepartures, serverID)
	})
	switch {
	case ours != id || ours == "":
		c.log.Warn("inconsistent cluster: no change", zap.String("itResource", ours), zap.String("told", id), correlationField(ctx))
		return nil, nil
	case serverID == c.cfg.ID:
		c.log.Warn("a peer takes this node for gone: registering again", correlationField(ctx))
		c.triggerRenewal()
	}
	return serverID, nil
}

// servePeer is what both endpoints have in common.
func (c *Cluster) servePeer(w http.ResponseWriter, r *http.Request, handle func(context.Context) (any, error)) {
	c.Authenticate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		claims, _ := ClaimsFrom(r.Context())
		var data any
		err := c.checkPeer(claims)
		if err == nil {
			data, err = handle(r.Context())
		}
		if err != nil {
			c.ReplyError(w, r, err)
			return
		}
		c.Reply(w, r, data)
	})).ServeHTTP(w, r)
}

func (c *Cluster) checkPeer(claims Claims) error {
	switch {
	case claims.Type != "cluster":
		return &StatusError{Code: http.StatusBadRequest, Message: "invalid token: must be a cluster token"}
	case claims.SubType != c.cfg.Type:
		return &StatusError{Code: http.StatusBadRequest, Message: c.notOurType(claims)}
	}
	return nil
}

// readBody reads a bounded body, in bounded time.
func (c *Cluster) readBody(w http.ResponseWriter, r *http.Request, into any) error {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(c.cfg.RequestTimeout)) // a recorder has none
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, c.cfg.MaxRequestBytes))
	if err == nil { // else the server would wait for the rest of it before it answers
		_ = control.SetReadDeadline(time.Time{})
		err = json.Unmarshal(body, into)
	}
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return &StatusError{Code: http.StatusRequestEntityTooLarge, Message: fmt.Sprintf("the body has more than %d bytes", tooLarge.Limit)}
	}
	if err != nil {
		return &StatusError{Code: http.StatusBadRequest, Message: "the body is no itResource: " + err.Error()}
	}
	return nil
}

type claimsKey struct{}

// ClaimsFrom returns the claims of the caller that [Cluster.Authenticate] let in.
func ClaimsFrom(ctx context.Context) (Claims, bool) {
	claims, ok := ctx.Value(claimsKey{}).(Claims)
	return claims, ok
}

// Authenticate lets only requests with a valid bearer token through to next: signed by mST, for
// this node's audience, and not expired. Others get a 401. The request's context has the claims
// ([ClaimsFrom]) and the correlation id ([CorrelationID]), which is also put on the answer.
// What a valid token may do is next's to decide.
func (c *Cluster) Authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := WithCorrelationID(r.Context(), wire.NextCorrelationID(r.Header.Get(wire.CorrelationHeader)))
		r = r.WithContext(ctx)
		claims, err := c.verify(r)
		if err != nil {
			w.Header().Set("WWW-Authenticate", "Bearer")
			c.ReplyError(w, r, &StatusError{Code: http.StatusUnauthorized, Message: "invalid token: " + c.redact(err.Error(), bearerToken(r.Header))})
			return
		}
		w.Header().Set(wire.CorrelationHeader, CorrelationID(ctx))
		next.ServeHTTP(w, r.WithContext(context.WithValue(ctx, claimsKey{}, claims)))
	})
}

// AuthenticatePeer is Authenticate for endpoints that peers call: a valid token of another type
// of service gets a 403. Both kinds of token are let through, cluster tokens and others.
func (c *Cluster) AuthenticatePeer(next http.Handler) http.Handler {
	return c.Authenticate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if claims, _ := ClaimsFrom(r.Context()); claims.SubType != c.cfg.Type {
			c.ReplyError(w, r, &StatusError{Code: http.StatusForbidden, Message: c.notOurType(claims)})
			return
		}
		next.ServeHTTP(w, r)
	}))
}

func (c *Cluster) notOurType(claims Claims) string {
	return fmt.Sprintf("invalid token: its type is %.40q, not %q", claims.SubType, c.cfg.Type)
}

func (c *Cluster) verify(r *http.Request) (Claims, error) {
	values := r.Header.Values("Authorization")
	switch len(values) {
	case 0:
		return Claims{}, errors.New("missing authorization header")
	case 1:
	default:
		return Claims{}, errors.New("duplicated authorization header")
	}
	scheme, text, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Bearer") || text == "" {
		return Claims{}, errors.New("the authorization is no bearer token")
	}
	return c.verifier.Verify(r.Context(), strings.TrimSpace(text))
}

// Reply answers 200 with data in the envelope that peers expect: {"data": …, "server":
// {"serverId": …}}. An endpoint that [Cluster.RPCluster] calls must answer so.
func (c *Cluster) Reply(w http.ResponseWriter, r *http.Request, data any) {
	envelope := struct {
		Data   any            `json:"data"`
		Server wire.ServerRef `json:"server"`
	}{data, wire.ServerRef{ServerID: c.cfg.ID}}
	body, err := json.Marshal(envelope)
	if err != nil {
		c.ReplyError(w, r, fmt.Errorf("encoding the answer: %w", err))
		return
	}
	c.reply(w, r, http.StatusOK, body)
}

// ReplyError answers err in the envelope of errors: {"statusCode", "title", "message", "info"?}.
// The status is that of a [StatusError] that this process made: &StatusError{Code: 404, Message:
// "no such thing"}. [ErrInvalidRequest] is a 400, [ErrManagementOff] a 409, [ErrClosed] a 503, and
// any other error a 500.
func (c *Cluster) ReplyError(w http.ResponseWriter, r *http.Request, err error) {
	answer := wire.Error{StatusCode: http.StatusInternalServerError, Message: err.Error()}
	switch {
	case errors.Is(err, ErrInvalidRequest):
		answer.StatusCode = http.StatusBadRequest
	case errors.Is(err, ErrManagementOff):
		answer.StatusCode = http.StatusConflict
	case errors.Is(err, ErrClosed):
		answer.StatusCode = http.StatusServiceUnavailable
	}
	// What another party answered us is not our answer.
	if se, ok := errors.AsType[*StatusError](err); ok && se.Remote == "" && se.Code >= 400 && se.Code <= 599 {
		answer.StatusCode, answer.Message, answer.Info = se.Code, se.Message, se.Info
	}
	answer.Title = http.StatusText(answer.StatusCode)
	c.log.Debug("request refused", zap.Int("statusCode", answer.StatusCode), zap.String("path", r.URL.Path), zap.Error(err), correlationField(r.Context()))
	body, err := json.Marshal(answer)
	if err != nil { // an Info that is no JSON
		answer.Info = nil
		body, _ = json.Marshal(answer)
	}
	c.reply(w, r, answer.StatusCode, body)
}

func (c *Cluster) reply(w http.ResponseWriter, r *http.Request, status int, body []byte) {
	id := CorrelationID(r.Context())
	if id == "" {
		id = wire.NextCorrelationID(r.Header.Get(wire.CorrelationHeader))
	}
	w.Header().Set(wire.CorrelationHeader, id)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body) // the caller is gone, or will see that it broke off
}
