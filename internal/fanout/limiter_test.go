package fanout

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// An hourlyCall is a call with requests that take an hour each. No two of them end at the same
// moment. Otherwise the order in which goroutines run would decide which call gets a slot.
type hourlyCall struct {
	*Call
	wg sync.WaitGroup
}

// requests is the number of requests so far, of all calls.
type requests struct{ atomic.Int64 }

func (r *requests) send() { time.Sleep(time.Hour + time.Duration(r.Add(1))*time.Millisecond) }

func (c *hourlyCall) work(s *Scheduler, sent *requests, n int) {
	c.Call = s.NewCall(n, nil)
	c.register()
	c.wg.Go(func() {
		var workers sync.WaitGroup
		left := make(chan struct{}, n)
		for range n {
			left <- struct{}{}
		}
		close(left)
		for range left {
			if c.Acquire(context.Background()) != nil {
				return
			}
			workers.Go(func() {
				sent.send()
				for s.limiter.keep(c.Call) {
					if _, more := <-left; !more {
						c.Release()
						return
					}
					sent.send()
				}
			})
		}
		c.unregister()
		workers.Wait()
	})
}

func (c *hourlyCall) holds(s *Scheduler) int {
	s.limiter.mu.Lock()
	defer s.limiter.mu.Unlock()
	return c.held
}

// A new call gets its first slots when requests of other calls end. Once each of those has ended, a
// call that has taken all of its tasks has its slots, and the others come close to even shares.
func TestLimiterIsFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(12)
		var sent requests
		var large, later, small hourlyCall
		large.work(s, &sent, 12*10)
		synctest.Wait()
		if got := large.holds(s); got != 12 {
			t.Errorf("alone: %d slots", got)
		}
		time.Sleep(time.Minute)
		later.work(s, &sent, 12*5)
		small.work(s, &sent, 2)
		synctest.Wait()
		if a, b, c := large.holds(s), later.holds(s), small.holds(s); a != 12 || b != 0 || c != 0 {
			t.Errorf("before the first response: %d, %d and %d slots", a, b, c)
		}
		time.Sleep(time.Hour)
		if a, b, c := large.holds(s), later.holds(s), small.holds(s); a != 6 || b != 4 || c != 2 {
			t.Errorf("among three: %d, %d and %d slots", a, b, c)
		}
		small.wg.Wait()
		time.Sleep(time.Hour)
		if a, b := large.holds(s), later.holds(s); a != 6 || b != 6 {
			t.Errorf("among two: %d and %d slots", a, b)
		}
		large.wg.Wait()
		later.wg.Wait()
		if s.limiter.inFlight != 0 || len(s.limiter.calls) != 0 || len(s.limiter.waiters) != 0 {
			t.Errorf("at the end: %+v", s)
		}
	})
}

// In any order of acquiring, waiting, giving up and releasing: the slots taken never exceed the
// limit, no slot is lost, and no call waits while a slot is free.
func TestLimiterInvariants(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.IntRange(1, 3).Draw(rt, "size")
		steps := rapid.SliceOfN(rapid.IntRange(0, 3), 1, 40).Draw(rt, "steps")
		callIndex := rapid.SliceOfN(rapid.IntRange(0, 2), 40, 40).Draw(rt, "call")
		var problem string
		synctest.Test(t, func(*testing.T) {
			s := New(size)
			calls := make([]*Call, 3)
			for i := range calls {
				calls[i] = s.NewCall(1, nil)
				calls[i].register()
			}
			type acquisition struct {
				cancel context.CancelCauseFunc
				done   chan struct{}
			}
			var pending []acquisition
			collect := func() {
				synctest.Wait()
				for i := 0; i < len(pending); {
					select {
					case <-pending[i].done:
						pending = append(pending[:i], pending[i+1:]...)
					default:
						i++
					}
				}
			}
			for i, step := range steps {
				k := callIndex[i]
				switch step {
				case 0, 1:
					ctx, cancel := context.WithCancelCause(context.Background())
					a := acquisition{cancel, make(chan struct{})}
					pending = append(pending, a)
					go func() {
						defer close(a.done)
						_ = calls[k].Acquire(ctx) // an error means that it was canceled
					}()
				case 2:
					if calls[k].held > 0 {
						calls[k].Release()
					}
				case 3:
					if len(pending) > 0 {
						pending[0].cancel(errors.New("canceled"))
					}
				}
				collect()
				held := 0
				for i := range calls {
					held += calls[i].held
				}
				if held != s.limiter.inFlight || held > size || len(pending) != len(s.limiter.waiters) || len(pending) > 0 && held < size {
					problem = "a slot was lost or granted twice"
				}
			}
			for _, a := range pending {
				a.cancel(errors.New("end of test"))
			}
			synctest.Wait()
		})
		if problem != "" {
			rt.Fatal(problem)
		}
	})
}

// The slot is free while the function given to Released runs, and held again afterwards.
func TestReleasedFreesTheSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(1)
		a, b := s.NewCall(2, nil), s.NewCall(2, nil)
		a.register()
		b.register()
		if err := a.Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		a.Released(t.Context(), func() {
			if !b.TryAcquire() || b.TryAcquire() {
				t.Error("the slot was not free, or free twice")
			}
			time.AfterFunc(time.Hour, func() { b.Release() })
		})
		if a.held != 1 || b.held != 0 || s.limiter.inFlight != 1 {
			t.Errorf("afterwards %d and %d of %d slots", a.held, b.held, s.limiter.inFlight)
		}
		ctx, cancel := context.WithCancel(t.Context())
		a.Released(ctx, func() { // the call ends while another call has the slot
			if !b.TryAcquire() {
				t.Error("the slot was not free")
			}
			cancel()
		})
		if a.held != 1 || s.limiter.inFlight != 2 || s.limiter.keep(a) {
			t.Errorf("at the end of the call: %d of %d slots", a.held, s.limiter.inFlight)
		}
		if b.Release(); s.limiter.inFlight != 0 {
			t.Errorf("%d slots are lost", s.limiter.inFlight)
		}
	})
}

// Calls of a class hold no more than its slots, and do not keep others from the rest.
func TestClass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, class := New(4), NewClass(1)
		a, b, other := s.NewCall(2, class), s.NewCall(2, class), s.NewCall(9, nil)
		if !a.TryAcquire() || b.TryAcquire() {
			t.Fatal("a class of one slot")
		}
		waiting := make(chan error, 1)
		go func() { waiting <- b.Acquire(t.Context()) }()
		synctest.Wait()
		for range 3 {
			if !other.TryAcquire() {
				t.Error("a call of the class keeps another call from a free slot")
			}
		}
		other.Release()
		synctest.Wait()
		if len(waiting) > 0 {
			t.Error("the class has two slots")
		}
		a.Release()
		synctest.Wait()
		if len(waiting) == 0 || <-waiting != nil {
			t.Error("the slot of the class is lost")
		}
		b.Release()
		if other.Release(); class.held != 0 || s.InFlight() != 1 {
			t.Errorf("at the end %d slots of the class, %d of all", class.held, s.InFlight())
		}
	})
}

// Once the context of a call has ended, no task starts, not even one for which a slot is held.
func TestRunSkipsTheRest(t *testing.T) {
	ended := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	s := New(1)
	defer s.Close()
	var done, skipped atomic.Int64
	s.NewCall(100, nil).Run(ctx, func(int) {
		done.Add(1)
		cancel(ended)
	}, func(_ int, err error) {
		skipped.Add(1)
		if !errors.Is(err, ended) {
			t.Errorf("skipped with %v", err)
		}
	})
	if done.Load() != 1 || skipped.Load() != 99 {
		t.Errorf("%d tasks done, %d skipped", done.Load(), skipped.Load())
	}
}
