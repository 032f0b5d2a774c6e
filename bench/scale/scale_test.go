package main

import (
	"context"
	"strings"
	"testing"

	"github.com/mimiktech/cluster/clustertest"
)

// How long it takes is not looked at: only that what is measured was done.
func TestJoining(t *testing.T) {
	const n = 5
	c := newCrowd(n - 1)
	costs := make(map[announcing]cost)
	for _, how := range []announcing{onlyItself, wholeList} {
		err := perform(t.Context(), func(s *stage) {
			w, node := scene(s, c, []byte(`{"id":"as long as any list that there is here"}`), how, true)
			costs[how] = costing(w.Network, func() { join(s, node) })
			ask(s, node, n-1)
			if got := len(node.Servers()); got != n {
				s.Fatalf("the node knows %d servers", got)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		// Two tokens, a registration, and an announcement to each of the others.
		if got := costs[how]; got.Requests != 2+1+n-1 || got.Failed != 0 {
			t.Errorf("announcing %s: %+v", how, got)
		}
	}
	whole, itself := costs[wholeList], costs[onlyItself]
	if whole.Sent < 3*itself.Sent/2 {
		t.Errorf("sent %d and %d bytes", whole.Sent, itself.Sent)
	}
	if whole.Received <= itself.Received {
		t.Errorf("received %d and %d bytes", whole.Received, itself.Received)
	}
}

func TestTables(t *testing.T) {
	one, err := among(t.Context(), []int{3}, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"| 3 | joins, announcing only itself | 5 | 0 |", "| 3 | joins, announcing the whole list | 5 | 0 |", "| 3 | renews | 1 | 0 |", "| 3 | asks all | 2 | 0 | 0 B |"} {
		if !strings.Contains(one, line) {
			t.Errorf("no %q in\n%s", line, one)
		}
	}
	many, err := atOnce(t.Context(), []int{4})
	if err != nil {
		t.Fatal(err)
	}
	for _, how := range []announcing{onlyItself, wholeList} {
		found := false
		for line := range strings.Lines(many) {
			found = found || strings.HasPrefix(line, "| 4 | "+how.String()+" |") && strings.HasSuffix(line, " | 4 |\n")
		}
		if !found {
			t.Errorf("announcing %s, not all know all in\n%s", how, many)
		}
	}
}

func TestStageFails(t *testing.T) {
	cleaned := false
	err := perform(t.Context(), func(s *stage) {
		s.Cleanup(func() { cleaned = true })
		clustertest.Start(s, 1, clustertest.WithType("no type"))
		s.Fatal("not reached")
	})
	if err == nil || strings.Contains(err.Error(), "not reached") || !cleaned {
		t.Errorf("a world that cannot be made: %v, cleaned up %v", err, cleaned)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err = perform(ctx, func(s *stage) {
		_, node := scene(s, newCrowd(1), nil, onlyItself, true)
		join(s, node)
	})
	if err == nil || !strings.Contains(err.Error(), context.Canceled.Error()) {
		t.Errorf("joining when there is no time left: %v", err)
	}
}
