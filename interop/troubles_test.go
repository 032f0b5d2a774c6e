//go:build unix

package interop

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mimiktech/cluster"
)

func troubles() []scenario {
	return []scenario{
		{
			name:  "a peer that was killed",
			says:  "A node of either kind that asks has a killed peer of the other deleted at the registry on condition of its date, and tells the bystander; Go names it among the failures and needs milliseconds, the npm module names it nowhere and needs two seconds.",
			alone: killedPeer,
		},
		{
			name:  "a killed peer that starts again after its eviction",
			says:  "A node of either kind that was evicted and starts again with its id is in again for both kinds.",
			alone: backAfterEviction,
		},
		{
			name:  "a killed peer that starts again before anybody noticed",
			says:  "A node of either kind that was killed and starts again with its id and port is asked by both kinds as if nothing had happened.",
			alone: backBeforeEviction,
		},
		{
			name:  "a peer that hangs",
			says:  "A peer that hangs costs a Go node one timeout and the npm module three and two seconds; either evicts it, and it is back after its next renewal.",
			alone: hangingPeer,
		},
		{
			name:  "an address that another server took over",
			says:  "Where another server answers at a peer's address, neither kind takes the answer for the peer's: Go reports the wrong server, the npm module stays silent; neither evicts.",
			alone: addressTakenOver,
		},
		{
			name:  "a peer that answers 500",
			says:  "The npm module evicts a healthy Go peer for a 500 until that renews; a Go node reports the npm peer's 500 and evicts nobody.",
			alone: answers500,
		},
		{
			name:  "the reference's rule on request",
			says:  "A Go node that is told to retry and evict like the npm module evicts an npm peer for a 500.",
			alone: referencePolicy,
		},
	}
}

// datedDelete waits for the registry to be asked to delete a server on condition, and returns the
// date in the condition.
func (w *world) datedDelete(id string) string {
	w.t.Helper()
	var date string
	w.until("the registry is asked to delete "+id, func() error {
		for _, r := range w.requests("DELETE " + registryPath + "/itResources/" + resourceID() + "/servers/" + id) {
			if _, after, found := strings.Cut(r.target, id+"@"); found {
				date = after
				return nil
			}
		}
		return fmt.Errorf("it was asked %d things", len(w.requests("")))
	})
	return date
}

func killedPeer(t *testing.T) {
	for _, k := range kinds() {
		t.Run(string(k)+" asks", func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			nodes := w.cluster(k, k.other(), k.other())
			asker, bystander, victim := nodes[0], nodes[1], nodes[2]
			last := w.entry(victim.id)
			victim.kill()

			f := asker.ask(fanoutArgs{Path: "/things"})
			if err := same(f.answered(), []string{bystander.id}); err != nil {
				t.Errorf("answered: %v", err)
			}
			if got, want := w.datedDelete(victim.id), last.UpdatedAt.UTC().Format("2006-01-02T15:04:05.000Z07:00"); got != want {
				t.Errorf("the registry was asked to delete what is older than %s, not than %s", got, want)
			}
			w.settle(asker, bystander)
			if k == goKind {
				if err := same(f.failed(), []string{victim.id}); err != nil {
					t.Fatalf("failed: %v", err)
				}
				if e := f.Response.Failures[0].Error; e.Kind != cluster.KindRefused || !e.Evicted {
					t.Errorf("the failure is %+v", e)
				}
				if f.took() > time.Second {
					t.Errorf("it took %v", f.took())
				}
				return
			}
			if f.failed() != nil {
				t.Errorf("failed: %v", f.failed())
			}
			if f.took() < 2*time.Second {
				t.Errorf("it took %v only", f.took())
			}
		})
	}
}

func backAfterEviction(t *testing.T) {
	for _, k := range kinds() {
		t.Run(string(k)+" starts again", func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
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
					t.Errorf("%s: answered %v, failed %v", n.id, f.answered(), f.failed())
				}
			}
		})
	}
}

func backBeforeEviction(t *testing.T) {
	for _, k := range kinds() {
		t.Run(string(k)+" starts again", func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			nodes := w.cluster(goKind, npmKind, k)
			for _, n := range nodes[:2] { // so that there are connections which break
				n.ask(fanoutArgs{Path: "/things"})
			}
			victim := nodes[2]
			victim.kill()
			nodes[2] = w.launchAs(k, victim.id, victim.port).serving()
			for _, n := range nodes[:2] {
				if f := n.ask(fanoutArgs{Path: "/things"}); !slices.Contains(f.answered(), victim.id) {
					t.Errorf("%s: answered %v, failed %v", n.id, f.answered(), f.failed())
				}
			}
			nodes[2].register()
			w.settle(nodes...)
			for _, n := range nodes[:2] {
				if f := n.ask(fanoutArgs{Path: "/things"}); !slices.Contains(f.answered(), victim.id) {
					t.Errorf("registered again; %s: answered %v, failed %v", n.id, f.answered(), f.failed())
				}
			}
		})
	}
}

func hangingPeer(t *testing.T) {
	const timeout = 500 * time.Millisecond
	for _, k := range kinds() {
		t.Run(string(k)+" asks", func(t *testing.T) {
			t.Parallel()
			// The leases are such that nobody renews until the peer is let go again.
			w := newWorld(t, lease(8*time.Second))
			asker := w.launch(k, fmt.Sprintf("REQUEST_TIMEOUT=%d", timeout.Milliseconds()))
			bystander, victim := w.launch(k.other()), w.launch(k.other())
			w.join(asker, bystander, victim)
			victim.signal(syscall.SIGSTOP)
			f := asker.ask(fanoutArgs{Path: "/things"})
			if err := same(f.answered(), []string{bystander.id}); err != nil {
				t.Errorf("answered: %v", err)
			}
			w.settle(asker, bystander)
			victim.signal(syscall.SIGCONT)
			if k == goKind {
				if len(f.Response.Failures) != 1 || f.Response.Failures[0].Error.Kind != cluster.KindTimeout || !f.Response.Failures[0].Error.Evicted {
					t.Errorf("failures are %+v", f.Response.Failures)
				}
				if f.took() < timeout || f.took() > 2*timeout {
					t.Errorf("it took %v, not one timeout of %v", f.took(), timeout)
				}
			} else if f.failed() != nil || f.took() < 3*timeout+2*time.Second {
				t.Errorf("failed %v after %v", f.failed(), f.took())
			}
			w.settle(asker, bystander, victim)
		})
	}
}

func addressTakenOver(t *testing.T) {
	w := newWorld(t)
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
		t.Errorf("Go: answered: %v", err)
	}
	if err := same(f.failed(), victims); err != nil {
		t.Errorf("Go: failed: %v", err)
	}
	for _, failure := range f.Response.Failures {
		if e := failure.Error; e.Kind != cluster.KindWrongServer || e.Evicted || !strings.Contains(e.Message, "heir-") {
			t.Errorf("Go: the failure is %+v", e)
		}
	}
	f = npm.ask(fanoutArgs{Path: "/things"})
	if err := same(f.answered(), []string{golang.id}); err != nil || f.failed() != nil {
		t.Errorf("npm: answered: %v; failed: %v", err, f.failed())
	}
	if got := f.data(); len(got) != 2 {
		t.Errorf("npm: the data is %v", got)
	}
	if err := same(serverIDs(w.listed()), sorted(nodes)); err != nil {
		t.Errorf("the registry's list: %v", err)
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

func answers500(t *testing.T) {
	t.Run("npm asks", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, lease(2*time.Second))
		nodes := w.cluster(npmKind, goKind)
		f := nodes[0].ask(fanoutArgs{Path: "/fail/500", Retries: 1})
		if f.answered() != nil || f.failed() != nil || slices.Contains(f.After, nodes[1].id) {
			t.Errorf("answered %v, failed %v, knows %v", f.answered(), f.failed(), f.After)
		}
		w.datedDelete(nodes[1].id)
		w.settle(nodes...) // the Go node's renewal brings it back
	})
	t.Run("Go asks", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		nodes := w.cluster(goKind, npmKind)
		f := nodes[0].ask(fanoutArgs{Path: "/fail/500"})
		if len(f.Response.Failures) != 1 || f.Response.Failures[0].Error.Kind != cluster.KindStatus || f.Response.Failures[0].Error.StatusCode != http.StatusInternalServerError {
			t.Errorf("failures are %+v", f.Response.Failures)
		}
		w.settle(nodes...)
		if asked := w.requests("DELETE"); len(asked) != 0 {
			t.Errorf("the registry was asked for %s", asked[0].target)
		}
	})
}

func referencePolicy(t *testing.T) {
	w := newWorld(t)
	golang, npm := w.launch(goKind, policyVariable+"=reference"), w.launch(npmKind)
	w.join(golang, npm)
	f := golang.ask(fanoutArgs{Path: "/fail/500"})
	if len(f.Response.Failures) != 1 || !f.Response.Failures[0].Error.Evicted || f.Response.Failures[0].Error.Attempts != 3 {
		t.Errorf("failures are %+v", f.Response.Failures)
	}
	w.sees(golang, golang)
	if got := serverIDs(w.listed()); len(got) != 1 {
		t.Errorf("the registry lists %v", got)
	}
}
