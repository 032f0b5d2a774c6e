package cluster_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

// A dead peer is evicted with one delete at the registry and one notification of each other peer.
func TestEviction(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		var counts evictionCounter
		w := startVerified(t, 5, clustertest.WithOptions(counts.trace()))
		n := w.Nodes[0]
		dead := w.Nodes[2]
		entry := w.Registered()[2]
		dead.Kill()
		requests := recordRequests(w)
		res := rpc(t, n, cluster.Request{Path: "/things"})
		wantOneOutcomeEach(t, res, w.Nodes[1:])
		if o := singleFailure(t, res); o.Server.ServerID != dead.ID || !o.Evicted || o.EvictionSkipped != nil || o.Kind != cluster.KindRefused {
			t.Errorf("%s: %s, evicted %t, skipped: %v", o.Server.ServerID, o.Kind, o.Evicted, o.EvictionSkipped)
		}
		wantView(t, n, "node-1", "node-2", "node-4", "node-5")
		time.Sleep(time.Second) // the broadcast
		for _, other := range []*clustertest.Node{w.Nodes[1], w.Nodes[3], w.Nodes[4]} {
			wantView(t, other, "node-1", "node-2", "node-4", "node-5")
			if notifications := requests.matching("DELETE", n.Host, other.Host); len(notifications) != 1 || !strings.HasSuffix(notifications[0].Path, "/servers/node-3") {
				t.Errorf("%d notifications of %s", len(notifications), other.ID)
			}
		}
		if diff := cmp.Diff([]string{"node-1", "node-2", "node-4", "node-5"}, idsOf(w.Registered())); diff != "" {
			t.Errorf("at the registry (-want +got):\n%s", diff)
		}
		date := entry.UpdatedAt.UTC().Format("2006-01-02T15:04:05.000Z")
		if diff := cmp.Diff([]string{"node-3" + epoch, "node-3@" + date}, requests.conditions(n)); diff != "" {
			t.Errorf("deletes at the registry (-want +got):\n%s", diff)
		}
		if e, s := counts.evicted.Load(), counts.skipped.Load(); e != 1 || s != 0 {
			t.Errorf("%d evicted, %d skipped", e, s)
		}

		again := rpc(t, n, cluster.Request{Path: "/things"})
		wantOneOutcomeEach(t, again, []*clustertest.Node{w.Nodes[1], w.Nodes[3], w.Nodes[4]})

		dead.Restart()
		for _, member := range w.Nodes {
			wantView(t, member, "node-1", "node-2", "node-3", "node-4", "node-5")
		}
	})
}

// Concurrent calls of a node that find the same dead peer evict it once.
func TestConcurrentCallsEvictOnce(t *testing.T) {
	parallel(t)
	for name, fault := range map[string]clustertest.Fault{"fast registry": nil, "slow registry": clustertest.Delay(100 * time.Millisecond)} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var counts evictionCounter
				w := startVerified(t, 5, clustertest.WithOptions(counts.trace()))
				n := w.Nodes[0]
				w.Nodes[2].Kill()
				registryFault(w, fault)
				requests := recordRequests(w)
				var wg sync.WaitGroup
				for range 8 {
					wg.Go(func() {
						res := rpc(t, n, cluster.Request{Path: "/things"})
						wantOneOutcomeEach(t, res, w.Nodes[1:])
						if len(res.Failures) != 1 || !singleFailure(t, res).Evicted {
							t.Errorf("failures: %v", failures(res))
						}
					})
				}
				wg.Wait()
				time.Sleep(time.Second) // the broadcast
				wantView(t, n, "node-1", "node-2", "node-4", "node-5")
				if e := counts.evicted.Load(); e != 1 {
					t.Errorf("evicted %d times", e)
				}
				if notifications := len(requests.matching("DELETE", n.Host, w.Nodes[1].Host)); notifications != 1 {
					t.Errorf("%d notifications of a peer", notifications)
				}
				deletes := len(requests.deletes(n))
				if deletes != 2 && fault != nil || deletes < 2 || deletes > 16 {
					t.Errorf("the registry received %d deletes", deletes)
				}
			})
		})
	}
}

// When all nodes evict the same peer at the same time, one or a few of them notify the others.
func TestEvictionIsBroadcastOnce(t *testing.T) {
	parallel(t)
	for name, policy := range map[string]cluster.PeerPolicy{"departures applied": {}, "departures verified": {VerifyWithRegistry: true}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testEvictionIsBroadcastOnce(t, policy) })
		})
	}
}

func testEvictionIsBroadcastOnce(t *testing.T, policy cluster.PeerPolicy) {
	t.Helper()
	const nodes = 40
	w := startVerified(t, nodes, clustertest.WithOptions(cluster.WithPeerPolicy(policy)))
	time.Sleep(time.Minute) // triggered renewals have ended
	for _, n := range w.Nodes {
		w.Network.Fault(n.Host, clustertest.Any, clustertest.Delay(2*time.Millisecond))
	}
	w.Nodes[2].Kill()
	alive := slices.Delete(slices.Clone(w.Nodes), 2, 3)
	requests := recordRequests(w)
	var wg sync.WaitGroup
	for _, n := range alive {
		wg.Go(func() {
			if o := singleFailure(t, rpc(t, n, cluster.Request{Path: "/things"})); !o.Evicted {
				t.Errorf("%s did not evict it: %v", n.ID, o.EvictionSkipped)
			}
		})
	}
	wg.Wait()
	time.Sleep(time.Second)
	notifications := 0
	for _, n := range alive {
		if len(n.Servers()) != nodes-1 {
			t.Errorf("%s knows %d servers", n.ID, len(n.Servers()))
		}
		for _, other := range alive {
			notifications += len(requests.matching("DELETE", n.Host, other.Host))
		}
	}
	// A twentieth of the nodes broadcasts within the 2 ms of a notification.
	if others := nodes - 2; notifications < others || notifications > nodes/2*others {
		t.Errorf("%d notifications of %d nodes", notifications, others)
	}
}

// The departure of a peer that registers again before the broadcast is not broadcast.
func TestNoBroadcastForReturnedPeer(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := startVerified(t, 5)
		n, peer := w.Nodes[0], w.Nodes[2]
		peer.Kill()
		requests := recordRequests(w)
		if o := singleFailure(t, rpc(t, n, cluster.Request{Path: "/things"})); !o.Evicted {
			t.Fatalf("eviction skipped: %v", o.EvictionSkipped)
		}
		peer.Restart() // it announces itself before the broadcast
		time.Sleep(time.Second)
		for _, member := range w.Nodes {
			wantView(t, member, "node-1", "node-2", "node-3", "node-4", "node-5")
		}
		if notifications := len(requests.matching("DELETE", n.Host, w.Nodes[1].Host)); notifications != 0 {
			t.Errorf("%d notifications of a peer", notifications)
		}
	})
}

// A notification that arrives after the peer has registered again does not remove its newer entry.
func TestLateBroadcastKeepsReturnedPeer(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := startVerified(t, 3)
		n, other, peer := w.Nodes[0], w.Nodes[1], w.Nodes[2]
		isDelete := func(req *http.Request) bool { return req.Method == http.MethodDelete }
		w.Network.Fault(n.Host, other.Host, clustertest.If(isDelete, clustertest.Delay(2*time.Second)))
		peer.Kill()
		if o := singleFailure(t, rpc(t, n, cluster.Request{Path: "/things"})); !o.Evicted {
			t.Fatalf("eviction skipped: %v", o.EvictionSkipped)
		}
		requests := recordRequests(w)
		time.Sleep(time.Second) // the notification is on its way
		peer.Restart()
		wantView(t, other, "node-1", "node-2", "node-3")
		time.Sleep(2 * time.Second)
		if notifications := len(requests.matching("DELETE", n.Host, other.Host)); notifications != 1 {
			t.Errorf("%d notifications, want 1", notifications)
		}
		wantView(t, other, "node-1", "node-2", "node-3")
	})
}

// A peer is evicted only if the registry confirms the delete. The npm module evicts on any failure
// of the registry.
func TestEvictionNeedsConfirmation(t *testing.T) {
	parallel(t)
	for name, tt := range map[string]struct {
		fault  clustertest.Fault
		reason string
		took   time.Duration
	}{
		"refused":             {clustertest.Refuse, "connection refused", 0},
		"hanging":             {clustertest.Hang, "the registry took too long", 2 * time.Second},
		"slower than Timeout": {clustertest.Delay(3 * time.Second), "the registry took too long", 2 * time.Second},
		"reset":               {clustertest.Reset, "connection reset", 0},
		"500":                 {clustertest.Status(500), "500", 0},
		"503":                 {clustertest.Status(503), "503", 0},
		"404":                 {clustertest.Status(404), "404", 0},
		"403":                 {clustertest.Status(403), "403", 0},
		"429":                 {clustertest.Status(429), "429", 0},
		"a redirect":          {clustertest.Answer(http.RedirectHandler("http://elsewhere/", http.StatusFound)), "302", 0},
		"malformed":           {respondOK("<html>"), "invalid response", 0},
		"empty":               {respondOK(""), "invalid response", 0},
		"an empty object":     {respondOK("{}"), "neither data nor a server", 0},
		"no data":             {respondOK(`{"data":null}`), "neither data nor a server", 0},
		"null":                {respondOK(`null`), "neither data nor a server", 0},
		"another server":      {respondOK(`{"server":{"serverId":"node-4","clusterBaseUrl":"http://node-4:8080/mds/v1"}}`), "about another server", 0},
		"a server without id": {respondOK(`{"server":{}}`), "serverId", 0},
		"truncated":           {clustertest.Truncate(5), "response truncated", 0},
		"stalled":             {clustertest.Stall(5), "the registry took too long", 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var counts evictionCounter
				w := startVerified(t, 5, clustertest.WithOptions(counts.trace()))
				n := w.Nodes[0]
				w.Nodes[2].Kill()
				w.Network.Fault(n.Host, clustertest.RegistryHost, onDelete(tt.fault))
				requests := recordRequests(w)
				start := time.Now()
				res := rpc(t, n, cluster.Request{Path: "/things"})
				if took, want := time.Since(start), 10*time.Millisecond+tt.took; took != want {
					t.Errorf("took %v, want %v", took, want)
				}
				wantOneOutcomeEach(t, res, w.Nodes[1:])
				if o := singleFailure(t, res); o.Evicted || o.EvictionSkipped == nil || !strings.Contains(o.EvictionSkipped.Error(), tt.reason) || o.Kind != cluster.KindRefused {
					t.Errorf("%s, evicted %t, skipped: %v, want skipped: %s", o.Kind, o.Evicted, o.EvictionSkipped, tt.reason)
				}
				synctest.Wait()
				for _, member := range []*clustertest.Node{w.Nodes[0], w.Nodes[1], w.Nodes[3]} {
					wantView(t, member, "node-1", "node-2", "node-3", "node-4", "node-5")
				}
				if notifications := requests.matching("DELETE", n.Host, w.Nodes[1].Host); len(notifications) != 0 {
					t.Error("peers were notified")
				}
				if e, s := counts.evicted.Load(), counts.skipped.Load(); e != 0 || s != 1 {
					t.Errorf("%d evicted, %d skipped", e, s)
				}
			})
		})
	}
	t.Run("with another timeout", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := startVerified(t, 5, clustertest.WithOptions(cluster.WithEviction(cluster.Eviction{Timeout: 200 * time.Millisecond})))
			w.Nodes[2].Kill()
			registryFault(w, clustertest.Hang)
			start := time.Now()
			o := singleFailure(t, rpc(t, w.Nodes[0], cluster.Request{Path: "/things"}))
			if took := time.Since(start); took != 210*time.Millisecond || o.Evicted {
				t.Errorf("evicted %t after %v", o.Evicted, took)
			}
		})
	})
	t.Run("without a token", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := startVerified(t, 5, clustertest.WithTokenTTL(40*time.Minute))
			n := w.Nodes[0]
			time.Sleep(30 * time.Minute) // the token for the registry is older than the one for peers now
			rpc(t, n, cluster.Request{Path: "/things"})
			w.Nodes[2].Kill()
			w.Network.Fault(n.Host, clustertest.TokenHost, clustertest.Refuse)
			time.Sleep(11 * time.Minute)
			o := singleFailure(t, rpc(t, n, cluster.Request{Path: "/things"}))
			if o.Evicted || o.EvictionSkipped == nil || !strings.Contains(o.EvictionSkipped.Error(), "no token") {
				t.Errorf("evicted %t, skipped: %v", o.Evicted, o.EvictionSkipped)
			}
		})
	})
}

// A request that fails on a reused connection does not show that the peer is gone: the peer may
// have closed the connection for being idle. So may an endpoint that panics. The test uses
// sockets, because only they have connections to reuse.
func TestLostConnectionsDoNotEvict(t *testing.T) {
	envelope := `{"data":[],"server":{"serverId":"node-2"}}`
	for name, tt := range map[string]struct {
		method string
		// respond handles the requests to things.
		respond func(c net.Conn, n int) bool
		reused  bool
	}{
		"POST, reused":  {"POST", func(c net.Conn, n int) bool { return n < 3 && writeRaw(c, envelope) }, true},
		"PATCH, reused": {"PATCH", func(c net.Conn, n int) bool { return n < 3 && writeRaw(c, envelope) }, true},
		"POST, reused and reset": {"POST", func(c net.Conn, n int) bool {
			if n == 3 {
				_ = c.(*net.TCPConn).SetLinger(0)
			}
			return n < 3 && writeRaw(c, envelope)
		}, true},
		"GET, panics":  {"GET", func(net.Conn, int) bool { return false }, false},
		"POST, panics": {"POST", func(net.Conn, int) bool { return false }, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var probes atomic.Int64
			peer := rawServer(t, func(c net.Conn, r *http.Request, n int) bool {
				if r.URL.Path != itResources {
					return tt.respond(c, n)
				}
				if r.Method == http.MethodHead {
					probes.Add(1)
					if r.Header.Get("Authorization") != "" || r.Header.Get("X-Correlation-Id") == "" {
						t.Errorf("header of the probe: %v", r.Header)
					}
				}
				return writeRaw(c, envelope)
			})
			c, deleted := newSocketNode(t, peer+"/mds/v1", testConfig())
			var failed cluster.Outcome
			for range 3 {
				if failed = callOnePeer(t, c, cluster.Request{Method: tt.method, Path: "/things"}); failed.Err != nil {
					break
				}
			}
			lost, _ := errors.AsType[*cluster.UnreachableError](failed.Err)
			if failed.Kind != cluster.KindConnectionLost || lost == nil || lost.Reused != tt.reused {
				t.Errorf("%s: %#v", failed.Kind, failed.Err)
			}
			if skipped := fmt.Sprint(failed.EvictionSkipped); failed.Evicted || deleted.Load() != 0 || !strings.Contains(skipped, "responds on a new connection") {
				t.Errorf("evicted %t, %d deletes, skipped: %s", failed.Evicted, deleted.Load(), skipped)
			}
			if probes.Load() != 1 {
				t.Errorf("%d probes", probes.Load())
			}
		})
	}
	t.Run("the peer is gone", func(t *testing.T) {
		t.Parallel()
		peer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, envelope) }))
		c, deleted := newSocketNode(t, peer.URL+"/mds/v1", testConfig())
		peer.Close()
		if o := callOnePeer(t, c, cluster.Request{Method: http.MethodPost, Path: "/things"}); !o.Evicted || deleted.Load() != 1 {
			t.Errorf("%v, evicted %t, skipped: %v", o.Err, o.Evicted, o.EvictionSkipped)
		}
	})
}

// Calls at the pace at which the peers close idle connections evict no peer.
func TestIdleTimeoutOfPeersDoesNotEvict(t *testing.T) {
	t.Parallel()
	const idle = 40 * time.Millisecond
	for name, tt := range map[string]struct {
		start func(*httptest.Server)
		opts  func(*httptest.Server) []cluster.Option
	}{
		"http":           {(*httptest.Server).Start, func(*httptest.Server) []cluster.Option { return nil }},
		"https, HTTP/1":  {(*httptest.Server).StartTLS, trusting},
		"https, HTTP/2":  {startHTTP2, trusting},
		"another client": {(*httptest.Server).Start, ownClient},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			peer := httptest.NewUnstartedServer(responder(http.StatusOK, `{"data":[],"server":{"serverId":"node-2"}}`))
			peer.Config.IdleTimeout = idle
			tt.start(peer)
			t.Cleanup(peer.Close)
			c, deleted := newSocketNode(t, peer.URL+"/mds/v1", testConfig(), tt.opts(peer)...)
			for i := range 25 {
				if o := callOnePeer(t, c, cluster.Request{Method: http.MethodPost, Path: "/things"}); o.Evicted || deleted.Load() != 0 {
					t.Fatalf("call %d: %v", i, o.Err)
				}
				time.Sleep(idle - 100*time.Microsecond)
			}
		})
	}
}

func startHTTP2(s *httptest.Server) {
	s.EnableHTTP2 = true
	s.StartTLS()
}

func trusting(s *httptest.Server) []cluster.Option {
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return []cluster.Option{cluster.WithPeerTLS(&tls.Config{RootCAs: roots})}
}

// ownClient makes the program's own client send the requests.
func ownClient(s *httptest.Server) []cluster.Option {
	transport := &http.Transport{ForceAttemptHTTP2: true}
	if cert := s.Certificate(); cert != nil {
		transport.TLSClientConfig = &tls.Config{RootCAs: x509.NewCertPool()}
		transport.TLSClientConfig.RootCAs.AddCert(cert)
	}
	return []cluster.Option{cluster.WithHTTPClient(&http.Client{Transport: transport})}
}

// A request that times out on a reused connection does not evict the peer. The next request uses a
// new connection, and decides.
func TestTimeoutOnReusedConnection(t *testing.T) {
	t.Parallel()
	const timeout = time.Second
	envelope := `{"data":[],"server":{"serverId":"node-2"}}`
	for name, alive := range map[string]bool{"a firewall dropped the connection": true, "the peer is silent": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var silent atomic.Bool
			peer := rawServer(t, func(c net.Conn, _ *http.Request, n int) bool {
				if silent.Load() && (n > 1 || !alive) {
					_, _ = io.Copy(io.Discard, c)
					return false
				}
				return writeRaw(c, envelope)
			})
			cfg := testConfig()
			cfg.RequestTimeout = timeout
			c, deleted := newSocketNode(t, peer+"/mds/v1", cfg)
			silent.Store(true)
			if o := callOnePeer(t, c, cluster.Request{Path: "/things"}); o.Kind != cluster.KindTimeout || o.Evicted || deleted.Load() != 0 ||
				!strings.Contains(fmt.Sprint(o.EvictionSkipped), "the next request uses a new one") {
				t.Errorf("%v, evicted %t, skipped: %v", o.Err, o.Evicted, o.EvictionSkipped)
			}
			time.Sleep(timeout + timeout/4) // until the open circuit lets a probe through
			for range 3 {
				o := callOnePeer(t, c, cluster.Request{Path: "/things"})
				if alive && o.Kind != cluster.KindOK || !alive && !o.Evicted {
					t.Errorf("the next request: %v, evicted %t, skipped: %v", o.Err, o.Evicted, o.EvictionSkipped)
				}
				if !alive {
					break
				}
			}
		})
	}
}

// A connection over TLS that a firewall drops without a word does not stay in use. One request
// times out on it, and a second one if a client of the program has no connection of its own for it.
func TestSilentConnectionsOverTLS(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		start    func(*httptest.Server)
		opts     func(*httptest.Server) []cluster.Option
		timeouts int
	}{
		"HTTP/1":                 {(*httptest.Server).StartTLS, trusting, 1},
		"HTTP/2":                 {startHTTP2, trusting, 1},
		"HTTP/1, another client": {(*httptest.Server).StartTLS, ownClient, 1},
		"HTTP/2, another client": {startHTTP2, ownClient, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			peer := httptest.NewUnstartedServer(responder(http.StatusOK, `{"data":[],"server":{"serverId":"node-2"}}`))
			tt.start(peer)
			t.Cleanup(peer.Close)
			address, drop := firewall(t, peer.Listener.Addr().String())
			cfg := testConfig()
			cfg.RequestTimeout = 2 * time.Second
			c, deleted := newSocketNode(t, "https://"+address+"/mds/v1", cfg, tt.opts(peer)...)
			if o := callOnePeer(t, c, cluster.Request{Path: "/things"}); o.Err != nil {
				t.Fatal(o.Err)
			}
			drop()
			timeouts, results := 0, 0
			for deadline := time.Now().Add(20 * time.Second); results < 3 && time.Now().Before(deadline); {
				switch o := callOnePeer(t, c, cluster.Request{Path: "/things"}); o.Kind {
				case cluster.KindOK:
					results++
				case cluster.KindTimeout:
					timeouts++
				case cluster.KindCircuitOpen:
					time.Sleep(100 * time.Millisecond)
				default:
					t.Errorf("%s: %v", o.Kind, o.Err)
				}
			}
			if results != 3 || timeouts > tt.timeouts || deleted.Load() != 0 {
				t.Errorf("%d timeouts, then %d results, %d evictions", timeouts, results, deleted.Load())
			}
		})
	}
}

// firewall returns an address from which connections are forwarded to a target. drop makes it lose
// all bytes of the present connections, without closing them.
func firewall(t *testing.T, target string) (address string, drop func()) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var (
		mu      sync.Mutex // guards the field below
		dropped []*atomic.Bool
	)
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	forward := func(to, from net.Conn, drops *atomic.Bool) {
		defer context.AfterFunc(t.Context(), func() { from.Close() })() // before the cleanup waits
		defer to.Close()
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			if !drops.Load() {
				_, _ = to.Write(buf[:n])
			}
		}
	}
	wg.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			to, err := new(net.Dialer).DialContext(t.Context(), "tcp", target)
			if err != nil {
				from.Close()
				continue
			}
			drops := new(atomic.Bool)
			mu.Lock()
			dropped = append(dropped, drops)
			mu.Unlock()
			wg.Go(func() { forward(to, from, drops) })
			wg.Go(func() { forward(from, to, drops) })
		}
	})
	return l.Addr().String(), func() {
		mu.Lock()
		defer mu.Unlock()
		for _, drops := range dropped {
			drops.Store(true)
		}
	}
}

// A process without free file descriptors evicts no peer, and goes on when it has some again. The
// limit is that of a child process.
func TestNoFreeFiles(t *testing.T) {
	const variable = "CLUSTER_TEST_PEER"
	if runtime.GOOS != "linux" {
		t.Skip("the limit is set by a shell of Linux")
	}
	if address := os.Getenv(variable); address != "" {
		callWithoutFreeFiles(t, address)
		return
	}
	peer := httptest.NewUnstartedServer(responder(http.StatusOK, `{"data":[],"server":{"serverId":"node-2"}}`))
	peer.Config.SetKeepAlivesEnabled(false) // each request needs a descriptor
	peer.Start()
	t.Cleanup(peer.Close)
	_, port, _ := net.SplitHostPort(peer.Listener.Addr().String())
	for _, host := range []string{"127.0.0.1", "localhost"} { // the resolver needs a descriptor, too
		cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", `ulimit -n 64; exec "$0" -test.run '^TestNoFreeFiles$'`, os.Args[0])
		cmd.Env = append(os.Environ(), variable+"=http://"+net.JoinHostPort(host, port)+"/mds/v1")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS") {
			t.Errorf("%s: %v\n%s", host, err, out)
		}
	}
}

func callWithoutFreeFiles(t *testing.T, peer string) {
	t.Helper()
	c, deleted := newSocketNode(t, peer, testConfig())
	var files []*os.File
	for {
		f, err := os.Open(os.DevNull)
		if errors.Is(err, syscall.EMFILE) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	o := callOnePeer(t, c, cluster.Request{Path: "/things"})
	for _, f := range files {
		_ = f.Close()
	}
	// The connection to the registry is open: it would confirm an eviction.
	if o.Kind != cluster.KindLocal || o.Evicted || o.EvictionSkipped != nil || deleted.Load() != 0 {
		t.Errorf("%s: %v, evicted %t, skipped: %v", o.Kind, o.Err, o.Evicted, o.EvictionSkipped)
	}
	if o := callOnePeer(t, c, cluster.Request{Path: "/things"}); o.Err != nil {
		t.Errorf("with free files: %v", o.Err)
	}
}

// The process is stopped while it waits for a peer, and goes on after the timeout. The other peers
// are too few for self-preservation.
func TestSuspendedNodeEvictsNoPeer(t *testing.T) {
	parallel(t)
	const timeout = 10 * time.Second
	for name, variant := range map[string]struct {
		suspended time.Duration
		options   []clustertest.Option
		kind      cluster.Kind
		silent    bool // the peer, from then on
		skipped   string
	}{
		"a minute": {suspended: time.Minute, kind: cluster.KindLocal},
		"a day":    {suspended: 24 * time.Hour, kind: cluster.KindLocal},
		"until shortly after the timeout": {
			suspended: timeout + 60*time.Millisecond, kind: cluster.KindTimeout,
			skipped: "it responds on a new connection",
		},
		"the probe was shorter than the request": {
			suspended: timeout + 60*time.Millisecond, kind: cluster.KindTimeout, silent: true,
			skipped: "it has not responded on a new connection yet",
		},
		"the peer is silent on a busy machine": {
			suspended: timeout + 60*time.Millisecond, kind: cluster.KindTimeout, silent: true,
			options: []clustertest.Option{clustertest.WithOptions(cluster.WithEviction(cluster.Eviction{Timeout: 2 * timeout}))},
		},
		"the peer is silent on an idle machine": {
			suspended: timeout + 40*time.Millisecond, kind: cluster.KindTimeout, silent: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 2, append(variant.options, clustertest.WithLease(100*time.Hour))...)
				n, peer := w.Nodes[0], w.Nodes[1]
				w.Network.Fault(n.Host, peer.Host, failAfter(variant.suspended))
				time.AfterFunc(timeout/2, func() { // for the requests after the first one
					w.Network.Fault(n.Host, peer.Host, nil)
					if variant.silent {
						w.Network.Fault(n.Host, peer.Host, clustertest.Hang)
					}
				})
				o := singleFailure(t, rpc(t, n, cluster.Request{Path: "/things"}))
				evicted := variant.silent && variant.skipped == ""
				if o.Kind != variant.kind || o.Evicted != evicted || variant.skipped != "" && fmt.Sprint(o.EvictionSkipped) != variant.skipped {
					t.Errorf("%s, evicted %t, skipped: %v: %v", o.Kind, o.Evicted, o.EvictionSkipped, o.Err)
				}
			})
		})
	}
}

// failAfter makes requests fail after d with the error of their contexts, like a transport that
// does not know whether a response has arrived.
func failAfter(d time.Duration) clustertest.Fault {
	return func(http.RoundTripper) http.RoundTripper {
		return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
			time.Sleep(d)
			return nil, req.Context().Err()
		})
	}
}

// A response that this process could not read before the deadline of its request keeps the peer,
// even if the process has noticed the timeout at once.
func TestResponseDuringSuspension(t *testing.T) {
	parallel(t)
	for _, suspended := range []time.Duration{9995 * time.Millisecond, 10*time.Second + time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			w := clustertest.Start(t, 2, clustertest.WithLease(100*time.Hour))
			n, peer := w.Nodes[0], w.Nodes[1]
			w.Network.Fault(clustertest.Any, peer.Host, clustertest.Delay(10*time.Millisecond))
			release := make(chan struct{})
			w.Network.Fault(n.Host, peer.Host, clustertest.Suspend(release))
			time.AfterFunc(suspended, func() { close(release) })
			o := singleFailure(t, rpc(t, n, cluster.Request{Path: "/things"}))
			if o.Kind != cluster.KindTimeout || o.Evicted || len(w.Registered()) != 2 {
				t.Errorf("suspended for %v: %s, evicted %t: %v", suspended, o.Kind, o.Evicted, o.Err)
			}
		})
	}
}

// Faults of this node, such as a lack of file descriptors, evict no peer, however few peers there
// are. They have a kind and a warning of their own.
func TestLocalFaultsDoNotEvict(t *testing.T) {
	parallel(t)
	dial := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	for name, fault := range map[string]error{
		"EMFILE":                     dial(os.NewSyscallError("socket", syscall.EMFILE)),
		"ENFILE":                     dial(os.NewSyscallError("socket", syscall.ENFILE)),
		"ENOBUFS":                    dial(os.NewSyscallError("connect", syscall.ENOBUFS)),
		"ENOMEM":                     dial(os.NewSyscallError("socket", syscall.ENOMEM)),
		"EADDRNOTAVAIL":              dial(os.NewSyscallError("connect", syscall.EADDRNOTAVAIL)),
		"EAGAIN":                     dial(os.NewSyscallError("connect", syscall.EAGAIN)),
		"EPERM, of a local firewall": dial(os.NewSyscallError("connect", syscall.EPERM)),
		"ENETDOWN":                   dial(os.NewSyscallError("connect", syscall.ENETDOWN)),
		"EAFNOSUPPORT, without IPv6": dial(os.NewSyscallError("socket", syscall.EAFNOSUPPORT)),
		"ENOBUFS while writing":      &net.OpError{Op: "write", Net: "tcp", Err: os.NewSyscallError("write", syscall.ENOBUFS)},
		"the resolver is silent":     dial(&net.DNSError{Err: "i/o timeout", Name: "node-2", IsTimeout: true, IsTemporary: true}),
		"the resolver fails":         dial(&net.DNSError{Err: "server misbehaving", Name: "node-2", IsTemporary: true}),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				core, logged := observer.New(zap.WarnLevel)
				w := startVerified(t, 3, clustertest.WithOptions(cluster.WithLogger(zap.New(core))))
				n := w.Nodes[0]
				w.Network.Fault(n.Host, w.Nodes[1].Host, func(http.RoundTripper) http.RoundTripper {
					return clustertest.RoundTripperFunc(func(*http.Request) (*http.Response, error) { return nil, fault })
				})
				requests := recordRequests(w)
				for range 5 {
					if o := singleFailure(t, rpc(t, n, cluster.Request{Path: "/things"})); o.Kind != cluster.KindLocal || o.Evicted || o.EvictionSkipped != nil {
						t.Errorf("%s: %v, evicted %t, skipped: %v", o.Kind, o.Err, o.Evicted, o.EvictionSkipped)
					}
				}
				if deletes := requests.matching(http.MethodDelete, n.Host, clustertest.Any); len(deletes) != 0 {
					t.Errorf("%d deletes", len(deletes))
				}
				warnings := logged.FilterMessage("local fault: requests to peers cannot be sent")
				if warnings.Len() != 1 {
					t.Errorf("%d warnings in the first minute", warnings.Len())
				}
				time.Sleep(time.Minute)
				rpc(t, n, cluster.Request{Path: "/things"})
				if warnings := logged.FilterMessage("local fault: requests to peers cannot be sent"); warnings.Len() != 2 {
					t.Errorf("%d warnings in two minutes", warnings.Len())
				}
			})
		})
	}
	// One peer refuses, and the node cannot dial most others.
	t.Run("self-preservation", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := startVerified(t, 5)
			n := w.Nodes[0]
			for _, peer := range w.Nodes[2:] {
				w.Network.Fault(n.Host, peer.Host, func(http.RoundTripper) http.RoundTripper {
					return clustertest.RoundTripperFunc(func(*http.Request) (*http.Response, error) { return nil, dial(syscall.EMFILE) })
				})
			}
			w.Nodes[1].Kill()
			for _, o := range rpc(t, n, cluster.Request{Path: "/things"}).Failures {
				if o.Evicted || o.Kind == cluster.KindRefused && o.EvictionSkipped == nil {
					t.Errorf("%s: %s, evicted %t", o.Server.ServerID, o.Kind, o.Evicted)
				}
			}
		})
	})
}

// An entry without a timestamp cannot be the condition of a delete, so it is not deleted.
func TestEntryWithoutTimestampIsNotEvicted(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 4)
		n := w.Nodes[0]
		w.Network.Fault(n.Host, clustertest.RegistryHost, onPost(respondOK(`{"itResource":`+resourceWithDate("", "node-1", "node-2", "node-3", "node-4")+`}`)))
		if _, err := n.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.Nodes[2].Kill()
		requests := recordRequests(w)
		o := singleFailure(t, rpc(t, n, cluster.Request{Path: "/things"}))
		if o.Server.ServerID != "node-3" || o.Evicted || o.EvictionSkipped == nil || !strings.Contains(o.EvictionSkipped.Error(), "no date") {
			t.Errorf("%s: evicted %t, skipped: %v", o.Server.ServerID, o.Evicted, o.EvictionSkipped)
		}
		if deletes := requests.deletes(n); len(deletes) != 0 {
			t.Errorf("the registry received %v", deletes)
		}
	})
}

// A suspect with an entry that was only announced is looked up with a condition that never holds.
// With the announced timestamp a forged announcement could delete any server.
func TestAnnouncedSuspect(t *testing.T) {
	parallel(t)
	for name, tt := range map[string]struct {
		suspect func(t *testing.T, w *clustertest.World, n *clustertest.Node) // makes a suspect of n
		deletes []string                                                      // ids and conditions
		view    []string
		data    string
	}{
		"announced as it is listed, and dead": {
			func(_ *testing.T, w *clustertest.World, _ *clustertest.Node) { w.Nodes[2].Kill() },
			[]string{"node-3" + epoch, "node-3@2000-01-01T00:00:00.000Z"},
			[]string{"node-1", "node-2", "node-4"},
			`["node-2","node-4"]`,
		},
		"alive, but announced with a forged date and address": {
			func(t *testing.T, w *clustertest.World, n *clustertest.Node) {
				t.Helper()
				announce(t, w, n, strings.Replace(resourceWithDate("2099-01-01T00:00:00.000Z", "node-3"), "node-3:8080", "forged:8080", 1))
			},
			[]string{"node-3" + epoch},
			[]string{"node-1", "node-2", "node-3", "node-4"},
			`["node-2","node-3","node-4"]`,
		},
		"not listed": {
			func(t *testing.T, w *clustertest.World, n *clustertest.Node) {
				t.Helper()
				announce(t, w, n, announcement("node-9"))
			},
			[]string{"node-9" + epoch},
			[]string{"node-1", "node-2", "node-3", "node-4"},
			`["node-2","node-3","node-4"]`,
		},
		"not listed, and without a date": {
			func(t *testing.T, w *clustertest.World, n *clustertest.Node) {
				t.Helper()
				announce(t, w, n, resourceWithDate("", "node-9"))
			},
			[]string{"node-9" + epoch},
			[]string{"node-1", "node-2", "node-3", "node-4"},
			`["node-2","node-3","node-4"]`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 4) // the first node only has announced entries of its peers
				n := w.Nodes[0]
				tt.suspect(t, w, n)
				requests := recordRequests(w)
				res := rpc(t, n, cluster.Request{Path: "/things"})
				if diff := cmp.Diff(tt.deletes, requests.conditions(n)); diff != "" {
					t.Errorf("deletes at the registry (-want +got):\n%s", diff)
				}
				wantView(t, n, tt.view...)
				if got := marshal(t, res.Data); got != tt.data {
					t.Errorf("joint data %s; failures %v", got, failures(res))
				}
				if diff := cmp.Diff(tt.view, idsOf(w.Registered())); diff != "" {
					t.Errorf("at the registry (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// A node that cannot reach most of its peers evicts none. The npm module evicts them all.
func TestSelfPreservation(t *testing.T) {
	parallel(t)
	for name, tt := range map[string]struct {
		peers, dead int
		eviction    cluster.Eviction
		evicted     int
		reason      string
	}{
		// With one or two peers the registry alone decides.
		"one of one":                  {1, 1, cluster.Eviction{}, 1, ""},
		"one of two":                  {2, 1, cluster.Eviction{}, 1, ""},
		"two of two":                  {2, 2, cluster.Eviction{}, 2, ""},
		"one of three":                {3, 1, cluster.Eviction{}, 1, ""},
		"two of three":                {3, 2, cluster.Eviction{}, 0, "(2 of 3)"},
		"three of three":              {3, 3, cluster.Eviction{}, 0, "(3 of 3)"},
		"half of four":                {4, 2, cluster.Eviction{}, 2, ""},
		"three of four":               {4, 3, cluster.Eviction{}, 0, "(3 of 4)"},
		"ten of ten":                  {10, 10, cluster.Eviction{}, 0, "(10 of 10)"},
		"smaller fraction":            {4, 2, cluster.Eviction{MaxSuspectFraction: 0.25}, 0, "(2 of 4)"},
		"smaller fraction, below":     {4, 1, cluster.Eviction{MaxSuspectFraction: 0.25}, 1, ""},
		"larger fraction":             {4, 3, cluster.Eviction{MaxSuspectFraction: 0.75}, 3, ""},
		"any fraction":                {4, 4, cluster.Eviction{MaxSuspectFraction: 1}, 4, ""},
		"disabled":                    {4, 1, cluster.Eviction{Disabled: true}, 0, "eviction is off"},
		"disabled, one peer":          {1, 1, cluster.Eviction{Disabled: true}, 0, "eviction is off"},
		"any fraction, slow registry": {9, 9, cluster.Eviction{MaxSuspectFraction: 1, Timeout: time.Minute}, 9, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var counts evictionCounter
				w := startVerified(t, 1+tt.peers, clustertest.WithOptions(cluster.WithEviction(tt.eviction), counts.trace()))
				n := w.Nodes[0]
				for _, peer := range w.Nodes[1 : 1+tt.dead] {
					peer.Kill()
				}
				if tt.eviction.Timeout > 0 {
					registryFault(w, clustertest.Delay(5*time.Second))
				}
				requests := recordRequests(w)
				res := rpc(t, n, cluster.Request{Path: "/things"})
				wantOneOutcomeEach(t, res, w.Nodes[1:])
				for _, o := range res.Failures {
					if o.Evicted != (tt.evicted > 0) || (o.EvictionSkipped == nil) != o.Evicted || o.EvictionSkipped != nil && !strings.Contains(o.EvictionSkipped.Error(), tt.reason) {
						t.Errorf("%s: evicted %t, skipped: %v", o.Server.ServerID, o.Evicted, o.EvictionSkipped)
					}
				}
				if known := len(n.Servers()); len(res.Failures) != tt.dead || known != 1+tt.peers-tt.evicted {
					t.Errorf("%d failures, %d servers in the view", len(res.Failures), known)
				}
				if e, s := counts.evicted.Load(), counts.skipped.Load(); int(e) != tt.evicted || int(s) != tt.dead-tt.evicted {
					t.Errorf("%d evicted, %d skipped", e, s)
				}
				if deletes := len(requests.deletes(n)); deletes != 2*tt.evicted {
					t.Errorf("the registry received %d deletes", deletes)
				}
			})
		})
	}
}

// The smaller side of a partition evicts no peer, although it reaches the registry. The larger
// side evicts the smaller one, which is back after its next renewal.
func TestPartition(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 6)
		all := []string{"node-1", "node-2", "node-3", "node-4", "node-5", "node-6"}
		minority, majority := w.Nodes[:2], w.Nodes[2:]
		var few, many []string
		for _, n := range minority {
			few = append(few, n.Host)
		}
		for _, n := range majority {
			many = append(many, n.Host)
		}
		w.Network.Partition(few, many)
		for _, n := range minority {
			res := rpc(t, n, cluster.Request{Path: "/things"})
			if len(res.Failures) != 4 {
				t.Errorf("%s: failures %v", n.ID, failures(res))
			}
			wantView(t, n, all...)
		}
		if diff := cmp.Diff(all, idsOf(w.Registered())); diff != "" {
			t.Fatalf("at the registry (-want +got):\n%s", diff)
		}
		rpc(t, majority[0], cluster.Request{Path: "/things"})
		time.Sleep(time.Second) // the broadcast
		for _, n := range majority {
			wantView(t, n, "node-3", "node-4", "node-5", "node-6")
		}
		w.Network.Heal()
		time.Sleep(time.Hour)
		for _, n := range w.Nodes {
			wantView(t, n, all...)
		}
	})
}

// Suspects are resolved concurrently, up to a limit. The npm module resolves one after the other.
func TestSuspectsAreResolvedConcurrently(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := startVerified(t, 25)
		n := w.Nodes[0]
		for _, peer := range w.Nodes[1:12] {
			w.Network.Fault(n.Host, peer.Host, clustertest.Hang)
		}
		w.Network.Fault(n.Host, clustertest.RegistryHost, onDelete(clustertest.Delay(100*time.Millisecond)))
		requests := recordRequests(w)
		start := time.Now()
		res := rpc(t, n, cluster.Request{Path: "/things"})
		if took := time.Since(start); took != 10*time.Second+400*time.Millisecond {
			t.Errorf("one timeout, and 11 look-ups and deletes of 100 ms each, 8 at a time, took %v", took)
		}
		for _, o := range res.Failures {
			if !o.Evicted {
				t.Errorf("%s was not evicted: %v", o.Server.ServerID, o.EvictionSkipped)
			}
		}
		at := map[time.Duration]int{}
		for _, x := range requests.deletes(n) {
			at[x.Start.Sub(start)]++
		}
		want := map[time.Duration]int{
			10 * time.Second: 8, 10*time.Second + 100*time.Millisecond: 8,
			10*time.Second + 200*time.Millisecond: 3, 10*time.Second + 300*time.Millisecond: 3,
		}
		if diff := cmp.Diff(want, at); diff != "" {
			t.Errorf("deletes at the registry (-want +got):\n%s", diff)
		}
	})
}

// A peer that answers is alive, and is not evicted, whatever the status. The npm module evicts on
// any 5xx.
func TestServerErrorsDoNotEvict(t *testing.T) {
	parallel(t)
	for name, tt := range map[string]struct {
		peers, failing int
		code           int
		eviction       cluster.Eviction
		evicted        int
		skipped        bool
	}{
		"one of four, 500":             {4, 1, 500, cluster.Eviction{}, 0, false},
		"one of one, 503":              {1, 1, 503, cluster.Eviction{}, 0, false},
		"ten of ten, 500":              {10, 10, 500, cluster.Eviction{}, 0, false},
		"with ServerErrors":            {4, 1, 500, cluster.Eviction{ServerErrors: true}, 1, false},
		"with ServerErrors, 599":       {4, 1, 599, cluster.Eviction{ServerErrors: true}, 1, false},
		"with ServerErrors, 404":       {4, 1, 404, cluster.Eviction{ServerErrors: true}, 0, false},
		"with ServerErrors, 429":       {4, 1, 429, cluster.Eviction{ServerErrors: true}, 0, false},
		"with ServerErrors, all of 10": {10, 10, 500, cluster.Eviction{ServerErrors: true}, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := startVerified(t, 1+tt.peers, clustertest.WithOptions(cluster.WithEviction(tt.eviction)))
				n := w.Nodes[0]
				for _, peer := range w.Nodes[1 : 1+tt.failing] {
					w.Network.Fault(n.Host, peer.Host, clustertest.Status(tt.code))
				}
				requests := recordRequests(w)
				res := rpc(t, n, cluster.Request{Path: "/things"})
				wantOneOutcomeEach(t, res, w.Nodes[1:])
				for _, o := range res.Failures {
					se, ok := errors.AsType[*cluster.StatusError](o.Err)
					if !ok || se.Code != tt.code || o.Kind != cluster.KindStatus || o.Evicted != (tt.evicted > 0) || (o.EvictionSkipped != nil) != tt.skipped {
						t.Errorf("%s: %v, evicted %t, skipped: %v", o.Server.ServerID, o.Err, o.Evicted, o.EvictionSkipped)
					}
				}
				if deletes := len(requests.deletes(n)); len(res.Failures) != tt.failing || deletes != 2*tt.evicted || len(n.Servers()) != 1+tt.peers-tt.evicted {
					t.Errorf("%d failures, %d deletes at the registry, %d servers in the view", len(res.Failures), deletes, len(n.Servers()))
				}
			})
		})
	}
}

// Peers that all answer 500 stay in the view of all nodes and in the registry.
func TestPeersAnswering500(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 11)
		for _, n := range w.Nodes {
			w.Network.Fault(clustertest.Any, n.Host, clustertest.Status(500))
		}
		res, err := w.Nodes[0].RPCluster(t.Context(), cluster.Request{Path: "/things"})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if len(res.Results) != 0 || len(res.Failures) != 10 {
			t.Errorf("%d results and %d failures, want 10 failures", len(res.Results), len(res.Failures))
		}
		for _, o := range res.Failures {
			se, ok := errors.AsType[*cluster.StatusError](o.Err)
			if !ok || se.Code != 500 || o.Kind != cluster.KindStatus || o.Evicted || o.EvictionSkipped != nil {
				t.Errorf("%s: %s failure, evicted: %t, skipped: %v: %v", o.Server.ServerID, o.Kind, o.Evicted, o.EvictionSkipped, o.Err)
			}
		}
		if got := len(w.Registered()); got != 11 {
			t.Errorf("the registry lists %d servers, want 11", got)
		}
		for _, n := range w.Nodes {
			if got := len(n.Servers()); got != 11 {
				t.Errorf("%s knows %d servers, want 11", n.ID, got)
			}
		}
	})
}

// A timeout below Config.RequestTimeout does not make the peer suspect.
func TestShortTimeoutDoesNotMakeSuspect(t *testing.T) {
	parallel(t)
	for name, tt := range map[string]struct {
		timeout time.Duration
		evicted bool
	}{
		"shorter": {time.Second, false},
		"default": {10 * time.Second, true},
		"longer":  {20 * time.Second, true},
		"zero":    {0, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := startVerified(t, 5)
				n := w.Nodes[0]
				w.Network.Fault(n.Host, w.Nodes[2].Host, clustertest.Hang)
				start := time.Now()
				o := singleFailure(t, rpc(t, n, cluster.Request{Path: "/things", Timeout: tt.timeout}))
				want := tt.timeout
				if want == 0 {
					want = 10 * time.Second
				}
				if o.Kind != cluster.KindTimeout || o.Evicted != tt.evicted || o.EvictionSkipped != nil || time.Since(start) != want {
					t.Errorf("%s after %v, evicted %t, skipped: %v", o.Kind, time.Since(start), o.Evicted, o.EvictionSkipped)
				}
			})
		})
	}
	t.Run("a refused connection makes it suspect", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := startVerified(t, 5)
			w.Nodes[2].Kill()
			if o := singleFailure(t, rpc(t, w.Nodes[0], cluster.Request{Path: "/things", Timeout: time.Second})); !o.Evicted {
				t.Errorf("%s: evicted %t, skipped: %v", o.Kind, o.Evicted, o.EvictionSkipped)
			}
		})
	})
}

// A node that has begun to leave evicts no peer.
func TestLeavingNodeEvictsNoPeer(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := startVerified(t, 5)
		n := w.Nodes[0]
		w.Nodes[2].Kill()
		w.Network.Fault(n.Host, w.Nodes[3].Host, clustertest.Delay(time.Second))
		var wg sync.WaitGroup
		for _, delay := range []time.Duration{0, 3 * time.Second} { // before UnRegister, and after
			wg.Go(func() {
				time.Sleep(delay)
				res := rpc(t, n, cluster.Request{Path: "/things"})
				wantOneOutcomeEach(t, res, w.Nodes[1:])
				if o := singleFailure(t, res); o.Evicted || o.EvictionSkipped == nil || !errors.Is(o.EvictionSkipped, cluster.ErrNotRegistered) {
					t.Errorf("evicted %t, skipped: %v", o.Evicted, o.EvictionSkipped)
				}
			})
		}
		time.Sleep(500 * time.Millisecond)
		if d := n.UnRegister(t.Context()); d.Errors != nil {
			t.Errorf("UnRegister: %v", d.Errors)
		}
		wg.Wait()
		if diff := cmp.Diff([]string{"node-2", "node-3", "node-4", "node-5"}, idsOf(w.Registered())); diff != "" {
			t.Errorf("at the registry (-want +got):\n%s", diff)
		}
	})
}

// If the registry has a newer entry of the suspect, the peer is called at the address of this
// entry. The npm module does so, too, but keeps the old entry in its view, and drops a 5xx from
// its response.
func TestNewerEntryIsRetried(t *testing.T) {
	parallel(t)
	for name, host := range map[string]string{"at its old address": "", "at a new address": "node-3-moved:9090"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var counts evictionCounter
				w := startVerified(t, 5, clustertest.WithOptions(counts.trace()))
				n, peer := w.Nodes[0], w.Nodes[2]
				if host != "" {
					peer.Move(host)
				} else { // refuses all attempts of n
					w.Network.Fault(n.Host, peer.Host, clustertest.FirstN(2, clustertest.Refuse))
				}
				renewUnnoticed(t, w, n, peer)
				requests := recordRequests(w)
				res := rpc(t, n, cluster.Request{Path: "/things"})
				wantOneOutcomeEach(t, res, w.Nodes[1:])
				if got := marshal(t, res.Data); got != `["node-2","node-3","node-4","node-5"]` {
					t.Errorf("joint data %s; failures %v", got, failures(res))
				}
				o := res.Results[1]
				if o.Attempts != 3 || o.Duration != 10*time.Millisecond || o.Evicted || o.EvictionSkipped != nil {
					t.Errorf("%d attempts in %v, evicted %t, skipped: %v", o.Attempts, o.Duration, o.Evicted, o.EvictionSkipped)
				}
				if want := "http://" + peer.Host + "/mds/v1"; o.Server.ClusterBaseURL != want || n.Servers()[2].ClusterBaseURL != want {
					t.Errorf("called at %s, in the view at %s, want %s", o.Server.ClusterBaseURL, n.Servers()[2].ClusterBaseURL, want)
				}
				if deletes := len(requests.deletes(n)); deletes != 1 {
					t.Errorf("the registry received %d deletes", deletes)
				}
				if len(w.Registered()) != 5 || counts.evicted.Load() != 0 {
					t.Errorf("the registry lists %d servers, %d evicted", len(w.Registered()), counts.evicted.Load())
				}
				rpc(t, n, cluster.Request{Path: "/things"})
				if deletes := len(requests.deletes(n)); deletes != 1 {
					t.Error("the next call used the old entry")
				}
			})
		})
	}
}

// A peer that has a newer entry, but is silent, gets no second request in the same call, which
// ends with the timeout. The next call uses the newer entry.
func TestRenewedButSilentPeer(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := startVerified(t, 5)
		n, peer := w.Nodes[0], w.Nodes[2]
		time.Sleep(time.Minute) // the renewal that follows Register has ended
		renewUnnoticed(t, w, n, peer)
		time.Sleep(time.Minute)
		w.Network.Fault(n.Host, peer.Host, clustertest.Hang)
		for call, want := range []struct {
			took     time.Duration
			attempts int
			evicted  bool
		}{{10 * time.Second, 1, false}, {10 * time.Second, 1, true}} {
			start := time.Now()
			res := rpc(t, n, cluster.Request{Path: "/things"})
			wantOneOutcomeEach(t, res, w.Nodes[1:])
			if o := singleFailure(t, res); o.Attempts != want.attempts || o.Evicted != want.evicted || (o.EvictionSkipped == nil) != want.evicted || time.Since(start) != want.took {
				t.Errorf("call %d: %d attempts in %v, evicted %t, skipped: %v; want %+v", call, o.Attempts, time.Since(start), o.Evicted, o.EvictionSkipped, want)
			}
		}
	})
}

// If the peer is dead at its newer entry, too, that entry is deleted with its own timestamp.
func TestNewerEntryOfDeadPeer(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := startVerified(t, 5)
		n, peer := w.Nodes[0], w.Nodes[2]
		renewUnnoticed(t, w, n, peer)
		newer := w.Registered()[2].UpdatedAt.UTC().Format("2006-01-02T15:04:05.000Z")
		peer.Kill()
		requests := recordRequests(w)
		o := singleFailure(t, rpc(t, n, cluster.Request{Path: "/things"}))
		if !o.Evicted || o.Attempts != 4 || o.Kind != cluster.KindRefused {
			t.Errorf("evicted %t after %d attempts: %v", o.Evicted, o.Attempts, o.Err)
		}
		if diff := cmp.Diff([]string{"node-3" + epoch, "node-3" + epoch, "node-3@" + newer}, requests.conditions(n)); diff != "" {
			t.Errorf("deletes at the registry (-want +got):\n%s", diff)
		}
		wantView(t, n, "node-1", "node-2", "node-4", "node-5")
	})
}

// A call retries at a bounded number of newer entries. The npm module has no bound.
func TestNewerEntriesAreBounded(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := startVerified(t, 5)
		n := w.Nodes[0]
		w.Nodes[2].Kill()
		var entries atomic.Int64
		registryFault(w, onDelete(clustertest.Answer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"server":{"serverId":"node-3","clusterBaseUrl":"http://node-3:8080/mds/v1","updatedAt":"20%d-01-01T00:00:00.000Z"}}`, 30+entries.Add(1))
		}))))
		o := singleFailure(t, rpc(t, n, cluster.Request{Path: "/things"}))
		if o.Evicted || o.EvictionSkipped == nil || !strings.Contains(o.EvictionSkipped.Error(), "3 newer entries") {
			t.Errorf("evicted %t, skipped: %v", o.Evicted, o.EvictionSkipped)
		}
		if entries.Load() != 3 || o.Attempts != 8 {
			t.Errorf("%d deletes at the registry, %d attempts at the peer", entries.Load(), o.Attempts)
		}
		wantView(t, n, "node-1", "node-2", "node-3", "node-4", "node-5")
	})
}

// A newer entry with an address that the policy forbids is not called.
func TestNewerEntryIsChecked(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := startVerified(t, 5)
		w.Nodes[2].Kill()
		registryFault(w, onDelete(respondOK(`{"server":{"serverId":"node-3","clusterBaseUrl":"http://169.254.169.254/mds/v1","updatedAt":"2030-01-01T00:00:00.000Z"}}`)))
		requests := recordRequests(w)
		o := singleFailure(t, rpc(t, w.Nodes[0], cluster.Request{Path: "/things"}))
		if o.Kind != cluster.KindNotAllowed || !errors.Is(o.Err, cluster.ErrNotAllowed) || o.Evicted || o.Attempts != 2 {
			t.Errorf("%s, %v, evicted %t, %d attempts", o.Kind, o.Err, o.Evicted, o.Attempts)
		}
		if called := requests.matching("GET", clustertest.Any, "169.254.169.254"); len(called) != 0 {
			t.Error("a forbidden address was called")
		}
	})
}

// A suspect that announced itself during the call is called again before the registry. The npm
// module compares fields that do not exist, and never does so.
func TestReturningPeerIsRetried(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := startVerified(t, 5)
		n, peer := w.Nodes[0], w.Nodes[2]
		w.Network.Fault(n.Host, peer.Host, clustertest.FirstN(2, clustertest.Refuse))
		time.AfterFunc(5*time.Millisecond, func() { // between the two attempts
			if _, err := peer.Register(t.Context()); err != nil {
				t.Error(err)
			}
		})
		requests := recordRequests(w)
		res := rpc(t, n, cluster.Request{Path: "/things"})
		if len(res.Results) != 4 || res.Results[1].Attempts != 3 {
			t.Errorf("failures: %v", failures(res))
		}
		if deletes := requests.deletes(n); len(deletes) != 0 {
			t.Errorf("the registry received %d deletes", len(deletes))
		}
	})
}

func FuzzDeleteResponse(f *testing.F) {
	for _, seed := range []struct {
		status uint16
		body   string
	}{
		{200, `{"data":"node-2"}`},
		{200, `{"data":{}}`},
		{200, `{"data":null}`},
		{200, `{"data":false}`},
		{200, `{}`},
		{200, ``},
		{200, `null`},
		{204, ``},
		{200, `{"server":{"serverId":"node-2","clusterBaseUrl":"http://node-2.test:8081/mds/v1","updatedAt":"2030-01-01T00:00:00.000Z"}}`},
		{200, `{"server":{"serverId":"node-2","clusterBaseUrl":"http://node-2.test:8080/mds/v1","updatedAt":"2010-01-01T00:00:00.000Z"}}`},
		{200, `{"server":{"serverId":"node-2","clusterBaseUrl":"http://169.254.169.254","updatedAt":"2030-01-01T00:00:00.000Z"}}`},
		{200, `{"server":{"serverId":"node-2"}}`},
		{200, `{"server":{"serverId":"node-3","clusterBaseUrl":"http://node-3.test"}}`},
		{200, `{"server":{"serverId":"node-1"}}`},
		{200, `{"server":{}}`},
		{200, `{"server":null,"data":"node-2"}`},
		{200, `{"data":"node-2","server":{"serverId":"node-2","updatedAt":"yesterday"}}`},
		{400, `{"message":"no date"}`},
		{403, `{"message":"hidden-token-for-mit"}`},
		{404, `{"data":"node-2"}`},
		{500, `{"data":"node-2"}`},
		{302, `{"data":"node-2"}`},
	} {
		f.Add(seed.status, []byte(seed.body))
	}
	f.Fuzz(func(t *testing.T, status uint16, body []byte) {
		o := &remotes{view: []string{"node-1", "node-2"}}
		c := newRegisteredNode(t, o)
		deletes := 0
		o.registry = func(r *http.Request) (int, string) {
			if deletes++; r.Method != http.MethodDelete || !strings.HasPrefix(r.URL.Path, "/mIT/v1/itResources/it/servers/node-2@") {
				t.Errorf("unexpected request to the registry: %s %s", r.Method, r.URL)
			}
			return validStatus(status), string(body)
		}
		o.peer = func(r *http.Request) (*http.Response, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
		}
		res, err := c.RPCluster(t.Context(), cluster.Request{Path: "/things"})
		if err != nil || len(res.Results) != 0 || len(res.Failures) != 1 {
			t.Fatalf("no peer answers, but the outcome is %+v, %v", res, err)
		}
		got := res.Failures[0]
		checkNoSecrets(t, got.Err)
		checkNoSecrets(t, got.EvictionSkipped)
		ids := checkView(t, c)
		inView := slices.Contains(ids, "node-2")
		if len(ids) > 2 {
			t.Errorf("the view has a third server: %q", ids)
		}
		if got.Server.ServerID != "node-2" || got.Evicted == inView {
			t.Errorf("evicted %t, but in the view %t: %+v", got.Evicted, inView, got)
		}
		if deletes < 1 || deletes > 6 { // three entries, each repeated with a new token
			t.Errorf("the registry received %d deletes", deletes)
		}
		var said struct {
			Data   any
			Server any
		}
		confirmed := validStatus(status)/100 == 2 && json.Unmarshal(body, &said) == nil && said.Data != nil && said.Server == nil
		if got.Evicted && !confirmed {
			t.Errorf("%d %q was accepted as confirmation", validStatus(status), body)
		}
		if confirmed && !got.Evicted {
			t.Errorf("%d %q was not accepted as confirmation: %v", validStatus(status), body, got.EvictionSkipped)
		}
		if !got.Evicted && got.Kind != cluster.KindNotAllowed && (got.EvictionSkipped == nil || !strings.Contains(got.EvictionSkipped.Error(), "registry")) {
			t.Errorf("eviction was skipped: %v", got.EvictionSkipped)
		}
	})
}

// An evictionCounter counts the decisions of all nodes of a world about suspects.
type evictionCounter struct{ evicted, skipped atomic.Int64 }

func (v *evictionCounter) trace() cluster.Option {
	return cluster.WithTrace(&cluster.Trace{
		EvictionDecided: func(_ context.Context, d cluster.EvictionDecision) {
			switch {
			case d.Decision == cluster.DecisionEvicted:
				v.evicted.Add(1)
			case d.Err != nil:
				v.skipped.Add(1)
			}
		},
	})
}
