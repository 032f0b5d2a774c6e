//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/mimiktech/cluster"
)

const (
	maxPeers = 1000
	basePath = "/mds/v1"
)

// conditions say how the stub cluster behaves. Failing peers are spread evenly over all peers.
type conditions struct {
	Peers int           // number of peers, at most maxPeers
	Delay time.Duration // response time of each peer
	Size  int           // of the data of each response, in bytes

	Dead      int           // number of peers that refuse connections
	Hanging   int           // number of peers that accept requests and never respond
	Slow      int           // number of peers that take SlowFor to respond
	SlowFor   time.Duration // response time of slow peers and of slow responses
	SlowEvery int           // one response of so many is slow, from any peer; 0: none

	RegistryDown bool // the registry answers deletes with a 503
}

func (c conditions) failing() int { return c.Dead + c.Hanging + c.Slow }

// endpoints are what a contestant needs to know of the stub cluster.
type endpoints struct {
	Peers    []peer
	Registry string        // URL of the registry
	Issuer   string        // URL of the token service
	Token    string        // accepted by peers, for contestants that do not fetch tokens
	Size     int           // of the data of each response, in bytes
	Timeout  time.Duration // of each request; set by the driver
	Canned   bool          // responses come from memory; set by the driver
}

type peer struct{ ID, URL string }

// requestCounts are the requests that the stub cluster has received.
type requestCounts struct {
	Things, Others         int64 // to peers: calls; announcements and departures
	Registrations, Deletes int64 // to the registry
	Tokens                 int64 // to the token service
	Unauthorized, Canceled int64 // to peers: without the token; canceled by the client
}

func (c requestCounts) total() int64 {
	return c.Things + c.Others + c.Registrations + c.Deletes + c.Tokens
}

func (c requestCounts) since(before requestCounts) requestCounts {
	return requestCounts{
		c.Things - before.Things, c.Others - before.Others,
		c.Registrations - before.Registrations, c.Deletes - before.Deletes,
		c.Tokens - before.Tokens,
		c.Unauthorized - before.Unauthorized, c.Canceled - before.Canceled,
	}
}

// A stub simulates everything in a cluster except the node that is measured: its peers, each with
// its own loopback address, the registry and the token service.
type stub struct {
	port       int    // of all peers
	backendURL string // of the registry and the token service
	token      string
	peers      [maxPeers]stubPeer

	things, others, registrations, deletes,
	tokens, unauthorized, canceled atomic.Int64
	slowEvery, slowFor atomic.Int64

	mu         sync.Mutex // guards the fields below
	conditions conditions
	deleted    map[string]bool // ids of the servers deleted from the registry
}

// A stubPeer serves while srv is set.
type stubPeer struct {
	id       string
	srv      *http.Server // nil: it refuses connections
	behavior atomic.Int32
	delay    atomic.Int64           // response time
	envelope atomic.Pointer[[]byte] // response body
}

type behavior int32

const (
	healthy behavior = iota
	dead
	hanging
	slow
)

func runStub() error {
	ctx := context.Background()
	s, err := newStub(ctx)
	if err != nil {
		return err
	}
	return serveCommands(func(command string, args json.RawMessage) (any, error) {
		switch command {
		case "conditions":
			var c conditions
			if err := json.Unmarshal(args, &c); err != nil {
				return nil, err
			}
			return s.setConditions(ctx, c)
		case "counts":
			return s.counts(), nil
		}
		return nil, fmt.Errorf("unknown command %q", command)
	})
}

func newStub(ctx context.Context) (*stub, error) {
	s := new(stub)
	claims := jwt.MapClaims{"exp": time.Now().Add(24 * time.Hour).Unix(), "subType": "mds", "type": "cluster"}
	var err error
	if s.token, err = jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString([]byte("benchmark key")); err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s.backendURL = "http://" + ln.Addr().String()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /token", s.issueToken)
	mux.HandleFunc("POST /mit/itResources", s.register)
	mux.HandleFunc("DELETE /mit/itResources/{id}/servers/{server}", s.delete)
	go http.Serve(ln, mux) //nolint:errcheck,gosec // it serves until the process ends
	if ln, err = lc.Listen(ctx, "tcp", peerHost(0)+":0"); err != nil {
		return nil, err
	}
	s.port = ln.Addr().(*net.TCPAddr).Port
	for i := range s.peers {
		s.peers[i].id = fmt.Sprintf("peer-%04d", i)
	}
	return s, ln.Close()
}

// peerHost returns the address of peer i. Each peer has its own, as if it were a machine.
func peerHost(i int) string { return fmt.Sprintf("127.1.%d.%d", i/200, i%200+1) }

func (s *stub) peerURL(i int) string {
	return fmt.Sprintf("http://%s:%d%s", peerHost(i), s.port, basePath)
}

// setConditions changes the conditions and restores the deleted servers. When it returns, the new
// conditions apply to all requests.
func (s *stub) setConditions(ctx context.Context, c conditions) (endpoints, error) {
	if c.Peers > maxPeers || c.failing() > c.Peers {
		return endpoints{}, fmt.Errorf("impossible conditions: %+v", c)
	}
	s.slowEvery.Store(int64(c.SlowEvery))
	s.slowFor.Store(int64(c.SlowFor))
	e := endpoints{Registry: s.backendURL + "/mit", Issuer: s.backendURL + "/token", Token: s.token, Size: c.Size}
	behaviors := c.behaviors()
	for i := range s.peers {
		if i >= c.Peers {
			s.peers[i].close()
			continue
		}
		if err := s.setPeer(ctx, i, behaviors[i], c); err != nil {
			return endpoints{}, err
		}
		e.Peers = append(e.Peers, peer{s.peers[i].id, s.peerURL(i)})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conditions, s.deleted = c, make(map[string]bool)
	return e, nil
}

// behaviors returns the behavior of each peer.
func (c conditions) behaviors() []behavior {
	all := make([]behavior, c.Peers)
	for k := range c.failing() {
		b := slow
		switch {
		case k < c.Dead:
			b = dead
		case k < c.Dead+c.Hanging:
			b = hanging
		}
		all[k*c.Peers/c.failing()] = b
	}
	return all
}

// setPeer changes the behavior of peer i, and starts or closes its server if necessary.
func (s *stub) setPeer(ctx context.Context, i int, b behavior, c conditions) error {
	p := &s.peers[i]
	delay := c.Delay
	if b == slow {
		delay = c.SlowFor
	}
	envelope := peerEnvelope(p.id, c.Size)
	p.envelope.Store(&envelope)
	p.behavior.Store(int32(b))
	p.delay.Store(int64(delay))
	if b == dead {
		p.close()
		return nil
	}
	return s.open(ctx, i)
}

// peerEnvelope returns the response body of a peer.
func peerEnvelope(id string, size int) []byte {
	return fmt.Appendf(nil, `{"data":[{"from":%q,"pad":%q}],"server":{"serverId":%q}}`, id, strings.Repeat("x", size), id)
}

func (p *stubPeer) close() {
	if p.srv != nil {
		p.srv.Close() // closes the connections, too
		p.srv = nil
	}
}

func (s *stub) open(ctx context.Context, i int) error {
	p := &s.peers[i]
	if p.srv != nil {
		return nil
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", fmt.Sprintf("%s:%d", peerHost(i), s.port))
	if err != nil {
		return err
	}
	p.srv = &http.Server{Handler: s.peerHandler(p), ReadHeaderTimeout: time.Minute}
	go p.srv.Serve(ln) //nolint:errcheck // it ends with Close
	return nil
}

// peerHandler responds to all requests with the peer's envelope.
func (s *stub) peerHandler(p *stubPeer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		delay := time.Duration(p.delay.Load())
		if r.Method == http.MethodGet {
			if n, every := s.things.Add(1), s.slowEvery.Load(); every > 0 && n%every == 0 {
				delay = time.Duration(s.slowFor.Load())
			}
		} else {
			s.others.Add(1)
			_, _ = io.Copy(io.Discard, r.Body) // an error also fails the response
		}
		if r.Header.Get("Authorization") != "Bearer "+s.token {
			s.unauthorized.Add(1)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if behavior(p.behavior.Load()) == hanging {
			<-r.Context().Done()
			s.canceled.Add(1)
			return
		}
		if delay > 0 {
			time.Sleep(delay)
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(*p.envelope.Load()) // the client may be gone
	})
}

func (s *stub) issueToken(w http.ResponseWriter, _ *http.Request) {
	s.tokens.Add(1)
	writeJSON(w, map[string]any{"data": map[string]any{"access_token": s.token, "refresh_token": s.token, "expires_in": 86400}})
}

func (s *stub) register(w http.ResponseWriter, r *http.Request) {
	s.registrations.Add(1)
	var node struct{ ServerID, ClusterBaseURL string }
	if err := json.NewDecoder(r.Body).Decode(&node); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	date := time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)
	s.mu.Lock()
	defer s.mu.Unlock()
	var servers []cluster.Server
	for i := range s.conditions.Peers {
		if id := s.peers[i].id; !s.deleted[id] {
			servers = append(servers, cluster.Server{ServerID: id, ClusterBaseURL: s.peerURL(i), CreatedAt: date, UpdatedAt: date})
		}
	}
	servers = append(servers, cluster.Server{ServerID: node.ServerID, ClusterBaseURL: node.ClusterBaseURL, CreatedAt: date, UpdatedAt: time.Now()})
	writeJSON(w, map[string]any{
		"itResource": map[string]any{"id": "stub", "type": "mds", "publicBaseUrl": s.backendURL, "servers": servers},
		"leaseTime":  (24 * time.Hour).Milliseconds(),
	})
}

func (s *stub) delete(w http.ResponseWriter, r *http.Request) {
	s.deletes.Add(1)
	id, _, _ := strings.Cut(r.PathValue("server"), "@")
	if unescaped, err := url.PathUnescape(id); err == nil {
		id = unescaped
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conditions.RegistryDown {
		http.Error(w, "{}", http.StatusServiceUnavailable)
		return
	}
	s.deleted[id] = true
	writeJSON(w, map[string]any{"data": id})
}

func writeJSON(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value) // the client may be gone
}

func (s *stub) counts() requestCounts {
	return requestCounts{
		s.things.Load(), s.others.Load(), s.registrations.Load(), s.deletes.Load(),
		s.tokens.Load(), s.unauthorized.Load(), s.canceled.Load(),
	}
}

// waitIdle blocks until the stub cluster receives no more requests, so that the background work of
// a contestant is done. It also waits for a minimum of announcements and departures.
func waitIdle(ctx context.Context, stub *process, minOthers int64) (requestCounts, error) {
	const interval, timeout = 200 * time.Millisecond, 3 * time.Minute
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errors.New("the stub cluster still receives requests"))
	defer cancel()
	var before, now requestCounts
	for {
		if err := stub.do("counts", nil, &now); err != nil {
			return now, err
		}
		if now.Others >= minOthers && now.total() == before.total() && before.total() > 0 {
			return now, nil
		}
		before = now
		select {
		case <-time.After(interval):
		case <-ctx.Done():
			return now, context.Cause(ctx)
		}
	}
}
