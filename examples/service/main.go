// Command service is one node of a cluster. It is configured by the environment variables of
// [cluster.ConfigFromEnv]. The program mit, which contains the registry (mIT) and the token service
// (mST), prints the variables of a node in its cluster.
//
// Peers use the endpoints below the base path, with a token: the two endpoints of the cluster,
// GET /things, and GET /missing, which always responds with a 404. Operators use
// GET /fanout?path=/things, /status, /healthz and /ready without a token. A service in an untrusted
// network must protect these.
//
// The service listens on SERVER_PORT of all addresses, or of the loopback address if that is the
// value of SERVER_LOCAL_IPV4. On SIGTERM or SIGINT it deregisters, finishes its requests and exits
// with 0, or with 1 if the deregistration failed. A second signal ends it at once.
//
// If LOG_MODE is set, the log is that of package sumologic, with its variables: lines go to
// standard output and, if LOG_MODE is sumologic, to Sumo Logic as well. Otherwise they go to
// standard error.
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
	"github.com/mimiktech/cluster/sumologic"
)

func main() {
	if len(os.Args) > 1 {
		fmt.Fprintf(os.Stderr, "usage: %s\nIt takes no arguments and is configured by environment variables.\n", os.Args[0])
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal has its default effect
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "service:", err)
		os.Exit(1)
	}
}

// run runs the service until ctx ends.
func run(ctx context.Context) error {
	log, closeLog, err := newLogger()
	if err != nil {
		return err
	}
	defer closeLog()
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

// newLogger returns the logger that LOG_MODE selects, and a function that sends its last lines.
func newLogger() (*zap.Logger, func(), error) {
	if os.Getenv("LOG_MODE") == "" {
		log, err := zap.NewProduction()
		return log, func() { _ = log.Sync() }, err // Sync always fails for a terminal
	}
	cfg, err := sumologic.ConfigFromEnv(nil)
	if err != nil {
		return nil, nil, err
	}
	sink, err := sumologic.New(cfg)
	if err != nil {
		return nil, nil, err
	}
	return sink.Logger(), func() { _ = sink.Close() }, nil // the sink reports lost lines itself
}
