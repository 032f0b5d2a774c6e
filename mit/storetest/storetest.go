// Package storetest checks that a [mit.Store] keeps its promises.
package storetest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
)

// A Clock is the time that a store goes by. The zero Clock is that of the machine.
type Options struct {
	// In runs a test where the store's time passes; nil calls it. For a store that goes by
	// time.Now, [testing/synctest.Test] makes it pass at once. The store is made inside.
	Run func(t *testing.T, test func(t *testing.T))
	// Life is the life that the tests give to entries which are to expire: at least what the
	// store can keep to; 4 seconds by default. The tests take half of it for safely alive, so
	// it must also outlast what calls take.
	TTL time.Duration
	// Late is how long after its life an entry may still be there; 0 by default.
	ExpirySlack time.Duration
}

// Run runs all tests, each with a store of its own that new makes empty. They use types and
// ids that look alike in every test.
func Run(t *testing.T, newStore func(t *testing.T) mit.Store, clock Options) {
	t.Helper()
	if clock.TTL == 0 {
		clock.TTL = 4 * time.Second
	}
	if clock.Run == nil {
		clock.Run = func(t *testing.T, test func(*testing.T)) { t.Helper(); test(t) }
	}
	for _, test := range []struct {
		name string
		run  func(*suite)
	}{
		{"Put", (*suite).put},
		{"Renew", (*suite).renew},
		{"RenewAtOneMoment", (*suite).renewAtOneMoment},
		{"Sorted", (*suite).sorted},
		{"TypesApart", (*suite).typesApart},
		{"OddNames", (*suite).oddNames},
		{"PublicBaseURL", (*suite).publicBaseURL},
		{"Get", (*suite).get},
		{"Expire", (*suite).expire},
		{"RenewedOutlivesFirstLife", (*suite).outlive},
		{"ShorterLife", (*suite).shorterLife},
		{"AnewAfterExpiry", (*suite).anewAfterExpiry},
		{"Delete", (*suite).delete},
		{"AnewAfterDelete", (*suite).anewAfterDelete},
		{"DeleteIfUnmodifiedSince", (*suite).deleteUnless},
		{"DeleteUnlessNotThere", (*suite).deleteUnlessNotThere},
		{"Copies", (*suite).copies},
		{"FirstsAtOnce", (*suite).firstsAtOnce},
		{"RenewOrDelete", (*suite).renewOrDelete},
	} {
		t.Run(test.name, func(t *testing.T) {
			clock.Run(t, func(t *testing.T) {
				t.Helper()
				test.run(&suite{T: t, Store: newStore(t), clock: clock})
			})
		})
	}
}

// A suite is one test and its store; its methods fail the test where a call fails.
type suite struct {
	*testing.T
	mit.Store
	clock Options
}

const long = time.Hour

func registration(typ, serverID string) mit.Registration {
	return mit.Registration{
		Type:           typ,
		ServerID:       serverID,
		Location:       json.RawMessage(`{"type":"Point","coordinates":[2.35,48.86]}`),
		PublicBaseURL:  "https://example.com/" + typ + "/v1",
		ClusterBaseURL: "http://10.0.0.1:8080/" + typ + "/v1",
	}
}

func (s *suite) join(typ, serverID string, life time.Duration) mit.Resource {
	s.Helper()
	res, err := s.Put(s.Context(), registration(typ, serverID), life)
	if err != nil {
		s.Fatalf("Put(%q, %q): %v", typ, serverID, err)
	}
	return res
}

func (s *suite) entry(res mit.Resource, serverID string) cluster.Server {
	s.Helper()
	i := slices.IndexFunc(res.Servers, func(e cluster.Server) bool { return e.ServerID == serverID })
	if i < 0 {
		s.Fatalf("server %q is not among %v", serverID, ids(res))
	}
	return res.Servers[i]
}

// servers are the ids of the live servers; a store may have forgotten a resource without any.
func (s *suite) servers(typ string) []string {
	s.Helper()
	res, err := s.Get(s.Context(), mit.ResourceID(typ))
	if err != nil && !errors.Is(err, mit.ErrNotFound) {
		s.Fatalf("Get(%q): %v", typ, err)
	}
	return ids(res)
}

func (s *suite) want(typ string, want ...string) {
	s.Helper()
	if got := s.servers(typ); !slices.Equal(got, want) {
		s.Errorf("servers of %q: %q, want %q", typ, got, want)
	}
}

func (s *suite) leave(typ, serverID string) {
	s.Helper()
	if err := s.Delete(s.Context(), mit.ResourceID(typ), serverID); err != nil {
		s.Errorf("Delete(%q, %q): %v", typ, serverID, err)
	}
}

func (s *suite) leaveUnless(typ, serverID string, date time.Time) *cluster.Server {
	s.Helper()
	newer, err := s.DeleteIfUnmodifiedSince(s.Context(), mit.ResourceID(typ), serverID, date)
	if err != nil {
		s.Fatalf("DeleteIfUnmodifiedSince(%q, %q): %v", typ, serverID, err)
	}
	return newer
}

func ids(res mit.Resource) []string {
	var ids []string
	for _, e := range res.Servers {
		ids = append(ids, e.ServerID)
	}
	return ids
}

func same(a, b cluster.Server) bool {
	return a.ServerID == b.ServerID && a.ClusterBaseURL == b.ClusterBaseURL && bytes.Equal(a.Location, b.Location) &&
		a.CreatedAt.Equal(b.CreatedAt) && a.UpdatedAt.Equal(b.UpdatedAt) && bytes.Equal(a.Raw, b.Raw)
}

func (s *suite) put() {
	reg := registration("mds", "a")
	res := s.join("mds", "a", long)
	if res.ID != mit.ResourceID("mds") || res.Type != "mds" || res.PublicBaseURL != reg.PublicBaseURL || len(res.Servers) != 1 {
		s.Fatalf("Put = %+v", res)
	}
	e := res.Servers[0]
	if e.ServerID != "a" || e.ClusterBaseURL != reg.ClusterBaseURL || !bytes.Equal(e.Location, reg.Location) || e.Raw != nil {
		s.Errorf("entry = %+v, registered as %+v", e, reg)
	}
	if e.CreatedAt.IsZero() || !e.CreatedAt.Equal(e.UpdatedAt) {
		s.Errorf("a new entry has createdAt %v, updatedAt %v", e.CreatedAt, e.UpdatedAt)
	}
	if !e.UpdatedAt.Equal(e.UpdatedAt.Truncate(time.Millisecond)) {
		s.Errorf("updatedAt %v is finer than milliseconds", e.UpdatedAt)
	}
}

func (s *suite) renew() {
	first := s.entry(s.join("mds", "a", long), "a")
	time.Sleep(2 * time.Millisecond)
	moved := registration("mds", "a")
	moved.ClusterBaseURL, moved.Location = "http://10.0.0.9:8080/mds/v1", nil
	res, err := s.Put(s.Context(), moved, long)
	if err != nil {
		s.Fatal(err)
	}
	second := s.entry(res, "a")
	if len(res.Servers) != 1 || second.ClusterBaseURL != moved.ClusterBaseURL || second.Location != nil {
		s.Errorf("renewed = %+v, registered as %+v", res, moved)
	}
	if !second.CreatedAt.Equal(first.CreatedAt) {
		s.Errorf("createdAt went from %v to %v", first.CreatedAt, second.CreatedAt)
	}
	if !second.UpdatedAt.After(first.UpdatedAt) {
		s.Errorf("updatedAt went from %v to %v", first.UpdatedAt, second.UpdatedAt)
	}
}

func (s *suite) renewAtOneMoment() {
	last := s.entry(s.join("mds", "a", long), "a").UpdatedAt
	for range 20 {
		next := s.entry(s.join("mds", "a", long), "a").UpdatedAt
		if next.Sub(last) < time.Millisecond {
			s.Fatalf("updatedAt went from %v to %v", last, next)
		}
		last = next
	}
}

func (s *suite) sorted() {
	want := []string{"B", "a", "b", "c", "d"}
	for _, id := range []string{"c", "a", "d", "B", "b", "a"} {
		s.join("mds", id, long)
	}
	s.want("mds", want...)
	if got := ids(s.join("mds", "c", long)); !slices.Equal(got, want) {
		s.Errorf("Put returned %q, want %q", got, want)
	}
}

func (s *suite) typesApart() {
	s.join("mds", "a", long)
	s.join("mds2", "a", long)
	s.join("mds/", "b", long)
	s.leave("mds2", "a")
	s.want("mds", "a")
	s.want("mds2")
	s.want("mds/", "b")
}

// oddNames are names that a store may have to escape.
func (s *suite) oddNames() {
	names := []string{"a", "a/", "a/b", "a b", "a@b", "é", "*", "..", "a\x00", `"`}
	slices.Sort(names)
	for _, id := range names {
		s.join("odd /é*", id, long)
	}
	s.want("odd /é*", names...)
	for _, id := range names {
		s.leave("odd /é*", id)
	}
	s.want("odd /é*")
}

func (s *suite) publicBaseURL() {
	reg := registration("mds", "a")
	for _, test := range []struct{ named, want string }{
		{"https://one.example.com", "https://one.example.com"},
		{"https://two.example.com", "https://two.example.com"},
		{"", "https://two.example.com"},
	} {
		reg.PublicBaseURL = test.named
		res, err := s.Put(s.Context(), reg, long)
		if err != nil {
			s.Fatal(err)
		}
		if res.PublicBaseURL != test.want {
			s.Errorf("after %q the PublicBaseURL is %q, want %q", test.named, res.PublicBaseURL, test.want)
		}
	}
}

func (s *suite) get() {
	if _, err := s.Get(s.Context(), mit.ResourceID("mds")); !errors.Is(err, mit.ErrNotFound) {
		s.Errorf("Get of nothing: %v, want ErrNotFound", err)
	}
	if _, err := s.Get(s.Context(), ""); !errors.Is(err, mit.ErrNotFound) {
		s.Errorf("Get of no id: %v, want ErrNotFound", err)
	}
	s.join("mds", "b", long)
	put := s.join("mds", "a", long)
	got, err := s.Get(s.Context(), put.ID)
	if err != nil {
		s.Fatal(err)
	}
	if got.ID != put.ID || got.Type != put.Type || got.PublicBaseURL != put.PublicBaseURL || !slices.EqualFunc(got.Servers, put.Servers, same) {
		s.Errorf("Get = %+v, Put returned %+v", got, put)
	}
}

func (s *suite) expire() {
	s.join("mds", "short", s.clock.TTL)
	s.join("mds", "long", long)
	s.want("mds", "long", "short")
	time.Sleep(s.clock.TTL/2 - s.clock.TTL/10)
	s.want("mds", "long", "short")
	time.Sleep(s.clock.TTL/2 + s.clock.TTL/10 + s.clock.ExpirySlack)
	s.want("mds", "long")
	if got := ids(s.join("mds", "other", long)); !slices.Equal(got, []string{"long", "other"}) {
		s.Errorf("Put returned %q, with an expired server", got)
	}
}

func (s *suite) outlive() {
	first := s.entry(s.join("mds", "a", s.clock.TTL), "a")
	for range 3 {
		time.Sleep(s.clock.TTL / 2)
		s.join("mds", "a", s.clock.TTL)
	}
	s.want("mds", "a")
	if e := s.entry(s.join("mds", "a", s.clock.TTL), "a"); !e.CreatedAt.Equal(first.CreatedAt) {
		s.Errorf("createdAt went from %v to %v", first.CreatedAt, e.CreatedAt)
	}
	time.Sleep(s.clock.TTL + s.clock.ExpirySlack)
	s.want("mds")
}

// shorterLife is what a registry asks for once it was given a shorter lease.
func (s *suite) shorterLife() {
	s.join("mds", "a", long)
	s.join("mds", "a", s.clock.TTL)
	time.Sleep(s.clock.TTL + s.clock.ExpirySlack)
	s.want("mds")
	s.join("mds", "b", s.clock.TTL)
	s.join("mds", "b", long)
	time.Sleep(s.clock.TTL + s.clock.ExpirySlack)
	s.want("mds", "b")
}

func (s *suite) anewAfterExpiry() {
	first := s.join("mds", "a", s.clock.TTL)
	time.Sleep(s.clock.TTL + s.clock.ExpirySlack)
	second := s.join("mds", "a", long)
	if first.ID != second.ID {
		s.Errorf("the id went from %s to %s", first.ID, second.ID)
	}
	if e := s.entry(second, "a"); !e.CreatedAt.Equal(e.UpdatedAt) || !e.CreatedAt.After(s.entry(first, "a").CreatedAt) {
		s.Errorf("the entry did not start anew: %+v", e)
	}
}

func (s *suite) delete() {
	s.join("mds", "a", long)
	s.join("mds", "b", long)
	s.leave("mds", "a")
	s.want("mds", "b")
	s.leave("mds", "a")
	s.leave("mds", "never there")
	s.leave("no such type", "a")
	s.want("mds", "b")
	s.leave("mds", "b")
	s.want("mds")
}

func (s *suite) anewAfterDelete() {
	first := s.join("mds", "a", s.clock.TTL)
	s.leave("mds", "a")
	time.Sleep(2 * time.Millisecond)
	second := s.join("mds", "a", long)
	if first.ID != second.ID {
		s.Errorf("the id went from %s to %s", first.ID, second.ID)
	}
	if e := s.entry(second, "a"); !e.CreatedAt.Equal(e.UpdatedAt) || !e.CreatedAt.After(s.entry(first, "a").CreatedAt) {
		s.Errorf("the entry did not start anew: %+v", e)
	}
	time.Sleep(s.clock.TTL + s.clock.ExpirySlack) // the first one's life is nothing to the second
	s.want("mds", "a")
}

func (s *suite) deleteUnless() {
	s.join("mds", "b", long)
	first := s.entry(s.join("mds", "a", long), "a")
	second := s.entry(s.join("mds", "a", long), "a")
	for _, date := range []time.Time{{}, first.UpdatedAt, second.UpdatedAt.Add(-time.Nanosecond)} {
		newer := s.leaveUnless("mds", "a", date)
		if newer == nil {
			s.Fatalf("deleted with date %v, though updated at %v", date, second.UpdatedAt)
		}
		if !same(*newer, second) {
			s.Errorf("newer entry = %+v, want %+v", *newer, second)
		}
	}
	s.want("mds", "a", "b")
	zone := time.FixedZone("", 2*60*60)
	if newer := s.leaveUnless("mds", "a", second.UpdatedAt.In(zone)); newer != nil {
		s.Errorf("not deleted with its own date: %+v", *newer)
	}
	s.want("mds", "b")
	b := s.entry(s.join("mds", "b", long), "b")
	if newer := s.leaveUnless("mds", "b", b.UpdatedAt.Add(time.Hour)); newer != nil {
		s.Errorf("not deleted with a later date: %+v", *newer)
	}
	s.want("mds")
}

func (s *suite) deleteUnlessNotThere() {
	if newer := s.leaveUnless("no such type", "a", time.Time{}); newer != nil {
		s.Errorf("newer entry = %+v in no resource", *newer)
	}
	s.join("mds", "a", s.clock.TTL)
	if newer := s.leaveUnless("mds", "b", time.Time{}); newer != nil {
		s.Errorf("newer entry = %+v of no server", *newer)
	}
	time.Sleep(s.clock.TTL + s.clock.ExpirySlack)
	if newer := s.leaveUnless("mds", "a", time.Time{}); newer != nil {
		s.Errorf("newer entry = %+v of an expired server", *newer)
	}
}

func (s *suite) copies() {
	reg := registration("mds", "a")
	want := bytes.Clone(reg.Location)
	first, err := s.Put(s.Context(), reg, long)
	if err != nil {
		s.Fatal(err)
	}
	s.join("mds", "b", long)
	reg.Location[0] = '!'
	first.Servers[0].Location[1] = '!'
	first.Servers[0].ServerID = "changed"
	second, err := s.Get(s.Context(), first.ID)
	if err != nil {
		s.Fatal(err)
	}
	_ = append(second.Servers[0].Location, '!', '!')
	newer := s.leaveUnless("mds", "b", time.Time{})
	newer.Location[0] = '!'
	for _, id := range []string{"a", "b"} {
		third := s.join("mds", "c", long)
		if e := s.entry(third, id); !bytes.Equal(e.Location, want) {
			s.Errorf("the location of %s has become %s", id, e.Location)
		}
		if e := s.entry(second, id); !bytes.Equal(e.Location, want) {
			s.Errorf("the location of %s in an older answer has become %s", id, e.Location)
		}
	}
}

func (s *suite) firstsAtOnce() {
	const n = 32
	resources := make([]mit.Resource, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			resources[i], errs[i] = s.Put(s.Context(), registration("mds", fmt.Sprintf("%02d", i)), long)
		})
	}
	wg.Wait()
	sizes := make([]int, n)
	for i, res := range resources {
		if errs[i] != nil {
			s.Fatal(errs[i])
		}
		if res.ID != resources[0].ID {
			s.Errorf("two resources: %s and %s", res.ID, resources[0].ID)
		}
		s.entry(res, fmt.Sprintf("%02d", i))
		sizes[i] = len(res.Servers)
	}
	if len(s.servers("mds")) != n {
		s.Errorf("%d servers registered, the store has %q", n, s.servers("mds"))
	}
	// Each Put is one step, so somebody saw them all.
	if slices.Max(sizes) != n {
		s.Errorf("of %d servers registering at once none saw more than %d", n, slices.Max(sizes))
	}
}

// renewOrDelete has a server renew while another wants it gone: either the renewal came
// first, and the delete says so, or the delete did, and the renewal started anew.
func (s *suite) renewOrDelete() {
	for range 50 {
		before := s.entry(s.join("mds", "a", long), "a")
		var (
			wg    sync.WaitGroup
			after mit.Resource
			newer *cluster.Server
			errs  [2]error
		)
		wg.Go(func() { after, errs[0] = s.Put(s.Context(), registration("mds", "a"), long) })
		wg.Go(func() {
			newer, errs[1] = s.DeleteIfUnmodifiedSince(s.Context(), mit.ResourceID("mds"), "a", before.UpdatedAt)
		})
		wg.Wait()
		if err := errors.Join(errs[:]...); err != nil {
			s.Fatal(err)
		}
		renewed := s.entry(after, "a")
		switch {
		case newer != nil && (!same(*newer, renewed) || !renewed.CreatedAt.Equal(before.CreatedAt)):
			s.Fatalf("renewed %+v, the delete saw %+v", renewed, *newer)
		case newer == nil && !renewed.CreatedAt.Equal(renewed.UpdatedAt):
			s.Fatalf("the delete says gone, yet %+v only renewed", renewed)
		case !slices.Equal(s.servers("mds"), []string{"a"}):
			s.Fatalf("a renewed server is gone: %+v", renewed)
		}
		s.leave("mds", "a")
	}
}
