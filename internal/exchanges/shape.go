package exchanges

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"net/http"
	"slices"
	"strings"
)

// maxWord is the longest word that distinguishes two shapes. A longer one is a token.
const maxWord = 32

// Shape returns a hash that is equal for exchanges that do not differ in what a schema can
// distinguish: the elements of arrays and their number are ignored if they have the same shape, and
// words with digits, such as dates and tokens, are all equal.
func (x Exchange) Shape() uint64 {
	var b strings.Builder
	fmt.Fprintln(&b, words(x.Handler), x.Method, words(x.Host), words(x.Target), x.Status)
	x.Request.shape(&b)
	x.Response.shape(&b)
	h := fnv.New64a()
	_, _ = h.Write([]byte(b.String())) // a hash does not fail
	return h.Sum64()
}

func (m Message) shape(b *strings.Builder) {
	for _, name := range slices.Sorted(maps.Keys(m.Header)) {
		fmt.Fprintln(b, name, words(strings.Join(m.Header[name], ",")))
	}
	fmt.Fprintln(b, m.Incomplete)
	var v any
	switch {
	case len(m.Body) == 0:
	case json.Unmarshal(m.Body, &v) == nil:
		fmt.Fprintln(b, shapeOf(v))
	case http.DetectContentType(m.Body) == "text/plain; charset=utf-8":
		fmt.Fprintln(b, words(string(m.Body[:min(len(m.Body), 4<<10)])))
	default: // binary
		fmt.Fprintln(b, "binary")
	}
}

// shapeOf returns the shape of a JSON value as a text.
func shapeOf(v any) string {
	switch v := v.(type) {
	case map[string]any:
		var b strings.Builder
		for _, name := range slices.Sorted(maps.Keys(v)) {
			fmt.Fprintf(&b, "%s:%s,", words(name), shapeOf(v[name]))
		}
		return "{" + b.String() + "}"
	case []any:
		shapes := map[string]bool{}
		for _, element := range v {
			shapes[shapeOf(element)] = true
		}
		return "[" + strings.Join(slices.Sorted(maps.Keys(shapes)), ",") + "]"
	case string:
		return `"` + words(v) + `"`
	case float64:
		return fmt.Sprintf("number %t %t", v > 0, v == float64(int64(v)))
	default:
		return fmt.Sprint(v)
	}
}

// words replaces each word with a digit, and each long one, by a zero. A word may contain - and _,
// so that a UUID, a date and a part of a JWT are words.
func words(text string) string {
	var b strings.Builder
	start := -1
	hasDigit := false
	end := func(i int) {
		switch {
		case start < 0:
		case hasDigit || i-start > maxWord:
			b.WriteByte('0')
		default:
			b.WriteString(text[start:i])
		}
		start, hasDigit = -1, false
	}
	for i := range len(text) {
		c := text[i]
		isDigit := c >= '0' && c <= '9'
		if !isDigit && c != '-' && c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			end(i)
			b.WriteByte(c)
			continue
		}
		if start < 0 {
			start = i
		}
		hasDigit = hasDigit || isDigit
	}
	end(len(text))
	return b.String()
}
