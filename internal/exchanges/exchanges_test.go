package exchanges

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
)

const asChild = "TEST_RECORD_EXCHANGES"

// TestRecord runs handlers in another process of this test, with the variable set.
func TestRecord(t *testing.T) {
	if os.Getenv(asChild) != "" {
		recordSome(t)
		return
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestRecord$")
	cmd.Env = append(os.Environ(), asChild+"=1", Variable+"="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	all, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 3 {
		t.Fatalf("%d exchanges, want 3: %+v", len(all), all)
	}
	read, unread, long := all[0], all[1], all[2]
	if read.Method != "POST" || read.Target != "/a?b=1" || read.Host != "example.com" || read.Status != 201 ||
		string(read.Request.Body) != `{"n":1}` || read.Request.Incomplete || read.Request.Header.Get("X-A") != "b" ||
		string(read.Response.Body) != `{"ok":true}` || read.Response.Header.Get("Content-Type") != "application/json" {
		t.Errorf("an exchange: %+v", read)
	}
	if !strings.HasSuffix(read.Handler, "exchanges.echo") {
		t.Errorf("handler %q", read.Handler)
	}
	if unread.Status != 401 || !unread.Request.Incomplete {
		t.Errorf("an exchange whose body was not read: %+v", unread)
	}
	if len(long.Response.Body) != maxBodyBytes || !long.Response.Incomplete || long.Request.Incomplete {
		t.Errorf("an exchange with a long body: %d bytes, %v", len(long.Response.Body), long.Response.Incomplete)
	}
}

func recordSome(t *testing.T) {
	t.Helper()
	h := Record(http.HandlerFunc(echo))
	// The second request has the shape of the first one.
	for _, target := range []string{"/a?b=1", "/a?b=2", "/unread", "/long", "/nothing"} {
		r := httptest.NewRequest("POST", target, strings.NewReader(`{"n":1}`))
		r.Header.Set("X-A", "b")
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
	func() {
		defer func() { _ = recover() }()
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/panic", nil))
	}()
}

func echo(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/panic" {
		panic(errors.New("as wanted"))
	}
	if r.URL.Path != "/unread" {
		_, _ = io.ReadAll(r.Body)
	}
	w.Header().Set("Content-Type", "application/json")
	switch r.URL.Path {
	case "/unread":
		w.WriteHeader(http.StatusUnauthorized)
	case "/long":
		_, _ = w.Write(make([]byte, maxBodyBytes+1))
	case "/nothing":
	default:
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write([]byte(`{"ok":true}`))
	}
}

func TestRecordWithoutVariable(t *testing.T) {
	if os.Getenv(Variable) != "" {
		t.Skip("exchanges are being recorded")
	}
	h := http.NewServeMux()
	if Record(h) != http.Handler(h) {
		t.Error("the handler is wrapped")
	}
}

func TestShape(t *testing.T) {
	shape := func(status int, request, response string) uint64 {
		return Exchange{
			Handler: "h", Method: "GET", Target: "/", Status: status,
			Request: Message{Body: []byte(request)}, Response: Message{Body: []byte(response)},
		}.Shape()
	}
	base := shape(200, `{"a":["node-1","node-2"],"n":1}`, `{"date":"2026-01-01T00:00:00.000Z"}`)
	for _, same := range []uint64{
		shape(200, `{"n":2,"a":["node-7"]}`, `{"date":"2027-11-01T00:00:00.000Z"}`),
	} {
		if same != base {
			t.Error("a shape differs")
		}
	}
	for name, other := range map[string]uint64{
		"status":  shape(201, `{"a":["node-1","node-2"],"n":1}`, `{"date":"2026-01-01T00:00:00.000Z"}`),
		"word":    shape(200, `{"a":["nodes","node-2"],"n":1}`, `{"date":"2026-01-01T00:00:00.000Z"}`),
		"type":    shape(200, `{"a":["node-1","node-2"],"n":"1"}`, `{"date":"2026-01-01T00:00:00.000Z"}`),
		"zero":    shape(200, `{"a":["node-1","node-2"],"n":0}`, `{"date":"2026-01-01T00:00:00.000Z"}`),
		"member":  shape(200, `{"a":["node-1","node-2"],"m":1}`, `{"date":"2026-01-01T00:00:00.000Z"}`),
		"format":  shape(200, `{"a":["node-1","node-2"],"n":1}`, `{"date":"2026-01-01 00:00:00.000Z"}`),
		"no JSON": shape(200, `{"a":["node-1","node-2"],"n":1}`, `{"date":"2026-01-01T00:00:00.000Z"`),
	} {
		if other == base {
			t.Errorf("%s: the shape does not differ", name)
		}
	}
}
