package httpjson

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster/internal/wire"
)

func TestReadBody(t *testing.T) {
	for name, test := range map[string]struct {
		body   io.Reader
		want   string
		status int // of the error
	}{
		"empty":       {strings.NewReader(""), "", 0},
		"at limit":    {strings.NewReader("12345678"), "12345678", 0},
		"above limit": {strings.NewReader("123456789"), "", http.StatusRequestEntityTooLarge},
		"broken":      {iotest.ErrReader(errors.New("connection lost")), "", http.StatusBadRequest},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodPost, "/", test.body)
			got, err := ReadBody(httptest.NewRecorder(), r, 8)
			bodyErr, failed := errors.AsType[*BodyError](err)
			if string(got) != test.want || failed != (test.status != 0) || failed && bodyErr.StatusCode != test.status {
				t.Errorf("ReadBody = %q, %v", got, err)
			}
		})
	}
}

func TestBearerToken(t *testing.T) {
	for name, test := range map[string]struct {
		values []string
		token  string
		err    string
	}{
		"token":        {[]string{"Bearer t0ken"}, "t0ken", ""},
		"lower case":   {[]string{"bearer t0ken"}, "t0ken", ""},
		"two spaces":   {[]string{"Bearer  t0ken"}, " t0ken", ""},
		"missing":      {nil, "", "missing authorization header"},
		"two headers":  {[]string{"Bearer t0ken", "Bearer t0ken"}, "", "duplicated authorization header"},
		"empty":        {[]string{""}, "", "not a bearer token"},
		"no token":     {[]string{"Bearer "}, "", "not a bearer token"},
		"other scheme": {[]string{"Basic t0ken"}, "", "not a bearer token"},
	} {
		t.Run(name, func(t *testing.T) {
			token, err := BearerToken(http.Header{"Authorization": test.values})
			if token != test.token || (err == nil) != (test.err == "") {
				t.Fatalf("BearerToken = %q, %v", token, err)
			}
			if err != nil && (!strings.Contains(err.Error(), test.err) || strings.Contains(err.Error(), "t0ken")) {
				t.Errorf("error %q, want %q without the token", err, test.err)
			}
		})
	}
}

func TestWriteError(t *testing.T) {
	w := httptest.NewRecorder()
	WriteError(w, http.StatusConflict, "the cluster is full")
	const want = `{"statusCode":409,"title":"Conflict","message":"the cluster is full"}`
	if w.Code != http.StatusConflict || w.Body.String() != want || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("%d %v %s, want %s", w.Code, w.Header(), w.Body, want)
	}
}

func TestCorrelate(t *testing.T) {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	if f := CorrelationField(r.Context()); !f.Equals(zap.Skip()) {
		t.Errorf("field %v without a correlation id", f)
	}
	r.Header.Set(wire.CorrelationHeader, "abc@1/2026-01-02T03:04:05.678Z")
	w := httptest.NewRecorder()
	r = Correlate(w, r)
	const want = "abc@2/2026-01-02T03:04:05.678Z"
	if CorrelationID(r.Context()) != want || w.Header().Get(wire.CorrelationHeader) != want {
		t.Errorf("correlation id %q, on the response %q, want %q", CorrelationID(r.Context()), w.Header().Get(wire.CorrelationHeader), want)
	}
	if f := CorrelationField(r.Context()); !f.Equals(zap.String("correlationId", want)) {
		t.Errorf("field %v", f)
	}
}
