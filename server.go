package cluster

import (
	"encoding/json"
	"time"

	"github.com/mimiktech/cluster/internal/wire"
)

// A Server is one server of a cluster, as the registry or a peer describes it.
type Server struct {
	// ServerID identifies the server; it is unique within its cluster.
	ServerID string
	// ClusterBaseURL is where its peers reach it: every path of a [Request] is under it.
	ClusterBaseURL string
	// Location is where the server stands, a GeoJSON object; nil when nobody said.
	Location json.RawMessage
	// CreatedAt and UpdatedAt are the registry's: when the server first registered, and
	// when it last renewed. They are zero when the entry carries no date.
	CreatedAt, UpdatedAt time.Time

	// Raw is the entry as it was received, with the fields this package does not know. When
	// it is set, it is what MarshalJSON gives.
	Raw json.RawMessage
}

// MarshalJSON gives Raw if it is set, else the entry as the wire has it.
func (s Server) MarshalJSON() ([]byte, error) { return wire.Server(s).MarshalJSON() }

// UnmarshalJSON reads an entry, and keeps all of it in Raw. An entry without a serverId is an
// error.
func (s *Server) UnmarshalJSON(b []byte) error { return (*wire.Server)(s).UnmarshalJSON(b) }
