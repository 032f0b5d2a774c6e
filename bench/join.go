//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
)

// initialNodes is the number of nodes in the group that another node joins.
const initialNodes = 10

// A group consists of nodes in this process that know of each other. They use loopback addresses.
type group interface {
	// add creates a node that has not joined yet.
	add(ctx context.Context, name string) (joiner, error)
	// countAware returns the number of nodes, except itself, that know of the named node.
	countAware(name string) int
	close()
}

// A joiner is a node that can join and leave its group.
type joiner interface {
	join(ctx context.Context) error
	leave(ctx context.Context) error
	close()
}

// A notifier wakes up await when the view of a node may have changed. Its capacity is one.
type notifier chan struct{}

func (n notifier) notify() {
	select {
	case n <- struct{}{}:
	default: // a notification is pending
	}
}

// await blocks until done returns true. It calls done again after each notification.
func (n notifier) await(ctx context.Context, done func() bool) error {
	for !done() {
		select {
		case <-n:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// join measures how long it takes until all nodes know that a node has joined or left, with this
// module and with a gossip library.
func (h *harness) join(ctx context.Context) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "| node joins %d others | join returns | known to all | leave returns | removed everywhere |\n| --- | ---: | ---: | ---: | ---: |\n", initialNodes)
	for _, system := range []struct {
		name     string
		newGroup func(context.Context, notifier) (group, error)
	}{
		{ours, newClusterGroup},
		{"memberlist, LAN defaults", gossipConstructor(memberlist.DefaultLANConfig)},
		{"memberlist, local defaults", gossipConstructor(memberlist.DefaultLocalConfig)},
	} {
		h.log("join: %s", system.name)
		m, err := h.measureJoins(ctx, system.newGroup)
		if err != nil {
			return "", fmt.Errorf("%s: %w", system.name, err)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", system.name, ms(m.joined), ms(m.known), ms(m.left), ms(m.removed))
	}
	return b.String(), nil
}

// joinTimes are the times since the start of a join and of a leave.
type joinTimes struct {
	joined, known time.Duration // join returned; all nodes know of the new one
	left, removed time.Duration // leave returned; no node knows of it any more
}

// measureJoins returns the medians over all rounds.
func (h *harness) measureJoins(ctx context.Context, newGroup func(context.Context, notifier) (group, error)) (joinTimes, error) {
	n := make(notifier, 1)
	g, err := newGroup(ctx, n)
	if err != nil {
		return joinTimes{}, err
	}
	defer g.close()
	var all []joinTimes
	for r := range h.Rounds {
		t, err := measureJoin(ctx, g, n, fmt.Sprintf("joiner-%d", r))
		if err != nil {
			return joinTimes{}, err
		}
		all = append(all, t)
	}
	medianOf := func(value func(joinTimes) time.Duration) time.Duration {
		var values []time.Duration
		for _, t := range all {
			values = append(values, value(t))
		}
		return medianDuration(values)
	}
	return joinTimes{
		joined:  medianOf(func(t joinTimes) time.Duration { return t.joined }),
		known:   medianOf(func(t joinTimes) time.Duration { return t.known }),
		left:    medianOf(func(t joinTimes) time.Duration { return t.left }),
		removed: medianOf(func(t joinTimes) time.Duration { return t.removed }),
	}, nil
}

// measureJoin lets one node join and leave. The timeout is long: a node that missed a gossip
// message learns of the change only at the next full exchange or probe.
func measureJoin(ctx context.Context, g group, n notifier, name string) (t joinTimes, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, errors.New("not all nodes learned of it"))
	defer cancel()
	j, err := g.add(ctx, name)
	if err != nil {
		return t, err
	}
	defer j.close()
	if t.joined, t.known, err = timeUntil(ctx, n, j.join, func() bool { return g.countAware(name) == initialNodes }); err != nil {
		return t, err
	}
	t.left, t.removed, err = timeUntil(ctx, n, j.leave, func() bool { return g.countAware(name) == 0 })
	return t, err
}

// timeUntil starts action. It returns the time until action returned and the time until done was
// true, which may be shorter.
func timeUntil(ctx context.Context, n notifier, action func(context.Context) error, done func() bool) (returned, wasDone time.Duration, err error) {
	start := time.Now()
	result := make(chan error, 1)
	go func() {
		err := action(ctx)
		returned = time.Since(start)
		result <- err
	}()
	err = n.await(ctx, done)
	wasDone = time.Since(start)
	err = errors.Join(err, <-result)
	return returned, wasDone, err
}

// serve serves the handler of newHandler on a free port until the server is closed.
func serve(ctx context.Context, newHandler func(port int) (http.Handler, error)) (*http.Server, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	h, err := newHandler(ln.Addr().(*net.TCPAddr).Port)
	if err != nil {
		ln.Close()
		return nil, err
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	go srv.Serve(ln) //nolint:errcheck // it ends with Close
	return srv, nil
}

const signingKey, clientSecret = "benchmark key", "benchmark secret"

// A clusterGroup has nodes of this module, and a registry that keeps its data in memory.
type clusterGroup struct {
	notifier notifier
	backend  *http.Server // the registry and the token service
	url      string       // of the backend
	nodes    []*clusterNode
}

type clusterNode struct {
	*cluster.Cluster
	srv *http.Server
}

func newClusterGroup(ctx context.Context, n notifier) (group, error) {
	g := &clusterGroup{notifier: n}
	var err error
	if g.backend, err = serve(ctx, g.newBackend); err != nil {
		return nil, err
	}
	for i := range initialNodes {
		j, err := g.add(ctx, fmt.Sprintf("initial-%d", i))
		if err == nil {
			g.nodes = append(g.nodes, j.(*clusterNode))
			err = j.join(ctx)
		}
		if err != nil {
			g.close()
			return nil, err
		}
	}
	return g, nil
}

// newBackend returns the handler of the registry and the token service.
func (g *clusterGroup) newBackend(port int) (http.Handler, error) {
	g.url = fmt.Sprintf("http://127.0.0.1:%d", port)
	tokens, err := mit.NewTokenService(mit.TokenConfig{
		Issuer: g.url + "/token", Key: signingKey, Clients: []mit.Client{{ID: "mds", Secret: clientSecret, Type: "mds"}},
	})
	if err != nil {
		return nil, err
	}
	registry, err := mit.NewRegistry(mit.NewMemory(), mit.RegistryConfig{
		Issuer: g.url + "/token", Audience: "mIT", Keys: []string{signingKey}, BasePath: "/mit",
	})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/token", tokens)
	mux.Handle("/mit/", registry)
	return mux, nil
}

func (g *clusterGroup) add(ctx context.Context, name string) (joiner, error) {
	node := new(clusterNode)
	var err error
	node.srv, err = serve(ctx, func(port int) (http.Handler, error) {
		var err error
		node.Cluster, err = cluster.New(cluster.Config{
			Type: "mds", ID: name, Port: port, LocalIPv4: "127.0.0.1", Management: true,
			RegistryURL: g.url + "/mit", RegistryAudience: "mIT", PeerAudience: "mds", Issuer: g.url + "/token",
			ClientID: "mds", ClientSecret: clientSecret, ClientAccessKey: signingKey, ClientAudience: "mds",
		}, cluster.WithoutEnv())
		if err != nil {
			return nil, err
		}
		mux := http.NewServeMux()
		node.Mount(mux)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mux.ServeHTTP(w, r)
			g.notifier.notify()
		}), nil
	})
	return node, err
}

func (g *clusterGroup) countAware(name string) int {
	count := 0
	for _, n := range g.nodes {
		for _, s := range n.Servers() {
			if s.ServerID == name {
				count++
			}
		}
	}
	return count
}

func (g *clusterGroup) close() {
	for _, n := range g.nodes {
		n.close()
	}
	g.backend.Close()
}

func (n *clusterNode) join(ctx context.Context) error {
	_, err := n.Register(ctx)
	return err
}

func (n *clusterNode) leave(ctx context.Context) error {
	return errors.Join(n.UnRegister(ctx).Errors...)
}

func (n *clusterNode) close() {
	_ = n.Close() // always nil
	n.srv.Close()
}

// A gossipGroup has nodes of hashicorp/memberlist. It is their memberlist.EventDelegate.
type gossipGroup struct {
	notifier  notifier
	newConfig func() *memberlist.Config
	nodes     []*gossipNode
}

type gossipNode struct {
	*memberlist.Memberlist
	seed string // address of a node to join, "" for the first node
}

// gossipConstructor returns a function that creates a group of nodes with a configuration.
func gossipConstructor(newConfig func() *memberlist.Config) func(context.Context, notifier) (group, error) {
	return func(ctx context.Context, n notifier) (group, error) {
		g := &gossipGroup{notifier: n, newConfig: newConfig}
		for i := range initialNodes {
			j, err := g.add(ctx, fmt.Sprintf("initial-%d", i))
			if err == nil {
				g.nodes = append(g.nodes, j.(*gossipNode))
				err = j.join(ctx)
			}
			if err != nil {
				g.close()
				return nil, err
			}
		}
		err := n.await(ctx, func() bool {
			return !slices.ContainsFunc(g.nodes, func(n *gossipNode) bool { return n.NumMembers() < initialNodes })
		})
		if err != nil {
			g.close()
			return nil, err
		}
		return g, nil
	}
}

func (g *gossipGroup) add(_ context.Context, name string) (joiner, error) {
	cfg := g.newConfig()
	cfg.Name, cfg.BindAddr, cfg.BindPort = name, "127.0.0.1", 0
	cfg.LogOutput, cfg.Events = io.Discard, g
	list, err := memberlist.Create(cfg)
	if err != nil {
		return nil, err
	}
	n := &gossipNode{Memberlist: list}
	if len(g.nodes) > 0 {
		n.seed = g.nodes[0].LocalNode().Address()
	}
	return n, nil
}

func (g *gossipGroup) countAware(name string) int {
	count := 0
	for _, n := range g.nodes {
		if n.LocalNode().Name == name {
			continue
		}
		for _, m := range n.Members() {
			if m.Name == name {
				count++
			}
		}
	}
	return count
}

func (g *gossipGroup) close() {
	for _, n := range g.nodes {
		n.close()
	}
}

// NotifyJoin is called by memberlist, which holds its lock.
func (g *gossipGroup) NotifyJoin(*memberlist.Node) { g.notifier.notify() }

// NotifyLeave is called by memberlist, which holds its lock.
func (g *gossipGroup) NotifyLeave(*memberlist.Node) { g.notifier.notify() }

// NotifyUpdate is called by memberlist, which holds its lock.
func (g *gossipGroup) NotifyUpdate(*memberlist.Node) {}

func (n *gossipNode) join(context.Context) error {
	if n.seed == "" {
		return nil
	}
	_, err := n.Join([]string{n.seed})
	return err
}

// leave also stops the node, as a service would. A node that missed the leave message would
// otherwise still find it alive.
func (n *gossipNode) leave(context.Context) error {
	return errors.Join(n.Leave(time.Minute), n.Shutdown())
}

func (n *gossipNode) close() { _ = n.Shutdown() } // the node is not used any more
