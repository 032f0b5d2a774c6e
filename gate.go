package cluster

import (
	"context"
	"slices"
	"sync"
)

// A gate bounds the requests to peers under way at once, those of all calls together, and
// shares its places out evenly: a call that holds more than its share gives up a place with each
// answer, and who holds the fewest gets it. So a call to ten peers is not held up by one to a
// thousand.
type gate struct {
	size int

	mu      sync.Mutex // guards the fields below, and those of every pass
	taken   int
	calls   map[*pass]struct{} // that want places
	waiting []waiter           // in the order in which they came
}

// A pass is what one call has of a gate.
type pass struct {
	tour
	held int
}

type waiter struct {
	pass *pass
	in   chan struct{} // closed once a place is taken for it
}

func newGate(size int) *gate { return &gate{size: size, calls: make(map[*pass]struct{})} }

// begin says that a call to so many peers wants places, until end. It begins far from where others
// are: calls that go around together would open a connection to each peer for each of them.
func (g *gate) begin(p *pass, peers int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var others []float64
	for other := range g.calls {
		if others = append(others, other.at()); len(others) == 16 {
			break // there is no room left anyway
		}
	}
	p.start(peers, farFrom(others))
	g.calls[p] = struct{}{}
}

func (g *gate) end(p *pass) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.calls, p)
}

// enter takes a place, or waits for one while ctx lasts.
func (g *gate) enter(ctx context.Context, p *pass) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	in := g.ask(p)
	if in == nil {
		return nil
	}
	select {
	case <-in:
		return nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.IndexFunc(g.waiting, func(w waiter) bool { return w.in == in })
	if i < 0 { // there was a place at the same moment
		return nil
	}
	g.waiting = slices.Delete(g.waiting, i, i+1)
	return context.Cause(ctx)
}

// try takes a place if there is one that nobody waits for.
func (g *gate) try(p *pass) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.takeLocked(p)
}

// ask takes a place, or gives what to wait for.
func (g *gate) ask(p *pass) <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.takeLocked(p) {
		return nil
	}
	w := waiter{p, make(chan struct{})}
	g.waiting = append(g.waiting, w)
	return w.in
}

func (g *gate) takeLocked(p *pass) bool {
	if g.taken >= g.size || len(g.waiting) > 0 {
		return false
	}
	g.taken++
	p.held++
	return true
}

// stay tells whether the holder of a place may use it once more. Otherwise it has been given up.
func (g *gate) stay(p *pass) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.taken <= g.size && (len(g.calls) <= 1 || p.held*len(g.calls) <= g.size) {
		return true
	}
	g.leaveLocked(p)
	return false
}

// leave gives up a place.
func (g *gate) leave(p *pass) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.leaveLocked(p)
}

func (g *gate) leaveLocked(p *pass) {
	g.taken--
	p.held--
	for g.taken < g.size && len(g.waiting) > 0 {
		next := 0
		for i, w := range g.waiting {
			if w.pass.held < g.waiting[next].pass.held {
				next = i
			}
		}
		w := g.waiting[next]
		g.waiting = slices.Delete(g.waiting, next, next+1)
		g.taken++
		w.pass.held++
		close(w.in)
	}
}

// outside does what takes time, without the place that its caller holds. The caller has one
// again afterwards, if need be one too many: when ctx has ended, for then nothing is sent.
func (g *gate) outside(ctx context.Context, p *pass, wait func()) {
	g.leave(p)
	wait()
	if g.enter(ctx, p) != nil {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.taken++
		p.held++
	}
}
