package sumologic

import (
	"bytes"
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.uber.org/zap/zapcore"
)

const (
	messageKey = "message"
	timeLayout = "2006-01-02T15:04:05.000Z"
)

// line is one log line before it is JSON.
type line struct {
	entry         zapcore.Entry
	metadata      []byte // a JSON object
	correlationID string
	suffix        string
}

// lineSuffix returns the end of every line: the members that are the same in all of them.
func lineSuffix(cfg Config) string {
	b := appendString([]byte(`,"serverType":`), cfg.ServerType)
	b = appendString(append(b, `,"serverId":`...), cfg.ServerID+"@clients")
	return string(append(b, '}'))
}

// append appends the JSON of the line. The members are in the order of the npm module's: sorted,
// except for the last two.
func (l *line) append(b []byte) []byte {
	id := splitCorrelationID(l.correlationID)
	b = append(b, '{')
	if id.id != "" {
		b = appendString(append(b, `"correlationId":`...), id.id)
		b = append(b, ',')
	}
	b = append(b, `"level":"`...)
	b = append(b, levelName(l.entry.Level)...)
	b = append(b, `","message":`...)
	b = appendString(b, l.entry.Message)
	b = append(b, `,"metadata":`...)
	b = append(b, l.metadata...)
	if id.requestedAt != "" {
		b = appendString(append(b, `,"requestedAt":`...), id.requestedAt)
	}
	b = appendStackInfo(b, l.entry)
	if id.hasStep {
		b = strconv.AppendInt(append(b, `,"step":`...), id.step, 10)
	}
	b = append(b, `,"timestamp":"`...)
	b = l.entry.Time.UTC().AppendFormat(b, timeLayout)
	b = append(b, '"')
	return append(b, l.suffix...)
}

func levelName(level zapcore.Level) string {
	switch {
	case level >= zapcore.ErrorLevel:
		return "error"
	case level == zapcore.WarnLevel:
		return "warn"
	case level == zapcore.InfoLevel:
		return "info"
	default:
		return "debug"
	}
}

// revise masks the metadata, and then moves a member named message to the end of the message.
func (l *line) revise(m masks) {
	tree, err := decodeObject(l.metadata)
	if err != nil {
		// What cannot be masked is not sent.
		l.metadata = []byte(`{"maskingError":"the metadata is not valid JSON"}`)
		return
	}
	m.apply(tree)
	if text, ok := tree[messageKey].(string); ok {
		delete(tree, messageKey)
		if text != "" {
			l.entry.Message += " " + text
		}
	}
	l.metadata = encode(tree)
}

func decodeObject(b []byte) (tree map[string]any, err error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber() // a number keeps its digits
	err = d.Decode(&tree)
	return tree, err
}

// encode returns the JSON of a value that was decoded from JSON.
func encode(v any) []byte {
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetEscapeHTML(false)
	_ = e.Encode(v) // what was JSON can be encoded
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
}

// correlation is a correlation id of the form id@step/requestedAt.
type correlation struct {
	id, requestedAt string
	step            int64
	hasStep         bool
}

// splitCorrelationID splits as the npm module does: at each slash, then at each @. What follows the
// second slash or @ is dropped, and a step is the number that its text begins with.
func splitCorrelationID(s string) (c correlation) {
	head, rest, _ := strings.Cut(s, "/")
	c.requestedAt, _, _ = strings.Cut(rest, "/")
	id, step, _ := strings.Cut(head, "@")
	c.id = id
	step, _, _ = strings.Cut(step, "@")
	step = strings.TrimLeft(step, " \t\r\n")
	end := 0
	for end < len(step) && (step[end] >= '0' && step[end] <= '9' || end == 0 && (step[end] == '-' || step[end] == '+')) {
		end++
	}
	if n, err := strconv.ParseInt(step[:end], 10, 64); err == nil {
		c.step, c.hasStep = n, true
	}
	return c
}

// appendString appends s as a JSON string. Invalid UTF-8 becomes U+FFFD.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	start := 0 // of the text that is not appended yet
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c < utf8.RuneSelf && c != '"' && c != '\\' {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			if r, size := utf8.DecodeRuneInString(s[i:]); r != utf8.RuneError || size > 1 {
				i += size
				continue
			}
		}
		b = append(b, s[start:i]...)
		switch {
		case c >= utf8.RuneSelf:
			b = append(b, `\ufffd`...)
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c == '\n':
			b = append(b, '\\', 'n')
		case c == '\t':
			b = append(b, '\\', 't')
		case c == '\r':
			b = append(b, '\\', 'r')
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&0xf])
		}
		i++
		start = i
	}
	return append(append(b, s[start:]...), '"')
}

const (
	maxLine = 64 << 10 // Sumo Logic splits longer lines
	maxText = 16 << 10 // bytes that a message or a stack keeps in a truncated line
)

// limitLine returns a copy of the line of at most maxLine bytes. A longer line loses text of its
// message, stack and metadata, in this order, and gains the member truncated: the length it had.
func limitLine(b []byte) []byte {
	if len(b) <= maxLine {
		return bytes.Clone(b)
	}
	var parts struct {
		CorrelationID string         `json:"correlationId,omitempty"`
		Level         string         `json:"level"`
		Message       string         `json:"message"`
		Metadata      map[string]any `json:"metadata"`
		RequestedAt   string         `json:"requestedAt,omitempty"`
		StackInfo     *struct {
			File   string `json:"file"`
			Hash   string `json:"hash"`
			Line   string `json:"line"`
			Method string `json:"method"`
			Path   string `json:"path"`
			Pos    string `json:"pos"`
			Stack  string `json:"stack"`
		} `json:"stackInfo,omitempty"`
		Step       *int64 `json:"step,omitempty"`
		Timestamp  string `json:"timestamp"`
		Truncated  int    `json:"truncated"`
		ServerType string `json:"serverType"`
		ServerID   string `json:"serverId"`
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	_ = d.Decode(&parts) // if a member does not fit, the others are sent

	parts.Truncated = len(b)
	parts.CorrelationID = cutText(parts.CorrelationID, maxName)
	parts.RequestedAt = cutText(parts.RequestedAt, maxName)
	parts.Message = cutText(parts.Message, maxText)
	if s := parts.StackInfo; s != nil {
		s.Stack = cutText(s.Stack, maxText)
		s.Method = cutText(s.Method, maxHeader)
		s.Path = cutText(s.Path, maxHeader)
		s.File = cutText(s.File, maxHeader)
	}
	metadata := parts.Metadata
	parts.Metadata = map[string]any{}
	parts.Metadata = cutObject(metadata, maxLine-len(encode(parts)))
	return encode(parts)
}

// cutObject returns the members of an object whose JSON fits into size bytes. Members share the
// space equally. One that is larger than its share becomes the beginning of its text.
func cutObject(object map[string]any, size int) map[string]any {
	lengths := make(map[string]int, len(object))
	for name, v := range object {
		lengths[name] = len(encode(v))
	}
	names := slices.SortedFunc(maps.Keys(object), func(a, b string) int {
		return cmp.Or(cmp.Compare(lengths[a], lengths[b]), cmp.Compare(a, b))
	})
	kept := map[string]any{}
	for i, name := range names {
		overhead := len(encode(name)) + len(`:,`)
		share := size/(len(names)-i) - overhead
		if share < len(`"…"`) {
			continue
		}
		v := object[name]
		if lengths[name] > share {
			text, ok := v.(string)
			if !ok {
				text = string(encode(v))
			}
			v = cutText(text, share)
			lengths[name] = len(encode(v))
		}
		kept[name] = v
		size -= overhead + lengths[name]
	}
	return kept
}

// cutText returns the beginning of s, so that its JSON has at most size bytes.
func cutText(s string, size int) string {
	length := len(encode(s))
	if length <= size {
		return s
	}
	for length > size && s != "" {
		s = strings.ToValidUTF8(s[:min(len(s)-1, len(s)*size/length)], "") // without half a character
		length = len(encode(s + "…"))
	}
	return s + "…"
}
