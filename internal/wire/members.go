package wire

import (
	"bytes"
	"encoding/json"
	"iter"
	"strings"
	"unicode/utf8"
)

// Each splits JSON at its top level. It yields the quoted name and the value of each member of an
// object, or each element of an array without a name.
//
// The JSON must be valid, as encoding/json guarantees for the input of UnmarshalJSON. Decoding
// every level of nesting with encoding/json would scan long lists several times. For invalid JSON
// the pieces are meaningless, but Each terminates.
func Each(b []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(name, value []byte) bool) {
		if len(b) == 0 || b[0] != '{' && b[0] != '[' {
			return
		}
		object := b[0] == '{'
		for i := skipSeparators(b, 1); i < len(b) && b[i] != '}' && b[i] != ']'; i = skipSeparators(b, i) {
			var name []byte
			if object {
				end := valueEnd(b, i)
				name, i = b[i:end], skipSeparators(b, end)
				if i == len(b) {
					return
				}
			}
			end := valueEnd(b, i)
			if !yield(name, b[i:end:end]) {
				return
			}
			i = end
		}
	}
}

// DecodeString decodes a string. ok reports whether value is a string or null. For null it returns
// before: encoding/json, too, leaves a field unchanged then.
func DecodeString(value []byte, before string) (t string, ok bool) {
	if plain, ok := plainString(value); ok {
		return string(plain), true
	}
	if string(value) == "null" {
		return before, true
	}
	err := json.Unmarshal(value, &t)
	return t, err == nil
}

// EqualString reports whether value is the string text.
func EqualString(value []byte, text string) bool {
	if plain, ok := plainString(value); ok {
		return string(plain) == text
	}
	t, ok := DecodeString(value, "")
	return ok && t == text && string(value) != "null"
}

// MatchField returns the field that a name matches, ignoring case as encoding/json does, or "". It
// also returns the name as spelled.
func MatchField(name []byte, fields ...string) (known, spelled string) {
	if plain, ok := plainString(name); ok {
		for _, f := range fields {
			if string(plain) == f {
				return f, f
			}
		}
		spelled = string(plain)
	} else {
		spelled, _ = DecodeString(name, "")
	}
	for _, f := range fields {
		if strings.EqualFold(spelled, f) {
			return f, spelled
		}
	}
	return "", spelled
}

// skipSeparators returns the index, from i on, of the next name, value or closing bracket.
func skipSeparators(b []byte, i int) int {
	for i < len(b) && (b[i] <= ' ' || b[i] == ',' || b[i] == ':') {
		i++
	}
	return i
}

// valueEnd returns the index after the value that begins at i; it is greater than i.
func valueEnd(b []byte, i int) int {
	switch b[i] {
	case '"':
		return stringEnd(b, i)
	case '{', '[':
		for depth := 0; i < len(b); i++ {
			switch b[i] {
			case '"':
				i = stringEnd(b, i) - 1
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			}
		}
		return len(b)
	}
	for i++; i < len(b) && b[i] > ' ' && b[i] != ',' && b[i] != '}' && b[i] != ']'; i++ {
	}
	return i
}

func stringEnd(b []byte, i int) int {
	for i++; i < len(b); {
		end := bytes.IndexByte(b[i:], '"')
		if end < 0 {
			break
		}
		escapes := end - len(bytes.TrimRight(b[i:i+end], `\`))
		i += end + 1
		if escapes%2 == 0 { // otherwise the last one escapes the quote
			return i
		}
	}
	return len(b)
}

// plainString returns the content of a string that is ASCII without escapes.
func plainString(value []byte) ([]byte, bool) {
	if len(value) < 2 || value[0] != '"' {
		return nil, false
	}
	value = value[1 : len(value)-1]
	for _, b := range value {
		if b == '\\' || b >= utf8.RuneSelf {
			return nil, false
		}
	}
	return value, true
}
