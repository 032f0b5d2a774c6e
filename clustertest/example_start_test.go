package clustertest_test

import (
	"context"
	"fmt"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/clustertest"
)

// A test calls Start with its own *testing.T, usually in a bubble of testing/synctest. An example
// has none and uses Program.
func ExampleStart() {
	err := clustertest.Program(context.Background(), func(t clustertest.TB) {
		w := clustertest.Start(t, 3)
		caller, killed := w.Nodes[0], w.Nodes[1]
		killed.Kill()

		res, err := caller.RPCluster(t.Context(), cluster.Request{Path: "/things"})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("result of", res.Results[0].Server.ServerID)
		fmt.Println("failure of", res.Failures[0].Server.ServerID, "evicted:", res.Failures[0].Evicted)
		fmt.Println("registered:", len(w.Registered()))
		killed.Restart()
		fmt.Println("registered after the restart:", len(w.Registered()))
		fmt.Println("known to", caller.ID+":", len(caller.Servers()))
	})
	if err != nil {
		fmt.Println(err)
	}
	// Output:
	// result of node-3
	// failure of node-2 evicted: true
	// registered: 2
	// registered after the restart: 3
	// known to node-1: 3
}
