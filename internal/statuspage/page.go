// Package statuspage records outcomes and events of a node, finds the likely causes of problems,
// and shows them as a page or as JSON. It sends no requests.
package statuspage

import "time"

// A Page is the content of the status page of a node.
type Page struct {
	Now     time.Time `json:"now"`
	Service string    `json:"service"`
	// ServerID and Address are those of this node.
	ServerID   string `json:"serverId"`
	Address    string `json:"address"`
	ResourceID string `json:"resourceId,omitempty"`

	State string `json:"state"`
	// Problem is why the node is not registered; nil if it is.
	Problem     *Result   `json:"problem,omitempty"`
	RenewedAt   time.Time `json:"renewedAt,omitzero"`
	ExpiresAt   time.Time `json:"expiresAt,omitzero"`
	LeaseTime   Duration  `json:"leaseTime"`
	Remaining   Duration  `json:"remaining"` // of the lease
	NotManaged  bool      `json:"notManaged,omitempty"`
	Replicas    []Replica `json:"replicas"`
	ClockAhead  Duration  `json:"clockAhead"` // compared with the registry
	Settings    Settings  `json:"-"`
	Conflicts   []string  `json:"conflicts,omitempty"`
	InFlight    int       `json:"inFlight"`
	MaxInFlight int       `json:"maxInFlight"`
	Waiting     int       `json:"waiting"`

	Findings []Finding `json:"findings"`
	Callers  Callers   `json:"callers"`
	Peers    []Peer    `json:"peers"`
	Gone     []Gone    `json:"gone"`
	Events   []Event   `json:"events"` // the newest first
	Check    *Check    `json:"check,omitempty"`

	// Actions reports whether the page offers the two-way check. Refresh is the interval at which the
	// page is loaded again; 0 for never.
	Actions bool     `json:"-"`
	Refresh Duration `json:"-"`
}

// A Result is how a request ended.
type Result struct {
	At         time.Time `json:"at"`
	Kind       string    `json:"kind"`                 // a [cluster.Kind]
	StatusCode int       `json:"statusCode,omitempty"` // 0 if there was no response
	Text       string    `json:"text,omitempty"`       // of the error; empty if there is none
	// NotConnected reports whether no connection could be established.
	NotConnected bool `json:"notConnected,omitempty"`
	// Remote is the sender of the response: "registry", "token service", or empty for a peer.
	Remote string `json:"remote,omitempty"`
}

// OK reports whether the request succeeded.
func (r *Result) OK() bool { return r != nil && r.Kind == "ok" }

// failed reports whether there was a request that failed.
func (r *Result) failed() bool { return r != nil && r.Kind != "ok" && r.Kind != "canceled" }

// A Replica is one server of the registry, or of the token service.
type Replica struct {
	URL   string  `json:"url"`
	InUse bool    `json:"inUse"`
	Last  *Result `json:"last,omitempty"`
}

// A Peer is a server of the view, this node included.
type Peer struct {
	ID        string    `json:"id"`
	Address   string    `json:"address"`
	Self      bool      `json:"self,omitempty"`
	Announced bool      `json:"announced,omitempty"` // the registry has not confirmed it
	UpdatedAt time.Time `json:"updatedAt,omitzero"`
	Age       Duration  `json:"age"` // of the entry, since UpdatedAt
	// Last is the last outcome, and Membership the last one of an announcement or a departure.
	Last        *Result  `json:"last,omitempty"`
	Membership  *Result  `json:"membership,omitempty"`
	Latency     Duration `json:"latency"` // of the last response
	BreakerOpen bool     `json:"breakerOpen"`
	InFlight    int      `json:"inFlight"`
	// CalledUs is when an authenticated request last came from the host of this peer.
	CalledUs time.Time `json:"calledUs,omitzero"`
	// Evictions is how often this node has evicted it, in the events.
	Evictions int    `json:"evictions"`
	Problem   string `json:"problem,omitempty"` // in plain words
}

// A Gone is a server that has left the view and has not returned.
type Gone struct {
	ID      string    `json:"id"`
	Address string    `json:"address"`
	At      time.Time `json:"at"`
	Ago     Duration  `json:"ago"`
	Reason  string    `json:"reason"`
	Evicted bool      `json:"evicted,omitempty"` // by this node
	// CalledUs is when an authenticated request last came from its host.
	CalledUs time.Time `json:"calledUs,omitzero"`
}

// A Kind is the kind of an event.
type Kind string

// The kinds of events.
const (
	Joined   Kind = "joined"
	Left     Kind = "left"
	Moved    Kind = "moved"
	Evicted  Kind = "evicted"
	Kept     Kind = "kept" // a suspect that was not evicted
	Renewal  Kind = "registration failed"
	Replicas Kind = "replica"
	State    Kind = "state"
	Breaker  Kind = "breaker"
	Rejected Kind = "caller rejected"
	Removed  Kind = "removed" // this node's entry was removed by another server
)

// An Event is one event of a node, or several equal ones in a row.
type Event struct {
	At       time.Time `json:"at"` // the last time
	Kind     Kind      `json:"kind"`
	ServerID string    `json:"serverId,omitempty"`
	Address  string    `json:"address,omitempty"`
	Cause    string    `json:"cause,omitempty"` // from a closed set
	Text     string    `json:"text,omitempty"`
	Count    int       `json:"count"`
}

// Callers are figures about the callers of the node's endpoints.
type Callers struct {
	Authenticated    int       `json:"authenticated"`
	Rejected         int       `json:"rejected"`
	LastAccepted     time.Time `json:"lastAccepted,omitzero"`
	LastRejected     time.Time `json:"lastRejected,omitzero"`
	RejectedInARow   int       `json:"rejectedInARow"`
	RejectionReason  string    `json:"rejectionReason,omitempty"`
	RejectionAddress string    `json:"rejectionAddress,omitempty"`
}

// A Check is the result of a two-way check: the views of all peers, compared with each other.
type Check struct {
	At   time.Time `json:"at"`
	Ago  Duration  `json:"ago"`
	Took Duration  `json:"took"`
	Err  string    `json:"error,omitempty"`
	// Views is the number of views that were compared, that of this node included.
	Views   int         `json:"views"`
	Servers []CheckRow  `json:"servers"` // sorted: this node, those with differences, the others
	Silent  []CheckFail `json:"silent"`  // peers whose view could not be read
}

// A CheckRow is one server, and the views that lack it.
type CheckRow struct {
	ID        string   `json:"id"`
	Self      bool     `json:"self,omitempty"`
	KnownBy   int      `json:"knownBy"` // number of views
	MissingIn []string `json:"missingIn,omitempty"`
}

// A CheckFail is a peer whose view could not be read.
type CheckFail struct {
	ID   string `json:"id"`
	Text string `json:"text"`
}

// Duration is a time.Duration that is encoded in JSON as seconds.
type Duration time.Duration

// MarshalJSON encodes the duration in seconds.
func (d Duration) MarshalJSON() ([]byte, error) { return appendSeconds(d), nil }
