// Package redact prepares text that comes from outside for errors, log lines, environment
// variables, pages and JSON. Such text may repeat what its sender has received, hide control
// characters, and be of any length.
package redact

import (
	"errors"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// Mark replaces a secret.
	Mark = "[redacted]"
	// MaxText is the most bytes that Text returns.
	MaxText = 1 << 10
	// MaxQuote is the most bytes that Quote returns, for text that is a part of another one.
	MaxQuote = 256

	ellipsis = "…"
	// A shorter part of a base64 text is too likely to be something else.
	minBase64 = 8
	// A text may be escaped once more by each program that passes it on.
	maxNesting = 2
	// The number of times that a text is searched for secrets at most.
	maxPasses = 8
)

// Secrets are texts to be replaced. The zero value has none. All methods except Has treat any JSON
// Web Token as a secret.
type Secrets struct {
	needles []string
	index   *needleIndex
}

// NewSecrets returns Secrets with the given ones; empty ones do not count.
func NewSecrets(secrets ...string) Secrets {
	needles := needlesOf(secrets)
	return Secrets{needles, newNeedleIndex(needles)}
}

// Text returns text without secrets and without characters that are not printable, cut to MaxText.
// A secret is found as it is, in base64, and with any of its characters escaped as in JSON, in Go
// or in a URL.
func (s Secrets) Text(text string) string { return s.clean(text, MaxText) }

// Quote is Text, cut to MaxQuote.
func (s Secrets) Quote(text string) string { return s.clean(text, MaxQuote) }

// In reports whether Text would replace a part of text.
func (s Secrets) In(text string) bool { return len(s.find(text)) > 0 }

// Has reports whether text has one of the secrets, in any of the forms that Text finds. Other
// tokens do not count.
func (s Secrets) Has(text string) bool {
	return len(s.needles) > 0 && slices.ContainsFunc(decodings(text, false), func(d decoding) bool { return s.index.in(d.text) })
}

// Text is the method Text of Secrets.
func Text(text string, secrets ...string) string { return NewSecrets(secrets...).Text(text) }

// Quote is the method Quote of Secrets.
func Quote(text string, secrets ...string) string { return NewSecrets(secrets...).Quote(text) }

// An Error is an error with another text. The error itself cannot be unwrapped, because its text
// may be shown then. But errors.Is and errors.As find it.
type Error struct {
	text string
	err  error
}

// NewError returns err with another text.
func NewError(text string, err error) *Error { return &Error{text, err} }

func (e *Error) Error() string { return e.text }

// Is reports whether the replaced error is target.
func (e *Error) Is(target error) bool { return errors.Is(e.err, target) }

// As sets target to the replaced error, or to an error that it wraps.
func (e *Error) As(target any) bool { return errors.As(e.err, target) }

// Printable reports whether text has only characters that Text keeps.
func Printable(text string) bool {
	return utf8.ValidString(text) && !strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) })
}

func (s Secrets) clean(text string, limit int) string {
	text = s.replaceAll(text)
	if !Printable(text) {
		// Characters are replaced, not removed: otherwise two parts of a secret could be
		// joined. A space may still complete a secret with spaces.
		text = strings.Map(func(r rune) rune {
			if unicode.IsPrint(r) {
				return r
			}
			return ' '
		}, strings.ToValidUTF8(text, string(utf8.RuneError)))
		text = s.replaceAll(text)
	}
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit-len(ellipsis)], "") + ellipsis
}

// replaceAll replaces secrets until there are none. What a replacement leaves of an escape is text,
// and may complete another secret.
func (s Secrets) replaceAll(text string) string {
	for range maxPasses {
		spans := s.find(text)
		if len(spans) == 0 {
			break
		}
		text = replace(text, spans)
	}
	return text
}

// A span is a part of a text.
type span struct{ start, end int }

func replace(text string, spans []span) string {
	var b strings.Builder
	kept := 0
	for _, s := range spans {
		b.WriteString(text[kept:s.start])
		b.WriteString(Mark)
		kept = s.end
	}
	b.WriteString(text[kept:])
	return b.String()
}

var tokenPattern = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*`)

// find returns the parts of text that are secrets, in order and without overlaps.
func (s Secrets) find(text string) []span {
	var spans []span
	for _, d := range decodings(text, true) {
		for _, needle := range s.needles {
			for from := 0; ; {
				i := strings.Index(d.text[from:], needle)
				if i < 0 {
					break
				}
				spans = append(spans, d.source(from+i, from+i+len(needle)))
				from += i + len(needle)
			}
		}
		for _, match := range tokenPattern.FindAllStringIndex(d.text, -1) {
			spans = append(spans, d.source(match[0], match[1]))
		}
	}
	return merge(spans)
}

// merge sorts spans, and joins those that overlap or touch.
func merge(spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int { return a.start - b.start })
	merged := spans[:0]
	for _, s := range spans {
		if last := len(merged) - 1; last >= 0 && s.start <= merged[last].end {
			merged[last].end = max(merged[last].end, s.end)
		} else {
			merged = append(merged, s)
		}
	}
	return merged
}
