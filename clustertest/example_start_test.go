package clustertest_test

import (
	"context"
	"fmt"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

// What a test of a service does, with its own t; in a bubble of testing/synctest it does not
// even wait for the timeouts and leases that it lives through.
func ExampleStart() {
	t := &example{}
	defer t.end()

	w := clustertest.Start(t, 3)
	asker, dead := w.Nodes[0], w.Nodes[1]
	dead.Kill()

	res, err := asker.RPCluster(t.Context(), cluster.Request{Path: "/things"})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("answered:", res.Results[0].Server.ServerID)
	fmt.Println("evicted:", res.Failures[0].Server.ServerID, res.Failures[0].Evicted)
	fmt.Println("left in the registry:", len(w.Registered()))
	dead.Restart()
	fmt.Println("after the restart:", len(w.Registered()), "and", len(asker.Servers()), "known to", asker.ID)
	// Output:
	// answered: node-3
	// evicted: node-2 true
	// left in the registry: 2
	// after the restart: 3 and 3 known to node-1
}

// An example has no *testing.T. A test needs none of this.
type example struct {
	cleanups []func()
}

func (*example) Helper()                           {}
func (*example) Context() context.Context          { return context.Background() }
func (e *example) Cleanup(f func())                { e.cleanups = append(e.cleanups, f) }
func (*example) Fatal(args ...any)                 { panic(fmt.Sprint(args...)) }
func (*example) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

func (e *example) end() {
	for _, f := range e.cleanups {
		f()
	}
}
