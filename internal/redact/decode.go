package redact

import (
	"math"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// A decoding is a text without its escapes.
type decoding struct {
	text string
	// offsets has, for each byte of text and for its end, the index in the source. It is nil if text
	// is the source, and in decodings without offsets.
	offsets []int
}

// source returns the part of the source that became text[start:end].
func (d decoding) source(start, end int) span {
	if d.offsets == nil {
		return span{start, end}
	}
	return span{d.offsets[start], d.offsets[end]}
}

// decodings returns text as it is, and what the escapes in it may stand for. Without offsets, the
// method source of a decoding must not be called.
func decodings(text string, offsets bool) []decoding {
	all := []decoding{{text: text}}
	level := all
	for range maxNesting {
		var next []decoding
		for _, d := range level {
			for _, u := range unescapers {
				decoded, changed := d.unescape(u, offsets)
				if changed && !slices.ContainsFunc(all, func(o decoding) bool { return o.text == decoded.text }) {
					next, all = append(next, decoded), append(all, decoded)
				}
			}
		}
		level = next
	}
	return all
}

// An unescaper decodes one kind of escapes.
type unescaper struct {
	begin byte // first byte of an escape; without it, another unescaper decodes all escapes of a text
	other byte // the other first byte of escapes; begin if there is one only
	// decode returns what the escape at the beginning of text stands for, and its length; 0 if there
	// is no escape.
	decode func(text string) (decoded string, length int)
}

//nolint:gochecknoglobals // a constant
var unescapers = [...]unescaper{{'\\', '\\', unescapeBackslash}, {'%', '%', unescapePercent}, {'+', '%', unescapeForm}}

func (d decoding) unescape(u unescaper, withOffsets bool) (decoded decoding, changed bool) {
	if strings.IndexByte(d.text, u.begin) < 0 {
		return d, false
	}
	var b strings.Builder
	b.Grow(len(d.text))
	var offsets []int
	if withOffsets {
		offsets = make([]int, 0, len(d.text)+1)
	}
	add := func(part string, start, step int) {
		b.WriteString(part)
		if !withOffsets {
			return
		}
		for i := range len(part) {
			offsets = append(offsets, d.source(start+i*step, start).start)
		}
	}
	plain := 0 // where the text that has not been added begins
	for i := 0; i < len(d.text); {
		n := 0
		if c := d.text[i]; c == u.begin || c == u.other {
			var part string
			if part, n = u.decode(d.text[i:]); n > 0 {
				add(d.text[plain:i], plain, 1)
				add(part, i, 0)
				plain, changed = i+n, true
			}
		}
		i += max(n, 1)
	}
	add(d.text[plain:], plain, 1)
	if withOffsets {
		offsets = append(offsets, d.source(len(d.text), len(d.text)).start)
	}
	return decoding{b.String(), offsets}, changed
}

// unescapeBackslash decodes the escapes of JSON strings and of Go's %q.
func unescapeBackslash(text string) (string, int) {
	if len(text) < 2 || text[0] != '\\' {
		return "", 0
	}
	switch text[1] {
	case 'u':
		return unescapeUnicode(text)
	case 'U':
		if r, ok := parseRune(text, 2, 8); ok {
			return string(r), 10
		}
		return "", 0
	case 'x':
		if b, ok := parseByte(text, 2); ok {
			return string([]byte{b}), 4
		}
		return "", 0
	}
	if i := strings.IndexByte(`abfnrtv`, text[1]); i >= 0 {
		return "\a\b\f\n\r\t\v"[i : i+1], 2
	}
	return text[1:2], 2
}

func unescapeUnicode(text string) (string, int) {
	r, ok := parseRune(text, 2, 4)
	if !ok {
		return "", 0
	}
	if !utf16.IsSurrogate(r) {
		return string(r), 6
	}
	if strings.HasPrefix(text[6:], `\u`) {
		if low, ok := parseRune(text, 8, 4); ok {
			if pair := utf16.DecodeRune(r, low); pair != utf8.RuneError {
				return string(pair), 12
			}
		}
	}
	return string(utf8.RuneError), 6
}

// unescapePercent decodes the escapes of URLs.
func unescapePercent(text string) (string, int) {
	if text[0] != '%' {
		return "", 0
	}
	if b, ok := parseByte(text, 1); ok {
		return string([]byte{b}), 3
	}
	return "", 0
}

// unescapeForm decodes the escapes of queries and forms, in which a plus is a space.
func unescapeForm(text string) (string, int) {
	if text[0] == '+' {
		return " ", 1
	}
	return unescapePercent(text)
}

// parseByte parses two hexadecimal digits that begin at text[at].
func parseByte(text string, at int) (byte, bool) {
	v, ok := parseRune(text, at, 2)
	return byte(v), ok //nolint:gosec // two digits fit into a byte
}

// parseRune parses n hexadecimal digits that begin at text[at]. Their value fits into a rune, but
// may not be a character.
func parseRune(text string, at, n int) (rune, bool) {
	if len(text) < at+n {
		return 0, false
	}
	v := uint32(0)
	for _, c := range []byte(text[at : at+n]) {
		switch lower := c | ('a' - 'A'); {
		case '0' <= c && c <= '9':
			v = v<<4 | uint32(c-'0')
		case 'a' <= lower && lower <= 'f':
			v = v<<4 | uint32(lower-'a'+10)
		default:
			return 0, false
		}
	}
	return rune(v), v <= math.MaxInt32
}
