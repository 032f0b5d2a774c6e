// Package exchanges records the HTTP exchanges of tests, so that they can be compared with the
// OpenAPI documents of package api. The tests of module apitest do so.
package exchanges

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"sync"
)

// Variable is the environment variable with the folder to record into. Without it, nothing is
// recorded. Each process writes a file of its own there, with one [Exchange] in JSON per line.
const Variable = "CLUSTER_EXCHANGES"

// maxBodyBytes bounds what is recorded of a body. A longer one is recorded as incomplete.
const maxBodyBytes = 1 << 20

// An Exchange is a request as its handler received it, and the response that the handler sent.
type Exchange struct {
	Handler  string // its type or, if it is a function, its name
	Method   string
	Host     string
	Target   string // path and query
	Request  Message
	Status   int
	Response Message
}

// A Message is one half of an exchange.
type Message struct {
	Header http.Header
	Body   []byte
	// Incomplete means that the handler did not read the whole body, or that it is too long to be
	// recorded.
	Incomplete bool
}

// Record returns a handler that calls h and records its exchanges, or h itself if the environment
// variable is not set. Exchanges of one [Exchange.Shape] are recorded once per process. An exchange
// whose handler panics or writes nothing is not recorded.
func Record(h http.Handler) http.Handler {
	l := theLog()
	if l == nil {
		return h
	}
	name := handlerName(h)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x := Exchange{Handler: name, Method: r.Method, Host: r.Host, Target: r.URL.RequestURI()}
		x.Request.Header = r.Header.Clone()
		request := &body{ReadCloser: r.Body, length: r.ContentLength}
		response := &writer{ResponseWriter: w}
		copied := *r
		copied.Body = request
		h.ServeHTTP(response, &copied)
		if response.status == 0 {
			return
		}
		x.Request.Body, x.Request.Incomplete = request.result()
		x.Status = response.status
		x.Response = Message{response.header, response.read.Bytes(), response.tooLong}
		l.write(x)
	})
}

// handlerName returns the name of the function or the type of a handler.
func handlerName(h http.Handler) string {
	if v := reflect.ValueOf(h); v.Kind() == reflect.Func {
		return runtime.FuncForPC(v.Pointer()).Name()
	}
	return fmt.Sprintf("%T", h)
}

// Read returns the exchanges in a folder, one of each [Exchange.Shape] and handler.
func Read(dir string) ([]Exchange, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil {
		return nil, err
	}
	var all []Exchange
	seen := map[uint64]bool{}
	for _, name := range files {
		content, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		for line := range bytes.Lines(content) {
			var x Exchange
			if err := json.Unmarshal(line, &x); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if shape := x.Shape(); !seen[shape] {
				seen[shape] = true
				all = append(all, x)
			}
		}
	}
	return all, nil
}

// theLog is the log of this process, or nil if nothing is recorded.
var theLog = sync.OnceValue(openLog) //nolint:gochecknoglobals // one file per process

func openLog() *log {
	dir := os.Getenv(Variable)
	if dir == "" {
		return nil
	}
	name := fmt.Sprintf("%s-%d.jsonl", filepath.Base(os.Args[0]), os.Getpid())
	file, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600) //nolint:gosec // the folder of the test run
	if err != nil {
		exit(err)
	}
	return &log{file: file, seen: map[uint64]bool{}}
}

// exit ends the tests: what they record would be incomplete. A panic in a handler would be
// recovered, and would look like a fault of the network.
func exit(err error) {
	_, _ = fmt.Fprintf(os.Stderr, "%s: %v\n", Variable, err)
	os.Exit(2)
}

// A log is the file of a process. It stays open until the process ends.
type log struct {
	mu   sync.Mutex // guards the fields below
	file *os.File
	seen map[uint64]bool
}

func (l *log) write(x Exchange) {
	shape := x.Shape()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen[shape] {
		return
	}
	l.seen[shape] = true
	line, err := json.Marshal(x)
	if err == nil {
		_, err = l.file.Write(append(line, '\n'))
	}
	if err != nil {
		exit(err)
	}
}

// A body keeps what a handler reads.
type body struct {
	io.ReadCloser
	length int64 // -1: unknown

	mu    sync.Mutex // guards the fields below: a handler may leave a reader behind
	read  bytes.Buffer
	total int64
	ended bool
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.total += int64(n)
	b.read.Write(p[:min(n, max(0, maxBodyBytes-b.read.Len()))])
	b.ended = b.ended || err == io.EOF
	return n, err
}

func (b *body) result() (read []byte, incomplete bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	whole := b.ended || b.total == b.length
	return bytes.Clone(b.read.Bytes()), !whole || b.total > maxBodyBytes
}

// A writer keeps what a handler writes.
type writer struct {
	http.ResponseWriter
	status  int
	header  http.Header
	read    bytes.Buffer
	tooLong bool
}

func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *writer) Flush() { _ = http.NewResponseController(w.ResponseWriter).Flush() }

func (w *writer) WriteHeader(status int) {
	w.ResponseWriter.WriteHeader(status)
	if w.status == 0 && status >= http.StatusOK {
		w.status, w.header = status, w.Header().Clone()
	}
}

func (w *writer) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	n, err := w.ResponseWriter.Write(p)
	kept := min(n, maxBodyBytes-w.read.Len())
	w.read.Write(p[:kept])
	w.tooLong = w.tooLong || kept < n || err != nil
	return n, err
}
