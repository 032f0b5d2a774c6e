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

func membershipScenarios() []scenario {
	return []scenario{
		{
			name:       "node joins a cluster of the other kind",
			shows:      "A Go node joins two npm nodes, and an npm node joins two Go nodes. All of them know each other at once, and each call gets two results.",
			runPerKind: joinsTheOthers,
		},
		{
			name:     "announcement adds a server",
			shows:    "A node of either kind adds the servers of an announcement and responds with 200 and all servers that it knows. It keeps unknown fields of an entry.",
			runMixed: announcementAdds,
		},
		{
			name:     "announcement without a list in the response",
			shows:    "Go nodes announce themselves with `Prefer: return=minimal`. A Go node then responds with `data: null`, an npm node with all servers that it knows. Both add the servers.",
			runMixed: minimalResponse,
		},
		{
			name:       "announcement before registration",
			shows:      "A Go node announces only itself, an npm node all servers that it knows. A node of either kind that has not registered uses the announced servers as its view. It knows all servers after its registration.",
			runPerKind: announcedBeforeRegistering,
		},
		{
			name:     "announcement for another itResource",
			shows:    "A node of either kind ignores an announcement or a departure with the id of another itResource. It responds with 200, to the departure with `data: null`.",
			runMixed: anotherItResource,
		},
		{
			name:     "departure of an unknown server",
			shows:    "A node of either kind responds to the departure of a server that it does not know with 200 and the id of the server.",
			runMixed: unknownDeparture,
		},
		{
			name:     "announcement of an older or a newer entry",
			shows:    "A Go node replaces an entry by a newer one. An npm node always keeps the entry that it has.",
			runMixed: newerEntry,
		},
		{
			name:  "departure of the receiving node itself",
			shows: "A node of either kind responds with 200. The npm node then does not list itself any more. The Go node registers again at once.",
			run:   ownDeparture,
		},
	}
}

func resourceID() string { return mit.ResourceID(serverType) }

func joinsTheOthers(w *world, k kind) {
	nodes := w.cluster(k.other(), k.other(), k)
	for i, n := range nodes {
		others := []*node{nodes[(i+1)%3], nodes[(i+2)%3]}
		f := n.fanOut(fanoutArgs{Path: "/things"})
		if err := checkEqual(f.resultIDs(), sortedIDs(others)); err != nil || f.failureIDs() != nil {
			w.Errorf("%s: results: %v; failures: %v", n.id, err, f.failureIDs())
		}
		f = n.fanOut(fanoutArgs{Method: "POST", Path: "/mirror", Body: map[string]any{"text": "é €"}})
		if err := checkEqual(f.resultIDs(), sortedIDs(others)); err != nil || f.failureIDs() != nil {
			w.Errorf("%s: results: %v; failures: %v", n.id, err, f.failureIDs())
		}
	}
	// The views contain the entries of the registry.
	want := w.registered()
	for _, n := range nodes {
		got, err := n.view()
		if err != nil {
			w.Fatal(err)
		}
		for _, s := range got {
			for _, listed := range want {
				if s.ServerID == listed.ServerID && (s.ClusterBaseURL != listed.ClusterBaseURL || !s.CreatedAt.Equal(listed.CreatedAt)) {
					w.Errorf("%s knows %+v, the registry lists %+v", n.id, s, listed)
				}
			}
		}
	}
}

// peerCall sends a request to a peer endpoint of a node, with a cluster token.
func (m *mixed) peerCall(n *node, method, path string, body any) (status int, envelope map[string]any) {
	m.Helper()
	resp := m.call(method, n.base+path, m.token(serverType, true), body)
	if err := json.Unmarshal(resp.body, &envelope); err != nil {
		m.Fatalf("response of %s to %s %s: %s", n.id, method, path, resp.body)
	}
	return resp.status, envelope
}

// entryIn returns the entry of a server in the response to an announcement, or nil.
func entryIn(envelope map[string]any, id string) map[string]any {
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
		servers = []map[string]any{} // null is not a list
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
			m.Fatalf("%s responds with %d: %v", n.id, status, envelope)
		}
		if diff := cmp.Diff(newcomer, entryIn(envelope, "newcomer")); diff != "" {
			m.Errorf("entry of the newcomer at %s (-sent +received):\n%s", n.id, diff)
		}
		if entryIn(envelope, m.nodes[0].id) == nil || entryIn(envelope, n.id) == nil {
			m.Errorf("servers are missing in the response of %s: %v", n.id, envelope)
		}
		if diff := cmp.Diff(map[string]any{"serverId": n.id}, envelope["server"]); diff != "" {
			m.Errorf("server in the response of %s (-want +got):\n%s", n.id, diff)
		}
		status, envelope = m.peerCall(n, http.MethodDelete, "/itResources/"+resourceID()+"/servers/newcomer", nil)
		if status != http.StatusOK || envelope["data"] != "newcomer" {
			m.Errorf("response of %s to the departure: %d, %v", n.id, status, envelope)
		}
		m.waitForView(n, m.nodes...)
	}
}

func minimalResponse(m *mixed) {
	for _, n := range m.nodes {
		newcomer := map[string]any{"serverId": "newcomer", "clusterBaseUrl": "http://127.0.0.1:1" + basePath}
		resp := m.call(http.MethodPost, n.base+"/itResources", m.token(serverType, true), announcement(resourceID(), newcomer), "Prefer", "return=minimal")
		var envelope map[string]any
		if err := json.Unmarshal(resp.body, &envelope); err != nil || resp.status != http.StatusOK {
			m.Fatalf("%s responds with %d: %s", n.id, resp.status, resp.body)
		}
		minimal, applied := envelope["data"] == nil, resp.header.Get("Preference-Applied")
		if minimal != (n.kind == goKind) || minimal != (applied == "return=minimal") {
			m.Errorf("response of %s: Preference-Applied: %q, %s", n.id, applied, resp.body)
		}
		_, envelope = m.peerCall(n, http.MethodPost, "/itResources", announcement(resourceID()))
		if entryIn(envelope, "newcomer") == nil {
			m.Errorf("%s does not know the newcomer: %v", n.id, envelope)
		}
		m.peerCall(n, http.MethodDelete, "/itResources/"+resourceID()+"/servers/newcomer", nil)
		m.waitForView(n, m.nodes...)
	}
}

func announcedBeforeRegistering(w *world, k kind) {
	first := w.cluster(k.other())[0]
	n := w.start(k)
	w.addToRegistry(n.id, n.base) // as if it had registered before a restart
	newcomer := w.start(k.other())
	newcomer.register()
	announced := map[kind][]string{npmKind: {newcomer.id}, goKind: sortedIDs([]*node{first, newcomer})}[k]
	m := &mixed{w, []*node{first, n, newcomer}}
	w.waitFor("the announcement", func() error {
		_, envelope := m.peerCall(n, http.MethodPost, "/itResources", announcement(resourceID()))
		var known []string
		for _, other := range m.nodes {
			if entryIn(envelope, other.id) != nil {
				known = append(known, other.id)
			}
		}
		slices.Sort(known)
		return checkEqual(known, announced)
	})
	n.register()
	w.waitForMembers(m.nodes...)
}

func anotherItResource(m *mixed) {
	for _, n := range m.nodes {
		stranger := map[string]any{"serverId": "stranger", "clusterBaseUrl": "http://127.0.0.1:1" + basePath}
		status, envelope := m.peerCall(n, http.MethodPost, "/itResources", announcement("another", stranger))
		data, _ := envelope["data"].(map[string]any)
		if status != http.StatusOK || entryIn(envelope, "stranger") != nil || data["id"] != resourceID() {
			m.Errorf("response of %s to the announcement: %d, %v", n.id, status, envelope)
		}
		status, envelope = m.peerCall(n, http.MethodDelete, "/itResources/another/servers/"+m.otherIDs(n)[0], nil)
		if got, there := envelope["data"]; status != http.StatusOK || !there || got != nil {
			m.Errorf("response of %s to the departure: %d, %v", n.id, status, envelope)
		}
		m.waitForView(n, m.nodes...)
	}
}

func unknownDeparture(m *mixed) {
	for _, n := range m.nodes {
		status, envelope := m.peerCall(n, http.MethodDelete, "/itResources/"+resourceID()+"/servers/unknown", nil)
		if status != http.StatusOK || envelope["data"] != "unknown" {
			m.Errorf("response of %s: %d, %v", n.id, status, envelope)
		}
		m.waitForView(n, m.nodes...)
	}
}

func newerEntry(m *mixed) {
	for _, n := range m.nodes {
		announce := func(date, path string) any {
			_, envelope := m.peerCall(n, http.MethodPost, "/itResources", announcement(resourceID(), map[string]any{
				"serverId": "moved", "clusterBaseUrl": "http://127.0.0.1:1" + path, "createdAt": "2026-01-01T00:00:00.000Z", "updatedAt": date,
			}))
			return entryIn(envelope, "moved")["clusterBaseUrl"]
		}
		announce("2026-01-01T00:00:02.000Z", "/middle")
		if got := announce("2026-01-01T00:00:01.000Z", "/old"); got != "http://127.0.0.1:1/middle" {
			m.Errorf("address at %s after an older entry: %v", n.id, got)
		}
		want := map[kind]string{npmKind: "/middle", goKind: "/new"}[n.kind]
		if got, _ := announce("2026-01-01T00:00:03.000Z", "/new").(string); !strings.HasSuffix(got, want) {
			m.Errorf("address at %s after a newer entry: got %s, want suffix %s", n.id, got, want)
		}
		m.peerCall(n, http.MethodDelete, "/itResources/"+resourceID()+"/servers/moved", nil)
		m.waitForView(n, m.nodes...)
	}
}

func ownDeparture(w *world) {
	nodes := w.cluster(npmKind, goKind)
	npm, golang := nodes[0], nodes[1]
	m := &mixed{w, nodes}
	sendDeparture := func(n *node) {
		status, envelope := m.peerCall(n, http.MethodDelete, "/itResources/"+resourceID()+"/servers/"+n.id, nil)
		if status != http.StatusOK || envelope["data"] != n.id {
			w.Errorf("response of %s: %d, %v", n.id, status, envelope)
		}
	}
	before := len(w.registrations(golang.id))
	sendDeparture(golang)
	w.waitFor("a new registration of the Go node", func() error {
		if got := len(w.registrations(golang.id)); got != before+1 {
			return fmt.Errorf("%d more registrations", got-before)
		}
		return nil
	})
	w.waitForMembers(nodes...)
	sendDeparture(npm)
	w.waitForView(npm, golang)
	w.waitForView(golang, nodes...)
}
