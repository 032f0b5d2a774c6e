package cluster

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster/internal/ctxutil"
	"github.com/mimiktech/cluster/internal/wire"
)

// A Leave bounds the time in which [Cluster.Serve] leaves the cluster.
type Leave struct {
	// Total bounds the whole time: to deregister, to notify the peers, to keep serving for Delay,
	// and to wait for requests in progress. It is 25 s by default, because Kubernetes allows 30 s
	// after SIGTERM. Deregistering gets at most half of it.
	Total time.Duration
	// Delay is the shortest time for which the node continues to serve new requests, counted from
	// the beginning. It lets load balancers notice that the node leaves; peers need no delay. 0 by
	// default.
	Delay time.Duration
}

// WithLeave sets how [Cluster.Serve] leaves the cluster; see [Leave] for the default.
func WithLeave(l Leave) Option {
	return optionFunc(func(o *options) { o.leave = l })
}

// ListenAndServe listens at srv.Addr and calls [Cluster.Serve]. If srv.Addr is empty, it listens at
// Config.Port on all interfaces, or only on the loopback interface if Config.LocalIPv4 or LocalIP
// is a loopback address. A srv.Addr with another port than Config.Port is an error, except port 0.
// If srv.TLSConfig is set, it serves TLS with this configuration.
func (c *Cluster) ListenAndServe(ctx context.Context, srv *http.Server) error {
	if err := c.checkPort(ctx, srv.Addr); err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", cmp.Or(srv.Addr, c.listenAddr()))
	if err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	if srv.TLSConfig != nil {
		ln = tls.NewListener(ln, srv.TLSConfig)
	}
	return c.Serve(ctx, ln, srv)
}

// Serve runs a service from start to end. It serves requests on ln, which may be a TLS listener. If
// Config.NoRegistration is set, it does not register the node. Otherwise it sends one request to
// the node's own ClusterBaseURL, and logs a warning if the request does not arrive. It then
// registers the node, retrying until that succeeds, and renews the lease.
//
// When ctx ends, it unregisters the node while still serving requests, waits for requests in
// progress, and closes the Cluster. When srv is shut down, it does the same, but serves no new
// requests. The option [WithLeave] bounds the time that this takes. Connections are not kept alive
// meanwhile.
//
// Serve blocks until all of this is done. It returns nil if serving ended because of ctx or a
// shutdown of srv, and all of the following steps succeeded. Otherwise the error says why serving
// ended and what failed.
//
// Serve sets the limits of srv that are zero: a ReadHeaderTimeout of 10 s (unless ReadTimeout is
// set), an IdleTimeout of 2 min, and MaxHeaderBytes of 64 KiB. A negative timeout means none.
func (c *Cluster) Serve(ctx context.Context, ln net.Listener, srv *http.Server) error {
	defer c.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	setLimits(srv)
	c.warnOtherPort(ln)

	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	registered := make(chan struct{})
	go func() {
		defer close(registered)
		c.registerServing(ctx)
	}()

	var failures []error
	select {
	case <-ctx.Done():
	case err := <-served:
		cancel()
		if !errors.Is(err, http.ErrServerClosed) {
			failures = append(failures, fmt.Errorf("cluster: serving: %w", err))
		}
	}
	failures = append(failures, c.leaveServing(context.WithoutCancel(ctx), srv, registered)...)
	return errors.Join(failures...)
}

// ReadyHandler returns a handler for readiness probes. With Config.NoRegistration it answers 200
// from the start. Otherwise it answers 503 until the node has registered, and then 200, even if the
// lease is lost. It answers 503 again when the node leaves. If the node has not registered within a
// minute after [New], the handler answers 200, too: the node can serve requests, and an outage of
// the registry must not keep a whole service from starting. The handler needs no token.
func (c *Cluster) ReadyHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		status, text := http.StatusOK, "ready\n"
		switch {
		case c.memberCtx.Err() != nil:
			status, text = http.StatusServiceUnavailable, "leaving\n"
		case !c.cfg.NoRegistration && !c.leaseStarted.Load() && time.Since(c.created) < readyGrace:
			status, text = http.StatusServiceUnavailable, "registering\n"
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(text)) // if it fails, the client has disconnected
	})
}

// The limits of a server that has none.
const (
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 2 * time.Minute // longer than peers keep an idle connection
	maxHeaderBytes    = 64 << 10
)

const (
	ownAddressTimeout = 2 * time.Second
	readyGrace        = time.Minute // without a registration, after which a node counts as ready
)

func (l Leave) total() time.Duration { return cmp.Or(l.Total, 25*time.Second) }

func (l Leave) validate(p *problems) {
	if l.Total < 0 || l.Delay < 0 {
		p.add("WithLeave", "has a negative Total (%v) or Delay (%v)", l.Total, l.Delay)
	} else if l.Delay > l.total() {
		p.add("WithLeave", "has a Delay of %v, which is longer than its Total of %v", l.Delay, l.total())
	}
}

func setLimits(srv *http.Server) {
	if srv.ReadHeaderTimeout == 0 && srv.ReadTimeout == 0 {
		srv.ReadHeaderTimeout = readHeaderTimeout
	}
	srv.IdleTimeout = cmp.Or(srv.IdleTimeout, idleTimeout)
	srv.MaxHeaderBytes = cmp.Or(srv.MaxHeaderBytes, maxHeaderBytes)
}

// registerServing registers a node that serves requests.
func (c *Cluster) registerServing(ctx context.Context) {
	if c.cfg.NoRegistration {
		return
	}
	c.checkOwnAddress(ctx)
	if _, err := c.Register(ctx); err != nil && ctx.Err() == nil {
		c.log.Error("registration stopped", zap.Error(err))
	}
}

// leaveServing leaves the cluster and shuts srv down, within the time of the Leave.
func (c *Cluster) leaveServing(ctx context.Context, srv *http.Server, registered <-chan struct{}) []error {
	began := time.Now()
	ctx, cancel := context.WithDeadline(ctx, began.Add(c.leave.total()))
	defer cancel()
	srv.SetKeepAlivesEnabled(false)
	departCtx, stop := context.WithTimeout(ctx, c.leave.total()/2)
	failures := c.UnRegister(departCtx).Errors
	stop()
	<-registered
	_ = ctxutil.Sleep(ctx, c.leave.Delay-time.Since(began)) // ends with ctx at the latest
	if err := srv.Shutdown(ctx); err != nil {
		failures = append(failures, fmt.Errorf("cluster: draining: %w", err), srv.Close())
	}
	return failures
}

// checkPort returns an error if the port of an address is not that of the configuration.
func (c *Cluster) checkPort(ctx context.Context, addr string) error {
	if addr == "" {
		return nil
	}
	_, service, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "tcp", service)
	if err != nil {
		return err
	}
	if port != 0 && port != c.cfg.Port {
		return fmt.Errorf("the server's Addr is %q, but Config.Port (SERVER_PORT) is %d", addr, c.cfg.Port)
	}
	return nil
}

func (c *Cluster) warnOtherPort(ln net.Listener) {
	if addr, ok := ln.Addr().(*net.TCPAddr); ok && addr.Port != c.cfg.Port {
		c.log.Warn("listening at another port than SERVER_PORT", zap.Int("port", addr.Port), zap.Int("serverPort", c.cfg.Port), zap.String("clusterBaseUrl", c.address.registration().ClusterBaseURL),
			zap.String("hint", "peers call the clusterBaseUrl: set SERVER_PORT, or SERVER_CLUSTER_BASE_URL if another port is forwarded to this one"))
	}
}

// checkOwnAddress sends a request without a token to the address that this node will announce. It
// logs a warning if the request does not arrive at this node.
func (c *Cluster) checkOwnAddress(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, min(c.cfg.RequestTimeout, ownAddressTimeout))
	defer cancel()
	id := wire.NewCorrelationID()
	c.ownRequest.expect(id)
	defer c.ownRequest.expect("")
	base := c.address.registration().ClusterBaseURL
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/itResources", http.NoBody)
	if err != nil { // the address is valid
		return
	}
	req.Header = c.http.header(WithCorrelationID(ctx, id), "")
	resp, err := c.http.roundTrip(c.http.transports.peers, req)
	hint := "is SERVER_CLUSTER_BASE_URL or SERVER_LOCAL_IP right, and does the node trust its own certificate?"
	switch {
	case err != nil && ctx.Err() != nil && context.Cause(c.memberCtx) != nil:
		return // the node leaves
	case err == nil:
		closeBody(resp, &err)
		if c.ownRequest.arrived() {
			return
		}
		err = fmt.Errorf("the response has the status %d and is not from this node", resp.StatusCode)
		if resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusMethodNotAllowed {
			hint = "are the endpoints mounted under this base path? See Mount and Routes"
		}
	}
	c.log.Warn("own address cannot be used", zap.String("clusterBaseUrl", base), zap.Error(err), zap.String("hint", hint))
}

// An ownRequest detects the request that a node sends to its own address, by its correlation id.
type ownRequest struct {
	mu   sync.Mutex // guards the fields below
	id   string     // "": none is expected
	seen bool
}

func (o *ownRequest) expect(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.id, o.seen = id, false
}

// is reports whether r is the expected request, which has then arrived.
func (o *ownRequest) is(r *http.Request) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.id == "" || r.Header.Get(wire.CorrelationHeader) != o.id {
		return false
	}
	o.seen = true
	return true
}

func (o *ownRequest) arrived() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.seen
}

func (c *Cluster) listenAddr() string {
	host := ""
	if ip := net.ParseIP(c.cfg.localIP()); ip.IsLoopback() {
		host = c.cfg.localIP()
	}
	return net.JoinHostPort(host, strconv.Itoa(c.cfg.Port))
}
