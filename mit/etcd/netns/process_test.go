//go:build linux

package netns

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/mimiktech/cluster/internal/proctest"
)

// start starts a program on a host. It ends with the test.
func start(t *testing.T, h host, stdin *os.File, files []*os.File, env []string, program ...string) {
	t.Helper()
	log := new(proctest.Tail)
	args := append([]string{"netns", "exec", h.namespace}, program...)
	cmd := exec.CommandContext(context.Background(), "ip", args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = stdin, log, log, files
	proctest.Isolate(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", h.namespace, err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			t.Logf("last output of %s:\n%s", h.namespace, log)
		}
	})
}

// startRole starts this binary in another role.
func startRole(t *testing.T, h host, role string, env []string, args ...string) {
	t.Helper()
	stdin, keep := pipe(t)
	t.Cleanup(func() { _ = keep.Close() })
	start(t, h, stdin, nil, append(env, roleVariable+"="+role), append([]string{os.Args[0]}, args...)...)
	_ = stdin.Close()
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	return r, w
}

// A node is a process with a node of the cluster: a Go node, or one of the npm module.
type node struct {
	id   string
	host host

	commands *os.File
	results  chan message

	mu   sync.Mutex // guards the fields below
	last fanOut     // the last one that has ended
}

const nodePort = 8080

// newNode starts a node, and waits until it serves requests. Without a program, it is a Go node.
func newNode(t *testing.T, h host, id string, env []string, program ...string) *node {
	t.Helper()
	socket, err := h.listen(nodePort)
	if err != nil {
		t.Fatal(err)
	}
	stdin, commands := pipe(t)
	results, stdout := pipe(t)
	env = append(env, roleVariable+"="+roleNode, "SERVER_ID="+id, "SERVER_LOCAL_IPV4="+h.addr, fmt.Sprintf("SERVER_PORT=%d", nodePort))
	if len(program) == 0 {
		program = []string{os.Args[0]}
	}
	t.Cleanup(func() { _ = commands.Close() })
	start(t, h, stdin, []*os.File{stdout, socket}, env, program...)
	for _, inherited := range []*os.File{stdin, stdout, socket} {
		_ = inherited.Close()
	}
	n := &node{id: id, host: h, commands: commands, results: make(chan message)}
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(n.results)
		lines := bufio.NewScanner(results)
		for lines.Scan() {
			var m message
			if json.Unmarshal(lines.Bytes(), &m) == nil {
				n.results <- m
			}
		}
	})
	t.Cleanup(func() {
		_ = results.Close()
		for range n.results { // what comes late
		}
		wg.Wait()
	})
	if _, err := n.result(); err != nil {
		t.Fatalf("%s does not start: %v", id, err)
	}
	return n
}

// result waits for the next message of the node.
func (n *node) result() (json.RawMessage, error) {
	select {
	case m, ok := <-n.results:
		if !ok {
			return nil, fmt.Errorf("%s has ended", n.id)
		}
		if m.Error != "" {
			return nil, fmt.Errorf("%s: %s", n.id, m.Error)
		}
		return m.Result, nil
	case <-time.After(maxWait):
		return nil, fmt.Errorf("%s does not answer", n.id)
	}
}

// do runs a command on the node. One runs at a time.
func (n *node) do(command string, args, into any) error {
	line, err := json.Marshal(message{ID: 1, Command: command, Args: args})
	if err != nil {
		return err
	}
	if _, err := n.commands.Write(append(line, '\n')); err != nil {
		return err
	}
	result, err := n.result()
	if err != nil {
		return err
	}
	return json.Unmarshal(result, into)
}
