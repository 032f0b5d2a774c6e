//go:build unix

package survival

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/internal/proctest"
	"github.com/mimiktech/cluster/mit"
)

const (
	signingKey   = "the key that all replicas sign tokens with"
	clientSecret = "hunter2"
	serverType   = "example"
	registryPath = "/mIT/v1"
	issuerPath   = "/mST/v1/oauth/token"

	// A lease is renewed after 4 s, give or take a tenth, so that there are 5.6 s for a renewal:
	// longer than etcd takes to elect a leader, and than a replica waits for etcd.
	lease        = 10 * time.Second
	renewalShare = 0.4
	etcdTimeout  = 3 * time.Second

	maxWait = time.Minute // for what must come about soon, on a machine that has other work
)

// A world is an etcd, the replicas of a registry over it, and the nodes of one cluster.
type world struct {
	*testing.T
	members   []*process
	endpoints []string // of the members
	replicas  []*replica
	balancer  *balancer
	etcd      *clientv3.Client
	transport *http.Transport // shared by all nodes, to limit the number of connections
	nodes     []*node
	token     string           // for the registry
	born      map[string]entry // the entries after all nodes have registered

	mu   sync.Mutex // guards the field below
	lost string     // how a list of servers was not whole, at first
}

type replica struct {
	*process
	url string
}

// A worldConfig configures a world.
type worldConfig struct {
	members, replicas int
	share             float64                                 // of the lease, after which to renew
	memberAddr        func(replica int, member string) string // where a replica finds a member
}

// starting is held while a world starts, because the start of a hundred nodes needs the whole
// machine.
var starting sync.Mutex //nolint:gochecknoglobals // the machine is one for all tests

// newWorld starts all processes and nodes, and waits until all nodes list each other.
func newWorld(t *testing.T, s worldConfig) *world {
	t.Helper()
	w := &world{T: t, transport: &http.Transport{MaxConnsPerHost: 64, MaxIdleConnsPerHost: 8, IdleConnTimeout: 5 * time.Second}}
	t.Cleanup(w.transport.CloseIdleConnections)
	starting.Lock()
	defer starting.Unlock()
	start := time.Now()

	w.members, w.endpoints = newMembers(t, s.members)
	for _, m := range w.members {
		m.start()
	}
	var err error
	if w.etcd, err = clientv3.New(clientv3.Config{Endpoints: w.endpoints, Logger: zap.NewNop()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.etcd.Close() })
	w.eventually("etcd has a leader", func() bool { return w.leader() >= 0 })

	addresses, urls := make([]string, s.replicas), make([]string, s.replicas)
	for i := range s.replicas {
		addresses[i] = fmt.Sprintf("127.0.0.1:%d", port(t))
		urls[i] = "http://" + addresses[i]
	}
	w.balancer = newBalancer(t, urls)
	for i, address := range addresses {
		endpoints := slices.Clone(w.endpoints)
		if s.memberAddr != nil {
			for j, member := range w.endpoints {
				endpoints[j] = s.memberAddr(i, member)
			}
		}
		w.replicas = append(w.replicas, &replica{newProcess(t, fmt.Sprintf("mit%d", i), roleReplica,
			"--listen", address, "--url", w.balancer.url, "--type", serverType, "--lease", lease.String(), "--log", "warn",
			"--etcd-endpoints", strings.Join(endpoints, ","), "--etcd-timeout", etcdTimeout.String()), urls[i]})
		w.replicas[i].start()
	}
	w.allHealthy()
	w.token = w.accessToken()

	var wg sync.WaitGroup
	for i := range nodeCount() {
		w.nodes = append(w.nodes, w.newNode(fmt.Sprintf("n%03d", i), s.share, w.registryURL(i%2 == 0)))
	}
	slots := make(chan struct{}, 8)
	for _, n := range w.nodes {
		slots <- struct{}{}
		wg.Go(func() {
			n.register()
			<-slots
		})
	}
	wg.Wait()
	if w.Failed() {
		t.FailNow()
	}
	w.eventually("all nodes know each other", w.viewsWhole)
	w.born = w.list(w.balancer.url)
	if len(w.born) != nodeCount() {
		t.Fatalf("the registry lists %d servers, not %d", len(w.born), nodeCount())
	}
	w.watchLists()
	t.Logf("all is up after %v", time.Since(start).Round(time.Millisecond))
	return w
}

// eventually waits until a condition holds.
func (w *world) eventually(what string, is func() bool) {
	w.Helper()
	for end := time.Now().Add(maxWait); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			w.Fatalf("not after %v: %s; nodes: %s", maxWait, what, w.states())
		}
	}
}

// leader returns the index of the leader, -1 if there is none.
func (w *world) leader() int {
	for i, endpoint := range w.endpoints {
		if w.members[i].cmd == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(w.Context(), time.Second)
		status, err := w.etcd.Status(ctx, endpoint)
		cancel()
		if err == nil && status.Leader != 0 && status.Leader == status.Header.MemberId {
			return i
		}
	}
	return -1
}

// registryURL returns the registry's addresses for a node: half of the nodes use all replicas, the
// others the load balancer.
func (w *world) registryURL(all bool) string {
	if !all {
		return w.balancer.url + registryPath
	}
	var urls []string
	for _, r := range w.replicas {
		urls = append(urls, r.url+registryPath)
	}
	return strings.Join(urls, ",")
}

func (w *world) allHealthy() {
	w.Helper()
	w.eventually("all replicas are healthy", func() bool {
		for _, r := range w.replicas {
			if health(w.Context(), w.balancer.client, r.url) != http.StatusOK {
				return false
			}
		}
		return true
	})
}

// A node is a node of the cluster with its HTTP server.
type node struct {
	*cluster.Cluster
	w        *world
	renewals atomic.Int64

	mu      sync.Mutex // guards the field below
	changes []string   // of its state, once it was registered
}

// newNode returns a node that serves but has not registered. It never deregisters.
func (w *world) newNode(id string, share float64, registry string) *node {
	w.Helper()
	ln, err := new(net.ListenConfig).Listen(w.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		w.Fatal(err)
	}
	n := &node{w: w}
	n.Cluster, err = cluster.New(cluster.Config{
		Type:             serverType,
		ID:               id,
		Port:             ln.Addr().(*net.TCPAddr).Port,
		LocalIPv4:        "127.0.0.1",
		Management:       true,
		RenewalFraction:  share,
		RegistryURL:      registry,
		RegistryAudience: w.balancer.url + registryPath,
		Issuer:           w.balancer.url + issuerPath,
		ClientID:         serverType,
		ClientSecret:     clientSecret,
		ClientAccessKey:  signingKey,
		ClientAudience:   serverType,
		PeerAudience:     serverType,
	}, cluster.WithHTTPClient(&http.Client{Transport: w.transport}), cluster.WithoutEnv(),
		// On a busy machine a peer may be slow: only the registry is to lose one, or not.
		cluster.WithEviction(cluster.Eviction{Disabled: true}), cluster.WithTrace(&cluster.Trace{
			Renewal: func(ctx context.Context, _ cluster.RenewalInfo) (context.Context, func(cluster.RenewalResult)) {
				return ctx, func(r cluster.RenewalResult) {
					if r.Err == nil {
						n.renewals.Add(1)
					}
				}
			},
			StateChanged: func(_ context.Context, from, to cluster.Status) {
				if from.State == cluster.Orphan {
					return
				}
				n.mu.Lock()
				defer n.mu.Unlock()
				n.changes = append(n.changes, fmt.Sprintf("%s: %v", to.State, to.Reason))
			},
		}))
	if err != nil {
		w.Fatal(err)
	}
	mux := http.NewServeMux()
	n.Mount(mux)
	mux.Handle("GET "+n.Config().BasePath+"/id", n.AuthenticatePeer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		n.Reply(rw, r, id)
	})))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: maxWait}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(ln) // until it is closed
	}()
	w.Cleanup(func() {
		_ = n.Close()
		_ = srv.Close()
		<-served
	})
	return n
}

func (n *node) register() {
	ctx, cancel := context.WithTimeout(n.w.Context(), maxWait)
	defer cancel()
	if _, err := n.Register(ctx); err != nil {
		n.w.Errorf("%v: %v", n, err)
	}
}

// viewsWhole reports whether every node lists all nodes.
func (w *world) viewsWhole() bool {
	return !slices.ContainsFunc(w.nodes, func(n *node) bool { return len(n.Servers()) < len(w.nodes) })
}

// allAre reports whether every node is in a state.
func (w *world) allAre(s cluster.State) bool {
	return !slices.ContainsFunc(w.nodes, func(n *node) bool { return n.Status().State != s })
}

func (w *world) states() string {
	counts := map[cluster.State]int{}
	for _, n := range w.nodes {
		counts[n.Status().State]++
	}
	return fmt.Sprint(counts)
}

// allRenew waits for another renewal of every node.
func (w *world) allRenew(when string) {
	w.Helper()
	var before []int64
	for _, n := range w.nodes {
		before = append(before, n.renewals.Load())
	}
	w.eventually("all nodes renew "+when, func() bool {
		for i, n := range w.nodes {
			if n.renewals.Load() == before[i] {
				return false
			}
		}
		return true
	})
}

// stayedRegistered fails the test for every node whose registration was interrupted.
func (w *world) stayedRegistered() {
	w.Helper()
	for _, n := range w.nodes {
		n.mu.Lock()
		if len(n.changes) > 0 {
			w.Errorf("%v did not stay registered: %s", n, strings.Join(n.changes, "; "))
		}
		n.mu.Unlock()
	}
}

// checkNoLoss fails the test if the registry lost a node, even for a moment, or created its entry
// again, or if a node does not get a response from every other.
func (w *world) checkNoLoss() {
	w.Helper()
	w.mu.Lock()
	if w.lost != "" {
		w.Error(w.lost)
	}
	w.mu.Unlock()
	now := w.list(w.balancer.url)
	for id, e := range w.born {
		if now[id].CreatedAt != e.CreatedAt {
			w.Errorf("the entry of %s was %+v and is %+v", id, e, now[id])
		}
		if now[id].UpdatedAt <= e.UpdatedAt {
			w.Errorf("the entry of %s was %+v, and is no newer: %+v", id, e, now[id])
		}
	}
	w.allAnswer("in the end")
}

// allAnswer sends a request from one node to all others.
func (w *world) allAnswer(when string) {
	w.Helper()
	res, err := w.nodes[0].RPCluster(w.Context(), cluster.Request{Path: "/id"})
	if err != nil {
		w.Fatal(err)
	}
	for _, o := range res.Failures {
		w.Errorf("%s %s does not answer: %v", when, o.Server.ServerID, o.Err)
	}
	if got := len(res.Results); got != len(w.nodes)-1 {
		w.Errorf("%s %d nodes answer, not %d", when, got, len(w.nodes)-1)
	}
}

// watchLists checks continuously that all responding replicas list all nodes.
func (w *world) watchLists() {
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, r := range w.replicas {
		wg.Go(func() {
			for sleep(ctx, 250*time.Millisecond) == nil {
				status, body := w.do(ctx, http.MethodGet, r.url+registryPath+"/itResources/"+mit.ResourceID(serverType), nil)
				if status != http.StatusOK {
					continue
				}
				listed := entries(body)
				for id := range w.born {
					if _, ok := listed[id]; ok {
						continue
					}
					w.mu.Lock()
					if w.lost == "" {
						w.lost = fmt.Sprintf("%s lacked %s, and had %d servers: %v", r.name, id, len(listed), slices.Sorted(maps.Keys(listed)))
					}
					w.mu.Unlock()
					return
				}
			}
		})
	}
	w.Cleanup(func() {
		stop()
		wg.Wait()
	})
}

// An entry is a server in a response of the registry.
type entry struct{ ServerID, ClusterBaseURL, CreatedAt, UpdatedAt string }

func entries(body []byte) map[string]entry {
	var response struct{ ItResource struct{ Servers []entry } }
	_ = json.Unmarshal(body, &response) // if it fails, the list is empty
	listed := map[string]entry{}
	for _, e := range response.ItResource.Servers {
		listed[e.ServerID] = e
	}
	return listed
}

// list returns the servers that the registry at a URL lists.
func (w *world) list(url string) map[string]entry {
	w.Helper()
	status, body := w.do(w.Context(), http.MethodGet, url+registryPath+"/itResources/"+mit.ResourceID(serverType), nil)
	if status != http.StatusOK {
		w.Fatalf("the list of servers: %d %s", status, body)
	}
	return entries(body)
}

// renewFirst sends a renewal of the first node to a URL.
func (w *world) renewFirst(url string) (status int, body []byte) {
	w.Helper()
	e := w.born[w.nodes[0].Config().ID]
	return w.do(w.Context(), http.MethodPost, url+registryPath+"/itResources",
		map[string]string{"type": serverType, "serverId": e.ServerID, "clusterBaseUrl": e.ClusterBaseURL})
}

// do sends a request to a registry; the status is 0 if there is no response.
func (w *world) do(ctx context.Context, method, url string, body any) (status int, response []byte) {
	ctx, cancel := context.WithTimeout(ctx, 3*etcdTimeout)
	defer cancel()
	b, err := json.Marshal(body)
	if err != nil {
		return 0, nil
	}
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(b))
	if err != nil {
		return 0, nil
	}
	req.Header.Set("Authorization", "Bearer "+w.token)
	resp, err := w.balancer.client.Do(req)
	if err != nil {
		return 0, []byte(err.Error())
	}
	defer resp.Body.Close()
	if response, err = io.ReadAll(resp.Body); err != nil {
		return 0, []byte(err.Error())
	}
	return resp.StatusCode, response
}

// accessToken returns a token for the registry.
func (w *world) accessToken() string {
	w.Helper()
	status, body := w.do(w.Context(), http.MethodPost, w.balancer.url+issuerPath, map[string]string{
		"grant_type": "client_credentials", "client_id": serverType, "client_secret": clientSecret, "audience": w.balancer.url + registryPath,
	})
	var response struct {
		Data struct {
			AccessToken string `json:"access_token"`
		}
	}
	if err := json.Unmarshal(body, &response); err != nil || response.Data.AccessToken == "" {
		w.Fatalf("no token: %d %s", status, body)
	}
	return response.Data.AccessToken
}

// nodeCount is smaller with the race detector, because the cost of announcing grows with its
// square.
func nodeCount() int {
	if proctest.RaceDetector {
		return 30
	}
	return 100
}
