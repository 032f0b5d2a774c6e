package sumologic

import (
	"fmt"
	"reflect"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// core renders entries as lines of its sink.
type core struct {
	sink          *Sink
	encoder       zapcore.Encoder // holds the metadata of With
	correlationID string          // of With
	nested        bool            // With has opened a namespace: further fields are inside it
	hasMessage    bool            // With has a field named message
}

func newMetadataEncoder() zapcore.Encoder {
	return zapcore.NewJSONEncoder(zapcore.EncoderConfig{
		SkipLineEnding: true,
		EncodeTime:     func(t time.Time, enc zapcore.PrimitiveArrayEncoder) { enc.AppendString(t.UTC().Format(timeLayout)) },
		EncodeDuration: zapcore.StringDurationEncoder,
	})
}

func (c *core) Enabled(level zapcore.Level) bool {
	cfg := &c.sink.cfg
	return cfg.ConsoleLevel.Enabled(level) || cfg.remote() && cfg.Level.Enabled(level)
}

func (c *core) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(entry.Level) {
		return checked.AddCore(entry, c)
	}
	return checked
}

func (c *core) With(fields []zapcore.Field) zapcore.Core {
	clone := *c
	clone.encoder = c.encoder.Clone()
	for _, f := range clone.take(nil, fields) {
		f.AddTo(clone.encoder)
	}
	return &clone
}

// Write also flushes entries that may end the process.
func (c *core) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	s := newScratch()
	defer s.free()
	if err := c.render(s, entry, fields); err != nil {
		return err
	}
	err := c.sink.write(entry.Level, s.line)
	if entry.Level >= zapcore.PanicLevel {
		_ = c.Sync() // the line itself has been written
	}
	return err
}

func (c *core) Sync() error { return c.sink.Sync() }

const correlationKey = "correlationId"

// take appends to dst the fields that belong into metadata, and keeps in c what it finds out about
// the others.
func (c *core) take(dst, fields []zapcore.Field) []zapcore.Field {
	for _, f := range fields {
		if !c.nested {
			switch {
			case f.Type == zapcore.NamespaceType:
				c.nested = true
			case f.Key == correlationKey && f.Type == zapcore.StringType:
				c.correlationID = f.String
				continue
			case f.Key == messageKey:
				c.hasMessage = true
			}
		}
		if err, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
			f = zap.Object(f.Key, errorObject{err})
		}
		dst = append(dst, f)
	}
	return dst
}

// render writes the line of an entry to s.
func (c *core) render(s *scratch, entry zapcore.Entry, fields []zapcore.Field) error {
	view := *c // take must not change c
	s.fields = s.fields[:0]
	if entry.LoggerName != "" {
		s.fields = append(s.fields, zap.String("logger", entry.LoggerName))
	}
	s.fields = view.take(s.fields, fields)
	buf, err := c.encoder.EncodeEntry(zapcore.Entry{}, s.fields)
	if err != nil {
		return err
	}
	defer buf.Free()

	l := line{entry: entry, metadata: buf.Bytes(), correlationID: view.correlationID, suffix: c.sink.suffix}
	if view.hasMessage || c.sink.masks.mayMatch(l.metadata) {
		l.revise(c.sink.masks)
	}
	s.line = c.sink.redactCode(l.append(s.line[:0]))
	return nil
}

// errorObject encodes an error as the npm module encodes an Error: an object with its message.
type errorObject struct{ err error }

// MarshalLogObject implements [zapcore.ObjectMarshaler].
func (e errorObject) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	text, verbose := e.texts()
	enc.AddString(messageKey, text)
	if verbose != "" && verbose != text {
		enc.AddString("stack", verbose)
	}
	return nil
}

// texts returns the error's message and, for an error with a format of its own, its %+v form,
// which has a stack trace in it. An error that panics does not end the caller.
func (e errorObject) texts() (text, verbose string) {
	defer func() {
		if r := recover(); r == nil {
			return
		} else if v := reflect.ValueOf(e.err); v.Kind() == reflect.Pointer && v.IsNil() {
			text, verbose = "<nil>", ""
		} else {
			text, verbose = fmt.Sprintf("error that panicked: %v", r), ""
		}
	}()
	text = e.err.Error()
	if _, ok := e.err.(fmt.Formatter); ok {
		verbose = fmt.Sprintf("%+v", e.err)
	}
	return text, verbose
}

// scratch is the memory that rendering one line needs. It is reused.
type scratch struct {
	line   []byte
	fields []zapcore.Field
}

//nolint:gochecknoglobals // memory that is reused has to outlive the call
var scratches = sync.Pool{New: func() any { return &scratch{} }}

func newScratch() *scratch { return scratches.Get().(*scratch) }

const maxReused = 64 << 10

func (s *scratch) free() {
	clear(s.fields) // they refer to the caller's values
	if cap(s.line) <= maxReused {
		scratches.Put(s)
	}
}
