package cpulimit_test

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mimiktech/cluster/internal/cpulimit"
)

// At most as many long computations run at a time as there are processors, also after a panic.
// Short ones do not wait.
func TestDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := cpulimit.New()
		func() {
			defer func() { _ = recover() }()
			l.Do(1<<20, func() { panic("once") })
		}()
		var running, most atomic.Int64
		var wait sync.WaitGroup
		start := time.Now()
		for range 3 * runtime.GOMAXPROCS(0) {
			wait.Go(func() {
				l.Do(1<<20, func() {
					if n := running.Add(1); n > most.Load() {
						most.Store(n)
					}
					time.Sleep(time.Second)
					running.Add(-1)
				})
			})
		}
		synctest.Wait()
		l.Do(100, func() {})
		if took := time.Since(start); took != 0 {
			t.Errorf("a short computation waited for %v", took)
		}
		wait.Wait()
		if took := time.Since(start); took != 3*time.Second || most.Load() != int64(runtime.GOMAXPROCS(0)) {
			t.Errorf("%d at a time, %v in all", most.Load(), took)
		}
	})
}

func TestNoLimiter(t *testing.T) {
	done := 0
	(*cpulimit.Limiter)(nil).Do(1<<20, func() { done++ })
	if done != 1 {
		t.Errorf("computed %d times", done)
	}
}
