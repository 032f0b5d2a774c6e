package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/mimiktech/cluster/internal/proctest"
)

// A prober is a process that checks the health of the registry, as a load balancer does. It has the
// priority of the registry, and this process then has a lower one. So the times are those of the
// registry, not of the load generator.
type prober struct {
	cmd    *exec.Cmd
	stdin  io.Closer
	stdout bytes.Buffer
}

// watchHealth starts a prober, and lowers the priority of this process. The caller must call print.
func watchHealth(ctx context.Context, p *process) (*prober, error) {
	url := "http://" + p.address + registryPath + "/health"
	h := &prober{cmd: exec.CommandContext(context.WithoutCancel(ctx), os.Args[0], "-probe", url)} //nolint:gosec // this program
	proctest.Isolate(h.cmd)
	h.cmd.Stdout, h.cmd.Stderr = &h.stdout, os.Stderr
	var err error
	if h.stdin, err = h.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := h.cmd.Start(); err != nil {
		return nil, err
	}
	if err := proctest.GiveWay(); !errors.Is(err, errors.ErrUnsupported) {
		return h, err
	}
	return h, nil
}

// print ends the prober, and prints its result.
func (h *prober) print(w io.Writer) error {
	_ = h.stdin.Close()
	if err := h.cmd.Wait(); err != nil {
		return err
	}
	_, err := h.stdout.WriteTo(w)
	return err
}

// probe is the prober: it checks a URL until the standard input ends. It also checks a server of
// its own, which shows what the machine adds.
func probe(ctx context.Context, url string, in io.Reader, w io.Writer) {
	idle := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{}") }))
	defer idle.Close()
	ctx, cancel := context.WithCancel(ctx)
	var registry, control health
	var wg sync.WaitGroup
	wg.Go(func() { registry.watch(ctx, url) })
	wg.Go(func() { control.watch(ctx, idle.URL) })
	_, _ = io.Copy(io.Discard, in)
	cancel()
	wg.Wait()
	registry.print(w, "health")
	control.print(w, "a server that does nothing else")
}

// A health is the result of the checks of a server.
type health struct {
	checks, failed int
	slow           int // above 100 ms
	slowest        time.Duration
}

// watch checks a server ten times a second, each time on a new connection.
func (h *health) watch(ctx context.Context, url string) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for ctx.Err() == nil {
		began := time.Now()
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return
		}
		res, err := client.Do(r)
		took := time.Since(began)
		if ctx.Err() != nil {
			return
		}
		h.checks++
		if err != nil || res.StatusCode != http.StatusOK {
			h.failed++
		}
		if took > 100*time.Millisecond {
			h.slow++
		}
		h.slowest = max(h.slowest, took)
		if err == nil {
			_ = res.Body.Close()
		}
		pause(ctx, 100*time.Millisecond)
	}
}

func (h *health) print(w io.Writer, name string) {
	fmt.Fprintf(w, "%s: %d checks, %d failed, %d took more than 100 ms, the slowest %v\n", name, h.checks, h.failed, h.slow, h.slowest.Round(time.Millisecond))
}
