// Command openapi is a service whose routes are generated from an OpenAPI document, service.yaml.
// The document includes the two operations of the cluster from api/node.yaml, so that their
// operation ids are methods of the generated interface, next to the service's own.
//
// It is configured by the environment variables of [cluster.ConfigFromEnv].
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

//go:generate go tool oapi-codegen -config clusterapi/oapi-codegen.yaml -o clusterapi/clusterapi.gen.go ../../api/node.yaml
//go:generate go tool oapi-codegen -config oapi-codegen.yaml -o service.gen.go service.yaml

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
	return c.ListenAndServe(ctx, &http.Server{Handler: handler(c)})
}

// handler returns the generated router.
func handler(c *cluster.Cluster) http.Handler {
	return HandlerWithOptions(service{c}, StdHTTPServerOptions{
		BaseURL: c.Config().BasePath,
		ErrorHandlerFunc: func(w http.ResponseWriter, r *http.Request, err error) {
			c.ReplyError(w, r, &cluster.StatusError{Code: http.StatusBadRequest, Message: err.Error()})
		},
	})
}

// A service implements [ServerInterface].
type service struct{ c *cluster.Cluster }

// GetThings implements the operation getThings.
func (s service) GetThings(w http.ResponseWriter, r *http.Request) {
	s.c.Authenticate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.c.Reply(w, r, []string{s.c.Config().ID})
	})).ServeHTTP(w, r)
}

// CreateItResource implements the operation createItResource of the cluster.
func (s service) CreateItResource(w http.ResponseWriter, r *http.Request, _ CreateItResourceParams) {
	s.c.CreateItResource(w, r)
}

// DeleteServer implements the operation deleteServer of the cluster.
func (s service) DeleteServer(w http.ResponseWriter, r *http.Request, _, _ string, _ DeleteServerParams) {
	s.c.DeleteServer(w, r)
}
