//go:build unix

package interop

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/mimiktech/cluster"
)

// differenceScenarios show errors of the npm module that this module does not have. They check the
// behavior of both, for clusters that contain nodes of both kinds.
func differenceScenarios() []scenario {
	return []scenario{
		{
			name:       "peers fail in six ways",
			shows:      "Six peers fail in different ways. A Go node reports each of them with its kind. An npm node reports none, and evicts live peers that respond with a 500, without `server` or with malformed JSON.",
			runPerKind: peersFail,
		},
		{
			name:       "most peers are unreachable",
			shows:      "If all three of its peers are unreachable, an npm node evicts all of them. A Go node assumes a local fault and evicts none.",
			runPerKind: mostUnreachable,
		},
		{
			name:       "registry does not confirm an eviction",
			shows:      "If the registry fails when it should delete a dead peer, an npm node removes the peer from its view anyway. A Go node keeps it and reports the reason.",
			runPerKind: notConfirmed,
		},
		{
			name:    "registry lists no servers",
			shows:   "An npm node accepts an empty list. A Go node keeps its view.",
			options: lease(1200 * time.Millisecond),
			run:     emptyList,
		},
		{
			name:       "registry has a newer entry of a dead peer",
			shows:      "An npm node repeats its conditional delete with the old date, without end, and its call does not return. A Go node looks the entry up first, retries the peer at the newer entry, and deletes that one.",
			runPerKind: newerEntryOfDeadPeer,
		},
		{
			name:  "peer restarts at another address",
			shows: "A Go node calls the new address at once. An npm node calls the old address as long as it has the old entry.",
			run:   restartsElsewhere,
		},
		{
			name:       "departure right after registration",
			shows:      "An npm node that unregisters before its lease has started goes on renewing, and is listed again. A Go node does not.",
			options:    lease(time.Second),
			runPerKind: departureAfterRegistration,
		},
		{
			name:       "registry hangs",
			shows:      "While the registry hangs, an npm node starts another registration in every retry period. A Go node has one in flight.",
			runPerKind: hangingRegistry,
		},
		{
			name:  "departure before registration",
			shows: "A node that has not registered receives the departure of a peer. An npm node responds with 500, a Go node with 200 and `data: null`.",
			run:   departureBeforeRegistration,
		},
		{
			name:       "peer redirects",
			shows:      "An npm node follows the redirect of a peer and sends its token to the new address. A Go node reports the response as a failure.",
			runPerKind: redirects,
		},
		{
			name:     "announced address contains a password",
			shows:    "An npm node accepts any announced address. A Go node skips addresses that it would not call.",
			runMixed: addressWithPassword,
		},
		{
			name:       "environment after an eviction",
			shows:      "After an eviction `CLUSTER_STATUS_SERVERS` of an npm node keeps the old number. That of a Go node is updated, and `CLUSTER_STATUS_LEASE_TIME` is set, too.",
			runPerKind: environmentAfterEviction,
		},
	}
}

func peersFail(w *world, k kind) {
	w.fakePeer("elsewhere", nil)
	ofServer := func(id string) string { return `{"data":["` + id + `"],"server":{"serverId":"` + id + `"}}` }
	// Only calls to /things fail, announcements do not.
	failing := func(id string, fail http.HandlerFunc) {
		w.fakePeer(id, func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path != basePath+"/things" {
				reply(rw, http.StatusOK, ofServer(id))
				return
			}
			fail(rw, r)
		})
	}
	failing("500", func(rw http.ResponseWriter, _ *http.Request) { reply(rw, 500, `{"statusCode":500,"message":"no"}`) })
	failing("hangs", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	failing("other", func(rw http.ResponseWriter, _ *http.Request) { reply(rw, 200, ofServer("elsewhere")) })
	failing("unsigned", func(rw http.ResponseWriter, _ *http.Request) { reply(rw, 200, `{"data":["unsigned"]}`) })
	failing("malformed", func(rw http.ResponseWriter, _ *http.Request) { reply(rw, 200, `<html>`) })
	for _, id := range []string{"healthy-1", "healthy-2"} {
		w.fakePeer(id, nil)
	}
	// The timeout is long enough for an announcement on a busy machine.
	n := w.startRegistered(k, "REQUEST_TIMEOUT=1500")
	// After a call, the node has an idle connection to each peer. The peers fail on these.
	if f := n.fanOut(fanoutArgs{Path: "/one"}); len(f.resultIDs()) != 8 {
		w.Errorf("results: %v", f.resultIDs())
	}
	w.deadPeer("gone")
	w.call(http.MethodPost, n.base+"/itResources", w.token(serverType, true), announcement(resourceID(), map[string]any{
		"serverId": "gone", "clusterBaseUrl": "http://127.0.0.1:1" + basePath,
		"updatedAt": w.registryEntry("gone").UpdatedAt,
	}))
	f := n.fanOut(fanoutArgs{Path: "/things"})
	if err := checkEqual(f.resultIDs(), []string{"elsewhere", "healthy-1", "healthy-2"}); err != nil {
		w.Errorf("results: %v", err)
	}
	if k == npmKind {
		if f.failureIDs() != nil {
			w.Errorf("failures %v", f.failureIDs())
		}
		if err := checkEqual(serverIDs(w.registered()), []string{"elsewhere", "healthy-1", "healthy-2", n.id, "other"}); err != nil {
			w.Errorf("registered: %v", err)
		}
		return
	}
	got := map[string]string{}
	for _, failure := range f.Response.Failures {
		got[failure.Server.ServerID] = fmt.Sprint(failure.Error.Kind, failure.Error.Evicted)
	}
	// The peer that hangs did so on a connection that had been used before. The next call decides.
	for id, want := range map[string]string{
		"500": fmt.Sprint(cluster.KindStatus, false), "hangs": fmt.Sprint(cluster.KindTimeout, false),
		"other": fmt.Sprint(cluster.KindWrongServer, false), "unsigned": fmt.Sprint(cluster.KindMalformed, false),
		"malformed": fmt.Sprint(cluster.KindMalformed, false), "gone": fmt.Sprint(cluster.KindRefused, true),
	} {
		if got[id] != want {
			w.Errorf("failure of %q: got %q, want %q", id, got[id], want)
		}
	}
	if len(got) != 6 {
		w.Errorf("failures: %v", got)
	}
	if err := checkEqual(serverIDs(w.registered()), []string{"500", "elsewhere", n.id, "hangs", "healthy-1", "healthy-2", "malformed", "other", "unsigned"}); err != nil {
		w.Errorf("registered: %v", err)
	}
}

func mostUnreachable(w *world, k kind) {
	for _, id := range []string{"a", "b", "c"} {
		w.deadPeer(id)
	}
	n := w.start(k)
	n.register() // announces the node to all peers
	if k == npmKind {
		w.waitFor("the eviction of all peers", func() error { return checkEqual(serverIDs(w.registered()), []string{n.id}) })
		return
	}
	w.waitRegistered(n)
	f := n.fanOut(fanoutArgs{Path: "/things"})
	for _, failure := range f.Response.Failures {
		if failure.Error.Evicted || !strings.Contains(failure.Error.EvictionSkipped, "3 of 3") {
			w.Errorf("%s: %+v", failure.Server.ServerID, failure.Error)
		}
	}
	if err := checkEqual(f.failureIDs(), []string{"a", "b", "c"}); err != nil {
		w.Errorf("failures: %v", err)
	}
	if err := checkEqual(serverIDs(w.registered()), []string{"a", "b", "c", n.id}); err != nil {
		w.Errorf("registered: %v", err)
	}
}

func notConfirmed(w *world, k kind) {
	w.intercept(failRegistry(http.StatusBadRequest, http.MethodDelete))
	nodes := w.cluster(k, k.other(), k.other())
	nodes[2].kill()
	f := nodes[0].fanOut(fanoutArgs{Path: "/things"})
	if k == npmKind {
		if err := checkEqual(f.After, sortedIDs(nodes[:2])); err != nil || f.failureIDs() != nil {
			w.Errorf("view: %v; failures: %v", err, f.failureIDs())
		}
		w.waitForView(nodes[1], nodes[:2]...) // it was notified
		return
	}
	if err := checkEqual(f.After, sortedIDs(nodes)); err != nil {
		w.Errorf("view: %v", err)
	}
	if len(f.Response.Failures) != 1 || f.Response.Failures[0].Error.Evicted || !strings.Contains(f.Response.Failures[0].Error.EvictionSkipped, "requested failure") {
		w.Errorf("failures: %+v", f.Response.Failures)
	}
	w.waitForView(nodes[1], nodes...)
}

func emptyList(w *world) {
	nodes := w.cluster(npmKind, goKind)
	npm, golang := nodes[0], nodes[1]
	w.intercept(func(rw http.ResponseWriter, r *http.Request, _ []byte) bool {
		if r.Method != http.MethodPost || !strings.HasPrefix(r.URL.Path, registryPath) {
			return false
		}
		reply(rw, http.StatusOK, `{"itResource":{"id":"`+resourceID()+`","type":"mds","publicBaseUrl":"http://public.test","servers":[]},"leaseTime":1200}`)
		return true
	})
	w.waitForView(npm)
	before := len(w.registrations(golang.id))
	w.waitFor("two more registrations of the Go node", func() error {
		if got := len(w.registrations(golang.id)); got < before+2 {
			return fmt.Errorf("%d more registrations", got-before)
		}
		return nil
	})
	w.waitForView(golang, nodes...)
	w.intercept(nil)
	w.waitForMembers(nodes...)
}

func newerEntryOfDeadPeer(w *world, k kind) {
	w.deadPeer("gone")
	w.fakePeer("healthy-1", nil)
	w.fakePeer("healthy-2", nil)
	n := w.start(k)
	first := w.registryEntry("gone").UpdatedAt
	// The entry is renewed just before the first conditional delete.
	w.intercept(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		if r.Method == http.MethodDelete && strings.Contains(r.URL.Path, "/gone@") && w.registryEntry("gone").UpdatedAt.Equal(first) {
			w.deadPeer("gone")
		}
		return false
	})
	n.register() // announces the node to all peers
	deletes := func() []string { return w.conditionalDeletes("gone") }
	if k == npmKind {
		w.waitFor("three conditional deletes", func() error {
			if got := deletes(); len(got) < 3 {
				return fmt.Errorf("conditional deletes: %v", got)
			}
			return nil
		})
		if got := slices.Compact(deletes()); len(got) != 1 {
			w.Errorf("conditional deletes: %v", got)
		}
		if w.registryEntry("gone").ServerID == "" {
			w.Errorf("the registry lists %v", serverIDs(w.registered()))
		}
		return
	}
	w.waitFor("the eviction", func() error {
		if w.registryEntry("gone").ServerID != "" {
			return fmt.Errorf("the registry lists %v", serverIDs(w.registered()))
		}
		return nil
	})
	const lookUp = "1970-01-01T00:00:00.000Z" // deletes nothing
	if got := deletes(); len(got) != 3 || got[0] != lookUp || got[1] != lookUp || got[2] <= lookUp {
		w.Errorf("conditional deletes: %v", got)
	}
}

func restartsElsewhere(w *world) {
	nodes := w.cluster(goKind, npmKind, npmKind)
	golang, npm, killed := nodes[0], nodes[1], nodes[2]
	killed.kill()
	restarted := w.launchAs(npmKind, killed.id, 0).waitReady()
	nodes[2] = restarted
	restarted.register()
	w.waitFor("the new address in the view of the Go node", func() error {
		servers, err := golang.view()
		i := slices.IndexFunc(servers, func(s cluster.Server) bool { return s.ServerID == restarted.id })
		if err == nil && (i < 0 || servers[i].ClusterBaseURL != restarted.base) {
			err = fmt.Errorf("its view is %v", servers)
		}
		return err
	})
	if f := golang.fanOut(fanoutArgs{Path: "/things"}); checkEqual(f.resultIDs(), sortedIDs(nodes[1:])) != nil {
		w.Errorf("Go: results %v, failures %v", f.resultIDs(), f.failureIDs())
	}
	if _, err := npm.send("fanout", fanoutArgs{Path: "/things"}); err != nil {
		w.Fatal(err)
	}
	w.waitFor("two conditional deletes of the npm node", func() error {
		if got := w.requests("DELETE " + registryPath); len(got) < 2 || got[0].target != got[1].target {
			return fmt.Errorf("the registry received %d deletes", len(got))
		}
		return nil
	})
	if err := checkEqual(serverIDs(w.registered()), sortedIDs(nodes)); err != nil {
		w.Errorf("registered: %v", err)
	}
}

func departureAfterRegistration(w *world, k kind) {
	n := w.start(k, "REGISTRATION_RETRY=800") // npm: also the time from registration to lease
	n.register()
	w.waitRegistered(n)
	if got := n.unregister(); got.NbServers != 1 || got.Errors != nil {
		w.Errorf("unRegister returns %+v", got)
	}
	if got := w.registered(); len(got) != 0 {
		w.Errorf("the registry lists %v", got)
	}
	if k == npmKind {
		w.waitFor("a new entry in the registry", func() error { return checkEqual(serverIDs(w.registered()), []string{n.id}) })
		return
	}
	time.Sleep(2 * time.Second) // two leases
	if got := w.registered(); len(got) != 0 {
		w.Errorf("the registry lists %v", got)
	}
}

func hangingRegistry(w *world, k kind) {
	w.intercept(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		if !strings.HasPrefix(r.URL.Path, registryPath) {
			return false
		}
		<-r.Context().Done()
		return true
	})
	n := w.start(k)
	n.register()
	if k == npmKind {
		w.waitFor("six registrations in flight", func() error {
			if got := len(w.registrations(n.id)); got < 6 {
				return fmt.Errorf("%d registrations", got)
			}
			return nil
		})
		return
	}
	w.waitFor("the first registration", func() error {
		if len(w.registrations(n.id)) == 0 {
			return fmt.Errorf("no registration")
		}
		return nil
	})
	time.Sleep(1500 * time.Millisecond) // six retry periods
	if got := len(w.registrations(n.id)); got != 1 {
		w.Errorf("%d registrations in flight", got)
	}
}

func departureBeforeRegistration(w *world) {
	for k, want := range map[kind]int{npmKind: http.StatusInternalServerError, goKind: http.StatusOK} {
		n := w.start(k)
		resp := w.call(http.MethodDelete, n.base+"/itResources/"+resourceID()+"/servers/unknown", w.token(serverType, true), nil)
		if resp.status != want || k == goKind && !strings.Contains(string(resp.body), `"data":null`) {
			w.Errorf("%s responds with %d: %s", n.id, resp.status, resp.body)
		}
	}
}

func redirects(w *world, k kind) {
	target := w.fakePeer("target", nil)
	w.fakePeer("redirects", func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path != basePath+"/things" {
			reply(rw, http.StatusOK, `{"data":null,"server":{"serverId":"redirects"}}`)
			return
		}
		rw.Header().Set("Location", target.base+"/target")
		rw.WriteHeader(http.StatusTemporaryRedirect)
	})
	n := w.startRegistered(k)
	f := n.fanOut(fanoutArgs{Path: "/things"})
	redirected := slices.DeleteFunc(target.requests(), func(r request) bool { return r.target != basePath+"/target" })
	if k == npmKind {
		if len(redirected) != 1 {
			w.Errorf("%d requests followed the redirect", len(redirected))
		}
		return
	}
	if err := checkEqual(f.failureIDs(), []string{"redirects"}); err != nil || len(redirected) != 0 {
		w.Errorf("failures: %v; %d requests followed the redirect", err, len(redirected))
	}
}

func addressWithPassword(m *mixed) {
	for _, n := range m.nodes {
		_, envelope := m.peerCall(n, http.MethodPost, "/itResources", announcement(resourceID(), map[string]any{
			"serverId": "bad", "clusterBaseUrl": "http://user:password@127.0.0.1:1/", "updatedAt": "2026-01-01T00:00:00.000Z",
		}))
		if accepted := entryIn(envelope, "bad") != nil; accepted != (n.kind == npmKind) {
			m.Errorf("%s: accepted: %v", n.id, accepted)
		}
		m.peerCall(n, http.MethodDelete, "/itResources/"+resourceID()+"/servers/bad", nil)
		m.waitForView(n, m.nodes...)
	}
}

func environmentAfterEviction(w *world, k kind) {
	w.fakePeer("healthy", nil)
	n := w.startRegistered(k)
	w.deadPeer("gone")
	w.call(http.MethodPost, n.base+"/itResources", w.token(serverType, true), announcement(resourceID(), map[string]any{
		"serverId": "gone", "clusterBaseUrl": "http://127.0.0.1:1" + basePath,
		"updatedAt": w.registryEntry("gone").UpdatedAt,
	}))
	before := n.status()
	if before.Servers != "3" {
		w.Errorf("environment before the eviction: %+v", before)
	}
	if f := n.fanOut(fanoutArgs{Path: "/things"}); slices.Contains(f.After, "gone") {
		w.Errorf("view: %v", f.After)
	}
	after := n.status()
	want := map[kind]status{
		npmKind: {Registration: "registered", Servers: "3"},
		goKind:  {Registration: "registered", Servers: "2", LeaseTime: "3600000"},
	}[k]
	want.UpdatedAt = after.UpdatedAt
	if after != want || k == npmKind && after.UpdatedAt != before.UpdatedAt {
		w.Errorf("environment after the eviction: %+v, before: %+v", after, before)
	}
}
