package sumologic

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	batchDelay     = time.Second // from the first line of a batch
	attemptTimeout = 10 * time.Second
	firstPause     = time.Second
	maxPause       = 30 * time.Second
	maxElapsed     = 2 * time.Minute // of all attempts to send a batch
	reportInterval = time.Minute
	maxResponse    = 64 << 10
)

// sender sends the lines of a queue. Only its goroutine uses it.
type sender struct {
	sink     *Sink
	url      string // contains the code
	header   http.Header
	client   *http.Client
	zip      *gzip.Writer
	failures int // in a row

	announced uint64 // lost lines that a sent line has told of

	cause          string           // of the latest failure that is not reported yet
	reportDue      <-chan time.Time // nil if nothing waits to be reported
	reportedAt     time.Time
	reportedLost   uint64
	reportedFailed uint64
}

func newSender(s *Sink) *sender {
	h := http.Header{}
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Content-Encoding", "gzip")
	h.Set("User-Agent", "mimik-sumologic")
	for _, source := range s.cfg.sourceHeaders() {
		if source.value != "" {
			h.Set(source.name, source.value)
		}
	}
	transport := s.cfg.Transport
	if transport == nil {
		transport = ownTransport()
	}
	return &sender{
		sink:   s,
		url:    s.cfg.Endpoint + string(s.cfg.Code),
		header: h,
		client: &http.Client{
			Transport: transport,
			// The Location of a redirect would receive the code.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		zip: gzip.NewWriter(io.Discard),
	}
}

func ownTransport() http.RoundTripper {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		ForceAttemptHTTP2:      true,
		MaxConnsPerHost:        1,
		IdleConnTimeout:        time.Minute,
		TLSHandshakeTimeout:    attemptTimeout,
		MaxResponseHeaderBytes: maxResponse,
	}
}

// run sends batches until ctx ends.
func (s *sender) run(ctx context.Context) {
	defer s.client.CloseIdleConnections()
	for s.waitForBatch(ctx) {
		s.deliver(ctx, s.sink.queue.take())
	}
	s.sink.queue.abandon()
	s.reportedAt = time.Time{} // there is no later report
	s.report()
}

// waitForBatch blocks until there are enough lines, or old enough ones. It returns false if ctx has
// ended.
func (s *sender) waitForBatch(ctx context.Context) bool {
	q := s.sink.queue
	var due <-chan time.Time
	for {
		filled, now := q.state()
		if ctx.Err() != nil || filled && now {
			return ctx.Err() == nil
		}
		if filled && due == nil {
			due = time.After(batchDelay)
		}
		select {
		case <-due:
			return true
		case <-q.wake:
		case <-q.hurry:
		case <-s.reportDue:
			s.report()
		case <-ctx.Done():
		}
	}
}

// deliver sends a batch. It retries for at most maxElapsed, and then gives the batch up.
func (s *sender) deliver(ctx context.Context, batch []queuedLine) {
	body, announced := s.body(batch)
	deadline := time.Now().Add(maxElapsed)
	for {
		out := s.post(ctx, body)
		if out.accepted {
			s.failures = 0
			s.announced = announced
			s.sink.queue.finish(true)
			s.report()
			return
		}
		s.failures++
		s.sink.queue.countFailure()
		giveUp := !out.retry || !time.Now().Before(deadline) || ctx.Err() != nil
		if giveUp {
			s.sink.queue.finish(false)
		}
		s.cause = out.cause
		s.report()
		pause := backoff(s.failures)
		if !giveUp {
			pause = min(max(pause, out.retryAfter), time.Until(deadline))
		}
		s.pause(ctx, pause)
		if giveUp {
			return
		}
	}
}

// pause sleeps. A flush or the end of ctx ends it early.
func (s *sender) pause(ctx context.Context, d time.Duration) {
	over := time.After(d)
	for {
		select {
		case <-over:
			return
		case <-s.sink.queue.hurry:
			return
		case <-ctx.Done():
			return
		case <-s.reportDue:
			s.report()
		}
	}
}

// backoff returns the pause after a number of failures: between half and all of a time that
// doubles.
func backoff(failures int) time.Duration {
	d := maxPause
	if n := failures - 1; n < 5 {
		d = firstPause << n
	}
	return d/2 + rand.N(d/2+1)
}

// body returns the compressed lines, and how many lost lines they tell of.
func (s *sender) body(batch []queuedLine) (body []byte, announced uint64) {
	var buf bytes.Buffer
	s.zip.Reset(&buf)
	for _, l := range batch {
		_, _ = s.zip.Write(l.data) // a bytes.Buffer does not fail
		_, _ = s.zip.Write([]byte{'\n'})
	}
	lost := s.sink.queue.stats().Lost
	if n := lost - s.announced; n > 0 {
		text := fmt.Sprintf("%d lines dropped", n)
		_, _ = s.zip.Write(append(s.sink.own(text, zap.Uint64("dropped", n)), '\n'))
	}
	_ = s.zip.Close()
	return buf.Bytes(), lost
}

// outcome is what happened to a request.
type outcome struct {
	accepted   bool
	retry      bool
	retryAfter time.Duration
	cause      string // of a failure, without the code
}

func (s *sender) post(ctx context.Context, body []byte) outcome {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(body))
	if err != nil {
		return outcome{cause: "invalid request"} // the endpoint and the code have been checked
	}
	req.Header = s.header.Clone()
	resp, err := s.client.Do(req)
	if err != nil {
		return outcome{retry: true, cause: s.describe(err)}
	}
	defer resp.Body.Close()
	// Reading a short body lets the connection be used again.
	n, _ := io.Copy(io.Discard, io.LimitReader(resp.Body, maxResponse+1))
	return judge(resp, n > maxResponse)
}

// judge decides what a response means. Its body is not shown: it could repeat the URL.
func judge(resp *http.Response, tooLarge bool) outcome {
	switch code := resp.StatusCode; {
	case code >= 200 && code < 300 && tooLarge:
		return outcome{cause: fmt.Sprintf("status %d with a body that Sumo Logic does not send: it is too large", code)}
	case code >= 200 && code < 300 && isHTML(resp):
		return outcome{cause: fmt.Sprintf("status %d with a body that Sumo Logic does not send: it is HTML", code)}
	case code >= 200 && code < 300:
		return outcome{accepted: true}
	case code == http.StatusUnauthorized:
		return outcome{cause: "status 401: invalid collector code"}
	case code == http.StatusNotFound:
		return outcome{cause: "status 404: invalid endpoint"}
	case code >= 300 && code < 400:
		return outcome{cause: fmt.Sprintf("status %d: a redirect, which is not followed", code)}
	case code == http.StatusRequestTimeout || code == http.StatusTooManyRequests || code >= 500:
		return outcome{retry: true, retryAfter: retryAfter(resp), cause: fmt.Sprintf("status %d", code)}
	default:
		return outcome{cause: fmt.Sprintf("status %d", code)}
	}
}

func isHTML(resp *http.Response) bool {
	mediaType, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	return mediaType == "text/html"
}

// retryAfter reads the header of that name: seconds, or a date.
func retryAfter(resp *http.Response) time.Duration {
	v := resp.Header.Get("Retry-After")
	if n, err := strconv.Atoi(v); err == nil {
		return time.Duration(min(max(n, 0), int(maxElapsed/time.Second))) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return min(max(time.Until(t), 0), maxElapsed)
	}
	return 0
}

// describe returns the text of a transport error without the URL, of which the code is a part.
func (s *sender) describe(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("no response within %v", attemptTimeout)
	}
	for ue, ok := errors.AsType[*url.Error](err); ok && ue.Err != nil; ue, ok = errors.AsType[*url.Error](err) {
		err = ue.Err
	}
	code := string(s.sink.cfg.Code)
	return strings.NewReplacer(code, redacted, url.QueryEscape(code), redacted, url.PathEscape(code), redacted).
		Replace(err.Error())
}

// report writes a warning to the console if there are new failures or losses. If the last warning
// is not a minute old, the report becomes due then.
func (s *sender) report() {
	stats := s.sink.queue.stats()
	failed, lost := stats.Failed-s.reportedFailed, stats.Lost-s.reportedLost
	if failed+lost == 0 {
		return
	}
	if wait := time.Until(s.reportedAt.Add(reportInterval)); wait > 0 {
		if s.reportDue == nil {
			s.reportDue = time.After(wait)
		}
		return
	}
	fields := []zap.Field{
		zap.String("host", s.sink.host), zap.String("cause", cmp.Or(s.cause, "the queue is full")),
		zap.Uint64("failedRequests", failed), zap.Uint64("lostLines", lost),
	}
	s.cause, s.reportDue = "", nil
	s.reportedAt, s.reportedFailed, s.reportedLost = time.Now(), stats.Failed, stats.Lost
	if s.sink.cfg.ConsoleLevel.Enabled(zapcore.WarnLevel) {
		line := s.sink.own("could not send log lines to Sumo Logic", fields...)
		_, _ = s.sink.console.Write(append(line, '\n')) // there is no other place to report to
	}
}
