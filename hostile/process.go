package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mimiktech/cluster/internal/freeport"
	"github.com/mimiktech/cluster/internal/proctest"
)

// build builds examples/service. The working directory must be that of this module.
func build(ctx context.Context, path string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, ".")
	cmd.Dir = filepath.Join("..", "examples", "service")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("building examples/service: %w: %s", err, out)
	}
	return nil
}

// keptLog is how much of the log of a process is kept.
const keptLog = 64 << 20

// A log keeps what a process prints.
type log struct {
	mu   sync.Mutex // guards the field below
	text bytes.Buffer
}

// Write implements io.Writer.
func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.text.Len() < keptLog {
		l.text.Write(b)
	}
	return len(b), nil
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// A node is a process of the service.
type node struct {
	id, url string
	cmd     *exec.Cmd
	log     *log
}

// startNode starts a node, and waits until it has registered.
func (w *world) startNode(ctx context.Context, service, id string) (*node, error) {
	port, err := freeport.Next(ctx)
	if err != nil {
		return nil, err
	}
	n := &node{id: id, url: "http://127.0.0.1:" + strconv.Itoa(port), log: new(log)}
	n.cmd = exec.CommandContext(ctx, service)
	n.cmd.Env = append(w.environment(), "SERVER_ID="+id, "SERVER_PORT="+strconv.Itoa(port), modeVariable+"="+bareMode)
	n.cmd.Stdout, n.cmd.Stderr = n.log, n.log
	if err := n.cmd.Start(); err != nil {
		return nil, err
	}
	for range 1500 {
		if status, err := n.get(ctx, "/status", time.Second); err == nil && strings.Contains(status, `"state":"registered"`) {
			return n, nil
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			break
		}
	}
	n.stop()
	return nil, fmt.Errorf("node %s has not registered: %.2000s", id, n.log)
}

func (n *node) stop() {
	_ = n.cmd.Process.Kill() // it may have ended
	_ = n.cmd.Wait()
}

// maxBody bounds the responses that are read from a node.
const maxBody = 1 << 30

// get returns the body of a response of the node.
func (n *node) get(ctx context.Context, path string, timeout time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.url+path, http.NoBody)
	if err != nil {
		return "", err
	}
	_, body, err := do(http.DefaultClient, req)
	return body, err
}

// usage reads the usage of the process.
func (n *node) usage() (proctest.Usage, error) { return proctest.ProcessUsage(n.cmd.Process.Pid) }

// alive reports whether the process runs.
func (n *node) alive() bool { return n.cmd.Process.Signal(syscall.Signal(0)) == nil }

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
