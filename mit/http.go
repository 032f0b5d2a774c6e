package mit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster/internal/wire"
)

// A refusal is an error whose message is meant for the caller: it never holds a secret.
type refusal struct {
	status  int
	message string
	// oauth is the error code of RFC 6749 for those who speak plain OAuth2.
	oauth string
}

func (e *refusal) Error() string { return e.message }

func refuse(status int, format string, args ...any) error {
	return &refusal{status: status, message: fmt.Sprintf(format, args...)}
}

type correlationKey struct{}

// correlate puts the correlation id that a request is worked on under into its context and
// onto its answer.
func correlate(w http.ResponseWriter, r *http.Request) *http.Request {
	id := wire.NextCorrelationID(r.Header.Get(wire.CorrelationHeader))
	w.Header().Set(wire.CorrelationHeader, id)
	return r.WithContext(context.WithValue(r.Context(), correlationKey{}, id))
}

// correlation is the log field of the request that ctx belongs to.
func correlation(ctx context.Context) zap.Field {
	id, ok := ctx.Value(correlationKey{}).(string)
	if !ok {
		return zap.Skip()
	}
	return zap.String("correlationId", id)
}

// readBody reads a body of up to limit bytes.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, refuse(http.StatusRequestEntityTooLarge, "the body has more than %d bytes", limit)
	}
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "the body could not be read")
	}
	return body, nil
}

// encoded is JSON that needs no more writing.
type encoded []byte

func answer(w http.ResponseWriter, status int, body any) {
	b, ok := body.(encoded)
	if !ok {
		var err error
		if b, err = json.Marshal(body); err != nil { // only a store that makes up JSON can cause it
			status = http.StatusInternalServerError
			b, _ = json.Marshal(envelope(status, "the answer could not be written"))
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b) // the caller has gone: there is nobody left to tell
}

func envelope(status int, message string) wire.Error {
	return wire.Error{StatusCode: status, Title: http.StatusText(status), Message: message}
}
