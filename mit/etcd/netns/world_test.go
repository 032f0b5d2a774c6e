//go:build linux

package netns

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
	"github.com/mimiktech/cluster/mit/etcd/internal/etcdtest"
)

const (
	signingKey   = "the key that all replicas sign tokens with"
	clientSecret = "hunter2"
	serverType   = "mds"
	registryPath = "/mIT/v1"
	issuerPath   = "/mST/v1/oauth/token"

	lease           = 6 * time.Second
	renewalFraction = 0.4
	requestTimeout  = 2500 * time.Millisecond // enough to repeat a lost SYN, after a second

	maxWait = 30 * time.Second // for what must come about soon, on a machine that has other work
)

// A world is an etcd of three members, two replicas of a registry over it, and the nodes of one
// cluster, all on hosts of their own.
type world struct {
	*network
	replicas []string // the base URLs
	nodes    []*node
	client   *http.Client // on the router
	token    string       // for the registry
	lost     int          // packets, since the last fault began

	mu sync.Mutex // guards the fields below
	// The entries that calls have evicted, by node, and the failures of peers, since the last fault
	// began.
	evicted  map[string]map[string]bool
	failures int
	unlisted map[string]time.Time     // since when a replica has not listed a node
	absence  map[string]time.Duration // the longest time of that
}

// newWorld starts all processes. Goroutines call all peers from each node, and read the lists of
// the replicas, until the test ends.
func newWorld(t *testing.T, goNodes int) *world {
	t.Helper()
	w := &world{
		network: newNetwork(t), evicted: map[string]map[string]bool{},
		unlisted: map[string]time.Time{}, absence: map[string]time.Duration{},
	}
	w.client = &http.Client{Transport: &http.Transport{DialContext: w.dial, DisableKeepAlives: true}, Timeout: 2 * time.Second}
	endpoints := w.startEtcd()
	w.eventually("etcd has a leader", func() error {
		if status, body := w.do(http.MethodGet, "http://"+endpoints[0]+"/health", nil); status != http.StatusOK {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	})
	for i := range 2 {
		h := w.addHost(fmt.Sprintf("mit%d", i))
		w.replicas = append(w.replicas, fmt.Sprintf("http://%s:4000", h.addr))
		startRole(t, h, roleReplica, []string{"MIT_SIGNING_KEY=" + signingKey, "MIT_CLIENT_SECRET=" + clientSecret},
			"--listen", h.addr+":4000", "--url", w.replicas[0], "--type", serverType, "--lease", lease.String(), "--log", "warn",
			"--etcd-endpoints", strings.Join(endpoints, ","), "--etcd-timeout", "1500ms")
	}
	w.eventually("both replicas are healthy", func() error {
		for _, replica := range w.replicas {
			if status, body := w.do(http.MethodGet, replica+registryPath+"/health", nil); status != http.StatusOK {
				return fmt.Errorf("%d %s", status, body)
			}
		}
		return nil
	})
	w.eventually("the registry issues a token", w.fetchToken)
	for i := range goNodes {
		id := fmt.Sprintf("go%d", i)
		w.add(newNode(t, w.addHost(id), id, w.environment()))
	}
	return w
}

// startEtcd starts three members, and returns their client addresses.
func (w *world) startEtcd() (endpoints []string) {
	w.Helper()
	var members []etcdtest.Member
	var hosts []host
	var names []string
	for i := range 3 {
		h := w.addHost(fmt.Sprintf("etcd%d", i))
		m := etcdtest.Member{
			Name: fmt.Sprintf("etcd%d", i), Dir: w.TempDir(),
			PeerURL: fmt.Sprintf("http://%s:2380", h.addr), ClientURL: fmt.Sprintf("http://%s:2379", h.addr),
		}
		hosts, members = append(hosts, h), append(members, m)
		names = append(names, m.Name+"="+m.PeerURL)
		endpoints = append(endpoints, h.addr+":2379")
	}
	for i, m := range members {
		m.Cluster = strings.Join(names, ",")
		arg, err := json.Marshal(m)
		if err != nil {
			w.Fatal(err)
		}
		startRole(w.T, hosts[i], roleMember, nil, string(arg))
	}
	return endpoints
}

// environment is that of a node of either kind.
func (w *world) environment() []string {
	return []string{
		"SERVER_TYPE=" + serverType, "CLUSTER_MANAGEMENT=on", "REGISTRATION_RETRY=250", "REGISTRATION_SET=off",
		fmt.Sprintf("REQUEST_TIMEOUT=%d", requestTimeout.Milliseconds()),
		"MIT_URL=" + w.replicas[0] + registryPath, "MIT_AUDIENCE=" + w.replicas[0] + registryPath, "MDS_AUDIENCE=" + serverType,
		"OAUTH_ISSUER=" + w.replicas[0] + issuerPath, "OAUTH_CLIENT_ID=" + serverType, "OAUTH_CLIENT_SECRET=" + clientSecret,
		"OAUTH_CLIENT_ACCESS_KEY=" + signingKey, "OAUTH_CLIENT_AUDIENCE=" + serverType,
		"LOG_MODE=none", "LOG_LEVEL=error", "CONSOLE_LEVEL=warn",
	}
}

// add registers a node.
func (w *world) add(n *node) {
	w.Helper()
	if err := n.do("register", nil, new(any)); err != nil {
		w.Fatal(err)
	}
	w.nodes = append(w.nodes, n)
	w.eventually(n.id+" is listed", func() error {
		if listed := w.list(w.replicas[0]); !slices.Contains(listed, n.id) {
			return fmt.Errorf("the list is %v", listed)
		}
		return nil
	})
}

// eventually waits until a condition holds, and returns how long that took.
func (w *world) eventually(what string, check func() error) time.Duration {
	w.Helper()
	start := time.Now()
	for {
		err := check()
		if err == nil {
			return time.Since(start)
		}
		if time.Since(start) > maxWait {
			w.Fatalf("not after %v: %s: %v", maxWait, what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// do sends a request from the router; the status is 0 if there is no response.
func (w *world) do(method, url string, body any) (status int, response []byte) {
	b, err := json.Marshal(body)
	if err != nil {
		return 0, []byte(err.Error())
	}
	req, err := http.NewRequestWithContext(w.Context(), method, url, bytes.NewReader(b))
	if err != nil {
		return 0, []byte(err.Error())
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+w.token)
	resp, err := w.client.Do(req)
	if err != nil {
		return 0, []byte(err.Error())
	}
	defer resp.Body.Close()
	if response, err = io.ReadAll(resp.Body); err != nil {
		return 0, []byte(err.Error())
	}
	return resp.StatusCode, response
}

func (w *world) fetchToken() error {
	status, body := w.do(http.MethodPost, w.replicas[0]+issuerPath, map[string]string{
		"grant_type": "client_credentials", "client_id": serverType, "client_secret": clientSecret, "audience": w.replicas[0] + registryPath,
	})
	var response struct {
		Data struct {
			AccessToken string `json:"access_token"`
		}
	}
	if err := json.Unmarshal(body, &response); err != nil || response.Data.AccessToken == "" {
		return fmt.Errorf("%d %s", status, body)
	}
	w.token = response.Data.AccessToken
	return nil
}

// list returns the ids of the servers that a replica lists; nil if it does not respond.
func (w *world) list(replica string) []string {
	status, body := w.do(http.MethodGet, replica+registryPath+"/itResources/"+mit.ResourceID(serverType), nil)
	var response struct {
		ItResource struct{ Servers []cluster.Server }
	}
	if status != http.StatusOK || json.Unmarshal(body, &response) != nil {
		return nil
	}
	return serverIDs(response.ItResource.Servers)
}

// A fanOut is the result of a call to all peers.
type fanOut struct {
	Response struct {
		Results  []struct{ Server cluster.Server }
		Failures []struct {
			Server cluster.Server
			Error  struct {
				Message string
				Evicted bool
			}
		}
	}
	Before, After []string

	began time.Time
	err   error
}

// watch lets all nodes call their peers, and reads the lists, until stop is called.
func (w *world) watch() (stop func()) {
	ctx, cancel := context.WithCancel(w.Context())
	var wg sync.WaitGroup
	for _, n := range w.nodes {
		wg.Go(func() {
			for ctx.Err() == nil {
				f := fanOut{began: time.Now()}
				f.err = n.do("fanout", map[string]string{"path": "/things"}, &f)
				w.record(n, f)
				pause(ctx, 200*time.Millisecond)
			}
		})
	}
	for _, replica := range w.replicas {
		wg.Go(func() {
			for ctx.Err() == nil {
				if listed := w.list(replica); listed != nil {
					w.recordList(replica, listed)
				}
				pause(ctx, 200*time.Millisecond)
			}
		})
	}
	return func() {
		cancel()
		wg.Wait()
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// record checks that a call accounts for every peer once. Several calls at the same time may evict
// one entry of a node: that is one eviction.
func (w *world) record(n *node, f fanOut) {
	n.mu.Lock()
	n.last = f
	n.mu.Unlock()
	if f.err != nil {
		w.Errorf("%s: fan-out: %v", n.id, f.err)
		return
	}
	var outcomes []string
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range f.Response.Results {
		outcomes = append(outcomes, r.Server.ServerID)
	}
	for _, failure := range f.Response.Failures {
		outcomes = append(outcomes, failure.Server.ServerID)
		w.failures++
		if server := failure.Server; failure.Error.Evicted {
			if w.evicted[server.ServerID] == nil {
				w.evicted[server.ServerID] = map[string]bool{}
			}
			w.evicted[server.ServerID][server.CreatedAt.String()] = true
		}
	}
	slices.Sort(outcomes)
	if len(slices.Compact(slices.Clone(outcomes))) != len(outcomes) {
		w.Errorf("%s: several outcomes of one peer: %v", n.id, outcomes)
	}
	for _, id := range f.Before {
		if id != n.id && slices.Contains(f.After, id) && !slices.Contains(outcomes, id) {
			w.Errorf("%s: no outcome of %s, but of %v; the view was %v", n.id, id, outcomes, f.Before)
		}
	}
}

// recordList measures for how long a replica does not list a node.
func (w *world) recordList(replica string, listed []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range w.nodes {
		key := n.id + " at " + replica
		if slices.Contains(listed, n.id) {
			delete(w.unlisted, key)
			continue
		}
		if w.unlisted[key].IsZero() {
			w.unlisted[key] = time.Now()
		}
		w.absence[n.id] = max(w.absence[n.id], time.Since(w.unlisted[key]))
	}
}

// normal returns an error unless both replicas list all nodes, and each node has called all others,
// since a time, with a result from each.
func (w *world) normal(since time.Time) error {
	for _, replica := range w.replicas {
		if listed := w.list(replica); len(listed) != len(w.nodes) {
			return fmt.Errorf("%s lists %v", replica, listed)
		}
	}
	for _, n := range w.nodes {
		n.mu.Lock()
		f := n.last
		n.mu.Unlock()
		if f.began.Before(since) || len(f.Response.Results) != len(w.nodes)-1 {
			return fmt.Errorf("%s has %d results and the failures %v of a call %v after the fault",
				n.id, len(f.Response.Results), f.Response.Failures, f.began.Sub(since).Round(time.Millisecond))
		}
	}
	return nil
}
