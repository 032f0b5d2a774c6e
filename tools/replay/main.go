// Command replay runs seeds of the simulation so that each run of a seed is the same, to the byte.
//
//	go run -C tools ./replay -seed 17         # writes where the log is, and its hash
//	go run -C tools ./replay -seed 17 -twice  # proves that a second run has the same log
//	go run -C tools ./replay -seed 1 -seeds 50 -nodes 3 -twice
//
// The simulation is compiled to WebAssembly. There it has one thread and is not preempted, all of
// its randomness comes from a source with a seed, and its time is that of its bubble. What remains
// is the Go runtime, which does the same if it gets the same. -schedule gives the source another
// seed: it changes the order of goroutines and the jitter of nodes, but not the plan of events. The
// flags -nodes, -events and -duration are those of the simulation.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			_, _ = fmt.Fprintln(os.Stderr, "replay:", err)
		}
		os.Exit(1)
	}
}

type options struct {
	seed, seeds, schedule uint64
	twice                 bool
	simulation            []string // its further arguments
}

func run(ctx context.Context, args []string, out io.Writer) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "replay-")
	if err != nil {
		return err
	}
	m, err := compile(ctx, dir)
	if err != nil {
		return err
	}
	defer m.runtime.Close(ctx)

	jobs := make(chan uint64)
	errs := make([]error, runtime.GOMAXPROCS(0))
	var wg sync.WaitGroup
	var mu sync.Mutex // guards out
	for i := range errs {
		wg.Go(func() {
			for seed := range jobs {
				line, err := m.replay(ctx, o, seed, dir)
				mu.Lock()
				_, _ = fmt.Fprintln(out, line)
				mu.Unlock()
				errs[i] = errors.Join(errs[i], err)
			}
		})
	}
	for seed := o.seed; seed < o.seed+o.seeds && ctx.Err() == nil; seed++ {
		jobs <- seed
	}
	close(jobs)
	wg.Wait()
	if err = errors.Join(errs...); err != nil || o.seeds == 1 {
		return err
	}
	return os.RemoveAll(dir) // of many seeds, the logs serve the comparison only
}

func parse(args []string) (options, error) {
	o := options{}
	flags := flag.NewFlagSet("replay", flag.ContinueOnError)
	flags.Uint64Var(&o.seed, "seed", 1, "the `seed` of the plan")
	flags.Uint64Var(&o.seeds, "seeds", 1, "replay this `number` of seeds")
	flags.Uint64Var(&o.schedule, "schedule", 0, "the `seed` of everything else; 0: that of the plan")
	flags.BoolVar(&o.twice, "twice", false, "run each seed twice, and compare the logs")
	for name, usage := range map[string]string{
		"nodes":    "the `number` of nodes at the start",
		"events":   "only the events with these `numbers`",
		"duration": "end the faults after this `time`",
	} {
		flags.Func(name, usage, func(value string) error {
			o.simulation = append(o.simulation, "-"+name, value)
			return nil
		})
	}
	return o, flags.Parse(args)
}

// A module is the simulation, ready to run.
type module struct {
	runtime  wazero.Runtime
	compiled wazero.CompiledModule
}

// compile builds the simulation for WebAssembly. The machine code of an unchanged module is cached.
func compile(ctx context.Context, dir string) (*module, error) {
	binary := filepath.Join(dir, "simulation.wasm")
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, "./simulation")
	build.Dir = ".." // the tools are a module in a folder of the repository
	build.Env = append(build.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return nil, fmt.Errorf("building the simulation, in the folder above %q: %w", "tools", err)
	}
	code, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	cfg := wazero.NewRuntimeConfig().WithCloseOnContextDone(true)
	if caches, err := os.UserCacheDir(); err == nil {
		if cache, err := wazero.NewCompilationCacheWithDir(filepath.Join(caches, "cluster-replay")); err == nil {
			cfg = cfg.WithCompilationCache(cache)
		}
	}
	m := &module{runtime: wazero.NewRuntimeWithConfig(ctx, cfg)}
	if _, err := wasi_snapshot_preview1.Instantiate(ctx, m.runtime); err != nil {
		return nil, err
	}
	m.compiled, err = m.runtime.CompileModule(ctx, code)
	return m, err
}

// replay runs a seed, once or twice, and describes it.
func (m *module) replay(ctx context.Context, o options, seed uint64, dir string) (string, error) {
	path := filepath.Join(dir, fmt.Sprintf("seed-%d.log", seed))
	hash, failed, err := m.execute(ctx, o, seed, path)
	if err != nil {
		return "", fmt.Errorf("seed %d: %w", seed, err)
	}
	line := fmt.Sprintf("seed %d: sha256 %x, log in %s", seed, hash, path)
	if o.twice {
		again, _, err := m.execute(ctx, o, seed, path+".again")
		switch {
		case err != nil:
			return line, fmt.Errorf("seed %d: %w", seed, err)
		case again != hash:
			return line, fmt.Errorf("seed %d: two runs differ: see %s and %s", seed, path, path+".again")
		}
		line += ", identical twice"
		_ = os.Remove(path + ".again")
	}
	if failed {
		return line, fmt.Errorf("seed %d fails: see the end of %s", seed, path)
	}
	return line, nil
}

// execute runs a seed and writes all of its output to a file. It returns the hash of the output,
// and reports whether the simulation has failed.
func (m *module) execute(ctx context.Context, o options, seed uint64, path string) (hash [32]byte, failed bool, err error) {
	file, err := os.Create(path)
	if err != nil {
		return hash, false, err
	}
	defer file.Close()
	sum := sha256.New()
	out := io.MultiWriter(file, sum)
	args := append([]string{"simulation", "-log", "-seed", fmt.Sprint(seed)}, o.simulation...)
	cfg := wazero.NewModuleConfig().WithName("").WithArgs(args...).WithEnv("GODEBUG", "asyncpreemptoff=1").
		WithStdout(out).WithStderr(out).WithRandSource(source(o, seed))
	instance, err := m.runtime.InstantiateModule(ctx, m.compiled, cfg)
	if instance != nil {
		err = errors.Join(err, instance.Close(ctx))
	}
	var exit *sys.ExitError
	switch {
	case errors.As(err, &exit) && ctx.Err() == nil:
		failed = exit.ExitCode() != 0
	case err != nil:
		return hash, false, err
	}
	return [32]byte(sum.Sum(nil)), failed, nil
}

// source returns the randomness of a run.
func source(o options, seed uint64) io.Reader {
	if o.schedule != 0 {
		seed = o.schedule
	}
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return rand.NewChaCha8(key)
}
