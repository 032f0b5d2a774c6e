// Package httpjson holds what the HTTP handlers of the nodes and of the registry have in common:
// bounded request bodies, bearer tokens, correlation ids and JSON responses.
package httpjson

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster/internal/wire"
)

// A BodyError describes a request body that could not be read.
type BodyError struct {
	StatusCode int // of the response: 413 or 400
	Message    string
}

// Error implements error.
func (e *BodyError) Error() string { return e.Message }

// ReadBody reads a request body of at most limit bytes. Its error is a [*BodyError].
func ReadBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, &BodyError{http.StatusRequestEntityTooLarge, fmt.Sprintf("the body has more than %d bytes", limit)}
	}
	if err != nil {
		return nil, &BodyError{http.StatusBadRequest, "the body could not be read"}
	}
	return body, nil
}

// BearerToken returns what follows "Bearer " in the authorization header. The error does not quote
// it.
func BearerToken(h http.Header) (string, error) {
	values := h.Values("Authorization")
	switch len(values) {
	case 0:
		return "", errors.New("missing authorization header")
	case 1:
	default:
		return "", errors.New("duplicated authorization header")
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return "", errors.New("the authorization is not a bearer token")
	}
	return token, nil
}

// Write writes a JSON response.
func Write(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(body) // fails if the caller has disconnected
}

// WriteError writes the envelope of an error.
func WriteError(w http.ResponseWriter, status int, message string) {
	body, _ := json.Marshal(NewError(status, message)) // a number and two strings
	Write(w, status, body)
}

// WriteYAML answers a GET or HEAD with a document in YAML (RFC 9512).
func WriteYAML(w http.ResponseWriter, r *http.Request, document string) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		WriteError(w, http.StatusMethodNotAllowed, "only GET and HEAD are served here")
		return
	}
	w.Header().Set("Content-Type", "application/yaml")
	_, _ = w.Write([]byte(document)) // fails if the caller has disconnected
}

// NewError returns the envelope of an error with the title of its status.
func NewError(status int, message string) wire.Error {
	return wire.Error{StatusCode: status, Title: http.StatusText(status), Message: message}
}

// Correlate derives the correlation id of a request from the one it carries. It sets the id on
// the response and in the context of the returned request.
func Correlate(w http.ResponseWriter, r *http.Request) *http.Request {
	id := wire.NextCorrelationID(r.Header.Get(wire.CorrelationHeader))
	w.Header().Set(wire.CorrelationHeader, id)
	return r.WithContext(WithCorrelationID(r.Context(), id))
}

// WithCorrelationID returns a copy of ctx with a correlation id.
func WithCorrelationID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, correlationKey{}, id)
}

// CorrelationID returns the correlation id of ctx, or "".
func CorrelationID(ctx context.Context) string {
	id, _ := ctx.Value(correlationKey{}).(string)
	return id
}

// CorrelationField is the log field with the correlation id of ctx; no field if there is none.
func CorrelationField(ctx context.Context) zap.Field {
	id := CorrelationID(ctx)
	if id == "" {
		return zap.Skip()
	}
	return zap.String("correlationId", id)
}

type correlationKey struct{}
