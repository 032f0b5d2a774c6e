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

// yardstick is what everything is compared with: what somebody writes who needs no more.
const (
	yardstick        = "loop"
	bounded          = "loop, bounded"
	defaultTransport = "loop, default transport"
)

// A getter gets one answer, and gives its body if it is a 200.
type getter func(ctx context.Context, url string) ([]byte, error)

// A loop is the fan-out that one writes by hand: a goroutine for each peer, one deadline for the
// call, an answer that is decoded and must be from whom it was asked of. It knows its peers and
// its token once and for all.
type loop struct {
	peers   []seat
	timeout time.Duration
	places  *semaphore.Weighted // nil: as many requests at once as there are peers
	get     getter
	conns   *http.Transport
}

// newLoop completes l when it knows its peers.
func newLoop(l loop, transport func() *http.Transport, with func(token string, t *http.Transport) getter) func(context.Context, place) (fanout, error) {
	return func(_ context.Context, p place) (fanout, error) {
		l := l
		l.timeout, l.conns = p.Timeout, transport()
		l.get = with(p.Token, l.conns)
		for _, s := range p.Peers {
			l.peers = append(l.peers, seat{s.ID, s.URL + "/things"})
		}
		return l, nil
	}
}

// tuned is a transport that keeps a connection for each of sixteen calls at once.
func tuned() *http.Transport {
	dialer := net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	return &http.Transport{
		DialContext:         dialer.DialContext,
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     90 * time.Second,
	}
}

// untuned is http.DefaultTransport, which keeps two connections to each host and a hundred in all.
func untuned() *http.Transport { return http.DefaultTransport.(*http.Transport).Clone() }

// An answered is what a loop has of one peer.
type answered struct {
	data json.RawMessage
	err  error
}

func (l loop) call(ctx context.Context) (tally, error) {
	ctx, cancel := context.WithTimeout(ctx, l.timeout)
	defer cancel()
	got := make([]answered, len(l.peers))
	var wg sync.WaitGroup
	for i, peer := range l.peers {
		if l.places != nil {
			if err := l.places.Acquire(ctx, 1); err != nil {
				return tally{}, err
			}
		}
		wg.Go(func() {
			if l.places != nil {
				defer l.places.Release(1)
			}
			got[i].data, got[i].err = l.ask(ctx, peer)
		})
	}
	wg.Wait()
	var t tally
	for _, a := range got {
		if a.err != nil {
			t.Failures++
		} else {
			t.Results++
		}
	}
	return t, nil
}

func (l loop) ask(ctx context.Context, peer seat) (json.RawMessage, error) {
	body, err := l.get(ctx, peer.URL)
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
	if envelope.Server.ServerID != peer.ID {
		return nil, fmt.Errorf("%q answered instead of %q", envelope.Server.ServerID, peer.ID)
	}
	return envelope.Data, nil
}

func (l loop) close() { l.conns.CloseIdleConnections() }

// plainGetter is net/http alone.
func plainGetter(token string, t *http.Transport) getter {
	return doGetter(token, (&http.Client{Transport: t}).Do)
}

// failsafeGetter has failsafe-go's retry policy for HTTP around it.
func failsafeGetter(token string, t *http.Transport) getter {
	retry := failsafehttp.NewRetryPolicyBuilder().WithMaxRetries(1).WithDelay(retryDelay).Build() //nolint:bodyclose // there is no answer yet
	return doGetter(token, (&http.Client{Transport: failsafehttp.NewRoundTripper(t, retry)}).Do)
}

// As much patience for all who retry as this module has by default.
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
		return read(resp)
	}
}

func read(resp *http.Response) ([]byte, error) {
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
		return read(resp)
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
