package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

	"github.com/mimiktech/cluster/internal/proctest"
)

// checkHealth checks the health of the registry, as a load balancer does, while f runs. Meanwhile
// this process has a low priority, so that the times are those of the registry, not of the
// load generator.
func checkHealth(ctx context.Context, p *process, s settings, w io.Writer, f func()) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	before, err := proctest.ProcessUsage(p.cmd.Process.Pid)
	if err != nil {
		return err
	}
	checker := exec.CommandContext(context.WithoutCancel(ctx), self, "-probe", "http://"+p.address+healthPath)
	health, err := proctest.StartHealthChecks(checker, func() error { return proctest.GiveWay() })
	if err != nil {
		return err
	}
	f()
	samples, err := health.Stop()
	after, usageErr := proctest.ProcessUsage(p.cmd.Process.Pid)
	if err := errors.Join(err, usageErr); err != nil {
		return fmt.Errorf("health checks: %w", err)
	}
	times := samples.Times(0, proctest.Slowdown(before, after), s.bounds.health)
	fmt.Fprintf(w, "%v, %d failed\n", times, times.Failed)
	return times.Check()
}
