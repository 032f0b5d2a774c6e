// Package membership holds what a node believes about its cluster: an immutable value, changed
// by making a new one. It has no clock, no lock, and calls nobody.
package membership

import (
	"cmp"
	"encoding/json"
	"net/url"
	"slices"
	"time"

	"github.com/mimiktech/cluster/internal/wire"
)

// A Peer is one server of a roster, with its address parsed once. Base is nil if Err says
// why that address must not be called. A Peer is never changed.
type Peer struct {
	wire.Server
	Base      *url.URL
	Err       error
	Announced bool // by a peer: mIT has not said so itself
	// Kept is until when this node keeps it, though mIT has forgotten it; nobody else is told. It is
	// zero if mIT has not.
	RetainUntil time.Time
}

// Check parses a server's address, or says why it must not be called.
type Check func(wire.Server) (*url.URL, error)

// A Roster is the servers of one resource, sorted by id, each id once. The zero Roster is
// that of a node which knows nobody and has no resource.
type View struct {
	id, typ, publicBaseURL string
	extra                  map[string]json.RawMessage
	peers                  []*Peer
}

// New makes the roster that it describes. Where it names a server twice, the newer entry wins.
// Peers that known already holds are taken from there, so that renewing a view of a thousand
// servers parses no address again.
func New(it wire.ItResource, check Check, known View) View {
	return newView(it, check, known, false)
}

// Announced is New for what a peer says.
func Announced(it wire.ItResource, check Check, known View) View {
	return newView(it, check, known, true)
}

func newView(it wire.ItResource, check Check, known View, told bool) View {
	r := View{id: it.ID, typ: it.Type, publicBaseURL: it.PublicBaseURL, extra: it.Extra}
	r.peers = make([]*Peer, len(it.Servers))
	for i, s := range it.Servers {
		r.peers[i] = newPeer(s, check, known, told)
	}
	// Newer entries first, so that compacting by id keeps them.
	slices.SortStableFunc(r.peers, func(a, b *Peer) int {
		return cmp.Or(cmp.Compare(a.ServerID, b.ServerID), b.LastUpdate().Compare(a.LastUpdate()))
	})
	r.peers = slices.CompactFunc(r.peers, func(a, b *Peer) bool { return a.ServerID == b.ServerID })
	return r
}

func newPeer(s wire.Server, check Check, known View, told bool) *Peer {
	if p, ok := known.Get(s.ServerID); ok && p.ClusterBaseURL == s.ClusterBaseURL {
		if p.Announced == told && p.RetainUntil.IsZero() && p.LastUpdate().Equal(s.LastUpdate()) && string(p.Raw) == string(s.Raw) {
			return p
		}
		return &Peer{Server: s, Base: p.Base, Err: p.Err, Announced: told}
	}
	base, err := check(s)
	return &Peer{Server: s, Base: base, Err: err, Announced: told}
}

// ID is the id of the resource, empty in the zero Roster.
func (r View) ID() string { return r.id }

// Len is the number of servers, oneself included.
func (r View) Len() int { return len(r.peers) }

// Peers are the servers, sorted by id. The slice is not the caller's to change.
func (r View) Peers() []*Peer { return r.peers }

// Get finds a server.
func (r View) Get(id string) (*Peer, bool) {
	i, ok := r.Index(id)
	if !ok {
		return nil, false
	}
	return r.peers[i], true
}

// Index is the place of a server in Peers.
func (r View) Index(id string) (int, bool) {
	return slices.BinarySearchFunc(r.peers, id, func(p *Peer, id string) int { return cmp.Compare(p.ServerID, id) })
}

// Union is r with the servers of o joined to it: newcomers enter, and of two entries of one
// server the newer stays. At equal age the one in r stays. All else is r's.
func (r View) Merge(o View) View {
	u := r
	u.peers = make([]*Peer, 0, len(r.peers)+len(o.peers))
	i, j := 0, 0
	for i < len(r.peers) && j < len(o.peers) {
		mine, theirs := r.peers[i], o.peers[j]
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
	u.peers = append(append(u.peers, r.peers[i:]...), o.peers[j:]...)
	return u
}

// Keep is r with those servers of o that it lacks: who is kept already stays until its time is up, and
// the others are kept until then, if that is later than now. Of another resource nobody is kept.
func (r View) Retain(o View, now, until time.Time) View {
	if r.id != o.id {
		return r
	}
	k := r
	k.peers = slices.Clone(r.peers)
	for _, p := range o.peers {
		if _, listed := r.Index(p.ServerID); listed {
			continue
		}
		kept := *p
		if kept.RetainUntil.IsZero() {
			kept.RetainUntil = until
		}
		if now.Before(kept.RetainUntil) {
			k.peers = append(k.peers, &kept)
		}
	}
	slices.SortFunc(k.peers, func(a, b *Peer) int { return cmp.Compare(a.ServerID, b.ServerID) })
	return k
}

// Callable is r without the servers whose address must not be called.
func (r View) Allowed() View {
	c := r
	c.peers = slices.DeleteFunc(slices.Clone(r.peers), func(p *Peer) bool { return p.Err != nil })
	return c
}

// Without is r without the server of that id; r itself if it has none.
func (r View) Without(id string) View {
	i, ok := r.Index(id)
	if !ok {
		return r
	}
	w := r
	w.peers = slices.Concat(r.peers[:i], r.peers[i+1:])
	return w
}

// Only is r with no server but the one of that id; with none if r has not got it.
func (r View) Select(id string) View {
	o := r
	o.peers = nil
	if i, ok := r.Index(id); ok {
		o.peers = r.peers[i : i+1 : i+1]
	}
	return o
}

// Resource is the roster as it is told to others.
func (r View) Resource() wire.ItResource {
	servers := make([]wire.Server, 0, len(r.peers))
	for _, p := range r.peers {
		if p.RetainUntil.IsZero() {
			servers = append(servers, p.Server)
		}
	}
	return wire.ItResource{ID: r.id, Type: r.typ, PublicBaseURL: r.publicBaseURL, Servers: servers, Extra: r.extra}
}

// Since is r, which mIT gave in answer to a request, brought up to what has happened since the
// request was sent, when the view was before: who joined or came back meanwhile is in, who was
// taken out is out, unless mIT knows a newer entry.
func (r View) Reconcile(before, now View) View {
	if now.id != r.id || before.id != now.id && before.id != "" { // "": nobody was known
		return r
	}
	s := r
	s.peers = make([]*Peer, 0, len(r.peers))
	for _, p := range r.peers {
		was, wasThere := before.Get(p.ServerID)
		is, isThere := now.Get(p.ServerID)
		switch {
		case wasThere && !isThere && !p.LastUpdate().After(was.LastUpdate()):
			continue // taken out meanwhile
		case isThere && is.LastUpdate().After(p.LastUpdate()) && (!wasThere || is.LastUpdate().After(was.LastUpdate())):
			p = is // told meanwhile
		}
		s.peers = append(s.peers, p)
	}
	for _, p := range now.peers {
		was, wasThere := before.Get(p.ServerID)
		_, listed := r.Index(p.ServerID)
		if !listed && (!wasThere || p.LastUpdate().After(was.LastUpdate())) {
			s.peers = append(s.peers, p)
		}
	}
	slices.SortFunc(s.peers, func(a, b *Peer) int { return cmp.Compare(a.ServerID, b.ServerID) })
	return s
}
