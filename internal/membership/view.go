// Package membership has View, the list of the servers of a cluster that a node knows. A View is
// immutable: its methods return a new one. The package has no clock and no lock, and does no I/O.
package membership

import (
	"cmp"
	"encoding/json"
	"iter"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"github.com/mimiktech/cluster/internal/wire"
)

// A Peer is one server of a View, with its parsed address. A Peer is immutable, except for one
// flag: whether it has answered.
type Peer struct {
	wire.Server
	Base *url.URL // nil if Err is set
	Err  error    // why the address must not be called; nil if it may be

	Announced bool         // by a peer, and not confirmed by the registry (mIT) yet
	answered  *atomic.Bool // at this address
	// RetainUntil is set for a peer whose entry the registry has lost: the peer is dropped at this
	// time unless the registry lists it again. It is zero for other peers.
	RetainUntil time.Time
}

// Proven reports whether the peer is known to exist: the registry has confirmed it, or it has
// answered.
func (p *Peer) Proven() bool { return !p.Announced || p.answered.Load() }

// SetAnswered records that a response was received from the address of the peer.
func (p *Peer) SetAnswered() { p.answered.Store(true) }

// Check parses a server's address, or returns an error if the address must not be called.
type Check func(wire.Server) (*url.URL, error)

// A View is the servers of one resource, sorted by id, each id once. The zero View has no resource
// and no servers.
type View struct {
	id, typ, publicBaseURL string
	extra                  map[string]json.RawMessage
	peers                  []*Peer
}

// New returns the View of a resource that the registry sent. Of two entries of one server it takes
// the newer one. It reuses the peers of known that have not changed. If only other fields than the
// address have changed, it reuses the parsed address.
func New(it wire.ItResource, check Check, known View) View {
	return newView(it, check, known, false)
}

// Announced is like New, for a resource that a peer sent.
func Announced(it wire.ItResource, check Check, known View) View {
	return newView(it, check, known, true)
}

// ID returns the id of the resource; it is empty in the zero View.
func (v View) ID() string { return v.id }

// Len returns the number of servers, this node included.
func (v View) Len() int { return len(v.peers) }

// A Size has the figures of a View for which a node has limits.
type Size struct {
	Servers   int
	Announced int   // number of servers that the registry has not confirmed
	Bytes     int64 // of the entries, in JSON
}

// Size returns the size of v.
func (v View) Size() Size {
	size := Size{Servers: len(v.peers)}
	for _, p := range v.peers {
		size.Bytes += int64(len(p.Raw))
		if p.Announced {
			size.Announced++
		}
	}
	return size
}

// CountNew returns how many servers of o are not in v at the same address.
func (v View) CountNew(o View) (n int) {
	for _, p := range o.peers {
		if known, ok := v.Get(p.ServerID); !ok || known.ClusterBaseURL != p.ClusterBaseURL {
			n++
		}
	}
	return n
}

// Peers returns the servers, sorted by id. The caller must not change the slice.
func (v View) Peers() []*Peer { return v.peers }

// Get returns the server with the given id.
func (v View) Get(id string) (*Peer, bool) {
	i, ok := v.Index(id)
	if !ok {
		return nil, false
	}
	return v.peers[i], true
}

// Index returns the index in Peers of the server with the given id.
func (v View) Index(id string) (int, bool) {
	return slices.BinarySearchFunc(v.peers, id, func(p *Peer, id string) int { return cmp.Compare(p.ServerID, id) })
}

// Merge returns v with the servers of o added. Of two entries of one server it keeps the newer one,
// and the entry of v if both have the same age.
func (v View) Merge(o View) View {
	u := v
	u.peers = make([]*Peer, 0, len(v.peers)+len(o.peers))
	i, j := 0, 0
	for i < len(v.peers) && j < len(o.peers) {
		mine, theirs := v.peers[i], o.peers[j]
		switch order := cmp.Compare(mine.ServerID, theirs.ServerID); {
		case order < 0:
			u.peers, i = append(u.peers, mine), i+1
		case order > 0:
			u.peers, j = append(u.peers, theirs), j+1
		default:
			if theirs.LastUpdate().After(mine.LastUpdate()) {
				mine = theirs
			}
			u.peers, i, j = append(u.peers, mine), i+1, j+1
		}
	}
	u.peers = append(append(u.peers, v.peers[i:]...), o.peers[j:]...)
	return u
}

// Retain returns v with the servers of o that v lacks. Their RetainUntil is set to the given time;
// that of servers already retained does not change. Servers that have expired by now are left out.
// If o belongs to another resource, Retain returns v.
func (v View) Retain(o View, now, until time.Time) View {
	if v.id != o.id {
		return v
	}
	k := v
	k.peers = slices.Clone(v.peers)
	for _, p := range o.peers {
		if _, listed := v.Index(p.ServerID); listed {
			continue
		}
		retained := *p
		if retained.RetainUntil.IsZero() {
			retained.RetainUntil = until
		}
		if now.Before(retained.RetainUntil) {
			k.peers = append(k.peers, &retained)
		}
	}
	slices.SortFunc(k.peers, func(a, b *Peer) int { return cmp.Compare(a.ServerID, b.ServerID) })
	return k
}

// Allowed returns v without the servers that must not be called.
func (v View) Allowed() View { return v.Filter(func(p *Peer) bool { return p.Err == nil }) }

// Filter returns v with only the servers for which keep returns true.
func (v View) Filter(keep func(*Peer) bool) View {
	c := v
	c.peers = slices.DeleteFunc(slices.Clone(v.peers), func(p *Peer) bool { return !keep(p) })
	return c
}

// Without returns v without the server with the given id.
func (v View) Without(id string) View {
	i, ok := v.Index(id)
	if !ok {
		return v
	}
	w := v
	w.peers = slices.Concat(v.peers[:i], v.peers[i+1:])
	return w
}

// Select returns v with only the server with the given id, or with none if v lacks it.
func (v View) Select(id string) View {
	o := v
	o.peers = nil
	if i, ok := v.Index(id); ok {
		o.peers = v.peers[i : i+1 : i+1]
	}
	return o
}

// Resource returns the view as it is sent to peers: without the retained servers.
func (v View) Resource() wire.ItResource {
	servers := make([]wire.Server, 0, len(v.peers))
	for _, p := range v.peers {
		if p.RetainUntil.IsZero() {
			servers = append(servers, p.Server)
		}
	}
	return wire.ItResource{ID: v.id, Type: v.typ, PublicBaseURL: v.publicBaseURL, Servers: servers, Extra: v.extra}
}

// Disputes reports whether o lists a server of v at another address, in an entry that is not newer.
// Either such an entry is outdated, or the clock of the registry went back.
func (v View) Disputes(o View) bool {
	return slices.ContainsFunc(o.peers, func(theirs *Peer) bool {
		mine, known := v.Get(theirs.ServerID)
		return known && theirs.ClusterBaseURL != mine.ClusterBaseURL && !theirs.LastUpdate().After(mine.LastUpdate())
	})
}

// Reconcile returns v, the registry's response to a request, with the changes of the node's view
// during the request. The parameters are the view at the start of the request and the current one.
// A server that joined or came back is added. A server that was removed is left out, unless v has a
// newer entry.
//
// If v has an older date for a server than an earlier response of the registry, the clock of the
// registry went back. Dates from before and after this change cannot be compared, so the entry of v
// is used.
func (v View) Reconcile(before, now View) View {
	if now.id != v.id || before.id != now.id && before.id != "" {
		return v
	}
	s := v
	s.peers = make([]*Peer, 0, len(v.peers))
	for _, p := range v.peers {
		previous, wasThere := before.Get(p.ServerID)
		current, isThere := now.Get(p.ServerID)
		removed := wasThere && !isThere
		announced := isThere && (!wasThere || current.LastUpdate().After(previous.LastUpdate()))
		clockWentBack := wasThere && !previous.Announced && !p.LastUpdate().IsZero() && p.LastUpdate().Before(previous.LastUpdate())
		switch {
		case clockWentBack:
		case removed && !p.LastUpdate().After(previous.LastUpdate()):
			continue
		case announced && current.LastUpdate().After(p.LastUpdate()):
			p = current
		}
		s.peers = append(s.peers, p)
	}
	for _, p := range now.peers {
		previous, wasThere := before.Get(p.ServerID)
		_, listed := v.Index(p.ServerID)
		if !listed && (!wasThere || p.LastUpdate().After(previous.LastUpdate())) {
			s.peers = append(s.peers, p)
		}
	}
	slices.SortFunc(s.peers, func(a, b *Peer) int { return cmp.Compare(a.ServerID, b.ServerID) })
	return s
}

// Diff yields the servers in which two views differ, sorted by id. For each it yields two entries:
// that of the view before, which is nil if the server joined, and that of the view after, which is
// nil if the server left. A server in both views is yielded if its ClusterBaseURL differs.
func Diff(before, after View) iter.Seq2[*Peer, *Peer] {
	return func(yield func(old, current *Peer) bool) {
		a, b := before.peers, after.peers
		for len(a) > 0 || len(b) > 0 {
			var old, current *Peer
			if len(b) == 0 || len(a) > 0 && a[0].ServerID <= b[0].ServerID {
				old = a[0]
			}
			if len(a) == 0 || len(b) > 0 && b[0].ServerID <= a[0].ServerID {
				current = b[0]
			}
			if old != nil {
				a = a[1:]
			}
			if current != nil {
				b = b[1:]
			}
			same := old == current || old != nil && current != nil && old.ClusterBaseURL == current.ClusterBaseURL
			if !same && !yield(old, current) {
				return
			}
		}
	}
}

func newView(it wire.ItResource, check Check, known View, announced bool) View {
	v := View{id: it.ID, typ: it.Type, publicBaseURL: it.PublicBaseURL, extra: it.Extra}
	v.peers = make([]*Peer, len(it.Servers))
	for i, s := range it.Servers {
		v.peers[i] = newPeer(s, check, known, announced)
	}
	// Newer entries come first, because CompactFunc keeps the first of equal elements.
	slices.SortStableFunc(v.peers, func(a, b *Peer) int {
		return cmp.Or(cmp.Compare(a.ServerID, b.ServerID), b.LastUpdate().Compare(a.LastUpdate()))
	})
	v.peers = slices.CompactFunc(v.peers, func(a, b *Peer) bool { return a.ServerID == b.ServerID })
	return v
}

func newPeer(s wire.Server, check Check, known View, announced bool) *Peer {
	if p, ok := known.Get(s.ServerID); ok && p.ClusterBaseURL == s.ClusterBaseURL {
		if p.Announced == announced && p.RetainUntil.IsZero() && p.LastUpdate().Equal(s.LastUpdate()) && string(p.Raw) == string(s.Raw) {
			return p
		}
		return &Peer{Server: s, Base: p.Base, Err: p.Err, Announced: announced, answered: p.answered}
	}
	base, err := check(s)
	return &Peer{Server: s, Base: base, Err: err, Announced: announced, answered: new(atomic.Bool)}
}
