package cluster_test

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

// One error lists all invalid and missing settings, by the names of their environment variables.
func ExampleNew() {
	_, err := cluster.New(cluster.Config{
		Type: "mds", Port: 80800, LocalIPv4: "10.0.0.7", Management: true,
		RegistryURL: "mit.example.com/mIT/v1", RegistryAudience: "https://mit.example.com",
		Issuer: "https://mst.example.com/oauth/token", ClientID: "mds", ClientSecret: "a secret", ClientAccessKey: "a key",
	})
	fmt.Println(err)
	// Output:
	// cluster: configuration: SERVER_PORT 80800 is not a port
	// MIT_URL is invalid: not an absolute http or https URL
	// MDS_AUDIENCE is missing
	// OAUTH_GENERIC_AUDIENCE (or OAUTH_CLIENT_AUDIENCE) is missing
}

func ExampleConfigFromEnv() {
	for name, value := range map[string]string{
		"SERVER_TYPE":             "mds",
		"SERVER_PORT":             "8080",
		"SERVER_LOCAL_IPV4":       "10.0.0.7",
		"CLUSTER_MANAGEMENT":      "on",
		"REQUEST_TIMEOUT":         "5000",
		"MIT_URL":                 "https://mit.example.com/mIT/v1",
		"MIT_AUDIENCE":            "https://mit.example.com",
		"MDS_AUDIENCE":            "https://mds.example.com",
		"OAUTH_ISSUER":            "https://mst.example.com/oauth/token",
		"OAUTH_CLIENT_ID":         "mds",
		"OAUTH_CLIENT_SECRET":     "a secret",
		"OAUTH_CLIENT_ACCESS_KEY": "a key",
		"OAUTH_CLIENT_AUDIENCE":   "https://mds.example.com",
	} {
		os.Setenv(name, value)  //nolint:errcheck // fails for invalid names only
		defer os.Unsetenv(name) //nolint:errcheck // fails for invalid names only
	}
	cfg, err := cluster.ConfigFromEnv()
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(cfg.Type, cfg.Port, cfg.RequestTimeout, cfg.PeerAudience)
	fmt.Println(cfg.ClientSecret) // a Secret is not printed
	// Output:
	// mds 8080 5s https://mds.example.com
	// [redacted]
}

func ExampleCluster_Register() {
	withCluster(2, func(w *clustertest.World) {
		c := w.Add() // a third node, which has not registered

		res, err := c.Register(context.Background())
		if err != nil {
			fmt.Println(err) // the context has ended: Register retries until then
			return
		}
		fmt.Println(c.Status().State, "and announced to", len(res.Results), "peers")
		for _, s := range c.Servers() {
			fmt.Println(s.ServerID, s.ClusterBaseURL)
		}
	})
	// Output:
	// registered and announced to 2 peers
	// node-1 http://node-1:8080/mds/v1
	// node-2 http://node-2:8080/mds/v1
	// node-3 http://node-3:8080/mds/v1
}

// After a failed registration the state is orphan, with a reason. REGISTRATION_STATUS, one of the
// four environment variables, contains both.
func ExampleCluster_Status() {
	withCluster(0, func(w *clustertest.World) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		c := w.Add(onRenewalFailure(func(error) { cancel() }))
		w.Network.Down(clustertest.RegistryHost)

		_, err := c.Register(ctx) // retries until ctx ends
		s := c.Status()
		fmt.Println(errors.Is(err, context.Canceled), s.State, s.Reason)
		fmt.Println(s.Env()["REGISTRATION_STATUS"] == "orphan: "+s.Reason.Error())
	})
	// Output:
	// true orphan mIT cannot be reached by POST http://mit.test/mIT/v1/itResources: dial tcp mit.test: connect: connection refused
	// true
}

func ExampleCluster_UnRegister() {
	withCluster(3, func(w *clustertest.World) {
		left := w.Nodes[2].UnRegister(context.Background())
		fmt.Println(left.ServerID, "left a cluster of", left.NbServers, left.Errors)
		fmt.Println("remaining servers:", len(w.Nodes[0].Servers()))
	})
	// Output:
	// node-3 left a cluster of 3 []
	// remaining servers: 2
}

// Each peer is in the results or in the failures, exactly once.
func ExampleCluster_RPCluster() {
	withCluster(4, func(w *clustertest.World) {
		w.Nodes[3].Kill()

		res, err := w.Nodes[0].RPCluster(context.Background(), cluster.Request{
			Path:  "/things", // under the base path of each peer
			Query: url.Values{"color": {"red"}},
		})
		if err != nil {
			fmt.Println(err)
			return
		}
		for _, o := range res.Results {
			fmt.Println(o.Server.ServerID, "answered", string(o.Data))
		}
		for _, o := range res.Failures {
			fmt.Println(o.Server.ServerID, "failed:", o.Kind, "evicted:", o.Evicted)
		}
	})
	// Output:
	// node-2 answered ["thing of node-2"]
	// node-3 answered ["thing of node-3"]
	// node-4 failed: refused evicted: true
}

// Outcomes are yielded as they arrive. Leaving the loop cancels the requests in flight.
func ExampleCluster_Stream() {
	withCluster(3, func(w *clustertest.World) {
		for o := range w.Nodes[0].Stream(context.Background(), cluster.Request{Path: "/things"}) {
			if o.Err != nil {
				fmt.Println(o.Err)
				break
			}
			fmt.Println(o.Server.ServerID, string(o.Data))
		}
	})
	// Unordered output:
	// node-2 ["thing of node-2"]
	// node-3 ["thing of node-3"]
}

// The call sends no request to node-2 and ends when two of the other peers have answered.
func ExampleRequest() {
	withCluster(5, func(w *clustertest.World) {
		w.Network.Fault("node-1:8080", "node-4:8080", clustertest.Hang)

		res, err := w.Nodes[0].RPCluster(context.Background(), cluster.Request{
			Path:       "/things",
			Filter:     func(s cluster.Server) bool { return s.ServerID != "node-2" },
			MinResults: 2,
		})
		if err != nil {
			fmt.Println(err)
			return
		}
		for _, o := range res.Results {
			fmt.Println(o.Server.ServerID, "answered")
		}
		for _, o := range res.Failures {
			fmt.Println(o.Server.ServerID, "was not needed:", errors.Is(o.Err, cluster.ErrEnoughResults))
		}
	})
	// Output:
	// node-3 answered
	// node-5 answered
	// node-4 was not needed: true
}

func ExampleDecode() {
	withCluster(3, func(w *clustertest.World) {
		res, err := w.Nodes[0].RPCluster(context.Background(), cluster.Request{Path: "/things"})
		if err != nil {
			fmt.Println(err)
			return
		}
		things, err := cluster.Decode[string](res)
		fmt.Printf("%q %v\n", things, err)
	})
	// Output:
	// ["thing of node-2" "thing of node-3"] <nil>
}

func ExampleCluster_Mount() {
	withCluster(1, func(w *clustertest.World) {
		c := w.Nodes[0]

		mux := http.NewServeMux() // or another router that accepts its patterns
		c.Mount(mux)

		_, announcement := mux.Handler(httptest.NewRequest(http.MethodPost, "/mds/v1/itResources", nil))
		_, departure := mux.Handler(httptest.NewRequest(http.MethodDelete, "/mds/v1/itResources/1/servers/2", nil))
		fmt.Println(announcement)
		fmt.Println(departure)
	})
	// Output:
	// POST /mds/v1/itResources
	// DELETE /mds/v1/itResources/{id}/servers/{serverId}
}

// Authenticate accepts any valid token. The handler decides what its owner may do.
func ExampleCluster_Authenticate() {
	withCluster(1, func(w *clustertest.World) {
		c := w.Nodes[0]

		mine := c.Authenticate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			claims, _ := cluster.ClaimsFrom(r.Context())
			if claims.SubType != "mds" {
				c.ReplyError(w, r, &cluster.StatusError{Code: http.StatusForbidden, Message: "not for " + claims.SubType})
				return
			}
			c.Reply(w, r, "hello")
		}))
		for _, token := range []string{w.Token("mds", false), w.Token("mpo", false), ""} {
			r := httptest.NewRequest(http.MethodGet, "/mds/v1/mine", nil)
			if token != "" {
				r.Header.Set("Authorization", "Bearer "+token)
			}
			rec := httptest.NewRecorder()
			mine.ServeHTTP(rec, r)
			fmt.Println(rec.Code)
		}
	})
	// Output:
	// 200
	// 403
	// 401
}

func ExampleCluster_Reply() {
	withCluster(1, func(w *clustertest.World) {
		c := w.Nodes[0]

		things := func(w http.ResponseWriter, r *http.Request) {
			c.Reply(w, r, []string{"a thing", "another"})
		}
		rec := httptest.NewRecorder()
		things(rec, httptest.NewRequest(http.MethodGet, "/mds/v1/things", nil))
		fmt.Println(rec.Code, rec.Body)
	})
	// Output:
	// 200 {"data":["a thing","another"],"server":{"serverId":"node-1"}}
}

func ExampleCluster_ReplyError() {
	withCluster(1, func(w *clustertest.World) {
		c := w.Nodes[0]

		for _, err := range []error{
			&cluster.StatusError{Code: http.StatusNotFound, Message: "no such thing"},
			errors.New("the disk is full"),
		} {
			rec := httptest.NewRecorder()
			c.ReplyError(rec, httptest.NewRequest(http.MethodGet, "/mds/v1/things/9", nil), err)
			fmt.Println(rec.Code, rec.Body)
		}
	})
	// Output:
	// 404 {"statusCode":404,"title":"Not Found","message":"no such thing"}
	// 500 {"statusCode":500,"title":"Internal Server Error","message":"the disk is full"}
}

// The page is for operators: here it asks for a password, as a browser does. Programs get JSON.
func ExampleCluster_StatusHandler() {
	const password = "a password from a file"
	auth := func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, given, _ := r.BasicAuth()
			if subtle.ConstantTimeCompare([]byte(given), []byte(password)) != 1 {
				w.Header().Set("WWW-Authenticate", `Basic realm="status"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
	withCluster(1, func(w *clustertest.World) {
		c := w.Add()
		mux := http.NewServeMux()
		mux.Handle("/status", c.StatusHandler(cluster.StatusOptions{Auth: auth, Actions: true}))
		if _, err := c.Register(context.Background()); err != nil {
			fmt.Println(err)
			return
		}

		for _, given := range []string{"a guess", password} {
			r := httptest.NewRequest(http.MethodGet, "/status?format=json", nil)
			r.SetBasicAuth("operator", given)
			rec := httptest.NewRecorder()
			mux.ServeHTTP(rec, r)
			var page struct {
				State string
				Peers []struct{ ID string }
			}
			_ = json.Unmarshal(rec.Body.Bytes(), &page) // a 401 has no body
			fmt.Println(rec.Code, page.State, page.Peers)
		}
	})
	// Output:
	// 401  []
	// 200 registered [{node-1} {node-2}]
}

// A guest calls the servers of a cluster without being one of them.
func ExampleObserve() {
	withCluster(2, func(w *clustertest.World) {
		cfg := w.Nodes[0].Config() // type, registry, audiences and credentials
		network := w.Network.Transport("guest")
		g, err := cluster.Observe(cfg, cluster.WithTransport(func(http.RoundTripper) http.RoundTripper { return network }))
		if err != nil {
			fmt.Println(err)
			return
		}
		defer g.Close()

		ctx := context.Background()
		if err = g.ReadRegistry(ctx); err != nil {
			err = g.ReadServer(ctx, "http://node-1:8080/mds/v1") // any server will do
		}
		if err != nil {
			fmt.Println(err)
			return
		}
		res, err := g.RPCluster(ctx, cluster.Request{Path: "/things"})
		if err != nil {
			fmt.Println(err)
			return
		}
		things, err := cluster.Decode[string](res)
		fmt.Println(things, err)
	})
	// Output:
	// [thing of node-1 thing of node-2] <nil>
}

// The context of a service usually ends on a signal; see [os/signal.NotifyContext]. Here it ends
// when the service has registered.
func ExampleCluster_ListenAndServe() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	opts := clustertest.WithOptions(cluster.WithTrace(&cluster.Trace{
		StateChanged: func(_ context.Context, from, to cluster.Status) {
			fmt.Println(from.State, "->", to.State)
			if to.State == cluster.Registered {
				stop()
			}
		},
	}))
	withCluster(0, func(w *clustertest.World) {
		c := w.Add()

		mux := http.NewServeMux()
		c.Mount(mux)
		err := c.ListenAndServe(ctx, &http.Server{Addr: "127.0.0.1:0", Handler: mux, ReadHeaderTimeout: time.Second})
		fmt.Println("the service ended:", err)
	}, opts)
	// Output:
	// orphan -> registered
	// registered -> left
	// the service ended: <nil>
}

// The node gets its tokens from a standard OAuth2 server and verifies received tokens with a
// Verifier of its own. The settings of the token service (mST) are not needed then.
func ExampleWithTokens() {
	tokens := func(ctx context.Context, key cluster.TokenKey) (*oauth2.Token, error) {
		credentials := clientcredentials.Config{
			ClientID: "mds", ClientSecret: "a secret", TokenURL: "https://login.example.com/token",
			EndpointParams: url.Values{"audience": {key.Audience}},
		}
		return credentials.Token(ctx) // a new token: the node keeps it, and replaces it if it is rejected
	}
	c, err := cluster.New(cluster.Config{
		Type: "mds", ID: "node-1", Port: 8080, LocalIPv4: "10.0.0.7",
		RegistryURL: "https://mit.example.com/mIT/v1", RegistryAudience: "https://mit.example.com",
	}, cluster.WithTokens(tokens), cluster.WithVerifier(gateway{}))
	fmt.Println(c, err)
	// Output:
	// mds/node-1 <nil>
}

// A gateway in front of the node verifies tokens and replaces each one by "checked:" and its type.
type gateway struct{}

func (gateway) Verify(_ context.Context, token string) (cluster.Claims, error) {
	typ, checked := strings.CutPrefix(token, "checked:")
	if !checked {
		return cluster.Claims{}, errors.New("the request did not pass the gateway")
	}
	return cluster.Claims{SubType: typ, Type: "cluster"}, nil
}

// The hook of an operation returns the context for what is nested in it, and the function that is
// called at its end.
func ExampleWithTrace() {
	type parentKey struct{}
	trace := &cluster.Trace{
		Renewal: func(ctx context.Context, _ cluster.RenewalInfo) (context.Context, func(cluster.RenewalResult)) {
			ctx = context.WithValue(ctx, parentKey{}, "renewal")
			return ctx, func(r cluster.RenewalResult) { fmt.Println("renewal: lease of", r.Lease) }
		},
		Call: func(ctx context.Context, call cluster.CallInfo) (context.Context, func(cluster.CallResult)) {
			ctx = context.WithValue(ctx, parentKey{}, call.Operation)
			return ctx, func(r cluster.CallResult) { fmt.Printf("%s %s: %d results\n", call.Operation, call.Name, r.Results) }
		},
		Request: func(ctx context.Context, req cluster.RequestInfo) (context.Context, func(cluster.RequestResult)) {
			parent := ctx.Value(parentKey{})
			return ctx, func(r cluster.RequestResult) {
				fmt.Printf("  %v: %s to %s: %d\n", parent, req.Method, req.Target, r.StatusCode)
			}
		},
	}
	withCluster(1, func(w *clustertest.World) {
		caller := w.Join(cluster.WithTrace(trace))
		if _, err := caller.RPCluster(context.Background(), cluster.Request{Name: "list-things", Path: "/things"}); err != nil {
			fmt.Println(err)
		}
	})
	// Output:
	//   renewal: POST to token_service: 200
	//   renewal: POST to registry: 200
	// renewal: lease of 1h0m0s
	//   announce: POST to token_service: 200
	//   announce: POST to peer: 200
	// announce : 1 results
	//   fan_out: GET to peer: 200
	// fan_out list-things: 1 results
}

// The id is sent unchanged. Each node that receives it increments the step after the @.
func ExampleWithCorrelationID() {
	opts := clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
		return n.Authenticate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n.Reply(w, r, cluster.CorrelationID(r.Context()))
		}))
	})
	withCluster(2, func(w *clustertest.World) {
		ctx := cluster.WithCorrelationID(context.Background(), "order-7@0/2026-01-02T03:04:05.678Z")
		res, err := w.Nodes[0].RPCluster(ctx, cluster.Request{Path: "/orders/7"})
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(string(res.Data[0]))
	}, opts)
	// Output:
	// "order-7@1/2026-01-02T03:04:05.678Z"
}

func ExampleWithEviction() {
	opts := clustertest.WithOptions(cluster.WithEviction(cluster.Eviction{Disabled: true}))
	withCluster(2, func(w *clustertest.World) {
		w.Nodes[1].Kill()

		res, err := w.Nodes[0].RPCluster(context.Background(), cluster.Request{Path: "/things"})
		if err != nil {
			fmt.Println(err)
			return
		}
		failure := res.Failures[0]
		fmt.Println(failure.Server.ServerID, failure.Kind, "not evicted:", failure.EvictionSkipped)
		fmt.Println(len(w.Nodes[0].Servers()), "servers")
	}, opts)
	// Output:
	// node-2 refused not evicted: eviction is off
	// 2 servers
}

func ExampleWithRetry() {
	opts := clustertest.WithOptions(cluster.WithRetry(cluster.Retry{MaxRetries: 2, Delay: time.Millisecond}))
	withCluster(2, func(w *clustertest.World) {
		w.Network.Fault("node-1:8080", "node-2:8080", clustertest.FirstN(2, clustertest.Refuse))

		res, err := w.Nodes[0].RPCluster(context.Background(), cluster.Request{Path: "/things"})
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(res.Results[0].Server.ServerID, "answered at attempt", res.Results[0].Attempts)
	}, opts)
	// Output:
	// node-2 answered at attempt 3
}

func ExampleWithPeerPolicy() {
	opts := clustertest.WithOptions(cluster.WithPeerPolicy(cluster.PeerPolicy{
		Allow: func(s cluster.Server) error {
			if strings.HasPrefix(s.ClusterBaseURL, "https:") {
				return nil
			}
			return errors.New("TLS is required")
		},
	}))
	withCluster(2, func(w *clustertest.World) {
		res, err := w.Nodes[1].RPCluster(context.Background(), cluster.Request{Path: "/things"})
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(res.Failures[0].Kind)
		fmt.Println(res.Failures[0].Err)
	}, opts)
	// Output:
	// not_allowed
	// server "node-1": address not allowed: TLS is required
}

// withCluster calls f with a cluster of nodes in memory, which are called node-1, node-2 and so on.
// GET {base}/things of a node returns a list with one thing.
func withCluster(nodes int, f func(w *clustertest.World), opts ...clustertest.Option) {
	things := clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
		return n.Authenticate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n.Reply(w, r, []string{"thing of " + n.ID})
		}))
	})
	err := clustertest.Program(context.Background(), func(t clustertest.TB) {
		f(clustertest.Start(t, nodes, append([]clustertest.Option{things}, opts...)...))
	})
	if err != nil {
		fmt.Println(err)
	}
}
