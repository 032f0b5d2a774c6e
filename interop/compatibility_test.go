//go:build unix

package interop

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// A scenario is one test of the behavior of nodes of both kinds towards each other.
type scenario struct {
	name  string
	shows string // what the test shows, for the table

	// Exactly one of these is set.
	run        func(w *world)         // in a world of its own
	runPerKind func(w *world, k kind) // as run, once for each kind of node
	runMixed   func(m *mixed)         // in a shared cluster, which it must leave unchanged

	options worldOption // of its world, or nil
}

// A chapter is a group of scenarios in the table.
type chapter struct {
	title     string
	scenarios []scenario
}

func chapters() []chapter {
	return []chapter{
		{"Registration", registrationScenarios()},
		{"Membership", membershipScenarios()},
		{"Calls to all peers", fanOutScenarios()},
		{"Failing peers", failureScenarios()},
		{"Departure", departureScenarios()},
		{"Guests", guestScenarios()},
		{"Tokens", tokenScenarios()},
		{"Correlation ids and user agents", correlationScenarios()},
		{"Requests and responses", messageScenarios()},
		{"Errors of the npm module", differenceScenarios()},
	}
}

func TestCompatibility(t *testing.T) {
	install(t) // if npm is unavailable, only this test is skipped, not each scenario
	t.Parallel()
	var shared []scenario
	left, someKinds := 0, kinds()
	if !required() { // most of the time goes into the start of npm nodes
		someKinds = []kind{goKind}
	}
	for _, c := range chapters() {
		for i, s := range c.scenarios {
			switch {
			case s.runMixed != nil:
				shared = append(shared, s)
			case i > 0 && !required():
				left++
			case s.runPerKind != nil:
				t.Run(s.name, func(t *testing.T) {
					t.Parallel()
					for _, k := range someKinds {
						t.Run(string(k), func(t *testing.T) {
							t.Parallel()
							s.runPerKind(newWorld(t, s.options), k)
						})
					}
				})
			default:
				t.Run(s.name, func(t *testing.T) {
					t.Parallel()
					s.run(newWorld(t, s.options))
				})
			}
		}
	}
	if left > 0 {
		t.Logf("shortened: %d scenarios do not run, and others not for npm nodes. INTEROP=require runs all", left)
	}
	t.Run("mixed", func(t *testing.T) {
		t.Parallel()
		m := newMixed(t)
		for _, s := range shared {
			t.Run(s.name, func(t *testing.T) {
				m.use(t)
				s.runMixed(m)
			})
		}
	})
}

// mixed is a cluster of two Go and two npm nodes, which several scenarios use.
type mixed struct {
	*world
	nodes []*node
}

func newMixed(t *testing.T) *mixed {
	t.Helper()
	w := newWorld(t, nil)
	return &mixed{w, w.cluster(npmKind, goKind, npmKind, goKind)}
}

// use makes t, a subtest, the test that fails.
func (m *mixed) use(t *testing.T) {
	t.Helper()
	outer := m.T
	set := func(t *testing.T) { //nolint:thelper // cannot fail
		m.T = t
		for _, n := range m.nodes {
			n.t = t
		}
	}
	set(t)
	t.Cleanup(func() { set(outer) })
}

// firstOf returns the first node of a kind.
func (m *mixed) firstOf(k kind) *node {
	return m.nodes[slices.IndexFunc(m.nodes, func(n *node) bool { return n.kind == k })]
}

// otherIDs returns the ids of all nodes except n, sorted.
func (m *mixed) otherIDs(n *node) []string {
	return slices.DeleteFunc(sortedIDs(m.nodes), func(id string) bool { return id == n.id })
}

const tablePath = "../docs/compatibility.md"

const tableHead = `# Compatibility with the npm module

Nodes of this module and nodes of the npm module ` + "`@mimik/cluster`" + ` 2.4.0 form one cluster. Each row
of these tables is a test: Go nodes and npm nodes, each a process of its own, share one registry
(mIT) and one token service (mST). A "node of either kind" is a Go node or an npm node.

` + "`INTEROP=require go test ./interop -run TestCompatibility -v`" + ` runs all of them. Without
INTEROP, only some run: the tests that share one cluster, and the first test of each table. If such
a first test is about a node of either kind, it runs for a Go node only.
This document is generated: ` + "`go test ./interop -run TestTable -update`" + ` writes it.
`

// TestTable compares docs/compatibility.md with the scenarios.
func TestTable(t *testing.T) {
	var b strings.Builder
	b.WriteString(tableHead)
	names := map[string]bool{}
	for _, c := range chapters() {
		fmt.Fprintf(&b, "\n## %s\n\n| scenario | what it shows |\n| --- | --- |\n", c.title)
		for _, s := range c.scenarios {
			functions := 0
			for _, set := range []bool{s.run != nil, s.runPerKind != nil, s.runMixed != nil} {
				if set {
					functions++
				}
			}
			if names[s.name] || functions != 1 || !strings.HasSuffix(s.shows, ".") {
				t.Errorf("scenario %q needs a unique name, exactly one function and a sentence", s.name)
			}
			names[s.name] = true
			fmt.Fprintf(&b, "| %s | %s |\n", s.name, s.shows)
		}
	}
	b.WriteString(suitesTable(t, names))
	golden(t, tablePath, b.String())
}

// golden compares text with a file. With -update it writes the file first.
func golden(t *testing.T, path, text string) {
	t.Helper()
	if flag.Lookup(updateFlag).Value.String() == "true" {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if want := string(read(t, path)); text != want {
		t.Errorf("%s differs (-update rewrites it); got:\n%s", path, text)
	}
}
