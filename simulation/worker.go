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
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// A report is one line that a worker writes: a problem as soon as it is found, or the result of a
// run.
type report struct {
	Problem string  `json:"problem,omitempty"`
	Result  *result `json:"result,omitempty"`
}

// reportPrefix distinguishes reports from what package testing writes.
const reportPrefix = "report: "

// withTesting calls f with a testing.T outside of a test, and ends the process. A bubble of
// testing/synctest needs one.
func withTesting(f func(*testing.T) error) {
	os.Args = os.Args[:1] // the flags of package testing are not those of the command
	all := func(string, string) (bool, error) { return true, nil }
	testing.Main(all, []testing.InternalTest{{Name: "simulation", F: func(t *testing.T) {
		t.Helper()
		if err := f(t); err != nil {
			_, _ = fmt.Fprintln(os.Stderr, "simulation:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}}}, nil, nil)
}

// serveJobs runs one scenario after the other. Each is a line of the input.
func serveJobs(t *testing.T, in io.Reader, out io.Writer) error {
	t.Helper()
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var scenario Scenario
		if err := json.Unmarshal(line, &scenario); err != nil {
			return err
		}
		write := func(r report) {
			text, _ := json.Marshal(r) // it has nothing that cannot be encoded
			_, _ = fmt.Fprintf(out, "%s%s\n", reportPrefix, text)
		}
		res := runInBubble(t, scenario, nil, func(problem string) { write(report{Problem: problem}) })
		write(report{Result: &res})
	}
}

// runInBubble runs a scenario. found is called with each problem.
func runInBubble(t *testing.T, scenario Scenario, log *zap.Logger, found func(string)) (res result) {
	t.Helper()
	t.Run(fmt.Sprint("seed=", scenario.Seed), func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { res = run(&recorder{T: t, found: found}, scenario, log) })
	})
	return res
}

// A recorder is the TB of a run outside of a test. A problem does not fail the testing.T, which
// would write it to the standard output.
type recorder struct {
	*testing.T
	found func(string)

	mu     sync.Mutex // guards the fields below
	failed bool
}

func (r *recorder) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = true
	r.found(fmt.Sprintf(format, args...))
}

func (r *recorder) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed || r.T.Failed()
}

func (r *recorder) Fatal(args ...any) { r.Errorf("%s", fmt.Sprint(args...)); r.FailNow() }

func (r *recorder) Fatalf(format string, args ...any) { r.Errorf(format, args...); r.FailNow() }

// newLog returns a log of all nodes without anything that differs between runs.
func newLog(w io.Writer) *zap.Logger {
	cfg := zap.NewProductionEncoderConfig()
	cfg.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	return zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(cfg), zapcore.Lock(zapcore.AddSync(w)), zap.DebugLevel))
}

// A worker is a process that runs scenarios.
type worker struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	stderr *tail
}

func startWorker(ctx context.Context) (*worker, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	w := &worker{cmd: exec.CommandContext(ctx, exe, "-worker"), stderr: &tail{}}
	w.cmd.Env = append(w.cmd.Environ(), "GOMAXPROCS=1")
	w.cmd.Stderr = w.stderr
	if w.in, err = w.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	w.out = bufio.NewReader(out)
	return w, w.cmd.Start()
}

// maxRunTime bounds the run of one scenario, which takes seconds at most.
const maxRunTime = 3 * time.Minute

// maxFailingTime bounds what follows a problem, which may be that the run does not end.
const maxFailingTime = 20 * time.Second

// run runs a scenario. It returns the problems, and reports whether the worker can go on. A worker
// that crashes or hangs is a problem, too.
func (w *worker) run(scenario Scenario) (res result, problems []string, alive bool) {
	hangs := time.AfterFunc(maxRunTime, func() { _ = w.cmd.Process.Kill() })
	line, _ := json.Marshal(scenario) // it has nothing that cannot be encoded
	_, err := w.in.Write(append(line, '\n'))
	for err == nil {
		var text string
		if text, err = w.out.ReadString('\n'); !strings.HasPrefix(text, reportPrefix) {
			continue
		}
		var r report
		if err = json.Unmarshal([]byte(strings.TrimPrefix(text, reportPrefix)), &r); err != nil {
			break
		}
		if r.Result != nil {
			hangs.Stop()
			return *r.Result, problems, true
		}
		problems = append(problems, r.Problem)
		hangs.Reset(maxFailingTime)
	}
	inTime := hangs.Stop()
	_ = w.cmd.Process.Kill()
	_ = w.cmd.Wait()
	switch {
	case !inTime && len(problems) > 0:
		return res, problems, false
	case !inTime:
		return res, append(problems, fmt.Sprintf("the run takes longer than %v", maxRunTime)), false
	}
	return res, append(problems, fmt.Sprintf("the process crashed: %v\n%s", err, w.stderr)), false
}

func (w *worker) close() {
	_ = w.in.Close()
	_ = w.cmd.Wait()
}

// A tail keeps the beginning of what is written to it, which names the cause of a crash.
type tail struct {
	mu   sync.Mutex // guards the field below
	text []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	const limit = 4 << 10
	t.text = append(t.text, p[:min(len(p), limit-len(t.text))]...)
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}
