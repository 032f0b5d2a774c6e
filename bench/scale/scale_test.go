package main

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/mimiktech/cluster/clustertest"
)

// The times are not checked, only that the measured requests were sent.
func TestJoinCost(t *testing.T) {
	const size = 5
	c, err := newFakeCluster(size)
	if err != nil {
		t.Fatal(err)
	}
	costs := make(map[announcement]cost)
	for _, a := range []announcement{announceSelf, announceAll} {
		err := clustertest.Program(t.Context(), func(t clustertest.TB) {
			w, node := c.setup(t, a, true)
			costs[a] = measure(w.Network, func() { register(t, node) })
			fanOut(t, node, size-1)
			if got := len(node.Servers()); got != size {
				t.Fatalf("the node knows of %d servers", got)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		// Two tokens, a registration, and an announcement to each peer.
		if got := costs[a]; got.Requests != 2+1+size-1 || got.Failed != 0 {
			t.Errorf("announcing %s: %+v", a, got)
		}
	}
	all, self := costs[announceAll], costs[announceSelf]
	if all.Sent < 3*self.Sent/2 {
		t.Errorf("sent %d bytes announcing all servers, %d announcing itself", all.Sent, self.Sent)
	}
	if all.Received <= self.Received {
		t.Errorf("received %d bytes announcing all servers, %d announcing itself", all.Received, self.Received)
	}
}

func TestTables(t *testing.T) {
	joins, err := joinTable(t.Context(), []int{3}, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []string{
		"| 3 | join, announcing itself | 5 | 0 |", "| 3 | join, announcing all servers | 5 | 0 |", "| 3 | renewal | 1 | 0 |",
		"| 3 | fan-out | 2 | 0 | 0 B |", "| 3 | receive an announcement of one server | 1 | 0 |", "| 3 | receive an announcement of all servers | 1 | 0 |",
	} {
		if !strings.Contains(joins, row) {
			t.Errorf("no %q in\n%s", row, joins)
		}
	}
	startups, err := startupTable(t.Context(), []int{4})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []announcement{announceSelf, announceAll} {
		found := false
		for row := range strings.Lines(startups) {
			found = found || strings.HasPrefix(row, "| 4 | "+a.String()+" |") && strings.HasSuffix(row, " | 4 |\n")
		}
		if !found {
			t.Errorf("announcing %s, not all views are complete in\n%s", a, startups)
		}
	}
}

func TestCanceledRunFails(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if table, err := joinTable(ctx, []int{2}, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("joinTable returned %q, %v", table, err)
	}
	if table, err := startupTable(ctx, []int{2}); !errors.Is(err, context.Canceled) {
		t.Errorf("startupTable returned %q, %v", table, err)
	}
}
