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

// bareName is net/http with nothing around it.
const bareName = "bare"

// canned answers for the peers out of memory, and passes on what goes to mIT and mST.
type canned struct {
	bodies  map[string][]byte // by host
	network http.RoundTripper
}

func newCanned(p place) canned {
	c := canned{bodies: make(map[string][]byte), network: tuned()}
	for _, s := range p.Peers {
		if u, err := url.Parse(s.URL); err == nil { // the stub cluster made it
			c.bodies[u.Host] = peerAnswer(s.ID, p.Size)
		}
	}
	return c
}

func (c canned) RoundTrip(req *http.Request) (*http.Response, error) {
	body, ok := c.bodies[req.URL.Host]
	if !ok {
		return c.network.RoundTrip(req)
	}
	if req.Body != nil {
		req.Body.Close()
	}
	return &http.Response{
		StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)), Request: req,
	}, nil
}

// bare makes a request, sends it and reads the answer, for one peer after the other. Nobody can do
// less with net/http.
type bare struct {
	urls   []string
	bearer string
	conns  http.RoundTripper
}

func newBare(_ context.Context, p place) (fanout, error) {
	b := bare{bearer: "Bearer " + p.Token, conns: newCanned(p)}
	for _, s := range p.Peers {
		b.urls = append(b.urls, s.URL+"/things")
	}
	return b, nil
}

func (b bare) call(ctx context.Context) (tally, error) {
	var t tally
	for _, u := range b.urls {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, http.NoBody)
		if err != nil {
			return t, err
		}
		req.Header.Set("Authorization", b.bearer)
		resp, err := b.conns.RoundTrip(req)
		if err != nil {
			return t, err
		}
		if _, err := read(resp); err != nil {
			return t, err
		}
		t.Results++
	}
	return t, nil
}

func (b bare) close() {}

// added measures what this module does for a peer beside the request itself: both have the same
// answers out of memory, and the difference is ours.
func (l *lab) added(ctx context.Context) (string, error) {
	var b strings.Builder
	b.WriteString("| peers | | time/request | CPU/request | allocs/request | B/request |\n| ---: | --- | ---: | ---: | ---: | ---: |\n")
	for _, peers := range l.Peers {
		cells, err := l.cells(ctx, []string{bareName, ours}, setting{weather: weather{Peers: peers, Size: l.Size}, Callers: 1, Canned: true})
		if err != nil {
			return "", err
		}
		bare, whole := cells[0].row(), cells[1].row()
		took := func(r row) float64 { return 1e6 / r.CallsPerSec / float64(peers) }
		line := func(what string, took, cpu, allocs, bytes float64) {
			fmt.Fprintf(&b, "| %d | %s | %.2f µs | %.2f µs | %.1f | %.0f |\n", peers, what, took, cpu, allocs, bytes)
		}
		for _, r := range []row{bare, whole} {
			line(r.Name, took(r), r.CPU, r.Allocs, r.Bytes)
		}
		time, cpu, allocs := took(whole)-took(bare), whole.CPU-bare.CPU, whole.Allocs-bare.Allocs
		line("added", time, cpu, allocs, whole.Bytes-bare.Bytes)
		if peers >= 10 { // what a call costs once is spread over its peers
			what := fmt.Sprintf("%d peers: added to bare net/http per peer, ", peers)
			l.atMost(what+"time", "µs", time, 3)
			l.atMost(what+"CPU", "µs", cpu, 3)
			l.atMost(what+"allocations", "", allocs, 15)
		}
	}
	return b.String(), nil
}
