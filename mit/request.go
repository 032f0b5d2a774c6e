package mit

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/mimiktech/cluster/internal/peeraddr"
	"github.com/mimiktech/cluster/internal/wire"
)

// Limits of a registration.
const (
	maxRegistrationBytes = 64 << 10 // of JSON, which may spell a byte as six
	maxNameBytes         = 256      // of a type or server id
	maxURLBytes          = 2048
	maxLocationBytes     = 4096
)

// parseRegistration decodes a registration. Its error names every problem.
func parseRegistration(body []byte) (Registration, error) {
	var in wire.Registration
	if err := json.Unmarshal(body, &in); err != nil {
		return Registration{}, newAPIError(http.StatusBadRequest, "the body is not a registration in JSON")
	}
	if string(in.Location) == "null" {
		in.Location = nil
	}
	var problems []string
	add := func(name, problem string) {
		if problem != "" {
			problems = append(problems, name+" "+problem)
		}
	}
	add("type", requiredProblem(in.Type, maxNameBytes, nil))
	add("serverId", requiredProblem(in.ServerID, maxNameBytes, serverIDProblem))
	add("clusterBaseUrl", requiredProblem(in.ClusterBaseURL, maxURLBytes, baseURLProblem))
	add("publicBaseUrl", lengthProblem(len(in.PublicBaseURL), maxURLBytes))
	add("location", lengthProblem(len(in.Location), maxLocationBytes))
	if problems != nil {
		return Registration{}, newAPIError(http.StatusBadRequest, "%s", strings.Join(problems, "; "))
	}
	return Registration{
		Type:           in.Type,
		ServerID:       in.ServerID,
		Location:       in.Location,
		PublicBaseURL:  in.PublicBaseURL,
		ClusterBaseURL: in.ClusterBaseURL,
	}, nil
}

// requiredProblem returns what is wrong with a mandatory value, or "". check may be nil.
func requiredProblem(value string, limit int, check func(string) string) string {
	if value == "" {
		return "is missing"
	}
	if problem := lengthProblem(len(value), limit); problem != "" || check == nil {
		return problem
	}
	return check(value)
}

func lengthProblem(n, limit int) string {
	if n <= limit {
		return ""
	}
	return fmt.Sprintf("is longer than %d bytes", limit)
}

// serverIDProblem rejects ids that cannot be part of a path: npm nodes do not escape them there.
func serverIDProblem(id string) string {
	if id == "." || id == ".." {
		return "is a dot segment of a path"
	}
	if i := strings.IndexFunc(id, func(r rune) bool { return r < ' ' || r == 0x7f || strings.ContainsRune(`@/?#%\`, r) }); i >= 0 {
		return fmt.Sprintf("must not contain %q", id[i:i+1])
	}
	return ""
}

func baseURLProblem(raw string) string {
	if _, err := peeraddr.Parse(raw); err != nil {
		return "is " + err.Error()
	}
	return ""
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
		return "", nil, newAPIError(http.StatusBadRequest, "the date %q is not in the format of RFC 3339", text)
	}
	if serverID == "" {
		return "", nil, newAPIError(http.StatusBadRequest, "the date has no serverId before it")
	}
	return serverID, &date, nil
}
