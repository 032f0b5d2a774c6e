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

// By this date a dated delete deletes nothing.
const longAgo = "1970-01-01T00:00:00.000Z"

func troubles() []scenario {
	return []scenario{
		{
			name: "a peer that was killed",
			says: "A node of either kind that asks has a killed peer of the other deleted at the registry on condition of its date, and tells the bystander; Go names it among the failures and needs milliseconds, the npm module names it nowhere and needs two seconds.",
			each: killedPeer,
		},
		{
			name: "a killed peer that starts again after its eviction",
			says: "A node of either kind that was evicted and starts again with its id is in again for both kinds.",
			each: backAfterEviction,
		},
		{
			name: "a killed peer that starts again before anybody noticed",
			says: "A node of either kind that was killed and starts again with its id and port is asked by both kinds as if nothing had happened.",
			each: backBeforeEviction,
		},
		{
			name: "a peer that hangs",
			says: "A peer that hangs costs a Go node one timeout and the npm module three and two seconds; either evicts it, and it is back after its next renewal.",
			with: lease(8 * time.Second),
			each: hangingPeer,
		},
		{
			name:  "an address that another server took over",
			says:  "Where another server answers at a peer's address, neither kind takes the answer for the peer's: Go reports the wrong server, the npm module stays silent; neither evicts.",
			alone: addressTakenOver,
		},
		{
			name: "a peer that answers 500",
			says: "The npm module evicts a healthy Go peer for a 500 until that renews; a Go node reports the npm peer's 500 and evicts nobody.",
			with: lease(2 * time.Second),
			each: answers500,
		},
		{
			name:  "the reference's rule on request",
			says:  "A Go node that is told to retry and evict like the npm module evicts an npm peer for a 500.",
			alone: referencePolicy,
		},
	}
}

// datedDeletes are the dates by which the registry was asked to delete a server on condition.
func (w *world) datedDeletes(id string) []string {
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
	asker, bystander, victim := nodes[0], nodes[1], nodes[2]
	last := w.entry(victim.id)
	victim.kill()

	f := asker.ask(fanoutArgs{Path: "/things"})
	if err := same(f.answered(), []string{bystander.id}); err != nil {
		w.Errorf("answered: %v", err)
	}
	// A Go node that knows a peer by its announcement only asks first what the registry knows of it.
	want := []string{wire.FormatTime(last.UpdatedAt)}
	if k == goKind {
		want = append([]string{longAgo}, want...)
	}
	if err := same(w.datedDeletes(victim.id), want); err != nil {
		w.Errorf("the dates of the deletes: %v", err)
	}
	w.settle(asker, bystander)
	if k == goKind {
		if err := same(f.failed(), []string{victim.id}); err != nil {
			w.Fatalf("failed: %v", err)
		}
		if e := f.Response.Failures[0].Error; e.Kind != cluster.KindRefused || !e.Evicted {
			w.Errorf("the failure is %+v", e)
		}
		if f.took() > time.Second {
			w.Errorf("it took %v", f.took())
		}
		return
	}
	if f.failed() != nil {
		w.Errorf("failed: %v", f.failed())
	}
	if f.took() < 2*time.Second {
		w.Errorf("it took %v only", f.took())
	}
}

func backAfterEviction(w *world, k kind) {
	nodes := w.cluster(goKind, npmKind, k)
	victim := nodes[2]
	victim.kill()
	nodes[0].ask(fanoutArgs{Path: "/things"})
	w.settle(nodes[:2]...)
	nodes[2] = w.launchAs(k, victim.id, 0).serving()
	nodes[2].register()
	w.settle(nodes...)
	for _, n := range nodes[:2] {
		if f := n.ask(fanoutArgs{Path: "/things"}); !slices.Contains(f.answered(), victim.id) {
			w.Errorf("%s: answered %v, failed %v", n.id, f.answered(), f.failed())
		}
	}
}

func backBeforeEviction(w *world, k kind) {
	nodes := w.cluster(goKind, npmKind, k)
	for _, n := range nodes[:2] { // so that there are connections which break
		n.ask(fanoutArgs{Path: "/things"})
	}
	victim := nodes[2]
	victim.kill()
	nodes[2] = w.launchAs(k, victim.id, victim.port).serving()
	for _, n := range nodes[:2] {
		if f := n.ask(fanoutArgs{Path: "/things"}); !slices.Contains(f.answered(), victim.id) {
			w.Errorf("%s: answered %v, failed %v", n.id, f.answered(), f.failed())
		}
	}
	nodes[2].register()
	w.settle(nodes...)
	for _, n := range nodes[:2] {
		if f := n.ask(fanoutArgs{Path: "/things"}); !slices.Contains(f.answered(), victim.id) {
			w.Errorf("registered again; %s: answered %v, failed %v", n.id, f.answered(), f.failed())
		}
	}
}

func hangingPeer(w *world, k kind) {
	const timeout = 500 * time.Millisecond
	// The leases are such that nobody renews until the peer is let go again.
	asker := w.launch(k, fmt.Sprintf("REQUEST_TIMEOUT=%d", timeout.Milliseconds()))
	bystander, victim := w.launch(k.other()), w.launch(k.other())
	w.join(asker, bystander, victim)
	victim.signal(syscall.SIGSTOP)
	f := asker.ask(fanoutArgs{Path: "/things"})
	if err := same(f.answered(), []string{bystander.id}); err != nil {
		w.Errorf("answered: %v", err)
	}
	w.settle(asker, bystander)
	victim.signal(syscall.SIGCONT)
	if k == goKind {
		if len(f.Response.Failures) != 1 || f.Response.Failures[0].Error.Kind != cluster.KindTimeout || !f.Response.Failures[0].Error.Evicted {
			w.Errorf("failures are %+v", f.Response.Failures)
		}
		if f.took() < timeout || f.took() > 2*timeout {
			w.Errorf("it took %v, not one timeout of %v", f.took(), timeout)
		}
	} else if f.failed() != nil || f.took() < 3*timeout+2*time.Second {
		w.Errorf("failed %v after %v", f.failed(), f.took())
	}
	w.settle(asker, bystander, victim)
}

func addressTakenOver(w *world) {
	nodes := w.cluster(goKind, npmKind, npmKind, goKind)
	golang, npm, npmVictim, goVictim := nodes[0], nodes[1], nodes[2], nodes[3]
	npmVictim.kill()
	goVictim.kill()
	// Each address goes to a server of the other kind.
	heirs := []*node{w.launchAs(goKind, "heir-1", npmVictim.port), w.launchAs(npmKind, "heir-2", goVictim.port)}
	for _, h := range heirs {
		h.serving()
	}
	victims := sorted([]*node{npmVictim, goVictim})

	f := golang.ask(fanoutArgs{Path: "/things"})
	if err := same(f.answered(), []string{npm.id}); err != nil {
		w.Errorf("Go: answered: %v", err)
	}
	if err := same(f.failed(), victims); err != nil {
		w.Errorf("Go: failed: %v", err)
	}
	for _, failure := range f.Response.Failures {
		if e := failure.Error; e.Kind != cluster.KindWrongServer || e.Evicted || !strings.Contains(e.Message, "heir-") {
			w.Errorf("Go: the failure is %+v", e)
		}
	}
	f = npm.ask(fanoutArgs{Path: "/things"})
	if err := same(f.answered(), []string{golang.id}); err != nil || f.failed() != nil {
		w.Errorf("npm: answered: %v; failed: %v", err, f.failed())
	}
	if got := f.data(); len(got) != 2 {
		w.Errorf("npm: the data is %v", got)
	}
	if err := same(serverIDs(w.listed()), sorted(nodes)); err != nil {
		w.Errorf("the registry's list: %v", err)
	}

	// The heirs join, and all that is left of the victims is who they were.
	for _, h := range heirs {
		h.register()
		w.until(h.id+" is registered", func() error {
			return same([]string{h.status().Registration}, []string{"registered"})
		})
	}
	w.until("both hear of the heirs", func() error {
		for _, n := range []*node{golang, npm} {
			for _, h := range heirs {
				f := n.ask(fanoutArgs{Path: "/things"})
				if !slices.Contains(f.answered(), h.id) || slices.Contains(f.answered(), victims[0]) || slices.Contains(f.answered(), victims[1]) {
					return fmt.Errorf("%s: answered %v, failed %v", n.id, f.answered(), f.failed())
				}
			}
		}
		return nil
	})
}

func answers500(w *world, k kind) {
	nodes := w.cluster(k, k.other())
	f := nodes[0].ask(fanoutArgs{Path: "/fail/500", Retries: 1})
	if k == goKind {
		if len(f.Response.Failures) != 1 || f.Response.Failures[0].Error.Kind != cluster.KindStatus || f.Response.Failures[0].Error.StatusCode != http.StatusInternalServerError {
			w.Errorf("failures are %+v", f.Response.Failures)
		}
		if asked := w.requests("DELETE"); len(asked) != 0 {
			w.Errorf("the registry was asked for %s", asked[0].target)
		}
	} else {
		if f.answered() != nil || f.failed() != nil || slices.Contains(f.After, nodes[1].id) {
			w.Errorf("answered %v, failed %v, knows %v", f.answered(), f.failed(), f.After)
		}
		if got := w.datedDeletes(nodes[1].id); len(got) == 0 {
			w.Error("the registry was not asked to delete the peer")
		}
	}
	w.settle(nodes...) // its renewal brings back who was evicted
}

func referencePolicy(w *world) {
	golang, npm := w.launch(goKind, policyVariable+"=reference"), w.launch(npmKind)
	w.join(golang, npm)
	f := golang.ask(fanoutArgs{Path: "/fail/500"})
	if len(f.Response.Failures) != 1 || !f.Response.Failures[0].Error.Evicted || f.Response.Failures[0].Error.Attempts != 3 {
		w.Errorf("failures are %+v", f.Response.Failures)
	}
	w.sees(golang, golang)
	if got := serverIDs(w.listed()); len(got) != 1 {
		w.Errorf("the registry lists %v", got)
	}
}
