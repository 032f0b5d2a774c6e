package cluster_test

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/internal/wire"
)

func mirrored() []string {
	return []string{"REGISTRATION_STATUS", "CLUSTER_STATUS_SERVERS", "CLUSTER_STATUS_UPDATED_AT", "CLUSTER_STATUS_LEASE_TIME"}
}

// inherit gives the environment the values that a parent process might have left in it, and
// sees to it that it is as before after the test.
func inherit(t *testing.T) {
	t.Helper()
	for _, name := range mirrored() {
		t.Setenv(name, "inherited")
	}
}

// environment is what is set of the four variables.
func environment() map[string]string {
	set := map[string]string{}
	for _, name := range mirrored() {
		if value, ok := os.LookupEnv(name); ok {
			set[name] = value
		}
	}
	return set
}

// wantEnvironment checks the four variables against the node's status and view. The lease and
// the size of the view are what the caller says they are.
func wantEnvironment(t *testing.T, n *clustertest.Node, registration string, lease time.Duration, servers ...string) {
	t.Helper()
	wantView(t, n, servers...)
	want := map[string]string{
		"REGISTRATION_STATUS":       registration,
		"CLUSTER_STATUS_SERVERS":    strconv.Itoa(len(servers)),
		"CLUSTER_STATUS_UPDATED_AT": wire.FormatTime(n.Status().UpdatedAt),
		"CLUSTER_STATUS_LEASE_TIME": strconv.FormatInt(lease.Milliseconds(), 10),
	}
	if diff := cmp.Diff(want, environment()); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
}

func TestEnvironmentOfAnOrphan(t *testing.T) {
	inherit(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0, clustertest.WithProcessEnv("node-1"))
		registryDown(w)
		n := w.Add()
		if got := environment(); len(got) != 4 || got["REGISTRATION_STATUS"] != "inherited" {
			t.Errorf("New changed the environment to %q", got)
		}
		registering(t.Context(), n)
		time.Sleep(time.Minute)
		got := environment()
		if !strings.HasPrefix(got["REGISTRATION_STATUS"], "orphan: mIT cannot be reached by POST ") {
			t.Errorf("REGISTRATION_STATUS is %q", got["REGISTRATION_STATUS"])
		}
		if len(got) != 1 {
			t.Errorf("the environment is %q, want nothing of a cluster that the node is not in", got)
		}
		n.Close()
		if got := environment(); !cmp.Equal(got, map[string]string{"REGISTRATION_STATUS": "orphan: cluster: closed"}) {
			t.Errorf("after Close it is %q", got)
		}
	})
}

// The first thing that Register does is to say that the node is none yet: a try may take long.
func TestEnvironmentDuringTheFirstTry(t *testing.T) {
	inherit(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0, clustertest.WithProcessEnv("node-1"))
		registryFault(w, clustertest.Hang)
		n := w.Add()
		registering(t.Context(), n)
		time.Sleep(time.Second)
		if got := environment(); !cmp.Equal(got, map[string]string{"REGISTRATION_STATUS": "orphan: cluster: not registered"}) {
			t.Errorf("the environment is %q", got)
		}
		n.Close()
	})
}

// The npm module, at 2.4, tells the count and the date in variables, but not the lease.
func TestEnvironmentFollowsTheView(t *testing.T) {
	inherit(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 1, clustertest.WithProcessEnv("node-1"))
		n := w.Nodes[0]
		wantEnvironment(t, n, "registered", time.Hour, "node-1")
		if got, want := environment()["CLUSTER_STATUS_UPDATED_AT"], "2000-01-01T00:00:00.000Z"; got != want {
			t.Errorf("CLUSTER_STATUS_UPDATED_AT is %q, want %q", got, want)
		}

		time.Sleep(90 * time.Second)
		w.Join()
		wantEnvironment(t, n, "registered", time.Hour, "node-1", "node-2")
		if got, want := environment()["CLUSTER_STATUS_UPDATED_AT"], "2000-01-01T00:01:30.000Z"; got != want {
			t.Errorf("CLUSTER_STATUS_UPDATED_AT is %q, want %q", got, want)
		}

		w.Join().UnRegister(t.Context())
		wantEnvironment(t, n, "registered", time.Hour, "node-1", "node-2")

		w.Registry.SetLease(90 * time.Minute)
		time.Sleep(time.Hour)
		wantEnvironment(t, n, "registered", 90*time.Minute, "node-1", "node-2")

		n.UnRegister(t.Context())
		wantEnvironment(t, n, "orphan: cluster: not registered: it has left", 90*time.Minute, "node-1", "node-2")
	})
}

// The npm module keeps the count of before until its next renewal.
func TestReferenceEnvironmentAfterEviction(t *testing.T) {
	inherit(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3, clustertest.WithProcessEnv("node-1"))
		n := w.Nodes[0]
		time.Sleep(time.Minute)
		w.Nodes[1].Kill()
		if _, err := n.RPCluster(t.Context(), cluster.Request{Path: "/things"}); err != nil {
			t.Fatal(err)
		}
		wantEnvironment(t, n, "registered", time.Hour, "node-1", "node-3")
	})
}

// What a peer evicts, this node is told of.
func TestEnvironmentAfterAnEvictionElsewhere(t *testing.T) {
	inherit(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 3, clustertest.WithProcessEnv("node-1"))
		w.Nodes[1].Kill()
		if _, err := w.Nodes[2].RPCluster(t.Context(), cluster.Request{Path: "/things"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // the word spreads
		wantEnvironment(t, w.Nodes[0], "registered", time.Hour, "node-1", "node-3")
	})
}

// REGISTRATION_STATUS tells of the lease, not of the last try.
func TestEnvironmentThroughAnOutage(t *testing.T) {
	inherit(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2, clustertest.WithProcessEnv("node-1"))
		n := w.Nodes[0]
		registryFault(w, clustertest.Status(503))
		time.Sleep(time.Hour - time.Nanosecond)
		wantState(t, n, cluster.Degraded)
		wantEnvironment(t, n, "registered", time.Hour, "node-1", "node-2")
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		wantState(t, n, cluster.Lost)
		wantEnvironment(t, n, "orphan: mIT answered 503 Service Unavailable to POST http://mit.test/mIT/v1/itResources: "+
			"not from the server: a fault of the network", time.Hour, "node-1", "node-2")
		registryFault(w, nil)
		time.Sleep(time.Minute)
		wantEnvironment(t, n, "registered", time.Hour, "node-1", "node-2")
	})
}

// A NUL in a variable cannot be, and a line break would be somebody else's line.
func TestEnvironmentOfAHostileReason(t *testing.T) {
	inherit(t)
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 0, clustertest.WithProcessEnv("node-1"))
		registryFault(w, answerStatus(500, `{"statusCode":500,"message":"a\u0000b\nREGISTRATION_STATUS=registered"}`))
		n := w.Add()
		registering(t.Context(), n)
		time.Sleep(time.Second)
		want := "orphan: mIT answered 500 Internal Server Error to POST http://mit.test/mIT/v1/itResources: a b REGISTRATION_STATUS=registered"
		if got := os.Getenv("REGISTRATION_STATUS"); got != want {
			t.Errorf("REGISTRATION_STATUS is %q, want %q", got, want)
		}
		n.Close()
	})
}

func TestWithoutEnvLeavesItAlone(t *testing.T) {
	inherit(t)
	before := environment()
	synctest.Test(t, func(t *testing.T) {
		w := clustertest.Start(t, 2)
		time.Sleep(2 * time.Hour)
		w.Nodes[0].UnRegister(t.Context())
	})
	if diff := cmp.Diff(before, environment()); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
}
