// Package clustertest runs clusters of nodes in memory, for tests of services that use
// [github.com/mimiktech/cluster].
//
// [Start] starts a [World]: the registry (mIT), the token service (mST) and any number of nodes,
// all on one [Network]. The network connects HTTP clients to HTTP handlers in memory. It can be
// partitioned, and each pair of hosts can be given a [Fault]: refused connections, lost requests,
// delays, truncated responses and others.
//
//	func TestPeerLost(t *testing.T) {
//		synctest.Test(t, func(t *testing.T) {
//			w := clustertest.Start(t, 3)
//			w.Network.Partition([]string{w.Nodes[0].Host}, []string{w.Nodes[1].Host, w.Nodes[2].Host})
//			… // requests between the two sides hang until their contexts end
//			w.Network.Heal()
//		})
//	}
//
// [Program] provides a [TB] to a program or an example, which has no test. For tests of whole
// programs, [NewBackend] starts a registry and a token service on real sockets.
//
// # Random faults
//
// A [Simulation] runs a service through faults that are drawn from a seed: nodes that crash,
// restart or move, partitions, slow links, and a registry that fails. A scenario that fails is
// reduced to the few events that matter, and printed with the command that repeats it. A [Run] is
// one run of a scenario.
//
// # Virtual time
//
// Tests should run in a bubble of [testing/synctest]. A bubble has a clock of its own, which moves
// on as soon as all of its goroutines are blocked. Hours of leases, timeouts and retries then take
// milliseconds. This works under three rules:
//
//   - The test uses no sockets inside a bubble. A goroutine that reads from a socket does not count
//     as blocked, so the clock stops and the test hangs. A node's default client uses sockets.
//     Nodes of a World use the network instead; other code must use [Network.Client]. A Backend
//     uses sockets, so NewBackend fails inside a bubble.
//   - A World is started in the bubble that uses it. Otherwise the test fails as soon as it adds or
//     restarts a node, or requests a token.
//   - Every goroutine that is started inside a bubble ends there, or the test panics. Start closes
//     its nodes when the test ends. A test must close any other [cluster.Cluster] that it creates,
//     and close or read to the end the response bodies that it gets.
//
// The package itself follows these rules, except for NewBackend. It waits only for timers,
// channels, contexts and its own goroutines, which end with the request, the program or the run
// that they serve. All its randomness comes from seeds.
package clustertest
