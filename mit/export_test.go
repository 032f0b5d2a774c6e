package mit

import "time"

// SetClock makes Put read the time from clock.
func (m *Memory) SetClock(clock func() time.Time) { m.clock = clock }
