package sumologic_test

import (
	"bytes"
	"io"
	"net/http"
	"slices"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/mimiktech/cluster/sumologic"
)

// accepting accepts every request.
func accepting(r *http.Request) (*http.Response, error) {
	_, err := io.Copy(io.Discard, r.Body)
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(&bytes.Buffer{}), Request: r}, err
}

// loggers returns zap's JSON core, which the cost of a line is compared with, and sinks that differ
// in their outputs.
func loggers(tb testing.TB) map[string]*zap.Logger {
	tb.Helper()
	none := zapcore.InvalidLevel
	discard := zapcore.AddSync(io.Discard)
	sink := func(cfg sumologic.Config) *zap.Logger {
		cfg.Console, cfg.Endpoint, cfg.Code, cfg.Transport = discard, endpoint, code, roundTripper(accepting)
		s, err := sumologic.New(cfg)
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { _ = s.Close() }) // lines may be pending
		return s.Logger()
	}
	return map[string]*zap.Logger{
		"zap":       zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), discard, zap.DebugLevel), zap.AddCaller()),
		"console":   sink(sumologic.Config{Level: none}),
		"sumologic": sink(sumologic.Config{ConsoleLevel: none}),
		"both":      sink(sumologic.Config{}),
		"masked":    sink(sumologic.Config{Mask: []string{"$.password", "$..secret", "$..token"}}),
	}
}

func logLine(log *zap.Logger) {
	log.Info("registered", zap.String("correlationId", "11111111-2222-4333-8444-555555555555@3/2026-11-25T20:51:08.971Z"),
		zap.String("registry", "https://mit.example.com/mIT/v1"), zap.Int("servers", 12), zap.Duration("lease", 2*time.Hour),
		zap.Bool("management", true))
}

// BenchmarkLine measures what a line costs its caller. The loggers take turns, so that the noise of
// the machine is the same for each. The median of zap's JSON core is reported, and the differences
// of the others to it.
func BenchmarkLine(b *testing.B) {
	const round = 100
	logs := loggers(b)
	took := map[string][]float64{}
	for b.Loop() {
		for name, log := range logs {
			began := time.Now()
			for range round {
				logLine(log)
			}
			took[name] = append(took[name], float64(time.Since(began).Nanoseconds())/round)
			if err := log.Sync(); err != nil { // sending is not part of the caller's cost
				b.Fatal(err)
			}
		}
	}
	median := func(name string) float64 {
		slices.Sort(took[name])
		return took[name][len(took[name])/2]
	}
	b.ReportMetric(0, "ns/op") // of all loggers together
	zapCost := median("zap")
	b.ReportMetric(zapCost, "zap-ns/line")
	for name := range took {
		if name != "zap" {
			b.ReportMetric(median(name)-zapCost, name+"-extra-ns/line")
		}
	}
}

// TestAllocationsOfALine compares with zap's JSON core.
func TestAllocationsOfALine(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector drops pooled memory")
	}
	allocs := map[string]float64{}
	for name, log := range loggers(t) {
		allocs[name] = testing.AllocsPerRun(2000, func() { logLine(log) })
	}
	t.Log(allocs)
	for name, n := range allocs {
		if extra := n - allocs["zap"]; extra > 3 {
			t.Errorf("%s allocates %v times per line more than zap's JSON core", name, extra)
		}
	}
}
