package cluster_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

// A node sends one request to its own address before it announces it.
func TestServeChecksOwnAddress(t *testing.T) {
	for name, tt := range map[string]struct {
		address string // of another server; "": the node's own
		mounted bool
		want    string // in the warning
	}{
		"reached":            {"", true, ""},
		"not mounted":        {"", false, "are the endpoints mounted"},
		"of another server":  {"another", true, "not from this node"},
		"without a listener": {"http://127.0.0.1:1/mds/v1", true, "connection refused"},
	} {
		t.Run(name, func(t *testing.T) {
			ln := listen(t)
			cfg := testConfig()
			cfg.Port = ln.Addr().(*net.TCPAddr).Port
			cfg.LocalIPv4 = "127.0.0.1"
			switch tt.address {
			case "":
			case "another":
				other := httptest.NewServer(responder(http.StatusUnauthorized, `{"message":"who are you"}`))
				defer other.Close()
				cfg.ClusterBaseURL = other.URL
			default:
				cfg.ClusterBaseURL = tt.address
			}
			registry := httptest.NewServer(responder(http.StatusOK, registrationResponse(time.Hour, "node-1")))
			defer registry.Close()
			cfg.RegistryURL = registry.URL
			logs, entries := observer.New(zap.WarnLevel)
			c := newNode(t, cfg, nil, cluster.WithHTTPClient(nil), cluster.WithLogger(zap.New(logs)))
			mux := http.NewServeMux()
			if tt.mounted {
				c.Mount(mux)
			}
			ctx, cancel := context.WithCancel(t.Context())
			served := make(chan error, 1)
			go func() { served <- c.Serve(ctx, ln, &http.Server{Handler: mux}) }() //nolint:gosec // Serve sets the limits
			waitRegistered(t, c)
			cancel()
			if err := <-served; err != nil {
				t.Error(err)
			}
			lines := entries.FilterMessage("own address cannot be used").All()
			if tt.want == "" {
				if len(lines) != 0 {
					t.Errorf("logged %v", lines)
				}
				return
			}
			if len(lines) != 1 || !strings.Contains(marshal(t, lines[0].ContextMap()), tt.want) || lines[0].ContextMap()["clusterBaseUrl"] != c.Config().ClusterBaseURL {
				t.Errorf("logged %v, want %q", lines, tt.want)
			}
		})
	}
}

func TestListenAndServeRejectsOtherPorts(t *testing.T) {
	c := newNode(t, testConfig(), http.DefaultTransport)
	for addr, want := range map[string]string{
		":8081": `Addr is ":8081", but Config.Port (SERVER_PORT) is 8080`, "127.0.0.1:80": "is 8080", "127.0.0.1": "missing port", ":http": "is 8080",
	} {
		if err := c.ListenAndServe(t.Context(), &http.Server{Addr: addr, ReadHeaderTimeout: time.Second}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", addr, err, want)
		}
	}
}

// A listener at another port than the configured one is reported.
func TestServeAtAnotherPort(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	ln := listen(t)
	port := ln.Addr().(*net.TCPAddr).Port
	for name, tt := range map[string]struct{ port, lines int }{"the same": {port, 0}, "another": {8080, 1}} {
		core, logs := observer.New(zap.WarnLevel)
		cfg := testConfig()
		cfg.NoRegistration, cfg.Port = true, tt.port
		c := newNode(t, cfg, http.DefaultTransport, cluster.WithLogger(zap.New(core)))
		_ = c.Serve(ended, ln, &http.Server{ReadHeaderTimeout: time.Second})
		lines := logs.FilterMessage("listening at another port than SERVER_PORT").All()
		if len(lines) != tt.lines {
			t.Errorf("%s: logged %v", name, lines)
		}
		for _, line := range lines {
			if f := line.ContextMap(); f["port"] != int64(port) || f["serverPort"] != int64(8080) || f["hint"] == nil {
				t.Errorf("the warning has %v", f)
			}
		}
	}
}

// A server without limits gets some. Those that are set stay.
func TestServeSetsLimits(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tt := range map[string]struct{ srv, want *http.Server }{
		"none":     {&http.Server{}, &http.Server{ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10}}, //nolint:gosec // the case
		"negative": {&http.Server{ReadHeaderTimeout: -1, IdleTimeout: -1}, &http.Server{ReadHeaderTimeout: -1, IdleTimeout: -1, MaxHeaderBytes: 64 << 10}},
		"set": {
			&http.Server{ReadTimeout: time.Second, IdleTimeout: time.Hour, MaxHeaderBytes: 1},
			&http.Server{ReadTimeout: time.Second, IdleTimeout: time.Hour, MaxHeaderBytes: 1},
		},
	} {
		cfg := testConfig()
		cfg.NoRegistration = true
		_ = newNode(t, cfg, http.DefaultTransport).Serve(ended, listen(t), tt.srv)
		got, want := tt.srv, tt.want
		if got.ReadHeaderTimeout != want.ReadHeaderTimeout || got.IdleTimeout != want.IdleTimeout || got.MaxHeaderBytes != want.MaxHeaderBytes {
			t.Errorf("%s: %v, %v, %d", name, got.ReadHeaderTimeout, got.IdleTimeout, got.MaxHeaderBytes)
		}
	}
}

// Whatever hangs, a node has left within the time of its Leave. Until then it serves, at least for
// the Delay, and keeps no connection alive.
func TestLeaveIsBounded(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		leave    cluster.Leave
		hang     bool // the registry, the peers, and a request in progress
		min, max time.Duration
	}{
		"nothing hangs":          {cluster.Leave{}, false, 0, 2 * time.Second},
		"a delay":                {cluster.Leave{Delay: time.Second}, false, time.Second, 3 * time.Second},
		"everything hangs":       {cluster.Leave{Total: 2 * time.Second}, true, 2 * time.Second, 4 * time.Second},
		"everything and a delay": {cluster.Leave{Total: 2 * time.Second, Delay: 2 * time.Second}, true, 2 * time.Second, 4 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ln := listen(t)
			cfg := testConfig()
			cfg.Port, cfg.LocalIPv4 = ln.Addr().(*net.TCPAddr).Port, "127.0.0.1"
			leaving, once := make(chan struct{}), new(sync.Once)
			remotes := clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
				if req.URL.Host == "mit.test" && req.Method == http.MethodPost {
					return newHTTPResponse(req, http.StatusOK, fmt.Sprintf(
						`{"itResource":{"id":"it","servers":[{"serverId":"node-1","clusterBaseUrl":"http://%s/mds/v1"}]}}`, ln.Addr())), nil
				}
				if req.Method == http.MethodDelete {
					once.Do(func() { close(leaving) })
					if tt.hang {
						<-req.Context().Done()
						return nil, req.Context().Err()
					}
				}
				return newHTTPResponse(req, http.StatusOK, `{"data":{}}`), nil
			})
			c := newNode(t, cfg, remotes, cluster.WithLeave(tt.leave))
			began := make(chan struct{})
			h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/hang" {
					close(began)
					<-r.Context().Done()
				}
			})
			ctx, cancel := context.WithCancel(t.Context())
			served := make(chan error, 1)
			go func() { served <- c.Serve(ctx, ln, &http.Server{Handler: h}) }() //nolint:gosec // Serve sets the limits
			waitRegistered(t, c)
			base := "http://" + ln.Addr().String()
			if tt.hang {
				go func() {
					if resp, err := http.Get(base + "/hang"); err == nil { //nolint:noctx // it ends with the server
						resp.Body.Close()
					}
				}()
				<-began
			}
			start := time.Now()
			cancel()
			select {
			case <-leaving:
			case <-time.After(10 * time.Second):
				t.Fatal("no departure")
			}
			if tt.leave.Delay > 0 {
				resp, err := http.Get(base + "/") //nolint:noctx // the server responds
				if err != nil {
					t.Fatalf("not served while leaving: %v", err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if !resp.Close {
					t.Error("the connection is kept alive")
				}
			}
			err := <-served
			if took := time.Since(start); took < tt.min || took > tt.max {
				t.Errorf("left after %v", took)
			}
			if (err != nil) != tt.hang {
				t.Errorf("Serve returns %v", err)
			}
		})
	}
}

// Peers are notified although the registry does not respond.
func TestPeersAreNotifiedWhileRegistryHangs(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3)
		n := w.Nodes[0]
		w.Network.Fault(n.Host, clustertest.RegistryHost, clustertest.Hang)
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		if d := n.UnRegister(ctx); len(d.Errors) == 0 {
			t.Error("the registry did not hang")
		}
		wantView(t, w.Nodes[1], "node-2", "node-3")
		wantView(t, w.Nodes[2], "node-2", "node-3")
	})
}

func TestLeaveIsValidated(t *testing.T) {
	for _, l := range []cluster.Leave{{Total: -1}, {Delay: -1}, {Delay: 26 * time.Second}, {Total: time.Second, Delay: 2 * time.Second}} {
		if _, err := cluster.New(testConfig(), cluster.WithLeave(l)); fmt.Sprint(namedVariables(err)) != "[WithLeave]" {
			t.Errorf("%+v: %v", l, err)
		}
	}
}

func TestReadyHandler(t *testing.T) {
	parallel(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1)
		n := w.Add()
		want := func(n *clustertest.Node, phase string, code int) {
			t.Helper()
			if got := serve(n.ReadyHandler(), httptest.NewRequest("GET", "/readyz", nil)); got.Code != code {
				t.Errorf("%s: %d %s", phase, got.Code, got.Body)
			}
		}
		want(n, "not registered", 503)
		time.Sleep(59 * time.Second)
		want(n, "not registered within the grace period", 503)
		if _, err := n.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		want(n, "registered", 200)
		w.Network.Down(clustertest.RegistryHost)
		time.Sleep(24 * time.Hour)
		want(n, "lost its lease", 200)
		n.UnRegister(t.Context())
		want(n, "left", 503)
		late := w.Add()
		want(late, "not registered", 503)
		time.Sleep(time.Minute)
		want(late, "after the grace period", 200)
		late.Close()
		want(late, "closed", 503)
	})
}

// waitRegistered waits for a registration over sockets, which are not in a bubble.
func waitRegistered(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	for range 10_000 {
		if c.Status().State == cluster.Registered {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("not registered: %v", c.Status().Reason)
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	var lc net.ListenConfig
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln
}
