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

func registering() []scenario {
	return []scenario{
		{
			name: "a node registers, renews its lease and unregisters",
			says: "A node of either kind is listed, renews within its lease, keeps its date of birth, and is gone once it leaves.",
			with: lease(1500 * time.Millisecond),
			each: registersAndRenews,
		},
		{
			name:  "the shipped registry",
			says:  "The program `mit` prints an environment with which a node of either kind joins.",
			alone: shippedRegistry,
		},
		{
			name: "a registry that is away",
			says: "A node of either kind is an `orphan: …` in its environment while the registry fails, and registers when it is back.",
			each: registryAway,
		},
		{
			name: "management off",
			says: "A node of either kind without management registers with `managedCluster=off`, announces nothing, refuses to ask its peers, and is asked by them once the registry, or a newcomer of the npm module, has told them.",
			each: managementOff,
		},
		{
			name: "when the first registration is sent",
			says: "The npm module lets one retry period pass before it first registers; a Go node registers at once.",
			each: firstRegistration,
		},
		{
			name: "a registry that grants no lease time",
			says: "Without a lease time the npm module registers without a pause; a Go node assumes two hours.",
			with: lease(mit.NoLease),
			each: noLeaseTime,
		},
		{
			name:  "a lease time that changes",
			says:  "A Go node follows a new lease time from its next renewal on; the npm module keeps the first.",
			with:  lease(time.Second),
			alone: leaseChanges,
		},
	}
}

func registersAndRenews(w *world, k kind) {
	n := w.start(k, "SERVER_LOCATION_LON=-123.1", "SERVER_LOCATION_LAT=49.3")
	n.register()
	w.settle(n)
	first := w.listed()[0]
	if first.ClusterBaseURL != n.base || string(first.Location) != `{"type":"Point","coordinates":[-123.1,49.3]}` {
		w.Errorf("the registry lists %+v, not the node at %s", first, n.base)
	}
	if got := n.status(); got.Registration != "registered" || got.Servers != "1" {
		w.Errorf("the node's environment says %+v", got)
	}
	w.until("it has renewed twice", func() error {
		if len(w.registrations(n.id)) < 3 {
			return fmt.Errorf("%d registrations", len(w.registrations(n.id)))
		}
		return nil
	})
	servers := w.listed()
	if len(servers) != 1 || !servers[0].CreatedAt.Equal(first.CreatedAt) || !servers[0].UpdatedAt.After(first.UpdatedAt) {
		w.Errorf("after two renewals the registry lists %+v, first it was %+v", servers, first)
	}

	if got := n.unregister(); got.NbServers != 1 || got.ServerID != n.id || got.Errors != nil {
		w.Errorf("unRegister answers %+v", got)
	}
	if got := w.listed(); len(got) != 0 {
		w.Errorf("after it left the registry lists %v", got)
	}
	before := len(w.registrations(n.id))
	time.Sleep(2 * time.Second) // more than a lease, in which nothing must happen
	if after := len(w.registrations(n.id)); after != before {
		w.Errorf("it registered %d more times after it left", after-before)
	}
}

// shippedRegistry has the registry in a process of its own, set up by nothing but its flags, beside the
// one of the world, which nobody asks.
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
		_ = cmd.Process.Kill() // it may be gone already
		_ = cmd.Wait()         // it was killed
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
		n.serving().register()
		for _, known := range nodes[:i+1] {
			w.sees(known, nodes[:i+1]...)
		}
	}
	for i, n := range nodes {
		if f := n.ask(fanoutArgs{Path: "/things"}); same(f.answered(), []string{nodes[1-i].id}) != nil || f.failed() != nil {
			w.Errorf("%s: answered %v, failed %v", n.id, f.answered(), f.failed())
		}
	}
}

func registryAway(w *world, k kind) {
	w.answerInstead(registryFails(http.StatusBadRequest)) // which nobody repeats by itself
	n := w.start(k)
	n.register()
	w.until("it is an orphan", func() error {
		if s := n.status().Registration; !strings.HasPrefix(s, "orphan: ") || !strings.Contains(s, "failing as told") {
			return fmt.Errorf("REGISTRATION_STATUS is %q", s)
		}
		return nil
	})
	w.answerInstead(nil)
	w.until("it is registered", func() error {
		if s := n.status().Registration; s != "registered" {
			return fmt.Errorf("REGISTRATION_STATUS is %q", s)
		}
		return nil
	})
	w.settle(n)
}

func managementOff(w *world, k kind) {
	early, quiet, late := w.launch(k.other()), w.launch(k, "CLUSTER_MANAGEMENT=off"), w.launch(k.other())
	w.join(early)
	quiet.serving().register()
	w.until("it is listed", func() error { return same(serverIDs(w.listed()), sorted([]*node{early, quiet})) })
	if got := w.registrations(quiet.id)[0].target; got != registryPath+"/itResources?managedCluster=off" {
		w.Errorf("it registers at %s", got)
	}
	w.until("it is registered", func() error {
		if s := quiet.status(); s.Registration != "registered" || s.Servers != "2" {
			return fmt.Errorf("its environment is %+v", s)
		}
		return nil
	})
	if err := quiet.do("fanout", fanoutArgs{Path: "/things"}, new(fanout)); err == nil || !strings.Contains(err.Error(), "management") {
		w.Errorf("asking its peers: %v, not an error about management", err)
	}
	w.sees(early, early) // nobody told it
	late.serving().register()
	if late.kind == goKind { // it announces nobody but itself: the registry tells early
		w.sees(early, early, late)
		early.register()
	}
	w.settle(early, quiet, late) // an npm node tells both what the registry told it
	if f := early.ask(fanoutArgs{Path: "/things"}); same(f.answered(), sorted([]*node{late, quiet})) != nil {
		w.Errorf("%s: answered %v, failed %v", early.id, f.answered(), f.failed())
	}
	if got := quiet.unregister(); got.NbServers != 3 || got.Errors != nil {
		w.Errorf("unRegister answers %+v", got)
	}
	w.sees(early, early, quiet, late) // nobody told it that either
}

func firstRegistration(w *world, k kind) {
	const retry = 3 * time.Second
	n := w.start(k, fmt.Sprintf("REGISTRATION_RETRY=%d", retry.Milliseconds()))
	told := time.Now()
	n.register()
	w.settle(n)
	took := w.registrations(n.id)[0].at.Sub(told)
	if late := took >= retry-10*time.Millisecond; late != (k == npmKind) { // a timer may be early
		w.Errorf("it took %v, with a retry period of %v", took, retry)
	}
}

func noLeaseTime(w *world, k kind) {
	// The npm module hammers only if its first registration is answered before the second is due:
	// otherwise that one's answer, without a lease time either, sets the default.
	n := w.start(k, "REGISTRATION_RETRY=3000")
	n.register()
	if k == npmKind {
		w.until("it hammers the registry", func() error {
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
	w.settle(n)
	w.until("it says what it assumes", func() error {
		if s := n.status().LeaseTime; s != "7200000" {
			return fmt.Errorf("CLUSTER_STATUS_LEASE_TIME is %q", s)
		}
		return nil
	})
	time.Sleep(time.Second) // in which nothing must happen
	if got := len(w.registrations(n.id)); got != 1 {
		w.Errorf("%d registrations, not 1", got)
	}
}

func leaseChanges(w *world) {
	npm, golang := w.launch(npmKind), w.launch(goKind)
	w.join(npm, golang)
	w.registry.SetLease(longLease)
	w.until("the Go node has the new lease", func() error {
		if s := golang.status().LeaseTime; s != "3600000" {
			return fmt.Errorf("CLUSTER_STATUS_LEASE_TIME is %q", s)
		}
		return nil
	})
	before := len(w.registrations(golang.id))
	since := len(w.registrations(npm.id))
	w.until("the npm node has renewed three times more", func() error {
		if got := len(w.registrations(npm.id)); got < since+3 {
			return fmt.Errorf("%d renewals", got-since)
		}
		return nil
	})
	if after := len(w.registrations(golang.id)); after != before {
		w.Errorf("the Go node renewed %d times more in two old leases", after-before)
	}
}
