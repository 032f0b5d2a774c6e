package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

// An announcing is how nodes tell each other of a newcomer. Only the first is what they do today.
type announcing int

const (
	wholeList   announcing = iota // the list goes there, and comes back
	onlyItself                    // the newcomer goes there, the list comes back
	nothingBack                   // and no more than that it was heard
)

func (a announcing) String() string {
	return [...]string{"the whole list", "only the newcomer", "only the newcomer, no list in the answer"}[a]
}

// slimmed is a way to the network that cuts announcements down to the server that announces itself.
func slimmed(n *clustertest.Network, from, id string) *http.Client {
	var (
		way  = n.Transport(from)
		once sync.Once // cutting takes time that is not to be measured
		body []byte
		err  error
	)
	return &http.Client{Transport: clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
		if !announces(req) || req.URL.Host == clustertest.RegistryHost {
			return way.RoundTrip(req)
		}
		defer req.Body.Close()
		once.Do(func() {
			var whole []byte
			if whole, err = io.ReadAll(req.Body); err == nil {
				body, err = only(whole, id)
			}
		})
		if err != nil {
			return nil, err
		}
		slim := req.Clone(req.Context())
		slim.Body, slim.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		return way.RoundTrip(slim)
	})}
}

func announces(r *http.Request) bool {
	return r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/itResources")
}

// only is an itResource with one of its servers.
func only(resource []byte, id string) ([]byte, error) {
	var it map[string]json.RawMessage
	if err := json.Unmarshal(resource, &it); err != nil {
		return nil, err
	}
	var servers []cluster.Server
	if err := json.Unmarshal(it["servers"], &servers); err != nil {
		return nil, err
	}
	for _, s := range servers {
		if s.ServerID != id {
			continue
		}
		one, err := json.Marshal([]cluster.Server{s})
		if err != nil {
			return nil, err
		}
		it["servers"] = one
		return json.Marshal(it)
	}
	return nil, fmt.Errorf("server %q announces a list without itself", id)
}

// short answers announcements as h does, without the list.
func short(id string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !announces(r) {
			h.ServeHTTP(w, r)
			return
		}
		long := httptest.NewRecorder()
		h.ServeHTTP(long, r)
		if long.Code != http.StatusOK {
			w.WriteHeader(long.Code)
			return
		}
		heard(w, id)
	})
}

func heard(w http.ResponseWriter, id string) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"data": nil, "server": map[string]string{"serverId": id}}) // who does not listen misses it
}
