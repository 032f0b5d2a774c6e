package cluster

import (
	"encoding/json"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/mimiktech/cluster/internal/wire"
)

// A State is how the registration of a node stands.
type State string

// The states of a registration. A node is an Orphan until it first registers. Then it goes to
// and fro between Registered, Degraded and Lost, until it has Left.
const (
	Orphan     State = "orphan"     // never registered
	Registered State = "registered" // the last renewal succeeded
	Degraded   State = "degraded"   // it failed, but the lease still runs
	Lost       State = "lost"       // the lease ran out; the node keeps trying
	Left       State = "left"       // unregistered or closed
)

// A Status is how a registration stands at one moment.
type Status struct {
	State State
	// Reason is why the node is not Registered: the error of the last try; nil when it is.
	Reason error

	ServerID string
	// ResourceID is the id of the cluster's itResource; empty before the first registration.
	ResourceID string
	// Servers is the number of servers in the view, this one included.
	Servers int
	// UpdatedAt is when the view was last renewed or changed.
	UpdatedAt time.Time
	// LeaseTime is what mIT granted last.
	LeaseTime time.Duration
	// RenewedAt is when the last renewal that succeeded was sent. The lease runs from there.
	RenewedAt time.Time
}

// ExpiresAt is when the lease runs out unless it is renewed; zero before the first
// registration.
func (s Status) ExpiresAt() time.Time {
	if s.RenewedAt.IsZero() {
		return time.Time{}
	}
	return s.RenewedAt.Add(s.LeaseTime)
}

// Registration is the value of REGISTRATION_STATUS: "registered" while the lease runs,
// otherwise "orphan: " and why.
func (s Status) Registration() string {
	if s.State == Registered || s.State == Degraded {
		return "registered"
	}
	why := "unknown"
	if s.Reason != nil {
		why = s.Reason.Error()
	}
	return "orphan: " + strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' ' // no variable holds a NUL, and a line break in one serves nobody
		}
		return r
	}, why)
}

// MarshalJSON gives the status with its times in milliseconds and ISO 8601, as the wire has
// them.
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
	}{
		State: s.State, ServerID: s.ServerID, ResourceID: s.ResourceID, Servers: s.Servers,
		UpdatedAt: formatTime(s.UpdatedAt), LeaseTime: s.LeaseTime.Milliseconds(),
		RenewedAt: formatTime(s.RenewedAt), ExpiresAt: formatTime(s.ExpiresAt()),
	}
	if s.Reason != nil {
		out.Reason = s.Reason.Error()
	}
	return json.Marshal(out)
}

func formatTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return wire.FormatTime(t)
}

// Env are the four environment variables that mirror the status, by their names. What is not
// known yet is not in it.
func (s Status) Env() map[string]string {
	vars := map[string]string{"REGISTRATION_STATUS": s.Registration()}
	if !s.UpdatedAt.IsZero() {
		vars["CLUSTER_STATUS_SERVERS"] = strconv.Itoa(s.Servers)
		vars["CLUSTER_STATUS_UPDATED_AT"] = formatTime(s.UpdatedAt)
		vars["CLUSTER_STATUS_LEASE_TIME"] = strconv.FormatInt(s.LeaseTime.Milliseconds(), 10)
	}
	return vars
}

// mirror sets them in the process environment. One that is not known is unset, lest a value that
// was inherited be taken for true.
func (s Status) setEnv() {
	vars := s.Env()
	for _, name := range []string{
		"REGISTRATION_STATUS", "CLUSTER_STATUS_SERVERS", "CLUSTER_STATUS_UPDATED_AT", "CLUSTER_STATUS_LEASE_TIME",
	} {
		if value, known := vars[name]; known {
			_ = os.Setenv(name, value) // it fails for no such value
		} else {
			_ = os.Unsetenv(name)
		}
	}
}
