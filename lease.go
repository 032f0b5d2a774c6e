package cluster

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/mimiktech/cluster/internal/ctxutil"
	"github.com/mimiktech/cluster/internal/wire"
)

const (
	defaultLease = 2 * time.Hour        // if the registry names none
	minLease     = time.Second          // a shorter lease would flood the registry with renewals
	maxLease     = 365 * 24 * time.Hour // a longer one could overflow

	maxRenewalFraction = 0.9 // so that the jitter of a tenth stays within the lease
	maxRetryDelay      = 30 * time.Second

	// Servers that register at the same moment may each be listed alone. A server that still is
	// alone after this time renews once more.
	recheckDelay  = 60 * time.Second
	recheckJitter = 10 * time.Second
)

// leaseOf returns the lease that a response grants, and a description of an unusual lease time.
func leaseOf(r wire.Registered) (lease time.Duration, problem error) {
	if r.LeaseTimeErr != nil {
		return defaultLease, r.LeaseTimeErr
	}
	if r.LeaseTime == nil {
		return defaultLease, nil
	}
	switch ms := *r.LeaseTime; {
	case ms <= 0:
		return defaultLease, fmt.Errorf("leaseTime %g is not above 0", ms)
	case ms > float64(maxLease/time.Millisecond):
		return maxLease, fmt.Errorf("leaseTime %g is above %d", ms, maxLease/time.Millisecond)
	case ms < float64(minLease/time.Millisecond):
		return minLease, fmt.Errorf("leaseTime %g is below %d", ms, minLease/time.Millisecond)
	default:
		return time.Duration(ms * float64(time.Millisecond)), nil
	}
}

// A schedule decides when the lease goroutine renews. It has no clock: the caller passes the time.
type schedule struct {
	minInterval time.Duration // between an attempt and a triggered one

	lastTry    time.Time
	nextTry    time.Time
	recheckAt  time.Time // zero if no recheck is due any more
	rechecking bool      // the attempt in progress is the recheck of a node that is alone

	retries backoff.BackOff // the delays after failures; nil after a success
}

// next returns when to wake up: for the next attempt, for the recheck, or when the lease expires.
// expiresAt is zero if there is no lease.
func (s *schedule) next(expiresAt time.Time) time.Time {
	next := s.nextTry
	for _, at := range []time.Time{s.recheckAt, expiresAt} {
		if !at.IsZero() && at.Before(next) {
			next = at
		}
	}
	return next
}

// onTrigger moves the next attempt forward.
func (s *schedule) onTrigger() {
	if soonest := s.lastTry.Add(s.minInterval); soonest.Before(s.nextTry) {
		s.nextTry = soonest
	}
}

// due reports whether to renew now, and if so begins an attempt. isAlone reports whether the view
// has no other server than this node.
func (s *schedule) due(now time.Time, isAlone bool) bool {
	s.rechecking = false
	if !s.recheckAt.IsZero() && !now.Before(s.recheckAt) {
		s.recheckAt = time.Time{}
		s.rechecking = isAlone
	}
	if now.Before(s.nextTry) && !s.rechecking {
		return false
	}
	s.lastTry = now
	return true
}

func (s *schedule) onSuccess(now time.Time, renewIn time.Duration) {
	s.nextTry, s.retries = now.Add(renewIn), nil
}

// onFailure repeats the attempt, and the recheck if it was one, after retryIn.
func (s *schedule) onFailure(now time.Time, retryIn time.Duration) {
	s.nextTry = now.Add(retryIn)
	if s.rechecking {
		s.recheckAt = s.lastTry.Add(retryIn)
	}
}

// startLease starts the lease goroutine. If it runs already, it renews: the lease that has just
// been granted may be shorter than the time until its next renewal.
func (c *Cluster) startLease(ctx context.Context, renewIn time.Duration) error {
	if err := context.Cause(c.memberCtx); err != nil {
		return err
	}
	if !c.leaseStarted.CompareAndSwap(false, true) {
		c.triggerRenewal()
		return nil
	}
	return c.tasks.start(ctx, func(ctx context.Context) {
		ctx, cancel := ctxutil.Merge(ctx, c.memberCtx)
		defer cancel()
		c.keepLease(ctx, renewIn)
	})
}

// keepLease renews until ctx ends.
func (c *Cluster) keepLease(ctx context.Context, renewIn time.Duration) {
	now := time.Now()
	s := &schedule{minInterval: c.cfg.RegistrationRetry, lastTry: now, nextTry: now.Add(renewIn)}
	if c.cfg.Management {
		s.recheckAt = now.Add(recheckDelay + rand.N(recheckJitter))
	}
	for ctx.Err() == nil {
		triggered, err := c.sleepUntil(ctx, s.next(c.leaseEnd()))
		if err != nil {
			return
		}
		if triggered {
			s.onTrigger()
		}
		c.state.checkExpiry(ctx)
		if s.due(time.Now(), c.state.view().Len() == 1) {
			c.renewScheduled(ctx, s)
		}
	}
}

func (c *Cluster) renewScheduled(ctx context.Context, s *schedule) {
	r, err := c.tryRenew(ctx, c.renewBeforeExpiry, func() time.Duration {
		if s.retries == nil {
			s.retries = c.newBackoff()
		}
		return s.retries.NextBackOff()
	})
	switch {
	case ctx.Err() != nil:
	case err != nil:
		s.onFailure(time.Now(), r.retryIn)
	default:
		c.announceRenewal(ctx, r, s.rechecking)
		s.onSuccess(time.Now(), r.renewIn)
	}
}

// leaseEnd returns when the lease expires; zero if there is none.
func (c *Cluster) leaseEnd() time.Time {
	if status := c.state.status(); status.holdsLease() {
		return status.ExpiresAt()
	}
	return time.Time{}
}

// renewBeforeExpiry renews. It waits no longer than until the lease expires, so that the expiry is
// noticed in time.
func (c *Cluster) renewBeforeExpiry(ctx context.Context) (renewal, error) {
	if end := c.leaseEnd(); !end.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end)
		defer cancel()
	}
	return c.renew(ctx)
}

// announceRenewal announces this node if peers may not know it. After a recheck it announces all
// servers. Of several nodes that were listed alone, the first to recheck finds the others. They are
// then no longer alone, and do not recheck, so that it must announce them to each other.
func (c *Cluster) announceRenewal(ctx context.Context, r renewal, recheck bool) {
	if !c.cfg.Management {
		return
	}
	switch {
	case recheck:
		_ = c.tasks.start(ctx, func(ctx context.Context) { c.announceAll(ctx) })
	case r.needsAnnounce:
		_ = c.tasks.start(ctx, func(ctx context.Context) { c.announceSelf(ctx) })
	}
}

// newBackoff returns the delays between attempts to renew. They are short compared to the lease,
// and have a maximum, so that the node soon notices that the registry is back.
func (c *Cluster) newBackoff() backoff.BackOff {
	limit := cmp.Or(c.state.status().LeaseTime, defaultLease) / 12
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(min(c.cfg.RegistrationRetry, limit)),
		backoff.WithMaxInterval(min(max(c.cfg.RegistrationRetry, maxRetryDelay), limit)),
		backoff.WithRandomizationFactor(1.0/3),
		backoff.WithMaxElapsedTime(0), // no limit
	)
}

// triggerRenewal makes the lease goroutine renew, at most RegistrationRetry after its last attempt.
func (c *Cluster) triggerRenewal() {
	select {
	case c.renewNow <- struct{}{}:
	default: // it is triggered already
	}
}

// sleepUntil waits until at, or until triggerRenewal is called. If ctx ends, it returns the cause.
func (c *Cluster) sleepUntil(ctx context.Context, at time.Time) (triggered bool, err error) {
	t := time.NewTimer(time.Until(at))
	defer t.Stop()
	select {
	case <-t.C:
		return false, nil
	case <-c.renewNow:
		return true, nil
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}
