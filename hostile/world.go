package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mimiktech/cluster/mit"
)

const (
	key          = "a key of the attack suite, which has more than 32 bytes"
	clientSecret = "client-secret-of-the-attack-suite"
	// A lease is short, so that many renewals are due during the attacks.
	lease          = 6 * time.Second
	requestTimeout = 2 * time.Second
)

// An answerFunc returns the raw response to a registration of the victim, which had the
// authorization header. If it returns nil, the registry responds.
type answerFunc func(authorization string) []byte

// A world is a registry, a token service, and three nodes: the victim and two peers.
type world struct {
	server  *http.Server
	url     string
	memory  *mit.Memory
	hostile *peers

	victim, peer, other *node
	renewals            atomic.Int64 // of the victim, accepted by the registry
	answer              atomic.Pointer[answerFunc]
	since               map[string]time.Time // when each node registered

	together bool         // all attacks run at once, so no node may be stopped
	forged   int          // how many servers are announced; half of them hang
	senders  atomic.Int64 // of announcements
}

// A store counts the renewals that the registry accepts.
type store struct {
	*mit.Memory
	world *world
}

// Put implements [mit.Store].
func (s store) Put(ctx context.Context, reg mit.Registration, ttl time.Duration) (mit.Resource, error) {
	r, err := s.Memory.Put(ctx, reg, ttl)
	if err == nil && reg.ServerID == "victim" {
		s.world.renewals.Add(1)
	}
	return r, err
}

func newWorld(ctx context.Context, service string) (*world, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	w := &world{url: "http://" + ln.Addr().String(), memory: mit.NewMemory(), forged: 1000}
	issuer := w.url + "/token"
	tokens, err := mit.NewTokenService(mit.TokenConfig{Issuer: issuer, Key: key, Clients: []mit.Client{{ID: "mds", Secret: clientSecret, Type: "mds"}}})
	if err != nil {
		return nil, err
	}
	registry, err := mit.NewRegistry(store{w.memory, w}, mit.RegistryConfig{Lease: lease, Issuer: issuer, Audience: "mIT", Keys: []string{key}, BasePath: "/mIT"})
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/token", tokens)
	mux.Handle("/mIT/", w.intercept(registry))
	w.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = w.server.Serve(ln) }() // ends with close
	if w.hostile, err = newPeers(ctx); err != nil {
		w.close()
		return nil, err
	}
	for id, n := range map[string]**node{"victim": &w.victim, "peer": &w.peer, "other": &w.other} {
		if *n, err = w.startNode(ctx, service, id); err != nil {
			w.close()
			return nil, err
		}
	}
	if err := w.warmUp(ctx); err != nil {
		w.close()
		return nil, err
	}
	w.since, err = w.registrations(ctx)
	return w, err
}

// registrations returns when each node registered. The registry gives another date to a node that
// registers again, after it was evicted or its lease has expired.
func (w *world) registrations(ctx context.Context) (map[string]time.Time, error) {
	r, err := w.memory.Get(ctx, resourceID)
	since := make(map[string]time.Time)
	for _, s := range r.Servers {
		since[s.ServerID] = s.CreatedAt
	}
	return since, err
}

// checkRegistered returns an error if a node was not registered all the time.
func (w *world) checkRegistered(ctx context.Context, nodes ...*node) error {
	now, err := w.registrations(ctx)
	for _, n := range nodes {
		if at, ok := now[n.id]; !ok || !at.Equal(w.since[n.id]) {
			err = errors.Join(err, fmt.Errorf("node %s was evicted, or has lost its lease", n.id))
		}
	}
	return err
}

// warmUp makes the victim know its peers, so that later figures show the attack alone.
func (w *world) warmUp(ctx context.Context) error {
	for range 100 {
		if body, err := w.fanOut(ctx); err == nil && strings.Count(body, `"result"`) == 2 {
			return nil
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return errors.New("the victim does not reach its peers")
}

func (w *world) fanOut(ctx context.Context) (string, error) {
	return w.victim.get(ctx, "/fanout?path=/things", time.Minute)
}

func (w *world) close() {
	for _, n := range []*node{w.victim, w.peer, w.other} {
		if n != nil {
			n.stop()
		}
	}
	if w.hostile != nil {
		w.hostile.close()
	}
	_ = w.server.Close()
}

func (w *world) environment() []string {
	return append(os.Environ(),
		"SERVER_TYPE=mds", "SERVER_LOCAL_IPV4=127.0.0.1", "CLUSTER_MANAGEMENT=on", "REGISTRATION_RETRY=500",
		fmt.Sprintf("REQUEST_TIMEOUT=%d", requestTimeout.Milliseconds()), "MIT_URL="+w.url+"/mIT", "MIT_AUDIENCE=mIT", "MDS_AUDIENCE=mds",
		"OAUTH_ISSUER="+w.url+"/token", "OAUTH_CLIENT_ID=mds", "OAUTH_CLIENT_SECRET="+clientSecret,
		"OAUTH_CLIENT_ACCESS_KEY="+key, "OAUTH_CLIENT_AUDIENCE=mds", "HTTP_PROXY=", "http_proxy=")
}

// intercept passes requests to the registry, unless the attack answers them.
func (w *world) intercept(registry http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		ofVictim := r.Method == http.MethodPost && strings.Contains(r.UserAgent(), "/victim")
		if answer := w.answer.Load(); answer != nil && ofVictim {
			if raw := (*answer)(r.Header.Get("Authorization")); raw != nil {
				writeRaw(rw, raw)
				return
			}
		}
		registry.ServeHTTP(rw, r)
	})
}

func writeRaw(w http.ResponseWriter, raw []byte) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = conn.Write(raw) // the node may close the connection
}

// token returns a cluster token like that of any peer.
func (w *world) token(ctx context.Context) (string, error) {
	body, _ := json.Marshal(map[string]string{ // strings only
		"client_id": "mds", "client_secret": clientSecret, "audience": "mds", "grant_type": "client_credentials", "type": "cluster",
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url+"/token", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var in struct {
		Data struct {
			AccessToken string `json:"access_token"`
		} `json:"data"`
	}
	err = json.NewDecoder(resp.Body).Decode(&in)
	return in.Data.AccessToken, err
}

// newSender returns a client with a loopback address of its own, because nodes limit what one
// sender may announce.
func (w *world) newSender() *http.Client {
	n := w.senders.Add(1)
	address := net.IPv4(127, 1, byte(n>>8), byte(n)) //nolint:gosec // two bytes are enough for the suite
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: address}}
	return &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext}}
}
