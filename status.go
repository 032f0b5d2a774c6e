package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster/internal/membership"
	"github.com/mimiktech/cluster/internal/redact"
	"github.com/mimiktech/cluster/internal/wire"
)

// A State is the state of a node's registration.
type State string

// The states of a registration. A node is an Orphan until it first registers. It is then
// Registered, Degraded or Lost, and may change between them any number of times, until it has Left.
const (
	Orphan     State = "orphan"     // not registered yet
	Registered State = "registered" // the last renewal succeeded
	Degraded   State = "degraded"   // the last renewal failed, but the lease has not expired
	Lost       State = "lost"       // the lease has expired; the node keeps trying to renew it
	Left       State = "left"       // unregistered or closed
)

// A Status describes a registration at one moment.
type Status struct {
	State State
	// Reason is why the node is not Registered, such as the error of the last renewal. It is nil if
	// the node is Registered.
	Reason error

	ServerID string
	// ResourceID is the id of the cluster's itResource; empty before the first registration.
	ResourceID string
	// Servers is the number of servers in the view, this node included.
	Servers int
	// UpdatedAt is when the view last changed or was confirmed by a renewal.
	UpdatedAt time.Time
	// LeaseTime is the duration of the lease that the registry last granted.
	LeaseTime time.Duration
	// RenewedAt is when the last successful renewal was sent. The lease begins then.
	RenewedAt time.Time
	// Conflicts are the server ids that two running processes use, as far as this node has noticed:
	// the 16 that were noticed last. One of them may be its own. The caller must not change the
	// slice.
	Conflicts []Conflict
}

// A Conflict is a server id that two running processes use. Peers call only one of them at a time.
type Conflict struct {
	ServerID  string
	Addresses [2]string // the ClusterBaseURLs
	SeenAt    time.Time // when the conflict was last noticed; it is dropped twelve leases later
}

// MarshalJSON encodes the time in ISO 8601.
func (c Conflict) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		ServerID  string    `json:"serverId"`
		Addresses [2]string `json:"addresses"`
		SeenAt    string    `json:"seenAt"`
	}{c.ServerID, c.Addresses, formatTime(c.SeenAt)})
}

// Stats are figures about the requests to peers at one moment.
type Stats struct {
	// InFlight is the number of slots taken. A request that waits for a retry or a circuit
	// breaker has no slot. When its call is canceled, it takes one even if none is free, so
	// InFlight may exceed MaxInFlight for a moment.
	InFlight int
	// MaxInFlight is the number of slots, [Config].MaxInFlight.
	MaxInFlight int
	// Waiting is the number of requests that wait for a slot.
	Waiting int
	// OpenBreakers is the number of peers in the view whose circuit breaker is open.
	OpenBreakers int
}

// ExpiresAt returns when the lease expires unless it is renewed. It is zero before the first
// registration.
func (s Status) ExpiresAt() time.Time {
	if s.RenewedAt.IsZero() {
		return time.Time{}
	}
	return s.RenewedAt.Add(s.LeaseTime)
}

// Env returns the environment variables that the node sets. REGISTRATION_STATUS is "registered"
// until the lease expires, and otherwise "orphan: " with the reason. Once the node has a view,
// there are CLUSTER_STATUS_SERVERS, CLUSTER_STATUS_UPDATED_AT and CLUSTER_STATUS_LEASE_TIME, too.
func (s Status) Env() map[string]string {
	vars := map[string]string{"REGISTRATION_STATUS": s.registration()}
	if !s.UpdatedAt.IsZero() {
		vars["CLUSTER_STATUS_SERVERS"] = strconv.Itoa(s.Servers)
		vars["CLUSTER_STATUS_UPDATED_AT"] = formatTime(s.UpdatedAt)
		vars["CLUSTER_STATUS_LEASE_TIME"] = strconv.FormatInt(s.LeaseTime.Milliseconds(), 10)
	}
	return vars
}

// MarshalJSON encodes times in ISO 8601 and the lease time in milliseconds.
func (s Status) MarshalJSON() ([]byte, error) {
	out := struct {
		State      State  `json:"state"`
		Reason     string `json:"reason,omitempty"`
		ServerID   string `json:"serverId"`
		ResourceID string `json:"resourceId,omitempty"`
		Servers    int    `json:"servers"`
		UpdatedAt  string `json:"updatedAt,omitempty"`
		LeaseTime  int64  `json:"leaseTime"`
		RenewedAt  string `json:"renewedAt,omitempty"`
		ExpiresAt  string `json:"expiresAt,omitempty"`

		Conflicts []Conflict `json:"conflicts,omitempty"`
	}{
		State: s.State, ServerID: s.ServerID, ResourceID: s.ResourceID, Servers: s.Servers,
		UpdatedAt: formatTime(s.UpdatedAt), LeaseTime: s.LeaseTime.Milliseconds(),
		RenewedAt: formatTime(s.RenewedAt), ExpiresAt: formatTime(s.ExpiresAt()),
		Conflicts: s.Conflicts,
	}
	if s.Reason != nil {
		out.Reason = redact.Text(s.Reason.Error())
	}
	return json.Marshal(out)
}

// registration returns the value of REGISTRATION_STATUS: "registered" until the lease expires, and
// otherwise "orphan: " with the reason.
func (s Status) registration() string {
	if s.holdsLease() {
		return "registered"
	}
	reason := "unknown"
	if s.Reason != nil {
		reason = s.Reason.Error()
	}
	return "orphan: " + redact.Text(reason)
}

// holdsLease reports whether the node has a lease that has not expired.
func (s Status) holdsLease() bool { return s.State == Registered || s.State == Degraded }

// setEnv writes Env to the process environment. A variable without a known value is unset,
// because a value inherited from a parent process would be wrong.
func (s Status) setEnv() {
	vars := s.Env()
	for _, name := range []string{
		"REGISTRATION_STATUS", "CLUSTER_STATUS_SERVERS", "CLUSTER_STATUS_UPDATED_AT", "CLUSTER_STATUS_LEASE_TIME",
	} {
		if value, known := vars[name]; known {
			_ = os.Setenv(name, value) // no such value is invalid
		} else {
			_ = os.Unsetenv(name)
		}
	}
}

func formatTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return wire.FormatTime(t)
}

// A state has the node's view of the cluster and the status of its registration. All changes go
// through updateView, which keeps the process environment in step. The methods are safe for
// concurrent use.
type state struct {
	noEnv      bool
	log        *zap.Logger
	trace      *hooks
	transports transports // whose idle connections to former peers are closed

	conflictWarning minuteLimit

	mu        sync.Mutex // guards the fields below
	data      stateData
	writesEnv bool            // it is one of envWriters
	warnedOf  map[string]bool // ids of the conflicts that a warning has named
	watchers  map[*watcher]struct{}
}

type stateData struct {
	view              membership.View
	status            Status
	addressSince      time.Time       // since when the registry lists the address
	mustReregister    bool            // a peer has reported this node as departed
	deregistered      bool            // UnRegister has deleted this node from the registry
	pendingDepartures map[string]bool // ids of evicted servers, until their departure is broadcast
	departed          map[string]recentDeparture
}

// A recentDeparture is that of a server whose last entry may still arrive: in an announcement on
// another connection than the report of its departure, or in the response to a renewal.
type recentDeparture struct {
	date time.Time // of its last entry; a newer one shows that it is back
	at   time.Time // when this node learned of it
}

const (
	departedMemory = 30 * time.Second
	maxDeparted    = 256 // others are not remembered
)

func newState(serverID string, o *options, trace *hooks) *state {
	return &state{
		warnedOf: map[string]bool{},
		noEnv:    o.noEnv, log: o.log, trace: trace, watchers: make(map[*watcher]struct{}),
		data: stateData{
			status:            Status{State: Orphan, Reason: ErrNotRegistered, ServerID: serverID},
			pendingDepartures: make(map[string]bool),
			departed:          make(map[string]recentDeparture),
		},
	}
}

func (s *state) view() membership.View {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.data.view
}

func (s *state) status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.data.status
}

// update changes the state, but not the view. edit runs with the lock held.
func (s *state) update(ctx context.Context, edit func(*stateData)) { s.updateView(ctx, "", edit) }

// updateView is the only function that changes the state. edit runs with the lock held. source is
// where a change of the view comes from.
func (s *state) updateView(ctx context.Context, source Source, edit func(*stateData)) {
	s.mu.Lock()
	before, view := s.data.status, s.data.view
	edit(&s.data)
	s.data.status.Servers = s.data.view.Len()
	after := s.data.status
	shared := false
	if !s.noEnv {
		shared = s.countEnvWriterLocked()
		after.setEnv() // with the lock held, so that concurrent updates are written in their order
	}
	changes := s.changesLocked(view, source)
	viewAfter := s.data.view
	s.mu.Unlock()

	if shared {
		s.log.Warn("several nodes of this process write their status to its environment",
			zap.String("hint", "create all but one with WithoutEnv, and close nodes that are no longer used"), correlationField(ctx))
	}
	if source != "" {
		s.closeIdle(view, viewAfter)
	}
	for _, change := range changes {
		s.trace.membershipChanged(ctx, change)
	}
	if before.State != after.State {
		s.log.Info("registration state changed", zap.String("from", string(before.State)), zap.String("to", string(after.State)),
			zap.NamedError("reason", after.Reason), zap.Int("servers", after.Servers))
		s.trace.stateChanged(ctx, before, after)
	}
}

// envWriters is the number of nodes that write to the environment of this process, and have not
// left.
var envWriters atomic.Int32 //nolint:gochecknoglobals // the environment is one, too

// countEnvWriterLocked keeps envWriters. It reports whether this node has just become one of
// several.
func (s *state) countEnvWriterLocked() (shared bool) {
	left := s.data.status.State == Left
	switch {
	case !s.writesEnv && !left:
		s.writesEnv = true
		return envWriters.Add(1) > 1
	case s.writesEnv && left:
		s.writesEnv = false
		envWriters.Add(-1)
	}
	return false
}

// closeIdle closes the idle connections to peers that have left or moved.
func (s *state) closeIdle(before, after membership.View) {
	for old, current := range membership.Diff(before, after) {
		if old != nil && old.Base != nil && (current == nil || current.Base == nil || current.Base.Host != old.Base.Host) {
			s.transports.closeIdle(old.Base)
		}
	}
}

// publish writes the status to the process environment.
func (s *state) publish(ctx context.Context) { s.update(ctx, func(*stateData) {}) }

// An acceptedRenewal is a renewal that the registry has accepted.
type acceptedRenewal struct {
	sent   time.Time
	lease  time.Duration
	before membership.View // the node's view when the renewal was sent
	listed membership.View // the registry's list

	recreated   bool      // the registry has created this node's entry again
	moved       bool      // this node has registered at another address
	retainUntil time.Time // for servers that are not listed; zero drops them
}

// An appliedRenewal is what remains to be done after a renewal.
type appliedRenewal struct {
	needsAnnounce bool // peers may not know this node
	ignored       bool // an entry was left out, which may be of a server that is back
	moved         []movedServer
}

// applyRenewal makes the registry's list the view, and the node Registered.
func (s *state) applyRenewal(ctx context.Context, r acceptedRenewal) (done appliedRenewal) {
	s.updateView(ctx, SourceRegistry, func(d *stateData) {
		previous := d.view
		defer func() { done.moved = d.movedSince(previous) }()
		d.status.Conflicts = slices.DeleteFunc(slices.Clone(d.status.Conflicts), func(c Conflict) bool {
			return time.Since(c.SeenAt) > conflictLeases*r.lease
		})
		done.needsAnnounce = d.status.State == Lost || d.mustReregister || r.recreated || r.moved
		d.mustReregister = false
		if own, ok := r.listed.Get(d.status.ServerID); ok && (r.moved || d.addressSince.IsZero()) {
			d.addressSince = own.LastUpdate()
		}
		reconciled := r.listed.Reconcile(r.before, d.view)
		current := d.withoutDeparted(reconciled, r.sent)
		done.ignored = current.Len() < reconciled.Len()
		d.view = current.Retain(d.view, r.sent, r.retainUntil)
		if d.status.State != Left {
			d.status.State, d.status.Reason = Registered, nil
		}
		d.status.ResourceID, d.status.LeaseTime = d.view.ID(), r.lease
		d.status.RenewedAt, d.status.UpdatedAt = r.sent, time.Now()
	})
	return done
}

// A movedServer is a server whose address has changed.
type movedServer struct{ id, formerAddress string }

// movedSince returns the servers that have moved since the view was previous.
func (d *stateData) movedSince(previous membership.View) (moved []movedServer) {
	for old, current := range membership.Diff(previous, d.view) {
		if old != nil && current != nil && current.ServerID != d.status.ServerID {
			moved = append(moved, movedServer{current.ServerID, old.ClusterBaseURL})
		}
	}
	return moved
}

// A conflict is noticed whenever the address in the view changes. One that has not been noticed for
// so many leases is over.
const conflictLeases = 12

// maxConflicts bounds the conflicts in a status. Peers can cause any number of them.
const maxConflicts = 16

// addConflict records a conflict. The oldest one of another server is dropped if there are too
// many. It reports whether to warn: once for each conflict, and of conflicts between other servers
// once a minute at most.
func (s *state) addConflict(ctx context.Context, c Conflict) (warn bool) {
	s.update(ctx, func(d *stateData) {
		own := d.status.ServerID
		maps.DeleteFunc(s.warnedOf, func(id string, _ bool) bool { // the conflict is over, or was dropped
			return !slices.ContainsFunc(d.status.Conflicts, func(o Conflict) bool { return o.ServerID == id })
		})
		others := slices.DeleteFunc(slices.Clone(d.status.Conflicts), func(o Conflict) bool { return o.ServerID == c.ServerID })
		if len(others) == maxConflicts {
			oldest := slices.IndexFunc(others, func(o Conflict) bool { return o.ServerID != own })
			others = slices.Delete(others, oldest, oldest+1)
		}
		d.status.Conflicts = append(others, c)
		if warn = !s.warnedOf[c.ServerID] && (c.ServerID == own || s.conflictWarning.due(time.Now())); warn {
			s.warnedOf[c.ServerID] = true
		}
	})
	return warn
}

// applyFailure records the error of a failed renewal.
func (s *state) applyFailure(ctx context.Context, err error) {
	s.update(ctx, func(d *stateData) {
		d.status.Reason = err
		if d.status.State == Registered {
			d.status.State = Degraded
		}
	})
	s.checkExpiry(ctx)
}

// checkExpiry makes the node Lost if its lease has expired.
func (s *state) checkExpiry(ctx context.Context) {
	now := time.Now()
	s.update(ctx, func(d *stateData) {
		if d.status.holdsLease() && !now.Before(d.status.ExpiresAt()) {
			d.status.State = Lost
			if d.status.Reason == nil {
				d.status.Reason = errors.New("the lease expired before it was renewed")
			}
		}
	})
}

// leave makes the node Left. It returns the view, and reports whether there is nothing to
// deregister: the node has never registered, or is deregistered already.
func (s *state) leave(ctx context.Context, reason error) (view membership.View, deregistered bool) {
	s.update(ctx, func(d *stateData) {
		view, deregistered = d.view, d.deregistered
		if d.status.RenewedAt.IsZero() {
			view, deregistered = membership.View{}, true // announcements alone make no registration
		}
		if d.status.State != Left {
			d.status.State, d.status.Reason = Left, reason
		}
	})
	return view, deregistered
}

func (s *state) setDeregistered(ctx context.Context) {
	s.update(ctx, func(d *stateData) { d.deregistered = true })
}

type mergedAnnouncement struct {
	view     membership.View
	disputed bool // only the registry can say which of two entries of a server is current
	tooMany  bool // there are too many servers that only the registry can confirm; nothing changes
	ignored  bool // entries of servers that have left are left out
	moved    []movedServer
}

// maxAnnounced is the number of servers that a view may have without a confirmation by the
// registry. A view with more confirmed ones may have as many.
const maxAnnounced = 256

// viewLimits are the limits up to which announcements may enlarge the view.
type viewLimits struct {
	servers int
	bytes   int64
}

// check returns an error if merged exceeds the limits, and is larger than the view was before.
func (l viewLimits) check(before, merged membership.Size) error {
	if merged.Servers > max(l.servers, before.Servers) {
		return &StatusError{
			Code:    http.StatusBadRequest,
			Message: fmt.Sprintf("the cluster would have %d servers, %d are allowed", merged.Servers, l.servers),
		}
	}
	if merged.Bytes > max(l.bytes, before.Bytes) {
		return &StatusError{
			Code:    http.StatusBadRequest,
			Message: fmt.Sprintf("the list of servers would have %d bytes, %d are allowed", merged.Bytes, l.bytes),
		}
	}
	return nil
}

// applyAnnouncement merges servers announced by a peer into the view, and returns the view. If they
// are of another itResource, nothing changes. If the view would exceed the limits, nothing changes
// and an error is returned.
func (s *state) applyAnnouncement(ctx context.Context, announced membership.View, limits viewLimits) (r mergedAnnouncement, err error) {
	s.updateView(ctx, SourceAnnouncement, func(d *stateData) {
		view, now := d.view, time.Now()
		defer func() { r.view, r.moved = d.view, d.movedSince(view) }()
		received := announced.Len()
		announced := d.withoutDeparted(announced, now.Add(-departedMemory))
		merged := announced // before the first registration, there is no view to merge with
		switch view.ID() {
		case announced.ID():
			merged, r.disputed = view.Merge(announced), view.Disputes(announced)
		case "":
		default:
			return
		}
		r.ignored = announced.Len() < received
		before, after := view.Size(), merged.Size()
		if err = limits.check(before, after); err != nil {
			return
		}
		confirmed := after.Servers - after.Announced
		if r.tooMany = after.Announced > max(maxAnnounced, confirmed, before.Announced); r.tooMany {
			return
		}
		d.view, d.status.UpdatedAt = merged, now
	})
	return r, err
}

type departureResult int

const (
	departureApplied departureResult = iota
	departureIgnored                 // of a server of another itResource
	departureOfSelf                  // which the node answers by registering again
)

// applyDeparture removes a server that a peer has reported as departed. If unmodifiedSince is not
// zero, an entry that is newer stays.
func (s *state) applyDeparture(ctx context.Context, resourceID, serverID string, unmodifiedSince time.Time) (result departureResult) {
	s.updateView(ctx, SourceDeparture, func(d *stateData) {
		switch id := d.view.ID(); {
		case id != resourceID || id == "":
			result = departureIgnored
		case serverID == d.status.ServerID:
			result = departureOfSelf
			d.mustReregister = d.status.State != Left
		default:
			delete(d.pendingDepartures, serverID)
			current, known := d.view.Get(serverID)
			if known && !unmodifiedSince.IsZero() && current.LastUpdate().After(unmodifiedSince) {
				return
			}
			d.addDeparted(serverID, unmodifiedSince, time.Now())
			d.view, d.status.UpdatedAt = d.view.Without(serverID), time.Now()
		}
	})
	return result
}

// addDeparted remembers a server that has left, unless the date of its last entry is unknown. The
// id may be a part of a long request.
func (d *stateData) addDeparted(serverID string, date, now time.Time) {
	maps.DeleteFunc(d.departed, func(_ string, s recentDeparture) bool { return now.Sub(s.at) >= departedMemory })
	before, known := d.departed[serverID]
	if date.IsZero() || wire.CheckServerID(serverID) != nil || !known && len(d.departed) >= maxDeparted {
		return
	}
	if before.date.After(date) {
		date = before.date
	}
	d.departed[strings.Clone(serverID)] = recentDeparture{date, now}
}

// withoutDeparted returns received without servers that have left after since, unless their entry
// is newer. An entry without a date of its last update stays. So does one that is not newer than
// that in the view, because that server is back.
func (d *stateData) withoutDeparted(received membership.View, since time.Time) membership.View {
	if len(d.departed) == 0 {
		return received
	}
	return received.Filter(func(p *membership.Peer) bool {
		if current, known := d.view.Get(p.ServerID); known && !p.LastUpdate().After(current.LastUpdate()) {
			return true
		}
		s, ok := d.departed[p.ServerID]
		return !ok || !s.at.After(since) || p.UpdatedAt.IsZero() || p.UpdatedAt.After(s.date)
	})
}

// tookOver reports whether a server at this node's address has not renewed since this node first
// registered there.
func (s *state) tookOver(server wire.Server) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return server.LastUpdate().Before(s.data.addressSince)
}

// replaceEntry replaces the entry of one server with the one in entry, even if that is older.
func (s *state) replaceEntry(ctx context.Context, serverID string, entry membership.View) {
	s.updateView(ctx, SourceRegistry, func(d *stateData) {
		d.view, d.status.UpdatedAt = d.view.Without(serverID).Merge(entry), time.Now()
	})
}

// evict removes a server, unless the view has another entry of it. It reports whether it did.
func (s *state) evict(ctx context.Context, p *membership.Peer) (evicted bool) {
	s.updateView(ctx, SourceEviction, func(d *stateData) {
		if current, ok := d.view.Get(p.ServerID); ok && current.LastUpdate().Equal(p.LastUpdate()) {
			d.addDeparted(p.ServerID, p.UpdatedAt, time.Now())
			d.view, d.status.UpdatedAt = d.view.Without(p.ServerID), time.Now()
			evicted = true
		}
	})
	return evicted
}

// addPending records departures of which peers are to be notified.
func (s *state) addPending(ctx context.Context, departed []departure) {
	s.update(ctx, func(d *stateData) {
		for _, server := range departed {
			d.pendingDepartures[server.serverID] = true
		}
	})
}

// takePending returns the peers to notify of a departure. It reports false if there is no need to:
// another node has announced the departure, or the server is back.
func (s *state) takePending(ctx context.Context, serverID string) (view membership.View, pending bool) {
	s.update(ctx, func(d *stateData) {
		view, pending = d.view, d.pendingDepartures[serverID]
		delete(d.pendingDepartures, serverID)
		if _, back := view.Get(serverID); back {
			pending = false
		}
	})
	return view, pending
}

// cancelPending records that another node has notified the peers of a departure.
func (s *state) cancelPending(ctx context.Context, serverID string) {
	s.update(ctx, func(d *stateData) { delete(d.pendingDepartures, serverID) })
}
