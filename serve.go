package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"go.uber.org/zap"
)

// How long a service that ends waits for the requests it still has, at most.
const drainTime = 30 * time.Second

// ListenAndServe is the life of a service in one call. It listens at srv.Addr, and then is
// [Cluster.Serve]. If srv.Addr is empty, it listens at Config.Port: of all addresses, or of
// Config.LocalIPv4 alone if that is a loopback address.
func (c *Cluster) ListenAndServe(ctx context.Context, srv *http.Server) error {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", cmp.Or(srv.Addr, c.listenAddr()))
	if err != nil {
		return fmt.Errorf("cluster: %w", err)
	}
	return c.Serve(ctx, ln, srv)
}

func (c *Cluster) listenAddr() string {
	host := ""
	if ip := net.ParseIP(c.cfg.LocalIPv4); ip.IsLoopback() {
		host = c.cfg.LocalIPv4
	}
	return net.JoinHostPort(host, strconv.Itoa(c.cfg.Port))
}

// Serve is the life of a service that listens already. It serves, registers (retrying for as
// long as it takes, unless Config.NoRegistration), and keeps the lease. When ctx ends, or somebody
// shuts srv down, it leaves in order: unregister, go on serving while the word spreads, drain for
// up to 30 s, close.
//
// It blocks until all that is done, and returns nil if ctx ended it and leaving went well. Else
// the error says why serving stopped, or what of leaving failed. The Cluster is closed then.
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
				c.log.Error("registering ended", zap.Error(err))
			}
		}
	}()

	var failures []error
	select {
	case <-ctx.Done():
	case err := <-served: // the listener broke, or somebody shut srv down
		cancel()
		if !errors.Is(err, http.ErrServerClosed) {
			failures = append(failures, fmt.Errorf("cluster: serving: %w", err))
		}
	}
	after := context.WithoutCancel(ctx)
	failures = append(failures, c.UnRegister(after).Errors...)
	<-registered
	drain, stop := context.WithTimeout(after, drainTime)
	defer stop()
	if err := srv.Shutdown(drain); err != nil {
		failures = append(failures, fmt.Errorf("cluster: draining: %w", err), srv.Close())
	}
	return errors.Join(failures...)
}
