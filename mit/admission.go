package mit

import (
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

const (
	// unknownListBytes is reserved for the list of a type that has not been encoded yet.
	unknownListBytes = 4 << 10

	unknownServers = -1

	// maxRetryAfter bounds the Retry-After of a rejected request.
	maxRetryAfter = 15 * time.Second

	// minThroughput, in bytes per second, is assumed until responses have been sent faster. It is
	// high: a request that comes back too early is rejected once more, which costs less than an
	// idle network.
	minThroughput = 16 << 20

	throughputWindow = time.Second
)

// An admission bounds the bytes of the lists that are being encoded or sent. A list that the client
// does not read counts until its write deadline. One type may use half of the bound, so that one
// client cannot block all others. One address may use perAddress.
type admission struct {
	limit      int64 // bytes
	perAddress int64 // bytes; below 0: no limit

	mu         sync.Mutex // guards the fields below
	inFlight   int64
	admitted   int // requests
	types      map[string]*typeLoad
	addresses  map[string]int64 // bytes in flight; only addresses that have some
	throughput throughput
}

// A typeLoad has the figures of the lists of one type.
type typeLoad struct {
	inFlight int64
	servers  int       // in the last list; unknownServers before the first
	size     int64     // of the last list, encoded
	sent     int64     // of the last list, as sent
	turn     time.Time // when the last rejected request is to be repeated
}

// An admitted request holds a part of the bound until release.
type admitted struct {
	a       *admission
	load    *typeLoad
	address string
	size    int64
}

func newAdmission(limit, perAddress int64) *admission {
	return &admission{limit: limit, perAddress: perAddress, types: map[string]*typeLoad{}, addresses: map[string]int64{}}
}

// acquire reserves the size of the list of a type. If there is no room, it returns nil and the time
// to wait.
//
// A list that is larger than a bound is admitted if no other list counts against this bound.
func (a *admission) acquire(typ, address string, now time.Time) (in *admitted, retryAfter time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	load := a.types[typ]
	if load == nil {
		load = &typeLoad{servers: unknownServers, size: unknownListBytes, sent: unknownListBytes}
		a.types[typ] = load
	}
	in = &admitted{a: a, load: load, address: address}
	if ok, retryAfter := in.reserveLocked(load.size, now); !ok {
		return nil, retryAfter
	}
	a.admitted++
	return in, 0
}

// reserveLocked changes the reservation to size if there is room for it, and otherwise returns the
// time to wait.
func (in *admitted) reserveLocked(size int64, now time.Time) (ok bool, retryAfter time.Duration) {
	a := in.a
	fits := func(inFlight, limit int64) bool {
		others := inFlight - in.size
		return others == 0 || others+size <= limit
	}
	switch {
	case a.perAddress >= 0 && !fits(a.addresses[in.address], a.perAddress):
		// The clients at the address do not read their responses. So their requests get a random
		// delay, and no turn.
		return false, maxRetryAfter/2 + rand.N(maxRetryAfter/2)
	case !fits(in.load.inFlight, a.limit/2), !fits(a.inFlight, a.limit):
		return false, a.nextTurnLocked(in.load, now)
	}
	in.resizeLocked(size)
	return true, 0
}

// loaded checks the bounds again, before the list is encoded, if it is longer than the reservation.
// This is so after a start, when the length of no list is known, and while many servers register.
// The registration has been stored then, which is harmless: the repeated one renews it.
func (in *admitted) loaded(res Resource, now time.Time) (ok bool, retryAfter time.Duration) {
	size := encodedSize(res.Servers)
	in.a.mu.Lock()
	defer in.a.mu.Unlock()
	if size <= in.size {
		return true, 0
	}
	if load := in.load; size > load.size { // so that later requests are rejected by acquire
		load.sent = int64(float64(load.sent) / float64(load.size) * float64(size)) // compressed as before
		load.servers, load.size = len(res.Servers), size
	}
	return in.reserveLocked(size, now)
}

// nextTurnLocked spreads the rejected requests of a type over the time that their responses take.
func (a *admission) nextTurnLocked(load *typeLoad, now time.Time) time.Duration {
	if load.turn.Before(now) {
		load.turn = now
	}
	load.turn = load.turn.Add(time.Duration(float64(load.sent) / a.throughput.rate() * float64(time.Second)))
	if wait := load.turn.Sub(now); wait < maxRetryAfter {
		return wait
	}
	load.turn = now.Add(maxRetryAfter)
	return maxRetryAfter/2 + rand.N(maxRetryAfter/2)
}

// encoded records the figures of a list and the number of bytes to send, and changes the
// reservation to this number.
func (in *admitted) encoded(l *list, sent int) {
	in.a.mu.Lock()
	defer in.a.mu.Unlock()
	in.load.servers, in.load.size, in.load.sent = l.servers, int64(l.size), int64(sent)
	in.resizeLocked(int64(sent))
}

// release ends the reservation. sent is the number of bytes that were sent; 0 if the request was
// rejected or the client did not read. It must not be called twice.
func (in *admitted) release(sent int, now time.Time) {
	in.a.mu.Lock()
	defer in.a.mu.Unlock()
	if sent > 0 {
		in.a.throughput.add(int64(sent), now)
	}
	in.a.admitted--
	in.resizeLocked(0)
}

func (in *admitted) resizeLocked(size int64) {
	change := size - in.size
	in.size = size
	in.a.inFlight += change
	in.load.inFlight += change
	if n := in.a.addresses[in.address] + change; n > 0 {
		in.a.addresses[in.address] = n
	} else {
		delete(in.a.addresses, in.address)
	}
}

// load returns the lists that are being encoded or sent, their bytes, and the bound of the bytes.
func (a *admission) load() (lists int, inFlight, limit int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.admitted, a.inFlight, a.limit
}

// lastList returns the figures of the last list of a type.
func (a *admission) lastList(typ string) (servers int, size int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if load := a.types[typ]; load != nil {
		return load.servers, load.size
	}
	return unknownServers, unknownListBytes
}

// A throughput is the rate at which responses were sent in the last busy second.
type throughput struct {
	perSecond float64
	since     time.Time
	bytes     int64
}

func (t *throughput) add(n int64, now time.Time) {
	t.bytes += n
	elapsed := now.Sub(t.since)
	if elapsed < throughputWindow {
		return
	}
	if elapsed < 2*throughputWindow {
		t.perSecond = float64(t.bytes) / elapsed.Seconds()
	}
	t.since, t.bytes = now, 0
}

func (t *throughput) rate() float64 { return max(t.perSecond, minThroughput) }

// remoteAddress returns the address of a request's sender. For IPv6 it returns the /64, since one
// machine may use all addresses of it.
func remoteAddress(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	if ip = ip.Unmap().WithZone(""); ip.Is4() {
		return ip.String()
	}
	network, _ := ip.Prefix(64) // 64 is in range
	return network.String()
}
