package fanout

import (
	"slices"
	"sync"
	"time"
)

// workers is a pool of goroutines that are reused between calls. net/http needs a deep stack, and
// growing that of a new goroutine for each request took a tenth of the CPU time.
type workers struct {
	mu       sync.Mutex // guards the fields below
	idle     []chan func()
	minIdle  int // the fewest idle workers since the last trim
	trimming bool
	closed   bool
}

// trimInterval is how often the pool is trimmed. A worker exits after one to two intervals without
// a task.
const trimInterval = 10 * time.Second

// run executes task in an idle worker, or in a new one.
func (p *workers) run(task func()) {
	p.mu.Lock()
	last := len(p.idle) - 1
	if last < 0 {
		p.mu.Unlock()
		go p.work(task)
		return
	}
	worker := p.idle[last] // the one used last: its stack may still be in the CPU's caches
	p.idle = p.idle[:last]
	p.minIdle = min(p.minIdle, last)
	p.mu.Unlock()
	worker <- task
}

func (p *workers) work(task func()) {
	next := make(chan func(), 1)
	for ok := true; ok; task, ok = <-next {
		task()
		p.park(next)
	}
}

// park returns a worker to the pool, or stops it if the pool is closed.
func (p *workers) park(worker chan func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		close(worker)
		return
	}
	p.idle = append(p.idle, worker)
	if !p.trimming {
		p.trimming, p.minIdle = true, 0
		time.AfterFunc(trimInterval, p.trim)
	}
}

// trim stops as many workers as were idle throughout the last interval.
func (p *workers) trim() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopLocked(p.minIdle)
	p.minIdle = len(p.idle)
	if p.trimming = p.minIdle > 0; p.trimming {
		time.AfterFunc(trimInterval, p.trim)
	}
}

// close stops idle workers at once and busy ones after their task.
func (p *workers) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.stopLocked(len(p.idle))
}

func (p *workers) stopLocked(n int) {
	for _, worker := range p.idle[:n] {
		close(worker)
	}
	p.idle, p.minIdle = slices.Delete(p.idle, 0, n), 0
}
