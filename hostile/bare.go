package main

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/mimiktech/cluster"
)

// runBare runs a node with an [http.Server] that sets nothing, like the program in the README.
// Whatever limits it has are those of [cluster.Cluster.Serve]. It has an endpoint for its status,
// which the suite needs.
func runBare(ctx context.Context) error {
	cfg, err := cluster.ConfigFromEnv()
	if err != nil {
		return err
	}
	c, err := cluster.New(cfg)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	c.Mount(mux)
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(c.Status()) // the suite notices an error itself
	})
	return c.ListenAndServe(ctx, &http.Server{Handler: mux}) //nolint:gosec // what is tested
}
