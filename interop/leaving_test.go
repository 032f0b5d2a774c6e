//go:build unix

package interop

import (
	"net/http"
	"slices"
	"syscall"
)

func leaving() []scenario {
	return []scenario{
		{
			name: "a polite departure",
			says: "A node of either kind that unregisters answers the size of the cluster it left, and is forgotten at once by the registry and by peers of both kinds.",
			each: politeDeparture,
		},
		{
			name:  "a departure on SIGTERM",
			says:  "A process of either kind that gets SIGTERM unregisters, tells its peers, and exits with 0.",
			alone: terminated,
		},
		{
			name: "a departure that the registry does not hear of",
			says: "Where the registry fails, unRegister of either kind names one error and still tells the peers, and the process exits with 1.",
			each: unheardDeparture,
		},
		{
			name:  "leaving without having registered",
			says:  "A node of either kind that never registered unregisters with `nbServers` 0 and no error, and asks nobody for anything.",
			alone: neverRegistered,
		},
	}
}

func politeDeparture(w *world, k kind) {
	nodes := w.cluster(goKind, npmKind, k)
	leaver := nodes[2]
	if got := leaver.unregister(); got.NbServers != 3 || got.ServerID != leaver.id || got.Errors != nil {
		w.Errorf("unRegister answers %+v", got)
	}
	w.settle(nodes[:2]...)
	if got := w.requests("DELETE"); len(got) != 1 || got[0].target != registryPath+"/itResources/"+resourceID()+"/servers/"+leaver.id {
		w.Errorf("the registry was asked for %d deletes, the first is %+v", len(got), got)
	}
	for _, n := range nodes[:2] {
		if f := n.ask(fanoutArgs{Path: "/things"}); slices.Contains(f.Before, leaver.id) || f.failed() != nil {
			w.Errorf("%s asks %v, failed %v", n.id, f.Before, f.failed())
		}
	}
}

func terminated(w *world) {
	nodes := w.cluster(goKind, npmKind, npmKind, goKind)
	for len(nodes) > 2 {
		leaver := nodes[len(nodes)-1]
		nodes = nodes[:len(nodes)-1]
		leaver.signal(syscall.SIGTERM)
		if code := leaver.exited(); code != 0 {
			w.Errorf("%s exits with %d", leaver.id, code)
		}
		w.settle(nodes...)
	}
}

func unheardDeparture(w *world, k kind) {
	nodes := w.cluster(k, k.other(), k)
	// It is told to leave once by an order, which shows the error, and once by a signal,
	// which shows the exit code.
	w.answerInstead(registryFails(http.StatusBadRequest, http.MethodDelete))
	if got := nodes[0].unregister(); got.NbServers != 3 || len(got.Errors) != 1 {
		w.Errorf("unRegister answers %+v", got)
	}
	w.sees(nodes[1], nodes[1:]...)
	nodes[2].signal(syscall.SIGTERM)
	if code := nodes[2].exited(); code != 1 {
		w.Errorf("it exits with %d", code)
	}
	w.sees(nodes[1], nodes[1])
	if err := same(serverIDs(w.listed()), sorted(nodes)); err != nil {
		w.Errorf("the registry's list: %v", err)
	}
}

func neverRegistered(w *world) {
	for _, k := range kinds() {
		n := w.start(k)
		if got := n.unregister(); got.NbServers != 0 || got.ServerID != n.id || got.Errors != nil {
			w.Errorf("unRegister of %s answers %+v", n.id, got)
		}
	}
	if got := w.requests(""); len(got) != 0 {
		w.Errorf("the back end was asked for %s", got[0].target)
	}
}
