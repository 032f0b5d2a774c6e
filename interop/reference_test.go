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

// reference has what the npm module gets wrong and this one does not. Its behaviour is shown
// beside ours, so that whoever mixes both knows what to expect.
func reference() []scenario {
	return []scenario{
		{
			name: "all kinds of trouble at once",
			says: "Of six troubled peers Go reports each by its kind; the npm module reports none, and evicts those that live but answer 500 or do not sign.",
			each: allTrouble,
		},
		{
			name: "most of the cluster is unreachable",
			says: "With all three of its peers unreachable the npm module evicts them all; a Go node suspects itself and evicts nobody.",
			each: mostUnreachable,
		},
		{
			name: "a registry that cannot say who is gone",
			says: "Where the registry does not answer about a dead peer, the npm module forgets it; a Go node keeps it and says why.",
			each: noConsent,
		},
		{
			name:  "a registry that lists nobody",
			says:  "The npm module takes over an empty list; a Go node keeps its view.",
			with:  lease(1200 * time.Millisecond),
			alone: emptyList,
		},
		{
			name: "a dead peer that renewed meanwhile",
			says: "Where the registry has a newer entry of a dead peer, the npm module asks it again and again with the same old date, and its call does not return; a Go node asks again with the newer date and is done.",
			each: newerButDead,
		},
		{
			name:  "a peer that came back at another address",
			says:  "A peer that restarted elsewhere is asked there by a Go node at once; the npm module asks its old address for as long as it has the old entry.",
			alone: cameBackElsewhere,
		},
		{
			name: "a departure right after registering",
			says: "An npm node that unregisters before its lease began goes on renewing, and is listed again; a Go node stays away.",
			with: lease(time.Second),
			each: zombie,
		},
		{
			name: "a registry that hangs",
			says: "The npm module begins one more registration every retry period while the registry hangs; a Go node has one under way.",
			each: hangingRegistry,
		},
		{
			name:  "a departure told to a node that has not registered",
			says:  "It is a 500 of the npm module, and 200 with `data: null` of a Go node.",
			alone: earlyDeparture,
		},
		{
			name: "a peer that redirects",
			says: "The npm module follows a peer's redirect with its token; a Go node reports the answer and goes nowhere.",
			each: redirects,
		},
		{
			name:   "an announced address with a password in it",
			says:   "The npm module takes in whatever address an announcement brings; a Go node leaves out what it would not call.",
			within: badAddress,
		},
		{
			name: "the environment after an eviction",
			says: "The npm module's CLUSTER_STATUS_SERVERS keeps the old count after an eviction; a Go node's follows, and has the lease time beside it.",
			each: environmentAfterEviction,
		},
	}
}

func allTrouble(w *world, k kind) {
	w.stranger("elsewhere", nil)
	signed := func(id string) string { return `{"data":["` + id + `"],"server":{"serverId":"` + id + `"}}` }
	// Only what the test asks for is troubled: the announcement is not.
	troubled := func(id string, trouble http.HandlerFunc) {
		w.stranger(id, func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path != basePath+"/things" {
				reply(rw, http.StatusOK, signed(id))
				return
			}
			trouble(rw, r)
		})
	}
	troubled("500", func(rw http.ResponseWriter, _ *http.Request) { reply(rw, 500, `{"statusCode":500,"message":"no"}`) })
	troubled("hangs", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	troubled("other", func(rw http.ResponseWriter, _ *http.Request) { reply(rw, 200, signed("elsewhere")) })
	troubled("unsigned", func(rw http.ResponseWriter, _ *http.Request) { reply(rw, 200, `{"data":["unsigned"]}`) })
	troubled("garbled", func(rw http.ResponseWriter, _ *http.Request) { reply(rw, 200, `<html>`) })
	for _, id := range []string{"well-1", "well-2"} {
		w.stranger(id, nil)
	}
	n := w.registered(k, "REQUEST_TIMEOUT=400")
	w.ghost("gone")
	w.call(http.MethodPost, n.base+"/itResources", w.token(serverType, true), announcement(resourceID(), map[string]any{
		"serverId": "gone", "clusterBaseUrl": "http://127.0.0.1:1" + basePath,
		"updatedAt": w.entry("gone").UpdatedAt,
	}))
	f := n.ask(fanoutArgs{Path: "/things"})
	if err := same(f.answered(), []string{"elsewhere", "well-1", "well-2"}); err != nil {
		w.Errorf("answered: %v", err)
	}
	if k == npmKind {
		if f.failed() != nil {
			w.Errorf("failed %v", f.failed())
		}
		if err := same(serverIDs(w.listed()), []string{"elsewhere", n.id, "other", "well-1", "well-2"}); err != nil {
			w.Errorf("the registry's list: %v", err)
		}
		return
	}
	got := map[string]string{}
	for _, failure := range f.Response.Failures {
		got[failure.Server.ServerID] = fmt.Sprint(failure.Error.Kind, failure.Error.Evicted)
	}
	for id, want := range map[string]string{
		"500": fmt.Sprint(cluster.KindStatus, false), "hangs": fmt.Sprint(cluster.KindTimeout, true),
		"other": fmt.Sprint(cluster.KindWrongServer, false), "unsigned": fmt.Sprint(cluster.KindMalformed, false),
		"garbled": fmt.Sprint(cluster.KindMalformed, false), "gone": fmt.Sprint(cluster.KindRefused, true),
	} {
		if got[id] != want {
			w.Errorf("the failure of %q is %q, not %q", id, got[id], want)
		}
	}
	if len(got) != 6 {
		w.Errorf("failures are %v", got)
	}
	if err := same(serverIDs(w.listed()), []string{"500", "elsewhere", "garbled", n.id, "other", "unsigned", "well-1", "well-2"}); err != nil {
		w.Errorf("the registry's list: %v", err)
	}
}

func mostUnreachable(w *world, k kind) {
	for _, id := range []string{"a", "b", "c"} {
		w.ghost(id)
	}
	n := w.start(k)
	n.register() // which asks them all
	if k == npmKind {
		w.until("it is alone", func() error { return same(serverIDs(w.listed()), []string{n.id}) })
		return
	}
	w.until("it is registered", func() error { return same([]string{n.status().Registration}, []string{"registered"}) })
	f := n.ask(fanoutArgs{Path: "/things"})
	for _, failure := range f.Response.Failures {
		if failure.Error.Evicted || !strings.Contains(failure.Error.Spared, "this side") {
			w.Errorf("%s: %+v", failure.Server.ServerID, failure.Error)
		}
	}
	if err := same(f.failed(), []string{"a", "b", "c"}); err != nil {
		w.Errorf("failed: %v", err)
	}
	if err := same(serverIDs(w.listed()), []string{"a", "b", "c", n.id}); err != nil {
		w.Errorf("the registry's list: %v", err)
	}
}

func noConsent(w *world, k kind) {
	w.answerInstead(registryFails(http.StatusBadRequest, http.MethodDelete))
	nodes := w.cluster(k, k.other(), k.other())
	nodes[2].kill()
	f := nodes[0].ask(fanoutArgs{Path: "/things"})
	if k == npmKind {
		if err := same(f.After, sorted(nodes[:2])); err != nil || f.failed() != nil {
			w.Errorf("it knows: %v; failed: %v", err, f.failed())
		}
		w.sees(nodes[1], nodes[:2]...) // it was told
		return
	}
	if err := same(f.After, sorted(nodes)); err != nil {
		w.Errorf("it knows: %v", err)
	}
	if len(f.Response.Failures) != 1 || f.Response.Failures[0].Error.Evicted || !strings.Contains(f.Response.Failures[0].Error.Spared, "mIT") {
		w.Errorf("failures are %+v", f.Response.Failures)
	}
	w.sees(nodes[1], nodes...)
}

func emptyList(w *world) {
	nodes := w.cluster(npmKind, goKind)
	npm, golang := nodes[0], nodes[1]
	w.answerInstead(func(rw http.ResponseWriter, r *http.Request, _ []byte) bool {
		if r.Method != http.MethodPost || !strings.HasPrefix(r.URL.Path, registryPath) {
			return false
		}
		reply(rw, http.StatusOK, `{"itResource":{"id":"`+resourceID()+`","type":"mds","publicBaseUrl":"http://public.test","servers":[]},"leaseTime":1200}`)
		return true
	})
	w.sees(npm)
	before := len(w.registrations(golang.id))
	w.until("the Go node has tried twice", func() error {
		if got := len(w.registrations(golang.id)); got < before+2 {
			return fmt.Errorf("%d more registrations", got-before)
		}
		return nil
	})
	w.sees(golang, nodes...)
	w.answerInstead(nil)
	w.settle(nodes...)
}

func newerButDead(w *world, k kind) {
	w.ghost("gone")
	w.stranger("well", nil)
	w.stranger("well-2", nil)
	n := w.start(k)
	first := w.entry("gone").UpdatedAt
	// The registry learns of a renewal that the node does not, before it asks anybody.
	w.answerInstead(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		if r.Method == http.MethodDelete && strings.Contains(r.URL.Path, "/gone@") && w.entry("gone").UpdatedAt.Equal(first) {
			w.ghost("gone")
		}
		return false
	})
	n.register() // which asks them all
	deletes := func() []string { return w.datedDeletes("gone") }
	if k == npmKind {
		w.until("it has asked the registry three times", func() error {
			if got := deletes(); len(got) < 3 {
				return fmt.Errorf("it asked for %v", got)
			}
			return nil
		})
		if got := slices.Compact(deletes()); len(got) != 1 {
			w.Errorf("it asked for %v", got)
		}
		if w.entry("gone").ServerID == "" {
			w.Errorf("the registry lists %v", serverIDs(w.listed()))
		}
		return
	}
	w.until("it is gone", func() error {
		if w.entry("gone").ServerID != "" {
			return fmt.Errorf("the registry lists %v", serverIDs(w.listed()))
		}
		return nil
	})
	if got := deletes(); len(got) != 2 || got[0] >= got[1] {
		w.Errorf("it asked for %v", got)
	}
}

func cameBackElsewhere(w *world) {
	nodes := w.cluster(goKind, npmKind, npmKind)
	golang, npm, victim := nodes[0], nodes[1], nodes[2]
	victim.kill()
	back := w.launchAs(npmKind, victim.id, 0).serving()
	nodes[2] = back
	back.register()
	w.until("the Go node knows its new address", func() error {
		servers, err := golang.view()
		i := slices.IndexFunc(servers, func(s cluster.Server) bool { return s.ServerID == back.id })
		if err == nil && (i < 0 || servers[i].ClusterBaseURL != back.base) {
			err = fmt.Errorf("it knows %v", servers)
		}
		return err
	})
	if f := golang.ask(fanoutArgs{Path: "/things"}); same(f.answered(), sorted(nodes[1:])) != nil {
		w.Errorf("Go: answered %v, failed %v", f.answered(), f.failed())
	}
	if _, err := npm.tell("fanout", fanoutArgs{Path: "/things"}); err != nil {
		w.Fatal(err)
	}
	w.until("npm has asked the registry twice", func() error {
		if got := w.requests("DELETE " + registryPath); len(got) < 2 || got[0].target != got[1].target {
			return fmt.Errorf("it asked for %d deletes", len(got))
		}
		return nil
	})
	if err := same(serverIDs(w.listed()), sorted(nodes)); err != nil {
		w.Errorf("the registry's list: %v", err)
	}
}

func zombie(w *world, k kind) {
	n := w.start(k, "REGISTRATION_RETRY=800") // npm: also the time from registering to the lease
	n.register()
	w.until("it is registered", func() error { return same([]string{n.status().Registration}, []string{"registered"}) })
	if got := n.unregister(); got.NbServers != 1 || got.Errors != nil {
		w.Errorf("unRegister answers %+v", got)
	}
	if got := w.listed(); len(got) != 0 {
		w.Errorf("the registry lists %v", got)
	}
	if k == npmKind {
		w.until("it is listed again", func() error { return same(serverIDs(w.listed()), []string{n.id}) })
		return
	}
	time.Sleep(2 * time.Second) // two leases, in which nothing must happen
	if got := w.listed(); len(got) != 0 {
		w.Errorf("the registry lists %v", got)
	}
}

func hangingRegistry(w *world, k kind) {
	w.answerInstead(func(_ http.ResponseWriter, r *http.Request, _ []byte) bool {
		if !strings.HasPrefix(r.URL.Path, registryPath) {
			return false
		}
		<-r.Context().Done()
		return true
	})
	n := w.start(k)
	n.register()
	if k == npmKind {
		w.until("it has six registrations under way", func() error {
			if got := len(w.registrations(n.id)); got < 6 {
				return fmt.Errorf("%d", got)
			}
			return nil
		})
		return
	}
	w.until("it has begun to register", func() error {
		if len(w.registrations(n.id)) == 0 {
			return fmt.Errorf("no registration")
		}
		return nil
	})
	time.Sleep(1500 * time.Millisecond) // six retry periods, in which nothing must happen
	if got := len(w.registrations(n.id)); got != 1 {
		w.Errorf("%d registrations are under way", got)
	}
}

func earlyDeparture(w *world) {
	for k, want := range map[kind]int{npmKind: http.StatusInternalServerError, goKind: http.StatusOK} {
		n := w.start(k)
		a := w.call(http.MethodDelete, n.base+"/itResources/"+resourceID()+"/servers/somebody", w.token(serverType, true), nil)
		if a.status != want || k == goKind && !strings.Contains(string(a.body), `"data":null`) {
			w.Errorf("%s answers %d: %s", n.id, a.status, a.body)
		}
	}
}

func redirects(w *world, k kind) {
	trap := w.stranger("trap", nil)
	w.stranger("sly", func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path != basePath+"/things" {
			reply(rw, http.StatusOK, `{"data":null,"server":{"serverId":"sly"}}`)
			return
		}
		rw.Header().Set("Location", trap.base+"/trap")
		rw.WriteHeader(http.StatusTemporaryRedirect)
	})
	n := w.registered(k)
	f := n.ask(fanoutArgs{Path: "/things"})
	trapped := func() []request {
		return slices.DeleteFunc(trap.requests(), func(r request) bool { return r.target != basePath+"/trap" })
	}()
	if k == npmKind {
		if len(trapped) != 1 {
			w.Errorf("%d requests went where the redirect points", len(trapped))
		}
		return
	}
	if err := same(f.failed(), []string{"sly"}); err != nil || len(trapped) != 0 {
		w.Errorf("failed: %v; %d requests went where the redirect points", err, len(trapped))
	}
}

func badAddress(m *mixed) {
	for _, n := range m.nodes {
		_, envelope := m.peerCall(n, http.MethodPost, "/itResources", announcement(resourceID(), map[string]any{
			"serverId": "bad", "clusterBaseUrl": "http://user:password@127.0.0.1:1/", "updatedAt": "2026-01-01T00:00:00.000Z",
		}))
		if taken := entry(envelope, "bad") != nil; taken != (n.kind == npmKind) {
			m.Errorf("%s: taken in is %v", n.id, taken)
		}
		m.peerCall(n, http.MethodDelete, "/itResources/"+resourceID()+"/servers/bad", nil)
		m.sees(n, m.nodes...)
	}
}

func environmentAfterEviction(w *world, k kind) {
	w.stranger("well", nil)
	n := w.registered(k)
	w.ghost("gone")
	w.call(http.MethodPost, n.base+"/itResources", w.token(serverType, true), announcement(resourceID(), map[string]any{
		"serverId": "gone", "clusterBaseUrl": "http://127.0.0.1:1" + basePath,
		"updatedAt": w.entry("gone").UpdatedAt,
	}))
	before := n.status()
	if before.Servers != "3" {
		w.Errorf("before it has %+v", before)
	}
	if f := n.ask(fanoutArgs{Path: "/things"}); slices.Contains(f.After, "gone") {
		w.Errorf("it knows %v", f.After)
	}
	after := n.status()
	want := map[kind]status{
		npmKind: {Registration: "registered", Servers: "3"},
		goKind:  {Registration: "registered", Servers: "2", LeaseTime: "3600000"},
	}[k]
	want.UpdatedAt = after.UpdatedAt
	if after != want || k == npmKind && after.UpdatedAt != before.UpdatedAt {
		w.Errorf("after the eviction it has %+v, before %+v", after, before)
	}
}
