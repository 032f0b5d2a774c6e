package clustertest

import (
	"net/http"
	"slices"

	"github.com/mimiktech/cluster"
)

// A Node is one node of a [World]: a [cluster.Cluster] and the handlers it is served with.
type Node struct {
	// Cluster is the membership. It is another one after Restart, Reboot or Move.
	*cluster.Cluster
	// ID is the node's server id, Host its place in the network.
	ID, Host string

	world *World
	opts  []cluster.Option // its own
}

// make makes the membership, and puts the node on the network.
func (n *Node) make() {
	w := n.world
	w.t.Helper()
	base := "/" + w.opts.typ + "/v1"
	cfg := cluster.Config{
		Type: w.opts.typ, ID: n.ID, Port: 8080, LocalIPv4: "127.0.0.1",
		ClusterBaseURL: "http://" + n.Host + base, Management: true,
		RegistryURL: "http://" + RegistryHost + "/mIT/v1", RegistryAudience: registryAudience,
		PeerAudience: peerAudience, ClientAudience: peerAudience,
		Issuer: issuer, ClientID: w.opts.typ, ClientSecret: cluster.Secret(secretOf(w.opts.typ)), ClientAccessKey: signingKey,
	}
	if w.opts.configure != nil {
		w.opts.configure(&cfg)
	}
	opts := []cluster.Option{cluster.WithHTTPClient(w.Network.Client(n.Host))}
	if n.ID != w.opts.mirrored {
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

// things is what a node serves unless the test says otherwise.
func things(n *Node) http.Handler {
	c := n.Cluster // not what a restart puts in its place
	mux := http.NewServeMux()
	mux.Handle("GET /{type}/v1/things", c.Authenticate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.Reply(w, r, []string{n.ID})
	})))
	return mux
}

// Kill ends the node without a word, as SIGKILL does: its connections break, and new ones are
// refused.
func (n *Node) Kill() {
	n.world.Network.Down(n.Host)
	_ = n.Close() // it returns nil
}

// Restart starts a killed node again, under its id and at its place, and registers it.
func (n *Node) Restart() {
	n.world.t.Helper()
	n.StartUnregistered()
	if _, err := n.Register(n.world.t.Context()); err != nil {
		n.world.t.Fatalf("registering %s again: %v", n.ID, err)
	}
}

// Reboot starts a node again, under its id and at its place, whether it was killed or still runs.
// It serves from then on, but has yet to register: for tests in which that takes its time.
func (n *Node) StartUnregistered() {
	n.world.t.Helper()
	_ = n.Close() // it returns nil
	n.make()
	n.world.Network.Up(n.Host)
}

// Move kills a node and starts it at another place, under its id, as happens to a container that
// is scheduled anew. It serves there from then on, but has yet to register.
func (n *Node) Move(host string) {
	n.world.t.Helper()
	n.Kill()
	n.Host = host
	n.make()
}
