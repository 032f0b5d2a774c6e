package etcd_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
	"github.com/mimiktech/cluster/mit/etcd"
	"github.com/mimiktech/cluster/mit/etcd/internal/etcdtest"
)

// health returns the status and body of the health endpoint of a registry over the store.
func health(t *testing.T, s *etcd.Store) (int, string) {
	t.Helper()
	registry, err := mit.NewRegistry(s, mit.RegistryConfig{Verify: func(string) (cluster.Claims, error) { return cluster.Claims{SubType: "mds"}, nil }})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	registry.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/health", nil))
	return w.Code, w.Body.String()
}

// A refusal is a state of etcd in which it refuses writes.
type refusal struct {
	name   string
	begin  func(ctx context.Context, root *clientv3.Client) error
	end    func(ctx context.Context, root *clientv3.Client) error
	reason string
}

// refusals are all such states.
var refusals = []refusal{ //nolint:gochecknoglobals // the table of two tests
	{
		name:   "no space",
		begin:  alarm(etcdserverpb.AlarmRequest_ACTIVATE, etcdserverpb.AlarmType_NOSPACE),
		end:    alarm(etcdserverpb.AlarmRequest_DEACTIVATE, etcdserverpb.AlarmType_NOSPACE),
		reason: "database space exceeded",
	},
	{
		name:   "corrupt",
		begin:  alarm(etcdserverpb.AlarmRequest_ACTIVATE, etcdserverpb.AlarmType_CORRUPT),
		end:    alarm(etcdserverpb.AlarmRequest_DEACTIVATE, etcdserverpb.AlarmType_CORRUPT),
		reason: "corrupt",
	},
	{
		name: "rights withdrawn",
		begin: func(ctx context.Context, root *clientv3.Client) error {
			return second(root.RoleRevokePermission(ctx, "mit", "/mit/", clientv3.GetPrefixRangeEnd("/mit/")))
		},
		end:    grantRights(clientv3.PermissionType(clientv3.PermReadWrite)),
		reason: "permission denied",
	},
	{
		name:   "read only",
		begin:  grantRights(clientv3.PermissionType(clientv3.PermRead)),
		end:    grantRights(clientv3.PermissionType(clientv3.PermReadWrite)),
		reason: "permission denied",
	},
	{
		name: "password changed",
		begin: func(ctx context.Context, root *clientv3.Client) error {
			return second(root.UserChangePassword(ctx, "mit", "another"))
		},
		end: func(ctx context.Context, root *clientv3.Client) error {
			return second(root.UserChangePassword(ctx, "mit", "hunter2"))
		},
		reason: "authentication failed",
	},
}

func alarm(action etcdserverpb.AlarmRequest_AlarmAction, kind etcdserverpb.AlarmType) func(context.Context, *clientv3.Client) error {
	return func(ctx context.Context, root *clientv3.Client) error {
		members, err := root.MemberList(ctx)
		if err != nil {
			return err
		}
		return second(etcdserverpb.NewMaintenanceClient(root.ActiveConnection()).Alarm(ctx, &etcdserverpb.AlarmRequest{
			Action: action, Alarm: kind, MemberID: members.Members[0].ID,
		}))
	}
}

func grantRights(rights clientv3.PermissionType) func(context.Context, *clientv3.Client) error {
	return func(ctx context.Context, root *clientv3.Client) error {
		return second(root.RoleGrantPermission(ctx, "mit", "/mit/", clientv3.GetPrefixRangeEnd("/mit/"), rights))
	}
}

// withAuth enables users on etcd and returns a client of the superuser.
func withAuth(t *testing.T, c *etcdtest.Cluster) *clientv3.Client {
	t.Helper()
	client := c.Client(t)
	ctx := t.Context()
	for _, err := range []error{
		second(client.UserAdd(ctx, "root", "toor")),
		second(client.UserGrantRole(ctx, "root", "root")),
		second(client.RoleAdd(ctx, "mit")),
		grantRights(clientv3.PermissionType(clientv3.PermReadWrite))(ctx, client),
		second(client.UserAdd(ctx, "mit", "hunter2")),
		second(client.UserGrantRole(ctx, "mit", "mit")),
		second(client.AuthEnable(ctx)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints, Username: "root", Password: "toor"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = root.Close() })
	return root
}

// While etcd refuses writes, health is 503 with the reason, and good again soon after.
func TestRefusedWrites(t *testing.T) {
	t.Parallel()
	for _, r := range refusals {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			c := etcdtest.RunWith(t, etcdtest.Options{Members: 1, Dir: t.TempDir()})
			root := withAuth(t, c)
			s := open(t, etcd.Config{Endpoints: c.Endpoints, Username: "mit", Password: "hunter2", Timeout: 4 * time.Second})
			put(t, s, "a")
			check := func(when string, want int, reason string) {
				t.Helper()
				// Checks are 24 s apart if there are no writes.
				var status int
				var body string
				for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
					status, body = health(t, s)
					if strings.Contains(body, "hunter2") {
						t.Fatalf("%s: health tells the password: %s", when, body)
					}
					if status == want && strings.Contains(body, reason) {
						return
					}
				}
				t.Fatalf("%s: health is %d %s, want %d %s", when, status, body, want, reason)
			}
			for _, idle := range []bool{false, true} { // with and without renewals
				if err := r.begin(t.Context(), root); err != nil {
					t.Fatal(err)
				}
				if !idle {
					if _, err := s.Put(t.Context(), registration("a"), hour); err == nil {
						t.Error("a renewal succeeded")
					}
				}
				check(fmt.Sprintf("idle %v", idle), http.StatusServiceUnavailable, r.reason)
				if err := r.end(t.Context(), root); err != nil {
					t.Fatal(err)
				}
				check("afterwards", http.StatusOK, "ok")
				put(t, s, "a")
			}
		})
	}
}

// Checks change nothing: no revision, and no lease that lasts.
func TestChecksWriteNothing(t *testing.T) {
	t.Parallel()
	c := etcdtest.Run(t, 1)
	s := open(t, etcd.Config{Endpoints: c.Endpoints, Timeout: time.Second})
	put(t, s, "a")
	client := c.Client(t)
	before, err := client.Get(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(14 * time.Second) // two checks
	after, err := client.Get(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if after.Header.Revision != before.Header.Revision {
		t.Errorf("revision %d, was %d", after.Header.Revision, before.Header.Revision)
	}
	if n := longLeases(t, client); n != 1 {
		t.Errorf("%d leases, want that of the server", n)
	}
	if err := ready(s); err != nil {
		t.Error(err)
	}
}

// A refused client writes nothing, also if the registry has just started.
func TestRefusalsWriteNothing(t *testing.T) {
	t.Parallel()
	c := etcdtest.Run(t, 1)
	s := open(t, etcd.Config{Endpoints: c.Endpoints})
	for _, id := range []string{"a", "b"} {
		put(t, s, id)
	}
	client := c.Client(t)
	revision := func() int64 {
		t.Helper()
		resp, err := client.Get(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		return resp.Header.Revision
	}
	for name, limit := range map[string]mit.RegistryConfig{
		"409": {MaxServers: 2},
		"413": {MaxListBytes: 400},
	} {
		limit.Verify = func(string) (cluster.Claims, error) { return cluster.Claims{SubType: "mds"}, nil }
		registry, err := mit.NewRegistry(s, limit)
		if err != nil {
			t.Fatal(err)
		}
		register := func(id string) int {
			r := httptest.NewRequest(http.MethodPost, "/itResources", strings.NewReader(
				`{"type":"mds","serverId":"`+id+`","publicBaseUrl":"http://x/mds/v1","clusterBaseUrl":"http://10.0.0.1:1/mds/v1"}`))
			r.Header.Set("Authorization", "Bearer x")
			w := httptest.NewRecorder()
			registry.ServeHTTP(w, r)
			return w.Code
		}
		before := revision()
		for i := range 20 {
			if status := register(fmt.Sprint("new-", i)); fmt.Sprint(status) != name {
				t.Errorf("%d for one server too many, want %s", status, name)
			}
		}
		if n := revision() - before; n != 0 {
			t.Errorf("%s: 20 refusals wrote %d revisions", name, n)
		}
		if status := register("a"); status != http.StatusOK {
			t.Errorf("%s: %d for a renewal", name, status)
		}
	}
}

// A store stays ready if etcd refuses the write of one server only.
func TestRefusedServer(t *testing.T) {
	t.Parallel()
	c := etcdtest.Run(t, 1)
	s := open(t, etcd.Config{Endpoints: c.Endpoints, Timeout: time.Second})
	large := registration("large")
	large.ClusterBaseURL += strings.Repeat("x", 2<<20) // above etcd's limit of a request
	if _, err := s.Put(t.Context(), large, hour); err == nil {
		t.Fatal("put 2 MiB")
	}
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err := ready(s); err != nil {
			t.Fatal(err)
		}
	}
}

// Registrations without a response leave at most one lease in etcd.
func TestLeasesOfFailedPuts(t *testing.T) {
	t.Parallel()
	c := etcdtest.Run(t, 1)
	p := etcdtest.NewProxy(t, c.Endpoints[0])
	s := open(t, etcd.Config{Endpoints: []string{p.Addr}, Timeout: time.Second})
	p.Blackhole()
	var wg sync.WaitGroup
	for range 6 {
		for range 3 {
			wg.Go(func() {
				if _, err := s.Put(t.Context(), registration("a"), hour); err == nil {
					t.Error("put without a response")
				}
			})
		}
		wg.Wait()
	}
	n := longLeases(t, c.Client(t))
	t.Logf("%d leases", n)
	if n > 1 {
		t.Errorf("%d leases, want at most 1", n)
	}
}

// longLeases returns the number of leases in etcd, without the short ones of checks.
func longLeases(t *testing.T, client *clientv3.Client) (n int) {
	t.Helper()
	leases, err := client.Leases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range leases.Leases {
		ttl, err := client.TimeToLive(t.Context(), l.ID)
		if err != nil {
			t.Fatal(err)
		}
		if ttl.GrantedTTL >= 60 {
			n++
		}
	}
	return n
}
