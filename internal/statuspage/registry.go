package statuspage

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Registry is the content of the status page of a registry.
type Registry struct {
	Now   time.Time `json:"now"`
	Lease Duration  `json:"leaseTime"`

	Store      string `json:"store"`
	StoreError string `json:"storeError,omitempty"`
	// InFlightBytes is the size of all lists that are being sent.
	InFlightBytes    int64 `json:"inFlightBytes"`
	MaxInFlightBytes int64 `json:"maxInFlightBytes"`

	Findings []Finding        `json:"findings"`
	Types    []RegistryType   `json:"types"`
	Left     []RegistryChange `json:"left"`     // the newest first
	Rejected []RegistryChange `json:"rejected"` // the newest first
	// Conflicts are the servers whose addresses changed back and forth, the newest first.
	Conflicts []RegistryConflict `json:"conflicts"`

	// Confirm is the deletion that the page asks to confirm; nil for none.
	Confirm *Confirmation `json:"-"`
	Notice  string        `json:"-"`
	Actions bool          `json:"-"` // servers can be deleted
	Refresh Duration      `json:"-"`
}

// A RegistryType is the cluster of one type.
type RegistryType struct {
	Type       string           `json:"type"`
	ResourceID string           `json:"resourceId"`
	Limit      int              `json:"limit"`
	Full       bool             `json:"full"`
	Servers    []RegistryServer `json:"servers"`
}

// A RegistryServer is a registered server.
type RegistryServer struct {
	ID           string    `json:"id"`
	Address      string    `json:"address"`
	RegisteredAt time.Time `json:"registeredAt"`
	RenewedAt    time.Time `json:"renewedAt"`
	Renewed      Duration  `json:"renewed"`   // how long ago
	ExpiresIn    Duration  `json:"expiresIn"` // unless it renews
	UpdatedAt    string    `json:"updatedAt"` // the precondition of a delete
}

// A RegistryChange is a server that has left, or a registration that was rejected.
type RegistryChange struct {
	At      time.Time `json:"at"`
	Ago     Duration  `json:"ago"`
	Type    string    `json:"type"`
	ID      string    `json:"id"`
	Address string    `json:"address,omitempty"`
	Reason  string    `json:"reason"`
	Count   int       `json:"count"`
}

// A RegistryConflict is a server id with which several processes renew.
type RegistryConflict struct {
	At        time.Time `json:"at"` // of the last change of the address
	Type      string    `json:"type"`
	ID        string    `json:"id"`
	Addresses []string  `json:"addresses"`
}

// A Confirmation states the effect of deleting a server.
type Confirmation struct {
	Type   string
	Server RegistryServer
	Effect string
}

// Servers returns the number of servers of all types.
func (p *Registry) Servers() (n int) {
	for _, t := range p.Types {
		n += len(t.Servers)
	}
	return n
}

// Diagnose sets the findings of a page.
func (p *Registry) Diagnose() {
	if p.StoreError != "" {
		p.Findings = append(p.Findings, Finding{
			Severity: Error, Title: "The store has a problem: the list may be stale, and registrations may fail", Evidence: p.StoreError,
			Cause: "The registry cannot reach its store, or the store refuses writes.",
		})
	}
	for _, t := range p.Types {
		if t.Full {
			p.Findings = append(p.Findings, Finding{
				Severity: Error, Title: fmt.Sprintf("The cluster %s is full: it has %d servers of at most %d", t.Type, len(t.Servers), t.Limit),
				Cause:  "Registered servers can renew, but no further server can register.",
				Remedy: "Delete servers that no longer run, or raise --max-servers (RegistryConfig.MaxServers).",
			})
		}
		for _, s := range t.Servers {
			if s.Renewed > p.Lease {
				p.Findings = append(p.Findings, Finding{
					Severity: Warning, Title: fmt.Sprintf("%s of %s has not renewed for %s, which is longer than its lease", s.ID, t.Type, s.Renewed),
					Cause: fmt.Sprintf("It has stopped, or cannot reach the registry. It is removed in %s, unless it renews.", s.ExpiresIn),
				})
			}
		}
	}
	for _, c := range p.Conflicts {
		if ago := p.Now.Sub(c.At); ago <= conflictShown {
			p.Findings = append(p.Findings, Finding{
				Severity: Error, Title: fmt.Sprintf("Two running processes use the server id %s of %s", c.ID, c.Type),
				Evidence: fmt.Sprintf("its address changed back and forth between %s, most recently %s ago", strings.Join(c.Addresses, ", "), Duration(ago)),
				Cause:    "Peers call only one of the two at a time.",
				Remedy:   "Give each process its own SERVER_ID.",
			})
		}
	}
	for _, c := range p.Rejected {
		if time.Duration(c.Ago) <= recent && len(p.Findings) < maxFindings {
			p.Findings = append(p.Findings, rejection(c))
		}
	}
	slices.SortStableFunc(p.Findings, func(a, b Finding) int { return cmp.Compare(a.Severity, b.Severity) })
}

const (
	// maxFindings bounds the findings, to which those about rejected requests are added last.
	maxFindings = 20
	// conflictShown is longer than the default lease: each process renews within it.
	conflictShown = 3 * time.Hour
)

func rejection(c RegistryChange) Finding {
	what := cmp.Or(c.ID, "A request")
	f := Finding{Severity: Error, Evidence: fmt.Sprintf("%s, from %s, %s ago", c.Reason, c.Address, c.Ago), Title: what + " was rejected: " + c.Reason}
	switch {
	case strings.Contains(c.Reason, "full"):
		f.Title = what + " was rejected, because the cluster is full"
		f.Cause = "The registry accepts no further server of this type."
	case strings.Contains(c.Reason, "token"):
		reason := tokenProblem(c.Reason)
		f.Title = fmt.Sprintf("%s from %s was rejected (%s)", what, c.Address, reason.name)
		f.Cause = reason.cause
		f.Remedy = strings.ReplaceAll(reason.remedy, "{audience}", "MIT_AUDIENCE of that node with the audience of this registry")
	}
	return f
}
