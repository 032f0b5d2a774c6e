//go:build unix

package interop

import (
	"net/http"
	"slices"
	"syscall"
	"testing"
)

func leaving() []scenario {
	return []scenario{
		{
			name:  "a polite departure",
			says:  "A node of either kind that unregisters answers the size of the cluster it left, and is forgotten at once by the registry and by peers of both kinds.",
			alone: politeDeparture,
		},
		{
			name:  "a departure on SIGTERM",
			says:  "A process of either kind that gets SIGTERM unregisters, tells its peers, and exits with 0.",
			alone: terminated,
		},
		{
			name:  "a departure that the registry does not hear of",
			says:  "Where the registry fails, unRegister of either kind names one error and still tells the peers, and the process exits with 1.",
			alone: unheardDeparture,
		},
		{
			name:  "leaving without having registered",
			says:  "A node of either kind that never registered unregisters with `nbServers` 0 and no error, and asks nobody for anything.",
			alone: neverRegistered,
		},
	}
}

func politeDeparture(t *testing.T) {
	for _, k := range kinds() {
		t.Run(string(k)+" leaves", func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			nodes := w.cluster(goKind, npmKind, k)
			leaver := nodes[2]
			if got := leaver.unregister(); got.NbServers != 3 || got.ServerID != leaver.id || got.Errors != nil {
				t.Errorf("unRegister answers %+v", got)
			}
			w.settle(nodes[:2]...)
			if got := w.requests("DELETE"); len(got) != 1 || got[0].target != registryPath+"/itResources/"+resourceID()+"/servers/"+leaver.id {
				t.Errorf("the registry was asked for %d deletes, the first is %+v", len(got), got)
			}
			for _, n := range nodes[:2] {
				if f := n.ask(fanoutArgs{Path: "/things"}); slices.Contains(f.Before, leaver.id) || f.failed() != nil {
					t.Errorf("%s asks %v, failed %v", n.id, f.Before, f.failed())
				}
			}
		})
	}
}

func terminated(t *testing.T) {
	w := newWorld(t)
	nodes := w.cluster(goKind, npmKind, npmKind, goKind)
	for len(nodes) > 2 {
		leaver := nodes[len(nodes)-1]
		nodes = nodes[:len(nodes)-1]
		leaver.signal(syscall.SIGTERM)
		if code := leaver.exited(); code != 0 {
			t.Errorf("%s exits with %d", leaver.id, code)
		}
		w.settle(nodes...)
	}
}

func unheardDeparture(t *testing.T) {
	for _, k := range kinds() {
		t.Run(string(k)+" leaves", func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			nodes := w.cluster(k, k.other(), k)
			// It is told to leave once by an order, which shows the error, and once by a signal,
			// which shows the exit code.
			w.answerInstead(registryFails(http.StatusBadRequest, http.MethodDelete))
			if got := nodes[0].unregister(); got.NbServers != 3 || len(got.Errors) != 1 {
				t.Errorf("unRegister answers %+v", got)
			}
			w.sees(nodes[1], nodes[1:]...)
			nodes[2].signal(syscall.SIGTERM)
			if code := nodes[2].exited(); code != 1 {
				t.Errorf("it exits with %d", code)
			}
			w.sees(nodes[1], nodes[1])
			if err := same(serverIDs(w.listed()), sorted(nodes)); err != nil {
				t.Errorf("the registry's list: %v", err)
			}
		})
	}
}

func neverRegistered(t *testing.T) {
	w := newWorld(t)
	for _, k := range kinds() {
		n := w.start(k)
		if got := n.unregister(); got.NbServers != 0 || got.ServerID != n.id || got.Errors != nil {
			t.Errorf("unRegister of %s answers %+v", n.id, got)
		}
	}
	if got := w.requests(""); len(got) != 0 {
		t.Errorf("the back end was asked for %s", got[0].target)
	}
}
