// Package storetest tests that a [mit.Store] keeps the guarantees of its interface.
//
//	func TestStore(t *testing.T) {
//		storetest.Run(t, func(t *testing.T) mit.Store { return newStore(t) }, storetest.Options{})
//	}
package storetest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
)

// Options describe the clock of a store. The zero Options suit a store that expires entries by
// the clock of this machine, to the millisecond.
type Options struct {
	// Run runs one test; nil calls it directly. A store that uses only package time can pass
	// [testing/synctest.Test], which makes waiting free. The store is created inside Run.
	Run func(t *testing.T, test func(t *testing.T))
	// TTL is the TTL of entries whose expiry a test waits for; 4 seconds by default. The store must be
	// able to keep it exactly. It must be much longer than a few calls take: tests expect an entry to
	// be alive after half of it.
	TTL time.Duration
	// ExpirySlack is how long an entry may remain listed after its TTL; 0 by default.
	ExpirySlack time.Duration
}

// Run runs all tests, each with its own empty store from newStore. All tests use the same types
// and server ids.
func Run(t *testing.T, newStore func(t *testing.T) mit.Store, opts Options) {
	t.Helper()
	if opts.TTL == 0 {
		opts.TTL = 4 * time.Second
	}
	if opts.Run == nil {
		opts.Run = func(t *testing.T, test func(*testing.T)) { t.Helper(); test(t) }
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			opts.Run(t, func(t *testing.T) {
				t.Helper()
				test.run(&suite{T: t, Store: newStore(t), opts: opts})
			})
		})
	}
}

var tests = []struct { //nolint:gochecknoglobals // a table
	name string
	run  func(*suite)
}{
	{"Put", (*suite).put},
	{"Renew", (*suite).renew},
	{"RenewWithinOneMillisecond", (*suite).renewWithinOneMillisecond},
	{"ServersAreSorted", (*suite).serversAreSorted},
	{"TypesAreSeparate", (*suite).typesAreSeparate},
	{"UnusualNames", (*suite).unusualNames},
	{"PublicBaseURL", (*suite).publicBaseURL},
	{"Get", (*suite).get},
	{"List", (*suite).list},
	{"Expire", (*suite).expire},
	{"RenewalExtendsTTL", (*suite).renewalExtendsTTL},
	{"RenewalChangesTTL", (*suite).renewalChangesTTL},
	{"NewEntryAfterExpiry", (*suite).newEntryAfterExpiry},
	{"Delete", (*suite).delete},
	{"NewEntryAfterDelete", (*suite).newEntryAfterDelete},
	{"RenewalOf", (*suite).renewalOf},
	{"DeleteIfUnmodifiedSince", (*suite).deleteIfUnmodifiedSince},
	{"DeleteIfUnmodifiedSinceOfMissing", (*suite).deleteIfUnmodifiedSinceOfMissing},
	{"ListsAreCopies", (*suite).listsAreCopies},
	{"RawIsEncodedEntry", (*suite).rawIsEncodedEntry},
	{"VersionAndReplaced", (*suite).versionAndReplaced},
	{"ConcurrentFirstPuts", (*suite).concurrentFirstPuts},
	{"ConcurrentRenewalAndDelete", (*suite).concurrentRenewalAndDelete},
}

// A suite is one test and its store. Its helpers fail the test if a call fails.
type suite struct {
	*testing.T
	mit.Store
	opts Options
}

const longTTL = time.Hour

func registration(typ, serverID string) mit.Registration {
	return mit.Registration{
		Type:           typ,
		ServerID:       serverID,
		Location:       json.RawMessage(`{"type":"Point","coordinates":[2.35,48.86]}`),
		PublicBaseURL:  "https://example.com/" + typ + "/v1",
		ClusterBaseURL: "http://10.0.0.1:8080/" + typ + "/v1",
	}
}

func (s *suite) register(typ, serverID string, ttl time.Duration) mit.Resource {
	s.Helper()
	res, err := s.Put(s.Context(), registration(typ, serverID), ttl)
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

// servers returns the ids of the live servers. The store may have dropped a resource without any.
func (s *suite) servers(typ string) []string {
	s.Helper()
	res, err := s.Get(s.Context(), mit.ResourceID(typ))
	if err != nil && !errors.Is(err, mit.ErrNotFound) {
		s.Fatalf("Get(%q): %v", typ, err)
	}
	return ids(res)
}

func (s *suite) checkServers(typ string, want ...string) {
	s.Helper()
	if got := s.servers(typ); !slices.Equal(got, want) {
		s.Errorf("servers of %q: %q, want %q", typ, got, want)
	}
}

func (s *suite) remove(typ, serverID string) {
	s.Helper()
	if err := s.Delete(s.Context(), mit.ResourceID(typ), serverID); err != nil {
		s.Errorf("Delete(%q, %q): %v", typ, serverID, err)
	}
}

func (s *suite) removeIf(typ, serverID string, date time.Time) *cluster.Server {
	s.Helper()
	newer, err := s.DeleteIfUnmodifiedSince(s.Context(), mit.ResourceID(typ), serverID, date)
	if err != nil {
		s.Fatalf("DeleteIfUnmodifiedSince(%q, %q): %v", typ, serverID, err)
	}
	return newer
}

func (s *suite) waitForExpiry() { time.Sleep(s.opts.TTL + s.opts.ExpirySlack) }

func ids(res mit.Resource) []string {
	var ids []string
	for _, e := range res.Servers {
		ids = append(ids, e.ServerID)
	}
	return ids
}

// equal compares two entries except for Raw, which a store may leave out.
func equal(a, b cluster.Server) bool {
	return a.ServerID == b.ServerID && a.ClusterBaseURL == b.ClusterBaseURL && bytes.Equal(a.Location, b.Location) &&
		a.CreatedAt.Equal(b.CreatedAt) && a.UpdatedAt.Equal(b.UpdatedAt)
}

func (s *suite) put() {
	reg := registration("mds", "a")
	res := s.register("mds", "a", longTTL)
	if res.ID != mit.ResourceID("mds") || res.Type != "mds" || res.PublicBaseURL != reg.PublicBaseURL || len(res.Servers) != 1 {
		s.Fatalf("Put = %+v", res)
	}
	e := res.Servers[0]
	if e.ServerID != "a" || e.ClusterBaseURL != reg.ClusterBaseURL || !bytes.Equal(e.Location, reg.Location) {
		s.Errorf("entry = %+v, registration %+v", e, reg)
	}
	if e.CreatedAt.IsZero() || !e.CreatedAt.Equal(e.UpdatedAt) {
		s.Errorf("new entry: createdAt %v, updatedAt %v", e.CreatedAt, e.UpdatedAt)
	}
	if !e.UpdatedAt.Equal(e.UpdatedAt.Truncate(time.Millisecond)) {
		s.Errorf("updatedAt %v has a precision below a millisecond", e.UpdatedAt)
	}
}

func (s *suite) renew() {
	first := s.entry(s.register("mds", "a", longTTL), "a")
	time.Sleep(2 * time.Millisecond)
	changed := registration("mds", "a")
	changed.ClusterBaseURL, changed.Location = "http://10.0.0.9:8080/mds/v1", nil
	res, err := s.Put(s.Context(), changed, longTTL)
	if err != nil {
		s.Fatal(err)
	}
	second := s.entry(res, "a")
	if len(res.Servers) != 1 || second.ClusterBaseURL != changed.ClusterBaseURL || second.Location != nil {
		s.Errorf("renewed entry = %+v, registration %+v", res, changed)
	}
	if !second.CreatedAt.Equal(first.CreatedAt) {
		s.Errorf("createdAt changed from %v to %v", first.CreatedAt, second.CreatedAt)
	}
	if !second.UpdatedAt.After(first.UpdatedAt) {
		s.Errorf("updatedAt changed from %v to %v", first.UpdatedAt, second.UpdatedAt)
	}
}

func (s *suite) renewWithinOneMillisecond() {
	last := s.entry(s.register("mds", "a", longTTL), "a").UpdatedAt
	for range 20 {
		next := s.entry(s.register("mds", "a", longTTL), "a").UpdatedAt
		if next.Sub(last) < time.Millisecond {
			s.Fatalf("updatedAt changed from %v to %v", last, next)
		}
		last = next
	}
}

func (s *suite) serversAreSorted() {
	want := []string{"B", "a", "b", "c", "d"}
	for _, id := range []string{"c", "a", "d", "B", "b", "a"} {
		s.register("mds", id, longTTL)
	}
	s.checkServers("mds", want...)
	if got := ids(s.register("mds", "c", longTTL)); !slices.Equal(got, want) {
		s.Errorf("Put returned %q, want %q", got, want)
	}
}

func (s *suite) typesAreSeparate() {
	s.register("mds", "a", longTTL)
	s.register("mds2", "a", longTTL)
	s.register("mds/", "b", longTTL)
	s.remove("mds2", "a")
	s.checkServers("mds", "a")
	s.checkServers("mds2")
	s.checkServers("mds/", "b")
}

// unusualNames tests names that a store may have to escape.
func (s *suite) unusualNames() {
	names := []string{"a", "a/", "a/b", "a b", "a@b", "é", "*", "..", "a\x00", `"`}
	slices.Sort(names)
	for _, id := range names {
		s.register("odd /é*", id, longTTL)
	}
	s.checkServers("odd /é*", names...)
	for _, id := range names {
		s.remove("odd /é*", id)
	}
	s.checkServers("odd /é*")
}

func (s *suite) publicBaseURL() {
	reg := registration("mds", "a")
	for _, test := range []struct{ url, want string }{
		{"https://one.example.com", "https://one.example.com"},
		{"https://two.example.com", "https://two.example.com"},
		{"", "https://two.example.com"},
	} {
		reg.PublicBaseURL = test.url
		res, err := s.Put(s.Context(), reg, longTTL)
		if err != nil {
			s.Fatal(err)
		}
		if res.PublicBaseURL != test.want {
			s.Errorf("after a Put with %q: PublicBaseURL %q, want %q", test.url, res.PublicBaseURL, test.want)
		}
	}
}

func (s *suite) get() {
	if _, err := s.Get(s.Context(), mit.ResourceID("mds")); !errors.Is(err, mit.ErrNotFound) {
		s.Errorf("Get of an unknown id: %v, want ErrNotFound", err)
	}
	if _, err := s.Get(s.Context(), ""); !errors.Is(err, mit.ErrNotFound) {
		s.Errorf("Get of an empty id: %v, want ErrNotFound", err)
	}
	s.register("mds", "b", longTTL)
	put := s.register("mds", "a", longTTL)
	got, err := s.Get(s.Context(), put.ID)
	if err != nil {
		s.Fatal(err)
	}
	if got.ID != put.ID || got.Type != put.Type || got.PublicBaseURL != put.PublicBaseURL || !slices.EqualFunc(got.Servers, put.Servers, equal) {
		s.Errorf("Get = %+v, Put returned %+v", got, put)
	}
}

func (s *suite) list() {
	listed := func(want ...string) (list []mit.Resource) {
		s.Helper()
		list, err := s.List(s.Context())
		if err != nil {
			s.Fatal(err)
		}
		list = slices.DeleteFunc(list, func(r mit.Resource) bool { return len(r.Servers) == 0 })
		var got []string
		for _, r := range list {
			got = append(got, r.Type+" "+strings.Join(ids(r), ","))
		}
		if !slices.Equal(got, want) {
			s.Errorf("List = %q, want %q", got, want)
		}
		return list
	}
	listed()
	s.register("mds", "b", longTTL)
	put := s.register("mds", "a", longTTL)
	s.register("a/é", "c", s.opts.TTL)
	s.register("zz", "d", longTTL)
	list := listed("a/é c", "mds a,b", "zz d")
	if got := list[1]; got.ID != put.ID || got.PublicBaseURL != put.PublicBaseURL || !slices.EqualFunc(got.Servers, put.Servers, equal) {
		s.Errorf("List has %+v, Put returned %+v", got, put)
	}
	list[1].Servers[0] = cluster.Server{ServerID: "changed"}
	s.remove("zz", "d")
	s.waitForExpiry()
	listed("mds a,b")
}

func (s *suite) expire() {
	s.register("mds", "short", s.opts.TTL)
	s.register("mds", "long", longTTL)
	s.checkServers("mds", "long", "short")
	time.Sleep(s.opts.TTL/2 - s.opts.TTL/10)
	s.checkServers("mds", "long", "short")
	time.Sleep(s.opts.TTL/2 + s.opts.TTL/10 + s.opts.ExpirySlack)
	s.checkServers("mds", "long")
	if got := ids(s.register("mds", "other", longTTL)); !slices.Equal(got, []string{"long", "other"}) {
		s.Errorf("Put returned %q, including an expired server", got)
	}
}

func (s *suite) renewalExtendsTTL() {
	first := s.entry(s.register("mds", "a", s.opts.TTL), "a")
	for range 3 {
		time.Sleep(s.opts.TTL / 2)
		s.register("mds", "a", s.opts.TTL)
	}
	s.checkServers("mds", "a")
	if e := s.entry(s.register("mds", "a", s.opts.TTL), "a"); !e.CreatedAt.Equal(first.CreatedAt) {
		s.Errorf("createdAt changed from %v to %v", first.CreatedAt, e.CreatedAt)
	}
	s.waitForExpiry()
	s.checkServers("mds")
}

// renewalChangesTTL tests what a registry does after a change of its lease.
func (s *suite) renewalChangesTTL() {
	s.register("mds", "a", longTTL)
	s.register("mds", "a", s.opts.TTL)
	s.waitForExpiry()
	s.checkServers("mds")
	s.register("mds", "b", s.opts.TTL)
	s.register("mds", "b", longTTL)
	s.waitForExpiry()
	s.checkServers("mds", "b")
}

func (s *suite) newEntryAfterExpiry() {
	first := s.register("mds", "a", s.opts.TTL)
	s.waitForExpiry()
	second := s.register("mds", "a", longTTL)
	if first.ID != second.ID {
		s.Errorf("the resource id changed from %s to %s", first.ID, second.ID)
	}
	if e := s.entry(second, "a"); !e.CreatedAt.Equal(e.UpdatedAt) || !e.CreatedAt.After(s.entry(first, "a").CreatedAt) {
		s.Errorf("not a new entry: %+v", e)
	}
}

func (s *suite) delete() {
	s.register("mds", "a", longTTL)
	s.register("mds", "b", longTTL)
	s.remove("mds", "a")
	s.checkServers("mds", "b")
	s.remove("mds", "a")
	s.remove("mds", "unknown")
	s.remove("unknown", "a")
	s.checkServers("mds", "b")
	s.remove("mds", "b")
	s.checkServers("mds")
}

func (s *suite) newEntryAfterDelete() {
	first := s.register("mds", "a", s.opts.TTL)
	for range 10 { // without a pause, so also within one millisecond
		s.remove("mds", "a")
		second := s.register("mds", "a", longTTL)
		if first.ID != second.ID {
			s.Errorf("the resource id changed from %s to %s", first.ID, second.ID)
		}
		if e := s.entry(second, "a"); !e.CreatedAt.Equal(e.UpdatedAt) || !e.CreatedAt.After(s.entry(first, "a").UpdatedAt) {
			s.Fatalf("not a new entry: %+v", e)
		}
		first = second
	}
	s.waitForExpiry() // until the TTL of the first entry is over
	s.checkServers("mds", "a")
}

func (s *suite) renewalOf() {
	renew := func(of cluster.Server) (mit.Resource, error) {
		reg := registration("mds", "a")
		reg.RenewalOf = of.CreatedAt
		return s.Put(s.Context(), reg, longTTL)
	}
	gone := func(step string, of cluster.Server) {
		s.Helper()
		if res, err := renew(of); !errors.Is(err, mit.ErrNotFound) {
			s.Errorf("%s: renewal of an entry that is gone: %v, %v", step, ids(res), err)
		}
	}
	gone("empty store", cluster.Server{CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)})
	first := s.entry(s.register("mds", "a", longTTL), "a")
	for range 2 {
		res, err := renew(first)
		if err != nil {
			s.Fatal(err)
		}
		if e := s.entry(res, "a"); !e.CreatedAt.Equal(first.CreatedAt) || !e.UpdatedAt.After(first.UpdatedAt) {
			s.Errorf("renewed: %+v, was %+v", e, first)
		}
	}
	s.remove("mds", "a")
	gone("deleted", first)
	s.checkServers("mds")
	second := s.entry(s.register("mds", "a", longTTL), "a")
	gone("registered again", first)
	res, err := s.Get(s.Context(), mit.ResourceID("mds"))
	if err != nil {
		s.Fatal(err)
	}
	if e := s.entry(res, "a"); !e.UpdatedAt.Equal(second.UpdatedAt) {
		s.Errorf("the entry is %+v, want %+v", e, second)
	}
	if _, err := renew(second); err != nil {
		s.Errorf("renewal of the second entry: %v", err)
	}
}

func (s *suite) deleteIfUnmodifiedSince() {
	s.register("mds", "b", longTTL)
	first := s.entry(s.register("mds", "a", longTTL), "a")
	second := s.entry(s.register("mds", "a", longTTL), "a")
	for _, date := range []time.Time{{}, first.UpdatedAt, second.UpdatedAt.Add(-time.Nanosecond)} {
		newer := s.removeIf("mds", "a", date)
		if newer == nil {
			s.Fatalf("deleted with date %v, but updated at %v", date, second.UpdatedAt)
		}
		if !equal(*newer, second) {
			s.Errorf("newer entry = %+v, want %+v", *newer, second)
		}
	}
	s.checkServers("mds", "a", "b")
	zone := time.FixedZone("", 2*60*60)
	if newer := s.removeIf("mds", "a", second.UpdatedAt.In(zone)); newer != nil {
		s.Errorf("not deleted with its own date: %+v", *newer)
	}
	s.checkServers("mds", "b")
	b := s.entry(s.register("mds", "b", longTTL), "b")
	if newer := s.removeIf("mds", "b", b.UpdatedAt.Add(time.Hour)); newer != nil {
		s.Errorf("not deleted with a later date: %+v", *newer)
	}
	s.checkServers("mds")
}

func (s *suite) deleteIfUnmodifiedSinceOfMissing() {
	if newer := s.removeIf("unknown", "a", time.Time{}); newer != nil {
		s.Errorf("newer entry = %+v of an unknown resource", *newer)
	}
	s.register("mds", "a", s.opts.TTL)
	if newer := s.removeIf("mds", "b", time.Time{}); newer != nil {
		s.Errorf("newer entry = %+v of an unknown server", *newer)
	}
	s.waitForExpiry()
	if newer := s.removeIf("mds", "a", time.Time{}); newer != nil {
		s.Errorf("newer entry = %+v of an expired server", *newer)
	}
}

// A store need not set Version and Replaced. If it does, they must be right.
func (s *suite) versionAndReplaced() {
	var last mit.Resource
	check := func(step string, res mit.Resource, replaced *cluster.Server) {
		s.Helper()
		if res.Version != 0 && res.Version <= last.Version {
			s.Errorf("%s: version %d after %d", step, res.Version, last.Version)
		}
		if r := res.Replaced; r != nil && (replaced == nil || !r.UpdatedAt.Equal(replaced.UpdatedAt) || r.ClusterBaseURL != replaced.ClusterBaseURL) {
			s.Errorf("%s: replaced %+v, want %+v", step, *r, replaced)
		}
		last = res
	}
	first := s.register("mds", "a", longTTL)
	check("first", first, nil)
	entry := s.entry(first, "a")
	check("other server", s.register("mds", "b", longTTL), nil)
	moved := registration("mds", "a")
	moved.ClusterBaseURL = "http://10.0.0.2:8080/mds/v1"
	res, err := s.Put(s.Context(), moved, longTTL)
	if err != nil {
		s.Fatal(err)
	}
	check("renewal", res, &entry)
	entry = s.entry(res, "a")
	check("renewal", s.register("mds", "a", longTTL), &entry)
	s.remove("mds", "a")
	res, err = s.Get(s.Context(), last.ID)
	if err != nil {
		s.Fatal(err)
	}
	check("deleted", res, nil)
	check("registered again", s.register("mds", "a", longTTL), nil)
}

func (s *suite) listsAreCopies() {
	reg := registration("mds", "a")
	want := bytes.Clone(reg.Location)
	first, err := s.Put(s.Context(), reg, longTTL)
	if err != nil {
		s.Fatal(err)
	}
	s.register("mds", "b", longTTL)
	reg.Location[0] = '!'
	first.Servers[0] = cluster.Server{ServerID: "changed"}
	second, err := s.Get(s.Context(), first.ID)
	if err != nil {
		s.Fatal(err)
	}
	_ = append(second.Servers[0].Location, '!', '!')
	_ = append(second.Servers[0].Raw, '!', '!')
	newer := s.removeIf("mds", "b", time.Time{})
	*newer = cluster.Server{ServerID: "changed"}
	for _, id := range []string{"a", "b"} {
		third := s.register("mds", "c", longTTL)
		if e := s.entry(third, id); !bytes.Equal(e.Location, want) {
			s.Errorf("the location of %s changed to %s", id, e.Location)
		}
		if e := s.entry(second, id); !bytes.Equal(e.Location, want) || bytes.Contains(e.Raw, []byte("!")) {
			s.Errorf("the entry of %s in an earlier result changed: location %s, Raw %s", id, e.Location, e.Raw)
		}
	}
	appended := [2][]byte{}
	for i := range appended { // two results must not share the spare capacity of a slice
		got, err := s.Get(s.Context(), first.ID)
		if err != nil {
			s.Fatal(err)
		}
		appended[i] = append(s.entry(got, "a").Location, '0'+byte(i))
	}
	if bytes.Equal(appended[0], appended[1]) {
		s.Error("appending to the location of one result changes another")
	}
}

// rawIsEncodedEntry tests that Raw, if a store sets it, is the encoding of the other fields. A
// stale Raw would send an outdated entry to all nodes.
func (s *suite) rawIsEncodedEntry() {
	reg := registration("mds", "a")
	reg.Location = json.RawMessage(`{ "type": "<Point>" }`)
	reg.ClusterBaseURL += "?&"
	for _, location := range []json.RawMessage{reg.Location, nil} {
		reg.Location = location
		put, err := s.Put(s.Context(), reg, longTTL)
		if err != nil {
			s.Fatal(err)
		}
		got, err := s.Get(s.Context(), put.ID)
		if err != nil {
			s.Fatal(err)
		}
		newer := s.removeIf("mds", "a", time.Time{})
		for _, e := range []cluster.Server{s.entry(put, "a"), s.entry(got, "a"), *newer} {
			fields := e
			fields.Raw = nil
			want, err := fields.MarshalJSON()
			if err != nil {
				s.Fatal(err)
			}
			if e.Raw != nil && !bytes.Equal(e.Raw, want) {
				s.Errorf("Raw = %s, want %s", e.Raw, want)
			}
		}
	}
}

func (s *suite) concurrentFirstPuts() {
	const n = 32
	resources := make([]mit.Resource, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			resources[i], errs[i] = s.Put(s.Context(), registration("mds", fmt.Sprintf("%02d", i)), longTTL)
		})
	}
	wg.Wait()
	sizes := make([]int, n)
	for i, res := range resources {
		if errs[i] != nil {
			s.Fatal(errs[i])
		}
		if res.ID != resources[0].ID {
			s.Errorf("two resources of one type: %s and %s", res.ID, resources[0].ID)
		}
		s.entry(res, fmt.Sprintf("%02d", i))
		sizes[i] = len(res.Servers)
	}
	if len(s.servers("mds")) != n {
		s.Errorf("%d servers registered, Get returns %q", n, s.servers("mds"))
	}
	// Each Put is atomic, so the last one returns all servers.
	if slices.Max(sizes) != n {
		s.Errorf("%d concurrent Puts: none returned more than %d servers", n, slices.Max(sizes))
	}
}

// concurrentRenewalAndDelete renews and conditionally deletes an entry at the same time. If the
// renewal came first, the delete returns the renewed entry; otherwise the renewal created a new
// one.
func (s *suite) concurrentRenewalAndDelete() {
	for range 50 {
		before := s.entry(s.register("mds", "a", longTTL), "a")
		var (
			wg    sync.WaitGroup
			after mit.Resource
			newer *cluster.Server
			errs  [2]error
		)
		wg.Go(func() { after, errs[0] = s.Put(s.Context(), registration("mds", "a"), longTTL) })
		wg.Go(func() {
			newer, errs[1] = s.DeleteIfUnmodifiedSince(s.Context(), mit.ResourceID("mds"), "a", before.UpdatedAt)
		})
		wg.Wait()
		if err := errors.Join(errs[:]...); err != nil {
			s.Fatal(err)
		}
		renewed := s.entry(after, "a")
		switch {
		case newer != nil && (!equal(*newer, renewed) || !renewed.CreatedAt.Equal(before.CreatedAt)):
			s.Fatalf("renewed %+v, the delete saw %+v", renewed, *newer)
		case newer == nil && !renewed.CreatedAt.Equal(renewed.UpdatedAt):
			s.Fatalf("deleted, but Put renewed the old entry: %+v", renewed)
		case !slices.Equal(s.servers("mds"), []string{"a"}):
			s.Fatalf("renewed, but not listed: %+v", renewed)
		}
		s.remove("mds", "a")
	}
}
