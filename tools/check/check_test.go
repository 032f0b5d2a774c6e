package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// repository returns a tree without problems, with the given files added.
func repository(files map[string]string) fstest.MapFS {
	fsys := fstest.MapFS{}
	for i := range rootFiles {
		fsys[fmt.Sprintf("f%d.go", i)] = &fstest.MapFile{Data: []byte("package p\n")}
	}
	for name, text := range files {
		fsys[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return fsys
}

func TestCheck(t *testing.T) {
	long := strings.Repeat("word ", 20) + "."
	tests := []struct {
		name, file, text string
		want             string // "": no problem
	}{
		{"clean Go", "a/a.go", "// Package a is clean.\npackage a\n", ""},
		{"word in a comment", "a/a.go", "package a // nobody\n", `a/a.go:1: avoid "nobody"`},
		{"word in a block", "a/a.go", "/*\nWho calls.\n*/\npackage a\n", `a/a.go:2: avoid "Who"`},
		{"phrase in a test", "a/a_test.go", "package a\n\n// f tells whether x.\n", `a/a_test.go:3: avoid "tells whether"`},
		{"part of a word", "a/a.go", "package a // whole, lesting\n", ""},
		{"quoted word", "a/a.go", "package a // the text \"nobody\" and `whom`\n", ""},
		{"word in code", "a/a.go", "package a\n\nvar who = \"nobody\"\n", ""},
		{"wide comment", "a/a.go", "package a\n\n// " + long + "\n", "a/a.go:3: a comment ends at column 104, want at most 100"},
		{"wide end of a line", "a/a.go", "package a; var x = 0 // " + long[21:] + "\n", "a/a.go:1: a comment ends at column 104, want at most 100"},
		{"wide code", "a/a.go", "package a\n\nvar s = \"" + long + "\"\n", ""},
		{"wide link", "a/a.go", "package a\n\n// https://example.com/ " + long + "\n", ""},
		{"wide directive", "a/a.go", "package a\n\n//nolint:x // " + long + "\n", ""},
		{"one bool", "a/a.go", "package a\n\nfunc f(a bool, s string) {}\n", ""},
		{"two bools", "a/a.go", "package a\n\nfunc f(a, b bool) {}\n", "a/a.go:3: f has 2 boolean parameters, want at most 1"},
		{"two bools of a method", "a/a.go", "package a\n\nfunc (t) f(a bool, s string, b bool) {}\n", "a/a.go:3: f has 2 boolean parameters, want at most 1"},
		{"one file too many", "more.go", "package p\n", ".: 20 source files in the root folder, want 19"},
		{"foreign code", "bench/node_modules/a.go", "not Go, nobody", ""},

		{"clean document", "a.md", "Plain words.\n", ""},
		{"word in a document", "a.md", "\nNobody\n", `a.md:2: avoid "Nobody"`},
		{"word in a table", "a.md", "| whom |\n", `a.md:1: avoid "whom"`},
		{"word as code", "a.md", "Avoid `whom`.\n", ""},
		{"word in a code block", "a.md", "```\nwhom\n```\n", ""},
		{"open code block", "a.md", "```\nwhom\n", "a.md: a code block does not end"},
		{"spelling", "a.md", "A " + "colo" + "ur.\n", "a.md:1: \"colo" + "ur\" is spelled \"color\""},
		{"wide document", "a.md", long + "\n", "a.md:1: 101 columns, want at most 100"},
		{"wide table", "a.md", "| " + long + " |\n", ""},
		{"wide code block", "a.md", "```\n" + long + "\n```\n", ""},
		{"wide link target", "a.md", "[x](" + strings.ReplaceAll(long, " ", "-") + ")\n", ""},
		{"unknown test", "a.md", "See `TestGone`.\n", "a.md:1: no test is called TestGone"},
		{"unknown fuzz target", "a.md", "See `FuzzGone`.\n", "a.md:1: no test is called FuzzGone"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := check(repository(map[string]string{tt.file: tt.text}))
			if err != nil {
				t.Fatal(err)
			}
			if g := strings.Join(got, "\n"); g != tt.want {
				t.Errorf("got  %s\nwant %s", g, tt.want)
			}
		})
	}
}

func TestMentionedTests(t *testing.T) {
	files := map[string]string{
		"p/p_test.go": "package p\n\nfunc TestA(t *T) { t.Run(\"a peer hangs\", f) }\n\nfunc (s) TestMethod() {}\n",
		"docs/a.md":   "`TestA`, `TestA/a_peer_hangs`, `Testing`, `TestA/gone`, `TestMethod`\n",
	}
	got, err := check(repository(files))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`docs/a.md:1: TestA/gone: no test file contains the subtest "gone"`,
		"docs/a.md:1: no test is called TestMethod",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

func TestRootTests(t *testing.T) {
	files := map[string]string{}
	for i := range maxRootTests {
		files[fmt.Sprintf("t%d_test.go", i)] = "package p\n"
	}
	if got, err := check(repository(files)); err != nil || len(got) != 0 {
		t.Errorf("%d test files: %q, %v", len(files), got, err)
	}
	more := maps.Clone(files)
	more["more_test.go"] = "package p\n"
	if got, err := check(repository(more)); err != nil || len(got) != 1 {
		t.Errorf("%d test files: %q, %v; want one problem", len(more), got, err)
	}
}

func TestSyntaxErrorIsReported(t *testing.T) {
	if _, err := check(repository(map[string]string{"a/a.go": "no Go"})); err == nil {
		t.Error("no error for a file that is not Go")
	}
}
