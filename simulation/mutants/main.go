// Command mutants checks that the simulation and the tests notice faults of the library. Each patch
// in its folder breaks one invariant. The command applies one at a time to a copy of the tree, and
// runs what must fail then: the simulation with up to 200 seeds, or a test.
//
//	go run ./simulation/mutants             # all, in about half an hour
//	go run ./simulation/mutants lost-slot   # some
//
// A patch begins with what the fault is, and with what notices it:
//
//	A slot is not given back.
//	Killed by: simulation
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// maxSeeds is how many seeds the simulation has to notice a fault.
const maxSeeds = 200

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

// A mutant is one patch.
type mutant struct {
	name, fault string
	killedBy    []string // "simulation", or a test and its package
	patch       string   // its path
}

// run writes a row of a table for each mutant.
func run(ctx context.Context, names []string, out io.Writer) error {
	mutants, err := read(filepath.Join("simulation", "mutants"))
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := copyTree(ctx, dir); err != nil {
		return err
	}
	var errs []error
	for _, m := range mutants {
		if len(names) > 0 && !slices.Contains(names, m.name) {
			continue
		}
		if ctx.Err() != nil {
			return errors.Join(append(errs, ctx.Err())...)
		}
		start := time.Now()
		how, err := m.test(ctx, dir)
		if err != nil {
			how = "SURVIVES"
			errs = append(errs, fmt.Errorf("%s: %w", m.name, err))
		}
		_, _ = fmt.Fprintf(out, "| `%s` | %s | %s | %.0f s |\n", m.name, m.fault, how, time.Since(start).Seconds())
	}
	return errors.Join(errs...)
}

func read(dir string) (mutants []mutant, err error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.patch"))
	if err == nil && len(paths) == 0 {
		err = fmt.Errorf("no patches in %q: run the command in the root of the repository", dir)
	}
	for _, path := range paths {
		text, readErr := os.ReadFile(path)
		if readErr != nil {
			return nil, readErr
		}
		lines := strings.SplitN(string(text), "\n", 3)
		killer, ok := strings.CutPrefix(lines[min(1, len(lines)-1)], "Killed by: ")
		if !ok {
			return nil, fmt.Errorf("%s does not say what kills it", path)
		}
		absolute, absErr := filepath.Abs(path)
		if absErr != nil {
			return nil, absErr
		}
		mutants = append(mutants, mutant{
			name: strings.TrimSuffix(filepath.Base(path), ".patch"), fault: lines[0], killedBy: strings.Fields(killer), patch: absolute,
		})
	}
	return mutants, err
}

// copyTree copies the files that git knows.
func copyTree(ctx context.Context, dir string) error {
	list, err := exec.CommandContext(ctx, "git", "ls-files", "-z").Output()
	if err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		content, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted, and not committed yet
		}
		if err != nil {
			return err
		}
		to := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o750); err != nil {
			return err
		}
		if err := os.WriteFile(to, content, 0o600); err != nil { //nolint:gosec // a name from git
			return err
		}
	}
	return nil
}

// test applies the patch, and returns what has noticed the fault. It is an error if nothing has.
func (m mutant) test(ctx context.Context, dir string) (how string, err error) {
	if out, err := command(ctx, dir, "git", "apply", m.patch); err != nil {
		return "", fmt.Errorf("the patch does not apply: %w: %s", err, out)
	}
	defer func() {
		if out, undo := command(context.WithoutCancel(ctx), dir, "git", "apply", "-R", m.patch); undo != nil {
			err = errors.Join(err, fmt.Errorf("the patch cannot be undone: %w: %s", undo, out))
		}
	}()
	if m.killedBy[0] == "simulation" {
		return m.simulate(ctx, dir)
	}
	if len(m.killedBy) != 2 {
		return "", fmt.Errorf("killed by %q: neither the simulation nor a test and its package", m.killedBy)
	}
	test, pkg := m.killedBy[0], m.killedBy[1]
	out, err := command(ctx, dir, "go", "test", "-vet=off", "-count=1", "-timeout", "2m", "-run", "^"+test+"$", pkg)
	switch {
	case err == nil:
		return "", fmt.Errorf("%s passes: %s", test, out)
	case strings.Contains(out, "[build failed]"):
		return "", fmt.Errorf("it does not compile: %s", out)
	}
	return fmt.Sprintf("`%s`", test), nil
}

func (m mutant) simulate(ctx context.Context, dir string) (how string, err error) {
	binary := filepath.Join(dir, "simulation.bin")
	if out, err := command(ctx, dir, "go", "build", "-o", binary, "./simulation"); err != nil {
		return "", fmt.Errorf("it does not compile: %s", out)
	}
	out, err := command(ctx, dir, binary, "-seeds", fmt.Sprint(maxSeeds), "-reduce=false")
	if err == nil {
		return "", fmt.Errorf("%d seeds pass", maxSeeds)
	}
	if seed := regexp.MustCompile(`seed (\d+) fails`).FindStringSubmatch(out); seed != nil {
		return "seed " + seed[1], nil
	}
	return "", fmt.Errorf("the simulation does not run: %w: %s", err, out)
}

// command runs a command, and returns all that it writes.
func command(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}
