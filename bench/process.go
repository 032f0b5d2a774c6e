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

// An order is a line that a process reads on its standard input; a report, on its descriptor 3, is
// what came of it.
type order struct {
	Do   string          `json:"do"`
	Args json.RawMessage `json:"args,omitempty"`
}

type report struct {
	Answer json.RawMessage `json:"answer,omitempty"`
	Error  string          `json:"error,omitempty"`
}

// No order takes longer than this: a thousand peers, of which a hundred are evicted one after the
// other, take npm a few minutes.
const patience = 10 * time.Minute

// A process carries out orders, one at a time. It ends with its standard input, and with this
// process at the latest.
type process struct {
	name    string
	cmd     *exec.Cmd
	in      io.WriteCloser
	reports *bufio.Reader
	pipe    *os.File
	printed *proctest.Tail
}

// start starts a program that ends with ctx.
func start(ctx context.Context, name string, env []string, argv ...string) (*process, error) {
	pipe, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	p := &process{name: name, pipe: pipe, reports: bufio.NewReader(pipe), printed: new(proctest.Tail)}
	p.cmd = exec.CommandContext(ctx, argv[0], argv[1:]...)
	p.cmd.Env = append(os.Environ(), env...) //nolint:forbidigo // a program is what meets its environment
	p.cmd.Stdout, p.cmd.Stderr = p.printed, p.printed
	p.cmd.ExtraFiles = []*os.File{theirs}
	proctest.Isolate(p.cmd)
	p.cmd.WaitDelay = 2 * time.Second
	if p.in, err = p.cmd.StdinPipe(); err != nil {
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

// do has the process carry out an order, and reads the answer into a value.
func (p *process) do(what string, args, answer any) error {
	limit := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() }) // then its reports end
	defer limit.Stop()
	raw, err := json.Marshal(args)
	if err != nil {
		return err
	}
	line, err := json.Marshal(order{what, raw})
	if err != nil {
		return err
	}
	if _, err := p.in.Write(append(line, '\n')); err != nil {
		return p.wrong(what, err)
	}
	text, err := p.reports.ReadBytes('\n')
	if err != nil {
		return p.wrong(what, err)
	}
	var r report
	switch err := json.Unmarshal(text, &r); {
	case err != nil:
		return p.wrong(what, err)
	case r.Error != "":
		return p.wrong(what, errors.New(r.Error))
	case answer == nil:
		return nil
	}
	return json.Unmarshal(r.Answer, answer)
}

func (p *process) wrong(what string, err error) error {
	return fmt.Errorf("%s: %s: %w\n%s", p.name, what, err, p.printed)
}

// end ends the process and waits for it.
func (p *process) end() {
	p.in.Close()
	p.pipe.Close()
	_ = p.cmd.Process.Kill() // it has nothing to lose
	_ = p.cmd.Wait()         // it was killed
}

// obey carries out the orders that come on the standard input, until there are no more.
func obey(carryOut func(what string, args json.RawMessage) (any, error)) error {
	reports := os.NewFile(3, "reports")
	if reports == nil {
		return errors.New("this role is for the driver to start")
	}
	orders := json.NewDecoder(os.Stdin)
	for {
		var o order
		if err := orders.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var r report
		answer, err := carryOut(o.Do, o.Args)
		if err == nil {
			r.Answer, err = json.Marshal(answer)
		}
		if err != nil {
			r = report{Error: err.Error()}
		}
		if err := json.NewEncoder(reports).Encode(r); err != nil {
			return err
		}
	}
}
