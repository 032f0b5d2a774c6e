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

func correlation() []scenario {
	return []scenario{
		{
			name:   "a correlation id over three hops",
			says:   "From Go over npm to Go, and from npm over Go to npm, an id goes out unchanged, counts one step up at each hop, and keeps its date.",
			within: threeHops,
		},
		{
			name:   "user agents",
			says:   "Each kind tells peers of the other its type, version, id and platform, in one form.",
			within: userAgents,
		},
		{
			name:   correlationIDsName,
			says:   "Both kinds make the same of a correlation id that is whole, lacks a part, or is odd; what no id should hold (over 256 characters, or not ASCII) starts a new one in Go only.",
			within: correlationIDs,
		},
	}
}

// seen is what a node saw of a request, and what its peers saw of those that it made for it.
type seen struct {
	ServerID, CorrelationID, UserAgent string
	Caller                             caller
	Peers                              []seen
}

// caller is what a node read in the token of a request.
type caller struct {
	ClientID, TokenType, Customer string
	Cluster                       bool
}

// relay has the node ask its peers to ask theirs, and returns what each of them saw.
func (n *node) relay(correlationID string) []seen {
	n.t.Helper()
	return n.asked(fanoutArgs{Method: "POST", Path: "/relay", CorrelationID: correlationID})
}

func threeHops(m *mixed) {
	const id, date = "a-trip", "2026-02-03T04:05:06.789Z"
	step := func(n int) string { return fmt.Sprintf("%s@%d/%s", id, n, date) }
	for _, k := range kinds() {
		start := m.first(k)
		hops := 0
		for _, middle := range start.relay(step(0)) {
			if middle.CorrelationID != step(1) {
				m.Errorf("%s goes on under %s for %s", middle.ServerID, middle.CorrelationID, start.id)
			}
			if len(middle.Peers) != len(m.nodes)-1 {
				m.Errorf("%s asked %d peers", middle.ServerID, len(middle.Peers))
			}
			for _, end := range middle.Peers {
				if end.CorrelationID != step(2) {
					m.Errorf("%s goes on under %s, from %s over %s", end.ServerID, end.CorrelationID, start.id, middle.ServerID)
				}
				if strings.HasPrefix(end.ServerID, strings.ToLower(string(k))) && !strings.HasPrefix(middle.ServerID, strings.ToLower(string(k))) {
					hops++
				}
			}
		}
		if hops == 0 {
			m.Errorf("nothing went from %s over the other kind to %s", k, k)
		}
		// And back on the answer.
		a := m.call("GET", start.base+"/mirror", m.token(serverType, true), nil, "x-correlation-id", step(7))
		if got := a.header.Get("X-Correlation-Id"); got != step(8) {
			m.Errorf("%s answers under %s", start.id, got)
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
				m.Errorf("%s is %q to %s", n.id, s.UserAgent, s.ServerID)
			}
		}
	}
}

// correlationIDs puts what may come in before the reference's own function and ours. The cases are
// those of the reference's own tests, and what lies between them.
func correlationIDs(m *mixed) {
	const id, date = "--an-id--", "2026-02-03T04:05:06.789Z"
	incoming := []string{
		"", id, id + "@0", id + "@41/" + date, id + "/" + date, "@0", "/" + date, "@/", "/", "@", id + "@abc", id + "@abc/" + date,
		id + "@", id + "@/", id + "/", "@5/" + date, id + "@1.9/" + date, id + "@-1/" + date, id + "@-5", id + "@+3", id + "@ 3", id + "@3x",
		id + "@0x10", id + "@1@2/" + date, id + "@1/" + date + "/more", id + "@1//" + date, id + "@007/" + date, id + "@1/no date", "//", "@@", "a b@1/c d",
	}
	var theirs []string
	m.first(npmKind).must("correlate", incoming, &theirs)
	now := regexp.MustCompile(`\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z`)
	drawn := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`)
	normal := func(s string) string {
		s = drawn.ReplaceAllString(s, "uuid")
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
	// What is odd enough to be dangerous in a log is not continued.
	odd := []string{strings.Repeat("x", 257), "é@1/" + date, "a\tb@1/" + date}
	m.first(npmKind).must("correlate", odd, &theirs)
	for i, in := range odd {
		if got := normal(wire.NextCorrelationID(in)); got != "uuid@0/now" {
			m.Errorf("%q goes on as %q", in, got)
		}
		if head, _, _ := strings.Cut(in, "@"); !strings.HasPrefix(theirs[i], head) {
			m.Errorf("npm: %q goes on as %q", in, theirs[i])
		}
	}
	if slices.Contains(theirs, "") {
		m.Errorf("npm: %q", theirs)
	}
}
