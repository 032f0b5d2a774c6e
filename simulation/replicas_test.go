package main

import (
	"context"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/mit"
)

const (
	replicaNodes  = 1000
	replicaLease  = 30 * time.Second
	replicaPeriod = replicaLease * 2 / 3 // each node renews once

	// replicaShare is the number of requests per second to each of three replicas.
	replicaShare = replicaNodes / 3 / int(replicaPeriod/time.Second)
)

// TestThousandNodesOverThreeReplicas lets one replica of the registry hang and recover, and then
// restarts all replicas in turn. Each replica has its share of the nodes. While one fails, the
// others take over its share, and it gets the share back gradually. At no time do the nodes arrive
// together.
func TestThousandNodesOverThreeReplicas(t *testing.T) {
	if os.Getenv("SIMULATION") != "full" {
		t.Skip("long: SIMULATION=full runs it")
	}
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t)
		_, answered := r.run("before the fault", 5*replicaPeriod)
		r.wantEach("answered before the fault", answered, replicaNodes/4, replicaNodes*5/12)

		failing := replicaHosts()[0]
		r.world.Network.Fault(clustertest.Any, failing, clustertest.Hang)
		r.run("begin of the fault", 2*replicaPeriod)
		received, answered := r.run("fault", 5*replicaPeriod)
		r.wantEach("answered by the other two", answered[1:], replicaNodes*5/12, replicaNodes*7/12)
		// One in four renewals of a third of the nodes probes the preferred replica.
		r.wantEach("received by the failing one", received[:1], replicaNodes/24, replicaNodes/6)
		r.recover(failing)
		r.restartInTurn()
		for _, n := range r.world.Nodes {
			if s := n.Status(); s.State != cluster.Registered {
				t.Errorf("%s is %s: %v", n.ID, s.State, s.Reason)
			}
		}
	})
}

// A replicaTest is a world with three replicas of the registry, and counts their requests.
type replicaTest struct {
	t       *testing.T
	world   *clustertest.World
	traffic traffic
}

func replicaHosts() []string { return []string{"mit-1.test", "mit-2.test", "mit-3.test"} }

// startReplicas registers the nodes at even intervals.
func startReplicas(t *testing.T) *replicaTest {
	t.Helper()
	r := &replicaTest{t: t}
	r.world = clustertest.Start(t, 0,
		clustertest.WithLease(replicaLease),
		clustertest.WithStore(&arrivalStore{Memory: mit.NewMemory()}),
		clustertest.WithConfig(func(cfg *cluster.Config) {
			cfg.Management = false
			cfg.RegistryURL = "http://" + strings.Join(replicaHosts(), "/mIT/v1, http://") + "/mIT/v1"
		}),
		clustertest.WithOptions(cluster.WithTrace(&cluster.Trace{
			Renewal: func(ctx context.Context, _ cluster.RenewalInfo) (context.Context, func(cluster.RenewalResult)) {
				return ctx, func(r cluster.RenewalResult) {
					if r.RetryIn > 0 {
						t.Errorf("a renewal failed: %v", r.Err)
					}
				}
			},
		})))
	r.world.Network.Remove(clustertest.RegistryHost)
	for _, host := range replicaHosts() {
		r.world.Network.Handle(host, r.world.Registry)
	}
	r.world.Network.Observe(r.traffic.count)
	registerAll(t, r.world, replicaNodes, replicaPeriod/replicaNodes)
	r.traffic.take()
	return r
}

// recover ends the fault of a replica. The replica gets its nodes back gradually.
func (r *replicaTest) recover(failing string) {
	r.world.Network.Fault(clustertest.Any, failing, nil)
	received, _ := r.run("end of the fault", replicaPeriod)
	r.wantEach("received at once after the fault", received[:1], 0, replicaNodes/6)
	r.run("failback", 12*replicaPeriod)
	_, answered := r.run("after failback", 5*replicaPeriod)
	r.wantEach("answered after failback", answered, replicaNodes/4, replicaNodes*5/12)
}

// restartInTurn restarts one replica after the other.
func (r *replicaTest) restartInTurn() {
	for _, host := range replicaHosts() {
		r.world.Network.Fault(clustertest.Any, host, clustertest.Refuse)
		r.run("without "+host, replicaPeriod)
		r.world.Network.Fault(clustertest.Any, host, nil)
		r.run("with "+host, replicaPeriod)
	}
	r.run("after the restarts", 12*replicaPeriod)
	_, answered := r.run("at the end", 5*replicaPeriod)
	r.wantEach("answered at the end", answered, replicaNodes/4, replicaNodes*5/12)
}

// run lets time pass, and returns how many requests per period each replica received and answered.
// It checks that no replica receives too many in one second.
func (r *replicaTest) run(phase string, d time.Duration) (received, answered []int) {
	r.t.Helper()
	time.Sleep(d)
	synctest.Wait()
	received, answered, peaks := r.traffic.take()
	for i, host := range replicaHosts() {
		received[i] = int(time.Duration(received[i]) * replicaPeriod / d)
		answered[i] = int(time.Duration(answered[i]) * replicaPeriod / d)
		r.t.Logf("%s: %s received %d requests per period, answered %d, at most %d in a second", phase, host, received[i], answered[i], peaks[i])
		if peaks[i] > 4*replicaShare { // while others fail a replica has twice its share on average
			r.t.Errorf("%s: %s received %d requests in one second, its share is %d", phase, host, peaks[i], replicaShare)
		}
	}
	return received, answered
}

func (r *replicaTest) wantEach(what string, got []int, low, high int) {
	r.t.Helper()
	for _, n := range got {
		if n < low || n > high {
			r.t.Errorf("%s: %d, want each from %d to %d", what, got, low, high)
		}
	}
}

// A traffic counts the requests to each replica.
type traffic struct {
	mu        sync.Mutex // guards the fields below
	received  map[string]int
	answered  map[string]int
	perSecond map[string]map[int64]int
}

func (c *traffic) count(x clustertest.Exchange) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.received == nil {
		c.received, c.answered, c.perSecond = map[string]int{}, map[string]int{}, map[string]map[int64]int{}
	}
	c.received[x.To]++
	if x.Status == http.StatusOK {
		c.answered[x.To]++
	}
	if c.perSecond[x.To] == nil {
		c.perSecond[x.To] = map[int64]int{}
	}
	c.perSecond[x.To][x.Start.Unix()]++
}

// take returns the counts of each replica since the last call, and its largest count in one second.
func (c *traffic) take() (received, answered, peaks []int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, host := range replicaHosts() {
		peak := 0
		for _, n := range c.perSecond[host] {
			peak = max(peak, n)
		}
		received, answered, peaks = append(received, c.received[host]), append(answered, c.answered[host]), append(peaks, peak)
	}
	c.received = nil
	return received, answered, peaks
}
