// Command hostile attacks a node that runs as a process, and prints what that costs the node:
//
//	go run . [-service file] [-only name] [-all duration]
//
// Each attack is one input of a kind that a node must withstand: text of a registry that repeats
// tokens, long tokens, slow connections, long or forged announcements, compressed and endless
// responses, and addresses of metadata services. The attacks come from a registry, a peer with a
// valid cluster token, or any client. All servers listen at loopback addresses, and every attack is
// bounded.
//
// The program needs Linux, as it reads the usage of the nodes from /proc. Elsewhere, for example on
// Windows, it compiles and says so.
//
// The table has the memory (RSS), the CPU time and the descriptors of the node before and after
// each attack, and what the attack must not achieve. After the single attacks, all run at once,
// while the node must renew its lease and answer health checks. Its memory must then be back within
// two minutes. The exit code is 1 if a bound is broken.
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
)

func main() {
	if urls := os.Getenv(checkerVariable); urls != "" {
		if err := runChecker(strings.Fields(urls)); err != nil {
			fmt.Fprintln(os.Stderr, "hostile:", err)
			os.Exit(1)
		}
		return
	}
	service := flag.String("service", "", "the program of a node; examples/service by default, which is built")
	only := flag.String("only", "", "the name of one attack, or all for those at once")
	all := flag.Duration("all", 20*time.Second, "how long all attacks run at once; 0 leaves that out")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *service, *only, *all); err != nil {
		fmt.Fprintln(os.Stderr, "hostile:", err)
		stop()
		os.Exit(1)
	}
}

// errNotLinux is the error on systems without /proc.
var errNotLinux = errors.New("needs Linux: the usage of the nodes is read from /proc")

func run(ctx context.Context, service, only string, all time.Duration) error {
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
	fmt.Fprintln(out, "attack\tRSS before\tafter\tpeak\tCPU\tdescriptors\tresult")
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
	if all > 0 && (only == "" || only == "all") {
		r, err := runTogether(ctx, service, all)
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
