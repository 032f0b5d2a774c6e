package sumologic

import (
	"crypto/sha256"
	"encoding/hex"
	"path"
	"strconv"
	"strings"

	"go.uber.org/zap/zapcore"
)

// appendStackInfo appends the member stackInfo of an entry at error or above, or with a stack
// trace.
func appendStackInfo(b []byte, entry zapcore.Entry) []byte {
	if entry.Stack == "" && (entry.Level < zapcore.ErrorLevel || !entry.Caller.Defined) {
		return b
	}
	frames := parseStack(entry.Stack)
	if len(frames) == 0 && entry.Caller.Defined {
		frames = []frame{callerFrame(entry.Caller)}
	}
	var first frame
	if len(frames) > 0 {
		first = frames[0]
	}
	if entry.Caller.Defined {
		first = callerFrame(entry.Caller)
	}
	stack := joinFrames(frames)
	hash := sha256.Sum256([]byte(stack))

	b = appendString(append(b, `,"stackInfo":{"file":`...), path.Base(first.file))
	b = append(b, `,"hash":"`...)
	b = hex.AppendEncode(b, hash[:])
	b = appendString(append(b, `","line":`...), first.line)
	b = appendString(append(b, `,"method":`...), first.function)
	b = appendString(append(b, `,"path":`...), first.file)
	b = append(b, `,"pos":"0"`...) // a column, which Go does not record
	b = appendString(append(b, `,"stack":`...), stack)
	return append(b, '}')
}

type frame struct{ function, file, line string }

func callerFrame(c zapcore.EntryCaller) frame {
	return frame{function: c.Function, file: c.File, line: strconv.Itoa(c.Line)}
}

// parseStack reads a stack trace of zap or of [runtime/debug.Stack]. It leaves out addresses,
// arguments and goroutine numbers, so that equal faults have equal stacks.
func parseStack(stack string) (frames []frame) {
	function := ""
	for text := range strings.Lines(stack) {
		text = strings.TrimRight(text, "\r\n")
		location, isLocation := strings.CutPrefix(text, "\t")
		switch {
		case isLocation:
			location, _, _ = strings.Cut(location, " +0x")
			file, line := location, ""
			if i := strings.LastIndexByte(location, ':'); i >= 0 {
				file, line = location[:i], location[i+1:]
			}
			frames = append(frames, frame{function, file, line})
			function = ""
		case strings.HasPrefix(text, "goroutine "):
		default:
			function = plainFunction(text)
		}
	}
	return frames
}

// plainFunction returns the name in a line such as "main.(*T).F(0xc000012345)" or
// "created by main.main in goroutine 1".
func plainFunction(text string) string {
	text = strings.TrimPrefix(text, "created by ")
	text, _, _ = strings.Cut(text, " in goroutine ")
	if i := strings.LastIndexByte(text, '('); i > 0 && strings.HasSuffix(text, ")") {
		text = text[:i]
	}
	return text
}

// joinFrames returns the frames in the form of a JavaScript stack, without its first line.
func joinFrames(frames []frame) string {
	var b strings.Builder
	for i, f := range frames {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString("    at ")
		b.WriteString(f.function)
		b.WriteString(" (")
		b.WriteString(f.file)
		b.WriteByte(':')
		b.WriteString(f.line)
		b.WriteByte(')')
	}
	return b.String()
}
