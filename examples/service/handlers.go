package main

import (
	"encoding/json"
	"net/http"
	"os"

	"github.com/mimiktech/cluster"
)

// handler is all that the service serves.
func handler(c *cluster.Cluster) http.Handler {
	s := &service{c: c}
	base := c.Config().BasePath
	mux := http.NewServeMux()
	c.Mount(mux)
	mux.Handle("GET "+base+"/things", c.AuthenticatePeer(http.HandlerFunc(s.things)))
	mux.Handle("GET "+base+"/forbidden", c.AuthenticatePeer(http.HandlerFunc(s.forbidden)))
	mux.HandleFunc("GET /fanout", s.fanout)
	mux.HandleFunc("GET /status", s.status)
	mux.HandleFunc("GET /healthz", s.healthz)
	return mux
}

type service struct{ c *cluster.Cluster }

// A thing is what the service has: one, which says whose it is.
type thing struct {
	From string `json:"from"`
}

func (s *service) things(w http.ResponseWriter, r *http.Request) {
	s.c.Reply(w, r, []thing{{From: s.c.Config().ID}})
}

// forbidden is what a peer that is alive but refuses looks like.
func (s *service) forbidden(w http.ResponseWriter, r *http.Request) {
	s.c.ReplyError(w, r, &cluster.StatusError{Code: http.StatusNotFound, Message: "nobody gets this"})
}

// fanout asks all peers for the path, and answers what came of it.
func (s *service) fanout(w http.ResponseWriter, r *http.Request) {
	answer, err := s.c.RPCluster(r.Context(), cluster.Request{Path: r.URL.Query().Get("path")})
	if err != nil {
		s.c.ReplyError(w, r, err)
		return
	}
	s.answer(w, r, answer)
}

// status answers how the registration stands, and how the environment says it does.
func (s *service) status(w http.ResponseWriter, r *http.Request) {
	var all map[string]any
	b, err := json.Marshal(s.c.Status())
	if err == nil {
		err = json.Unmarshal(b, &all)
	}
	if err != nil {
		s.c.ReplyError(w, r, err)
		return
	}
	for name := range s.c.Status().Env() {
		if value, set := os.LookupEnv(name); set {
			all[name] = value
		}
	}
	s.answer(w, r, all)
}

// healthz answers 200 for as long as the service serves, registered or not: a node whose registry
// is away still serves, and to have it restarted for that would only make matters worse.
func (s *service) healthz(w http.ResponseWriter, r *http.Request) {
	s.answer(w, r, map[string]cluster.State{"state": s.c.Status().State})
}

func (s *service) answer(w http.ResponseWriter, r *http.Request, body any) {
	b, err := json.Marshal(body)
	if err != nil {
		s.c.ReplyError(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(b, '\n')) // the caller is gone, or will see that it broke off
}
