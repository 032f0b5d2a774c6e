package main

import (
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/golangci/misspell"
)

var (
	// avoided are words that make a person the subject of a sentence about code, and old phrases.
	avoided = regexp.MustCompile(`(?i)\b(who|whom|whoever|nobody|somebody|everybody|anybody|anew|lest|` +
		`tells whether|for ever|by and by|in earnest|what comes of)\b`)

	quoted     = regexp.MustCompile("`[^`]*`" + `|"[^"]*"`)
	codeSpan   = regexp.MustCompile("`([^`]+)`")
	linkTarget = regexp.MustCompile(`\]\([^)]*\)`)
	testSpan   = regexp.MustCompile(`^(Test|Fuzz|Example|Benchmark)[A-Z_]\w*(/\S+)?$`)
)

// document checks one Markdown file: its prose, and the tests that it names.
func (c *checker) document(name, text string) {
	inCode := false
	for i, line := range strings.Split(text, "\n") {
		place := fmt.Sprintf("%s:%d", name, i+1)
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			inCode = !inCode
			continue
		}
		if inCode {
			continue
		}
		prose := linkTarget.ReplaceAllString(line, "]()")
		plain := codeSpan.ReplaceAllString(prose, "``")
		c.words(place, plain)
		c.misspelled(place, plain)
		for _, span := range codeSpan.FindAllStringSubmatch(line, -1) {
			if testSpan.MatchString(span[1]) {
				c.mentions = append(c.mentions, mention{place, span[1]})
			}
		}
		isTable := strings.HasPrefix(strings.TrimSpace(line), "|")
		if w := utf8.RuneCountInString(prose); w > maxWidth && !isTable {
			c.report(place, "%d columns, want at most %d", w, maxWidth)
		}
	}
	if inCode {
		c.report(name, "a code block does not end")
	}
}

// words reports the avoided words in a line.
func (c *checker) words(place, line string) {
	for _, word := range avoided.FindAllString(line, -1) {
		c.report(place, "avoid %q", word)
	}
}

// newSpelling returns a replacer of British spelling and common mistakes. golangci-lint runs the
// same one on Go files.
func newSpelling() *misspell.Replacer {
	r := misspell.New()
	r.AddRuleList(misspell.DictAmerican)
	r.Compile()
	return r
}

// misspelled reports the misspelled words in a line of a document.
func (c *checker) misspelled(place, line string) {
	_, diffs := c.spelling.Replace(line)
	for _, d := range diffs {
		c.report(place, "%q is spelled %q", d.Original, d.Corrected)
	}
}

// withoutQuotes removes what a comment quotes: code, or the words of another program.
func withoutQuotes(line string) string { return quoted.ReplaceAllString(line, "") }
