//go:build unix

package interop

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/internal/exchanges"
	"github.com/mimiktech/cluster/internal/proctest"
)

// A kind says which module a node uses.
type kind string

const (
	goKind  kind = "Go"
	npmKind kind = "npm"
)

func kinds() []kind { return []kind{goKind, npmKind} }

func (k kind) other() kind {
	if k == goKind {
		return npmKind
	}
	return goKind
}

// A node is a process that can join a cluster. It ends with the test.
type node struct {
	kind kind
	id   string
	port int
	base string // the base URL for its peers

	t     *testing.T
	cmd   *exec.Cmd
	stdin *os.File
	ready chan message
	ended chan struct{} // closed when the process has ended

	mu      sync.Mutex // guards the fields below
	lastID  int
	pending map[int]chan message // commands without a result
	output  bytes.Buffer
}

// Write keeps the output of the process, which stop logs if the test has failed.
func (n *node) Write(b []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.output.Write(b)
}

// launch starts a node. Its listener is open before the process starts, so that no port is chosen
// twice and early requests wait.
func launch(t *testing.T, k kind, id, listen, modules string, env map[string]string) *node {
	t.Helper()
	ln := listenAt(t, listen)
	port := ln.Addr().(*net.TCPAddr).Port
	socket, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	ln.Close() // only the node keeps the socket open, so its port is closed when it ends
	defer socket.Close()

	n := &node{
		kind: k, id: id, port: port, base: fmt.Sprintf("http://127.0.0.1:%d%s", port, basePath),
		t: t, ended: make(chan struct{}), pending: map[int]chan message{},
	}
	results, nodeResults := pipe(t)
	nodeCommands, commands := pipe(t)
	defer nodeResults.Close()
	defer nodeCommands.Close()
	n.stdin = commands

	program := []string{os.Args[0]}
	if k == npmKind {
		program = []string{"node", "npm/node.js"}
	}
	n.cmd = exec.CommandContext(t.Context(), program[0], program[1:]...)
	n.cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), roleVariable + "=" + roleNode,
		"NODE_PATH=" + modules, exchanges.Variable + "=" + os.Getenv(exchanges.Variable), "LOG_MODE=none", "LOG_LEVEL=error", "CONSOLE_LEVEL=warn", "NO_STACK=yes",
		"SERVER_ID=" + id, "SERVER_PORT=" + strconv.Itoa(port), "SERVER_LOCAL_IPV4=127.0.0.1",
	}
	for name, value := range env {
		n.cmd.Env = append(n.cmd.Env, name+"="+value)
	}
	n.cmd.Stdin, n.cmd.Stdout, n.cmd.Stderr = nodeCommands, n, n
	n.cmd.ExtraFiles = []*os.File{nodeResults, socket}
	proctest.Isolate(n.cmd)
	n.cmd.WaitDelay = 2 * time.Second
	n.ready = n.expect(0)
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		n.readResults(results)
		_ = n.cmd.Wait() // its result is in ProcessState
		close(n.ended)
	}()
	t.Cleanup(n.stop)
	return n
}

// listenAt retries while the port is in use. A port that was just released may still be held by a
// process between fork and exec, or may be the local port of a connection.
func listenAt(t *testing.T, address string) net.Listener {
	t.Helper()
	var lc net.ListenConfig
	for deadline := time.Now().Add(waitTimeout); ; time.Sleep(20 * time.Millisecond) {
		ln, err := lc.Listen(t.Context(), "tcp", address)
		if err == nil {
			return ln
		}
		if !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// waitReady waits until the node serves requests.
func (n *node) waitReady() *node {
	n.t.Helper()
	if _, err := n.await(n.ready, 30*time.Second); err != nil {
		n.t.Fatalf("%s node %s does not start: %v", n.kind, n.id, err)
	}
	return n
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	return r, w
}

// stop kills the process, and logs its output if the test has failed.
func (n *node) stop() {
	_ = n.cmd.Process.Kill() // may have ended before
	<-n.ended
	n.stdin.Close()
	n.mu.Lock()
	defer n.mu.Unlock()
	if strings.Contains(n.output.String(), "WARNING: DATA RACE") {
		n.t.Errorf("data race in %s node %s", n.kind, n.id)
	}
	if n.t.Failed() {
		n.t.Logf("%s node %s on port %d (%v) printed:\n%s", n.kind, n.id, n.port, n.cmd.ProcessState, tail(n.output.Bytes(), 12<<10))
	}
}

func tail(b []byte, maxLen int) []byte {
	if len(b) <= maxLen {
		return b
	}
	return slices.Concat([]byte("[…]"), b[len(b)-maxLen:])
}

// readResults delivers the results of the node to the waiting commands, until the node ends.
func (n *node) readResults(results *os.File) {
	defer results.Close()
	lines := bufio.NewScanner(results)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var m message
		if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
			fmt.Fprintf(n, "not a result: %s\n", lines.Bytes())
			continue
		}
		n.mu.Lock()
		result, ok := n.pending[m.ID]
		delete(n.pending, m.ID)
		n.mu.Unlock()
		if ok {
			result <- m
		}
	}
}

func (n *node) expect(id int) chan message {
	n.mu.Lock()
	defer n.mu.Unlock()
	result := make(chan message, 1)
	n.pending[id] = result
	return result
}

func (n *node) await(result chan message, timeout time.Duration) (json.RawMessage, error) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case m := <-result:
		if m.Error != "" {
			return nil, fmt.Errorf("%s node %s: %s", n.kind, n.id, m.Error)
		}
		return m.Result, nil
	case <-n.ended:
		return nil, fmt.Errorf("%s node %s: %w", n.kind, n.id, errEnded)
	case <-timer.C:
		return nil, fmt.Errorf("%s node %s sent no result for %v", n.kind, n.id, timeout)
	}
}

// send sends a command to the node. The channel receives its result, see await.
func (n *node) send(name string, args any) (chan message, error) {
	raw, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	n.lastID++
	id := n.lastID
	n.mu.Unlock()
	result := n.expect(id)
	line, err := json.Marshal(message{ID: id, Command: name, Args: raw})
	if err != nil {
		return nil, err
	}
	if _, err := n.stdin.Write(append(line, '\n')); err != nil {
		return nil, fmt.Errorf("%s node %s: %w: %w", n.kind, n.id, errEnded, err)
	}
	return result, nil
}

// do runs a command on the node and decodes its result.
func (n *node) do(name string, args, into any) error {
	pending, err := n.send(name, args)
	if err != nil {
		return err
	}
	result, err := n.await(pending, 60*time.Second)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(result, into); err != nil {
		return fmt.Errorf("%s node %s: result of %s: %.200s: %w", n.kind, n.id, name, result, err)
	}
	return nil
}

// must is do, and fails the test on an error.
func (n *node) must(name string, args, into any) {
	n.t.Helper()
	if err := n.do(name, args, into); err != nil {
		n.t.Fatalf("%s: %v", name, err)
	}
}

// register starts the registration of the node and does not wait for it.
func (n *node) register() {
	n.t.Helper()
	n.must("register", nil, new(any))
}

// view returns the servers that the node knows, including itself.
func (n *node) view() ([]cluster.Server, error) {
	var servers []cluster.Server
	err := n.do("view", nil, &servers)
	return servers, err
}

// A status contains the environment variables that a node sets.
type status struct{ Registration, Servers, UpdatedAt, LeaseTime string }

func (n *node) status() status {
	n.t.Helper()
	var s status
	n.must("status", nil, &s)
	return s
}

// A fanoutResult is the result of a call to all peers. Both kinds of node encode it in this form.
type fanoutResult struct {
	Response struct {
		Data    []json.RawMessage
		Results []struct {
			Result json.RawMessage
			Server cluster.Server
		}
		Failures []struct {
			Error struct {
				StatusCode      int
				Message         string
				Kind            cluster.Kind
				Attempts        int
				Evicted         bool
				EvictionSkipped string
			}
			Server cluster.Server
		}
	}
	Milliseconds  int64
	Before, After []string
}

func (f fanoutResult) took() time.Duration { return time.Duration(f.Milliseconds) * time.Millisecond }

// resultIDs returns the ids of the peers with a result, sorted.
func (f fanoutResult) resultIDs() []string {
	var ids []string
	for _, r := range f.Response.Results {
		ids = append(ids, r.Server.ServerID)
	}
	slices.Sort(ids)
	return ids
}

// failureIDs returns the ids of the peers with a failure, sorted.
func (f fanoutResult) failureIDs() []string {
	var ids []string
	for _, r := range f.Response.Failures {
		ids = append(ids, r.Server.ServerID)
	}
	slices.Sort(ids)
	return ids
}

// data returns the elements of the joint data, sorted.
func (f fanoutResult) data() []string {
	var all []string
	for _, d := range f.Response.Data {
		all = append(all, string(d))
	}
	slices.Sort(all)
	return all
}

// fanOut lets the node call all its peers.
func (n *node) fanOut(args fanoutArgs) fanoutResult {
	n.t.Helper()
	var f fanoutResult
	n.must("fanout", args, &f)
	slices.Sort(f.Before)
	slices.Sort(f.After)
	return f
}

// A departure is the result of unRegister.
type departure struct {
	NbServers int
	ServerID  string
	Errors    []json.RawMessage
}

func (n *node) unregister() departure {
	n.t.Helper()
	var d departure
	n.must("unregister", nil, &d)
	return d
}

// signal sends the process a signal. After SIGSTOP it hangs with its port open.
func (n *node) signal(s syscall.Signal) {
	n.t.Helper()
	if err := n.cmd.Process.Signal(s); err != nil {
		n.t.Fatalf("%s node %s: %v", n.kind, n.id, err)
	}
}

// kill ends the process like a crash, and waits until its port is closed.
func (n *node) kill() {
	n.t.Helper()
	n.signal(syscall.SIGKILL)
	<-n.ended
	holdPort(n.t, n.port)
}

// waitExit waits until the process ends by itself, and returns its exit code.
func (n *node) waitExit() int {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), waitTimeout)
	defer cancel()
	select {
	case <-n.ended:
	case <-ctx.Done():
		n.t.Fatalf("%s node %s does not end", n.kind, n.id)
	}
	holdPort(n.t, n.port)
	return n.cmd.ProcessState.ExitCode()
}
