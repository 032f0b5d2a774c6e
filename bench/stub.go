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

// A weather is how the stub cluster behaves. Peers in a bad way are spread evenly over all.
type weather struct {
	Peers int           // how many there are, up to maxPeers
	Delay time.Duration // how long each takes to answer
	Size  int           // of each answer's data, in bytes

	Dead    int           // of the peers: they refuse connections
	Hanging int           // they accept everything and never answer
	Slow    int           // they take SlowFor to answer
	SlowFor time.Duration //
	SlowOne int           // and so does one of so many requests, to whichever peer; 0 for none

	Down bool // mIT answers 503 to the dated deletes, instead of agreeing to them
}

// A place is all that a contestant must know of the stub cluster.
type place struct {
	Peers    []seat
	Registry string        // mIT's URL
	Issuer   string        // mST's
	Token    string        // one that peers accept, for those who don't ask mST
	Size     int           // of each answer's data, in bytes
	Timeout  time.Duration // of each request; the driver sets it
	Canned   bool          // that answers come out of memory instead; the driver sets it
}

type seat struct{ ID, URL string }

// Counts are the requests that the stub cluster has had.
type counts struct {
	Things, Others               int64 // to peers: what is measured, and announcements and departures
	Registrations, Deletes       int64 // to mIT
	Tokens, Unauthorized, Broken int64 // to mST; to a peer, without its token; given up by the client
}

func (c counts) total() int64 { return c.Things + c.Others + c.Registrations + c.Deletes + c.Tokens }

func (c counts) since(b counts) counts {
	return counts{
		c.Things - b.Things, c.Others - b.Others, c.Registrations - b.Registrations, c.Deletes - b.Deletes,
		c.Tokens - b.Tokens, c.Unauthorized - b.Unauthorized, c.Broken - b.Broken,
	}
}

// A stub plays a whole cluster but for the one node that is measured: its peers, each at a
// loopback address of its own, mIT and mST.
type stub struct {
	port  int
	back  string // where mIT and mST are
	token string
	peers [maxPeers]stubPeer
	things, others, registrations, deletes,
	tokens, unauthorized, broken atomic.Int64
	slowOne, slowFor atomic.Int64

	mu      sync.Mutex // guards the fields below
	weather weather
	gone    map[string]bool // deleted at mIT
}

type mood int32

const (
	well mood = iota
	hanging
	slow
)

// A stubPeer is one peer. It serves while it has a server.
type stubPeer struct {
	id   string
	srv  *http.Server // nil: it refuses connections
	mood atomic.Int32
	wait atomic.Int64           // how long it takes to answer
	body atomic.Pointer[[]byte] // what it answers
}

func runStub() error {
	s, err := newStub(context.Background())
	if err != nil {
		return err
	}
	return obey(func(what string, args json.RawMessage) (any, error) {
		switch what {
		case "weather":
			var w weather
			if err := json.Unmarshal(args, &w); err != nil {
				return nil, err
			}
			return s.set(context.Background(), w)
		case "counts":
			return s.counts(), nil
		}
		return nil, fmt.Errorf("no such order: %s", what)
	})
}

func newStub(ctx context.Context) (*stub, error) {
	s := new(stub)
	claims := jwt.MapClaims{"exp": time.Now().Add(24 * time.Hour).Unix(), "subType": "mds", "type": "cluster"}
	var err error
	if s.token, err = jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString([]byte("a key for measuring only")); err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s.back = "http://" + ln.Addr().String()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /token", s.giveToken)
	mux.HandleFunc("POST /mit/itResources", s.register)
	mux.HandleFunc("DELETE /mit/itResources/{id}/servers/{server}", s.delete)
	go http.Serve(ln, mux) //nolint:errcheck,gosec // it serves until the process ends
	if ln, err = lc.Listen(ctx, "tcp", host(0)+":0"); err != nil {
		return nil, err
	}
	s.port = ln.Addr().(*net.TCPAddr).Port
	for i := range s.peers {
		s.peers[i].id = fmt.Sprintf("peer-%04d", i)
	}
	return s, ln.Close()
}

// host is the address of a peer: one each, as if each were a machine.
func host(i int) string { return fmt.Sprintf("127.1.%d.%d", i/200, i%200+1) }

func (s *stub) url(i int) string { return fmt.Sprintf("http://%s:%d%s", host(i), s.port, basePath) }

// set makes the weather, and forgets who was deleted. The old weather is over when it returns.
func (s *stub) set(ctx context.Context, w weather) (place, error) {
	if w.Peers > maxPeers || w.Dead+w.Hanging+w.Slow > w.Peers {
		return place{}, fmt.Errorf("no such weather: %+v", w)
	}
	bad := make(map[int]int) // the peers in a bad way: which of them
	for k := range w.Dead + w.Hanging + w.Slow {
		bad[k*w.Peers/(w.Dead+w.Hanging+w.Slow)] = k
	}
	s.slowOne.Store(int64(w.SlowOne))
	s.slowFor.Store(int64(w.SlowFor))
	p := place{Registry: s.back + "/mit", Issuer: s.back + "/token", Token: s.token, Size: w.Size}
	for i := range s.peers {
		k, isBad := bad[i]
		is, wait := well, w.Delay
		switch {
		case !isBad || k < w.Dead:
		case k < w.Dead+w.Hanging:
			is = hanging
		default:
			is, wait = slow, w.SlowFor
		}
		peer := &s.peers[i]
		body := peerAnswer(peer.id, w.Size)
		peer.body.Store(&body)
		peer.mood.Store(int32(is))
		peer.wait.Store(int64(wait))
		if i >= w.Peers || isBad && k < w.Dead {
			peer.close()
		} else if err := s.open(ctx, i); err != nil {
			return place{}, err
		}
		if i < w.Peers {
			p.Peers = append(p.Peers, seat{peer.id, s.url(i)})
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.weather, s.gone = w, make(map[string]bool)
	return p, nil
}

// peerAnswer is the envelope that a peer answers with.
func peerAnswer(id string, size int) []byte {
	return fmt.Appendf(nil, `{"data":[{"from":%q,"pad":%q}],"server":{"serverId":%q}}`, id, strings.Repeat("x", size), id)
}

func (p *stubPeer) close() {
	if p.srv != nil {
		p.srv.Close() // its connections break
		p.srv = nil
	}
}

func (s *stub) open(ctx context.Context, i int) error {
	p := &s.peers[i]
	if p.srv != nil {
		return nil
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", fmt.Sprintf("%s:%d", host(i), s.port))
	if err != nil {
		return err
	}
	p.srv = &http.Server{Handler: s.peer(p), ReadHeaderTimeout: time.Minute}
	go p.srv.Serve(ln) //nolint:errcheck // it ends with Close
	return nil
}

// peer answers whatever a peer is asked with the envelope that peers answer.
func (s *stub) peer(p *stubPeer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		wait := time.Duration(p.wait.Load())
		if r.Method == http.MethodGet {
			if n, one := s.things.Add(1), s.slowOne.Load(); one > 0 && n%one == 0 {
				wait = time.Duration(s.slowFor.Load())
			}
		} else {
			s.others.Add(1)
			_, _ = io.Copy(io.Discard, r.Body) // what breaks off is not answered
		}
		if r.Header.Get("Authorization") != "Bearer "+s.token {
			s.unauthorized.Add(1)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if mood(p.mood.Load()) == hanging {
			<-r.Context().Done()
			s.broken.Add(1)
			return
		}
		if wait > 0 {
			time.Sleep(wait)
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(*p.body.Load()) // who does not listen misses it
	})
}

func (s *stub) giveToken(w http.ResponseWriter, _ *http.Request) {
	s.tokens.Add(1)
	answer(w, map[string]any{"data": map[string]any{"access_token": s.token, "refresh_token": s.token, "expires_in": 86400}})
}

func (s *stub) register(w http.ResponseWriter, r *http.Request) {
	s.registrations.Add(1)
	var me struct{ ServerID, ClusterBaseURL string }
	if err := json.NewDecoder(r.Body).Decode(&me); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	date := time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)
	s.mu.Lock()
	defer s.mu.Unlock()
	var servers []cluster.Server
	for i := range s.weather.Peers {
		if id := s.peers[i].id; !s.gone[id] {
			servers = append(servers, cluster.Server{ServerID: id, ClusterBaseURL: s.url(i), CreatedAt: date, UpdatedAt: date})
		}
	}
	servers = append(servers, cluster.Server{ServerID: me.ServerID, ClusterBaseURL: me.ClusterBaseURL, CreatedAt: date, UpdatedAt: time.Now()})
	answer(w, map[string]any{
		"itResource": map[string]any{"id": "stub", "type": "mds", "publicBaseUrl": s.back, "servers": servers},
		"leaseTime":  (24 * time.Hour).Milliseconds(),
	})
}

func (s *stub) delete(w http.ResponseWriter, r *http.Request) {
	s.deletes.Add(1)
	id, _, _ := strings.Cut(r.PathValue("server"), "@")
	if plain, err := url.PathUnescape(id); err == nil {
		id = plain
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.weather.Down {
		http.Error(w, "{}", http.StatusServiceUnavailable)
		return
	}
	s.gone[id] = true
	answer(w, map[string]any{"data": id})
}

func answer(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value) // who does not listen misses it
}

func (s *stub) counts() counts {
	return counts{
		s.things.Load(), s.others.Load(), s.registrations.Load(), s.deletes.Load(),
		s.tokens.Load(), s.unauthorized.Load(), s.broken.Load(),
	}
}

// quiet waits until the stub has nothing more to do: what a contestant does beside a call is over.
// It does not begin before that many announcements and departures are told.
func quiet(ctx context.Context, stub *process, told int64) (counts, error) {
	const pause, longest = 200 * time.Millisecond, 3 * time.Minute
	ctx, cancel := context.WithTimeoutCause(ctx, longest, errors.New("the stub cluster does not come to rest"))
	defer cancel()
	var before, now counts
	for {
		if err := stub.do("counts", nil, &now); err != nil {
			return now, err
		}
		if now.Others >= told && now.total() == before.total() && before.total() > 0 {
			return now, nil
		}
		before = now
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return now, context.Cause(ctx)
		}
	}
}
