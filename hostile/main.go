// Command hostile attacks a node that runs as a process, and prints what that costs the node:
//
//	go run . [-service file] [-only name] [-all duration] [-idle]
//
// Each attack is one kind of input that a node must withstand: text of a registry that repeats
// tokens, long tokens, slow connections, long or forged announcements, compressed and endless
// responses, and addresses of metadata services. The attacks come from a registry, a peer with a
// valid cluster token, or any client. All servers listen at loopback addresses, and every attack is
// bounded.
//
// The program needs Linux, as it reads the usage of the nodes from /proc. Elsewhere, for example on
// Windows, it compiles and says so.
//
// The table has the memory (RSS), the CPU time and the descriptors of the node before and after
// each attack, and what the attack has achieved. After the single attacks, all run at once, while
// the node must keep its lease and answer health checks. The node must then be at rest again within
// two minutes. The exit code is 1 if a bound is broken, or if an attack has not reached the node.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/mimiktech/cluster/internal/proctest"
)

// modeVariable makes this program one of the processes that it starts itself.
const modeVariable = "HOSTILE_MODE"

// The values of modeVariable.
const (
	checkerMode = "checker" // followed by the URLs of nodes
	bareMode    = "bare"
	attackMode  = "attack" // as without the variable; for the program of the tests
)

func main() {
	if err := mainError(); err != nil {
		fmt.Fprintln(os.Stderr, "hostile:", err)
		os.Exit(1)
	}
}

func mainError() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	mode, urls, _ := strings.Cut(os.Getenv(modeVariable), " ")
	switch mode {
	case checkerMode:
		return proctest.CheckHealth(ctx, strings.Fields(urls), os.Stdin, os.Stdout)
	case bareMode:
		return runBare(ctx)
	}
	service := flag.String("service", "", "the program of a node; examples/service by default, which is built")
	only := flag.String("only", "", "run only the attack `name`; all runs only all attacks at once")
	all := flag.Duration("all", 20*time.Second, "how long all attacks run at once; 0 skips this")
	idle := flag.Bool("idle", false, "when all attacks run at once, let them, the peers and the registry run only while a processor is free")
	flag.Parse()
	return run(ctx, *service, *only, together{*all, *idle})
}

// endedLine says that the attacks have ended. What follows is idle time.
const endedLine = "The attacks have ended. Waiting until the node is at rest again."

// errNotLinux is the error on systems without /proc.
var errNotLinux = errors.New("needs Linux: the usage of the nodes is read from /proc")

func run(ctx context.Context, service, only string, all together) error {
	if runtime.GOOS != "linux" {
		return errNotLinux
	}
	dir, err := os.MkdirTemp("", "hostile")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if service == "" {
		service = filepath.Join(dir, "service")
		if err := build(ctx, service); err != nil {
			return err
		}
	}
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "attack\tRSS before\tafter\tpeak\tCPU\tdescriptors: before, most, after\tresult")
	broken := 0
	for _, a := range attacks() {
		if only != "" && a.name != only {
			continue
		}
		r, err := runAlone(ctx, service, a)
		if err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
		fmt.Fprintln(out, r)
		_ = out.Flush() // a terminal that is gone is no failure
		if r.broken != nil {
			broken++
		}
	}
	if all.time > 0 && (only == "" || only == "all") {
		r, err := runTogether(ctx, service, all, func() { fmt.Fprintln(os.Stderr, endedLine) })
		if err != nil {
			return fmt.Errorf("all at once: %w", err)
		}
		fmt.Fprintln(out, r)
		_ = out.Flush()
		if r.broken != nil {
			broken++
		}
	}
	if broken > 0 {
		return fmt.Errorf("%d bounds are broken", broken)
	}
	return nil
}
