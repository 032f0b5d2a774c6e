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
	"time"

	"go.uber.org/zap"
)

// drainTimeout bounds the wait for requests in progress when the server shuts down.
const drainTimeout = 30 * time.Second

// ListenAndServe listens at srv.Addr and calls [Cluster.Serve]. If srv.Addr is empty, it listens at
// Config.Port on all interfaces, or only on the loopback interface if Config.LocalIPv4 or LocalIP
// is a loopback address.
func (c *Cluster) ListenAndServe(ctx context.Context, srv *http.Server) error {
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

// Serve runs a service from start to end. It serves requests on ln. Unless Config.NoRegistration is
// set, it registers the node, retrying until that succeeds, and then renews the lease. When ctx
// ends or srv is shut down, it unregisters the node while still serving requests. It then waits up
// to 30 s for requests in progress, and closes the Cluster.
//
// Serve blocks until all of this is done. It returns nil if serving ended because of ctx or a
// shutdown of srv, and all of the following steps succeeded. Otherwise the error says why serving
// ended and what failed.
func (c *Cluster) Serve(ctx context.Context, ln net.Listener, srv *http.Server) error {
	defer c.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	registered := make(chan struct{})
	go func() {
		defer close(registered)
		if !c.cfg.NoRegistration {
			if _, err := c.Register(ctx); err != nil && ctx.Err() == nil {
				c.log.Error("registration stopped", zap.Error(err))
			}
		}
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
	shutdownCtx := context.WithoutCancel(ctx)
	failures = append(failures, c.UnRegister(shutdownCtx).Errors...)
	<-registered
	drainCtx, stop := context.WithTimeout(shutdownCtx, drainTimeout)
	defer stop()
	if err := srv.Shutdown(drainCtx); err != nil {
		failures = append(failures, fmt.Errorf("cluster: draining: %w", err), srv.Close())
	}
	return errors.Join(failures...)
}

func (c *Cluster) listenAddr() string {
	host := ""
	if ip := net.ParseIP(c.cfg.localIP()); ip.IsLoopback() {
		host = c.cfg.localIP()
	}
	return net.JoinHostPort(host, strconv.Itoa(c.cfg.Port))
}
