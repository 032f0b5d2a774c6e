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
	hedged = "cluster, hedged" // in the tail experiment only
	// overNetHTTP is the same with net/http's transport instead of the direct one.
	overNetHTTP = "cluster over net/http"
)

// A node is a node of this module as a service configures it: registered, with tokens from the
// token service, the default retry and eviction policies, its status in the environment, and a
// trace.
type node struct {
	*cluster.Cluster
	req  cluster.Request
	done *atomic.Int64 // number of PeerDone events

	client *http.Client // nil: that of the node
}

// nodeConstructor returns a function that creates a node whose calls send req. If transport is nil,
// the node creates its own transports.
func nodeConstructor(req cluster.Request, transport func() *http.Transport) func(context.Context, endpoints) (contestant, error) {
	return func(ctx context.Context, e endpoints) (contestant, error) {
		switch {
		case e.Canned:
			return newNode(ctx, e, req, &http.Client{Transport: newCannedTransport(e)})
		case transport != nil:
			return newNode(ctx, e, req, &http.Client{Transport: transport()})
		}
		return newNode(ctx, e, req, nil)
	}
}

func newNode(ctx context.Context, e endpoints, req cluster.Request, client *http.Client) (contestant, error) {
	n := node{req: req, done: new(atomic.Int64), client: client}
	var events atomic.Int64
	count := func() { events.Add(1) }
	c, err := cluster.New(cluster.Config{
		Type: "mds", ID: "me", Port: 1, LocalIPv4: "127.0.0.1", BasePath: basePath, Management: true,
		RequestTimeout: e.Timeout,
		RegistryURL:    e.Registry, RegistryAudience: "mIT", PeerAudience: "mds", Issuer: e.Issuer,
		ClientID: "mds", ClientSecret: "secret", ClientAccessKey: "key", ClientAudience: "mds",
	}, cluster.WithHTTPClient(client), cluster.WithTrace(&cluster.Trace{
		StateChanged:    func(context.Context, cluster.Status, cluster.Status) { count() },
		PeerDone:        func(context.Context, cluster.Outcome) { n.done.Add(1) },
		EvictionDecided: func(context.Context, cluster.EvictionDecision) { count() },
		Renewal: func(ctx context.Context, _ cluster.RenewalInfo) (context.Context, func(cluster.RenewalResult)) {
			return ctx, func(cluster.RenewalResult) { count() }
		},
		TokenFetch: func(ctx context.Context, _ cluster.TokenKey) (context.Context, func(error)) {
			return ctx, func(error) { count() }
		},
	}))
	if err != nil {
		return nil, err
	}
	n.Cluster = c
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	r, err := c.Register(ctx)
	if err != nil {
		return nil, err
	}
	if len(r.Results) != len(e.Peers) {
		err := fmt.Errorf("announced to %d of %d peers", len(r.Results), len(e.Peers))
		if len(r.Failures) > 0 {
			err = fmt.Errorf("%w: %w", err, r.Failures[0].Err)
		}
		return nil, err
	}
	return n, nil
}

func (n node) call(ctx context.Context) (counts, error) {
	r, err := n.RPCluster(ctx, n.req)
	if err != nil {
		return counts{}, err
	}
	return counts{len(r.Results), len(r.Failures)}, nil
}

func (n node) stream(ctx context.Context) (c counts, first, last time.Duration) {
	start := time.Now()
	for o := range n.Stream(ctx, n.req) {
		at := time.Since(start)
		if first == 0 {
			first = at
		}
		if o.Err != nil {
			c.Failures++
			continue
		}
		c.Results++
		last = at
	}
	return c, first, last
}

func (n node) close() {
	_ = n.Close() // always nil
	if n.client != nil {
		n.client.CloseIdleConnections()
	}
}
