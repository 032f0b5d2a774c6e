package cluster_test

import (
	"compress/gzip"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

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

// The direct transport is used by nodes without a transport of the program, and for http only. Both
// ways must give the same outcomes, whatever the peer responds.
func TestDirectTransportGivesTheSameOutcomes(t *testing.T) {
	respond := map[string]http.HandlerFunc{
		"a result":              writer(200, "", `{"data":[1],"server":{"serverId":"node-2"}}`),
		"chunked":               writer(200, "chunked", `{"data":[1],"server":{"serverId":"node-2"}}`),
		"gzip":                  writer(200, "gzip", `{"data":[1],"server":{"serverId":"node-2"}}`),
		"204":                   writer(204, "", ""),
		"an error":              writer(409, "", `{"statusCode":409,"message":"so it is","info":{"a":1}}`),
		"a 404":                 writer(404, "", "not found"),
		"a redirect":            writer(302, "", ""),
		"no result":             writer(200, "", "{"),
		"too large":             writer(200, "", strings.Repeat(" ", 1<<20)),
		"too large, chunked":    writer(200, "chunked", strings.Repeat(" ", 1<<20)),
		"too large, compressed": writer(200, "gzip", strings.Repeat(" ", 1<<20)),
		"a large error":         writer(500, "", strings.Repeat(" ", 1<<20)),
		"another server":        writer(200, "", `{"data":[1],"server":{"serverId":"node-3"}}`),
		"connection lost":       func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"cut off": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, `{"data":`)
			panic(http.ErrAbortHandler)
		},
		"no response": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"half a response": func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, `{"data":`)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		},
	}
	for name, h := range respond {
		for _, req := range []cluster.Request{
			{Path: "/a%2Fb/c?x=1", Query: url.Values{"y": {"2 3"}}, Header: http.Header{"X-Own": {"a", "b"}}},
			{Method: http.MethodPost, Path: "/things", Body: strings.Repeat("x", 40<<10)},
			{Method: http.MethodHead, Path: "/things"},
		} {
			if name == "no response" || name == "half a response" {
				req.Timeout = 300 * time.Millisecond
			}
			t.Run(name+", "+req.Method, func(t *testing.T) {
				t.Parallel()
				var got [2]string
				for i, client := range []*http.Client{nil, {Transport: new(http.Transport)}} {
					got[i] = outcomeOf(t, h, req, client)
				}
				if diff := cmp.Diff(got[1], got[0]); diff != "" {
					t.Errorf("(-net/http +direct):\n%s", diff)
				}
			})
		}
	}
}

// outcomeOf describes what is sent to a peer that responds with h, and the outcome. The client is
// nil for the transports of the node.
func outcomeOf(t *testing.T, h http.HandlerFunc, req cluster.Request, client *http.Client) string {
	t.Helper()
	var mu sync.Mutex
	var text strings.Builder
	peer := startCountingServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if strings.HasSuffix(r.URL.Path, "/itResources") && r.Method != http.MethodHead {
			responder(http.StatusOK, `{"data":null}`).ServeHTTP(w, r)
			return
		}
		r.Header.Del("X-Correlation-Id")
		r.Header.Del("Connection") // of a retry
		mu.Lock()
		fmt.Fprintln(&text, r.Method, r.RequestURI, r.Proto, r.ContentLength, r.TransferEncoding, r.Header, len(body))
		mu.Unlock()
		h(w, r)
	}))
	peer.Config.ErrorLog = log.New(io.Discard, "", 0)
	cfg := testConfig()
	cfg.MaxResponseBytes = 1 << 19
	c, _ := newSocketNode(t, peer.URL+"/base", cfg, cluster.WithHTTPClient(client))
	if client != nil {
		defer client.CloseIdleConnections() // one may keep a handler waiting
	}
	o := callOnePeer(t, c, req)
	header := o.Header()
	header.Del("Date")
	mu.Lock()
	defer mu.Unlock()
	fmt.Fprintln(&text, o.Kind, o.Err, o.StatusCode, header, string(o.Body), string(o.Data), o.Unverified, o.Attempts, o.Evicted, o.EvictionSkipped)
	return strings.ReplaceAll(text.String(), peer.Listener.Addr().String(), "peer")
}

// writer writes a response in one of several ways.
func writer(code int, how, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Reply", "yes")
		out := io.Writer(w)
		if how == "gzip" && r.Header.Get("Accept-Encoding") == "gzip" {
			w.Header().Set("Content-Encoding", "gzip")
			zw := gzip.NewWriter(w)
			defer zw.Close()
			out = zw
		}
		w.WriteHeader(code)
		if how == "chunked" {
			_ = http.NewResponseController(w).Flush()
		}
		if r.Method != http.MethodHead && code != http.StatusNoContent {
			_, _ = io.WriteString(out, body)
		}
	}
}
