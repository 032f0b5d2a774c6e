package cluster

import (
	"net"
	"net/http"
	"time"
)

// roads are how requests leave this node. They are round trippers, not clients: no redirect is
// followed, with our token, to where nobody was checked.
type transports struct {
	backend http.RoundTripper // towards mST and mIT
	peers   http.RoundTripper
	newConn http.RoundTripper // towards peers, on a new connection for each request
	owned   []*http.Transport // those of them that nobody else uses
}

// newRoads gives all requests the transport of hc, or if that is nil ones of our own.
func newTransports(hc *http.Client, policy PeerPolicy, inFlight int) transports {
	if hc != nil {
		rt := hc.Transport
		if rt == nil {
			rt = http.DefaultTransport
		}
		return transports{backend: rt, peers: rt, newConn: rt}
	}
	backend := newTransport(net.Dialer{}, 4)
	backend.Proxy = http.ProxyFromEnvironment
	peers := newTransport(net.Dialer{Control: policy.dialControl}, max(2, inFlight/16))
	fresh := newTransport(net.Dialer{Control: policy.dialControl}, 0)
	fresh.DisableKeepAlives = true
	return transports{backend, peers, fresh, []*http.Transport{backend, peers, fresh}}
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

func (r transports) close() {
	for _, t := range r.owned {
		t.CloseIdleConnections()
	}
}
