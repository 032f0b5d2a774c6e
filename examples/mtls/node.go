package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
)

const (
	serverType   = "shop"
	audience     = "shops"
	registryPath = "/mIT/v1"
	issuerPath   = "/mST/v1/oauth/token"

	// A real service gets its secrets from its environment, or from files.
	signingKey   = "an example of a signing key"
	clientSecret = "an example of a client secret"
)

// A node is one instance of the service.
type node struct {
	*cluster.Cluster
	name   string
	cancel context.CancelFunc
	done   chan error // the result of Serve
	seen   certificates
}

// certificates are those that clients have presented.
type certificates struct {
	mu      sync.Mutex // guards the field below
	serials map[string]bool
}

func (c *certificates) add(r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.serials == nil {
		c.serials = map[string]bool{}
	}
	c.serials[r.TLS.PeerCertificates[0].SerialNumber.String()] = true
}

func (c *certificates) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.serials)
}

// startNode starts a node, which registers.
func startNode(ctx context.Context, name, registryURL string, files files) (*node, error) {
	ln, err := listen(ctx)
	if err != nil {
		return nil, err
	}
	pair, err := files.load(name)
	if err != nil {
		return nil, err
	}
	client := &tls.Config{RootCAs: files.ca.Pool(), GetClientCertificate: pair.GetClientCertificate}
	server := &tls.Config{
		GetCertificate: pair.GetCertificate, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: files.ca.Pool(),
	}
	n := &node{name: name, done: make(chan error, 1)}
	n.Cluster, err = cluster.New(cluster.Config{
		Type: serverType, ID: name, Port: ln.Addr().(*net.TCPAddr).Port, LocalIPv4: "127.0.0.1", Management: true,
		ClusterBaseURL: "https://" + ln.Addr().String() + "/shop/v1",
		RegistryURL:    registryURL + registryPath, RegistryAudience: "registry", PeerAudience: audience,
		Issuer: registryURL + issuerPath, ClientID: serverType, ClientSecret: clientSecret,
		ClientAccessKey: signingKey, ClientAudience: audience,
	}, cluster.WithPeerTLS(client), cluster.WithBackendTLS(client), cluster.WithoutEnv())
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	n.Mount(mux)
	mux.Handle("GET /shop/v1/hello", n.AuthenticatePeer(http.HandlerFunc(n.hello)))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	srv.SetKeepAlivesEnabled(false) // so that each call of the demo presents the current certificate
	ctx, n.cancel = context.WithCancel(ctx)
	go func() { n.done <- n.Serve(ctx, tls.NewListener(ln, server), srv) }()
	return n, nil
}

// waitForPeers waits until the node knows count peers.
func (n *node) waitForPeers(ctx context.Context, count int) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for range n.Watch(ctx) {
		if len(n.Peers()) == count {
			return nil
		}
	}
	return fmt.Errorf("%s knows %d peers, not %d: it is %s", n.name, len(n.Peers()), count, n.Status().State)
}

// hello records the certificate of the caller.
func (n *node) hello(w http.ResponseWriter, r *http.Request) {
	n.seen.add(r)
	n.Reply(w, r, "hello from "+n.name)
}

// startRegistry starts the registry and the token service at one address, over mutual TLS.
func startRegistry(ctx context.Context, files files) (url string, seen *certificates, stop func(), err error) {
	ln, err := listen(ctx)
	if err != nil {
		return "", nil, nil, err
	}
	pair, err := files.load("registry")
	if err != nil {
		return "", nil, nil, err
	}
	url = "https://" + ln.Addr().String()
	tokens, err := mit.NewTokenService(mit.TokenConfig{
		Issuer: url + issuerPath, Key: signingKey,
		Clients: []mit.Client{{ID: serverType, Secret: clientSecret, Type: serverType}},
	})
	if err != nil {
		return "", nil, nil, err
	}
	registry, err := mit.NewRegistry(mit.NewMemory(), mit.RegistryConfig{
		Lease: 2 * time.Second, BasePath: registryPath, Issuer: url + issuerPath, Audience: "registry", Keys: []string{signingKey},
	})
	if err != nil {
		return "", nil, nil, err
	}
	mux := http.NewServeMux()
	mux.Handle(issuerPath, tokens)
	mux.Handle(registryPath+"/", registry)
	seen = new(certificates)
	srv := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen.add(r)
		mux.ServeHTTP(w, r)
	})}
	srv.SetKeepAlivesEnabled(false) // as those of the nodes
	server := &tls.Config{
		GetCertificate: pair.GetCertificate, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: files.ca.Pool(),
	}
	go func() { _ = srv.Serve(tls.NewListener(ln, server)) }() // until stop
	return url, seen, func() { srv.Close() }, nil
}

func listen(ctx context.Context) (net.Listener, error) {
	var lc net.ListenConfig
	return lc.Listen(ctx, "tcp", "127.0.0.1:0")
}
