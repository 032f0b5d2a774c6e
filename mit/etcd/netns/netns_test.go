//go:build linux

package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mimiktech/cluster/internal/npmtest"
)

// A fault disturbs the network for a while. It affects one node, or, without a target, all hosts.
type fault struct {
	name     string
	targeted bool
	begin    func(w *world, h host)
}

// faultTime is how long each fault lasts: a node may miss a renewal, but not its lease.
const faultTime = 3 * time.Second

const linkDown = "link down"

// faults returns all faults. Each begins with an empty set of rules.
func faults() []fault {
	rules := func(format ...string) func(*world, host) {
		return func(w *world, h host) {
			w.Helper()
			var rules []string
			for _, f := range format {
				rules = append(rules, fmt.Sprintf(f, h.addr))
			}
			w.setRules(rules...)
		}
	}
	lose := func(percent int) func(*world, host) {
		return func(w *world, _ host) {
			w.Helper()
			w.setRules(fmt.Sprintf("numgen random mod 100 < %d counter drop", percent))
		}
	}
	return []fault{
		{"drop", true, rules("ip saddr %s counter drop", "ip daddr %s counter drop")},
		{"one-way drop", true, rules("ip daddr %s counter drop")},
		{"reset", true, rules("ip saddr %s meta l4proto tcp counter reject with tcp reset", "ip daddr %s meta l4proto tcp counter reject with tcp reset")},
		{"loss of 5 %", false, lose(5)},
		{"loss of 20 %", false, lose(20)},
		{linkDown, true, func(w *world, h host) { w.Helper(); w.setLink(h, "down") }},
		{"MTU black hole", true, rules("ip saddr %s ip length > 500 counter drop", "ip daddr %s ip length > 500 counter drop")},
		{"NAT that loses flows", true, func(w *world, h host) { w.Helper(); w.loseFlows(h) }},
	}
}

// loseFlows translates the addresses of a host's connections, and loses all flows of the host twice
// a second: the router then drops their further packets. New connections work.
func (w *world) loseFlows(h host) {
	w.Helper()
	for zone := 1; zone <= int(2*faultTime/time.Second); zone++ {
		w.load(fmt.Sprintf(`add table ip faults
delete table ip faults
table ip faults {
chain zone {
type filter hook prerouting priority raw;
iifname %q ct zone set %d
ip daddr %s ct zone set %d
fib daddr type local ct zone set %d
}
chain nat {
type nat hook postrouting priority srcnat;
ip saddr %s masquerade
}
chain forward {
type filter hook forward priority 0;
ct state invalid counter drop
}
}
`, h.link, zone, h.addr, zone, zone, h.addr))
		time.Sleep(500 * time.Millisecond)
		w.lost += w.dropped()
	}
}

// During and after each fault, the guarantees hold: no live node is missing from a list for longer
// than a lease, no healthy node is evicted by more than one call, each call accounts for every
// peer, and all is as before within a lease.
func TestFaultsOfANetwork(t *testing.T) {
	w := newWorld(t, 5)
	stop := w.watch()
	defer stop()
	w.eventually("all nodes reach each other", func() error { return w.normal(time.Time{}) })
	for _, f := range faults() {
		w.inject(f)
	}
}

// Nodes of the npm module are among those of this one, and keep the same guarantees as to lists and
// evictions.
func TestFaultsOfANetworkWithNPM(t *testing.T) {
	npm, err := filepath.Abs("../../../interop/npm")
	if err != nil {
		t.Fatal(err)
	}
	modules, err := npmtest.Install(t.Context(), npm)
	if errors.Is(err, npmtest.ErrUnavailable) && os.Getenv("INTEROP") != "require" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, 3)
	env := append(w.environment(), "NODE_PATH="+modules)
	for i := range 2 {
		id := fmt.Sprintf("npm%d", i)
		w.add(newNode(t, w.addHost(id), id, env, "node", filepath.Join(npm, "node.js")))
	}
	stop := w.watch()
	defer stop()
	w.eventually("all nodes reach each other", func() error { return w.normal(time.Time{}) })
	for _, f := range faults() {
		if f.name == "drop" || f.name == "loss of 5 %" {
			w.inject(f)
		}
	}
}

// inject runs a fault, and checks the guarantees.
func (w *world) inject(f fault) {
	w.Helper()
	w.mu.Lock()
	clear(w.evicted)
	clear(w.absence)
	w.failures, w.lost = 0, 0
	w.mu.Unlock()
	target := w.nodes[1]
	began := time.Now()
	f.begin(w, target.host)
	pause(context.Background(), faultTime-time.Since(began))
	w.lost += w.dropped()
	w.setRules()
	w.setLink(target.host, "up")
	took := w.eventually("all is normal after the fault: "+f.name, func() error { return w.normal(began.Add(faultTime)) })
	w.mu.Lock()
	defer w.mu.Unlock()
	w.Logf("%s: %d packets lost, %d failures of peers; normal after %v; evicted entries: %v; longest absence from a list: %v",
		f.name, w.lost, w.failures, took.Round(10*time.Millisecond), w.evicted, w.absence)
	if w.lost == 0 && f.name != linkDown {
		w.Errorf("%s: no packet was lost", f.name)
	}
	if took > lease {
		w.Errorf("%s: normal only after %v, longer than a lease", f.name, took)
	}
	for id, entries := range w.evicted {
		if len(entries) > 1 && (!f.targeted || id != target.id) {
			w.Errorf("%s: the healthy node %s was evicted %d times", f.name, id, len(entries))
		}
	}
	for id, absence := range w.absence {
		if absence > lease {
			w.Errorf("%s: %s was missing from a list for %v", f.name, id, absence)
		}
	}
}
