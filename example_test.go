package cluster_test

import (
	"context"
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

// One error names all that is missing or wrong, by the names that the environment has for it.
func ExampleNew() {
	_, err := cluster.New(cluster.Config{
		Type: "mds", Port: 80800, LocalIPv4: "10.0.0.7", Management: true,
		RegistryURL: "mit.example.com/mIT/v1", RegistryAudience: "https://mit.example.com",
		Issuer: "https://mst.example.com/oauth/token", ClientID: "mds", ClientSecret: "a secret", ClientAccessKey: "a key",
	})
	fmt.Println(err)
	// Output:
	// cluster: configuration: SERVER_PORT is 80800, not a port
	// MIT_URL is wrong: not an absolute http or https URL
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
		os.Setenv(name, value)  //nolint:errcheck // an example of what the process was started with
		defer os.Unsetenv(name) //nolint:errcheck // as above
	}
	cfg, err := cluster.ConfigFromEnv()
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(cfg.Type, cfg.Port, cfg.RequestTimeout, cfg.PeerAudience)
	fmt.Println(cfg.ClientSecret) // secrets don't print
	// Output:
	// mds 8080 5s https://mds.example.com
	// [redacted]
}

func ExampleCluster_Register() {
	w := newWorld(2)
	defer w.close()
	c := w.Add() // a third node, which serves but has yet to register

	res, err := c.Register(context.Background())
	if err != nil {
		fmt.Println(err) // the context ended first: until then it tries again
		return
	}
	fmt.Println(c.Status().State, "and announced to", len(res.Results))
	for _, s := range c.Servers() {
		fmt.Println(s.ServerID, s.ClusterBaseURL)
	}
	// Output:
	// registered and announced to 2
	// node-1 http://node-1:8080/mds/v1
	// node-2 http://node-2:8080/mds/v1
	// node-3 http://node-3:8080/mds/v1
}

// A registration that fails is a state with a reason, and the four environment variables say so.
func ExampleCluster_Status() {
	w := newWorld(0)
	defer w.close()
	ctx, giveUp := context.WithCancel(context.Background())
	defer giveUp()
	c := w.Add(cluster.WithTrace(&cluster.Trace{
		RenewFailed: func(error, time.Duration) { giveUp() },
	}))
	w.Network.Down(clustertest.RegistryHost)

	_, err := c.Register(ctx) // it would try for ever
	s := c.Status()
	fmt.Println(errors.Is(err, context.Canceled), s.State, s.Reason)
	fmt.Println(s.Env()["REGISTRATION_STATUS"] == "orphan: "+s.Reason.Error())
	// Output:
	// true orphan mIT cannot be reached by POST http://mit.test/mIT/v1/itResources: dial tcp mit.test: connect: connection refused
	// true
}

func ExampleCluster_UnRegister() {
	w := newWorld(3)
	defer w.close()

	left := w.Nodes[2].UnRegister(context.Background())
	fmt.Println(left.ServerID, "left a cluster of", left.NbServers, left.Errors)
	fmt.Println(len(w.Nodes[0].Servers()), "are left")
	// Output:
	// node-3 left a cluster of 3 []
	// 2 are left
}

// Each peer stands exactly once in the results or in the failures.
func ExampleCluster_RPCluster() {
	w := newWorld(4)
	defer w.close()
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
		fmt.Println(o.Server.ServerID, "failed:", o.Kind, "- evicted:", o.Evicted)
	}
	// Output:
	// node-2 answered ["thing of node-2"]
	// node-3 answered ["thing of node-3"]
	// node-4 failed: refused - evicted: true
}

// Outcomes come as they arrive. Breaking off ends the requests under way.
func ExampleCluster_Stream() {
	w := newWorld(3)
	defer w.close()

	for o := range w.Nodes[0].Stream(context.Background(), cluster.Request{Path: "/things"}) {
		if o.Err != nil {
			fmt.Println(o.Err)
			break
		}
		fmt.Println(o.Server.ServerID, string(o.Data))
	}
	// Unordered output:
	// node-2 ["thing of node-2"]
	// node-3 ["thing of node-3"]
}

// Two answers are enough here, of whichever peers are picked.
func ExampleRequest() {
	w := newWorld(5)
	defer w.close()
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
		fmt.Println(o.Server.ServerID, "was not waited for:", errors.Is(o.Err, cluster.ErrEnoughResults))
	}
	// Output:
	// node-3 answered
	// node-5 answered
	// node-4 was not waited for: true
}

func ExampleDecode() {
	w := newWorld(3)
	defer w.close()

	res, err := w.Nodes[0].RPCluster(context.Background(), cluster.Request{Path: "/things"})
	if err != nil {
		fmt.Println(err)
		return
	}
	things, err := cluster.Decode[string](res)
	fmt.Printf("%q %v\n", things, err)
	// Output:
	// ["thing of node-2" "thing of node-3"] <nil>
}

func ExampleCluster_Mount() {
	w := newWorld(1)
	defer w.close()
	c := w.Nodes[0]

	mux := http.NewServeMux() // or any router that takes its patterns
	c.Mount(mux)

	_, announce := mux.Handler(httptest.NewRequest(http.MethodPost, "/mds/v1/itResources", nil))
	_, forget := mux.Handler(httptest.NewRequest(http.MethodDelete, "/mds/v1/itResources/1/servers/2", nil))
	fmt.Println(announce)
	fmt.Println(forget)
	// Output:
	// POST /mds/v1/itResources
	// DELETE /mds/v1/itResources/{id}/servers/{serverId}
}

// What a valid token may do is the endpoint's to decide.
func ExampleCluster_Authenticate() {
	w := newWorld(1)
	defer w.close()
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
		answer := httptest.NewRecorder()
		mine.ServeHTTP(answer, r)
		fmt.Println(answer.Body)
	}
	// Output:
	// {"data":"hello","server":{"serverId":"node-1"}}
	// {"statusCode":403,"title":"Forbidden","message":"not for mpo"}
	// {"statusCode":401,"title":"Unauthorized","message":"invalid token: missing authorization header"}
}

func ExampleCluster_Reply() {
	w := newWorld(1)
	defer w.close()
	c := w.Nodes[0]

	things := func(w http.ResponseWriter, r *http.Request) {
		c.Reply(w, r, []string{"a thing", "another"})
	}
	answer := httptest.NewRecorder()
	things(answer, httptest.NewRequest(http.MethodGet, "/mds/v1/things", nil))
	fmt.Println(answer.Code, answer.Body)
	// Output:
	// 200 {"data":["a thing","another"],"server":{"serverId":"node-1"}}
}

func ExampleCluster_ReplyError() {
	w := newWorld(1)
	defer w.close()
	c := w.Nodes[0]

	for _, err := range []error{
		&cluster.StatusError{Code: http.StatusNotFound, Message: "no such thing"},
		errors.New("the disk is full"),
	} {
		answer := httptest.NewRecorder()
		c.ReplyError(answer, httptest.NewRequest(http.MethodGet, "/mds/v1/things/9", nil), err)
		fmt.Println(answer.Code, answer.Body)
	}
	// Output:
	// 404 {"statusCode":404,"title":"Not Found","message":"no such thing"}
	// 500 {"statusCode":500,"title":"Internal Server Error","message":"the disk is full"}
}

// The context of a service usually ends with a signal; see signal.NotifyContext. Here it ends
// as soon as the service has registered.
func ExampleCluster_ListenAndServe() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	w := newWorld(0, clustertest.WithOptions(cluster.WithTrace(&cluster.Trace{
		StateChanged: func(from, to cluster.Status) {
			fmt.Println(from.State, "->", to.State)
			if to.State == cluster.Registered {
				stop()
			}
		},
	})))
	defer w.close()
	c := w.Add()

	mux := http.NewServeMux()
	c.Mount(mux)
	err := c.ListenAndServe(ctx, &http.Server{Addr: "127.0.0.1:0", Handler: mux, ReadHeaderTimeout: time.Second})
	fmt.Println("the service ended:", err)
	// Output:
	// orphan -> registered
	// registered -> left
	// the service ended: <nil>
}

// Tokens from a standard OAuth2 server, and a check of one's own for those received. The
// variables of mST are then not needed.
func ExampleWithTokens() {
	tokens := func(key cluster.TokenKey) oauth2.TokenSource { // called once per key
		credentials := clientcredentials.Config{
			ClientID: "mds", ClientSecret: "a secret", TokenURL: "https://login.example.com/token",
			EndpointParams: url.Values{"audience": {key.Audience}},
		}
		return credentials.TokenSource(context.Background())
	}
	c, err := cluster.New(cluster.Config{
		Type: "mds", ID: "node-1", Port: 8080, LocalIPv4: "10.0.0.7",
		RegistryURL: "https://mit.example.com/mIT/v1", RegistryAudience: "https://mit.example.com",
	}, cluster.WithTokens(tokens), cluster.WithVerifier(gateway{}))
	fmt.Println(c, err)
	// Output:
	// mds/node-1 <nil>
}

// gateway takes the claims that a gateway in front of the node has checked.
type gateway struct{}

func (gateway) Verify(_ context.Context, token string) (cluster.Claims, error) {
	typ, checked := strings.CutPrefix(token, "checked:")
	if !checked {
		return cluster.Claims{}, errors.New("it did not come through the gateway")
	}
	return cluster.Claims{SubType: typ, Type: "cluster"}, nil
}

func ExampleWithTrace() {
	w := newWorld(0, clustertest.WithOptions(cluster.WithTrace(&cluster.Trace{
		StateChanged: func(from, to cluster.Status) { fmt.Println(from.State, "->", to.State) },
		Renewed:      func(lease, _ time.Duration) { fmt.Println("lease of", lease) },
	})))
	defer w.close()

	c := w.Join()
	c.UnRegister(context.Background())
	// Output:
	// orphan -> registered
	// lease of 1h0m0s
	// registered -> left
}

// The id goes out unchanged, and each node that gets it counts its step up.
func ExampleWithCorrelationID() {
	w := newWorld(2, clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
		return n.Authenticate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n.Reply(w, r, cluster.CorrelationID(r.Context()))
		}))
	}))
	defer w.close()

	ctx := cluster.WithCorrelationID(context.Background(), "order-7@0/2026-01-02T03:04:05.678Z")
	res, err := w.Nodes[0].RPCluster(ctx, cluster.Request{Path: "/orders/7"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(string(res.Data[0]))
	// Output:
	// "order-7@1/2026-01-02T03:04:05.678Z"
}

func ExampleWithEviction() {
	w := newWorld(2, clustertest.WithOptions(cluster.WithEviction(cluster.Eviction{Disabled: true})))
	defer w.close()
	w.Nodes[1].Kill()

	res, err := w.Nodes[0].RPCluster(context.Background(), cluster.Request{Path: "/things"})
	if err != nil {
		fmt.Println(err)
		return
	}
	lost := res.Failures[0]
	fmt.Println(lost.Server.ServerID, lost.Kind, "- spared:", lost.EvictionSkipped)
	fmt.Println(len(w.Nodes[0].Servers()), "servers")
	// Output:
	// node-2 refused - spared: eviction is off
	// 2 servers
}

func ExampleWithRetry() {
	w := newWorld(2, clustertest.WithOptions(cluster.WithRetry(cluster.Retry{MaxRetries: 2, Delay: time.Millisecond})))
	defer w.close()
	w.Network.Fault("node-1:8080", "node-2:8080", clustertest.FirstN(2, clustertest.Refuse))

	res, err := w.Nodes[0].RPCluster(context.Background(), cluster.Request{Path: "/things"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(res.Results[0].Server.ServerID, "answered at attempt", res.Results[0].Attempts)
	// Output:
	// node-2 answered at attempt 3
}

func ExampleWithPeerPolicy() {
	w := newWorld(2, clustertest.WithOptions(cluster.WithPeerPolicy(cluster.PeerPolicy{
		Allow: func(s cluster.Server) error {
			if strings.HasPrefix(s.ClusterBaseURL, "https:") {
				return nil
			}
			return errors.New("not without TLS")
		},
	})))
	defer w.close()

	res, err := w.Nodes[1].RPCluster(context.Background(), cluster.Request{Path: "/things"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(res.Failures[0].Kind)
	fmt.Println(res.Failures[0].Err)
	// Output:
	// not_allowed
	// server "node-1": address not allowed: not without TLS
}

// A world is where the examples run: in memory, so that they run anywhere.
type exampleWorld struct {
	*clustertest.World
	ending *ending
}

func (w exampleWorld) close() {
	for _, f := range w.ending.cleanups {
		f()
	}
}

// newWorld makes a world with nodes node-1, node-2 and so on. GET {base}/things gives the one
// thing that a node has.
func newWorld(nodes int, opts ...clustertest.Option) exampleWorld {
	things := clustertest.WithHandler(func(n *clustertest.Node) http.Handler {
		return n.Authenticate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n.Reply(w, r, []string{"thing of " + n.ID})
		}))
	})
	e := &ending{}
	return exampleWorld{clustertest.Start(e, nodes, append([]clustertest.Option{things}, opts...)...), e}
}

// ending stands in for the test that an example is not.
type ending struct {
	cleanups []func()
}

func (*ending) Helper()                           {}
func (*ending) Context() context.Context          { return context.Background() }
func (e *ending) Cleanup(f func())                { e.cleanups = append(e.cleanups, f) }
func (*ending) Fatal(args ...any)                 { panic(fmt.Sprint(args...)) }
func (*ending) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
