package mit

import (
	"bytes"
	"compress/gzip"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mimiktech/cluster/internal/wire"
)

const (
	// minGzipBytes is the size from which a list is compressed. A shorter list fits into one
	// packet.
	minGzipBytes = 1400

	// A client that reads more slowly than minReadRate is disconnected.
	minReadRate     = 256 << 10 // bytes per second
	writeAllowance  = 5 * time.Second
	encodingGzip    = "gzip"
	headerEncodings = "Accept-Encoding"
)

// A list is the encoded response with a resource. Requests share it, so it must not be modified.
type list struct {
	servers int    // number of servers
	size    int    // of the encoded list
	plain   []byte // nil if no request asked for it
	gzip    []byte // nil if no request asked for it, or if the list is short
}

// form returns the form of the list for a request.
func (l *list) form(h http.Header) (body []byte, encoding string) {
	if l.gzip != nil && acceptsGzip(h) {
		return l.gzip, encodingGzip
	}
	return l.plain, ""
}

// A listResponse is a list that is sent to one caller.
type listResponse struct {
	*list
	in *admitted
}

// send writes the response within a time that depends on its size, and ends its admission.
func (l listResponse) send(w http.ResponseWriter, r *http.Request) {
	sent := 0
	defer func() { l.in.release(sent, time.Now()) }()
	body, encoding := l.form(r.Header)
	if encoding != "" {
		w.Header().Set("Content-Encoding", encoding)
	}
	control := http.NewResponseController(w)
	timeout := writeAllowance + time.Duration(len(body))*time.Second/minReadRate
	_ = control.SetWriteDeadline(time.Now().Add(timeout)) // not all writers support it
	w.Header().Set("Vary", headerEncodings)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(http.StatusOK)
	if _, err := w.Write(body); err != nil {
		return // the caller has disconnected or does not read
	}
	err := control.Flush()
	if err == nil {
		_ = control.SetWriteDeadline(time.Time{})
	}
	if r.Method != http.MethodHead && (err == nil || errors.Is(err, http.ErrNotSupported)) {
		sent = len(body)
	}
}

// encodings encodes lists. Requests that wait for the list of one type at the same time share one
// encoding. A newer list is as good a response as an older one.
type encodings struct {
	gzipWriters sync.Pool // of *gzip.Writer

	mu    sync.Mutex // guards the field below and the batches in it
	types map[string]*typeEncodings
}

type typeEncodings struct {
	mu      sync.Mutex // held while encoding
	pending *batch     // not begun; nil if no request waits
}

// A batch is one encoding, for all requests that wait for it.
type batch struct {
	res         Resource
	leaseTime   *float64
	plain, gzip bool // forms to make

	done chan struct{} // closed when the fields below are set
	list *list
	err  error
}

// encode returns the list of res or, if its store counts versions, a newer one.
func (e *encodings) encode(res Resource, leaseTime *float64, h http.Header) (*list, error) {
	gz := acceptsGzip(h)
	if res.Version == 0 {
		return e.encodeList(&batch{res: res, leaseTime: leaseTime, plain: !gz, gzip: gz})
	}
	e.mu.Lock()
	t := e.types[res.Type]
	if t == nil {
		t = &typeEncodings{}
		e.types[res.Type] = t
	}
	b, first := t.pending, t.pending == nil
	if first {
		b = &batch{done: make(chan struct{})}
		t.pending = b
	}
	if first || res.Version > b.res.Version {
		b.res, b.leaseTime = res, leaseTime
	}
	b.plain, b.gzip = b.plain || !gz, b.gzip || gz
	e.mu.Unlock()

	if first {
		t.mu.Lock()
		e.mu.Lock()
		t.pending = nil // later requests need a newer list
		e.mu.Unlock()
		b.list, b.err = e.encodeList(b)
		close(b.done)
		t.mu.Unlock()
	}
	<-b.done
	return b.list, b.err
}

func (e *encodings) encodeList(b *batch) (*list, error) {
	res := b.res
	b.res = Resource{} // not needed while the response is sent
	plain, err := wire.EncodeRegistered(wire.Registered{
		ItResource: &wire.ItResource{ID: res.ID, Type: res.Type, PublicBaseURL: res.PublicBaseURL},
		LeaseTime:  b.leaseTime,
	}, len(res.Servers), func(i int) *wire.Server { return (*wire.Server)(&res.Servers[i]) })
	if err != nil { // the store returned invalid JSON
		return nil, newAPIError(http.StatusInternalServerError, "the response could not be encoded")
	}
	l := &list{servers: len(res.Servers), size: len(plain)}
	if b.gzip && len(plain) >= minGzipBytes {
		l.gzip = e.compress(plain)
	}
	if b.plain || l.gzip == nil {
		l.plain = plain
	}
	return l, nil
}

func (e *encodings) compress(b []byte) []byte {
	var out bytes.Buffer
	out.Grow(len(b) / 4)
	w, ok := e.gzipWriters.Get().(*gzip.Writer)
	if !ok {
		w, _ = gzip.NewWriterLevel(nil, gzip.BestSpeed) // a valid level
	}
	defer e.gzipWriters.Put(w)
	w.Reset(&out)
	_, _ = w.Write(b) // a bytes.Buffer does not fail
	_ = w.Close()
	return out.Bytes()
}

// acceptsGzip reports whether a client accepts a compressed response.
func acceptsGzip(h http.Header) bool {
	for part := range strings.SplitSeq(strings.Join(h.Values(headerEncodings), ","), ",") {
		coding, params, _ := strings.Cut(part, ";")
		if !strings.EqualFold(strings.TrimSpace(coding), encodingGzip) {
			continue
		}
		name, q, _ := strings.Cut(strings.TrimSpace(params), "=")
		weight, err := strconv.ParseFloat(strings.TrimSpace(q), 64)
		return !strings.EqualFold(strings.TrimSpace(name), "q") || err != nil || weight > 0
	}
	return false
}
