package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
	"github.com/mimiktech/cluster/mit/etcd"
	"github.com/mimiktech/cluster/mit/etcd/internal/etcdtest"
)

const (
	hour    = time.Hour
	maxWait = 20 * time.Second // for what must come about soon

	mds = "09d8f1f0-7477-5c54-9770-74879a6d3b25" // the resource of type mds
)

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(maxWait); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not after %v: %s", maxWait, what)
		}
	}
}

func registration(serverID string) mit.Registration {
	return mit.Registration{
		Type:           "mds",
		ServerID:       serverID,
		PublicBaseURL:  "https://example.com/mds/v1",
		ClusterBaseURL: "http://10.0.0.1:8080/mds/v1",
	}
}

// put registers a server and returns its entry.
func put(t *testing.T, s *etcd.Store, serverID string) cluster.Server {
	t.Helper()
	res, err := s.Put(t.Context(), registration(serverID), hour)
	if err != nil {
		t.Fatal(err)
	}
	return server(t, res, serverID)
}

func server(t *testing.T, res mit.Resource, serverID string) cluster.Server {
	t.Helper()
	i := slices.IndexFunc(res.Servers, func(s cluster.Server) bool { return s.ServerID == serverID })
	if i < 0 {
		t.Fatalf("server %q is not among %v", serverID, res.Servers)
	}
	return res.Servers[i]
}

func ids(res mit.Resource) []string {
	var ids []string
	for _, s := range res.Servers {
		ids = append(ids, s.ServerID)
	}
	return ids
}

// reads reports whether the store lists exactly these servers.
func reads(t *testing.T, s *etcd.Store, want ...string) bool {
	t.Helper()
	res, err := s.Get(t.Context(), mds)
	if err != nil && !errors.Is(err, mit.ErrNotFound) {
		t.Fatal(err)
	}
	return slices.Equal(ids(res), want)
}

func observed() (*zap.Logger, *observer.ObservedLogs) {
	core, logs := observer.New(zap.DebugLevel)
	return zap.New(core), logs
}

// A replica that missed a compaction of etcd's history reloads everything.
func TestResumesAfterCompaction(t *testing.T) {
	t.Parallel()
	c := etcdtest.Run(t, 1)
	p := etcdtest.NewProxy(t, c.Endpoints[0])
	asleep := open(t, etcd.Config{Endpoints: []string{p.Addr}, Timeout: 4 * time.Second})
	awake := open(t, etcd.Config{Endpoints: c.Endpoints})
	for _, id := range []string{"a", "b"} {
		put(t, awake, id)
	}
	eventually(t, "the replica follows", func() bool { return reads(t, asleep, "a", "b") })

	p.Cut()
	if err := awake.Delete(t.Context(), mds, "a"); err != nil {
		t.Fatal(err)
	}
	put(t, awake, "c")
	client := c.Client(t)
	now, err := client.Get(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Compact(t.Context(), now.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	if !reads(t, asleep, "a", "b") {
		t.Error("a replica without etcd does not read what it knew")
	}
	p.Heal()
	eventually(t, "the replica has reloaded", func() bool { return reads(t, asleep, "b", "c") })
	put(t, awake, "d")
	eventually(t, "the replica follows again", func() bool { return reads(t, asleep, "b", "c", "d") })
}

// Renewals through three replicas succeed while etcd loses its leader.
func TestLeaderKilled(t *testing.T) {
	t.Parallel()
	c := etcdtest.Run(t, 3)
	var replicas []*etcd.Store
	for range 3 {
		replicas = append(replicas, open(t, etcd.Config{Endpoints: c.Endpoints, Timeout: 10 * time.Second}))
	}
	first := map[string]cluster.Server{}
	var want []string
	for i := range 8 {
		id := fmt.Sprint(i)
		want = append(want, id)
		first[id] = put(t, replicas[0], id)
	}

	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	counts := make([]atomic.Int64, len(want))
	for i, id := range want {
		wg.Go(func() {
			last := first[id]
			for n := 1; ctx.Err() == nil; n++ {
				res, err := replicas[n%len(replicas)].Put(t.Context(), registration(id), hour)
				if err != nil {
					t.Errorf("renewal %d of %s: %v", n, id, err)
					return
				}
				s := server(t, res, id)
				if !s.CreatedAt.Equal(last.CreatedAt) || !s.UpdatedAt.After(last.UpdatedAt) {
					t.Errorf("renewal %d of %s: %+v after %+v", n, id, s, last)
					return
				}
				if got := ids(res); !slices.Equal(got, want) {
					t.Errorf("renewal %d of %s: servers %v, want %v", n, id, got, want)
					return
				}
				last = s
				counts[i].Add(1)
			}
		})
	}
	allRenew := func(when string) {
		t.Helper()
		for i := range counts {
			from := counts[i].Load()
			eventually(t, "server "+want[i]+" renews "+when, func() bool { return counts[i].Load() >= from+3 })
		}
	}
	allRenew("at first")
	killed := c.Leader()
	if killed < 0 {
		t.Fatal("no leader")
	}
	c.Kill(killed)
	eventually(t, "a new leader", func() bool { return c.Leader() >= 0 })
	allRenew("with the new leader")
	if err := c.Restart(killed); err != nil {
		t.Fatal(err)
	}
	allRenew("with the old leader back")
	stop()
	wg.Wait()
	for i, s := range replicas {
		eventually(t, fmt.Sprintf("replica %d has all servers", i), func() bool { return reads(t, s, want...) })
	}
}

// Servers of a new type register through three replicas at the same time.
func TestConcurrentReplicas(t *testing.T) {
	t.Parallel()
	c := etcdtest.Run(t, 1)
	var replicas []*etcd.Store
	for range 3 {
		replicas = append(replicas, open(t, etcd.Config{Endpoints: c.Endpoints}))
	}
	const n = 30
	var want []string
	for i := range n {
		want = append(want, fmt.Sprintf("%02d", i))
	}
	resources := make([]mit.Resource, n)
	entries := make([][]cluster.Server, len(replicas)) // of the server that comes through all of them
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			resources[i], errs[i] = replicas[i%len(replicas)].Put(t.Context(), registration(want[i]), hour)
		})
	}
	for i, s := range replicas {
		wg.Go(func() {
			for range 20 {
				res, err := s.Put(t.Context(), registration("everywhere"), hour)
				if err != nil {
					t.Error(err)
					return
				}
				entries[i] = append(entries[i], server(t, res, "everywhere"))
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	most := 0
	for i, res := range resources {
		if res.ID != mds {
			t.Errorf("resource %s, want %s", res.ID, mds)
		}
		server(t, res, want[i])
		most = max(most, len(slices.DeleteFunc(ids(res), func(id string) bool { return id == "everywhere" })))
	}
	if most != n { // registrations are atomic, so the last one returns all servers
		t.Errorf("of %d servers registering at once none saw more than %d", n, most)
	}
	all := append(want, "everywhere")
	for i, s := range replicas {
		eventually(t, fmt.Sprintf("replica %d has all servers", i), func() bool { return reads(t, s, all...) })
	}

	states := slices.Concat(entries...)
	slices.SortFunc(states, func(a, b cluster.Server) int { return a.UpdatedAt.Compare(b.UpdatedAt) })
	for i, e := range states[1:] {
		if !e.UpdatedAt.After(states[i].UpdatedAt) || !e.CreatedAt.Equal(states[0].CreatedAt) {
			t.Errorf("two states of an entry: %+v and %+v", states[i], e)
		}
	}

	kvs, err := c.Client(t).Get(t.Context(), "/mit/itResources/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	if len(kvs.Kvs) != 1 || kvs.Kvs[0].Version != 1 {
		t.Errorf("resources in etcd, each to be written once: %v", kvs.Kvs)
	}
}

// A renewal at another replica finds the entry, or that it is gone, before the cache of that
// replica does.
func TestRenewalAtOtherReplica(t *testing.T) {
	t.Parallel()
	c := etcdtest.Run(t, 1)
	first, second := open(t, etcd.Config{Endpoints: c.Endpoints}), open(t, etcd.Config{Endpoints: c.Endpoints})
	for range 50 {
		reg := registration("a")
		reg.RenewalOf = put(t, first, "a").CreatedAt
		if _, err := second.Put(t.Context(), reg, hour); err != nil {
			t.Fatalf("renewal: %v", err)
		}
		if err := first.Delete(t.Context(), mds, "a"); err != nil {
			t.Fatal(err)
		}
		if _, err := second.Put(t.Context(), reg, hour); !errors.Is(err, mit.ErrNotFound) {
			t.Fatalf("renewal after the delete: %v", err)
		}
	}
}

// Two processes with one id are reported, whichever replicas they use.
func TestAddressConflicts(t *testing.T) {
	t.Parallel()
	c := etcdtest.Run(t, 1)
	stores := [2]*etcd.Store{}
	for i := range stores {
		stores[i] = open(t, etcd.Config{Endpoints: c.Endpoints})
	}
	for name, replicaOf := range map[string][2]int{"one": {0, 0}, "two": {0, 1}} {
		var registries [2]*mit.Registry
		for i, s := range stores {
			var err error
			registries[i], err = mit.NewRegistry(s, mit.RegistryConfig{Verify: func(string) (cluster.Claims, error) { return cluster.Claims{SubType: "mds"}, nil }})
			if err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			for process, replica := range replicaOf {
				r := httptest.NewRequest(http.MethodPost, "/itResources", strings.NewReader(fmt.Sprintf(
					`{"type":"mds","serverId":%q,"publicBaseUrl":"","clusterBaseUrl":"http://10.0.0.%d:1/mds/v1"}`, name, process)))
				r.Header.Set("Authorization", "Bearer x")
				w := httptest.NewRecorder()
				registries[replica].ServeHTTP(w, r)
				if w.Code != http.StatusOK {
					t.Fatalf("%d %s", w.Code, w.Body)
				}
			}
		}
		// Of six renewals, the first creates the entry. The first change that a replica sees may be
		// a move.
		want := map[string]uint64{"one": 6 - 2, "two": 6 - 3}[name]
		if n := registries[0].AddressConflicts() + registries[1].AddressConflicts(); n != want {
			t.Errorf("%s: %d conflicts, want %d", name, n, want)
		}
	}
	first, err := stores[0].Put(t.Context(), registration("a"), hour)
	if err != nil || first.Version == 0 || first.Replaced != nil {
		t.Errorf("version %d, replaced %v, %v", first.Version, first.Replaced, err)
	}
	second, err := stores[0].Put(t.Context(), registration("a"), hour)
	if err != nil || second.Version <= first.Version || second.Replaced == nil {
		t.Errorf("version %d after %d, replaced %v, %v", second.Version, first.Version, second.Replaced, err)
	}
}

// A server renews through one replica while a peer deletes it through another.
func TestConcurrentRenewalAndDelete(t *testing.T) {
	t.Parallel()
	c := etcdtest.Run(t, 1)
	one := open(t, etcd.Config{Endpoints: c.Endpoints})
	other := open(t, etcd.Config{Endpoints: c.Endpoints})
	kept, deleted := 0, 0
	for i := range 100 {
		before := put(t, one, "a")
		if i%2 == 0 { // every second time the other replica has the current entry, not the previous one
			eventually(t, "the other replica knows", func() bool {
				res, err := other.Get(t.Context(), mds)
				return err == nil && len(res.Servers) == 1 && res.Servers[0].UpdatedAt.Equal(before.UpdatedAt)
			})
		}
		var (
			wg    sync.WaitGroup
			res   mit.Resource
			newer *cluster.Server
			errs  [2]error
		)
		wg.Go(func() { res, errs[0] = one.Put(t.Context(), registration("a"), hour) })
		wg.Go(func() { newer, errs[1] = other.DeleteIfUnmodifiedSince(t.Context(), mds, "a", before.UpdatedAt) })
		wg.Wait()
		if err := errors.Join(errs[:]...); err != nil {
			t.Fatal(err)
		}
		after := server(t, res, "a")
		switch {
		case newer != nil:
			kept++
			if !newer.UpdatedAt.Equal(after.UpdatedAt) || !after.CreatedAt.Equal(before.CreatedAt) {
				t.Fatalf("renewed as %+v, the delete saw %+v", after, *newer)
			}
		default:
			deleted++
			if !after.CreatedAt.Equal(after.UpdatedAt) {
				t.Fatalf("the delete says gone, yet %+v only renewed", after)
			}
		}
		if !reads(t, one, "a") {
			t.Fatalf("a renewed server is gone: %+v", after)
		}
	}
	if kept == 0 || deleted == 0 {
		t.Errorf("no race: %d kept, %d deleted", kept, deleted)
	}
}

// A Put returns its server as new, even if others delete it at once.
func TestPutDuringDeletes(t *testing.T) {
	t.Parallel()
	c := etcdtest.Run(t, 1)
	one := open(t, etcd.Config{Endpoints: c.Endpoints})
	other := open(t, etcd.Config{Endpoints: c.Endpoints})
	put(t, one, "b")
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := other.Delete(t.Context(), mds, "a"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	gone := 0
	for range 200 {
		res, err := one.Put(t.Context(), registration("a"), hour)
		if err != nil {
			t.Error(err)
			break
		}
		if got := ids(res); !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("servers %v", got)
			break
		}
		if s := server(t, res, "a"); s.CreatedAt.Equal(s.UpdatedAt) {
			gone++
		}
	}
	stop()
	wg.Wait()
	if gone < 10 {
		t.Errorf("no race: the server was gone %d times", gone)
	}
}

// Unrecognized keys under the prefix are reported and left unchanged, and do not affect others.
func TestUnrecognizedKeys(t *testing.T) {
	t.Parallel()
	c := etcdtest.Run(t, 1)
	client := c.Client(t)
	mdsKey := "/mit/itResources/" + mds
	before := map[string]string{
		"/mit/notes":                 "call Bob",
		mdsKey:                       `{"type":"not mds"}`,
		"/mit/servers/mds/junk":      "\x00\xff",
		"/mit/servers/mds/undated":   `{"clusterBaseUrl":"http://10.0.0.1"}`,
		"/mit/servers/mds/a/b":       `{}`,
		"/mit/servers/":              `{}`,
		"/mit/servers/m%64s/twisted": `{"createdAt":"2026-01-02T03:04:05Z","updatedAt":"2026-01-02T03:04:05Z"}`,
	}
	after := map[string]string{
		"/mit/servers/mds/late": `[]`,
		"/mit/itResources/x":    `{"type":"mds"}`,
	}
	check := func(when string, values map[string]string) {
		t.Helper()
		for key, value := range values {
			kvs, err := client.Get(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			if len(kvs.Kvs) != 1 || string(kvs.Kvs[0].Value) != value || kvs.Kvs[0].Version != 1 {
				t.Errorf("%s %q is %v", when, key, kvs.Kvs)
			}
		}
	}
	write := func(values map[string]string) {
		t.Helper()
		for key, value := range values {
			if _, err := client.Put(t.Context(), key, value); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(before)
	log, logs := observed()
	s := open(t, etcd.Config{Endpoints: c.Endpoints, Logger: log})
	put(t, s, "ok")
	write(after)
	eventually(t, "Health counts all keys", func() bool {
		err := s.Health()
		return err != nil && strings.Contains(err.Error(), fmt.Sprintf("%d unrecognized keys under /mit/", len(before)+len(after)))
	})
	if err := s.Ready(); err != nil { // load balancers would avoid it
		t.Errorf("unrecognized keys make the store stale: %v", err)
	}
	for key := range after {
		if logs.FilterMessage("ignored unrecognized key").FilterField(zap.String("key", key)).Len() != 1 {
			t.Errorf("the log does not name %s once: %v", key, logs.All())
		}
	}
	if lines := logs.FilterMessage("ignored unrecognized keys"); lines.Len() != 1 {
		t.Errorf("the log does not say once what was there at first: %v", logs.All())
	}

	if !reads(t, s, "ok") {
		t.Error("the good server is not read")
	}
	// A server whose key has an invalid value can neither register nor be deleted.
	if _, err := s.Put(t.Context(), registration("junk"), hour); err == nil || !strings.Contains(err.Error(), "/mit/servers/mds/junk") {
		t.Errorf("put where junk is: %v", err)
	}
	if err := s.Delete(t.Context(), mds, "junk"); err == nil || !strings.Contains(err.Error(), "/mit/servers/mds/junk") {
		t.Errorf("delete of junk: %v", err)
	}
	if newer, err := s.DeleteIfUnmodifiedSince(t.Context(), mds, "late", time.Now()); err == nil {
		t.Errorf("dated delete of junk: %v", newer)
	}
	put(t, s, "ok2")
	check("after it all", before)
	check("after it all", after)

	for key := range before {
		if _, err := client.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	for key := range after {
		if _, err := client.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all is well", func() bool { return s.Health() == nil })
	put(t, s, "junk")
	if res, err := s.Get(t.Context(), mds); err != nil || res.PublicBaseURL == "" {
		t.Errorf("once its key is free the resource is not written: %+v, %v", res, err)
	}
}

// Registries with different prefixes are separate, even if one prefix is part of another.
func TestPrefixesAreSeparate(t *testing.T) {
	t.Parallel()
	c := etcdtest.Run(t, 1)
	short := open(t, etcd.Config{Endpoints: c.Endpoints, Prefix: "/mit"})
	long := open(t, etcd.Config{Endpoints: c.Endpoints, Prefix: "/mit2"})
	slash := open(t, etcd.Config{Endpoints: c.Endpoints, Prefix: "/mit/"})
	bare := open(t, etcd.Config{Endpoints: c.Endpoints, Prefix: "mit"})
	put(t, short, "a")
	put(t, long, "b")
	eventually(t, "a slash at the end makes no difference", func() bool { return reads(t, slash, "a") })
	if got := put(t, long, "b"); got.ServerID != "b" || !reads(t, long, "b") || !reads(t, bare) {
		t.Error("registries of different prefixes share servers")
	}
	for _, s := range []*etcd.Store{short, long, slash, bare} {
		if err := s.Health(); err != nil {
			t.Error(err)
		}
	}
	// A registry whose prefix contains those of the others does not list their servers.
	root := open(t, etcd.Config{Endpoints: c.Endpoints, Prefix: "/"})
	if err := root.Health(); err == nil || !strings.Contains(err.Error(), `"/mit/`) {
		t.Errorf("under the prefix of others: %v", err)
	}
	put(t, root, "c")
	if !reads(t, root, "c") || !reads(t, short, "a") {
		t.Error("registries of different prefixes share servers")
	}
}

// With one of three members of etcd, writes fail and reads succeed.
func TestNoQuorum(t *testing.T) {
	t.Parallel()
	c := etcdtest.Run(t, 3)
	log, logs := observed()
	s := open(t, etcd.Config{Endpoints: c.Endpoints, Timeout: 4 * time.Second, Logger: log})
	registry, err := mit.NewRegistry(s, mit.RegistryConfig{Verify: func(string) (cluster.Claims, error) { return cluster.Claims{SubType: "mds"}, nil }})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(method, path string) int {
		body := strings.NewReader(`{"type":"mds","serverId":"a","clusterBaseUrl":"http://10.0.0.1:8080/mds/v1"}`)
		r := httptest.NewRequest(method, path, body)
		r.Header.Set("Authorization", "Bearer t")
		w := httptest.NewRecorder()
		registry.ServeHTTP(w, r)
		return w.Code
	}
	if status := ask(http.MethodPost, "/itResources"); status != http.StatusOK {
		t.Fatalf("registered with %d", status)
	}
	// The TTL is short, but no server may be lost: without a leader etcd expires no lease.
	if _, err := s.Put(t.Context(), registration("short"), 6*time.Second); err != nil {
		t.Fatal(err)
	}

	survivor := c.Leader()
	c.Kill((survivor+1)%3, (survivor+2)%3)
	start := time.Now()
	if status := ask(http.MethodPost, "/itResources"); status != http.StatusServiceUnavailable {
		t.Errorf("without quorum a registration is answered %d", status)
	}
	if took := time.Since(start); took > 8*time.Second {
		t.Errorf("the answer took %v", took)
	}
	if err := s.Delete(t.Context(), mds, "a"); err == nil {
		t.Error("deleted without quorum")
	}
	eventually(t, "the store calls its copy stale", func() bool { return s.Ready() != nil })
	if s.Health() == nil || ask(http.MethodGet, "/health") != http.StatusServiceUnavailable {
		t.Error("its health is good all the same")
	}
	eventually(t, "the log says so", func() bool {
		return logs.FilterMessage("etcd watch failed; reads may be stale").Len() > 0
	})
	if !reads(t, s, "a", "short") || ask(http.MethodGet, "/itResources/"+mds) != http.StatusOK {
		t.Error("without quorum nothing is read")
	}
	if _, err := s.Get(t.Context(), mit.ResourceID("other")); err == nil || errors.Is(err, mit.ErrNotFound) {
		t.Errorf("without quorum, Get of an unknown id must fail: %v", err)
	}

	for i := range c.Endpoints {
		if i != survivor {
			if err := c.Restart(i); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, "registrations are taken again", func() bool { return ask(http.MethodPost, "/itResources") == http.StatusOK })
	eventually(t, "all is well", func() bool { return s.Health() == nil })
	eventually(t, "the silent server goes", func() bool { return reads(t, s, "a") })
	eventually(t, "the log reports the resumed watch", func() bool { return logs.FilterMessage("etcd watch resumed").Len() > 0 })
	if n := logs.FilterMessage("etcd watch failed; reads may be stale").Len(); n != logs.FilterMessage("etcd watch resumed").Len() {
		t.Errorf("the log does not tell one outage as one: %v", logs.All())
	}
}

// Without changes, progress requests keep the store from becoming stale.
func TestIdleStoreIsNotStale(t *testing.T) {
	t.Parallel()
	c := etcdtest.Run(t, 1)
	log, logs := observed()
	s := open(t, etcd.Config{Endpoints: c.Endpoints, Timeout: 4 * time.Second, Logger: log})
	for end := time.Now().Add(13 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err := s.Health(); err != nil {
			t.Fatal(err)
		}
	}
	if logs.Len() > 0 {
		t.Errorf("logged %v", logs.All())
	}
}

// One replica is cut off from etcd, first by a network that drops responses.
func TestStoreCutOff(t *testing.T) {
	t.Parallel()
	c := etcdtest.Run(t, 1)
	p := etcdtest.NewProxy(t, c.Endpoints[0])
	cut := open(t, etcd.Config{Endpoints: []string{p.Addr}, Timeout: 3 * time.Second})
	fine := open(t, etcd.Config{Endpoints: c.Endpoints})
	put(t, fine, "a")
	eventually(t, "the replica follows", func() bool { return reads(t, cut, "a") })
	for name, fault := range map[string]func(){"mute": p.Blackhole, "cut": p.Cut} {
		fault()
		start := time.Now()
		if _, err := cut.Put(t.Context(), registration("b"), hour); err == nil {
			t.Errorf("%s: a server registered", name)
		} else if took := time.Since(start); took > 6*time.Second {
			t.Errorf("%s: it took %v until %v", name, took, err)
		}
		eventually(t, name+": the replica calls its copy stale", func() bool { return cut.Health() != nil })
		put(t, fine, "c")
		if res, err := cut.Get(t.Context(), mds); err != nil || !slices.Contains(ids(res), "a") || slices.Contains(ids(res), "c") {
			t.Errorf("%s: the replica reads %v, %v", name, ids(res), err)
		}
		p.Heal()
		eventually(t, name+": all is well", func() bool { return cut.Health() == nil })
		put(t, cut, "d")
		if err := cut.Delete(t.Context(), mds, "b"); err != nil { // the registration may have arrived
			t.Error(err)
		}
		if !reads(t, cut, "a", "c", "d") {
			t.Errorf("%s: the replica reads something else afterwards", name)
		}
		for _, id := range []string{"c", "d"} {
			if err := cut.Delete(t.Context(), mds, id); err != nil {
				t.Error(err)
			}
		}
	}
}

// The store reconnects soon after etcd is back, however long it was away.
func TestLongOutage(t *testing.T) {
	t.Parallel()
	c := etcdtest.Run(t, 1)
	p := etcdtest.NewProxy(t, c.Endpoints[0])
	s := open(t, etcd.Config{Endpoints: []string{p.Addr}, Timeout: 3 * time.Second})
	p.Cut()
	time.Sleep(25 * time.Second)
	p.Heal()
	back := time.Now()
	eventually(t, "servers register again", func() bool {
		_, err := s.Put(t.Context(), registration("a"), hour)
		return err == nil
	})
	eventually(t, "all is well", func() bool { return s.Health() == nil })
	if took := time.Since(back); took > 6*time.Second {
		t.Errorf("it took %v", took)
	}
}

// The response to a registration is lost: the retry must not register a second time.
func TestLostResponse(t *testing.T) {
	t.Parallel()
	c := etcdtest.Run(t, 1)
	p := etcdtest.NewProxy(t, c.Endpoints[0])
	s := open(t, etcd.Config{Endpoints: []string{p.Addr}, Timeout: maxWait})
	put(t, s, "a") // and there is a lease to live on
	client := c.Client(t)
	for _, id := range []string{"new", "a"} {
		key := "/mit/servers/mds/" + id
		version := func() int64 {
			kvs, err := client.Get(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			if len(kvs.Kvs) == 0 {
				return 0
			}
			return kvs.Kvs[0].Version
		}
		before := version()
		p.Blackhole()
		var (
			wg  sync.WaitGroup
			res mit.Resource
			err error
		)
		wg.Go(func() { res, err = s.Put(t.Context(), registration(id), hour) })
		eventually(t, "the registration arrives", func() bool { return version() > before })
		p.Heal()
		wg.Wait()
		if err != nil {
			t.Fatal(err)
		}
		if got := version(); got != before+1 {
			t.Errorf("server %s was written %d times", id, got-before)
		}
		if e := server(t, res, id); id == "new" && !e.CreatedAt.Equal(e.UpdatedAt) {
			t.Errorf("a new server is told that it had been there: %+v", e)
		}
	}
}

// etcd returns without its data, as after restoring an older backup: its revisions are below those
// that the store has seen.
func TestLostData(t *testing.T) {
	t.Parallel()
	c := etcdtest.Run(t, 1)
	s := open(t, etcd.Config{Endpoints: c.Endpoints, Timeout: 4 * time.Second})
	for i := range 10 {
		put(t, s, fmt.Sprint(i))
	}
	c.Kill(0)
	if err := c.EraseData(0); err != nil {
		t.Fatal(err)
	}
	if err := c.Restart(0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the store forgets what is gone", func() bool { return reads(t, s) })
	e := put(t, s, "1")
	if !e.CreatedAt.Equal(e.UpdatedAt) || !reads(t, s, "1") {
		t.Errorf("registered again: %+v", e)
	}
	eventually(t, "all is well", func() bool { return s.Health() == nil })
}

// The lease of servers is revoked.
func TestLeaseRevoked(t *testing.T) {
	t.Parallel()
	c := etcdtest.Run(t, 1)
	client := c.Client(t)
	s := open(t, etcd.Config{Endpoints: c.Endpoints})
	put(t, s, "a")
	put(t, s, "b")
	kvs, err := client.Get(t.Context(), "/mit/servers/mds/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	lease := clientv3.LeaseID(kvs.Kvs[0].Lease)
	if lease == 0 || kvs.Kvs[1].Lease != int64(lease) {
		t.Fatalf("two servers at once do not share a lease: %v", kvs.Kvs)
	}
	ttl, err := client.TimeToLive(t.Context(), lease)
	if err != nil {
		t.Fatal(err)
	}
	if got := time.Duration(ttl.GrantedTTL) * time.Second; got < hour || got > hour+time.Minute {
		t.Errorf("the lease is for %v, want %v and at most a minute", got, hour)
	}
	if _, err := client.Revoke(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the servers go", func() bool { return reads(t, s) })
	if e := put(t, s, "a"); !e.CreatedAt.Equal(e.UpdatedAt) || !reads(t, s, "a") {
		t.Errorf("registered again: %+v", e)
	}
}

// Close interrupts calls in progress.
func TestClose(t *testing.T) {
	t.Parallel()
	c := etcdtest.Run(t, 1)
	p := etcdtest.NewProxy(t, c.Endpoints[0])
	s := open(t, etcd.Config{Endpoints: []string{p.Addr}, Timeout: maxWait})
	put(t, s, "a")
	p.Blackhole()
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if _, err := s.Put(t.Context(), registration("a"), hour); err == nil || !strings.Contains(err.Error(), "the store is closed") {
				t.Errorf("a put without an answer, when the store was closed: %v", err)
			}
		})
	}
	time.Sleep(100 * time.Millisecond)
	start := time.Now()
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if !reads(t, s, "a") {
		t.Error("what was known is gone")
	}
}
