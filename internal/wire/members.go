package wire

import (
	"bytes"
	"encoding/json"
	"iter"
	"strings"
	"unicode/utf8"
)

// Members cuts JSON at its top level: it yields the name, in quotes, and the value of each member
// of an object, or each element of an array, without a name. The JSON must be valid, as what
// encoding/json hands to an UnmarshalJSON is: having it read anew on each level of nesting is what
// made long lists expensive. Of anything else the pieces mean nothing, but they come to an end.
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

// skip is the place from i on where a name, a value or the end begins.
func skipSeparators(b []byte, i int) int {
	for i < len(b) && (b[i] <= ' ' || b[i] == ',' || b[i] == ':') {
		i++
	}
	return i
}

// valueEnd is the place after the value that begins at i; it is always further on.
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
		if escapes%2 == 0 { // else the last of them is for the quote
			return i
		}
	}
	return len(b)
}

// Text reads a text; ok tells whether it is one. Null is none either, but leaves what was there,
// as encoding/json has it.
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

// Same tells whether a value is that text.
func EqualString(value []byte, text string) bool {
	if plain, ok := plainString(value); ok {
		return string(plain) == text
	}
	t, ok := DecodeString(value, "")
	return ok && t == text && string(value) != "null"
}

// plainText is what is between the quotes, if that means what it looks like: nothing in it is
// escaped, or not ASCII.
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

// Field is which of these fields a name stands for, "" if none: encoding/json does not mind the
// case of a name. It tells also how it is spelled.
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
