package etcd

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
)

const (
	testKeys = keys("/mit/")
	mdsKey   = "/mit/itResources/09d8f1f0-7477-5c54-9770-74879a6d3b25"
	dated    = `{"createdAt":"2026-01-02T03:04:05.678Z","updatedAt":"2026-01-02T04:24:05.678Z"}`
)

func kv(key, value string) *mvccpb.KeyValue {
	return &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), ModRevision: 7}
}

// The keys and values are a contract: replicas of different versions share them.
func TestLayout(t *testing.T) {
	date := time.Date(2026, 1, 2, 3, 4, 5, 678_000_000, time.UTC)
	server := cluster.Server{
		ServerID:       "a/b",
		ClusterBaseURL: "http://10.0.0.1:8080/mds/v1?a&b",
		Location:       json.RawMessage(`{"type":"Point"}`),
		CreatedAt:      date,
		UpdatedAt:      date.Add(time.Millisecond),
	}
	value, err := encodeServer(server)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"clusterBaseUrl":"http://10.0.0.1:8080/mds/v1?a&b","location":{"type":"Point"},` +
		`"createdAt":"2026-01-02T03:04:05.678Z","updatedAt":"2026-01-02T03:04:05.679Z"}`
	if value != want {
		t.Errorf("server encoded as %s, want %s", value, want)
	}
	for got, want := range map[string]string{
		testKeys.server("mds", "a/b"):               "/mit/servers/mds/a%2Fb",
		testKeys.server("odd /é*", "a\x00"):         "/mit/servers/odd%20%2F%C3%A9%2A/a%00",
		testKeys.resource(mit.ResourceID("mds")):    mdsKey,
		string(Config{}.prefix()):                   "/mit/",
		string(Config{Prefix: "/a/b/"}.prefix()):    "/a/b/",
		string(Config{Prefix: "/"}.prefix()):        "/",
		testKeys.servers("mds") + "the server's id": "/mit/servers/mds/the server's id",
	} {
		if got != want {
			t.Errorf("key %s, want %s", got, want)
		}
	}
	if server.Raw, err = server.MarshalJSON(); err != nil {
		t.Fatal(err)
	}
	decoded, err := decodeServer("a/b", []byte(value))
	if diff := gocmp.Diff(server, decoded); err != nil || diff != "" {
		t.Errorf("decoded: %v %s", err, diff)
	}
}

func TestCache(t *testing.T) {
	for _, test := range []struct {
		name    string
		kvs     []*mvccpb.KeyValue
		removed []string
		servers map[string][]string // by type
		public  string              // of mds
		foreign []string
	}{
		{name: "empty"},
		{
			name:    "resource and servers",
			kvs:     []*mvccpb.KeyValue{kv(mdsKey, `{"type":"mds","publicBaseUrl":"p"}`), kv("/mit/servers/mds/b", dated), kv("/mit/servers/mds/a", dated)},
			servers: map[string][]string{"mds": {"a", "b"}},
			public:  "p",
		},
		{
			name:    "fields of a later version",
			kvs:     []*mvccpb.KeyValue{kv("/mit/servers/mds/a", `{"later":1,`+dated[1:])},
			servers: map[string][]string{"mds": {"a"}},
		},
		{
			name:    "the last server went, the resource stays",
			kvs:     []*mvccpb.KeyValue{kv(mdsKey, `{"type":"mds","publicBaseUrl":"p"}`), kv("/mit/servers/mds/a", dated)},
			removed: []string{"/mit/servers/mds/a", "/mit/servers/mds/a", "/mit/servers/other/a"},
			servers: map[string][]string{"mds": nil},
			public:  "p",
		},
		{
			name:    "the resource's key went, the servers stay",
			kvs:     []*mvccpb.KeyValue{kv(mdsKey, `{"type":"mds","publicBaseUrl":"p"}`), kv("/mit/servers/mds/a", dated)},
			removed: []string{mdsKey},
			servers: map[string][]string{"mds": {"a"}},
		},
		{
			name:    "all went",
			kvs:     []*mvccpb.KeyValue{kv(mdsKey, `{"type":"mds"}`), kv("/mit/servers/mds/a", dated), kv("/mit/x", "")},
			removed: []string{"/mit/servers/mds/a", mdsKey, "/mit/x"},
		},
		{
			name:    "a server turned into something else",
			kvs:     []*mvccpb.KeyValue{kv("/mit/servers/mds/a", dated), kv("/mit/servers/mds/b", dated), kv("/mit/servers/mds/a", "?")},
			servers: map[string][]string{"mds": {"b"}},
			foreign: []string{"/mit/servers/mds/a"},
		},
		{
			name:    "and back",
			kvs:     []*mvccpb.KeyValue{kv("/mit/servers/mds/a", "?"), kv("/mit/servers/mds/a", dated)},
			servers: map[string][]string{"mds": {"a"}},
		},
		{
			name: "foreign keys",
			kvs: []*mvccpb.KeyValue{
				kv("/mit/itResources/", `{"type":"mds"}`), kv("/mit/servers/mds", dated), kv("/mit/servers/mds/a/b", dated),
				kv("/mit/servers/mds/%61", dated), kv("/mit/servers/mds/%zz", dated), kv("/mit2/servers/mds/a", dated),
			},
			foreign: []string{
				"/mit/itResources/", "/mit/servers/mds", "/mit/servers/mds/%61", "/mit/servers/mds/%zz",
				"/mit/servers/mds/a/b", "/mit2/servers/mds/a",
			},
		},
		{
			name:    "a resource that is another's",
			kvs:     []*mvccpb.KeyValue{kv(mdsKey, `{"type":"mds","publicBaseUrl":"p"}`), kv(mdsKey, `{"type":"other","publicBaseUrl":"q"}`)},
			foreign: []string{mdsKey},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := newCache(testKeys, 7, test.kvs)
			for _, key := range test.removed {
				v.remove(key)
			}
			servers := map[string][]string{}
			for id, r := range v.resources {
				res := r.snapshot()
				if res.ID != id || res.ID != mit.ResourceID(res.Type) {
					t.Errorf("resource %s is kept as %s", res.ID, id)
				}
				var ids []string
				for _, s := range res.Servers {
					ids = append(ids, s.ServerID)
				}
				servers[res.Type] = ids
				if res.Type == "mds" && res.PublicBaseURL != test.public {
					t.Errorf("publicBaseUrl %q, want %q", res.PublicBaseURL, test.public)
				}
			}
			if test.servers == nil {
				test.servers = map[string][]string{}
			}
			if diff := gocmp.Diff(test.servers, servers); diff != "" {
				t.Errorf("servers: %s", diff)
			}
			if diff := gocmp.Diff(test.foreign, slices.Sorted(maps.Keys(v.unrecognized))); diff != "" {
				t.Errorf("unrecognized: %s", diff)
			}
		})
	}
}

// A Put returns its own entry, whatever other stores have changed since.
func TestWithServer(t *testing.T) {
	put := cluster.Server{ServerID: "b", ClusterBaseURL: "put", Location: json.RawMessage(`{}`)}
	for name, ids := range map[string][]string{"removed since": {"a", "c"}, "put again since": {"a", "b", "c"}, "alone": {}} {
		res := mit.Resource{Type: "mds", Version: 7}
		want := []cluster.Server{put}
		for _, id := range ids {
			other := cluster.Server{ServerID: id, ClusterBaseURL: "other", UpdatedAt: time.Unix(1, 0)}
			res.Servers = append(res.Servers, other)
			if id != "b" {
				want = append(want, other)
			}
		}
		slices.SortFunc(want, func(a, b cluster.Server) int { return cmp.Compare(a.ServerID, b.ServerID) })
		if diff := gocmp.Diff(mit.Resource{Type: "mds", Servers: want}, withServer(res, put)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	same := mit.Resource{Version: 7, Servers: []cluster.Server{put}}
	if res := withServer(same, put); res.Version != 7 {
		t.Errorf("version %d of a state of the cache", res.Version)
	}
}

// The cache keeps a small part of memory for each live server, and none for others, however often
// they have renewed.
func TestFootprint(t *testing.T) {
	const servers, limit = 10_000, 1536
	heap := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	c := newCache(testKeys, 1, []*mvccpb.KeyValue{kv(mdsKey, `{"type":"mds"}`)})
	for renewal := range 5 {
		for i := range servers {
			// As after reading from a connection: all fields are slices of one large buffer.
			buf := fmt.Appendf(make([]byte, 0, 4096), `/mit/servers/mds/0e9f1c52-6f0b-4b57-9c1f-%012d{"clusterBaseUrl":"http://10.0.0.1:8080/mds/v1",`+
				`"location":{"type":"Point","coordinates":[2.35,48.86]},%s`, i, dated[1:])
			n := bytes.IndexByte(buf, '{')
			c.put(&mvccpb.KeyValue{Key: buf[:n], Value: buf[n:], ModRevision: int64(renewal)})
		}
	}
	perServer := (heap() - before) / servers
	t.Logf("%d bytes per server", perServer)
	if perServer > limit {
		t.Errorf("%d bytes per server, want at most %d", perServer, limit)
	}
	for i := range servers {
		c.remove(fmt.Sprintf("/mit/servers/mds/0e9f1c52-6f0b-4b57-9c1f-%012d", i))
	}
	if left := heap() - before; left > 32<<10 {
		t.Errorf("%d bytes are retained for servers that are gone", left)
	}
	runtime.KeepAlive(c)
}

// After a removal, a new entry is dated later than all that were there, whatever the clock.
func TestCacheDates(t *testing.T) {
	c := newCache(testKeys, 7, []*mvccpb.KeyValue{kv("/mit/servers/mds/a", dated)})
	last := c.entry("mds", "a").UpdatedAt
	if !c.notBefore.Equal(last) {
		t.Errorf("not before %v, want %v", c.notBefore, last)
	}
	c.remove("/mit/servers/mds/a")
	if !c.notBefore.After(last) {
		t.Errorf("after the removal: not before %v, want later than %v", c.notBefore, last)
	}
	reloaded := newCache(testKeys, 7, nil)
	reloaded.keepDates(c)
	if !reloaded.notBefore.After(last) {
		t.Errorf("after a reload: not before %v, want later than %v", reloaded.notBefore, last)
	}
}

// Every key is either decoded, and encoded the same way, or unrecognized.
func FuzzCache(f *testing.F) {
	f.Add("itResources/09d8f1f0-7477-5c54-9770-74879a6d3b25", `{"type":"mds","publicBaseUrl":"p"}`)
	f.Add("servers/mds/a", dated)
	f.Add("servers/mds/a%2Fb", `{"location":null,`+dated[1:])
	f.Add("servers//", dated)
	f.Add("itResources/", "{}")
	f.Fuzz(func(t *testing.T, rest, value string) {
		key := string(testKeys) + rest
		v := newCache(testKeys, 7, []*mvccpb.KeyValue{kv(key, value)})
		if len(v.unrecognized)+len(v.resources) != 1 {
			t.Fatalf("%q is foreign %v, a resource %v", key, v.unrecognized, v.resources)
		}
		for id, r := range v.resources {
			for _, e := range r.entries {
				if testKeys.server(r.typ, e.ServerID) != key {
					t.Errorf("%q is read as server %q of type %q", key, e.ServerID, r.typ)
				}
				again, err := encodeServer(e.Server)
				if err != nil {
					t.Fatalf("%q cannot be written again: %v", value, err)
				}
				if back, err := decodeServer(e.ServerID, []byte(again)); err != nil || !back.UpdatedAt.Equal(e.UpdatedAt) || back.ClusterBaseURL != e.ClusterBaseURL {
					t.Errorf("%q is written as %q, and then is %+v, %v", value, again, back, err)
				}
			}
			if r.hasKey && testKeys.resource(id) != key {
				t.Errorf("%q is read as resource %s", key, id)
			}
			if r.hasKey == (len(r.entries) == 1) {
				t.Errorf("%q is read as %d servers, resource %v", key, len(r.entries), r.hasKey)
			}
		}
		v.remove(key)
		if len(v.unrecognized)+len(v.resources) != 0 {
			t.Errorf("%q stays: foreign %v, a resource %v", key, v.unrecognized, v.resources)
		}
	})
}
