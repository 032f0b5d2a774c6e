// Command scale prints what a cluster costs by its size: the requests, the bytes of their bodies
// and the time that one node needs to join, to renew and to ask all peers, and what it takes when
// many nodes start together.
//
//	go -C bench run ./scale
//
// Everything is in this process, on the in-memory network of package clustertest, so time is
// processor time more than anything else. Where many servers are listed, all but the node that is
// measured are stand-ins which answer at once and as a node would, and the node that reads their
// announcements is measured apart.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		_, _ = fmt.Fprintln(os.Stderr, "scale:", err) // nobody need listen
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("scale", flag.ContinueOnError)
	servers := flags.String("servers", "10,100,1000,10000", "sizes of the cluster that one node joins, itself included")
	together := flags.String("together", "10,30,100", "numbers of nodes that start together")
	rounds := flags.Int("rounds", 3, "how often each is measured; the median counts")
	if err := flags.Parse(args); err != nil {
		return err
	}
	sizes, err := numbers(*servers)
	if err != nil {
		return err
	}
	groups, err := numbers(*together)
	if err != nil {
		return err
	}
	if *rounds < 1 {
		return errors.New("no rounds")
	}
	one, err := among(ctx, sizes, *rounds)
	if err != nil {
		return err
	}
	many, err := atOnce(ctx, groups)
	if err != nil {
		return err
	}
	_, err = os.Stdout.WriteString(one + "\n" + many)
	return err
}

func numbers(text string) ([]int, error) {
	var all []int
	for part := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(part))
		if err != nil || n < 2 {
			return nil, fmt.Errorf("%q is not a number from 2 on", part)
		}
		all = append(all, n)
	}
	return all, nil
}
