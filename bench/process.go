//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/mimiktech/cluster/internal/proctest"
)

// A command is a line that a process reads from its standard input.
type command struct {
	Name string          `json:"name"`
	Args json.RawMessage `json:"args,omitempty"`
}

// A response is a line that a process writes to file descriptor 3 after a command.
type response struct {
	Result json.RawMessage `json:"result,omitempty"`
	Error  string          `json:"error,omitempty"`
}

// commandTimeout is long enough for the slowest command: with a hundred of a thousand peers down,
// the npm module evicts them one after the other, which takes minutes.
const commandTimeout = 10 * time.Minute

// A process is a stub cluster or a contestant, which executes one command at a time. It ends when
// its standard input does, and at the latest when this process ends.
type process struct {
	name      string
	cmd       *exec.Cmd
	stdin     io.WriteCloser
	pipe      *os.File // of the responses
	responses *bufio.Reader
	output    *proctest.Tail
}

// start starts a program, which is killed when ctx ends.
func start(ctx context.Context, name string, env []string, argv ...string) (*process, error) {
	pipe, childEnd, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer childEnd.Close()
	p := &process{name: name, pipe: pipe, responses: bufio.NewReader(pipe), output: new(proctest.Tail)}
	p.cmd = exec.CommandContext(ctx, argv[0], argv[1:]...) //nolint:gosec // a program of the benchmark
	p.cmd.Env = append(os.Environ(), env...)               //nolint:forbidigo // a child inherits the environment
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.ExtraFiles = []*os.File{childEnd}
	proctest.Isolate(p.cmd)
	p.cmd.WaitDelay = 2 * time.Second
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		pipe.Close()
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		pipe.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return p, nil
}

// startSelf starts this program in another role.
func startSelf(ctx context.Context, role ...string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return start(ctx, strings.Join(role, " "), nil, append([]string{self}, role...)...)
}

// do sends a command and decodes its result into result, unless that is nil.
func (p *process) do(name string, args, result any) error {
	timeout := time.AfterFunc(commandTimeout, func() { _ = p.cmd.Process.Kill() }) // closes its pipe
	defer timeout.Stop()
	raw, err := json.Marshal(args)
	if err != nil {
		return err
	}
	line, err := json.Marshal(command{name, raw})
	if err != nil {
		return err
	}
	if _, err := p.stdin.Write(append(line, '\n')); err != nil {
		return p.commandError(name, err)
	}
	text, err := p.responses.ReadBytes('\n')
	if err != nil {
		return p.commandError(name, err)
	}
	var r response
	switch err := json.Unmarshal(text, &r); {
	case err != nil:
		return p.commandError(name, err)
	case r.Error != "":
		return p.commandError(name, errors.New(r.Error))
	case result == nil:
		return nil
	}
	return json.Unmarshal(r.Result, result)
}

// commandError adds the process, the command and the end of the output to err.
func (p *process) commandError(command string, err error) error {
	return fmt.Errorf("%s: %s: %w\n%s", p.name, command, err, p.output)
}

// kill kills the process and waits for its end.
func (p *process) kill() {
	p.stdin.Close()
	p.pipe.Close()
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait() // "signal: killed"
}

// serveCommands handles the commands from the standard input until it ends.
func serveCommands(handle func(name string, args json.RawMessage) (any, error)) error {
	pipe := os.NewFile(3, "responses")
	if pipe == nil {
		return errors.New("only the driver can start this role")
	}
	commands, responses := json.NewDecoder(os.Stdin), json.NewEncoder(pipe)
	for {
		var c command
		if err := commands.Decode(&c); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var r response
		result, err := handle(c.Name, c.Args)
		if err == nil {
			r.Result, err = json.Marshal(result)
		}
		if err != nil {
			r = response{Error: err.Error()}
		}
		if err := responses.Encode(r); err != nil {
			return err
		}
	}
}
