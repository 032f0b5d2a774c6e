package main

import (
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/golangci/misspell"
)

// The limits of the style rules in CONTRIBUTING.md.
const (
	maxWidth       = 100
	rootFiles      = 21
	maxRootTests   = 20
	maxBoolParams  = 1
	testFileSuffix = "_test.go"
)

// A checker collects problems while it walks the files.
type checker struct {
	spelling  *misspell.Replacer
	problems  []string
	rootFiles int
	rootTests int

	tests    map[string]bool // names of tests, fuzz targets, examples and benchmarks
	subtests map[string]bool // string literals in test files, spelled as go test spells subtests
	mentions []mention
}

// A mention is the name of a test in a document.
type mention struct{ place, name string }

// check returns the problems of all Go files and documents below root, in the order of the files.
func check(root fs.FS) ([]string, error) {
	c := &checker{spelling: newSpelling(), tests: map[string]bool{}, subtests: map[string]bool{}}
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && ignoredDir(d.Name()):
			return fs.SkipDir
		case d.IsDir() || path.Ext(name) != ".go" && path.Ext(name) != ".md":
			return nil
		}
		text, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		if path.Ext(name) == ".md" {
			c.document(name, string(text))
			return nil
		}
		return c.goFile(name, text)
	})
	if err != nil {
		return nil, err
	}
	c.checkRoot()
	c.checkMentions()
	return c.problems, nil
}

// ignoredDir reports whether a folder holds nothing that is written for this repository.
func ignoredDir(name string) bool {
	return name == "node_modules" || name == "testdata" || name != "." && strings.HasPrefix(name, ".")
}

func (c *checker) report(place, format string, args ...any) {
	c.problems = append(c.problems, place+": "+fmt.Sprintf(format, args...))
}

// checkRoot compares the files of the root folder with the layout in docs/design.md.
func (c *checker) checkRoot() {
	if c.rootFiles != rootFiles {
		c.report(".", "%d source files in the root folder, want %d", c.rootFiles, rootFiles)
	}
	if c.rootTests > maxRootTests {
		c.report(".", "%d test files in the root folder, want at most %d", c.rootTests, maxRootTests)
	}
}

// checkMentions looks up each test that a document names, after all files have been read.
func (c *checker) checkMentions() {
	for _, m := range c.mentions {
		test, subtests, _ := strings.Cut(m.name, "/")
		if !c.tests[test] {
			c.report(m.place, "no test is called %s", test)
			continue
		}
		for sub := range strings.SplitSeq(subtests, "/") {
			if sub != "" && !c.subtests[sub] {
				c.report(m.place, "%s: no test file contains the subtest %q", m.name, sub)
			}
		}
	}
}
