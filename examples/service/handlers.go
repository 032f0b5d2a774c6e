package main

import (
	"encoding/json"
	"net/http"
	"os"

	"github.com/mimiktech/cluster"
)

// handler returns the handler of all requests to the service.
func handler(c *cluster.Cluster) http.Handler {
	s := &service{c: c}
	base := c.Config().BasePath
	mux := http.NewServeMux()
	c.Mount(mux)
	mux.Handle("GET "+base+"/things", c.AuthenticatePeer(http.HandlerFunc(s.things)))
	mux.Handle("GET "+base+"/missing", c.AuthenticatePeer(http.HandlerFunc(s.missing)))
	mux.HandleFunc("GET /fanout", s.fanout)
	mux.HandleFunc("GET /status", s.status)
	mux.HandleFunc("GET /healthz", s.healthz)
	mux.Handle("GET /ready", c.ReadyHandler())
	return mux
}

type service struct{ c *cluster.Cluster }

// A thing is the data of the service. It names the node that returned it.
type thing struct {
	From string `json:"from"`
}

func (s *service) things(w http.ResponseWriter, r *http.Request) {
	s.c.Reply(w, r, []thing{{From: s.c.Config().ID}})
}

// missing always responds with a 404: a peer that rejects a request is alive and is not evicted.
func (s *service) missing(w http.ResponseWriter, r *http.Request) {
	s.c.ReplyError(w, r, &cluster.StatusError{Code: http.StatusNotFound, Message: "no such thing"})
}

// fanout sends a request for the given path to all peers and responds with all outcomes.
func (s *service) fanout(w http.ResponseWriter, r *http.Request) {
	resp, err := s.c.RPCluster(r.Context(), cluster.Request{Path: r.URL.Query().Get("path")})
	if err != nil {
		s.c.ReplyError(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = resp.WriteTo(w) // the client notices an error itself
}

// status responds with the status of the node and the environment variables that contain it.
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
	s.writeJSON(w, r, all)
}

// healthz responds with 200 as long as the service handles requests, even if it is not registered.
// An outage of the registry does not stop the service, so a restart would only make it worse.
func (s *service) healthz(w http.ResponseWriter, r *http.Request) {
	s.writeJSON(w, r, map[string]cluster.State{"state": s.c.Status().State})
}

func (s *service) writeJSON(w http.ResponseWriter, r *http.Request, body any) {
	b, err := json.Marshal(body)
	if err != nil {
		s.c.ReplyError(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(b, '\n')) // the client notices an error itself
}
