package cluster_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"github.com/google/go-cmp/cmp"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/mit"
)

func noEviction() clustertest.Option {
	return clustertest.WithOptions(cluster.WithEviction(cluster.Eviction{Disabled: true}))
}

func onlyIDs(ids ...string) func(cluster.Server) bool {
	return func(s cluster.Server) bool { return slices.Contains(ids, s.ServerID) }
}

// wrong gives what an error of ConfigFromEnv or New names, in its order.
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

// config is that of a node which the tests of this package give their own party to speak to.
func testConfig() cluster.Config {
	return cluster.Config{
		Type: "mds", ID: "node-1", Port: 8080, LocalIPv4: "10.0.0.7", Management: true,
		RegistryURL: "http://mit.test/mIT/v1", RegistryAudience: "mit", PeerAudience: "peers",
		Issuer: "http://mst.test/oauth/token", ClientID: "id", ClientSecret: "hidden client secret",
		ClientAccessKey: "hidden access key", ClientAudience: "peers",
	}
}

// newNode makes a node that has tokens, believes everybody, and speaks to rt.
func newNode(t *testing.T, cfg cluster.Config, rt http.RoundTripper, opts ...cluster.Option) *cluster.Cluster {
	t.Helper()
	c, err := cluster.New(cfg, append([]cluster.Option{
		cluster.WithHTTPClient(&http.Client{Transport: rt}), cluster.WithoutEnv(), cluster.WithVerifier(acceptAll{}),
		cluster.WithTokens(func(k cluster.TokenKey) oauth2.TokenSource {
			return oauth2.StaticTokenSource(&oauth2.Token{AccessToken: "hidden-token-for-" + k.Audience})
		}),
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// everybody takes any token for that of a peer.
type acceptAll struct{}

func (acceptAll) Verify(context.Context, string) (cluster.Claims, error) {
	return cluster.Claims{Type: "cluster", SubType: "mds"}, nil
}

// registration is mIT's answer to one: these servers, at addresses by their names.
func registrationResponse(lease time.Duration, ids ...string) string {
	return fmt.Sprintf(`{"itResource":%s,"leaseTime":%d}`, testResource(ids...), lease.Milliseconds())
}

func testResource(ids ...string) string {
	servers := make([]string, len(ids))
	for i, id := range ids {
		servers[i] = fmt.Sprintf(`{"serverId":%q,"clusterBaseUrl":"http://%s.test:8080/mds/v1","updatedAt":"2020-01-01T00:00:00.000Z"}`, id, id)
	}
	return `{"id":"it","publicBaseUrl":"http://mds.test","servers":[` + strings.Join(servers, ",") + `]}`
}

// stub is a client whose requests are answered with a status and a body.
func stubClient(respond func(*http.Request) (int, string)) *http.Client {
	return &http.Client{Transport: clustertest.RoundTripperFunc(func(r *http.Request) (*http.Response, error) {
		if r.Body != nil {
			defer r.Body.Close()
		}
		status, body := respond(r)
		return newHTTPResponse(r, status, body), nil
	})}
}

func newHTTPResponse(r *http.Request, status int, body string) *http.Response {
	return &http.Response{
		StatusCode: status, Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(strings.NewReader(body)), ContentLength: -1, Request: r,
	}
}

// startRenewed starts a world whose first node has all its peers from mIT, and not only from
// themselves: what they announce it does not take for true enough to have one of them deleted.
func startVerified(t *testing.T, nodes int, opts ...clustertest.Option) *clustertest.World {
	t.Helper()
	w := clustertest.Start(t, nodes, opts...)
	if _, err := w.Nodes[0].Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w
}

// unnoticed has a peer renew without n hearing of it, so that mIT's entry is newer than n's.
func renewUnnoticed(t *testing.T, w *clustertest.World, n, peer *clustertest.Node) {
	t.Helper()
	w.Network.Fault(peer.Host, n.Host, clustertest.Status(http.StatusServiceUnavailable)) // an answer: n is no suspect
	defer w.Network.Fault(peer.Host, n.Host, nil)
	if _, err := peer.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// deletes limits a fault to DELETE requests: to dated deletes, at the registry.
func onDelete(f clustertest.Fault) clustertest.Fault {
	return clustertest.If(func(r *http.Request) bool { return r.Method == http.MethodDelete }, f)
}

// The targets below put one hostile party before a node, and good ones in the place of all others.

// others is everybody that a node speaks to, as good as they can be but for what a target says.
type remotes struct {
	t    *testing.T
	view []string // who is in the cluster, as mIT has it

	registry func(*http.Request) (int, string) // nil: good
	tokens   func(*http.Request) (int, string)
	peer     func(*http.Request) (*http.Response, error)
}

func (o *remotes) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		defer r.Body.Close()
	}
	switch r.URL.Host {
	case "mst.test":
		status, body := o.tokens(r)
		return newHTTPResponse(r, status, body), nil
	case "mit.test":
		if o.registry != nil {
			status, body := o.registry(r)
			return newHTTPResponse(r, status, body), nil
		}
		return newHTTPResponse(r, http.StatusOK, registrationResponse(time.Hour, o.view...)), nil
	}
	checkAllowed(o.t, r.URL)
	if o.peer != nil {
		return o.peer(r)
	}
	id, _, _ := strings.Cut(r.URL.Host, ".")
	return newHTTPResponse(r, http.StatusOK, fmt.Sprintf(`{"data":[%q],"server":{"serverId":%q}}`, id, id)), nil
}

// mustBeAllowed holds a URL that was called, or is to be, against what the policy for peers promises.
func checkAllowed(t *testing.T, u *url.URL) {
	t.Helper()
	if u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.Hostname() == "" || u.Opaque != "" {
		t.Errorf("not to be called: %q", u)
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil {
		if ip = ip.Unmap(); ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsUnspecified() {
			t.Errorf("not to be called: %q", u)
		}
	}
}

// mustHoldView checks what holds for the view of node-1 whatever it was told.
func checkView(t *testing.T, c *cluster.Cluster) (ids []string) {
	t.Helper()
	for _, s := range c.Servers() {
		ids = append(ids, s.ServerID)
	}
	if !slices.IsSorted(ids) || len(slices.Compact(slices.Clone(ids))) != len(ids) {
		t.Errorf("the view is not sorted, or has somebody twice: %q", ids)
	}
	if !slices.Contains(ids, "node-1") {
		t.Errorf("the node is not in its own view: %q", ids)
	}
	if s := c.Status(); s.Servers != len(ids) {
		t.Errorf("status says %d servers, there are %d", s.Servers, len(ids))
	}
	return ids
}

// mustBeDiscreet checks that an error says nothing that it should keep to itself.
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

// newMember is node-1 of a cluster of these nodes, registered. Whoever is asked later is told by changing o.
func newRegisteredNode(t *testing.T, o *remotes, opts ...cluster.Option) *cluster.Cluster {
	t.Helper()
	o.t = t
	c := newNode(t, testConfig(), o, append([]cluster.Option{cluster.WithRetry(cluster.Retry{MaxRetries: -1})}, opts...)...)
	if _, err := c.Register(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

// mustAnswer gives the data of an endpoint's answer, checked for what holds for all of them.
func decodeReply(t *testing.T, w *httptest.ResponseRecorder) (data json.RawMessage) {
	t.Helper()
	var got struct {
		Data           json.RawMessage
		Server         struct{ ServerID string }
		StatusCode     int
		Title, Message string
	}
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
		t.Fatalf("answered %q: %v", w.Body, err)
	}
	if ct := w.Header().Get("Content-Type"); ct != "application/json" {
		t.Errorf("content type %q", ct)
	}
	if w.Header().Get("X-Correlation-Id") == "" {
		t.Error("no correlation id")
	}
	if w.Code == http.StatusOK {
		if got.Server.ServerID != "node-1" || got.Data == nil {
			t.Errorf("answered %s", w.Body)
		}
	} else if got.StatusCode != w.Code || got.Title != http.StatusText(w.Code) || got.Message == "" {
		t.Errorf("answered %d %s", w.Code, w.Body)
	}
	return got.Data
}

// valid makes a status of any number.
func validStatus(status uint16) int { return 200 + int(status-200)%400 }

func mustParse(t *testing.T, address string) *url.URL {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func mustMarshal(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const itResources = "/mds/v1/itResources"

// A reply is what an endpoint answered.
type reply struct {
	Code   int
	Header http.Header
	Body   string
}

// data is that of the envelope, which must name node-1.
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

// refused checks the envelope of an error, and that its message has these words.
func (r reply) wantError(t *testing.T, code int, words string) {
	t.Helper()
	var envelope struct {
		StatusCode     int
		Title, Message string
	}
	err := json.Unmarshal([]byte(r.Body), &envelope)
	if err != nil || r.Code != code || envelope.StatusCode != code || envelope.Title != http.StatusText(code) || !strings.Contains(envelope.Message, words) {
		t.Errorf("%d %s: want an error of %d that says %q (%v)", r.Code, r.Body, code, words, err)
	}
	if got := r.Header.Get("Content-Type"); got != "application/json" {
		t.Errorf("content type %q", got)
	}
	if got := r.Header.Get("WWW-Authenticate"); (got == "Bearer") != (code == http.StatusUnauthorized) {
		t.Errorf("WWW-Authenticate %q with %d", got, code)
	}
}

// exchange sends a request over the network of a world, and reads the answer.
func roundTrip(t *testing.T, w *clustertest.World, req *http.Request) reply {
	t.Helper()
	resp, err := w.Network.Transport("somebody").RoundTrip(req)
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

// A sender sends node-1 a request with these authorizations.
type sendFunc func(method, path, body string, authorizations ...string) reply

// A visit is a test that sends requests to node-1 of a world of three nodes.
type endpointTest struct {
	*testing.T
	*clustertest.World
	send sendFunc
}

// bothWays tests the endpoints of a node: over the network, and behind a recorder.
func testEndpoints(t *testing.T, f func(endpointTest), opts ...clustertest.Option) {
	t.Helper()
	for _, way := range []string{"over the network", "behind a recorder"} {
		t.Run(way, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := clustertest.Start(t, 3, opts...)
				mux := http.NewServeMux()
				w.Nodes[0].Mount(mux)
				f(endpointTest{t, w, func(method, path, body string, authorizations ...string) reply {
					req, err := http.NewRequestWithContext(t.Context(), method, "http://"+w.Nodes[0].Host+path, strings.NewReader(body))
					if err != nil {
						t.Fatal(err)
					}
					req.Header["Authorization"] = authorizations
					if way == "behind a recorder" {
						rec := httptest.NewRecorder()
						mux.ServeHTTP(rec, req)
						return reply{rec.Code, rec.Header(), rec.Body.String()}
					}
					return roundTrip(t, w, req)
				}})
			})
		})
	}
}

// A diary is what the hooks of one node told, in order.
type traceLog struct {
	mu      sync.Mutex
	entries []traceEntry
}

func (d *traceLog) record(to cluster.Status, format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.entries = append(d.entries, traceEntry{time.Now(), fmt.Sprintf(format, args...), to})
}

func (d *traceLog) trace() *cluster.Trace {
	return &cluster.Trace{
		StateChanged: func(from, to cluster.Status) {
			if to.Reason == nil {
				d.record(to, "%s→%s", from.State, to.State)
				return
			}
			d.record(to, "%s→%s: %v", from.State, to.State, to.Reason)
		},
		Renewed:     func(lease, _ time.Duration) { d.record(cluster.Status{}, "renewed for %v", lease) },
		RenewFailed: func(err error, _ time.Duration) { d.record(cluster.Status{}, "failed: %v", err) },
		Evicted:     func(s cluster.Server) { d.record(cluster.Status{}, "evicted %s", s.ServerID) },
		TokenFetched: func(key cluster.TokenKey, err error) {
			d.record(cluster.Status{}, "token for %s: %v", key.Audience, err)
		},
	}
}

func (d *traceLog) snapshot() []traceEntry {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.entries)
}

// all is what was told, tokens apart.
func (d *traceLog) texts() []string {
	var texts []string
	for _, e := range d.snapshot() {
		if !strings.HasPrefix(e.text, "token ") {
			texts = append(texts, e.text)
		}
	}
	return texts
}

// states are the changes of state, without their reasons.
func (d *traceLog) states() []string {
	var texts []string
	for _, e := range d.snapshot() {
		if e.status.State != "" {
			text, _, _ := strings.Cut(e.text, ":")
			texts = append(texts, text)
		}
	}
	return texts
}

// when finds the first change to a state.
func (d *traceLog) first(t *testing.T, state cluster.State) traceEntry {
	t.Helper()
	for _, e := range d.snapshot() {
		if e.status.State == state {
			return e
		}
	}
	t.Fatalf("never %s: %q", state, d.texts())
	return traceEntry{}
}

type traceEntry struct {
	at     time.Time
	text   string
	status cluster.Status // of a new state
}

func answerBody(body string) clustertest.Fault { return answerStatus(http.StatusOK, body) }

func answerStatus(code int, body string) clustertest.Fault {
	return clustertest.Answer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}))
}

// resourceOf is an itResource of the nodes' type as JSON. An entry has the date given, in
// the wire's spelling; none if it is empty.
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
	b, _ := json.Marshal(map[string]any{"id": mit.ResourceID("mds"), "publicBaseUrl": "http://x/mds/v1", "servers": servers}) // nothing in it can fail
	return string(b)
}

// endless is an answer without end, or of a length declared beforehand.
func endless(declared bool) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if declared {
			w.Header().Set("Content-Length", "1048577")
		}
		line := []byte(strings.Repeat(" ", 1<<16-1) + "\n")
		for {
			if _, err := w.Write(line); err != nil {
				return
			}
		}
	}
}

func announcement(ids ...string) string { return resourceWithDate("2000-01-01T00:00:00.000Z", ids...) }

// announce tells n of servers, as a peer does.
func announce(t *testing.T, w *clustertest.World, n *clustertest.Node, resource string) {
	t.Helper()
	sendToNode(t, w, n, http.MethodPost, "/mds/v1/itResources", resource)
}

func sendToNode(t *testing.T, w *clustertest.World, n *clustertest.Node, method, path, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+n.Host+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.Token("mds", true))
	resp, err := w.Network.Client("somebody").Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s: %s", method, path, resp.Status, b)
	}
}

func prefixes(texts ...string) (all []netip.Prefix) {
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// A ledger holds the exchanges of a world, in the order in which they ended.
type requestLog struct {
	mu        sync.Mutex
	exchanges []clustertest.Exchange
}

// of are the exchanges of one method between two hosts, either of which may be Any.
func (l *requestLog) matching(method, from, to string) []clustertest.Exchange {
	l.mu.Lock()
	defer l.mu.Unlock()
	var found []clustertest.Exchange
	for _, x := range l.exchanges {
		if x.Method == method && (from == clustertest.Any || x.From == from) && (to == clustertest.Any || x.To == to) {
			found = append(found, x)
		}
	}
	return found
}

// renewals are the registrations and renewals that n sent, in whatever way they ended.
func (l *requestLog) renewals(n *clustertest.Node) []clustertest.Exchange {
	return l.matching(http.MethodPost, n.Host, clustertest.RegistryHost)
}

// announcements are what n told one peer, or all.
func (l *requestLog) announcements(n *clustertest.Node, to string) []clustertest.Exchange {
	var found []clustertest.Exchange
	for _, x := range l.matching(http.MethodPost, n.Host, to) {
		if x.Path == "/mds/v1/itResources" {
			found = append(found, x)
		}
	}
	return found
}

// toPeers counts what a node sent to anybody but the back end.
func (l *requestLog) countToPeers(n *clustertest.Node) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	count := 0
	for _, x := range l.exchanges {
		if x.From == n.Host && x.To != clustertest.RegistryHost && x.To != clustertest.TokenHost {
			count++
		}
	}
	return count
}

// tries are what n asked the replicas with that method, in the order in which it did, and how long
// that took in all.
func (l *requestLog) attempts(method string, n *clustertest.Node) (tries []attempt, took time.Duration) {
	var began time.Time
	for _, x := range l.matching(method, n.Host, clustertest.Any) {
		if slices.Contains(replicaHosts(), x.To) {
			if tries == nil {
				began = x.Start
			}
			tries, took = append(tries, attempt{x.To, x.Status}), x.Start.Add(x.Duration).Sub(began)
		}
	}
	return tries, took
}

// by are all exchanges that a node began.
func (l *requestLog) sentBy(n *clustertest.Node) (found []clustertest.Exchange) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, x := range l.exchanges {
		if x.From == n.Host {
			found = append(found, x)
		}
	}
	return found
}

func recordRequests(w *clustertest.World) *requestLog {
	l := &requestLog{}
	w.Network.Observe(func(x clustertest.Exchange) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.exchanges = append(l.exchanges, x)
	})
	return l
}

// gaps are the times between the beginnings of exchanges.
func intervals(xs []clustertest.Exchange) []time.Duration {
	var between []time.Duration
	for i := range len(xs) - 1 {
		between = append(between, xs[i+1].Start.Sub(xs[i].Start))
	}
	return between
}

// registering begins to register n, and gives the error that comes of it.
func registerAsync(ctx context.Context, n *clustertest.Node) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := n.Register(ctx)
		done <- err
	}()
	return done
}

// goroutines counts those of the bubble that the test runs in.
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

// wantState checks the state of a node, and that it has a reason if and only if it is not well.
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

func ids(servers []cluster.Server) []string {
	var ids []string
	for _, s := range servers {
		ids = append(ids, s.ServerID)
	}
	return ids
}

func wantView(t *testing.T, n *clustertest.Node, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, ids(n.Servers())); diff != "" {
		t.Errorf("the view of %s (-want +got):\n%s", n.ID, diff)
	}
	if got := n.Status().Servers; got != len(want) {
		t.Errorf("the status of %s counts %d servers, want %d", n.ID, got, len(want))
	}
}

// posts limits a fault to POST requests: to registering and renewing, at the registry.
func onPost(f clustertest.Fault) clustertest.Fault {
	return clustertest.If(func(r *http.Request) bool { return r.Method == http.MethodPost }, f)
}

// late has answers come a while after they were given: what they say is old by then.
func delayResponse(d time.Duration) clustertest.Fault {
	return func(next http.RoundTripper) http.RoundTripper {
		return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
			resp, err := next.RoundTrip(req)
			time.Sleep(d)
			return resp, err
		})
	}
}

// telling sends into arrived when a request meets f.
func signal(arrived chan<- struct{}, f clustertest.Fault) clustertest.Fault {
	return func(next http.RoundTripper) http.RoundTripper {
		faulty := f(next)
		return clustertest.RoundTripperFunc(func(req *http.Request) (*http.Response, error) {
			select {
			case arrived <- struct{}{}:
			default: // it was told
			}
			return faulty.RoundTrip(req)
		})
	}
}

func registryDown(w *clustertest.World) { w.Network.Down(clustertest.RegistryHost) }

func registryUp(w *clustertest.World) { w.Network.Up(clustertest.RegistryHost) }

// registryFault puts f in the way of everything that is sent to the registry.
func registryFault(w *clustertest.World, f clustertest.Fault) {
	w.Network.Fault(clustertest.Any, clustertest.RegistryHost, f)
}

func withTimeout(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// replicaHosts are where the replicas of the registry are in these tests.
func replicaHosts() []string { return []string{"mit-1.test", "mit-2.test", "mit-3.test"} }

// replicaURLs are their URLs, as Config lists them.
func replicaURLs() string {
	return "http://" + strings.Join(replicaHosts(), "/mIT/v1, http://") + "/mIT/v1"
}

// startReplicas starts a world in which one registry is at several hosts.
func startReplicas(t *testing.T, nodes int, opts ...clustertest.Option) *clustertest.World {
	t.Helper()
	w := clustertest.Start(t, 0, append([]clustertest.Option{
		clustertest.WithConfig(func(cfg *cluster.Config) { cfg.RegistryURL = replicaURLs() }),
	}, opts...)...)
	w.Network.Remove(clustertest.RegistryHost)
	for _, host := range replicaHosts() {
		w.Network.Handle(host, w.Registry)
	}
	for range nodes {
		w.Join()
	}
	return w
}

// A try is a request to a replica, and the status of the answer, 0 if none came.
type attempt struct {
	host   string
	status int
}

// badCertificate is what TLS says of somebody whose certificate does not hold.
func badCertificate(http.RoundTripper) http.RoundTripper {
	return clustertest.RoundTripperFunc(func(*http.Request) (*http.Response, error) {
		return nil, &tls.CertificateVerificationError{Err: errors.New("x509: certificate has expired")}
	})
}

// rpc has a node ask its peers what is a proper request.
func rpc(t *testing.T, n *clustertest.Node, req cluster.Request) *cluster.Response {
	t.Helper()
	res, err := n.RPCluster(t.Context(), req)
	if err != nil {
		t.Errorf("RPCluster: %v", err)
		return &cluster.Response{}
	}
	return res
}

// onlyFailure is the one failure that there must be.
func singleFailure(t *testing.T, res *cluster.Response) cluster.Outcome {
	t.Helper()
	if len(res.Failures) != 1 {
		t.Errorf("%d failures, want one: %v", len(res.Failures), failures(res))
		return cluster.Outcome{}
	}
	return res.Failures[0]
}

// once says what is wrong with a response to a call that asked the given nodes.
func outcomeProblems(res *cluster.Response, asked []*clustertest.Node) (problems []string) {
	times := map[string]int{}
	for _, o := range res.Results {
		times[o.Server.ServerID]++
		if o.Err != nil || o.Kind != cluster.KindOK {
			problems = append(problems, fmt.Sprintf("%s is a result with %s, %v", o.Server.ServerID, o.Kind, o.Err))
		}
	}
	for _, o := range res.Failures {
		times[o.Server.ServerID]++
		if o.Err == nil || o.Kind == cluster.KindOK || o.Kind == "" {
			problems = append(problems, fmt.Sprintf("%s is a failure without a reason: kind %q, %v", o.Server.ServerID, o.Kind, o.Err))
		}
	}
	for _, n := range asked {
		if times[n.ID] != 1 {
			problems = append(problems, fmt.Sprintf("%s is there %d times", n.ID, times[n.ID]))
		}
	}
	if len(times) != len(asked) {
		problems = append(problems, fmt.Sprintf("%d peers were asked, %d answer", len(asked), len(times)))
	}
	for _, list := range [][]cluster.Outcome{res.Results, res.Failures} {
		if !slices.IsSorted(idsOfOutcomes(list)) {
			problems = append(problems, fmt.Sprintf("not in the order of the servers: %v", idsOfOutcomes(list)))
		}
	}
	return problems
}

func wantOneOutcomeEach(t *testing.T, res *cluster.Response, asked []*clustertest.Node) {
	t.Helper()
	for _, problem := range outcomeProblems(res, asked) {
		t.Error(problem)
	}
}

func failures(res *cluster.Response) (errs []error) {
	for _, o := range res.Failures {
		errs = append(errs, o.Err)
	}
	return errs
}

func marshal(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// answering answers with a body, whatever it is asked.
func respond(body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, body)
	})
}

func status(code int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) })
}

// anyMethod serves the node's id by whatever method.
func anyMethod(n *clustertest.Node) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { n.Reply(w, r, []string{n.ID}) })
}

// A list is a store that answers every registration with the same servers, for clusters larger
// than those that a test can run.
type fixedStore struct {
	*mit.Memory

	mu      sync.Mutex // guards the field below
	servers []cluster.Server
}

func (l *fixedStore) set(servers []cluster.Server) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.servers = servers
}

func (l *fixedStore) Put(_ context.Context, reg mit.Registration, _ time.Duration) (mit.Resource, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return mit.Resource{
		ID: mit.ResourceID(reg.Type), Type: reg.Type, PublicBaseURL: reg.PublicBaseURL, Servers: slices.Clone(l.servers),
	}, nil
}

// someServers are count servers from the given one on, and node-1, as a registry would list them.
func fixedServers(from, count int) []cluster.Server {
	date := time.Now().UTC().Truncate(time.Millisecond)
	servers := []cluster.Server{{ServerID: "node-1", ClusterBaseURL: "http://node-1:8080/mds/v1", CreatedAt: date, UpdatedAt: date}}
	for i := range count {
		id := fmt.Sprintf("peer-%04d-4f1c-4a56-9a3b-0d5f6c7e8a9b", from+i) // as long as a UUID
		servers = append(servers, cluster.Server{
			ServerID:       id,
			ClusterBaseURL: "http://" + id + ":8080/mds/v1",
			Location:       json.RawMessage(`{"type":"Point","coordinates":[-123.1207,49.2827]}`),
			CreatedAt:      date,
			UpdatedAt:      date,
		})
	}
	return servers
}

// worldOf makes a world in which one node, node-1, can join those servers, which take their time to
// answer.
func startFixed(t testing.TB, store *fixedStore, slow time.Duration, opts ...clustertest.Option) *clustertest.World {
	t.Helper()
	w := clustertest.Start(t, 0, append(opts, clustertest.WithStore(store))...)
	for _, s := range store.servers[1:] {
		envelope := fmt.Appendf(nil, `{"data":[%q],"server":{"serverId":%[1]q}}`, s.ServerID)
		w.Network.Handle(s.ServerID+":8080", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(slow)
			_, _ = w.Write(envelope)
		}))
	}
	return w
}

func idsOf(servers []cluster.Server) []string {
	ids := make([]string, len(servers))
	for i, server := range servers {
		ids[i] = server.ServerID
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

// send is a request with a cluster token of the nodes' own type, which must be answered 200.
func send(t *testing.T, w *clustertest.World, to *clustertest.Node, method, path, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+to.Host+to.Config().BasePath+path, bytes.NewBufferString(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+w.Token("mds", true))
	resp, err := w.Network.Client("somebody").Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s", method, path, resp.Status)
	}
}

// settle gives a node the time to renew when it is hurried.
func settle(n *clustertest.Node) {
	time.Sleep(n.Config().RegistrationRetry)
	synctest.Wait()
}
