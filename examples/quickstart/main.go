// Command quickstart shows the life of a small cluster: three nodes, a registry (mIT) and a token
// service (mST) in one process, on ports of the loopback interface.
//
// Each line of its output is a statement that has just been checked. If a check fails, the program
// prints the error and exits with 1.
//
// With -serve it prints the URL of a status page, pauses between the steps, and runs until it is
// interrupted. The page shows the cluster meanwhile.
//
// The code of a service is in node.go, that of the registry in registry.go. Outside of demos and
// tests a process has one node; see the example service.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/mimiktech/cluster"
)

func main() {
	serve := flag.Bool("serve", false, "serve a status page, and run until interrupted")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	if *serve {
		err = runServing(ctx, os.Stdout, 8*time.Second)
	} else {
		limited, cancel := context.WithTimeout(ctx, 14*time.Second)
		err = run(limited, os.Stdout)
		cancel()
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

// run runs the steps of the demo and prints them to out.
func run(ctx context.Context, out io.Writer) error {
	d := newDemo(out)
	defer d.close()
	for _, step := range []func(context.Context, *demo) error{
		startCluster, fanOut, killNode, restartRegistry, shutDown,
	} {
		if err := step(ctx, d); err != nil {
			return err
		}
	}
	d.print("Done. Each of these statements was checked before it was printed.")
	return nil
}

// runServing runs the steps with pauses between them, while a node serves its status page. Then it
// calls the peers now and then until ctx ends, and shuts the nodes down. If ctx ends earlier, it
// ends at once.
func runServing(ctx context.Context, out io.Writer, pause time.Duration) error {
	d := newDemo(out)
	defer d.close()
	if err := startCluster(ctx, d); err != nil {
		return err
	}
	d.print("The status page of ada: http://%s/status", d.node("ada").srv.Addr)
	for _, step := range []func(context.Context, *demo) error{fanOut, killNode, restartRegistry} {
		if !wait(ctx, pause) {
			return nil // interrupted early
		}
		if err := step(ctx, d); err != nil {
			return err
		}
	}
	d.print("ada calls its peers every few seconds from now on. Interrupt the program to end it.")
	for wait(ctx, pause/4) {
		if _, _, err := d.node("ada").callPeers(ctx); err != nil {
			return err
		}
	}
	return shutDown(context.WithoutCancel(ctx), d)
}

// wait waits for d, and reports false if ctx ends before.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// startCluster starts the registry and three nodes, which find each other through it.
func startCluster(ctx context.Context, d *demo) error {
	if err := d.registry.start(ctx); err != nil {
		return err
	}
	d.print("The registry and the token service listen on %s. A lease lasts %v.", d.registry.address, leaseTime)

	for _, item := range []item{{"apples", "ada"}, {"bread", "ben"}, {"cheese", "cleo"}} {
		n, err := d.startNode(ctx, item)
		if err != nil {
			return err
		}
		if err := waitFor(ctx, "state of "+n.name, n.state, "registered"); err != nil {
			return err
		}
		d.print("Node %s listens on %s, sells %s and has registered.", n.name, n.srv.Addr, item.Name)
	}
	for _, n := range d.nodes {
		if err := waitFor(ctx, "servers known to "+n.name, n.serverIDs, "ada", "ben", "cleo"); err != nil {
			return err
		}
	}
	d.print("Each node has announced itself to the others. All three nodes know all three.")

	if err := waitFor(ctx, "environment of ada", environment, "registered", "3"); err != nil {
		return err
	}
	d.print("Environment variables of ada: REGISTRATION_STATUS=registered, CLUSTER_STATUS_SERVERS=3.")
	return nil
}

// fanOut sends one request to all peers.
func fanOut(ctx context.Context, d *demo) error {
	ada := d.node("ada")
	resp, items, err := ada.callPeers(ctx)
	if err != nil {
		return err
	}
	if err := errors.Join(
		check("results", outcomeIDs(resp.Results), "ben", "cleo"),
		check("failures", outcomeIDs(resp.Failures)),
		check("joint data", items, "bread (ben)", "cheese (cleo)"),
	); err != nil {
		return err
	}
	d.print("ada asks all its peers for their items with one call. The joint data: %s.", strings.Join(items, ", "))
	return nil
}

// killNode ends a node like a crash. The next call evicts it.
func killNode(ctx context.Context, d *demo) error {
	ada, ben, cleo := d.node("ada"), d.node("ben"), d.node("cleo")
	cleo.kill()
	if err := errors.Join(
		check("servers known to ada", ada.serverIDs(), "ada", "ben", "cleo"),
		check("servers known to ben", ben.serverIDs(), "ada", "ben", "cleo"),
		check("registered servers", d.registry.serverIDs(), "ada", "ben", "cleo"),
	); err != nil {
		return err
	}
	d.print("cleo crashes. The other nodes and the registry still list it.")

	resp, items, err := ada.callPeers(ctx)
	if err != nil {
		return err
	}
	if err := errors.Join(
		check("results", outcomeIDs(resp.Results), "ben"),
		check("failures", outcomeIDs(resp.Failures), "cleo"),
		check("evicted servers", evictedIDs(resp), "cleo"),
		check("joint data", items, "bread (ben)"),
		check("servers known to ada", ada.serverIDs(), "ada", "ben"),
		check("registered servers", d.registry.serverIDs(), "ada", "ben"),
	); err != nil {
		return err
	}
	failure := resp.Failures[0]
	d.print("ada calls its peers again. ben responds. The response lists cleo as a failure: %s, after %d ms.",
		failure.Kind, failure.Duration.Milliseconds())
	d.print("The registry confirms that cleo has not renewed its lease since, and deletes it. ada evicts cleo.")

	if err := errors.Join(
		waitFor(ctx, "departures that ben was notified of", ben.departedIDs, "cleo"),
		waitFor(ctx, "servers known to ben", ben.serverIDs, "ada", "ben"),
	); err != nil {
		return err
	}
	d.print("ada has notified ben. ben does not list cleo any more.")
	return nil
}

// restartRegistry stops the registry and starts another one without data.
func restartRegistry(ctx context.Context, d *demo) error {
	ada, ben := d.node("ada"), d.node("ben")
	d.registry.stop()
	d.print("The registry stops. It kept its data in memory, so the data is lost.")

	for _, n := range []*node{ada, ben} {
		if err := waitFor(ctx, "state of "+n.name, n.state, "degraded"); err != nil {
			return err
		}
		status := n.Status()
		if _, ok := errors.AsType[*cluster.UnreachableError](status.Reason); !ok {
			return fmt.Errorf("%s is degraded for another reason than an unreachable registry: %w", n.name, status.Reason)
		}
		d.print("%s could not renew its lease: it is degraded. The lease lasts for another %.1f s.",
			n.name, time.Until(status.ExpiresAt()).Seconds())
	}
	_, items, err := ada.callPeers(ctx)
	if err != nil {
		return err
	}
	if err := check("joint data", items, "bread (ben)"); err != nil {
		return err
	}
	d.print("Calls do not need the registry. ada calls its peers. The joint data: %s.", strings.Join(items, ", "))

	if err := d.registry.start(ctx); err != nil {
		return err
	}
	d.print("A new registry starts on the same address. It lists no servers.")

	if err := waitFor(ctx, "registered servers", d.registry.serverIDs, "ada", "ben"); err != nil {
		return err
	}
	for _, n := range []*node{ada, ben} {
		if err := errors.Join(
			waitFor(ctx, "states of "+n.name, n.pastStates, "registered", "degraded", "registered"),
			waitFor(ctx, "servers known to "+n.name, n.serverIDs, "ada", "ben"),
		); err != nil {
			return err
		}
	}
	d.print("ada and ben have registered again and know each other. No lease has expired.")
	return nil
}

// shutDown stops the remaining nodes, which deregister.
func shutDown(ctx context.Context, d *demo) error {
	ada, ben := d.node("ada"), d.node("ben")
	if err := ben.stop(ctx); err != nil {
		return err
	}
	if err := errors.Join(
		check("departures that ada was notified of", ada.departedIDs(), "ben"),
		check("servers known to ada", ada.serverIDs(), "ada"),
		check("registered servers", d.registry.serverIDs(), "ada"),
	); err != nil {
		return err
	}
	d.print("ben shuts down. It has deregistered and notified ada before it ends.")

	resp, _, err := ada.callPeers(ctx)
	if err != nil {
		return err
	}
	if err := check("outcomes", outcomeIDs(append(resp.Results, resp.Failures...))); err != nil {
		return err
	}
	d.print("ada calls its peers. There are none, which is not an error.")

	if err := ada.stop(ctx); err != nil {
		return err
	}
	if err := check("registered servers", d.registry.serverIDs()); err != nil {
		return err
	}
	d.print("ada shuts down, too. The registry lists no servers.")
	return nil
}
