package statuspage_test

import (
	"context"
	"encoding/json"
	"html"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/internal/statuspage"
	"github.com/mimiktech/cluster/mit"
)

// A site has the status pages of the nodes of a world.
type site struct {
	*clustertest.World
	t     *testing.T
	pages []http.Handler // of each node
}

func newSite(t *testing.T, opts ...clustertest.Option) *site {
	t.Helper()
	return &site{World: clustertest.Start(t, 0, opts...), t: t}
}

// start adds a node with a status page. It does not register it.
func (s *site) start(opts ...cluster.Option) *clustertest.Node {
	s.t.Helper()
	n := s.Add(opts...)
	s.pages = append(s.pages, n.StatusHandler(cluster.StatusOptions{Actions: true, Auth: func(h http.Handler) http.Handler { return h }}))
	return n
}

func (s *site) join(opts ...cluster.Option) *clustertest.Node {
	s.t.Helper()
	n := s.start(opts...)
	if _, err := n.Register(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	return n
}

func (s *site) request(node int, method, target string, header ...string) *httptest.ResponseRecorder {
	s.t.Helper()
	r := httptest.NewRequest(method, target, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	s.pages[node].ServeHTTP(w, r)
	return w
}

// text returns what a reader sees on the page of a node.
func (s *site) text(node int) string {
	s.t.Helper()
	got := s.request(node, "GET", "/status")
	if got.Code != http.StatusOK {
		s.t.Fatalf("status %d: %s", got.Code, got.Body)
	}
	return visibleText(got.Body.String())
}

var (
	hidden = regexp.MustCompile(`(?s)<style>.*?</style>`)
	tags   = regexp.MustCompile(`<[^>]*>`)
	spaces = regexp.MustCompile(`\s+`)
)

func visibleText(page string) string {
	return spaces.ReplaceAllString(html.UnescapeString(tags.ReplaceAllString(hidden.ReplaceAllString(page, ""), " ")), " ")
}

func (s *site) page(node int) (page statuspage.Page) {
	s.t.Helper()
	var raw struct {
		Findings []statuspage.Finding
		Events   []statuspage.Event
	}
	got := s.request(node, "GET", "/status?format=json")
	if err := json.Unmarshal(got.Body.Bytes(), &raw); err != nil {
		s.t.Fatalf("%v in %s", err, got.Body)
	}
	page.Findings, page.Events = raw.Findings, raw.Events
	return page
}

// finds checks that the page of a node has a finding with a title and a cause, and shows both.
func (s *site) finds(node int, title, cause string) {
	s.t.Helper()
	page := s.page(node)
	if !slices.ContainsFunc(page.Findings, func(f statuspage.Finding) bool {
		return strings.Contains(f.Title, title) && strings.Contains(f.Cause+f.Remedy, cause)
	}) {
		s.t.Errorf("the page of node-%d has the findings %+v, want %q with %q", node+1, page.Findings, title, cause)
	}
	text := s.text(node)
	for _, want := range []string{title, cause} {
		if !strings.Contains(text, want) {
			s.t.Errorf("the page of node-%d does not say %q:\n%s", node+1, want, text)
		}
	}
}

// calls makes a call of a node to its peers.
func (s *site) calls(node int) {
	s.t.Helper()
	if _, err := s.Nodes[node].RPCluster(s.t.Context(), cluster.Request{Path: "/things"}); err != nil {
		s.t.Fatal(err)
	}
}

// A node without a fault has no findings, so that each finding below is about the fault.
func TestNoFindingsWithoutFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		for range 3 {
			s.join()
		}
		time.Sleep(3 * time.Hour)
		for i := range s.Nodes {
			s.calls(i)
			s.request(i, "POST", "/status")
		}
		for i := range s.Nodes {
			if page := s.page(i); len(page.Findings) != 0 {
				t.Errorf("node-%d has the findings %+v", i+1, page.Findings)
			}
			if text := s.text(i); !strings.Contains(text, "No problem found") || !strings.Contains(text, "all 3") {
				t.Errorf("the page of node-%d: %s", i+1, text)
			}
		}
	})
}

func TestPageNamesWrongAudience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, clustertest.WithConfig(func(cfg *cluster.Config) {
			if cfg.ID == "node-3" {
				cfg.ClientAudience = "https://other.test"
			}
		}))
		for range 4 {
			s.join()
		}
		s.calls(0)
		s.finds(0, "node-3: rejects the token of this node (wrong audience)", "MDS_AUDIENCE of this node with OAUTH_GENERIC_AUDIENCE")
		s.finds(2, "This node rejects the tokens of all its callers (wrong audience)", "The fault is likely on this node")
	})
}

// A node whose own tokens have the wrong audience is rejected by the registry.
func TestPageNamesWrongAudienceAtRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, clustertest.WithConfig(func(cfg *cluster.Config) {
			if cfg.ID == "node-2" {
				cfg.RegistryAudience = "https://other.test"
			}
		}))
		s.join()
		n := s.start()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := n.Register(ctx); err == nil {
			t.Fatal("registered")
		}
		s.finds(1, "This node is not registered: the registry rejects its token (most likely a wrong audience)", "MIT_AUDIENCE of this node")
	})
}

func TestPageNamesEndpointsNotMounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.join()
		n := s.start()
		mux := http.NewServeMux()
		mux.Handle("GET /mds/v1/things", n.Authenticate(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { n.Reply(w, r, nil) })))
		s.Network.Handle(n.Host, mux)
		if _, err := n.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.join()
		if _, err := s.Nodes[0].Register(t.Context()); err != nil { // which announces it again
			t.Fatal(err)
		}
		s.calls(0) // a call that succeeds does not hide the problem
		for _, node := range []int{0, 2} {
			s.finds(node, "node-2: its peer endpoints are not mounted", "Call Mount (or register Routes)")
		}
		if len(s.page(0).Findings) != 1 {
			t.Errorf("the page has the findings %+v, want one", s.page(0).Findings)
		}
	})
}

// Requests from node-1 to node-3 are dropped. All other directions work.
func TestPageNamesOneWayFirewall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		for range 4 {
			s.join()
		}
		s.Network.Fault(s.Nodes[0].Host, s.Nodes[2].Host, clustertest.Hang)
		if _, err := s.Nodes[0].Register(t.Context()); err != nil { // as if it came a while later
			t.Fatal(err)
		}
		for range 20 {
			time.Sleep(time.Minute)
			s.calls(0)
			s.calls(2)
			if _, err := s.Nodes[2].Register(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		s.calls(0)
		s.finds(0, "node-3: is running, but this node gets no response from it", "Either a firewall blocks this direction, or the process accepts connections, but hangs.")
	})
}

// A connection that cannot be established tells a firewall from a process that hangs.
func TestPageNamesFirewallThatDropsConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		for range 4 {
			s.join()
		}
		s.calls(2) // which node-1 receives
		s.Network.Fault(s.Nodes[0].Host, s.Nodes[2].Host, clustertest.FailDial(syscall.ETIMEDOUT))
		s.calls(0)
		s.finds(0, "node-3 is missing: this node evicted it, but it was running", "a firewall blocks this direction")
		if _, err := s.Nodes[2].Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if _, err := s.Nodes[2].Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			s.calls(0)
			time.Sleep(time.Second)
			if _, err := s.Nodes[0].Register(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Nodes[2].Register(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		s.finds(0, "node-3: is running, but this node cannot connect to it: a firewall blocks this direction", "Requests from its host arrive here")
	})
}

// The node to which the direction is blocked sees on its own page that others do not reach it.
func TestPageOfUnreachableNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		for range 4 {
			s.join()
		}
		for _, from := range []int{0, 1} {
			s.Network.Fault(s.Nodes[from].Host, s.Nodes[2].Host, clustertest.Refuse)
		}
		if _, err := s.Nodes[0].Register(t.Context()); err != nil { // the entries are then confirmed
			t.Fatal(err)
		}
		s.calls(0)
		time.Sleep(time.Minute)
		if _, err := s.Nodes[2].Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.finds(2, "Another server had this node removed, because it could not reach it", "A firewall may block this direction")
	})
}

func TestPageNamesWrongClockOfNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		s.Network.Fault("node-2:8080", clustertest.RegistryHost, func(next http.RoundTripper) http.RoundTripper {
			return clustertest.RoundTripperFunc(func(r *http.Request) (*http.Response, error) {
				resp, err := next.RoundTrip(r)
				if err == nil { // the clock of the registry, as a node sees it that is two hours ahead
					resp.Header.Set("Date", time.Now().Add(-2*time.Hour).UTC().Format(http.TimeFormat))
				}
				return resp, err
			})
		})
		s.join()
		s.join(cluster.WithVerifier(clockVerifier{time.Now().Add(25 * time.Hour)}))
		s.join()
		s.calls(0)
		s.finds(1, "Wrong clock: this node is 1 h 59 min ahead of the registry", "by NTP")
		s.finds(0, "node-2: rejects the token of this node (wrong clock)", "check that of the peer first")
	})
}

// A clockVerifier checks the times of tokens at the given time, and nothing else.
type clockVerifier struct{ now time.Time }

func (v clockVerifier) Verify(_ context.Context, text string) (cluster.Claims, error) {
	claims := jwt.MapClaims{}
	if _, _, err := jwt.NewParser().ParseUnverified(text, claims); err != nil {
		return cluster.Claims{}, err
	}
	err := jwt.NewValidator(jwt.WithTimeFunc(func() time.Time { return v.now })).Validate(claims)
	return cluster.Claims{SubType: "mds", Type: "cluster"}, err
}

func TestPageNamesFullRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		registry, err := mit.NewRegistry(mit.NewMemory(), mit.RegistryConfig{
			Lease: time.Hour, BasePath: "/mIT/v1", MaxServers: 2, Verify: func(string) (cluster.Claims, error) { return cluster.Claims{SubType: "mds"}, nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		s.Network.Handle(clustertest.RegistryHost, registry)
		s.join()
		s.join()
		n := s.start()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := n.Register(ctx); err == nil {
			t.Fatal("registered")
		}
		s.finds(2, "This node is not registered: the registry is full", "raise the limit of the registry")
	})
}

// A peer that crashed is evicted. The page says so, and the other page that it was reported.
func TestPageSaysWhyServersAreGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		for range 4 {
			s.join()
		}
		if _, err := s.Nodes[0].Register(t.Context()); err != nil { // the entries are then confirmed
			t.Fatal(err)
		}
		s.Nodes[2].Kill()
		s.calls(0)
		time.Sleep(time.Minute)
		if text := s.text(0); !strings.Contains(text, "evicted by this node, because it could not be reached: peer \"node-3\"") {
			t.Errorf("the page of node-1 does not say why node-3 is gone: %s", text)
		}
		if text := s.text(1); !strings.Contains(text, "a peer reported that it has left") {
			t.Errorf("the page of node-2 does not say why node-3 is gone: %s", text)
		}
	})
}

func TestTwoWayCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		for range 3 {
			s.join()
		}
		// node-2 hears of no later server.
		s.Network.Fault("node-4:8080", s.Nodes[1].Host, clustertest.Status(http.StatusServiceUnavailable))
		s.join()
		s.Nodes[2].Kill()
		done := s.request(3, "POST", "/status?refresh=off")
		if done.Code != http.StatusSeeOther || done.Header().Get("Location") != "?refresh=off#check" {
			t.Fatalf("status %d, Location %q", done.Code, done.Header().Get("Location"))
		}
		s.request(0, "POST", "/status")
		text := s.text(0)
		for _, want := range []string{"3 views were compared", "node-4 2 of 3 node-2", "Peers whose view could not be read", "Some views lack node-4"} {
			if !strings.Contains(text, want) {
				t.Errorf("the page of node-1 does not say %q: %s", want, text)
			}
		}
		// The check of node-4 finds that node-2 does not know it.
		s.Network.Fault("node-4:8080", s.Nodes[1].Host, nil)
		s.request(3, "POST", "/status")
		s.finds(3, "This node is missing in the views of node-2", "These peers do not call this node")
		if got, want := len(s.Nodes[1].Servers()), 3; got != want {
			t.Errorf("the check changed the view of node-2: %d servers, want %d", got, want)
		}
	})
}
