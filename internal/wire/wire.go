// Package wire defines what nodes, the registry (mIT) and the token service (mST) exchange: the
// JSON of servers, resources, registrations and envelopes, the correlation id and the user agent.
// It contains no policy and does no I/O.
package wire

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
)

// CorrelationHeader is the header with the correlation id of every request and response.
const CorrelationHeader = "X-Correlation-Id"

// TimeLayout is the format of times on the wire: ISO 8601, UTC, milliseconds.
const TimeLayout = "2006-01-02T15:04:05.000Z07:00"

// FormatTime formats t for the wire.
func FormatTime(t time.Time) string { return t.UTC().Format(TimeLayout) }

// ClockAhead returns by how much the clock of this machine is ahead of that of a remote, at least.
// It is negative if the clock is behind. The remote wrote the Date of its response, which has whole
// seconds, between sent and received.
func ClockAhead(date, sent, received time.Time) time.Duration {
	if late := sent.Sub(date.Add(time.Second)); late > 0 {
		return late
	}
	return min(0, received.Sub(date))
}

// Server is one server of an itResource.
type Server struct {
	ServerID       string
	ClusterBaseURL string
	Location       json.RawMessage
	CreatedAt      time.Time
	UpdatedAt      time.Time

	// Raw is the entry as it was received. If set, it is sent on unchanged, which preserves
	// unknown fields and the spelling of times.
	Raw json.RawMessage
}

// MarshalJSON returns Raw if it is set, and the known fields otherwise.
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
	return Marshal(out)
}

// UnmarshalJSON keeps the whole entry in Raw. An entry without a serverId is an error. Any other
// invalid field, such as a time that is not ISO 8601, is treated as missing: it must not make the
// whole list unusable. It applies no limits, because escapes may have made the entry longer.
func (s *Server) UnmarshalJSON(b []byte) error {
	in, err := decodeEntry(bytes.Clone(b))
	if err != nil {
		return err
	}
	*s = in.Server
	s.CreatedAt, _ = time.Parse(time.RFC3339, in.createdAtText)
	s.UpdatedAt, _ = time.Parse(time.RFC3339, in.updatedAtText)
	return nil
}

// LastUpdate returns UpdatedAt, or CreatedAt if the entry has no UpdatedAt.
func (s Server) LastUpdate() time.Time {
	if !s.UpdatedAt.IsZero() {
		return s.UpdatedAt
	}
	return s.CreatedAt
}

// UpdatedAtText returns LastUpdate as the entry spells it. A conditional delete must quote this
// spelling. It is empty if the entry has no time.
func (s Server) UpdatedAtText() string {
	if s.Raw != nil {
		in, _ := decodeEntry(s.Raw) // valid: it was decoded before
		return cmp.Or(in.updatedAtText, in.createdAtText)
	}
	if last := s.LastUpdate(); !last.IsZero() {
		return FormatTime(last)
	}
	return ""
}

// ItResource is the registry's resource of one type: its public address and the servers of the
// cluster. Unknown fields are kept in Extra.
type ItResource struct {
	ID            string
	Type          string
	PublicBaseURL string
	Servers       []Server
	Extra         map[string]json.RawMessage

	// Skipped names what is invalid in a decoded resource and was left out: entries of the list, and
	// the public address; nil if nothing.
	Skipped error
}

// MarshalJSON writes servers as an array even if there are none: npm nodes iterate over it.
func (r ItResource) MarshalJSON() ([]byte, error) {
	return r.appendJSON(nil, len(r.Servers), func(i int) *Server { return &r.Servers[i] })
}

// UnmarshalJSON skips servers that cannot be decoded, and a public address that clients must not
// follow; see Skipped. A resource without an id, or with an invalid id or type, is an error.
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
			ok = in.decodeServers(value)
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
	if err := in.checkLimits(); err != nil {
		return err
	}
	*r = in
	return nil
}

// ResourceID returns the id that the registry of this module assigns to the resource of a type.
// Other registries may assign any.
func ResourceID(typ string) string {
	return uuid.NewSHA1(uuid.NameSpaceURL, []byte("https://github.com/mimiktech/cluster/itResources/"+typ)).String()
}

// RenewalOfHeader has the precondition of a renewal: the createdAt of the entry to renew. The
// registry of this module answers 412 if that entry is gone. Other registries ignore the header.
const RenewalOfHeader = "X-Renewal-Of"

// ServerIDHeader has the id of the node that requests a token. The token service of this module
// binds the tokens of some clients to it. Other token services ignore the header.
const ServerIDHeader = "X-Server-Id"

// Registration is the body of POST /itResources at the registry, which registers and renews.
type Registration struct {
	Type           string          `json:"type"`
	ServerID       string          `json:"serverId"`
	Location       json.RawMessage `json:"location,omitempty"`
	PublicBaseURL  string          `json:"publicBaseUrl"`
	ClusterBaseURL string          `json:"clusterBaseUrl"`
}

// Registered is the registry's response to a Registration. LeaseTime is in milliseconds; nil if
// the response has none.
type Registered struct {
	ItResource *ItResource `json:"itResource"`
	LeaseTime  *float64    `json:"leaseTime,omitempty"`

	// LeaseTimeErr is why the leaseTime of a decoded response cannot be read; nil if it can.
	LeaseTimeErr error `json:"-"`
}

// UnmarshalJSON accepts a string that contains a number as lease time, as npm nodes do. A lease
// time that cannot be read is treated as missing; see LeaseTimeErr.
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
			in.LeaseTime, in.LeaseTimeErr = decodeMilliseconds(value)
		}
		if err != nil {
			return err
		}
	}
	*r = in
	return nil
}

// EncodeRegistered returns the JSON of r, with n servers in place of those of its resource; server
// returns each of them. json.Marshal would scan and copy the encoded list twice, which takes longer
// than concatenating it.
func EncodeRegistered(r Registered, n int, server func(i int) *Server) ([]byte, error) {
	b, err := r.ItResource.appendJSON([]byte(`{"itResource":`), n, server)
	if err != nil {
		return nil, err
	}
	if r.LeaseTime != nil {
		leaseTime, err := json.Marshal(*r.LeaseTime)
		if err != nil {
			return nil, err
		}
		b = append(append(b, `,"leaseTime":`...), leaseTime...)
	}
	return append(b, '}'), nil
}

// ServerRef names the server that responds.
type ServerRef struct {
	ServerID string `json:"serverId"`
}

// DeleteResponse is the registry's response to a delete: Data if the entry was removed, Server if
// a conditional delete found a newer entry.
type DeleteResponse struct {
	Data   json.RawMessage `json:"data,omitempty"`
	Server *Server         `json:"server,omitempty"`
}

// UnmarshalJSON applies the limits of the length of an entry to the server.
func (r *DeleteResponse) UnmarshalJSON(b []byte) error {
	var in struct {
		Data   json.RawMessage `json:"data"`
		Server json.RawMessage `json:"server"`
	}
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	*r = DeleteResponse{Data: in.Data}
	if in.Server == nil || string(in.Server) == "null" {
		return nil
	}
	s, err := decodeServer(in.Server)
	if err != nil {
		return err
	}
	r.Server = &s
	return nil
}

// Error is the envelope of an error response.
type Error struct {
	StatusCode int             `json:"statusCode"`
	Title      string          `json:"title"`
	Message    string          `json:"message"`
	Info       json.RawMessage `json:"info,omitempty"`
}

type serverJSON struct {
	ServerID       string          `json:"serverId"`
	ClusterBaseURL string          `json:"clusterBaseUrl"`
	Location       json.RawMessage `json:"location,omitempty"`
	CreatedAt      string          `json:"createdAt,omitempty"`
	UpdatedAt      string          `json:"updatedAt,omitempty"`
}

// Marshal is json.Marshal without the escapes for HTML: a "<" stays one byte instead of six, as npm
// nodes send it. The escapes could make an entry longer than its receivers accept.
func Marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// An entry is a server with its times as they are spelled.
type entry struct {
	Server
	createdAtText, updatedAtText string
}

// decodeEntry decodes a server. The result refers to raw.
func decodeEntry(raw json.RawMessage) (entry, error) {
	in := entry{Server: Server{Raw: raw}}
	for name, value := range Each(raw) {
		var ok bool
		known, _ := MatchField(name, "serverId", "clusterBaseUrl", "location", "createdAt", "updatedAt")
		switch known {
		case "serverId":
			if in.ServerID, ok = DecodeString(value, in.ServerID); !ok {
				return entry{}, errors.New("server whose serverId is not a string")
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

// appendJSON encodes the resource with n servers in place of Servers.
func (r ItResource) appendJSON(b []byte, n int, server func(i int) *Server) ([]byte, error) {
	head, err := Marshal(struct {
		ID            string `json:"id"`
		Type          string `json:"type,omitempty"`
		PublicBaseURL string `json:"publicBaseUrl"`
	}{r.ID, r.Type, r.PublicBaseURL})
	if err != nil {
		return nil, err
	}
	tail := []byte("]}")
	if len(r.Extra) > 0 {
		fields, err := Marshal(r.Extra)
		if err != nil {
			return nil, err
		}
		tail = append([]byte("],"), fields[1:]...)
	}
	const spare = 64 // for what the caller appends
	size := len(head) + len(`,"servers":[`) + len(tail) + spare
	for i := range n {
		size += len(server(i).Raw) + 1
	}
	b = append(slices.Grow(b, size), head[:len(head)-1]...)
	b = append(b, `,"servers":[`...)
	for i := range n {
		if i > 0 {
			b = append(b, ',')
		}
		encoded, err := server(i).MarshalJSON()
		if err != nil {
			return nil, err
		}
		b = append(b, encoded...)
	}
	return append(b, tail...), nil
}

// checkLimits applies the rules for what the registry creates to all fields except the servers.
func (r *ItResource) checkLimits() error {
	if err := CheckResourceID(r.ID); err != nil {
		return fmt.Errorf("itResource: its id %w", err)
	}
	if r.Type != "" {
		if err := CheckType(r.Type); err != nil {
			return fmt.Errorf("itResource: its type %w", err)
		}
	}
	if err := CheckPublicURL(r.PublicBaseURL); err != nil {
		r.PublicBaseURL = "" // nodes do not use it, so the servers of the resource stay usable
		r.Skipped = errors.Join(r.Skipped, fmt.Errorf("publicBaseUrl left out: it %w", err))
	}
	size := 0
	for name, value := range r.Extra {
		size += len(name) + len(value)
	}
	if size > MaxEntryBytes {
		return fmt.Errorf("itResource: its unknown fields are longer than %d bytes", MaxEntryBytes)
	}
	return nil
}

// decodeServers reports whether value is a list of servers or null.
func (r *ItResource) decodeServers(value []byte) bool {
	r.Servers, r.Skipped = nil, nil
	if string(value) == "null" {
		return true
	}
	if value[0] != '[' {
		return false
	}
	var firstErr error
	skipped := 0
	for _, element := range Each(value) {
		s, err := decodeServer(element)
		if err == nil && CheckServerID(s.ServerID) != nil {
			err = fmt.Errorf("server whose serverId %w", CheckServerID(s.ServerID))
		}
		if err != nil {
			firstErr = cmp.Or(firstErr, err)
			skipped++
			continue
		}
		r.Servers = append(r.Servers, s)
	}
	if skipped > 0 {
		r.Skipped = fmt.Errorf("%d of %d entries left out: %w", skipped, skipped+len(r.Servers), firstErr)
	}
	return true
}

// decodeServer decodes a server that a remote has sent, and applies the limits of its length.
func decodeServer(raw []byte) (s Server, err error) {
	if len(raw) > MaxEntryBytes {
		return Server{}, fmt.Errorf("server whose entry %w", tooLong(MaxEntryBytes))
	}
	if err := s.UnmarshalJSON(raw); err != nil {
		return Server{}, err
	}
	if err := CheckLocation(s.Location); err != nil {
		return Server{}, fmt.Errorf("server whose location %w", err)
	}
	return s, nil
}

func decodeMilliseconds(value []byte) (*float64, error) {
	var number json.Number // accepts a string, too
	if err := json.Unmarshal(value, &number); err != nil {
		return nil, errors.New("leaseTime is not a number")
	}
	ms, err := number.Float64()
	if err != nil {
		return nil, errors.New("leaseTime is out of range")
	}
	return &ms, nil
}
