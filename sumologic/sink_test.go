package sumologic_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/mimiktech/cluster/sumologic"
)

func TestLinesAreSentInBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSumo(t, nil)
		sink, log, _ := start(t, f, func(c *sumologic.Config) {
			c.SourceName, c.SourceCategory, c.SourceHost, c.SourceFields = "name", "category", "host", "a=1,b=2"
		})
		began := time.Now()
		for i := range 100 {
			level := zap.InfoLevel
			if i%3 == 0 {
				level = zap.ErrorLevel // kept apart in the queue, but sent in order
			}
			log.Log(level, fmt.Sprint("line ", i), zap.Int("i", i))
			time.Sleep(5 * time.Millisecond)
		}
		time.Sleep(time.Second)
		synctest.Wait()

		requests := f.received()
		if len(requests) != 1 {
			t.Fatalf("%d requests, want 1", len(requests))
		}
		r := requests[0]
		if after := r.at.Sub(began); after != time.Second {
			t.Errorf("the batch was sent after %v, want 1s", after)
		}
		if want := "/receiver/v1/http/" + code; r.path != want {
			t.Errorf("path %q, want %q", r.path, want)
		}
		for name, want := range map[string]string{
			"Content-Encoding": "gzip", "Content-Type": "text/plain; charset=utf-8",
			"X-Sumo-Name": "name", "X-Sumo-Category": "category", "X-Sumo-Host": "host", "X-Sumo-Fields": "a=1,b=2",
		} {
			if got := r.header.Get(name); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
		if r.sent*4 > len(r.body) {
			t.Errorf("%d bytes were sent as %d", len(r.body), r.sent)
		}
		for i, text := range r.lines() {
			if got, want := decodeLine(t, text)["message"], fmt.Sprint("line ", i); got != want {
				t.Errorf("line %d has the message %q, want %q", i, got, want)
			}
		}
		if got, want := sink.Stats(), (sumologic.Stats{Sent: 100}); got != want {
			t.Errorf("stats %+v, want %+v", got, want)
		}
	})
}

func TestBatchIsClosedBySize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSumo(t, nil)
		sink, log, _ := start(t, f, nil)
		began := time.Now()
		const lines = 100
		for range lines {
			log.Info(strings.Repeat("x", 50<<10)) // 5 MB in all
		}
		synctest.Wait()
		requests := f.received()
		if len(requests) < 5 {
			t.Fatalf("%d requests without a delay, want at least 5", len(requests))
		}
		for _, r := range requests {
			if r.at != began {
				t.Errorf("a full batch was sent after %v", r.at.Sub(began))
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
		for _, r := range f.received() {
			if len(r.body) > 1<<20 {
				t.Errorf("a batch has %d bytes", len(r.body))
			}
		}
		if got, want := sink.Stats(), (sumologic.Stats{Sent: lines}); got != want {
			t.Errorf("stats %+v, want %+v", got, want)
		}
		if dialed, _ := f.connections(); dialed != 1 {
			t.Errorf("%d connections, want 1", dialed)
		}
	})
}

func TestLevelsOfTheOutputsAreIndependent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSumo(t, nil)
		_, log, console := start(t, f, func(c *sumologic.Config) {
			c.Level, c.ConsoleLevel = zap.ErrorLevel, zap.InfoLevel
		})
		if log.Core().Enabled(zap.DebugLevel) {
			t.Error("debug is enabled")
		}
		log.Debug("debug")
		log.Info("info")
		log.Error("error")
		if err := log.Sync(); err != nil {
			t.Error(err)
		}
		if got := f.lines(); len(got) != 1 || !strings.Contains(got[0], `"error"`) {
			t.Errorf("sent %q", got)
		}
		if got := strings.Count(console.String(), "\n"); got != 2 {
			t.Errorf("the console has %d lines, want 2", got)
		}
	})
}

func TestThrottledBatchIsRetried(t *testing.T) {
	for name, tc := range map[string]struct {
		status     int
		retryAfter func() string
		min, max   time.Duration
	}{
		"429 with seconds": {429, func() string { return "7" }, 7 * time.Second, 7 * time.Second},
		"503 with a date": {
			503, func() string { return time.Now().Add(7 * time.Second).UTC().Format(http.TimeFormat) },
			6 * time.Second, 7 * time.Second,
		},
		"429 without":         {429, func() string { return "" }, time.Second / 2, time.Second},
		"429 with nonsense":   {429, func() string { return "soon" }, time.Second / 2, time.Second},
		"408":                 {408, func() string { return "" }, time.Second / 2, time.Second},
		"500":                 {500, func() string { return "" }, time.Second / 2, time.Second},
		"503 for a day":       {503, func() string { return "86400" }, 2 * time.Minute, 2 * time.Minute},
		"503 with a huge one": {503, func() string { return "99999999999999999999" }, time.Second / 2, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeSumo(t, func(n int, w http.ResponseWriter, _ *http.Request) {
					if n == 1 {
						w.Header().Set("Retry-After", tc.retryAfter())
						w.WriteHeader(tc.status)
					}
				})
				sink, log, _ := start(t, f, nil)
				log.Info("line")
				time.Sleep(5 * time.Minute)
				requests := f.received()
				if len(requests) != 2 {
					t.Fatalf("%d requests, want 2", len(requests))
				}
				if pause := requests[1].at.Sub(requests[0].at); pause < tc.min || pause > tc.max {
					t.Errorf("retried after %v, want %v to %v", pause, tc.min, tc.max)
				}
				if requests[0].body != requests[1].body {
					t.Error("the retry has another body")
				}
				if got, want := sink.Stats(), (sumologic.Stats{Sent: 1, Failed: 1}); got != want {
					t.Errorf("stats %+v, want %+v", got, want)
				}
			})
		})
	}
}

func TestPausesGrowAndABatchIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSumo(t, status(503))
		sink, log, console := start(t, f, nil)
		log.Info("first")
		time.Sleep(10 * time.Minute)
		requests := f.received()
		first, last := requests[0], requests[len(requests)-1]
		if took := last.at.Sub(first.at); took != 2*time.Minute {
			t.Errorf("the batch was given up after %v, want 2m", took)
		}
		if len(requests) < 7 || len(requests) > 14 {
			t.Errorf("%d attempts in 2 minutes", len(requests))
		}
		if got := sink.Stats(); got.Lost != 1 || got.Failed != uint64(len(requests)) || got.Queued != 0 {
			t.Errorf("stats %+v after %d requests", got, len(requests))
		}
		// At once, after one minute, after two, and what those did not contain yet, if anything.
		if n := strings.Count(console.String(), "\n"); n != 3 && n != 4 {
			t.Errorf("%d reports, want 3 or 4:\n%s", n, console)
		}

		f.change(nil)
		log.Info("second")
		time.Sleep(2 * time.Second)
		lines := f.received()[len(requests)].lines()
		if len(lines) != 2 || decodeLine(t, lines[1])["message"] != "1 lines dropped" {
			t.Errorf("the loss was not sent: %q", lines)
		}
	})
}

// TestHangingSinkBlocksNothing logs as much as the npm module was seen to open 200 connections for.
func TestHangingSinkBlocksNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSumo(t, hang)
		sink, log, console := start(t, f, nil)
		began := time.Now()
		for i := range 200 {
			log.Info("line", zap.Int("i", i))
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("logging took %v", took)
		}
		time.Sleep(9 * time.Second)
		if dialed, _ := f.connections(); dialed != 1 {
			t.Errorf("%d connections, want 1", dialed)
		}
		began = time.Now()
		for range 200 {
			log.Info("another line")
			time.Sleep(time.Second)
		}
		if took := time.Since(began); took != 200*time.Second {
			t.Errorf("logging took %v", took-200*time.Second)
		}
		if _, maxOpen := f.connections(); maxOpen != 1 {
			t.Errorf("%d connections were open at once, want 1", maxOpen)
		}
		if !strings.Contains(console.String(), "no response within 10s") {
			t.Errorf("no report: %s", console)
		}

		began = time.Now()
		err := sink.Close()
		if took := time.Since(began); took != 2*time.Second {
			t.Errorf("Close took %v, want 2s", took)
		}
		if err == nil || !strings.Contains(err.Error(), "not sent yet") {
			t.Errorf("Close returned %v", err)
		}
		if got := sink.Stats(); got.Queued != 0 || got.Lost != 400 {
			t.Errorf("stats %+v", got)
		}
	})
}

func TestFatalResponses(t *testing.T) {
	huge := strings.Repeat("x", 10<<20)
	for name, tc := range map[string]struct {
		respond func(int, http.ResponseWriter, *http.Request)
		cause   string
	}{
		"401": {status(401), "status 401: invalid collector code"},
		"404": {status(404), "status 404: invalid endpoint"},
		"400": {status(400), "status 400"},
		"redirect": {func(_ int, w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://elsewhere.test"+r.URL.Path, http.StatusTemporaryRedirect)
		}, "status 307: a redirect, which is not followed"},
		"HTML": {func(_ int, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			_, _ = fmt.Fprintf(w, "<html>%s</html>", r.URL)
		}, "it is HTML"},
		"10 MB": {func(_ int, w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(huge))
		}, "it is too large"},
		"10 MB of error": {func(_ int, w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte(huge))
		}, "status 403"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeSumo(t, tc.respond)
				sink, log, console := start(t, f, nil)
				log.Info("line")
				time.Sleep(30 * time.Second)
				if n := len(f.received()); n != 1 {
					t.Errorf("%d requests for one batch, want 1", n)
				}
				const minutes = 10
				for range minutes * 60 {
					log.Info("line")
					time.Sleep(time.Second)
				}
				if n := len(f.received()); n < 2*minutes || n > 5*minutes {
					t.Errorf("%d requests in %d minutes", n, minutes)
				}
				for _, r := range f.received() {
					if want := "/receiver/v1/http/" + code; r.path != want {
						t.Errorf("a request to %q", r.path)
					}
				}
				if got := sink.Stats(); got.Sent != 0 || got.Failed != uint64(len(f.received())) || got.Lost == 0 {
					t.Errorf("stats %+v", got)
				}
				if n := strings.Count(console.String(), "\n"); n < minutes || n > minutes+1 {
					t.Errorf("%d reports in %d minutes:\n%s", n, minutes, console)
				}
				for text := range strings.Lines(console.String()) {
					metadata := decodeLine(t, text)["metadata"].(map[string]any)
					if !strings.Contains(metadata["cause"].(string), tc.cause) || metadata["host"] != "collectors.test" {
						t.Errorf("report %s, want the cause %q", text, tc.cause)
					}
				}
			})
		})
	}
}

func TestFullQueueDropsTheOldestLinesBelowError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSumo(t, hang)
		sink, log, console := start(t, f, nil)
		log.Info("in flight")
		time.Sleep(2 * time.Second)
		for i := range 1000 {
			log.Error("kept", zap.Int("i", i))
		}
		for i := range 12_000 {
			log.Info("line", zap.Int("i", i))
		}
		if got := sink.Stats(); got.Queued != 10_001 || got.Lost != 3000 {
			t.Errorf("stats %+v, want 10001 queued and 3000 lost", got)
		}
		f.change(nil)
		time.Sleep(time.Minute)
		lines := f.lines()
		errors, next, notices := 0, 3000, 0
		for _, text := range lines {
			switch l := decodeLine(t, text); l["message"] {
			case "kept":
				errors++
			case "line":
				if i := l["metadata"].(map[string]any)["i"]; i != float64(next) {
					t.Fatalf("line %v, want %d", i, next)
				}
				next++
			case "3000 lines dropped":
				notices++
				if l["level"] != "warn" || l["metadata"].(map[string]any)["dropped"] != 3000.0 {
					t.Errorf("notice %s", text)
				}
			case "in flight":
			default:
				t.Errorf("unexpected line %s", text)
			}
		}
		if errors != 1000 || next != 12_000 || notices != 1 {
			t.Errorf("%d errors, lines up to %d, %d notices", errors, next, notices)
		}
		if got, want := sink.Stats(), (sumologic.Stats{Sent: 10_001, Lost: 3000, Failed: 1}); got != want {
			t.Errorf("stats %+v, want %+v", got, want)
		}
		if !strings.Contains(console.String(), `"lostLines":3000`) {
			t.Error("the loss was not reported on the console")
		}
	})
}

func TestQueueIsLimitedInBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSumo(t, hang)
		sink, log, _ := start(t, f, nil)
		log.Info("in flight")
		time.Sleep(2 * time.Second)
		text := strings.Repeat("x", 16<<10)
		for range 1000 {
			log.Error(text) // 16 MB, and only errors
		}
		got := sink.Stats()
		if got.Queued < 300 || got.Queued > 512 || got.Queued+int(got.Lost) != 1001 {
			t.Errorf("stats %+v after 1001 lines", got)
		}
	})
}

func TestSyncSendsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSumo(t, nil)
		_, log, _ := start(t, f, nil)
		for range 3 {
			began := time.Now()
			log.Info("line")
			if err := log.Sync(); err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took != 0 {
				t.Errorf("Sync took %v", took)
			}
		}
		if n := len(f.received()); n != 3 {
			t.Errorf("%d requests, want 3", n)
		}
	})
}

func TestSyncReportsLostLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSumo(t, status(401))
		_, log, _ := start(t, f, nil)
		log.Info("line")
		if err := log.Sync(); err == nil || err.Error() != "sumologic: 1 lines lost" {
			t.Errorf("Sync returned %v", err)
		}
	})
}

func TestFlushEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSumo(t, hang)
		sink, log, _ := start(t, f, nil)
		log.Info("line")
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		err := sink.Flush(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "1 lines not sent yet") {
			t.Errorf("Flush returned %v", err)
		}
	})
}

// TestCloseEndsAPause closes a sink that waits for the next attempt.
func TestCloseEndsAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSumo(t, func(n int, w http.ResponseWriter, _ *http.Request) {
			if n == 1 {
				w.Header().Set("Retry-After", "60")
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		})
		sink, log, _ := start(t, f, nil)
		log.Info("in the batch")
		time.Sleep(10 * time.Second)
		log.Info("in the queue")
		began := time.Now()
		if err := sink.Close(); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("Close took %v", took)
		}
		if got, want := sink.Stats(), (sumologic.Stats{Sent: 2, Failed: 1}); got != want {
			t.Errorf("stats %+v, want %+v", got, want)
		}
	})
}

// TestCloseWhileLinesAreLogged counts every line once, whatever became of it.
func TestCloseWhileLinesAreLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSumo(t, func(_ int, _ http.ResponseWriter, _ *http.Request) { time.Sleep(50 * time.Millisecond) })
		sink, log, _ := start(t, f, func(c *sumologic.Config) { c.ExitDelay = 300 * time.Millisecond })
		var wg sync.WaitGroup
		const loggers, lines = 8, 500
		for range loggers {
			wg.Go(func() {
				for range lines {
					log.Info("line")
					time.Sleep(time.Millisecond)
				}
			})
		}
		time.Sleep(200 * time.Millisecond)
		err := sink.Close()
		if again := sink.Close(); !errors.Is(again, err) {
			t.Errorf("the second Close returned %v, the first %v", again, err)
		}
		wg.Wait()
		got := sink.Stats()
		if got.Queued != 0 || got.Sent+got.Lost != loggers*lines || got.Sent < 200*loggers || got.Lost == 0 {
			t.Errorf("stats %+v after %d lines", got, loggers*lines)
		}
		// A batch whose response Close did not wait for counts as lost.
		if received := uint64(len(f.lines())); received < got.Sent {
			t.Errorf("%d lines received, %d counted", received, got.Sent)
		}
	})
}

func TestLastLineOfAFatalProcessIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSumo(t, nil)
		sink, _, _ := start(t, f, nil)
		sent := -1
		log := sink.Logger(zap.WithFatalHook(hook(func() { sent = len(f.lines()) })))
		log.Fatal("the end")
		if sent != 1 {
			t.Errorf("%d lines were sent when the process ended, want 1", sent)
		}
	})
}

type hook func()

func (h hook) OnWrite(*zapcore.CheckedEntry, []zapcore.Field) { h() }

// TestTransportErrorsHideTheCode fails in ways that quote the URL.
func TestTransportErrorsHideTheCode(t *testing.T) {
	for name, err := range map[string]error{
		"plain":   fmt.Errorf("POST %s%s: refused", endpoint, code),
		"url":     &url.Error{Op: "Post", URL: endpoint + code, Err: errors.New("refused")},
		"nested":  &url.Error{Op: "Post", URL: "x", Err: &url.Error{Op: "Post", URL: endpoint + code, Err: errors.New("refused")}},
		"escaped": fmt.Errorf("refused %s %s", url.QueryEscape(code), url.PathEscape(code)),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sink, log, console := start(t, nil, func(c *sumologic.Config) {
					c.Transport = roundTripper(func(*http.Request) (*http.Response, error) { return nil, err })
				})
				log.Info("line")
				syncErr := log.Sync()
				closeErr := sink.Close()
				out := fmt.Sprint(console.String(), syncErr, closeErr)
				if !strings.Contains(out, "refused") {
					t.Errorf("no report: %s", out)
				}
				if urlError := new(url.Error); errors.As(err, &urlError) && strings.Contains(out, "/receiver/") {
					t.Errorf("the URL is shown: %s", out)
				}
				for _, form := range []string{code, url.QueryEscape(code), url.PathEscape(code)} {
					if strings.Contains(out, form) {
						t.Errorf("the code is shown: %s", out)
					}
				}
			})
		})
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestCodeIsMaskedInLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSumo(t, nil)
		_, log, console := start(t, f, func(c *sumologic.Config) { c.ConsoleLevel = nil })
		log.Info("sending to "+endpoint+code, zap.String("url", endpoint+code), zap.Any("headers", map[string]string{"x": code}))
		if err := log.Sync(); err != nil {
			t.Error(err)
		}
		for _, out := range []string{console.String(), f.received()[0].body} {
			if strings.Contains(out, code) || !strings.Contains(out, endpoint+"-------") {
				t.Errorf("got %s", out)
			}
		}
	})
}

func TestWithoutEndpointLinesGoToTheConsoleOnly(t *testing.T) {
	var console output
	sink, err := sumologic.New(sumologic.Config{Console: &console})
	if err != nil {
		t.Fatal(err)
	}
	log := sink.Logger()
	log.Debug("line")
	if err := errors.Join(log.Sync(), sink.Close(), sink.Close()); err != nil {
		t.Error(err)
	}
	log.Info("after Close")
	if n := strings.Count(console.String(), "\n"); n != 2 {
		t.Errorf("%d lines, want 2", n)
	}
	if got := sink.Stats(); got != (sumologic.Stats{}) {
		t.Errorf("stats %+v", got)
	}
}

// TestOwnTransport sends over a real connection, which all batches share.
func TestOwnTransport(t *testing.T) {
	f := &fakeSumo{}
	var conns atomic.Int32
	server := httptest.NewUnstartedServer(f)
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	sink, log, _ := start(t, nil, func(c *sumologic.Config) { c.Endpoint = server.URL + "/" })
	for range 3 {
		log.Info("line")
		if err := log.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	if err := sink.Close(); err != nil {
		t.Error(err)
	}
	if n := len(f.received()); n != 3 || conns.Load() != 1 {
		t.Errorf("%d requests on %d connections, want 3 on 1", n, conns.Load())
	}
}
