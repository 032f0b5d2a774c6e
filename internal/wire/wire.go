// Package wire holds what the parties of a cluster say to each other: the JSON of
// servers, resources, registrations and envelopes, the correlation id, and the user
// agent. It knows no policy and does no I/O.
package wire

import (
	"bytes"
	"cmp"
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

// UnmarshalJSON keeps the whole entry in Raw. It refuses one without a serverId. Whatever else is
// not what it should be, such as a date that is no ISO 8601, is kept there and reads as missing: it
// must not cost a node its view.
func (s *Server) UnmarshalJSON(b []byte) error {
	in, err := readEntry(bytes.Clone(b))
	if err != nil {
		return err
	}
	*s = in.Server
	s.CreatedAt, _ = time.Parse(time.RFC3339, in.createdAtText)
	s.UpdatedAt, _ = time.Parse(time.RFC3339, in.updatedAtText)
	return nil
}

// An entry is a server with its dates as they are spelled.
type entry struct {
	Server
	createdAtText, updatedAtText string
}

// readEntry reads the entry of a server, which is kept.
func readEntry(raw json.RawMessage) (entry, error) {
	in := entry{Server: Server{Raw: raw}}
	for name, value := range Each(raw) {
		var ok bool
		known, _ := MatchField(name, "serverId", "clusterBaseUrl", "location", "createdAt", "updatedAt")
		switch known {
		case "serverId":
			if in.ServerID, ok = DecodeString(value, in.ServerID); !ok {
				return entry{}, errors.New("server whose serverId is no text")
			}
		case "clusterBaseUrl":
			in.ClusterBaseURL, _ = DecodeString(value, in.ClusterBaseURL)
		case "location":
			in.Location = value
		case "createdAt":
			in.createdAtText, _ = DecodeString(value, in.createdAtText)
		case "updatedAt":
			in.updatedAtText, _ = DecodeString(value, in.updatedAtText)
		}
	}
	if in.ServerID == "" {
		return entry{}, errors.New("server without serverId")
	}
	return in, nil
}

// Seen is when the entry last changed as far as anybody told: UpdatedAt, else CreatedAt.
func (s Server) LastUpdate() time.Time {
	if !s.UpdatedAt.IsZero() {
		return s.UpdatedAt
	}
	return s.CreatedAt
}

// Date is Seen in the spelling of whoever wrote the entry: what a dated delete must quote.
// It is empty when the entry has no date.
func (s Server) UpdatedAtText() string {
	if s.Raw != nil {
		in, _ := readEntry(s.Raw) // it was read before
		return cmp.Or(in.updatedAtText, in.createdAtText)
	}
	if seen := s.LastUpdate(); !seen.IsZero() {
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

	// LeftOut is why entries in a list of servers that was read are not in Servers; nil if all are.
	Skipped error
}

// MarshalJSON writes servers as an array even when there are none: npm nodes iterate it.
func (r ItResource) MarshalJSON() ([]byte, error) {
	head, err := json.Marshal(struct {
		ID            string `json:"id"`
		Type          string `json:"type,omitempty"`
		PublicBaseURL string `json:"publicBaseUrl"`
	}{r.ID, r.Type, r.PublicBaseURL})
	if err != nil {
		return nil, err
	}
	tail := []byte("]}")
	if len(r.Extra) > 0 {
		extra, err := json.Marshal(r.Extra)
		if err != nil {
			return nil, err
		}
		tail = append([]byte("],"), extra[1:]...)
	}
	size := len(head) + len(`,"servers":[`) + len(tail)
	for i := range r.Servers {
		size += len(r.Servers[i].Raw) + 1
	}
	b := append(make([]byte, 0, size), head[:len(head)-1]...)
	b = append(b, `,"servers":[`...)
	for i, s := range r.Servers {
		if i > 0 {
			b = append(b, ',')
		}
		entry, err := s.MarshalJSON()
		if err != nil {
			return nil, err
		}
		b = append(b, entry...)
	}
	return append(b, tail...), nil
}

// UnmarshalJSON refuses a resource without an id. A server that it cannot read it leaves out; see
// LeftOut.
func (r *ItResource) UnmarshalJSON(b []byte) error {
	in := ItResource{Extra: map[string]json.RawMessage{}}
	for name, value := range Each(b) {
		known, spelled := MatchField(name, "id", "type", "publicBaseUrl", "servers")
		ok := true
		switch known {
		case "id":
			in.ID, ok = DecodeString(value, in.ID)
		case "type":
			in.Type, ok = DecodeString(value, in.Type)
		case "publicBaseUrl":
			in.PublicBaseURL, ok = DecodeString(value, in.PublicBaseURL)
		case "servers":
			ok = in.readServers(value)
		}
		if !ok {
			return fmt.Errorf("itResource: its %s cannot be read", known)
		}
		if known == "" || known != spelled {
			in.Extra[spelled] = bytes.Clone(value)
		}
	}
	if in.ID == "" {
		return errors.New("itResource without id")
	}
	*r = in
	return nil
}

// readServers tells whether the value can be servers at all.
func (r *ItResource) readServers(value []byte) bool {
	r.Servers, r.Skipped = nil, nil
	if string(value) == "null" {
		return true
	}
	if value[0] != '[' {
		return false
	}
	var first error
	leftOut := 0
	for _, one := range Each(value) {
		var s Server
		if err := s.UnmarshalJSON(one); err != nil {
			first = cmp.Or(first, err)
			leftOut++
			continue
		}
		r.Servers = append(r.Servers, s)
	}
	if leftOut > 0 {
		r.Skipped = fmt.Errorf("%d of %d entries left out: %w", leftOut, leftOut+len(r.Servers), first)
	}
	return true
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

// UnmarshalJSON takes a text with a number in it for a lease time as well, as npm nodes do.
func (r *Registered) UnmarshalJSON(b []byte) error {
	if !bytes.HasPrefix(b, []byte("{")) && string(b) != "null" {
		return errors.New("not an object")
	}
	var in Registered
	for name, value := range Each(b) {
		var err error
		switch known, _ := MatchField(name, "itResource", "leaseTime"); {
		case known == "":
		case string(value) == "null":
		case known == "itResource":
			in.ItResource = new(ItResource)
			err = in.ItResource.UnmarshalJSON(value)
		default:
			in.LeaseTime, err = readMilliseconds(value)
		}
		if err != nil {
			return err
		}
	}
	*r = in
	return nil
}

func readMilliseconds(value []byte) (*float64, error) {
	var number json.Number // takes a text, too
	if err := json.Unmarshal(value, &number); err != nil {
		return nil, errors.New("leaseTime is no number")
	}
	ms, err := number.Float64()
	if err != nil {
		return nil, errors.New("leaseTime is beyond all numbers")
	}
	return &ms, nil
}

// Ref names the server that answers.
type ServerRef struct {
	ServerID string `json:"serverId"`
}

// Removed is mIT's answer to a delete: Data when the entry is gone, Server, the newer entry,
// when a dated delete came too late.
type DeleteResponse struct {
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
