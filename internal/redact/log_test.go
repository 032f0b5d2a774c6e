package redact

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

func TestLog(t *testing.T) {
	observed, lines := observer.New(zap.InfoLevel)
	log := Log(zap.New(observed), func(text string) string { return Text(text, secret) }).With(zap.String("own", "own "+secret))
	log.Debug("not enabled", zap.String("a", secret))
	log.Info("line", zap.String("text", "text\x7f"+secret), zap.Error(errors.New("error "+secret)), zap.Any("any", []string{"any " + secret}), zap.Any("plain", []int{1}),
		zap.Stringer("address", netip.IPv6Loopback()), zap.Duration("duration", time.Second), zap.Error(nil))
	if lines.Len() != 1 {
		t.Fatalf("%d lines", lines.Len())
	}
	want := map[string]any{
		"own": "own " + Mark, "text": "text " + Mark, "error": "error " + Mark, "any": "[any " + Mark + "]",
		"address": "::1", "duration": time.Second, "plain": "[1]",
	}
	got := lines.All()[0].ContextMap()
	if len(got) != len(want) {
		t.Errorf("fields %v, want %v", got, want)
	}
	for name, value := range want {
		if fmt.Sprint(got[name]) != fmt.Sprint(value) {
			t.Errorf("%s is %v, want %v", name, got[name], value)
		}
	}
}

// verbose is an error, and a value of other fields, that shows more in its other forms.
type verbose struct{ Field string }

func (verbose) Error() string { return "short" }

func (v verbose) Format(s fmt.State, _ rune) {
	if s.Flag('+') {
		_, _ = fmt.Fprint(s, v.Field)
		return
	}
	_, _ = fmt.Fprint(s, "short")
}

func (v verbose) MarshalLogObject(e zapcore.ObjectEncoder) error {
	e.AddString("field", v.Field)
	return nil
}

func (v verbose) MarshalLogArray(e zapcore.ArrayEncoder) error {
	e.AppendString(v.Field)
	return nil
}

// Encoders print errors and objects in several forms. An error is still found by errors.As.
func TestLogOfOtherForms(t *testing.T) {
	var out bytes.Buffer
	encoder := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
	observed, lines := observer.New(zap.InfoLevel)
	core := zapcore.NewTee(zapcore.NewCore(encoder, zapcore.AddSync(&out), zap.InfoLevel), observed)
	v := verbose{secret}
	Log(zap.New(core), func(text string) string { return Text(text, secret) }).
		Info("line", zap.Error(v), zap.Reflect("reflect", v), zap.Object("object", v), zap.Array("array", v), zap.Inline(v),
			zap.Error(fmt.Errorf("wrapped: %w", v)))
	if text := out.String(); NewSecrets(secret).In(text) || strings.Count(text, "short") < 5 {
		t.Error(text)
	}
	logged, _ := lines.All()[0].Context[0].Interface.(error)
	if got, ok := errors.AsType[verbose](logged); !ok || got != v {
		t.Errorf("the error is %T", logged)
	}
}

// A core that drops lines, such as a sampler, still does.
func TestLogIsSampled(t *testing.T) {
	observed, lines := observer.New(zap.InfoLevel)
	log := Log(zap.New(zapcore.NewSamplerWithOptions(observed, time.Hour, 2, 0)), strings.ToUpper)
	for range 10 {
		log.Info("line", zap.String("a", "b"))
	}
	if lines.Len() != 2 || lines.All()[0].ContextMap()["a"] != "B" {
		t.Errorf("lines %v, want 2", lines.All())
	}
}
