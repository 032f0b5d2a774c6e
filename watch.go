package cluster

import (
	"cmp"
	"context"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/mimiktech/cluster/internal/membership"
)

// A ChangeKind is the way in which a server of the view changed. It is fit for a metric label.
type ChangeKind string

// The kinds of changes.
const (
	ServerJoined ChangeKind = "joined"
	ServerLeft   ChangeKind = "left"
	ServerMoved  ChangeKind = "moved" // it has another ClusterBaseURL
)

// A Source is the origin of a change of the view. It is fit for a metric label.
type Source string

// The sources of changes.
const (
	SourceRegistry     Source = "registry"     // the list of the registry
	SourceAnnouncement Source = "announcement" // a peer announced the server
	SourceDeparture    Source = "departure"    // a peer reported the server as departed
	SourceEviction     Source = "eviction"     // this node evicted the server
)

// A Change is a change of the view: one server joined, left or moved. Other changes of its entry,
// such as the time of its last renewal, are not reported.
type Change struct {
	Kind   ChangeKind
	Server Server // after the change; its last entry if it left
	Source Source
	Time   time.Time // when the view changed
}

// Watch yields the servers of the view, this node included, as joined, and then each change of the
// view. It ends when ctx ends or the node is closed, and blocks while there is no change.
//
// Applying all changes in their order always leads to the servers of [Cluster.Servers]. A slow
// consumer delays only itself. The sequence takes all waiting changes at once and yields them one
// by one. Meanwhile new changes of one server are merged into one, or into none if they cancel out.
// So at most two changes of each server wait. Each loop over the sequence is a watch of its own.
func (c *Cluster) Watch(ctx context.Context) iter.Seq[Change] {
	return func(yield func(Change) bool) {
		w := c.state.addWatcher()
		defer c.state.removeWatcher(w)
		for {
			for _, change := range c.state.takeChanges(w) {
				if ctx.Err() != nil || c.ctx.Err() != nil || !yield(change) {
					return
				}
			}
			select {
			case <-w.wake:
			case <-ctx.Done():
				return
			case <-c.ctx.Done():
				return
			}
		}
	}
}

// A watcher collects the changes for one consumer. All fields except wake are guarded by state.mu.
type watcher struct {
	wake    chan struct{}     // has a value if there may be pending changes
	known   membership.View   // what the consumer knows without the pending changes
	pending map[string]Change // by server id: the difference between known and the view
}

// addLocked merges changes into the pending ones.
func (w *watcher) addLocked(changes []Change) {
	for _, change := range changes {
		id := change.Server.ServerID
		known, isKnown := w.known.Get(id)
		switch {
		case change.Kind == ServerLeft:
		case isKnown:
			change.Kind = ServerMoved
		default:
			change.Kind = ServerJoined
		}
		if change.Kind == ServerLeft && !isKnown || change.Kind == ServerMoved && known.ClusterBaseURL == change.Server.ClusterBaseURL {
			delete(w.pending, id)
		} else {
			w.pending[id] = change
		}
	}
	select {
	case w.wake <- struct{}{}:
	default: // it has a value already
	}
}

func (s *state) addWatcher() *watcher {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := &watcher{wake: make(chan struct{}, 1), pending: make(map[string]Change)}
	w.addLocked(changesBetween(membership.View{}, s.data.view, ""))
	s.watchers[w] = struct{}{}
	return w
}

func (s *state) removeWatcher(w *watcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.watchers, w)
}

// takeChanges removes and returns the pending changes, in the order of their times.
func (s *state) takeChanges(w *watcher) []Change {
	s.mu.Lock()
	defer s.mu.Unlock()
	changes := slices.SortedFunc(maps.Values(w.pending), func(a, b Change) int {
		return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Server.ServerID, b.Server.ServerID))
	})
	clear(w.pending)
	w.known = s.data.view
	return changes
}

// changesLocked returns the changes of the view since before, and adds them to the pending changes
// of the watchers. It returns none if source is empty, or if neither a watcher nor a hook needs
// them.
func (s *state) changesLocked(before membership.View, source Source) []Change {
	if source == "" || !s.trace.set().hasChanged && len(s.watchers) == 0 {
		return nil
	}
	changes := changesBetween(before, s.data.view, source)
	if len(changes) > 0 {
		for w := range s.watchers {
			w.addLocked(changes)
		}
	}
	return changes
}

// changesBetween returns the changes that lead from one view to another. If source is empty, the
// source of a change follows from its entry.
func changesBetween(before, after membership.View, source Source) []Change {
	var changes []Change
	now := time.Now()
	for old, current := range membership.Diff(before, after) {
		change := Change{Kind: ServerMoved, Source: source, Time: now}
		switch {
		case old == nil:
			change.Kind = ServerJoined
		case current == nil:
			change.Kind, current = ServerLeft, old
		}
		change.Server = Server(current.Server)
		if source == "" {
			change.Source = SourceRegistry
			if current.Announced {
				change.Source = SourceAnnouncement
			}
		}
		changes = append(changes, change)
	}
	return changes
}
