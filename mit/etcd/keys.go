package etcd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
)

// keys is the prefix of all keys of a store, with a trailing slash. Names in a key are escaped as
// in the path of a URL, so that a slash is always a separator.
type keys string

const (
	resourcesDir = "itResources/"
	serversDir   = "servers/"
)

func (k keys) resource(id string) string { return string(k) + resourcesDir + url.PathEscape(id) }

// servers returns the prefix of the servers of a type.
func (k keys) servers(typ string) string { return string(k) + serversDir + url.PathEscape(typ) + "/" }

func (k keys) server(typ, serverID string) string { return k.servers(typ) + url.PathEscape(serverID) }

// parse returns the id of a resource, or the type and id of a server.
func (k keys) parse(key string) (resourceID, typ, serverID string, err error) {
	rest, ok := strings.CutPrefix(key, string(k))
	if !ok {
		return "", "", "", errUnrecognizedKey
	}
	if name, ok := strings.CutPrefix(rest, resourcesDir); ok {
		if resourceID, err = url.PathUnescape(name); err != nil || resourceID == "" || k.resource(resourceID) != key {
			return "", "", "", errUnrecognizedKey
		}
		return resourceID, "", "", nil
	}
	if rest, ok = strings.CutPrefix(rest, serversDir); ok {
		escapedType, escapedID, _ := strings.Cut(rest, "/")
		typ, err = url.PathUnescape(escapedType)
		if err == nil {
			serverID, err = url.PathUnescape(escapedID)
		}
		// Each name has one key: another spelling of it is not a key of this package.
		if err == nil && k.server(typ, serverID) == key {
			return "", typ, serverID, nil
		}
	}
	return "", "", "", errUnrecognizedKey
}

var errUnrecognizedKey = errors.New("not a key of a registry")

// resourceValue is the value of a resource's key. The id in the key must be that of the type.
type resourceValue struct {
	Type          string `json:"type"`
	PublicBaseURL string `json:"publicBaseUrl,omitempty"`
}

func decodeResource(id string, value []byte) (resourceValue, error) {
	var v resourceValue
	if err := json.Unmarshal(value, &v); err != nil {
		return v, fmt.Errorf("not a resource: %w", err)
	}
	if mit.ResourceID(v.Type) != id {
		return v, fmt.Errorf("not a resource: its id is not that of type %q", v.Type)
	}
	return v, nil
}

// serverValue is the value of a server's key. The type and id are in the key.
type serverValue struct {
	ClusterBaseURL string          `json:"clusterBaseUrl"`
	Location       json.RawMessage `json:"location,omitempty"`
	CreatedAt      time.Time       `json:"createdAt"`
	UpdatedAt      time.Time       `json:"updatedAt"`
}

func decodeServer(serverID string, value []byte) (cluster.Server, error) {
	var v serverValue
	if err := json.Unmarshal(value, &v); err != nil {
		return cluster.Server{}, fmt.Errorf("not a server: %w", err)
	}
	if v.CreatedAt.IsZero() || v.UpdatedAt.IsZero() {
		return cluster.Server{}, errors.New("not a server: it has no times")
	}
	if string(v.Location) == "null" {
		v.Location = nil
	}
	s := cluster.Server{
		ServerID:       serverID,
		ClusterBaseURL: v.ClusterBaseURL,
		Location:       slices.Clip(v.Location),
		CreatedAt:      v.CreatedAt.UTC(),
		UpdatedAt:      v.UpdatedAt.UTC(),
	}
	raw, err := s.MarshalJSON()
	s.Raw = slices.Clip(raw)
	return s, err
}

func encodeServer(s cluster.Server) (string, error) {
	return encode(serverValue{s.ClusterBaseURL, s.Location, s.CreatedAt, s.UpdatedAt})
}

// encode does not escape & in URLs, so that values are readable.
func encode(v any) (string, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return "", err
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}
