package main

import (
	"errors"
	"flag"
	"fmt"
	"time"

	"github.com/mimiktech/cluster/internal/proctest"
)

// The bounds decide whether a run has succeeded.
type bounds struct {
	within   time.Duration // from the first attempt of a node until it is registered
	memory   int64         // MB at the peak; 0: that of the scenario
	discards int64         // responses that a node has not received in time
	growth   float64       // of the memory after it has settled, in percent
	health   proctest.HealthBounds
}

func (b *bounds) addFlags(fs *flag.FlagSet) {
	fs.DurationVar(&b.within, "max-start", 30*time.Second, "maximum time from the first attempt of a node until it is registered")
	fs.Int64Var(&b.memory, "max-memory", 0, "maximum memory of the registry in `MB` (default 300 in the start, 512 otherwise)")
	fs.Int64Var(&b.discards, "max-discards", 2, "maximum number of responses that a node does not receive in time")
	fs.Float64Var(&b.growth, "max-growth", 25, "maximum growth of the memory in the soak after -settle, in `percent`")
	fs.DurationVar(&b.health.Time, "max-health", 100*time.Millisecond, "time within which a health check is answered, on a machine of its own")
	fs.IntVar(&b.health.SlowPercent, "max-slow", 1, "health checks that may take longer than -max-health, in `percent`")
	fs.DurationVar(&b.health.Stall, "max-stall", time.Second, "maximum time of each health check, on a machine of its own")
}

// checkStart checks a fleet all of whose nodes have started.
func (b *bounds) checkStart(f *fleet) error {
	var broken error
	if n := f.registered.Load(); n < int64(f.s.nodes) {
		broken = fmt.Errorf("only %d of %d nodes are registered", n, f.s.nodes)
	}
	if slowest := time.Duration(f.slowest.Load()); slowest > b.within {
		broken = errors.Join(broken, fmt.Errorf("a node was registered %.1f s after its first attempt, %v are allowed", slowest.Seconds(), b.within))
	}
	if n := f.maxDiscarded.Load(); n > b.discards {
		broken = errors.Join(broken, fmt.Errorf("a node discarded %d responses, %d are allowed", n, b.discards))
	}
	return errors.Join(broken, f.checkLists())
}

// checkFlat checks that the memory of the registry stays flat after it has settled. Garbage makes
// it vary all the time, so there are two checks. The peak after settling must not exceed the peak
// before by more than the growth; otherwise there was a sudden increase. A line that fits the
// samples after settling must not rise by more; otherwise there is a slow increase below the peaks.
func (b *bounds) checkFlat(samples []memorySample, settle time.Duration) error {
	var before, after int64 // peaks
	var rest []memorySample
	for _, s := range samples {
		if s.at < settle {
			before = max(before, s.rss)
			continue
		}
		after = max(after, s.rss)
		rest = append(rest, s)
	}
	if before == 0 || len(rest) < 2 {
		return fmt.Errorf("the memory was not recorded before and after %v", settle)
	}
	var broken error
	factor := 1 + b.growth/100
	if float64(after) > factor*float64(before) {
		broken = fmt.Errorf("the memory peaks at %d MB after %v, and at %d MB before", after>>20, settle, before>>20)
	}
	if first, last := fitLine(rest); last > factor*first {
		broken = errors.Join(broken, fmt.Errorf("the memory grows from %.0f MB to %.0f MB after %v", first/(1<<20), last/(1<<20), settle))
	}
	return broken
}

// fitLine returns the ends of the line that fits the samples best, by least squares.
func fitLine(samples []memorySample) (first, last float64) {
	var meanAt, meanRSS, covariance, variance float64
	n := float64(len(samples))
	for _, s := range samples {
		meanAt += s.at.Seconds() / n
		meanRSS += float64(s.rss) / n
	}
	for _, s := range samples {
		d := s.at.Seconds() - meanAt
		covariance += d * (float64(s.rss) - meanRSS)
		variance += d * d
	}
	slope := covariance / variance
	at := func(s memorySample) float64 { return meanRSS + slope*(s.at.Seconds()-meanAt) }
	return at(samples[0]), at(samples[len(samples)-1])
}
