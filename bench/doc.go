// Command bench measures the fan-out: one request to every peer, through this module and through
// what one might use instead of it. Nothing it does is a test of how long something takes.
//
//	go -C bench run .                             # calls when all is well, ten minutes
//	go -C bench run . -brief                      # the same in seconds, to see that it works
//	go -C bench run . calls added start burst tail bad join
//	go -C bench run . -rounds 3 -plot ../docs/fanout.svg calls bad
//	go -C bench run ./scale                       # requests and bytes by the size of the cluster
//
// What it can measure:
//
//   - calls: how many calls a contestant makes, how long they take, processor time and memory.
//   - added: what this module does for a peer beside the request, without a network.
//   - start: what it fetches until its first call is answered.
//   - burst: eight calls that begin together after all peers have restarted, so without a connection.
//   - tail: calls when now and then an answer takes long.
//   - bad: peers that refuse, hang or are slow.
//   - join: how soon ten nodes know who joined or left, beside hashicorp/memberlist.
//
// A stub cluster in a process of its own plays up to a thousand peers, each at a loopback address
// of its own, and mIT and mST. Each contestant is a process too, so that processor time,
// allocations and memory are its own. They have their rounds in turn, each with new connections,
// and each ratio is the median of the ratios within rounds: what else the machine does hits all alike.
//
// The contestants:
//
//   - cluster: [cluster.Cluster.RPCluster] with tokens from mST, retry, eviction and a trace.
//   - loop, the yardstick: a goroutine for each peer, one deadline for the call, net/http with a
//     tuned transport, and an envelope that is decoded and must be from whom it was asked of. It retries
//     nothing, knows its token and its peers once and for all, and forgets what failed.
//   - loop, bounded: the same with 256 requests in flight at most, as cluster has by default.
//   - loop, default transport: the same with http.DefaultTransport.
//   - retryablehttp, resty, failsafe: the loop around these clients, with one retry after 10 ms.
//   - npm module: @mimik/cluster on Node.js; it takes part where node and npm are.
package main
