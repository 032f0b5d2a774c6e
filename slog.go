package cluster

import (
	"context"
	"log/slog"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// WithSlog is like [WithLogger], for a logger of log/slog. The handler of l gets the context of the
// operation that a line belongs to, with the values of the caller's context. Of several WithSlog
// and WithLogger options, the last one applies.
func WithSlog(l *slog.Logger) Option {
	if l == nil {
		return WithLogger(nil)
	}
	return WithLogger(zap.New(slogCore{l.Handler()}))
}

// A slogCore passes the lines of a zap.Logger to a slog.Handler.
type slogCore struct{ handler slog.Handler }

// Enabled implements zapcore.LevelEnabler. It accepts all lines. Write has the context, and a
// handler may enable a level for some contexts only.
func (slogCore) Enabled(zapcore.Level) bool { return true }

// With implements zapcore.Core.
func (c slogCore) With(fields []zapcore.Field) zapcore.Core {
	attrs, _ := slogAttrs(fields)
	return slogCore{c.handler.WithAttrs(attrs)}
}

// Check implements zapcore.Core.
func (c slogCore) Check(e zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	return checked.AddCore(e, c)
}

// Write implements zapcore.Core.
func (c slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	attrs, ctx := slogAttrs(fields)
	level := slogLevel(e.Level)
	if !c.handler.Enabled(ctx, level) {
		return nil
	}
	r := slog.NewRecord(e.Time, level, e.Message, 0)
	r.AddAttrs(attrs...)
	return c.handler.Handle(ctx, r)
}

// Sync implements zapcore.Core.
func (slogCore) Sync() error { return nil }

func slogLevel(level zapcore.Level) slog.Level {
	switch {
	case level <= zapcore.DebugLevel:
		return slog.LevelDebug
	case level == zapcore.InfoLevel:
		return slog.LevelInfo
	case level == zapcore.WarnLevel:
		return slog.LevelWarn
	}
	return slog.LevelError
}

// slogAttrs converts fields. It also returns the context that one of them carries (see
// correlationField).
func slogAttrs(fields []zapcore.Field) ([]slog.Attr, context.Context) {
	ctx := context.Background()
	attrs := make([]slog.Attr, 0, len(fields))
	for _, f := range fields {
		if carried, ok := f.Interface.(context.Context); ok && f.Type == zapcore.StringType {
			ctx = carried
		}
		if f.Type == zapcore.ErrorType {
			attrs = append(attrs, slog.Any(f.Key, f.Interface))
			continue
		}
		values := zapcore.NewMapObjectEncoder()
		f.AddTo(values)
		for key, value := range values.Fields {
			attrs = append(attrs, slog.Any(key, value))
		}
	}
	return attrs, ctx
}
