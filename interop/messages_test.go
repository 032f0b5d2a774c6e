//go:build unix

package interop

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func messageScenarios() []scenario {
	return []scenario{
		{
			name:  "requests of a node",
			shows: "All requests of a node, to the token service, the registry and its peers, are the same for both kinds, except for differences that the test lists.",
			run:   requestsOfNode,
		},
		{
			name:     "responses of a node",
			shows:    "All responses of the peer endpoints and of a service are the same for both kinds, except for differences that the test lists.",
			runMixed: responsesOfNode,
		},
	}
}

// A difference is text in a message of the npm node, and the text of the Go node in its place.
type difference struct{ npm, golang, reason string }

// compare checks that the texts are equal except for the allowed differences, all of which must
// occur.
func compare(t *testing.T, npm, golang string, allowed []difference) {
	t.Helper()
	for _, d := range allowed {
		if !strings.Contains(npm, d.npm) {
			t.Errorf("the text of the npm node does not contain %q (%s)", d.npm, d.reason)
		}
		npm = strings.ReplaceAll(npm, d.npm, d.golang)
	}
	if diff := cmp.Diff(strings.Split(npm, "\n"), strings.Split(golang, "\n")); diff != "" {
		t.Errorf("-npm +Go:\n%s", diff)
	}
}

// normalize replaces ids, addresses, tokens, dates and platforms, which differ from run to run, by
// names in braces.
func normalize(text string, names map[string]string) string {
	for _, name := range slices.SortedFunc(maps.Keys(names), func(a, b string) int { return len(b) - len(a) }) {
		text = strings.ReplaceAll(text, name, names[name])
	}
	for _, r := range []struct{ pattern, name string }{
		{`eyJ[\w-]+\.eyJ[\w-]+\.[\w-]+`, "{token}"},
		{`2\d{3}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{1,3}Z`, "{date}"},
		{`127\.0\.0\.1:\d{2,}`, "{address}"},
		{`\(\w+; \w+; (node v|go )\d[\w.-]*\)`, "({platform})"},
	} {
		text = regexp.MustCompile(r.pattern).ReplaceAllString(text, r.name)
	}
	return text
}

// render writes the headers of a message, except those of the connection, and its body.
func render(b *strings.Builder, header http.Header, body []byte, names map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(header)) {
		switch name {
		case "Connection", "Content-Length", "Transfer-Encoding", "Date", "Keep-Alive", "Etag", "X-Powered-By":
		default:
			fmt.Fprintf(b, "  %s: %s\n", strings.ToLower(name), normalize(strings.Join(header[name], ", "), names))
		}
	}
	if len(body) == 0 {
		return
	}
	var value any
	if err := json.Unmarshal([]byte(normalize(string(body), names)), &value); err != nil {
		fmt.Fprintf(b, "  not JSON: %s\n", body)
		return
	}
	sortServers(value)
	indented, _ := json.MarshalIndent(value, "  ", "  ") // cannot fail: value was JSON
	fmt.Fprintf(b, "  %s\n", indented)
}

// sortServers sorts the servers of an itResource in a body, because their order has no meaning.
func sortServers(value any) {
	object, ok := value.(map[string]any)
	if !ok {
		return
	}
	if servers, ok := object["servers"].([]any); ok {
		slices.SortFunc(servers, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	}
	sortServers(object["data"])
}

// requestsOfNode lets a node of each kind register, call its peers, evict one and unregister.
func requestsOfNode(outer *world) {
	texts := map[kind]string{}
	for _, k := range kinds() {
		w := newWorld(outer.T, nil)
		peer := w.fakePeer("peer", nil)
		n := w.start(k, "SERVER_LOCATION_LON=-123.1", "SERVER_LOCATION_LAT=49.3", "SERVER_PUBLIC_DOMAIN_NAME=public.test", "SERVER_PUBLIC_PROTOCOL=https:",
			"REGISTRATION_RETRY=1000")
		names := map[string]string{n.id: "{node}", peer.base: "{peer}", n.base: "{node's address}", w.url: "{back end}"}
		var b strings.Builder
		toBackend, toPeer := 0, 0 // requests written so far
		section := func(title string) {
			fmt.Fprintf(&b, "# %s\n\n", title)
			backend, peers := w.requests("")[toBackend:], peer.requests()[toPeer:]
			toBackend, toPeer = toBackend+len(backend), toPeer+len(peers)
			// An npm node registers again if that takes longer than its retry period. A repeated
			// request is written once.
			written := map[string]bool{}
			write := func(to string, all []request) {
				for _, r := range all {
					var message strings.Builder
					fmt.Fprintf(&message, "%s {%s}%s\n", r.method, to, normalize(r.target, names))
					render(&message, r.header, r.body, names)
					if text := message.String(); !written[text] {
						b.WriteString(text + "\n")
						written[text] = true
					}
				}
			}
			write("back end", backend)
			write("a peer", peers)
		}
		const id = "a-test@0/2026-02-03T04:05:06.789Z"
		n.must("register", id, new(any))
		w.waitFor("its announcement", func() error {
			if len(peer.requests()) == 0 {
				return fmt.Errorf("the peer received no requests")
			}
			return nil
		})
		section("registration")
		n.fanOut(fanoutArgs{Path: "/things", Query: map[string]string{"a": "1 2", "b": "é"}, CorrelationID: id})
		n.fanOut(fanoutArgs{Method: "PUT", Path: "/things/1", Body: map[string]any{"text": "é"}, CorrelationID: id})
		section("calls to all peers")
		w.deadPeer("gone")
		w.call(http.MethodPost, n.base+"/itResources", w.token(serverType, true), announcement(resourceID(), map[string]any{
			"serverId": "gone", "clusterBaseUrl": "http://127.0.0.1:1" + basePath,
			"updatedAt": w.registryEntry("gone").UpdatedAt,
		}))
		toBackend = len(w.requests("")) // skips the token request of the test
		n.fanOut(fanoutArgs{Path: "/things", CorrelationID: id})
		w.waitFor("its notification of the peer", func() error {
			if len(peer.requests()) < toPeer+2 {
				return fmt.Errorf("the peer received %d more requests", len(peer.requests())-toPeer)
			}
			return nil
		})
		section("eviction of a dead peer")
		n.must("unregister", id, new(departure))
		section("departure")
		texts[k] = b.String()
	}
	golden(outer.T, filepath.Join("testdata", "requests-of-npm.txt"), texts[npmKind])
	compare(outer.T, texts[npmKind], texts[goKind], []difference{
		{"  accept: application/json, text/plain, */*\n", "  accept: application/json\n", "a Go node accepts only JSON"},
		{"  accept-encoding: gzip, compress, deflate, br\n", "  accept-encoding: gzip\n", "each HTTP client lists the encodings that it supports"},
		{
			"POST {back end}/mST/v1/oauth/token\n" +
				"  accept: application/json\n  accept-encoding: gzip\n  content-type: application/json\n" +
				"  user-agent: mimik-mds/1.2.3/{node} ({platform})\n  x-correlation-id: a-test@0/{date}\n" +
				"  {\n    \"audience\": \"https://mds.test/\",\n    \"client_id\": \"mds\",\n    \"client_secret\": \"secret of mds\",\n" +
				"    \"grant_type\": \"client_credentials\",\n    \"type\": \"cluster\"\n  }\n\n" +
				"DELETE {back end}/mIT/v1/itResources/09d8f1f0-7477-5c54-9770-74879a6d3b25/servers/gone@{date}\n",
			"DELETE {back end}/mIT/v1/itResources/09d8f1f0-7477-5c54-9770-74879a6d3b25/servers/gone@{date}\n",
			"an npm node requests a token for each address",
		},
		{
			"  x-correlation-id: a-test@0/{date}\n  {\n    \"audience\": ",
			"  x-correlation-id: a-test@0/{date}\n  x-server-id: {node}\n  {\n    \"audience\": ",
			"a Go node sends the server id to which a token may be bound",
		},
		{
			"      },\n      {\n        \"clusterBaseUrl\": \"{peer}\",\n        \"createdAt\": \"{date}\",\n" +
				"        \"serverId\": \"peer\",\n        \"updatedAt\": \"{date}\"\n      }\n",
			"      }\n",
			"a Go node announces only itself",
		},
		{
			"/mds/v1/itResources\n  accept: application/json\n  accept-encoding: gzip\n  authorization: Bearer {token}\n  content-type: application/json\n",
			"/mds/v1/itResources\n  accept: application/json\n  accept-encoding: gzip\n  authorization: Bearer {token}\n  content-type: application/json\n" +
				"  prefer: return=minimal\n",
			"a Go node does not need the list in the response",
		},
		{
			"# eviction of a dead peer\n\nDELETE", "# eviction of a dead peer\n\n" +
				"DELETE {back end}/mIT/v1/itResources/09d8f1f0-7477-5c54-9770-74879a6d3b25/servers/gone@" + epoch + "\n" +
				"  accept: application/json\n  accept-encoding: gzip\n  authorization: Bearer {token}\n" +
				"  user-agent: mimik-mds/1.2.3/{node} ({platform})\n  x-correlation-id: a-test@0/{date}\n\nDELETE",
			"the dead peer was only announced, so a Go node first reads its entry with a condition that never holds",
		},
		{
			"DELETE {back end}/mIT/v1/itResources/09d8f1f0-7477-5c54-9770-74879a6d3b25/servers/{node}\n",
			"DELETE {back end}/mIT/v1/itResources/09d8f1f0-7477-5c54-9770-74879a6d3b25/servers/{node}@{date}\n",
			"a Go node deletes only its own entry, not that of a successor",
		},
		{
			"/servers/{node}\n  accept: application/json\n  accept-encoding: gzip\n  authorization: Bearer {token}\n" +
				"  user-agent: mimik-mds/1.2.3/{node} ({platform})\n  x-correlation-id: a-test@0/{date}\n",
			"/servers/{node}\n  accept: application/json\n  accept-encoding: gzip\n  authorization: Bearer {token}\n" +
				"  user-agent: mimik-mds/1.2.3/{node} ({platform})\n  x-correlation-id: a-test@0/{date}\n" +
				"  x-unmodified-since: {date}\n",
			"a Go peer keeps an entry that is newer than the one that departs",
		},
		{
			"/servers/gone\n  accept: application/json\n  accept-encoding: gzip\n  authorization: Bearer {token}\n" +
				"  user-agent: mimik-mds/1.2.3/{node} ({platform})\n  x-correlation-id: a-test@0/{date}\n",
			"/servers/gone\n  accept: application/json\n  accept-encoding: gzip\n  authorization: Bearer {token}\n" +
				"  user-agent: mimik-mds/1.2.3/{node} ({platform})\n  x-correlation-id: a-test@0/{date}\n" +
				"  x-unmodified-since: {date}\n",
			"as above, of a peer that is evicted",
		},
		{
			"# departure\n\nDELETE", "# departure\n\n" +
				"DELETE {back end}/mIT/v1/itResources/09d8f1f0-7477-5c54-9770-74879a6d3b25/servers/{node}@" + epoch + "\n" +
				"  accept: application/json\n  accept-encoding: gzip\n  authorization: Bearer {token}\n" +
				"  user-agent: mimik-mds/1.2.3/{node} ({platform})\n  x-correlation-id: a-test@0/{date}\n\nDELETE",
			"a Go node first reads its entry with a condition that never holds",
		},
	})
}

// responsesOfNode sends the same requests to a node of each kind.
func responsesOfNode(m *mixed) {
	cluster, plain := m.token(serverType, true), m.token(serverType, false)
	texts := map[kind]string{}
	for _, k := range kinds() {
		n := m.firstOf(k)
		var b strings.Builder
		names := map[string]string{}
		for _, other := range m.nodes {
			names[other.id] = "{another node}"
		}
		names[n.id] = "{node}"
		for _, c := range []struct {
			title, method, path, token string
			body                       any
		}{
			{"an announcement", http.MethodPost, "/itResources", cluster, announcement(resourceID())},
			{"an announcement for another itResource", http.MethodPost, "/itResources", cluster, announcement("another")},
			{"an announcement with a plain token", http.MethodPost, "/itResources", plain, announcement(resourceID())},
			{"an announcement of another type", http.MethodPost, "/itResources", m.token("mcm", true), announcement(resourceID())},
			{"a departure", http.MethodDelete, "/itResources/" + resourceID() + "/servers/unknown", cluster, nil},
			{"a departure for another itResource", http.MethodDelete, "/itResources/another/servers/unknown", cluster, nil},
			{"no token", http.MethodDelete, "/itResources/another/servers/unknown", "", nil},
			{"a result of a service", http.MethodGet, "/one", plain, nil},
			{"a 404 of a service", http.MethodGet, "/fail/404", plain, nil},
			{"a 500 of a service", http.MethodGet, "/fail/500", plain, nil},
		} {
			resp := m.call(c.method, n.base+c.path, c.token, c.body, "x-correlation-id", "an-id@4/2026-02-03T04:05:06.789Z")
			fmt.Fprintf(&b, "# %s\n\n%d\n", c.title, resp.status)
			render(&b, resp.header, resp.body, names)
			b.WriteString("\n")
		}
		texts[k] = b.String()
	}
	golden(m.T, filepath.Join("testdata", "responses-of-npm.txt"), texts[npmKind])
	compare(m.T, texts[npmKind], texts[goKind], []difference{
		{
			"    \"info\": {\n      \"type\": \"mds\"\n    },\n    \"message\": \"invalid type\",\n",
			"    \"message\": \"invalid token: its type is \\\"mcm\\\", not \\\"mds\\\"\",\n",
			"the message of the Go node names both types",
		},
		{
			"403\n  content-type: application/json\n",
			"401\n  content-type: application/json\n  www-authenticate: Bearer\n",
			"without a token, the middleware of npm services responds with 403, HTTP requires 401",
		},
		{
			"  x-correlation-id: ",
			"  x-content-type-options: nosniff\n  x-correlation-id: ",
			"a browser must not take a response of a Go node for another type",
		},
		{
			"    \"message\": \"missing authorization header\",\n    \"statusCode\": 403,\n    \"title\": \"Forbidden\"\n",
			"    \"message\": \"invalid token: missing authorization header\",\n    \"statusCode\": 401,\n    \"title\": \"Unauthorized\"\n",
			"as above",
		},
	})
}
