package mit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/internal/wire"
)

// ErrNotFound is returned by [Store.Get] for an unknown resource, and by [Store.Put] for a renewal
// of an entry that is gone.
var ErrNotFound = errors.New("mit: not found")

// A Store keeps the resources of a registry and removes servers that do not renew in time.
//
// Each call is atomic. Concurrent calls see all of its effect or none. They may come from another
// process that shares the store. A call that returns an error may have taken effect. Every call may
// be repeated.
//
// All methods are safe for concurrent use. The caller owns the lists they return. The bytes of
// Location and Raw may be shared. Neither the caller nor the store may modify them. Any error
// except [ErrNotFound] means that the store could not be reached. Package storetest tests these
// guarantees.
//
// A store that can lose its connection may also have a method Ready() error, which must not block.
// It returns an error while reads may be stale or writes fail. The health endpoint of a [Registry]
// then responds with 503 and the error's text. Callers of that endpoint need no token, so the text
// must not contain a secret.
//
// A store may also have a method Expirations() uint64: the number of servers that have expired
// since the store was opened, for [MetricsHandler].
type Store interface {
	// Put registers or renews a server. The entry expires ttl later, by the store's own clock,
	// unless another Put renews it. ttl is positive.
	//
	// The first Put for a type creates its resource, with the id [ResourceID]. Concurrent first
	// Puts create one resource. The last Put that has a PublicBaseURL sets it for the resource.
	//
	// CreatedAt does not change in the lifetime of the entry. A server that registers after its
	// entry was deleted or has expired gets a new CreatedAt. A new entry has UpdatedAt equal to
	// CreatedAt. Every renewal increases UpdatedAt by at least a millisecond, even if the clock
	// stood still or went back. So UpdatedAt identifies one state of the entry. Times have the
	// precision of the wire, milliseconds.
	//
	// If RenewalOf of the registration is set, and the server has no entry with this CreatedAt, Put
	// changes nothing and returns [ErrNotFound]. Comparison and renewal are one step.
	//
	// Put returns the resource with all its live servers, including this one.
	Put(ctx context.Context, reg Registration, ttl time.Duration) (Resource, error)

	// Get returns a resource with its live servers, or [ErrNotFound] if no server has ever
	// registered for it. It may also return ErrNotFound for a resource without servers.
	Get(ctx context.Context, id string) (Resource, error)

	// List returns all resources with their live servers, sorted by type. It may leave out resources
	// without servers. Unlike Get, it need not be one atomic state of several resources.
	List(ctx context.Context) ([]Resource, error)

	// Delete removes a server. A missing server or resource is not an error.
	Delete(ctx context.Context, id, serverID string) error

	// DeleteIfUnmodifiedSince removes a server unless its entry was updated after date. In that
	// case it changes nothing and returns the entry. Comparison and removal are one step, without
	// a renewal in between. It returns nil if the server was removed or did not exist.
	DeleteIfUnmodifiedSince(ctx context.Context, id, serverID string, date time.Time) (*cluster.Server, error)
}

// A Registration is the content of a request to register or to renew.
type Registration struct {
	Type     string
	ServerID string
	// Location is the position of the server as GeoJSON; nil if unknown.
	Location json.RawMessage
	// PublicBaseURL is the address of the service for clients, ClusterBaseURL the address of this
	// server for its peers.
	PublicBaseURL, ClusterBaseURL string
	// Unmanaged reports whether the server leaves the management of the cluster to other servers.
	// Such a server is listed, too. A store may ignore the field.
	Unmanaged bool
	// RenewalOf is the CreatedAt of the entry to renew; zero if the registration may create one. So
	// a renewal that is executed after a delete does not restore the entry.
	RenewalOf time.Time
}

// Renews reports whether the registration may replace the entry of the server; nil if there is
// none. It is a helper for stores.
func (reg Registration) Renews(previous *cluster.Server) bool {
	return reg.RenewalOf.IsZero() || previous != nil && previous.CreatedAt.Equal(reg.RenewalOf)
}

// Entry returns the entry of a server that registers at now, with Raw set. previous is its entry
// before, nil if there is none. Entry is a helper for stores: its times follow the rules of
// [Store.Put]. The entry shares no memory with the registration.
func (reg Registration) Entry(previous *cluster.Server, now time.Time) (cluster.Server, error) {
	updatedAt := now.UTC().Truncate(time.Millisecond)
	createdAt := updatedAt
	if previous != nil {
		createdAt = previous.CreatedAt
		if !updatedAt.After(previous.UpdatedAt) {
			updatedAt = previous.UpdatedAt.Add(time.Millisecond)
		}
	}
	s := cluster.Server{
		ServerID:       strings.Clone(reg.ServerID),
		ClusterBaseURL: strings.Clone(reg.ClusterBaseURL),
		Location:       slices.Clip(bytes.Clone(reg.Location)),
		CreatedAt:      createdAt,
		UpdatedAt:      updatedAt,
	}
	raw, err := s.MarshalJSON()
	if err != nil {
		return cluster.Server{}, fmt.Errorf("mit: location of server %q is not JSON: %w", reg.ServerID, err)
	}
	s.Raw = slices.Clip(raw)
	return s, nil
}

// A Resource is one cluster: the servers of one type, sorted by id.
//
// Raw of a server is nil, or its JSON as [cluster.Server.MarshalJSON] encodes it. If a store keeps
// the JSON of its entries, the registry need not encode all of them for each response.
type Resource struct {
	ID, Type, PublicBaseURL string
	Servers                 []cluster.Server

	// Version orders the states of a resource: the higher it is, the newer is the state. With it,
	// requests that wait at the same time share one encoded response. It is 0 if the store does not
	// count versions.
	Version uint64
	// Replaced is the entry of the server before a [Store.Put]; nil if there was none, if the store
	// does not report it, and after other calls.
	Replaced *cluster.Server
}

// NewResource returns the resource of a type with n servers, sorted by id. It is a helper for
// stores.
func NewResource(typ, publicBaseURL string, n int, server func(i int) cluster.Server) Resource {
	servers := make([]cluster.Server, n)
	for i := range servers {
		servers[i] = server(i)
	}
	return Resource{ID: ResourceID(typ), Type: typ, PublicBaseURL: publicBaseURL, Servers: servers}
}

// ResourceID returns the id of the resource of a type.
//
// The id is derived from the type, so a registry that lost its data assigns the same id again.
// Nodes ignore announcements and departures for a resource with another id. With a random id, the
// nodes that have renewed since the loss and the others would form two clusters for a whole lease.
// Concurrent first registrations of a type also get the same id.
func ResourceID(typ string) string {
	return wire.ResourceID(typ)
}
