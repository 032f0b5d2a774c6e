package h1

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strconv"
	"strings"
	"time"
)

// ErrSwitchingProtocols is wrapped by the error of a response with status 101.
var ErrSwitchingProtocols = errors.New("the peer switches protocols")

const (
	// maxInline is the size up to which a request fits the send buffer of a socket. Linux has the
	// smallest one in use. Writing such a request does not wait for a peer that sends its response
	// first.
	maxInline = 16 << 10
	// writeGrace bounds the wait for the end of the request after its response is complete, as in
	// net/http.
	writeGrace = 50 * time.Millisecond
	// responseGrace bounds the wait for a response after writing the request has failed.
	responseGrace = time.Second
)

// A message is a request in a form that can be written to a connection.
type message interface {
	// render writes the whole request if its body is short and in memory, and reports whether it did.
	render(buf *bytes.Buffer) (rendered bool, err error)
	// stream writes a request that render did not.
	stream(c *conn) error
	// rewind prepares the request for another try. It returns an error if the body cannot be read
	// again.
	rewind() error
	// replayable reports whether the request may be sent twice.
	replayable() bool
	// abandon makes stream return while it waits for the caller's data.
	abandon()
}

// An exchange is one request and its response. Its connection may change until the response begins.
type exchange struct {
	t       *Transport
	ctx     context.Context //nolint:containedctx // of this request, whose body is read later
	trace   *httptrace.ClientTrace
	msg     message
	method  string
	address string
	last    bool // the request asks for the connection to be closed

	c       *conn
	unwatch func() bool // ends the watch over ctx
	written chan error  // the result of a stream, nil if there is none
	failed  error       // why writing failed
	reused  bool        // c had been used before
	begun   bool        // a part of a response arrived on c
}

// start sends the request and waits for the first byte of a response. It repeats the request on
// another connection under the same conditions as net/http.
func (x *exchange) start() error {
	for {
		if x.ctx.Err() != nil {
			return context.Cause(x.ctx)
		}
		c, err := x.t.get(x.ctx, x.address, x.trace)
		if err != nil {
			return x.explain(err)
		}
		nothingSent, err := x.attempt(c)
		if err == nil {
			return nil
		}
		x.discard()
		if !c.reused || x.ctx.Err() != nil || !nothingSent && !x.msg.replayable() || x.msg.rewind() != nil {
			return x.explain(err)
		}
	}
}

// attempt sends the request on c and waits for the first byte of a response. If this fails,
// nothingSent reports whether it is certain that no part of the request was sent.
func (x *exchange) attempt(c *conn) (nothingSent bool, err error) {
	x.c, x.failed, x.written, c.sent = c, nil, nil, false
	x.reused = c.reused
	x.unwatch = context.AfterFunc(x.ctx, c.abort)
	if err := x.write(); err != nil {
		_, own := errors.AsType[*bodyError](err)
		return !own && !c.sent, err
	}
	c.br, c.headLimit = x.t.reader(c), cmp.Or(x.t.MaxHeadBytes, defaultMaxHead)
	if _, err := c.br.Peek(1); err != nil {
		if c.arrived.Load() {
			x.begin()
		}
		return x.noResponse(err)
	}
	x.begin()
	return false, nil
}

// begin records that a part of a response has arrived. If ctx ended while this process was
// suspended, the part is at the socket, but is never read.
func (x *exchange) begin() {
	x.begun = true
	if x.trace != nil && x.trace.GotFirstResponseByte != nil {
		x.trace.GotFirstResponseByte()
	}
}

// noResponse returns the cause of a missing response. That is the error of writing the request if
// there was one, and otherwise err, the error of reading.
func (x *exchange) noResponse(err error) (nothingSent bool, _ error) {
	select {
	case x.failed = <-x.written:
		x.written = nil
	default:
	}
	if x.failed != nil {
		return !x.c.sent, x.failed
	}
	x.c.close()
	x.stopWriting()
	return !errors.Is(x.failed, errStillWriting) && !x.c.sent, err
}

// write sends the request. It starts a goroutine for this if sending may wait for the peer or for
// the caller's data. It returns an error only if no part of the request was sent. Otherwise the
// peer may have sent a response, which is still read.
func (x *exchange) write() error {
	buf := x.t.buffer()
	rendered, err := x.msg.render(buf)
	c := x.c
	switch {
	case err != nil:
		x.t.recycle(buf)
		return err
	case rendered && c.kernel && buf.Len() <= maxInline:
		_, err := c.Write(buf.Bytes())
		x.t.recycle(buf)
		if err != nil && !c.sent {
			return err
		}
		x.failed = err
		x.writeFailed(c, err)
	case rendered:
		x.inBackground(func() error {
			defer x.t.recycle(buf)
			_, err := c.Write(buf.Bytes())
			return err
		})
	default:
		x.t.recycle(buf)
		x.inBackground(func() error { return x.msg.stream(c) })
	}
	return nil
}

func (x *exchange) inBackground(write func() error) {
	written, c := make(chan error, 1), x.c
	x.written = written
	go func() {
		err := write()
		x.writeFailed(c, err)
		written <- err
	}()
}

// writeFailed bounds the wait for a response that the peer may have sent before the write failed.
// If the request's own body has failed, it closes the connection instead.
func (x *exchange) writeFailed(c *conn, err error) {
	if err == nil {
		return
	}
	if _, ok := errors.AsType[*bodyError](err); ok {
		c.close()
		return
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(responseGrace)) // if that fails, so does reading
}

// wrote reports whether the whole request has been sent. While it is being sent, wrote waits for up
// to writeGrace.
func (x *exchange) wrote() bool {
	if x.written != nil {
		timer := time.NewTimer(writeGrace)
		defer timer.Stop()
		select {
		case x.failed = <-x.written:
		case <-timer.C:
			x.failed = errStillWriting
		}
		x.written = nil
	}
	return x.failed == nil
}

// stopWriting waits until no goroutine writes the request: the caller may change it after it has
// failed.
func (x *exchange) stopWriting() {
	if x.written != nil {
		x.msg.abandon()
		x.wrote()
	}
}

// readHead reads the head of the final response.
func (x *exchange) readHead(req *http.Request) (*http.Response, error) {
	for range max1xx {
		resp, err := http.ReadResponse(x.c.br, req)
		switch {
		case err != nil && x.c.headLimit == 0:
			return nil, errHeadTooLarge
		case err != nil:
			return nil, fmt.Errorf("invalid response: %w", err)
		case resp.StatusCode == http.StatusSwitchingProtocols:
			return nil, ErrSwitchingProtocols
		case resp.StatusCode < 100:
			return nil, fmt.Errorf("invalid response: status %d", resp.StatusCode)
		case resp.StatusCode > 199:
			x.c.headLimit = -1
			return resp, nil
		}
		if err := x.got1xx(resp); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("more than %d 1xx responses", max1xx-1)
}

func (x *exchange) got1xx(resp *http.Response) error {
	if x.trace == nil {
		return nil
	}
	if resp.StatusCode == http.StatusContinue && x.trace.Got100Continue != nil {
		x.trace.Got100Continue()
	}
	if x.trace.Got1xxResponse != nil {
		return x.trace.Got1xxResponse(resp.StatusCode, textproto.MIMEHeader(resp.Header))
	}
	return nil
}

// finish ends an exchange whose response has been read to its end. It keeps the connection if both
// sides allow it and no bytes follow the response.
func (x *exchange) finish(keep bool) {
	c := x.c
	keep = keep && !x.last && c.br.Buffered() == 0 && !c.ended && x.wrote() && x.unwatch()
	if !keep {
		x.discard()
		return
	}
	x.release()
	kept := x.t.put(c)
	if !kept {
		c.close()
	}
	if x.trace != nil && x.trace.PutIdleConn != nil && !x.t.DisableKeepAlives {
		var err error
		if !kept {
			err = errNoRoom
		}
		x.trace.PutIdleConn(err)
	}
}

// discard ends an exchange whose connection cannot be used again.
func (x *exchange) discard() {
	x.unwatch()
	x.c.close()
	x.stopWriting()
	x.release()
}

func (x *exchange) release() {
	if br := x.c.br; br != nil {
		x.c.br = nil
		br.Reset(nil)
		x.t.readers.Put(br)
	}
}

// explain returns the cause of err. The connection may have failed because ctx ended, which closes
// it, or because of the request's own body.
func (x *exchange) explain(err error) error {
	if x.ctx.Err() != nil {
		return context.Cause(x.ctx)
	}
	if own, ok := errors.AsType[*bodyError](cmp.Or(x.failed, err)); ok {
		return own.error
	}
	return err
}

// keepAlive returns four fifths of the time that a Keep-Alive header announces, or 0.
func keepAlive(value string) time.Duration {
	for param := range strings.SplitSeq(value, ",") {
		name, seconds, _ := strings.Cut(strings.TrimSpace(param), "=")
		if !strings.EqualFold(name, "timeout") {
			continue
		}
		n, err := strconv.ParseUint(seconds, 10, 16)
		if err != nil || n == 0 {
			return 0
		}
		return min(time.Duration(n)*time.Second*4/5, maxIdleTimeout)
	}
	return 0
}

// A bodyError is a failure of the request's own body, not of the connection.
type bodyError struct{ error }

func (e *bodyError) Unwrap() error { return e.error }

var (
	errNoRoom       = errors.New("no room for another idle connection")
	errStillWriting = errors.New("the request is still being sent")
)
