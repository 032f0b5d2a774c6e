package mit

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/google/uuid"

	"github.com/mimiktech/cluster"
)

// ErrNotFound says that a [Store] holds no such resource.
var ErrNotFound = errors.New("mit: not found")

// A Store keeps the resources of a registry, and lets their servers go when they stay silent.
//
// Each call is atomic: whoever calls at the same moment, from this process or, if the store
// is shared, from another, sees it wholly done or not at all. A call that returns an error
// may have been done or not; each may be repeated.
//
// All methods may be called from any goroutine. What they return is the caller's to keep
// and to change. An error means that the store could not be asked; package storetest says
// the rest in code.
//
// A store that can be cut off from what it keeps may also have a method Stale() error, which
// does not block: while it returns an error, the health endpoint of a [Registry] answers 503
// with it, to anybody, so it must hold no secret.
type Store interface {
	// Put registers a server, or renews it: the entry then lives for life, which is
	// positive, and disappears by the store's own clock if no other Put comes before.
	//
	// The resource of the type is made by the first Put for it, once, however many come at
	// that moment; its id is [ResourceID] of the type. The last Put that names a
	// PublicBaseURL sets it for the resource.
	//
	// CreatedAt stays for as long as the entry lives: an entry that went, by a delete or by
	// silence, starts anew. A new entry has UpdatedAt equal to CreatedAt, and every renewal
	// has a later one, by a millisecond at least, even if the clock stood still or went
	// back: two states of an entry never share a date, so that a dated delete can tell
	// them apart. Dates have the precision of the wire, milliseconds.
	//
	// Put returns the resource with all its live servers, this one included.
	Put(ctx context.Context, reg Registration, life time.Duration) (Resource, error)

	// Get returns a resource with its live servers; [ErrNotFound] if no server has ever
	// registered for it. A store may forget a resource that has no servers left.
	Get(ctx context.Context, id string) (Resource, error)

	// Delete removes a server. It is no error if the server or the resource is not there.
	Delete(ctx context.Context, id, serverID string) error

	// DeleteIfUnmodifiedSince removes a server, as Delete does, unless its entry was updated after
	// date: then it changes nothing and returns that newer entry. The look and the removal
	// are one step; no renewal comes between them. It returns nil if the server is gone,
	// or was not there.
	DeleteIfUnmodifiedSince(ctx context.Context, id, serverID string, date time.Time) (*cluster.Server, error)
}

// A Registration is what a server tells the registry about itself, at first and at every
// renewal.
type Registration struct {
	Type     string
	ServerID string
	// Location is where the server stands, GeoJSON; nil when it did not say.
	Location json.RawMessage
	// PublicBaseURL is where the public reaches the service, ClusterBaseURL where this
	// server's peers reach it.
	PublicBaseURL, ClusterBaseURL string
	// Unmanaged is set for a server that leaves its cluster to others. It is listed like
	// any other, since the others still have to reach it; a store may ignore it.
	Unmanaged bool
}

// A Resource is one cluster: the servers of one type, sorted by id.
type Resource struct {
	ID, Type, PublicBaseURL string
	Servers                 []cluster.Server
}

// ResourceID is the id of the resource of a type.
//
// It is computed, not drawn. A node takes no announcement, and no departure, of a resource
// whose id is not the one that it knows. If a registry that lost its memory drew a new id, the
// nodes that have renewed since and those that have not would be two clusters for a whole
// lease, each deaf to the other; so it must come to the same id again. It also makes a race
// between the first servers of a type harmless.
func ResourceID(typ string) string {
	return uuid.NewSHA1(uuid.NameSpaceURL, []byte("https://github.com/mimiktech/cluster/itResources/"+typ)).String()
}
