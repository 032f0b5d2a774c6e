package redact

import (
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// A decoding is a text without its escapes.
type decoding struct {
	text string
	// offsets has, for each byte of text and for its end, the index in the source; nil if text is
	// the source.
	offsets []int
}

// source returns the part of the source that became text[start:end].
func (d decoding) source(start, end int) span {
	if d.offsets == nil {
		return span{start, end}
	}
	return span{d.offsets[start], d.offsets[end]}
}

// decodings returns text as it is, and what the escapes in it may stand for.
func decodings(text string) []decoding {
	all := []decoding{{text: text}}
	level := all
	for range maxNesting {
		var next []decoding
		for _, d := range level {
			for _, unescape := range [...]unescaper{unescapeBackslash, unescapePercent, unescapeForm} {
				decoded, changed := d.unescape(unescape)
				if changed && !slices.ContainsFunc(all, func(o decoding) bool { return o.text == decoded.text }) {
					next, all = append(next, decoded), append(all, decoded)
				}
			}
		}
		level = next
	}
	return all
}

// An unescaper returns what the escape at the beginning of text stands for, and its length; 0 if
// there is no escape.
type unescaper func(text string) (decoded string, length int)

func (d decoding) unescape(unescape unescaper) (decoded decoding, changed bool) {
	if !strings.ContainsAny(d.text, `\%+`) {
		return d, false
	}
	var b strings.Builder
	offsets := make([]int, 0, len(d.text)+1)
	for i := 0; i < len(d.text); {
		part, n := unescape(d.text[i:])
		if n == 0 {
			part, n = d.text[i:i+1], 1
		} else {
			changed = true
		}
		b.WriteString(part)
		for range len(part) {
			offsets = append(offsets, d.source(i, i).start)
		}
		i += n
	}
	offsets = append(offsets, d.source(len(d.text), len(d.text)).start)
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
	if len(text) < at+2 {
		return 0, false
	}
	v, err := strconv.ParseUint(text[at:at+2], 16, 8)
	return byte(v), err == nil
}

// parseRune parses n hexadecimal digits that begin at text[at]. They may be no character, but fit
// into a rune.
func parseRune(text string, at, n int) (rune, bool) {
	if len(text) < at+n {
		return 0, false
	}
	v, err := strconv.ParseUint(text[at:at+n], 16, 31)
	return rune(v), err == nil
}
