package cluster

import (
	"net"
	"net/http"
	"time"
)

// roads are how requests leave this node. They are round trippers, not clients: no redirect is
// followed, with our token, to where nobody was checked.
type roads struct {
	backend http.RoundTripper // towards mST and mIT
	peers   http.RoundTripper
	fresh   http.RoundTripper // towards peers, on a new connection for each request
	own     []*http.Transport // those of them that nobody else uses
}

// newRoads gives all requests the transport of hc, or if that is nil ones of our own.
func newRoads(hc *http.Client, policy PeerPolicy, inFlight int) roads {
	if hc != nil {
		rt := hc.Transport
		if rt == nil {
			rt = http.DefaultTransport
		}
		return roads{backend: rt, peers: rt, fresh: rt}
	}
	backend := newTransport(net.Dialer{}, 4)
	backend.Proxy = http.ProxyFromEnvironment
	peers := newTransport(net.Dialer{Control: policy.control}, max(2, inFlight/16))
	fresh := newTransport(net.Dialer{Control: policy.control}, 0)
	fresh.DisableKeepAlives = true
	return roads{backend, peers, fresh, []*http.Transport{backend, peers, fresh}}
}

func newTransport(dialer net.Dialer, idlePerHost int) *http.Transport {
	dialer.Timeout, dialer.KeepAlive = 10*time.Second, 30*time.Second
	return &http.Transport{
		DialContext:         dialer.DialContext,
		MaxIdleConnsPerHost: idlePerHost, // and in all as many as there are peers
		IdleConnTimeout:     90 * time.Second,
		TLSHandshakeTimeout: 10 * time.Second,
		ForceAttemptHTTP2:   true, // where there is TLS
	}
}

func (r roads) close() {
	for _, t := range r.own {
		t.CloseIdleConnections()
	}
}
