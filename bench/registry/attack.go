package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const storming = 50 // nodes that renew at the same time

// unread measures the registry while one client registers long entries and does not read lists.
func unread(ctx context.Context, p *process, s settings, w io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, s.duration)
	defer cancel()
	s.hostile.idle = 0
	h := newHostileClient(p, s.hostile)
	err := checkHealth(ctx, p, s, w, func() { h.attack(ctx) })
	fmt.Fprintln(w, h)
	return errors.Join(h.check(), err)
}

// attack measures the registry while all nodes renew in turn without a pause, a number of them
// (storming) at a time. One client registers long entries, does not read lists, and keeps
// connections open.
func attack(ctx context.Context, p *process, s settings, w io.Writer) error {
	f := newFleet(p, p.address, s)
	nodes := make([]*node, s.nodes)
	for i := range nodes {
		nodes[i] = newNode(f, i, 0)
	}
	if err := f.fill(ctx, nodes); err != nil {
		return fmt.Errorf("registering the nodes: %w", err)
	}
	fmt.Fprintf(w, "%d nodes are registered\n", len(nodes))

	ctx, cancel := context.WithTimeout(ctx, s.duration)
	defer cancel()
	var r renewals
	h := newHostileClient(p, s.hostile)
	err := checkHealth(ctx, p, s, w, func() {
		var wg sync.WaitGroup
		for i := range storming {
			wg.Go(func() { r.storm(ctx, nodes, i) })
		}
		h.attack(ctx)
		cancel()
		wg.Wait()
	})
	fmt.Fprintf(w, "storm: %v\n%v\n", &r, h)
	return errors.Join(h.check(), r.check(storming), f.checkLists(), err)
}

// storm renews every storming-th node, from first on, one after the other until ctx ends.
func (r *renewals) storm(ctx context.Context, nodes []*node, first int) {
	for i := first; ctx.Err() == nil; i += storming {
		n := nodes[i%len(nodes)]
		wait, err := n.renew(ctx)
		r.count(ctx, err)
		n.close()
		if err != nil {
			pause(ctx, min(max(wait, 100*time.Millisecond), time.Second))
		}
	}
}

// fill registers all nodes, a few at a time.
func (f *fleet) fill(ctx context.Context, nodes []*node) error {
	var wg sync.WaitGroup
	next := make(chan *node)
	var failure atomic.Pointer[error]
	for range 4 {
		wg.Go(func() {
			for n := range next {
				for try := 0; ; try++ {
					_, err := n.renew(ctx)
					if err == nil || try == 20 {
						if err != nil {
							failure.Store(&err)
						}
						break
					}
					pause(ctx, 100*time.Millisecond)
				}
				n.close()
			}
		})
	}
	for _, n := range nodes {
		if failure.Load() != nil || ctx.Err() != nil {
			break
		}
		next <- n
	}
	close(next)
	wg.Wait()
	if err := failure.Load(); err != nil {
		return *err
	}
	return ctx.Err()
}
