package clustertest

import (
	"net/http"
	"slices"

	"github.com/mimiktech/cluster"
)

// A Node is one node of a [World]: a [cluster.Cluster] and its HTTP handlers.
type Node struct {
	// Cluster is replaced by Restart, StartUnregistered and Move.
	*cluster.Cluster
	// ID is the server id of the node, and Host its host in the network.
	ID, Host string

	world *World
	opts  []cluster.Option // of this node only
}

// Kill ends the node without deregistering it, like SIGKILL. Its connections are reset, and new
// ones are refused.
func (n *Node) Kill() {
	n.world.Network.Down(n.Host)
	_ = n.Close() // it returns nil
}

// Restart starts a killed node again, with its id and host, and registers it.
func (n *Node) Restart() {
	n.world.t.Helper()
	n.StartUnregistered()
	if _, err := n.Register(n.world.t.Context()); err != nil {
		n.world.t.Fatalf("registering %s again: %v", n.ID, err)
	}
}

// StartUnregistered restarts a node, with its id and host, whether it was killed or is running. The
// node serves requests but does not register: the test calls [cluster.Cluster.Register].
func (n *Node) StartUnregistered() {
	n.world.t.Helper()
	_ = n.Close() // it returns nil
	n.create()
	n.world.Network.Up(n.Host)
}

// Move kills a node and starts it on another host with the same id, as an orchestrator moves a
// container. The node serves requests there but does not register.
func (n *Node) Move(host string) {
	n.world.t.Helper()
	n.Kill()
	n.Host = host
	n.create()
}

// create creates the Cluster and registers its handlers with the network.
func (n *Node) create() {
	w := n.world
	w.t.Helper()
	w.checkBubble()
	base := "/" + w.opts.serverType + "/v1"
	cfg := cluster.Config{
		Type: w.opts.serverType, ID: n.ID, Port: 8080, LocalIPv4: "127.0.0.1",
		ClusterBaseURL: "http://" + n.Host + base, Management: true,
		RegistryURL: "http://" + RegistryHost + "/mIT/v1", RegistryAudience: registryAudience,
		PeerAudience: peerAudience, ClientAudience: peerAudience,
		Issuer: issuer, ClientID: w.opts.serverType, ClientSecret: cluster.Secret(secretOf(w.opts.serverType)),
		ClientAccessKey: signingKey,
	}
	if w.opts.configure != nil {
		w.opts.configure(&cfg)
	}
	network := w.Network.Transport(n.Host)
	opts := []cluster.Option{cluster.WithTransport(func(http.RoundTripper) http.RoundTripper { return network })}
	if n.ID != w.opts.envNode {
		opts = append(opts, cluster.WithoutEnv())
	}
	opts = slices.Concat(opts, w.opts.cluster, n.opts)
	c, err := cluster.New(cfg, opts...)
	if err != nil {
		w.t.Fatal(err)
	}
	n.Cluster = c
	mux := http.NewServeMux()
	c.Mount(mux)
	mux.Handle("/", w.opts.handler(n))
	w.Network.Handle(n.Host, mux)
}

// things is the default handler of a node.
func things(n *Node) http.Handler {
	c := n.Cluster // that of this handler, also after a restart
	mux := http.NewServeMux()
	mux.Handle("GET /{type}/v1/things", c.Authenticate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.Reply(w, r, []string{n.ID})
	})))
	return mux
}
