// Command service is one real node of a cluster, set up by nothing but the environment variables
// that [cluster.ConfigFromEnv] reads; the program mit prints those that join a cluster of its own.
//
// Under its base path it serves its peers: the two endpoints of the cluster, GET /things, and
// GET /forbidden, which always refuses. Beside them it serves a person at a terminal, and asks
// for no token: GET /fanout?path=/things, /status and /healthz. A service that strangers can
// reach would not.
//
// It listens at SERVER_PORT of all addresses, or of this machine alone if SERVER_LOCAL_IPV4 is a
// loopback address. SIGTERM and SIGINT make it leave the cluster, finish what it is doing, and
// exit with 0, or with 1 if leaving failed; a second one ends it at once.
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/mimiktech/cluster"
)

func main() {
	if len(os.Args) > 1 {
		fmt.Fprintf(os.Stderr, "usage: %s\nIt takes no arguments: the environment says it all.\n", os.Args[0])
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal does what it does without us
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "service:", err)
		os.Exit(1)
	}
}

// run is the life of the service, until ctx ends.
func run(ctx context.Context) error {
	log, err := zap.NewProduction()
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }() // a terminal cannot be synced, and says so
	cfg, err := cluster.ConfigFromEnv()
	if err != nil {
		return err
	}
	c, err := cluster.New(cfg, cluster.WithLogger(log))
	if err != nil {
		return err
	}
	errorLog, err := zap.NewStdLogAt(log, zap.WarnLevel)
	if err != nil {
		return err
	}
	log.Info("starting", zap.Int("port", cfg.Port), zap.String("serverId", c.Config().ID))
	return c.ListenAndServe(ctx, &http.Server{
		Handler:           handler(c),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      time.Minute + cfg.RequestTimeout, // a fan-out waits for the slowest peer
		IdleTimeout:       2 * time.Minute,                  // longer than peers keep a connection
		ErrorLog:          errorLog,
	})
}
