package cluster_test

import (
	"context"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/mit"
)

// TestAtRest holds what a Cluster costs while nothing happens, knowing a thousand servers, to one
// goroutine, less than a MiB, and its renewals.
func TestIdleFootprint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const clusters, servers, lease = 10, 1000, time.Hour
		store := &fixedStore{servers: fixedServers(0, servers-1)}
		worlds := make([]*clustertest.World, clusters)
		for i := range worlds {
			worlds[i] = startFixed(t, store, 0, clustertest.WithLease(lease))
			first := worlds[i].Join() // so that the registry already has what it keeps of its answers
			first.Close()
			worlds[i].Network.Remove(first.Host)
			worlds[i].Nodes = nil
		}
		heap, goroutines := heapInUse(), ownGoroutines()
		for _, w := range worlds {
			w.Join()
		}
		time.Sleep(2 * time.Minute) // beyond the second look of those that find themselves alone
		synctest.Wait()

		if got := ownGoroutines() - goroutines; got != clusters {
			t.Errorf("%d clusters have %d goroutines, want one each", clusters, got)
		}
		each := (heapInUse() - heap) / clusters
		t.Logf("a cluster of %d servers holds %d KiB, %d bytes per server", servers, each>>10, each/servers)
		if each >= 1<<20 {
			t.Errorf("a cluster of %d servers holds %d bytes, want less than a MiB", servers, each)
		}

		// From here on a node does nothing but renew, no sooner than two thirds of the lease less a
		// tenth of that, and get a token now and then.
		var mu sync.Mutex
		renewals := 0
		for _, w := range worlds {
			if got := w.Nodes[0].Status().Servers; got != servers {
				t.Fatalf("a node knows %d servers, want %d", got, servers)
			}
			last := w.Nodes[0].Status().RenewedAt
			w.Network.Observe(func(x clustertest.Exchange) {
				mu.Lock()
				defer mu.Unlock()
				switch {
				case x.To == clustertest.RegistryHost:
					renewals++
					if since := x.Start.Sub(last); since < lease*6/10 {
						t.Errorf("a renewal %v after the last", since)
					}
					last = x.Start
				case x.To != clustertest.TokenHost:
					t.Errorf("%s %s%s at rest", x.Method, x.To, x.Path)
				}
			})
		}
		time.Sleep(2 * lease)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if renewals < 2*clusters {
			t.Errorf("%d renewals of %d clusters in two leases", renewals, clusters)
		}
	})
}

// TestRenewalDuringFanOut has the view of a thousand servers replaced while they are being asked.
// The call accounts for those it began with, and nobody who looks at the view waits, or sees it
// half-changed.
func TestRenewalDuringFanOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const (
			slow  = 5 * time.Second // what each peer takes; with 256 at a time all take four times that
			early = 7 * time.Second // how long before the renewal the fan-out begins
		)
		was, is := fixedServers(0, 1000), fixedServers(500, 1000)
		store := &fixedStore{servers: was}
		var renewAt time.Time
		w := startFixed(t, store, slow, clustertest.WithOptions(cluster.WithTrace(&cluster.Trace{
			Renewed: func(_, renewIn time.Duration) { renewAt = time.Now().Add(renewIn) },
		})))
		n := w.Join()
		store.set(is)

		time.Sleep(time.Until(renewAt) - early)
		done := make(chan *cluster.Response, 1)
		start := time.Now()
		go func() {
			res, err := n.RPCluster(t.Context(), cluster.Request{Path: "/things"})
			if err != nil {
				t.Error(err)
			}
			done <- res
		}()

		before, after := idsOf(was), idsOf(is)
		var res *cluster.Response
		var swapped time.Duration // after how long the view was seen to be another
		for res == nil {
			asked := time.Now()
			ids, status := idsOf(n.Servers()), n.Status()
			if took := time.Since(asked); took > 0 {
				t.Errorf("looking at the view took %v", took)
			}
			switch {
			case swapped == 0 && slices.Equal(ids, before):
			case slices.Equal(ids, after):
				if swapped == 0 {
					swapped = time.Since(start)
				}
			default:
				t.Fatalf("after %v the view has %d servers from %s on: neither the old nor the new", time.Since(start), len(ids), ids[1])
			}
			if status.State != cluster.Registered || status.Servers != len(before) {
				t.Errorf("after %v: %s with %d servers", time.Since(start), status.State, status.Servers)
			}
			select {
			case res = <-done:
			case <-time.After(100 * time.Millisecond):
			}
		}
		took := time.Since(start)
		if swapped == 0 || swapped < early || swapped >= took {
			t.Errorf("the view changed after %v, the fan-out took %v: want the change within it", swapped, took)
		}
		got := idsOfOutcomes(res.Results)
		if len(res.Failures) > 0 {
			t.Errorf("%d failures, the first: %v", len(res.Failures), res.Failures[0].Err)
		}
		if want := before[1:]; !slices.Equal(got, want) {
			t.Errorf("%d results, from %s to %s; want those of the view that the call began with: %d, from %s to %s",
				len(got), got[0], got[len(got)-1], len(want), want[0], want[len(want)-1])
		}
	})
}

// TestOutage has mIT away for ten leases of a thousand nodes, and mST for four of these, so that
// all tokens expire. Each node must be registered again without a restart soon after mIT is back,
// and they must not all come at once: neither then nor when they next renew.
//
// How even they come is measured in tenths of the time that it takes all of them to come back:
// wherever such a tenth begins, it may have at most twice the mean.
func TestOutage(t *testing.T) {
	for name, fault := range map[string]clustertest.Fault{
		"refusing": clustertest.Refuse,
		"hanging":  clustertest.Hang,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { testOutage(t, fault) })
		})
	}
}

func testOutage(t *testing.T, fault clustertest.Fault) {
	t.Helper()
	const (
		nodes     = 1000
		lease     = 6 * time.Minute
		tokenLife = 3 * lease

		patience = time.Minute // the longest pause between two tries, the timeout of one, and some
	)
	registrations := &arrivalStore{Memory: mit.NewMemory()}
	w := clustertest.Start(t, 0,
		clustertest.WithLease(lease),
		clustertest.WithTokenTTL(tokenLife),
		clustertest.WithStore(registrations),
		clustertest.WithConfig(func(cfg *cluster.Config) { cfg.Management = false }))
	for range nodes { // all at the same instant, as after a deployment
		n := w.Add()
		go func() {
			if _, err := n.Register(t.Context()); err != nil {
				t.Error(err)
			}
		}()
	}
	states := func() map[cluster.State]int {
		synctest.Wait()
		count := make(map[cluster.State]int)
		for _, n := range w.Nodes {
			count[n.Status().State]++
		}
		return count
	}
	if got := states(); got[cluster.Registered] != nodes {
		t.Fatalf("at first: %v", got)
	}

	time.Sleep(lease)
	w.Network.Fault(clustertest.Any, clustertest.RegistryHost, fault)
	time.Sleep(4 * lease)
	w.Network.Fault(clustertest.Any, clustertest.TokenHost, fault)
	time.Sleep(4 * lease)
	w.Network.Fault(clustertest.Any, clustertest.TokenHost, nil)
	time.Sleep(2 * lease)
	if got := states(); got[cluster.Lost] != nodes {
		t.Errorf("after ten leases without mIT: %v, want all lost", got)
	}
	registrations.take()
	w.Network.Fault(clustertest.Any, clustertest.RegistryHost, nil)
	back := time.Now()
	time.Sleep(patience)
	if got := states(); got[cluster.Registered] != nodes {
		t.Errorf("%v after mIT came back: %v, want all registered", patience, got)
	}
	for _, n := range w.Nodes {
		if got := n.Status().Registration(); got != "registered" {
			t.Fatalf("%s: REGISTRATION_STATUS is %q", n.ID, got)
		}
	}
	recovery := registrations.take()
	if len(recovery) != nodes {
		t.Fatalf("%d registrations in %v, want one of each node", len(recovery), patience)
	}
	took := recovery[nodes-1].Sub(back)
	checkSpread(t, "registrations after the outage", recovery, took/10)

	// The next renewals are no denser: each is as far from the others as the registrations were,
	// give or take its jitter.
	time.Sleep(lease - patience)
	renewals := registrations.take()
	if len(renewals) != nodes {
		t.Fatalf("%d renewals in the lease after that, want one of each node", len(renewals))
	}
	checkSpread(t, "next renewals", renewals, took/10)
}

// checkSpread checks that no stretch of time of that length has more than two tenths of all
// arrivals.
func checkSpread(t *testing.T, what string, at []time.Time, length time.Duration) {
	t.Helper()
	peak := 0
	for i := range at { // wherever the fullest stretch is, one as full begins with an arrival
		end, _ := slices.BinarySearchFunc(at, at[i].Add(length), time.Time.Compare)
		peak = max(peak, end-i)
	}
	share := float64(peak) / float64(len(at))
	t.Logf("%s: %d within %v, at most %d of them in %v: %.2f times a tenth", what, len(at), at[len(at)-1].Sub(at[0]), peak, length, 10*share)
	if share > 0.2 {
		t.Errorf("%s: %d of %d came within %v", what, peak, len(at), length)
	}
}

// TestThousandNodesOverThreeReplicas has one replica hang and come back, and then all of them
// restarted in turn. Each has its share of the nodes, and when one is gone the others have; when it
// comes back it gets them back by and by; and at no time do they come together.
func TestThousandNodesOverThreeReplicas(t *testing.T) {
	synctest.Test(t, testThousandNodesOverThreeReplicas)
}

func testThousandNodesOverThreeReplicas(t *testing.T) {
	const (
		nodes  = 1000
		lease  = 30 * time.Second
		period = lease * 2 / 3                       // a renewal of each
		share  = nodes / 3 / int(period/time.Second) // requests per second, to each of three
	)
	w := startReplicas(t, 0,
		clustertest.WithLease(lease),
		clustertest.WithStore(&arrivalStore{Memory: mit.NewMemory()}),
		clustertest.WithConfig(func(cfg *cluster.Config) {
			cfg.Management = false
			cfg.RegistryURL = replicaURLs()
		}),
		clustertest.WithOptions(cluster.WithTrace(&cluster.Trace{
			RenewFailed: func(err error, _ time.Duration) { t.Errorf("a renewal failed: %v", err) },
		})))
	var traffic traffic
	w.Network.Observe(traffic.note)
	// phase lets time pass, and gives how many requests came to each replica per period, and how
	// many of them it answered.
	phase := func(what string, d time.Duration) (came, answered []int) {
		t.Helper()
		time.Sleep(d)
		synctest.Wait()
		came, answered, peaks := traffic.take()
		for i, host := range replicaHosts() {
			came[i] = int(time.Duration(came[i]) * period / d)
			answered[i] = int(time.Duration(answered[i]) * period / d)
			t.Logf("%s: %s had %d requests per period, answered %d, at most %d in a second", what, host, came[i], answered[i], peaks[i])
			if peaks[i] > 4*share { // where others are gone it has up to twice its share, give or take what is random
				t.Errorf("%s: %d requests in one second to %s, whose share is %d", what, peaks[i], host, share)
			}
		}
		return came, answered
	}
	within := func(what string, got []int, low, high int) {
		t.Helper()
		for _, n := range got {
			if n < low || n > high {
				t.Errorf("%s: %d, want each from %d to %d", what, got, low, high)
			}
		}
	}

	for range nodes { // not all at once: what that does is another test's concern
		n := w.Add()
		go func() {
			if _, err := n.Register(t.Context()); err != nil {
				t.Error(err)
			}
		}()
		time.Sleep(period / nodes)
	}
	traffic.take()
	_, answered := phase("before", 5*period)
	within("before", answered, nodes/4, nodes*5/12)

	dead := replicaHosts()[0]
	w.Network.Fault(clustertest.Any, dead, clustertest.Hang)
	phase("just dead", 2*period)
	came, answered := phase("dead", 5*period)
	within("answered by the other two", answered[1:], nodes*5/12, nodes*7/12)
	within("tried at the dead one", came[:1], nodes/24, nodes/6) // by each fourth of its third
	w.Network.Fault(clustertest.Any, dead, nil)
	came, _ = phase("just back", period)
	within("back at once", came[:1], 0, nodes/6)
	phase("back", 12*period)
	_, answered = phase("long back", 5*period)
	within("long back", answered, nodes/4, nodes*5/12)

	for _, host := range replicaHosts() { // a rolling restart
		w.Network.Fault(clustertest.Any, host, clustertest.Refuse)
		phase("without "+host, period)
		w.Network.Fault(clustertest.Any, host, nil)
		phase("with "+host, period)
	}
	phase("restarted", 12*period)
	_, answered = phase("long restarted", 5*period)
	within("long restarted", answered, nodes/4, nodes*5/12)
	for _, n := range w.Nodes {
		wantState(t, n, cluster.Registered)
	}
}

// arrivals is a store that notes when servers register or renew, and tells each of itself alone:
// a thousand lists of a thousand servers are another test's concern.
type arrivalStore struct {
	*mit.Memory

	mu sync.Mutex // guards the field below
	at []time.Time
}

func (a *arrivalStore) Put(ctx context.Context, reg mit.Registration, life time.Duration) (mit.Resource, error) {
	a.mu.Lock()
	a.at = append(a.at, time.Now())
	a.mu.Unlock()
	now := time.Now()
	return mit.Resource{ID: mit.ResourceID(reg.Type), Type: reg.Type, Servers: []cluster.Server{
		{ServerID: reg.ServerID, ClusterBaseURL: reg.ClusterBaseURL, CreatedAt: now, UpdatedAt: now},
	}}, nil
}

// take gives the arrivals since it was last called.
func (a *arrivalStore) take() []time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.at
	a.at = nil
	return at
}

// traffic counts what comes to each replica.
type traffic struct {
	mu       sync.Mutex // guards the fields below
	came     map[string]int
	answered map[string]int
	seconds  map[string]map[int64]int
}

func (c *traffic) note(x clustertest.Exchange) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.came == nil {
		c.came, c.answered, c.seconds = map[string]int{}, map[string]int{}, map[string]map[int64]int{}
	}
	c.came[x.To]++
	if x.Status == http.StatusOK {
		c.answered[x.To]++
	}
	if c.seconds[x.To] == nil {
		c.seconds[x.To] = map[int64]int{}
	}
	c.seconds[x.To][x.Start.Unix()]++
}

// take gives what each replica had since it was last called: requests, those that it answered, and
// the most in one second.
func (c *traffic) take() (came, answered, peaks []int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, host := range replicaHosts() {
		peak := 0
		for _, n := range c.seconds[host] {
			peak = max(peak, n)
		}
		came, answered, peaks = append(came, c.came[host]), append(answered, c.answered[host]), append(peaks, peak)
	}
	c.came = nil
	return came, answered, peaks
}

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC() // what the first one finalized, and what pools kept for one more
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// ownGoroutines counts the goroutines that run code of the package.
func ownGoroutines() int {
	stacks := make([]byte, 16<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	count := 0
	for stack := range strings.SplitSeq(string(stacks), "\n\n") {
		if strings.Contains(stack, "github.com/mimiktech/cluster.") {
			count++
		}
	}
	return count
}
