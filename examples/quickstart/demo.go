package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/mimiktech/cluster"
)

// A demo is the cluster and the output of its steps.
type demo struct {
	out      io.Writer
	start    time.Time
	registry registry
	nodes    []*node
}

func newDemo(out io.Writer) *demo { return &demo{out: out, start: time.Now()} }

// print prints one statement with the time since the start.
func (d *demo) print(format string, args ...any) {
	fmt.Fprintf(d.out, "%5.2f s  %s\n", time.Since(d.start).Seconds(), fmt.Sprintf(format, args...))
}

// startNode starts a node on a free port.
func (d *demo) startNode(ctx context.Context, it item) (*node, error) {
	ln, err := listen(ctx, "")
	if err != nil {
		return nil, err
	}
	var opts []cluster.Option
	if len(d.nodes) > 0 { // only the first node writes its status to the environment, which all share
		opts = append(opts, cluster.WithoutEnv())
	}
	n, err := newNode(ln, d.registry.address, it, opts...)
	if err != nil {
		ln.Close()
		return nil, err
	}
	n.serve(ctx, ln)
	d.nodes = append(d.nodes, n)
	return n, nil
}

func (d *demo) node(name string) *node {
	return d.nodes[slices.IndexFunc(d.nodes, func(n *node) bool { return n.name == name })]
}

// close ends all that still runs.
func (d *demo) close() {
	for _, n := range d.nodes {
		n.kill()
	}
	d.registry.stop()
}

// check returns an error if got is not want.
func check(what string, got []string, want ...string) error {
	if slices.Equal(got, want) {
		return nil
	}
	return fmt.Errorf("%s: got %q, want %q", what, got, want)
}

// waitFor calls check until it succeeds, for at most five seconds.
func waitFor(ctx context.Context, what string, get func() []string, want ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := check(what, get(), want...)
		if err == nil {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}
