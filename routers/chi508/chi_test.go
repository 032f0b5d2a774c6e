// Package chi508 tests the library with chi 5.0.8, which has no path values of net/http.
package chi508

import (
	"net/http"
	"testing"

	"github.com/go-chi/chi/v5"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/routers/internal/nodes"
)

func TestChi508(t *testing.T) {
	nodes.Test(t, func(c *cluster.Cluster, things http.Handler) http.Handler {
		router := chi.NewRouter()
		for _, r := range c.Routes() {
			router.Method(r.Method, r.Pattern, r.Handler)
		}
		router.Method(http.MethodGet, c.Config().BasePath+"/things", things)
		return router
	})
}

func TestChi508Group(t *testing.T) {
	nodes.Test(t, func(c *cluster.Cluster, things http.Handler) http.Handler {
		router := chi.NewRouter()
		router.Route("/{id}", func(router chi.Router) { // an id of its own, around that of the endpoint
			router.Get("/v1/things", things.ServeHTTP)
			for _, r := range c.Routes() {
				router.Method(r.Method, r.Pattern[len("/mds"):], r.Handler)
			}
		})
		return router
	})
}
