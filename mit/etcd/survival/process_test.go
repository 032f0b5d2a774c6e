//go:build unix

package survival

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/mimiktech/cluster/internal/freeport"
	"github.com/mimiktech/cluster/internal/proctest"
	"github.com/mimiktech/cluster/mit/etcd/internal/etcdtest"
)

// A process runs this binary in another role. It ends with its test, at the latest with this
// process.
type process struct {
	t     *testing.T
	name  string
	role  string
	args  []string
	cmd   *exec.Cmd // nil while it does not run
	stdin io.Closer
	log   *proctest.Tail
}

// newProcess returns a process that is not started yet.
func newProcess(t *testing.T, name, role string, args ...string) *process {
	t.Helper()
	p := &process{t: t, name: name, role: role, args: args, log: new(proctest.Tail)}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("last output of %s:\n%s", p.name, p.log)
		}
	})
	return p
}

// start starts or restarts the process.
func (p *process) start() {
	p.t.Helper()
	if p.cmd != nil {
		p.t.Fatalf("%s runs already", p.name)
	}
	cmd := exec.CommandContext(context.Background(), os.Args[0], p.args...) // kill ends it
	cmd.Env = append(os.Environ(), roleVariable+"="+p.role, "MIT_SIGNING_KEY="+signingKey, "MIT_CLIENT_SECRET="+clientSecret)
	cmd.Stdout, cmd.Stderr = p.log, p.log
	proctest.Isolate(cmd)
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		p.t.Fatalf("%s: %v", p.name, err)
	}
	p.cmd, p.stdin = cmd, stdin
}

// kill kills the process with SIGKILL, if it runs, and waits for it.
func (p *process) kill() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // it was killed
	_ = p.stdin.Close()
	p.cmd = nil
}

// wait waits for the process to exit.
func (p *process) wait() error {
	err := p.cmd.Wait()
	_ = p.stdin.Close()
	p.cmd = nil
	return err
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("%s: %v", p.name, err)
	}
}

// port returns a free port. It stays free while its process is dead.
func port(t *testing.T) int {
	t.Helper()
	port, err := freeport.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// newMembers returns the members of an etcd, not started yet, and their client addresses.
func newMembers(t *testing.T, n int) (members []*process, endpoints []string) {
	t.Helper()
	settings := make([]etcdtest.Member, n)
	var names []string
	for i := range settings {
		client := fmt.Sprintf("127.0.0.1:%d", port(t))
		endpoints = append(endpoints, client)
		settings[i] = etcdtest.Member{
			Name:      fmt.Sprintf("etcd%d", i),
			Dir:       t.TempDir(),
			PeerURL:   fmt.Sprintf("http://127.0.0.1:%d", port(t)),
			ClientURL: "http://" + client,
		}
		names = append(names, settings[i].Name+"="+settings[i].PeerURL)
	}
	for _, m := range settings {
		m.Cluster = strings.Join(names, ",")
		arg, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		members = append(members, newProcess(t, m.Name, roleMember, string(arg)))
	}
	return members, endpoints
}
