package etcd

import "time"

// SetClock replaces the clock of a store. No call may be in progress.
func (s *Store) SetClock(now func() time.Time) { s.now = now }
