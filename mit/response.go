package mit

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/mimiktech/cluster/internal/httpjson"
	"github.com/mimiktech/cluster/internal/wire"
)

// An apiError is an error whose message is sent to the caller, so it must not contain a secret.
type apiError struct {
	status  int
	message string
	// oauthCode is the error code of RFC 6749, for callers that speak plain OAuth2.
	oauthCode string
}

func (e *apiError) Error() string { return e.message }

func newAPIError(status int, format string, args ...any) error {
	return &apiError{status: status, message: fmt.Sprintf(format, args...)}
}

func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	body, err := httpjson.ReadBody(w, r, limit)
	if bodyErr, ok := errors.AsType[*httpjson.BodyError](err); ok {
		return nil, newAPIError(bodyErr.StatusCode, "%s", bodyErr.Message)
	}
	return body, err
}

// writeJSON calls MarshalJSON itself if body has it: json.Marshal would scan and copy the result,
// which takes longer than encoding a long list.
func writeJSON(w http.ResponseWriter, status int, body any) {
	var b []byte
	var err error
	if m, ok := body.(json.Marshaler); ok {
		b, err = m.MarshalJSON()
	} else {
		b, err = json.Marshal(body)
	}
	if err != nil { // the store returned invalid JSON
		httpjson.WriteError(w, http.StatusInternalServerError, "the response could not be encoded")
		return
	}
	httpjson.Write(w, status, b)
}

// registered is the response with a resource; leaseTime is in milliseconds, nil for none.
type registered struct {
	Resource
	leaseTime *float64
}

// MarshalJSON concatenates the entries that the store has encoded.
func (r registered) MarshalJSON() ([]byte, error) {
	return wire.EncodeRegistered(wire.Registered{
		ItResource: &wire.ItResource{ID: r.ID, Type: r.Type, PublicBaseURL: r.PublicBaseURL},
		LeaseTime:  r.leaseTime,
	}, len(r.Servers), func(i int) *wire.Server { return (*wire.Server)(&r.Servers[i]) })
}
