package cluster

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/mimiktech/cluster/internal/membership"
	"github.com/mimiktech/cluster/internal/wire"
)

// An Outcome is what came of asking one peer.
type Outcome struct {
	Server Server
	// Body is the peer's answer; nil if it failed.
	Body json.RawMessage
	// Data is the data in it; nil if it has none.
	Data json.RawMessage

	// Err is why the peer failed, nil if it did not, and Kind how.
	Err  error
	Kind Kind
	// Evicted tells that the peer is no longer in the view, because mIT agreed that it is gone.
	Evicted bool
	// Spared is why a peer that could not be reached was not evicted.
	EvictionSkipped error

	// Attempts is how often the peer was asked, 0 if it never came to that.
	Attempts int
	// Duration is how long that took, waiting for a free place in flight included.
	Duration time.Duration
}

// MarshalJSON gives what the npm module's rpCluster has for one server: {"result", "server"}, or
// {"error", "server"}, where the error says in "kind", "attempts", "evicted" and "evictionSkipped" what
// else is known of it.
func (o Outcome) MarshalJSON() ([]byte, error) {
	if o.Err == nil {
		return json.Marshal(struct {
			Result json.RawMessage `json:"result"`
			Server Server          `json:"server"`
		}{o.Body, o.Server})
	}
	type failure struct {
		StatusCode      int             `json:"statusCode,omitempty"`
		Title           string          `json:"title,omitempty"`
		Message         string          `json:"message"`
		Info            json.RawMessage `json:"info,omitempty"`
		Kind            Kind            `json:"kind"`
		Attempts        int             `json:"attempts"`
		Evicted         bool            `json:"evicted"`
		EvictionSkipped string          `json:"evictionSkipped,omitempty"`
	}
	f := failure{Message: o.Err.Error(), Kind: o.Kind, Attempts: o.Attempts, Evicted: o.Evicted}
	if se, ok := errors.AsType[*StatusError](o.Err); ok {
		f.StatusCode, f.Title, f.Info = se.Code, http.StatusText(se.Code), se.Info
		f.Message = cmp.Or(se.Message, f.Message)
	}
	if o.EvictionSkipped != nil {
		f.EvictionSkipped = o.EvictionSkipped.Error()
	}
	return json.Marshal(struct {
		Error  failure `json:"error"`
		Server Server  `json:"server"`
	}{f, o.Server})
}

// A Response is what came of asking all peers: each is exactly once in Results or in Failures,
// both in the order of the servers' ids. It marshals to what the npm module's rpCluster gives.
type Response struct {
	// Data is the data of all results, in the same order: the elements of an array one by one,
	// any other value as it is.
	Data     []json.RawMessage `json:"data"`
	Results  []Outcome         `json:"results"`
	Failures []Outcome         `json:"failures"`
}

// newResponse sorts outcomes into results and failures, in their order.
func newResponse(outcomes []Outcome) *Response {
	r := &Response{Data: []json.RawMessage{}, Results: outcomes, Failures: []Outcome{}} // none is null in JSON
	failures := 0
	for i := range outcomes {
		if outcomes[i].Err != nil {
			failures++
		}
	}
	if failures > 0 {
		r.Results, r.Failures = make([]Outcome, 0, len(outcomes)-failures), make([]Outcome, 0, failures)
		for _, o := range outcomes {
			if o.Err != nil {
				r.Failures = append(r.Failures, o)
			} else {
				r.Results = append(r.Results, o)
			}
		}
	}
	for i := range r.Results {
		r.Data = appendData(r.Data, r.Results[i].Data)
	}
	return r
}

// appendData appends the elements of an array, or the value that is none. data is valid JSON,
// without space around it.
func appendData(all []json.RawMessage, data json.RawMessage) []json.RawMessage {
	if len(data) == 0 || data[0] != '[' {
		if len(data) > 0 {
			all = append(all, data)
		}
		return all
	}
	for _, element := range wire.Each(data) {
		all = append(all, element)
	}
	return all
}

// Decode reads the joint data of a response as values of one type. The first that does not fit
// is an error which names its place.
func Decode[T any](r *Response) ([]T, error) {
	if r == nil {
		return nil, nil
	}
	values := make([]T, len(r.Data))
	for i, data := range r.Data {
		if err := json.Unmarshal(data, &values[i]); err != nil {
			return nil, fmt.Errorf("cluster: element %d of the joint data: %w", i, err)
		}
	}
	return values, nil
}

// readEnvelope reads what a peer answers. An answer by anybody else is none.
func readEnvelope(body []byte, p *membership.Peer, method string) (whole, data json.RawMessage, err error) {
	unusable := func(err error) (whole, data json.RawMessage, _ error) {
		return nil, nil, &InvalidResponseError{remote{"peer", p.ServerID}.String(), method, withoutQuery(p.Base), err}
	}
	if !json.Valid(body) {
		return unusable(json.Unmarshal(body, new(any)))
	}
	var from []byte // it, as JSON
	for name, value := range wire.Each(bytes.TrimSpace(body)) {
		switch _, spelled := wire.MatchField(name, "data", "server"); spelled {
		case "data": // it may be large: it is not decoded, and not copied
			data = value
		case "server":
			from = nil
			for name, value := range wire.Each(value) {
				if _, spelled := wire.MatchField(name, "serverId"); spelled == "serverId" {
					from = value
				}
			}
		}
	}
	if wire.EqualString(from, p.ServerID) {
		return body, data, nil
	}
	got, _ := wire.DecodeString(from, "")
	if got == "" {
		return unusable(errors.New("it does not say which server it is from"))
	}
	return nil, nil, &WrongServerError{URL: withoutQuery(p.Base), Want: p.ServerID, Got: got}
}
