package main

import (
	"context"
	"net/http"
	"time"

	"github.com/mimiktech/cluster/mit"
)

const (
	leaseTime = 3 * time.Second

	registryPath     = "/mIT/v1"
	issuerPath       = "/mST/v1/oauth/token"
	registryAudience = "registry"

	// The nodes and the token service share these secrets. A real service gets them from its
	// environment.
	signingKey   = "an example of a signing key"
	clientSecret = "an example of a client secret"
)

// A registry is an mIT and an mST on one address. The zero value is a registry that is not running.
type registry struct {
	address string // chosen by the first start
	memory  *mit.Memory
	srv     *http.Server
}

// start starts the registry and the token service without data. They use a free port, or that of
// the previous start.
func (r *registry) start(ctx context.Context) error {
	ln, err := listen(ctx, r.address)
	if err != nil {
		return err
	}
	r.address = ln.Addr().String()
	issuer := "http://" + r.address + issuerPath
	tokens, err := mit.NewTokenService(mit.TokenConfig{
		Issuer:  issuer,
		Key:     signingKey,
		Clients: []mit.Client{{ID: serverType, Secret: clientSecret, Type: serverType}},
	})
	if err != nil {
		return err
	}
	r.memory = mit.NewMemory()
	handler, err := mit.NewRegistry(r.memory, mit.RegistryConfig{
		Lease:    leaseTime,
		BasePath: registryPath,
		Issuer:   issuer,
		Audience: registryAudience,
		Keys:     []string{signingKey},
	})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle(issuerPath, tokens)
	mux.Handle(registryPath+"/", handler)
	r.srv = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func(srv *http.Server) { _ = srv.Serve(ln) }(r.srv) // until stop
	return nil
}

// stop stops the registry and breaks its connections.
func (r *registry) stop() {
	if r.srv != nil {
		r.srv.Close()
	}
}

// serverIDs returns the ids of the servers that the registry lists.
func (r *registry) serverIDs() []string {
	resource, err := r.memory.Get(context.Background(), mit.ResourceID(serverType))
	if err != nil {
		return nil // no server has registered
	}
	return serverIDs(resource.Servers)
}
