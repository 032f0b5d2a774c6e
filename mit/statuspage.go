package mit

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/internal/httpjson"
	"github.com/mimiktech/cluster/internal/redact"
	"github.com/mimiktech/cluster/internal/statuspage"
)

// StatusHandler returns a handler with a page about the registry: the store, the types and their
// servers, servers that left recently and how, and registrations that were rejected and why. It
// works without scripts. With "Accept: application/json" or ?format=json it responds with JSON.
//
// With Actions and Auth the page can delete a server. It states the effect first, and deletes only
// the entry that it has shown: a server that has renewed in the meantime is kept. Each delete is
// logged.
//
// The history begins with the first call of StatusHandler. It has at most 100 servers that left and
// 100 rejected registrations, and a small entry for each registered server. Each replica has its
// own history.
func (g *Registry) StatusHandler(o cluster.StatusOptions) http.Handler {
	g.history.start()
	actions := o.Actions && o.Auth != nil
	origins := http.NewCrossOriginProtection() // credentials of a browser would be sent from any site
	var h http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r = httpjson.Correlate(w, r)
		switch {
		case r.Method == http.MethodGet || r.Method == http.MethodHead:
			statuspage.Write(w, r, statuspage.RegistryPage, g.statusPage(r, actions))
		case r.Method == http.MethodPost && actions:
			if err := origins.Check(r); err != nil {
				g.writeError(w, r, caller{}, newAPIError(http.StatusForbidden, "the request comes from a page of another site"))
				return
			}
			g.deleteByForm(w, r)
		default:
			w.Header().Set("Allow", "GET, HEAD")
			g.writeError(w, r, caller{}, newAPIError(http.StatusMethodNotAllowed, "only GET and HEAD are served here"))
		}
	})
	if o.Auth != nil {
		h = o.Auth(h)
	}
	return h
}

func (g *Registry) statusPage(r *http.Request, actions bool) *statuspage.Registry {
	now := time.Now()
	leaseTime, ttl := g.leaseTerms()
	lease := defaultLease
	if leaseTime != nil {
		lease = time.Duration(*leaseTime * float64(time.Millisecond))
	}
	_, inFlight, limit := g.admission.load()
	page := &statuspage.Registry{
		Now: now, Lease: statuspage.Duration(lease), Store: g.store.String(),
		InFlightBytes: inFlight, MaxInFlightBytes: limit, Actions: actions, Refresh: statuspage.Refresh(r),
	}
	if err := g.store.Ready(); err != nil {
		page.StoreError = redact.Text(err.Error())
	}
	list, err := g.store.List(r.Context())
	if err != nil {
		g.log.Error("store failed", append(auditFields(r, caller{}), zap.Error(err))...)
		page.StoreError = cmp.Or(page.StoreError, "the list of servers could not be read: see the log of the registry")
	}
	for _, res := range list {
		page.Types = append(page.Types, g.statusOfType(res, now, ttl))
	}
	if err == nil {
		g.history.compare(list, now, ttl)
	}
	page.Left, page.Rejected = g.history.changes(now)
	page.Conflicts = g.moves.lastConflicts()
	query := r.URL.Query()
	page.Notice = notice(query.Get("result"))
	if actions {
		page.Confirm = confirmation(page, query.Get("type"), query.Get("delete"))
	}
	if page.Confirm != nil {
		page.Refresh = 0
	}
	page.Diagnose()
	return page
}

func (g *Registry) statusOfType(res Resource, now time.Time, ttl time.Duration) statuspage.RegistryType {
	t := statuspage.RegistryType{
		Type: res.Type, ResourceID: res.ID, Limit: g.cfg.maxServers(), Full: len(res.Servers) >= g.cfg.maxServers(),
	}
	for _, s := range res.Servers {
		t.Servers = append(t.Servers, statuspage.RegistryServer{
			ID: s.ServerID, Address: s.ClusterBaseURL, RegisteredAt: s.CreatedAt, RenewedAt: s.UpdatedAt,
			Renewed:   statuspage.Duration(max(0, now.Sub(s.UpdatedAt))),
			ExpiresIn: statuspage.Duration(max(0, s.UpdatedAt.Add(ttl).Sub(now))),
			UpdatedAt: s.UpdatedAt.UTC().Format(time.RFC3339Nano),
		})
	}
	return t
}

// confirmation describes what the delete of a server would do; nil if there is no such server.
func confirmation(page *statuspage.Registry, typ, serverID string) *statuspage.Confirmation {
	for _, t := range page.Types {
		if t.Type != typ {
			continue
		}
		for _, s := range t.Servers {
			if s.ID != serverID {
				continue
			}
			effect := fmt.Sprintf("It renewed %s ago, within its lease: it is likely running, and will be back with its next renewal, "+
				"in less than %s.", s.Renewed, max(0, page.Lease-s.Renewed))
			if s.Renewed > page.Lease {
				effect = fmt.Sprintf("It has not renewed for %s, which is longer than its lease: it has likely stopped, or cannot reach the registry. "+
					"If it is running, it will be back with its next renewal.", s.Renewed)
			}
			return &statuspage.Confirmation{Type: typ, Server: s, Effect: effect +
				" Peers keep it until their own next renewal. If it renews before you confirm, it stays."}
		}
	}
	return nil
}

func notice(result string) string {
	switch result {
	case "deleted":
		return "The server was deleted."
	case "renewed":
		return "The server was not deleted, because it has renewed since."
	case "failed":
		return "The server was not deleted, because the store failed."
	}
	return ""
}

// deleteByForm deletes the server that a form of the page names, unless it has renewed since.
func (g *Registry) deleteByForm(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxRegistrationBytes)
	typ, serverID := r.PostFormValue("type"), r.PostFormValue("id")
	since, err := time.Parse(time.RFC3339Nano, r.PostFormValue("updatedAt"))
	if typ == "" || serverID == "" || err != nil {
		g.writeError(w, r, caller{}, newAPIError(http.StatusBadRequest, "the form has no type, id or updatedAt"))
		return
	}
	fields := append(auditFields(r, caller{typ: typ, target: serverID}), zap.Time("date", since), zap.Bool("statusPage", true))
	newer, err := g.store.DeleteIfUnmodifiedSince(r.Context(), ResourceID(typ), serverID, since)
	result := "deleted"
	switch {
	case err != nil:
		result = "failed"
		g.log.Error("store failed", append(fields, zap.Error(err))...)
	case newer != nil:
		result = "renewed"
		g.log.Info("server not deleted: it has renewed since", append(fields, zap.Time("updatedAt", newer.UpdatedAt))...)
	default:
		g.log.Info("server deleted", fields...)
		g.metrics.deleted(typ, "operator")
		g.moves.left(serverKey{typ, serverID})
		g.history.left(typ, serverID, "")
	}
	w.Header().Set("Location", "?"+url.Values{"result": {result}}.Encode())
	w.WriteHeader(http.StatusSeeOther)
}

const (
	// maxChanges bounds the servers that left in a history, and also the rejected
	// registrations.
	maxChanges      = 100
	compareInterval = time.Minute // between comparisons of tracked servers with the list
)

// A history has the servers that left, and the registrations that were rejected. It records nothing
// before start. It works with any store: a server that is missing in the store's list and was not
// deleted here has expired, or was deleted at another replica.
type history struct {
	mu       sync.Mutex // guards the fields below
	started  bool
	tracked  map[serverKey]tracked
	compared time.Time                   // when the tracked servers were last compared with the list
	gone     []statuspage.RegistryChange // the oldest first
	rejected []statuspage.RegistryChange // the oldest first
}

type serverKey struct{ typ, id string }

type tracked struct {
	address string
	renewed time.Time
	expires time.Time
}

func (h *history) start() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.started = true
	if h.tracked == nil {
		h.tracked = make(map[serverKey]tracked)
	}
}

// renewed records a registration or a renewal. It reports whether compare is due.
func (h *history) renewed(typ, serverID, address string, ttl time.Duration) (due bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.started {
		return false
	}
	now := time.Now()
	h.tracked[serverKey{typ, serverID}] = tracked{address, now, now.Add(ttl)}
	if due = now.Sub(h.compared) >= compareInterval; due {
		h.compared = now
	}
	return due
}

// left records that a server was deleted, if it was registered. by is the address from which the
// request came.
func (h *history) left(typ, serverID, by string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	key := serverKey{typ, serverID}
	t, known := h.tracked[key]
	if !known {
		return
	}
	reason := "deleted by " + by + ", which could not reach it, or reported its departure"
	switch {
	case by == "":
		reason = "deleted on the status page"
	case by == hostOf(t.address):
		reason = "deleted from its own host: it left, or another node on that host could not reach it"
	}
	h.addGoneLocked(key, reason, time.Now())
}

// compareHistory compares the history with the list of the store, if that can be read.
func (g *Registry) compareHistory(ctx context.Context, ttl time.Duration) {
	now := time.Now()
	if list, err := g.store.List(ctx); err == nil {
		g.history.compare(list, now, ttl)
	}
}

// hostOf returns the host of a base URL.
func hostOf(baseURL string) string {
	u, err := url.Parse(baseURL)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

func (h *history) addGoneLocked(key serverKey, reason string, at time.Time) {
	address := h.tracked[key].address
	delete(h.tracked, key)
	// The texts of the key may be parts of a long request, which would be kept with them.
	typ, id := strings.Clone(key.typ), strings.Clone(key.id)
	h.gone = appendBounded(h.gone, statuspage.RegistryChange{At: at, Type: typ, ID: id, Address: address, Reason: reason, Count: 1})
}

// expireLocked records tracked servers whose time is over as expired.
func (h *history) expireLocked(now time.Time) {
	var expired []serverKey
	for key, t := range h.tracked {
		if now.After(t.expires) {
			expired = append(expired, key)
		}
	}
	slices.SortFunc(expired, func(a, b serverKey) int { return h.tracked[a].expires.Compare(h.tracked[b].expires) })
	for _, key := range expired {
		t := h.tracked[key]
		h.addGoneLocked(key, fmt.Sprintf("expired: it has not renewed since %s", t.renewed.UTC().Format(time.DateTime+" UTC")), t.expires)
	}
}

// compare compares the tracked servers with list, which was read from the store after the time now.
// It records and drops those that are gone.
func (h *history) compare(list []Resource, now time.Time, ttl time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	leftSince := make(map[serverKey]bool) // servers that left after now; list may still have them
	for _, c := range h.gone {
		if !c.At.Before(now) {
			leftSince[serverKey{c.Type, c.ID}] = true
		}
	}
	listed := make(map[serverKey]bool)
	for _, r := range list {
		for _, s := range r.Servers {
			key := serverKey{r.Type, s.ServerID}
			listed[key] = true
			if t := h.tracked[key]; s.UpdatedAt.After(t.renewed) && !leftSince[key] {
				// It was renewed at another replica, or before the history began.
				h.tracked[key] = tracked{s.ClusterBaseURL, s.UpdatedAt, now.Add(ttl - now.Sub(s.UpdatedAt))}
			}
		}
	}
	for key, t := range h.tracked {
		switch {
		case listed[key] && now.After(t.expires):
			t.expires = now.Add(time.Minute) // it has renewed at another replica
			h.tracked[key] = t
		case !listed[key] && now.Before(t.expires) && now.Sub(t.renewed) > time.Minute:
			h.addGoneLocked(key, "deleted at another replica, or the store has lost its data", now)
		}
	}
	h.expireLocked(now)
}

// reject records a rejected registration. Repeated ones of one server count as one.
func (h *history) reject(typ, serverID, address, reason string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.started {
		return
	}
	change := statuspage.RegistryChange{
		At: time.Now(), Type: redact.Quote(typ), ID: redact.Quote(serverID), Address: redact.Quote(address), Reason: redact.Text(reason), Count: 1,
	}
	same := func(c statuspage.RegistryChange) bool {
		return c.Type == change.Type && c.ID == change.ID && c.Address == change.Address && c.Reason == change.Reason
	}
	if i := slices.IndexFunc(h.rejected, same); i >= 0 {
		change.Count += h.rejected[i].Count
		h.rejected = slices.Delete(h.rejected, i, i+1)
	}
	h.rejected = appendBounded(h.rejected, change)
}

func appendBounded(changes []statuspage.RegistryChange, c statuspage.RegistryChange) []statuspage.RegistryChange {
	if len(changes) >= maxChanges {
		changes = slices.Delete(changes, 0, 1)
	}
	return append(changes, c)
}

// changes returns the servers that left, and the rejected registrations, the newest first.
func (h *history) changes(now time.Time) (gone, rejected []statuspage.RegistryChange) {
	h.mu.Lock()
	defer h.mu.Unlock()
	newestFirst := func(list []statuspage.RegistryChange) []statuspage.RegistryChange {
		list = slices.Clone(list)
		slices.Reverse(list)
		for i := range list {
			list[i].Ago = statuspage.Duration(max(0, now.Sub(list[i].At)))
		}
		return list
	}
	return newestFirst(h.gone), newestFirst(h.rejected)
}
