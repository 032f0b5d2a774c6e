//go:build unix

package interop

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"

	"github.com/mimiktech/cluster/mit"
)

func knowing() []scenario {
	return []scenario{
		{
			name: "a node joins a cluster of the other kind",
			says: "A Go node that joins two npm nodes, and an npm node that joins two Go nodes, is known to both at once, knows both, and each gets the answers of the two others.",
			each: joinsTheOthers,
		},
		{
			name:   "an announcement adds a server",
			says:   "Both kinds take in the servers of an announcement, answer 200 with all they know, and pass on fields that they don't know.",
			within: announcementAdds,
		},
		{
			name:   "an announcement whose answer nobody needs",
			says:   "A Go node that is told `Prefer: return=minimal`, as Go nodes tell their peers, answers an announcement with `data: null`; the npm module answers all it knows. Both take the servers in.",
			within: nothingBack,
		},
		{
			name: "an announcement to a node that has not registered",
			says: "A Go node announces itself alone, an npm node all servers; a node of either kind that has yet to register takes that for its view, and knows all once it has registered.",
			each: announcedBeforeRegistering,
		},
		{
			name:   "an announcement of another cluster",
			says:   "An announcement or a departure with the id of another resource changes nothing in either kind, and is answered 200, the departure with `data: null`.",
			within: anotherCluster,
		},
		{
			name:   "a departure of somebody unknown",
			says:   "Both kinds answer the departure of a server they don't know with 200 and its id.",
			within: unknownDeparture,
		},
		{
			name:   "an announcement that brings an older or a newer entry",
			says:   "A Go node takes the newer entry of a server it knows; the npm module keeps the one it has, whatever its date.",
			within: newerEntry,
		},
		{
			name:  "a node told to forget itself",
			says:  "Both kinds answer 200; the npm node then knows itself no more, the Go node registers again at once.",
			alone: forgetsItself,
		},
	}
}

func resourceID() string { return mit.ResourceID(serverType) }

func joinsTheOthers(w *world, k kind) {
	nodes := w.cluster(k.other(), k.other(), k)
	for i, n := range nodes {
		others := []*node{nodes[(i+1)%3], nodes[(i+2)%3]}
		f := n.ask(fanoutArgs{Path: "/things"})
		if err := same(f.answered(), sorted(others)); err != nil || f.failed() != nil {
			w.Errorf("%s: answered: %v; failed: %v", n.id, err, f.failed())
		}
		f = n.ask(fanoutArgs{Method: "POST", Path: "/mirror", Body: map[string]any{"text": "é €"}})
		if err := same(f.answered(), sorted(others)); err != nil || f.failed() != nil {
			w.Errorf("%s: answered: %v; failed: %v", n.id, err, f.failed())
		}
	}
	// What each knows is what the registry knows, to the letter.
	want := w.listed()
	for _, n := range nodes {
		got, err := n.view()
		if err != nil {
			w.Fatal(err)
		}
		for _, s := range got {
			for _, listed := range want {
				if s.ServerID == listed.ServerID && (s.ClusterBaseURL != listed.ClusterBaseURL || !s.CreatedAt.Equal(listed.CreatedAt)) {
					w.Errorf("%s knows %+v, the registry %+v", n.id, s, listed)
				}
			}
		}
	}
}

// peerCall calls a peer endpoint of a node, as a peer does.
func (m *mixed) peerCall(n *node, method, path string, body any) (status int, envelope map[string]any) {
	m.Helper()
	a := m.call(method, n.base+path, m.token(serverType, true), body)
	if err := json.Unmarshal(a.body, &envelope); err != nil {
		m.Fatalf("%s answers %s %s with %s", n.id, method, path, a.body)
	}
	return a.status, envelope
}

// entry is what the answer of a node says about one server; nil if it does not.
func entry(envelope map[string]any, id string) map[string]any {
	data, _ := envelope["data"].(map[string]any)
	servers, _ := data["servers"].([]any)
	for _, s := range servers {
		if server, ok := s.(map[string]any); ok && server["serverId"] == id {
			return server
		}
	}
	return nil
}

func announcement(id string, servers ...map[string]any) map[string]any {
	if servers == nil {
		servers = []map[string]any{} // null is none
	}
	return map[string]any{"id": id, "type": serverType, "publicBaseUrl": "http://public.test" + basePath, "servers": servers}
}

func announcementAdds(m *mixed) {
	for _, n := range m.nodes {
		newcomer := map[string]any{
			"serverId": "newcomer", "clusterBaseUrl": "http://127.0.0.1:1" + basePath, "region": map[string]any{"zone": "é"},
			"createdAt": "2026-01-02T03:04:05.678Z", "updatedAt": "2026-01-02T03:04:05.678Z",
		}
		status, envelope := m.peerCall(n, http.MethodPost, "/itResources", announcement(resourceID(), newcomer))
		if status != http.StatusOK {
			m.Fatalf("%s answers %d: %v", n.id, status, envelope)
		}
		if diff := cmp.Diff(newcomer, entry(envelope, "newcomer")); diff != "" {
			m.Errorf("%s does not give back the newcomer (-sent +known):\n%s", n.id, diff)
		}
		if entry(envelope, m.nodes[0].id) == nil || entry(envelope, n.id) == nil {
			m.Errorf("%s lost servers over it: %v", n.id, envelope)
		}
		if diff := cmp.Diff(map[string]any{"serverId": n.id}, envelope["server"]); diff != "" {
			m.Errorf("%s does not say who answers: %s", n.id, diff)
		}
		status, envelope = m.peerCall(n, http.MethodDelete, "/itResources/"+resourceID()+"/servers/newcomer", nil)
		if status != http.StatusOK || envelope["data"] != "newcomer" {
			m.Errorf("%s answers the departure with %d: %v", n.id, status, envelope)
		}
		m.sees(n, m.nodes...)
	}
}

func nothingBack(m *mixed) {
	for _, n := range m.nodes {
		newcomer := map[string]any{"serverId": "newcomer", "clusterBaseUrl": "http://127.0.0.1:1" + basePath}
		a := m.call(http.MethodPost, n.base+"/itResources", m.token(serverType, true), announcement(resourceID(), newcomer), "Prefer", "return=minimal")
		var envelope map[string]any
		if err := json.Unmarshal(a.body, &envelope); err != nil || a.status != http.StatusOK {
			m.Fatalf("%s answers %d: %s", n.id, a.status, a.body)
		}
		short, applied := envelope["data"] == nil, a.header.Get("Preference-Applied")
		if short != (n.kind == goKind) || short != (applied == "return=minimal") {
			m.Errorf("%s answers with the preference applied: %q, %s", n.id, applied, a.body)
		}
		_, envelope = m.peerCall(n, http.MethodPost, "/itResources", announcement(resourceID()))
		if entry(envelope, "newcomer") == nil {
			m.Errorf("%s did not take in the newcomer: %v", n.id, envelope)
		}
		m.peerCall(n, http.MethodDelete, "/itResources/"+resourceID()+"/servers/newcomer", nil)
		m.sees(n, m.nodes...)
	}
}

func announcedBeforeRegistering(w *world, k kind) {
	first := w.cluster(k.other())[0]
	n := w.start(k)
	w.list(n.id, n.base) // from a life before
	newcomer := w.start(k.other())
	newcomer.register()
	told := map[kind][]string{npmKind: {newcomer.id}, goKind: sorted([]*node{first, newcomer})}[k]
	m := &mixed{w, []*node{first, n, newcomer}}
	w.until("it is told", func() error {
		_, envelope := m.peerCall(n, http.MethodPost, "/itResources", announcement(resourceID()))
		var known []string
		for _, other := range m.nodes {
			if entry(envelope, other.id) != nil {
				known = append(known, other.id)
			}
		}
		slices.Sort(known)
		return same(known, told)
	})
	n.register()
	w.settle(m.nodes...)
}

func anotherCluster(m *mixed) {
	for _, n := range m.nodes {
		stranger := map[string]any{"serverId": "stranger", "clusterBaseUrl": "http://127.0.0.1:1" + basePath}
		status, envelope := m.peerCall(n, http.MethodPost, "/itResources", announcement("another", stranger))
		data, _ := envelope["data"].(map[string]any)
		if status != http.StatusOK || entry(envelope, "stranger") != nil || data["id"] != resourceID() {
			m.Errorf("%s answers the announcement with %d: %v", n.id, status, envelope)
		}
		status, envelope = m.peerCall(n, http.MethodDelete, "/itResources/another/servers/"+m.but(n)[0], nil)
		if got, there := envelope["data"]; status != http.StatusOK || !there || got != nil {
			m.Errorf("%s answers the departure with %d: %v", n.id, status, envelope)
		}
		m.sees(n, m.nodes...)
	}
}

func unknownDeparture(m *mixed) {
	for _, n := range m.nodes {
		status, envelope := m.peerCall(n, http.MethodDelete, "/itResources/"+resourceID()+"/servers/nobody", nil)
		if status != http.StatusOK || envelope["data"] != "nobody" {
			m.Errorf("%s answers %d: %v", n.id, status, envelope)
		}
		m.sees(n, m.nodes...)
	}
}

func newerEntry(m *mixed) {
	for _, n := range m.nodes {
		announce := func(date, path string) any {
			_, envelope := m.peerCall(n, http.MethodPost, "/itResources", announcement(resourceID(), map[string]any{
				"serverId": "mover", "clusterBaseUrl": "http://127.0.0.1:1" + path, "createdAt": "2026-01-01T00:00:00.000Z", "updatedAt": date,
			}))
			return entry(envelope, "mover")["clusterBaseUrl"]
		}
		announce("2026-01-01T00:00:02.000Z", "/middle")
		if got := announce("2026-01-01T00:00:01.000Z", "/old"); got != "http://127.0.0.1:1/middle" {
			m.Errorf("%s takes an older entry: %v", n.id, got)
		}
		want := map[kind]string{npmKind: "/middle", goKind: "/new"}[n.kind]
		if got, _ := announce("2026-01-01T00:00:03.000Z", "/new").(string); !strings.HasSuffix(got, want) {
			m.Errorf("%s has %s after a newer entry, not %s", n.id, got, want)
		}
		m.peerCall(n, http.MethodDelete, "/itResources/"+resourceID()+"/servers/mover", nil)
		m.sees(n, m.nodes...)
	}
}

func forgetsItself(w *world) {
	nodes := w.cluster(npmKind, goKind)
	npm, golang := nodes[0], nodes[1]
	m := &mixed{w, nodes}
	forget := func(n *node) {
		status, envelope := m.peerCall(n, http.MethodDelete, "/itResources/"+resourceID()+"/servers/"+n.id, nil)
		if status != http.StatusOK || envelope["data"] != n.id {
			w.Errorf("%s answers %d: %v", n.id, status, envelope)
		}
	}
	before := len(w.registrations(golang.id))
	forget(golang)
	w.until("the Go node has registered again", func() error {
		if got := len(w.registrations(golang.id)); got != before+1 {
			return fmt.Errorf("%d more registrations", got-before)
		}
		return nil
	})
	w.settle(nodes...)
	forget(npm)
	w.sees(npm, golang)
	w.sees(golang, nodes...)
}
