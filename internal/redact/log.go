package redact

import (
	"fmt"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Log returns a logger like log that passes every text in a line through text, except for messages,
// which are constant, and byte strings, which are stacks.
func Log(log *zap.Logger, text func(string) string) *zap.Logger {
	return log.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core { return &core{c, text} }))
}

type core struct {
	zapcore.Core
	text func(string) string
}

// With implements zapcore.Core.
func (c *core) With(fields []zapcore.Field) zapcore.Core {
	return &core{c.Core.With(c.clean(fields)), c.text}
}

// Check implements zapcore.Core. A core may drop a line here, so that each line has a core of its
// own to be written with.
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
