package proctest

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
	"sync"
	"time"
)

const (
	healthInterval = 50 * time.Millisecond
	healthTimeout  = 10 * time.Second
)

// HealthBounds are the times within which a server must answer health checks, on a machine of its
// own.
type HealthBounds struct {
	Time        time.Duration // a check that takes longer is slow
	SlowPercent int           // percentage of the checks that may be slow
	Stall       time.Duration // maximum time of each check
}

// HealthTimes are how long the health checks of a server took. Sent counts all checks, and Checks
// those that were sent while the control, a server that does nothing else, was not slow. The other
// figures are of Checks. Late counts those that took longer than the bound, and Slow those that
// took longer than the bound multiplied by the slowdown.
type HealthTimes struct {
	Sent, Checks, Late, Slow, Failed int
	Median, Longest                  time.Duration

	bounds HealthBounds
	// slowdown is the factor by which waiting for a processor has slowed the server down. The times
	// in bounds are multiplied by it.
	slowdown float64
}

// Check returns an error if the server answered too late.
func (t HealthTimes) Check() error {
	switch {
	case 2*t.Checks < t.Sent || t.Checks == 0:
		return fmt.Errorf("health checks: the control was slow for %d of %d, so that they say nothing", t.Sent-t.Checks, t.Sent)
	case t.Failed > 0:
		return fmt.Errorf("health checks: %d of %d failed", t.Failed, t.Checks)
	case t.Slow*100 > t.bounds.SlowPercent*t.Checks:
		return fmt.Errorf("health checks: %d of %d took more than %v", t.Slow, t.Checks, t.allowed(t.bounds.Time))
	case t.Longest > t.allowed(t.bounds.Stall):
		return fmt.Errorf("health checks: one took %v", t.Longest)
	}
	return nil
}

// allowed returns d, a bound for a server that has a machine of its own, multiplied by the
// slowdown.
func (t HealthTimes) allowed(d time.Duration) time.Duration {
	return time.Duration(t.slowdown * float64(d)).Round(time.Millisecond)
}

func (t HealthTimes) String() string {
	return fmt.Sprintf("%d of %d health checks over %v, %d over %v, median %v, maximum %v, %d left out",
		t.Late, t.Checks, t.bounds.Time, t.Slow, t.allowed(t.bounds.Time), t.Median, t.Longest, t.Sent-t.Checks)
}

// A HealthChecker is a process that only sends health checks. A process that also generates load
// would send them late, and measure its own delays.
type HealthChecker struct {
	cmd *exec.Cmd
	in  io.Closer
	out io.Reader
}

// StartHealthChecks starts cmd, which must come from [exec.CommandContext] and run [CheckHealth].
// It blocks until the checks have begun. Then it calls giveWay, which lowers the priority of the
// processes that generate load; see [GiveWay]. The caller must call Stop.
func StartHealthChecks(cmd *exec.Cmd, giveWay func() error) (*HealthChecker, error) {
	Isolate(cmd)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &HealthChecker{cmd: cmd, in: in, out: out}
	_, err = out.Read(make([]byte, 1)) // blocks until the checks have begun
	if err == nil {
		err = giveWay()
	}
	if err != nil {
		_, stopErr := c.Stop()
		return nil, errors.Join(err, stopErr)
	}
	return c, nil
}

// Stop ends the process, and returns its samples.
func (c *HealthChecker) Stop() (HealthSamples, error) {
	_ = c.in.Close()
	var all HealthSamples
	err := json.NewDecoder(c.out).Decode(&all)
	return all, errors.Join(err, c.cmd.Wait())
}

// A HealthSample is the result of one health check.
type HealthSample struct {
	Took   time.Duration
	Failed bool
}

// HealthSamples have the checks of each moment: first that of the control, then those of the URLs.
type HealthSamples [][]HealthSample

// Times returns the times of the ith URL. The slowdown is that of its server; see [Slowdown].
func (s HealthSamples) Times(i int, slowdown float64, bounds HealthBounds) HealthTimes {
	t := HealthTimes{Sent: len(s), bounds: bounds, slowdown: slowdown}
	var took []time.Duration
	for _, moment := range s {
		control, server := moment[0], moment[i+1]
		if control.Failed || control.Took > bounds.Time {
			continue
		}
		took = append(took, server.Took)
		if server.Failed {
			t.Failed++
		}
		if server.Took > bounds.Time {
			t.Late++
		}
		if server.Took > t.allowed(bounds.Time) {
			t.Slow++
		}
	}
	if t.Checks = len(took); t.Checks > 0 {
		slices.Sort(took)
		t.Median, t.Longest = took[t.Checks/2], took[t.Checks-1]
	}
	return t
}

// CheckHealth checks URLs until in ends, and writes the samples to out. It sends the checks at a
// fixed rate, however long they take: a server that stalls for a second is late for all checks of
// that second. A server in this process, which does nothing else, is the control.
func CheckHealth(ctx context.Context, urls []string, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		_, _ = io.Copy(io.Discard, in)
		cancel()
	}()
	control, err := startControl(ctx)
	if err != nil {
		return err
	}
	urls = append([]string{control}, urls...)
	// Each check has a new connection, so that its time includes the wait to be accepted.
	client := &http.Client{Timeout: healthTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
	var (
		checks sync.WaitGroup
		all    HealthSamples
	)
	ticker := time.NewTicker(healthInterval)
	defer ticker.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-ticker.C:
			moment := make([]HealthSample, len(urls))
			if all = append(all, moment); len(all) == 1 {
				_, _ = io.WriteString(out, "\n") // the checks have begun
			}
			for i, url := range urls {
				checks.Go(func() { moment[i] = checkHealth(client, url) })
			}
		}
	}
	checks.Wait()
	return json.NewEncoder(out).Encode(all)
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

func checkHealth(client *http.Client, url string) HealthSample {
	start := time.Now()
	status := 0
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, url, http.NoBody)
	if err == nil {
		var resp *http.Response
		if resp, err = client.Do(req); err == nil {
			status = resp.StatusCode
			_, err = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
	}
	return HealthSample{time.Since(start).Round(time.Millisecond), err != nil || status != http.StatusOK}
}
