//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

const bareName = "net/http"

// A cannedTransport answers requests to peers from memory, and sends all others to the network.
type cannedTransport struct {
	bodies  map[string][]byte // by host
	network http.RoundTripper
}

func newCannedTransport(e endpoints) cannedTransport {
	t := cannedTransport{bodies: make(map[string][]byte), network: tunedTransport()}
	for _, p := range e.Peers {
		if u, err := url.Parse(p.URL); err == nil { // the stub cluster only sends valid URLs
			t.bodies[u.Host] = peerEnvelope(p.ID, e.Size)
		}
	}
	return t
}

func (t cannedTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	body, ok := t.bodies[req.URL.Host]
	if !ok {
		return t.network.RoundTrip(req)
	}
	if req.Body != nil {
		req.Body.Close()
	}
	return &http.Response{
		StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)), Request: req,
	}, nil
}

// bareHTTP creates, sends and reads one request after another: the minimum with net/http.
type bareHTTP struct {
	urls      []string
	bearer    string
	transport http.RoundTripper
}

func newBareHTTP(_ context.Context, e endpoints) (contestant, error) {
	b := bareHTTP{bearer: "Bearer " + e.Token, transport: newCannedTransport(e)}
	for _, p := range e.Peers {
		b.urls = append(b.urls, p.URL+"/things")
	}
	return b, nil
}

func (b bareHTTP) call(ctx context.Context) (counts, error) {
	var c counts
	for _, u := range b.urls {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, http.NoBody)
		if err != nil {
			return c, err
		}
		req.Header.Set("Authorization", b.bearer)
		resp, err := b.transport.RoundTrip(req)
		if err != nil {
			return c, err
		}
		if _, err := readBody(resp); err != nil {
			return c, err
		}
		c.Results++
	}
	return c, nil
}

func (b bareHTTP) close() {}

// overhead measures what this module adds to a request: the difference between a call and the same
// requests through net/http. Both get their responses from memory.
func (h *harness) overhead(ctx context.Context) (string, error) {
	var b strings.Builder
	b.WriteString("| peers | | time/request | CPU/request | allocs/request | B/request |\n| ---: | --- | ---: | ---: | ---: | ---: |\n")
	for _, peers := range h.Peers {
		cfg := config{conditions: conditions{Peers: peers, Size: h.Size}, Callers: 1, Canned: true}
		results, err := h.measure(ctx, []string{bareName, ours}, cfg)
		if err != nil {
			return "", err
		}
		bare, node := results[0].summary(), results[1].summary()
		requestTime := func(s summary) float64 { return 1e6 / s.CallsPerSec / float64(peers) }
		row := func(name string, time, cpu, allocs, bytes float64) {
			fmt.Fprintf(&b, "| %d | %s | %.2f µs | %.2f µs | %.1f | %.0f |\n", peers, name, time, cpu, allocs, bytes)
		}
		for _, s := range []summary{bare, node} {
			row(s.Name, requestTime(s), s.CPU, s.Allocs, s.Bytes)
		}
		time, cpu, allocs := requestTime(node)-requestTime(bare), node.CPU-bare.CPU, node.Allocs-bare.Allocs
		row("overhead", time, cpu, allocs, node.Bytes-bare.Bytes)
		if peers >= 10 { // with fewer peers the fixed cost of a call dominates
			what := fmt.Sprintf("%d peers: overhead over net/http per peer, ", peers)
			h.checkAtMost(what+"time", "µs", time, 3)
			h.checkAtMost(what+"CPU", "µs", cpu, 3)
			h.checkAtMost(what+"allocations", "", allocs, 15)
		}
	}
	return b.String(), nil
}
