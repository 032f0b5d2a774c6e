package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/mimiktech/cluster/internal/proctest"
)

const usageInterval = 200 * time.Millisecond

var errEnded = errors.New("the registry has ended")

// A usageLog has the usage of the registry while a scenario ran.
type usageLog struct {
	samples     []memorySample
	last        proctest.Usage // before the process ended
	descriptors int            // at most
	ended       time.Duration  // 0: it was running at the end
}

// A memorySample is the memory of the registry some time after the start.
type memorySample struct {
	at  time.Duration
	rss int64 // bytes
}

// watch records the usage of the process until ctx ends. If the process ends, it calls cancel.
func (p *process) watch(ctx context.Context, cancel context.CancelCauseFunc) {
	p.watched = make(chan usageLog, 1)
	go func() {
		var l usageLog
		began := time.Now()
		for running := true; running; pause(ctx, usageInterval) {
			running = ctx.Err() == nil // and once more at the end
			u, err := proctest.ProcessUsage(p.cmd.Process.Pid)
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) || err == nil && u.RSS == 0 {
				l.ended = time.Since(began)
				cancel(errEnded)
				break
			}
			if err != nil {
				continue // this process may have no descriptor left
			}
			l.samples = append(l.samples, memorySample{time.Since(began), u.RSS})
			l.last, l.descriptors = u, max(l.descriptors, u.Descriptors)
		}
		p.watched <- l
	}()
}

// usages returns the usage after the context of watch has ended. It may be called once.
func (p *process) usages() usageLog { return <-p.watched }

func (l usageLog) String() string {
	return fmt.Sprintf("\nregistry: %d MB, at most %d MB; %d descriptors, at most %d; CPU time %.1f s",
		l.last.RSS>>20, l.last.Peak>>20, l.last.Descriptors, l.descriptors, l.last.CPU.Seconds())
}

// check returns an error if the process has ended or needed more memory than allowed.
func (l usageLog) check(maxMB int64) error {
	var broken error
	if l.ended > 0 {
		broken = fmt.Errorf("%w after %.1f s", errEnded, l.ended.Seconds())
	}
	if l.last.Peak == 0 {
		broken = errors.Join(broken, errors.New("the memory of the registry was not recorded"))
	}
	if l.last.Peak > maxMB<<20 {
		broken = errors.Join(broken, fmt.Errorf("the registry needed %d MB, %d are allowed", l.last.Peak>>20, maxMB))
	}
	return broken
}
