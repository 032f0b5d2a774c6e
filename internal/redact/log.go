package redact

import (
	"fmt"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Log returns a logger like log that replaces each text in the fields of a line by the result of
// clean. Byte strings, which are stacks, stay as they are, and so do messages, which are constant.
func Log(log *zap.Logger, clean func(string) string) *zap.Logger {
	return log.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core { return &core{c, clean} }))
}

type core struct {
	zapcore.Core
	text func(string) string
}

// With implements zapcore.Core.
func (c *core) With(fields []zapcore.Field) zapcore.Core {
	return &core{c.Core.With(c.clean(fields)), c.text}
}

// Check implements zapcore.Core. The inner core may drop a line here. So the core that is added to
// checked writes this line only, with the decision of the inner core.
func (c *core) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	inner := c.Core.Check(entry, nil)
	if inner == nil {
		return checked
	}
	return checked.AddCore(entry, &lineCore{c, inner})
}

// A lineCore writes one line.
type lineCore struct {
	*core
	line *zapcore.CheckedEntry
}

// Write implements zapcore.Core.
func (c *lineCore) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	c.line.Entry = entry
	c.line.Write(c.clean(fields)...)
	return nil
}

func (c *core) clean(fields []zapcore.Field) []zapcore.Field {
	cleaned := make([]zapcore.Field, len(fields))
	for i, f := range fields {
		switch f.Type {
		case zapcore.StringType:
			f.String = c.text(f.String)
		case zapcore.ErrorType:
			// An encoder may print more of an error than its text.
			f.Interface = NewError(c.text(fmt.Sprint(f.Interface)), f.Interface.(error))
		case zapcore.StringerType, zapcore.ReflectType, zapcore.ArrayMarshalerType, zapcore.ObjectMarshalerType, zapcore.InlineMarshalerType:
			f = zap.String(f.Key, c.text(fmt.Sprint(f.Interface)))
		}
		cleaned[i] = f
	}
	return cleaned
}
