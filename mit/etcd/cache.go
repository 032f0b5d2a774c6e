package etcd

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/mimiktech/cluster"
	"github.com/mimiktech/cluster/mit"
)

// A cache holds the contents of etcd at one revision. It has no clock, no lock and no I/O.
type cache struct {
	keys      keys
	revision  int64
	resources map[string]*resource // by id
	// unrecognized maps keys that are not of this package, or whose value is invalid, to the cause.
	unrecognized map[string]error
	// notBefore is the earliest date of a new entry. It is later than the dates of all removed
	// entries, and not before the dates of the others.
	notBefore time.Time
}

// A resource exists as long as its own key or one of its servers exists.
type resource struct {
	typ, publicBaseURL string
	hasKey             bool     // its own key exists
	entries            []*entry // sorted by id; each is replaced, never changed
}

type entry struct {
	cluster.Server
	revision int64 // of its last change
}

func newCache(k keys, revision int64, kvs []*mvccpb.KeyValue) *cache {
	c := &cache{keys: k, revision: revision, resources: map[string]*resource{}, unrecognized: map[string]error{}}
	for _, kv := range kvs {
		c.put(kv)
	}
	return c
}

// put applies a new value of a key.
func (c *cache) put(kv *mvccpb.KeyValue) {
	key := string(kv.Key)
	delete(c.unrecognized, key)
	id, typ, serverID, err := c.keys.parse(key)
	switch {
	case err != nil:
	case id != "":
		var value resourceValue
		if value, err = decodeResource(id, kv.Value); err == nil {
			r := c.ensureResource(value.Type)
			r.hasKey, r.publicBaseURL = true, value.PublicBaseURL
		} else {
			c.clearKey(id)
		}
	default:
		var s cluster.Server
		if s, err = decodeServer(serverID, kv.Value); err == nil {
			r := c.ensureResource(typ)
			e := &entry{s, kv.ModRevision}
			c.notBefore = later(s.UpdatedAt, c.notBefore)
			if i, known := r.find(serverID); known {
				r.entries[i] = e
			} else {
				r.entries = slices.Insert(r.entries, i, e)
			}
		} else {
			c.removeServer(typ, serverID)
		}
	}
	if err != nil {
		c.unrecognized[key] = err
	}
}

// remove applies the removal of a key. For the key of a known server, it returns the server and
// true.
func (c *cache) remove(key string) (typ, serverID string, removed bool) {
	delete(c.unrecognized, key)
	id, typ, serverID, err := c.keys.parse(key)
	if err != nil {
		return "", "", false
	}
	if id != "" {
		c.clearKey(id)
		return "", "", false
	}
	return typ, serverID, c.removeServer(typ, serverID)
}

func (c *cache) ensureResource(typ string) *resource {
	id := mit.ResourceID(typ)
	r := c.resources[id]
	if r == nil {
		r = &resource{typ: typ}
		c.resources[id] = r
	}
	return r
}

func (c *cache) clearKey(id string) {
	if r := c.resources[id]; r != nil {
		r.hasKey, r.publicBaseURL = false, ""
		c.dropIfEmpty(id)
	}
}

func (c *cache) removeServer(typ, serverID string) bool {
	id := mit.ResourceID(typ)
	r := c.resources[id]
	if r == nil {
		return false
	}
	i, known := r.find(serverID)
	if known {
		c.notBefore = later(r.entries[i].UpdatedAt.Add(time.Millisecond), c.notBefore)
		if r.entries = slices.Delete(r.entries, i, i+1); cap(r.entries) > 64 && len(r.entries) < cap(r.entries)/4 {
			r.entries = slices.Clone(r.entries) // frees the capacity of removed entries
		}
		c.dropIfEmpty(id)
	}
	return known
}

// keepDates makes new entries later than all entries of an earlier cache, because these may have
// been removed meanwhile.
func (c *cache) keepDates(earlier *cache) {
	if !earlier.notBefore.IsZero() {
		c.notBefore = later(earlier.notBefore.Add(time.Millisecond), c.notBefore)
	}
}

func (c *cache) dropIfEmpty(id string) {
	if r := c.resources[id]; !r.hasKey && len(r.entries) == 0 {
		delete(c.resources, id)
	}
}

// entry returns the entry of a server, nil if there is none.
func (c *cache) entry(typ, serverID string) *entry {
	r := c.resources[mit.ResourceID(typ)]
	if r == nil {
		return nil
	}
	if i, known := r.find(serverID); known {
		return r.entries[i]
	}
	return nil
}

func (r *resource) find(serverID string) (int, bool) {
	return slices.BinarySearchFunc(r.entries, serverID, func(e *entry, id string) int {
		return cmp.Compare(e.ServerID, id)
	})
}

func (r *resource) snapshot() mit.Resource {
	return mit.NewResource(r.typ, r.publicBaseURL, len(r.entries), func(i int) cluster.Server { return r.entries[i].Server })
}

// withServer returns res with s in place of any other entry of that server. If there was another or
// none, res no longer is a state of the cache, and so has no version.
func withServer(res mit.Resource, s cluster.Server) mit.Resource {
	i, known := slices.BinarySearchFunc(res.Servers, s.ServerID, func(s cluster.Server, id string) int {
		return cmp.Compare(s.ServerID, id)
	})
	if !known {
		res.Servers = slices.Insert(res.Servers, i, cluster.Server{})
	}
	if !known || !res.Servers[i].UpdatedAt.Equal(s.UpdatedAt) {
		res.Version = 0
	}
	res.Servers[i] = s
	return res
}

// unrecognizedKeys returns the first keys, at most limit.
func (c *cache) unrecognizedKeys(limit int) []string {
	keys := slices.Sorted(maps.Keys(c.unrecognized))
	return keys[:min(limit, len(keys))]
}
