package cluster

import "testing"

// No proxy is used towards peers: it would see their tokens, and dial for us what the policy does
// not allow. A look at the transports has to do: net/http takes no proxy from the environment for
// the loopback addresses that a test can listen at.
func TestNoProxyTowardsPeers(t *testing.T) {
	r := newTransports(nil, PeerPolicy{}, 256)
	if len(r.owned) != 3 || r.owned[0] != r.backend || r.owned[1] != r.peers || r.owned[2] != r.newConn {
		t.Fatalf("not the transports towards the back end and the peers: %v", r.owned)
	}
	if r.owned[0].Proxy == nil {
		t.Error("towards mST and mIT the proxy of the environment is not used")
	}
	for _, transport := range r.owned[1:] {
		if transport.Proxy != nil || transport.OnProxyConnectResponse != nil {
			t.Error("a proxy is used towards peers")
		}
	}
}
