// Command bench measures the fan-out: one request to every peer, through this module and through
// what one might use instead of it. Nothing it does is a test of how long something takes.
//
//	go -C bench run .                             # the comparison, some minutes
//	go -C bench run . -plot ../docs/fanout.svg    # and as a picture
//	go -C bench run . -bad                        # peers that die, hang or are slow
//	go -C bench run . -brief                      # a few seconds, to see that it works
//	go -C bench run ./scale                       # requests and bytes by the size of the cluster
//
// A stub cluster in a process of its own plays up to a thousand peers, each at a loopback address
// of its own, and mIT and mST. Each contestant is a process too, so that processor time,
// allocations and memory are its own. They have their rounds in turn, and each ratio is the median
// of the ratios within rounds: what else the machine does hits all alike.
//
// The contestants:
//
//   - cluster: [cluster.Cluster.RPCluster] with tokens from mST, retry, eviction and a trace.
//   - loop, the yardstick: a goroutine and a timeout for each peer, net/http, and an envelope that is
//     decoded and must be from whom it was asked of. It retries nothing, knows its token and its
//     peers once and for all, and forgets what failed.
//   - loop, bounded: the same with 256 requests in flight at most, as cluster has by default.
//   - retryablehttp, resty, failsafe: the loop around these clients, with one retry after 10 ms.
//   - npm module: @mimik/cluster on Node.js; it takes part where node and npm are.
package main
