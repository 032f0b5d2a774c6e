//go:build unix

package interop

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/mimiktech/cluster/internal/proctest"
	"github.com/mimiktech/cluster/mit"
)

func registrationScenarios() []scenario {
	return []scenario{
		{
			name:       "node registers, renews its lease and unregisters",
			shows:      "A node of either kind is listed, renews its lease in time and keeps its `createdAt`. It is not listed any more after `unRegister`.",
			options:    lease(1500 * time.Millisecond),
			runPerKind: registersAndRenews,
		},
		{
			name:  "registry is the program mit",
			shows: "Nodes of both kinds join with the environment that the program `mit` prints.",
			run:   shippedRegistry,
		},
		{
			name:       "registry fails during registration",
			shows:      "While the registry fails, the environment of a node of either kind says `orphan: …`. The node registers when the registry works again.",
			runPerKind: registryFails,
		},
		{
			name:       "cluster management is off",
			shows:      "A node of either kind without management registers with `managedCluster=off`. It announces nothing and calls no peers. Its peers call it when they know it from the registry, or from an npm node that has joined.",
			runPerKind: managementOff,
		},
		{
			name:       "time of the first registration",
			shows:      "A Go node registers at once. An npm node waits for one retry period first.",
			runPerKind: firstRegistration,
		},
		{
			name:       "registry grants no lease time",
			shows:      "Without a lease time a Go node assumes two hours. An npm node registers again and again without a pause.",
			options:    lease(mit.NoLease),
			runPerKind: noLeaseTime,
		},
		{
			name:    "lease time changes",
			shows:   "A Go node uses a new lease time from its next renewal on. An npm node keeps the first one.",
			options: lease(time.Second),
			run:     leaseChanges,
		},
	}
}

func registersAndRenews(w *world, k kind) {
	n := w.start(k, "SERVER_LOCATION_LON=-123.1", "SERVER_LOCATION_LAT=49.3")
	n.register()
	w.waitForMembers(n)
	first := w.registered()[0]
	if first.ClusterBaseURL != n.base || string(first.Location) != `{"type":"Point","coordinates":[-123.1,49.3]}` {
		w.Errorf("the registry lists %+v, not the node at %s", first, n.base)
	}
	if got := n.status(); got.Registration != "registered" || got.Servers != "1" {
		w.Errorf("the environment contains %+v", got)
	}
	// Requests are not counted, because an npm node may register twice before its first renewal.
	updatedAt := first.UpdatedAt
	for range 2 {
		w.waitFor("a renewal", func() error {
			entry := w.registryEntry(n.id)
			if !entry.UpdatedAt.After(updatedAt) {
				return fmt.Errorf("the entry is %+v", entry)
			}
			updatedAt = entry.UpdatedAt
			return nil
		})
	}
	servers := w.registered()
	if len(servers) != 1 || !servers[0].CreatedAt.Equal(first.CreatedAt) {
		w.Errorf("after two renewals the registry lists %+v, before it listed %+v", servers, first)
	}

	if got := n.unregister(); got.NbServers != 1 || got.ServerID != n.id || got.Errors != nil {
		w.Errorf("unRegister returns %+v", got)
	}
	if got := w.registered(); len(got) != 0 {
		w.Errorf("after the departure the registry lists %v", got)
	}
	before := len(w.registrations(n.id))
	time.Sleep(2 * time.Second) // longer than the lease
	if after := len(w.registrations(n.id)); after != before {
		w.Errorf("%d registrations after the departure", after-before)
	}
}

// shippedRegistry runs the registry as a process that is configured only by flags. The registry of
// the world is not used.
func shippedRegistry(w *world) {
	binary := filepath.Join(w.TempDir(), "mit")
	if out, err := exec.CommandContext(w.Context(), "go", "build", "-o", binary, "../cmd/mit").CombinedOutput(); err != nil {
		w.Fatalf("go build: %v\n%s", err, out)
	}
	var printed strings.Builder
	cmd := exec.CommandContext(w.Context(), binary, "--listen", "127.0.0.1:0", "--type", serverType, "--log", "error")
	cmd.Env = []string{"HOME=" + w.TempDir()}
	proctest.Isolate(cmd)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() {
		_ = cmd.Process.Kill() // may have ended before
		_ = cmd.Wait()         // an error: it was killed
	})
	env := map[string]string{"SERVER_BASE_PATH": basePath, "REGISTRATION_RETRY": "250", "REGISTRATION_SET": "off"}
	for !strings.Contains(printed.String(), "export SERVER_PORT") {
		b := make([]byte, 4096)
		n, err := out.Read(b)
		if err != nil {
			w.Fatalf("mit printed %q and ended: %v", printed.String(), err)
		}
		printed.Write(b[:n])
	}
	for line := range strings.Lines(printed.String()) {
		name, value, found := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
		if found && name != "SERVER_PORT" {
			env[name] = strings.Trim(value, "'")
		}
	}
	nodes := []*node{
		launch(w.T, npmKind, "npm-1", "127.0.0.1:0", w.modules, env),
		launch(w.T, goKind, "go-2", "127.0.0.1:0", w.modules, env),
	}
	for i, n := range nodes {
		n.waitReady().register()
		for _, known := range nodes[:i+1] {
			w.waitForView(known, nodes[:i+1]...)
		}
	}
	for i, n := range nodes {
		if f := n.fanOut(fanoutArgs{Path: "/things"}); checkEqual(f.resultIDs(), []string{nodes[1-i].id}) != nil || f.failureIDs() != nil {
			w.Errorf("%s: results %v, failures %v", n.id, f.resultIDs(), f.failureIDs())
		}
	}
}

func registryFails(w *world, k kind) {
	w.intercept(failRegistry(http.StatusBadRequest)) // a status that HTTP clients do not retry
	n := w.start(k)
	n.register()
	w.waitFor("the state orphan", func() error {
		if s := n.status().Registration; !strings.HasPrefix(s, "orphan: ") || !strings.Contains(s, "requested failure") {
			return fmt.Errorf("REGISTRATION_STATUS is %q", s)
		}
		return nil
	})
	w.intercept(nil)
	w.waitRegistered(n)
	w.waitForMembers(n)
}

func managementOff(w *world, k kind) {
	first, unmanaged, last := w.launch(k.other()), w.launch(k, "CLUSTER_MANAGEMENT=off"), w.launch(k.other())
	w.join(first)
	unmanaged.waitReady().register()
	w.waitFor("the registry lists both", func() error {
		return checkEqual(serverIDs(w.registered()), sortedIDs([]*node{first, unmanaged}))
	})
	if got := w.registrations(unmanaged.id)[0].target; got != registryPath+"/itResources?managedCluster=off" {
		w.Errorf("registered with %s", got)
	}
	w.waitFor("the state registered, with two servers", func() error {
		if s := unmanaged.status(); s.Registration != "registered" || s.Servers != "2" {
			return fmt.Errorf("its environment contains %+v", s)
		}
		return nil
	})
	err := unmanaged.do("fanout", fanoutArgs{Path: "/things"}, new(fanoutResult))
	if err == nil || !strings.Contains(err.Error(), "management") {
		w.Errorf("call of the unmanaged node: got %v, want an error about management", err)
	}
	w.waitForView(first, first) // no announcement
	last.waitReady().register()
	if last.kind == goKind { // announces only itself, so first learns of unmanaged from the registry
		w.waitForView(first, first, last)
		first.register()
	}
	w.waitForMembers(first, unmanaged, last) // an npm node announces all servers
	if f := first.fanOut(fanoutArgs{Path: "/things"}); checkEqual(f.resultIDs(), sortedIDs([]*node{last, unmanaged})) != nil {
		w.Errorf("%s: results %v, failures %v", first.id, f.resultIDs(), f.failureIDs())
	}
	if got := unmanaged.unregister(); got.NbServers != 3 || got.Errors != nil {
		w.Errorf("unRegister returns %+v", got)
	}
	w.waitForView(first, first, unmanaged, last) // no notification
}

func firstRegistration(w *world, k kind) {
	const retry = 3 * time.Second
	n := w.start(k, fmt.Sprintf("REGISTRATION_RETRY=%d", retry.Milliseconds()))
	start := time.Now()
	n.register()
	w.waitForMembers(n)
	took := w.registrations(n.id)[0].at.Sub(start)
	if late := took >= retry-10*time.Millisecond; late != (k == npmKind) { // a timer may be early
		w.Errorf("the registration was sent after %v, with a retry period of %v", took, retry)
	}
}

func noLeaseTime(w *world, k kind) {
	// The response must arrive within the retry period. Otherwise the npm module registers a second
	// time, and assumes its default lease after that.
	n := w.start(k, "REGISTRATION_RETRY=3000")
	n.register()
	if k == npmKind {
		w.waitFor("100 registrations", func() error {
			if got := len(w.registrations(n.id)); got < 100 {
				return fmt.Errorf("%d registrations", got)
			}
			return nil
		})
		all := w.registrations(n.id)
		if took := all[99].at.Sub(all[1].at); took > 10*time.Second {
			w.Errorf("98 renewals took %v", took)
		}
		return
	}
	w.waitForMembers(n)
	w.waitFor("the default lease in its environment", func() error {
		if s := n.status().LeaseTime; s != "7200000" {
			return fmt.Errorf("CLUSTER_STATUS_LEASE_TIME is %q", s)
		}
		return nil
	})
	time.Sleep(time.Second) // an npm node registers many times in a second
	if got := len(w.registrations(n.id)); got != 1 {
		w.Errorf("got %d registrations, want 1", got)
	}
}

func leaseChanges(w *world) {
	npm, golang := w.launch(npmKind), w.launch(goKind)
	w.join(npm, golang)
	w.registry.SetLease(longLease)
	w.waitFor("the new lease of the Go node", func() error {
		if s := golang.status().LeaseTime; s != "3600000" {
			return fmt.Errorf("CLUSTER_STATUS_LEASE_TIME is %q", s)
		}
		return nil
	})
	before := len(w.registrations(golang.id))
	since := len(w.registrations(npm.id))
	w.waitFor("three more renewals of the npm node", func() error {
		if got := len(w.registrations(npm.id)); got < since+3 {
			return fmt.Errorf("%d renewals", got-since)
		}
		return nil
	})
	if after := len(w.registrations(golang.id)); after != before {
		w.Errorf("%d more renewals of the Go node within two old leases", after-before)
	}
}
