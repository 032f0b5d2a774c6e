package fanout

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c workers
		together := func(n int) { // has n at work at once
			var wg sync.WaitGroup
			enough := make(chan struct{})
			for range n {
				wg.Add(1)
				c.run(func() { defer wg.Done(); <-enough })
			}
			synctest.Wait()
			close(enough)
			wg.Wait()
			synctest.Wait()
		}
		idle := func(want int, when string) {
			t.Helper()
			c.mu.Lock()
			defer c.mu.Unlock()
			if got := len(c.idle); got != want {
				t.Errorf("%s: %d are idle, want %d", when, got, want)
			}
		}
		together(5)
		idle(5, "after work for five")
		together(3)
		idle(5, "after work for three more")
		for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(time.Second) {
			together(2)
		}
		idle(2, "after a minute of work for two")
		time.Sleep(2*trimInterval + time.Second)
		idle(0, "after none")
		together(4)
		idle(4, "after work for four again")

		busy := make(chan struct{})
		c.run(func() { <-busy })
		c.close()
		idle(0, "after the end")
		close(busy)
		together(3)
		idle(0, "after work that came later")
	}) // which fails if one of them waits for ever
}
