package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

// An announcement is what a node sends to its peers after its registration.
type announcement int

const (
	announceSelf announcement = iota // the node's entry, for a minimal response
	announceAll                      // all entries, for a full response, like the npm module
)

func (a announcement) String() string {
	return [...]string{"itself", "all servers"}[a]
}

// addNode adds a node that is not registered.
func addNode(w *clustertest.World, a announcement) *clustertest.Node {
	if a == announceSelf {
		return w.Add()
	}
	var node *clustertest.Node
	host := fmt.Sprintf("node-%d:8080", len(w.Nodes)+1)
	client := announceAllClient(w.Network, host, func() []cluster.Server { return node.Servers() })
	node = w.Add(cluster.WithTransport(func(http.RoundTripper) http.RoundTripper { return client.Transport }))
	return node
}

// announceAllClient returns a client for the node at host. It replaces the body of the node's
// announcements with one that has all servers, and encodes this body once.
func announceAllClient(n *clustertest.Network, host string, servers func() []cluster.Server) *http.Client {
	var (
		transport = n.Transport(host)
		once      sync.Once
		all       []byte
		err       error
	)
	return &http.Client{Transport: clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
		if !isAnnouncement(req) || req.URL.Host == clustertest.RegistryHost {
			return transport.RoundTrip(req)
		}
		defer req.Body.Close()
		once.Do(func() {
			var self []byte
			if self, err = io.ReadAll(req.Body); err == nil {
				all, err = withServers(self, servers())
			}
		})
		if err != nil {
			return nil, err
		}
		req = req.Clone(req.Context())
		req.Header.Del("Prefer")
		req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(all)), int64(len(all))
		return transport.RoundTrip(req)
	})}
}

// isAnnouncement reports whether r is an announcement, or a registration if sent to the registry.
func isAnnouncement(r *http.Request) bool {
	return r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/itResources")
}

// withServers replaces the servers of an encoded itResource.
func withServers(resource []byte, servers []cluster.Server) ([]byte, error) {
	var fields map[string]any
	if err := json.Unmarshal(resource, &fields); err != nil {
		return nil, err
	}
	fields["servers"] = servers
	return json.Marshal(fields)
}
