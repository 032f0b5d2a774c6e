//go:build unix

package interop

import (
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mimiktech/cluster/mit"
)

// TestSoak has four npm and four Go nodes join, crash, restart and leave at random while all of
// them ask all others without a pause. At the end every view is the registry's. INTEROP_SOAK is
// how long it goes on, INTEROP_SEED what it begins from.
func TestSoak(t *testing.T) {
	t.Parallel()
	length, err := time.ParseDuration(fallback("INTEROP_SOAK", "20s"))
	if err != nil {
		t.Fatal(err)
	}
	seed, err := strconv.ParseUint(fallback("INTEROP_SEED", "1"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	s := &soak{
		world: newWorld(t, func(r *mit.RegistryConfig, _ *mit.TokenConfig) { r.Lease, r.Grace = 2*time.Second, 3*time.Second }),
		rand:  rand.New(rand.NewPCG(seed, 0)),
		did:   map[string]int{},
	}
	for i := range s.places {
		s.places[i].kind = kinds()[i%2]
	}
	for i := range s.places {
		s.join(&s.places[i])
	}
	for end := time.Now().Add(length); time.Now().Before(end) && !t.Failed(); {
		s.disturb()
		time.Sleep(time.Duration(200+s.rand.IntN(600)) * time.Millisecond)
	}
	for i := range s.places { // all come back
		if s.places[i].life == nil {
			s.join(&s.places[i])
		}
	}
	s.stop()
	var alive []*node
	for i := range s.places {
		alive = append(alive, s.places[i].life.node)
	}
	s.settle(alive...)
	for _, n := range alive {
		others := slices.DeleteFunc(sorted(alive), func(id string) bool { return id == n.id })
		if f := n.ask(fanoutArgs{Path: "/things"}); same(f.answered(), others) != nil {
			t.Errorf("at the end %s: answered %v, failed %v", n.id, f.answered(), f.failed())
		}
	}
	if s.calls == 0 || len(s.did) == 0 {
		t.Error("nothing happened")
	}
	t.Logf("seed %d, %v: %d calls, to %d peers in all; %v", seed, length, s.calls, s.asked, s.did)
}

func fallback(variable, value string) string {
	if v := os.Getenv(variable); v != "" {
		return v
	}
	return value
}

// A place is where one node after the other lives.
type place struct {
	kind kind
	life *life // nil: nobody is there
	last *node // who was, nil: nobody ever
}

// A life is that of one process.
type life struct {
	*node
	from time.Time // it serves
	done chan struct{}

	mu sync.Mutex // guards the field below
	to time.Time  // it is disturbed, or zero
}

type soak struct {
	*world
	rand   *rand.Rand
	places [8]place
	did    map[string]int

	mu      sync.Mutex // guards the fields below
	lives   []*life
	stopped bool
	calls   int
	asked   int
}

func (s *soak) join(p *place) {
	s.Helper()
	n := s.launch(p.kind)
	s.begin(p, n)
}

func (s *soak) begin(p *place, n *node) {
	s.Helper()
	n.serving().register()
	p.life, p.last = &life{node: n, from: time.Now(), done: make(chan struct{})}, n
	s.mu.Lock()
	s.lives = append(s.lives, p.life)
	s.mu.Unlock()
	go s.keepAsking(p.life)
}

// disturb does one thing to one place.
func (s *soak) disturb() {
	s.Helper()
	p := &s.places[s.rand.IntN(len(s.places))]
	there := 0
	for i := range s.places {
		if s.places[i].kind == p.kind && s.places[i].life != nil {
			there++
		}
	}
	if p.life == nil {
		if s.rand.IntN(2) == 0 {
			s.did["joined"]++
			s.join(p)
			return
		}
		s.did["came back"]++
		s.begin(p, s.launchAs(p.kind, p.last.id, p.last.port))
		return
	}
	if there < 2 { // so that there are always nodes of both kinds
		return
	}
	l := p.life
	l.mu.Lock()
	l.to = time.Now()
	l.mu.Unlock()
	p.life = nil
	switch s.rand.IntN(4) {
	case 0:
		s.did["crashed"]++
		l.kill()
	case 1:
		s.did["restarted"]++
		l.kill()
		s.begin(p, s.launchAs(p.kind, l.id, l.port))
	case 2:
		s.did["left"]++
		if d := l.unregister(); d.Errors != nil {
			s.Errorf("%s leaves with errors: %s", l.id, d.Errors)
		}
		l.kill() // an npm node may go on renewing otherwise
	default:
		s.did["was terminated"]++
		l.signal(syscall.SIGTERM)
		if code := l.exited(); code != 0 {
			s.Errorf("%s exits with %d", l.id, code)
		}
	}
}

// steady are the ids of the nodes that nothing happened to in that time.
func (s *soak) steady(from, to time.Time) map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := map[string]bool{}
	for _, l := range s.lives {
		l.mu.Lock()
		if l.from.Before(from) && (l.to.IsZero() || l.to.After(to)) {
			ids[l.id] = true
		}
		l.mu.Unlock()
	}
	return ids
}

// keepAsking has a node ask all its peers until it or the test ends, and checks each answer: a
// peer that the node knew before and after, and that nothing happened to, has answered; and a Go
// node accounts for each that it knew, whatever happened.
func (s *soak) keepAsking(l *life) {
	defer close(l.done)
	for {
		s.mu.Lock()
		stopped := s.stopped
		s.mu.Unlock()
		if stopped {
			return
		}
		var f fanout
		from := time.Now()
		err := l.do("fanout", fanoutArgs{Path: "/things"}, &f)
		to := time.Now()
		l.mu.Lock()
		disturbed := !l.to.IsZero()
		l.mu.Unlock()
		if disturbed {
			return
		}
		if err != nil {
			s.Errorf("%s cannot ask: %v", l.id, err)
			return
		}
		steady := s.steady(from, to)
		answered, failed := f.answered(), f.failed()
		accounted := slices.Concat(answered, failed)
		slices.Sort(accounted)
		if len(slices.Compact(slices.Clone(accounted))) != len(accounted) {
			s.Errorf("%s has a peer twice: answered %v, failed %v", l.id, answered, failed)
		}
		for _, id := range f.Before {
			if id == l.id || !slices.Contains(f.After, id) {
				continue
			}
			if steady[id] && !slices.Contains(answered, id) {
				s.Errorf("%s asked %v from %v to %v: %s is well and did not answer; answered %v, failed %+v",
					l.id, f.Before, from.Format(time.StampMilli), to.Format(time.StampMilli), id, answered, f.Response.Failures)
			}
			if l.kind == goKind && !slices.Contains(accounted, id) {
				s.Errorf("%s asked %v and has no word of %s: answered %v, failed %v", l.id, f.Before, id, answered, failed)
			}
		}
		s.mu.Lock()
		s.calls++
		s.asked += len(accounted)
		s.mu.Unlock()
		time.Sleep(100 * time.Millisecond)
	}
}

// stop has all nodes end asking, and waits until they have.
func (s *soak) stop() {
	s.mu.Lock()
	s.stopped = true
	lives := slices.Clone(s.lives)
	s.mu.Unlock()
	for _, l := range lives {
		<-l.done
	}
}
