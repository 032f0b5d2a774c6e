// Command migrating is the service of docs/migrating.md: a service like those on the npm module
// @mimik/cluster, in Go. It is configured by the environment variables of [cluster.ConfigFromEnv],
// which are those of the npm module.
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"github.com/mimiktech/cluster"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run runs the service until ctx ends.
func run(ctx context.Context) error {
	cfg, err := cluster.ConfigFromEnv()
	if err != nil {
		return err
	}
	c, err := cluster.New(cfg)
	if err != nil {
		return err
	}
	defer c.Close()

	startup := cluster.WithCorrelationID(ctx, cluster.NewCorrelationID("service-startup-preOps"))
	users, err := openUsers(startup)
	if err != nil {
		return err
	}
	return c.ListenAndServe(ctx, &http.Server{Handler: handler(c, users)})
}
