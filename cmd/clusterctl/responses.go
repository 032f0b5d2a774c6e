package main

import (
	"crypto/x509"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/mimiktech/cluster/internal/wire"
)

// responses records the clock and the certificates of each host, as its last response shows them.
type responses struct {
	secrets *secrets // gets the tokens of all requests

	mu     sync.Mutex // guards the field below
	byHost map[string]observation
}

// An observation is what the last response of a host shows.
type observation struct {
	hasDate bool
	ahead   time.Duration // by which the clock of this machine is ahead, at least; negative if behind
	chain   []*x509.Certificate
}

func newResponses(tokens *secrets) *responses {
	return &responses{secrets: tokens, byHost: make(map[string]observation)}
}

// snapshot returns the observations by host, with a port if the URLs have one.
func (r *responses) snapshot() map[string]observation {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.byHost)
}

// record returns a transport that records the responses of next.
func (r *responses) record(next http.RoundTripper) http.RoundTripper { return recorder{r, next} }

type recorder struct {
	responses *responses
	next      http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (r recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	if bearer, ok := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer "); ok {
		r.responses.secrets.add(bearer)
	}
	sent := time.Now()
	resp, err := r.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	var o observation
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		o.hasDate, o.ahead = true, wire.ClockAhead(date, sent, time.Now())
	}
	if resp.TLS != nil {
		o.chain = resp.TLS.PeerCertificates
	}
	r.responses.mu.Lock()
	defer r.responses.mu.Unlock()
	r.responses.byHost[req.URL.Host] = o
	return resp, nil
}
