//go:build linux

package main

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/mimiktech/cluster"
)

const (
	ours   = "cluster"
	hedged = "cluster, hedged" // takes part in tail alone
)

// A member is a node of this module as a service has it: registered, with tokens from mST, the
// default retry and eviction, its status in the environment, and a trace that counts.
type member struct {
	*cluster.Cluster
	req   cluster.Request
	asked *atomic.Int64
}

// newMember makes members that ask their peers for req.
func newMember(req cluster.Request) func(context.Context, place) (fanout, error) {
	return func(ctx context.Context, p place) (fanout, error) { return enter(ctx, p, req) }
}

func enter(ctx context.Context, p place, req cluster.Request) (fanout, error) {
	m := member{req: req, asked: new(atomic.Int64)}
	var events atomic.Int64
	count := func() { events.Add(1) }
	var client *http.Client // its own transports
	if p.Canned {
		client = &http.Client{Transport: newCanned(p)}
	}
	c, err := cluster.New(cluster.Config{
		Type: "mds", ID: "me", Port: 1, LocalIPv4: "127.0.0.1", BasePath: basePath, Management: true,
		RequestTimeout: p.Timeout,
		RegistryURL:    p.Registry, RegistryAudience: "mIT", PeerAudience: "mds", Issuer: p.Issuer,
		ClientID: "mds", ClientSecret: "secret", ClientAccessKey: "key", ClientAudience: "mds",
	}, cluster.WithHTTPClient(client), cluster.WithTrace(&cluster.Trace{
		StateChanged:    func(_, _ cluster.Status) { count() },
		Renewed:         func(_, _ time.Duration) { count() },
		RenewFailed:     func(error, time.Duration) { count() },
		PeerDone:        func(cluster.Outcome) { m.asked.Add(1) },
		Evicted:         func(cluster.Server) { count() },
		EvictionSkipped: func(cluster.Server, error) { count() },
		TokenFetched:    func(cluster.TokenKey, error) { count() },
	}))
	if err != nil {
		return nil, err
	}
	m.Cluster = c
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	r, err := c.Register(ctx)
	if err != nil {
		return nil, err
	}
	if len(r.Results) != len(p.Peers) {
		return nil, fmt.Errorf("announced to %d of %d peers", len(r.Results), len(p.Peers))
	}
	return m, nil
}

func (m member) call(ctx context.Context) (tally, error) {
	r, err := m.RPCluster(ctx, m.req)
	if err != nil {
		return tally{}, err
	}
	return tally{len(r.Results), len(r.Failures)}, nil
}

func (m member) stream(ctx context.Context) (t tally, first, good time.Duration) {
	start := time.Now()
	for o := range m.Stream(ctx, m.req) {
		at := time.Since(start)
		if first == 0 {
			first = at
		}
		if o.Err != nil {
			t.Failures++
			continue
		}
		t.Results++
		good = at
	}
	return t, first, good
}

func (m member) close() { _ = m.Close() } // it returns nil
