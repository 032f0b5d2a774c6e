package cluster

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v4"
	"go.uber.org/zap"

	"github.com/mimiktech/cluster/internal/membership"
)

const (
	defaultLease = 2 * time.Hour        // where mIT names none
	minLease     = time.Second          // a shorter one would hammer mIT
	maxLease     = 365 * 24 * time.Hour // a longer one is none

	maxRenewalShare = 0.9 // the jitter of a tenth must stay inside the lease
	maxRetry        = 30 * time.Second

	// Two servers that register at the same moment can both be told that they are alone. A
	// server that still is so long after registering asks again.
	recheckDelay  = 60 * time.Second
	recheckJitter = 10 * time.Second
)

// leaseOf is the lease that mIT's leaseTime, in milliseconds, stands for.
func leaseOf(ms *float64) time.Duration {
	if ms == nil || *ms <= 0 {
		return defaultLease
	}
	if *ms >= float64(maxLease/time.Millisecond) {
		return maxLease
	}
	return max(time.Duration(*ms*float64(time.Millisecond)), minLease)
}

// startLease starts the one goroutine that keeps the lease, unless it runs already.
func (c *Cluster) startLease(ctx context.Context, wait time.Duration) error {
	ctx = context.WithoutCancel(ctx) // for its correlation id
	c.mu.Lock()                      // so that neither Close nor a second Register slips in between
	defer c.mu.Unlock()
	if err := context.Cause(c.memberCtx); err != nil {
		return err
	}
	if c.leaseStarted {
		c.triggerRenewal() // the lease granted now may be shorter than what that one waits for
		return nil
	}
	c.leaseStarted = true
	c.wg.Go(func() {
		ctx, cancel := mergeCancel(ctx, c.memberCtx)
		defer cancel()
		c.keepLease(ctx, wait)
	})
	return nil
}

// keepLease renews until ctx ends. Everything that waits for a time waits here.
func (c *Cluster) keepLease(ctx context.Context, wait time.Duration) {
	var (
		tried = time.Now()
		next  = tried.Add(wait) // the next renewal, or try
		look  time.Time         // the second look; zero once it is done
		retry backoff.BackOff   // the pauses between failed tries; nil while all is well
	)
	if c.cfg.Management {
		look = tried.Add(recheckDelay + rand.N(recheckJitter))
	}
	for {
		woken, err := c.sleepUntil(ctx, c.nextWakeup(next, look))
		if err != nil {
			return
		}
		c.checkExpiry()
		now := time.Now()
		alone := false
		switch {
		case woken: // at once, but no more often than we would retry
			if soon := tried.Add(c.cfg.RegistrationRetry); soon.Before(next) {
				next = soon
			}
			if now.Before(next) {
				continue
			}
		case !look.IsZero() && !now.Before(look):
			look = time.Time{}
			if alone = c.snapshot().Len() == 1; !alone {
				continue
			}
		case now.Before(next):
			continue // only the lease ran out
		}

		tried = now
		r, err := c.renewBeforeExpiry(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if retry == nil {
				retry = c.newBackoff()
			}
			wait = retry.NextBackOff()
			c.renewFailed(ctx, err, wait)
			if alone {
				look = now.Add(wait) // still unanswered
			}
		default:
			retry, wait = nil, r.renewIn
			if (alone || r.needsAnnounce) && c.cfg.Management {
				// Of several that were told to be alone the first to look again must tell of all:
				// whoever hears of it is alone no more, and will not look.
				c.background(ctx, func(ctx context.Context) { c.announce(ctx, alone) })
			}
		}
		next = time.Now().Add(wait)
	}
}

// attempt renews. While the lease runs it is not waited for longer than that, so that its end
// is noticed when it comes.
func (c *Cluster) renewBeforeExpiry(ctx context.Context) (renewal, error) {
	if s := c.Status(); s.State == Registered || s.State == Degraded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, s.ExpiresAt())
		defer cancel()
	}
	return c.renew(ctx)
}

// due is when the lease goroutine must look up next.
func (c *Cluster) nextWakeup(next, look time.Time) time.Time {
	if !look.IsZero() && look.Before(next) {
		next = look
	}
	if s := c.Status(); (s.State == Registered || s.State == Degraded) && s.ExpiresAt().Before(next) {
		next = s.ExpiresAt()
	}
	return next
}

// missed notes a try that failed.
func (c *Cluster) renewFailed(ctx context.Context, err error, retryIn time.Duration) {
	c.update(func(_ *membership.View, s *Status) {
		s.Reason = err
		if s.State == Registered {
			s.State = Degraded
		}
	})
	c.checkExpiry()
	c.log.Warn("not registered or renewed", zap.Error(err), zap.Duration("retryIn", retryIn), correlationField(ctx))
	c.trace.renewFailed(err, retryIn)
}

// expire notes that the lease ran out, if it did.
func (c *Cluster) checkExpiry() {
	now := time.Now()
	c.update(func(_ *membership.View, s *Status) {
		if (s.State == Registered || s.State == Degraded) && !now.Before(s.ExpiresAt()) {
			s.State = Lost
			if s.Reason == nil {
				s.Reason = errors.New("the lease ran out before it was renewed")
			}
		}
	})
}

// backoff is the pauses between tries to renew: well inside the lease, and never so long that
// a registry which is back waits for its servers.
func (c *Cluster) newBackoff() backoff.BackOff {
	most := cmp.Or(c.Status().LeaseTime, defaultLease) / 12
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(min(c.cfg.RegistrationRetry, most)),
		backoff.WithMaxInterval(min(maxRetry, most)),
		backoff.WithRandomizationFactor(1.0/3),
		backoff.WithMaxElapsedTime(0), // for ever
	)
}

// hurry makes the lease goroutine renew at once.
func (c *Cluster) triggerRenewal() {
	select {
	case c.renewNow <- struct{}{}:
	default: // it has been told
	}
}

// sleepUntil waits for a time, for hurry, or for the end of ctx, whose cause it returns.
func (c *Cluster) sleepUntil(ctx context.Context, at time.Time) (woken bool, err error) {
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

// pause waits for d or for the end of ctx, whose cause it returns.
func (c *Cluster) pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
