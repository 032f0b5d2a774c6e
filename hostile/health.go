package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// maxHealthTime is how long the node may take to answer a health check, at the median.
const maxHealthTime = 100 * time.Millisecond

// healthTimes are how long the health checks of a node took.
type healthTimes struct {
	Checks, Failed  int
	Median, Longest time.Duration
}

// checkerVariable makes this program check the health of nodes. It has their URLs.
const checkerVariable = "HOSTILE_CHECKER"

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
	var urls []string
	for _, n := range nodes {
		urls = append(urls, n.url)
	}
	c := &checker{cmd: exec.CommandContext(ctx, self)}
	c.cmd.Env = append(os.Environ(), checkerVariable+"="+strings.Join(urls, " "))
	c.cmd.Stderr = os.Stderr
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if c.out, err = c.cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	return c, c.cmd.Start()
}

// stop ends the process, and returns the times of each node.
func (c *checker) stop() ([]healthTimes, error) {
	_ = c.in.Close()
	var times []healthTimes
	err := json.NewDecoder(c.out).Decode(&times)
	return times, errors.Join(err, c.cmd.Wait())
}

// runChecker checks the health of nodes until the standard input ends, and prints how long that
// took.
func runChecker(urls []string) error {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	took, failed := make([][]time.Duration, len(urls)), make([]int, len(urls))
	for sleep(ctx, 50*time.Millisecond) == nil {
		for i, url := range urls {
			start := time.Now()
			if err := checkHealth(url); err != nil {
				failed[i]++
			}
			took[i] = append(took[i], time.Since(start).Round(time.Millisecond))
		}
	}
	times := make([]healthTimes, len(urls))
	for i, t := range took {
		if len(t) == 0 {
			return errors.New("no health check")
		}
		slices.Sort(t)
		times[i] = healthTimes{len(t), failed[i], t[len(t)/2], t[len(t)-1]}
	}
	return json.NewEncoder(os.Stdout).Encode(times)
}

func checkHealth(url string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/healthz", http.NoBody)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}
