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
	"github.com/mimiktech/cluster/internal/proctest"
)

// A kind is whose code a node runs.
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

// A node is a process that can be a server of a cluster. It ends with the test, however that ends.
type node struct {
	kind kind
	id   string
	port int
	base string // its own address, and what its peers are told

	t     *testing.T
	cmd   *exec.Cmd
	in    *os.File
	ready chan order
	gone  chan struct{} // closed when it has ended

	mu      sync.Mutex // guards the fields below
	last    int
	waiting map[int]chan order
	output  bytes.Buffer
}

// Write keeps what the process prints, to be shown if the test fails.
func (n *node) Write(b []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.output.Write(b)
}

// launch starts a node, which serves soon. It listens on a socket that is open before it starts,
// so that no port is chosen twice and whoever calls too early only waits.
func launch(t *testing.T, k kind, id, listen, modules string, env map[string]string) *node {
	t.Helper()
	ln := listenAt(t, listen)
	port := ln.Addr().(*net.TCPAddr).Port
	socket, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	ln.Close() // the node's copy is the one that counts: when it dies, the port is closed
	defer socket.Close()

	n := &node{
		kind: k, id: id, port: port, base: fmt.Sprintf("http://127.0.0.1:%d%s", port, basePath),
		t: t, gone: make(chan struct{}), waiting: map[int]chan order{},
	}
	answers, theirAnswers := pipe(t)
	theirOrders, orders := pipe(t)
	defer theirAnswers.Close()
	defer theirOrders.Close()
	n.in = orders

	program := []string{os.Args[0]}
	if k == npmKind {
		program = []string{"node", "npm/node.js"}
	}
	n.cmd = exec.CommandContext(t.Context(), program[0], program[1:]...)
	n.cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), roleVariable + "=" + roleNode,
		"NODE_PATH=" + modules, "LOG_MODE=none", "LOG_LEVEL=error", "CONSOLE_LEVEL=warn", "NO_STACK=yes",
		"SERVER_ID=" + id, "SERVER_PORT=" + strconv.Itoa(port), "SERVER_LOCAL_IPV4=127.0.0.1",
	}
	for name, value := range env {
		n.cmd.Env = append(n.cmd.Env, name+"="+value)
	}
	n.cmd.Stdin, n.cmd.Stdout, n.cmd.Stderr = theirOrders, n, n
	n.cmd.ExtraFiles = []*os.File{theirAnswers, socket}
	proctest.Isolate(n.cmd)
	n.cmd.WaitDelay = 2 * time.Second
	n.ready = n.expect(0)
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		n.listen(answers)
		_ = n.cmd.Wait() // how it ended is in ProcessState
		close(n.gone)
	}()
	t.Cleanup(n.end)
	return n
}

// listenAt listens. A port that was released a moment ago may be busy for another: a process that
// starts meanwhile has its socket until it runs, and a connection may have been given the port.
func listenAt(t *testing.T, address string) net.Listener {
	t.Helper()
	var lc net.ListenConfig
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		ln, err := lc.Listen(t.Context(), "tcp", address)
		if err == nil {
			return ln
		}
		if !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// serving waits until the node serves.
func (n *node) serving() *node {
	n.t.Helper()
	if _, err := n.answer(n.ready, 30*time.Second); err != nil {
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

// end kills the process and shows what it printed if the test failed.
func (n *node) end() {
	_ = n.cmd.Process.Kill() // it may be gone already
	<-n.gone
	n.in.Close()
	n.mu.Lock()
	defer n.mu.Unlock()
	if strings.Contains(n.output.String(), "WARNING: DATA RACE") {
		n.t.Errorf("data race in %s node %s", n.kind, n.id)
	}
	if n.t.Failed() {
		n.t.Logf("%s node %s on port %d (%v) printed:\n%s", n.kind, n.id, n.port, n.cmd.ProcessState, tail(n.output.Bytes(), 12<<10))
	}
}

func tail(b []byte, most int) []byte {
	if len(b) <= most {
		return b
	}
	return slices.Concat([]byte("[…]"), b[len(b)-most:])
}

// listen hands out the answers of the node until there are no more.
func (n *node) listen(answers *os.File) {
	defer answers.Close()
	lines := bufio.NewScanner(answers)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var o order
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			fmt.Fprintf(n, "not an answer: %s\n", lines.Bytes())
			continue
		}
		n.mu.Lock()
		waiting, ok := n.waiting[o.ID]
		delete(n.waiting, o.ID)
		n.mu.Unlock()
		if ok {
			waiting <- o
		}
	}
}

func (n *node) expect(id int) chan order {
	n.mu.Lock()
	defer n.mu.Unlock()
	answer := make(chan order, 1)
	n.waiting[id] = answer
	return answer
}

func (n *node) answer(from chan order, within time.Duration) (json.RawMessage, error) {
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case o := <-from:
		if o.Error != "" {
			return nil, fmt.Errorf("%s node %s: %s", n.kind, n.id, o.Error)
		}
		return o.Answer, nil
	case <-n.gone:
		return nil, fmt.Errorf("%s node %s: %w", n.kind, n.id, errEnded)
	case <-timer.C:
		return nil, fmt.Errorf("%s node %s says nothing for %v", n.kind, n.id, within)
	}
}

// tell gives the node an order; answer waits for what comes of it.
func (n *node) tell(what string, args any) (chan order, error) {
	raw, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	n.last++
	id := n.last
	n.mu.Unlock()
	answer := n.expect(id)
	line, err := json.Marshal(order{ID: id, Order: what, Args: raw})
	if err != nil {
		return nil, err
	}
	if _, err := n.in.Write(append(line, '\n')); err != nil {
		return nil, fmt.Errorf("%s node %s: %w: %w", n.kind, n.id, errEnded, err)
	}
	return answer, nil
}

// do has the node carry out an order, and reads the answer into a value.
func (n *node) do(what string, args, into any) error {
	waiting, err := n.tell(what, args)
	if err != nil {
		return err
	}
	answer, err := n.answer(waiting, 60*time.Second)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(answer, into); err != nil {
		return fmt.Errorf("%s node %s answers %s with %.200s: %w", n.kind, n.id, what, answer, err)
	}
	return nil
}

// must is do for what has to work.
func (n *node) must(what string, args, into any) {
	n.t.Helper()
	if err := n.do(what, args, into); err != nil {
		n.t.Fatalf("%s: %v", what, err)
	}
}

// register has the node begin to register. When it is done, the registry and the others show.
func (n *node) register() {
	n.t.Helper()
	n.must("register", nil, new(any))
}

// view are the servers that the node knows, itself included.
func (n *node) view() ([]cluster.Server, error) {
	var servers []cluster.Server
	err := n.do("view", nil, &servers)
	return servers, err
}

// A status is the part of its environment that a node sets.
type status struct{ Registration, Servers, UpdatedAt, LeaseTime string }

func (n *node) status() status {
	n.t.Helper()
	var s status
	n.must("status", nil, &s)
	return s
}

// A fanout is what came of asking all peers. Its Response is read as both kinds of node write it.
type fanout struct {
	Response struct {
		Data    []json.RawMessage
		Results []struct {
			Result json.RawMessage
			Server cluster.Server
		}
		Failures []struct {
			Error struct {
				StatusCode int
				Message    string
				Kind       cluster.Kind
				Attempts   int
				Evicted    bool
				Spared     string
			}
			Server cluster.Server
		}
	}
	Milliseconds  int64
	Before, After []string
}

func (f fanout) took() time.Duration { return time.Duration(f.Milliseconds) * time.Millisecond }

// answered and failed are the ids of the peers with a result, and of those with a failure.
func (f fanout) answered() []string {
	var ids []string
	for _, r := range f.Response.Results {
		ids = append(ids, r.Server.ServerID)
	}
	slices.Sort(ids)
	return ids
}

func (f fanout) failed() []string {
	var ids []string
	for _, r := range f.Response.Failures {
		ids = append(ids, r.Server.ServerID)
	}
	slices.Sort(ids)
	return ids
}

func (f fanout) data() []string {
	var all []string
	for _, d := range f.Response.Data {
		all = append(all, string(d))
	}
	slices.Sort(all)
	return all
}

// ask has the node ask all its peers.
func (n *node) ask(args fanoutArgs) fanout {
	n.t.Helper()
	var f fanout
	n.must("fanout", args, &f)
	slices.Sort(f.Before)
	slices.Sort(f.After)
	return f
}

// A departure is what unRegister answers.
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

// signal sends the process a signal: SIGKILL ends it, SIGSTOP makes it hang with its port open,
// SIGTERM asks it to leave.
func (n *node) signal(s syscall.Signal) {
	n.t.Helper()
	if err := n.cmd.Process.Signal(s); err != nil {
		n.t.Fatalf("%s node %s: %v", n.kind, n.id, err)
	}
}

// kill ends the process as a crash does, and waits until its port is closed.
func (n *node) kill() {
	n.t.Helper()
	n.signal(syscall.SIGKILL)
	<-n.gone
	holdPort(n.t, n.port)
}

// exited waits for the process to end by itself, and returns its exit code.
func (n *node) exited() int {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), patience)
	defer cancel()
	select {
	case <-n.gone:
	case <-ctx.Done():
		n.t.Fatalf("%s node %s does not end", n.kind, n.id)
	}
	holdPort(n.t, n.port)
	return n.cmd.ProcessState.ExitCode()
}
