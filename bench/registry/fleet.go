package main

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	requestTimeout = 10 * time.Second
	firstPause     = 3 * time.Second
	maxPause       = 30 * time.Second
	decodedShare   = 50 // one response in so many is decoded: all of them would take all CPU time
)

// A fleet is the nodes of one type, with the pauses and timeouts of real ones.
type fleet struct {
	p      *process
	target string
	s      settings

	registered, rejected, failed             atomic.Int64
	maxDiscarded, maxAttempts, slowest, lost atomic.Int64
}

func newFleet(p *process, target string, s settings) *fleet {
	return &fleet{p: p, target: target, s: s}
}

// registerAll starts all nodes. The channel is closed when all are registered or ctx ends.
func (f *fleet) registerAll(ctx context.Context) <-chan struct{} {
	done := make(chan struct{})
	var wg sync.WaitGroup
	for i := range f.s.nodes {
		wg.Go(func() {
			if f.s.spread > 0 {
				pause(ctx, rand.N(f.s.spread))
			}
			n := newNode(f, i)
			defer n.close()
			n.register(ctx)
		})
	}
	go func() { wg.Wait(); close(done) }()
	return done
}

// A node is one simulated node.
type node struct {
	f      *fleet
	id     string
	url    string
	client http.Client
}

func newNode(f *fleet, i int) *node {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 1+byte(i>>16), byte(i>>8), byte(i))}}
	return &node{
		f: f, id: fmt.Sprintf("%08x-4f1c-4a56-9a3b-%012x", i*2654435761&0xffffffff, rand.Uint64N(1<<48)),
		url: fmt.Sprintf("http://10.%d.%d.%d:8080/mds/v1", i>>16&255, i>>8&255, i&255),
		client: http.Client{Timeout: requestTimeout, Transport: &http.Transport{
			DialContext: dialer.DialContext, DisableCompression: true, IdleConnTimeout: 90 * time.Second,
		}},
	}
}

func (n *node) close() { n.client.CloseIdleConnections() }

// register tries until the node is registered, with the pauses of the library.
func (n *node) register(ctx context.Context) {
	began, next := time.Now(), firstPause
	attempts, discarded := int64(0), int64(0)
	for ctx.Err() == nil {
		attempts++
		wait, err := n.renew(ctx)
		if err == nil {
			n.f.registered.Add(1)
			maximum(&n.f.slowest, int64(time.Since(began)))
			break
		}
		switch {
		case errors.Is(err, errRejected):
			n.f.rejected.Add(1)
		case errors.Is(err, errDiscarded):
			discarded++
			n.f.failed.Add(1)
		default:
			n.f.failed.Add(1)
		}
		switch {
		case n.f.s.fixedPauses:
			wait = jitter(firstPause)
		case wait > 0:
			wait += time.Duration(rand.Float64() * float64(wait) / 4)
		default:
			wait, next = jitter(next), min(next*3/2, maxPause)
		}
		pause(ctx, wait)
	}
	maximum(&n.f.maxDiscarded, discarded)
	maximum(&n.f.maxAttempts, attempts)
}

var (
	errRejected  = errors.New("the registry is busy")
	errDiscarded = errors.New("the response was not received in time")
)

// renew sends one registration and reads the response.
func (n *node) renew(ctx context.Context) (retryAfter time.Duration, err error) {
	body := fmt.Sprintf(`{"type":%q,"serverId":%q,"publicBaseUrl":"https://example.com/mds/v1","clusterBaseUrl":%q,`+
		`"location":{"type":"Point","coordinates":[2.35,48.86]}}`, typeGood, n.id, n.url)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+n.f.target+resourcesPath, strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	r.Header.Set("Authorization", "Bearer "+n.f.p.tokens[typeGood])
	r.Header.Set("Accept-Encoding", "gzip")
	res, err := n.client.Do(r)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusServiceUnavailable {
		_, _ = io.Copy(io.Discard, res.Body) // to reuse the connection
		seconds, _ := strconv.Atoi(res.Header.Get("Retry-After"))
		return time.Duration(seconds) * time.Second, errRejected
	}
	if res.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("status %d", res.StatusCode)
	}
	if rand.N(decodedShare) == 0 {
		err = n.check(res)
	} else {
		_, err = io.Copy(io.Discard, res.Body)
	}
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errDiscarded, err)
	}
	return 0, nil
}

// check decodes the list and looks for the node in it.
func (n *node) check(res *http.Response) error {
	var from io.Reader = res.Body
	if res.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(res.Body)
		if err != nil {
			return err
		}
		from = z
	}
	var list struct {
		ItResource struct {
			Servers []struct {
				ServerID string `json:"serverId"`
			} `json:"servers"`
		} `json:"itResource"`
	}
	if err := json.NewDecoder(from).Decode(&list); err != nil {
		return err
	}
	for _, s := range list.ItResource.Servers {
		if s.ServerID == n.id {
			return nil
		}
	}
	n.f.lost.Add(1)
	return errors.New("the response does not list its node")
}

func jitter(d time.Duration) time.Duration { return d*2/3 + rand.N(d*2/3) }

// pause blocks for a time or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
