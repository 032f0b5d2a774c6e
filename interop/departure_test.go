//go:build unix

package interop

import (
	"net/http"
	"slices"
	"strings"
	"syscall"
)

func departureScenarios() []scenario {
	return []scenario{
		{
			name:       "node unregisters",
			shows:      "`unRegister` of either kind returns the size of the cluster that the node left. The registry and the peers of both kinds remove the node at once.",
			runPerKind: unregisters,
		},
		{
			name:  "node receives SIGTERM",
			shows: "On SIGTERM a process of either kind unregisters, notifies its peers and exits with 0.",
			run:   receivesSIGTERM,
		},
		{
			name:       "registry fails during a departure",
			shows:      "If the registry fails, `unRegister` of either kind returns one error and still notifies the peers. The process exits with 1.",
			runPerKind: departureFails,
		},
		{
			name:  "node unregisters without a registration",
			shows: "If a node of either kind has never registered, `unRegister` returns `nbServers` 0 and no error. It sends no requests.",
			run:   unregistersUnregistered,
		},
	}
}

func unregisters(w *world, k kind) {
	nodes := w.cluster(goKind, npmKind, k)
	leaver := nodes[2]
	if got := leaver.unregister(); got.NbServers != 3 || got.ServerID != leaver.id || got.Errors != nil {
		w.Errorf("unRegister returns %+v", got)
	}
	w.waitForMembers(nodes[:2]...)
	path := registryPath + "/itResources/" + resourceID() + "/servers/" + leaver.id
	var dates []string
	for _, r := range w.requests("DELETE") {
		target, date, _ := strings.Cut(r.target, "@")
		if target != path {
			w.Errorf("the registry received DELETE %s", r.target)
		}
		dates = append(dates, date)
	}
	// A Go node looks its entry up, and deletes only that, which its date identifies.
	if k == npmKind && !slices.Equal(dates, []string{""}) || k == goKind && (len(dates) != 2 || dates[0] != epoch || dates[1] <= epoch) {
		w.Errorf("the registry received deletes with the dates %q", dates)
	}
	for _, n := range nodes[:2] {
		if f := n.fanOut(fanoutArgs{Path: "/things"}); slices.Contains(f.Before, leaver.id) || f.failureIDs() != nil {
			w.Errorf("%s knows %v, failures %v", n.id, f.Before, f.failureIDs())
		}
	}
}

func receivesSIGTERM(w *world) {
	nodes := w.cluster(goKind, npmKind, npmKind, goKind)
	for len(nodes) > 2 {
		leaver := nodes[len(nodes)-1]
		nodes = nodes[:len(nodes)-1]
		leaver.signal(syscall.SIGTERM)
		if code := leaver.waitExit(); code != 0 {
			w.Errorf("%s exits with %d", leaver.id, code)
		}
		w.waitForMembers(nodes...)
	}
}

func departureFails(w *world, k kind) {
	nodes := w.cluster(k, k.other(), k)
	// One node unregisters by a command. Its result contains the error. Another one unregisters on
	// a signal, which shows the exit code.
	w.intercept(failRegistry(http.StatusBadRequest, http.MethodDelete))
	if got := nodes[0].unregister(); got.NbServers != 3 || len(got.Errors) != 1 {
		w.Errorf("unRegister returns %+v", got)
	}
	w.waitForView(nodes[1], nodes[1:]...)
	nodes[2].signal(syscall.SIGTERM)
	if code := nodes[2].waitExit(); code != 1 {
		w.Errorf("%s exits with %d", nodes[2].id, code)
	}
	w.waitForView(nodes[1], nodes[1])
	if err := checkEqual(serverIDs(w.registered()), sortedIDs(nodes)); err != nil {
		w.Errorf("registered: %v", err)
	}
}

func unregistersUnregistered(w *world) {
	for _, k := range kinds() {
		n := w.start(k)
		if got := n.unregister(); got.NbServers != 0 || got.ServerID != n.id || got.Errors != nil {
			w.Errorf("unRegister of %s returns %+v", n.id, got)
		}
	}
	if got := w.requests(""); len(got) != 0 {
		w.Errorf("the node sent a request to %s", got[0].target)
	}
}
