// Package https is a transport for https URLs. It sends requests over HTTP/2 with net/http, and
// over HTTP/1.1 with package h1, because net/http prints an unsolicited response to the standard
// logger, with all secrets in it.
package https

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"sync"
	"time"

	"github.com/mimiktech/cluster/internal/h1"
)

// A Transport sends requests to https URLs, without a proxy. The protocol is negotiated for each
// connection. All methods are safe for concurrent use.
type Transport struct {
	// HTTP1 sends the requests over HTTP/1.1. Its limits may be changed before the first request.
	HTTP1 *h1.Transport

	http2 *http.Transport
	dial  DialFunc
	tls   *tls.Config

	mu       sync.Mutex // guards the field below
	useHTTP2 map[string]bool
}

// A DialFunc opens a connection without TLS.
type DialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// New returns a Transport that sends requests over HTTP/2 with t. It sets the dialer for TLS of t.
// cfg is not changed; nil is the default.
func New(t *http.Transport, dial DialFunc, cfg *tls.Config) *Transport {
	s := &Transport{http2: t, dial: dial, tls: cfg.Clone(), useHTTP2: make(map[string]bool)}
	if s.tls == nil {
		s.tls = new(tls.Config)
	}
	for _, protocol := range []string{protocolHTTP2, "http/1.1"} {
		if !slices.Contains(s.tls.NextProtos, protocol) {
			s.tls.NextProtos = append(slices.Clone(s.tls.NextProtos), protocol)
		}
	}
	s.HTTP1 = &h1.Transport{Dial: s.dialHTTP1, Secure: true, IdleTimeout: t.IdleConnTimeout}
	t.DialTLSContext = s.dialHTTP2
	return s
}

// RoundTrip implements [http.RoundTripper].
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	var resp *http.Response
	var err error
	for range maxProtocols {
		if t.usesHTTP2(req.URL.Host) {
			resp, err = t.roundTripHTTP2(req, nil)
		} else {
			resp, err = t.HTTP1.RoundTrip(req)
		}
		negotiated, other := errors.AsType[*protocolError](err)
		if !other {
			return resp, err
		}
		t.setHTTP2(req.URL.Host, negotiated.conn != nil)
		if req, err = rewind(req); err != nil {
			negotiated.close()
			return nil, err
		}
		if negotiated.conn != nil {
			return t.roundTripHTTP2(req, negotiated.conn)
		}
	}
	return resp, err
}

const (
	protocolHTTP2    = "h2"
	handshakeTimeout = 10 * time.Second
	maxHosts         = 4096 // whose protocol is remembered
	// maxProtocols bounds the protocols that are tried for a request. The server of a host may change
	// to another one.
	maxProtocols = 3
)

// A protocolError is the error of dialing for one protocol, if the server has chosen the other one.
// Nothing has been sent.
type protocolError struct{ conn *tls.Conn } // nil unless it speaks HTTP/2

func (e *protocolError) Error() string { return "the server has chosen another protocol" }

func (e *protocolError) close() {
	if e.conn != nil {
		_ = e.conn.Close()
	}
}

// rewind returns a request whose body has not been read.
func rewind(req *http.Request) (*http.Request, error) {
	if req.Body == nil || req.Body == http.NoBody {
		return req, nil
	}
	if req.GetBody == nil {
		return nil, errors.New("the server speaks another protocol than before, and the body cannot be sent again")
	}
	body, err := req.GetBody()
	if err != nil {
		return nil, err
	}
	again := *req
	again.Body = body
	return &again, nil
}

func (t *Transport) usesHTTP2(host string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.useHTTP2[host]
}

func (t *Transport) setHTTP2(host string, used bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !used {
		delete(t.useHTTP2, host)
		return
	}
	if len(t.useHTTP2) >= maxHosts {
		clear(t.useHTTP2) // each is learned again by its next connection
	}
	t.useHTTP2[host] = true
}

// roundTripHTTP2 sends a request over HTTP/2. It uses conn if net/http has no connection; conn may
// be nil.
func (t *Transport) roundTripHTTP2(req *http.Request, conn *tls.Conn) (*http.Response, error) {
	offered := &offer{conn: conn}
	defer offered.withdraw()
	return t.http2.RoundTrip(req.WithContext(context.WithValue(req.Context(), offerKey{}, offered)))
}

// An offer is a connection for the request that has it in its context. Each request that is sent
// over HTTP/2 has an offer, which may be empty.
type offer struct {
	mu   sync.Mutex // guards the field below
	conn *tls.Conn
}

type offerKey struct{}

func (o *offer) take() *tls.Conn {
	o.mu.Lock()
	defer o.mu.Unlock()
	conn := o.conn
	o.conn = nil
	return conn
}

// withdraw closes a connection that was not taken.
func (o *offer) withdraw() {
	if conn := o.take(); conn != nil {
		_ = conn.Close()
	}
}

// dialHTTP1 returns a *protocolError with the connection if that speaks HTTP/2.
func (t *Transport) dialHTTP1(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := t.dialTLS(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if conn.ConnectionState().NegotiatedProtocol == protocolHTTP2 {
		return nil, &protocolError{conn}
	}
	return conn, nil
}

// dialHTTP2 dials for net/http. A request that does not come from RoundTrip, such as one to a host
// name that is not ASCII, gets a connection of any protocol.
func (t *Transport) dialHTTP2(ctx context.Context, network, address string) (net.Conn, error) {
	offered, ours := ctx.Value(offerKey{}).(*offer)
	if ours {
		if conn := offered.take(); conn != nil {
			return conn, nil
		}
	}
	conn, err := t.dialTLS(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if ours && conn.ConnectionState().NegotiatedProtocol != protocolHTTP2 {
		_ = conn.Close()
		return nil, new(protocolError)
	}
	return conn, nil
}

func (t *Transport) dialTLS(ctx context.Context, network, address string) (*tls.Conn, error) {
	nc, err := t.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	cfg := t.tls.Clone()
	if cfg.ServerName == "" {
		cfg.ServerName, _, _ = net.SplitHostPort(address) // no error: address has been dialed
	}
	conn := tls.Client(nc, cfg)
	trace := httptrace.ContextClientTrace(ctx)
	if trace != nil && trace.TLSHandshakeStart != nil {
		trace.TLSHandshakeStart()
	}
	handshakeCtx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	err = conn.HandshakeContext(handshakeCtx)
	if trace != nil && trace.TLSHandshakeDone != nil {
		trace.TLSHandshakeDone(conn.ConnectionState(), err)
	}
	if err != nil {
		_ = nc.Close()
		return nil, err
	}
	return conn, nil
}
