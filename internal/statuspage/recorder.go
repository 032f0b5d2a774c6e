package statuspage

import (
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	// MaxEvents is the number of events that a Recorder keeps.
	MaxEvents = 200
	// At this number of entries, those of former peers are removed.
	minSweep = 64
	// The number of hosts of callers that are kept.
	maxHosts = 4096
)

// A Recorder keeps the outcomes and events of a node. Its methods are safe for concurrent use. Its
// memory is bounded by the number of peers and by MaxEvents. Texts must be redacted.
type Recorder struct {
	known func(serverID string) bool

	mu       sync.Mutex // guards the fields below
	events   []Event    // the oldest first
	peers    map[string]*observed
	sweep    int
	replicas map[string]*Result // by URL
	callers  Callers
	hosts    map[string]time.Time // when an authenticated request last came from each
	check    *Check
}

// observed is what is kept of one peer.
type observed struct {
	last, membership *Result
	latency          time.Duration
}

// NewRecorder returns a Recorder. known reports whether a server is in the view of the node; it
// must not block.
func NewRecorder(known func(serverID string) bool) *Recorder {
	return &Recorder{
		known: known, sweep: minSweep, peers: make(map[string]*observed),
		replicas: make(map[string]*Result), hosts: make(map[string]time.Time),
	}
}

// Add adds an event. If it repeats the last event of its server, it replaces that event, and its
// count is one higher.
func (r *Recorder) Add(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e.Count = 1
	for i, old := range slices.Backward(r.events) {
		if old.ServerID != e.ServerID || e.ServerID == "" && old.Kind != e.Kind {
			continue
		}
		if old.Kind == e.Kind && old.Cause == e.Cause && old.Address == e.Address {
			e.Count += old.Count
			r.events = slices.Delete(r.events, i, i+1)
		}
		break
	}
	if len(r.events) == MaxEvents {
		r.events = slices.Delete(r.events, 0, 1)
	}
	r.events = append(r.events, e)
}

// Explain sets the text of the last event of a server, if it is an eviction without a text.
func (r *Recorder) Explain(serverID, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, e := range slices.Backward(r.events) {
		if e.ServerID == serverID {
			if e.Kind == Evicted {
				r.events[i].Text = text
			}
			return
		}
	}
}

// Outcome records the outcome of a call to a peer. membership reports whether the call was an
// announcement or a departure.
func (r *Recorder) Outcome(serverID string, membership bool, result Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.peerLocked(serverID)
	p.last = &result
	if membership {
		p.membership = &result
	}
}

// Latency records the duration of a response of a peer.
func (r *Recorder) Latency(serverID string, d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.peerLocked(serverID).latency = d
}

// Replica records the result of a request to a replica of the registry or of the token service.
func (r *Recorder) Replica(url string, result Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.replicas[url] = &result
}

// Accepted records an authenticated request from a host.
func (r *Recorder) Accepted(host string, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.callers.Authenticated++
	r.callers.LastAccepted, r.callers.RejectedInARow = now, 0
	if len(r.hosts) >= maxHosts {
		clear(r.hosts)
	}
	r.hosts[host] = now
}

// Rejected records a request with an invalid token.
func (r *Recorder) Rejected(address, reason string, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.callers.Rejected++
	r.callers.RejectedInARow++
	r.callers.LastRejected, r.callers.RejectionReason, r.callers.RejectionAddress = now, reason, address
}

// SetCheck records the result of a two-way check.
func (r *Recorder) SetCheck(c Check) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.check = &c
}

// Fill sets the recorded fields of a page that already has its peers and replicas. host returns the
// host of an address.
func (r *Recorder) Fill(page *Page, host func(address string) string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	page.Callers = r.callers
	page.Events = slices.Clone(r.events)
	slices.Reverse(page.Events)
	for i := range page.Replicas {
		page.Replicas[i].Last = r.replicas[page.Replicas[i].URL]
	}
	evictions := make(map[string]int)
	for _, e := range r.events {
		if e.Kind == Evicted {
			evictions[e.ServerID] += e.Count
		}
	}
	present, onHost := make(map[string]bool, len(page.Peers)), make(map[string]int)
	for _, p := range page.Peers {
		present[p.ID] = true
		onHost[host(p.Address)]++
	}
	for i := range page.Peers {
		p := &page.Peers[i]
		p.Evictions = evictions[p.ID]
		if onHost[host(p.Address)] == 1 { // otherwise another server may have sent it
			p.CalledUs = r.hosts[host(p.Address)]
		}
		if o := r.peers[p.ID]; o != nil {
			p.Last, p.Membership, p.Latency = o.last, o.membership, Duration(o.latency)
		}
	}
	page.Gone = gone(page.Events, present, page.Now)
	for i := range page.Gone {
		if h := host(page.Gone[i].Address); onHost[h] == 0 {
			page.Gone[i].CalledUs = r.hosts[h]
		}
	}
	if r.check != nil {
		check := *r.check
		check.Ago = Duration(page.Now.Sub(check.At))
		page.Check = &check
	}
}

// gone returns the servers that have left, the last one first. The newest event is the first.
func gone(events []Event, present map[string]bool, now time.Time) []Gone {
	var servers []Gone
	seen := make(map[string]bool)
	for _, e := range events {
		if present[e.ServerID] || seen[e.ServerID] {
			continue
		}
		switch e.Kind {
		case Left, Evicted:
			seen[e.ServerID] = true
			servers = append(servers, Gone{ID: e.ServerID, Address: e.Address, At: e.At, Ago: Duration(now.Sub(e.At)), Evicted: e.Kind == Evicted, Reason: departureReason(e)})
		case Joined, Moved:
			seen[e.ServerID] = true
		}
	}
	return servers
}

func (r *Recorder) peerLocked(serverID string) *observed {
	if p := r.peers[serverID]; p != nil {
		return p
	}
	if len(r.peers) >= r.sweep {
		maps.DeleteFunc(r.peers, func(id string, _ *observed) bool { return !r.known(id) })
		r.sweep = max(minSweep, 2*len(r.peers))
	}
	p := new(observed)
	r.peers[serverID] = p
	return p
}
