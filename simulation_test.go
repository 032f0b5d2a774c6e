package cluster_test

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
	"github.com/mimiktech/cluster/mit"
)

// TestSimulation has fifty nodes live through a week in which all that can fail does: nodes
// restart, die, leave and join, the network falls apart and heals, and the registry and the token
// service come and go, while nodes ask each other all along. See [simulation.look] for what must
// always hold, and [simulation.settle] for what must hold once all is well again.
//
// What happens, when, and to whom, is drawn from the seed alone, so that a seed which fails can
// be had again:
//
//	go test -run TestSimulation -simulation.seed=17 .
//
// A replay is close, but not the same to the last bit: the nodes jitter what they do by chance of
// their own, and of goroutines that wake at the same instant any may run first.
func TestSimulation(t *testing.T) {
	seeds := []uint64{1 + rand.Uint64N(1e6), 1, 2}
	if raceDetector { // a week takes several times as long
		seeds = seeds[:1]
	}
	if *simulationSeed != 0 {
		seeds = []uint64{*simulationSeed}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			t.Logf("to have it again: go test -run TestSimulation -simulation.seed=%d .", seed)
			synctest.Test(t, func(t *testing.T) { simulate(t, seed) })
		})
	}
}

//nolint:gochecknoglobals // a flag must be there before the tests start
var simulationSeed = flag.Uint64("simulation.seed", 0, "run TestSimulation with this seed alone, and log what happens in it")

const (
	simulatedNodes = 50
	simulatedTime  = 7 * 24 * time.Hour
	simulatedLease = 8 * time.Hour

	// How long the registry keeps a silent server.
	simulatedGrace = simulatedLease * 3 / 2

	// The shortest trouble goes unnoticed by most, the longest costs all of them their leases.
	shortestTrouble = 10 * time.Second
	longestTrouble  = simulatedLease * 5 / 4
)

func simulate(t *testing.T, seed uint64) {
	t.Helper()
	s := &simulation{t: t, rand: rand.New(rand.NewPCG(seed, 0)), start: time.Now()}
	s.World = clustertest.Start(t, simulatedNodes,
		clustertest.WithLease(simulatedLease),
		clustertest.WithTokenTTL(simulatedLease), // shorter than the longest troubles
		clustertest.WithOptions(cluster.WithTrace(s.count())))
	for _, n := range s.Nodes {
		s.members = append(s.members, &member{Node: n, living: true})
	}
	s.plan()
	for len(s.agenda) > 0 && !t.Failed() {
		next := s.agenda[0]
		s.agenda = s.agenda[1:]
		time.Sleep(time.Until(s.start.Add(next.at)))
		synctest.Wait()
		if next.at > simulatedTime {
			break
		}
		next.do()
		synctest.Wait()
		s.look()
	}
	if !t.Failed() {
		s.settle()
	}
	s.work.Wait()
	t.Log(s.tally())
	if t.Failed() || *simulationSeed != 0 {
		t.Log("what happened:\n" + strings.Join(s.history, "\n"))
	}
}

// A simulation is a world, what is to happen in it, and what is known of it without asking it.
type simulation struct {
	*clustertest.World

	t       *testing.T
	rand    *rand.Rand // drawn from by the test's goroutine only, and in the order of the agenda
	start   time.Time
	agenda  []event // in the order of their times
	members []*member
	work    sync.WaitGroup // calls under way
	history []string

	parted, noRegistry, noTokens bool

	fanOuts, results, failures, evicted, spared, lost, renewed, missed atomic.Int64
}

// count has the nodes report what the simulation puts them through.
func (s *simulation) count() *cluster.Trace {
	return &cluster.Trace{
		StateChanged: func(_, to cluster.Status) {
			if to.State == cluster.Lost {
				s.lost.Add(1)
			}
		},
		Renewed:         func(time.Duration, time.Duration) { s.renewed.Add(1) },
		RenewFailed:     func(error, time.Duration) { s.missed.Add(1) },
		Evicted:         s.checkEvicted,
		EvictionSkipped: func(cluster.Server, error) { s.spared.Add(1) },
	}
}

// checkEvicted checks that nobody is evicted against mIT's word: if it lists the server at all, it
// must be another, newer entry.
func (s *simulation) checkEvicted(gone cluster.Server) {
	s.evicted.Add(1)
	for _, listed := range s.Registered() {
		if listed.ServerID == gone.ServerID && !listed.UpdatedAt.After(gone.UpdatedAt) {
			s.t.Errorf("%v: %s was evicted, but mIT lists it", time.Since(s.start), gone.ServerID)
		}
	}
}

func (s *simulation) tally() string {
	return fmt.Sprintf("%d nodes in all; %d fan-outs with %d results and %d failures; %d evicted, %d spared; %d renewals, %d missed, %d leases lost",
		len(s.members), s.fanOuts.Load(), s.results.Load(), s.failures.Load(),
		s.evicted.Load(), s.spared.Load(), s.renewed.Load(), s.missed.Load(), s.lost.Load())
}

// plan draws what happens when. What comes of an event, such as that a partition heals, enters
// the agenda with it.
func (s *simulation) plan() {
	for _, kind := range []struct {
		times int
		do    func()
	}{
		{80, s.fanOut},
		{10, s.restart},
		{8, s.die},
		{4, s.leave},
		{6, s.join},
		{2, s.slander},
		{8, s.part},
		{4, s.troubleRegistry},
		{3, s.troubleTokens},
	} {
		for range kind.times {
			s.agenda = append(s.agenda, event{time.Duration(s.rand.Int64N(int64(simulatedTime))), kind.do})
		}
	}
	if s.rand.IntN(2) == 0 { // the week ends badly, one way or the other
		s.agenda = append(s.agenda, event{simulatedTime - time.Minute, s.halve})
	} else {
		s.agenda = append(s.agenda, event{simulatedTime, s.forget})
	}
	slices.SortStableFunc(s.agenda, byTime)
}

// after puts an event into the agenda.
func (s *simulation) after(d time.Duration, do func()) {
	e := event{time.Since(s.start) + d, do}
	i, _ := slices.BinarySearchFunc(s.agenda, e, byTime)
	s.agenda = slices.Insert(s.agenda, i, e)
}

// between draws a duration, of which short ones are as likely as long ones: each doubling counts
// the same.
func (s *simulation) between(least, most time.Duration) time.Duration {
	return time.Duration(float64(least) * math.Pow(float64(most)/float64(least), s.rand.Float64()))
}

func (s *simulation) happened(format string, args ...any) {
	s.history = append(s.history, fmt.Sprintf("%12s  ", time.Since(s.start).Round(time.Millisecond))+fmt.Sprintf(format, args...))
}

func (s *simulation) living() []*member {
	var living []*member
	for _, m := range s.members {
		if m.living {
			living = append(living, m)
		}
	}
	return living
}

func (s *simulation) anyone() *member {
	living := s.living()
	return living[s.rand.IntN(len(living))]
}

// register registers a node, however long that takes; the world goes on.
func (s *simulation) register(m *member) {
	m.living, m.died = true, time.Time{}
	c := m.Cluster // a later restart has another
	s.work.Go(func() { _, _ = c.Register(s.t.Context()) })
}

func (s *simulation) kill(m *member) {
	m.living, m.died, m.missing = false, time.Now(), time.Time{}
	m.Kill()
}

func (s *simulation) restart() {
	m, pause := s.anyone(), s.between(time.Millisecond, 3*time.Minute)
	s.happened("%s restarts within %v", m.ID, pause)
	s.kill(m)
	s.after(pause, func() { s.revive(m) })
}

func (s *simulation) die() {
	if len(s.living()) <= simulatedNodes/2 {
		return
	}
	m := s.anyone()
	s.happened("%s dies", m.ID)
	s.kill(m)
	if s.rand.IntN(2) == 0 {
		s.after(s.between(time.Minute, 4*simulatedLease), func() { s.revive(m) })
	}
}

func (s *simulation) revive(m *member) {
	s.happened("%s is back", m.ID)
	m.StartUnregistered()
	s.register(m)
}

func (s *simulation) leave() {
	if len(s.living()) <= simulatedNodes/2 {
		return
	}
	m := s.anyone()
	s.happened("%s leaves", m.ID)
	m.living, m.died = false, time.Now()
	s.work.Go(func() {
		m.UnRegister(s.t.Context())
		s.Network.Remove(m.Host)
		_ = m.Close() // it returns nil
	})
}

func (s *simulation) join() {
	m := &member{Node: s.Add()}
	s.happened("%s joins", m.ID)
	s.members = append(s.members, m)
	s.register(m)
}

// slander has a node tell all others that one of them is gone, who is not.
func (s *simulation) slander() {
	liar, victim := s.anyone(), s.anyone()
	s.happened("%s says that %s is gone", liar.ID, victim.ID)
	c := liar.Cluster
	s.work.Go(func() {
		_, err := c.RPCluster(s.t.Context(), cluster.Request{
			Method: http.MethodDelete,
			Path:   "/itResources/" + mit.ResourceID("mds") + "/servers/" + victim.ID,
		})
		if err != nil {
			s.t.Errorf("%s: slander: %v", liar.ID, err)
		}
	})
}

// part breaks the network: into two or three groups that no longer reach each other, or with
// single connections that are dead in one direction. The registry and the token service are on
// any side, each on its own, or still reached from everywhere.
func (s *simulation) part() {
	if s.parted {
		return
	}
	s.parted = true
	lasts := s.between(shortestTrouble, longestTrouble)
	if s.rand.IntN(4) == 0 {
		for range 20 {
			from, to := s.anyone(), s.anyone()
			s.Network.CutOneWay(from.Host, to.Host)
		}
		s.happened("20 connections are dead one way for %v", lasts)
	} else {
		groups := make([][]string, 2+s.rand.IntN(2))
		weight := s.rand.Float64() // some partitions are even, some cut off a few
		side := func() int {
			if s.rand.Float64() < weight {
				return 0
			}
			return s.rand.IntN(len(groups))
		}
		for _, m := range s.members {
			i := side()
			groups[i] = append(groups[i], m.Host)
		}
		for _, host := range []string{clustertest.RegistryHost, clustertest.TokenHost} {
			if s.rand.IntN(3) > 0 {
				i := side()
				groups[i] = append(groups[i], host)
			}
		}
		s.Network.Partition(groups...)
		s.happened("the network is parted for %v: %v", lasts, groups)
	}
	s.askDuring(lasts)
	s.after(lasts, func() {
		s.happened("the network is whole again")
		s.Network.Heal()
		s.parted = false
	})
}

// halve cuts a third of the nodes off from the others, but not from the registry, so that the
// others evict them.
func (s *simulation) halve() {
	s.parted = true
	var groups [2][]string
	for i, m := range s.living() {
		side := min(i%3, 1)
		groups[side] = append(groups[side], m.Host)
	}
	s.happened("the network is parted for the rest of the week: %v", groups)
	s.Network.Partition(groups[0], groups[1])
	s.after(time.Second, s.fanOut)
	s.after(2*time.Second, s.fanOut)
}

func (s *simulation) forget() {
	s.happened("the registry loses its memory")
	s.ResetRegistry()
}

func (s *simulation) troubleRegistry() {
	if s.noRegistry {
		return
	}
	s.noRegistry = true
	lasts, forgets := s.between(shortestTrouble, longestTrouble), s.rand.IntN(3) == 0
	s.trouble(clustertest.RegistryHost, lasts)
	s.after(time.Duration(s.rand.Int64N(int64(lasts))), s.slander)
	s.after(lasts, func() {
		s.happened("the registry is back")
		if forgets {
			s.forget()
		}
		s.Network.Fault(clustertest.Any, clustertest.RegistryHost, nil)
		s.noRegistry = false
	})
}

func (s *simulation) troubleTokens() {
	if s.noTokens {
		return
	}
	s.noTokens = true
	lasts := s.between(shortestTrouble, longestTrouble)
	s.trouble(clustertest.TokenHost, lasts)
	s.after(lasts, func() {
		s.happened("the token service is back")
		s.Network.Fault(clustertest.Any, clustertest.TokenHost, nil)
		s.noTokens = false
	})
}

// trouble makes a service fail in one way or another.
func (s *simulation) trouble(host string, lasts time.Duration) {
	faults := []struct {
		name  string
		fault clustertest.Fault
	}{
		{"refuses connections", clustertest.Refuse},
		{"hangs", clustertest.Hang},
		{"answers 500", clustertest.Status(500)},
		{"answers half of the time", clustertest.WithProbability(0.5, s.rand.Uint64(), clustertest.Status(503))},
		{"does what it is asked and breaks off now and then", clustertest.WithProbability(0.2, s.rand.Uint64(), clustertest.Reset)},
	}
	f := faults[s.rand.IntN(len(faults))]
	s.happened("%s %s for %v", host, f.name, lasts)
	s.Network.Fault(clustertest.Any, host, f.fault)
	s.askDuring(lasts)
}

// askDuring has nodes ask each other while something is wrong, for that is when it matters.
func (s *simulation) askDuring(lasts time.Duration) {
	for range 3 {
		s.after(time.Duration(s.rand.Int64N(int64(lasts))), s.fanOut)
	}
}

// fanOut has a node ask all others. Each of them must stand in the outcome exactly once.
func (s *simulation) fanOut() {
	m := s.anyone()
	c, id := m.Cluster, m.ID
	streamed := s.rand.IntN(3) == 0
	ctx, cancel := s.t.Context(), context.CancelFunc(func() {})
	if s.rand.IntN(10) == 0 {
		ctx, cancel = context.WithTimeout(ctx, s.between(time.Nanosecond, 10*time.Second))
	}
	s.work.Go(func() {
		defer cancel()
		// All others wait for something, so this is the view that the call will work on.
		want := slices.DeleteFunc(idsOf(c.Servers()), func(peer string) bool { return peer == id })
		s.account(id, want, ask(s.t, ctx, c, streamed))
	})
}

// account checks that the outcomes are those of the peers asked, and none twice.
func (s *simulation) account(caller string, asked []string, outcomes []cluster.Outcome) {
	s.fanOuts.Add(1)
	got := slices.Sorted(slices.Values(idsOfOutcomes(outcomes)))
	if !slices.Equal(got, asked) {
		s.t.Errorf("%s asked %v, outcomes are of %v", caller, asked, got)
	}
	for _, o := range outcomes {
		switch {
		case o.Err == nil:
			s.results.Add(1)
		case o.Kind == cluster.KindOK:
			s.t.Errorf("%s: failure of %s has no kind: %v", caller, o.Server.ServerID, o.Err)
		default:
			s.failures.Add(1)
		}
	}
}

// look checks what must hold at any time, of every living node that has registered.
func (s *simulation) look() {
	now, listed := time.Now(), idsOf(s.Registered())
	for _, m := range s.living() {
		status := m.Status()
		if status.RenewedAt.IsZero() {
			continue
		}
		servers := idsOf(m.Servers())
		if !slices.Contains(servers, m.ID) {
			s.t.Errorf("%v: %s is not in its own view %v", now.Sub(s.start), m.ID, servers)
		}
		if status.Servers != len(servers) {
			s.t.Errorf("%v: %s counts %d servers, its view has %d", now.Sub(s.start), m.ID, status.Servers, len(servers))
		}
		if leased := status.Registration() == "registered"; leased != now.Before(status.ExpiresAt()) {
			s.t.Errorf("%v: %s is %s, its lease runs out at %v", now.Sub(s.start), m.ID, status.State, status.ExpiresAt().Sub(s.start))
		}
		switch {
		case slices.Contains(listed, m.ID), s.parted, s.noRegistry, s.noTokens:
			m.missing = time.Time{}
		case m.missing.IsZero():
			m.missing = now
		case now.Sub(m.missing) > simulatedLease:
			s.t.Errorf("%v: %s lives, but has not been listed since %v", now.Sub(s.start), m.ID, m.missing.Sub(s.start))
		}
	}
}

// settle ends all trouble, and checks that the cluster is whole within a lease.
func (s *simulation) settle() {
	s.happened("all is well from now on")
	s.Network.Heal()
	s.Network.Fault(clustertest.Any, clustertest.RegistryHost, nil)
	s.Network.Fault(clustertest.Any, clustertest.TokenHost, nil)

	// Within a lease all who live are known to all, and whoever else is, the registry lists, or did
	// when it was last asked.
	time.Sleep(simulatedLease)
	synctest.Wait()
	listed := idsOf(s.Registered())
	living := make([]string, 0, len(s.members))
	dead := make(map[string]time.Time) // until when the registry may list it
	for _, m := range s.members {
		if m.living {
			living = append(living, m.ID)
		} else {
			dead[m.ID] = m.died.Add(simulatedGrace)
		}
	}
	slices.Sort(living)
	for _, m := range s.living() {
		status, servers := m.Status(), idsOf(m.Servers())
		if status.State != cluster.Registered {
			s.t.Errorf("%s is %s after a lease without trouble: %v", m.ID, status.State, status.Reason)
		}
		for _, id := range living {
			if !slices.Contains(servers, id) {
				s.t.Errorf("%s does not know %s, who lives, after a lease without trouble", m.ID, id)
			}
		}
		for _, id := range listed {
			if !slices.Contains(servers, id) && !slices.Contains(living, id) {
				s.t.Errorf("%s does not know %s, who is listed, after a lease without trouble", m.ID, id)
			}
		}
		for _, id := range servers {
			if until, gone := dead[id]; gone && !slices.Contains(listed, id) && !status.RenewedAt.Before(until) {
				s.t.Errorf("%s believes in %s, whose entry ran out at %v, at %v", m.ID, id, until.Sub(s.start), status.RenewedAt.Sub(s.start))
			}
		}
	}
	for _, id := range living {
		if !slices.Contains(listed, id) {
			s.t.Errorf("%s is not listed after a lease without trouble", id)
		}
	}

	// Once the leases of the dead have run out, and all have renewed since, all lists are one.
	time.Sleep(simulatedGrace - simulatedLease + simulatedLease)
	synctest.Wait()
	if listed := idsOf(s.Registered()); !slices.Equal(listed, living) {
		s.t.Errorf("the registry lists %v, living are %v", listed, living)
	}
	for _, m := range s.living() {
		if servers := idsOf(m.Servers()); !slices.Equal(servers, living) {
			s.t.Errorf("%s believes in %v, living are %v", m.ID, servers, living)
		}
	}
	for range 10 {
		m := s.anyone()
		outcomes := ask(s.t, s.t.Context(), m.Cluster, false)
		s.account(m.ID, slices.DeleteFunc(slices.Clone(living), func(id string) bool { return id == m.ID }), outcomes)
		for _, o := range outcomes {
			if o.Err != nil {
				s.t.Errorf("%s cannot reach %s: %v", m.ID, o.Server.ServerID, o.Err)
			}
		}
	}
	if s.evicted.Load() == 0 || s.spared.Load() == 0 || s.missed.Load() == 0 {
		s.t.Error("a week without trouble shows nothing")
	}
}

// An event is something that happens at a time after the start.
type event struct {
	at time.Duration
	do func()
}

// A member is a node, and what the simulation did to it.
type member struct {
	*clustertest.Node

	living  bool      // and meant to be in the cluster
	died    time.Time // when it ceased to
	missing time.Time // since when the registry has not listed it, though nothing keeps it from that
}

func byTime(a, b event) int { return cmp.Compare(a.at, b.at) }

// ask asks all peers of c, one way or the other.
func ask(t *testing.T, ctx context.Context, c *cluster.Cluster, streamed bool) []cluster.Outcome {
	t.Helper()
	req := cluster.Request{Path: "/things"}
	if streamed {
		return slices.Collect(c.Stream(ctx, req))
	}
	res, err := c.RPCluster(ctx, req)
	if err != nil {
		t.Errorf("%s: fan-out: %v", c.Status().ServerID, err)
		return nil
	}
	data, err := cluster.Decode[string](res) // each node has its id
	if want := idsOfOutcomes(res.Results); err != nil || !slices.Equal(data, want) {
		t.Errorf("%s: joint data %v, %v, want %v", c.Status().ServerID, data, err, want)
	}
	return slices.Concat(res.Results, res.Failures)
}
