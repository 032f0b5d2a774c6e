//go:build linux

package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/mimiktech/cluster"
)

// A member is a node of this module as a service has it: registered, with tokens from mST, the
// default retry and eviction, its status in the environment, and a trace that counts.
type member struct {
	*cluster.Cluster
	asked *atomic.Int64
}

func newMember(ctx context.Context, p place) (fanout, error) {
	m := member{asked: new(atomic.Int64)}
	var events atomic.Int64
	count := func() { events.Add(1) }
	c, err := cluster.New(cluster.Config{
		Type: "mds", ID: "me", Port: 1, LocalIPv4: "127.0.0.1", BasePath: basePath, Management: true,
		RequestTimeout: p.Timeout,
		RegistryURL:    p.Registry, RegistryAudience: "mIT", PeerAudience: "mds", Issuer: p.Issuer,
		ClientID: "mds", ClientSecret: "secret", ClientAccessKey: "key", ClientAudience: "mds",
	}, cluster.WithTrace(&cluster.Trace{
		StateChanged: func(_, _ cluster.Status) { count() },
		Renewed:      func(_, _ time.Duration) { count() },
		RenewFailed:  func(error, time.Duration) { count() },
		Asked:        func(cluster.Outcome) { m.asked.Add(1) },
		Evicted:      func(cluster.Server) { count() },
		Spared:       func(cluster.Server, error) { count() },
		TokenFetched: func(cluster.TokenKey, error) { count() },
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
	r, err := m.RPCluster(ctx, cluster.Request{Path: "/things"})
	if err != nil {
		return tally{}, err
	}
	return tally{len(r.Results), len(r.Failures)}, nil
}

func (m member) stream(ctx context.Context) (t tally, first time.Duration) {
	start := time.Now()
	for o := range m.Stream(ctx, cluster.Request{Path: "/things"}) {
		if first == 0 {
			first = time.Since(start)
		}
		if o.Err != nil {
			t.Failures++
		} else {
			t.Results++
		}
	}
	return t, first
}

func (m member) close() { _ = m.Close() } // it returns nil

// rest does nothing: a Cluster keeps no more connections than it may have requests in flight.
func (m member) rest() {}
