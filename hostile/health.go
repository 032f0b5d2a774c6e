package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// maxHealthTime is how long a node may take to answer a health check, on a machine of its own.
	maxHealthTime = 100 * time.Millisecond
	// maxSlowShare is the share of health checks that may take longer, in percent.
	maxSlowShare = 20
	// maxStall is how long any health check may take, on a machine of its own.
	maxStall = 2 * time.Second

	healthInterval = 50 * time.Millisecond
	healthTimeout  = 10 * time.Second
)

// healthTimes are how long the health checks of a node took. Checks counts those that were sent
// while the control was not slow; the other figures are of these.
type healthTimes struct {
	sent, checks, slow, failed int
	median, longest            time.Duration

	// slowdown is by how much other programs have slowed the node down. A check is slow, or a stall,
	// if it takes as much longer than allowed.
	slowdown float64
}

// bound returns an error if a node answers too late.
func (t healthTimes) bound() error {
	switch {
	case 2*t.checks < t.sent || t.checks == 0:
		return fmt.Errorf("health checks: the control was slow for %d of %d, so that they say nothing", t.sent-t.checks, t.sent)
	case t.failed > 0:
		return fmt.Errorf("health checks: %d of %d failed", t.failed, t.checks)
	case t.slow*100 > maxSlowShare*t.checks:
		return fmt.Errorf("health checks: %d of %d took more than %v", t.slow, t.checks, t.allowed(maxHealthTime))
	case t.longest > t.allowed(maxStall):
		return fmt.Errorf("health checks: one took %v", t.longest)
	}
	return nil
}

// allowed returns the time that corresponds to d on a machine of its own.
func (t healthTimes) allowed(d time.Duration) time.Duration {
	return time.Duration(t.slowdown * float64(d)).Round(time.Millisecond)
}

func (t healthTimes) String() string {
	return fmt.Sprintf("%d of %d health checks over %v, median %v, maximum %v", t.slow, t.checks, t.allowed(maxHealthTime), t.median, t.longest)
}

// maxSlowdown bounds what is put down to other programs.
const maxSlowdown = 10

// slowdown returns by how much longer than on a machine of its own a node needed for what it did
// between two moments.
func slowdown(before, after usage) float64 {
	computed, waited := after.cpu-before.cpu, after.waited-before.waited
	return min(maxSlowdown, 1+waited.Seconds()/max(computed, 10*time.Millisecond).Seconds())
}

// A checker is a process that sends health checks. It is none of the processes that attack, so that
// the time does not contain their share of the machine.
type checker struct {
	cmd *exec.Cmd
	in  io.Closer
	out io.Reader
}

func startChecker(ctx context.Context, nodes ...*node) (*checker, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	mode := []string{checkerMode}
	for _, n := range nodes {
		mode = append(mode, n.url)
	}
	c := &checker{cmd: exec.CommandContext(ctx, self)}
	c.cmd.Env = append(os.Environ(), modeVariable+"="+strings.Join(mode, " "))
	c.cmd.Stderr = os.Stderr
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if c.out, err = c.cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	return c, c.cmd.Start()
}

// stop ends the process, and returns its samples.
func (c *checker) stop() (samples, error) {
	_ = c.in.Close()
	var all samples
	err := json.NewDecoder(c.out).Decode(&all)
	return all, errors.Join(err, c.cmd.Wait())
}

// A sample is the result of one health check.
type sample struct {
	Took   time.Duration
	Failed bool
}

// samples are the results of the checks of a moment, of the control and of each node.
type samples [][]sample

// times returns the times of a node, whose health checks are the ith of each moment.
func (s samples) times(i int, slowdown float64) healthTimes {
	t := healthTimes{sent: len(s), slowdown: slowdown}
	var took []time.Duration
	for _, moment := range s {
		if control := moment[0]; control.Failed || control.Took > maxHealthTime {
			continue
		}
		took = append(took, moment[i].Took)
		if moment[i].Failed {
			t.failed++
		}
		if moment[i].Took > t.allowed(maxHealthTime) {
			t.slow++
		}
	}
	if t.checks = len(took); t.checks > 0 {
		slices.Sort(took)
		t.median, t.longest = took[t.checks/2], took[t.checks-1]
	}
	return t
}

// runChecker checks the health of nodes until the standard input ends, and prints the samples. It
// sends the checks at a fixed rate, however long they take: a node that stalls for a second is late
// for all checks of that second. A server in this process, which does nothing else, is the control.
func runChecker(urls []string) error {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	control, err := startControl(ctx)
	if err != nil {
		return err
	}
	urls = append([]string{control}, urls...)
	var (
		checks sync.WaitGroup
		all    samples
	)
	ticker := time.NewTicker(healthInterval)
	defer ticker.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-ticker.C:
			moment := make([]sample, len(urls))
			all = append(all, moment)
			for i, url := range urls {
				checks.Go(func() { moment[i] = check(url) })
			}
		}
	}
	checks.Wait()
	return json.NewEncoder(os.Stdout).Encode(all)
}

// startControl starts the control, which runs as long as this process. It returns its URL.
func startControl(ctx context.Context) (string, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	server := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), ReadHeaderTimeout: healthTimeout}
	go func() { _ = server.Serve(ln) }()
	return "http://" + ln.Addr().String(), nil
}

//nolint:gochecknoglobals // connections are not kept: those that wait to be accepted count, too
var healthClient = &http.Client{Timeout: healthTimeout, Transport: &http.Transport{DisableKeepAlives: true}}

func check(url string) sample {
	start := time.Now()
	status := 0
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url+"/healthz", http.NoBody)
	if err == nil {
		var resp *http.Response
		if resp, err = healthClient.Do(req); err == nil {
			status = resp.StatusCode
			_, err = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
	}
	return sample{time.Since(start).Round(time.Millisecond), err != nil || status != http.StatusOK}
}
