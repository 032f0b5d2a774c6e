//go:build unix

package interop

import (
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
)

// TestSoak lets four npm and four Go nodes join, crash, restart and leave at random, while all of
// them call all others in a loop. At the end each view must equal that of the registry.
// INTEROP_SOAK sets the duration, INTEROP_SEED the random seed. By default it does not run.
func TestSoak(t *testing.T) {
	t.Parallel()
	if !required() && os.Getenv("INTEROP_SOAK") == "" {
		t.Skip("long: INTEROP=require or INTEROP_SOAK runs it")
	}
	duration, err := time.ParseDuration(envOr("INTEROP_SOAK", "20s"))
	if err != nil {
		t.Fatal(err)
	}
	seed, err := strconv.ParseUint(envOr("INTEROP_SEED", "1"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	s := &soak{
		world:  newWorld(t, func(r *mit.RegistryConfig, _ *mit.TokenConfig) { r.Lease, r.Grace = 2*time.Second, 3*time.Second }),
		rand:   rand.New(rand.NewPCG(seed, 0)),
		events: map[string]int{},
	}
	for i := range s.members {
		s.members[i].kind = kinds()[i%2]
	}
	for i := range s.members {
		s.join(&s.members[i])
	}
	for end := time.Now().Add(duration); time.Now().Before(end) && !t.Failed(); {
		s.disturb()
		time.Sleep(time.Duration(200+s.rand.IntN(600)) * time.Millisecond)
	}
	s.finish()
	if s.calls == 0 || len(s.events) == 0 {
		t.Error("no calls or no events")
	}
	t.Logf("seed %d, %v: %d calls with %d requests; events: %v", seed, duration, s.calls, s.requestsSent, s.events)
}

// finish starts all members that are not running, and compares the views and the results of a call.
func (s *soak) finish() {
	s.Helper()
	for i := range s.members {
		if s.members[i].process == nil {
			s.join(&s.members[i])
		}
	}
	s.stop()
	var running []*node
	for i := range s.members {
		running = append(running, s.members[i].process.node)
	}
	s.waitForMembers(running...)
	for _, n := range running {
		others := slices.DeleteFunc(sortedIDs(running), func(id string) bool { return id == n.id })
		if f := n.fanOut(fanoutArgs{Path: "/things"}); checkEqual(f.resultIDs(), others) != nil {
			s.Errorf("at the end %s: results %v, failures %v", n.id, f.resultIDs(), f.failureIDs())
		}
	}
}

func envOr(name, value string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return value
}

// A member is one of the places in the cluster, which several processes fill one after the other.
type member struct {
	kind    kind
	process *process // nil: not running
	last    *node    // the last process that ran, or nil
}

// A process is one run of a member.
type process struct {
	*node
	servingSince time.Time
	done         chan struct{} // closed when callLoop has returned

	mu          sync.Mutex // guards the field below
	disturbedAt time.Time  // zero: not disturbed
}

type soak struct {
	*world
	rand    *rand.Rand
	members [8]member
	events  map[string]int

	mu           sync.Mutex // guards the fields below
	processes    []*process
	stopped      bool
	calls        int
	requestsSent int
}

// join starts a member with a new id.
func (s *soak) join(m *member) {
	s.Helper()
	s.start(m, s.launch(m.kind))
}

// restart starts a member with the id and port of its last process.
func (s *soak) restart(m *member) {
	s.Helper()
	s.start(m, s.launchAs(m.kind, m.last.id, m.last.port))
}

func (s *soak) start(m *member, n *node) {
	s.Helper()
	n.waitReady().register()
	m.process, m.last = &process{node: n, servingSince: time.Now(), done: make(chan struct{})}, n
	s.mu.Lock()
	s.processes = append(s.processes, m.process)
	s.mu.Unlock()
	go s.callLoop(m.process)
}

// disturb applies a random event to a random member.
func (s *soak) disturb() {
	s.Helper()
	m := &s.members[s.rand.IntN(len(s.members))]
	running := 0
	for i := range s.members {
		if s.members[i].kind == m.kind && s.members[i].process != nil {
			running++
		}
	}
	switch {
	case m.process == nil && s.rand.IntN(2) == 0:
		s.events["join"]++
		s.join(m)
	case m.process == nil:
		s.events["return"]++
		s.restart(m)
	case running >= 2: // at least one node of each kind keeps running
		s.end(m)
	}
}

// end ends the process of a member in one of four ways.
func (s *soak) end(m *member) {
	s.Helper()
	p := m.process
	p.mu.Lock()
	p.disturbedAt = time.Now()
	p.mu.Unlock()
	m.process = nil
	switch s.rand.IntN(4) {
	case 0:
		s.events["crash"]++
		p.kill()
	case 1:
		s.events["restart"]++
		p.kill()
		s.restart(m)
	case 2:
		s.events["departure"]++
		if d := p.unregister(); d.Errors != nil {
			s.Errorf("departure of %s: errors %s", p.id, d.Errors)
		}
		p.kill() // an npm node might go on renewing
	default:
		s.events["SIGTERM"]++
		p.signal(syscall.SIGTERM)
		if code := p.waitExit(); code != 0 {
			s.Errorf("%s exits with %d", p.id, code)
		}
	}
}

// undisturbed returns the ids of the nodes that served requests during the whole time.
func (s *soak) undisturbed(from, to time.Time) map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := map[string]bool{}
	for _, p := range s.processes {
		p.mu.Lock()
		if p.servingSince.Before(from) && (p.disturbedAt.IsZero() || p.disturbedAt.After(to)) {
			ids[p.id] = true
		}
		p.mu.Unlock()
	}
	return ids
}

// callLoop calls all peers of a node until the process is disturbed or stop is called.
func (s *soak) callLoop(p *process) {
	defer close(p.done)
	for {
		s.mu.Lock()
		stopped := s.stopped
		s.mu.Unlock()
		if stopped {
			return
		}
		var f fanoutResult
		from := time.Now()
		err := p.do("fanout", fanoutArgs{Path: "/things"}, &f)
		to := time.Now()
		p.mu.Lock()
		disturbed := !p.disturbedAt.IsZero()
		p.mu.Unlock()
		if disturbed {
			return
		}
		if err != nil && strings.Contains(err.Error(), cluster.ErrNotRegistered.Error()) {
			time.Sleep(100 * time.Millisecond) // a Go node knows no peers before it has registered
			continue
		}
		if err != nil {
			s.Errorf("call of %s: %v", p.id, err)
			return
		}
		requests := s.checkCall(p, f, from, to)
		s.mu.Lock()
		s.calls++
		s.requestsSent += requests
		s.mu.Unlock()
		time.Sleep(100 * time.Millisecond)
	}
}

// checkCall checks the peers that the node knew both before and after a call, and returns the
// number of outcomes. An undisturbed peer must have a result. A Go node must report each peer, and
// no node may report one twice.
func (s *soak) checkCall(p *process, f fanoutResult, from, to time.Time) int {
	undisturbed := s.undisturbed(from, to)
	results, failures := f.resultIDs(), f.failureIDs()
	reported := slices.Concat(results, failures)
	slices.Sort(reported)
	if len(slices.Compact(slices.Clone(reported))) != len(reported) {
		s.Errorf("%s reports a peer twice: results %v, failures %v", p.id, results, failures)
	}
	for _, id := range f.Before {
		if id == p.id || !slices.Contains(f.After, id) {
			continue
		}
		if undisturbed[id] && !slices.Contains(results, id) {
			s.Errorf("%s called %v from %v to %v: no result of %s, which is undisturbed; results %v, failures %+v",
				p.id, f.Before, from.Format(time.StampMilli), to.Format(time.StampMilli), id, results, f.Response.Failures)
		}
		if p.kind == goKind && !slices.Contains(reported, id) {
			s.Errorf("%s called %v and does not report %s: results %v, failures %v", p.id, f.Before, id, results, failures)
		}
	}
	return len(reported)
}

// stop ends all call loops and waits for them.
func (s *soak) stop() {
	s.mu.Lock()
	s.stopped = true
	processes := slices.Clone(s.processes)
	s.mu.Unlock()
	for _, p := range processes {
		<-p.done
	}
}
