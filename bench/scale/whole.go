package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

// An announcing is how nodes tell each other of a newcomer.
type announcing int

const (
	onlyItself announcing = iota // the newcomer goes there, and no more comes back than that it was heard
	wholeList                    // the list goes there, and comes back: as the npm module has it
)

func (a announcing) String() string {
	return [...]string{"only itself", "the whole list"}[a]
}

// widened is a way to the network on which a node announces all servers that it knows, and has all
// that its peers know told back.
func widened(n *clustertest.Network, from string, servers func() []cluster.Server) *http.Client {
	var (
		way  = n.Transport(from)
		once sync.Once // as often as the list is encoded by a node that announces all of it
		body []byte
		err  error
	)
	return &http.Client{Transport: clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
		if !announces(req) || req.URL.Host == clustertest.RegistryHost {
			return way.RoundTrip(req)
		}
		defer req.Body.Close()
		once.Do(func() {
			var itself []byte
			if itself, err = io.ReadAll(req.Body); err == nil {
				body, err = withServers(itself, servers())
			}
		})
		if err != nil {
			return nil, err
		}
		wide := req.Clone(req.Context())
		wide.Header.Del("Prefer")
		wide.Body, wide.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		return way.RoundTrip(wide)
	})}
}

func announces(r *http.Request) bool {
	return r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/itResources")
}

// withServers is an itResource with other servers in it.
func withServers(resource []byte, servers []cluster.Server) ([]byte, error) {
	var it map[string]any
	if err := json.Unmarshal(resource, &it); err != nil {
		return nil, err
	}
	it["servers"] = servers
	return json.Marshal(it)
}
