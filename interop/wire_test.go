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

func wireScenarios() []scenario {
	return []scenario{
		{
			name:  "what a node sends",
			says:  "Every request of a node's life, to the token service, the registry and its peers, is the same from both kinds, but for differences that the test lists.",
			alone: whatANodeSends,
		},
		{
			name:   "what a node answers",
			says:   "Every answer of the peer endpoints and of a service's own is the same from both kinds, but for differences that the test lists.",
			within: whatANodeAnswers,
		},
	}
}

// A difference is text that the npm node has and the Go node has otherwise.
type difference struct{ npm, golang, why string }

// compare tells what differs beyond what is allowed, and what is allowed but does not differ.
func compare(t *testing.T, npm, golang string, allowed []difference) {
	t.Helper()
	for _, d := range allowed {
		if !strings.Contains(npm, d.npm) {
			t.Errorf("npm has no %q any more (%s)", d.npm, d.why)
		}
		npm = strings.ReplaceAll(npm, d.npm, d.golang)
	}
	if diff := cmp.Diff(strings.Split(npm, "\n"), strings.Split(golang, "\n")); diff != "" {
		t.Errorf("-npm +Go:\n%s", diff)
	}
}

// normalize writes what differs from run to run by its name.
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

// render writes a message line by line: its headers but those of the connection, then its body.
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
		fmt.Fprintf(b, "  no JSON: %s\n", body)
		return
	}
	sortServers(value)
	indented, _ := json.MarshalIndent(value, "  ", "  ") // it has just been JSON
	fmt.Fprintf(b, "  %s\n", indented)
}

// sortServers sorts the servers of an itResource in a body: their order means nothing.
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

// whatANodeSends has a node of each kind live the same life among the same others.
func whatANodeSends(outer *world) {
	texts := map[kind]string{}
	for _, k := range kinds() {
		w := newWorld(outer.T, nil)
		peer := w.stranger("peer", nil)
		n := w.start(k, "SERVER_LOCATION_LON=-123.1", "SERVER_LOCATION_LAT=49.3", "SERVER_PUBLIC_DOMAIN_NAME=public.test", "SERVER_PUBLIC_PROTOCOL=https:",
			"REGISTRATION_RETRY=1000")
		names := map[string]string{n.id: "{node}", peer.base: "{peer}", n.base: "{node's address}", w.url: "{back end}"}
		var b strings.Builder
		heard, asked := 0, 0
		chapter := func(title string) {
			fmt.Fprintf(&b, "# %s\n\n", title)
			backend, peers := w.requests("")[heard:], peer.requests()[asked:]
			heard, asked = heard+len(backend), asked+len(peers)
			// npm begins to register again where that takes longer than its retry period: what is
			// sent twice is written once.
			written := map[string]bool{}
			write := func(to string, all []request) {
				for _, r := range all {
					var one strings.Builder
					fmt.Fprintf(&one, "%s {%s}%s\n", r.method, to, normalize(r.target, names))
					render(&one, r.header, r.body, names)
					if text := one.String(); !written[text] {
						b.WriteString(text + "\n")
						written[text] = true
					}
				}
			}
			write("back end", backend)
			write("a peer", peers)
		}
		const id = "a-life@0/2026-02-03T04:05:06.789Z"
		n.must("register", id, new(any))
		w.until("it has announced itself", func() error {
			if len(peer.requests()) == 0 {
				return fmt.Errorf("the peer was asked for nothing")
			}
			return nil
		})
		chapter("registering")
		n.ask(fanoutArgs{Path: "/things", Query: map[string]string{"a": "1 2", "b": "é"}, CorrelationID: id})
		n.ask(fanoutArgs{Method: "PUT", Path: "/things/1", Body: map[string]any{"text": "é"}, CorrelationID: id})
		chapter("asking the peers")
		w.ghost("gone")
		w.call(http.MethodPost, n.base+"/itResources", w.token(serverType, true), announcement(resourceID(), map[string]any{
			"serverId": "gone", "clusterBaseUrl": "http://127.0.0.1:1" + basePath,
			"updatedAt": w.entry("gone").UpdatedAt,
		}))
		heard = len(w.requests("")) // the test's own token
		n.ask(fanoutArgs{Path: "/things", CorrelationID: id})
		w.until("it has told the peer", func() error {
			if len(peer.requests()) < asked+2 {
				return fmt.Errorf("the peer was asked for %d more", len(peer.requests())-asked)
			}
			return nil
		})
		chapter("evicting a dead peer")
		n.must("unregister", id, new(departure))
		chapter("leaving")
		texts[k] = b.String()
	}
	golden(outer.T, filepath.Join("testdata", "sent-by-npm.txt"), texts[npmKind])
	compare(outer.T, texts[npmKind], texts[goKind], []difference{
		{"  accept: application/json, text/plain, */*\n", "  accept: application/json\n", "a Go node reads nothing but JSON"},
		{"  accept-encoding: gzip, compress, deflate, br\n", "  accept-encoding: gzip\n", "what the HTTP client of each unpacks"},
		{
			"POST {back end}/mST/v1/oauth/token\n" +
				"  accept: application/json\n  accept-encoding: gzip\n  content-type: application/json\n" +
				"  user-agent: mimik-mds/1.2.3/{node} ({platform})\n  x-correlation-id: a-life@0/{date}\n" +
				"  {\n    \"audience\": \"https://mds.test/\",\n    \"client_id\": \"mds\",\n    \"client_secret\": \"secret of mds\",\n" +
				"    \"grant_type\": \"client_credentials\",\n    \"type\": \"cluster\"\n  }\n\n" +
				"DELETE {back end}/mIT/v1/itResources/09d8f1f0-7477-5c54-9770-74879a6d3b25/servers/gone@{date}\n",
			"DELETE {back end}/mIT/v1/itResources/09d8f1f0-7477-5c54-9770-74879a6d3b25/servers/gone@{date}\n",
			"the npm module needs one more token for one more address",
		},
		{
			"      },\n      {\n        \"clusterBaseUrl\": \"{peer}\",\n        \"createdAt\": \"{date}\",\n" +
				"        \"serverId\": \"peer\",\n        \"updatedAt\": \"{date}\"\n      }\n",
			"      }\n",
			"a Go node announces itself, and nobody else",
		},
		{
			"/mds/v1/itResources\n  accept: application/json\n  accept-encoding: gzip\n  authorization: Bearer {token}\n  content-type: application/json\n",
			"/mds/v1/itResources\n  accept: application/json\n  accept-encoding: gzip\n  authorization: Bearer {token}\n  content-type: application/json\n" +
				"  prefer: return=minimal\n",
			"a Go node does not need the list back",
		},
		{
			"# evicting a dead peer\n\nDELETE", "# evicting a dead peer\n\n" +
				"DELETE {back end}/mIT/v1/itResources/09d8f1f0-7477-5c54-9770-74879a6d3b25/servers/gone@" + longAgo + "\n" +
				"  accept: application/json\n  accept-encoding: gzip\n  authorization: Bearer {token}\n" +
				"  user-agent: mimik-mds/1.2.3/{node} ({platform})\n  x-correlation-id: a-life@0/{date}\n\nDELETE",
			"the dead peer was only announced: a Go node asks first, by a date that deletes nothing, what the registry knows of it",
		},
	})
}

// whatANodeAnswers asks a node of each kind the same.
func whatANodeAnswers(m *mixed) {
	cluster, plain := m.token(serverType, true), m.token(serverType, false)
	texts := map[kind]string{}
	for _, k := range kinds() {
		n := m.first(k)
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
			{"an announcement of another cluster", http.MethodPost, "/itResources", cluster, announcement("another")},
			{"an announcement with a plain token", http.MethodPost, "/itResources", plain, announcement(resourceID())},
			{"an announcement of another type", http.MethodPost, "/itResources", m.token("mcm", true), announcement(resourceID())},
			{"a departure", http.MethodDelete, "/itResources/" + resourceID() + "/servers/nobody", cluster, nil},
			{"a departure of another cluster", http.MethodDelete, "/itResources/another/servers/nobody", cluster, nil},
			{"no token", http.MethodDelete, "/itResources/another/servers/nobody", "", nil},
			{"a result of the service", http.MethodGet, "/one", plain, nil},
			{"an error of the service", http.MethodGet, "/fail/404", plain, nil},
			{"a failure of the service", http.MethodGet, "/fail/500", plain, nil},
		} {
			a := m.call(c.method, n.base+c.path, c.token, c.body, "x-correlation-id", "an-id@4/2026-02-03T04:05:06.789Z")
			fmt.Fprintf(&b, "# %s\n\n%d\n", c.title, a.status)
			render(&b, a.header, a.body, names)
			b.WriteString("\n")
		}
		texts[k] = b.String()
	}
	golden(m.T, filepath.Join("testdata", "answered-by-npm.txt"), texts[npmKind])
	compare(m.T, texts[npmKind], texts[goKind], []difference{
		{
			"    \"info\": {\n      \"type\": \"mds\"\n    },\n    \"message\": \"invalid type\",\n",
			"    \"message\": \"invalid token: its type is \\\"mcm\\\", not \\\"mds\\\"\",\n",
			"the Go node says both types",
		},
		{
			"403\n  content-type: application/json\n",
			"401\n  content-type: application/json\n  www-authenticate: Bearer\n",
			"what the middleware of npm services answers without a token is not what HTTP has for it",
		},
		{
			"    \"message\": \"missing authorization header\",\n    \"statusCode\": 403,\n    \"title\": \"Forbidden\"\n",
			"    \"message\": \"invalid token: missing authorization header\",\n    \"statusCode\": 401,\n    \"title\": \"Unauthorized\"\n",
			"as above",
		},
	})
}
