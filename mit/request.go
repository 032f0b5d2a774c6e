package mit

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/mimiktech/cluster/internal/wire"
)

// maxRegistrationBytes bounds the body of a registration. JSON may escape one byte as six.
const maxRegistrationBytes = 64 << 10

// parseRegistration decodes a registration. Its error names every problem. With an error, it
// returns the server id alone, if this is valid.
func parseRegistration(body []byte) (Registration, error) {
	var in wire.Registration
	if err := json.Unmarshal(body, &in); err != nil {
		return Registration{}, newAPIError(http.StatusBadRequest, "the body is not a registration in JSON")
	}
	if string(in.Location) == "null" {
		in.Location = nil
	}
	var problems []string
	add := func(name string, err error) {
		if err != nil {
			problems = append(problems, name+" "+err.Error())
		}
	}
	add("type", wire.CheckType(in.Type))
	add("serverId", wire.CheckServerID(in.ServerID))
	add("clusterBaseUrl", wire.CheckBaseURL(in.ClusterBaseURL))
	add("publicBaseUrl", wire.CheckPublicURL(in.PublicBaseURL))
	add("location", wire.CheckLocation(in.Location))
	if problems != nil {
		var reg Registration
		if wire.CheckServerID(in.ServerID) == nil {
			reg.ServerID = in.ServerID
		}
		return reg, newAPIError(http.StatusBadRequest, "%s", strings.Join(problems, "; "))
	}
	return Registration{
		Type:           in.Type,
		ServerID:       in.ServerID,
		Location:       in.Location,
		PublicBaseURL:  in.PublicBaseURL,
		ClusterBaseURL: in.ClusterBaseURL,
	}, nil
}

// parseServerRef splits the last segment of the path of a delete: an id, or {id}@{date} for a
// conditional delete.
func parseServerRef(segment string) (serverID string, unmodifiedSince *time.Time, err error) {
	at := strings.LastIndexByte(segment, '@')
	if at < 0 {
		return segment, nil, nil
	}
	serverID, text := segment[:at], segment[at+1:]
	date, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return serverID, nil, newAPIError(http.StatusBadRequest, "the date %q is not in the format of RFC 3339", text)
	}
	if serverID == "" {
		return "", nil, newAPIError(http.StatusBadRequest, "the date has no serverId before it")
	}
	return serverID, &date, nil
}
