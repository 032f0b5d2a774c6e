//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/failsafe-go/failsafe-go/failsafehttp"
	"github.com/go-resty/resty/v2"
	"github.com/hashicorp/go-retryablehttp"
	"golang.org/x/sync/semaphore"
)

// The names of the variants of loop. All contestants are compared with the baseline.
const (
	baseline         = "loop"
	bounded          = "loop, bounded"
	defaultTransport = "loop, default transport"
)

// A getter sends a GET request and returns the body of the response. A status other than 200 is an
// error.
type getter func(ctx context.Context, url string) ([]byte, error)

// A loop is a hand-written fan-out: one goroutine per peer and one deadline per call. It decodes
// each response and checks that the expected server sent it. Its peers and its token are fixed.
type loop struct {
	peers     []peer
	timeout   time.Duration
	sem       *semaphore.Weighted // nil: no limit
	get       getter
	transport *http.Transport
}

// loopConstructor returns a function that fills in the missing fields of a copy of l.
func loopConstructor(l loop, transport func() *http.Transport, newGetter func(token string, t *http.Transport) getter) func(context.Context, endpoints) (contestant, error) {
	return func(_ context.Context, e endpoints) (contestant, error) {
		l := l
		l.timeout, l.transport = e.Timeout, transport()
		l.get = newGetter(e.Token, l.transport)
		for _, p := range e.Peers {
			l.peers = append(l.peers, peer{p.ID, p.URL + "/things"})
		}
		return l, nil
	}
}

// tunedTransport keeps up to sixteen idle connections per host, enough for the concurrent calls.
func tunedTransport() *http.Transport {
	dialer := net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	return &http.Transport{
		DialContext:         dialer.DialContext,
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     90 * time.Second,
	}
}

// cloneDefaultTransport returns a copy of http.DefaultTransport, which keeps two idle connections
// per host and a hundred in total.
func cloneDefaultTransport() *http.Transport { return http.DefaultTransport.(*http.Transport).Clone() }

func (l loop) call(ctx context.Context) (counts, error) {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	type reply struct {
		data json.RawMessage
		err  error
	}
	replies := make([]reply, len(l.peers))
	var wg sync.WaitGroup
	for i, p := range l.peers {
		if l.sem != nil {
			if err := l.sem.Acquire(ctx, 1); err != nil {
				return counts{}, err
			}
		}
		wg.Go(func() {
			if l.sem != nil {
				defer l.sem.Release(1)
			}
			replies[i].data, replies[i].err = l.callPeer(ctx, p)
		})
	}
	wg.Wait()
	var c counts
	for _, r := range replies {
		if r.err != nil {
			c.Failures++
		} else {
			c.Results++
		}
	}
	return c, nil
}

func (l loop) callPeer(ctx context.Context, p peer) (json.RawMessage, error) {
	body, err := l.get(ctx, p.URL)
	if err != nil {
		return nil, err
	}
	var envelope struct {
		Data   json.RawMessage `json:"data"`
		Server struct {
			ServerID string `json:"serverId"`
		} `json:"server"`
	}
	if err := json.Unmarshal(body, &envelope); err != nil {
		return nil, err
	}
	if envelope.Server.ServerID != p.ID {
		return nil, fmt.Errorf("response from %q instead of %q", envelope.Server.ServerID, p.ID)
	}
	return envelope.Data, nil
}

func (l loop) close() { l.transport.CloseIdleConnections() }

// plainGetter uses net/http alone.
func plainGetter(token string, t *http.Transport) getter {
	return doGetter(token, (&http.Client{Transport: t}).Do)
}

// failsafeGetter adds the HTTP retry policy of failsafe-go.
func failsafeGetter(token string, t *http.Transport) getter {
	retry := failsafehttp.NewRetryPolicyBuilder().WithMaxRetries(1).WithDelay(retryDelay).Build() //nolint:bodyclose // there is no response yet
	return doGetter(token, (&http.Client{Transport: failsafehttp.NewRoundTripper(t, retry)}).Do)
}

// retryDelay is the default of this module, used for all contestants that retry.
const retryDelay = 10 * time.Millisecond

func doGetter(token string, do func(*http.Request) (*http.Response, error)) getter {
	return func(ctx context.Context, url string) ([]byte, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := do(req)
		if err != nil {
			return nil, err
		}
		return readBody(resp)
	}
}

func readBody(resp *http.Response) ([]byte, error) {
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %s", resp.Status)
	}
	if resp.ContentLength < 0 {
		return io.ReadAll(resp.Body)
	}
	body := make([]byte, resp.ContentLength)
	_, err := io.ReadFull(resp.Body, body)
	return body, err
}

func retryableGetter(token string, t *http.Transport) getter {
	client := retryablehttp.NewClient()
	client.HTTPClient = &http.Client{Transport: t}
	client.Logger = nil
	client.RetryMax, client.RetryWaitMin, client.RetryWaitMax = 1, retryDelay, retryDelay
	return func(ctx context.Context, url string) ([]byte, error) {
		req, err := retryablehttp.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		return readBody(resp)
	}
}

func restyGetter(token string, t *http.Transport) getter {
	client := resty.New().SetTransport(t).SetAuthToken(token).
		SetRetryCount(1).SetRetryWaitTime(retryDelay).SetRetryMaxWaitTime(retryDelay)
	return func(ctx context.Context, url string) ([]byte, error) {
		resp, err := client.R().SetContext(ctx).Get(url)
		if err != nil {
			return nil, err
		}
		if !resp.IsSuccess() {
			return nil, fmt.Errorf("status %s", resp.Status())
		}
		return resp.Body(), nil
	}
}
