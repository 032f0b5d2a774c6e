package h1

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster/internal/testrun"
)

func TestMain(m *testing.M) {
	if os.Getenv(peerVariable) != "" {
		if err := runPeer(); err != nil {
			panic(err)
		}
		return
	}
	log.SetOutput(io.Discard) // net/http logs what a peer sends unasked
	testrun.Parallel(16)
	testrun.CollectRarely()
	os.Exit(m.Run())
}

// A rawPeer describes a peer by its first response, which may be sent byte by byte.
type rawPeer struct {
	name     string
	method   string // GET by default
	body     string // of the request
	response string
	hangUp   bool // close the connection after it
	early    bool // send it when the first bytes of the request are there
	differs  bool // from net/http on purpose; a test of its own says how
}

const second = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond"

func zipped(text string) string {
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	_, _ = io.WriteString(zw, text)
	_ = zw.Close()
	return b.String()
}

func withLength(fields, body string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n%s", fields, len(body), body)
}

func rawPeers() []rawPeer {
	const ok, chunked = "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
	z := zipped("compressed")
	return []rawPeer{
		{name: "plain", response: ok + "Content-Length: 5\r\n\r\nhello"},
		{name: "no body", response: ok + "Content-Length: 0\r\n\r\n"},
		{name: "status without text", response: "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nhi"},
		{name: "status without space", response: "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "two spaces", response: "HTTP/1.1  200 OK\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "four digits", response: "HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "two digits", response: "HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "negative status", response: "HTTP/1.1 -20 OK\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "status 000", response: "HTTP/1.1 000 OK\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "status 099", response: "HTTP/1.1 099 OK\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "status 999", response: "HTTP/1.1 999 Odd\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "status no number", response: "HTTP/1.1 abc OK\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "binary text", response: "HTTP/1.1 200 \x00\x01\xff\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "not found", response: "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone"},
		{name: "no content", response: "HTTP/1.1 204 No Content\r\n\r\n"},
		{name: "no content with a length", response: "HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\nabc"},
		{name: "no content chunked", response: "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		{name: "not modified", response: "HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\nEtag: x\r\n\r\n"},
		{name: "not modified with a body", response: "HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\nabc"},
		{name: "reset content", response: "HTTP/1.1 205 Reset\r\nContent-Length: 0\r\n\r\n"},
		{name: "head", method: "HEAD", response: ok + "Content-Length: 99\r\n\r\n"},
		{name: "head with a body", method: "HEAD", response: ok + "Content-Length: 3\r\n\r\nabc"},
		{name: "head chunked", method: "HEAD", response: chunked + "\r\n"},
		{name: "head without length", method: "HEAD", response: ok + "\r\n"},
		{name: "http/1.0", response: "HTTP/1.0 200 OK\r\n\r\nuntil the end", hangUp: true},
		{name: "http/1.0 with a length", response: "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "http/1.0 keep-alive", response: "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "http/1.0 chunked", response: "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", hangUp: true},
		{name: "http/0.9", response: "hello", hangUp: true},
		{name: "http/1.2", response: "HTTP/1.2 200 OK\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "http/2.0", response: "HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "http/3", response: "HTTP/3 200 OK\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "lower case", response: "http/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "until the end", response: ok + "\r\nuntil the end", hangUp: true},
		{name: "until an end that does not come", response: ok + "\r\nuntil"},
		{name: "close", response: ok + "Connection: close\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "close in a list", response: ok + "Connection: x, Close\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "close and hang up", response: ok + "Connection: close\r\nContent-Length: 2\r\n\r\nhi", hangUp: true},
		{name: "hang up without saying", response: ok + "Content-Length: 2\r\n\r\nhi", hangUp: true},
		{name: "keep-alive", response: ok + "Connection: keep-alive\r\nKeep-Alive: timeout=5\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "keep-alive of nonsense", response: ok + "Keep-Alive: timeout=-1, timeout=x\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "connection upgrade", response: ok + "Connection: upgrade\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "chunked", response: chunked + "\r\n5\r\nhello\r\n0\r\n\r\n"},
		{name: "chunks", response: chunked + "\r\n1\r\nh\r\n4;ext=1\r\nello\r\n00\r\n\r\n"},
		{name: "chunked upper case", response: ok + "Transfer-Encoding: CHUNKED\r\n\r\n5\r\nhello\r\n0\r\n\r\n"},
		{name: "chunked with a length", response: chunked + "Content-Length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n"},
		{name: "chunked twice", response: chunked + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		{name: "chunked and gzip", response: ok + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"},
		{name: "identity", response: ok + "Transfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "chunk size of nonsense", response: chunked + "\r\nxyz\r\nhello\r\n0\r\n\r\n"},
		{name: "chunk size too large", response: chunked + "\r\nffffffffffffffffff\r\nhello\r\n0\r\n\r\n"},
		{name: "chunk without its end", response: chunked + "\r\n5\r\nhelloX\r\n0\r\n\r\n"},
		{name: "chunk with a bare line feed", response: chunked + "\r\n5\nhello\r\n0\r\n\r\n"},
		{name: "trailer", response: chunked + "Trailer: X-T\r\n\r\n5\r\nhello\r\n0\r\nX-T: v\r\n\r\n"},
		{name: "trailer unannounced", response: chunked + "\r\n0\r\nX-T: v\r\n\r\n"},
		{name: "trailer forbidden", response: chunked + "Trailer: Content-Length\r\n\r\n0\r\nContent-Length: 1\r\n\r\n"},
		{name: "trailer malformed", response: chunked + "\r\n0\r\nX T v\r\n\r\n"},
		{name: "trailer too long", response: chunked + "\r\n0\r\nX-T: " + strings.Repeat("v", 5000) + "\r\n\r\n"},
		{name: "trailer field without chunks", response: withLength("Trailer: X-T\r\n", "hi")},
		{name: "two equal lengths", response: ok + "Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "two lengths", response: ok + "Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi"},
		{name: "list of lengths", response: ok + "Content-Length: 2, 2\r\n\r\nhi"},
		{name: "negative length", response: ok + "Content-Length: -2\r\n\r\nhi"},
		{name: "length with a plus", response: ok + "Content-Length: +2\r\n\r\nhi"},
		{name: "length with zeros", response: ok + "Content-Length: 0002\r\n\r\nhi"},
		{name: "length with blanks", response: ok + "Content-Length: \t 2 \t\r\n\r\nhi"},
		{name: "length in hex", response: ok + "Content-Length: 0x2\r\n\r\nhi"},
		{name: "empty length", response: ok + "Content-Length:\r\n\r\nhi"},
		{name: "length beyond 63 bits", response: ok + "Content-Length: 9223372036854775808\r\n\r\nhi"},
		{name: "length of 63 bits", response: ok + "Content-Length: 9223372036854775807\r\n\r\nhi", hangUp: true},
		{name: "length lower case", response: ok + "content-length: 2\r\n\r\nhi"},
		{name: "length with a blank before the colon", response: ok + "Content-Length : 2\r\n\r\nhi", hangUp: true},
		{name: "field without colon", response: ok + "Nonsense\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "field without name", response: ok + ": x\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "field with a blank in its name", response: ok + "A b: x\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "field with a strange name", response: ok + "A\x01: x\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "field with a control character", response: ok + "A: x\x00y\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "field in latin-1", response: ok + "A: \xe4\xff\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "field with a bare carriage return", response: ok + "A: x\ry\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "folded field", response: ok + "A: x\r\n y\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "folded length", response: ok + "Content-Length:\r\n 2\r\n\r\nhi"},
		{name: "first field folded", response: ok + " A: x\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "bare line feeds", response: "HTTP/1.1 200 OK\nContent-Length: 2\n\nhi"},
		{name: "mixed line ends", response: "HTTP/1.1 200 OK\r\nA: b\nContent-Length: 2\r\n\r\nhi"},
		{name: "carriage returns", response: "HTTP/1.1 200 OK\r\r\nContent-Length: 2\r\n\r\nhi"},
		{name: "blank first line", response: "\r\n" + ok + "Content-Length: 2\r\n\r\nhi"},
		{name: "many fields", response: withLength(strings.Repeat("A: b\r\nC: d\r\n", 40), "hi")},
		{name: "pragma", response: withLength("Pragma: no-cache\r\n", "hi")},
		{name: "head of 5 KiB", response: withLength("A: "+strings.Repeat("b", 5000)+"\r\n", "hi")},
		{name: "gzip", response: withLength("Content-Encoding: gzip\r\n", z)},
		{name: "gzip upper case", response: withLength("Content-Encoding: GZIP\r\n", z)},
		{name: "gzip chunked", response: chunked + fmt.Sprintf("Content-Encoding: gzip\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(z), z)},
		{name: "gzip until the end", response: ok + "Content-Encoding: gzip\r\n\r\n" + z, hangUp: true},
		{name: "gzip that is none", response: withLength("Content-Encoding: gzip\r\n", "plain text, and long enough")},
		{name: "gzip cut off", response: withLength("Content-Encoding: gzip\r\n", z[:len(z)-3])},
		{name: "gzip twice", response: withLength("Content-Encoding: gzip\r\n", z+z)},
		{name: "gzip and more", response: withLength("Content-Encoding: gzip\r\n", z+"more")},
		{name: "gzip of nothing", response: withLength("Content-Encoding: gzip\r\n", "")},
		{name: "gzip with a bad sum", response: withLength("Content-Encoding: gzip\r\n", z[:len(z)-8]+"xxxxxxxx")},
		{name: "gzip in a head", method: "HEAD", response: ok + "Content-Encoding: gzip\r\nContent-Length: 9\r\n\r\n"},
		{name: "deflate", response: withLength("Content-Encoding: deflate\r\n", "raw")},
		{name: "100 first", response: "HTTP/1.1 100 Continue\r\n\r\n" + ok + "Content-Length: 2\r\n\r\nhi"},
		{name: "103 first", response: "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + ok + "Content-Length: 2\r\n\r\nhi"},
		{name: "seven 1xx first", response: strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 7) + ok + "Content-Length: 2\r\n\r\nhi"},
		{name: "1xx with a length", response: "HTTP/1.1 102 P\r\nContent-Length: 2\r\n\r\n" + ok + "Content-Length: 2\r\n\r\nhi"},
		{name: "only 1xx", response: "HTTP/1.1 100 Continue\r\n\r\n", hangUp: true},
		{name: "more bytes", response: ok + "Content-Length: 2\r\n\r\nhi and more"},
		{name: "a second response", response: ok + "Content-Length: 2\r\n\r\nhi" + withLength("", "foreign")},
		{name: "a second response to chunks", response: chunked + "\r\n2\r\nhi\r\n0\r\n\r\n" + withLength("", "foreign")},
		{name: "a second response to head", method: "HEAD", response: ok + "Content-Length: 2\r\n\r\n" + withLength("", "foreign")},
		{name: "a second response to 204", response: "HTTP/1.1 204 No\r\n\r\n" + withLength("", "foreign")},
		{name: "a timeout sent unasked", response: ok + "Content-Length: 2\r\n\r\nhiHTTP/1.1 408 Timeout\r\n\r\n", hangUp: true},
		{name: "nothing", hangUp: true},
		{name: "silence"},
		{name: "tls", response: "\x15\x03\x01\x00\x02\x02\x46", hangUp: true},
		{name: "nonsense", response: "\x00\x00\x12\x04\x00\x00\x00\x00\x00\r\n\r\n", hangUp: true},
		{name: "post", method: "POST", body: "data", response: ok + "Content-Length: 2\r\n\r\nhi"},
		{name: "early", method: "POST", body: "data", early: true, response: "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno"},
		{name: "early to a large body", method: "POST", body: strings.Repeat("x", 1<<18), early: true, response: "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno"},
		{name: "early and gone", method: "POST", body: strings.Repeat("x", 1<<18), early: true, hangUp: true, response: "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno"},
		{name: "protocol switch", response: "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", differs: true},
		{name: "eight 1xx first", response: strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 8) + ok + "Content-Length: 2\r\n\r\nhi", differs: true},
	}
}

// A result is what a caller sees of two requests in a row.
type result struct {
	status  int
	header  http.Header
	trailer http.Header
	body    string
	class   string // of the error
	second  string // the body of the second response, or the class of its error
	dialed  int32  // connections made for both
}

// classOf returns the class of an error, as far as callers distinguish errors.
func classOf(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, context.DeadlineExceeded):
		return "deadline"
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "unexpected end"
	case errors.Is(err, io.EOF):
		return "end"
	case errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum):
		return "gzip"
	default:
		return "other"
	}
}

// serve plays the peer on one connection. It sends the first response in pieces, with a pause
// between them.
func (p rawPeer) serve(nc net.Conn, pieces []string, hangUp bool) {
	defer nc.Close()
	br := bufio.NewReader(nc)
	read := func() bool {
		req, err := http.ReadRequest(br)
		if err != nil {
			return false
		}
		_, err = io.Copy(io.Discard, req.Body)
		return err == nil
	}
	if p.early { // but not before the request begins: net/http may take that for unsolicited
		_, _ = br.Peek(1)
	} else if !read() {
		return
	}
	for i, piece := range pieces {
		if i > 0 {
			time.Sleep(time.Microsecond)
		}
		if piece == "" { // a pipe would deliver an empty read
			continue
		}
		if _, err := io.WriteString(nc, piece); err != nil {
			return
		}
	}
	if hangUp || p.early && !read() {
		return
	}
	for read() {
		if _, err := io.WriteString(nc, second); err != nil {
			return
		}
	}
}

// dialer connects to the peer. Only the first connection sends the pieces.
func (p rawPeer) dialer(connect func() (client, server net.Conn), dialed *atomic.Int32, pieces []string, hangUp bool) func(context.Context, string, string) (net.Conn, error) {
	return func(context.Context, string, string) (net.Conn, error) {
		client, server := connect()
		if dialed.Add(1) == 1 {
			go p.serve(server, pieces, hangUp)
		} else {
			go rawPeer{}.serve(server, []string{second}, false)
		}
		return client, nil
	}
}

type client interface {
	first(ctx context.Context, p rawPeer) result
	close()
}

type roundTripper struct{ http.RoundTripper }

func (c roundTripper) first(ctx context.Context, p rawPeer) (r result) {
	var body io.Reader
	if p.body != "" {
		body = strings.NewReader(p.body)
	}
	req, err := http.NewRequestWithContext(ctx, p.method, "http://peer/path?q", body)
	if err != nil {
		panic(err)
	}
	resp, err := c.RoundTrip(req)
	if err != nil {
		return result{class: classOf(err)}
	}
	defer resp.Body.Close()
	r.status, r.header = resp.StatusCode, resp.Header
	data, err := io.ReadAll(resp.Body)
	r.body, r.class, r.trailer = string(data), classOf(err), resp.Trailer
	return r
}

func (c roundTripper) close() {
	if t, ok := c.RoundTripper.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// A doer is a client that uses Do, which has no trailers.
type doer struct{ *Transport }

func (c doer) close() { c.Close() }

func (c doer) first(ctx context.Context, p rawPeer) (r result) {
	call, err := NewCall(p.method, nil, []byte(p.body), 1<<20)
	if err != nil {
		panic(err)
	}
	resp, err := c.Do(ctx, call, "peer", "/path?q")
	return result{status: resp.StatusCode, header: resp.Header.Fields(), body: string(resp.Body), class: classOf(err)}
}

// run sends a request that the peer answers with the pieces, and another.
func (p rawPeer) run(t *testing.T, kind string, connect func() (client, server net.Conn), pieces []string, hangUp bool) (r result) {
	t.Helper()
	var dialed atomic.Int32
	dial := p.dialer(connect, &dialed, pieces, hangUp)
	var c client
	own := &Transport{Dial: dial, IdleTimeout: time.Hour}
	switch kind {
	case "net/http":
		c = roundTripper{&http.Transport{DialContext: dial, MaxResponseHeaderBytes: defaultMaxHead, IdleConnTimeout: time.Hour}}
	case "RoundTrip":
		c = roundTripper{own}
	case "Do":
		c = doer{own}
	}
	defer c.close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	r = c.first(ctx, p)
	cancel()
	time.Sleep(50 * time.Millisecond) // what the peer sends unasked arrives, and is seen by net/http
	ctx, cancel = context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	again := c.first(ctx, rawPeer{})
	r.second = cmp.Or(again.class, again.body)
	r.dialed = dialed.Load()
	return r
}

// inMemory runs the peer in a bubble, over pipes.
func (p rawPeer) inMemory(t *testing.T, kind string, pieces []string, hangUp bool) (r result) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r = p.run(t, kind, net.Pipe, pieces, hangUp)
		time.Sleep(time.Second) // the peer may be between two pieces
	})
	return r
}

// overSocket runs the peer over the loopback, in real time.
func (p rawPeer) overSocket(t *testing.T, kind string, pieces []string, hangUp bool) result {
	t.Helper()
	l := listen(t)
	defer l.Close()
	return p.run(t, kind, func() (net.Conn, net.Conn) {
		client, err := new(net.Dialer).DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			panic(err)
		}
		server, err := l.Accept()
		if err != nil {
			panic(err)
		}
		return client, server
	}, pieces, hangUp)
}

// compare runs the peer in memory with all clients, and reports the differences.
func (p rawPeer) compare(t *testing.T, pieces []string, hangUp bool) {
	t.Helper()
	results := map[string]result{}
	for _, kind := range p.clients() {
		results[kind] = p.inMemory(t, kind, pieces, hangUp)
	}
	p.compareResults(t, results, pieces, hangUp)
}

// clients returns the kinds of clients that run the peer.
func (p rawPeer) clients() []string {
	if p.differs {
		return []string{"RoundTrip", "Do"}
	}
	return []string{"net/http", "RoundTrip", "Do"}
}

func (p rawPeer) compareResults(t *testing.T, results map[string]result, pieces []string, hangUp bool) {
	t.Helper()
	for _, kind := range []string{"RoundTrip", "Do"} {
		got, want := results[kind], results["net/http"]
		if kind == "Do" {
			want.trailer = nil
		}
		if got.second != "second" {
			t.Errorf("%s: the second request got %q", kind, got.second)
		}
		if want.status < 100 && want.header != nil {
			want = result{class: "other", second: want.second, dialed: got.dialed} // no final status
		}
		if p.differs {
			continue
		}
		if p.early && want.class != "" && (hangUp || p.hangUp) {
			continue // reading and writing fail at once, and net/http takes whichever comes first
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%s of %d pieces %.300s:\n got      %.300s\n net/http %.300s", kind, len(pieces),
				fmt.Sprintf("%q", pieces), fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want))
		}
	}
}

func TestLikeNetHTTP(t *testing.T) {
	parts := 100
	switch {
	case raceEnabled:
		parts = 5
	case !testrun.Full(t, "responses are cut at ten places instead of a hundred"):
		parts = 10
	}
	for _, p := range rawPeers() {
		t.Run(strings.ReplaceAll(p.name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			n := len(p.response)
			p.compare(t, []string{p.response}, p.hangUp)
			p.compare(t, strings.Split(p.response, ""), p.hangUp)
			step := max(1, n/parts)
			for i := 0; i < n; i += step {
				p.compare(t, []string{p.response[:i], p.response[i:]}, p.hangUp)
				if !p.differs {
					p.compare(t, []string{p.response[:i]}, true)
				}
			}
		})
	}
}

// Over sockets the checks and buffers are those of the system.
func TestLikeNetHTTPOverSockets(t *testing.T) {
	for _, p := range rawPeers() {
		if p.early && p.hangUp {
			continue // whether the response arrives before the reset is up to the system
		}
		t.Run(strings.ReplaceAll(p.name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			kinds, pieces := p.clients(), []string{p.response}
			got := make([]result, len(kinds))
			t.Run("clients", func(t *testing.T) {
				for i, kind := range kinds {
					t.Run(kind, func(t *testing.T) {
						t.Parallel() // they mostly wait
						got[i] = p.overSocket(t, kind, pieces, p.hangUp)
					})
				}
			})
			results := map[string]result{}
			for i, kind := range kinds {
				results[kind] = got[i]
			}
			p.compareResults(t, results, pieces, p.hangUp)
		})
	}
}

func FuzzLikeNetHTTP(f *testing.F) {
	for _, p := range rawPeers() {
		f.Add(p.response, p.method == "HEAD", p.hangUp, uint16(len(p.response)/2))
	}
	f.Fuzz(func(t *testing.T, response string, head, hangUp bool, split uint16) {
		p := rawPeer{response: response, hangUp: hangUp}
		if head {
			p.method = "HEAD"
		}
		p.differs = strings.Count(response, "HTTP/") >= max1xx || strings.Contains(response, " 101")
		i := int(split) % (len(response) + 1)
		p.compare(t, []string{response[:i], response[i:]}, hangUp)
	})
}

// FuzzParseHead checks that a simple head means the same to net/http.
func FuzzParseHead(f *testing.F) {
	for _, p := range rawPeers() {
		f.Add([]byte(p.response))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		h, ok := parseHead(bytes.Clone(data))
		if !ok {
			return
		}
		br := bufio.NewReader(bytes.NewReader(data))
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatalf("net/http rejects it: %v", err)
		}
		rest, err := io.ReadAll(br)
		if err != nil {
			t.Fatal(err)
		}
		size := len(data) - len(rest)
		resp.Body.Close()
		_, zipped := resp.Header["Content-Encoding"]
		if resp.StatusCode != h.status || resp.ContentLength != h.length || size != h.size || resp.Close || zipped || resp.Trailer != nil {
			t.Fatalf("%+v, and net/http: %+v, %d bytes", h, resp, size)
		}
	})
}
