package cluster

import (
	"slices"
	"sync"
	"time"
)

// A crew are the goroutines that ask peers. They stay for the next call, because what is dear about
// a goroutine is its stack: on the way through net/http it grows step by step, and for each new
// goroutine again. Who has had nothing to do for a while leaves, and so do all when the node leaves
// its cluster.
type crew struct {
	mu       sync.Mutex // guards the fields below
	idle     []chan func()
	needless int // how many of them have been idle since the last look
	looking  bool
	ended    bool
}

// The crew is looked over this often: a goroutine leaves after once to twice that long without work.
const crewLook = 10 * time.Second

// do has work done, beside its caller.
func (c *crew) do(work func()) {
	c.mu.Lock()
	last := len(c.idle) - 1
	if last < 0 {
		c.mu.Unlock()
		go c.serve(work)
		return
	}
	worker := c.idle[last] // who was busy a moment ago: it is still in the processor's caches
	c.idle = c.idle[:last]
	c.needless = min(c.needless, last)
	c.mu.Unlock()
	worker <- work
}

// serve is a goroutine of the crew.
func (c *crew) serve(work func()) {
	next := make(chan func(), 1)
	for ok := true; ok; work, ok = <-next {
		work()
		c.rest(next)
	}
}

// rest makes a worker idle, or lets it go.
func (c *crew) rest(worker chan func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		close(worker)
		return
	}
	c.idle = append(c.idle, worker)
	if !c.looking {
		c.looking, c.needless = true, 0
		time.AfterFunc(crewLook, c.look)
	}
}

// look lets those go who had nothing to do since the last look.
func (c *crew) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dismissLocked(c.needless)
	c.needless = len(c.idle)
	if c.looking = c.needless > 0; c.looking {
		time.AfterFunc(crewLook, c.look)
	}
}

// end lets everybody go who has nothing to do, and the others after their work.
func (c *crew) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.dismissLocked(len(c.idle))
}

func (c *crew) dismissLocked(n int) {
	for _, worker := range c.idle[:n] {
		close(worker)
	}
	c.idle, c.needless = slices.Delete(c.idle, 0, n), 0
}
