//go:build unix

package interop

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/internal/wire"
)

// A conditional delete with this date deletes nothing.
const epoch = "1970-01-01T00:00:00.000Z"

func failureScenarios() []scenario {
	return []scenario{
		{
			name:       "peer is killed",
			shows:      "A node of either kind that calls a killed peer of the other kind has the registry delete it, on condition of its `updatedAt`, and notifies the remaining peer. A Go node reports the failure within milliseconds. An npm node needs two seconds and does not report it.",
			runPerKind: killedPeer,
		},
		{
			name:       "killed peer restarts after its eviction",
			shows:      "A node of either kind that was evicted and restarts with its id is listed again by nodes of both kinds.",
			runPerKind: restartAfterEviction,
		},
		{
			name:       "killed peer restarts before its eviction",
			shows:      "A node of either kind that was killed and restarts with its id and port is called by both kinds as before.",
			runPerKind: restartBeforeEviction,
		},
		{
			name:       "peer hangs",
			shows:      "A peer that hangs costs a Go node one timeout, and an npm node three timeouts and two seconds. Both evict the peer. Its next renewal brings it back.",
			options:    lease(8 * time.Second),
			runPerKind: hangingPeer,
		},
		{
			name:  "address is taken over by another server",
			shows: "If another server responds at the address of a peer, neither kind accepts the response, and neither evicts the peer. A Go node reports a failure of kind `wrong_server`. An npm node reports nothing.",
			run:   addressTakenOver,
		},
		{
			name:       "peer responds with 500",
			shows:      "An npm node evicts a healthy Go peer for a 500. The next renewal of the peer brings it back. A Go node reports the 500 of an npm peer and evicts none.",
			options:    lease(2 * time.Second),
			runPerKind: respondsWith500,
		},
		{
			name:  "Go node with the policies of the npm module",
			shows: "A Go node with the retry and eviction policies of the npm module evicts an npm peer for a 500.",
			run:   npmPolicies,
		},
	}
}

// conditionalDeletes returns the dates of the conditional deletes of a server, in order.
func (w *world) conditionalDeletes(id string) []string {
	w.Helper()
	var dates []string
	for _, r := range w.requests("DELETE " + registryPath + "/itResources/" + resourceID() + "/servers/" + id + "@") {
		_, date, _ := strings.Cut(r.target, id+"@")
		dates = append(dates, date)
	}
	return dates
}

func killedPeer(w *world, k kind) {
	nodes := w.cluster(k, k.other(), k.other())
	caller, remaining, killed := nodes[0], nodes[1], nodes[2]
	last := w.registryEntry(killed.id)
	killed.kill()

	f := caller.fanOut(fanoutArgs{Path: "/things"})
	if err := checkEqual(f.resultIDs(), []string{remaining.id}); err != nil {
		w.Errorf("results: %v", err)
	}
	// A Go node knows this peer only by its announcement, so it reads the registry's entry first.
	want := []string{wire.FormatTime(last.UpdatedAt)}
	if k == goKind {
		want = append([]string{epoch}, want...)
	}
	if err := checkEqual(w.conditionalDeletes(killed.id), want); err != nil {
		w.Errorf("dates of the conditional deletes: %v", err)
	}
	w.waitForMembers(caller, remaining)
	if k == goKind {
		if err := checkEqual(f.failureIDs(), []string{killed.id}); err != nil {
			w.Fatalf("failures: %v", err)
		}
		if e := f.Response.Failures[0].Error; e.Kind != cluster.KindRefused || !e.Evicted {
			w.Errorf("failure: %+v", e)
		}
		if f.took() > time.Second {
			w.Errorf("the call took %v", f.took())
		}
		return
	}
	if f.failureIDs() != nil {
		w.Errorf("failures: %v", f.failureIDs())
	}
	if f.took() < 2*time.Second {
		w.Errorf("the call took only %v", f.took())
	}
}

func restartAfterEviction(w *world, k kind) {
	nodes := w.cluster(goKind, npmKind, k)
	killed := nodes[2]
	killed.kill()
	nodes[0].fanOut(fanoutArgs{Path: "/things"})
	w.waitForMembers(nodes[:2]...)
	nodes[2] = w.launchAs(k, killed.id, 0).waitReady()
	nodes[2].register()
	w.waitForMembers(nodes...)
	for _, n := range nodes[:2] {
		if f := n.fanOut(fanoutArgs{Path: "/things"}); !slices.Contains(f.resultIDs(), killed.id) {
			w.Errorf("%s: results %v, failures %v", n.id, f.resultIDs(), f.failureIDs())
		}
	}
}

func restartBeforeEviction(w *world, k kind) {
	nodes := w.cluster(goKind, npmKind, k)
	for _, n := range nodes[:2] { // opens connections, which break
		n.fanOut(fanoutArgs{Path: "/things"})
	}
	killed := nodes[2]
	killed.kill()
	nodes[2] = w.launchAs(k, killed.id, killed.port).waitReady()
	for _, n := range nodes[:2] {
		if f := n.fanOut(fanoutArgs{Path: "/things"}); !slices.Contains(f.resultIDs(), killed.id) {
			w.Errorf("%s: results %v, failures %v", n.id, f.resultIDs(), f.failureIDs())
		}
	}
	nodes[2].register()
	w.waitForMembers(nodes...)
	for _, n := range nodes[:2] {
		if f := n.fanOut(fanoutArgs{Path: "/things"}); !slices.Contains(f.resultIDs(), killed.id) {
			w.Errorf("after the registration: %s: results %v, failures %v", n.id, f.resultIDs(), f.failureIDs())
		}
	}
}

func hangingPeer(w *world, k kind) {
	const timeout = 500 * time.Millisecond
	// The leases are so long that no node renews before SIGCONT.
	caller := w.launch(k, fmt.Sprintf("REQUEST_TIMEOUT=%d", timeout.Milliseconds()))
	remaining, killed := w.launch(k.other()), w.launch(k.other())
	w.join(caller, remaining, killed)
	killed.signal(syscall.SIGSTOP)
	f := caller.fanOut(fanoutArgs{Path: "/things"})
	if err := checkEqual(f.resultIDs(), []string{remaining.id}); err != nil {
		w.Errorf("results: %v", err)
	}
	w.waitForMembers(caller, remaining)
	killed.signal(syscall.SIGCONT)
	if k == goKind {
		if len(f.Response.Failures) != 1 || f.Response.Failures[0].Error.Kind != cluster.KindTimeout || !f.Response.Failures[0].Error.Evicted {
			w.Errorf("failures: %+v", f.Response.Failures)
		}
		if f.took() < timeout || f.took() > 2*timeout {
			w.Errorf("the call took %v, want one timeout of %v", f.took(), timeout)
		}
	} else if f.failureIDs() != nil || f.took() < 3*timeout+2*time.Second {
		w.Errorf("failures %v after %v", f.failureIDs(), f.took())
	}
	w.waitForMembers(caller, remaining, killed)
}

func addressTakenOver(w *world) {
	nodes := w.cluster(goKind, npmKind, npmKind, goKind)
	golang, npm, npmKilled, goKilled := nodes[0], nodes[1], nodes[2], nodes[3]
	npmKilled.kill()
	goKilled.kill()
	// A server of the other kind takes over each address.
	successors := []*node{w.launchAs(goKind, "successor-1", npmKilled.port), w.launchAs(npmKind, "successor-2", goKilled.port)}
	for _, s := range successors {
		s.waitReady()
	}
	killedIDs := sortedIDs([]*node{npmKilled, goKilled})

	f := golang.fanOut(fanoutArgs{Path: "/things"})
	if err := checkEqual(f.resultIDs(), []string{npm.id}); err != nil {
		w.Errorf("Go: results: %v", err)
	}
	if err := checkEqual(f.failureIDs(), killedIDs); err != nil {
		w.Errorf("Go: failures: %v", err)
	}
	for _, failure := range f.Response.Failures {
		if e := failure.Error; e.Kind != cluster.KindWrongServer || e.Evicted || !strings.Contains(e.Message, "successor-") {
			w.Errorf("Go: failure %+v", e)
		}
	}
	f = npm.fanOut(fanoutArgs{Path: "/things"})
	if err := checkEqual(f.resultIDs(), []string{golang.id}); err != nil || f.failureIDs() != nil {
		w.Errorf("npm: results: %v; failures: %v", err, f.failureIDs())
	}
	if got := f.data(); len(got) != 2 {
		w.Errorf("npm: data %v", got)
	}
	if err := checkEqual(serverIDs(w.registered()), sortedIDs(nodes)); err != nil {
		w.Errorf("registered: %v", err)
	}

	// When the successors have registered, they are called under their own ids.
	for _, s := range successors {
		s.register()
		w.waitRegistered(s)
	}
	w.waitFor("results of the successors", func() error {
		for _, n := range []*node{golang, npm} {
			for _, s := range successors {
				f := n.fanOut(fanoutArgs{Path: "/things"})
				if !slices.Contains(f.resultIDs(), s.id) || slices.Contains(f.resultIDs(), killedIDs[0]) || slices.Contains(f.resultIDs(), killedIDs[1]) {
					return fmt.Errorf("%s: results %v, failures %v", n.id, f.resultIDs(), f.failureIDs())
				}
			}
		}
		return nil
	})
}

func respondsWith500(w *world, k kind) {
	nodes := w.cluster(k, k.other())
	f := nodes[0].fanOut(fanoutArgs{Path: "/fail/500", Retries: 1})
	if k == goKind {
		if len(f.Response.Failures) != 1 || f.Response.Failures[0].Error.Kind != cluster.KindStatus || f.Response.Failures[0].Error.StatusCode != http.StatusInternalServerError {
			w.Errorf("failures: %+v", f.Response.Failures)
		}
		if deletes := w.requests("DELETE"); len(deletes) != 0 {
			w.Errorf("the registry received DELETE %s", deletes[0].target)
		}
	} else {
		if f.resultIDs() != nil || f.failureIDs() != nil || slices.Contains(f.After, nodes[1].id) {
			w.Errorf("results %v, failures %v, view %v", f.resultIDs(), f.failureIDs(), f.After)
		}
		if got := w.conditionalDeletes(nodes[1].id); len(got) == 0 {
			w.Error("the registry received no conditional delete")
		}
	}
	w.waitForMembers(nodes...) // an evicted peer is back after its renewal
}

func npmPolicies(w *world) {
	golang, npm := w.launch(goKind, policyVariable+"=npm"), w.launch(npmKind)
	w.join(golang, npm)
	f := golang.fanOut(fanoutArgs{Path: "/fail/500"})
	if len(f.Response.Failures) != 1 || !f.Response.Failures[0].Error.Evicted || f.Response.Failures[0].Error.Attempts != 3 {
		w.Errorf("failures: %+v", f.Response.Failures)
	}
	w.waitForView(golang, golang)
	if got := serverIDs(w.registered()); len(got) != 1 {
		w.Errorf("the registry lists %v", got)
	}
}
