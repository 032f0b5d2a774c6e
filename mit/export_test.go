package mit

import "time"

// SetClock makes Put read the time from clock.
func (m *Memory) SetClock(clock func() time.Time) { m.clock = clock }

// HoldEncoding makes requests for the list of a type wait for its encoding until release is called.
// waiting returns the version of the list that they wait for; 0 if none waits.
func (g *Registry) HoldEncoding(typ string) (waiting func() uint64, release func()) {
	e := &g.encodings
	e.mu.Lock()
	t := e.types[typ]
	if t == nil {
		t = &typeEncodings{}
		e.types[typ] = t
	}
	e.mu.Unlock()
	t.mu.Lock()
	return func() uint64 {
		e.mu.Lock()
		defer e.mu.Unlock()
		if t.pending == nil {
			return 0
		}
		return t.pending.res.Version
	}, t.mu.Unlock
}
