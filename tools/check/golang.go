package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

var testName = regexp.MustCompile(`^(Test|Fuzz|Example|Benchmark)([A-Z_]|$)`)

// goFile checks one Go file.
func (c *checker) goFile(name string, text []byte) error {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	if ast.IsGenerated(file) {
		return nil
	}
	isTest := strings.HasSuffix(name, testFileSuffix)
	if !strings.Contains(name, "/") {
		if isTest {
			c.rootTests++
		} else {
			c.rootFiles++
		}
	}
	lines := strings.Split(string(text), "\n")
	for _, group := range file.Comments {
		for _, comment := range group.List {
			c.comment(name, fset.Position(comment.Pos()).Line, comment.Text, lines)
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if f, ok := n.(*ast.FuncDecl); ok {
			c.function(name, fset.Position(f.Pos()).Line, f)
		}
		if lit, ok := n.(*ast.BasicLit); ok && isTest && lit.Kind == token.STRING {
			if s, err := strconv.Unquote(lit.Value); err == nil {
				c.subtests[strings.ReplaceAll(s, " ", "_")] = true
			}
		}
		return true
	})
	return nil
}

// comment checks the words of one comment, which starts at line, and its width in the file.
func (c *checker) comment(name string, line int, text string, lines []string) {
	if isDirective(text) {
		return
	}
	for i, part := range strings.Split(text, "\n") {
		place := fmt.Sprintf("%s:%d", name, line+i)
		c.words(place, withoutQuotes(part))
		if w := utf8.RuneCountInString(lines[line+i-1]); w > maxWidth && !strings.Contains(part, "://") {
			c.report(place, "a comment ends at column %d, want at most %d", w, maxWidth)
		}
	}
}

// isDirective reports whether a comment is an instruction for a tool, such as //go:build.
func isDirective(text string) bool {
	rest, ok := strings.CutPrefix(text, "//")
	return ok && rest != "" && rest[0] >= 'a' && rest[0] <= 'z'
}

// function counts boolean parameters, and remembers the names of tests.
func (c *checker) function(name string, line int, f *ast.FuncDecl) {
	if f.Recv == nil && testName.MatchString(f.Name.Name) {
		c.tests[f.Name.Name] = true
	}
	n := 0
	for _, field := range f.Type.Params.List {
		if id, ok := field.Type.(*ast.Ident); ok && id.Name == "bool" {
			n += max(1, len(field.Names))
		}
	}
	if n > maxBoolParams {
		c.report(fmt.Sprintf("%s:%d", name, line), "%s has %d boolean parameters, want at most %d",
			f.Name.Name, n, maxBoolParams)
	}
}
