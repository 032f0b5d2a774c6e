package membership

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/mimiktech/cluster/internal/wire"
)

var errDenied = errors.New("denied")

// check parses any address, and denies those whose path is /denied.
func check(s wire.Server) (*url.URL, error) {
	u, err := url.Parse(s.ClusterBaseURL)
	if err == nil && u.Path == "/denied" {
		return nil, errDenied
	}
	return u, err
}

// entry is an entry of a server, with a number of milliseconds as its updatedAt, or none if 0.
// Entries of the same age differ by their addresses.
func entry(id string, updated int, address string) wire.Server {
	s := wire.Server{ServerID: id, ClusterBaseURL: "http://" + address}
	if updated > 0 {
		s.UpdatedAt = time.UnixMilli(int64(updated)).UTC()
	}
	return s
}

func of(servers ...wire.Server) View {
	return New(wire.ItResource{ID: "resource", Type: "mds", Servers: servers}, check, View{})
}

// read describes the servers of a view, in its order.
func read(r View) []string {
	texts := make([]string, r.Len())
	for i, p := range r.Peers() {
		texts[i] = describePeer(p)
	}
	return texts
}

func describePeer(p *Peer) string {
	date := 0
	if !p.LastUpdate().IsZero() {
		date = int(p.LastUpdate().UnixMilli())
	}
	return fmt.Sprintf("%s at %d %s", p.ServerID, date, p.ClusterBaseURL)
}

func TestNewestWins(t *testing.T) {
	date := func(ms int64) time.Time { return time.UnixMilli(ms).UTC() }
	at := func(created, updated time.Time, address string) wire.Server {
		return wire.Server{ServerID: "a", ClusterBaseURL: address, CreatedAt: created, UpdatedAt: updated}
	}
	for _, tt := range []struct {
		name        string
		left, right wire.Server
		want        string // the address of the one that stays
	}{
		{"the right is newer", at(date(1), date(2), "left"), at(date(1), date(3), "right"), "right"},
		{"the left is newer", at(date(1), date(3), "left"), at(date(1), date(2), "right"), "left"},
		{"of one age", at(date(1), date(2), "left"), at(date(1), date(2), "right"), "left"},
		{"newer by a millisecond", at(date(1), date(1000), "left"), at(date(1), date(1001), "right"), "right"},
		{"created later, updated earlier", at(date(1), date(9), "left"), at(date(8), date(8), "right"), "left"},
		{"never updated, but created later", at(date(1), date(2), "left"), at(date(3), time.Time{}, "right"), "right"},
		{"never updated, and created earlier", at(date(2), date(3), "left"), at(date(1), time.Time{}, "right"), "left"},
		{"only the left has a date", at(date(1), date(2), "left"), at(time.Time{}, time.Time{}, "right"), "left"},
		{"only the right has a date", at(time.Time{}, time.Time{}, "left"), at(date(1), date(2), "right"), "right"},
		{"none has a date", at(time.Time{}, time.Time{}, "left"), at(time.Time{}, time.Time{}, "right"), "left"},
		{"one moment in two zones", at(date(1), date(2), "left"), at(date(1), date(2).In(time.FixedZone("east", 3600)), "right"), "left"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for how, r := range map[string]View{
				"merged":   of(tt.left).Merge(of(tt.right)),
				"in a row": of(tt.left, tt.right),
			} {
				if p, ok := r.Get("a"); !ok || p.ClusterBaseURL != tt.want || r.Len() != 1 {
					t.Errorf("%s: got %v, want one, %s", how, read(r), tt.want)
				}
			}
		})
	}
}

func TestReconcileByCase(t *testing.T) {
	for _, tt := range []struct {
		name          string
		before, now   []wire.Server // the view when the request was sent, and at the response
		answered      []wire.Server
		want          []string
		otherResource bool // now is of another resource
	}{
		{
			name:     "nothing happened",
			before:   []wire.Server{entry("a", 1, "a"), entry("b", 1, "b")},
			now:      []wire.Server{entry("a", 1, "a"), entry("b", 1, "b")},
			answered: []wire.Server{entry("a", 5, "a"), entry("c", 4, "c")},
			want:     []string{"a at 5 http://a", "c at 4 http://c"},
		},
		{
			name:     "a server joined that the response lacks",
			now:      []wire.Server{entry("b", 6, "b")},
			answered: []wire.Server{entry("a", 5, "a")},
			want:     []string{"a at 5 http://a", "b at 6 http://b"},
		},
		{
			name:     "one moved, which the response does not show yet",
			before:   []wire.Server{entry("b", 1, "old")},
			now:      []wire.Server{entry("b", 6, "new")},
			answered: []wire.Server{entry("b", 1, "old")},
			want:     []string{"b at 6 http://new"},
		},
		{
			name:     "one was evicted and came back, and the response is from between the two",
			before:   []wire.Server{entry("b", 1, "old")},
			now:      []wire.Server{entry("b", 6, "new")},
			answered: []wire.Server{entry("a", 5, "a")},
			want:     []string{"a at 5 http://a", "b at 6 http://new"},
		},
		{
			name:     "one was removed, which the response does not show yet",
			before:   []wire.Server{entry("a", 1, "a"), entry("b", 1, "b")},
			now:      []wire.Server{entry("a", 1, "a")},
			answered: []wire.Server{entry("a", 5, "a"), entry("b", 1, "b")},
			want:     []string{"a at 5 http://a"},
		},
		{
			name:     "one was removed, but has renewed since",
			before:   []wire.Server{entry("b", 1, "b")},
			answered: []wire.Server{entry("b", 4, "b")},
			want:     []string{"b at 4 http://b"},
		},
		{
			name:     "the clock went back, and one was removed and has registered again",
			before:   []wire.Server{entry("b", 6, "old")},
			answered: []wire.Server{entry("b", 2, "new")},
			want:     []string{"b at 2 http://new"},
		},
		{
			name:     "the clock went back after one was announced",
			before:   []wire.Server{entry("b", 6, "old")},
			now:      []wire.Server{entry("b", 7, "newer")},
			answered: []wire.Server{entry("b", 2, "new")},
			want:     []string{"b at 2 http://new"},
		},
		{
			name:          "the node has changed to another resource",
			before:        []wire.Server{entry("a", 1, "a")},
			now:           []wire.Server{entry("z", 9, "z")},
			answered:      []wire.Server{entry("a", 5, "a")},
			want:          []string{"a at 5 http://a"},
			otherResource: true,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			now := of(tt.now...)
			if tt.otherResource {
				now.id = "another"
			}
			got := read(of(tt.answered...).Reconcile(of(tt.before...), now))
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// An entry at another address that is not newer may be current, if the clock of the registry went
// back.
func TestDisputes(t *testing.T) {
	v := of(entry("a", 5, "a"), entry("b", 5, "b"))
	for name, tt := range map[string]struct {
		announced wire.Server
		want      bool
	}{
		"older":             {entry("b", 4, "elsewhere"), true},
		"of the same date":  {entry("b", 5, "elsewhere"), true},
		"newer":             {entry("b", 6, "elsewhere"), false},
		"older, same place": {entry("b", 4, "b"), false},
		"unknown":           {entry("c", 4, "c"), false},
	} {
		if got := v.Disputes(of(entry("a", 5, "a"), tt.announced)); got != tt.want {
			t.Errorf("%s: got %t, want %t", name, got, tt.want)
		}
	}
}

// entries draws entries of a few servers and a few ages, several for some of the servers.
func entries(name string) *rapid.Generator[[]wire.Server] {
	one := rapid.Custom(func(t *rapid.T) wire.Server {
		id := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"}).Draw(t, "id")
		updated := rapid.IntRange(0, 4).Draw(t, "updated")
		address := rapid.SampledFrom([]string{name + "-1", name + "-2", name + "/denied"}).Draw(t, "address")
		return entry(id, updated, address)
	})
	return rapid.SliceOfN(one, 0, 24) // with more than twelve elements, slices uses another algorithm
}

func draw(t *rapid.T, name string) View { return of(entries(name).Draw(t, name)...) }

// requireSound checks that r is sorted and has no server twice, and that all ways to find a
// server agree.
func requireSound(t *rapid.T, what string, r View) {
	t.Helper()
	if r.Len() != len(r.Peers()) {
		t.Fatalf("%s: Len is %d, Peers are %d", what, r.Len(), len(r.Peers()))
	}
	for i, p := range r.Peers() {
		if i > 0 && r.Peers()[i-1].ServerID >= p.ServerID {
			t.Fatalf("%s: not sorted, or not unique: %v", what, read(r))
		}
		if at, ok := r.Index(p.ServerID); !ok || at != i {
			t.Fatalf("%s: Index of %s is %d, %v; it is at %d", what, p.ServerID, at, ok, i)
		}
		if got, ok := r.Get(p.ServerID); !ok || got != p {
			t.Fatalf("%s: Get of %s is %v, %v", what, p.ServerID, got, ok)
		}
	}
	for _, id := range []string{"", "a", "aa", "b", "c", "d", "e", "f"} {
		_, listed := r.Index(id)
		if want := slices.ContainsFunc(r.Peers(), func(p *Peer) bool { return p.ServerID == id }); listed != want {
			t.Fatalf("%s: Index finds %q: %v, it is there: %v", what, id, listed, want)
		}
		if _, ok := r.Get(id); ok != listed {
			t.Fatalf("%s: Get finds %q: %v, Index: %v", what, id, ok, listed)
		}
	}
}

func requireEqual(t *rapid.T, law string, want, got View) {
	t.Helper()
	if diff := cmp.Diff(read(want), read(got)); diff != "" {
		t.Fatalf("%s does not hold (-want +got)\n%s", law, diff)
	}
}

func TestNewLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		servers := entries("x").Draw(t, "servers")
		given := slices.Clone(servers)
		r := of(servers...)
		requireSound(t, "New", r)

		// The newest entry of each server; the first one if several are the newest.
		newest := make(map[string]wire.Server)
		for _, s := range servers {
			if had, named := newest[s.ServerID]; !named || s.LastUpdate().After(had.LastUpdate()) {
				newest[s.ServerID] = s
			}
		}
		if len(newest) != r.Len() {
			t.Fatalf("%d servers of %d", r.Len(), len(newest))
		}
		for _, p := range r.Peers() {
			if diff := cmp.Diff(newest[p.ServerID], p.Server); diff != "" {
				t.Fatalf("the entry of %s (-want +got)\n%s", p.ServerID, diff)
			}
			if _, err := check(p.Server); (p.Err == nil) != (err == nil) || (p.Base == nil) != (p.Err != nil) {
				t.Fatalf("%s: base %v, err %v", describePeer(p), p.Base, p.Err)
			}
		}
		if diff := cmp.Diff(given, servers); diff != "" {
			t.Fatalf("New changed what it was given (-want +got)\n%s", diff)
		}
		requireEqual(t, "New of Resource is the same", r, New(r.Resource(), check, View{}))
	})
}

// Known addresses are not parsed again, and unchanged peers are not copied.
func TestNewKnown(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		known := draw(t, "known")
		servers := entries("known").Draw(t, "servers")
		announced := rapid.Bool().Draw(t, "announced")
		describe := New
		if announced {
			describe = Announced
		}
		r := describe(wire.ItResource{ID: "resource", Servers: servers}, func(s wire.Server) (*url.URL, error) {
			if p, ok := known.Get(s.ServerID); ok && p.ClusterBaseURL == s.ClusterBaseURL {
				t.Fatalf("the address of %s was checked again", describePeer(p))
			}
			return check(s)
		}, known)
		requireEqual(t, "what is known changes nothing", of(servers...), r)
		for _, p := range r.Peers() {
			if p.Announced != announced {
				t.Fatalf("%s announced: %v, want %v", describePeer(p), p.Announced, announced)
			}
			was, ok := known.Get(p.ServerID)
			if same := ok && !announced && describePeer(was) == describePeer(p); same != (was == p && ok) {
				t.Fatalf("%s is the same entry: %v; it was copied: %v", describePeer(p), same, was != p)
			}
		}
	})
}

func TestMergeLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := draw(t, "a"), draw(t, "b"), draw(t, "c")
		u := a.Merge(b)
		requireSound(t, "Merge", u)
		requireEqual(t, "idempotence", a, a.Merge(a))
		requireEqual(t, "absorption", u, u.Merge(b))
		requireEqual(t, "absorption", u, a.Merge(u))
		requireEqual(t, "associativity", a.Merge(b).Merge(c), a.Merge(b.Merge(c)))
		requireEqual(t, "the empty view on the right", a, a.Merge(of()))
		requireEqual(t, "the empty view on the left", a, of().Merge(a))

		tie := slices.ContainsFunc(a.Peers(), func(p *Peer) bool {
			q, ok := b.Get(p.ServerID)
			return ok && q.LastUpdate().Equal(p.LastUpdate())
		})
		if !tie {
			requireEqual(t, "commutativity", u, b.Merge(a))
		}
		for _, p := range u.Peers() {
			mine, _ := a.Get(p.ServerID)
			theirs, _ := b.Get(p.ServerID)
			if p != mine && p != theirs {
				t.Fatalf("%s is in neither", describePeer(p))
			}
			for _, other := range []*Peer{mine, theirs} {
				if other != nil && other.LastUpdate().After(p.LastUpdate()) {
					t.Fatalf("%s stays, %s is newer", describePeer(p), describePeer(other))
				}
			}
		}
		for _, p := range slices.Concat(a.Peers(), b.Peers()) {
			if _, ok := u.Get(p.ServerID); !ok {
				t.Fatalf("%s got lost", describePeer(p))
			}
		}
	})
}

func TestWithoutLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := draw(t, "r")
		ids := rapid.SampledFrom([]string{"", "a", "b", "c", "d", "e", "f"})
		x, y := ids.Draw(t, "x"), ids.Draw(t, "y")
		w := r.Without(x)
		requireSound(t, "Without", w)
		want := slices.DeleteFunc(slices.Clone(r.Peers()), func(p *Peer) bool { return p.ServerID == x })
		if !slices.Equal(want, w.Peers()) {
			t.Fatalf("without %q: got %v", x, read(w))
		}
		requireEqual(t, "idempotence", w, w.Without(x))
		requireEqual(t, "commutativity", w.Without(y), r.Without(y).Without(x))
		if p, ok := r.Get(x); ok {
			requireEqual(t, "joining it again", r, w.Merge(View{peers: []*Peer{p}}))
		}
		only := r.Select(x)
		requireSound(t, "Only", only)
		requireEqual(t, "those and the others", r, w.Merge(only))
		requireEqual(t, "no server", only.Without(x), w.Select(x))
		c := r.Allowed()
		requireSound(t, "Callable", c)
		for _, p := range r.Peers() {
			if _, ok := c.Get(p.ServerID); ok != (p.Err == nil) {
				t.Fatalf("%s is callable: %v", describePeer(p), ok)
			}
		}
	})
}

func TestReconcileLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		answered, before, now := draw(t, "answered"), draw(t, "before"), draw(t, "now")
		got := answered.Reconcile(before, now)
		requireSound(t, "Reconcile", got)
		requireEqual(t, "nothing happened", answered, answered.Reconcile(before, before))
		requireEqual(t, "the view was empty, so all servers have joined", answered.Merge(now), answered.Reconcile(of(), now))
		requireEqual(t, "the view was empty, without a resource", answered.Merge(now), answered.Reconcile(View{}, now))
		requireEqual(t, "another resource was known", answered, answered.Reconcile(View{id: "another", peers: before.peers}, now))
		requireEqual(t, "another resource is known", answered, answered.Reconcile(before, View{id: "another", peers: now.peers}))

		for _, id := range []string{"a", "b", "c", "d", "e"} {
			mit, listed := answered.Get(id)
			was, wasThere := before.Get(id)
			is, isThere := now.Get(id)
			var want *Peer
			switch {
			// The registry's clock went back.
			case listed && wasThere && mit.LastUpdate().Before(was.LastUpdate()) && !mit.LastUpdate().IsZero():
				want = mit
			case wasThere && !isThere: // removed meanwhile: the registry needs a newer entry
				if listed && mit.LastUpdate().After(was.LastUpdate()) {
					want = mit
				}
			case isThere && (!wasThere || is.LastUpdate().After(was.LastUpdate())): // joined or came back
				if want = is; listed && !is.LastUpdate().After(mit.LastUpdate()) {
					want = mit
				}
			case listed: // otherwise as listed by the registry
				want = mit
			}
			if p, _ := got.Get(id); p != want {
				t.Fatalf("%s: got %v, want %v", id, p, want)
			}
		}
	})
}

// No method changes the view it is called on, or a view that was made from it before.
func TestNothingChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		made := []View{draw(t, "first"), draw(t, "second")}
		texts := [][]string{read(made[0]), read(made[1])}
		some := rapid.Custom(func(t *rapid.T) View { return rapid.SampledFrom(made).Draw(t, "of") })
		steps := rapid.IntRange(1, 12).Draw(t, "steps")
		for range steps {
			r := some.Draw(t, "r")
			var next View
			switch rapid.IntRange(0, 4).Draw(t, "operation") {
			case 0:
				next = r.Merge(some.Draw(t, "o"))
			case 1:
				next = r.Without(rapid.SampledFrom([]string{"a", "c", "e"}).Draw(t, "id"))
			case 2:
				next = r.Allowed()
			case 3:
				next = r.Reconcile(some.Draw(t, "before"), some.Draw(t, "now"))
			case 4:
				next = New(r.Resource(), check, some.Draw(t, "known"))
			}
			requireSound(t, "what was made", next)
			made, texts = append(made, next), append(texts, read(next))
			for i, r := range made {
				if diff := cmp.Diff(texts[i], read(r)); diff != "" {
					t.Fatalf("a view changed (-was +is)\n%s", diff)
				}
			}
		}
	})
}

// Resource has all fields and servers that the view was made of.
func TestResource(t *testing.T) {
	it := wire.ItResource{
		ID: "resource", Type: "mds", PublicBaseURL: "http://public",
		Servers: []wire.Server{{ServerID: "a", ClusterBaseURL: "http://a", Raw: json.RawMessage(`{"serverId":"a","clusterBaseUrl":"http://a","shoe":43}`)}},
		Extra:   map[string]json.RawMessage{"color": json.RawMessage(`"red"`)},
	}
	r := New(it, check, View{})
	if diff := cmp.Diff(it, r.Resource()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	others := of(entry("b", 1, "b"))
	others.id, others.typ = "other", "other"
	for name, next := range map[string]View{
		"Merge": r.Merge(others), "Without": r.Without("a"), "Allowed": r.Allowed(), "Reconcile": r.Reconcile(of(), of(entry("b", 1, "b"))),
		"Retain": r.Retain(others, time.Time{}, time.Time{}.Add(1)),
	} {
		got := next.Resource()
		got.Servers = it.Servers
		if diff := cmp.Diff(it, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
	}
}

// A retained server is in the view but not in Resource, until the registry lists it again or it
// expires.
func TestRetain(t *testing.T) {
	at := func(minute int) time.Time { return time.UnixMilli(0).Add(time.Duration(minute) * time.Minute) }
	requireRead := func(what string, r View, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, read(r)); diff != "" {
			t.Errorf("%s (-want +got)\n%s", what, diff)
		}
	}
	known := of(entry("a", 1, "a"), entry("b", 9, "b"), entry("c", 1, "c"))
	answer := of(entry("b", 2, "b2"), entry("d", 2, "d"))
	requireRead("nothing to retain", answer.Retain(known, at(0), time.Time{}), "b at 2 http://b2", "d at 2 http://d")
	r := answer.Retain(known, at(0), at(60))
	requireRead("retained", r, "a at 1 http://a", "b at 2 http://b2", "c at 1 http://c", "d at 2 http://d")
	if diff := cmp.Diff(answer.Resource(), r.Resource()); diff != "" {
		t.Errorf("the resource (-want +got)\n%s", diff)
	}
	if a, _ := known.Get("a"); !a.RetainUntil.IsZero() {
		t.Error("Retain changed the peer")
	}
	it := wire.ItResource{ID: "resource", Servers: []wire.Server{entry("a", 1, "a"), entry("b", 2, "b2")}}
	next := New(it, check, r) // in the next response, d has left
	requireRead("still retained", next.Retain(r, at(59), time.Time{}), "a at 1 http://a", "b at 2 http://b2", "c at 1 http://c")
	requireRead("expired", next.Retain(r, at(60), time.Time{}), "a at 1 http://a", "b at 2 http://b2")
	requireRead("lost once more", next.Retain(r, at(60), at(120)), "a at 1 http://a", "b at 2 http://b2", "d at 2 http://d")
	if a, _ := next.Get("a"); !a.RetainUntil.IsZero() {
		t.Error("the registry lists it again, and it is still retained")
	}
	it.ID = "another"
	requireRead("of another resource", New(it, check, r).Retain(r, at(0), at(60)), "a at 1 http://a", "b at 2 http://b2")
}

func TestZeroView(t *testing.T) {
	var zero View
	if zero.Len() != 0 || zero.ID() != "" || len(zero.Without("a").Peers()) != 0 {
		t.Error("the zero view is not empty")
	}
	joined := zero.Merge(of(entry("a", 1, "a")))
	if diff := cmp.Diff([]string{"a at 1 http://a"}, read(joined)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestDiff(t *testing.T) {
	before := of(entry("a", 1, "a"), entry("b", 1, "b"), entry("c", 1, "c"), entry("e", 1, "e"))
	after := of(entry("0", 1, "0"), entry("b", 2, "b"), entry("c", 1, "c2"), entry("d", 1, "d"), entry("e", 1, "e"), entry("f", 1, "f"))
	list := func(before, after View) (texts []string) {
		for old, current := range Diff(before, after) {
			switch {
			case old == nil:
				texts = append(texts, "+"+current.ServerID)
			case current == nil:
				texts = append(texts, "-"+old.ServerID)
			default:
				texts = append(texts, old.ClusterBaseURL+" "+current.ClusterBaseURL)
			}
		}
		return texts
	}
	for _, tt := range []struct {
		before, after View
		want          []string
	}{
		{before, after, []string{"+0", "-a", "http://c http://c2", "+d", "+f"}},
		{after, before, []string{"-0", "+a", "http://c2 http://c", "-d", "-f"}},
		{View{}, of(entry("a", 1, "a")), []string{"+a"}},
		{of(entry("a", 1, "a")), View{}, []string{"-a"}},
		{before, before, nil},
	} {
		if diff := cmp.Diff(tt.want, list(tt.before, tt.after)); diff != "" {
			t.Errorf("from %q to %q (-want +got):\n%s", read(tt.before), read(tt.after), diff)
		}
	}
	for range Diff(before, after) {
		break // without a panic
	}
}
