package main

import (
	"encoding/json"
	"net/http"

	"github.com/mimiktech/cluster"
)

// A service has the handlers of the service.
type service struct {
	c     *cluster.Cluster
	users *users
}

// handler returns the handler of all requests.
func handler(c *cluster.Cluster, users *users) http.Handler {
	s := &service{c, users}
	base := c.Config().BasePath
	mux := http.NewServeMux()
	c.Mount(mux) // createItResource and deleteServer
	mux.HandleFunc("GET "+base+"/healthcheck", s.getHealthCheck)
	mux.Handle("GET "+base+"/users/{id}", c.Authenticate(http.HandlerFunc(s.getUser)))
	mux.Handle("POST "+base+"/users", c.Authenticate(
		c.RequireScope("create:user", http.HandlerFunc(s.createUser))))
	mux.Handle("GET "+base+"/users", c.AuthenticatePeer(http.HandlerFunc(s.getUsers)))
	mux.Handle("GET "+base+"/clusterUsers", c.Authenticate(http.HandlerFunc(s.getClusterUsers)))
	return mux
}

func (s *service) getUser(w http.ResponseWriter, r *http.Request) {
	u, err := s.users.get(r.Context(), r.PathValue("id"))
	if err != nil {
		s.c.ReplyError(w, r, err)
		return
	}
	s.c.Reply(w, r, u)
}

func (s *service) createUser(w http.ResponseWriter, r *http.Request) {
	var u user
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&u); err != nil {
		s.c.ReplyError(w, r, parameterError("the body is not a user", "body"))
		return
	}
	created, err := s.users.create(r.Context(), u)
	if err != nil {
		s.c.ReplyError(w, r, err)
		return
	}
	s.c.ReplyStatus(w, r, http.StatusCreated, created)
}

// getUsers is called by peers, with a token of their own.
func (s *service) getUsers(w http.ResponseWriter, r *http.Request) {
	s.c.Reply(w, r, s.users.all())
}

func (s *service) getClusterUsers(w http.ResponseWriter, r *http.Request) {
	res, err := s.c.RPCluster(r.Context(), cluster.Request{Path: "/users"})
	if err != nil {
		s.c.ReplyError(w, r, err)
		return
	}
	s.c.Reply(w, r, res.Data)
}

func (s *service) getHealthCheck(w http.ResponseWriter, r *http.Request) {
	s.c.Reply(w, r, map[string]any{"type": s.c.Config().Type, "status": s.c.Status().State})
}
