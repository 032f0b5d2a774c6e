// Package wire holds what the parties of a cluster say to each other: the JSON of
// servers, resources, registrations and envelopes, the correlation id, and the user
// agent. It knows no policy and does no I/O.
package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// CorrelationHeader carries the correlation id on every request and answer.
const CorrelationHeader = "X-Correlation-Id"

// TimeLayout is how dates look on the wire: ISO 8601, UTC, milliseconds.
const TimeLayout = "2006-01-02T15:04:05.000Z07:00"

// FormatTime writes t as the wire has it.
func FormatTime(t time.Time) string { return t.UTC().Format(TimeLayout) }

// Server is one server of an itResource.
type Server struct {
	ServerID       string
	ClusterBaseURL string
	Location       json.RawMessage
	CreatedAt      time.Time
	UpdatedAt      time.Time

	// Raw is the entry as it was received. When it is set, it is what is sent on, so
	// that fields and spellings nobody here knows survive the journey.
	Raw json.RawMessage
}

type serverJSON struct {
	ServerID       string          `json:"serverId"`
	ClusterBaseURL string          `json:"clusterBaseUrl"`
	Location       json.RawMessage `json:"location,omitempty"`
	CreatedAt      string          `json:"createdAt,omitempty"`
	UpdatedAt      string          `json:"updatedAt,omitempty"`
}

// MarshalJSON gives Raw, or else the known fields.
func (s Server) MarshalJSON() ([]byte, error) {
	if s.Raw != nil {
		return s.Raw, nil
	}
	out := serverJSON{ServerID: s.ServerID, ClusterBaseURL: s.ClusterBaseURL, Location: s.Location}
	if !s.CreatedAt.IsZero() {
		out.CreatedAt = FormatTime(s.CreatedAt)
	}
	if !s.UpdatedAt.IsZero() {
		out.UpdatedAt = FormatTime(s.UpdatedAt)
	}
	return json.Marshal(out)
}

// UnmarshalJSON keeps the whole entry in Raw. A date that is text but no ISO 8601 is kept
// there and reads as the zero time: it must not cost a node its view.
func (s *Server) UnmarshalJSON(b []byte) error {
	var in serverJSON
	if err := json.Unmarshal(b, &in); err != nil {
		return fmt.Errorf("server: %w", err)
	}
	if in.ServerID == "" {
		return errors.New("server without serverId")
	}
	*s = Server{
		ServerID:       in.ServerID,
		ClusterBaseURL: in.ClusterBaseURL,
		Location:       in.Location,
		Raw:            bytes.Clone(b),
	}
	s.CreatedAt, _ = time.Parse(time.RFC3339, in.CreatedAt)
	s.UpdatedAt, _ = time.Parse(time.RFC3339, in.UpdatedAt)
	return nil
}

// Seen is when the entry last changed as far as anybody told: UpdatedAt, else CreatedAt.
func (s Server) Seen() time.Time {
	if !s.UpdatedAt.IsZero() {
		return s.UpdatedAt
	}
	return s.CreatedAt
}

// Date is Seen in the spelling of whoever wrote the entry: what a dated delete must quote.
// It is empty when the entry has no date.
func (s Server) Date() string {
	var in serverJSON
	if s.Raw != nil && json.Unmarshal(s.Raw, &in) == nil {
		if in.UpdatedAt != "" {
			return in.UpdatedAt
		}
		return in.CreatedAt
	}
	if seen := s.Seen(); !seen.IsZero() {
		return FormatTime(seen)
	}
	return ""
}

// ItResource is what the registry holds for one type: where the public reaches it, and the
// servers that make up the cluster. Fields unknown here are kept in Extra.
type ItResource struct {
	ID            string
	Type          string
	PublicBaseURL string
	Servers       []Server
	Extra         map[string]json.RawMessage
}

type itResourceJSON struct {
	ID            string   `json:"id"`
	Type          string   `json:"type,omitempty"`
	PublicBaseURL string   `json:"publicBaseUrl"`
	Servers       []Server `json:"servers"`
}

// MarshalJSON writes servers as an array even when there are none: npm nodes iterate it.
func (r ItResource) MarshalJSON() ([]byte, error) {
	known := itResourceJSON{r.ID, r.Type, r.PublicBaseURL, r.Servers}
	if known.Servers == nil {
		known.Servers = []Server{}
	}
	b, err := json.Marshal(known)
	if err != nil || len(r.Extra) == 0 {
		return b, err
	}
	extra, err := json.Marshal(r.Extra)
	if err != nil {
		return nil, err
	}
	return append(append(b[:len(b)-1], ','), extra[1:]...), nil
}

// UnmarshalJSON refuses a resource without an id.
func (r *ItResource) UnmarshalJSON(b []byte) error {
	var known itResourceJSON
	if err := json.Unmarshal(b, &known); err != nil {
		return fmt.Errorf("itResource: %w", err)
	}
	if known.ID == "" {
		return errors.New("itResource without id")
	}
	var extra map[string]json.RawMessage
	if err := json.Unmarshal(b, &extra); err != nil {
		return fmt.Errorf("itResource: %w", err)
	}
	for _, name := range []string{"id", "type", "publicBaseUrl", "servers"} {
		delete(extra, name)
	}
	*r = ItResource{known.ID, known.Type, known.PublicBaseURL, known.Servers, extra}
	return nil
}

// Registration is the body of POST /itResources at mIT: registering and renewing alike.
type Registration struct {
	Type           string          `json:"type"`
	ServerID       string          `json:"serverId"`
	Location       json.RawMessage `json:"location,omitempty"`
	PublicBaseURL  string          `json:"publicBaseUrl"`
	ClusterBaseURL string          `json:"clusterBaseUrl"`
}

// Registered is mIT's answer to a Registration. LeaseTime is in milliseconds; nil when the
// registry names none.
type Registered struct {
	ItResource *ItResource `json:"itResource"`
	LeaseTime  *float64    `json:"leaseTime,omitempty"`
}

// Ref names the server that answers.
type Ref struct {
	ServerID string `json:"serverId"`
}

// Removed is mIT's answer to a delete: Data when the entry is gone, Server, the newer entry,
// when a dated delete came too late.
type Removed struct {
	Data   json.RawMessage `json:"data,omitempty"`
	Server *Server         `json:"server,omitempty"`
}

// Error is the envelope of every answer that is not a result.
type Error struct {
	StatusCode int             `json:"statusCode"`
	Title      string          `json:"title"`
	Message    string          `json:"message"`
	Info       json.RawMessage `json:"info,omitempty"`
}
