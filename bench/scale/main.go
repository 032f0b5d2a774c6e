// Command scale prints what a cluster costs by its size: the requests, the bytes of their bodies
// and the time that one node needs to join, to renew its lease and to call all peers, and the cost
// of many nodes that start at the same time.
//
//	go -C bench run ./scale
//
// Everything runs in this process, on the in-memory network of package clustertest, so the times
// are mostly CPU time. To measure one node among many, all other servers are fakes that respond at
// once. The cost of receiving an announcement is measured separately, on a real node.
//
// The program ends when the process that started it does, unless it is run by nohup.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"github.com/mimiktech/cluster/bench/internal/intlist"
	"github.com/mimiktech/cluster/internal/proctest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	ctx, cancel := proctest.WithParent(ctx)
	err := run(ctx, os.Args[1:])
	cancel()
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		_, _ = fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	servers := intlist.List{Min: 2, Values: []int{10, 100, 1000, 10000}}
	startup := intlist.List{Min: 2, Values: []int{10, 30, 100}}
	flags := flag.NewFlagSet("scale", flag.ContinueOnError)
	flags.Var(&servers, "servers", "`sizes` of the cluster that one node joins, including the node")
	flags.Var(&startup, "startup", "`numbers` of nodes that start at the same time")
	rounds := flags.Int("rounds", 3, "rounds of each operation; the median is printed")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *rounds < 1 {
		return errors.New("the number of rounds must be positive")
	}
	joins, err := joinTable(ctx, servers.Values, *rounds)
	if err != nil {
		return err
	}
	startups, err := startupTable(ctx, startup.Values)
	if err != nil {
		return err
	}
	_, err = os.Stdout.WriteString(joins + "\n" + startups)
	return err
}
