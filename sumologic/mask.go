package sumologic

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/theory/jsonpath"
	"github.com/theory/jsonpath/spec"
)

const (
	mask = "-------" // the npm module's

	// maxMaskDepth limits the nesting of masked metadata. What is deeper is masked as a whole: the
	// time of a descendant path grows with the square of the depth.
	maxMaskDepth = 64

	minScrubbedCode = 8 // a shorter code could be a part of ordinary words
)

// masks are parsed JSONPath expressions.
type masks []maskPath

type maskPath struct {
	path *jsonpath.Path
	name []byte // `name"`, which is in the JSON of every match; nil if there is no such name
}

// parseMasks parses what FILTER_FILE lists.
func parseMasks(paths []string) (parsed masks, problems []error) {
	for i, text := range paths {
		p, err := jsonpath.Parse(rooted(text))
		switch {
		case err != nil:
			problems = append(problems, fmt.Errorf("FILTER_FILE entry %d, %.60q, is not a JSONPath: %w", i+1, text, err))
		case len(p.Query().Segments()) == 0:
			problems = append(problems, fmt.Errorf("FILTER_FILE entry %d, %.60q, selects no member", i+1, text))
		default:
			parsed = append(parsed, maskPath{path: p, name: requiredName(p)})
		}
	}
	return parsed, problems
}

// rooted adds the $ that the npm module's JSONPath library does not require.
func rooted(path string) string {
	switch {
	case strings.HasPrefix(path, "$"):
		return path
	case strings.HasPrefix(path, "[") || strings.HasPrefix(path, "."):
		return "$" + path
	default:
		return "$." + path
	}
}

// requiredName returns the last plain member name of a path, as it is in JSON, but without the
// quote before it: a search that begins with so frequent a character is slower.
func requiredName(p *jsonpath.Path) (name []byte) {
	for _, segment := range p.Query().Segments() {
		if selectors := segment.Selectors(); len(selectors) == 1 {
			if n, ok := selectors[0].(spec.Name); ok {
				name = appendString(nil, string(n))[1:]
			}
		}
	}
	return name
}

// mayMatch reports whether a path may select a part of a JSON object. It saves decoding objects
// that have none of the names. A name may be escaped, so an object with a backslash may match.
func (m masks) mayMatch(object []byte) bool {
	if len(m) == 0 {
		return false
	}
	if bytes.IndexByte(object, '\\') >= 0 {
		return true
	}
	return slices.ContainsFunc(m, func(p maskPath) bool { return p.name == nil || bytes.Contains(object, p.name) })
}

// apply replaces the selected values of tree. Each path sees the result of those before it.
func (m masks) apply(tree map[string]any) {
	if len(m) == 0 {
		return
	}
	maskDeep(tree, 1)
	for _, p := range m {
		for _, n := range p.path.SelectLocated(tree) {
			replace(tree, n.Path)
		}
	}
}

// replace masks the value at a path. A path through a value that is masked already has no effect.
func replace(v any, path spec.NormalizedPath) {
	for i, selector := range path {
		last := i == len(path)-1
		switch s := selector.(type) {
		case spec.Name:
			object, _ := v.(map[string]any)
			if last && object != nil {
				object[string(s)] = mask
			}
			v = object[string(s)]
		case spec.Index:
			array, _ := v.([]any)
			if int(s) < 0 || int(s) >= len(array) {
				return
			}
			if last {
				array[s] = mask
			}
			v = array[s]
		}
	}
}

// maskDeep masks the containers in v that are nested more than maxMaskDepth levels deep.
func maskDeep(v any, depth int) any {
	switch v := v.(type) {
	case map[string]any:
		if depth > maxMaskDepth {
			return mask
		}
		for name, member := range v {
			v[name] = maskDeep(member, depth+1)
		}
	case []any:
		if depth > maxMaskDepth {
			return mask
		}
		for i, element := range v {
			v[i] = maskDeep(element, depth+1)
		}
	}
	return v
}

// redactCode masks the collector code in a line. The code has the same form in JSON.
func (s *Sink) redactCode(line []byte) []byte {
	code := string(s.cfg.Code)
	if len(code) < minScrubbedCode || !bytes.Contains(line, []byte(code)) {
		return line
	}
	return bytes.ReplaceAll(line, []byte(code), []byte(mask))
}
