package redact

import (
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
