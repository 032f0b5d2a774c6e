package cluster

import "testing"

// No proxy is used towards peers: it would see their tokens, and dial for us what the policy does
// not allow. A look at the transports has to do: net/http takes no proxy from the environment for
// the loopback addresses that a test can listen at.
func TestNoProxyTowardsPeers(t *testing.T) {
	r := newRoads(nil, PeerPolicy{}, 256)
	if len(r.own) != 3 || r.own[0] != r.backend || r.own[1] != r.peers || r.own[2] != r.fresh {
		t.Fatalf("not the transports towards the back end and the peers: %v", r.own)
	}
	if r.own[0].Proxy == nil {
		t.Error("towards mST and mIT the proxy of the environment is not used")
	}
	for _, transport := range r.own[1:] {
		if transport.Proxy != nil || transport.OnProxyConnectResponse != nil {
			t.Error("a proxy is used towards peers")
		}
	}
}
