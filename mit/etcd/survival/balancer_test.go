//go:build unix

package survival

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A balancer sends requests to the healthy replicas in turn, or to any if none is healthy. If a
// replica closes the connection or responds with 503, it tries the next: registrations may be
// repeated.
type balancer struct {
	url      string
	replicas []string // their URLs
	healthy  []atomic.Bool
	busy     []atomic.Int64 // how many requests each has under way
	client   *http.Client

	requests atomic.Int64
	repeated atomic.Int64 // requests that needed more than one replica
}

func newBalancer(t *testing.T, replicas []string) *balancer {
	t.Helper()
	b := &balancer{
		replicas: replicas,
		healthy:  make([]atomic.Bool, len(replicas)),
		busy:     make([]atomic.Int64, len(replicas)),
		client:   &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32}},
	}
	srv := httptest.NewServer(b)
	b.url = srv.URL
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range replicas {
		wg.Go(func() {
			for {
				// A dead replica fails the next request; a slow one is not dead.
				if status := health(ctx, b.client, replicas[i]); status != 0 {
					b.healthy[i].Store(status == http.StatusOK)
				}
				if sleep(ctx, 250*time.Millisecond) != nil {
					return
				}
			}
		})
	}
	t.Cleanup(func() {
		stop()
		srv.CloseClientConnections()
		srv.Close()
		wg.Wait()
		b.client.CloseIdleConnections()
	})
	return b
}

// health returns the status of a replica's health endpoint, 0 without a response within a second.
func health(ctx context.Context, client *http.Client, replica string) int {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, replica+registryPath+"/health", nil)
	if err != nil {
		return 0
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// order returns the replicas to try, in order: the healthy ones, or one if there are none.
func (b *balancer) order() []int {
	first := int(b.requests.Add(1))
	var order []int
	for i := range b.replicas {
		if i = (first + i) % len(b.replicas); b.healthy[i].Load() {
			order = append(order, i)
		}
	}
	if order == nil {
		order = []int{first % len(b.replicas)}
	}
	return order
}

func (b *balancer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	encoding := ""
	status, response := http.StatusBadGateway, []byte(`{"statusCode":502,"title":"Bad Gateway","message":"no replica answers"}`)
	for n, i := range b.order() {
		if n == 1 {
			b.repeated.Add(1)
		}
		code, header, text, err := b.forward(r, i, body)
		if err != nil {
			continue
		}
		status, encoding, response = code, header.Get("Content-Encoding"), text
		if status != http.StatusServiceUnavailable {
			break
		}
	}
	w.Header().Set("Content-Type", "application/json")
	if encoding != "" {
		w.Header().Set("Content-Encoding", encoding)
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(response)))
	w.WriteHeader(status)
	_, _ = w.Write(response)
}

// forward sends a request to one replica.
func (b *balancer) forward(r *http.Request, replica int, body []byte) (status int, header http.Header, response []byte, err error) {
	b.busy[replica].Add(1)
	defer b.busy[replica].Add(-1)
	req, err := http.NewRequestWithContext(r.Context(), r.Method, b.replicas[replica]+r.RequestURI, bytes.NewReader(body))
	if err != nil {
		return 0, nil, nil, err
	}
	req.Header = r.Header.Clone()
	resp, err := b.client.Transport.RoundTrip(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer resp.Body.Close()
	response, err = io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, response, err
}
