//go:build unix

package interop

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"

	"github.com/mimiktech/cluster/internal/wire"
)

func correlationScenarios() []scenario {
	return []scenario{
		{
			name:     "correlation id over three hops",
			shows:    "From Go over npm to Go, and from npm over Go to npm, the id and its date are unchanged. Each hop increments the step.",
			runMixed: threeHops,
		},
		{
			name:     "user agents",
			shows:    "Nodes of both kinds send their type, version, id and platform in the same format.",
			runMixed: userAgents,
		},
		{
			name:     correlationIDsName,
			shows:    "Both kinds continue complete, partial and malformed correlation ids in the same way. A Go node replaces ids that are longer than 256 characters or not printable ASCII.",
			runMixed: correlationIDs,
		},
	}
}

// seen is a request as a node received it, and the requests that its peers received because of it.
type seen struct {
	ServerID, CorrelationID, UserAgent string
	Caller                             caller
	Peers                              []seen
}

// A caller is described by the token of its request.
type caller struct {
	ClientID, TokenType, Customer string
	Cluster                       bool
}

// relay lets the node call its peers, which call their peers, and returns the requests.
func (n *node) relay(correlationID string) []seen {
	n.t.Helper()
	return n.seenByPeers(fanoutArgs{Method: "POST", Path: "/relay", CorrelationID: correlationID})
}

func threeHops(m *mixed) {
	const id, date = "an-id", "2026-02-03T04:05:06.789Z"
	step := func(n int) string { return fmt.Sprintf("%s@%d/%s", id, n, date) }
	for _, k := range kinds() {
		start := m.firstOf(k)
		hops := 0
		for _, middle := range start.relay(step(0)) {
			if middle.CorrelationID != step(1) {
				m.Errorf("id of a call from %s at %s: %s", start.id, middle.ServerID, middle.CorrelationID)
			}
			if len(middle.Peers) != len(m.nodes)-1 {
				m.Errorf("%s called %d peers", middle.ServerID, len(middle.Peers))
			}
			for _, end := range middle.Peers {
				if end.CorrelationID != step(2) {
					m.Errorf("id of a call from %s over %s at %s: %s", start.id, middle.ServerID, end.ServerID, end.CorrelationID)
				}
				if strings.HasPrefix(end.ServerID, strings.ToLower(string(k))) && !strings.HasPrefix(middle.ServerID, strings.ToLower(string(k))) {
					hops++
				}
			}
		}
		if hops == 0 {
			m.Errorf("no call went from %s over the other kind to %s", k, k)
		}
		// The response contains the id, too.
		resp := m.call("GET", start.base+"/mirror", m.token(serverType, true), nil, "x-correlation-id", step(7))
		if got := resp.header.Get("X-Correlation-Id"); got != step(8) {
			m.Errorf("id in the response of %s: %s", start.id, got)
		}
	}
}

func userAgents(m *mixed) {
	forms := map[kind]*regexp.Regexp{
		goKind:  regexp.MustCompile(`^mimik-mds/1\.2\.3/(\S+) \(\w+; \w+; go \d+\.\d+\S*\)$`),
		npmKind: regexp.MustCompile(`^mimik-mds/1\.2\.3/(\S+) \(\w+; \w+; node v\d+\.\d+\S*\)$`),
	}
	for _, n := range m.nodes {
		for _, s := range n.relay("") {
			found := forms[n.kind].FindStringSubmatch(s.UserAgent)
			if found == nil || found[1] != n.id {
				m.Errorf("user agent of %s at %s: %q", n.id, s.ServerID, s.UserAgent)
			}
		}
	}
}

// correlationIDs passes incoming ids to the function of the npm module and to that of this module.
// The cases include those of the npm module's own tests.
func correlationIDs(m *mixed) {
	const id, date = "--an-id--", "2026-02-03T04:05:06.789Z"
	incoming := []string{
		"", id, id + "@0", id + "@41/" + date, id + "/" + date, "@0", "/" + date, "@/", "/", "@", id + "@abc", id + "@abc/" + date,
		id + "@", id + "@/", id + "/", "@5/" + date, id + "@1.9/" + date, id + "@-1/" + date, id + "@-5", id + "@+3", id + "@ 3", id + "@3x",
		id + "@0x10", id + "@1@2/" + date, id + "@1/" + date + "/more", id + "@1//" + date, id + "@007/" + date, id + "@1/no date", "//", "@@", "a b@1/c d",
	}
	var theirs []string
	m.firstOf(npmKind).must("correlate", incoming, &theirs)
	now := regexp.MustCompile(`\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z`)
	uuid := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`)
	normal := func(s string) string {
		s = uuid.ReplaceAllString(s, "uuid")
		return now.ReplaceAllStringFunc(s, func(d string) string {
			if d == date {
				return d
			}
			return "now"
		})
	}
	for i, in := range incoming {
		ours := wire.NextCorrelationID(in)
		if diff := cmp.Diff(normal(theirs[i]), normal(ours)); diff != "" {
			m.Errorf("%q (-npm +Go):\n%s", in, diff)
		}
	}
	// An id that is unsafe in a log line is not continued.
	unsafe := []string{strings.Repeat("x", 257), "é@1/" + date, "a\tb@1/" + date}
	m.firstOf(npmKind).must("correlate", unsafe, &theirs)
	for i, in := range unsafe {
		if got := normal(wire.NextCorrelationID(in)); got != "uuid@0/now" {
			m.Errorf("%q is continued as %q", in, got)
		}
		if head, _, _ := strings.Cut(in, "@"); !strings.HasPrefix(theirs[i], head) {
			m.Errorf("npm: %q is continued as %q", in, theirs[i])
		}
	}
	if slices.Contains(theirs, "") {
		m.Errorf("npm: %q", theirs)
	}
}
