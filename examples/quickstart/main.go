// Command quickstart tells the life of a small cluster while it lives it: three nodes and their
// registry, in one process, on real ports of this machine.
//
// Every sentence is checked before it is said. If one does not come true, the story ends there,
// and the program with 1.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/mimiktech/cluster"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 14*time.Second)
	err := tell(ctx, os.Stdout)
	cancel()
	if err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

// tell tells the story to out. stage.go has what it needs to be told.
func tell(ctx context.Context, out io.Writer) error {
	s := newStage(out)
	defer s.clear()
	for _, act := range []func(context.Context, *stage) error{meet, ask, die, outlive, leave} {
		if err := act(ctx, s); err != nil {
			return err
		}
	}
	s.say("The end. Every sentence was checked before it was said.")
	return nil
}

// meet starts the registry and three nodes, which find each other through it.
func meet(ctx context.Context, s *stage) error {
	if err := s.openRegistry(ctx); err != nil {
		return err
	}
	s.say("A registry serves at %s. Whoever registers has to renew within %v.", s.address, lease)

	for _, shop := range []thing{{"apples", "ada"}, {"bread", "ben"}, {"cheese", "cleo"}} {
		n, err := s.start(ctx, shop.Owner, shop.Name)
		if err != nil {
			return err
		}
		if err := eventually(ctx, n.name+"'s registration", n.state, "registered"); err != nil {
			return err
		}
		s.say("%s serves at %s, has %s, and has registered.", n.name, n.srv.Addr, shop.Name)
	}
	for _, n := range s.nodes {
		if err := eventually(ctx, "the servers "+n.name+" knows", n.knows, "ada", "ben", "cleo"); err != nil {
			return err
		}
	}
	s.say("Each was told of the others: all three know all three.")

	if err := eventually(ctx, "ada's environment", environment, "registered", "3"); err != nil {
		return err
	}
	s.say("The environment of ada says it, too: REGISTRATION_STATUS=registered, CLUSTER_STATUS_SERVERS=3.")
	return nil
}

// ask sends one request to all peers.
func ask(ctx context.Context, s *stage) error {
	ada := s.node("ada")
	answer, stock, err := ada.ask(ctx)
	if err != nil {
		return err
	}
	if err := errors.Join(
		expect("who answered", asked(answer.Results), "ben", "cleo"),
		expect("who failed", asked(answer.Failures)),
		expect("the joint data", stock, "bread (ben)", "cheese (cleo)"),
	); err != nil {
		return err
	}
	s.say("ada asks all its peers at once what they have. The joint data: %s.", strings.Join(stock, ", "))
	return nil
}

// die takes a node away without a word, and has the others find out.
func die(ctx context.Context, s *stage) error {
	ada, ben, cleo := s.node("ada"), s.node("ben"), s.node("cleo")
	cleo.kill()
	if err := expect("the servers that ada and the registry still list",
		append(ada.knows(), s.listed()...), "ada", "ben", "cleo", "ada", "ben", "cleo"); err != nil {
		return err
	}
	s.say("cleo dies without a word. Nobody knows yet.")

	answer, stock, err := ada.ask(ctx)
	if err != nil {
		return err
	}
	if err := errors.Join(
		expect("who answered", asked(answer.Results), "ben"),
		expect("who failed", asked(answer.Failures), "cleo"),
		expect("who was evicted", evicted(answer), "cleo"),
		expect("the joint data", stock, "bread (ben)"),
		expect("the servers ada knows", ada.knows(), "ada", "ben"),
		expect("the servers the registry lists", s.listed(), "ada", "ben"),
	); err != nil {
		return err
	}
	cleosFailure := answer.Failures[0]
	s.say("ada asks again. ben answers; cleo is named as a failure: %s, after %d ms.",
		cleosFailure.Kind, cleosFailure.Duration.Milliseconds())
	s.say("The registry agrees that cleo is gone, so ada evicts it.")

	if err := errors.Join(
		eventually(ctx, "who ben was told is gone", ben.toldGone, "cleo"),
		eventually(ctx, "the servers ben knows", ben.knows, "ada", "ben"),
	); err != nil {
		return err
	}
	s.say("ben asked nobody: ada told it.")
	return nil
}

// outlive takes the registry away, with all it knew, and gives the nodes a new one.
func outlive(ctx context.Context, s *stage) error {
	ada, ben := s.node("ada"), s.node("ben")
	s.closeRegistry()
	s.say("Now the registry dies, and all it knew with it.")

	for _, n := range []*node{ada, ben} {
		if err := eventually(ctx, n.name+"'s state", n.state, "degraded"); err != nil {
			return err
		}
		status := n.Status()
		if _, ok := errors.AsType[*cluster.UnreachableError](status.Reason); !ok {
			return fmt.Errorf("%s is degraded, but not because the registry cannot be reached: %w", n.name, status.Reason)
		}
		s.say("%s could not reach it to renew: it is degraded. Its lease runs for another %.1f s.",
			n.name, time.Until(status.ExpiresAt()).Seconds())
	}
	_, stock, err := ada.ask(ctx)
	if err != nil {
		return err
	}
	if err := expect("the joint data", stock, "bread (ben)"); err != nil {
		return err
	}
	s.say("They still have each other. ada asks; the joint data: %s.", strings.Join(stock, ", "))

	if err := s.openRegistry(ctx); err != nil {
		return err
	}
	s.say("A new registry starts at the same address. It knows nobody.")

	if err := eventually(ctx, "the servers the registry lists", s.listed, "ada", "ben"); err != nil {
		return err
	}
	for _, n := range []*node{ada, ben} {
		if err := errors.Join(
			eventually(ctx, n.name+"'s states so far", n.pastStates, "registered", "degraded", "registered"),
			eventually(ctx, "the servers "+n.name+" knows", n.knows, "ada", "ben"),
		); err != nil {
			return err
		}
	}
	s.say("ada and ben have registered again and know each other. No lease ran out, nobody restarted anything.")
	return nil
}

// leave has the nodes that are left end as a service does: when its context ends.
func leave(ctx context.Context, s *stage) error {
	ada, ben := s.node("ada"), s.node("ben")
	if err := ben.end(ctx); err != nil {
		return err
	}
	if err := errors.Join(
		expect("who ada was told is gone", ada.toldGone(), "ben"),
		expect("the servers ada knows", ada.knows(), "ada"),
		expect("the servers the registry lists", s.listed(), "ada"),
	); err != nil {
		return err
	}
	s.say("ben ends politely. When it is done, ada and the registry know already.")

	answer, _, err := ada.ask(ctx)
	if err != nil {
		return err
	}
	if err := expect("who was asked", asked(append(answer.Results, answer.Failures...))); err != nil {
		return err
	}
	s.say("ada asks once more. There is nobody left to ask, and that is no error.")

	if err := ada.end(ctx); err != nil {
		return err
	}
	if err := expect("the servers the registry lists", s.listed()); err != nil {
		return err
	}
	s.say("ada ends, too. The registry lists nobody.")
	return nil
}
