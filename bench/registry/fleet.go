package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
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

	"github.com/google/uuid"
)

const (
	requestTimeout = 10 * time.Second
	firstPause     = 3 * time.Second
	maxPause       = 30 * time.Second
)

// A fleet is the nodes of one type, with the pauses and timeouts of real ones.
type fleet struct {
	p      *process
	target string
	s      settings

	registered, rejected, failed       atomic.Int64
	maxDiscarded, maxAttempts, slowest atomic.Int64
	decoded, wrong                     atomic.Int64 // lists; those without their node
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
			n := newNode(f, i, 0)
			defer n.close()
			n.register(ctx)
		})
	}
	go func() { wg.Wait(); close(done) }()
	return done
}

// checkLists returns an error unless all lists that were decoded had their node.
func (f *fleet) checkLists() error {
	if decoded, wrong := f.decoded.Load(), f.wrong.Load(); wrong > 0 {
		return fmt.Errorf("%d of %d responses were not a list with its node", wrong, decoded)
	}
	return nil
}

// A node is one simulated node.
type node struct {
	f      *fleet
	id     uuid.UUID
	body   string // of its registrations
	client http.Client
}

// newNode returns the ith node after some restarts. Its id, address and location are random,
// because they determine how well a list can be compressed. The same arguments and seed give the
// same values.
func newNode(f *fleet, i, restarts int) *node {
	id := uuid.NewSHA1(uuid.Nil, fmt.Append(nil, f.s.seed, i, restarts))
	random := rand.New(rand.NewPCG(binary.BigEndian.Uint64(id[:8]), binary.BigEndian.Uint64(id[8:])))
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 64+byte(i>>16), byte(i>>8), byte(i))}}
	return &node{
		f: f, id: id,
		body: fmt.Sprintf(`{"type":%q,"serverId":%q,"publicBaseUrl":"https://example.com/mds/v1",`+
			`"clusterBaseUrl":"http://10.%d.%d.%d:8080/mds/v1","location":{"type":"Point","coordinates":[%.4f,%.4f]}}`,
			typeGood, id, random.IntN(256), random.IntN(256), random.IntN(256), random.Float64()*360-180, random.Float64()*180-90),
		client: http.Client{Timeout: f.s.timeout, Transport: &http.Transport{
			DialContext: dialer.DialContext, DisableCompression: true, IdleConnTimeout: 90 * time.Second,
		}},
	}
}

func (n *node) close() { n.client.CloseIdleConnections() }

// register tries until the node is registered, with the pauses of the library.
func (n *node) register(ctx context.Context) {
	began, next := time.Now(), n.f.s.pause
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
		case ctx.Err() != nil:
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
			wait = jitter(n.f.s.pause)
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
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+n.f.target+resourcesPath, strings.NewReader(n.body))
	if err != nil {
		return 0, err
	}
	r.Header.Set("Authorization", "Bearer "+n.f.p.tokens[typeGood])
	r.Header.Set("Accept-Encoding", "gzip")
	res, err := n.client.Do(r)
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return 0, fmt.Errorf("%w: %w", errDiscarded, err)
	}
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		_, _ = io.Copy(io.Discard, res.Body) // to reuse the connection
		seconds, _ := strconv.Atoi(res.Header.Get("Retry-After"))
		if res.StatusCode == http.StatusServiceUnavailable && seconds > 0 {
			return time.Duration(seconds) * time.Second, errRejected
		}
		return 0, fmt.Errorf("status %d", res.StatusCode)
	}
	var list bytes.Buffer
	to := io.Discard
	decode := rand.IntN(n.f.s.decode) == 0
	if decode {
		to = &list
	}
	if _, err := io.Copy(to, res.Body); err != nil {
		return 0, fmt.Errorf("%w: %w", errDiscarded, err)
	}
	if decode {
		n.f.decoded.Add(1)
		if err := n.check(&list, res.Header.Get("Content-Encoding")); err != nil {
			n.f.wrong.Add(1)
			return 0, err
		}
	}
	return 0, nil
}

// check decodes a list and looks for the node in it.
func (n *node) check(body io.Reader, encoding string) error {
	if encoding == "gzip" {
		z, err := gzip.NewReader(body)
		if err != nil {
			return err
		}
		body = z
	}
	var list struct {
		ItResource struct {
			Servers []struct {
				ServerID string `json:"serverId"`
			} `json:"servers"`
		} `json:"itResource"`
	}
	if err := json.NewDecoder(body).Decode(&list); err != nil {
		return fmt.Errorf("the response is not a list: %w", err)
	}
	for _, s := range list.ItResource.Servers {
		if s.ServerID == n.id.String() {
			return nil
		}
	}
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
