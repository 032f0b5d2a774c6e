package cluster_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mimiktech/cluster"
)

// An idle connection to a former peer would take a descriptor on both sides until it expires.
func TestIdleConnectionsAreClosed(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, c *cluster.Cluster){
		"by the departure of the peer": func(t *testing.T, c *cluster.Cluster) {
			t.Helper()
			handle(t, c.DeleteServer, http.MethodDelete, itResources+"/it/servers/node-2", "")
		},
		"by a move of the peer": func(t *testing.T, c *cluster.Cluster) {
			t.Helper()
			handle(t, c.CreateItResource, http.MethodPost, itResources, `{"id":"it","publicBaseUrl":"http://x/mds/v1","servers":[`+
				`{"serverId":"node-2","clusterBaseUrl":"http://127.0.0.9:8080/mds/v1","updatedAt":"2001-01-01T00:00:00Z"}]}`)
		},
		"by Close": func(_ *testing.T, c *cluster.Cluster) { c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			peer := startCountingServer(t, responder(http.StatusOK, `{"data":[],"server":{"serverId":"node-2"}}`))
			c, _ := newSocketNode(t, peer.URL, testConfig())
			for range 3 {
				if o := callOnePeer(t, c, cluster.Request{Path: "/things"}); o.Err != nil {
					t.Fatal(o.Err)
				}
			}
			if peer.open.Load() != 1 || peer.connections.Load() != 1 {
				t.Fatalf("%d of %d connections are open", peer.open.Load(), peer.connections.Load())
			}
			end(t, c)
			// It would expire after four seconds. The server needs a moment to notice.
			for start := time.Now(); peer.open.Load() > 0; time.Sleep(time.Millisecond) {
				if time.Since(start) > 2*time.Second {
					t.Fatal("the connection is still open")
				}
			}
		})
	}
}

// handle lets a handler of a node reply to a peer's request. The status must be 200.
func handle(t *testing.T, h http.HandlerFunc, method, path, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer peer")
	if r := serve(h, req); r.Code != http.StatusOK {
		t.Fatalf("%s %s: %d: %s", method, path, r.Code, r.Body)
	}
}
