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

// A scenario is one thing that nodes of both kinds do to each other.
type scenario struct {
	name string
	says string // in one sentence, for the table

	// One of these runs it: alone in a world of its own, beside others; each likewise, once for
	// each kind of node; within in the one cluster of two Go and two npm nodes, which it leaves
	// as it was.
	alone  func(w *world)
	each   func(w *world, k kind)
	within func(m *mixed)

	with worldOption // how its world differs, nil: in nothing
}

// A chapter is what the scenarios of one subject stand under in the table.
type chapter struct {
	title     string
	scenarios []scenario
}

func chapters() []chapter {
	return []chapter{
		{"Registering", registering()},
		{"Knowing the others", knowing()},
		{"Asking all peers", asking()},
		{"Peers in trouble", troubles()},
		{"Leaving", leaving()},
		{"Tokens", tokens()},
		{"Correlation ids and user agents", correlation()},
		{"On the wire", wireScenarios()},
		{"Where the npm module errs, and this one does not", reference()},
	}
}

func TestCompatibility(t *testing.T) {
	install(t) // or say once that there are no npm nodes here
	t.Parallel()
	var within []scenario
	for _, c := range chapters() {
		for _, s := range c.scenarios {
			switch {
			case s.within != nil:
				within = append(within, s)
			case s.each != nil:
				t.Run(s.name, func(t *testing.T) {
					t.Parallel()
					for _, k := range kinds() {
						t.Run(string(k), func(t *testing.T) {
							t.Parallel()
							s.each(newWorld(t, s.with), k)
						})
					}
				})
			default:
				t.Run(s.name, func(t *testing.T) {
					t.Parallel()
					s.alone(newWorld(t, s.with))
				})
			}
		}
	}
	t.Run("mixed", func(t *testing.T) {
		t.Parallel()
		m := newMixed(t)
		for _, s := range within {
			t.Run(s.name, func(t *testing.T) {
				m.in(t)
				s.within(m)
			})
		}
	})
}

// mixed is a cluster of two Go and two npm nodes that nothing happens to.
type mixed struct {
	*world
	nodes []*node
}

func newMixed(t *testing.T) *mixed {
	t.Helper()
	w := newWorld(t, nil)
	return &mixed{w, w.cluster(npmKind, goKind, npmKind, goKind)}
}

// in makes a subtest the one that fails if something does.
func (m *mixed) in(t *testing.T) {
	t.Helper()
	outer := m.T
	bind := func(t *testing.T) { //nolint:thelper // it binds, and cannot fail
		m.T = t
		for _, n := range m.nodes {
			n.t = t
		}
	}
	bind(t)
	t.Cleanup(func() { bind(outer) })
}

// first is the first node of a kind.
func (m *mixed) first(k kind) *node {
	return m.nodes[slices.IndexFunc(m.nodes, func(n *node) bool { return n.kind == k })]
}

// but are the ids of all nodes but one, sorted.
func (m *mixed) but(n *node) []string {
	return slices.DeleteFunc(sorted(m.nodes), func(id string) bool { return id == n.id })
}

const tablePath = "compatibility.md"

// TestTable compares the table of scenarios with what the reader is shown.
func TestTable(t *testing.T) {
	var b strings.Builder
	b.WriteString("# What is tried with real npm nodes\n\n" +
		"Each row is a test of this folder: Go nodes and nodes of `@mimik/cluster` 2.4.0, each a process of its own, around one registry.\n" +
		"`go test ./interop -run TestCompatibility -v` runs them all; `go test ./interop -run TestTable -update` writes this page.\n")
	names := map[string]bool{}
	for _, c := range chapters() {
		fmt.Fprintf(&b, "\n## %s\n\n| scenario | what it shows |\n| --- | --- |\n", c.title)
		for _, s := range c.scenarios {
			ways := 0
			for _, there := range []bool{s.alone != nil, s.each != nil, s.within != nil} {
				if there {
					ways++
				}
			}
			if names[s.name] || ways != 1 || !strings.HasSuffix(s.says, ".") {
				t.Errorf("scenario %q: it needs a name of its own, one way to run, and a sentence", s.name)
			}
			names[s.name] = true
			fmt.Fprintf(&b, "| %s | %s |\n", s.name, s.says)
		}
	}
	if rows := b.String()[strings.Index(b.String(), "\n## "):]; !strings.Contains(string(read(t, "../README.md")), strings.ReplaceAll(rows, "\n## ", "\n### ")) {
		t.Errorf("README.md shows another table; its chapters should be:\n%s", strings.ReplaceAll(rows, "\n## ", "\n### "))
	}
	b.WriteString(suitesTable(t, names))
	golden(t, tablePath, b.String())
}

// golden compares text with a file, or writes it if the test was told to.
func golden(t *testing.T, path, text string) {
	t.Helper()
	if flag.Lookup(updateFlag).Value.String() == "true" {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if want := string(read(t, path)); text != want {
		t.Errorf("%s is not what it was (-update writes it anew); it is now:\n%s", path, text)
	}
}
