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

// As many nodes know each other when one more joins.
const founders = 10

// A club is nodes that know each other, in this process, on loopback.
type club interface {
	// admit makes a node that everybody is to know.
	admit(ctx context.Context, name string) (guest, error)
	// know counts the nodes that know it, itself aside.
	know(name string) int
	close()
}

// A guest joins, leaves, and is gone.
type guest interface {
	join(ctx context.Context) error
	leave(ctx context.Context) error
	close()
}

// news says that a node may have learned something.
type news chan struct{}

func (n news) tell() {
	select {
	case n <- struct{}{}:
	default: // it has been told already
	}
}

// await waits until all is so.
func (n news) await(ctx context.Context, so func() bool) error {
	for !so() {
		select {
		case <-n:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// join measures how soon everybody knows who came and who left, here and with a gossip of its kind.
func (l *lab) join(ctx context.Context) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "| one more than %d nodes | joining returns | all know it | leaving returns | all have forgotten it |\n| --- | ---: | ---: | ---: | ---: |\n", founders)
	for _, kind := range []struct {
		name  string
		found func(context.Context, news) (club, error)
	}{
		{ours, foundCluster},
		{"memberlist, for a LAN", gossipers(memberlist.DefaultLANConfig)},
		{"memberlist, for one machine", gossipers(memberlist.DefaultLocalConfig)},
	} {
		l.log("join: %s", kind.name)
		if err := l.visits(ctx, &b, kind.name, kind.found); err != nil {
			return "", fmt.Errorf("%s: %w", kind.name, err)
		}
	}
	return b.String(), nil
}

func (l *lab) visits(ctx context.Context, b *strings.Builder, name string, found func(context.Context, news) (club, error)) error {
	n := make(news, 1)
	c, err := found(ctx, n)
	if err != nil {
		return err
	}
	defer c.close()
	var all [4][]time.Duration
	for r := range l.Rounds {
		took, err := visit(ctx, c, n, fmt.Sprintf("guest-%d", r))
		if err != nil {
			return err
		}
		for i, d := range took {
			all[i] = append(all[i], d)
		}
	}
	fmt.Fprintf(b, "| %s | %s | %s | %s | %s |\n", name, ms(median(all[0])), ms(median(all[1])), ms(median(all[2])), ms(median(all[3])))
	return nil
}

// visit is how long joining took, until all knew it, leaving, and until all had forgotten it.
func visit(ctx context.Context, c club, n news, name string) (took [4]time.Duration, err error) {
	// Whom gossip misses learns of it when it next exchanges all it knows with another, or probes it.
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, errors.New("not everybody learned of it"))
	defer cancel()
	g, err := c.admit(ctx, name)
	if err != nil {
		return took, err
	}
	defer g.close()
	if took[0], took[1], err = until(ctx, n, g.join, func() bool { return c.know(name) == founders }); err != nil {
		return took, err
	}
	took[2], took[3], err = until(ctx, n, g.leave, func() bool { return c.know(name) == 0 })
	return took, err
}

// until does something, and tells how long that took and how long until all was so.
func until(ctx context.Context, n news, do func(context.Context) error, so func() bool) (took, all time.Duration, err error) {
	start := time.Now()
	done := make(chan error, 1)
	go func() {
		err := do(ctx)
		took = time.Since(start)
		done <- err
	}()
	err = n.await(ctx, so)
	all = time.Since(start)
	err = errors.Join(err, <-done)
	return took, all, err
}

// cluster's nodes, with a registry in memory.

type clusterClub struct {
	news  news
	back  *http.Server
	url   string
	nodes []*clusterNode
}

type clusterNode struct {
	*cluster.Cluster
	srv *http.Server
}

// serve serves h on a port of its own until the server is closed.
func serve(ctx context.Context, h func(port int) (http.Handler, error)) (*http.Server, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	handler, err := h(ln.Addr().(*net.TCPAddr).Port)
	if err != nil {
		ln.Close()
		return nil, err
	}
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	go srv.Serve(ln) //nolint:errcheck // it ends with Close
	return srv, nil
}

const clubKey, clubSecret = "a key for measuring only", "a secret for measuring only"

func foundCluster(ctx context.Context, n news) (club, error) {
	c := &clusterClub{news: n}
	var err error
	c.back, err = serve(ctx, func(port int) (http.Handler, error) {
		c.url = fmt.Sprintf("http://127.0.0.1:%d", port)
		tokens, err := mit.NewTokenService(mit.TokenConfig{
			Issuer: c.url + "/token", Key: clubKey, Clients: []mit.Client{{ID: "mds", Secret: clubSecret, Type: "mds"}},
		})
		if err != nil {
			return nil, err
		}
		registry, err := mit.NewRegistry(mit.NewMemory(), mit.RegistryConfig{
			Issuer: c.url + "/token", Audience: "mIT", Keys: []string{clubKey}, BasePath: "/mit",
		})
		if err != nil {
			return nil, err
		}
		mux := http.NewServeMux()
		mux.Handle("/token", tokens)
		mux.Handle("/mit/", registry)
		return mux, nil
	})
	if err != nil {
		return nil, err
	}
	for i := range founders {
		g, err := c.admit(ctx, fmt.Sprintf("founder-%d", i))
		if err == nil {
			c.nodes = append(c.nodes, g.(*clusterNode))
			err = g.join(ctx)
		}
		if err != nil {
			c.close()
			return nil, err
		}
	}
	return c, nil
}

func (c *clusterClub) admit(ctx context.Context, name string) (guest, error) {
	node := new(clusterNode)
	var err error
	node.srv, err = serve(ctx, func(port int) (http.Handler, error) {
		var err error
		node.Cluster, err = cluster.New(cluster.Config{
			Type: "mds", ID: name, Port: port, LocalIPv4: "127.0.0.1", Management: true,
			RegistryURL: c.url + "/mit", RegistryAudience: "mIT", PeerAudience: "mds", Issuer: c.url + "/token",
			ClientID: "mds", ClientSecret: clubSecret, ClientAccessKey: clubKey, ClientAudience: "mds",
		}, cluster.WithoutEnv())
		if err != nil {
			return nil, err
		}
		mux := http.NewServeMux()
		node.Mount(mux)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mux.ServeHTTP(w, r)
			c.news.tell()
		}), nil
	})
	return node, err
}

func (c *clusterClub) know(name string) int {
	count := 0
	for _, n := range c.nodes {
		for _, s := range n.Servers() {
			if s.ServerID == name {
				count++
			}
		}
	}
	return count
}

func (c *clusterClub) close() {
	for _, n := range c.nodes {
		n.close()
	}
	c.back.Close()
}

func (n *clusterNode) join(ctx context.Context) error {
	_, err := n.Register(ctx)
	return err
}

func (n *clusterNode) leave(ctx context.Context) error {
	return errors.Join(n.UnRegister(ctx).Errors...)
}

func (n *clusterNode) close() {
	_ = n.Close() // it returns nil
	n.srv.Close()
}

// memberlist's nodes, which gossip.

type gossipClub struct {
	news   news
	config func() *memberlist.Config
	nodes  []*gossipNode
}

type gossipNode struct {
	*memberlist.Memberlist
	seed string
}

func gossipers(config func() *memberlist.Config) func(context.Context, news) (club, error) {
	return func(ctx context.Context, n news) (club, error) {
		c := &gossipClub{news: n, config: config}
		for i := range founders {
			g, err := c.admit(ctx, fmt.Sprintf("founder-%d", i))
			if err == nil {
				c.nodes = append(c.nodes, g.(*gossipNode))
				err = g.join(ctx)
			}
			if err != nil {
				c.close()
				return nil, err
			}
		}
		err := n.await(ctx, func() bool {
			return !slices.ContainsFunc(c.nodes, func(n *gossipNode) bool { return n.NumMembers() < founders })
		})
		if err != nil {
			c.close()
			return nil, err
		}
		return c, nil
	}
}

func (c *gossipClub) admit(_ context.Context, name string) (guest, error) {
	config := c.config()
	config.Name, config.BindAddr, config.BindPort = name, "127.0.0.1", 0
	config.LogOutput, config.Events = io.Discard, c
	list, err := memberlist.Create(config)
	if err != nil {
		return nil, err
	}
	n := &gossipNode{Memberlist: list}
	if len(c.nodes) > 0 {
		n.seed = c.nodes[0].LocalNode().Address()
	}
	return n, nil
}

func (c *gossipClub) know(name string) int {
	count := 0
	for _, n := range c.nodes {
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

func (c *gossipClub) close() {
	for _, n := range c.nodes {
		n.close()
	}
}

// NotifyJoin, NotifyLeave and NotifyUpdate make it a memberlist.EventDelegate. They are called
// with the list locked.
func (c *gossipClub) NotifyJoin(*memberlist.Node)   { c.news.tell() }
func (c *gossipClub) NotifyLeave(*memberlist.Node)  { c.news.tell() }
func (c *gossipClub) NotifyUpdate(*memberlist.Node) {}

func (n *gossipNode) join(context.Context) error {
	if n.seed == "" {
		return nil
	}
	_, err := n.Join([]string{n.seed})
	return err
}

// leave is followed by the end, as in a service: whom gossip missed would otherwise find it well.
func (n *gossipNode) leave(context.Context) error {
	return errors.Join(n.Leave(time.Minute), n.Shutdown())
}

func (n *gossipNode) close() { _ = n.Shutdown() } // it is being given up
