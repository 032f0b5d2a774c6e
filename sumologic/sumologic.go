// Package sumologic sends the log lines of a service to Sumo Logic. It reads the variables, and
// writes the JSON, of the npm module @mimik/sumologic-winston-logger, so that services in both
// languages share their configuration and their Sumo Logic queries.
//
//	cfg, err := sumologic.ConfigFromEnv(nil)
//	if err != nil {
//		return err
//	}
//	sink, err := sumologic.New(cfg)
//	if err != nil {
//		return err
//	}
//	defer sink.Close()
//	log := sink.Logger()
//
// Every line is written to the console by the goroutine that logs it. If LOG_MODE is sumologic,
// it is also put into a bounded queue, which one goroutine sends in compressed batches over one
// connection. Logging never waits for Sumo Logic. If the queue is full, the oldest lines below
// error are dropped; the number of lost lines is sent as a line of its own, and failures are
// reported on the console at most once a minute.
//
// A line is one JSON object:
//
//	{"correlationId":"5a…","level":"info","message":"registered","metadata":{"servers":3},
//	 "requestedAt":"2026-11-25T20:51:08.971Z","step":0,"timestamp":"2026-11-25T20:51:08.990Z",
//	 "serverType":"mds","serverId":"node-1@clients"}
//
// The fields of the entry are in metadata, except for a string field named correlationId: it has
// the form id@step/date and is split into correlationId, step and requestedAt. Entries at error
// or above, and entries with a stack trace, have stackInfo. As in the npm module, a string field
// named message is appended to the message.
package sumologic

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// A Sink writes log lines to the console and sends them to Sumo Logic. Its methods are safe for
// concurrent use.
type Sink struct {
	cfg     Config // read-only after New
	host    string // of the endpoint, "" without one
	suffix  string // `,"serverType":…,"serverId":…}`, the end of every line
	masks   masks
	console zapcore.WriteSyncer
	queue   *queue

	cancel    context.CancelFunc // ends the sender
	stopped   chan struct{}      // closed when the sender has ended
	closeOnce sync.Once
	closeErr  error
}

// Stats counts lines and requests since [New].
type Stats struct {
	Queued int    // lines that wait in the queue or are being sent
	Sent   uint64 // lines that Sumo Logic accepted
	Lost   uint64 // lines dropped from a full queue, refused, given up, or logged after Close
	Failed uint64 // requests that were not accepted, including those that were retried
}

// New checks cfg and returns a sink. It does no I/O. If cfg has an endpoint, a goroutine sends
// lines until [Sink.Close].
func New(cfg Config) (*Sink, error) {
	masks, problems := cfg.validate()
	if err := configError(problems); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	s := &Sink{
		cfg:     cfg,
		suffix:  lineSuffix(cfg),
		masks:   masks,
		console: zapcore.Lock(cfg.Console),
		queue:   newQueue(),
		stopped: make(chan struct{}),
	}
	if !cfg.remote() {
		close(s.stopped)
		s.cancel = func() {}
		return s, nil
	}
	s.host = endpointHost(cfg.Endpoint)
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	sender := newSender(s)
	go func() {
		defer close(s.stopped)
		sender.run(ctx)
	}()
	return s, nil
}

// Core returns the core of the sink, for loggers that are not made by [Sink.Logger].
func (s *Sink) Core() zapcore.Core {
	return &core{sink: s, encoder: newMetadataEncoder()}
}

// Tee returns a core that writes to the sink and to another core. It is an argument for
// [zap.WrapCore].
func (s *Sink) Tee(other zapcore.Core) zapcore.Core { return zapcore.NewTee(other, s.Core()) }

// Logger returns a logger that records the caller, and a stack trace at error and above, or at
// every level if the configuration says so.
func (s *Sink) Logger(opts ...zap.Option) *zap.Logger {
	stacks := zapcore.ErrorLevel
	if s.cfg.Stacks {
		stacks = zapcore.DebugLevel
	}
	return zap.New(s.Core(), append([]zap.Option{zap.AddCaller(), zap.AddStacktrace(stacks)}, opts...)...)
}

// Sync waits until the lines logged so far have been sent, for at most [Config.ExitDelay].
func (s *Sink) Sync() error {
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.ExitDelay)
	defer cancel()
	return s.Flush(ctx)
}

// Flush sends the lines logged so far without waiting for a batch to fill, and blocks until none
// of them is pending or ctx ends. The error says how many lines are pending or were lost
// meanwhile.
func (s *Sink) Flush(ctx context.Context) error {
	err := s.console.Sync()
	if !s.cfg.remote() {
		return err
	}
	pending, lost := s.queue.flush(ctx)
	if pending > 0 {
		err = errors.Join(err, fmt.Errorf("sumologic: %d lines not sent yet: %w", pending, context.Cause(ctx)))
	}
	if lost > 0 {
		err = errors.Join(err, fmt.Errorf("sumologic: %d lines lost", lost))
	}
	return err
}

// Close flushes like [Sink.Sync] and stops sending. Lines logged later are written to the console
// only. Further calls return the error of the first.
func (s *Sink) Close() error {
	s.closeOnce.Do(func() {
		s.closeErr = s.Sync()
		s.queue.close()
		s.cancel()
		<-s.stopped
	})
	return s.closeErr
}

// Stats returns the counters. It does not block on I/O.
func (s *Sink) Stats() Stats { return s.queue.stats() }

// write hands a line, without its line break, to the outputs that its level is enabled for.
func (s *Sink) write(level zapcore.Level, line []byte) error {
	if s.cfg.remote() && s.cfg.Level.Enabled(level) {
		s.queue.put(limitLine(line), level >= zapcore.ErrorLevel)
	}
	if !s.cfg.ConsoleLevel.Enabled(level) {
		return nil
	}
	_, err := s.console.Write(append(line, '\n'))
	return err
}

// own returns a line of the sink itself.
func (s *Sink) own(message string, fields ...zapcore.Field) []byte {
	c := core{sink: s, encoder: newMetadataEncoder()}
	sc := newScratch()
	defer sc.free()
	entry := zapcore.Entry{Level: zapcore.WarnLevel, Time: time.Now(), Message: message}
	if err := c.render(sc, entry, fields); err != nil {
		return nil
	}
	return append([]byte(nil), sc.line...)
}
