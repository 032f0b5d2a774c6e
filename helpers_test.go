package cluster_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/oauth2"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/internal/testrun"
	"github.com/mimiktech/cluster/mit"
)

func TestMain(m *testing.M) {
	testrun.Parallel(8)
	testrun.Checks(30)
	testrun.CollectRarely()
	os.Exit(m.Run())
}

// parallel lets a test with bubbles run in parallel with others. Such a test keeps a processor
// busy. There are at most as many at a time as processors, so that tests on sockets, which have
// real timeouts, go on in time.
func parallel(t *testing.T) {
	t.Helper()
	t.Parallel()
	busy <- struct{}{}
	t.Cleanup(func() { <-busy })
}

var busy = make(chan struct{}, runtime.GOMAXPROCS(0)) //nolint:gochecknoglobals // all tests share it

// Nodes and their environment.

// startVerified starts a world, and renews its first node, which then has the entries of all its
// peers from the registry. By announced entries a node does not evict.
func startVerified(t *testing.T, nodes int, opts ...clustertest.Option) *clustertest.World {
	t.Helper()
	w := clustertest.Start(t, nodes, opts...)
	if _, err := w.Nodes[0].Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w
}

func noEviction() clustertest.Option {
	return clustertest.WithOptions(cluster.WithEviction(cluster.Eviction{Disabled: true}))
}

// testConfig is the configuration of a node that calls fakes of the test.
func testConfig() cluster.Config {
	return cluster.Config{
		Type: "mds", ID: "node-1", Port: 8080, LocalIPv4: "10.0.0.7", Management: true,
		RegistryURL: "http://mit.test/mIT/v1", RegistryAudience: "mit", PeerAudience: "peers",
		Issuer: "http://mst.test/oauth/token", ClientID: "id", ClientSecret: "hidden client secret",
		ClientAccessKey: "hidden access key", ClientAudience: "peers",
	}
}

// newNode creates a node that has tokens, accepts every token, and sends its requests to rt.
func newNode(t *testing.T, cfg cluster.Config, rt http.RoundTripper, opts ...cluster.Option) *cluster.Cluster {
	t.Helper()
	c, err := cluster.New(cfg, append([]cluster.Option{
		cluster.WithHTTPClient(&http.Client{Transport: rt}), cluster.WithoutEnv(), cluster.WithVerifier(fixedVerifier{"mds", "cluster"}),
		cluster.WithTokens(func(_ context.Context, k cluster.TokenKey) (*oauth2.Token, error) {
			return &oauth2.Token{AccessToken: "hidden-token-for-" + k.Audience}, nil
		}),
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// A fixedVerifier accepts all tokens as tokens of a type, except "bad".
type fixedVerifier struct{ subType, typ string }

func (v fixedVerifier) Verify(_ context.Context, token string) (cluster.Claims, error) {
	if token == "bad" {
		return cluster.Claims{}, errors.New("I know " + token)
	}
	return cluster.Claims{SubType: v.subType, Type: v.typ, Subject: "me " + token}, nil
}

// anyMethod is a handler of a world that answers requests of any method with the id of the node.
func anyMethod(n *clustertest.Node) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { n.Reply(w, r, []string{n.ID}) })
}

// registerAsync starts to register n. The channel receives the error that Register returns.
func registerAsync(ctx context.Context, n *clustertest.Node) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := n.Register(ctx)
		done <- err
	}()
	return done
}

// renewUnnoticed lets a peer renew so that n does not learn of it. The entry in the registry is
// then newer than the entry of n.
func renewUnnoticed(t *testing.T, w *clustertest.World, n, peer *clustertest.Node) {
	t.Helper()
	// A response of another server: n does not become suspect, and the announcement is not repeated.
	w.Network.Fault(peer.Host, n.Host, clustertest.RouteTo(peer.Host))
	defer w.Network.Fault(peer.Host, n.Host, nil)
	if _, err := peer.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// withTimeout returns a context of the test that ends after d.
func withTimeout(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// countGoroutines returns the number of goroutines in the bubble of the test.
func countGoroutines(t *testing.T) int {
	t.Helper()
	stacks := make([]byte, 4<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	if len(stacks) == cap(stacks) {
		t.Fatal("more goroutines than can be counted")
	}
	header, _, _ := strings.Cut(string(stacks), "\n") // goroutine 12 [running, synctest bubble 3]:
	_, bubble, ok := strings.Cut(header, "synctest bubble ")
	if !ok {
		t.Fatalf("not in a bubble: %s", header)
	}
	return strings.Count(string(stacks), "synctest bubble "+bubble)
}

// namedVariables returns the variables that an error of ConfigFromEnv or New names, in its order.
func namedVariables(err error) []string {
	if err == nil {
		return nil
	}
	var names []string
	for line := range strings.SplitSeq(strings.TrimPrefix(err.Error(), "cluster: configuration: "), "\n") {
		name, _, _ := strings.Cut(line, " ")
		names = append(names, name)
	}
	return names
}

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

func mustParse(t *testing.T, address string) *url.URL {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func marshal(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Calls and their outcomes.

// rpc calls the peers of n. The request must be valid.
func rpc(t *testing.T, n *clustertest.Node, req cluster.Request) *cluster.Response {
	t.Helper()
	res, err := n.RPCluster(t.Context(), req)
	if err != nil {
		t.Errorf("RPCluster: %v", err)
		return &cluster.Response{}
	}
	return res
}

// onlyIDs is a filter.
func onlyIDs(ids ...string) func(cluster.Server) bool {
	return func(s cluster.Server) bool { return slices.Contains(ids, s.ServerID) }
}

// singleFailure returns the only failure of a response.
func singleFailure(t *testing.T, res *cluster.Response) cluster.Outcome {
	t.Helper()
	if len(res.Failures) != 1 {
		t.Errorf("%d failures, want one: %v", len(res.Failures), failures(res))
		return cluster.Outcome{}
	}
	return res.Failures[0]
}

// wantOneOutcomeEach checks that a response has one outcome of each called node, and no others.
func wantOneOutcomeEach(t *testing.T, res *cluster.Response, called []*clustertest.Node) {
	t.Helper()
	for _, problem := range outcomeProblems(res, called) {
		t.Error(problem)
	}
}

// outcomeProblems returns what wantOneOutcomeEach reports. Property tests collect it.
func outcomeProblems(res *cluster.Response, called []*clustertest.Node) (problems []string) {
	count := map[string]int{}
	for _, o := range res.Results {
		count[o.Server.ServerID]++
		if o.Err != nil || o.Kind != cluster.KindOK {
			problems = append(problems, fmt.Sprintf("%s is a result with %s, %v", o.Server.ServerID, o.Kind, o.Err))
		}
	}
	for _, o := range res.Failures {
		count[o.Server.ServerID]++
		if o.Err == nil || o.Kind == cluster.KindOK || o.Kind == "" {
			problems = append(problems, fmt.Sprintf("%s is a failure without a reason: kind %q, %v", o.Server.ServerID, o.Kind, o.Err))
		}
	}
	for _, n := range called {
		if count[n.ID] != 1 {
			problems = append(problems, fmt.Sprintf("%d outcomes of %s", count[n.ID], n.ID))
		}
	}
	if len(count) != len(called) {
		problems = append(problems, fmt.Sprintf("%d peers were called, outcomes are of %d", len(called), len(count)))
	}
	for _, list := range [][]cluster.Outcome{res.Results, res.Failures} {
		if !slices.IsSorted(idsOfOutcomes(list)) {
			problems = append(problems, fmt.Sprintf("not in the order of the servers: %v", idsOfOutcomes(list)))
		}
	}
	return problems
}

func failures(res *cluster.Response) (errs []error) {
	for _, o := range res.Failures {
		errs = append(errs, o.Err)
	}
	return errs
}

func idsOf(servers []cluster.Server) []string {
	var ids []string
	for _, s := range servers {
		ids = append(ids, s.ServerID)
	}
	return ids
}

func idsOfOutcomes(outcomes []cluster.Outcome) []string {
	ids := make([]string, len(outcomes))
	for i, o := range outcomes {
		ids[i] = o.Server.ServerID
	}
	return ids
}

// Assertions about nodes.

// wantState checks the state of a node, and that it has a reason unless it is registered.
func wantState(t *testing.T, n *clustertest.Node, want cluster.State) {
	t.Helper()
	s := n.Status()
	if s.State != want {
		t.Errorf("%s is %s (%v), want %s", n.ID, s.State, s.Reason, want)
	}
	if (s.Reason == nil) != (s.State == cluster.Registered) {
		t.Errorf("%s is %s for the reason %v", n.ID, s.State, s.Reason)
	}
}

// wantView checks the ids in the view of a node, and their number in its status.
func wantView(t *testing.T, n *clustertest.Node, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, idsOf(n.Servers())); diff != "" {
		t.Errorf("the view of %s (-want +got):\n%s", n.ID, diff)
	}
	if got := n.Status().Servers; got != len(want) {
		t.Errorf("the status of %s counts %d servers, want %d", n.ID, got, len(want))
	}
}

// checkView checks what holds for the view of node-1 whatever its remotes send, and returns the
// ids.
func checkView(t *testing.T, c *cluster.Cluster) []string {
	t.Helper()
	ids := idsOf(c.Servers())
	if !slices.IsSorted(ids) || len(slices.Compact(slices.Clone(ids))) != len(ids) {
		t.Errorf("the view is not sorted, or has an id twice: %q", ids)
	}
	if !slices.Contains(ids, "node-1") {
		t.Errorf("the node is not in its own view: %q", ids)
	}
	if s := c.Status(); s.Servers != len(ids) {
		t.Errorf("the status counts %d servers, the view has %d", s.Servers, len(ids))
	}
	return ids
}

// checkAllowed checks that the policy for peers allows a URL.
func checkAllowed(t *testing.T, u *url.URL) {
	t.Helper()
	if u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.Hostname() == "" || u.Opaque != "" {
		t.Errorf("not allowed: %q", u)
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil {
		if ip = ip.Unmap(); ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified() {
			t.Errorf("not allowed: %q", u)
		}
	}
}

// checkNoSecrets checks that an error has no secret of the tests' nodes in its text.
func checkNoSecrets(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	for _, secret := range []string{
		"hidden client secret", "hidden access key", "hidden generic key", "hidden previous key", "hidden-token-for-mit", "hidden-token-for-peers",
	} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("a secret in the error: %v", err)
		}
	}
}

// Faults and canned responses.

func registryDown(w *clustertest.World) { w.Network.Down(clustertest.RegistryHost) }

func registryUp(w *clustertest.World) { w.Network.Up(clustertest.RegistryHost) }

// registryFault sets the fault of all requests to the registry.
func registryFault(w *clustertest.World, f clustertest.Fault) {
	w.Network.Fault(clustertest.Any, clustertest.RegistryHost, f)
}

// onPost limits a fault to POST requests. At the registry these are registrations and renewals.
func onPost(f clustertest.Fault) clustertest.Fault {
	return clustertest.If(func(r *http.Request) bool { return r.Method == http.MethodPost }, f)
}

// onDelete limits a fault to DELETE requests. At the registry these are conditional deletes.
func onDelete(f clustertest.Fault) clustertest.Fault {
	return clustertest.If(func(r *http.Request) bool { return r.Method == http.MethodDelete }, f)
}

// delayResponse executes requests at once, and delays their responses.
func delayResponse(d time.Duration) clustertest.Fault {
	return func(next http.RoundTripper) http.RoundTripper {
		return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
			resp, err := next.RoundTrip(req)
			if err != nil {
				return nil, err
			}
			select {
			case <-time.After(d):
				return resp, nil
			case <-req.Context().Done():
				resp.Body.Close()
				return nil, context.Cause(req.Context())
			}
		})
	}
}

// signal sends to arrived when a request reaches f, unless a signal is already waiting.
func signal(arrived chan<- struct{}, f clustertest.Fault) clustertest.Fault {
	return func(next http.RoundTripper) http.RoundTripper {
		faulty := f(next)
		return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
			select {
			case arrived <- struct{}{}:
			default:
			}
			return faulty.RoundTrip(req)
		})
	}
}

// badCertificate fails requests with the error of TLS for an expired certificate.
func badCertificate(http.RoundTripper) http.RoundTripper {
	return clustertest.RoundTripperFunc(func(*http.Request) (*http.Response, error) {
		return nil, &tls.CertificateVerificationError{Err: errors.New("x509: certificate has expired")}
	})
}

// respond answers all requests with a status and a body, and respondOK with 200 and a body.
func respond(code int, body string) clustertest.Fault {
	return clustertest.Answer(responder(code, body))
}

func respondOK(body string) clustertest.Fault { return respond(http.StatusOK, body) }

// responder is the handler of respond.
func responder(code int, body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	})
}

// endlessBody answers with a body that does not end. If declared, the response declares a length
// just above a MiB.
func endlessBody(declared bool) clustertest.Fault {
	return clustertest.Answer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if declared {
			w.Header().Set("Content-Length", "1048577")
		}
		line := []byte(strings.Repeat(" ", 1<<16-1) + "\n")
		for {
			if _, err := w.Write(line); err != nil {
				return
			}
		}
	}))
}

// announcement is an itResource of the nodes' type as JSON, with entries of the year 2000.
func announcement(ids ...string) string { return resourceWithDate("2000-01-01T00:00:00.000Z", ids...) }

// resourceWithDate is an itResource of the nodes' type as JSON. Its entries have the date, in the
// spelling of the wire, or none if it is empty.
func resourceWithDate(date string, ids ...string) string {
	type server struct {
		ServerID       string `json:"serverId"`
		ClusterBaseURL string `json:"clusterBaseUrl"`
		CreatedAt      string `json:"createdAt,omitempty"`
	}
	servers := []server{}
	for _, id := range ids {
		servers = append(servers, server{id, "http://" + id + ":8080/mds/v1", date})
	}
	// Nothing in it can fail.
	b, _ := json.Marshal(map[string]any{"id": mit.ResourceID("mds"), "publicBaseUrl": "http://x/mds/v1", "servers": servers})
	return string(b)
}

// registrationResponse is a response of the fake registry of remotes to a registration.
func registrationResponse(lease time.Duration, ids ...string) string {
	return fmt.Sprintf(`{"itResource":%s,"leaseTime":%d}`, testResource(ids...), lease.Milliseconds())
}

// testResource is the itResource of registrationResponse.
func testResource(ids ...string) string {
	servers := make([]string, len(ids))
	for i, id := range ids {
		servers[i] = fmt.Sprintf(`{"serverId":%q,"clusterBaseUrl":"http://%s.test:8080/mds/v1","updatedAt":"2020-01-01T00:00:00.000Z"}`, id, id)
	}
	return `{"id":"it","publicBaseUrl":"http://mds.test","servers":[` + strings.Join(servers, ",") + `]}`
}

// stubClient is a client that gets all its responses from a function.
func stubClient(respond func(*http.Request) (int, string)) *http.Client {
	return &http.Client{Transport: clustertest.RoundTripperFunc(func(r *http.Request) (*http.Response, error) {
		if r.Body != nil {
			defer r.Body.Close()
		}
		code, body := respond(r)
		return newHTTPResponse(r, code, body), nil
	})}
}

func newHTTPResponse(r *http.Request, code int, body string) *http.Response {
	return &http.Response{
		StatusCode: code, Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(strings.NewReader(body)), ContentLength: -1, Request: r,
	}
}

// remotes is a transport that stands for all remotes of a node. They behave well, except for the
// ones that the test replaces by a function.
type remotes struct {
	t    *testing.T
	view []string // the ids that the registry lists

	registry func(*http.Request) (int, string) // nil: lists the view
	tokens   func(*http.Request) (int, string)
	peer     func(*http.Request) (*http.Response, error) // nil: answers with its id
}

func (r *remotes) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		defer req.Body.Close()
	}
	switch req.URL.Host {
	case "mst.test":
		code, body := r.tokens(req)
		return newHTTPResponse(req, code, body), nil
	case "mit.test":
		if r.registry != nil {
			code, body := r.registry(req)
			return newHTTPResponse(req, code, body), nil
		}
		return newHTTPResponse(req, http.StatusOK, registrationResponse(time.Hour, r.view...)), nil
	}
	checkAllowed(r.t, req.URL)
	if r.peer != nil {
		return r.peer(req)
	}
	id, _, _ := strings.Cut(req.URL.Host, ".")
	return newHTTPResponse(req, http.StatusOK, fmt.Sprintf(`{"data":[%q],"server":{"serverId":%q}}`, id, id)), nil
}

// newRegisteredNode returns node-1, registered with r. The test may change r later.
func newRegisteredNode(t *testing.T, r *remotes, opts ...cluster.Option) *cluster.Cluster {
	t.Helper()
	r.t = t
	c := newNode(t, testConfig(), r, append([]cluster.Option{cluster.WithRetry(cluster.Retry{MaxRetries: -1})}, opts...)...)
	if _, err := c.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// rawServer calls respond for the requests on each connection to the address that it returns, n
// counting those on one connection from 1, until respond returns false.
func rawServer(t *testing.T, respond func(c net.Conn, r *http.Request, n int) bool) (address string) {
	t.Helper()
	return "http://" + rawServerOn(t, func(l net.Listener) net.Listener { return l }, respond)
}

// rawServerOn is rawServer with a wrapper of its listener. It returns the address without a scheme.
func rawServerOn(t *testing.T, wrap func(net.Listener) net.Listener, respond func(c net.Conn, r *http.Request, n int) bool) (address string) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l = wrap(l)
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer context.AfterFunc(t.Context(), func() { c.Close() })() // before the cleanup waits
				defer c.Close()
				in := bufio.NewReader(c)
				for n := 1; ; n++ {
					r, err := http.ReadRequest(in)
					if err != nil {
						return
					}
					_, _ = io.Copy(io.Discard, r.Body)
					if !respond(c, r, n) {
						return
					}
				}
			})
		}
	})
	return l.Addr().String()
}

// writeRaw writes a 200 response to a connection, and reports that the next request may follow.
func writeRaw(c net.Conn, body string) bool {
	_, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	return err == nil
}

// validStatus maps any number to a status from 200 to 599.
func validStatus(status uint16) int { return 200 + int(status-200)%400 }

// Requests to the peer endpoints of a node.

const itResources = "/mds/v1/itResources"

// serverPath is the path at which peers report the departure of a server.
func serverPath(id string) string {
	return itResources + "/" + mit.ResourceID("mds") + "/servers/" + id
}

// announce announces servers to n, as a peer does.
func announce(t *testing.T, w *clustertest.World, n *clustertest.Node, resource string) {
	t.Helper()
	sendToNode(t, w, n, http.MethodPost, itResources, resource)
}

// reportDeparture reports to n that a server has left, as a peer does.
func reportDeparture(t *testing.T, w *clustertest.World, n *clustertest.Node, id string) {
	t.Helper()
	sendToNode(t, w, n, http.MethodDelete, serverPath(id), "")
}

// sendToNode sends a request with a cluster token of the nodes' type. The status must be 200.
func sendToNode(t *testing.T, w *clustertest.World, n *clustertest.Node, method, path, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+n.Host+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.Token("mds", true))
	if r := roundTrip(t, w, req); r.Code != http.StatusOK {
		t.Fatalf("%s %s: %d: %s", method, path, r.Code, r.Body)
	}
}

// roundTrip sends a request over the network of a world, and reads the response.
func roundTrip(t *testing.T, w *clustertest.World, req *http.Request) reply {
	t.Helper()
	resp, err := w.Network.Transport("client").RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, string(b)}
}

// serve sends a request to a handler that is not on a network.
func serve(h http.Handler, req *http.Request) reply {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	return reply{rec.Code, rec.Header(), rec.Body.String()}
}

// An endpointTest sends requests to node-1 of a world of three nodes.
type endpointTest struct {
	*testing.T
	*clustertest.World
	send func(method, path, body string, authorizations ...string) reply
}

// testEndpoints runs a test of a node's endpoints twice: over the network, and without one.
func testEndpoints(t *testing.T, test func(endpointTest), opts ...clustertest.Option) {
	t.Helper()
	for _, way := range []string{"over the network", "without a network"} {
		t.Run(way, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 3, opts...)
				mux := http.NewServeMux()
				w.Nodes[0].Mount(mux)
				test(endpointTest{t, w, func(method, path, body string, authorizations ...string) reply {
					req, err := http.NewRequestWithContext(t.Context(), method, "http://"+w.Nodes[0].Host+path, strings.NewReader(body))
					if err != nil {
						t.Fatal(err)
					}
					req.Header["Authorization"] = authorizations
					if way == "without a network" {
						return serve(mux, req)
					}
					return roundTrip(t, w, req)
				}})
			})
		})
	}
}

// A reply is the response of an endpoint.
type reply struct {
	Code   int
	Header http.Header
	Body   string
}

// data returns the data of the envelope, which must name node-1.
func (r reply) data(t *testing.T) string {
	t.Helper()
	var envelope struct {
		Data   json.RawMessage
		Server struct{ ServerID string }
	}
	if err := json.Unmarshal([]byte(r.Body), &envelope); err != nil || r.Code != http.StatusOK || envelope.Server.ServerID != "node-1" {
		t.Fatalf("%d %s: no envelope of node-1: %v", r.Code, r.Body, err)
	}
	return string(envelope.Data)
}

// wantError checks the error envelope, and that its message contains the words.
func (r reply) wantError(t *testing.T, code int, words string) {
	t.Helper()
	var envelope struct {
		StatusCode     int
		Title, Message string
	}
	err := json.Unmarshal([]byte(r.Body), &envelope)
	if err != nil || r.Code != code || envelope.StatusCode != code || envelope.Title != http.StatusText(code) || !strings.Contains(envelope.Message, words) {
		t.Errorf("%d %s: want an error of %d with the words %q (%v)", r.Code, r.Body, code, words, err)
	}
	if got := r.Header.Get("Content-Type"); got != "application/json" {
		t.Errorf("content type %q", got)
	}
	if got := r.Header.Get("WWW-Authenticate"); (got == "Bearer") != (code == http.StatusUnauthorized) {
		t.Errorf("WWW-Authenticate %q with %d", got, code)
	}
}

// decode checks what holds for the replies of all endpoints to any request, and returns the data.
func (r reply) decode(t *testing.T) (data json.RawMessage) {
	t.Helper()
	var got struct {
		Data           json.RawMessage
		Server         struct{ ServerID string }
		StatusCode     int
		Title, Message string
	}
	if err := json.Unmarshal([]byte(r.Body), &got); err != nil {
		t.Fatalf("the reply is %q: %v", r.Body, err)
	}
	if contentType := r.Header.Get("Content-Type"); contentType != "application/json" {
		t.Errorf("content type %q", contentType)
	}
	if r.Header.Get("X-Correlation-Id") == "" {
		t.Error("no correlation id")
	}
	if r.Code == http.StatusOK {
		if got.Server.ServerID != "node-1" || got.Data == nil {
			t.Errorf("the reply is %s", r.Body)
		}
	} else if got.StatusCode != r.Code || got.Title != http.StatusText(r.Code) || got.Message == "" {
		t.Errorf("the reply is %d %s", r.Code, r.Body)
	}
	return got.Data
}

// A requestLog holds the exchanges of a world, in the order in which they ended.
type requestLog struct {
	mu        sync.Mutex // guards the field below
	exchanges []clustertest.Exchange
}

// recordRequests records all exchanges from now on.
func recordRequests(w *clustertest.World) *requestLog {
	requests := &requestLog{}
	w.Network.Observe(requests.record)
	return requests
}

func (l *requestLog) record(x clustertest.Exchange) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.exchanges = append(l.exchanges, x)
}

func (l *requestLog) filter(match func(clustertest.Exchange) bool) (found []clustertest.Exchange) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, x := range l.exchanges {
		if match(x) {
			found = append(found, x)
		}
	}
	return found
}

// matching returns the exchanges of one method between two hosts. Either host may be Any.
func (l *requestLog) matching(method, from, to string) []clustertest.Exchange {
	return l.filter(func(x clustertest.Exchange) bool {
		return x.Method == method && (from == clustertest.Any || x.From == from) && (to == clustertest.Any || x.To == to)
	})
}

// sentBy returns all exchanges that n began.
func (l *requestLog) sentBy(n *clustertest.Node) []clustertest.Exchange {
	return l.filter(func(x clustertest.Exchange) bool { return x.From == n.Host })
}

// renewals returns the registrations and renewals of n, including those that failed.
func (l *requestLog) renewals(n *clustertest.Node) []clustertest.Exchange {
	return l.matching(http.MethodPost, n.Host, clustertest.RegistryHost)
}

// deletes returns the conditional deletes and the deregistration that n sent to the registry.
func (l *requestLog) deletes(n *clustertest.Node) []clustertest.Exchange {
	return l.matching(http.MethodDelete, n.Host, clustertest.RegistryHost)
}

// epoch is the condition of a delete that looks an entry up.
const epoch = "@1970-01-01T00:00:00.000Z"

// conditions returns the ids and dates of the conditional deletes that n sent to the registry.
func (l *requestLog) conditions(n *clustertest.Node) (conditions []string) {
	for _, x := range l.deletes(n) {
		conditions = append(conditions, path.Base(x.Path))
	}
	return conditions
}

// tokenRequests returns the requests of n to the token service.
func (l *requestLog) tokenRequests(n *clustertest.Node) []clustertest.Exchange {
	return l.matching(http.MethodPost, n.Host, clustertest.TokenHost)
}

// announcements returns the announcements of n to one peer, or to all if to is Any.
func (l *requestLog) announcements(n *clustertest.Node, to string) []clustertest.Exchange {
	return slices.DeleteFunc(l.matching(http.MethodPost, n.Host, to), func(x clustertest.Exchange) bool { return x.Path != itResources })
}

// countToPeers returns the number of requests from n to its peers.
func (l *requestLog) countToPeers(n *clustertest.Node) int {
	return len(l.filter(func(x clustertest.Exchange) bool {
		return x.From == n.Host && x.To != clustertest.RegistryHost && x.To != clustertest.TokenHost
	}))
}

// intervals returns the times between the beginnings of exchanges.
func intervals(xs []clustertest.Exchange) []time.Duration {
	var between []time.Duration
	for i := range len(xs) - 1 {
		between = append(between, xs[i+1].Start.Sub(xs[i].Start))
	}
	return between
}

// A traceLog records what the hooks of one node report.
type traceLog struct {
	mu      sync.Mutex // guards the field below
	entries []traceEntry
}

type traceEntry struct {
	at     time.Time
	text   string
	status cluster.Status // if the state changed
}

func (l *traceLog) trace() *cluster.Trace {
	return &cluster.Trace{
		StateChanged: func(_ context.Context, from, to cluster.Status) {
			if to.Reason == nil {
				l.record(to, "%s→%s", from.State, to.State)
				return
			}
			l.record(to, "%s→%s: %v", from.State, to.State, to.Reason)
		},
		Renewal: func(ctx context.Context, _ cluster.RenewalInfo) (context.Context, func(cluster.RenewalResult)) {
			return ctx, func(r cluster.RenewalResult) {
				switch {
				case r.Err == nil:
					l.record(cluster.Status{}, "renewed for %v", r.Lease)
				case r.RetryIn > 0: // otherwise the node has ended the renewal itself
					l.record(cluster.Status{}, "failed: %v", r.Err)
				}
			}
		},
		TokenFetch: func(ctx context.Context, key cluster.TokenKey) (context.Context, func(error)) {
			return ctx, func(err error) { l.record(cluster.Status{}, "token for %s: %v", key.Audience, err) }
		},
	}
}

func (l *traceLog) record(status cluster.Status, format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, traceEntry{time.Now(), fmt.Sprintf(format, args...), status})
}

func (l *traceLog) snapshot() []traceEntry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.entries)
}

// changes returns the entries of changes to a state.
func (l *traceLog) changes(state cluster.State) []traceEntry {
	return slices.DeleteFunc(l.snapshot(), func(e traceEntry) bool { return e.status.State != state })
}

// texts returns the texts of all entries except those of tokens.
func (l *traceLog) texts() []string {
	var texts []string
	for _, e := range l.snapshot() {
		if !strings.HasPrefix(e.text, "token ") {
			texts = append(texts, e.text)
		}
	}
	return texts
}

// states returns the changes of state without their reasons.
func (l *traceLog) states() []string {
	var texts []string
	for _, e := range l.snapshot() {
		if e.status.State != "" {
			text, _, _ := strings.Cut(e.text, ":")
			texts = append(texts, text)
		}
	}
	return texts
}

// first returns the entry of the first change to a state.
func (l *traceLog) first(t *testing.T, state cluster.State) traceEntry {
	t.Helper()
	changes := l.changes(state)
	if len(changes) == 0 {
		t.Fatalf("never %s: %q", state, l.texts())
	}
	return changes[0]
}

// onRenewal calls hook at the end of each renewal.
func onRenewal(hook func(cluster.RenewalResult)) cluster.Option {
	return cluster.WithTrace(&cluster.Trace{
		Renewal: func(ctx context.Context, _ cluster.RenewalInfo) (context.Context, func(cluster.RenewalResult)) {
			return ctx, hook
		},
	})
}

// onRenewalFailure calls hook with the error of each renewal that fails and is to be retried.
func onRenewalFailure(hook func(error)) cluster.Option {
	return onRenewal(func(r cluster.RenewalResult) {
		if r.RetryIn > 0 {
			hook(r.Err)
		}
	})
}
