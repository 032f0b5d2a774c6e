package mit

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/mimiktech/cluster/internal/httpjson"
	"github.com/mimiktech/cluster/internal/wire"
)

// An apiError is an error whose message is sent to the caller, so it must not contain a secret.
type apiError struct {
	status  int
	message string
	// oauthCode is the error code of RFC 6749, for callers that speak plain OAuth2.
	oauthCode string
	// retryAfter is the delay to send with the error; 0 for none.
	retryAfter time.Duration
}

func (e *apiError) Error() string { return e.message }

func newAPIError(status int, format string, args ...any) error {
	return &apiError{status: status, message: fmt.Sprintf(format, args...)}
}

// errBusy returns the error of a request that must be repeated later.
func errBusy(status int, retryAfter time.Duration, message string) error {
	return &apiError{status: status, message: message, retryAfter: retryAfter}
}

// setRetryAfter sets Retry-After to d in whole seconds, rounded up.
func setRetryAfter(h http.Header, d time.Duration) {
	if d > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10))
	}
}

func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	if recorder, ok := w.(*statusRecorder); ok {
		w = recorder.ResponseWriter // only a writer of the server closes the connection after a long body
	}
	body, err := httpjson.ReadBody(w, r, limit)
	if bodyErr, ok := errors.AsType[*httpjson.BodyError](err); ok {
		return nil, newAPIError(bodyErr.StatusCode, "%s", bodyErr.Message)
	}
	return body, err
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	b, err := wire.Marshal(body)
	if err != nil { // the store returned invalid JSON
		httpjson.WriteError(w, http.StatusInternalServerError, "the response could not be encoded")
		return
	}
	httpjson.Write(w, status, b)
}
