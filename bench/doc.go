// Command bench compares the fan-out of this module, one request to every peer, with the
// alternatives. It is a program and not a test, so no test depends on how long something takes.
//
//	go -C bench run .                       # the calls experiment, ten minutes
//	go -C bench run . -brief                # the same in seconds, to check that it works
//	go -C bench run . calls overhead start burst tail failures join
//	go -C bench run . -failure-rounds 3 -plot ../docs/fanout.svg calls failures
//	go -C bench run ./scale                 # requests and bytes by cluster size
//
// The experiments:
//
//   - calls: throughput, latency, CPU time and memory of calls to healthy peers.
//   - overhead: the cost per peer that this module adds to net/http, measured without a network.
//   - start: tokens and registrations of a new node until the end of its first call.
//   - burst: eight concurrent calls after all peers have restarted, so without a connection.
//   - tail: calls while an occasional response takes long.
//   - failures: calls while peers refuse connections, hang or are slow.
//   - join: the time until ten nodes know of a node that joins or leaves, compared with
//     hashicorp/memberlist.
//
// A stub cluster simulates the registry (mIT), the token service (mST) and up to a thousand peers,
// each with its own loopback address. It runs in its own process. Each contestant does, too, which
// keeps its CPU time, allocations and memory separate. Contestants run one at a time, in a random
// order in each round, and each run opens new connections. A ratio is the median of the ratios
// within rounds, because other load on the machine affects all contestants of a round.
//
// The contestants:
//
//   - cluster: [cluster.Cluster.RPCluster] with tokens from the token service, retries, eviction
//     and a trace.
//   - cluster over net/http: the same with the transport of loop, given with WithHTTPClient.
//   - sockets alone: prepared requests over sockets, 64 at a time per call. It parses only the
//     length of a response. It shows about what an HTTP client in Go could reach at best.
//   - loop, the baseline: one goroutine per peer, one deadline per call and net/http with a tuned
//     transport. It decodes each response and checks that the expected server sent it. It has a
//     fixed token and a fixed list of peers, and neither retries nor evicts.
//   - loop, bounded: the same with at most 256 requests in flight, the default limit of cluster.
//   - loop, default transport: the same with http.DefaultTransport.
//   - retryablehttp, resty, failsafe: the loop with these clients, with one retry after 10 ms.
//   - npm module: @mimik/cluster on Node.js, if node and npm are installed.
//
// The program ends when the process that started it does, unless it is run by nohup.
package main
