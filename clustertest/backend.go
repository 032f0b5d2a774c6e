package clustertest

import (
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
)

// A Backend is a registry (mIT) and a token service (mST) on a socket of the loopback interface,
// for tests that need real sockets, such as those of a whole program. Do not use it in a bubble of
// testing/synctest.
type Backend struct {
	// Registry grants leases of an hour, and Tokens knows one client, for nodes of the type "mds".
	Registry *mit.Registry
	Tokens   *mit.TokenService
	// Config is the configuration of a node at 127.0.0.1. Set its Port before use; each node gets a
	// new ID unless one is set.
	Config cluster.Config
}

// NewBackend starts a Backend, which is closed when the test ends. If it cannot be started, or in a
// bubble of testing/synctest, the test fails.
func NewBackend(t TB) *Backend {
	t.Helper()
	if id := bubble(); id != "" {
		t.Fatal("clustertest.NewBackend: it uses sockets, and a test uses no sockets inside a bubble of testing/synctest: use clustertest.Start there")
	}
	mux := http.NewServeMux()
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	b := &Backend{Config: cluster.Config{
		Type: "mds", LocalIPv4: "127.0.0.1", Management: true,
		RegistryURL: server.URL + "/mIT/v1", RegistryAudience: registryAudience,
		PeerAudience: peerAudience, ClientAudience: peerAudience,
		Issuer: server.URL + "/mST/v1/oauth/token", ClientID: "mds", ClientSecret: cluster.Secret(secretOf("mds")),
		ClientAccessKey: signingKey,
	}}
	var err error
	b.Tokens, err = mit.NewTokenService(mit.TokenConfig{
		Issuer: b.Config.Issuer, Key: signingKey, Clients: []mit.Client{{ID: "mds", Secret: secretOf("mds"), Type: "mds"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	b.Registry, err = mit.NewRegistry(mit.NewMemory(), mit.RegistryConfig{
		Lease: time.Hour, Issuer: b.Config.Issuer, Audience: registryAudience, Keys: []string{signingKey}, BasePath: "/mIT/v1",
	})
	if err != nil {
		t.Fatal(err)
	}
	mux.Handle("/mST/v1/oauth/token", b.Tokens)
	mux.Handle("/mIT/v1/", b.Registry)
	return b
}

// Token is like [World.Token].
func (b *Backend) Token(t TB, typ string, clusterToken bool) string {
	t.Helper()
	return requestToken(t, b.Tokens, http.DefaultClient, b.Config.Issuer, typ, clusterToken)
}
