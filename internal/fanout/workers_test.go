package fanout

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p workers
		runTogether := func(n int) { // runs n tasks at the same time
			var wg sync.WaitGroup
			release := make(chan struct{})
			for range n {
				wg.Add(1)
				p.run(func() { defer wg.Done(); <-release })
			}
			synctest.Wait()
			close(release)
			wg.Wait()
			synctest.Wait()
		}
		requireIdle := func(want int, when string) {
			t.Helper()
			p.mu.Lock()
			defer p.mu.Unlock()
			if got := len(p.idle); got != want {
				t.Errorf("%s: %d idle workers, want %d", when, got, want)
			}
		}
		runTogether(5)
		requireIdle(5, "after five tasks")
		runTogether(3)
		requireIdle(5, "after three more")
		for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(time.Second) {
			runTogether(2)
		}
		requireIdle(2, "after a minute of two tasks at a time")
		time.Sleep(2*trimInterval + time.Second)
		requireIdle(0, "after none")
		runTogether(4)
		requireIdle(4, "after four tasks")

		busy := make(chan struct{})
		p.run(func() { <-busy })
		p.close()
		requireIdle(0, "after close")
		close(busy)
		runTogether(3)
		requireIdle(0, "after tasks run later")
	}) // fails if a worker has not exited
}
